//! HTTP/1 as bytes, for both sides: heads are taken apart and put together, bodies are found and framed.
//!
//! Picture a mail room: it opens envelopes and closes them, and does not read letters. What comes in is one piece of
//! memory, and every header's value, and every piece of a body, is a slice of it. Which bytes have one meaning only is
//! decided before (`gate.rs`) for clients; an upstream is read as other proxies read it, except where two readers could
//! see two answers.
//! Not here: sockets, who waits for what (`lines.rs` for upstreams, `serve.rs` for clients).

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes};
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HeaderMap, HeaderName, HeaderValue, TRAILER, TRANSFER_ENCODING,
};
use http::{Method, StatusCode, Uri, Version};
use hyper::ext::ReasonPhrase;

use super::chunks::{BadChunk, Chunk};
use super::fields::Fields;
use super::headers::has_token;
use super::message::{RequestHead, ResponseHead};

/// Header lines of an answer.
const ANSWER_HEADERS_MAX: usize = 256;
/// Header lines of a request, whatever the gate lets through.
const REQUEST_HEADERS_MAX: usize = 1_024 + 8;
/// Bytes of an answer's head.
pub(crate) const ANSWER_HEAD_MAX: usize = 400 << 10;
/// Trailer lines of a body.
const TRAILERS_MAX: usize = 128;

/// What nobody can make sense of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<BadChunk> for Malformed {
    fn from(BadChunk: BadChunk) -> Self {
        Self
    }
}

/// Room in a request's headers for what a proxy adds, so that they do not grow for it.
const REQUEST_ROOM: usize = 8;
/// And in an answer's.
const ANSWER_ROOM: usize = 3;

/// Which headers that frame a message its head has: seen while it is taken apart, so that nobody asks for each again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    connection: bool,
    length: bool,
    encoding: bool,
    /// The client waits to be told to go on.
    pub(crate) expects: bool,
}

/// A head that has come, and what has come behind it.
pub(crate) struct Answer {
    pub(crate) head: ResponseHead,
    pub(crate) marks: Marks,
    pub(crate) rest: Bytes,
}

/// Takes an answer's head apart. `None` if it has not come whole.
pub(crate) fn answer(bytes: &[u8]) -> Result<Option<Answer>, Malformed> {
    let mut lines = [const { MaybeUninit::uninit() }; ANSWER_HEADERS_MAX];
    let mut seen = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut seen, bytes, &mut lines);
    let httparse::Status::Complete(length) = parsed.map_err(|_| Malformed)? else {
        return if bytes.len() > ANSWER_HEAD_MAX { Err(Malformed) } else { Ok(None) };
    };
    if length > ANSWER_HEAD_MAX {
        return Err(Malformed);
    }
    let mut rest = Bytes::copy_from_slice(bytes);
    let status = seen.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed)?;
    let (headers, marks) = headers(seen.headers, bytes, &rest, ANSWER_ROOM)?;
    let mut head = ResponseHead { version: version(seen.version), headers, ..ResponseHead::new(status) };
    let reason = seen.reason.unwrap_or_default();
    if status.canonical_reason() != Some(reason) {
        head.reason = ReasonPhrase::try_from(reason.as_bytes()).ok().map(Box::new);
    }
    rest.advance(length);
    Ok(Some(Answer { head, marks, rest }))
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 }
}

/// `lines` are slices of `bytes`, and `shared` is a copy of those.
fn headers(
    lines: &[httparse::Header<'_>],
    bytes: &[u8],
    shared: &Bytes,
    room: usize,
) -> Result<(Fields, Marks), Malformed> {
    let (mut headers, mut marks) = (Fields::with_capacity(lines.len() + room), Marks::default());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed)?;
        let begin = line.value.as_ptr() as usize - bytes.as_ptr() as usize;
        let value = if line.value.is_empty() { Bytes::new() } else { shared.slice(begin..begin + line.value.len()) };
        match name {
            CONNECTION => marks.connection = true,
            CONTENT_LENGTH => marks.length = true,
            TRANSFER_ENCODING => marks.encoding = true,
            EXPECT => marks.expects = true,
            _ => {}
        }
        headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Malformed)?);
    }
    Ok((headers, marks))
}

