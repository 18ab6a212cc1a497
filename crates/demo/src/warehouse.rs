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
//! in numbered batches (`seawall-client`), the same batch again until the node says 200.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyhow::Context;
use seawall_client::{Node, Outbox, Receipt};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::caller;
use crate::clock;
use crate::tally::Row;
use crate::tracking::digest;
use crate::web::{self, Answer, Call};

/// Rows written with one sync at most.
const BATCH_MAX: usize = 256;
/// Writes that may wait for the writer.
const WAITING_MAX: usize = 1_024;
const REPORT_EVERY: Duration = Duration::from_millis(150);

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
    let (jobs, waiting) = mpsc::channel(WAITING_MAX);
    let outbox = Arc::new(Mutex::new(Outbox::open(args.rows.with_extension("receipts"), "warehouse")?));
    let writer = Writer {
        file,
        books: Arc::clone(&books),
        ids: BTreeSet::new(),
        reported: BTreeSet::new(),
        nodes: args.admin.iter().map(|(node, _)| node.clone()).collect(),
        outbox: Arc::clone(&outbox),
    };
    // A thread of its own: a sync blocks, and answering must go on meanwhile.
    std::thread::Builder::new().name("writer".into()).spawn(move || writer.run(waiting))?;
    for (node, address) in args.admin {
        let (node, outbox) = (Node::new(node, address), Arc::downgrade(&outbox));
        std::thread::Builder::new().name("reporter".into()).spawn(move || report(&node, &outbox))?;
    }
    let (jobs, desk) = (jobs, (books, outbox));
    match web::serve(listener, move |call| serve(jobs.clone(), desk.clone(), call)).await {}
}

/// What is counted, and what is to be reported.
type Desk = (Arc<Mutex<Books>>, Arc<Mutex<Outbox>>);

async fn serve(jobs: mpsc::Sender<Job>, desk: Desk, call: Call) -> Answer {
    match (call.method.as_str(), call.path.as_str()) {
        ("POST", "/predictions") => write(&jobs, &call).await,
        ("GET", "/stats") => stats(&desk),
        ("GET", "/healthz") => Answer::new(200, "ok\n"),
        _ => Answer::new(404, "no such thing\n"),
    }
}

async fn write(jobs: &mpsc::Sender<Job>, call: &Call) -> Answer {
    let prediction: Prediction = match serde_json::from_slice(&call.body) {
        Ok(prediction) => prediction,
        Err(error) => return Answer::new(400, format!("not a prediction: {error}\n")),
    };
    let own = call.header("seawall-record").and_then(|stamp| Receipt::of(stamp, &call.body).ok());
    let event = prediction.record.as_deref().and_then(|stamp| Receipt::of(stamp, prediction.event.as_bytes()).ok());
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

fn stats((books, outbox): &Desk) -> Answer {
    let pending = outbox.lock().expect("no panic under this lock").waiting();
    let books = books.lock().expect("no panic under this lock");
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
    /// Whom receipts can be reported to.
    nodes: BTreeSet<String>,
    outbox: Arc<Mutex<Outbox>>,
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

    fn write(&mut self, batch: &mut Vec<Job>) -> anyhow::Result<()> {
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
                let new = self.reported.insert(receipt.record().to_owned());
                receipts.extend((new || makes_a_row).then_some(receipt));
            }
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        self.note(rows, doubled, &receipts)?;
        for job in batch.drain(..) {
            let _ = job.done.send(());
        }
        Ok(())
    }

    /// Counts, and files the receipts: nothing is answered before these are safe, too.
    fn note(&self, rows: u64, doubled: u64, receipts: &[Receipt]) -> anyhow::Result<()> {
        let is_ours = |receipt: &&Receipt| receipt.node().is_some_and(|node| self.nodes.contains(node));
        let ours: Vec<&Receipt> = receipts.iter().filter(is_ours).collect();
        let mut outbox = self.outbox.lock().expect("no panic under this lock");
        ours.iter().try_for_each(|receipt| outbox.note_receipt(receipt))?;
        outbox.sync()?;
        drop(outbox);
        let books = &mut *self.books.lock().expect("no panic under this lock");
        books.rows_total += rows;
        books.doubled_total += doubled;
        books.strangers_total += (receipts.len() - ours.len()) as u64;
        Ok(())
    }
}

/// Reports to one node, until the warehouse is gone. Whoever writes rows never waits for a node.
fn report(node: &Node, outbox: &Weak<Mutex<Outbox>>) {
    while let Some(outbox) = outbox.upgrade() {
        if let Err(error) = report_once(node, &outbox) {
            eprintln!("warehouse: {error}");
        }
        drop(outbox);
        std::thread::sleep(REPORT_EVERY);
    }
}

fn report_once(node: &Node, outbox: &Mutex<Outbox>) -> anyhow::Result<()> {
    let next = || outbox.lock().expect("no panic under this lock").batch(node.name());
    while let Some(batch) = next()? {
        batch.post(node)?;
        outbox.lock().expect("no panic under this lock").signed(batch)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_name_and_an_address() {
        assert_eq!(node("a=http://127.0.0.1:9"), Ok(("a".into(), "127.0.0.1:9".into())));
        assert!(node("127.0.0.1:9").is_err() && node("a=b").is_err());
    }
}
