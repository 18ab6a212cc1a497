//! Reading a stopped node's data directory, when there is no node to ask: as its next start would find it, without
//! changing a byte of it.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use seawall_control::LedgerPort as _;
use seawall_control::api::{account_json, entry_json, verified_json};
use seawall_core::id::RecordId;
use seawall_core::journal::chain::Anchor;
use seawall_core::ledger::Summary;
use seawall_core::spool::State;
use seawall_store::disk::LockError;
use seawall_store::{Clock as _, Disk, LookDisk, OnDamage, OpenError, Opened, Query, Store, StoreOptions};
use serde_json::{Value, json};

use super::Ended;
use crate::book;
use crate::clock::RealClock;
use crate::lifecycle::read_seal_keys;

/// The journal of a larger node must not look shorter than it is.
const JOURNAL_BYTES_MAX: u64 = 1 << 50;

/// Where a stopped node's store is, and what opens its records.
#[derive(Clone, Debug)]
pub(super) struct Stopped {
    pub(super) dir: PathBuf,
    pub(super) key_file: Option<PathBuf>,
}

/// A stopped node's store, open.
pub(super) struct Found {
    store: Store,
    node: String,
    ledger_records: Vec<Vec<u8>>,
}

/// Opens the directory, looks, closes it again. The answers have the shape of the admin API's.
async fn read<T>(stopped: &Stopped, look: impl AsyncFnOnce(&Found) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let dir = &stopped.dir;
    let keys = stopped.key_file.as_deref().map(read_seal_keys).transpose()?;
    if !dir.join("META").is_file() {
        bail!("`{}` is not the data directory of a node", dir.display());
    }
    let options = |node: &str| StoreOptions {
        journal_bytes_max: JOURNAL_BYTES_MAX,
        on_damage: OnDamage::Quarantine,
        seal_keys: keys.clone(),
        ..StoreOptions::new(dir, node)
    };
    let seen = match open_as_named(&LookDisk::default(), options) {
        Ok((Opened { store, engine, report, ledger_records }, node)) => {
            if report.is_damaged() {
                let _ = writeln!(io::stderr(), "seawall: `{}` is damaged: this is what can be saved", dir.display());
            }
            let threads = engine.spawn_threads().context("cannot start the store's threads")?;
            let found = Found { store, node, ledger_records };
            let seen = look(&found).await;
            found.store.close().await;
            drop(found);
            threads.join();
            seen
        }
        Err(error) => Err(told(error)),
    };
    // A node that has started meanwhile has changed what we were reading: that is no damage, and no answer either.
    match LookDisk::default().lock(&dir.join("LOCK")) {
        Err(LockError::Held { pid }) => Err(told(OpenError::InUse { dir: dir.into(), pid })),
        _ => seen,
    }
}

/// A directory belongs to a node by name: whoever opens it from outside takes the name it finds there.
pub(super) fn open_as_named<D: Disk>(
    disk: &D,
    options: impl Fn(&str) -> StoreOptions,
) -> Result<(Opened<D>, String), OpenError> {
    let attempt = |node: &str| Store::open(disk.clone(), options(node), RealClock::new(), || [0; 32]);
    let any = "seawall";
    match attempt(any) {
        Ok(opened) => Ok((opened, any.into())),
        Err(OpenError::OtherNode { found, .. }) => attempt(&found).map(|opened| (opened, found)),
        Err(error) => Err(error),
    }
}

fn told(error: OpenError) -> anyhow::Error {
    match error.hint() {
        _ if matches!(error, OpenError::InUse { .. }) => anyhow::anyhow!("{error}; ask it: leave out `--data`"),
        Some(hint) => anyhow::anyhow!("{error}; {hint}"),
        None => anyhow::Error::new(error),
    }
}

/// As `/api/journal`.
pub(super) async fn journal(stopped: &Stopped, query: Query) -> anyhow::Result<Value> {
    read(stopped, async |found| {
        let entries = found.store.journal.query(query).await?;
        Ok(json!({ "entries": entries.iter().map(entry_json).collect::<Vec<_>>() }))
    })
    .await
}

/// Every entry that `query` finds, a page at a time.
pub(super) async fn journal_pages(
    stopped: &Stopped,
    mut query: Query,
    mut tell: impl FnMut(&[Value]) -> anyhow::Result<Ended>,
) -> anyhow::Result<()> {
    read(stopped, async |found| {
        loop {
            let entries = found.store.journal.query(query.clone()).await?;
            let Some(last) = entries.last() else { return Ok(()) };
            query.after = last.seq.0;
            tell(&entries.iter().map(entry_json).collect::<Vec<_>>())?;
        }
    })
    .await
}

/// As `/api/journal/verify`.
pub(super) async fn verify(stopped: &Stopped, anchor: Option<Anchor>) -> anyhow::Result<Value> {
    read(stopped, async |found| Ok(verified_json(&found.store.journal.verify(anchor).await?))).await
}

/// As `/api/spool`.
pub(super) async fn spool(stopped: &Stopped, state: Option<State>, limit: usize) -> anyhow::Result<Value> {
    read(stopped, async |found| {
        let (accounts, now) = (found.store.spool.list(state, limit).await?, RealClock::new().wall());
        let records: Vec<Value> = accounts.iter().map(|account| account_json(account, now)).collect();
        Ok(json!({ "records": records }))
    })
    .await
}

/// As `/api/spool/ID`.
pub(super) async fn record(stopped: &Stopped, id: u64) -> anyhow::Result<Value> {
    read(stopped, async |found| {
        let account = found.store.spool.get(RecordId(id)).await?;
        let account = account.with_context(|| format!("there is no record {id}"))?;
        Ok(account_json(&account, RealClock::new().wall()))
    })
    .await
}

/// As `/api/ledger`.
pub(super) async fn ledger(stopped: &Stopped) -> anyhow::Result<Value> {
    let summary: Summary = read(stopped, async |found| {
        Ok(book::Book::look(&found.store, &found.ledger_records, &found.node).await?.summary())
    })
    .await?;
    Ok(serde_json::to_value(summary)?)
}
