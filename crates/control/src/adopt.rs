//! Taking in the records of a node that is gone for good: `seawall spool adopt` reads them from its data directory and
//! sends them here.
//!
//! Records of one order key are taken in one after the other, keys side by side. The first that cannot be kept ends its
//! key's row in this call: what follows it must not go before it. A record taken in before is known by its key.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use seawall_core::id::RecordId;
use seawall_core::journal::{Draft, Kind};
use seawall_core::spool::LaneKey;
use seawall_core::spool::wire::{DecodeError, Reader};
use seawall_store::{EnqueueError, Enqueued, Orphan, Spool};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Admin;
use crate::api::{BODY_BYTES_MAX, Parameters, Refusal, fresh, read_body_within};

/// Longest name of a node, in characters.
const NODE_CHARS_MAX: usize = 64;

/// What comes with a record: its states and texts.
const OVERHEAD: usize = 64 << 10;

/// A record by its number there, and what came of it here.
type Taken = (RecordId, Result<Enqueued, NotTaken>);

/// Why a record stays where it is.
enum NotTaken {
    /// There is nobody here who would deliver it to this upstream.
    Nobody(String),
    /// The spool said no.
    Spool(EnqueueError),
}

/// `POST /api/spool/adopt?node=NAME`: for each record its length (4 bytes, little-endian) and its bytes.
pub(crate) async fn adopt(State(admin): State<Admin>, query: RawQuery, body: Body) -> Result<Response, Refusal> {
    let parts = admin.parts();
    let parameters = Parameters::read(query, &["node"])?;
    let node = parameters.text("node").unwrap_or_default();
    if node.is_empty() || node.chars().count() > NODE_CHARS_MAX {
        let message = format!("say whose records these are, in {NODE_CHARS_MAX} characters at most");
        return Err(Refusal::bad("node", message));
    }
    let limit = BODY_BYTES_MAX.max(usize::try_from(parts.spool.record_bytes_max()).unwrap_or(usize::MAX) + OVERHEAD);
    let orphans = decode(&read_body_within(body, limit).await?)
        .map_err(|error| Refusal::bad("body", format!("the records cannot be read: {error}")))?;
    let routes = (parts.view)().routes;
    let delivers = |upstream: &str| routes.iter().any(|route| route.spools && route.upstream == upstream);
    let (known, strange): (Vec<_>, Vec<_>) = orphans.into_iter().partition(|orphan| delivers(&orphan.record.upstream));
    let mut taken = take_all(&parts.spool, known).await;
    taken.extend(strange.into_iter().map(|orphan| (orphan.id, Err(NotTaken::Nobody(orphan.record.upstream)))));
    taken.sort_unstable_by_key(|(id, _)| *id);
    let adopted = taken.iter().filter(|(_, kept)| kept.as_ref().is_ok_and(|kept| !kept.already)).count();
    if adopted > 0 {
        let draft = Draft::new(Kind::RecordsAdopted, format!("node:{node}")).with("records", adopted);
        parts.journal.record(draft);
    }
    Ok(fresh(json!({ "adopted": adopted, "records": taken.iter().map(told).collect::<Vec<_>>() })))
}

fn decode(mut bytes: &[u8]) -> Result<Vec<Orphan>, DecodeError> {
    let mut orphans = Vec::new();
    while !bytes.is_empty() {
        let mut r = Reader::new(bytes);
        orphans.push(Orphan::decode(r.bytes()?)?);
        bytes = r.rest();
    }
    Ok(orphans)
}

async fn take_all(spool: &Spool, orphans: Vec<Orphan>) -> Vec<Taken> {
    let mut rows: BTreeMap<LaneKey, Vec<Orphan>> = BTreeMap::new();
    let mut work = JoinSet::new();
    for orphan in orphans {
        match orphan.record.lane() {
            Some(lane) => rows.entry(lane).or_default().push(orphan),
            None => _ = work.spawn(take_row(spool.clone(), vec![orphan])),
        }
    }
    rows.into_values().for_each(|row| _ = work.spawn(take_row(spool.clone(), row)));
    work.join_all().await.into_iter().flatten().collect()
}

async fn take_row(spool: Spool, mut row: Vec<Orphan>) -> Vec<Taken> {
    row.sort_unstable_by_key(|orphan| orphan.id);
    let mut taken = Vec::new();
    for orphan in row {
        let id = orphan.id;
        let kept = spool.adopt(orphan).await.map_err(NotTaken::Spool);
        let is_end = kept.is_err();
        taken.push((id, kept));
        if is_end {
            break;
        }
    }
    taken
}

fn told((from, kept): &Taken) -> Value {
    match kept {
        Ok(Enqueued { id, already }) => json!({ "from": from, "id": id, "already": already }),
        Err(NotTaken::Nobody(upstream)) => {
            let error = format!("no route of this node keeps writes for an upstream `{upstream}`");
            json!({ "from": from, "error": error })
        }
        Err(NotTaken::Spool(error)) => {
            let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            json!({ "from": from, "error": format!("{error}{hint}") })
        }
    }
}
