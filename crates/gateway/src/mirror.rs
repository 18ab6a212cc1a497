//! A copy of a request for an upstream that is being tried out: sent beside the request, its answer thrown away.
//!
//! Picture a carbon copy that falls into another tray. Whoever writes does not wait for it, and nothing that becomes of
//! it is told to anybody but its own counters: no guard, no mean, no breaker hears of it. At most [`COPIES_MAX`] are on
//! their way; beyond them none is made, which is counted. What cannot be sent twice (a body that is passed on as it
//! comes, an upgrade) is not copied, and what is a copy already is not copied again.
//! Not here: whose endpoints are well (`core::balance`).

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use http::Method;
use http::header::{HOST, HeaderValue};
use seawall_core::balance::Avoid;
use seawall_core::outcome::Failure;
use seawall_core::policy::Mirror;

use crate::chain::{Call, Kept};
use crate::fault;
use crate::http::body::{ReqBody, Sending};
use crate::http::headers::{SEAWALL_MIRROR, SEAWALL_RECORD};
use crate::http::message::Request;
use crate::node::Worker;

/// Copies on their way at the same time, of the whole node: enough for ten thousand a second at 6 ms each, and few
/// enough that an upstream that hangs costs little.
pub(crate) const COPIES_MAX: u64 = 64;

/// What becomes of copies, in the order they are counted.
pub(crate) const FATES: [&str; 9] = ["1xx", "2xx", "3xx", "4xx", "5xx", "failed", "timed_out", "busy", "body"];
const FAILED: usize = 5;
const TIMED_OUT: usize = 6;
const BUSY: usize = 7;
const BODY: usize = 8;

/// Sends a copy of a request that is about to be sent, if its route wants one of it. Does not wait.
pub(crate) fn send(worker: &Arc<Worker>, call: &Call) {
    let Some(mirror) = call.route.policy.placement.mirror.as_ref() else { return };
    if !is_wanted(worker, call, mirror) {
        return;
    }
    let counts = &worker.counts[call.id.index()].mirrored;
    let body = match &call.body {
        Kept::Empty => Bytes::new(),
        Kept::Whole(bytes) => bytes.clone(),
        Kept::Once(..) => return counts[BODY].add(1),
    };
    let Ok(on_its_way) = worker.node.mirrors.take() else { return counts[BUSY].add(1) };
    let (worker_of_copy, id, mirror) = (Arc::clone(worker), call.id, mirror.clone());
    let request = copy(worker, call, &mirror, body);
    let answer_max = call.route.policy.guards.answer_bytes_max;
    worker.tasks.spawn(async move {
        let _on_its_way = on_its_way;
        let sent = exchange(&worker_of_copy, &mirror, request, answer_max);
        let fate = match tokio::time::timeout(mirror.timeout, sent).await {
            Ok(Ok(status)) => usize::from(status / 100).clamp(1, 5) - 1,
            Ok(Err(_)) => FAILED,
            Err(_) => TIMED_OUT,
        };
        worker_of_copy.counts[id.index()].mirrored[fate].add(1);
    });
}

fn is_wanted(worker: &Worker, call: &Call, mirror: &Mirror) -> bool {
    let is_read = matches!(call.method, Method::GET | Method::HEAD | Method::OPTIONS);
    (is_read || mirror.writes || !call.route.policy.spools())
        && call.upgrade.is_none()
        && !call.headers.has(SEAWALL_MIRROR)
        && worker.prng.lock().unwrap_or_else(PoisonError::into_inner).chance(mirror.share.get())
}

fn copy(worker: &Worker, call: &Call, mirror: &Mirror, body: Bytes) -> Request<ReqBody> {
    let mut copy = Request::new(call.method.clone(), call.target.clone(), ReqBody::whole(body));
    let headers = &mut copy.head.headers;
    headers.clone_from(&call.headers);
    // The ledger knows of one record, not of two.
    headers.remove(SEAWALL_RECORD);
    headers.insert(SEAWALL_MIRROR, HeaderValue::from_static("copy"));
    if let Some(host) = &worker.node.upstreams[mirror.to.index()].host {
        headers.insert(HOST, host.clone());
    }
    copy
}

/// Sends it, and takes in the answer if it is short, so that the connection can be used again.
async fn exchange(
    worker: &Worker,
    mirror: &Mirror,
    request: Request<ReqBody>,
    answer_max: u64,
) -> Result<u16, Failure> {
    let now = worker.node.clock.now();
    let choice = worker.choose(mirror.to, Avoid::default(), now).ok_or(Failure::ConnectRefused)?;
    let _load = worker.node.upstreams[mirror.to.index()].begin(choice);
    let pool = worker.pool(mirror.to, choice.place);
    fault::stand_before_cut(worker, mirror.to, choice.place).await;
    let mut link = pool.checkout(now, false, &mut false).await?;
    let answer = link.send(Sending::of(&request.head, request.body), |_| {}).await?;
    let status = answer.status.as_u16();
    if link.left().is_some_and(|length| length <= answer_max) {
        link.read_whole().await.map_err(|_| Failure::Incomplete)?;
        pool.checkin(worker.node.clock.now(), link);
    }
    Ok(status)
}
