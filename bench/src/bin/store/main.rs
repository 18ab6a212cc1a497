//! Seawall's spool beside fjall, redb, SQLite and the bare disk: durable enqueues, in alternating rounds of one run.
//!
//! `cargo run --release --manifest-path bench/Cargo.toml --bin store -- [--rounds N] [--seconds S] [--dir DIR]
//! [--producers 1,16,64,256] [--only seawall,fjall,redb,sqlite,raw,raw-reserved] [--lease-batch N] [--backlog N] [--stragglers N]`
//!
//! Records of 1 KiB, kept under an idempotency key, answered only when they are safe. Every peer has one writer that
//! takes whatever waits and syncs once for all of it, as Seawall's has; see `engine.rs` for what each does. `raw`
//! writes the same bytes into blocks that were written before, `raw-reserved` into blocks that were only reserved,
//! which makes the file system note at every sync that they hold something now. Ratios are taken within a round, and
//! the order of peers turns from round to round, so that what disturbs the machine disturbs all of them.
//!
//! `--backlog N` measures a long queue instead: see `backlog.rs`. `--stragglers N` measures what the files take while N
//! records stay and ten times as many pass: see `stragglers.rs`.

mod backlog;
mod deliver;
mod engine;
mod enqueue;
mod options;
mod report;
mod seawall;
mod stragglers;

use std::path::Path;

use tokio::runtime::Runtime;

use self::engine::Kind;
use self::options::Options;
use self::report::{Enqueues, Figures};

/// What the binary uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Workers that lease and acknowledge.
const WORKERS: [usize; 2] = [64, 256];

fn main() -> anyhow::Result<()> {
    let options = options::options()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build()?;
    if let Some(dir) = &options.filler {
        return backlog::filler(&runtime, &options, dir);
    }
    let dir = options::data_dir(options.dir.as_deref())?;
    if options.backlog > 0 {
        return backlog::run(&runtime, &options, dir.path());
    }
    if options.stragglers > 0 {
        return stragglers::run(&runtime, (options.stragglers, options.stragglers * 10), dir.path());
    }
    println!("{} rounds of {} s each", options.rounds, options.duration.as_secs_f64());
    measure(&runtime, &options, &dir.path().join("data"))?.print();
    Ok(())
}

fn measure(runtime: &Runtime, options: &Options, dir: &Path) -> anyhow::Result<Figures> {
    let nothing =
        |producers| Enqueues { producers, samples: options.only.iter().map(|&kind| (kind, vec![])).collect() };
    let has_deliveries = options.lease_batch > 0 && options.only.contains(&Kind::Seawall);
    let mut figures = Figures {
        enqueues: options.producers.iter().copied().map(nothing).collect(),
        syncs: [Kind::Raw, Kind::RawReserved].map(|kind| (kind, Vec::new())).into(),
        duration_seconds: options.duration.as_secs_f64(),
        deliveries: if has_deliveries { WORKERS.map(|workers| (workers, Vec::new())).into() } else { Vec::new() },
    };
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for (kind, syncs) in &mut figures.syncs {
            syncs.push(enqueue::raw_syncs(*kind, dir, options.duration)?);
        }
        for Enqueues { producers, samples } in &mut figures.enqueues {
            samples.rotate_left(usize::from(round > 0));
            for (kind, samples) in samples {
                samples.push(enqueue::measure(runtime, *kind, dir, *producers, options.duration)?);
            }
        }
        for (workers, rates) in &mut figures.deliveries {
            rates.push(deliver::measure(runtime, dir, *workers, options.lease_batch)?);
        }
    }
    for Enqueues { samples, .. } in &mut figures.enqueues {
        samples.sort_by_key(|(kind, _)| *kind);
    }
    Ok(figures)
}
