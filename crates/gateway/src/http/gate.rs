//! The strict gate: reads a client's bytes before the HTTP library does, and lets through only what every reader in
//! the world would read alike.
//!
//! Picture a customs officer with a tape measure. Each head is checked line by line, its framing is worked out, and
//! its body is measured as it passes. A head with two meanings never passes: request smuggling lives on two readers
//! who disagree. Where the field's proxies differ, the gate takes the strictest view (RFC 9112 section 6 and the
//! table in `docs/reference/gate.md`).
//!
//! A refused head is replaced by one of our own that only the gate can write (it refuses any client that tries), so
//! that answers to pipelined requests before it still go out in order. After a refusal nothing more is read.
//! Not here: sockets and timeouts (`conn.rs`), what to answer (`answer.rs`).

use memchr::memchr;

use super::chunks::{BadChunk, Chunk, is_field_byte, is_token_byte};

/// The header that carries a verdict to the chain. A client that sends it is refused.
pub const VERDICT_HEADER: &str = "seawall-gate-verdict";

/// What the gate tolerates in size.
#[derive(Clone, Copy, Debug)]
pub struct GateLimits {
    /// Bytes of a head, request line included.
    pub head_bytes_max: usize,
    /// Header lines.
    pub headers_max: usize,
    /// Bytes of a body.
    pub body_bytes_max: u64,
}

macro_rules! verdicts {
    ($($(#[$doc:meta])* $verdict:ident = $status:literal, $name:literal, $words:literal;)*) => {
        /// Why a request was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Verdict { $($(#[$doc])* $verdict,)* }

        impl Verdict {
            /// Every verdict.
            pub const ALL: &'static [Self] = &[$(Self::$verdict,)*];

            /// The status it is answered with.
            #[must_use]
            pub const fn status(self) -> u16 { match self { $(Self::$verdict => $status,)* } }

            /// Its name in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$verdict => $name,)* } }

            /// What the client is told.
            #[must_use]
            pub const fn words(self) -> &'static str { match self { $(Self::$verdict => $words,)* } }
        }
    };
}

verdicts! {
    /// The request line is not `method target HTTP/1.1`.
    RequestLine = 400, "request_line", "the request line is not `method target HTTP/1.1`";
    /// The target is in no form of RFC 9112 section 3.2, or has forbidden characters.
    Target = 400, "target", "the request target is malformed";
    /// Another version, or none; HTTP/2 begins with its own preface and is not read here.
    Version = 505, "version", "only HTTP/1.1 and HTTP/1.0 are spoken here";
    /// CONNECT, TRACE.
    Method = 405, "method", "CONNECT and TRACE are not carried";
    /// A line ends in LF alone, or a CR stands alone.
    BareLineEnd = 400, "bare_line_end", "a line does not end in CR LF";
    /// A header line begins with white space.
    Folded = 400, "folded_header", "a header is folded over several lines";
    /// A header's name is no token, or has white space before its colon.
    HeaderName = 400, "header_name", "a header's name is malformed";
    /// A control character in a header's value, or white space around it where HTTP/2 has none to strip.
    HeaderValue = 400, "header_value", "a header's value has a control character, or white space around it";
    /// No Host, several, or a malformed one.
    Host = 400, "host", "there must be one well-formed Host header";
    /// The Host header and the target name different hosts.
    HostMismatch = 400, "host_mismatch", "the Host header and the request target disagree";
    /// Content-Length together with Transfer-Encoding.
    LengthAndEncoding = 400, "length_and_encoding", "Content-Length and Transfer-Encoding exclude each other";
    /// Content-Length repeated, listed or not a number.
    ContentLength = 400, "content_length", "Content-Length must be one whole number";
    /// Any Transfer-Encoding but a single `chunked` on HTTP/1.1.
    TransferEncoding = 400, "transfer_encoding", "Transfer-Encoding must be `chunked` and nothing else";
    /// An expectation other than 100-continue.
    Expectation = 417, "expectation", "the only expectation met here is 100-continue";
    /// An upgrade is asked for together with a body.
    UpgradeBody = 400, "upgrade_body", "a request that asks for an upgrade has no body";
    /// An extended CONNECT of HTTP/2 to something else than a WebSocket.
    Protocol = 501, "protocol", "the only `:protocol` carried here is `websocket`";
    /// The head is too long.
    HeadTooLong = 431, "header_bytes", "the request's head is longer than the limit `header_bytes`";
    /// Too many header lines.
    TooManyHeaders = 431, "headers", "the request has more header lines than the limit `headers`";
    /// The body is announced or found too long.
    BodyTooLong = 413, "body_bytes", "the request's body is longer than the limit `body_bytes`";
    /// A chunk of a chunked body is malformed.
    Chunk = 400, "chunk", "a chunk of the request's body is malformed";
    /// The body ended before its end.
    BodyCut = 400, "body_cut", "the request's body broke off";
    /// The head did not come in time.
    HeadTooSlow = 408, "header_timeout", "the request's head did not arrive within `header_timeout`";
    /// The body stopped coming.
    BodyTooSlow = 408, "body_idle_timeout", "the request's body stopped for longer than `body_idle_timeout`";
}

impl Verdict {
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|verdict| verdict.name() == name)
    }
}

