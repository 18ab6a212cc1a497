//! The managed queue: durable, one effect per key, and moody. It counts what arrives and sends receipts for it.
//!
//! What it has done is kept in [`crate::Truth`], over its own crashes too: it is the perfect sink with the worst
//! manners. A call that it gave up half way may still take effect later, as with any real service.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_core::prng::Prng;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_util::task::TaskTracker;
use turmoil::net::{TcpListener, TcpStream};

use crate::checkers::Event;
use crate::faults::{Mood, one_of};
use crate::http::{Message, Reader};
use crate::policy::{ADMIN_PORT, QUEUE, QUEUE_PORT, everywhere};
use crate::stage::{Stage, Temper};
use crate::workload::SHIPMENTS;

/// Share of calls that a bad mood hits.
const HIT: f64 = 0.7;
/// The path of reads; what follows is what is asked for.
pub(crate) const READ: &str = "/read/";
const RECEIPTS_MAX: usize = 40;
/// What a log says for ever after a call of the disk has failed.
const LOG_STOPPED: &str = "Input/output error";
const REPORT_EVERY: Duration = Duration::from_millis(400);
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// What becomes of one call.
#[derive(Clone, Debug, PartialEq)]
enum Manner {
    Well,
    /// The work is done before the wait or after it; nobody asks whether the caller still waits.
    Late {
        wait: Duration,
        works_first: bool,
    },
    Status {
        status: u16,
        works_first: bool,
    },
    /// The connection ends without an answer.
    Gone {
        works_first: bool,
    },
    /// Done, and the answer ends after this share of its bytes.
    Cut {
        share: f64,
    },
    /// No answer for a long time.
    Silent {
        works_first: bool,
    },
}

/// The queue, until it is killed.
pub(crate) async fn live(stage: Arc<Stage>) -> turmoil::Result {
    let listener = TcpListener::bind(everywhere(QUEUE_PORT)).await?;
    let tasks = TaskTracker::new();
    let shop = Arc::new(Shop::new(QUEUE, vec![Arc::clone(&stage)], stage.temper(), Arc::default()));
    tasks.spawn(report(stage));
    loop {
        let (stream, _) = listener.accept().await?;
        let shop = Arc::clone(&shop);
        // A caller that breaks off is no news here.
        tasks.spawn(async move { drop(shop.converse(stream, |_| {}).await) });
    }
}

/// A place that takes writes. Several may stand before one store, which has the truth and knows which keys are in work.
pub(crate) struct Shop {
    name: String,
    /// Of each node that sends writes.
    stages: Vec<Arc<Stage>>,
    temper: Temper,
    in_work: Keys,
}

/// Keys of calls that have begun and are not done: a second one is told to wait (409).
pub(crate) type Keys = Arc<Mutex<BTreeSet<String>>>;

/// Holds a key for as long as its call is worked on.
struct InWork<'a>(&'a Shop, String);

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        self.0.keys().remove(&self.1);
    }
}

impl Shop {
    pub(crate) fn new(name: impl Into<String>, stages: Vec<Arc<Stage>>, temper: Temper, in_work: Keys) -> Self {
        Self { name: name.into(), stages, temper, in_work }
    }

