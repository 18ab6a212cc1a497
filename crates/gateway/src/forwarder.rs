//! Empties the spool: one forwarder per upstream, in order per key, through the same guards as live traffic.
//!
//! It leases the first record of each key, sends it, and acknowledges it on a 2xx. A permanent refusal parks it; any
//! failure puts it back to wait, its key with it. How many go out at a time is `core::spool::pace`. A breaker that is
//! open is waited for, and what the forwarder sends then are its probes.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Uri};
use http_body_util::BodyExt as _;
use seawall_core::guard::deadline::Deadline;
use seawall_core::guard::retry::Waits;
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::journal::{Draft, Kind};
use seawall_core::outcome::Failure;
use seawall_core::policy::Route;
use seawall_core::spool::pace::{self, Delivered, Pace};
use seawall_core::spool::{Lease, NewRecord};
use seawall_core::time::Mono;
use seawall_store::Leased;
use tokio::task::JoinSet;

use crate::aim::Aim;
use crate::chain::{Call, Kept, Tried, try_once};
use crate::fallback::is_taken;
use crate::http::body::{ResBody, Tracked};
use crate::http::fields::Fields;
use crate::http::message::Response;
use crate::listener::Stop;
use crate::node::{Node, Worker};
use crate::records::Fate;
use crate::route::RouteState;

/// Beyond the deadline of a try: an expired lease would hand the record to somebody else while we still send it.
const LEASE_SLACK: Duration = Duration::from_secs(30);
/// How often it looks even if nobody calls.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LAST_WORDS_BYTES: usize = 512;
/// How long the forwarder rests when a fault answered in the upstream's place.
const FORGED_REST: Duration = Duration::from_millis(100);
/// Records given up with one sync, and with one entry in the journal.
const EXPIRE_AT_ONCE: usize = 256;

/// Runs until stopped; what is on its way then is finished or given back.
pub(crate) async fn forward(worker: Arc<Worker>, upstream: UpstreamId, stop: Stop) {
    let node = Arc::clone(&worker.node);
    let name = node.upstreams[upstream.index()].name.clone();
    let Some(id) = spooling_route(&worker, upstream) else { return };
    let _of_store = node.of_store.take();
    let route = &node.routes[id.index()];
    let parallel = route.policy.delivery.parallel.max(1) as usize;
    let lease_for = route.policy.guards.timeout + LEASE_SLACK;
    let (mut work, mut out, mut pace) = (node.spool.work_signal(), JoinSet::new(), Pace::new(parallel));
    let mut expire_at = Mono::ZERO;
    while !stop.drain.is_cancelled() {
        while let Some(delivered) = out.try_join_next() {
            pace.after(delivered.unwrap_or(Delivered::Failed), node.clock.now());
        }
        let (mut next_look, free) = (LOOK_EVERY, pace.free(out.len()));
        let now = node.clock.now();
        if expire_at <= now {
            expire_at = now + expire(&node, &name).await;
        }
        match route.admits_at().filter(|at| now < *at).or(pace.paused_until(now)) {
            Some(at) => next_look = now.until(at),
            _ if free == 0 => {}
            _ => {
                let Ok(leases) = node.spool.lease(&name, free, lease_for).await else { return };
                next_look = leases.ready_in.unwrap_or(LOOK_EVERY).clamp(Duration::from_millis(1), LOOK_EVERY);
                for leased in leases.leased {
                    out.spawn(deliver(Arc::clone(&worker), id, leased));
                }
            }
        }
        tokio::select! {
            biased;
            () = stop.drain.cancelled() => {}
            Some(delivered) = out.join_next() => {
                pace.after(delivered.unwrap_or(Delivered::Failed), node.clock.now());
            }
            () = work.arrived() => {}
            () = tokio::time::sleep(next_look.min(now.until(expire_at))) => {}
        }
    }
    tokio::select! {
        biased;
        () = stop.now.cancelled() => {}
        () = async { while out.join_next().await.is_some() {} } => {}
    }
}

fn spooling_route(worker: &Worker, upstream: UpstreamId) -> Option<RouteId> {
    let routes = &worker.node.policy.routes;
    let place = routes.iter().position(|route| route.upstream == upstream && route.spools())?;
    u32::try_from(place).ok().map(RouteId)
}

