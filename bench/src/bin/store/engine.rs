//! The peers, and the one thread that writes for them: takes what lies in its queue, makes it safe with one sync,
//! answers all. That is what Seawall's spool does, so that no peer is slower for want of a group commit.
//!
//! Every peer keeps the record under a number and the number and fingerprint under the hash of the idempotency key,
//! and looks the key up before: a key that is known keeps nothing. The raw files keep bytes and nothing else.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, bail};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use redb::{ReadableTable as _, TableDefinition};
use rusqlite::{Connection, params};
use rustix::fs::{FallocateFlags, fallocate};
use seawall_bench::now;
use seawall_core::spool::NewRecord;
use tokio::sync::{mpsc, oneshot};

/// As many as Seawall takes, waiting and in one batch.
const BATCH_MAX: usize = 4096;
/// Overwritten in a circle: written once before, so that a sync has nothing to do but write.
const WRITTEN_BYTES: u64 = 64 << 20;
/// Reserved and never written: what the fastest writes in four seconds. Longer runs begin again, in written blocks.
const RESERVED_BYTES: u64 = 2 << 30;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Seawall,
    Fjall,
    Redb,
    Sqlite,
    /// A file whose blocks were written before.
    Raw,
    /// A file whose blocks are reserved and not yet written, as Seawall's segments are.
    RawReserved,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Seawall, Self::Fjall, Self::Redb, Self::Sqlite, Self::Raw, Self::RawReserved];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Seawall => "seawall",
            Self::Fjall => "fjall",
            Self::Redb => "redb",
            Self::Sqlite => "sqlite",
            Self::Raw => "raw",
            Self::RawReserved => "raw-reserved",
        }
    }

    pub(crate) fn named(name: &str) -> anyhow::Result<Self> {
        let known = Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|kind| kind.name() == name).with_context(|| format!("known are {known}"))
    }
}

/// A record ready to be kept: encoded and hashed by its producer, as Seawall does.
struct Draft {
    key: [u8; 16],
    fingerprint: [u8; 32],
    bytes: Vec<u8>,
}

/// Keeps batches.
trait Engine: Send {
    /// Every record's number, once all are safe.
    fn commit(&mut self, batch: &[Write]) -> anyhow::Result<Vec<u64>>;
}

struct Write {
    draft: Draft,
    answer: oneshot::Sender<u64>,
}

/// A peer with its writer. Ends when this and all handles are gone.
pub(crate) struct Peer {
    pub(crate) handle: PeerHandle,
    writer: JoinHandle<anyhow::Result<Vec<u32>>>,
}

#[derive(Clone)]
pub(crate) struct PeerHandle(mpsc::Sender<Write>);

impl Peer {
    pub(crate) fn start(kind: Kind, dir: &Path) -> anyhow::Result<Self> {
        let engine = open(kind, dir).with_context(|| format!("cannot open {}", kind.name()))?;
        let (writes, queue) = mpsc::channel(BATCH_MAX);
        let writer = std::thread::Builder::new().name(kind.name().into()).spawn(move || drive(engine, queue))?;
        Ok(Self { handle: PeerHandle(writes), writer })
    }

    /// Nanoseconds of every commit.
    pub(crate) fn stop(self) -> anyhow::Result<Vec<u32>> {
        drop(self.handle);
        self.writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    }
}

impl PeerHandle {
    pub(crate) async fn enqueue(&self, record: &NewRecord) -> anyhow::Result<u64> {
        let mut bytes = Vec::with_capacity(record.encoded_len());
        record.encode(&mut bytes);
        let draft = Draft { key: record.key().0, fingerprint: record.fingerprint, bytes };
        let (answer, answered) = oneshot::channel();
        self.0.send(Write { draft, answer }).await.ok().context("the writer has stopped")?;
        answered.await.context("the writer has stopped")
    }
}

/// False while a run warms up: what happens then is done and not counted.
pub(crate) static MEASURING: AtomicBool = AtomicBool::new(false);

fn drive(mut engine: Box<dyn Engine>, mut queue: mpsc::Receiver<Write>) -> anyhow::Result<Vec<u32>> {
    let (mut batch, mut commits) = (Vec::new(), Vec::new());
    while queue.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let begin = now();
        let ids = engine.commit(&batch)?;
        if MEASURING.load(Relaxed) {
            commits.push(nanos_since(begin));
        }
        for (write, id) in batch.drain(..).zip(ids) {
            let _ = write.answer.send(id);
        }
    }
    Ok(commits)
}

/// At most four seconds.
pub(crate) fn nanos_since(begin: Instant) -> u32 {
    u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

fn open(kind: Kind, dir: &Path) -> anyhow::Result<Box<dyn Engine>> {
    std::fs::create_dir_all(dir)?;
    Ok(match kind {
        Kind::Fjall => Box::new(Fjall::open(dir)?),
        Kind::Redb => Box::new(Redb::open(dir)?),
        Kind::Sqlite => Box::new(Sqlite::open(dir)?),
        Kind::Raw => Box::new(RawFile::written(dir)?),
        Kind::RawReserved => Box::new(RawFile::reserved(dir)?),
        Kind::Seawall => bail!("Seawall has its own writer"),
    })
}

/// An LSM tree with a journal: one batch over two keyspaces, then `fdatasync` of the journal.
struct Fjall {
    db: Database,
    records: Keyspace,
    keys: Keyspace,
    next_id: u64,
}

impl Fjall {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let db = Database::builder(dir).open()?;
        let records = db.keyspace("records", KeyspaceCreateOptions::default)?;
        let keys = db.keyspace("keys", KeyspaceCreateOptions::default)?;
        Ok(Self { db, records, keys, next_id: 1 })
    }

    fn known(&self, key: [u8; 16]) -> anyhow::Result<Option<u64>> {
        Ok(self.keys.get(key)?.map(|value| id_of(&value)))
    }
}

