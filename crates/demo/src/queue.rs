//! The managed queue: somebody else's service, in one zone, with moods.
//!
//! `POST /events` takes one line; `GET /events/lease?max=N` hands out up to N lines (each followed by a tab and its
//! `Seawall-Record` when it came with one) under a `Lease-Id`; `POST /events/ack?lease=ID` ends the lease. What is not
//! acknowledged within [`VISIBILITY`] is handed out again. An `Idempotency-Key` stops a second copy; a copy that came
//! through another Seawall node bears an account number of its own and travels on, so that its account can be closed
//! too: the warehouse's key stops it there.
//!
//! `GET /healthz` is always well, whatever the mood: providers answer health checks from somewhere else than where
//! your calls are stuck. That is the story: nothing was ever down.
//!
//! Moods are set on the control port: a brown-out (every call takes 1 to 4 seconds, and only half of the calls do
//! their work before the wait), 503s, resets, cut answers. In the last three, seven calls of ten are hit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seawall_core::prng::Prng;
use serde_json::json;
use tokio::time::Instant;

use crate::schedule::Mood;
use crate::web::{self, Answer, Call, Manner};

/// A lease not acknowledged for this long is void.
pub const VISIBILITY: Duration = Duration::from_millis(2_500);
/// Messages in one lease at most.
const LEASE_MAX: usize = 100;
/// Share of calls hit in the moods that hit some.
const HIT: f64 = 0.7;

/// The queue's command line.
#[derive(clap::Args, Clone, Debug)]
pub struct QueueArgs {
    /// Where it serves its customers
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where the conductor sets its mood
    #[arg(long)]
    pub control: SocketAddr,
    /// Seed of its moods
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// Runs until dropped.
///
/// # Errors
/// When a port is taken.
pub async fn play(args: QueueArgs) -> anyhow::Result<()> {
    let queue = Arc::new(Queue::new(args.seed));
    let (customers, control) = (web::bind(args.listen).await?, web::bind(args.control).await?);
    let (served, steered) = (Arc::clone(&queue), queue);
    tokio::join!(
        web::serve(customers, move |call| serve(Arc::clone(&served), call)),
        web::serve(control, move |call| std::future::ready(steered.steer(&call))),
    );
    Ok(())
}

#[derive(Clone, Debug)]
struct Message {
    line: String,
    record: Option<String>,
}

#[derive(Debug)]
struct Leased {
    until: Instant,
    messages: Vec<Message>,
}

#[derive(Debug)]
struct Shelf {
    ready: VecDeque<Message>,
    leases: BTreeMap<u64, Leased>,
    lease_last: u64,
    keys: BTreeSet<(String, String)>,
    stored_total: u64,
    doubled_total: u64,
    mood: Mood,
    prng: Prng,
}

/// What the mood has in store for one call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Well,
    Late { wait: Duration, work_first: bool },
    Refused,
    Reset { work_first: bool },
    Cut { share: f64 },
}

/// The queue's state.
#[derive(Debug)]
pub struct Queue(Mutex<Shelf>);

impl Queue {
    /// An empty queue in calm mood.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(Shelf {
            ready: VecDeque::new(),
            leases: BTreeMap::new(),
            lease_last: 0,
            keys: BTreeSet::new(),
            stored_total: 0,
            doubled_total: 0,
            mood: Mood::Calm,
            prng: Prng::new(seed),
        }))
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.0.lock().expect("no panic under this lock")
    }

    /// The control port: `POST /mood` with the mood's name as JSON, `GET /depth`.
    pub fn steer(&self, call: &Call) -> Answer {
        let mut shelf = self.shelf();
        match (call.method.as_str(), call.path.as_str()) {
            ("POST", "/mood") => match serde_json::from_slice(&call.body) {
                Ok(mood) => {
                    shelf.mood = mood;
                    Answer::new(200, "ok\n")
                }
                Err(error) => Answer::new(400, format!("not a mood: {error}\n")),
            },
            ("GET", "/depth") => {
                shelf.expire(Instant::now());
                let leased: usize = shelf.leases.values().map(|lease| lease.messages.len()).sum();
                Answer::json(&json!({
                    "ready": shelf.ready.len(), "leased": leased,
                    "stored_total": shelf.stored_total, "doubled_total": shelf.doubled_total,
                }))
            }
            ("GET", "/healthz") => Answer::new(200, "ok\n"),
            _ => Answer::new(404, "no such thing\n"),
        }
    }

    fn fate(&self) -> Fate {
        let Shelf { mood, prng, .. } = &mut *self.shelf();
        match mood {
            Mood::BrownOut => {
                Fate::Late { wait: Duration::from_millis(1_000 + prng.below(3_000)), work_first: prng.chance(0.5) }
            }
            Mood::Errors if prng.chance(HIT) => Fate::Refused,
            Mood::Resets if prng.chance(HIT) => Fate::Reset { work_first: prng.chance(0.5) },
            Mood::Cuts if prng.chance(HIT) => Fate::Cut { share: prng.unit() },
            _ => Fate::Well,
        }
    }

    fn work(&self, call: &Call) -> Answer {
        let mut shelf = self.shelf();
        match (call.method.as_str(), call.path.as_str()) {
            ("POST", "/events") => shelf.store(call),
            ("GET", "/events/lease") => shelf.lease(call, Instant::now()),
            ("POST", "/events/ack") => shelf.ack(call),
            _ => Answer::new(404, "no such thing\n"),
        }
    }
}

