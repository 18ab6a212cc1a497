//! The outbox as a sink uses it: what was synced is told once, whatever dies in between.
#![allow(missing_docs, reason = "a test program has no readers outside")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use seawall_client::{Node, Outbox, OutboxError, RECEIPTS_MAX, SendError};
use serde_json::Value;

/// A node that notes the batches it is sent, and answers as it is told: `None` closes without a word, after taking it.
struct Desk {
    address: String,
    batches: Arc<Mutex<Vec<Value>>>,
}

impl Desk {
    fn new(answers: Vec<Option<(u16, &'static str)>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let batches: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&batches);
        std::thread::spawn(move || {
            for answer in answers.into_iter().chain(std::iter::repeat(Some((200, "{}")))) {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut text, mut buffer) = (Vec::new(), [0; 65_536]);
                let body = loop {
                    let read = stream.read(&mut buffer).unwrap();
                    text.extend_from_slice(&buffer[..read]);
                    let Some(end) = text.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
                    assert!(head.contains("authorization: bearer secret"), "{head}");
                    let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
                    if text.len() >= end + 4 + length.parse::<usize>().unwrap() {
                        break text.split_off(end + 4);
                    }
                };
                kept.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                if let Some((status, body)) = answer {
                    let length = body.len();
                    let _ = write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
                }
            }
        });
        Self { address, batches }
    }

    fn node(&self) -> Node {
        Node::new("a", &self.address).with_token("secret")
    }

    /// The number of each batch, and the records in it.
    fn seen(&self) -> Vec<(u64, Vec<String>)> {
        let batches = self.batches.lock().unwrap();
        let records = |batch: &Value| {
            batch["receipts"].as_array().unwrap().iter().map(|it| it["record"].as_str().unwrap().into()).collect()
        };
        batches.iter().map(|batch| (batch["batch"].as_u64().unwrap(), records(batch))).collect()
    }
}

fn header(n: u64) -> String {
    format!("events.a.1.{n};tag=0123456789abcdef0123456789abcdef")
}

fn outbox(dir: &Path) -> Outbox {
    Outbox::open(dir, "warehouse").unwrap()
}

fn records(of: std::ops::RangeInclusive<u64>) -> Vec<String> {
    of.map(|n| format!("events.a.1.{n}")).collect()
}

#[test]
fn what_was_synced_is_told_in_numbered_batches() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(vec![]);
    let mut box_ = outbox(dir.path());
    assert_eq!(box_.send(&desk.node()).unwrap().batches, 0, "nothing to say");
    for n in 1..=3 {
        box_.note(&header(n), b"body").unwrap();
    }
    box_.sync().unwrap();
    // Killed, and begun again.
    drop(box_);
    let mut box_ = outbox(dir.path());
    assert_eq!((box_.nodes(), box_.waiting()), (vec!["a".to_owned()], 3));
    let sent = box_.send(&desk.node()).unwrap();
    assert_eq!((sent.batches, sent.receipts), (1, 3));
    box_.note(&header(4), b"body").unwrap();
    box_.note(&header(4), b"body").unwrap();
    assert_eq!(box_.send(&desk.node()).unwrap().receipts, 2, "every arrival is one");
    drop(box_);
    let mut box_ = outbox(dir.path());
    box_.note(&header(5), b"body").unwrap();
    box_.send(&desk.node()).unwrap();
    let expected = [(1, records(1..=3)), (2, [records(4..=4), records(4..=4)].concat()), (3, records(5..=5))];
    assert_eq!(desk.seen(), expected);
    assert_eq!((box_.nodes().len(), box_.waiting()), (0, 0));
}

