//! A queue whose members carry the links: anybody can leave from the middle at once, and it takes no memory of its own.

/// No member.
pub(super) const NONE: u32 = u32::MAX;

/// What a member of a line carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) prev: u32,
    pub(super) next: u32,
}

impl Links {
    pub(super) const ALONE: Self = Self { prev: NONE, next: NONE };
}

/// Where the links of members are.
pub(super) trait Members {
    fn links(&mut self, member: u32) -> &mut Links;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    first: u32,
    last: u32,
}

impl Line {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };

    pub(super) const fn first(&self) -> Option<u32> {
        if self.first == NONE { None } else { Some(self.first) }
    }

    pub(super) const fn last(&self) -> Option<u32> {
        if self.last == NONE { None } else { Some(self.last) }
    }

    pub(super) fn push(&mut self, member: u32, members: &mut impl Members) {
        self.insert_after(self.last(), member, members);
    }

    /// Puts a member behind another, or at the front.
    pub(super) fn insert_after(&mut self, other: Option<u32>, member: u32, members: &mut impl Members) {
        let prev = other.unwrap_or(NONE);
        let next = std::mem::replace(self.next_of(prev, members), member);
        *self.prev_of(next, members) = member;
        *members.links(member) = Links { prev, next };
    }

    pub(super) fn remove(&mut self, member: u32, members: &mut impl Members) {
        let Links { prev, next } = std::mem::replace(members.links(member), Links::ALONE);
        *self.next_of(prev, members) = next;
        *self.prev_of(next, members) = prev;
    }

    fn next_of<'a>(&'a mut self, member: u32, members: &'a mut impl Members) -> &'a mut u32 {
        if member == NONE { &mut self.first } else { &mut members.links(member).next }
    }

    fn prev_of<'a>(&'a mut self, member: u32, members: &'a mut impl Members) -> &'a mut u32 {
        if member == NONE { &mut self.last } else { &mut members.links(member).prev }
    }
}
