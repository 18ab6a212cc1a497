//! The warehouse: writes every prediction durably and counts. What its file holds at the end decides what arrived.
//!
//! `POST /predictions` is answered when the row is on the disk. One writer takes what waits (up to a bound),
//! appends it with one write and one `fdatasync`, then answers all. A write that comes with an `Idempotency-Key` is a
//! write of that business id and makes one row however often it comes; without a key every write is a row.
//!
//! Behind Seawall it also reports receipts. Each write bears up to two account numbers: its own hop's, in the
//! `Seawall-Record` header (digest over the whole body), and the event's, in the body's `record` field (digest over the
//! event's line as it arrived). A number is reported once for each row it made; a copy that the key stopped is reported
//! if its number is new, because then that account still waits for word. Receipts go to the node named in the number,
//! in numbered batches, the same batch again until the node says 200.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::caller;
use crate::clock;
use crate::tally::Row;
use crate::tracking::digest;
use crate::web::{self, Answer, Ask, Call, Client};

/// Rows written with one sync at most.
const BATCH_MAX: usize = 256;
/// Writes that may wait for the writer.
const WAITING_MAX: usize = 1_024;
/// Receipts in one report.
const RECEIPTS_MAX: usize = 250;
const REPORT_EVERY: Duration = Duration::from_millis(150);
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The warehouse's command line.
#[derive(clap::Args, Clone, Debug)]
pub struct WarehouseArgs {
    /// Where it serves
    #[arg(long)]
    pub listen: SocketAddr,
    /// The file of its rows
    #[arg(long)]
    pub rows: PathBuf,
    /// A Seawall node to report receipts to: `NODE=http://host:port` of its admin API
    #[arg(long, value_parser = node)]
    pub admin: Vec<(String, String)>,
}

fn node(text: &str) -> Result<(String, String), String> {
    let (name, url) = text.split_once('=').ok_or_else(|| format!("`{text}` is not `NODE=http://host:port`"))?;
    Ok((name.into(), caller::base(url)?))
}

/// A prediction as it is posted.
#[derive(Debug, Deserialize)]
struct Prediction {
    id: String,
    event: String,
    eta_hours: f64,
    record: Option<String>,
}

/// What a node wants to know about a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    record: String,
    tag: String,
    digest: String,
}

impl Receipt {
    /// From a `Seawall-Record` value and the bytes that came with it; `None` if it is not one.
    #[must_use]
    pub fn of(stamp: &str, bytes: &[u8]) -> Option<Self> {
        let (record, tag) = stamp.split_once(";tag=")?;
        Some(Self { record: record.trim().into(), tag: tag.trim().into(), digest: digest(bytes) })
    }

    /// The node that keeps the account: the second part of `<stream>.<producer>.<epoch>.<sequence>`.
    #[must_use]
    pub fn producer(&self) -> Option<&str> {
        self.record.split('.').nth(1)
    }
}

/// A write on its way to the writer.
struct Job {
    row: Row,
    keyed: bool,
    receipts: Vec<Receipt>,
    done: oneshot::Sender<()>,
}

/// What the writer decided, for others to read.
#[derive(Debug, Default)]
pub struct Books {
    rows_total: u64,
    doubled_total: u64,
    receipts: BTreeMap<String, Vec<Receipt>>,
    strangers_total: u64,
}

/// Runs until dropped.
///
/// # Errors
/// When the port is taken or the file cannot be opened.
pub async fn play(args: WarehouseArgs) -> anyhow::Result<()> {
    let listener = web::bind(args.listen).await?;
    let file = OpenOptions::new().create(true).append(true).open(&args.rows);
    let file = file.with_context(|| format!("cannot open `{}`", args.rows.display()))?;
    let books = Arc::new(Mutex::new(Books::default()));
    books.lock().expect("new").receipts = args.admin.iter().map(|(node, _)| (node.clone(), Vec::new())).collect();
    let (jobs, waiting) = mpsc::channel(WAITING_MAX);
    let writer = Writer { file, books: Arc::clone(&books), ids: BTreeSet::new(), reported: BTreeSet::new() };
    // A thread of its own: a sync blocks, and answering must go on meanwhile.
    std::thread::Builder::new().name("writer".into()).spawn(move || writer.run(waiting))?;
    let reports = args.admin.into_iter().map(|(node, base)| report(node, base, Arc::clone(&books)));
    let _reporting: JoinSet<()> = reports.collect();
    match web::serve(listener, move |call| serve(jobs.clone(), Arc::clone(&books), call)).await {}
}

async fn serve(jobs: mpsc::Sender<Job>, books: Arc<Mutex<Books>>, call: Call) -> Answer {
    match (call.method.as_str(), call.path.as_str()) {
        ("POST", "/predictions") => write(&jobs, &call).await,
        ("GET", "/stats") => stats(&books),
        ("GET", "/healthz") => Answer::new(200, "ok\n"),
        _ => Answer::new(404, "no such thing\n"),
    }
}

