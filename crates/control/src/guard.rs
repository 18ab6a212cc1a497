//! Who may call: whoever knows the token, and no page of another site behind the back of somebody who does.
//!
//! A browser cannot be told a bearer token, so the token is taken as the password of Basic authentication too (any
//! user name). A browser then sends it by itself, also for pages of other sites: writes are therefore refused when
//! their `Origin` is not this very address. Without a token an attacker's name could be pointed at this address (DNS
//! rebinding), so an `Origin` must then be an IP address or `localhost`.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Admin;
use crate::api::Refusal;

pub(crate) async fn check(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let token = admin.parts().token.as_deref();
    if let Some(token) = token
        && !knows(request.headers(), token)
    {
        return unauthorized();
    }
    let writes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if writes && !is_own_origin(request.headers(), token.is_some()) {
        let message = "writes from pages of another site are refused; call the API without an `Origin` header";
        return Refusal::new(StatusCode::FORBIDDEN, message).field("Origin").into_response();
    }
    next.run(request).await
}

fn unauthorized() -> Response {
    let message = "a token is needed: `Authorization: Bearer TOKEN`, the first line of `admin.token_file`";
    let mut response = Refusal::new(StatusCode::UNAUTHORIZED, message).field("Authorization").into_response();
    for scheme in ["Bearer realm=\"seawall\"", "Basic realm=\"seawall\", charset=\"UTF-8\""] {
        response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    response
}

fn knows(headers: &HeaderMap, token: &str) -> bool {
    let Some(written) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else { return false };
    let Some((scheme, value)) = written.split_once(' ') else { return false };
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return same(value.as_bytes(), token.as_bytes());
    }
    let pair = if scheme.eq_ignore_ascii_case("basic") { decode_base64(value) } else { None };
    let Some(pair) = pair else { return false };
    let password = pair.iter().position(|byte| *byte == b':').map(|colon| &pair[colon + 1..]);
    password.is_some_and(|password| same(password, token.as_bytes()))
}

/// Takes as long for a wrong first letter as for a wrong last one.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0_u8, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    a.len() == b.len() && differences == 0
}

fn is_own_origin(headers: &HeaderMap, has_token: bool) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        // Programs send none, browsers always do with a write.
        return headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin" || site == "none");
    };
    let (Ok(origin), Some(host)) = (origin.to_str(), headers.get(HOST).and_then(|host| host.to_str().ok())) else {
        return false;
    };
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority == host && (has_token || cannot_be_rebound(authority)))
}

fn cannot_be_rebound(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || host == "localhost" || host.ends_with(".localhost")
}

/// Standard base64 with or without padding; `None` for anything else.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_token_opens() {
        let knows = |value: &str| knows(&headers(&[("authorization", value)]), "s3cret");
        assert!(knows("Bearer s3cret") && knows("bearer  s3cret"));
        assert!(knows("Basic YW55OnMzY3JldA=="), "any:s3cret");
        for wrong in [
            "Bearer s3creT",
            "Bearer s3cre",
            "Bearer s3crets",
            "Bearer ",
            "s3cret",
            "Digest s3cret",
            "Basic !!",
            "Basic YW55",
            "Basic YW55OnMzY3JlVA==",
            "",
        ] {
            assert!(!knows(wrong), "{wrong}");
        }
        assert!(!super::knows(&HeaderMap::new(), "s3cret"));
    }

    #[test]
    fn base64_is_read_back() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(decode_base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(decode_base64("Zm9-"), None);
    }

    #[test]
    fn pages_of_other_sites_do_not_write() {
        let own = |pairs: &[(&'static str, &str)], has_token| is_own_origin(&headers(pairs), has_token);
        assert!(own(&[], false), "a program");
        let local = [("host", "127.0.0.1:9900"), ("origin", "http://127.0.0.1:9900")];
        assert!(own(&local, false));
        assert!(own(&[("host", "localhost:9900"), ("origin", "http://localhost:9900")], false));
        assert!(own(&[("host", "[::1]:9900"), ("origin", "http://[::1]:9900")], false));
        assert!(!own(&[("host", "127.0.0.1:9900"), ("origin", "http://evil.example")], true));
        assert!(!own(&[("host", "127.0.0.1:9900"), ("origin", "null")], true));
        assert!(!own(&[("origin", "http://127.0.0.1:9900")], true));
        let rebound = [("host", "evil.example:9900"), ("origin", "http://evil.example:9900")];
        assert!(!own(&rebound, false) && own(&rebound, true), "a name needs a token");
        assert!(!own(&[("sec-fetch-site", "cross-site")], true) && own(&[("sec-fetch-site", "same-origin")], true));
    }
}
