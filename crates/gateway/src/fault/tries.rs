//! A try with a fault in its way: what of it the upstream gets, and what of its answer the guards see.
//!
//! Picture a crooked messenger between the guards and the upstream. The guards do not know of it: a status it made up,
//! a head it garbled, a body it holds back come to them the way an upstream's own would. Which try it meddles with is
//! decided in `core::fault::book`; what it does to bytes of a body in `body.rs`, to a head in `head.rs`.

use std::sync::PoisonError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderValue, RETRY_AFTER};
use seawall_core::fault::Effect;
use seawall_core::fault::book::{Act, Carries, Id as FaultId, Moment, RetryAfter, Touch, Try};
use seawall_core::id::UpstreamId;
use seawall_core::outcome::Failure;
use seawall_core::time::{Mono, Wall};

use super::body::{Damage, Told};
use super::connection::lost;
use super::{CallFaults, head};
use crate::chain::{Call, Content, Exchanged, OnBody, exchange};
use crate::http::message::Response;
use crate::http::{grpc, headers};
use crate::node::Worker;

/// The fault point: asks whether a fault lies in the way of this try, and marks its request.
pub(crate) fn touch(
    worker: &Worker,
    call: &mut Call,
    (upstream, endpoint): (UpstreamId, usize),
    now: Mono,
) -> Option<Touch> {
    (call.is_forged, call.is_damaged) = (false, false);
    let faults = worker.node.faults.as_ref().filter(|faults| faults.is_any())?;
    // Two copies may be on their way at the same time, and are one request.
    let touched = call.touched();
    let has_header =
        |name: &str, value: &str| call.headers.get_all(name).any(|written| written.as_bytes() == value.as_bytes());
    let it = Try {
        generation: worker.node.generation,
        route: call.id,
        upstream,
        endpoint: &worker.node.policy.upstream(upstream).endpoints[endpoint],
        client: call.conn.as_ref().and_then(|conn| conn.client.get().copied()),
        method: call.method.as_str(),
        path: call.target.path(),
        has_header: &has_header,
        carries: if call.is_grpc { Carries::Grpc } else { Carries::Call },
        touched: &touched,
    };
    let (touch, told) = faults.touch(now, &it)?;
    if touched.is_empty() {
        worker.counts[call.id.index()].faulted.add(1);
    }
    note_once(&mut call.touched, touch.id);
    if let Some(copies) = &call.copies {
        note_once(&mut copies.touched.lock().unwrap_or_else(PoisonError::into_inner), touch.id);
    }
    told.iter().for_each(|told| call.route.touched(now, *told));
    Some(touch)
}

pub(crate) fn note_once(touched: &mut Vec<FaultId>, id: FaultId) {
    if !touched.contains(&id) {
        touched.push(id);
    }
}

/// An exchange with a fault in its way. What comes of it is told to the guards like the real thing.
pub(crate) async fn faulted(
    worker: &std::sync::Arc<Worker>,
    call: &mut Call,
    (upstream, endpoint): (UpstreamId, usize),
    touch: Touch,
    until: Mono,
) -> Result<Exchanged, Failure> {
    let clock = &worker.node.clock;
    let Some(faults) = worker.node.faults.clone() else {
        return exchange(worker, call, upstream, endpoint, clock.now(), until).await;
    };
    match touch.act {
        Act::Abort(status, retry) => return Ok(forged(call, abort(status, retry, clock.wall()), clock.now())),
        Act::Grpc(code) => return Ok(forged(call, grpc::failed(code), clock.now())),
        Act::Refuse => return Err(Failure::ConnectRefused),
        Act::Delay(Moment::Request, delay) => faults.hold(touch.id, Some(clock.now() + delay)).await,
        Act::Lost => lost(worker, &faults, upstream, touch.id).await?,
        // One that is taken away meanwhile lets the try go on: it was late, and nothing else.
        Act::Hang => faults.hold(touch.id, None).await,
        // The copy first: its answer is nobody's, and its connection is free again.
        Act::Duplicate if call.body.replayable() && call.upgrade.is_none() => {
            drop(exchange(worker, call, upstream, endpoint, clock.now(), until).await);
            call.may_have_arrived = true;
        }
        _ => {}
    }
    let exchanged = exchange(worker, call, upstream, endpoint, clock.now(), until).await?;
    meddle(&faults, call, touch, exchanged).await
}

