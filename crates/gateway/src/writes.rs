//! Writes that must not be lost: one idempotency key, one effect, and the spool when the upstream cannot take them.
//!
//! A key is claimed before anything is sent. The same key with another payload is a mistake (422), the same request
//! while the first is still running is told so (409), and once done it gets the answer the first one got. A first
//! request whose client has gone while its record was being made durable is nobody's rival: the client has come back,
//! and waits for that record's answer. Where a client sends no key we make one, so that the upstream sees the same key
//! on every try.
//! Source: draft-ietf-httpapi-idempotency-key-header-07.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use seawall_core::prng::Prng;
use seawall_core::time::Mono;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::http::fields::Fields;
use crate::http::headers::{IDEMPOTENCY_KEY, owned_value};
use crate::records::{Fate, Records};

/// Answers remembered at most; each holds at most [`ANSWER_BYTES_MAX`] of body.
const DONE_MAX: usize = 16_384;
pub(crate) const ANSWER_BYTES_MAX: u64 = 4 << 10;
/// An answer is replayed for this long.
const DONE_FOR: Duration = Duration::from_secs(24 * 3600);
const KEY_BYTES_MAX: usize = 255;
/// How long a second request waits for the first before it is told 409.
const RIVAL_PATIENCE: Duration = Duration::from_millis(200);

/// A key as its owner means it: apart from other routes' and other tenants' keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OwnedKey(pub(crate) String);

/// A write's identity.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// As the upstream sees it.
    pub(crate) key: HeaderValue,
    pub(crate) owned: OwnedKey,
    pub(crate) fingerprint: [u8; 32],
}

/// A key nobody can use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadKey;

impl Identity {
    /// Reads the client's key, quoted or not, or makes one. Keys of other credentials, or of another client's
    /// certificate, are other keys.
    pub(crate) fn new(
        route: &str,
        method: &str,
        target: &str,
        (headers, certificate): (&Fields, Option<&HeaderValue>),
        body_digest: &[u8; 32],
        prng: &Mutex<Prng>,
    ) -> Result<Self, BadKey> {
        let key = match headers.get(IDEMPOTENCY_KEY) {
            Some(key) => owned_value(key),
            None => made_key(prng),
        };
        let text = key.to_str().map_err(|_| BadKey)?.trim();
        let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        if bare.is_empty() || bare.len() > KEY_BYTES_MAX || headers.get_all(IDEMPOTENCY_KEY).count() > 1 {
            return Err(BadKey);
        }
        let hash = |value: Option<&HeaderValue>| value.map_or_else(String::new, |value| short_hash(value.as_bytes()));
        let certificate = certificate.map_or_else(String::new, |certificate| format!("+{}", hash(Some(certificate))));
        let tenant = hash(headers.get(AUTHORIZATION)) + &certificate;
        let owned = OwnedKey(format!("{route}\n{method}\n{tenant}\n{bare}"));
        let mut hash = Sha256::new();
        for part in [method.as_bytes(), target.as_bytes(), body_digest] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(Self { key, owned, fingerprint: hash.finalize().into() })
    }
}

fn made_key(prng: &Mutex<Prng>) -> HeaderValue {
    let mut prng = prng.lock().unwrap_or_else(PoisonError::into_inner);
    let text = format!("\"seawall-{:016x}{:016x}\"", prng.next_u64(), prng.next_u64());
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("\"seawall\""))
}

fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What is remembered of an answer.
#[derive(Clone, Debug)]
pub(crate) struct DoneAnswer {
    pub(crate) status: StatusCode,
    pub(crate) headers: Fields,
    pub(crate) body: Bytes,
}

/// Keys in use, shared by all workers.
#[derive(Default)]
pub(crate) struct Claims(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    keys: HashMap<OwnedKey, Claim>,
    done: VecDeque<(OwnedKey, Mono)>,
}

enum Claim {
    Running { fingerprint: [u8; 32], run: Arc<Run> },
    Done { fingerprint: [u8; 32], at: Mono, answer: Arc<DoneAnswer> },
}

/// A request that holds a key.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// True once its client has gone; what is left of it ends by itself.
    orphaned: AtomicBool,
    changed: Notify,
}

impl Run {
    fn tell(&self) {
        self.changed.notify_waiters();
    }
}

/// Marks a run as orphaned if it is dropped before its answer was given.
pub(crate) struct Attending(Arc<Run>);

impl Drop for Attending {
    fn drop(&mut self) {
        self.0.orphaned.store(true, Relaxed);
        self.0.tell();
    }
}

/// What a claim came to.
pub(crate) enum Claimed {
    /// Ours: go on, and finish it.
    New(Claiming),
    /// The same request is on its way.
    Running(Arc<Run>),
    /// The key belongs to another request.
    Conflict,
    /// The same request has been answered.
    Done(Arc<DoneAnswer>),
}

