//! The store as its users see it, on the simulated disk and on the machine's own.

mod conformance;
mod crash;
mod damage;
mod disk_full;
mod engines;
mod journal;
mod ledger;
mod real;
mod spool;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use seawall_core::spool::{NewRecord, Terms};
use seawall_core::time::{Mono, Wall};
use seawall_store::{Clock, Disk, OpenError, Opened, SimDisk, Store, StoreOptions};

/// A clock that a test sets.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub(crate) fn advance_ms(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn mono(&self) -> Mono {
        Mono::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Wall {
        Wall::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Small segments, so that little data walks through many.
pub(crate) fn options() -> StoreOptions {
    let mut options = StoreOptions::new("data", "us-east-1");
    options.record_bytes_max = 2048;
    options.spool_segment_bytes = 10 << 10;
    options.journal_segment_bytes = 8 << 10;
    options
}

pub(crate) fn open_with<D: Disk>(disk: &D, options: StoreOptions) -> Result<Opened<D>, OpenError> {
    Store::open(disk.clone(), options, TestClock::default(), || [7; 32])
}

pub(crate) fn open(disk: &SimDisk) -> Opened<SimDisk> {
    open_with(disk, options()).expect("opens")
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// Runs a test against an open store while its engine runs beside it; then both are gone, as after kill -9.
pub(crate) fn with<D: Disk, T>(opened: Opened<D>, test: impl AsyncFnOnce(&Store) -> T) -> T {
    let Opened { store, engine, .. } = opened;
    runtime().block_on(async {
        tokio::select! {
            biased;
            result = test(&store) => result,
            () = async { engine.drive().await; std::future::pending().await } => unreachable!(),
        }
    })
}

pub(crate) fn record(key: &str, order_key: Option<&str>, body: &[u8]) -> NewRecord {
    NewRecord {
        upstream: "queue".into(),
        route: "events".into(),
        order_key: order_key.map(|key| key.as_bytes().to_vec()),
        idempotency_key: key.into(),
        fingerprint: std::array::from_fn(|i| body.get(i).copied().unwrap_or(0)),
        ledger: Some("events.us-east-1.1.1;tag=00".into()),
        method: "POST".into(),
        target: "/events".into(),
        headers: vec![("content-type".into(), b"text/plain".to_vec())],
        body: body.to_vec(),
        accepted: Wall::from_millis(5),
        first_failure: "connect_refused".into(),
        attempts: 1,
        terms: Terms::default(),
    }
}

pub(crate) fn spool_dir() -> &'static Path {
    Path::new("data/spool")
}

/// Names of the spool's segments.
pub(crate) fn segments(disk: &SimDisk) -> Vec<String> {
    let names = disk.list(spool_dir()).expect("a folder");
    names.into_iter().filter(|name| name.ends_with(".log")).collect()
}
