//! What stands in when an upstream cannot answer: the spool, a last good answer, a fixed one, another upstream. Tried
//! in the order the route names them; each marks what it gives as reduced, how, and since when.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Method, StatusCode};
use seawall_core::guard::Refusal;
use seawall_core::id::RecordId;
use seawall_core::journal::Seq;
use seawall_core::policy::{Delivery, Durability, Fallback};
use seawall_core::spool::NewRecord;
use seawall_core::spool::Terms;
use seawall_core::spool::index::Outcome;
use seawall_core::time::Wall;
use seawall_store::EnqueueError;
use serde_json::json;

use crate::chain::{Call, RECORDS_PATH, Reason, Tried, Write, finish, mark_faults, order_key};
use crate::http::answer::{Answer, degraded, durability, proxy_status};
use crate::http::body::ResBody;
use crate::http::headers::{self, IDEMPOTENCY_KEY, PROXY_STATUS, SEAWALL_DURABILITY};
use crate::http::message::Response;
use crate::node::{Node, Worker};
use crate::records::Fate;
use crate::relay::Wish;
use crate::writes::{ANSWER_BYTES_MAX, DoneAnswer};

/// Answers a call that got no answer of its upstream's.
pub(crate) async fn apply(worker: &Arc<Worker>, mut call: Call, reason: Reason) -> Response<ResBody> {
    if let Reason::Client(verdict) = reason {
        worker.rejections.count(verdict);
        return Answer::verdict(verdict).build();
    }
    let fallbacks = call.route.policy.fallbacks.clone();
    let cause = if fallbacks.is_empty() { None } else { cause(worker, &call, &reason) };
    let mut refused = None;
    for fallback in &fallbacks {
        // Nothing but the spool keeps a write behind the older ones of its key.
        if matches!(reason, Reason::Behind) && *fallback != Fallback::Spool {
            continue;
        }
        let answer = match fallback {
            Fallback::Spool => match call.write.take() {
                Some(write) => match spool(worker, &call, write, &reason).await {
                    Ok(answer) => Some(answer),
                    Err(answer) => {
                        refused = Some(answer);
                        None
                    }
                },
                None => None,
            },
            Fallback::Stale { for_at_most } => stale(worker, &call, *for_at_most),
            Fallback::Static { status, content_type, body } => Some(fixed(*status, content_type, body)),
            Fallback::Upstream(other) => other_upstream(worker, &mut call, *other).await,
        };
        if let Some(answer) = answer {
            return mark(worker, &call, (fallback.name(), cause), &reason, answer);
        }
    }
    let touched = call.touched();
    let mut answer = refused.unwrap_or_else(|| no_fallback(worker, call, reason));
    mark_faults(&touched, &mut answer);
    answer
}

/// The journal's entry that tells why this answer is not the upstream's.
fn cause(worker: &Worker, call: &Call, reason: &Reason) -> Option<Seq> {
    match reason {
        // The breaker has told already, and what waits is told by the spool.
        Reason::Refused(Refusal::BreakerOpen { .. }) | Reason::Behind | Reason::Client(_) => call.route.cause(),
        Reason::Refused(_) | Reason::Failed(..) => {
            Some(call.route.failing(worker.node.clock.now(), &reason_words(reason)))
        }
    }
}

