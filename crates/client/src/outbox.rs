//! Receipts on their way: files, so that a sink that dies takes none with it.
//!
//! ```text
//! DIR/SINK         whose outbox this is
//! DIR/NODE.open    what gathers, one receipt a line: number;tag;digest
//! DIR/NODE.17      batch 17, closed: never changed again, removed when the node has signed for it
//! DIR/NODE.next    the number of the batch after the last that was signed for, where none is left
//! ```
//! A batch is closed by giving the open file its number as a name, in one step, and syncing the folder. One process has
//! an outbox at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::http::{self, Node, SendError};
use crate::receipt::{NotAStamp, Receipt};

/// Receipts in one batch at most; a node takes 65,536.
pub const RECEIPTS_MAX: usize = 10_000;
const SINK: &str = "SINK";

/// Why the outbox could not be used.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// A name no node would take.
    #[error("`{0}` is no name of a sink: 1 to 128 of `A-Z a-z 0-9 _ -`")]
    Sink(String),
    /// Another sink's.
    #[error("the outbox `{}` belongs to sink `{found}`, this is `{sink}`", dir.display())]
    Other {
        /// The folder.
        dir: PathBuf,
        /// As written there.
        found: String,
        /// Ours.
        sink: String,
    },
    /// Another process has it.
    #[error("the outbox `{}` is in use by another process", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A header that names no node.
    #[error(transparent)]
    Stamp(#[from] NotAStamp),
    /// A line of a closed batch that is none.
    #[error("`{}` is damaged in line {line}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The file system said no.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A write or a sync failed before: what is safe is not known. Open the outbox again.
    #[error("the outbox has failed before: open it again")]
    Failed,
    /// The node could not be told.
    #[error("cannot report to node `{node}`")]
    Send {
        /// Its name.
        node: String,
        /// Why.
        source: SendError,
    },
}

/// What was signed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Batches.
    pub batches: u64,
    /// Receipts in them.
    pub receipts: u64,
}

/// Receipts for one node, under a number that is never given to others. Kept by whoever sends it while others go on.
#[derive(Debug)]
pub struct Batch {
    node: String,
    number: u64,
    receipts: usize,
    body: String,
}

impl Batch {
    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// What is posted to `/api/ledger/receipts`, for those who send it themselves.
    #[must_use]
    pub fn body(&self) -> &str {
        &self.body
    }

    /// Sends it; blocks for up to some seconds. Signed for when this returns: tell [`Outbox::signed`].
    ///
    /// # Errors
    /// [`OutboxError::Send`].
    pub fn post(&self, node: &Node) -> Result<(), OutboxError> {
        http::post(node, &self.body).map_err(|source| OutboxError::Send { node: self.node.clone(), source })
    }
}

/// Receipts on their way to their nodes. See the module's text.
#[derive(Debug)]
pub struct Outbox {
    dir: PathBuf,
    sink: String,
    open: BTreeMap<String, Open>,
    /// Batches no node has signed for: how many receipts each has.
    closed: BTreeMap<String, BTreeMap<u64, usize>>,
    failed: bool,
    /// Held as long as the outbox is ours.
    _lock: File,
}

/// What gathers for one node.
#[derive(Debug)]
struct Open {
    file: File,
    receipts: usize,
    is_synced: bool,
}

