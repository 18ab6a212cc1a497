//! Heads of answers as no upstream should send them, read the way one of an upstream is read.
//!
//! They are written in the words of HTTP/1, whatever the upstream speaks, and judged by the parser that stands before
//! every HTTP/1 upstream: what it lets pass goes on to the client.

use http::Method;
use seawall_core::outcome::Failure;

use crate::http::message::ResponseHead;
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
pub(super) fn with_field(head: &ResponseHead, bytes: u64) -> Vec<u8> {
    let value = vec![b'x'; usize::try_from(bytes).unwrap_or(usize::MAX)];
    write(head, None, &[b"x-padding: ", &value[..]].concat())
}

/// An answer's head that cannot be read, in one of several ways.
pub(super) fn garbled(head: &ResponseHead, draw: u64) -> Vec<u8> {
    match &GARBLED[(draw % GARBLED.len() as u64) as usize] {
        Garbled::Line(line) => write(head, Some(line), b"x-padding: x"),
        Garbled::Field(field) => write(head, None, field),
    }
}

fn write(head: &ResponseHead, line: Option<&[u8]>, field: &[u8]) -> Vec<u8> {
    let mut bytes = match line {
        Some(line) => line.to_vec(),
        None => {
            let own = head.reason.as_ref().map(|reason| reason.as_bytes());
            let reason = own.or(head.status.canonical_reason().map(str::as_bytes)).unwrap_or_default();
            [b"HTTP/1.1 ", head.status.as_str().as_bytes(), b" ", reason].concat()
        }
    };
    for (name, value) in &head.headers {
        bytes.extend_from_slice(&[b"\r\n", name.as_str().as_bytes(), b": ", value.as_bytes()].concat());
    }
    bytes.extend_from_slice(&[b"\r\n", field, b"\r\n\r\n"].concat());
    bytes
}

/// What our side makes of a head.
pub(super) fn read(head: &[u8], method: &Method) -> Result<ResponseHead, Failure> {
    let Answer { head, marks, .. } = wire::answer(head).ok().flatten().ok_or(Failure::Protocol)?;
    Reading::of_answer(method, &head, marks).map_err(|Malformed| Failure::Protocol)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
    use hyper::ext::ReasonPhrase;

    use super::*;

    fn plain() -> ResponseHead {
        let mut head = ResponseHead::new(StatusCode::NON_AUTHORITATIVE_INFORMATION);
        head.headers.append(CONTENT_LENGTH, HeaderValue::from_static("5"));
        head.headers.append(HeaderName::from_static("x-own"), HeaderValue::from_static("yes"));
        head
    }

    #[test]
    fn no_garbled_head_is_read() {
        for draw in 0..GARBLED.len() as u64 {
            let read = read(&garbled(&plain(), draw), &Method::GET);
            assert_eq!(read.err(), Some(Failure::Protocol), "{draw}");
        }
    }

    #[test]
    fn a_long_field_is_read_until_it_is_too_long() {
        let read = |bytes| read(&with_field(&plain(), bytes), &Method::GET);
        let passed = read(60_000).unwrap();
        assert_eq!((passed.status.as_u16(), passed.headers.get("x-own").unwrap().as_bytes()), (203, &b"yes"[..]));
        assert_eq!(passed.headers.get("x-padding").unwrap().len(), 60_000);
        assert_eq!(read(1 << 20).err(), Some(Failure::Protocol));
    }

    #[test]
    fn a_long_field_changes_no_reason() {
        for reason in [None, Some("Fine"), Some("")] {
            let reason = reason.map(|reason| Box::new(ReasonPhrase::try_from(reason.as_bytes()).unwrap()));
            let head = ResponseHead { reason: reason.clone(), ..plain() };
            let read = read(&with_field(&head, 10), &Method::GET).unwrap();
            assert_eq!(read.reason, reason);
        }
    }
}
