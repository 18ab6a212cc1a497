//! What a proxy owes to headers (RFC 9110 section 7.6): hop-by-hop ones end here, `Via` and `X-Forwarded-*` begin.
//!
//! Order matters: everything hop-by-hop is removed before anything of ours is added, and no `Connection` header can
//! name away what framing, identity or our own marks depend on.

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, RETRY_AFTER, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use std::borrow::Cow;
use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seawall_core::time::Wall;

use super::fields::Fields;
use crate::tls::Shown;

pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The ledger's stamp on a record.
pub(crate) const SEAWALL_RECORD: HeaderName = HeaderName::from_static("seawall-record");
/// How an answer is reduced.
pub(crate) const SEAWALL_DEGRADED: HeaderName = HeaderName::from_static("seawall-degraded");
/// How safe an accepted write is.
pub(crate) const SEAWALL_DURABILITY: HeaderName = HeaderName::from_static("seawall-durability");
/// On a copy of a request, for the upstream that gets copies.
pub(crate) const SEAWALL_MIRROR: HeaderName = HeaderName::from_static("seawall-mirror");
/// Which faults, placed on purpose, touched the request.
pub(crate) const SEAWALL_FAULT: HeaderName = HeaderName::from_static("seawall-fault");
/// RFC 9209.
pub(crate) const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// Ties the lines of one request together.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// draft-ietf-httpapi-idempotency-key-header.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The caller's remaining patience in milliseconds, as Envoy writes it.
pub(crate) const EXPECTED_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Who repeats the request when it fails, so that nobody below does.
pub(crate) const RETRY_OWNER: HeaderName = HeaderName::from_static(seawall_core::guard::retry::RETRY_OWNER_HEADER);

/// What `Connection` may not take away: framing, identity, and what we vouch for.
const PROTECTED: [&str; 12] = [
    "host",
    "content-length",
    "authorization",
    "cookie",
    "idempotency-key",
    "seawall-record",
    "seawall-degraded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "client-cert",
    "client-cert-chain",
];

/// What ends at this hop or frames a message, and what else a trailer may not say beside [`PROTECTED`].
const TRAILED_BY_NOBODY: [&str; 12] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "proxy-authorization",
    "proxy-authenticate",
    "forwarded",
    "via",
];

/// Which headers that matter to a proxy are there: one look over the names costs less than asking for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present(u32);

macro_rules! present {
    ($($flag:ident = $bit:literal, $name:literal;)*) => {
        impl Present {
            $(pub(crate) const $flag: Self = Self(1 << $bit);)*

            pub(crate) fn look(headers: &Fields) -> Self {
                let mut present = 0;
                for name in headers.names() {
                    present |= match name.as_str() {
                        $($name => 1 << $bit,)*
                        name if name.contains('_') => Self::UNDERSCORE.0,
                        _ => 0,
                    };
                }
                Self(present)
            }
        }
    };
}

present! {
    CONNECTION = 0, "connection";
    KEEP_ALIVE = 1, "keep-alive";
    PROXY_CONNECTION = 2, "proxy-connection";
    TRANSFER_ENCODING = 3, "transfer-encoding";
    UPGRADE = 4, "upgrade";
    TE = 5, "te";
    EXPECT = 6, "expect";
    PROXY_AUTHORIZATION = 7, "proxy-authorization";
    FORWARDED = 8, "forwarded";
    SEAWALL_RECORD = 9, "seawall-record";
    SEAWALL_DEGRADED = 10, "seawall-degraded";
    PROXY_AUTHENTICATE = 11, "proxy-authenticate";
    VIA = 12, "via";
    VERDICT = 13, "seawall-gate-verdict";
    IDEMPOTENCY_KEY = 14, "idempotency-key";
    EXPECTED_TIMEOUT = 15, "x-envoy-expected-rq-timeout-ms";
    RETRY_OWNER = 16, "seawall-retry-owner";
    GRPC_TIMEOUT = 17, "grpc-timeout";
    CLIENT_CERT = 18, "client-cert";
    CLIENT_CERT_CHAIN = 19, "client-cert-chain";
}

