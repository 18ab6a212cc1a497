//! The last good answers, for when no new one is to be had (RFC 5861's idea: an old answer, marked, beats none).
//!
//! Only what may be shown to anybody is kept: whole answers of status 200 to GET, without `Set-Cookie`, not `private`
//! or `no-store`, to requests without `Authorization` or `Cookie`. Bounded in entries and bytes; the oldest go first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, AUTHORIZATION, CACHE_CONTROL, COOKIE, HeaderValue, SET_COOKIE, VARY};
use http::{StatusCode, Uri};
use seawall_core::time::Mono;

use crate::http::body::ResBody;
use crate::http::fields::Fields;
use crate::http::headers::owned;
use crate::http::message::Response;

const ENTRIES_MAX: usize = 4_096;
const BYTES_MAX: usize = 64 << 20;

/// The cache, shared by all workers.
#[derive(Default)]
pub(crate) struct Stale(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    order: VecDeque<(Key, u64)>,
    bytes: usize,
    next: u64,
}

/// Which request: route, host, path and query, and the headers that commonly change an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(String);

struct Entry {
    number: u64,
    at: Mono,
    headers: Fields,
    body: Bytes,
}

impl Key {
    /// `None` if answers to this request must not be kept or shown: they may be for one client's eyes. `is_personal` if
    /// the upstream is told whose certificate it was.
    pub(crate) fn new((route, upstream): (&str, &str), uri: &Uri, headers: &Fields, is_personal: bool) -> Option<Self> {
        if is_personal || headers.has(AUTHORIZATION) || headers.has(COOKIE) {
            return None;
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let varying = ["host", "accept", "accept-encoding", "accept-language"].map(text).join("\n");
        Some(Self(format!("{route}\n{upstream}\n{uri}\n{varying}")))
    }
}

impl Stale {
    /// Keeps an answer if it may be.
    pub(crate) fn keep(&self, key: &Key, now: Mono, status: StatusCode, headers: &Fields, body: &Bytes) {
        if status != StatusCode::OK || !may_be_kept(headers) {
            return;
        }
        let size = body.len() + key.0.len() + 512;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.next += 1;
        let number = kept.next;
        let entry = Entry { number, at: now, headers: owned(headers), body: body.clone() };
        if let Some(old) = kept.entries.insert(key.clone(), entry) {
            kept.bytes -= old.size(key);
        }
        kept.bytes += size;
        kept.order.push_back((key.clone(), number));
        kept.trim();
    }

    /// The last good answer, if it is not older than that.
    pub(crate) fn get(&self, key: &Key, now: Mono, for_at_most: Duration) -> Option<Response<ResBody>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = kept.entries.get(key)?;
        let age = now.since(entry.at);
        if age > for_at_most {
            return None;
        }
        let mut response = Response::new(StatusCode::OK, ResBody::whole(entry.body.clone()));
        response.head.headers = entry.headers.clone();
        let upstreams_age: u64 =
            entry.headers.get(AGE).and_then(|age| age.to_str().ok()?.parse().ok()).unwrap_or_default();
        response.headers_mut().insert(AGE, HeaderValue::from(upstreams_age + age.as_secs()));
        Some(response)
    }
}

impl Entry {
    fn size(&self, key: &Key) -> usize {
        self.body.len() + key.0.len() + 512
    }
}

impl Kept {
    fn trim(&mut self) {
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX || self.order.len() > 4 * ENTRIES_MAX {
            let Some((key, number)) = self.order.pop_front() else { return };
            // A newer answer under the same key keeps its own place in the order.
            if self.entries.get(&key).is_some_and(|entry| entry.number == number)
                && let Some(entry) = self.entries.remove(&key)
            {
                self.bytes -= entry.size(&key);
            }
        }
    }
}

fn may_be_kept(headers: &Fields) -> bool {
    let forbids = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|part| matches!(part.trim().to_ascii_lowercase().as_str(), "no-store" | "private"))
        })
    };
    let varies_freely = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|name| {
                !matches!(
                    name.trim().to_ascii_lowercase().as_str(),
                    "host" | "accept" | "accept-encoding" | "accept-language" | "origin"
                )
            })
        })
    };
    !headers.has(SET_COOKIE)
        && !headers.get_all(CACHE_CONTROL).any(forbids)
        && !headers.get_all(VARY).any(varies_freely)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> Fields {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    fn key(path: &str) -> Key {
        Key::new(("r", "u"), &path.parse().unwrap(), &Fields::new(), false).unwrap()
    }

    fn keeps(lines: &[(&'static str, &'static str)], status: StatusCode) -> bool {
        let stale = Stale::default();
        stale.keep(&key("/"), Mono::ZERO, status, &headers(lines), &Bytes::from_static(b"x"));
        stale.get(&key("/"), Mono::ZERO, Duration::ZERO).is_some()
    }

    #[test]
    fn only_what_may_be_shown_to_anybody() {
        assert!(keeps(&[("vary", "Accept, Origin")], StatusCode::OK));
        assert!(!keeps(&[], StatusCode::CREATED));
        assert!(!keeps(&[("cache-control", "max-age=5, Private")], StatusCode::OK));
        assert!(!keeps(&[("set-cookie", "a=b")], StatusCode::OK));
        assert!(!keeps(&[("vary", "x-tenant")], StatusCode::OK));
        assert!(!keeps(&[("vary", "*")], StatusCode::OK));
        let uri = "/".parse().unwrap();
        assert_eq!(Key::new(("r", "u"), &uri, &headers(&[("authorization", "x")]), false), None);
        assert_eq!(Key::new(("r", "u"), &uri, &headers(&[("cookie", "x")]), false), None);
        assert_eq!(Key::new(("r", "u"), &uri, &Fields::new(), true), None);
        assert_ne!(Key::new(("r", "u"), &uri, &headers(&[("accept", "a/b")]), false), Some(key("/")));
    }

    #[test]
    fn age_adds_up_and_ends() {
        let stale = Stale::default();
        let lines = headers(&[("age", "30")]);
        stale.keep(&key("/a"), Mono::ZERO, StatusCode::OK, &lines, &Bytes::from_static(b"old"));
        let later = Mono::from_millis(10_000);
        let answer = stale.get(&key("/a"), later, Duration::from_secs(10)).unwrap();
        assert_eq!(answer.headers().get("age").unwrap(), "40");
        assert!(stale.get(&key("/a"), later, Duration::from_secs(9)).is_none());
        assert!(stale.get(&key("/b"), later, Duration::from_secs(99)).is_none());
    }

    #[test]
    fn bounded_and_the_oldest_go_first() {
        let stale = Stale::default();
        let body = Bytes::from(vec![0; 1 << 20]);
        for n in 0..100 {
            stale.keep(&key(&format!("/{n}")), Mono::ZERO, StatusCode::OK, &Fields::new(), &body);
            stale.keep(&key("/often"), Mono::ZERO, StatusCode::OK, &Fields::new(), &body);
        }
        let has = |path| stale.get(&key(path), Mono::ZERO, Duration::ZERO).is_some();
        assert!(has("/often") && has("/99") && !has("/0"));
        assert!(stale.0.lock().unwrap().bytes <= BYTES_MAX);
    }
}
