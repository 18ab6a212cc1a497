//! What the files take while most records go soon and some stay: dead letters of every age among what was delivered
//! long ago. Files are given back when nothing in them lives, and what lives in files that are nearly dead is moved.
//!
//! In each turn so many records are enqueued. One in [`STAYS`] becomes a dead letter, the others are acknowledged; then
//! as many dead letters, drawn from all of them, are given up. What is held stays the same, and its ages spread out
//! further with every turn.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use seawall_core::id::RecordId;
use seawall_core::prng::Prng;
use seawall_store::Spool;
use tokio::runtime::Runtime;

use crate::backlog::mib;
use crate::deliver::{drain, fill};
use crate::seawall::{Seawall, UPSTREAM};

const PRODUCERS: usize = 256;
const TURN: usize = 10_000;
const STAYS: usize = 20;
/// Files per live byte that were aimed at.
const FILES_PER_LIVE_MAX: f64 = 3.0;
const LEASE_FOR: Duration = Duration::from_secs(60);

/// `held` records stay while `passed` pass.
pub(crate) fn run(runtime: &Runtime, (held, passed): (usize, usize), dir: &Path) -> anyhow::Result<()> {
    println!("{held} records of 1 KiB held, each for as long as chance says, while {passed} pass");
    let seawall = Seawall::start(dir)?;
    let mut shelf = Shelf { spool: seawall.spool.clone(), kept: Vec::new(), next_key: 0, prng: Prng::new(1) };
    let highest = runtime.block_on(async {
        for _ in 0..held / TURN {
            shelf.keep(TURN).await?;
        }
        shelf.keep(held % TURN).await?;
        let (mut highest, mut gone, mut told) = (0.0_f64, 0, 0);
        while gone < passed {
            shelf.turn().await?;
            gone += TURN;
            let depth = shelf.spool.depth();
            let ratio = depth.disk_bytes as f64 / depth.bytes as f64;
            highest = highest.max(ratio);
            if gone * 10 / passed > told {
                told = gone * 10 / passed;
                println!(
                    "{gone:>9} passed: {:.1} MiB of files, {:.1} MiB live, {ratio:.2} bytes of files per live byte",
                    mib(depth.disk_bytes),
                    mib(depth.bytes),
                );
            }
        }
        anyhow::Ok(highest)
    })?;
    runtime.block_on(seawall.stop())?;
    let verdict = if highest <= FILES_PER_LIVE_MAX { "pass" } else { "FAIL" };
    println!(
        "highest at the end of a turn: {highest:.2} bytes of files per live byte; aimed at {FILES_PER_LIVE_MAX} or less: {verdict}"
    );
    Ok(())
}

struct Shelf {
    spool: Spool,
    /// Dead letters, in no order.
    kept: Vec<RecordId>,
    next_key: u64,
    prng: Prng,
}

impl Shelf {
    async fn fill(&mut self, records: usize) -> anyhow::Result<()> {
        fill(&self.spool, PRODUCERS, self.next_key, records).await?;
        self.next_key += records as u64;
        Ok(())
    }

    async fn keep(&mut self, records: usize) -> anyhow::Result<()> {
        self.fill(records).await?;
        let found = self.spool.lease(UPSTREAM, records, LEASE_FOR).await?;
        ensure!(found.leased.len() == records, "{} of {records} leased", found.leased.len());
        for leased in found.leased {
            self.kept.push(leased.lease.id());
            ensure!(self.spool.park(leased.lease, "stays", "").await?, "a lease expired");
        }
        Ok(())
    }

    async fn turn(&mut self) -> anyhow::Result<()> {
        let stay = TURN / STAYS;
        self.keep(stay).await?;
        self.fill(TURN - stay).await?;
        drain(&self.spool, 64, 64, TURN - stay).await?;
        for _ in 0..stay {
            let place = self.prng.below(self.kept.len() as u64) as usize;
            self.spool.discard(self.kept.swap_remove(place), "had its time").await?;
        }
        Ok(())
    }
}
