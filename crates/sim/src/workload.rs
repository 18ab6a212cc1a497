//! Producers: each works on a few shipments, one event of a shipment after the other, and sends an event again, under
//! the same key, until it is promised. What they have produced outlives their crashes, as an outbox does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use seawall_core::prng::Prng;
use tokio::io::AsyncWriteExt as _;
use tokio_util::task::TaskTracker;
use turmoil::net::TcpStream;

use crate::checkers::Event;
use crate::http::{Message, Reader};
use crate::policy::DATA_PORT;
use crate::stage::Stage;

/// Shipments of one producer.
pub(crate) const SHIPMENTS: u64 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// One producer, until it is killed.
pub(crate) async fn live(stage: Arc<Stage>, producer: u64) -> turmoil::Result {
    let tasks = TaskTracker::new();
    for shipment in 0..SHIPMENTS {
        let number = producer * SHIPMENTS + shipment;
        let dice = stage.dice(100 + number, stage.now_ms());
        let row = Row { stage: Arc::clone(&stage), shipment: format!("s{number}"), dice, connection: None };
        tasks.spawn(row.run());
    }
    std::future::pending().await
}

/// What came of sending an event once.
enum Said {
    Promised { location: Option<String> },
    NotNow(u16),
    Nothing(String),
}

/// The events of one shipment.
struct Row {
    stage: Arc<Stage>,
    shipment: String,
    dice: Prng,
    connection: Option<Reader<TcpStream>>,
}

impl Row {
    async fn run(mut self) {
        loop {
            let pace = 100 + self.dice.below(500);
            tokio::time::sleep(Duration::from_millis(pace)).await;
            let (event, is_new) = self.stage.truth().next_of_row(&self.shipment);
            if is_new && self.stage.is_quiet.load(Relaxed) {
                continue;
            }
            let body = self.body(&event);
            self.stage.truth().produced(&event, &body);
            self.insist(&event, &body).await;
        }
    }

    /// The same event has the same body, whoever sends it again.
    fn body(&self, event: &Event) -> Vec<u8> {
        let shipment = event.shipment.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31) + u64::from(byte));
        let mut dice = self.stage.dice(shipment, event.number);
        let length = if dice.chance(0.1) { dice.below(9_000) } else { dice.below(300) };
        let padding: String = (0..length).map(|_| char::from(b'a' + dice.below(26) as u8)).collect();
        format!("{} {} {padding} end", event.shipment, event.number).into_bytes()
    }

    async fn insist(&mut self, event: &Event, body: &[u8]) {
        let mut wait = Duration::from_millis(200);
        loop {
            match self.send(event, body).await {
                Said::Promised { location } => {
                    self.stage.truth().promise(event);
                    let how = location.as_deref().unwrap_or("at once");
                    self.stage.tell(&self.shipment, format_args!("{event} is promised: {how}"));
                    if let Some(location) = location.filter(|_| self.dice.chance(0.3)) {
                        self.ask_after(event, &location).await;
                    }
                    return;
                }
                Said::NotNow(status) => self.stage.tell(&self.shipment, format_args!("{event} not now: {status}")),
                Said::Nothing(error) => {
                    self.connection = None;
                    self.stage.tell(&self.shipment, format_args!("{event} no answer: {error}"));
                }
            }
            let jitter = Duration::from_millis(self.dice.below(200));
            tokio::time::sleep(wait + jitter).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }

    async fn send(&mut self, event: &Event, body: &[u8]) -> Said {
        let head = format!(
            "POST /events HTTP/1.1\r\nHost: {}\r\nIdempotency-Key: \"{}\"\r\nShipment-Id: {}\r\nContent-Length: {}\r\n\r\n",
            self.stage.name,
            event.key(),
            event.shipment,
            body.len()
        );
        let call = self.call(head.as_bytes(), body);
        match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
            Ok(Ok(answer)) => self.judge(event, &answer),
            Ok(Err(error)) => Said::Nothing(error.kind().to_string()),
            Err(_) => Said::Nothing("too late".into()),
        }
    }

    async fn call(&mut self, head: &[u8], body: &[u8]) -> io::Result<Message> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connect = TcpStream::connect((self.stage.name.as_str(), DATA_PORT));
                Reader::new(tokio::time::timeout(CONNECT_TIMEOUT, connect).await??)
            }
        };
        connection.stream.write_all(head).await?;
        let stops_at = self.dice.below(body.len() as u64 + 1) as usize;
        connection.stream.write_all(&body[..stops_at]).await?;
        match self.dice.below(40) {
            // A producer that dies in the middle of its own request.
            0 => return Err(io::ErrorKind::Interrupted.into()),
            1..8 => tokio::time::sleep(Duration::from_millis(self.dice.below(300))).await,
            _ => {}
        }
        connection.stream.write_all(&body[stops_at..]).await?;
        if self.dice.below(40) == 0 {
            // Or before the answer.
            tokio::time::sleep(Duration::from_millis(self.dice.below(50))).await;
            return Err(io::ErrorKind::Interrupted.into());
        }
        let answer = connection.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let closes = answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if !closes && !self.dice.chance(0.1) {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    fn judge(&self, event: &Event, answer: &Message) -> Said {
        match answer.status() {
            200 => {
                let text = String::from_utf8_lossy(&answer.body);
                if !text.starts_with(&format!("stored {event} ")) || !text.ends_with("end\n") {
                    self.stage.violation(&self.shipment, format_args!("{event}: an answer that is not whole: {text}"));
                }
                Said::Promised { location: None }
            }
            202 => Said::Promised { location: answer.header("location").map(str::to_owned) },
            status @ (408 | 409 | 429 | 500..=599) => Said::NotNow(status),
            status => {
                let text = String::from_utf8_lossy(&answer.body);
                self.stage.violation(&self.shipment, format_args!("{event} was refused with {status}: {text}"));
                Said::NotNow(status)
            }
        }
    }

    /// A 202 says where to ask: a record that was promised must be known there.
    async fn ask_after(&mut self, event: &Event, location: &str) {
        let head = format!("GET {location} HTTP/1.1\r\nHost: {}\r\n\r\n", self.stage.name);
        let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_TIMEOUT, self.call(head.as_bytes(), &[])).await else {
            self.connection = None;
            return;
        };
        if (400..500).contains(&answer.status()) {
            let status = answer.status();
            self.stage.violation(&self.shipment, format_args!("{event} was promised, and {location} says {status}"));
        }
    }
}
