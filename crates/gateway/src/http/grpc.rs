//! gRPC over HTTP/2: what its statuses, deadlines and refusals mean to the guards, and our own answers in its words.
//!
//! A gRPC call fails with HTTP status 200: what became of it stands in `grpc-status`, in the head if that is all there
//! is, else behind the last byte. An answer that ends without it has been cut. Sources: the gRPC project's "gRPC over
//! HTTP2", "HTTP to gRPC Status Code Mapping", and proposal A6 (retries). Not here: the frames (`h2.rs`), when a call
//! is tried again (`core::guard::retry`).

use std::time::Duration;

use http::StatusCode;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use seawall_core::guard::retry::Pushback;
use seawall_core::outcome::{Failure, Outcome};

use super::answer::Ours;
use super::fields::{Fields, Named};
use super::message::Response;

/// How long the caller waits: digits and a unit.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// How many tries there were before this one.
pub(crate) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// True for `application/grpc` with any coding of messages. `grpc-web` is something else.
pub(crate) fn is_grpc(headers: &impl Named) -> bool {
    let Some(media) = headers.value(&CONTENT_TYPE).map(HeaderValue::as_bytes) else { return false };
    let Some((name, rest)) = media.split_at_checked(b"application/grpc".len()) else { return false };
    name.eq_ignore_ascii_case(b"application/grpc") && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// The caller's patience: at most eight digits, and a unit.
pub(crate) fn timeout(headers: &Fields) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// What is left of it, as the next one is told.
pub(crate) fn timeout_text(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let text = match (left.as_micros(), left.as_millis()) {
        (micros, _) if micros <= MOST => format!("{micros}u"),
        (_, millis) if millis <= MOST => format!("{millis}m"),
        _ => format!("{}S", u128::from(left.as_secs()).min(MOST)),
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0n"))
}

/// What a call came to by the status in a head or in trailers; `None` if there is none.
pub(crate) fn outcome(fields: &impl Named) -> Option<Outcome> {
    let status = fields.value(&GRPC_STATUS)?;
    Some(match status.to_str().ok().and_then(|text| text.parse::<u16>().ok()) {
        // RESOURCE_EXHAUSTED
        Some(8) => Outcome::Failure(Failure::Throttled),
        // DEADLINE_EXCEEDED
        Some(4) => Outcome::Failure(Failure::Status(504)),
        // UNAVAILABLE
        Some(14) => Outcome::Failure(Failure::Status(503)),
        // UNKNOWN, INTERNAL, DATA_LOSS
        Some(2 | 13 | 15) => Outcome::Failure(Failure::Status(500)),
        // OK, and what is about the call and not about who was called.
        Some(0..=16) => Outcome::Success,
        _ => Outcome::Failure(Failure::Protocol),
    })
}

/// The status in a head or in trailers, as it is written.
pub(crate) fn status(fields: &impl Named) -> Option<&str> {
    fields.value(&GRPC_STATUS).map(|status| status.to_str().unwrap_or("?"))
}

/// A status as its project calls it.
pub(crate) fn status_words(status: &str) -> String {
    let known = status.parse::<usize>().ok().and_then(|status| STATUSES.get(status));
    known.map_or_else(|| format!("`grpc-status: {status}`"), |name| (*name).to_owned())
}

/// What the upstream says about being asked again.
pub(crate) fn pushback(fields: &Fields) -> Option<Pushback> {
    Some(Pushback::from_grpc(fields.get(PUSHBACK)?.to_str().unwrap_or_default()))
}

/// Says one of our own answers in gRPC's words: all of it in the head, with HTTP status 200. True if it was one.
pub(crate) fn say<B>(answer: &mut Response<B>) -> bool {
    let Some(ours) = answer.head.ours.take() else { return false };
    let Ours { detail, retry_in } = *ours;
    let code = code_of(answer.status().as_u16());
    answer.head.status = StatusCode::OK;
    let headers = answer.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.remove(CONNECTION);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(&detail)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    if let Some(wait) = retry_in {
        headers.insert(PUSHBACK, HeaderValue::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)));
    }
    true
}