#[test]
fn an_answer_that_was_lost_is_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(vec![None, Some((503, "{\"error\": \"not now\"}"))]);
    let mut box_ = outbox(dir.path());
    box_.note(&header(1), b"body").unwrap();
    let lost = box_.send(&desk.node()).unwrap_err();
    assert!(matches!(lost, OutboxError::Send { source: SendError::NoAnswer { .. }, .. }), "{lost:?}");
    // What comes meanwhile goes into the next batch, not into the one that may have been taken.
    box_.note(&header(2), b"body").unwrap();
    let refused = box_.send(&desk.node()).unwrap_err();
    assert!(
        matches!(&refused, OutboxError::Send { source: SendError::Refused { status: 503, detail }, .. } if detail == "not now")
    );
    drop(box_);
    let mut box_ = outbox(dir.path());
    box_.send(&desk.node()).unwrap();
    let one = (1, records(1..=1));
    assert_eq!(desk.seen(), [one.clone(), one.clone(), one, (2, records(2..=2))]);
}

#[test]
fn a_node_that_remembers_otherwise_is_told_to_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(vec![Some((409, "{\"error\": \"batch 7 is next\"}"))]);
    let mut box_ = outbox(dir.path());
    box_.note(&header(1), b"body").unwrap();
    let OutboxError::Send { source, .. } = box_.send(&desk.node()).unwrap_err() else { panic!() };
    assert_eq!(source.to_string(), "it expects another batch: batch 7 is next");
}

#[test]
fn what_a_crash_left_half_written_is_cut_and_what_is_damaged_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(vec![]);
    let mut box_ = outbox(dir.path());
    box_.note(&header(1), b"body").unwrap();
    box_.note(&header(2), b"body").unwrap();
    drop(box_);
    let open = dir.path().join("a.open");
    let text = std::fs::read_to_string(&open).unwrap();
    std::fs::write(&open, &text[..text.len() - 5]).unwrap();
    let mut box_ = outbox(dir.path());
    box_.note(&header(3), b"body").unwrap();
    box_.send(&desk.node()).unwrap();
    assert_eq!(desk.seen(), [(1, vec!["events.a.1.1".to_owned(), "events.a.1.3".to_owned()])]);
    std::fs::write(dir.path().join("a.2"), "garbage\n").unwrap();
    drop(box_);
    let damaged = Outbox::open(dir.path(), "warehouse").unwrap_err().to_string();
    assert!(damaged.contains("a.2` is damaged in line 1"), "{damaged}");
}

#[test]
fn a_long_row_is_cut_into_batches() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(vec![]);
    let mut box_ = outbox(dir.path());
    let receipt = seawall_client::Receipt::of(&header(1), b"body").unwrap();
    for _ in 0..RECEIPTS_MAX + 1 {
        box_.note_receipt(&receipt).unwrap();
    }
    // Whoever sends holds nobody up.
    let batch = box_.batch("a").unwrap().unwrap();
    assert_eq!((batch.number(), batch.body().matches("events.a.1.1").count()), (1, RECEIPTS_MAX));
    assert_eq!(box_.batch("a").unwrap().unwrap().number(), 1, "the same until it is signed for");
    let sent = box_.send(&desk.node()).unwrap();
    assert_eq!((sent.batches, sent.receipts), (2, RECEIPTS_MAX as u64 + 1));
}

#[test]
fn what_cannot_be_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let first = outbox(dir.path());
    let busy = Outbox::open(dir.path(), "warehouse").unwrap_err();
    assert!(busy.to_string().contains("is in use by another process"), "{busy}");
    drop(first);
    let told = |error: OutboxError| error.to_string();
    assert!(
        told(Outbox::open(dir.path(), "shop").unwrap_err()).contains("belongs to sink `warehouse`, this is `shop`")
    );
    assert!(told(Outbox::open(dir.path(), "a shop").unwrap_err()).contains("is no name of a sink"));
    let file = dir.path().join("SINK");
    assert!(told(Outbox::open(&file, "warehouse").unwrap_err()).contains("cannot make folder"));
    let mut box_ = outbox(dir.path());
    assert!(told(box_.note("hello", b"").unwrap_err()).contains("is no `Seawall-Record`"));
    box_.note(&header(1), b"").unwrap();
    let nobody = box_.send(&Node::new("a", "127.0.0.1:1")).unwrap_err();
    assert!(matches!(nobody, OutboxError::Send { source: SendError::NoAnswer { .. }, .. }));
    let nameless = box_.send(&Node::new("a", "no port")).unwrap_err();
    assert!(matches!(nameless, OutboxError::Send { .. }));
}
