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
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue, TRAILER, TRANSFER_ENCODING};
use http::{Method, StatusCode, Uri, Version, request, response};
use hyper::ext::ReasonPhrase;

use super::chunks::{BadChunk, Chunk};
use super::headers::has_token;

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

/// A head that has come, and what has come behind it.
pub(crate) struct Answer {
    pub(crate) parts: response::Parts,
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
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = seen.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed)?;
    parts.version = version(seen.version);
    let reason = seen.reason.unwrap_or_default();
    if parts.status.canonical_reason() != Some(reason)
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        parts.extensions.insert(reason);
    }
    parts.headers = headers(seen.headers, bytes, &rest)?;
    rest.advance(length);
    Ok(Some(Answer { parts, rest }))
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 }
}

/// `lines` are slices of `bytes`, and `shared` is a copy of those.
fn headers(lines: &[httparse::Header<'_>], bytes: &[u8], shared: &Bytes) -> Result<HeaderMap, Malformed> {
    let mut headers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed)?;
        let begin = line.value.as_ptr() as usize - bytes.as_ptr() as usize;
        let value = if line.value.is_empty() { Bytes::new() } else { shared.slice(begin..begin + line.value.len()) };
        headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Malformed)?);
    }
    Ok(headers)
}

/// Takes a client's head apart, which has passed the gate. `None` if it makes no request all the same.
pub(crate) fn request(bytes: &Bytes) -> Option<(request::Parts, Bytes)> {
    let mut lines = [const { MaybeUninit::uninit() }; REQUEST_HEADERS_MAX];
    let mut seen = httparse::Request::new(&mut []);
    let parsed = seen.parse_with_uninit_headers(bytes, &mut lines).ok()?;
    let httparse::Status::Complete(length) = parsed else { return None };
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = Method::from_bytes(seen.method?.as_bytes()).ok()?;
    parts.uri = Uri::from_maybe_shared(bytes.slice_ref(seen.path?.as_bytes())).ok()?;
    parts.version = version(seen.version);
    parts.headers = headers(seen.headers, bytes, bytes).ok()?;
    Some((parts, bytes.slice(length..)))
}

/// True if whoever wrote this head goes on with the connection after the message.
pub(crate) fn keeps_open(version: Version, headers: &HeaderMap) -> bool {
    let mut said = headers.get_all(CONNECTION).iter().peekable();
    if said.peek().is_none() {
        return version == Version::HTTP_11;
    }
    let says = |token| headers.get_all(CONNECTION).iter().any(|value| has_token(value, token));
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
    pub(crate) fn of_answer(method: &Method, parts: &response::Parts) -> Result<Self, Malformed> {
        let status = parts.status;
        if method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        {
            return Ok(Self::Over);
        }
        let headers = &parts.headers;
        if let Some(last) = headers.get_all(TRANSFER_ENCODING).iter().next_back() {
            // An answer with two lengths is whole to one reader and cut to another.
            if parts.version == Version::HTTP_10 || headers.contains_key(CONTENT_LENGTH) {
                return Err(Malformed);
            }
            let is_last = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
            return Ok(match last.as_bytes().rsplit(|byte| *byte == b',').next().is_some_and(is_last) {
                true => Self::Chunked(Chunk::BEGIN, Vec::new()),
                false => Self::ToEnd,
            });
        }
        Ok(length(headers)?.map_or(Self::ToEnd, Self::sized))
    }

    /// How the body of a request that has passed the gate ends.
    pub(crate) fn of_request(headers: &HeaderMap) -> Self {
        match headers.contains_key(TRANSFER_ENCODING) {
            true => Self::Chunked(Chunk::BEGIN, Vec::new()),
            false => Self::sized(length(headers).ok().flatten().unwrap_or(0)),
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
            Ok(Piece::Trailers(headers(lines, bytes, &Bytes::copy_from_slice(bytes))?))
        }
        _ => Err(Malformed),
    }
}

/// The length a head announces: once, or several times the same.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut known = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for number in value.as_bytes().split(|byte| *byte == b',') {
            let number = number.trim_ascii();
            if number.is_empty() || number.len() > 18 || !number.iter().all(u8::is_ascii_digit) {
                return Err(Malformed);
            }
            let number = number.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
            if known.is_some_and(|known| known != number) {
                return Err(Malformed);
            }
            known = Some(number);
        }
    }
    Ok(known)
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
    pub(crate) fn chunked(headers: &HeaderMap) -> Self {
        let announced = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
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
    pub(crate) fn of(parts: &request::Parts) -> Self {
        let keeps_open = keeps_open(parts.version, &parts.headers);
        Self { is_head: parts.method == Method::HEAD, version: parts.version, keeps_open }
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
    headers: &HeaderMap,
    left: Option<u64>,
    date: &[u8],
) -> Written {
    let is_bare = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let announced = if left == Some(0) && !asked.is_head { None } else { length(headers).ok().flatten() };
    let (framing, writing) = match (announced.or(left), asked.version) {
        _ if is_bare => (Framing::None, None),
        (None, _) if asked.is_head => (Framing::None, None),
        // An answer without a body may still have one to a GET.
        (Some(0), _) if asked.is_head && announced.is_none() => (Framing::None, None),
        (Some(length), _) => (Framing::Length(length), Some(Writing::Sized(length))),
        (None, Version::HTTP_10) => (Framing::None, Some(Writing::ToEnd)),
        (None, _) => (Framing::Chunks, Some(Writing::chunked(headers))),
    };
    put_status_line(out, asked.version, status, reason);
    let is_chunked = matches!(framing, Framing::Chunks);
    let (mut keeps_open, mut says_close, mut has_date) = (asked.keeps_open, false, false);
    for (name, value) in headers {
        match *name {
            CONTENT_LENGTH | TRANSFER_ENCODING => continue,
            TRAILER if !is_chunked => continue,
            CONNECTION if has_token(value, "close") => (keeps_open, says_close) = (false, true),
            DATE => has_date = true,
            _ => {}
        }
        put_header(out, name, value);
    }
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            let _ = write!(out, "content-length: {length}\r\n");
        }
        Framing::Chunks => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
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

enum Framing {
    None,
    Length(u64),
    Chunks,
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

/// Writes header lines, without the empty one that ends them.
pub(crate) fn put_headers(out: &mut Vec<u8>, headers: &HeaderMap) {
    headers.iter().for_each(|(name, value)| put_header(out, name, value));
}

pub(crate) fn put_header(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}