/// Where in a message the gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Between messages.
    Idle,
    /// In a head.
    Head,
    /// In a body.
    Body,
    /// After a head that asks for an upgrade: whose bytes these are depends on its answer.
    Held,
    /// Nothing more is read.
    Refused,
}

/// The machine: bytes in, bytes that may pass out.
#[derive(Debug)]
pub struct Gate {
    limits: GateLimits,
    state: State,
    /// The bytes of an unfinished head.
    head: Vec<u8>,
    /// True after the CR of an empty line before a head.
    blank_cr: bool,
    /// Bytes of the body that has passed so far.
    body_bytes: u64,
    /// Heads that have passed, those of our own in place of refused ones included.
    heads: u64,
    /// What came after a head that asks for an upgrade.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Held,
    Sized { left: u64 },
    Chunked(Chunk),
    Refused,
}

impl Gate {
    /// Waits for a first head.
    #[must_use]
    pub fn new(limits: GateLimits) -> Self {
        Self {
            limits,
            state: State::Head,
            head: Vec::new(),
            blank_cr: false,
            body_bytes: 0,
            heads: 0,
            held: Vec::new(),
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Head if self.head.is_empty() => Phase::Idle,
            State::Head => Phase::Head,
            State::Held => Phase::Held,
            State::Refused => Phase::Refused,
            State::Sized { .. } | State::Chunked(_) => Phase::Body,
        }
    }

    /// Heads that have passed so far: while it stands at [`Phase::Held`], the last of them asks for an upgrade.
    #[must_use]
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// What came after a head that asks for an upgrade, so far.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// There is no upgrade: what was held are requests like any other.
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub fn release(&mut self, out: &mut Vec<u8>) -> Result<(), Verdict> {
        self.state = State::Head;
        let held = std::mem::take(&mut self.held);
        self.feed(&held, out)
    }

    /// How many bytes all belong to the body of a known length, which may pass unlooked at.
    fn run(&self) -> u64 {
        match self.state {
            State::Sized { left } => left,
            _ => 0,
        }
    }

    /// So many of them have passed.
    fn pass_run(&mut self, bytes: u64) {
        let left = self.run().saturating_sub(bytes);
        self.state = if left == 0 { State::Head } else { State::Sized { left } };
    }

