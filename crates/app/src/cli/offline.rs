//! Reading a stopped node's data directory, when there is no node to ask.

use std::path::Path;

use anyhow::{Context as _, bail};
use seawall_control::api::{account_json, entry_json};
use seawall_core::id::RecordId;
use seawall_core::spool::State;
use seawall_store::{Clock as _, OpenError, Opened, Query, RealDisk, Store, StoreOptions};
use serde_json::{Value, json};

use crate::clock::RealClock;

/// The journal of a larger node must not be shortened to our default by looking at it.
const JOURNAL_BYTES_MAX: u64 = 1 << 50;

/// Opens the directory, reads from it, closes it again. The answers have the shape of the admin API's.
pub(super) async fn read<T>(dir: &Path, look: impl AsyncFnOnce(&Store) -> anyhow::Result<T>) -> anyhow::Result<T> {
    if !dir.join("META").is_file() {
        bail!("`{}` is not the data directory of a node", dir.display());
    }
    let opened = open(dir)?;
    let threads = opened.engine.spawn_threads().context("cannot start the store's threads")?;
    let store = opened.store;
    let seen = look(&store).await;
    store.close().await;
    drop(store);
    threads.join();
    seen
}

/// A directory belongs to a node by name: whoever looks from outside takes the name it finds there.
fn open(dir: &Path) -> anyhow::Result<Opened<RealDisk>> {
    let attempt = |node: &str| {
        let options = StoreOptions { journal_bytes_max: JOURNAL_BYTES_MAX, ..StoreOptions::new(dir, node) };
        Store::open(RealDisk, options, RealClock::new(), || [0; 32])
    };
    let opened = match attempt("seawall") {
        Err(OpenError::OtherNode { found, .. }) => attempt(&found),
        other => other,
    };
    opened.map_err(|error| match error.hint() {
        Some(_) if matches!(error, OpenError::InUse { .. }) => {
            anyhow::anyhow!("{error}; ask it: leave out `--data`")
        }
        Some(hint) => anyhow::anyhow!("{error}; {hint}"),
        None => anyhow::Error::new(error),
    })
}

/// As `/api/journal`: forwards from a number, otherwise the newest.
pub(super) async fn journal(dir: &Path, query: Query, newest: bool) -> anyhow::Result<Value> {
    let limit = query.limit;
    read(dir, async |store| {
        let all = if newest { Query { limit: usize::MAX, ..query } } else { query };
        let mut entries = store.journal.query(all).await?;
        let skip = if newest { entries.len().saturating_sub(limit) } else { 0 };
        entries.drain(..skip);
        Ok(json!({ "entries": entries.iter().map(entry_json).collect::<Vec<_>>() }))
    })
    .await
}

/// As `/api/spool`.
pub(super) async fn spool(dir: &Path, state: Option<State>, limit: usize) -> anyhow::Result<Value> {
    read(dir, async |store| {
        let (accounts, now) = (store.spool.list(state, limit).await?, RealClock::new().wall());
        let records: Vec<Value> = accounts.iter().map(|account| account_json(account, now)).collect();
        Ok(json!({ "records": records }))
    })
    .await
}

/// As `/api/spool/ID`.
pub(super) async fn record(dir: &Path, id: u64) -> anyhow::Result<Value> {
    read(dir, async |store| {
        let account = store.spool.get(RecordId(id)).await?;
        let account = account.with_context(|| format!("there is no record {id}"))?;
        Ok(account_json(&account, RealClock::new().wall()))
    })
    .await
}
