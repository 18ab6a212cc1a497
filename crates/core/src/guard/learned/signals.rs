//! What an answer's headers say about limits, in every spelling in use. Pure, and deaf to what it does not understand:
//! a header that makes no sense is as if it were not there.
//!
//! - `Retry-After`: seconds or an HTTP date (RFC 9110 section 10.2.3).
//! - `RateLimit-Policy: "name";q=100;w=60` and `RateLimit: "name";r=50;t=30` (draft-ietf-httpapi-ratelimit-headers-08
//!   and later); `RateLimit: limit=100, remaining=50, reset=30` and `RateLimit-Policy: 100;w=60` (-07).
//! - `RateLimit-Limit`, `-Remaining`, `-Reset` (-06 and before), with and without `X-`, also as `X-Rate-Limit-...`. A
//!   reset may be seconds from now, a Unix time, or that in milliseconds: its size tells.
//!
//! Of several policies the tightest counts. Policies that count something else than requests (`qu`) are left out.

use std::time::Duration;

use crate::time::Wall;

/// What the headers said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// The upstream asks not to come back before.
    pub retry_after: Option<Duration>,
    /// Calls per second that the tightest policy allows.
    pub per_second: Option<f64>,
    /// Calls left, and until when they must last.
    pub left: Option<Left>,
}

/// What is left of a quota.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Left {
    /// Calls.
    pub calls: u64,
    /// Time until there are new ones.
    pub resets_in: Duration,
}

/// No wait and no window is longer: 31 days.
pub(super) const TIME_MAX: Duration = Duration::from_secs(31 * 86_400);
const TIME_MAX_S: f64 = TIME_MAX.as_secs() as f64;

impl Signals {
    /// Reads an answer's headers. Names in any case; `wall` is needed for dates.
    #[must_use]
    pub fn read<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>, wall: Wall) -> Self {
        let (mut signals, mut remaining, mut reset) = (Self::default(), None, None);
        for (name, value) in headers {
            let name = name.trim();
            if is(name, "retry-after") {
                signals.retry_after = retry_after(value, wall);
                continue;
            }
            let name = strip(name, "x-").unwrap_or(name);
            let Some(rest) = strip(name, "ratelimit").or_else(|| strip(name, "rate-limit")) else { continue };
            if is(rest, "-limit") || is(rest, "-policy") {
                signals.policies(value);
            } else if is(rest, "-remaining") {
                remaining = number(value);
            } else if is(rest, "-reset") || is(rest, "-reset-after") {
                reset = number(value).and_then(|value| resets_in(value, wall));
            } else if rest.is_empty() {
                signals.policies(value);
                for member in value.split(',') {
                    if let Some(calls) = parameter(member, "remaining") {
                        remaining = Some(calls);
                    }
                    if let Some(seconds) = parameter(member, "reset") {
                        reset = resets_in(seconds, wall);
                    }
                    if let (Some(calls), Some(seconds)) = (parameter(member, "r"), parameter(member, "t")) {
                        signals.tighten(calls, seconds_of(seconds));
                    }
                }
            }
        }
        if let (Some(calls), Some(reset)) = (remaining, reset) {
            signals.tighten(calls, Some(reset));
        }
        signals
    }

    /// `100, 100;w=60` or `"burst";q=100;w=60`.
    fn policies(&mut self, value: &str) {
        for member in
            value.split(',').filter(|member| parameter_text(member, "qu").is_none_or(|unit| unit == "requests"))
        {
            let quota = parameter(member, "q").or_else(|| member.split(';').next().and_then(number));
            let window = parameter(member, "w").or_else(|| parameter(member, "window"));
            if let (Some(quota), Some(window)) = (quota, window)
                && quota > 0.0
                && window > 0.0
                && window <= TIME_MAX_S
            {
                let per_second = quota / window;
                self.per_second = Some(self.per_second.map_or(per_second, |other| other.min(per_second)));
            }
        }
    }

    fn tighten(&mut self, calls: f64, resets_in: Option<Duration>) {
        let Some(resets_in) = resets_in else { return };
        let new = Left { calls: calls as u64, resets_in };
        let pace = |left: Left| left.calls as f64 / left.resets_in.as_secs_f64().max(1e-3);
        if self.left.is_none_or(|old| pace(new) < pace(old)) {
            self.left = Some(new);
        }
    }
}

