//! Clients that read: one request after the other on a connection that stays, each with exactly one answer that is its
//! own, unless the node dies over it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seawall_core::prng::Prng;
use tokio::io::AsyncWriteExt as _;
use tokio_util::task::TaskTracker;
use turmoil::net::TcpStream;

use super::plan::TIMEOUT;
use crate::http::{Message, Reader};
use crate::policy::DATA_PORT;
use crate::queue::READ;
use crate::stage::Stage;

/// Readers of a zone.
const ROWS: u64 = 4;
/// What the way to the node and back may add to the longest call.
const SLACK: Duration = Duration::from_millis(500);

/// What came of a zone's reads.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counts>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// By class of status, as a node counts them.
    pub(super) answers: [u64; 5],
    /// Of those, broken in the middle for everybody to see: an endpoint's long answer that had begun to go on.
    pub(super) cut: u64,
    /// Ended without one, because the node did.
    pub(super) orphaned: u64,
    /// When the last one was sent that was not answered well.
    pub(super) failed_last_ms: Option<u64>,
    /// Reads sent from this moment on must be answered well.
    pub(super) strict_since_ms: Option<u64>,
}

impl Counts {
    /// Answered well and whole, of all that were answered.
    pub(super) fn well(&self) -> (u64, u64) {
        // Only answers that begin well can be cut.
        (self.answers[1] - self.cut, self.answers.iter().sum())
    }
}

impl Tally {
    pub(super) fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn be_strict(&self, since_ms: Option<u64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).strict_since_ms = since_ms;
    }

    /// Takes in an answer that broke off.
    fn cut(&self, status: u16, sent_ms: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.answers[usize::from(status / 100).clamp(1, 5) - 1] += 1;
        counts.cut += 1;
        counts.failed_last_ms = counts.failed_last_ms.max(Some(sent_ms));
    }

    /// Takes in an answer. Says what is wrong with it.
    pub(super) fn answered(&self, id: &str, sent_ms: u64, answer: &Message) -> Option<String> {
        let status = answer.status();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.answers[usize::from(status / 100).clamp(1, 5) - 1] += 1;
        if status == 200 {
            let text = String::from_utf8_lossy(&answer.body);
            let is_own = text.starts_with(&format!("read {id} ")) && text.ends_with("end\n");
            return (!is_own).then(|| format!("{id}: not its own answer, or not whole: {text}"));
        }
        counts.failed_last_ms = counts.failed_last_ms.max(Some(sent_ms));
        let why = answer.header("proxy-status").unwrap_or_default();
        if counts.strict_since_ms.is_some_and(|since| sent_ms >= since) {
            return Some(format!("{id}, sent at {sent_ms} ms while a zone is well and in reach: {status} {why}"));
        }
        // What the endpoint itself has said is passed on when no other try is afforded.
        let is_endpoints = answer.body.starts_with(b"no ");
        let is_known = matches!(status, 429 | 500 | 502..=504) && (is_endpoints || !why.is_empty());
        (!is_known).then(|| format!("{id}: {status} without a reason: {}", answer.head))
    }
}

/// The readers of a zone.
pub(super) async fn live(stage: Arc<Stage>, tally: Arc<Tally>) -> turmoil::Result {
    let tasks = TaskTracker::new();
    for number in 0..ROWS {
        let dice = stage.dice(200 + number, stage.now_ms());
        let row = Row {
            stage: Arc::clone(&stage),
            tally: Arc::clone(&tally),
            number,
            sent: 0,
            dice,
            life: 0,
            connection: None,
        };
        tasks.spawn(row.run());
    }
    std::future::pending().await
}

/// What a node answered.
enum Said {
    Whole(Message),
    /// This status, and not all of its body.
    Cut(u16),
}

struct Row {
    stage: Arc<Stage>,
    tally: Arc<Tally>,
    number: u64,
    sent: u64,
    dice: Prng,
    /// Of the node's life in which the connection was made.
    life: u64,
    connection: Option<Reader<TcpStream>>,
}

impl Row {
    async fn run(mut self) {
        loop {
            let pace = 40 + self.dice.below(120);
            tokio::time::sleep(Duration::from_millis(pace)).await;
            if self.stage.is_quiet.load(Relaxed) || !self.stage.is_up() {
                self.connection = None;
                continue;
            }
            self.sent += 1;
            let id = format!("{}-{}-{}", self.stage.name, self.number, self.sent);
            let (sent_ms, life) = (self.stage.now_ms(), self.stage.lives());
            if self.life != life {
                // What the last life left behind is no connection.
                (self.life, self.connection) = (life, None);
            }
            match tokio::time::timeout(TIMEOUT + SLACK, self.ask(&id)).await {
                Ok(Ok(Said::Cut(status))) if self.stage.is_up() && self.stage.lives() == life => {
                    self.tally.cut(status, sent_ms);
                }
                Ok(Ok(Said::Whole(answer))) => {
                    if let Some(wrong) = self.tally.answered(&id, sent_ms, &answer) {
                        self.stage.violation("reader", wrong);
                    }
                }
                failed => {
                    self.connection = None;
                    let why = failed
                        .map_or("too late".into(), |it| it.map_or_else(|error| error.to_string(), |_| "broken".into()));
                    if self.stage.is_up() && self.stage.lives() == life {
                        self.stage
                            .violation("reader", format_args!("{id}, sent at {sent_ms} ms, has no answer: {why}"));
                    }
                    self.tally.0.lock().unwrap_or_else(PoisonError::into_inner).orphaned += 1;
                }
            }
        }
    }

    async fn ask(&mut self, id: &str) -> std::io::Result<Said> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Reader::new(TcpStream::connect((self.stage.name.as_str(), DATA_PORT)).await?),
        };
        let head = format!("GET {READ}{id} HTTP/1.1\r\nHost: {}\r\n\r\n", self.stage.name);
        connection.stream.write_all(head.as_bytes()).await?;
        let answer = match connection.next().await {
            Ok(answer) => answer.ok_or(std::io::ErrorKind::UnexpectedEof)?,
            Err(error) => return connection.unfinished().map(Said::Cut).ok_or(error),
        };
        if !connection.is_empty() {
            self.stage.violation("reader", format_args!("{id}: more than one answer"));
        }
        if !answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.connection = Some(connection);
        }
        Ok(Said::Whole(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(head: &str, body: &str) -> Message {
        Message { head: head.into(), body: body.into() }
    }

    #[test]
    fn an_answer_is_whole_its_own_and_has_a_reason() {
        let tally = Tally::default();
        assert_eq!(tally.answered("1", 0, &answer("HTTP/1.1 200 OK", "read 1 ..end\n")), None);
        let refused = answer("HTTP/1.1 504 Late\r\nProxy-Status: seawall; error=x", "");
        assert_eq!(tally.answered("2", 7, &refused), None);
        assert_eq!(tally.counts().answers, [0, 1, 0, 0, 1]);
        assert_eq!(tally.counts().failed_last_ms, Some(7));
        for wrong in [
            answer("HTTP/1.1 200 OK", "read 2 ..end\n"),
            answer("HTTP/1.1 200 OK", "read 1 .."),
            answer("HTTP/1.1 504 Late", ""),
            answer("HTTP/1.1 404 No\r\nProxy-Status: seawall", ""),
        ] {
            assert!(tally.answered("1", 0, &wrong).is_some(), "{wrong:?}");
        }
        tally.be_strict(Some(100));
        assert_eq!(tally.answered("3", 99, &refused), None);
        assert!(tally.answered("4", 100, &refused).is_some());
    }
}