impl Present {
    /// Not a header: the gate holds the connection for what this request asks it to become.
    pub(crate) const ASKS: Self = Self(1 << 31);
    /// A name with an underscore.
    const UNDERSCORE: Self = Self(1 << 30);

    pub(crate) fn and(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }

    pub(crate) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }
}

/// Strips what ends at this hop, in either direction.
fn strip_hop_by_hop(headers: &mut Fields, present: Present) {
    if present.has(Present::CONNECTION) {
        strip_connection(headers);
    }
    for (flag, name) in [
        (Present::KEEP_ALIVE, KEEP_ALIVE),
        (Present::PROXY_CONNECTION, PROXY_CONNECTION),
        (Present::TRANSFER_ENCODING, TRANSFER_ENCODING),
        (Present::UPGRADE, UPGRADE),
    ] {
        if present.has(flag) {
            headers.remove(name);
        }
    }
}

/// Strips `Connection` and what it names.
fn strip_connection(headers: &mut Fields) {
    // What nearly every message says names nothing else.
    let names_nothing = |value: &HeaderValue| matches!(value.as_bytes(), b"keep-alive" | b"close");
    if headers.get_all(CONNECTION).all(names_nothing) {
        headers.remove(CONNECTION);
        return;
    }
    let named: HashSet<HeaderName> = headers
        .get_all(CONNECTION)
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !PROTECTED.contains(&name.as_str()))
        .collect();
    headers.remove_all(|name| *name == CONNECTION || named.contains(name));
}

/// Takes from trailers what has no business there (RFC 9110 section 6.5.1): what frames a message or ends at this hop,
/// and what says who asks or is vouched for by us. A reader that merges trailers into the head would believe it. How
/// many lines went.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) -> usize {
    let is_out_of_place = |name: &HeaderName| {
        let name = name.as_str();
        let name = if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) };
        let is_one_of = |names: &[&str]| names.contains(&&*name);
        name.starts_with("seawall-") || is_one_of(&PROTECTED) || is_one_of(&TRAILED_BY_NOBODY)
    };
    let before = trailers.len();
    let wrong: Vec<HeaderName> = trailers.keys().filter(|name| is_out_of_place(name)).cloned().collect();
    wrong.into_iter().for_each(|name| drop(trailers.remove(name)));
    before - trailers.len()
}

/// Who asks, for `X-Forwarded-*` and `Via`.
pub(crate) struct Hop<'a> {
    /// The client's address as text.
    pub(crate) peer: &'a HeaderValue,
    /// True if it asked by TLS.
    pub(crate) sealed: bool,
    pub(crate) shown: &'a Shown,
    /// True if its word on where a request came from is believed.
    pub(crate) trusted: bool,
    pub(crate) via: &'a HeaderValue,
}

