//! Seawall's spool on the machine's own disk, with a watch on its writer: how long every commit takes, from the write
//! of a batch to the end of its sync, and what the writer does in its time. The watch costs six looks at a clock a
//! commit.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use seawall_bench::{now, thread_cpu_nanos};
use seawall_core::spool::{NewRecord, Terms};
use seawall_core::time::{Mono, Wall};
use seawall_store::disk::{Background, DiskFile, LockError, RealFile, RealLock};
use seawall_store::{Clock, Disk, EngineThreads, Opened, RealDisk, RecoveryReport, Spool, Store, StoreOptions};

use crate::engine::{MEASURING, nanos_since};

const RECORD_BYTES: usize = 1024;
/// Whom the records are for.
pub(crate) const UPSTREAM: &str = "queue";

/// A running store.
pub(crate) struct Seawall {
    pub(crate) spool: Spool,
    pub(crate) report: RecoveryReport,
    store: Store,
    threads: EngineThreads,
    watch: Watch,
}

impl Seawall {
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        let watch = Watch::default();
        let disk = WatchedDisk(RealDisk, watch.clone());
        let mut options = StoreOptions::new(dir, "bench");
        options.spool_bytes_max = 64 << 30;
        let Opened { store, engine, report, .. } = Store::open(disk, options, Stopwatch(now()), || [7; 32])?;
        let threads = engine.spawn_threads()?;
        Ok(Self { spool: store.spool.clone(), report, store, threads, watch })
    }

    /// What the writer did since the start.
    pub(crate) async fn stop(self) -> anyhow::Result<Watched> {
        self.store.close().await;
        self.threads.join();
        if let Some(reason) = self.store.failure() {
            anyhow::bail!("the spool has stopped: {reason}");
        }
        Ok(std::mem::take(&mut self.watch.lock()))
    }
}

/// A record of 1 KiB in all, with another key every time.
pub(crate) struct RecordMaker {
    record: NewRecord,
    number: u64,
    step: u64,
}

impl RecordMaker {
    /// Keys `number`, `number + step` and so on.
    pub(crate) fn new(number: u64, step: u64) -> Self {
        let mut record = NewRecord {
            upstream: UPSTREAM.into(),
            route: "events".into(),
            order_key: None,
            idempotency_key: "key-0000000000000000".into(),
            fingerprint: [7; 32],
            ledger: None,
            method: "POST".into(),
            target: "/events".into(),
            headers: vec![("content-type".into(), b"application/json".to_vec())],
            body: Vec::new(),
            accepted: Wall::default(),
            first_failure: "connect_refused".into(),
            attempts: 1,
            terms: Terms::default(),
        };
        record.body = vec![b'x'; RECORD_BYTES - record.encoded_len()];
        Self { record, number, step }
    }

    pub(crate) fn next(&mut self) -> &NewRecord {
        use std::fmt::Write as _;
        let key = &mut self.record.idempotency_key;
        key.clear();
        let _ = write!(key, "key-{:016x}", self.number);
        self.number += self.step;
        &self.record
    }
}

/// Keeps a record that was not known.
pub(crate) async fn enqueue(spool: &Spool, record: &NewRecord) -> anyhow::Result<()> {
    let kept = spool.enqueue(record).await.context("cannot enqueue")?;
    anyhow::ensure!(!kept.already, "key `{}` was used before", record.idempotency_key);
    Ok(())
}

/// Time since the start.
struct Stopwatch(Instant);

impl Clock for Stopwatch {
    fn mono(&self) -> Mono {
        Mono::ZERO + self.0.elapsed()
    }

    fn wall(&self) -> Wall {
        Wall::default() + self.0.elapsed()
    }
}

/// What a writer did.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Nanoseconds of every commit.
    pub(crate) commits: Vec<u32>,
    /// Of batches.
    pub(crate) writes: Spent,
    pub(crate) syncs: Spent,
    /// Making, naming and removing segments, with the syncs that takes.
    pub(crate) segments: Spent,
    /// CPU nanoseconds of the writer's thread, at its last commit.
    pub(crate) cpu_nanos: u64,
    /// The same when the warm-up ended.
    cpu_before: u64,
    begun: Option<Instant>,
}

/// Time in one kind of call.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) wall: Duration,
    pub(crate) cpu_nanos: u64,
}

#[derive(Clone, Debug, Default)]
struct Watch(Arc<Mutex<Watched>>);

impl Watch {
    fn lock(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spend<T>(&self, kind: fn(&mut Watched) -> &mut Spent, call: impl FnOnce() -> T) -> T {
        if is_beside_the_writer() || !MEASURING.load(Relaxed) {
            return call();
        }
        let (begin, cpu) = (now(), thread_cpu_nanos());
        let result = call();
        let mut watched = self.lock();
        let spent = kind(&mut watched);
        spent.wall += begin.elapsed();
        spent.cpu_nanos += thread_cpu_nanos() - cpu;
        result
    }

    fn segments<T>(&self, call: impl FnOnce() -> T) -> T {
        self.spend(|watched| &mut watched.segments, call)
    }
}

/// Segments are made ahead on a thread of their own, which nobody waits for.
fn is_beside_the_writer() -> bool {
    std::thread::current().name() == Some("seawall-disk")
}

#[derive(Clone, Debug)]
struct WatchedDisk(RealDisk, Watch);

#[derive(Debug)]
struct WatchedFile(RealFile, Watch);

impl Disk for WatchedDisk {
    type File = WatchedFile;
    type Lock = RealLock;

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<WatchedFile> {
        let file = self.1.segments(|| self.0.create(path, bytes))?;
        Ok(WatchedFile(file, self.1.clone()))
    }

    fn open(&self, path: &Path) -> io::Result<WatchedFile> {
        Ok(WatchedFile(self.0.open(path)?, self.1.clone()))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.read(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.1.segments(|| self.0.remove(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.1.segments(|| self.0.rename(from, to))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.1.segments(|| self.0.sync_dir(dir))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.0.free_bytes(dir)
    }

    fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Background<T> {
        self.0.begin(work)
    }

    fn lock(&self, path: &Path) -> Result<RealLock, LockError> {
        self.0.lock(path)
    }
}

impl DiskFile for WatchedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // What is written at 0 is the header of a new segment, and no batch.
        if offset == 0 {
            return self.1.segments(|| self.0.write_at(bytes, offset));
        }
        self.1.lock().begun = Some(now());
        self.1.spend(|watched| &mut watched.writes, || self.0.write_at(bytes, offset))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(bytes, offset)
    }

    fn write_zeros(&self, from: u64) -> io::Result<()> {
        self.0.write_zeros(from)
    }

    fn sync_data(&self) -> io::Result<()> {
        if is_beside_the_writer() {
            return self.0.sync_data();
        }
        let Some(begun) = self.1.lock().begun.take() else {
            return self.1.segments(|| self.0.sync_data());
        };
        self.1.spend(|watched| &mut watched.syncs, || self.0.sync_data())?;
        let mut watched = self.1.lock();
        if MEASURING.load(Relaxed) {
            watched.commits.push(nanos_since(begun));
            watched.cpu_nanos = thread_cpu_nanos() - watched.cpu_before;
        } else {
            watched.cpu_before = thread_cpu_nanos();
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}