/// Marks an answer as reduced, counts it, and tells the journal when it is the first.
fn mark(
    worker: &Arc<Worker>,
    call: &Call,
    (how, cause): (&'static str, Option<Seq>),
    reason: &Reason,
    mut answer: Response<ResBody>,
) -> Response<ResBody> {
    let since = call.route.degraded(how, cause);
    worker.counts[call.id.index()].degraded(how);
    // The spool's answer is marked already, with what is told again to whoever repeats the key.
    if how != Fallback::Spool.name() {
        let (name, value) = degraded(how, since);
        answer.headers_mut().insert(name, value);
    }
    answer.headers_mut().insert(PROXY_STATUS, reason_status(reason));
    mark_faults(&call.touched(), &mut answer);
    answer
}

fn reason_status(reason: &Reason) -> HeaderValue {
    match reason {
        Reason::Refused(refusal) => proxy_status(refusal.proxy_status(), &refusal.to_string()),
        Reason::Failed(failure, _) => proxy_status(failure.proxy_status(), &failure.to_string()),
        Reason::Behind => proxy_status("destination_unavailable", "older records of the same key wait"),
        Reason::Client(verdict) => proxy_status("http_request_error", verdict.words()),
    }
}

fn reason_words(reason: &Reason) -> String {
    match reason {
        Reason::Refused(refusal) => refusal.to_string(),
        Reason::Failed(failure, _) => failure.to_string(),
        Reason::Behind => "older records of the same key wait".into(),
        Reason::Client(verdict) => verdict.words().into(),
    }
}

/// Nothing stands in: the upstream's own answer if it gave one, or what went wrong.
fn no_fallback(worker: &Arc<Worker>, mut call: Call, reason: Reason) -> Response<ResBody> {
    let node = &worker.node;
    let response = match reason {
        Reason::Failed(_, Some(mut answer)) => {
            headers::to_client(answer.headers_mut(), &node.via);
            answer
        }
        Reason::Failed(failure, None) => Answer::failure(failure).build(),
        Reason::Refused(refusal) => Answer::refusal(&refusal).build(),
        Reason::Behind => Answer::new(503, "destination_unavailable", "spool", "older records wait").build(),
        Reason::Client(verdict) => Answer::verdict(verdict).build(),
    };
    if let Some(Write { stamped: Some(stamped), .. }) = call.write.take() {
        stamped.settle(if call.may_have_arrived { Fate::Indeterminate } else { Fate::Refused });
    }
    response
}

/// The same key with another payload.
pub(crate) fn key_conflict() -> Response<ResBody> {
    let detail = "this Idempotency-Key belongs to another request";
    Answer::new(422, "http_request_denied", "idempotency_key", detail).build()
}

/// Makes the write durable and answers 202. What cannot be kept is refused, and nothing of it is left behind.
async fn spool(
    worker: &Arc<Worker>,
    call: &Call,
    write: Write,
    reason: &Reason,
) -> Result<Response<ResBody>, Response<ResBody>> {
    let node = Arc::clone(&worker.node);
    let delivery = call.route.policy.delivery;
    if let Err(answer) = can_be_replicated(&node, &delivery) {
        if let Some(stamped) = write.stamped {
            stamped.settle(if call.may_have_arrived { Fate::Indeterminate } else { Fate::Refused });
        }
        return Err(*answer);
    }
    let record = record(worker, call, &write, reason);
    let attending = write.claiming.attend();
    let may_have_arrived = call.may_have_arrived;
    let since = call.route.degraded_since().unwrap_or_else(|| node.clock.wall());
    // In a task of its own: a client that goes away now must not leave the account in doubt.
    let kept = worker.tasks.spawn(async move {
        let kept = node.spool.enqueue_within(&record, delivery.bytes_max).await;
        let Write { identity, claiming, stamped, .. } = write;
        let fate = match &kept {
            Ok(enqueued) if !enqueued.already => Fate::Spooled,
            Err(EnqueueError::Stopped { .. }) => Fate::Indeterminate,
            // Not kept, or kept before under a stamp of its own: this one went out already, or never will.
            Ok(_) | Err(_) if may_have_arrived => Fate::Indeterminate,
            Ok(_) | Err(_) => Fate::Refused,
        };
        if let Some(stamped) = stamped {
            stamped.settle(fate);
        }
        match kept {
            // Without an answer that is final, the same key asks again.
            Ok(enqueued) => replicate(&node, &delivery, enqueued.id).await.map(|safe| {
                let (mut answer, mut done) = accepted(enqueued.id, "waiting", &identity.key, Some(since));
                if let Some(safe) = safe {
                    answer.headers_mut().insert(SEAWALL_DURABILITY, safe.clone());
                    done.headers.insert(SEAWALL_DURABILITY, safe);
                }
                claiming.finish(node.clock.now(), done);
                answer
            }),
            Err(error) => Err(not_kept(&error)),
        }
    });
    let kept = kept.await;
    drop(attending);
    match kept {
        Ok(answer) => answer,
        Err(_) => Err(Answer::new(500, "proxy_internal_error", "spool", "the spool's task ended early").build()),
    }
}

/// Refuses a write that must be replicated while that is known to be impossible: better than to keep it and say no.
fn can_be_replicated(node: &Node, delivery: &Delivery) -> Result<(), Box<Response<ResBody>>> {
    if delivery.durability != Durability::Replicated {
        return Ok(());
    }
    let status = node.spool.replica();
    match status.as_ref().and_then(|status| status.state.reason()) {
        Some(reason) => {
            Err(Box::new(not_replicated(&format!("nothing was kept: the replica is not written to: {reason}"))))
        }
        None => Ok(()),
    }
}

fn not_replicated(detail: &str) -> Response<ResBody> {
    let answer = Answer::new(503, "destination_unavailable", "durability", detail);
    answer.retry_in(Duration::from_secs(5)).build()
}

/// Waits until a record that is safe here is safe elsewhere, if its route says so. What to tell of it, or the answer if
/// that was not to be had and the route takes nothing less.
pub(crate) async fn replicate(
    node: &Node,
    delivery: &Delivery,
    id: RecordId,
) -> Result<Option<HeaderValue>, Response<ResBody>> {
    if delivery.durability == Durability::Local {
        return Ok(None);
    }
    let within = delivery.replicated_within;
    let reason = match tokio::time::timeout(within, node.spool.replicated(id)).await {
        Ok(Ok(())) => return Ok(Some(durability("replicated", None))),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the replica has not confirmed it within {within:?}"),
    };
    match delivery.durability {
        Durability::Replicated => Err(not_replicated(&format!(
            "kept on this node only, as record {id}, and delivered from here: {reason}; the same Idempotency-Key asks again"
        ))),
        Durability::ReplicatedOrLocal | Durability::Local => Ok(Some(durability("local", Some(&reason)))),
    }
}

fn record(worker: &Worker, call: &Call, write: &Write, reason: &Reason) -> NewRecord {
    let headers = call.headers.iter();
    let (accepted, delivery) = (worker.node.clock.wall(), &call.route.policy.delivery);
    NewRecord {
        upstream: call.route.upstream_name.clone(),
        route: call.route.policy.name.clone(),
        order_key: order_key(&call.route, &call.headers).map(|key| key.as_bytes().to_vec()),
        idempotency_key: write.identity.owned.0.clone(),
        fingerprint: write.identity.fingerprint,
        ledger: write.stamped.as_ref().map(|stamped| stamped.stamp.clone()),
        method: call.method.to_string(),
        target: call.target.to_string(),
        headers: headers.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect(),
        body: write.body.to_vec(),
        accepted,
        first_failure: reason_words(reason),
        attempts: if matches!(reason, Reason::Failed(..)) { call.attempts } else { 0 },
        terms: Terms { priority: delivery.priority, expires: delivery.expire.map(|expire| accepted + expire) },
    }
}

/// The answer to a write that was accepted before: where it is in its life, and since when it is held, if it is.
pub(crate) fn accepted_before(id: RecordId, state: &str, key: &HeaderValue, held: Option<Wall>) -> Response<ResBody> {
    accepted(id, state, key, held).0
}

fn accepted(id: RecordId, state: &str, key: &HeaderValue, held: Option<Wall>) -> (Response<ResBody>, DoneAnswer) {
    let location = format!("{RECORDS_PATH}{id}");
    let body = Bytes::from(format!("{}\n", json!({ "id": id, "state": state, "location": location })));
    let mut response = Response::new(StatusCode::ACCEPTED, ResBody::whole(body.clone()));
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_str(&location).unwrap_or(HeaderValue::from_static("/")));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(IDEMPOTENCY_KEY, key.clone());
    headers.extend(held.map(|since| degraded(Fallback::Spool.name(), since)));
    let done = DoneAnswer { status: StatusCode::ACCEPTED, headers: headers.clone(), body };
    (response, done)
}