/// A customer's call, in the mood of the moment.
async fn serve(queue: Arc<Queue>, call: Call) -> Answer {
    if call.path == "/healthz" {
        return Answer::new(200, "ok\n");
    }
    match queue.fate() {
        Fate::Well => queue.work(&call),
        Fate::Late { wait, work_first } => {
            let early = work_first.then(|| queue.work(&call));
            tokio::time::sleep(wait).await;
            // Dropped meanwhile if the caller went away: then this call did nothing.
            early.unwrap_or_else(|| queue.work(&call))
        }
        Fate::Refused => Answer::new(503, "try again later\n"),
        Fate::Reset { work_first } => {
            let done = work_first.then(|| queue.work(&call));
            done.unwrap_or_default().in_manner(Manner::Reset)
        }
        Fate::Cut { share } => {
            let answer = queue.work(&call);
            let at = (answer.body.len() as f64 * share) as usize;
            answer.in_manner(Manner::CutAt(at))
        }
    }
}

impl Shelf {
    fn store(&mut self, call: &Call) -> Answer {
        let line = match std::str::from_utf8(&call.body) {
            Ok(line) if !line.is_empty() && !line.contains(['\n', '\t']) => line.to_string(),
            _ => return Answer::new(400, "expected one line of text\n"),
        };
        let record = call.header("seawall-record").map(String::from);
        if let Some(key) = call.header("idempotency-key")
            && !self.keys.insert((key.into(), record.clone().unwrap_or_default()))
        {
            self.doubled_total += 1;
            return Answer::new(200, "stored before\n");
        }
        self.stored_total += 1;
        self.ready.push_back(Message { line, record });
        Answer::new(200, "stored\n")
    }

    fn lease(&mut self, call: &Call, now: Instant) -> Answer {
        self.expire(now);
        let max = call.parameter("max").and_then(|max| max.parse().ok()).unwrap_or(10).min(LEASE_MAX);
        let count = max.min(self.ready.len());
        if count == 0 {
            return Answer::new(200, "");
        }
        let messages: Vec<Message> = self.ready.drain(..count).collect();
        let body: String = messages
            .iter()
            .map(|Message { line, record }| match record {
                Some(record) => format!("{line}\t{record}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        self.lease_last += 1;
        self.leases.insert(self.lease_last, Leased { until: now + VISIBILITY, messages });
        Answer::new(200, body).with("lease-id", self.lease_last.to_string())
    }

    /// An acknowledgement of a lease that is over changes nothing and is no error.
    fn ack(&mut self, call: &Call) -> Answer {
        let lease = call.parameter("lease").and_then(|lease| lease.parse::<u64>().ok());
        match lease.and_then(|lease| self.leases.remove(&lease)) {
            Some(_) => Answer::new(200, "done\n"),
            None => Answer::new(200, "no longer yours\n"),
        }
    }

    /// Hands what was not acknowledged in time back, oldest first.
    fn expire(&mut self, now: Instant) {
        let over: Vec<u64> = self.leases.iter().filter(|(_, lease)| lease.until <= now).map(|(id, _)| *id).collect();
        for id in over.into_iter().rev() {
            for message in self.leases.remove(&id).into_iter().flat_map(|lease| lease.messages).rev() {
                self.ready.push_front(message);
            }
        }
    }
}