/// A key held while its request runs. Dropped without an answer, the key is free again: nobody was promised anything.
pub(crate) struct Claiming {
    claims: Arc<Claims>,
    run: Arc<Run>,
    identity: OwnedKey,
    fingerprint: [u8; 32],
    finished: bool,
}

impl Claims {
    /// Claims a key. A rival gets a moment to finish; one without a client gets until `until`.
    pub(crate) async fn claim_by(self: &Arc<Self>, identity: &Identity, clock: &Clock, until: Mono) -> Claimed {
        let rival_until = until.min(clock.now() + RIVAL_PATIENCE);
        loop {
            let run = match self.claim(identity, clock.now()) {
                Claimed::Running(run) => run,
                settled => return settled,
            };
            let mut changed = pin!(run.changed.notified());
            // Registered before the second look: a change in between is not missed.
            changed.as_mut().enable();
            if !self.is_running(identity) {
                continue;
            }
            let patience = if run.orphaned.load(Relaxed) { until } else { rival_until };
            if tokio::time::timeout_at(clock.instant(patience), changed).await.is_err() {
                return Claimed::Running(Arc::clone(&run));
            }
        }
    }

    fn is_running(&self, identity: &Identity) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(kept.keys.get(&identity.owned), Some(Claim::Running { .. }))
    }

    fn claim(self: &Arc<Self>, identity: &Identity, now: Mono) -> Claimed {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget(now);
        match kept.keys.get(&identity.owned) {
            Some(Claim::Running { fingerprint, .. } | Claim::Done { fingerprint, .. })
                if *fingerprint != identity.fingerprint =>
            {
                Claimed::Conflict
            }
            Some(Claim::Running { run, .. }) => Claimed::Running(Arc::clone(run)),
            Some(Claim::Done { answer, .. }) => Claimed::Done(Arc::clone(answer)),
            None => {
                let fingerprint = identity.fingerprint;
                let run = Arc::new(Run::default());
                kept.keys.insert(identity.owned.clone(), Claim::Running { fingerprint, run: Arc::clone(&run) });
                Claimed::New(Claiming {
                    claims: Arc::clone(self),
                    run,
                    identity: identity.owned.clone(),
                    fingerprint,
                    finished: false,
                })
            }
        }
    }
}

impl Kept {
    fn forget(&mut self, now: Mono) {
        while let Some((key, at)) = self.done.front() {
            if self.done.len() <= DONE_MAX && now.since(*at) < DONE_FOR {
                return;
            }
            if matches!(self.keys.get(key), Some(Claim::Done { at: kept_at, .. }) if kept_at == at) {
                self.keys.remove(key);
            }
            self.done.pop_front();
        }
    }
}

impl Claiming {
    /// To be held by whoever waits for the answer on behalf of the client.
    pub(crate) fn attend(&self) -> Attending {
        Attending(Arc::clone(&self.run))
    }

    /// The request was answered for good: who asks again gets the same.
    pub(crate) fn finish(mut self, now: Mono, answer: DoneAnswer) {
        if answer.body.len() as u64 > ANSWER_BYTES_MAX {
            return;
        }
        self.finished = true;
        let mut kept = self.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
        let claim = Claim::Done { fingerprint: self.fingerprint, at: now, answer: Arc::new(answer) };
        kept.keys.insert(self.identity.clone(), claim);
        kept.done.push_back((self.identity.clone(), now));
        drop(kept);
        self.run.tell();
    }
}

impl Drop for Claiming {
    fn drop(&mut self) {
        if !self.finished {
            let mut kept = self.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.keys.remove(&self.identity);
            drop(kept);
            self.run.tell();
        }
    }
}

/// A stamped record whose fate is not known yet. Dropped without one (its client went away half way), it may or may
/// not have been executed, and the account says so.
pub(crate) struct Stamped {
    records: Arc<dyn Records>,
    pub(crate) stamp: String,
    fate: Fate,
}

impl Stamped {
    /// `None` while the ledger cannot number records.
    pub(crate) fn new(records: &Arc<dyn Records>, stream: &str, key: &str, digest: [u8; 32]) -> Option<Self> {
        let stamp = records.stamp(stream, key, digest)?;
        Some(Self { records: Arc::clone(records), stamp, fate: Fate::Indeterminate })
    }

    /// It came to this.
    pub(crate) fn settle(mut self, fate: Fate) {
        self.fate = fate;
    }
}