fn not_kept(error: &EnqueueError) -> Response<ResBody> {
    let (status, rule) = match error {
        EnqueueError::KeyConflict { .. } => return key_conflict(),
        EnqueueError::TooLarge { .. } => (413, "record_max"),
        EnqueueError::DiskFull => (507, "disk"),
        EnqueueError::Full { .. } => (503, "spool_max"),
        EnqueueError::RouteFull { .. } => (503, "delivery.max"),
        EnqueueError::Stopped { .. } => (503, "spool"),
    };
    let answer = Answer::new(status, "destination_unavailable", rule, error.to_string());
    if status == 413 { answer.build() } else { answer.retry_in(Duration::from_secs(5)).build() }
}

/// Finishes a write that its upstream answered: the ledger's account, the key's answer.
pub(crate) fn finish_write(node: &Arc<Node>, write: Write, may_have_arrived: bool, response: &mut Response<ResBody>) {
    let status = response.status();
    let Write { identity, claiming, stamped, .. } = write;
    if let Some(stamped) = stamped {
        stamped.settle(fate(status, may_have_arrived));
    }
    response.headers_mut().insert_if_absent(IDEMPOTENCY_KEY, || identity.key);
    // "Try later" is no final answer; neither is one we did not see whole.
    let final_answer = !matches!(status.as_u16(), 408 | 409 | 425 | 429);
    if !final_answer {
        return;
    }
    let headers = headers::owned(response.headers());
    match (response.body.bytes(), &mut response.body) {
        (Some(body), _) => claiming.finish(node.clock.now(), DoneAnswer { status, headers, body }),
        (None, ResBody::Relay(relay)) => relay.keep_for(Wish::Replay(claiming, (status, headers)), ANSWER_BYTES_MAX),
        (None, _) => unreachable!("what is not at hand arrives"),
    }
}

