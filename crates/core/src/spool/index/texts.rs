//! Reasons and errors, each kept once however many records share it: after a failure of an upstream, most do.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A text that is kept. Given back with [`Texts::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextId(u32);

impl TextId {
    pub(super) const EMPTY: Self = Self(u32::MAX);
}

#[derive(Debug, Default)]
pub(super) struct Texts {
    by_text: BTreeMap<Arc<str>, u32>,
    /// The text, and by how many it is used.
    kept: Vec<(Arc<str>, u32)>,
    free: Vec<u32>,
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
}
