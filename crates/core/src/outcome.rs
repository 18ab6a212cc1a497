//! What a try came to, whose fault it was, and whether the same may be sent again.
//!
//! One vocabulary for the guards, the journal, the metrics and RFC 9209's `Proxy-Status`, so that a word seen in one
//! place can be searched for in all others.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the guards are told about a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A whole answer that is the upstream's honest work (4xx included: the caller's mistake is not its failure).
    Success,
    /// No whole answer, or one that says the upstream failed.
    Failure(Failure),
    /// Says nothing about the upstream: the client went away, or we stopped.
    Ignored,
}

impl Outcome {
    /// True for [`Outcome::Failure`].
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Failure(_))
    }

    /// What it says of the upstream's health. One that asks us to slow down is well: a breaker that opened on that
    /// would keep from it even what it takes on, and an ejection would put its share on its peers. Limits are what
    /// listens. One that does not offer what was wanted is well too.
    #[must_use]
    pub const fn of_health(self) -> Self {
        match self {
            Self::Failure(Failure::Throttled | Failure::Upgrade) => Self::Ignored,
            other => other,
        }
    }
}

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The name of the endpoint did not resolve.
    Dns,
    /// Nobody listens there.
    ConnectRefused,
    /// No connection within the time allowed.
    ConnectTimeout,
    /// The endpoint's certificate is not one we trust, or not for its name.
    TlsCertificate,
    /// TLS came to nothing for another reason.
    Tls,
    /// The connection broke before or while the answer came.
    ConnectionLost,
    /// No answer within the per-try timeout or the deadline.
    Timeout,
    /// The answer's body ended before its announced end.
    Incomplete,
    /// What came back is not HTTP.
    Protocol,
    /// The upstream lets no stream of HTTP/2 become a connection (RFC 8441), and was not asked.
    Upgrade,
    /// A status that says the upstream failed: 500, 502, 503, 504 and other 5xx but 501 and 505.
    Status(u16),
    /// The upstream asked us to slow down (429).
    Throttled,
}

impl Failure {
    /// The error type of RFC 9209 section 2.3, for `Proxy-Status`.
    #[must_use]
    pub const fn proxy_status(self) -> &'static str {
        match self {
            Self::Dns => "dns_error",
            Self::ConnectRefused => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::TlsCertificate => "tls_certificate_error",
            Self::Tls => "tls_protocol_error",
            Self::ConnectionLost => "connection_terminated",
            Self::Timeout => "http_response_timeout",
            Self::Incomplete => "http_response_incomplete",
            Self::Protocol => "http_protocol_error",
            Self::Upgrade => "http_upgrade_failed",
            Self::Status(_) | Self::Throttled => "destination_unavailable",
        }
    }

    /// The status a client sees when this failure is all we have (RFC 9209's recommendation for the error type).
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::ConnectTimeout | Self::Timeout => 504,
            Self::Status(status) => status,
            Self::Throttled => 429,
            _ => 502,
        }
    }

    /// True when the upstream cannot have seen the request, so that even a non-idempotent one may be sent again.
    #[must_use]
    pub const fn never_sent(self) -> bool {
        matches!(
            self,
            Self::Dns | Self::ConnectRefused | Self::ConnectTimeout | Self::TlsCertificate | Self::Tls | Self::Upgrade
        )
    }

    /// Its name in metrics and the journal.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::TlsCertificate => "tls_certificate",
            Self::Tls => "tls",
            Self::ConnectionLost => "connection_lost",
            Self::Timeout => "timeout",
            Self::Incomplete => "incomplete",
            Self::Protocol => "protocol",
            Self::Upgrade => "upgrade",
            Self::Status(_) => "status",
            Self::Throttled => "throttled",
        }
    }

    /// Every kind by name, for metrics that must show zeros too.
    pub const NAMES: [&'static str; 12] = [
        "dns",
        "connect_refused",
        "connect_timeout",
        "tls_certificate",
        "tls",
        "connection_lost",
        "timeout",
        "incomplete",
        "protocol",
        "upgrade",
        "status",
        "throttled",
    ];
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => f.write_str("the name does not resolve"),
            Self::ConnectRefused => f.write_str("connection refused"),
            Self::ConnectTimeout => f.write_str("no connection in time"),
            Self::TlsCertificate => f.write_str("its certificate is not trusted"),
            Self::Tls => f.write_str("no TLS connection could be made"),
            Self::ConnectionLost => f.write_str("connection lost"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Incomplete => f.write_str("the answer was cut"),
            Self::Protocol => f.write_str("the answer is not HTTP"),
            Self::Upgrade => f.write_str("it does not offer WebSocket over HTTP/2"),
            Self::Status(status) => write!(f, "answered {status}"),
            Self::Throttled => f.write_str("answered 429"),
        }
    }
}

/// Judges a status line as the guards see it.
#[must_use]
pub const fn judge_status(status: u16) -> Outcome {
    match status {
        429 => Outcome::Failure(Failure::Throttled),
        // 501 and 505 tell about the request, not about the upstream's health.
        501 | 505 => Outcome::Success,
        500..=599 => Outcome::Failure(Failure::Status(status)),
        _ => Outcome::Success,
    }
}

/// True for methods that RFC 9110 section 9.2.2 calls idempotent: sending one twice does what sending it once does.
#[must_use]
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "TRACE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_tell_whose_fault_it_was() {
        assert_eq!(judge_status(200), Outcome::Success);
        assert_eq!(judge_status(404), Outcome::Success);
        assert_eq!(judge_status(501), Outcome::Success);
        assert_eq!(judge_status(503), Outcome::Failure(Failure::Status(503)));
        assert_eq!(judge_status(429), Outcome::Failure(Failure::Throttled));
        assert!(judge_status(500).is_failure());
        assert!(!Outcome::Ignored.is_failure());
    }

    #[test]
    fn every_failure_has_a_name_a_status_and_words() {
        let all = [
            Failure::Dns,
            Failure::ConnectRefused,
            Failure::ConnectTimeout,
            Failure::TlsCertificate,
            Failure::Tls,
            Failure::ConnectionLost,
            Failure::Timeout,
            Failure::Incomplete,
            Failure::Protocol,
            Failure::Upgrade,
            Failure::Status(503),
            Failure::Throttled,
        ];
        let names: Vec<&str> = all.iter().map(|failure| failure.name()).collect();
        assert_eq!(names, Failure::NAMES);
        for failure in all {
            assert!((400..600).contains(&failure.status()), "{failure}");
            assert!(!failure.proxy_status().is_empty() && !failure.to_string().is_empty());
        }
        assert_eq!(Failure::Timeout.status(), 504);
        assert_eq!(Failure::Incomplete.status(), 502);
        for failure in [Failure::Throttled, Failure::Upgrade] {
            assert_eq!(Outcome::Failure(failure).of_health(), Outcome::Ignored, "{failure}");
        }
        assert!(Failure::ConnectRefused.never_sent() && !Failure::ConnectionLost.never_sent());
    }

    #[test]
    fn idempotent_methods_are_those_of_the_rfc() {
        assert!(is_idempotent("GET") && is_idempotent("DELETE") && is_idempotent("PUT"));
        assert!(!is_idempotent("POST") && !is_idempotent("PATCH") && !is_idempotent("get"));
    }
}