/// Takes a client's head apart, which has passed the gate. `None` if it makes no request all the same.
pub(crate) fn request(bytes: &Bytes) -> Option<(RequestHead, Marks, Bytes)> {
    let mut lines = [const { MaybeUninit::uninit() }; REQUEST_HEADERS_MAX];
    let mut seen = httparse::Request::new(&mut []);
    let parsed = seen.parse_with_uninit_headers(bytes, &mut lines).ok()?;
    let httparse::Status::Complete(length) = parsed else { return None };
    let method = Method::from_bytes(seen.method?.as_bytes()).ok()?;
    let uri = Uri::from_maybe_shared(bytes.slice_ref(seen.path?.as_bytes())).ok()?;
    let (headers, marks) = headers(seen.headers, bytes, bytes, REQUEST_ROOM).ok()?;
    let head = RequestHead { method, uri, version: version(seen.version), headers };
    Some((head, marks, bytes.slice(length..)))
}

/// True if whoever wrote this head goes on with the connection after the message.
pub(crate) fn keeps_open(version: Version, headers: &Fields, marks: Marks) -> bool {
    if !marks.connection {
        return version == Version::HTTP_11;
    }
    let says = |token| headers.get_all(CONNECTION).any(|value| has_token(value, token));
    !says("close") && (version == Version::HTTP_11 || says("keep-alive"))
}

/// How much of a body is still to come, and how its end is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Nothing.
    Over,
    /// So many bytes.
    Sized(u64),
    /// Chunks; the trailer section so far.
    Chunked(Chunk, Vec<u8>),
    /// Whatever comes before the connection ends.
    ToEnd,
}

/// What lies at the front of a body's bytes.
#[derive(Debug)]
pub(crate) enum Piece {
    /// So many bytes of data.
    Data(usize),
    /// The body is over, and this stands behind it.
    Trailers(HeaderMap),
    /// The body is over.
    End,
    /// Nothing yet.
    More,
}

impl Reading {
    /// How the body of an answer to a request of this method is told from what comes after it (RFC 9112 section 6.3).
    ///
    /// # Errors
    /// If that has two meanings or none.
    pub(crate) fn of_answer(method: &Method, head: &ResponseHead, marks: Marks) -> Result<Self, Malformed> {
        let status = head.status;
        if method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        {
            return Ok(Self::Over);
        }
        let headers = &head.headers;
        if !marks.encoding && !marks.length {
            return Ok(Self::ToEnd);
        }
        if let Some(last) = headers.get_all(TRANSFER_ENCODING).next_back().filter(|_| marks.encoding) {
            // An answer with two lengths is whole to one reader and cut to another.
            if head.version == Version::HTTP_10 || marks.length {
                return Err(Malformed);
            }
            // Another coding would have to be taken off here, and nobody behind us would know of it.
            let is_chunked =
                headers.get_all(TRANSFER_ENCODING).count() == 1 && last.as_bytes().eq_ignore_ascii_case(b"chunked");
            return if is_chunked { Ok(Self::Chunked(Chunk::BEGIN, Vec::new())) } else { Err(Malformed) };
        }
        Ok(length(headers)?.map_or(Self::ToEnd, Self::sized))
    }

    /// How the body of a request that has passed the gate ends.
    pub(crate) fn of_request(headers: &Fields, marks: Marks) -> Self {
        match (marks.encoding, marks.length) {
            (true, _) => Self::Chunked(Chunk::BEGIN, Vec::new()),
            (false, true) => Self::sized(length(headers).ok().flatten().unwrap_or(0)),
            (false, false) => Self::Over,
        }
    }

    fn sized(length: u64) -> Self {
        if length == 0 { Self::Over } else { Self::Sized(length) }
    }