/// An answer of one word: the call came to this.
pub(crate) fn failed(code: u8) -> Response<()> {
    let mut answer = Response::new(StatusCode::OK, ());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer.headers_mut().insert(GRPC_STATUS, HeaderValue::from(u16::from(code)));
    answer
}

/// As the mapping has it, but for the time being over: that is the call's own deadline.
fn code_of(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        504 => 4,
        429 | 502 | 503 => 14,
        _ => 2,
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded += &format!("%{byte:02X}"),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&'static str, &str)]) -> Fields {
        let line = |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().unwrap());
        lines.iter().map(line).collect()
    }

    #[test]
    fn only_grpc_is_grpc() {
        let is = |media: &str| is_grpc(&fields(&[("content-type", media)]));
        assert!(is("application/grpc") && is("Application/gRPC+proto") && is("application/grpc;x=y"));
        assert!(!is("application/grpc-web") && !is("application/json") && !is("grpc") && !is_grpc(&Fields::new()));
    }

    #[test]
    fn patience_has_eight_digits_and_a_unit() {
        let read = |text: &str| timeout(&fields(&[("grpc-timeout", text)]));
        for (text, millis) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3_000), ("99999999m", 99_999_999)] {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!((read("5u"), read("7n")), (Some(Duration::from_micros(5)), Some(Duration::from_nanos(7))));
        for text in ["", "1", "S", "123456789S", "-1S", "1.5S", "1s", "1 S", "١S"] {
            assert_eq!(read(text), None, "{text}");
        }
        for (left, text) in [
            (Duration::from_millis(1_500), "1500000u"),
            (Duration::from_secs(1_000), "1000000m"),
            (Duration::from_secs(1_000_000), "1000000S"),
            (Duration::from_secs(u64::MAX), "99999999S"),
            (Duration::ZERO, "0u"),
        ] {
            assert_eq!(timeout_text(left), text);
        }
    }

    #[test]
    fn statuses_tell_whose_fault_it_was() {
        let judged = |code: &str| outcome(&fields(&[("grpc-status", code)])).unwrap();
        assert!(
            ["0", "1", "3", "5", "6", "7", "9", "10", "11", "12", "16"]
                .into_iter()
                .all(|code| judged(code) == Outcome::Success)
        );
        for (code, failure) in [
            ("2", Failure::Status(500)),
            ("4", Failure::Status(504)),
            ("8", Failure::Throttled),
            ("13", Failure::Status(500)),
            ("14", Failure::Status(503)),
            ("15", Failure::Status(500)),
            ("17", Failure::Protocol),
            ("well", Failure::Protocol),
        ] {
            assert_eq!(judged(code), Outcome::Failure(failure), "{code}");
        }
        assert_eq!(outcome(&Fields::new()), None);
        let asked = |text: &str| pushback(&fields(&[("grpc-retry-pushback-ms", text)]));
        assert_eq!(asked("250"), Some(Pushback::After(Duration::from_millis(250))));
        assert_eq!((asked("-1"), pushback(&Fields::new())), (Some(Pushback::Never), None));
    }

    #[test]
    fn our_answers_are_said_in_its_words() {
        let mut answer = super::super::answer::Answer::new(503, "e", "r", "100 % \"full\" é")
            .retry_in(Duration::from_millis(1_200))
            .build();
        assert!(say(&mut answer));
        let header = |name: &str| answer.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!((answer.status().as_u16(), header("grpc-status")), (200, "14"));
        assert_eq!(header("grpc-message"), "100 %25 \"full\" %C3%A9");
        assert_eq!(header("grpc-retry-pushback-ms"), "1200");
        assert!(header("proxy-status").contains("error=e") && !answer.headers().has("content-length"));
        assert!(!say(&mut Response::new(StatusCode::OK, ())), "an upstream's answer stays what it is");
        let code = |status: u16| code_of(status);
        assert_eq!([400, 401, 403, 404, 429, 502, 504, 507].map(code), [13, 16, 7, 12, 14, 14, 4, 2]);
    }
}
