//! Clients that read: one request after the other on a connection that stays, each with exactly one answer that is its
//! own, unless the node dies over it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// By the node's life in which they were sent.
    lives: BTreeMap<u64, Outcomes>,
    /// When the last one was sent that was not answered well.
    pub(super) failed_last_ms: Option<u64>,
    /// Reads sent from this moment on must be answered well.
    strict_since_ms: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    /// By class of status, as a node counts them.
    pub(super) answers: [u64; 5],
    /// Of those, good and whole.
    well: u64,
    /// Of those, broken in the middle for everybody to see: an endpoint's long answer that had begun to go on.
    pub(super) cut: u64,
    /// Ended without one, because the node did.
    pub(super) orphaned: u64,
    /// Something was sent in one life and answered when another had begun: nobody here knows by which.
    pub(super) is_blurred: bool,
}

/// One read, on its way.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    id: String,
    at_ms: u64,
    /// The node's life.
    life: u64,
}

impl Counts {
    /// Answered well and whole, of all that were answered.
    pub(super) fn well(&self) -> (u64, u64) {
        let sums = self.lives.values().map(|life| (life.well, life.answers.iter().sum::<u64>()));
        sums.fold((0, 0), |(well, all), (more_well, more)| (well + more_well, all + more))
    }

    /// What came of the reads of one life of the node.
    pub(super) fn of_life(&self, life: u64) -> Outcomes {
        self.lives.get(&life).cloned().unwrap_or_default()
    }

    fn answer(&mut self, sent: &Sent, status: u16, is_well: bool) -> &mut Outcomes {
        if !is_well {
            self.failed_last_ms = self.failed_last_ms.max(Some(sent.at_ms));
        }
        let outcomes = self.lives.entry(sent.life).or_default();
        outcomes.answers[usize::from(status / 100).clamp(1, 5) - 1] += 1;
        outcomes.well += u64::from(is_well);
        outcomes
    }

    fn is_strict(&self, sent: &Sent) -> bool {
        self.strict_since_ms.is_some_and(|since| sent.at_ms >= since)
    }
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    pub(super) fn be_strict(&self, since_ms: Option<u64>) {
        self.lock().strict_since_ms = since_ms;
    }

    /// Takes in an answer that broke off. Says what is wrong with that.
    fn cut(&self, sent: &Sent, status: u16) -> Option<String> {
        let mut counts = self.lock();
        counts.answer(sent, status, false).cut += 1;
        let Sent { id, at_ms, .. } = sent;
        if status != 200 {
            return Some(format!("{id}: {status} that broke off: only what an endpoint says at length can"));
        }
        counts.is_strict(sent).then(|| format!("{id}, sent at {at_ms} ms when all must be answered well: broken off"))
    }

    /// Takes in an answer. Says what is wrong with it.
    fn answered(&self, sent: &Sent, answer: &Message) -> Option<String> {
        let (status, Sent { id, at_ms, .. }) = (answer.status(), sent);
        let mut counts = self.lock();
        counts.answer(sent, status, status == 200);
        if status == 200 {
            let text = String::from_utf8_lossy(&answer.body);
            let is_own = text.starts_with(&format!("read {id} ")) && text.ends_with("end\n");
            return (!is_own).then(|| format!("{id}: not its own answer, or not whole: {text}"));
        }
        let why = answer.header("proxy-status").unwrap_or_default();
        if counts.is_strict(sent) {
            return Some(format!("{id}, sent at {at_ms} ms when all must be answered well: {status} {why}"));
        }
        // What the endpoint itself has said is passed on when no other try is afforded.
        let is_endpoints = answer.body.starts_with(b"no ");
        let is_known = matches!(status, 429 | 500 | 502..=504) && (is_endpoints || !why.is_empty());
        (!is_known).then(|| format!("{id}: {status} without a reason: {}", answer.head))
    }

    fn orphaned(&self, sent: &Sent) {
        self.lock().lives.entry(sent.life).or_default().orphaned += 1;
    }