/// What is left of an upstream's answer.
async fn meddle(
    faults: &CallFaults,
    call: &mut Call,
    touch: Touch,
    mut exchanged: Exchanged,
) -> Result<Exchanged, Failure> {
    let length = headers::content_length(&exchanged.head.headers);
    let damage = |effect, seed| Damage::new(faults, touch.id, effect, seed);
    let damage = match touch.act {
        // Its connection is dropped with it if there is more to come.
        Act::Swallow => return Err(Failure::ConnectionLost),
        Act::Cut => match exchanged.content {
            Content::Arriving(..) => return Ok(Exchanged { on_body: OnBody::EndsEarly, ..exchanged }),
            // A short answer is read whole before anything goes on: cut, it is a failed try.
            Content::Whole(_) | Content::Switched(_) => return Err(Failure::Incomplete),
        },
        Act::Delay(Moment::Head, delay) => {
            faults.hold(touch.id, Some(faults.clock().now() + delay)).await;
            None
        }
        // It was on its way all the time.
        Act::Mute => {
            faults.hold(touch.id, None).await;
            None
        }
        Act::Delay(Moment::Body, delay) => {
            let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            Some(damage(Effect::Latency { delay_ms, jitter: Duration::ZERO }, 0))
        }
        Act::Body(effect, seed) => Some(damage(effect, seed)),
        // Without a length there is nothing to lie about: it ends after its first byte.
        Act::Short => {
            let half = length.map_or(1, |length| length / 2);
            Some(damage(Effect::LimitData { bytes: half }, 0).of_length(Told::Short))
        }
        Act::Long => Some(damage(Effect::Noop, 0).of_length(Told::Long)),
        Act::HugeHead(bytes) => {
            exchanged.head = head::read(&head::with_field(&exchanged.head, bytes), &call.method)?;
            call.is_damaged = true;
            None
        }
        Act::GarbledHead(draw) => {
            exchanged.head = head::read(&head::garbled(&exchanged.head, draw), &call.method)?;
            call.is_damaged = true;
            None
        }
        _ => None,
    };
    let (Some(damage), false) = (damage, exchanged.content.is_empty()) else {
        return Ok(Exchanged { at: faults.clock().now(), ..exchanged });
    };
    call.is_damaged = !matches!(touch.act, Act::Delay(..) | Act::Body(Effect::Bandwidth { .. }, _));
    if let Some(told) = length.and_then(|length| damage.length(length)) {
        exchanged.head.headers.insert(CONTENT_LENGTH, HeaderValue::from(told));
    }
    match exchanged.content {
        Content::Whole(bytes) => {
            let content = Content::Whole(damage.whole(bytes).await?);
            Ok(Exchanged { content, at: faults.clock().now(), ..exchanged })
        }
        _ => Ok(Exchanged { on_body: OnBody::Damaged(Box::new(damage)), ..exchanged }),
    }
}

/// An answer that no upstream gave: nothing may be remembered of it.
fn forged(call: &mut Call, answer: Response<()>, at: Mono) -> Exchanged {
    call.is_forged = true;
    let (head, content) = (answer.head, Content::Whole(Bytes::new()));
    Exchanged { head, content, at, on_body: OnBody::Passes }
}

fn abort(status: u16, retry: Option<RetryAfter>, now: Wall) -> Response<()> {
    let mut answer = Response::new(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE), ());
    let date = |at: SystemTime| HeaderValue::from_str(&httpdate::fmt_http_date(at)).ok();
    let now = UNIX_EPOCH + Duration::from_millis(now.as_millis());
    let retry = match retry {
        None => None,
        Some(RetryAfter::Seconds(seconds)) => Some(HeaderValue::from(seconds)),
        Some(RetryAfter::Ahead(by)) => date(now + by),
        Some(RetryAfter::Ago(by)) => date(now.checked_sub(by).unwrap_or(UNIX_EPOCH)),
    };
    answer.headers_mut().extend(retry.map(|retry| (RETRY_AFTER, retry)));
    answer
}