impl Outbox {
    /// Opens the outbox of a sink, or begins one. What a crash left half-written, and nobody was promised, is cut off.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn open(dir: impl Into<PathBuf>, sink: &str) -> Result<Self, OutboxError> {
        let dir = dir.into();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=128).contains(&sink.len()) || !sink.bytes().all(is_name) {
            return Err(OutboxError::Sink(sink.into()));
        }
        fs::create_dir_all(&dir).map_err(failed("make folder", &dir))?;
        let path = dir.join(SINK);
        match fs::read_to_string(&path) {
            Ok(found) if found.trim() == sink => {}
            Ok(found) => return Err(OutboxError::Other { dir, found: found.trim().into(), sink: sink.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => write_whole(&dir, SINK, sink)?,
            Err(error) => return Err(failed("read", &path)(error)),
        }
        sync_above(&dir)?;
        let lock = File::open(&path).map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OutboxError::InUse { dir }),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
        let (open, closed) = (BTreeMap::new(), BTreeMap::new());
        let mut outbox = Self { dir, sink: sink.into(), open, closed, failed: false, _lock: lock };
        for name in outbox.names()? {
            if let Some(node) = name.strip_suffix(".open") {
                outbox.reopen(node)?;
            } else if let Some((node, number)) = number_of(&name) {
                let receipts = read_batch(&outbox.dir.join(&name))?.len();
                outbox.closed.entry(node.into()).or_default().insert(number, receipts);
            }
        }
        Ok(outbox)
    }

    fn names(&self) -> Result<Vec<String>, OutboxError> {
        let entries = fs::read_dir(&self.dir).map_err(failed("list", &self.dir))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        names.collect::<Result<_, _>>().map_err(failed("list", &self.dir))
    }

    fn reopen(&mut self, node: &str) -> Result<&mut Open, OutboxError> {
        let path = self.dir.join(format!("{node}.open"));
        let is_new = !path.exists();
        let file =
            OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(failed("open", &path))?;
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let (whole, receipts) = whole_lines(&text);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(failed("cut", &path))?;
        }
        if is_new {
            sync_dir(&self.dir)?;
        }
        Ok(self.open.entry(node.into()).or_insert(Open { file, receipts, is_synced: false }))
    }

    /// Notes an arrival: the value of its `Seawall-Record` header, and its body as it arrived. Safe after
    /// [`Self::sync`], and only then should the request be answered.
    ///
    /// # Errors
    /// [`OutboxError`]; [`OutboxError::Stamp`] for a header that names no node to report to.
    pub fn note(&mut self, header: &str, body: &[u8]) -> Result<(), OutboxError> {
        self.note_receipt(&Receipt::of(header, body)?)
    }

    /// As [`Self::note`], of a receipt made elsewhere.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn note_receipt(&mut self, receipt: &Receipt) -> Result<(), OutboxError> {
        self.check()?;
        let node = receipt.node().ok_or_else(|| NotAStamp(receipt.record().into()))?.to_owned();
        if self.open.get(&node).is_some_and(|open| open.receipts >= RECEIPTS_MAX) {
            self.close_batch(&node)?;
        }
        let open = match self.open.get_mut(&node) {
            Some(open) => open,
            None => self.reopen(&node)?,
        };
        (open.receipts, open.is_synced) = (open.receipts + 1, false);
        let written = open.file.write_all(receipt.line().as_bytes());
        self.checked(written, "write", &format!("{node}.open"))
    }

    /// Makes everything noted safe.
    ///
    /// # Errors
    /// [`OutboxError`]; what was noted since the last sync may or may not be safe then.
    pub fn sync(&mut self) -> Result<(), OutboxError> {
        self.check()?;
        let unsynced = self.open.iter_mut().filter(|(_, open)| !open.is_synced);
        let mut failure = None;
        for (node, open) in unsynced {
            match open.file.sync_data() {
                Ok(()) => open.is_synced = true,
                Err(error) => failure = failure.or(Some((node.clone(), error))),
            }
        }
        match failure {
            None => Ok(()),
            Some((node, error)) => self.checked(Err(error), "sync", &format!("{node}.open")),
        }
    }

    /// Nodes for which something waits.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let gathering = self.open.iter().filter(|(_, open)| open.receipts > 0).map(|(node, _)| node);
        let closed = self.closed.iter().filter(|(_, batches)| !batches.is_empty()).map(|(node, _)| node);
        let nodes: BTreeSet<&String> = gathering.chain(closed).collect();
        nodes.into_iter().cloned().collect()
    }

    /// Receipts that no node has signed for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let closed: usize = self.closed.values().flat_map(BTreeMap::values).sum();
        closed + self.open.values().map(|open| open.receipts).sum::<usize>()
    }

    /// Sends a node everything that waits for it, a batch at a time, until it has signed for all of it. Whoever notes
    /// meanwhile waits; [`Self::batch`] and [`Self::signed`] let him go on.
    ///
    /// # Errors
    /// [`OutboxError`]; [`OutboxError::Send`] if the node could not be told: the same batch goes first next time.
    pub fn send(&mut self, node: &Node) -> Result<Sent, OutboxError> {
        let mut sent = Sent::default();
        while let Some(batch) = self.batch(node.name())? {
            sent.batches += 1;
            sent.receipts += batch.receipts as u64;
            batch.post(node)?;
            self.signed(batch)?;
        }
        Ok(sent)
    }

    /// The next batch for a node, if anything waits for it: what has gathered is closed for that. Safe here before it
    /// is returned; the same one again until it is [`Self::signed`] for.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn batch(&mut self, node: &str) -> Result<Option<Batch>, OutboxError> {
        self.check()?;
        let first =
            |outbox: &Self| outbox.closed.get(node).and_then(|batches| batches.first_key_value()).map(|it| *it.0);
        if first(self).is_none() && self.open.get(node).is_some_and(|open| open.receipts > 0) {
            self.close_batch(node)?;
        }
        let Some(number) = first(self) else { return Ok(None) };
        let receipts = read_batch(&self.dir.join(format!("{node}.{number}")))?;
        let texts = receipts
            .iter()
            .map(|receipt| json!({ "record": receipt.record(), "tag": receipt.tag(), "digest": receipt.digest() }));
        let body = json!({ "sink": self.sink, "node": node, "batch": number, "receipts": texts.collect::<Vec<_>>() })
            .to_string();
        Ok(Some(Batch { node: node.into(), number, receipts: receipts.len(), body }))
    }

    /// The node has taken a batch: it is not sent again.
    ///
    /// # Errors
    /// [`OutboxError`]; the batch may then be sent once more, which changes nothing there.
    pub fn signed(&mut self, batch: Batch) -> Result<(), OutboxError> {
        let Batch { node, number, .. } = batch;
        let path = self.dir.join(format!("{node}.{number}"));
        // First the number of the next one: the file is what says it otherwise.
        write_whole(&self.dir, &format!("{node}.next"), &(number + 1).to_string())?;
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        self.closed.entry(node).or_default().remove(&number);
        Ok(())
    }

    /// What gathers for a node becomes its next batch.
    fn close_batch(&mut self, node: &str) -> Result<(), OutboxError> {
        let Some(open) = self.open.remove(node) else { return Ok(()) };
        if !open.is_synced {
            let synced = open.file.sync_data();
            self.checked(synced, "sync", &format!("{node}.open"))?;
        }
        let number = self.next_number(node)?;
        let (from, to) = (self.dir.join(format!("{node}.open")), self.dir.join(format!("{node}.{number}")));
        fs::rename(&from, &to).map_err(failed("rename", &from))?;
        self.closed.entry(node.into()).or_default().insert(number, open.receipts);
        sync_dir(&self.dir)
    }

    fn next_number(&self, node: &str) -> Result<u64, OutboxError> {
        let last = self.closed.get(node).and_then(|batches| batches.last_key_value());
        if let Some((last, _)) = last {
            return Ok(last + 1);
        }
        let path = self.dir.join(format!("{node}.next"));
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| OutboxError::Damaged { path, line: 1 }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    fn check(&self) -> Result<(), OutboxError> {
        if self.failed { Err(OutboxError::Failed) } else { Ok(()) }
    }

    /// After a write or a sync that failed nobody knows what the disk holds: nothing more is promised.
    fn checked(&mut self, result: io::Result<()>, what: &'static str, name: &str) -> Result<(), OutboxError> {
        result.map_err(|error| {
            self.failed = true;
            failed(what, &self.dir.join(name))(error)
        })
    }
}