    /// How long it still is, if that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self {
            Self::Over => Some(0),
            Self::Sized(left) => Some(*left),
            Self::Chunked(..) | Self::ToEnd => None,
        }
    }

    /// What lies at the front of `bytes`, behind so many bytes of framing.
    ///
    /// # Errors
    /// If the framing is broken.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Result<(usize, Piece), Malformed> {
        match self {
            Self::Over => Ok((0, Piece::End)),
            _ if bytes.is_empty() => Ok((0, Piece::More)),
            Self::ToEnd => Ok((0, Piece::Data(bytes.len()))),
            Self::Sized(left) => {
                let data = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *self = Self::sized(*left - data as u64);
                Ok((0, Piece::Data(data)))
            }
            Self::Chunked(chunk, trailers) => {
                let mut at = 0;
                loop {
                    if let Chunk::Data { left } = *chunk {
                        let data = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                        if data > 0 {
                            *chunk = Chunk::after_data(left - data as u64);
                            return Ok((at, Piece::Data(data)));
                        }
                    }
                    let Some(byte) = bytes.get(at) else { return Ok((at, Piece::More)) };
                    at += 1;
                    if matches!(chunk, Chunk::Trailer { .. }) {
                        trailers.push(*byte);
                    }
                    match chunk.after(*byte, false)? {
                        Some(next) => *chunk = next,
                        None => {
                            let piece = trailer_section(trailers)?;
                            *self = Self::Over;
                            return Ok((at, piece));
                        }
                    }
                }
            }
        }
    }
}

fn trailer_section(bytes: &[u8]) -> Result<Piece, Malformed> {
    if bytes == b"\r\n" {
        return Ok(Piece::End);
    }
    let mut lines = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(bytes, &mut lines) {
        Ok(httparse::Status::Complete((_, lines))) => {
            Ok(Piece::Trailers(headers(lines, bytes, &Bytes::copy_from_slice(bytes), 0)?.0.into()))
        }
        _ => Err(Malformed),
    }
}

/// The length a head announces: once, or several times the same.
fn length(headers: &Fields) -> Result<Option<u64>, Malformed> {
    let mut known = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for text in value.as_bytes().split(|byte| *byte == b',') {
            let number = number(text.trim_ascii())?;
            if known.is_some_and(|known| known != number) {
                return Err(Malformed);
            }
            known = Some(number);
        }
    }
    Ok(known)
}