async fn write(jobs: &mpsc::Sender<Job>, call: &Call) -> Answer {
    let prediction: Prediction = match serde_json::from_slice(&call.body) {
        Ok(prediction) => prediction,
        Err(error) => return Answer::new(400, format!("not a prediction: {error}\n")),
    };
    let own = call.header("seawall-record").and_then(|stamp| Receipt::of(stamp, &call.body));
    let event = prediction.record.as_deref().and_then(|stamp| Receipt::of(stamp, prediction.event.as_bytes()));
    let (done, wait) = oneshot::channel();
    let job = Job {
        row: Row {
            at_ms: clock::now_ms(),
            digest: digest(prediction.event.as_bytes()),
            id: prediction.id,
            eta_hours: prediction.eta_hours,
            price_cents: call.header("quote-cents").and_then(|cents| cents.parse().ok()),
        },
        keyed: call.header("idempotency-key").is_some(),
        receipts: own.into_iter().chain(event).collect(),
        done,
    };
    if jobs.send(job).await.is_err() || wait.await.is_err() {
        return Answer::new(500, "the writer has stopped\n");
    }
    Answer::new(200, "written\n")
}

fn stats(books: &Mutex<Books>) -> Answer {
    let books = books.lock().expect("no panic under this lock");
    let pending: usize = books.receipts.values().map(Vec::len).sum();
    Answer::json(&json!({
        "rows_total": books.rows_total, "doubled_total": books.doubled_total,
        "receipts_pending": pending, "strangers_total": books.strangers_total,
    }))
}

/// The one who writes. It stops at the first error: a sync that failed is not tried again, and nothing is answered.
struct Writer {
    file: File,
    books: Arc<Mutex<Books>>,
    ids: BTreeSet<String>,
    reported: BTreeSet<String>,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while waiting.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            if let Err(error) = self.write(&mut batch) {
                eprintln!("warehouse: cannot write rows: {error}");
                return;
            }
        }
    }

    fn write(&mut self, batch: &mut Vec<Job>) -> std::io::Result<()> {
        let mut lines = Vec::new();
        let (mut rows, mut doubled, mut receipts) = (0, 0, Vec::new());
        for job in batch.iter_mut() {
            let first = self.ids.insert(job.row.id.clone());
            let makes_a_row = first || !job.keyed;
            if makes_a_row {
                serde_json::to_writer(&mut lines, &job.row)?;
                lines.push(b'\n');
            }
            rows += u64::from(makes_a_row);
            doubled += u64::from(!makes_a_row);
            for receipt in job.receipts.drain(..) {
                let new = self.reported.insert(receipt.record.clone());
                receipts.extend((new || makes_a_row).then_some(receipt));
            }
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        self.note(rows, doubled, receipts);
        for job in batch.drain(..) {
            let _ = job.done.send(());
        }
        Ok(())
    }

    fn note(&self, rows: u64, doubled: u64, receipts: Vec<Receipt>) {
        let books = &mut *self.books.lock().expect("no panic under this lock");
        books.rows_total += rows;
        books.doubled_total += doubled;
        for receipt in receipts {
            match receipt.producer().and_then(|producer| books.receipts.get_mut(producer)) {
                Some(pending) => pending.push(receipt),
                None => books.strangers_total += 1,
            }
        }
    }
}

/// Reports to one node for ever. A batch is taken off the pending ones when the node has it, never before.
async fn report(node: String, base: String, books: Arc<Mutex<Books>>) {
    let (client, mut batch_number) = (Client::default(), 1_u64);
    loop {
        let batch: Vec<Receipt> = {
            let books = books.lock().expect("no panic under this lock");
            books.receipts[&node].iter().take(RECEIPTS_MAX).cloned().collect()
        };
        if !batch.is_empty() {
            deliver(&client, &base, batch_number, &batch).await;
            batch_number += 1;
            let mut books = books.lock().expect("no panic under this lock");
            books.receipts.entry(node.clone()).or_default().drain(..batch.len());
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
}

async fn deliver(client: &Client, base: &str, number: u64, batch: &[Receipt]) {
    let body = json!({"sink": "warehouse", "batch": number, "receipts": batch}).to_string();
    let ask = Ask::post("/api/ledger/receipts", body).with("content-type", "application/json");
    loop {
        let got = client.send_within(REPORT_TIMEOUT, base, &ask).await;
        if got.as_ref().is_ok_and(|got| got.status == 200 && got.whole) {
            return;
        }
        match got {
            Ok(got) => eprintln!("warehouse: {base} answered {}: {}", got.status, String::from_utf8_lossy(&got.body)),
            Err(lost) => eprintln!("warehouse: {base}: {lost}"),
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_names_its_node() {
        let receipt = Receipt::of("events.us-east.3.17;tag=00ff", b"").unwrap();
        assert_eq!(receipt.producer(), Some("us-east"));
        assert_eq!((receipt.record.as_str(), receipt.tag.as_str()), ("events.us-east.3.17", "00ff"));
        assert_eq!(Receipt::of("nothing of ours", b""), None);
    }

    #[test]
    fn a_node_is_a_name_and_an_address() {
        assert_eq!(node("a=http://127.0.0.1:9"), Ok(("a".into(), "127.0.0.1:9".into())));
        assert!(node("127.0.0.1:9").is_err() && node("a=b").is_err());
    }
}
