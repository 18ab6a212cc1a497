//! Answers of our own: every one says in `Proxy-Status` (RFC 9209) what went wrong and in its body (RFC 9457) which
//! rule, with which numbers, and when to come back.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use seawall_core::guard::Refusal;
use seawall_core::outcome::Failure;
use seawall_core::time::Wall;
use serde_json::json;

use super::body::ResBody;
use super::gate::Verdict;
use super::headers::{PROXY_STATUS, SEAWALL_DEGRADED};
use super::message::Response;

/// Marks an answer of our own, for whoever must say it in other words.
#[derive(Clone, Debug)]
pub(crate) struct Ours {
    pub(crate) detail: String,
    pub(crate) retry_in: Option<Duration>,
}

/// An answer about to be written.
pub(crate) struct Answer {
    status: StatusCode,
    /// RFC 9209 error type.
    error: &'static str,
    /// Which rule of ours, for machines.
    rule: &'static str,
    detail: String,
    retry_in: Option<Duration>,
}

impl Answer {
    pub(crate) fn new(status: u16, error: &'static str, rule: &'static str, detail: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, error, rule, detail: detail.into(), retry_in: None }
    }

    pub(crate) fn refusal(refusal: &Refusal) -> Self {
        Self {
            retry_in: refusal.retry_in(),
            ..Self::new(refusal.status(), refusal.proxy_status(), refusal.rule(), refusal.to_string())
        }
    }

    pub(crate) fn failure(failure: Failure) -> Self {
        Self::new(failure.status(), failure.proxy_status(), failure.name(), failure.to_string())
    }

    pub(crate) fn verdict(verdict: Verdict) -> Self {
        Self::new(verdict.status(), "http_request_error", verdict.name(), verdict.words())
    }

    pub(crate) fn retry_in(mut self, wait: Duration) -> Self {
        self.retry_in = Some(wait);
        self
    }

    /// Writes it. 503 and 429 always say when to come back; one second where nobody knows better.
    pub(crate) fn build(self) -> Response<ResBody> {
        let status = self.status.as_u16();
        let retry_in = self.retry_in.or(matches!(status, 429 | 503 | 507).then_some(Duration::from_secs(1)));
        let mut problem = json!({
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": status,
            "detail": self.detail,
            "rule": self.rule,
        });
        let mut response = Response::new(self.status, ResBody::Empty);
        let headers = response.headers_mut();
        if let Some(wait) = retry_in {
            let seconds = whole_seconds(wait);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            problem["retry_after_s"] = json!(seconds);
        }
        headers.insert(PROXY_STATUS, proxy_status(self.error, &self.detail));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == 405 {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        if matches!(status, 400 | 408 | 413 | 417 | 431 | 505) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.body = ResBody::whole(Bytes::from(format!("{problem}\n")));
        response.head.ours = Some(Box::new(Ours { detail: self.detail, retry_in }));
        response
    }
}

/// A `Proxy-Status` member: who we are, the error type, the words.
pub(crate) fn proxy_status(error: &str, details: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("seawall; error={error}; details=\"{}\"", quotable(details)))
        .unwrap_or(HeaderValue::from_static("seawall; error=proxy_internal_error"))
}

/// Marks an answer as reduced: how, and since when.
pub(crate) fn degraded(how: &str, since: Wall) -> (http::HeaderName, HeaderValue) {
    let value = HeaderValue::from_str(&format!("{how}; since={}", since.rfc3339()));
    (SEAWALL_DEGRADED, value.unwrap_or(HeaderValue::from_static("unknown")))
}

/// How safe an accepted write is, and why no safer.
pub(crate) fn durability(level: &'static str, reason: Option<&str>) -> HeaderValue {
    let Some(reason) = reason else { return HeaderValue::from_static(level) };
    let value = HeaderValue::from_str(&format!("{level}; reason=\"{}\"", quotable(reason)));
    value.unwrap_or(HeaderValue::from_static(level))
}

/// Words that can stand between quotes in a header.
fn quotable(words: &str) -> String {
    words.chars().filter(|c| c.is_ascii() && !c.is_ascii_control() && !matches!(c, '"' | '\\')).collect()
}

/// Up to the next second, at least one: who comes back at zero comes back too early.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(response: &Response<ResBody>, name: &str) -> String {
        response.headers().get(name).map_or(String::new(), |value| value.to_str().unwrap().into())
    }

    #[test]
    fn a_refusal_tells_rule_and_when_to_come_back() {
        let refusal = Refusal::NoHealthyEndpoint { endpoints: 2, retry_in: Duration::from_millis(1_200) };
        let response = Answer::refusal(&refusal).build();
        assert_eq!(response.status(), 503);
        assert_eq!(header(&response, "retry-after"), "2");
        assert_eq!(
            header(&response, "proxy-status"),
            "seawall; error=destination_unavailable; details=\"none of 2 endpoints is healthy\""
        );
        assert_eq!(header(&response, "content-type"), "application/problem+json");
    }

    #[test]
    fn every_503_and_429_says_when_to_come_back() {
        for failure in [Failure::Status(503), Failure::Throttled] {
            assert_eq!(header(&Answer::failure(failure).build(), "retry-after"), "1");
        }
        assert_eq!(header(&Answer::failure(Failure::Timeout).build(), "retry-after"), "");
        let wait = Answer::new(503, "x", "y", "z").retry_in(Duration::from_secs(9)).build();
        assert_eq!(header(&wait, "retry-after"), "9");
    }

    #[test]
    fn verdicts_close_the_connection_and_405_names_what_is_allowed() {
        let response = Answer::verdict(Verdict::Folded).build();
        assert_eq!((response.status().as_u16(), header(&response, "connection").as_str()), (400, "close"));
        assert!(header(&Answer::verdict(Verdict::Method).build(), "allow").contains("GET"));
    }

    #[test]
    fn details_cannot_break_the_header() {
        let value = proxy_status("e", "a \"b\" \\ \r\n é");
        assert_eq!(value, "seawall; error=e; details=\"a b   \"");
        assert_eq!(durability("local", Some("a \"b\" é")), "local; reason=\"a b \"");
        let (name, value) = degraded("stale", Wall::from_millis(0));
        assert_eq!(
            (name.as_str(), value.to_str().unwrap()),
            ("seawall-degraded", "stale; since=1970-01-01T00:00:00.000Z")
        );
    }
}