fn number(text: &[u8]) -> Result<u64, Malformed> {
    if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    Ok(text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// How a body that leaves tells where it ends.
#[derive(Debug)]
pub(crate) enum Writing {
    /// So many bytes are still to leave.
    Sized(u64),
    /// In chunks; the names that may follow the last.
    Chunked(Vec<HeaderName>),
    /// By the end of the connection.
    ToEnd,
}

impl Writing {
    pub(crate) fn chunked(headers: &Fields) -> Self {
        let announced = headers.get_all(TRAILER).filter_map(|value| value.to_str().ok());
        let names = announced.flat_map(|names| names.split(','));
        Self::Chunked(names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok()).collect())
    }

    /// Begins a piece of data. The data follows, and then [`Self::end_piece`].
    ///
    /// # Errors
    /// If there is more data than was announced.
    pub(crate) fn begin_piece(&mut self, out: &mut Vec<u8>, bytes: usize) -> Result<(), Malformed> {
        match self {
            Self::Sized(left) => *left = left.checked_sub(bytes as u64).ok_or(Malformed)?,
            Self::Chunked(_) => {
                let _ = write!(out, "{bytes:x}\r\n");
            }
            Self::ToEnd => {}
        }
        Ok(())
    }

    pub(crate) fn end_piece(&self) -> &'static [u8] {
        if matches!(self, Self::Chunked(_)) { b"\r\n" } else { b"" }
    }

    /// Ends the body.
    ///
    /// # Errors
    /// If there was less data than was announced.
    pub(crate) fn end(&self, out: &mut Vec<u8>, trailers: Option<&HeaderMap>) -> Result<(), Malformed> {
        match self {
            Self::Sized(0) | Self::ToEnd => Ok(()),
            Self::Sized(_) => Err(Malformed),
            Self::Chunked(announced) => {
                out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if announced.contains(name) && !decides_framing(name) {
                        put_header(out, name, value);
                    }
                }
                out.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

fn decides_framing(name: &HeaderName) -> bool {
    [TRANSFER_ENCODING, CONTENT_LENGTH, TRAILER, CONNECTION].contains(name)
}

/// What an answer must know of its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) is_head: bool,
    pub(crate) version: Version,
    /// The client goes on with the connection.
    pub(crate) keeps_open: bool,
}

impl Asked {
    pub(crate) fn of(head: &RequestHead, marks: Marks) -> Self {
        let keeps_open = keeps_open(head.version, &head.headers, marks);
        Self { is_head: head.method == Method::HEAD, version: head.version, keeps_open }
    }
}

/// An answer's head as it was written.
pub(crate) struct Written {
    /// How its body goes on; `None` if there is none.
    pub(crate) writing: Option<Writing>,
    /// The connection goes on after it.
    pub(crate) keeps_open: bool,
}

/// Writes an answer's head. `left` is how long its body is, if that is known (RFC 9112 section 6.3).
pub(crate) fn put_answer(
    out: &mut Vec<u8>,
    asked: Asked,
    status: StatusCode,
    reason: Option<&ReasonPhrase>,
    headers: &Fields,
    left: Option<u64>,
    date: &[u8],
) -> Written {
    put_status_line(out, asked.version, status, reason);
    let (mut keeps_open, mut says_close, mut has_date) = (asked.keeps_open, false, false);
    let (mut announced, mut has_trailer) = (None, false);
    for (name, value) in headers {
        match *name {
            CONTENT_LENGTH => {
                announced = announced.or_else(|| number(value.as_bytes()).ok());
                continue;
            }
            TRANSFER_ENCODING => continue,
            TRAILER => {
                has_trailer = true;
                continue;
            }
            CONNECTION if has_token(value, "close") => (keeps_open, says_close) = (false, true),
            DATE => has_date = true,
            _ => {}
        }
        put_header(out, name, value);
    }
    let is_bare = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = match left {
        // What a GET would get may be longer.
        Some(0) if asked.is_head => announced,
        Some(0) => Some(0),
        left => announced.or(left),
    };
    let writing = match length {
        _ if is_bare => None,
        Some(length) => {
            out.extend_from_slice(b"content-length: ");
            put_number(out, length);
            out.extend_from_slice(b"\r\n");
            Some(Writing::Sized(length))
        }
        None if asked.is_head => None,
        None if asked.version == Version::HTTP_10 => Some(Writing::ToEnd),
        None => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            if has_trailer {
                headers.get_all(TRAILER).for_each(|value| put_header(out, &TRAILER, value));
            }
            Some(Writing::chunked(headers))
        }
    };
    keeps_open &= !matches!(writing, Some(Writing::ToEnd));
    if !keeps_open && !says_close && status != StatusCode::SWITCHING_PROTOCOLS {
        out.extend_from_slice(b"connection: close\r\n");
    } else if keeps_open && asked.version == Version::HTTP_10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if !has_date {
        out.extend_from_slice(b"date: ");
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    let has_body = !asked.is_head && !matches!(writing, Some(Writing::Sized(0)));
    Written { writing: writing.filter(|_| has_body), keeps_open }
}

/// Writes an interim answer, which frames nothing.
pub(crate) fn put_interim(out: &mut Vec<u8>, status: StatusCode, headers: &Fields) {
    put_status_line(out, Version::HTTP_11, status, None);
    headers.iter().filter(|(name, _)| !decides_framing(name)).for_each(|(name, value)| put_header(out, name, value));
    out.extend_from_slice(b"\r\n");
}

fn put_status_line(out: &mut Vec<u8>, version: Version, status: StatusCode, reason: Option<&ReasonPhrase>) {
    out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    // Many a parser expects one.
    out.extend_from_slice(match reason {
        Some(reason) => reason.as_bytes(),
        None => status.canonical_reason().unwrap_or("Unknown").as_bytes(),
    });
    out.extend_from_slice(b"\r\n");
}

/// Writes a request's first line.
pub(crate) fn put_request_line(out: &mut Vec<u8>, method: &Method, target: &Uri) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    match target.path_and_query() {
        Some(path) if target.authority().is_none() && path.as_str().starts_with('/') => {
            out.extend_from_slice(path.as_str().as_bytes());
        }
        _ => {
            let _ = write!(out, "{target}");
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}

pub(crate) fn put_header(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &str) -> Result<Option<Answer>, Malformed> {
        answer(bytes.as_bytes())
    }

    /// How the body of an answer with this head ends, to a request of this method.
    fn framing(method: Method, head: &str) -> Result<Reading, Malformed> {
        let Answer { head, marks, .. } = read(&format!("HTTP/1.1 {head}\r\n\r\n")).unwrap().unwrap();
        Reading::of_answer(&method, &head, marks)
    }

    /// A body read in pieces of this size: its data and trailers, and whether it ended.
    fn body(mut reading: Reading, bytes: &str, size: usize) -> Result<(String, Vec<String>, bool), Malformed> {
        let (mut data, mut trailers) = (Vec::new(), Vec::new());
        let mut pieces = bytes.as_bytes().chunks(size);
        let mut rest: &[u8] = b"";
        loop {
            let (framing, piece) = reading.next(rest)?;
            rest = &rest[framing..];
            match piece {
                Piece::Data(length) => {
                    data.extend_from_slice(&rest[..length]);
                    rest = &rest[length..];
                }
                Piece::Trailers(map) => trailers.extend(map.keys().map(|name| name.as_str().to_owned())),
                Piece::End => return Ok((String::from_utf8(data).unwrap(), trailers, true)),
                Piece::More => match pieces.next() {
                    Some(piece) => rest = piece,
                    None => return Ok((String::from_utf8(data).unwrap(), trailers, false)),
                },
            }
        }
    }

    #[test]
    fn a_head_is_taken_apart_and_what_comes_behind_it_is_kept() {
        let Answer { head, rest, .. } = read("HTTP/1.1 203 Fine\r\nA: 1\r\nb:\r\na: 2\r\n\r\nbody").unwrap().unwrap();
        assert_eq!((head.status.as_u16(), head.version, &rest[..]), (203, Version::HTTP_11, &b"body"[..]));
        assert_eq!(head.headers.get_all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(head.headers.get("b").unwrap(), "");
        assert_eq!(head.reason.unwrap().as_bytes(), b"Fine");
        let usual = read("HTTP/1.0 200 OK\r\n\r\n").unwrap().unwrap().head;
        assert_eq!((usual.version, usual.reason), (Version::HTTP_10, None));
    }

    #[test]
    fn half_a_head_is_waited_for_and_nonsense_is_not() {
        assert!(matches!(read("HTTP/1.1 200 OK\r\nA: 1\r\n"), Ok(None)));
        for nonsense in
            ["HTTP/1.1 2OO OK\r\n\r\n", "SSH-2.0-x\r\n", "HTTP/1.1 200 OK\r\n: x\r\n\r\n", "HTTP/1.1 099 x\r\n\r\n"]
        {
            assert!(matches!(read(nonsense), Err(Malformed)), "{nonsense}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(ANSWER_HEAD_MAX));
        assert!(matches!(read(&long), Err(Malformed)), "no end in sight");
        assert!(matches!(read(&(long + "\r\n\r\n")), Err(Malformed)));
    }

    #[test]
    fn the_end_of_an_answer_is_told_by_one_rule() {
        let chunked = Reading::Chunked(Chunk::BEGIN, Vec::new());
        for (head, expected) in [
            ("200 OK", Ok(Reading::ToEnd)),
            ("200 OK\r\ncontent-length: 5", Ok(Reading::Sized(5))),
            ("200 OK\r\ncontent-length: 0", Ok(Reading::Over)),
            ("200 OK\r\ncontent-length: 5\r\ncontent-length: 5", Ok(Reading::Sized(5))),
            ("200 OK\r\ncontent-length: 5, 5", Ok(Reading::Sized(5))),
            ("200 OK\r\ncontent-length: 5\r\ncontent-length: 6", Err(Malformed)),
            ("200 OK\r\ncontent-length: 5, 6", Err(Malformed)),
            ("200 OK\r\ncontent-length: +5", Err(Malformed)),
            ("200 OK\r\ncontent-length:", Err(Malformed)),
            ("200 OK\r\ncontent-length: 99999999999999999999", Err(Malformed)),
            ("200 OK\r\ntransfer-encoding: Chunked", Ok(chunked)),
            ("200 OK\r\ntransfer-encoding: gzip, chunked", Err(Malformed)),
            ("200 OK\r\ntransfer-encoding: chunked, gzip", Err(Malformed)),
            ("200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked", Err(Malformed)),
            ("200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5", Err(Malformed)),
            ("204 No Content\r\ncontent-length: 5", Ok(Reading::Over)),
            ("304 Not Modified\r\ncontent-length: 5", Ok(Reading::Over)),
            ("101 Switching Protocols", Ok(Reading::Over)),
        ] {
            assert_eq!(framing(Method::GET, head), expected, "{head}");
        }
        assert_eq!(framing(Method::HEAD, "200 OK\r\ncontent-length: 5"), Ok(Reading::Over));
        let Answer { head, marks, .. } =
            read("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap().unwrap();
        assert_eq!(Reading::of_answer(&Method::GET, &head, marks), Err(Malformed));
    }

    #[test]
    fn a_connection_goes_on_if_nobody_says_otherwise() {
        for (head, expected) in [
            ("HTTP/1.1 200 OK", true),
            ("HTTP/1.1 200 OK\r\nconnection: x, Close", false),
            ("HTTP/1.1 200 OK\r\nconnection: close\r\nconnection: keep-alive", false),
            ("HTTP/1.0 200 OK", false),
            ("HTTP/1.0 200 OK\r\nconnection: Keep-Alive", true),
            ("HTTP/1.0 200 OK\r\nconnection: x", false),
        ] {
            let Answer { head: said, marks, .. } = read(&format!("{head}\r\n\r\n")).unwrap().unwrap();
            assert_eq!(keeps_open(said.version, &said.headers, marks), expected, "{head}");
        }
    }

    #[test]
    fn bodies_are_found_however_they_are_cut() {
        let chunked = || Reading::Chunked(Chunk::BEGIN, Vec::new());
        for size in 1..20 {
            let plain = body(chunked(), "3\r\nabc\r\n2 ;x=y\r\nde\r\n0\r\n\r\n", size);
            assert_eq!(plain, Ok(("abcde".into(), vec![], true)), "{size}");
            let trailed = body(chunked(), "1\r\na\r\n0\r\nSum: 7\r\nX: \r\n\r\n", size);
            assert_eq!(trailed, Ok(("a".into(), vec!["sum".into(), "x".into()], true)), "{size}");
            assert_eq!(body(chunked(), "5\r\nabc", size), Ok(("abc".into(), vec![], false)), "{size}");
            assert_eq!(body(chunked(), "x\r\n", size), Err(Malformed));
            assert_eq!(body(chunked(), "1\r\nab", size), Err(Malformed));
            assert_eq!(body(Reading::Sized(3), "abc", size), Ok(("abc".into(), vec![], true)), "{size}");
            assert_eq!(body(Reading::Sized(4), "abc", size), Ok(("abc".into(), vec![], false)), "{size}");
            assert_eq!(body(Reading::ToEnd, "abc", size), Ok(("abc".into(), vec![], false)), "{size}");
        }
        let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(TRAILERS_MAX + 1));
        assert_eq!(body(chunked(), &many, 4_096), Err(Malformed));
    }

    #[test]
    fn a_body_that_leaves_is_as_long_as_announced() {
        let mut out = Vec::new();
        let mut sized = Writing::Sized(3);
        assert_eq!((sized.begin_piece(&mut out, 2), sized.end(&mut out, None)), (Ok(()), Err(Malformed)));
        assert_eq!(sized.begin_piece(&mut out, 2), Err(Malformed), "more than announced");
        assert!(out.is_empty() && sized.end_piece().is_empty());
        let mut to_end = Writing::ToEnd;
        assert_eq!((to_end.begin_piece(&mut out, 9), to_end.end(&mut out, None), out.len()), (Ok(()), Ok(()), 0));
    }

    #[test]
    fn trailers_leave_if_they_were_announced_and_frame_nothing() {
        let fields = |lines: &[(&'static str, &'static str)]| -> Fields {
            lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
        };
        let mut writing = Writing::chunked(&fields(&[("trailer", "Sum, content-length")]));
        let mut out = Vec::new();
        writing.begin_piece(&mut out, 16).unwrap();
        out.extend_from_slice(writing.end_piece());
        writing.end(&mut out, Some(&fields(&[("sum", "7"), ("content-length", "1"), ("other", "x")]).into())).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "10\r\n\r\n0\r\nsum: 7\r\n\r\n");
    }

    #[test]
    fn numbers_are_written_whole() {
        for number in [0, 9, 10, 1_234_567_890, u64::MAX] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn an_answer_is_framed_by_what_its_client_can_read() {
        let asked = |version, is_head| Asked { is_head, version, keeps_open: true };
        let put = |asked: Asked, status: u16, lines: &[(&'static str, &'static str)], left| {
            let headers: Fields = lines
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let mut out = Vec::new();
            let status = StatusCode::from_u16(status).unwrap();
            let written = put_answer(&mut out, asked, status, None, &headers, left, b"today");
            let how = match written.writing {
                None => "none".into(),
                Some(Writing::Sized(left)) => format!("sized {left}"),
                Some(Writing::Chunked(_)) => "chunked".into(),
                Some(Writing::ToEnd) => "to end".into(),
            };
            (String::from_utf8(out).unwrap().replace("\r\n", "|"), how, written.keeps_open)
        };
        let get = asked(Version::HTTP_11, false);
        let (text, how, keeps) = put(get, 200, &[("a", "b")], Some(5));
        assert_eq!(
            (&text[..], &how[..], keeps),
            ("HTTP/1.1 200 OK|a: b|content-length: 5|date: today||", "sized 5", true)
        );
        let (text, how, keeps) = put(get, 200, &[("trailer", "x"), ("date", "then")], None);
        let expected = "HTTP/1.1 200 OK|date: then|transfer-encoding: chunked|trailer: x||";
        assert_eq!((&text[..], &how[..], keeps), (expected, "chunked", true));
        let (text, how, _) = put(get, 200, &[("content-length", "7"), ("transfer-encoding", "chunked")], None);
        assert_eq!((&text[..], &how[..]), ("HTTP/1.1 200 OK|content-length: 7|date: today||", "sized 7"));
        let (text, how, _) = put(get, 200, &[("content-length", "7")], Some(0));
        assert_eq!((&text[..], &how[..]), ("HTTP/1.1 200 OK|content-length: 0|date: today||", "none"));
        let (text, how, keeps) = put(get, 599, &[("connection", "close")], Some(0));
        let expected = "HTTP/1.1 599 Unknown|connection: close|content-length: 0|date: today||";
        assert_eq!((&text[..], &how[..], keeps), (expected, "none", false));
        for bare in [101, 204, 304] {
            let (text, how, _) = put(get, bare, &[("content-length", "7")], Some(0));
            assert!(!text.contains("content-length") && how == "none", "{text}");
        }
        let head = asked(Version::HTTP_11, true);
        let (text, how, _) = put(head, 200, &[("content-length", "7")], Some(0));
        assert_eq!((&text[..], &how[..]), ("HTTP/1.1 200 OK|content-length: 7|date: today||", "none"));
        assert_eq!(put(head, 200, &[], Some(0)).0, "HTTP/1.1 200 OK|date: today||");
        let old = asked(Version::HTTP_10, false);
        let (text, how, keeps) = put(old, 200, &[("trailer", "x")], None);
        assert_eq!((&text[..], &how[..], keeps), ("HTTP/1.0 200 OK|connection: close|date: today||", "to end", false));
        let (text, _, keeps) = put(old, 200, &[], Some(1));
        let expected = "HTTP/1.0 200 OK|content-length: 1|connection: keep-alive|date: today||";
        assert_eq!((&text[..], keeps), (expected, true));
    }
}