/// Makes a client's headers into an upstream's. Forwarding headers are believed of those who are trusted, and replaced
/// of all others.
pub(crate) fn to_upstream(headers: &mut Fields, present: Present, hop: &Hop<'_>) {
    let wants_trailers = present.has(Present::TE) && headers.get_all(TE).any(|value| has_token(value, "trailers"));
    strip_hop_by_hop(headers, present);
    for (flag, name) in [
        (Present::TE, TE),
        (Present::EXPECT, EXPECT),
        (Present::PROXY_AUTHORIZATION, PROXY_AUTHORIZATION),
        (Present::SEAWALL_RECORD, SEAWALL_RECORD),
        (Present::SEAWALL_DEGRADED, SEAWALL_DEGRADED),
    ] {
        if present.has(flag) {
            headers.remove(name);
        }
    }
    if present.has(Present::UNDERSCORE) {
        remove_twins(headers);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if hop.trusted {
        forward_on(headers, present, hop);
    } else {
        if present.has(Present::FORWARDED) {
            headers.remove(FORWARDED);
        }
        headers.insert(X_FORWARDED_FOR, hop.peer.clone());
        headers.insert(X_FORWARDED_PROTO, hop.proto());
        // Whose certificate it was only he knows who has seen it (RFC 9440, section 4).
        put_or_remove(headers, present.has(Present::CLIENT_CERT), CLIENT_CERT, &hop.shown.certificate);
        put_or_remove(headers, present.has(Present::CLIENT_CERT_CHAIN), CLIENT_CERT_CHAIN, &hop.shown.chain);
        match headers.get(HOST).cloned() {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => drop(headers.remove(X_FORWARDED_HOST)),
        }
    }
    headers.append(VIA, hop.via.clone());
}

/// Where a service is told of headers as variables (CGI, WSGI and their kin), `client_cert` is `client-cert`: whoever
/// could send the one could forge the other.
fn remove_twins(headers: &mut Fields) {
    headers.remove_all(|name| {
        let name = name.as_str();
        name.contains('_') && PROTECTED.contains(&name.replace('_', "-").as_str())
    });
}

fn put_or_remove(headers: &mut Fields, is_there: bool, name: HeaderName, value: &Option<HeaderValue>) {
    match value {
        Some(value) => headers.insert(name, value.clone()),
        None if is_there => drop(headers.remove(name)),
        None => {}
    }
}

/// Adds a hop to what one that is trusted has said.
fn forward_on(headers: &mut Fields, present: Present, hop: &Hop<'_>) {
    // One line for what may come in several: whoever reads only the first or the last reads all of it.
    let mut hops: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).map(HeaderValue::as_bytes).collect();
    hops.push(hop.peer.as_bytes());
    if let Ok(joined) = HeaderValue::from_bytes(&hops.join(&b", "[..])) {
        headers.insert(X_FORWARDED_FOR, joined);
    }
    headers.insert_if_absent(X_FORWARDED_PROTO, || hop.proto());
    if let Some(host) = headers.get(HOST).cloned() {
        headers.insert_if_absent(X_FORWARDED_HOST, || host);
    }
    if present.has(Present::FORWARDED)
        && let Ok(element) = HeaderValue::from_bytes(&hop.forwarded())
    {
        headers.append(FORWARDED, element);
    }
}

impl Hop<'_> {
    /// Whose certificate the upstream will be told of, before the headers are made into its own.
    pub(crate) fn certificate<'h>(&'h self, headers: &'h Fields) -> Option<&'h HeaderValue> {
        if self.trusted { headers.get(CLIENT_CERT) } else { self.shown.certificate.as_ref() }
    }

    fn proto(&self) -> HeaderValue {
        HeaderValue::from_static(if self.sealed { "https" } else { "http" })
    }

    /// An element of `Forwarded` (RFC 7239, section 4): an IPv6 address is quoted and bracketed.
    fn forwarded(&self) -> Vec<u8> {
        let (peer, proto) = (self.peer.as_bytes(), if self.sealed { "https" } else { "http" });
        let node = if peer.contains(&b':') { [b"\"[", peer, b"]\""].concat() } else { peer.to_vec() };
        [b"for=", &node[..], b";proto=", proto.as_bytes()].concat()
    }
}

/// Makes an upstream's headers into ours.
pub(crate) fn to_client(headers: &mut Fields, via: &HeaderValue) {
    let present = Present::look(headers);
    strip_hop_by_hop(headers, present);
    if present.has(Present::PROXY_AUTHENTICATE) {
        headers.remove(PROXY_AUTHENTICATE);
    }
    headers.append(VIA, via.clone());
}

/// True if one of ours has seen this request already.
pub(crate) fn is_loop(headers: &Fields, via: &HeaderValue) -> bool {
    let Ok(ours) = via.to_str() else { return false };
    headers
        .get_all(VIA)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|hop| hop.trim() == ours)
}

