//! `GET /events`: what the overview page is kept alive by. A `snapshot` each second with the page's parts drawn anew,
//! and a `journal` event for each entry.
//!
//! Every journal event carries its number as id. A page that was rendered after entry 41 asks for `?after=41`, one
//! that lost its connection sends `Last-Event-ID`: both get what they missed, from the journal, before anything new.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_core::Stream;
use seawall_core::journal::Entry;
use seawall_store::Query;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tokio::time::MissedTickBehavior;

use crate::api::{Refusal, entry_json, only};
use crate::{Admin, STREAMS_MAX, ui};

/// Time between two snapshots.
const PERIOD: Duration = Duration::from_secs(1);
/// Events that may wait for a slow reader; beyond it the sender waits too and snapshots are skipped.
const QUEUE_MAX: usize = 16;
/// Entries sent again at most to a reader that missed some; the newest are what matters on a page.
const CATCH_UP_MAX: usize = 500;

pub(crate) fn router() -> Router<Admin> {
    Router::new().route("/events", only(&["GET"], get(serve)))
}

async fn serve(State(admin): State<Admin>, query: RawQuery, headers: HeaderMap) -> Result<Response, Refusal> {
    let after = begin_after(query, &headers)?;
    let Ok(place) = Arc::clone(&admin.0.streams).try_acquire_owned() else {
        let message = format!("{STREAMS_MAX} readers follow the events already");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
    };
    let (events, queue) = mpsc::channel(QUEUE_MAX);
    let (tasks, stop) = (admin.0.tasks.clone(), admin.0.stop.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(&admin, after, events, place) => {}
        }
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(Events(queue))).into_response())
}

/// The last entry the reader has; `None` to begin with the next one.
fn begin_after(RawQuery(query): RawQuery, headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let last_id = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    if let Some(after) = last_id.and_then(|id| id.parse().ok()) {
        return Ok(Some(after));
    }
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    let refusal = || Refusal::new(StatusCode::BAD_REQUEST, format!("`{query}` is not understood")).field("after");
    let after = query.strip_prefix("after=").ok_or_else(|| refusal().allowed(["after=SEQ"]))?;
    after.parse().map(Some).map_err(|_| refusal().allowed(["after=SEQ"]))
}

/// Sends until the reader is gone.
async fn follow(admin: &Admin, after: Option<u64>, events: mpsc::Sender<Bytes>, place: OwnedSemaphorePermit) {
    let journal = &admin.parts().journal;
    // First listen, then look back: an entry in between is seen twice and sent once.
    let mut live = journal.subscribe();
    let mut last = after.or_else(|| journal.last().map(|seq| seq.0)).unwrap_or(0);
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut missed = after.is_some();
    loop {
        if std::mem::take(&mut missed) && !catch_up(admin, &mut last, &events).await {
            break;
        }
        let event = tokio::select! {
            () = events.closed() => break,
            _ = ticks.tick() => snapshot_event(admin),
            entry = live.recv() => match entry {
                Ok(entry) if entry.seq.0 > last => {
                    last = entry.seq.0;
                    journal_event(&entry)
                }
                Ok(_) => continue,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    missed = true;
                    continue;
                }
                Err(broadcast::error::RecvError::Closed) => break,
            },
        };
        if events.send(event).await.is_err() {
            break;
        }
    }
    drop(place);
}

/// Sends what the reader missed. False when it is gone.
async fn catch_up(admin: &Admin, last: &mut u64, events: &mpsc::Sender<Bytes>) -> bool {
    let journal = &admin.parts().journal;
    let newest = journal.last().map_or(0, |seq| seq.0);
    // A number from before the journal was begun anew would hide every entry to come.
    let after = if *last > newest { newest } else { (*last).max(newest.saturating_sub(CATCH_UP_MAX as u64)) };
    *last = after;
    let query = Query { after, limit: CATCH_UP_MAX, ..Query::default() };
    let Ok(entries) = journal.query(query).await else { return true };
    for entry in entries {
        *last = entry.seq.0;
        if events.send(journal_event(&entry)).await.is_err() {
            return false;
        }
    }
    true
}

fn snapshot_event(admin: &Admin) -> Bytes {
    event("snapshot", None, &ui::fragments(admin.parts()))
}

fn journal_event(entry: &Entry) -> Bytes {
    let body = json!({ "entry": entry_json(entry), "html": ui::entry_html(entry) });
    event("journal", Some(entry.seq.0), &body)
}

/// JSON has no line breaks of its own, so one data line is enough.
fn event(name: &str, id: Option<u64>, body: &Value) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    Bytes::from(format!("event: {name}\n{id}data: {body}\n\n"))
}

/// The receiving half of a queue as a stream.
struct Events(mpsc::Receiver<Bytes>);

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}
