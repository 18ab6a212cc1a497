//! One run: so many producers, each waiting for its answer before it sends the next record.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use seawall_bench::{now, process_cpu_us};
use seawall_core::spool::NewRecord;
use seawall_store::Spool;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::engine::{Kind, MEASURING, Peer, PeerHandle, RawFile, nanos_since};
use crate::seawall::{self, RecordMaker, Seawall, Watched};

/// Before every run, on the same directory, not counted.
const WARM_UP: Duration = Duration::from_millis(300);
const WARM_UP_PRODUCERS: usize = 256;

/// What a run gave.
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    /// Of the whole process: producers, writer and what works behind it.
    pub(crate) cpu_us: f64,
    pub(crate) commits_per_second: f64,
    /// Nanoseconds from a record's sending to its answer, sorted.
    pub(crate) waits: Vec<u32>,
    /// Nanoseconds from a batch's write to the end of its sync, sorted; peers' bookkeeping included.
    pub(crate) commits: Vec<u32>,
    /// The run's length.
    pub(crate) elapsed: Duration,
    /// What Seawall's writer did.
    pub(crate) watched: Option<Watched>,
}

#[derive(Clone)]
enum Handle {
    Seawall(Spool),
    Peer(PeerHandle),
}

impl Handle {
    async fn enqueue(&self, record: &NewRecord) -> anyhow::Result<()> {
        match self {
            Self::Seawall(spool) => seawall::enqueue(spool, record).await,
            Self::Peer(peer) => peer.enqueue(record).await.map(|_| ()),
        }
    }
}

/// Runs on a fresh directory, which is gone afterwards.
pub(crate) fn measure(
    runtime: &Runtime,
    kind: Kind,
    dir: &Path,
    producers: usize,
    duration: Duration,
) -> anyhow::Result<Sample> {
    let sample = match kind {
        Kind::Seawall => {
            let seawall = Seawall::start(dir)?;
            let produced = runtime.block_on(warm(Handle::Seawall(seawall.spool.clone()), producers, duration));
            let mut watched = runtime.block_on(seawall.stop())?;
            let commits = std::mem::take(&mut watched.commits);
            Produced::sample(produced, Ok(commits)).map(|sample| Sample { watched: Some(watched), ..sample })
        }
        peer => {
            let peer = Peer::start(peer, dir)?;
            let produced = runtime.block_on(warm(Handle::Peer(peer.handle.clone()), producers, duration));
            Produced::sample(produced, peer.stop())
        }
    };
    std::fs::remove_dir_all(dir)?;
    settle(dir)?;
    sample.with_context(|| format!("{} failed with {producers} producers", kind.name()))
}

/// What was removed must not be written, nor freed, during somebody else's run.
fn settle(dir: &Path) -> anyhow::Result<()> {
    let parent = dir.parent().context("the data directory has no parent")?;
    rustix::fs::syncfs(std::fs::File::open(parent)?)?;
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

struct Produced {
    elapsed: Duration,
    cpu_us: f64,
    waits: Vec<u32>,
}

impl Produced {
    /// The writer's complaint tells more than the producers' that it is gone.
    fn sample(produced: anyhow::Result<Self>, commits: anyhow::Result<Vec<u32>>) -> anyhow::Result<Sample> {
        let mut commits = commits?;
        let Self { elapsed, cpu_us, mut waits } = produced?;
        let (records, seconds) = (waits.len() as f64, elapsed.as_secs_f64());
        waits.sort_unstable();
        commits.sort_unstable();
        Ok(Sample {
            per_second: records / seconds,
            cpu_us: cpu_us / records,
            commits_per_second: commits.len() as f64 / seconds,
            waits,
            commits,
            elapsed,
            watched: None,
        })
    }
}

/// A run after [`WARM_UP`] with many producers: everybody's first files are behind them.
async fn warm(handle: Handle, producers: usize, duration: Duration) -> anyhow::Result<Produced> {
    MEASURING.store(false, Relaxed);
    produce(handle.clone(), WARM_UP_PRODUCERS, 0, WARM_UP).await?;
    MEASURING.store(true, Relaxed);
    let produced = produce(handle, producers, 1 << 40, duration).await;
    MEASURING.store(false, Relaxed);
    produced
}

async fn produce(handle: Handle, producers: usize, first: u64, duration: Duration) -> anyhow::Result<Produced> {
    let (begin, cpu_before) = (now(), process_cpu_us());
    let mut tasks = JoinSet::new();
    for producer in 0..producers {
        let records = RecordMaker::new(first + producer as u64, producers as u64);
        tasks.spawn(producer_task(handle.clone(), records, begin + duration));
    }
    let mut runs = Vec::new();
    while let Some(run) = tasks.join_next().await {
        runs.push(run??);
    }
    let (elapsed, cpu_us) = (begin.elapsed(), process_cpu_us() - cpu_before);
    Ok(Produced { elapsed, cpu_us, waits: runs.concat() })
}

async fn producer_task(handle: Handle, mut records: RecordMaker, end: Instant) -> anyhow::Result<Vec<u32>> {
    let (mut waits, mut at) = (Vec::new(), now());
    while at < end {
        handle.enqueue(records.next()).await?;
        waits.push(nanos_since(at));
        at = now();
    }
    Ok(waits)
}

/// Nanoseconds of a write of 4 KiB and its `fdatasync`, one after another, sorted: into written space or reserved.
pub(crate) fn raw_syncs(kind: Kind, dir: &Path, duration: Duration) -> anyhow::Result<Vec<u32>> {
    std::fs::create_dir_all(dir)?;
    let mut file = if kind == Kind::Raw { RawFile::written(dir)? } else { RawFile::reserved(dir)? };
    let (begin, mut syncs) = (now(), Vec::new());
    while begin.elapsed() < duration {
        let sync = now();
        file.write_and_sync(&[7; 4096])?;
        syncs.push(nanos_since(sync));
    }
    std::fs::remove_dir_all(dir)?;
    settle(dir)?;
    syncs.sort_unstable();
    Ok(syncs)
}