    /// Takes in what came from the client and appends to `out` what may pass. A refused head appends our own in its
    /// place.
    ///
    /// # Errors
    /// A verdict about a body whose head has passed already: what came of it must not be taken for whole.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), Verdict> {
        while !input.is_empty() {
            let used = match self.state {
                State::Head => match self.take_head(input, out) {
                    Ok(used) => used,
                    Err(verdict) => {
                        self.refuse(verdict, out);
                        return Ok(());
                    }
                },
                State::Sized { left } => self.take_sized(left, input, out),
                State::Chunked(chunk) => match self.take_chunk(chunk, input, out) {
                    Ok(used) => used,
                    Err(verdict) => {
                        self.state = State::Refused;
                        return Err(verdict);
                    }
                },
                State::Held => {
                    self.held.extend_from_slice(input);
                    return Ok(());
                }
                State::Refused => return Ok(()),
            };
            input = &input[used..];
        }
        Ok(())
    }

    /// Ends a head that took too long.
    pub fn refuse(&mut self, verdict: Verdict, out: &mut Vec<u8>) {
        self.state = State::Refused;
        self.head = Vec::new();
        self.heads += 1;
        out.extend_from_slice(b"GET / HTTP/1.1\r\nhost: seawall\r\nconnection: close\r\n");
        out.extend_from_slice(VERDICT_HEADER.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(verdict.name().as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
    }

    /// Takes bytes up to the end of the head, or all of them into `self.head`. The common case, a whole head in one
    /// read, is checked in place.
    fn take_head(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Verdict> {
        if self.head.is_empty() {
            let blank = self.skip_blank_lines(input)?;
            if blank > 0 {
                return Ok(blank);
            }
            // No further than a head may be long, so that a long one is refused for its length however it comes.
            let near = &input[..input.len().min(self.limits.head_bytes_max + 1)];
            if let Some(end) = head_end(near, 0)? {
                self.pass_head(&input[..end], out)?;
                return Ok(end);
            }
        }
        let known = self.head.len();
        let room = (self.limits.head_bytes_max + 1).saturating_sub(known);
        self.head.extend_from_slice(&input[..input.len().min(room)]);
        // Look again at the last line only: what was complete before has been checked.
        let from = self.head[..known].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let found = head_end(&self.head, from)?;
        match found {
            Some(end) => {
                let head = std::mem::take(&mut self.head);
                self.pass_head(&head[..end], out)?;
                Ok(end - known)
            }
            None if self.head.len() > self.limits.head_bytes_max => Err(Verdict::HeadTooLong),
            None => Ok(input.len()),
        }
    }

    /// Empty lines before a request line are ignored (RFC 9112 section 2.2), if they are lines. Tells how many bytes.
    fn skip_blank_lines(&mut self, input: &[u8]) -> Result<usize, Verdict> {
        for (at, byte) in input.iter().enumerate() {
            match (self.blank_cr, byte) {
                (false, b'\r') => self.blank_cr = true,
                (true, b'\n') => self.blank_cr = false,
                (true, _) | (false, b'\n') => return Err(Verdict::BareLineEnd),
                (false, _) => return Ok(at),
            }
        }
        Ok(input.len())
    }

    fn pass_head(&mut self, head: &[u8], out: &mut Vec<u8>) -> Result<(), Verdict> {
        if head.len() > self.limits.head_bytes_max {
            return Err(Verdict::HeadTooLong);
        }
        let (framing, asks) = check_head(head, self.limits.headers_max)?;
        self.body_bytes = 0;
        self.heads += 1;
        self.state = match framing {
            Framing::None | Framing::Length(0) if asks => State::Held,
            Framing::None | Framing::Length(0) => State::Head,
            Framing::Length(length) if length > self.limits.body_bytes_max => return Err(Verdict::BodyTooLong),
            Framing::Length(length) => State::Sized { left: length },
            Framing::Chunked => State::Chunked(Chunk::BEGIN),
        };
        out.extend_from_slice(head);
        Ok(())
    }

    fn take_sized(&mut self, left: u64, input: &[u8], out: &mut Vec<u8>) -> usize {
        let take = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        out.extend_from_slice(&input[..take]);
        self.pass_run(take as u64);
        take
    }

    /// Takes one step in a chunked body: a run of data, or a single byte of framing.
    fn take_chunk(&mut self, chunk: Chunk, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Verdict> {
        if let Chunk::Data { left } = chunk {
            let take = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            out.extend_from_slice(&input[..take]);
            self.state = State::Chunked(Chunk::after_data(left - take as u64));
            return Ok(take);
        }
        let byte = input[0];
        let next = chunk.after(byte, true).map_err(|BadChunk| Verdict::Chunk)?;
        if let Some(Chunk::Data { left }) = next {
            self.body_bytes = self.body_bytes.saturating_add(left);
            if self.body_bytes > self.limits.body_bytes_max {
                return Err(Verdict::BodyTooLong);
            }
        }
        self.state = next.map_or(State::Head, State::Chunked);
        out.push(byte);
        Ok(1)
    }
}

/// One past the head's last byte, if the empty line that ends it is there. Looks at lines from `from` on.
fn head_end(bytes: &[u8], from: usize) -> Result<Option<usize>, Verdict> {
    let mut line = from;
    while let Some(length) = memchr(b'\n', &bytes[line..]) {
        let end = line + length;
        if length == 0 || bytes[end - 1] != b'\r' {
            return Err(Verdict::BareLineEnd);
        }
        if length == 1 {
            return Ok(Some(end + 1));
        }
        line = end + 1;
    }
    Ok(None)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// What the headers that matter to framing and routing said.
#[derive(Default)]
struct Said<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    /// `Connection` names `upgrade`.
    names_upgrade: bool,
    /// What the last `Upgrade` says, and how many there are.
    upgrade: Option<&'a [u8]>,
    upgrades: u32,
}

/// Checks a whole head. Every line of it is known to end in CR LF. Tells also whether it asks for an upgrade that may
/// be passed on.
fn check_head(head: &[u8], headers_max: usize) -> Result<(Framing, bool), Verdict> {
    let mut lines = head[..head.len() - 2].split_inclusive(|byte| *byte == b'\n').map(|line| &line[..line.len() - 2]);
    let (target, one_one) = check_request_line(lines.next().unwrap_or_default())?;
    let mut said = Said::default();
    for (index, line) in lines.enumerate() {
        if index >= headers_max {
            return Err(Verdict::TooManyHeaders);
        }
        check_header(line, one_one, &mut said)?;
    }
    match (said.host, target) {
        (None, _) if one_one => return Err(Verdict::Host),
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => return Err(Verdict::HostMismatch),
        _ => {}
    }
    let framing = match (said.length, said.chunked) {
        (Some(_), true) => return Err(Verdict::LengthAndEncoding),
        (Some(length), false) => Framing::Length(length),
        (None, true) => Framing::Chunked,
        (None, false) => Framing::None,
    };
    let asks = one_one && said.asks_for_upgrade();
    if asks && !matches!(framing, Framing::None | Framing::Length(0)) {
        return Err(Verdict::UpgradeBody);
    }
    Ok((framing, asks && head.starts_with(b"GET ")))
}

impl Said<'_> {
    /// One protocol, and not another version of HTTP: that is between the two ends of one connection.
    fn asks_for_upgrade(&self) -> bool {
        let is_http = |protocol: &[u8]| {
            let starts = |with: &[u8]| protocol.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
            starts(b"h2") || starts(b"http/") || starts(b"tls/")
        };
        let one = |protocol: &[u8]| !protocol.is_empty() && !protocol.contains(&b',') && !is_http(protocol);
        self.names_upgrade && self.upgrades == 1 && self.upgrade.is_some_and(one)
    }
}

/// The authority of an absolute target, and whether the version is 1.1.
fn check_request_line(line: &[u8]) -> Result<(Option<&[u8]>, bool), Verdict> {
    let method_end = memchr(b' ', line).ok_or(Verdict::RequestLine)?;
    let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
    let target_end = memchr(b' ', rest).ok_or(Verdict::RequestLine)?;
    let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
    if method.is_empty() || method.len() > 32 || !method.iter().all(|byte| is_token_byte(*byte)) {
        return Err(Verdict::RequestLine);
    }
    let one_one = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ if version.starts_with(b"HTTP/") && version.len() == 8 => return Err(Verdict::Version),
        _ => return Err(Verdict::RequestLine),
    };
    if matches!(method, b"CONNECT" | b"TRACE") {
        return Err(Verdict::Method);
    }
    Ok((check_target(target)?, one_one))
}

/// A path, or an absolute target. `*` is neither: whoever asks a gateway about "the server as a whole" means no
/// upstream.
fn check_target(target: &[u8]) -> Result<Option<&[u8]>, Verdict> {
    let (authority, path) = match target.strip_prefix(b"http://") {
        Some(rest) => {
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            if !is_host(&rest[..end]) {
                return Err(Verdict::Target);
            }
            (Some(&rest[..end]), &rest[end..])
        }
        None if target.first() == Some(&b'/') => (None, target),
        None => return Err(Verdict::Target),
    };
    if is_path(path) { Ok(authority) } else { Err(Verdict::Target) }
}

fn check_header<'a>(line: &'a [u8], one_one: bool, said: &mut Said<'a>) -> Result<(), Verdict> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Verdict::Folded);
    }
    let colon = memchr(b':', line).ok_or(Verdict::HeaderName)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.is_empty() || !name.iter().all(|byte| is_token_byte(*byte)) {
        return Err(Verdict::HeaderName);
    }
    if !value.iter().all(|byte| is_field_byte(*byte)) {
        // A CR in the middle of a line is a line end to some readers.
        return Err(if value.contains(&b'\r') { Verdict::BareLineEnd } else { Verdict::HeaderValue });
    }
    // Only names of these lengths matter to framing; most headers are done here.
    match name.len() {
        4 if name.eq_ignore_ascii_case(b"host") => {
            if said.host.is_some() || !is_host(value) {
                return Err(Verdict::Host);
            }
            said.host = Some(value);
        }
        6 if name.eq_ignore_ascii_case(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") => {
            return Err(Verdict::Expectation);
        }
        7 if name.eq_ignore_ascii_case(b"upgrade") => {
            said.upgrades += 1;
            said.upgrade = Some(value);
        }
        10 if name.eq_ignore_ascii_case(b"connection") => {
            let mut named = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            said.names_upgrade |= named.any(|name| name.eq_ignore_ascii_case(b"upgrade"));
        }
        14 if name.eq_ignore_ascii_case(b"content-length") => {
            if said.length.is_some() {
                return Err(Verdict::ContentLength);
            }
            said.length = Some(parse_length(value)?);
        }
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
            if said.chunked || !one_one || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Verdict::TransferEncoding);
            }
            said.chunked = true;
        }
        20 if name.eq_ignore_ascii_case(VERDICT_HEADER.as_bytes()) => return Err(Verdict::HeaderName),
        _ => {}
    }
    Ok(())
}