impl Engine for Fjall {
    fn commit(&mut self, writes: &[Write]) -> anyhow::Result<Vec<u64>> {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        // A batch does not see itself.
        let (mut ids, mut staged) = (Vec::with_capacity(writes.len()), HashMap::with_capacity(writes.len()));
        for Write { draft, .. } in writes {
            let known = match staged.get(&draft.key) {
                Some(&id) => Some(id),
                None => self.known(draft.key)?,
            };
            ids.push(known.unwrap_or_else(|| {
                let id = self.next_id;
                self.next_id += 1;
                batch.insert(&self.records, id.to_be_bytes(), draft.bytes.as_slice());
                batch.insert(&self.keys, draft.key, key_value(id, draft));
                staged.insert(draft.key, id);
                id
            }));
        }
        batch.commit()?;
        Ok(ids)
    }
}

/// A copy-on-write B-tree: one transaction over two tables, durable at its commit.
struct Redb {
    db: redb::Database,
    next_id: u64,
}

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const KEYS: TableDefinition<'_, [u8; 16], [u8; 40]> = TableDefinition::new("keys");

impl Redb {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { db: redb::Database::create(dir.join("redb"))?, next_id: 1 })
    }
}

impl Engine for Redb {
    fn commit(&mut self, writes: &[Write]) -> anyhow::Result<Vec<u64>> {
        let transaction = self.db.begin_write()?;
        let mut ids = Vec::with_capacity(writes.len());
        {
            let (mut records, mut keys) = (transaction.open_table(RECORDS)?, transaction.open_table(KEYS)?);
            for Write { draft, .. } in writes {
                if let Some(known) = keys.get(draft.key)? {
                    ids.push(id_of(&known.value()));
                    continue;
                }
                records.insert(self.next_id, draft.bytes.as_slice())?;
                keys.insert(draft.key, key_value(self.next_id, draft))?;
                ids.push(self.next_id);
                self.next_id += 1;
            }
        }
        transaction.commit()?;
        Ok(ids)
    }
}

/// A B-tree with a write-ahead log: one transaction over two tables, the log synced at its commit.
struct Sqlite {
    db: Connection,
    next_id: u64,
}

impl Sqlite {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let db = Connection::open(dir.join("sqlite"))?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536;
             CREATE TABLE records (id INTEGER PRIMARY KEY, record BLOB NOT NULL);
             CREATE TABLE keys (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;",
        )?;
        Ok(Self { db, next_id: 1 })
    }
}

impl Engine for Sqlite {
    fn commit(&mut self, writes: &[Write]) -> anyhow::Result<Vec<u64>> {
        let transaction = self.db.transaction()?;
        let mut ids = Vec::with_capacity(writes.len());
        {
            let mut key = transaction.prepare_cached("INSERT INTO keys VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
            let mut known = transaction.prepare_cached("SELECT value FROM keys WHERE key = ?1")?;
            let mut record = transaction.prepare_cached("INSERT INTO records VALUES (?1, ?2)")?;
            for Write { draft, .. } in writes {
                if key.execute(params![draft.key, key_value(self.next_id, draft)])? == 0 {
                    ids.push(known.query_row([draft.key], |row| Ok(id_of(row.get_ref(0)?.as_blob()?)))?);
                    continue;
                }
                record.execute(params![self.next_id as i64, draft.bytes])?;
                ids.push(self.next_id);
                self.next_id += 1;
            }
        }
        transaction.commit()?;
        Ok(ids)
    }
}

/// What the disk gives: the bytes of the batch in one write, then `fdatasync`. No checksum, no key, no index.
pub(crate) struct RawFile {
    file: File,
    end: u64,
    size: u64,
    next_id: u64,
    bytes: Vec<u8>,
}

impl RawFile {
    pub(crate) fn written(dir: &Path) -> anyhow::Result<Self> {
        let raw = Self::create(dir, WRITTEN_BYTES)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..WRITTEN_BYTES).step_by(zeros.len()) {
            raw.file.write_all_at(&zeros, at)?;
        }
        raw.file.sync_all()?;
        Ok(raw)
    }

    pub(crate) fn reserved(dir: &Path) -> anyhow::Result<Self> {
        let raw = Self::create(dir, RESERVED_BYTES)?;
        fallocate(&raw.file, FallocateFlags::empty(), 0, RESERVED_BYTES)?;
        raw.file.sync_all()?;
        Ok(raw)
    }

    fn create(dir: &Path, size: u64) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(dir.join("raw"))?;
        Ok(Self { file, end: 0, size, next_id: 1, bytes: Vec::new() })
    }

    /// Behind what was written before, or at the beginning again.
    pub(crate) fn write_and_sync(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.end + bytes.len() as u64 > self.size {
            self.end = 0;
        }
        self.file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        self.file.sync_data()
    }
}

impl Engine for RawFile {
    fn commit(&mut self, writes: &[Write]) -> anyhow::Result<Vec<u64>> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        writes.iter().for_each(|write| bytes.extend_from_slice(&write.draft.bytes));
        self.write_and_sync(&bytes)?;
        self.bytes = bytes;
        let first = self.next_id;
        self.next_id += writes.len() as u64;
        Ok((first..self.next_id).collect())
    }
}

fn key_value(id: u64, draft: &Draft) -> [u8; 40] {
    let mut value = [0; 40];
    value[..8].copy_from_slice(&id.to_le_bytes());
    value[8..].copy_from_slice(&draft.fingerprint);
    value
}

/// The number [`key_value`] put there; 0 if it is none of ours.
fn id_of(value: &[u8]) -> u64 {
    value.first_chunk().copied().map_or(0, u64::from_le_bytes)
}
