//! Heads of answers as no upstream should send them, read the way one of an upstream is read.
//!
//! They are written in the words of HTTP/1, whatever the upstream speaks, and judged by the parser that stands before every
//! HTTP/1 upstream: what it lets pass goes on to the client.

use http::{Method, response};
use hyper::ext::ReasonPhrase;
use seawall_core::outcome::Failure;

use crate::http::wire::{self, Answer, Malformed, Reading};

/// Nothing an upstream may say, each in another way.
const GARBLED: [Garbled; 6] = [
    Garbled::Line(b"HTTP/1.1 2OO OK"),
    Garbled::Line(b"HTTP/9.9 200 OK"),
    Garbled::Line(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    Garbled::Field(b"x name with spaces: 1"),
    Garbled::Field(b"x-zero: a\0b"),
    Garbled::Field(b"content-length: 1\r\ncontent-length: 2"),
];

enum Garbled {
    /// In place of the first line.
    Line(&'static [u8]),
    /// One line more.
    Field(&'static [u8]),
}

/// An answer's head with one field more, of this length.
pub(super) fn with_field(parts: &response::Parts, bytes: u64) -> Vec<u8> {
    let value = vec![b'x'; usize::try_from(bytes).unwrap_or(usize::MAX)];
    write(parts, None, &[b"x-padding: ", &value[..]].concat())
}

/// An answer's head that cannot be read, in one of several ways.
pub(super) fn garbled(parts: &response::Parts, draw: u64) -> Vec<u8> {
    match &GARBLED[(draw % GARBLED.len() as u64) as usize] {
        Garbled::Line(line) => write(parts, Some(line), b"x-padding: x"),
        Garbled::Field(field) => write(parts, None, field),
    }
}

fn write(parts: &response::Parts, line: Option<&[u8]>, field: &[u8]) -> Vec<u8> {
    let mut head = match line {
        Some(line) => line.to_vec(),
        None => {
            let own = parts.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
            let reason = own.or(parts.status.canonical_reason().map(str::as_bytes)).unwrap_or_default();
            [b"HTTP/1.1 ", parts.status.as_str().as_bytes(), b" ", reason].concat()
        }
    };
    for (name, value) in &parts.headers {
        head.extend_from_slice(&[b"\r\n", name.as_str().as_bytes(), b": ", value.as_bytes()].concat());
    }
    head.extend_from_slice(&[b"\r\n", field, b"\r\n\r\n"].concat());
    head
}

/// What our side makes of a head.
pub(super) fn read(head: &[u8], method: &Method) -> Result<response::Parts, Failure> {
    let Answer { parts, marks, .. } = wire::answer(head).ok().flatten().ok_or(Failure::Protocol)?;
    Reading::of_answer(method, &parts, marks).map_err(|Malformed| Failure::Protocol)?;
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn parts() -> response::Parts {
        let answer = Response::builder().status(203).header("content-length", "5").header("x-own", "yes").body(());
        answer.unwrap().into_parts().0
    }

    #[test]
    fn no_garbled_head_is_read() {
        for draw in 0..GARBLED.len() as u64 {
            let read = read(&garbled(&parts(), draw), &Method::GET);
            assert_eq!(read.err(), Some(Failure::Protocol), "{draw}");
        }
    }

    #[test]
    fn a_long_field_is_read_until_it_is_too_long() {
        let read = |bytes| read(&with_field(&parts(), bytes), &Method::GET);
        let passed = read(60_000).unwrap();
        assert_eq!((passed.status.as_u16(), passed.headers["x-own"].as_bytes()), (203, &b"yes"[..]));
        assert_eq!(passed.headers["x-padding"].len(), 60_000);
        assert_eq!(read(1 << 20).err(), Some(Failure::Protocol));
    }

    #[test]
    fn a_long_field_changes_no_reason() {
        for reason in [None, Some("Fine"), Some("")] {
            let mut parts = parts();
            parts.extensions.extend(
                reason
                    .map(|reason| {
                        let mut own = http::Extensions::new();
                        own.insert(ReasonPhrase::try_from(reason.as_bytes()).unwrap());
                        own
                    })
                    .unwrap_or_default(),
            );
            let read = read(&with_field(&parts, 10), &Method::GET).unwrap();
            let seen = read.extensions.get::<ReasonPhrase>().map(|own| own.as_bytes().to_vec());
            assert_eq!(seen, reason.map(|reason| reason.as_bytes().to_vec()));
        }
    }
}
