//! Taking in the records of a node that is gone for good: `seawall spool adopt` reads them from its data directory and
//! sends them here.
//!
//! Records of one order key are taken in one after the other, keys side by side. The first that cannot be kept ends its
//! key's row in this call: what follows it must not go before it. A record taken in before is known by its key.
//!
//! Their account comes with them. The ledger knows their numbers before the spool has them, and that it has them before
//! the caller hears it. Cut short in between, a number is in doubt, until the same call comes again.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{RawQuery, State as Extracted};
use axum::response::Response;
use seawall_core::id::RecordId;
use seawall_core::journal::{Draft, Kind};
use seawall_core::ledger::{Digest, Place};
use seawall_core::spool::index::Outcome;
use seawall_core::spool::wire::{DecodeError, Reader};
use seawall_core::spool::{LaneKey, State};
use seawall_store::{EnqueueError, Enqueued, Orphan, Spool};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::api::{BODY_BYTES_MAX, Parameters, Refusal, fresh, read_body_within};
use crate::{Admin, Foreign, LedgerPort};

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
    /// It was here before, and was handed over: to say "it is here" would lose it.
    HandedOver(RecordId, String),
    /// The spool said no.
    Spool(EnqueueError),
}

/// `POST /api/spool/adopt?node=NAME`: for each record its length (4 bytes, little-endian) and its bytes.
pub(crate) async fn adopt(
    Extracted(admin): Extracted<Admin>,
    query: RawQuery,
    body: Body,
) -> Result<Response, Refusal> {
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
    let known = stamped(&*parts.ledger, known).await?;
    let stamps: Stamps = known.iter().filter_map(stamp_of).collect();
    let mut taken = take_all(&parts.spool, known).await;
    let promised = promised(&parts.spool, &taken, &stamps).await?;
    parts.ledger.adopted(promised).await?;
    taken.extend(strange.into_iter().map(|orphan| (orphan.id, Err(NotTaken::Nobody(orphan.record.upstream)))));
    taken.sort_unstable_by_key(|(id, _)| *id);
    let adopted = taken.iter().filter(|(_, kept)| kept.as_ref().is_ok_and(|kept| !kept.already)).count();
    if adopted > 0 {
        let draft = Draft::new(Kind::RecordsAdopted, format!("node:{node}")).with("records", adopted);
        parts.journal.record(draft);
    }
    Ok(fresh(json!({ "adopted": adopted, "records": taken.iter().map(told).collect::<Vec<_>>() })))
}

/// By its number there: the stamp a record goes on under, and where it then is.
type Stamps = BTreeMap<RecordId, (String, Place)>;

fn stamp_of(orphan: &Orphan) -> Option<(RecordId, (String, Place))> {
    let place = if orphan.parked.is_some() { Place::Parked } else { Place::Waiting };
    Some((orphan.id, (orphan.record.ledger.clone()?, place)))
}

/// Records under their own numbers, and with tags that this node can check when a sink reports them.
async fn stamped(ledger: &dyn LedgerPort, mut orphans: Vec<Orphan>) -> Result<Vec<Orphan>, Refusal> {
    let foreign = |orphan: &Orphan| {
        let digest = Digest::of(&orphan.record.body).0;
        Foreign { stamp: orphan.record.ledger.clone().unwrap_or_default(), digest }
    };
    let stamps = ledger.adopt(orphans.iter().map(foreign).collect()).await?;
    for (orphan, stamp) in orphans.iter_mut().zip(stamps) {
        match stamp {
            Some(stamp) => orphan.record.restamp(stamp),
            None => orphan.record.ledger = None,
        }
    }
    Ok(orphans)
}

/// What is in the spool under these stamps. What was there already may be there under another one: its client sent it
/// again, and it is on the books under that.
async fn promised(spool: &Spool, taken: &[Taken], stamps: &Stamps) -> Result<Vec<(String, Place)>, Refusal> {
    let mut promised = Vec::new();
    for (from, kept) in taken {
        let (Ok(Enqueued { id, already }), Some((stamp, place))) = (kept, stamps.get(from)) else { continue };
        let mut place = *place;
        if *already {
            let account = spool.get(*id).await?;
            let record = account.as_ref().and_then(|account| account.record.as_ref());
            if record.and_then(|record| record.ledger.as_ref()) != Some(stamp) {
                continue;
            }
            let is_parked = account.is_some_and(|account| account.state == State::Parked);
            place = if is_parked { Place::Parked } else { Place::Waiting };
        }
        promised.push((stamp.clone(), place));
    }
    Ok(promised)
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
        let kept = match spool.adopt(orphan).await {
            Ok(kept) => is_here(&spool, kept).await,
            Err(error) => Err(NotTaken::Spool(error)),
        };
        let is_end = kept.is_err();
        taken.push((id, kept));
        if is_end {
            break;
        }
    }
    taken
}

/// A key that is known says that its record was here once, and not that this node sees to it.
async fn is_here(spool: &Spool, kept: Enqueued) -> Result<Enqueued, NotTaken> {
    if !kept.already {
        return Ok(kept);
    }
    let account = spool.get(kept.id).await.map_err(|error| {
        let reason = error.to_string();
        NotTaken::Spool(EnqueueError::Stopped { reason })
    })?;
    match account.and_then(|account| account.settled).map(|settled| settled.outcome) {
        Some(Outcome::HandedOver { to }) => Err(NotTaken::HandedOver(kept.id, to)),
        _ => Ok(kept),
    }
}

fn told((from, kept): &Taken) -> Value {
    match kept {
        Ok(Enqueued { id, already }) => json!({ "from": from, "id": id, "already": already }),
        Err(NotTaken::Nobody(upstream)) => {
            let error = format!("no route of this node keeps writes for an upstream `{upstream}`");
            json!({ "from": from, "error": error })
        }
        Err(NotTaken::HandedOver(id, to)) => {
            let error = format!(
                "it was this node's record {id}, which was handed over to {to}: start that directory's node, or adopt it at a \
                 third"
            );
            json!({ "from": from, "error": error })
        }
        Err(NotTaken::Spool(error)) => {
            let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            json!({ "from": from, "error": format!("{error}{hint}") })
        }
    }
}