fn is(name: &str, what: &str) -> bool {
    name.eq_ignore_ascii_case(what)
}

fn strip<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = name.split_at_checked(prefix.len())?;
    is(head, prefix).then_some(rest)
}

/// A number of at least nothing.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    // `parse` alone would take `inf` and `nan` too.
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    plain.then(|| text.parse().ok()).flatten().filter(|number: &f64| number.is_finite())
}

/// The value of `;key=value` in a member of a list, or of the member itself.
fn parameter_text<'a>(member: &'a str, key: &str) -> Option<&'a str> {
    member.split(';').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        is(name.trim(), key).then(|| value.trim().trim_matches('"'))
    })
}

fn parameter(member: &str, key: &str) -> Option<f64> {
    parameter_text(member, key).and_then(number)
}

fn seconds_of(seconds: f64) -> Option<Duration> {
    (0.0..=TIME_MAX_S).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// Seconds from now, a Unix time in seconds, or in milliseconds. A moment that has passed is now.
fn resets_in(value: f64, wall: Wall) -> Option<Duration> {
    let now_s = wall.as_millis() as f64 / 1e3;
    match value {
        ..1e9 => seconds_of(value),
        ..1e11 => seconds_of((value - now_s).max(0.0)),
        _ => seconds_of((value / 1e3 - now_s).max(0.0)),
    }
}

fn retry_after(value: &str, wall: Wall) -> Option<Duration> {
    match number(value) {
        Some(seconds) => seconds_of(seconds),
        None => http_date(value.trim()).and_then(|at| seconds_of(at.since(wall).as_secs_f64())),
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that may be sent (RFC 9110 section 5.6.7).
fn http_date(text: &str) -> Option<Wall> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_once(", ")?.1.split(' ');
    let digits =
        |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u64>().ok()).flatten();
    let day = digits(parts.next()?).filter(|day| (1..=31).contains(day))?;
    let month = parts.next().and_then(|part| MONTHS.iter().position(|month| *month == part))? as u64 + 1;
    let year = digits(parts.next()?).filter(|year| (1970..=9999).contains(year))?;
    let mut clock = parts.next()?.split(':').map(digits);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if parts.next() != Some("GMT") || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(Wall::from_millis((days * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-23T14:03:47.120Z.
    const NOW: Wall = Wall::from_millis(1_795_442_627_120);

    fn read(headers: &[(&str, &str)]) -> String {
        let signals = Signals::read(headers.iter().copied(), NOW);
        let after = signals.retry_after.map(|after| format!("after {after:?}"));
        let rate = signals.per_second.map(|rate| format!("{rate}/s"));
        let left = signals.left.map(|left| format!("{} in {:?}", left.calls, left.resets_in));
        [after, rate, left].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn every_spelling_in_use() {
        for (headers, told) in [
            (&[("Retry-After", "120")][..], "after 120s"),
            (&[("retry-after", "Mon, 23 Nov 2026 14:04:17 GMT")], "after 29.88s"),
            (&[("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT")], "after 0ns"),
            // The drafts, newest first.
            (&[("RateLimit-Policy", r#""burst";q=100;w=60,"daily";q=1000;w=86400"#)], "0.011574074074074073/s"),
            (&[("RateLimit-Policy", r#""b";q=65535;qu="content-bytes";w=10, "r";q=60;w=60"#)], "1/s"),
            (&[("RateLimit", r#""default";r=50;t=30"#)], "50 in 30s"),
            (&[("RateLimit", r#""a";r=50;t=30, "b";r=0;t=5"#)], "0 in 5s"),
            (&[("RateLimit", r#""a";r=10;t=1, "b";r=60;t=60"#)], "60 in 60s"),
            (
                &[("RateLimit", "limit=100, remaining=50, reset=30"), ("RateLimit-Policy", "100;w=60")],
                "1.6666666666666667/s, 50 in 30s",
            ),
            (
                &[("RateLimit-Limit", "10, 10;w=1, 50;w=60"), ("RateLimit-Remaining", "9"), ("RateLimit-Reset", "1")],
                "0.8333333333333334/s, 9 in 1s",
            ),
            // GitHub, Twitter, Discord.
            (
                &[
                    ("x-ratelimit-limit", "5000"),
                    ("x-ratelimit-remaining", "4987"),
                    ("x-ratelimit-reset", "1795443000"),
                ],
                "4987 in 372.880000114s",
            ),
            (&[("x-rate-limit-remaining", "3"), ("x-rate-limit-reset", "1795442637")], "3 in 9.880000114s"),
            (&[("X-RateLimit-Remaining", "1"), ("X-RateLimit-Reset-After", "2.5")], "1 in 2.5s"),
            (&[("X-RateLimit-Remaining", "1"), ("X-RateLimit-Reset", "1795442637120")], "1 in 10s"),
        ] {
            let close = |a: &str, b: &str| a == b || a.split('.').next() == b.split('.').next();
            assert!(close(&read(headers), told), "{headers:?}: {} is not {told}", read(headers));
        }
    }

    #[test]
    fn nonsense_is_not_there() {
        for header in [
            ("Retry-After", "soon"),
            ("Retry-After", "-1"),
            ("Retry-After", "inf"),
            ("Retry-After", "99999999999999"),
            ("Retry-After", "Mon, 32 Nov 2026 14:04:17 GMT"),
            ("Retry-After", "Mon, 23 Nov 2026 24:04:17 GMT"),
            ("Retry-After", "Mon, 23 Nov 2026 14:60:17 GMT"),
            ("Retry-After", "Mon, 23 Nov 2026 14:04:61 GMT"),
            ("Retry-After", "Mon, 23 Nov 2026 14:04:17 CET"),
            ("RateLimit-Policy", "q=1"),
            ("RateLimit-Policy", "100;w=0"),
            ("RateLimit-Limit", "100"),
            ("RateLimit-Remaining", "5"),
            ("RateLimit", ";;;,=,"),
            ("X-RateLimit", ""),
            ("RateLimits", "1;w=1"),
        ] {
            assert_eq!(read(&[header]), "", "{header:?}");
        }
    }

    #[test]
    fn dates_agree_with_how_they_are_printed() {
        for (text, printed) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", "1994-11-06T08:49:37.000Z"),
            ("Tue, 29 Feb 2000 23:59:59 GMT", "2000-02-29T23:59:59.000Z"),
            ("Sat, 31 Dec 2016 23:59:60 GMT", "2017-01-01T00:00:00.000Z"),
            ("Thu, 01 Jan 1970 00:00:00 GMT", "1970-01-01T00:00:00.000Z"),
            ("Fri, 31 Dec 9999 00:00:00 GMT", "9999-12-31T00:00:00.000Z"),
        ] {
            assert_eq!(http_date(text).unwrap().rfc3339(), printed);
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(name in "(x-)?rate-?limit(-[a-z]{0,9})?|retry-after", value in "[a-z0-9;=\", .:éGMT]{0,40}", now: u64) {
            let signals = Signals::read([(name.as_str(), value.as_str()), ("ratelimit-reset", "5")], Wall::from_millis(now));
            prop_assert!(signals.per_second.is_none_or(|rate| rate.is_finite() && rate >= 0.0));
        }
    }
}