fn parse_length(value: &[u8]) -> Result<u64, Verdict> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Verdict::ContentLength);
    }
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// `host` or `host:port`, brackets for IPv6; no user, no path, nothing that two readers could take apart differently.
pub(crate) fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value.strip_prefix(b"[") {
        Some(rest) => match memchr(b']', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => return false,
        },
        None => value.split_at(memchr(b':', value).unwrap_or(value.len())),
    };
    let ipv6 = value.first() == Some(&b'[');
    let of_host = |byte: &u8| {
        byte.is_ascii_alphanumeric() || if ipv6 { *byte == b':' || *byte == b'.' } else { b"-._~%".contains(byte) }
    };
    let port_fits = match port.strip_prefix(b":") {
        Some(digits) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        None => port.is_empty(),
    };
    !host.is_empty() && host.iter().all(of_host) && port_fits
}

/// Of bytes that may stand in a path and its query.
pub(crate) fn is_path(path: &[u8]) -> bool {
    path.iter().all(|byte| is_target_byte(*byte))
}

/// What RFC 3986 allows in path and query; a fragment never travels.
fn is_target_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?@!$&'()*+,;=%[]|".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: GateLimits = GateLimits { head_bytes_max: 1_024, headers_max: 8, body_bytes_max: 1_000 };

    /// What passes, and the verdict on a body. A replaced head shows as `refused <name>`.
    fn through(input: &[u8], piece: usize) -> (String, Option<Verdict>) {
        let (mut gate, mut out) = (Gate::new(LIMITS), Vec::new());
        let broken = input.chunks(piece.max(1)).find_map(|bytes| gate.feed(bytes, &mut out).err());
        let text = String::from_utf8_lossy(&out).into_owned();
        let text = match text.find("GET / HTTP/1.1\r\nhost: seawall\r\nconnection: close\r\nseawall-gate-verdict: ") {
            Some(at) => {
                let name = text[at..].rsplit(": ").next().unwrap_or_default().trim();
                format!("{}refused {name}", &text[..at])
            }
            None => text,
        };
        (text, broken)
    }

    /// The verdict on a request, and that cutting the bytes anywhere changes nothing.
    fn verdict(input: &str) -> String {
        let whole = through(input.as_bytes(), usize::MAX);
        for piece in [1, 2, 7] {
            assert_eq!(through(input.as_bytes(), piece), whole, "{input:?} in pieces of {piece}");
        }
        match whole {
            (_, Some(verdict)) => format!("body {}", verdict.name()),
            (text, None) => match text.strip_prefix("refused ") {
                Some(name) => name.to_owned(),
                None if text == input => "passes".into(),
                None => text,
            },
        }
    }

    fn get(headers: &str) -> String {
        verdict(&format!("GET /a HTTP/1.1\r\n{headers}\r\n"))
    }

    fn post(headers: &str, body: &str) -> String {
        verdict(&format!("POST /a HTTP/1.1\r\nHost: h\r\n{headers}\r\n{body}"))
    }

    #[test]
    fn framing_has_one_meaning_or_none() {
        let cases = [
            ("Content-Length: 3\r\n", "abc", "passes"),
            ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n", "passes"),
            ("transfer-encoding: Chunked\r\n", "0\r\n\r\n", "passes"),
            ("Content-Length: 0\r\n", "", "passes"),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", "length_and_encoding"),
            ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "", "transfer_encoding"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "", "transfer_encoding"),
            ("Transfer-Encoding: gzip, chunked\r\n", "", "transfer_encoding"),
            ("Transfer-Encoding: xchunked\r\n", "", "transfer_encoding"),
            ("Transfer-Encoding:\r\n", "", "transfer_encoding"),
            ("Content-Length: 3\r\nContent-Length: 3\r\n", "abc", "content_length"),
            ("Content-Length: 3, 3\r\n", "abc", "content_length"),
            ("Content-Length: +3\r\n", "abc", "content_length"),
            ("Content-Length: 0x3\r\n", "abc", "content_length"),
            ("Content-Length: \r\n", "", "content_length"),
            ("Content-Length: 1 2\r\n", "", "content_length"),
            ("Content-Length: 99999999999999999999\r\n", "", "content_length"),
            ("Content-Length: 1001\r\n", "", "body_bytes"),
            ("Expect: 100-continue\r\nContent-Length: 1\r\n", "a", "passes"),
            ("Expect: 200-ok\r\nContent-Length: 1\r\n", "a", "expectation"),
        ];
        for (headers, body, expected) in cases {
            assert_eq!(post(headers, body), expected, "{headers:?}");
        }
        assert_eq!(
            verdict("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            "transfer_encoding",
            "1.0 has no chunks"
        );
    }

    /// Whose bytes come after it depends on its answer: they are kept apart until that is known.
    #[test]
    fn what_follows_a_head_that_asks_for_an_upgrade_is_held() {
        let ask = |headers: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        let first = ask("Upgrade: websocket\r\nConnection: close, UPGRADE\r\n");
        for piece in [1, 3, usize::MAX] {
            let (mut gate, mut out) = (Gate::new(LIMITS), Vec::new());
            let all = format!("{}{first}{first}\r\n{}", ask(""), ask(""));
            all.as_bytes().chunks(piece.min(all.len())).for_each(|bytes| gate.feed(bytes, &mut out).unwrap());
            assert_eq!(out, format!("{}{first}", ask("")).into_bytes());
            assert_eq!((gate.phase(), gate.heads()), (Phase::Held, 2));
            assert_eq!(gate.held(), format!("{first}\r\n{}", ask("")).as_bytes());
            gate.release(&mut out).unwrap();
            assert_eq!((gate.phase(), gate.heads()), (Phase::Held, 3), "the next one asks, too");
            gate.release(&mut out).unwrap();
            assert_eq!((gate.phase(), gate.heads(), gate.held().len()), (Phase::Idle, 4, 0));
            assert_eq!(out, format!("{}{first}{first}{}", ask(""), ask("")).into_bytes());
        }
        let (mut gate, mut out) = (Gate::new(LIMITS), Vec::new());
        gate.feed(format!("{first}GET /\n").as_bytes(), &mut out).unwrap();
        gate.release(&mut out).unwrap();
        assert_eq!((gate.phase(), gate.heads()), (Phase::Refused, 2), "they are read as strictly as any");
    }

    #[test]
    fn only_one_protocol_may_be_asked_for_and_not_another_http() {
        let held = |request: &str| {
            let (mut gate, mut out) = (Gate::new(LIMITS), Vec::new());
            gate.feed(request.as_bytes(), &mut out).unwrap();
            gate.phase() == Phase::Held
        };
        let get = |headers: &str| held(&format!("GET / HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
        let connection = "Connection: x\r\nConnection: upgrade\r\n";
        assert!(get(&format!("{connection}Upgrade: websocket\r\nContent-Length: 0\r\n")));
        assert!(get(&format!("{connection}upgrade: other/1\r\n")));
        for upgrade in ["", "h2c", "H2", "HTTP/2.0", "http/3", "TLS/1.3", "a, b", "websocket\r\nUpgrade: websocket"] {
            assert!(!get(&format!("{connection}Upgrade: {upgrade}\r\n")), "{upgrade}");
        }
        assert!(!get(connection) && !get("Upgrade: websocket\r\n") && !get("Upgrade: websocket\r\nConnection: x\r\n"));
        let other = |line: &str| held(&format!("{line}\r\nHost: h\r\n{connection}Upgrade: websocket\r\n\r\n"));
        assert!(!other("POST / HTTP/1.1") && !other("GET / HTTP/1.0"));
        let body = format!("{connection}Upgrade: websocket\r\nContent-Length: 1\r\n");
        assert_eq!(post(&body, "a"), "upgrade_body");
        assert_eq!(post(&body.replace("Content-Length: 1", "Transfer-Encoding: chunked"), ""), "upgrade_body");
    }

    #[test]
    fn chunks_are_read_one_way() {
        let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
        let cases = [
            ("3;ext=1\r\nabc\r\n0\r\nX-T: 1\r\n\r\n", "passes"),
            ("a\r\n0123456789\r\n00\r\n\r\n", "passes"),
            ("3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", "passes"),
            ("3;ext\n1\r\nabc\r\n0\r\n\r\n", "body chunk"),
            ("3\nabc\r\n0\r\n\r\n", "body chunk"),
            ("3\r\nabcd\r\n0\r\n\r\n", "body chunk"),
            ("3\r\nabc\n0\r\n\r\n", "body chunk"),
            ("\r\nabc", "body chunk"),
            ("g\r\n", "body chunk"),
            ("-1\r\n", "body chunk"),
            ("0x3\r\nabc\r\n", "body chunk"),
            ("3 \r\nabc\r\n", "body chunk"),
            ("1111111111111111\r\n", "body chunk"),
            ("3;\rx\r\n", "body chunk"),
            ("0\r\nno colon\r\n\r\n", "body chunk"),
            ("0\r\n: x\r\n\r\n", "body chunk"),
            ("0\r\nA: b\n\r\n", "body chunk"),
            ("0\r\nA: b\rc\r\n\r\n", "body chunk"),
            ("3e8\r\n", "passes"),
            ("3e9\r\n", "body body_bytes"),
        ];
        for (body, expected) in cases {
            assert_eq!(chunked(body), expected, "{body:?}");
        }
        let long_extension = format!("3;{}\r\nabc\r\n", "x".repeat(300));
        assert_eq!(chunked(&long_extension), "body chunk");
        let long_trailer = format!("0\r\nA: {}\r\n\r\n", "x".repeat(9_000));
        assert_eq!(chunked(&long_trailer), "body chunk");
    }

    #[test]
    fn lines_end_in_cr_lf_and_hold_no_control_character() {
        let cases = [
            ("GET / HTTP/1.1\nHost: h\n\n", "bare_line_end"),
            ("GET / HTTP/1.1\r\nHost: h\n\r\n", "bare_line_end"),
            ("GET / HTTP/1.1\r\nHost: h\r\n\n", "bare_line_end"),
            ("\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", "bare_line_end"),
            ("GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n", "bare_line_end"),
            ("GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n", "header_value"),
            ("GET / HTTP/1.1\r\nHost: h\r\nA: b\x7fc\r\n\r\n", "header_value"),
            ("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", "folded_header"),
            ("GET / HTTP/1.1\r\n Host: h\r\n\r\n", "folded_header"),
            ("GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n", "header_name"),
            ("GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n", "header_name"),
            ("GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n", "header_name"),
            ("GET / HTTP/1.1\r\nHost: h\r\nA\u{e9}: b\r\n\r\n", "header_name"),
            ("GET / HTTP/1.1\r\nHost: h\r\nseawall-gate-verdict: chunk\r\n\r\n", "header_name"),
        ];
        for (request, expected) in cases {
            assert_eq!(verdict(request), expected, "{request:?}");
        }
        let blank_first = "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n";
        assert_eq!(through(blank_first.as_bytes(), usize::MAX).0, &blank_first[4..], "blank lines first are ignored");
    }

    #[test]
    fn one_host_and_the_target_agrees_with_it() {
        assert_eq!(get("Host: h\r\n"), "passes");
        assert_eq!(get("Host: h.example:8080\r\n"), "passes");
        assert_eq!(get("Host: [::1]:80\r\n"), "passes");
        for bad in ["", "Host: a\r\nHost: a\r\n", "Host:\r\n", "Host: a b\r\n", "Host: u@h\r\n", "Host: h/p\r\n"] {
            assert_eq!(get(bad), "host", "{bad:?}");
        }
        for bad in ["Host: h:x\r\n", "Host: h:123456\r\n", "Host: [::1\r\n", "Host: [::1]x\r\n", "Host: a,b\r\n"] {
            assert_eq!(get(bad), "host", "{bad:?}");
        }
        assert_eq!(verdict("GET / HTTP/1.0\r\n\r\n"), "passes", "1.0 needs none");
        assert_eq!(verdict("GET http://H:1/a?b HTTP/1.1\r\nHost: h:1\r\n\r\n"), "passes");
        assert_eq!(verdict("GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n"), "host_mismatch");
        assert_eq!(verdict("GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n"), "target");
    }

    #[test]
    fn request_lines() {
        let line = |line: &str| verdict(&format!("{line}\r\nHost: h\r\n\r\n"));
        assert_eq!(line("OPTIONS /a HTTP/1.1"), "passes");
        assert_eq!(line("PROPFIND /a%20b;c=d?e=[f]|g HTTP/1.1"), "passes");
        let cases = [
            ("CONNECT h:443 HTTP/1.1", "method"),
            ("TRACE / HTTP/1.1", "method"),
            ("GET * HTTP/1.1", "target"),
            ("OPTIONS * HTTP/1.1", "target"),
            ("GET a HTTP/1.1", "target"),
            ("GET /a#b HTTP/1.1", "target"),
            ("GET /\u{e9} HTTP/1.1", "target"),
            ("GET https://h/ HTTP/1.1", "target"),
            ("GET  / HTTP/1.1", "request_line"),
            ("GET / HTTP/1.1 ", "request_line"),
            ("GET /", "request_line"),
            ("GET", "request_line"),
            (" / HTTP/1.1", "request_line"),
            ("G<T / HTTP/1.1", "request_line"),
            ("GET / http/1.1", "request_line"),
            ("GET / HTTP/2.0", "version"),
            ("PRI * HTTP/2.0", "version"),
            ("\u{0}\u{1}\u{2}\u{3}", "request_line"),
        ];
        for (request, expected) in cases {
            assert_eq!(line(request), expected, "{request:?}");
        }
    }

    #[test]
    fn sizes_have_limits_and_a_head_without_end_is_not_kept() {
        let long = format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "x".repeat(1_100));
        assert_eq!(verdict(&long), "header_bytes");
        assert_eq!(verdict(&format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(5_000))), "header_bytes");
        let many: String = (0..8).map(|n| format!("H{n}: x\r\n")).collect();
        assert_eq!(get(&format!("Host: h\r\n{many}")), "headers");
        let garbage = "\u{16}\u{3}\u{1}".repeat(2_000);
        assert_eq!(verdict(&garbage), "header_bytes", "somebody speaks TLS to us");
    }

    #[test]
    fn pipelined_requests_before_a_bad_one_pass() {
        let good = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok";
        let both = format!("{good}{good}GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n");
        for piece in [1, 3, usize::MAX] {
            assert_eq!(through(both.as_bytes(), piece), (format!("{good}{good}refused host"), None));
        }
    }

    #[test]
    fn phases_tell_where_it_stands() {
        let (mut gate, mut out) = (Gate::new(LIMITS), Vec::new());
        assert_eq!(gate.phase(), Phase::Idle);
        gate.feed(b"POST / HTTP/1.1\r\n", &mut out).unwrap();
        assert_eq!((gate.phase(), out.len()), (Phase::Head, 0), "half a head does not pass");
        gate.feed(b"Host: h\r\nContent-Length: 5\r\n\r\nab", &mut out).unwrap();
        assert_eq!(gate.phase(), Phase::Body);
        assert_eq!(gate.run(), 3);
        gate.pass_run(2);
        assert_eq!((gate.run(), gate.phase()), (1, Phase::Body));
        gate.feed(b"c", &mut out).unwrap();
        assert_eq!(gate.phase(), Phase::Idle);
        gate.refuse(Verdict::HeadTooSlow, &mut out);
        gate.feed(b"more", &mut out).unwrap();
        assert_eq!(gate.phase(), Phase::Refused);
        assert_eq!(gate.run(), 0);
    }

    #[test]
    fn every_verdict_can_be_found_by_name_and_answered() {
        for verdict in Verdict::ALL {
            assert_eq!(Verdict::by_name(verdict.name()), Some(*verdict));
            assert!((400..600).contains(&verdict.status()) && !verdict.words().is_empty());
        }
        assert_eq!(Verdict::by_name("nothing"), None);
    }

    /// Found by fuzzing: what makes a head wrong beyond its greatest length was seen if it came at once, and not if it
    /// came in pieces.
    #[test]
    fn a_head_that_is_too_long_is_that_and_nothing_else() {
        let long = format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\nB: 1\r\n\r\n", "a".repeat(1_024));
        assert_eq!(verdict(&long), Verdict::HeadTooLong.name());
    }

    proptest! {
        /// Whatever comes, in whatever pieces: no panic, and the pieces make no difference.
        #[test]
        fn pieces_make_no_difference(
            lines in prop::collection::vec("[ -~]{0,12}|POST / HTTP/1.1|Host: h|Content-Length: [0-9]{1,2}|Transfer-Encoding: chunked|[0-9a-f]|", 0..12),
            bare in any::<bool>(),
            piece in 1_usize..20,
        ) {
            let text = lines.join(if bare { "\n" } else { "\r\n" });
            prop_assert_eq!(through(text.as_bytes(), piece), through(text.as_bytes(), usize::MAX));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1_usize..50) {
            let _ = through(&bytes, piece);
        }
    }
}
