//! Reasons, errors and numbers of tries, each kept once however many records share it: after a failure of an upstream,
//! most do.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A text that is kept. Given back with [`Texts::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TextId(u32);

impl TextId {
    pub(super) const EMPTY: Self = Self(u32::MAX);
}

/// Tries and their last error, kept together. Given back with [`Tries::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TriesId(u32);

#[derive(Debug, Default)]
pub(super) struct Texts {
    by_text: BTreeMap<Arc<str>, u32>,
    /// The text, and by how many it is used.
    kept: Vec<(Arc<str>, u32)>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Tries {
    texts: Texts,
    by_tries: BTreeMap<(u32, TextId), u32>,
    /// How many tries, why the last failed, and by how many records it is used.
    kept: Vec<(u32, TextId, u32)>,
    free: Vec<u32>,
}

impl Tries {
    pub(super) fn keep(&mut self, attempts: u32, last_error: &str) -> TriesId {
        let text = self.texts.keep(last_error);
        if let Some(&id) = self.by_tries.get(&(attempts, text)) {
            self.texts.release(text);
            self.kept[id as usize].2 += 1;
            return TriesId(id);
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.kept.push((0, TextId::EMPTY, 0));
            (self.kept.len() - 1) as u32
        });
        self.kept[id as usize] = (attempts, text, 1);
        self.by_tries.insert((attempts, text), id);
        TriesId(id)
    }

    pub(super) fn get(&self, id: TriesId) -> (u32, &str) {
        let (attempts, text, _) = self.kept[id.0 as usize];
        (attempts, self.texts.get(text))
    }

    pub(super) fn release(&mut self, id: TriesId) {
        let (attempts, text, users) = &mut self.kept[id.0 as usize];
        *users -= 1;
        if *users == 0 {
            self.by_tries.remove(&(*attempts, *text));
            self.texts.release(*text);
            self.free.push(id.0);
        }
    }
}

impl Texts {
    pub(super) fn keep(&mut self, text: &str) -> TextId {
        if text.is_empty() {
            return TextId::EMPTY;
        }
        if let Some(&id) = self.by_text.get(text) {
            self.kept[id as usize].1 += 1;
            return TextId(id);
        }
        let text: Arc<str> = text.into();
        let id = self.free.pop().unwrap_or_else(|| {
            self.kept.push(("".into(), 0));
            (self.kept.len() - 1) as u32
        });
        self.kept[id as usize] = (Arc::clone(&text), 1);
        self.by_text.insert(text, id);
        TextId(id)
    }

    pub(super) fn get(&self, id: TextId) -> &str {
        if id == TextId::EMPTY { "" } else { &self.kept[id.0 as usize].0 }
    }

    pub(super) fn release(&mut self, id: TextId) {
        if id == TextId::EMPTY {
            return;
        }
        let (text, users) = &mut self.kept[id.0 as usize];
        *users -= 1;
        if *users == 0 {
            self.by_text.remove(text);
            *text = "".into();
            self.free.push(id.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_as_long_as_somebody_uses_it() {
        let mut texts = Texts::default();
        let (a, b, again) = (texts.keep("503"), texts.keep("timeout"), texts.keep("503"));
        assert_eq!(a, again);
        assert_eq!((texts.get(a), texts.get(b), texts.get(TextId(texts.by_text["503"]))), ("503", "timeout", "503"));
        texts.release(a);
        assert_eq!(texts.get(again), "503");
        texts.release(again);
        assert_eq!(texts.by_text.len(), 1);
        assert_eq!(texts.keep("reset"), a, "its number is free again");
        let empty = texts.keep("");
        texts.release(empty);
        assert_eq!((texts.get(empty), texts.kept.len()), ("", 2));
    }

    #[test]
    fn tries_are_kept_once_too() {
        let mut tries = Tries::default();
        let (a, b, again, other) =
            (tries.keep(1, "503"), tries.keep(2, "503"), tries.keep(1, "503"), tries.keep(1, "timeout"));
        assert_eq!((a, tries.get(a), tries.get(b), tries.get(other)), (again, (1, "503"), (2, "503"), (1, "timeout")));
        [a, b].into_iter().for_each(|id| tries.release(id));
        assert_eq!(tries.get(again), (1, "503"));
        tries.release(again);
        assert_eq!((tries.by_tries.len(), tries.texts.by_text.len()), (1, 1));
        assert_eq!(tries.keep(7, ""), a, "its number is free again");
        assert_eq!(tries.get(a), (7, ""));
    }
}
