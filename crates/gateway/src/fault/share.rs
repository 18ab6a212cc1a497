//! What places have to share, and how they do so without a say in each other's traffic: a place may go on taking while it
//! has taken no more than is still free.
//!
//! Alone it gets half, next to another that is full a half of the rest, and so on: whoever comes finds something, whatever
//! the others do, and nothing has to be known of how many there are.

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
    }
}
