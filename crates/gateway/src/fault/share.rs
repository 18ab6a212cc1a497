//! What places have to share, and how they do so without a say in each other's traffic: a place may go on taking while
//! it has taken no more than is still free.
//!
//! Alone it gets half, next to another that is full a half of the rest, and so on: whoever comes finds something,
//! whatever the others do, and nothing has to be known of how many there are.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Something countable that all have in common.
#[derive(Debug)]
pub(super) struct Commons {
    max: usize,
    taken: AtomicUsize,
}

impl Commons {
    pub(super) fn new(max: usize) -> Self {
        Self { max, taken: AtomicUsize::new(0) }
    }

    /// Takes one for somebody who has `own` already. Tells whether there was one to take.
    pub(super) fn take_one(&self, own: usize) -> bool {
        let taken = self.taken.fetch_update(Relaxed, Relaxed, |taken| self.allows(own, taken).then(|| taken + 1));
        taken.is_ok()
    }

    /// Takes so many, whether they are there or not: who asked [`Self::has_more`] before cannot know how many it will
    /// be.
    pub(super) fn take(&self, count: usize) {
        self.taken.fetch_add(count, Relaxed);
    }

    /// Whether somebody who has `own` already may take more.
    pub(super) fn has_more(&self, own: usize) -> bool {
        self.allows(own, self.taken.load(Relaxed))
    }

    pub(super) fn give_back(&self, count: usize) {
        self.taken.fetch_sub(count, Relaxed);
    }

    fn allows(&self, own: usize, taken: usize) -> bool {
        taken < self.max && own <= self.max - taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_he_leaves_free() {
        let commons = Commons::new(64);
        let mut own = [0; 8];
        for place in &mut own {
            while commons.take_one(*place) {
                *place += 1;
            }
        }
        assert_eq!(own, [33, 16, 8, 4, 2, 1, 0, 0], "64 is all there is");
        commons.give_back(33);
        assert!(commons.take_one(own[7]));
        // More may be taken than there is; then there is none until enough is back.
        commons.take(40);
        assert!(!commons.has_more(0));
        commons.give_back(10);
        assert!(commons.has_more(2) && !commons.has_more(3), "62 are taken");
    }
}
