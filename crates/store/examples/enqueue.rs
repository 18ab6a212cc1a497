//! How many durable enqueues a second: `cargo run -p seawall-store --release --example enqueue -- DIR [SECONDS]`.
//!
//! Records of 1 KiB; every producer waits for its answer before it sends the next. Also leases and acknowledges
//! everything with 64 workers, opens the directory again, and prints what one raw `fdatasync` of 4 KiB costs there.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use seawall_core::spool::NewRecord;
use seawall_core::time::{Mono, Wall};
use seawall_store::{Clock, Opened, RealDisk, Spool, Store, StoreOptions};
use tokio::task::JoinSet;

const BODY_BYTES: usize = 850; // with headers and bookkeeping about 1 KiB

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

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: enqueue DIR [SECONDS]")?);
    let seconds: f64 = arguments.next().map_or(Ok(3.0), |text| text.parse())?;
    std::fs::create_dir_all(&dir)?;
    println!("raw fdatasync of 4 KiB      {:>9.0}/s", raw_syncs(&dir)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build()?;
    for producers in [1, 16, 64, 256] {
        let before = cpu_s()?;
        let (records, rate) = runtime.block_on(enqueues(&dir.join(format!("{producers}")), producers, seconds));
        let cpu_us = (cpu_s()? - before) * 1e6 / records as f64;
        println!("enqueue, {producers:>3} producers      {rate:>9.0}/s, {cpu_us:>5.1} us of CPU each");
    }
    runtime.block_on(drain(&dir.join("drain")));
    Ok(())
}

fn raw_syncs(dir: &Path) -> std::io::Result<f64> {
    let path = dir.join("raw");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 32 << 20)?;
    file.sync_all()?;
    let (start, rounds) = (now(), 4000_u32);
    for round in 0..u64::from(rounds) {
        file.write_all_at(&[7; 4096], round * 4096)?;
        file.sync_data()?;
    }
    let rate = f64::from(rounds) / start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

fn open(dir: &Path) -> Opened<RealDisk> {
    let mut options = StoreOptions::new(dir, "bench");
    options.spool_bytes_max = 64 << 30;
    Store::open(RealDisk, options, Stopwatch(now()), || [7; 32]).expect("a fresh directory")
}

fn record(key: u64) -> NewRecord {
    NewRecord {
        upstream: "queue".into(),
        route: "events".into(),
        order_key: None,
        idempotency_key: format!("key-{key:016x}"),
        fingerprint: [key as u8; 32],
        ledger: None,
        method: "POST".into(),
        target: "/events".into(),
        headers: vec![("content-type".into(), b"application/json".to_vec())],
        body: vec![b'x'; BODY_BYTES],
        accepted: Wall::default(),
        first_failure: "connect_refused".into(),
        attempts: 1,
        terms: Default::default(),
    }
}

async fn enqueues(dir: &Path, producers: u64, seconds: f64) -> (u64, f64) {
    let _ = std::fs::remove_dir_all(dir);
    let opened = open(dir);
    let threads = opened.engine.spawn_threads().expect("threads");
    let (start, keys) = (now(), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..producers {
        let (spool, keys) = (opened.store.spool.clone(), Arc::clone(&keys));
        tasks.spawn(async move {
            while start.elapsed().as_secs_f64() < seconds {
                let key = keys.fetch_add(1, Ordering::Relaxed);
                spool.enqueue(&record(key)).await.expect("kept");
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    let records = keys.load(Ordering::Relaxed);
    let rate = records as f64 / start.elapsed().as_secs_f64();
    opened.store.close().await;
    threads.join();
    let _ = std::fs::remove_dir_all(dir);
    (records, rate)
}

/// Seconds of CPU this process has used: `utime` and `stime` of proc(5), in hundredths.
fn cpu_s() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

async fn drain(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
    let opened = open(dir);
    let threads = opened.engine.spawn_threads().expect("threads");
    let records = 200_000;
    fill(&opened.store.spool, records).await;
    opened.store.close().await;
    threads.join();
    let start = now();
    let opened = open(dir);
    println!("recovery of {} records {:>8.2} s", opened.report.waiting, start.elapsed().as_secs_f64());
    let threads = opened.engine.spawn_threads().expect("threads");
    let start = now();
    let mut workers = JoinSet::new();
    for _ in 0..64 {
        workers.spawn(deliver(opened.store.spool.clone()));
    }
    while workers.join_next().await.is_some() {}
    println!("lease and ack, 64 workers   {:>9.0}/s", f64::from(records) / start.elapsed().as_secs_f64());
    opened.store.close().await;
    threads.join();
    let _ = std::fs::remove_dir_all(dir);
}

async fn fill(spool: &Spool, records: u32) {
    let mut producers = JoinSet::new();
    for producer in 0..256_u64 {
        let spool = spool.clone();
        producers.spawn(async move {
            for key in (producer..u64::from(records)).step_by(256) {
                spool.enqueue(&record(key)).await.expect("kept");
            }
        });
    }
    while producers.join_next().await.is_some() {}
}

async fn deliver(spool: Spool) {
    loop {
        let found = spool.lease("queue", 1, Duration::from_secs(60)).await.expect("open");
        let Some(leased) = found.leased.into_iter().next() else { return };
        assert!(spool.ack(leased.lease, 200).await.expect("open"));
    }
}