/// Gives up what waited too long: also, and above all, while nothing can be delivered. How long until it is worth
/// looking again.
pub(crate) async fn expire(node: &Node, upstream: &str) -> Duration {
    let Ok(expired) = node.spool.expire(upstream, EXPIRE_AT_ONCE).await else { return LOOK_EVERY };
    let (Some(first), Some(last)) = (expired.first(), expired.last()) else { return LOOK_EVERY };
    let draft = Draft::new(Kind::RecordsExpired, format!("upstream:{upstream}"))
        .with("records", expired.len())
        .with("first", first.id)
        .with("last", last.id);
    node.journal.record(draft);
    for stamp in expired.iter().filter_map(|expired| expired.record.ledger.as_ref()) {
        node.records.settle(stamp, Fate::Expired);
    }
    Duration::from_millis(1)
}

/// Sends one record and tells the spool what came of it.
async fn deliver(worker: Arc<Worker>, default_route: RouteId, leased: Leased) -> Delivered {
    let Leased { lease, record, attempts, .. } = leased;
    let node = Arc::clone(&worker.node);
    let upstream = node.routes[default_route.index()].policy.upstream;
    let is_its_route = |route: &Route| route.name == record.route && route.upstream == upstream;
    let by_name = node.policy.routes.iter().position(is_its_route);
    // A route that is gone from the config, or leads elsewhere now, leaves its records to another of the same upstream.
    let id = by_name.and_then(|place| u32::try_from(place).ok().map(RouteId)).unwrap_or(default_route);
    let route = Arc::clone(&node.routes[id.index()]);
    let now = node.clock.now();
    let mut call = match call(&route, id, &record, now) {
        Ok(call) => call,
        Err(reason) => return park(&worker, &route, lease, &record, reason, String::new()).await,
    };
    call.aim = Aim::take(&worker, &route, &call.headers);
    let place = match route.enter(now, call.deadline).await {
        Ok(place) => place,
        Err(refusal) => {
            let _ = node.spool.release(lease).await;
            return Delivered::Refused(refusal.retry_in().unwrap_or_default());
        }
    };
    let counts = &worker.counts[id.index()];
    let tried = try_once(&worker, &mut call, route.policy.upstream, &mut Some(place)).await;
    if call.is_forged {
        // A fault answered, not the upstream: no dead letter and no counted try may be left of that when it is gone.
        let _ = node.spool.release(lease).await;
        return Delivered::Refused(FORGED_REST);
    }
    match tried {
        Tried::Answered(received) if is_taken(received.answer.status()) => {
            // Half an answer is no answer: the upstream knows the record by its key and will be asked again.
            let status = received.answer.status().as_u16();
            match read_out(received.answer.body).await {
                Ok(()) => acknowledge(&worker, lease, &record, status).await,
                Err(error) => put_back(&worker, lease, attempts, None, error).await,
            }
        }
        Tried::Answered(received) if is_permanent(received.answer.status().as_u16()) => {
            let status = received.answer.status();
            let words = last_words(received.answer).await;
            park(&worker, &route, lease, &record, format!("the upstream refused it with {status}"), words).await
        }
        Tried::Answered(received) => {
            let status = received.answer.status();
            if attempts + 1 >= route.policy.delivery.attempts_max {
                let words = last_words(received.answer).await;
                let reason = format!("{} tries, the last one answered {status}", attempts + 1);
                return park(&worker, &route, lease, &record, reason, words).await;
            }
            put_back(&worker, lease, attempts, None, format!("answered {status}")).await
        }
        Tried::Failed { failure, answer, retry_after } => {
            counts.failed(failure);
            let answered = matches!(failure, Failure::Status(_));
            if answered && attempts + 1 >= route.policy.delivery.attempts_max {
                let words = match answer {
                    Some(answer) => last_words(answer).await,
                    None => String::new(),
                };
                let reason = format!("{} tries, the last one {failure}", attempts + 1);
                return park(&worker, &route, lease, &record, reason, words).await;
            }
            put_back(&worker, lease, attempts, retry_after, failure.to_string()).await
        }
        Tried::Refused(refusal) => {
            let _ = node.spool.release(lease).await;
            Delivered::Refused(refusal.retry_in().unwrap_or_default())
        }
        Tried::ClientBroke | Tried::ClientTooSlow => unreachable!("a record has no client"),
    }
}