    fn keys(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.in_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temper(&self) -> MutexGuard<'_, (Mood, Prng)> {
        self.temper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who knows of an event.
    fn stage_of(&self, event: &Event) -> &Arc<Stage> {
        let [only] = self.stages.as_slice() else {
            let number = event.shipment.trim_start_matches('s').parse::<u64>().unwrap_or(0);
            return &self.stages[(number / SHIPMENTS) as usize % self.stages.len()];
        };
        only
    }

    /// Answers on a connection until it ends. `hear` is told the path of each call.
    pub(crate) async fn converse(&self, stream: TcpStream, hear: impl Fn(&str)) -> io::Result<()> {
        let mut reader = Reader::new(stream);
        while let Some(request) = reader.next().await? {
            let path = request.second_word();
            if path == "/healthz" {
                reader.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
                continue;
            }
            hear(path);
            let goes_on = match path.strip_prefix(READ) {
                Some(id) => self.read(id, &mut reader.stream).await?,
                None => self.write(&request, &mut reader.stream).await?,
            };
            if !goes_on {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One read: what it says is its own name. False if the connection ends with it.
    async fn read(&self, id: &str, stream: &mut TcpStream) -> io::Result<bool> {
        let (manner, said) = (self.manner(), format!("read {id}"));
        match manner {
            Manner::Well => send(stream, 200, &said, self.padding()).await,
            Manner::Late { wait, .. } => {
                tokio::time::sleep(wait).await;
                send(stream, 200, &said, self.padding()).await
            }
            Manner::Status { status, .. } => send(stream, status, "no", None).await,
            Manner::Gone { .. } => Ok(false),
            Manner::Cut { share } => {
                let bytes = answer(200, &said, self.padding());
                let at = (bytes.len() as f64 * share) as usize;
                stream.write_all(&bytes[..at]).await?;
                Ok(false)
            }
            Manner::Silent { .. } => {
                tokio::time::sleep(Duration::from_secs(20)).await;
                Ok(false)
            }
        }
    }

    /// One write. False if the connection ends with it.
    async fn write(&self, request: &Message, stream: &mut TcpStream) -> io::Result<bool> {
        let key = request.header("idempotency-key").unwrap_or_default().to_owned();
        let Some(event) = event_of(&request.body) else {
            self.stages[0].violation(&self.name, "a write that is no event");
            return Ok(false);
        };
        if !self.keys().insert(key.clone()) {
            self.stage_of(&event).tell(&self.name, format_args!("{event} 409, it is in work"));
            return send(stream, 409, "in work", None).await;
        }
        let in_work = InWork(self, key);
        let manner = self.manner();
        let stored = format!("stored {event}");
        match manner {
            Manner::Well => {
                self.work(&event, request, "");
                send(stream, 200, &stored, self.padding()).await
            }
            Manner::Late { wait, works_first } => {
                if works_first {
                    self.work(&event, request, " early");
                }
                tokio::time::sleep(wait).await;
                if !works_first {
                    self.work(&event, request, " late");
                }
                drop(in_work);
                send(stream, 200, &stored, self.padding()).await
            }
            Manner::Status { status, works_first } => {
                if works_first {
                    self.work(&event, request, " in secret");
                }
                self.stage_of(&event).tell(&self.name, format_args!("{event} {status}"));
                send(stream, status, "no", None).await
            }
            Manner::Gone { works_first } => {
                if works_first {
                    self.work(&event, request, " and gone");
                }
                Ok(false)
            }
            Manner::Cut { share } => {
                self.work(&event, request, " and cut");
                let bytes = answer(200, &stored, self.padding());
                let at = (bytes.len() as f64 * share) as usize;
                stream.write_all(&bytes[..at]).await?;
                Ok(false)
            }
            Manner::Silent { works_first } => {
                if works_first {
                    self.work(&event, request, " and silent");
                }
                drop(in_work);
                tokio::time::sleep(Duration::from_secs(20)).await;
                Ok(false)
            }
        }
    }

    fn work(&self, event: &Event, request: &Message, how: &str) {
        let key = request.header("idempotency-key").unwrap_or_default();
        let stamp = request.header("seawall-record");
        let stage = self.stage_of(event);
        let first = stage.truth().arrive(event, key, stamp, &request.body);
        let copy = if first { "" } else { " (copy)" };
        stage.tell(&self.name, format_args!("{event} arrives{how}{copy} as {}", short(stamp.unwrap_or("?"))));
    }

    fn manner(&self) -> Manner {
        let (mood, dice) = &mut *self.temper();
        let hit = dice.chance(HIT);
        let works_first = dice.chance(0.5);
        let mood = if *mood == Mood::Mixed { one_of(dice, &Mood::BAD) } else { *mood };
        match mood {
            Mood::Slow => Manner::Late { wait: Duration::from_millis(200 + dice.below(3_000)), works_first },
            Mood::Errors if hit => Manner::Status { status: one_of(dice, &[503, 500, 429, 502]), works_first },
            Mood::Resets if hit => Manner::Gone { works_first },
            Mood::Cuts if hit => Manner::Cut { share: dice.unit() },
            Mood::Broken => match dice.below(3) {
                0 => Manner::Gone { works_first },
                _ => Manner::Status { status: one_of(dice, &[503, 500]), works_first: false },
            },
            Mood::Hung => Manner::Silent { works_first },
            Mood::Silence if hit => Manner::Silent { works_first },
            _ => Manner::Well,
        }
    }

    /// Short answers are read whole by the gateway, long ones and those of unknown length go on as they come.
    fn padding(&self) -> Option<Padding> {
        let dice = &mut self.temper().1;
        match dice.below(10) {
            0..6 => None,
            6 | 7 => Some(Padding { bytes: 1_500 + dice.below(3_000) as usize, is_chunked: false }),
            _ => Some(Padding { bytes: dice.below(3_000) as usize, is_chunked: true }),
        }
    }
}

/// What makes an answer longer than it needs to be.
#[derive(Clone, Copy)]
struct Padding {
    bytes: usize,
    is_chunked: bool,
}

fn short(stamp: &str) -> &str {
    stamp.split(';').next().unwrap_or(stamp)
}

/// The event a body begins with: `s3 17 ...`.
fn event_of(body: &[u8]) -> Option<Event> {
    let text = std::str::from_utf8(body).ok()?;
    let mut words = text.split(' ');
    Some(Event { shipment: words.next()?.into(), number: words.next()?.parse().ok()? })
}

fn answer(status: u16, text: &str, padding: Option<Padding>) -> Vec<u8> {
    let dots = ".".repeat(padding.map_or(0, |padding| padding.bytes));
    let body = format!("{text} {dots}end\n");
    let retry_after = if status == 429 { "Retry-After: 1\r\n" } else { "" };
    let head = format!("HTTP/1.1 {status} Because\r\n{retry_after}");
    if padding.is_some_and(|padding| padding.is_chunked) {
        let half = body.len() / 2;
        let (first, second) = body.split_at(half);
        let chunks = format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
        return format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}").into_bytes();
    }
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn send(stream: &mut TcpStream, status: u16, text: &str, padding: Option<Padding>) -> io::Result<bool> {
    stream.write_all(&answer(status, text, padding)).await?;
    Ok(true)
}

/// Sends receipts, the same batch until the node has taken it; and the wish to have the books sealed, at the end.
pub(crate) async fn report(stage: Arc<Stage>) {
    let mut dice = stage.dice(2, stage.now_ms());
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let batch = stage.truth().receipts(RECEIPTS_MAX);
        if let Some((number, receipts)) = batch {
            let count = receipts.len();
            let body = json!({ "sink": QUEUE, "batch": number, "receipts": receipts });
            if let Some(said) = ask(&stage, &mut dice, "/api/ledger/receipts", &body).await {
                hear(&stage, number, count, &said);
            }
        } else if stage.is_seal_wanted.load(Relaxed)
            && let Some(said) = ask(&stage, &mut dice, "/api/ledger/seal", &json!({})).await
            && said.status() == 200
        {
            stage.is_seal_wanted.store(false, Relaxed);
            stage.truth().seal(serde_json::from_slice(&said.body).unwrap_or(Value::Null));
        }
    }
}

fn hear(stage: &Stage, number: u64, count: usize, said: &Message) {
    match said.status() {
        200 => {
            stage.tell(QUEUE, format_args!("batch {number} of {count} receipts is taken"));
            stage.truth().receipts_taken(number);
        }
        400..500 => {
            let words = String::from_utf8_lossy(&said.body);
            stage.violation(QUEUE, format_args!("batch {number} is refused with {}: {words}", said.status()));
        }
        status => {
            let words = String::from_utf8_lossy(&said.body);
            stage.tell(QUEUE, format_args!("batch {number} must wait: {status} {}", words.trim()));
            if words.contains(LOG_STOPPED) {
                // The ledger's log never comes back by itself, and the node does not end for it: somebody looks.
                stage.tell("operator", "restarts the node");
                stage.is_drain_wanted.store(true, Relaxed);
            }
        }
    }
}

/// One call of the admin API; `None` if there was no whole answer.
async fn ask(stage: &Stage, dice: &mut Prng, path: &str, body: &Value) -> Option<Message> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n",
        stage.name
    );
    let call = async {
        let mut reader = Reader::new(TcpStream::connect((stage.name.as_str(), ADMIN_PORT)).await?);
        reader.stream.write_all(head.as_bytes()).await?;
        reader.stream.write_all(body.as_bytes()).await?;
        reader.next().await
    };
    let said = tokio::time::timeout(REPORT_TIMEOUT, call).await.ok()?.ok()??;
    // Now and then the answer is lost on the way: the same batch comes again.
    let is_lost = dice.chance(0.05);
    if is_lost {
        stage.tell(QUEUE, "the answer of the admin API is lost");
    }
    (!is_lost).then_some(said)
}
