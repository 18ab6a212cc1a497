//! Frames of HTTP/2 as they pass by, told apart: what the library that reads them tells nobody.
//!
//! Picture a turnstile: it sees what kind goes through and how large it is, and opens nothing but a reset's reason.
//! Whole frames are not kept, however they are cut. Not here: what a frame means (the library's), what is too much
//! (`h2.rs`).

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
pub(crate) const WINDOW_UPDATE: u8 = 8;
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
    /// A reset's reason, or by how much a window is opened.
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
    /// A head goes on in the next frame.
    is_in_head: bool,
}

/// What bytes that passed have left without its end: a head, or a frame other than DATA, of which the beginning is as
/// good as the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfinished {
    Nothing,
    /// What was so before.
    Same,
    /// Something that has begun with them.
    Other,
}

impl Passing {
    /// What a client says.
    pub(crate) fn of_client() -> Self {
        Self { preface: PREFACE.len(), ..Self::of_server() }
    }

    /// What is said to it.
    pub(crate) fn of_server() -> Self {
        Self { preface: 0, head: [0; HEAD_BYTES + GOAWAY_BYTES], has: 0, left: 0, is_in_head: false }
    }

    /// True between two frames.
    pub(crate) fn is_between(&self) -> bool {
        self.preface == 0 && self.has == 0 && self.left == 0
    }

    fn is_unfinished(&self) -> bool {
        let is_in_preface = !self.preface.is_multiple_of(PREFACE.len());
        is_in_preface || self.is_in_head || self.has > 0 || (self.left > 0 && self.head[3] != DATA)
    }

    /// Looks at bytes that pass. Each frame is told once, when its beginning has come.
    pub(crate) fn see(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Seen<'_>)) -> Unfinished {
        let mut is_same = self.is_unfinished();
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
            let seen = Seen { kind, flags, stream, bytes: length as u32, note };
            tell(seen);
            self.is_in_head = matches!(kind, HEADERS | CONTINUATION) && !seen.has(END_HEADERS);
            is_same &= self.is_in_head;
            self.left = length - note.len();
            self.has = 0;
        }
        match (self.is_unfinished(), is_same) {
            (false, _) => Unfinished::Nothing,
            (true, true) => Unfinished::Same,
            (true, false) => Unfinished::Other,
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
            for bytes in sent.chunks(piece) {
                passing.see(bytes, &mut tell);
            }
            assert_eq!((told.as_slice(), passing.is_between()), (&expected[..], true), "in pieces of {piece}");
        }
    }

    #[test]
    fn what_has_no_end_yet_is_known() {
        use Unfinished::{Nothing, Other, Same};
        let (end, headers) = (END_HEADERS | END_STREAM, |flags| frame(HEADERS, flags, &[0; 20]));
        let run = |pieces: &[&[u8]]| -> Vec<Unfinished> {
            let mut passing = Passing::of_server();
            pieces.iter().map(|bytes| passing.see(bytes, |_| {})).collect()
        };
        let whole = headers(end);
        for at in [1, HEAD_BYTES, HEAD_BYTES + 2, HEAD_BYTES + NOTE_BYTES] {
            // The rest in bits: it has been the same frame all along, but once it is told its rest is counted from
            // there.
            let seen = run(&[&whole[..at], &whole[at..25], &whole[25..28], &whole[28..]]);
            let told_first = at == HEAD_BYTES + NOTE_BYTES;
            assert_eq!(seen, [Other, if told_first { Same } else { Other }, Same, Nothing], "{at}");
            // A connection that is never between two frames when it is looked at.
            let next = [&whole[at..], &whole[..at]].concat();
            assert_eq!(run(&[&whole[..at], &next, &next, &whole[at..]]), [Other, Other, Other, Nothing], "{at}");
        }
        let more = frame(CONTINUATION, 0, &[0; 20]);
        let last = frame(CONTINUATION, END_HEADERS, &[0; 20]);
        let seen = run(&[&headers(0), &more, &more[..12], &more[12..], &last[..3], &last[3..]]);
        assert_eq!(seen, [Other, Same, Same, Same, Same, Nothing]);
        let mut client = Passing::of_client();
        assert_eq!([3, 3, 18].map(|bytes| client.see(&PREFACE[..bytes], |_| {})), [Other, Same, Nothing]);
        let data = frame(DATA, 0, &[0; 20]);
        assert_eq!(run(&[&data[..8], &data[8..14], &data[14..]]), [Other, Nothing, Nothing]);
    }
}