/// A batch's node and number, of its file's name.
fn number_of(name: &str) -> Option<(&str, u64)> {
    let (node, number) = name.rsplit_once('.')?;
    Some((node, number.parse().ok()?))
}

/// Bytes of the lines that were written whole, and how many these are.
fn whole_lines(text: &[u8]) -> (usize, usize) {
    let (mut whole, mut lines) = (0, 0);
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let is_whole = line.strip_suffix(b"\n").and_then(|line| str::from_utf8(line).ok()).and_then(Receipt::parse);
        if is_whole.is_none() {
            break;
        }
        (whole, lines) = (whole + line.len(), lines + 1);
    }
    (whole, lines)
}

fn read_batch(path: &Path) -> Result<Vec<Receipt>, OutboxError> {
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    let receipts = (1..).zip(text.lines());
    receipts
        .map(|(line, text)| Receipt::parse(text).ok_or_else(|| OutboxError::Damaged { path: path.into(), line }))
        .collect()
}

/// A file that is there whole or not at all.
fn write_whole(dir: &Path, name: &str, text: &str) -> Result<(), OutboxError> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(failed("write", &path))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), OutboxError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync folder", dir))
}

/// The folder is a name too, and so is each of those above it that were made for it; as far up as the mount goes, and
/// as we may look.
fn sync_above(dir: &Path) -> Result<(), OutboxError> {
    let dir = fs::canonicalize(dir).map_err(failed("find", dir))?;
    let device = fs::metadata(&dir).map_err(failed("look at", &dir))?.dev();
    for above in dir.ancestors().skip(1) {
        match fs::metadata(above) {
            Ok(metadata) if metadata.dev() == device => {}
            _ => break,
        }
        match File::open(above).and_then(|above| above.sync_all()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            other => other.map_err(failed("sync folder", above))?,
        }
    }
    Ok(())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutboxError {
    let path = path.to_owned();
    move |source| OutboxError::Io { what, path, source }
}
