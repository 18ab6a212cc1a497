//! The question and the answer of `grpc.health.v1.Health/Check`: two messages with one field each.
//!
//! Source: the gRPC project's "GRPC Health Checking Protocol" and Protocol Buffers' "Encoding".
//! Not here: who asks and when (`watch.rs`).

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE};
use http::{Method, Uri};

use super::body::ReqBody;
use super::fields::Named;
use super::grpc;
use super::message::Request;

/// The longest answer that is read: its one field takes two bytes, and who adds fields adds few.
pub(crate) const ANSWER_BYTES_MAX: usize = 4 << 10;
/// Before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: u64 = 1;
/// A number of 64 bits in pieces of seven.
const VARINT_BYTES_MAX: usize = 10;

/// Asks how a service is; the empty name stands for the server as a whole.
pub(crate) fn question(service: &str) -> Request<ReqBody> {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.extend_from_slice(&message);
    let asked = Uri::from_static("/grpc.health.v1.Health/Check");
    let mut request = Request::new(Method::POST, asked, ReqBody::Whole(Some(body.freeze())));
    let headers = &mut request.head.headers;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(HeaderName::from_static("grpc-accept-encoding"), HeaderValue::from_static("identity"));
    request
}

/// Whether the service is well, by its whole answer; if not, why.
pub(crate) fn judge(head: &impl Named, body: &Bytes, trailers: Option<&HeaderMap>) -> Result<(), String> {
    if !grpc::is_grpc(head) {
        return Err("what answers does not speak gRPC".into());
    }
    match trailers.and_then(grpc::status).or_else(|| grpc::status(head)) {
        None => return Err("the answer ended without a `grpc-status`".into()),
        Some("0") => {}
        Some(status) => return Err(format!("answered {}", grpc::status_words(status))),
    }
    let status = status(body).ok_or("the answer is not a `HealthCheckResponse`")?;
    if status == SERVING {
        return Ok(());
    }
    let known = usize::try_from(status).ok().and_then(|status| STATUSES.get(status));
    Err(known.map_or_else(|| format!("says status {status}, which nobody knows"), |name| format!("says {name}")))
}

/// The field `status` of the one message in a body; `None` if it is anything else.
fn status(body: &[u8]) -> Option<u64> {
    let (prefix, mut message) = body.split_at_checked(PREFIX_BYTES)?;
    // Nothing compressed was asked for.
    if prefix[0] != 0 || usize::try_from(u32::from_be_bytes(prefix[1..].try_into().ok()?)).ok()? != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (0, _) => return None,
            (1, 0) => status = take_varint(&mut message)?,
            (1, _) => return None,
            // Fields of later versions.
            (_, 0) => drop(take_varint(&mut message)?),
            (_, 1) => drop(take(&mut message, 8)?),
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                take(&mut message, length)?;
            }
            (_, 5) => drop(take(&mut message, 4)?),
            _ => return None,
        }
    }
    Some(status)
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..VARINT_BYTES_MAX {
        let byte = take(from, 1)?[0];
        // The last of ten has room for one bit.
        if place == VARINT_BYTES_MAX - 1 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn put_varint(into: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        into.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    into.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
    }

    fn read(message: &[u8]) -> Option<u64> {
        status(&framed(message))
    }

    #[test]
    fn the_question_names_the_service() {
        let asked = |service: &str| match question(service).body {
            ReqBody::Whole(Some(bytes)) => bytes.to_vec(),
            _ => panic!("no body"),
        };
        assert_eq!(asked(""), [0, 0, 0, 0, 0]);
        assert_eq!(asked("a.B"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        let long = "x".repeat(200);
        assert_eq!(asked(&long), framed(&[&[0x0a, 0xc8, 0x01], long.as_bytes()].concat()));
    }

    #[test]
    fn the_answer_is_read_strictly() {
        assert_eq!(read(&[0x08, 1]), Some(1));
        assert_eq!(read(&[]), Some(0), "what is not said is zero");
        assert_eq!(read(&[0x08, 2, 0x08, 1]), Some(1), "the last one counts");
        // Unknown fields: a number, 8 bytes, 4 bytes, a text.
        let others =
            [0x10, 0x96, 0x01, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 0x25, 1, 2, 3, 4, 0x2a, 2, b'h', b'i', 0x08, 1, 0x30, 0];
        assert_eq!(read(&others), Some(1));
        let ends = |at: &usize| read(&others[..*at]).is_some();
        assert_eq!((0..=others.len()).filter(ends).collect::<Vec<_>>(), [0, 3, 12, 17, 21, 23, 25], "between fields");
        assert_eq!(read(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Some(u64::MAX));
        for bad in [
            &[0x08][..],
            &[0x08, 0x80],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            &[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
            // A status that is a text, groups, a field without a number, a text longer than all.
            &[0x0a, 1, b'x'],
            &[0x13, 0x14],
            &[0x00, 0],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        ] {
            assert_eq!(read(bad), None, "{bad:x?}");
        }
        let well = framed(&[0x08, 1]);
        assert!((0..well.len()).all(|at| status(&well[..at]).is_none()), "truncated");
        assert_eq!(status(&[&well[..], &[0]].concat()), None, "more than one message");
        assert_eq!(status(&[&[1], &well[1..]].concat()), None, "compressed");
    }

    #[test]
    fn only_one_that_serves_is_well() {
        let fields = |lines: &[(&'static str, &str)]| -> HeaderMap {
            lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
        };
        let head = fields(&[("content-type", "application/grpc")]);
        let said = |code: &str, message: &[u8]| {
            judge(&head, &framed(message).into(), Some(&fields(&[("grpc-status", code)]))).err().unwrap_or_default()
        };
        assert_eq!(said("0", &[0x08, 1]), "");
        assert_eq!(said("0", &[0x08, 2]), "says NOT_SERVING");
        assert_eq!(said("0", &[0x08, 3]), "says SERVICE_UNKNOWN");
        assert_eq!(said("0", &[]), "says UNKNOWN");
        assert_eq!(said("0", &[0x08, 9]), "says status 9, which nobody knows");
        assert_eq!(said("0", &[0x08]), "the answer is not a `HealthCheckResponse`");
        assert_eq!(said("12", &[]), "answered UNIMPLEMENTED");
        assert_eq!(said("99", &[]), "answered `grpc-status: 99`");
        let in_head = fields(&[("content-type", "application/grpc"), ("grpc-status", "5")]);
        assert_eq!(judge(&in_head, &Bytes::new(), None), Err("answered NOT_FOUND".into()));
        assert_eq!(
            judge(&head, &framed(&[0x08, 1]).into(), None),
            Err("the answer ended without a `grpc-status`".into())
        );
        let plain = fields(&[("content-type", "text/html"), ("grpc-status", "0")]);
        assert_eq!(judge(&plain, &framed(&[0x08, 1]).into(), None), Err("what answers does not speak gRPC".into()));
    }
}