/// A copy that shares no memory: what is kept for long must not keep the rest of its message.
pub(crate) fn owned(headers: &Fields) -> Fields {
    headers.iter().map(|(name, value)| (name.clone(), owned_value(value))).collect()
}

/// As [`owned`], for one.
pub(crate) fn owned_value(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// True if the answer announces trailers: only announced ones can be passed on.
pub(crate) fn announces_trailers(headers: &Fields) -> bool {
    headers.has(TRAILER)
}

/// The announced length of a body, if there is exactly one.
pub(crate) fn content_length(headers: &Fields) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The wait that `Retry-After` asks for: seconds or a date (RFC 9110 section 10.2.3).
pub(crate) fn retry_after(headers: &Fields, now: Wall) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at: SystemTime = httpdate::parse_http_date(text).ok()?;
    let now = UNIX_EPOCH + Duration::from_millis(now.as_millis());
    Some(at.duration_since(now).unwrap_or_default())
}

/// The caller's remaining patience, if it told us.
pub(crate) fn callers_patience(headers: &Fields) -> Option<Duration> {
    let millis: u64 = headers.get(EXPECTED_TIMEOUT_MS)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// True if a list of tokens has this one, in whatever case.
pub(crate) fn has_token(value: &HeaderValue, token: &str) -> bool {
    let is_it = |part: &[u8]| {
        let bare = part.split(|byte| *byte == b';').next().unwrap_or_default();
        bare.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    };
    value.as_bytes().split(|byte| *byte == b',').any(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> Fields {
        let mut map = Fields::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn names(map: &Fields) -> Vec<&str> {
        let mut names: Vec<&str> = map.names().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    const VIA_OURS: HeaderValue = HeaderValue::from_static("1.1 seawall-a");

    #[test]
    fn what_ends_here_ends_here_and_nothing_else() {
        let mut headers = map(&[
            ("connection", "close, X-Foo, Host, authorization, not a token"),
            ("x-foo", "1"),
            ("host", "h"),
            ("authorization", "secret"),
            ("keep-alive", "1"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "trailers;q=1, deflate"),
            ("expect", "100-continue"),
            ("x-forwarded-for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("seawall-record", "forged"),
            ("client-cert", ":Zm9yZ2Vk:"),
            ("client-cert-chain", ":Zm9yZ2Vk:"),
            ("client_cert", ":Zm9yZ2Vk:"),
            ("x-forwarded_for", "6.6.6.6"),
            ("seawall_record", "forged"),
            ("x_tenant", "acme"),
            ("accept", "*/*"),
            ("x-bar", "1"),
        ]);
        headers.append(CONNECTION, HeaderValue::from_bytes(b"x-bar, \xff").unwrap());
        let present = Present::look(&headers);
        to_upstream(
            &mut headers,
            present,
            &Hop {
                peer: &HeaderValue::from_static("10.0.0.7"),
                sealed: true,
                shown: &Shown::default(),
                trusted: false,
                via: &VIA_OURS,
            },
        );
        assert_eq!(
            names(&headers),
            [
                "accept",
                "authorization",
                "host",
                "te",
                "via",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto",
                "x_tenant"
            ]
        );
        assert_eq!(headers.get("te").unwrap(), "trailers");
        assert_eq!(headers.get("x-forwarded-for").unwrap(), "10.0.0.7");
        assert_eq!(
            (headers.get("via").unwrap(), headers.get("x-forwarded-proto").unwrap()),
            (&VIA_OURS, &HeaderValue::from_static("https"))
        );
    }

    #[test]
    fn whoever_is_trusted_is_added_to_and_not_replaced() {
        let (peer, v6) = (HeaderValue::from_static("10.0.0.7"), HeaderValue::from_static("2001:db8::7"));
        let mut headers = map(&[
            ("host", "inner"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "front.example"),
            ("connection", "client-cert"),
            ("client-cert", ":d2hvc2U=:"),
            ("forwarded", "for=192.0.2.1;proto=https"),
        ]);
        let present = Present::look(&headers);
        to_upstream(
            &mut headers,
            present,
            &Hop { peer: &v6, sealed: false, shown: &Shown::default(), trusted: true, via: &VIA_OURS },
        );
        let all = |headers: &Fields, name: &str| -> Vec<String> {
            headers.get_all(name).map(|value| value.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(all(&headers, "x-forwarded-for"), ["192.0.2.1, 192.0.2.2, 2001:db8::7"]);
        assert_eq!(
            (all(&headers, "x-forwarded-proto"), all(&headers, "x-forwarded-host")),
            (vec!["https".to_owned()], vec!["front.example".to_owned()])
        );
        assert_eq!(all(&headers, "forwarded"), ["for=192.0.2.1;proto=https", "for=\"[2001:db8::7]\";proto=http"]);
        assert_eq!(all(&headers, "client-cert"), [":d2hvc2U=:"], "what it has seen, and not what it has shown");
        // Who has said nothing is the first to be named.
        let mut headers = map(&[("host", "inner")]);
        let present = Present::look(&headers);
        to_upstream(
            &mut headers,
            present,
            &Hop { peer: &peer, sealed: true, shown: &Shown::default(), trusted: true, via: &VIA_OURS },
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["10.0.0.7"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["https"]);
        assert_eq!(all(&headers, "x-forwarded-host"), ["inner"]);
        assert!(!headers.has("forwarded"));
    }

    #[test]
    fn answers_are_cleaned_too() {
        let mut headers = map(&[("connection", "x-private"), ("x-private", "1"), ("via", "1.1 cdn"), ("etag", "e")]);
        to_client(&mut headers, &VIA_OURS);
        assert_eq!(names(&headers), ["etag", "via", "via"]);
    }

    #[test]
    fn without_a_host_none_is_forwarded() {
        let mut headers = map(&[("x-forwarded-host", "forged")]);
        let present = Present::look(&headers);
        to_upstream(
            &mut headers,
            present,
            &Hop {
                peer: &HeaderValue::from_static("::1"),
                sealed: false,
                shown: &Shown::default(),
                trusted: false,
                via: &VIA_OURS,
            },
        );
        assert!(!headers.has("x-forwarded-host"));
    }

    #[test]
    fn loops_are_seen() {
        assert!(is_loop(&map(&[("via", "1.0 cdn, 1.1 seawall-a")]), &VIA_OURS));
        assert!(!is_loop(&map(&[("via", "1.1 seawall-ab")]), &VIA_OURS));
        assert!(!is_loop(&map(&[]), &VIA_OURS));
    }

    #[test]
    fn numbers_in_headers() {
        let now = Wall::from_millis(1_000_000);
        let after = |text: &str| retry_after(&map(&[("retry-after", text)]), now);
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Thu, 01 Jan 1970 00:17:00 GMT"), Some(Duration::from_secs(20)));
        assert_eq!(after("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(content_length(&map(&[("content-length", "12")])), Some(12));
        assert_eq!(content_length(&map(&[])), None);
        let patience = map(&[("x-envoy-expected-rq-timeout-ms", "250")]);
        assert_eq!(callers_patience(&patience), Some(Duration::from_millis(250)));
        assert!(announces_trailers(&map(&[("trailer", "x")])) && !announces_trailers(&map(&[])));
    }

    #[test]
    fn trailers_say_nothing_of_who_asks() {
        let mut trailers = HeaderMap::new();
        let said =
            ["grpc-status", "host", "client_cert", "seawall-record", "transfer-encoding", "x-checksum", "client_cert"];
        for name in said {
            trailers.append(name, HeaderValue::from_static("x"));
        }
        assert_eq!(clean_trailers(&mut trailers), 5);
        let mut left: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-checksum"]);
        assert_eq!(clean_trailers(&mut trailers), 0);
    }
}