/// 4xx will not change by waiting, except those that say so: timeout, conflict (another try may be running), too
/// early, too many.
fn is_permanent(status: u16) -> bool {
    (300..500).contains(&status) && !matches!(status, 408 | 409 | 425 | 429)
}

fn call(route: &Arc<RouteState>, id: RouteId, record: &NewRecord, now: Mono) -> Result<Call, String> {
    let mut headers = Fields::with_capacity(record.headers.len());
    for (name, value) in &record.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("header name `{name}` is malformed"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| format!("header `{name}` has a malformed value"))?;
        headers.append(name, value);
    }
    let target: Uri = record.target.parse().map_err(|_| format!("target `{}` is malformed", record.target))?;
    let method = Method::from_bytes(record.method.as_bytes()).map_err(|_| "its method is malformed".to_owned())?;
    let body = Bytes::copy_from_slice(&record.body);
    Ok(Call {
        id,
        route: Arc::clone(route),
        method,
        target,
        aim: Aim::default(),
        headers,
        body: if body.is_empty() { Kept::Empty } else { Kept::Whole(body) },
        deadline: Deadline::new(now, route.policy.guards.timeout, None),
        idempotent: true,
        tried: 0,
        attempts: 1,
        began: now,
        copies: None,
        waits: Waits::default(),
        retried_above: false,
        may_have_arrived: false,
        write: None,
        stale_key: None,
        upgrade: None,
        conn: None,
        speaks_1_1: false,
        speaks_2: false,
        awaits_connection: false,
        tells_patience: false,
        is_grpc: false,
        callers_end: None,
        touched: Vec::new(),
        is_forged: false,
        is_damaged: false,
    })
}

async fn acknowledge(worker: &Worker, lease: Lease, record: &NewRecord, status: u16) -> Delivered {
    let node = &worker.node;
    // False: the lease had expired and somebody else has the record; the upstream knows it by its key.
    if matches!(node.spool.ack(lease, status).await, Ok(true))
        && let Some(stamp) = &record.ledger
    {
        node.records.settle(stamp, Fate::Delivered);
    }
    Delivered::Settled
}

async fn put_back(
    worker: &Worker,
    lease: Lease,
    attempts: u32,
    retry_after: Option<Duration>,
    error: String,
) -> Delivered {
    let wait = {
        let mut prng = worker.prng.lock().unwrap_or_else(PoisonError::into_inner);
        pace::rest_after(attempts + 1, retry_after, &mut prng)
    };
    let _ = worker.node.spool.nack(lease, wait, error).await;
    Delivered::Failed
}

async fn park(
    worker: &Worker,
    route: &RouteState,
    lease: Lease,
    record: &NewRecord,
    reason: String,
    last_words: String,
) -> Delivered {
    let node = &worker.node;
    let id = lease.id();
    if matches!(node.spool.park(lease, reason.clone(), last_words).await, Ok(true)) {
        let subject = format!("record:{id}");
        let draft = Draft::new(Kind::RecordParked, subject)
            .because(route.cause())
            .with("route", &record.route)
            .with("upstream", &record.upstream)
            .with("reason", reason);
        node.journal.record(draft);
        if let Some(stamp) = &record.ledger {
            node.records.settle(stamp, Fate::Parked);
        }
    }
    Delivered::Settled
}

/// Reads an answer to its end.
async fn read_out(body: ResBody) -> Result<(), String> {
    let mut body = Tracked::new(body, ());
    while let Some(frame) = body.frame().await {
        frame.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The beginning of what the upstream said.
async fn last_words(answer: Response<ResBody>) -> String {
    let mut body = Tracked::new(answer.body, ());
    let mut words = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            words.extend_from_slice(&data);
        }
        if words.len() >= LAST_WORDS_BYTES {
            break;
        }
    }
    words.truncate(LAST_WORDS_BYTES);
    String::from_utf8_lossy(&words).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waiting_changes_these() {
        assert!([301, 400, 404, 413, 422].into_iter().all(is_permanent));
        assert!(![200, 204, 408, 409, 425, 429, 500, 503].into_iter().any(is_permanent));
    }
}
