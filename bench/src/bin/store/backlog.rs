//! What a long queue costs: memory, CPU, disk, and the time to open it again after the process was killed.
//!
//! Another process fills the spool, says what it measured, goes on enqueuing and is killed in the middle of that.
//! Memory is the resident set after the fill, less the resident set before it, when the store was open and empty and as
//! many producers had enqueued a little. CPU is compared with an empty spool in the same process, in turns: both get
//! the same records, and give them up again.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::fs::{Advice, fadvise};
use seawall_bench::{now, resident_bytes, spread};
use tokio::runtime::Runtime;

use crate::deliver::{Rate, drain, fill};
use crate::options::Options;
use crate::seawall::{Seawall, UPSTREAM};

/// What the filling process says when it may be killed.
const READY: &str = "ready to be killed";
const PRODUCERS: usize = 256;
const WARM_UP_RECORDS: usize = 5_000;
/// Enqueued, then leased and acknowledged, to learn what each costs.
const SAMPLE_RECORDS: usize = 20_000;
/// What the filling process enqueues at most while it waits to be killed.
const LAST_RECORDS: usize = 2_000_000;

pub(crate) fn run(runtime: &Runtime, options: &Options, dir: &Path) -> anyhow::Result<()> {
    println!("backlog of {} records of 1 KiB", options.backlog);
    fill_and_kill(options, dir)?;
    let dir = full_dir(dir);
    let is_cold = drop_page_cache(&dir)?;
    reopen(runtime, &dir, if is_cold { "after a kill, page cache dropped" } else { "after a kill" })?;
    // Its memory is what the first left behind: only the first says how much it takes.
    reopen(runtime, &dir, "after a clean stop, page cache warm")
}

fn full_dir(dir: &Path) -> PathBuf {
    dir.join("full")
}

fn fill_and_kill(options: &Options, dir: &Path) -> anyhow::Result<()> {
    let mut filler = Command::new(std::env::current_exe()?)
        .args(["--backlog", &options.backlog.to_string(), "--rounds", &options.rounds.to_string()])
        .args(["--lease-batch", &options.lease_batch.to_string(), "--filler"])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the process that fills")?;
    let said = filler.stdout.take().context("the process that fills has no output")?;
    let mut is_ready = false;
    for line in BufReader::new(said).lines() {
        let line = line?;
        if line == READY {
            is_ready = true;
            break;
        }
        println!("{line}");
    }
    std::thread::sleep(Duration::from_millis(300));
    // Killed in the middle of its enqueues, or dead already.
    filler.kill()?;
    filler.wait()?;
    ensure!(is_ready, "the process that fills ended early");
    Ok(())
}

/// The filling process.
pub(crate) fn filler(runtime: &Runtime, options: &Options, dir: &Path) -> anyhow::Result<()> {
    let (full, empty) = (Seawall::start(&full_dir(dir))?, Seawall::start(&dir.join("empty"))?);
    runtime.block_on(async {
        let mut first_key = 0;
        for spool in [&full.spool, &empty.spool] {
            fill(spool, PRODUCERS, first_key, WARM_UP_RECORDS).await?;
            drain(spool, PRODUCERS, options.lease_batch, WARM_UP_RECORDS).await?;
        }
        first_key += WARM_UP_RECORDS as u64;
        let resident_before = resident_bytes()?;
        let filled = fill(&full.spool, PRODUCERS, first_key, options.backlog).await?;
        first_key += options.backlog as u64;
        let grown = resident_bytes()?.saturating_sub(resident_before);
        println!("filled at {:.0}/s with {PRODUCERS} producers", filled.per_second);
        println!(
            "memory: {:.0} bytes resident per waiting record ({:.1} MiB before, {:.1} MiB more now)",
            grown as f64 / options.backlog as f64,
            mib(resident_before),
            mib(grown)
        );
        print_disk(&full, &full_dir(dir))?;
        costs(options, &full, &empty, &mut first_key).await?;
        print_disk(&full, &full_dir(dir))?;
        println!("{READY}");
        fill(&full.spool, 16, first_key, LAST_RECORDS).await?;
        anyhow::bail!("nobody killed us")
    })
}

async fn costs(options: &Options, full: &Seawall, empty: &Seawall, first_key: &mut u64) -> anyhow::Result<()> {
    let mut rounds: [Vec<[Rate; 2]>; 2] = Default::default();
    for _ in 0..options.rounds {
        for (seawall, rounds) in [full, empty].into_iter().zip(&mut rounds) {
            let enqueued = fill(&seawall.spool, 64, *first_key, SAMPLE_RECORDS).await?;
            let drained = drain(&seawall.spool, 64, options.lease_batch, SAMPLE_RECORDS).await?;
            rounds.push([enqueued, drained]);
        }
        *first_key += SAMPLE_RECORDS as u64;
    }
    for (at, name) in ["enqueue", "lease and acknowledge"].into_iter().enumerate() {
        let of = |rounds: &[[Rate; 2]]| rounds.iter().map(|round| round[at].cpu_us).collect::<Vec<_>>();
        let (full, empty) = (of(&rounds[0]), of(&rounds[1]));
        let ratios: Vec<f64> = full.iter().zip(&empty).map(|(full, empty)| full / empty).collect();
        let [low, ratio, high] = spread(&ratios);
        println!(
            "CPU of {name}: {:.1} us with the backlog, {:.1} us without; ratio {ratio:.2} ({low:.2}..{high:.2})",
            spread(&full)[1],
            spread(&empty)[1]
        );
    }
    Ok(())
}

fn print_disk(seawall: &Seawall, dir: &Path) -> anyhow::Result<()> {
    let depth = seawall.spool.depth();
    let allocated: u64 = files(&dir.join("spool"))?.iter().map(|(_, blocks)| blocks * 512).sum();
    println!(
        "disk: {:.1} MiB of files, {:.1} MiB allocated, {:.1} MiB live, {} records; {:.2} bytes of files per live byte",
        mib(depth.disk_bytes),
        mib(allocated),
        mib(depth.bytes),
        seawall.spool.depth_of(UPSTREAM).waiting,
        depth.disk_bytes as f64 / depth.bytes as f64
    );
    Ok(())
}

fn reopen(runtime: &Runtime, dir: &Path, how: &str) -> anyhow::Result<()> {
    let resident_before = resident_bytes()?;
    let begin = now();
    let seawall = Seawall::start(dir)?;
    let took = begin.elapsed();
    let report = &seawall.report;
    println!(
        "open {how}: {:.2} s, {:.2} us per waiting record; {} wait, {} keys remembered, {} segments, {} torn bytes; {:.1} MiB more resident",
        took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / report.waiting as f64,
        report.waiting,
        report.keys,
        report.spool.segments,
        report.spool.torn_bytes,
        mib(resident_bytes()?.saturating_sub(resident_before)),
    );
    runtime.block_on(seawall.stop())?;
    Ok(())
}

/// True if the kernel took the advice; whether it followed is its own affair.
fn drop_page_cache(dir: &Path) -> anyhow::Result<bool> {
    let mut is_taken = true;
    for (path, _) in files(&dir.join("spool"))? {
        let file = File::open(path)?;
        // Dirty pages are not dropped.
        file.sync_all()?;
        is_taken &= fadvise(&file, 0, None, Advice::DontNeed).is_ok();
    }
    Ok(is_taken)
}

/// Files of a folder and the blocks of 512 bytes they take.
fn files(dir: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list `{}`", dir.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // The engine may have thrown one away in between.
        if let Ok(found) = std::fs::metadata(&path) {
            files.push((path, found.blocks()));
        }
    }
    Ok(files)
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
