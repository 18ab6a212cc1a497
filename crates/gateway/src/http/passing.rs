//! Frames of HTTP/2 as they pass by, told apart: what the library that reads them tells nobody.
//!
//! Picture a turnstile: it sees what kind goes through and how large it is, and opens nothing but a reset's reason. Whole
//! frames are not kept, however they are cut.
//! Not here: what a frame means (the library's), what is too much (`h2.rs`).

use super::h2::PREFACE;

const HEAD_BYTES: usize = 9;
/// So much of what is in a frame is looked at, ...
const NOTE_BYTES: usize = 4;
/// ... and so much of a GOAWAY: whose last stream it names, why, and the first words said about it.
const GOAWAY_BYTES: usize = 20;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS: nothing of the stream follows.
pub(crate) const END_STREAM: u8 = 1;
/// Of HEADERS and CONTINUATION: the head is whole.
pub(crate) const END_HEADERS: u8 = 4;

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) bytes: u32,
    /// What it begins with.
    pub(crate) note: &'a [u8],
}

impl Seen<'_> {
    /// A reset's reason.
    pub(crate) fn number(&self) -> u32 {
        self.note.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// One direction of a connection.
#[derive(Debug)]
pub(crate) struct Passing {
    /// What is left of the client's first words.
    preface: usize,
    head: [u8; HEAD_BYTES + GOAWAY_BYTES],
    has: usize,
    /// What is left of a frame that has been seen.
    left: usize,
}

impl Passing {
    /// What a client says.
    pub(crate) fn of_client() -> Self {
        Self { preface: PREFACE.len(), ..Self::of_server() }
    }

    /// What is said to it.
    pub(crate) fn of_server() -> Self {
        Self { preface: 0, head: [0; HEAD_BYTES + GOAWAY_BYTES], has: 0, left: 0 }
    }

    /// True between two frames.
    pub(crate) fn is_between(&self) -> bool {
        self.preface == 0 && self.has == 0 && self.left == 0
    }

    /// True in the middle of a frame, but for DATA, of which the beginning is as good as the end.
    pub(crate) fn is_within(&self) -> bool {
        self.preface > 0 || self.has > 0 || (self.left > 0 && self.head[3] != DATA)
    }

    /// Looks at bytes that pass. Each frame is told once, when its beginning has come.
    pub(crate) fn see(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Seen<'_>)) {
        let skip = self.preface.min(bytes.len());
        self.preface -= skip;
        bytes = &bytes[skip..];
        while !bytes.is_empty() {
            if self.left > 0 {
                let take = self.left.min(bytes.len());
                self.left -= take;
                bytes = &bytes[take..];
                continue;
            }
            let wanted = if self.has < HEAD_BYTES { HEAD_BYTES } else { self.wanted() };
            let take = (wanted - self.has).min(bytes.len());
            self.head[self.has..self.has + take].copy_from_slice(&bytes[..take]);
            self.has += take;
            bytes = &bytes[take..];
            if self.has < HEAD_BYTES || self.has < self.wanted() {
                continue;
            }
            let (length, note) = (self.length(), &self.head[HEAD_BYTES..self.has]);
            let [_, _, _, kind, flags, a, b, c, d, ..] = self.head;
            let stream = u32::from_be_bytes([a, b, c, d]) & (u32::MAX >> 1);
            tell(Seen { kind, flags, stream, bytes: length as u32, note });
            self.left = length - note.len();
            self.has = 0;
        }
    }

    /// How much of a frame is looked at.
    fn wanted(&self) -> usize {
        let most = if self.head[3] == GOAWAY { GOAWAY_BYTES } else { NOTE_BYTES };
        HEAD_BYTES + self.length().min(most)
    }

    fn length(&self) -> usize {
        let [a, b, c, ..] = self.head;
        u32::from_be_bytes([0, a, b, c]) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let goaway = [&[0, 0, 0, 9, 0, 0, 0, 11], &b"too_many_resets and more"[..]].concat();
        let sent = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, b""),
            frame(HEADERS, END_HEADERS | END_STREAM, b"abcdefgh"),
            frame(RST_STREAM, 0, &7_u32.to_be_bytes()),
            frame(DATA, 0, b"ab"),
            frame(GOAWAY, 0, &goaway),
        ]
        .concat();
        let expected = [
            (SETTINGS, 0, 0, b"".to_vec()),
            (HEADERS, 5, 8, b"abcd".to_vec()),
            (RST_STREAM, 0, 4, vec![0, 0, 0, 7]),
            (DATA, 0, 2, b"ab".to_vec()),
            (GOAWAY, 0, goaway.len() as u32, goaway[..GOAWAY_BYTES].to_vec()),
        ];
        for piece in 1..sent.len() {
            let (mut passing, mut told) = (Passing::of_client(), Vec::new());
            let mut tell = |seen: Seen<'_>| {
                assert_eq!(seen.stream, 1);
                told.push((seen.kind, seen.flags, seen.bytes, seen.note.to_vec()));
            };
            sent.chunks(piece).for_each(|bytes| passing.see(bytes, &mut tell));
            assert_eq!((told.as_slice(), passing.is_within()), (&expected[..], false), "in pieces of {piece}");
        }
    }

    #[test]
    fn half_a_frame_is_known_as_that() {
        let mut passing = Passing::of_server();
        let headers = frame(HEADERS, END_HEADERS, &[0; 20]);
        for at in [1, HEAD_BYTES, HEAD_BYTES + 2, HEAD_BYTES + 19] {
            let mut told = 0;
            passing.see(&headers[..at], |_| told += 1);
            assert!(passing.is_within() && !passing.is_between(), "{at}");
            passing.see(&headers[at..], |_| told += 1);
            assert_eq!((told, passing.is_within(), passing.is_between()), (1, false, true), "{at}");
        }
    }
}