    /// An answer has come in this life to what was sent in an earlier one.
    fn blur(&self, sent: &Sent, life: u64) {
        let mut counts = self.lock();
        for life in [sent.life, life] {
            counts.lives.entry(life).or_default().is_blurred = true;
        }
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
            let life = self.stage.lives();
            if self.life != life {
                // What the last life left behind is no connection.
                (self.life, self.connection) = (life, None);
            }
            let sent = Sent { id, at_ms: self.stage.now_ms(), life };
            let said = tokio::time::timeout(TIMEOUT + SLACK, self.ask(&sent.id)).await;
            let is_same_life = self.stage.is_up() && self.stage.lives() == life;
            let wrong = match said {
                Ok(Ok(Said::Cut(status))) if is_same_life => self.tally.cut(&sent, status),
                Ok(Ok(Said::Whole(answer))) => {
                    if self.stage.lives() != life {
                        self.tally.blur(&sent, self.stage.lives());
                    }
                    self.tally.answered(&sent, &answer)
                }
                failed => {
                    self.connection = None;
                    self.tally.orphaned(&sent);
                    let why = failed
                        .map_or("too late".into(), |it| it.map_or_else(|error| error.to_string(), |_| "broken".into()));
                    let Sent { id, at_ms, .. } = &sent;
                    is_same_life.then(|| format!("{id}, sent at {at_ms} ms, has no answer: {why}"))
                }
            };
            wrong.into_iter().for_each(|wrong| self.stage.violation("reader", wrong));
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

    fn sent(id: &str, at_ms: u64) -> Sent {
        Sent { id: id.into(), at_ms, life: 1 }
    }

    #[test]
    fn an_answer_is_whole_its_own_and_has_a_reason() {
        let tally = Tally::default();
        let answered = |id, at_ms, answer: &Message| tally.answered(&sent(id, at_ms), answer);
        assert_eq!(answered("1", 0, &answer("HTTP/1.1 200 OK", "read 1 ..end\n")), None);
        let refused = answer("HTTP/1.1 504 Late\r\nProxy-Status: seawall; error=x", "");
        assert_eq!(answered("2", 7, &refused), None);
        assert_eq!(tally.counts().of_life(1).answers, [0, 1, 0, 0, 1]);
        assert_eq!((tally.counts().failed_last_ms, tally.counts().well()), (Some(7), (1, 2)));
        for wrong in [
            answer("HTTP/1.1 200 OK", "read 2 ..end\n"),
            answer("HTTP/1.1 200 OK", "read 1 .."),
            answer("HTTP/1.1 504 Late", ""),
            answer("HTTP/1.1 404 No\r\nProxy-Status: seawall", ""),
        ] {
            assert!(answered("1", 0, &wrong).is_some(), "{wrong:?}");
        }
        tally.be_strict(Some(100));
        assert_eq!(answered("3", 99, &refused), None);
        assert!(answered("4", 100, &refused).is_some());
        assert_eq!(tally.cut(&sent("5", 99), 200), None);
        assert!(tally.cut(&sent("6", 100), 200).is_some());
    }

    #[test]
    fn only_good_answers_break_off_and_none_of_them_is_well() {
        let tally = Tally::default();
        assert!(tally.cut(&sent("1", 5), 503).is_some());
        assert_eq!(tally.cut(&sent("2", 6), 200), None);
        let counts = tally.counts();
        assert_eq!((counts.well(), counts.of_life(1).cut, counts.failed_last_ms), ((0, 2), 2, Some(6)));
    }

    #[test]
    fn every_life_has_its_own_count() {
        let tally = Tally::default();
        tally.orphaned(&sent("1", 0));
        let second = Sent { life: 2, ..sent("2", 0) };
        tally.answered(&second, &answer("HTTP/1.1 200 OK", "read 2 ..end\n"));
        let counts = tally.counts();
        assert_eq!((counts.of_life(1).orphaned, counts.of_life(2).orphaned), (1, 0));
        assert_eq!((counts.of_life(2).answers, counts.of_life(3)), ([0, 1, 0, 0, 0], Outcomes::default()));
        tally.blur(&second, 3);
        assert_eq!([1, 2, 3].map(|life| tally.counts().of_life(life).is_blurred), [false, true, true]);
    }
}