/// What became of a write, by its answer.
pub(crate) fn fate(status: StatusCode, may_have_arrived: bool) -> Fate {
    // A no to the last try says nothing about an earlier one that was never answered; "conflict" often means just that.
    let is_certain = !may_have_arrived && status != StatusCode::CONFLICT;
    match is_taken(status) {
        true => Fate::Accepted,
        false if is_certain => Fate::Refused,
        false => Fate::Indeterminate,
    }
}

/// True if the upstream has done what was asked: 2xx, or 303, which says where the result is.
pub(crate) fn is_taken(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SEE_OTHER
}

fn stale(worker: &Worker, call: &Call, for_at_most: Duration) -> Option<Response<ResBody>> {
    let node = &worker.node;
    let mut answer = node.stale.get(call.stale_key.as_ref()?, node.clock.now(), for_at_most)?;
    headers::to_client(answer.headers_mut(), &node.via);
    Some(answer)
}

fn fixed(status: u16, content_type: &str, body: &str) -> Response<ResBody> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut response = Response::new(status, ResBody::whole(Bytes::copy_from_slice(body.as_bytes())));
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    if matches!(status.as_u16(), 429 | 503) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// One try with another upstream, in what is left of the deadline.
async fn other_upstream(
    worker: &Arc<Worker>,
    call: &mut Call,
    other: seawall_core::id::UpstreamId,
) -> Option<Response<ResBody>> {
    let now = worker.node.clock.now();
    if !call.can_be_sent_again() || call.deadline.check(now).is_err() {
        return None;
    }
    call.tried = 0;
    let Tried::Answered(received) = crate::chain::try_unguarded(worker, call, other).await else { return None };
    let mut response = received.answer;
    headers::to_client(response.headers_mut(), &worker.node.via);
    finish(worker, call, &mut response);
    Some(response)
}

/// What `Location` of a 202 answers: the state of the record, never its payload.
pub(crate) async fn record_state(worker: &Worker, id: &str, method: &Method) -> Response<ResBody> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut answer = Answer::new(405, "http_request_denied", "method", "ask with GET").build();
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let Ok(id) = id.parse().map(RecordId) else {
        return Answer::new(404, "destination_not_found", "record", "a record's id is a number").build();
    };
    match worker.node.spool.get(id).await {
        Ok(Some(account)) => {
            let (status, reason) = match account.settled.as_ref().map(|settled| &settled.outcome) {
                Some(Outcome::Delivered { status }) => (Some(*status), None),
                Some(Outcome::Discarded { reason } | Outcome::HandedOver { to: reason }) => (None, Some(reason)),
                Some(Outcome::Expired) => (None, None),
                None => (None, account.parked.as_ref().map(|parked| &parked.reason)),
            };
            // Of a record that has left nothing is kept but what became of it.
            let held = account.record.as_ref();
            let state = json!({
                "id": id,
                "state": account.state.name(),
                "status": status,
                "reason": reason,
                "attempts": held.map(|_| account.attempts),
                "last_error": held.map(|_| &account.last_error),
                "accepted_at": held.map(|record| record.accepted.rfc3339()),
                "settled_at": account.settled.as_ref().map(|settled| settled.at.rfc3339()),
            });
            let mut response = Response::new(StatusCode::OK, ResBody::whole(Bytes::from(format!("{state}\n"))));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response.headers_mut().insert(PROXY_STATUS, HeaderValue::from_static("seawall"));
            response
        }
        Ok(None) => {
            let detail = format!("no record {id} is known here (any more)");
            Answer::new(404, "destination_not_found", "record", detail).build()
        }
        Err(error) => Answer::new(503, "proxy_internal_error", "spool", error.to_string()).build(),
    }
}
