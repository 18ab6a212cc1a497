//! Lease and acknowledge: workers take a few records at a time and acknowledge each, one after another, waiting until
//! that is safe.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use seawall_bench::{now, process_cpu_us};
use seawall_store::Spool;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::seawall::{RecordMaker, Seawall, UPSTREAM, enqueue};

const RECORDS: usize = 100_000;
const LEASE_FOR: Duration = Duration::from_secs(60);

/// Something done so many times a second, and what each cost.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) cpu_us: f64,
}

/// Fills a fresh spool, then empties it.
pub(crate) fn measure(runtime: &Runtime, dir: &Path, workers: usize, lease_batch: usize) -> anyhow::Result<Rate> {
    let seawall = Seawall::start(dir)?;
    let rate = runtime.block_on(async {
        fill(&seawall.spool, 256, 0, RECORDS).await?;
        drain(&seawall.spool, workers, lease_batch, RECORDS).await
    })?;
    runtime.block_on(seawall.stop())?;
    std::fs::remove_dir_all(dir)?;
    Ok(rate)
}

/// Enqueues so many records, whose keys begin at a number.
pub(crate) async fn fill(spool: &Spool, producers: usize, first_key: u64, records: usize) -> anyhow::Result<Rate> {
    let task = |producer: usize| {
        let (spool, own) = (spool.clone(), (records + producers - 1 - producer) / producers);
        let mut maker = RecordMaker::new(first_key + producer as u64, producers as u64);
        async move {
            for _ in 0..own {
                enqueue(&spool, maker.next()).await?;
            }
            Ok(own)
        }
    };
    rate_of((0..producers).map(task), records).await
}

/// Leases and acknowledges so many records. Workers share the count: nobody takes one too many.
pub(crate) async fn drain(spool: &Spool, workers: usize, batch: usize, records: usize) -> anyhow::Result<Rate> {
    let task = |worker: usize| {
        let (spool, own) = (spool.clone(), (records + workers - 1 - worker) / workers);
        async move {
            let mut acked = 0;
            while acked < own {
                let found = spool.lease(UPSTREAM, batch.min(own - acked), LEASE_FOR).await?;
                ensure!(!found.leased.is_empty(), "nothing to lease after {acked} of {own} records");
                for leased in found.leased {
                    ensure!(spool.ack(leased.lease, 200).await?, "a lease expired");
                    acked += 1;
                }
            }
            Ok(acked)
        }
    };
    rate_of((0..workers).map(task), records).await
}

async fn rate_of<T>(tasks: impl Iterator<Item = T>, records: usize) -> anyhow::Result<Rate>
where
    T: Future<Output = anyhow::Result<usize>> + Send + 'static,
{
    let (begin, cpu_before) = (now(), process_cpu_us());
    let (mut running, mut done): (JoinSet<_>, usize) = (tasks.collect(), 0);
    while let Some(count) = running.join_next().await {
        done += count.context("a task ended early")??;
    }
    ensure!(done == records, "{done} of {records} records done");
    let (seconds, cpu_us) = (begin.elapsed().as_secs_f64(), process_cpu_us() - cpu_before);
    Ok(Rate { per_second: records as f64 / seconds, cpu_us: cpu_us / records as f64 })
}