impl Drop for Stamped {
    fn drop(&mut self) {
        self.records.settle(&self.stamp, self.fate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(key: Option<&'static str>, body: &[u8]) -> Result<Identity, BadKey> {
        of_client(key, body, None)
    }

    fn of_client(key: Option<&'static str>, body: &[u8], certificate: Option<&str>) -> Result<Identity, BadKey> {
        let certificate = certificate.map(|text| HeaderValue::from_str(text).unwrap());
        let mut headers = Fields::new();
        if let Some(key) = key {
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static(key));
        }
        let prng = Mutex::new(Prng::new(1));
        let whose = (&headers, certificate.as_ref());
        Identity::new("events", "POST", "/events", whose, &crate::records::digest(body), &prng)
    }

    fn answer(text: &'static str) -> DoneAnswer {
        DoneAnswer { status: StatusCode::OK, headers: Fields::new(), body: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn quotes_do_not_matter_and_a_missing_key_is_made() {
        let quoted = identity(Some("\"k1\""), b"x").unwrap();
        assert_eq!(quoted.owned, identity(Some("k1"), b"x").unwrap().owned);
        assert!(identity(None, b"x").unwrap().key.to_str().unwrap().starts_with("\"seawall-"));
        assert_eq!(identity(Some("\"\""), b"x").unwrap_err(), BadKey);
        assert_ne!(quoted.fingerprint, identity(Some("k1"), b"y").unwrap().fingerprint);
    }

    #[test]
    fn a_key_is_its_clients_own() {
        let key = |certificate| of_client(Some("k1"), b"x", certificate).unwrap().owned;
        assert_ne!(key(Some(":YWxpY2U=:")), key(Some(":Ym9i:")));
        assert_ne!(key(Some(":YWxpY2U=:")), key(None));
        assert_eq!(key(Some(":YWxpY2U=:")), key(Some(":YWxpY2U=:")));
    }

    #[test]
    fn one_key_one_request() {
        let claims = Arc::new(Claims::default());
        let (first, other) = (identity(Some("k"), b"x").unwrap(), identity(Some("k"), b"y").unwrap());
        let Claimed::New(claiming) = claims.claim(&first, Mono::ZERO) else { panic!("free") };
        assert!(matches!(claims.claim(&first, Mono::ZERO), Claimed::Running(_)));
        assert!(matches!(claims.claim(&other, Mono::ZERO), Claimed::Conflict));
        claiming.finish(Mono::ZERO, answer("done"));
        assert!(matches!(claims.claim(&first, Mono::ZERO), Claimed::Done(done) if done.body == "done"));
        assert!(matches!(claims.claim(&other, Mono::ZERO), Claimed::Conflict));
        let tomorrow = Mono::ZERO + DONE_FOR;
        assert!(matches!(claims.claim(&other, tomorrow), Claimed::New(_)), "forgotten after a day");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rival_is_told_after_a_moment_and_an_orphan_is_waited_for() {
        let clock = Clock::new(tokio::time::Instant::now(), Arc::new(|| seawall_core::time::Wall::from_millis(0)));
        let (claims, identity) = (Arc::new(Claims::default()), identity(Some("k"), b"x").unwrap());
        let until = clock.now() + Duration::from_secs(2);
        let Claimed::New(claiming) = claims.claim_by(&identity, &clock, until).await else { panic!("free") };
        let attending = claiming.attend();
        let begin = clock.now();
        assert!(matches!(claims.claim_by(&identity, &clock, until).await, Claimed::Running(_)));
        assert_eq!(clock.now().since(begin).as_millis() / 10, RIVAL_PATIENCE.as_millis() / 10);
        let waiting = claims.claim_by(&identity, &clock, until);
        let finishing = async {
            drop(attending);
            tokio::time::sleep(Duration::from_secs(1)).await;
            claiming.finish(clock.now(), answer("kept"));
        };
        let (waited, ()) = tokio::join!(waiting, finishing);
        assert!(matches!(waited, Claimed::Done(done) if done.body == "kept"), "a second later, within its deadline");
    }

    #[test]
    fn an_unanswered_claim_frees_its_key_and_a_long_answer_is_not_kept() {
        let claims = Arc::new(Claims::default());
        let identity = identity(Some("k"), b"x").unwrap();
        drop(claims.claim(&identity, Mono::ZERO));
        let Claimed::New(claiming) = claims.claim(&identity, Mono::ZERO) else { panic!("free again") };
        claiming
            .finish(Mono::ZERO, DoneAnswer { body: Bytes::from(vec![0; ANSWER_BYTES_MAX as usize + 1]), ..answer("") });
        assert!(matches!(claims.claim(&identity, Mono::ZERO), Claimed::New(_)));
    }

    #[test]
    fn the_number_of_remembered_answers_is_bounded() {
        let claims = Arc::new(Claims::default());
        let named = |n: usize| Identity { owned: OwnedKey(n.to_string()), ..identity(Some("k"), b"x").unwrap() };
        for n in 0..DONE_MAX + 10 {
            let Claimed::New(claiming) = claims.claim(&named(n), Mono::ZERO) else { panic!("new") };
            claiming.finish(Mono::ZERO, answer("done"));
        }
        assert!(matches!(claims.claim(&named(0), Mono::ZERO), Claimed::New(_)));
        assert!(matches!(claims.claim(&named(DONE_MAX), Mono::ZERO), Claimed::Done(_)));
    }
}
