//! The way of a call, from a parsed request to its answer, readable top to bottom:
//!
//! verdict of the gate → route → limit of pending work → deadline → the body kept if it may be needed again → (writes)
//! key claimed, record stamped → bulkhead → attempt loop { breaker → endpoint → fault point → pooled connection → send
//! and wait under the per-try timeout → judge } within the retry budget → fallback → answer and count.
//!
//! Not here: what a guard decides (`core::guard`), how a connection is kept (`pool.rs`), what waits (`forwarder.rs`).

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use http_body::{Body as _, Frame};
use seawall_core::balance::Avoid;
use seawall_core::fault::Direction;
use seawall_core::fault::book::Id as FaultId;
use seawall_core::guard::Refusal;
use seawall_core::guard::deadline::Deadline;
use seawall_core::guard::hedge;
use seawall_core::guard::learned::Signals;
use seawall_core::guard::pipeline::{Answered, NoRetry};
use seawall_core::guard::retry::{Pushback, Tried as TriedFacts, Waits};
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::outcome::{Failure, Outcome, is_idempotent, judge_status};
use seawall_core::spool::FingerprintHalf;
use seawall_core::time::Mono;

use crate::aim::Aim;
use crate::fault::CallFaults;
use crate::fault::body::Damage;
use crate::fault::border::{self, Border};
use crate::fault::connection::{Asked, Exposed};
use crate::fault::tries::{faulted, note_once, touch};
use crate::http::answer::Answer;
use crate::http::body::{BoxError, ClientBody, Incoming, Pieces, Progress, ReqBody, ResBody, Sending, Tracked};
use crate::http::conn::ConnState;
use crate::http::fields::Fields;
use crate::http::gate::{VERDICT_HEADER, Verdict};
use crate::http::grpc::{self, GRPC_TIMEOUT, PREVIOUS_ATTEMPTS};
use crate::http::headers::{
    self, EXPECTED_TIMEOUT_MS, Hop, IDEMPOTENCY_KEY, PROXY_STATUS, Present, RETRY_OWNER, SEAWALL_DURABILITY,
    SEAWALL_FAULT, SEAWALL_RECORD, X_REQUEST_ID,
};
use crate::http::message::{Request, Response, ResponseHead};
use crate::http::wire;
use crate::node::{Node, Used, Worker};
use crate::pool::{EndpointLoad, Link, Switched};
use crate::records::Fate;
use crate::relay::{Early, Relay, Wish};
use crate::route::{Pass, Place, Retry, RouteState};
use crate::seat::Door;
use crate::stale;
use crate::tls::Shown;
use crate::upgrade::{self, Handover};
use crate::writes::{BadKey, Claimed, Claiming, DoneAnswer, Identity, Stamped};
use crate::{ejection, fallback, frames, mirror};

/// Who is at the other end of a client's connection, and where it came in.
pub(crate) struct Peer {
    /// Which door: it may go by another number under another policy.
    pub(crate) door: Arc<Door>,
    pub(crate) _guest: Arc<()>,
    pub(crate) ip_text: HeaderValue,
    /// True if it came by TLS.
    pub(crate) sealed: bool,
    /// The certificate it came with, if upstreams are to hear of that.
    pub(crate) shown: Shown,
    /// True if its word on where a request came from is believed.
    pub(crate) trusted: bool,
}

impl<'a> Hop<'a> {
    fn of(peer: &'a Peer, via: &'a HeaderValue) -> Self {
        Self { peer: &peer.ip_text, sealed: peer.sealed, shown: &peer.shown, trusted: peer.trusted, via }
    }
}

/// What ends with an answer's last byte.
pub(crate) struct Ending {
    conn: Arc<ConnState>,
    node: Arc<Node>,
    _pending: Option<Used>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.conn.set_in_request(self.node.clock.now(), false);
    }
}

/// Answers one request.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    conn: Arc<ConnState>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Response<Tracked<Ending>> {
    let node = &worker.node;
    let started = node.clock.now();
    conn.set_in_request(started, true);
    let asks = conn.begin();
    let mut ending = Ending { conn: Arc::clone(&conn), node: Arc::clone(node), _pending: None };
    let mut response = match node.pending.take() {
        Ok(pending) => {
            ending._pending = Some(pending);
            respond(&worker, &conn, &peer, request, asks, started).await
        }
        Err(refusal) => Answer::refusal(&refusal).build(),
    };
    if asks {
        switch_or_release(&conn, &mut response);
    }
    response.map(|body| Tracked::new(body, ending))
}

/// A request that asked for an upgrade is answered: its connection goes on as what was asked for, or as it was.
fn switch_or_release(conn: &ConnState, response: &mut Response<ResBody>) {
    match std::mem::replace(&mut response.body, ResBody::Empty) {
        ResBody::Switched(handover) => {
            upgrade::say(response.headers_mut(), handover.protocol.clone());
            conn.switch_to(handover);
        }
        body => {
            response.body = body;
            conn.release();
        }
    }
}

async fn respond(
    worker: &Arc<Worker>,
    conn: &Arc<ConnState>,
    peer: &Peer,
    request: Request<Incoming>,
    asks: bool,
    started: Mono,
) -> Response<ResBody> {
    let present = Present::look(&request.head.headers);
    let present = if asks { present.and(Present::ASKS) } else { present };
    if present.has(Present::VERDICT) {
        let named = request.head.headers.get(VERDICT_HEADER).and_then(|verdict| verdict.to_str().ok());
        let verdict = named.and_then(Verdict::by_name).unwrap_or(Verdict::RequestLine);
        worker.rejections.count(verdict);
        return Answer::verdict(verdict).build();
    }
    if present.has(Present::VIA) && headers::is_loop(&request.head.headers, &worker.node.via) {
        worker.rejections.looped.add(1);
        return Answer::new(502, "proxy_loop_detected", "loop", "this request has passed here before").build();
    }
    if let Some(id) = request.head.uri.path().strip_prefix(RECORDS_PATH) {
        let _of_store = worker.node.of_store.take();
        return Box::pin(fallback::record_state(worker, id, &request.head.method)).await;
    }
    let host = host_of(&request);
    let path = request.head.uri.path();
    let Some(id) = worker.route(&peer.door, &host, path, request.head.method.as_str()) else {
        worker.rejections.no_route.add(1);
        let detail = format!("no route takes {} {path}", request.head.method);
        return Answer::new(404, "destination_not_found", "no_route", detail).build();
    };
    drop(host);
    if let Some(unsayable) = unsayable_host(worker, id, &request.head.headers) {
        worker.rejections.count(Verdict::Host);
        return unsayable;
    }
    let _of_store = worker.node.policy.route(id).spools().then(|| worker.node.of_store.take());
    let counts = &worker.counts[id.index()];
    let mut cancelled = Cancelled { worker, id, over: false };
    let response = route_call(worker, conn, peer, id, request, present, started).await;
    cancelled.over = true;
    counts.answered(response.status().as_u16(), worker.node.clock.now().since(started));
    response
}

/// A refusal, if the route's upstream speaks HTTP/2 and the client's `Host` cannot be said there. The upstream is not
/// asked.
fn unsayable_host(worker: &Worker, id: RouteId, headers: &Fields) -> Option<Response<ResBody>> {
    let upstream = worker.node.policy.route(id).upstream;
    let is_said =
        worker.node.policy.upstreams[upstream.index()].http2 && worker.node.upstreams[upstream.index()].host.is_none();
    let host = headers.get(HOST).filter(|host| is_said && !frames::can_say(host))?;
    let detail = format!("`{}` cannot be said in HTTP/2", String::from_utf8_lossy(host.as_bytes()));
    Some(Answer::new(400, "http_request_error", Verdict::Host.name(), detail).build())
}

/// Where the state of a spooled record can be asked for.
pub(crate) const RECORDS_PATH: &str = "/.seawall/records/";

/// How long a write waits for older ones of its key before it goes behind them.
const BEHIND_PATIENCE: Duration = Duration::from_millis(250);
const BEHIND_LOOK_EVERY: Duration = Duration::from_millis(2);

/// Counts a request whose client went away before its answer.
struct Cancelled<'a> {
    worker: &'a Arc<Worker>,
    id: RouteId,
    over: bool,
}

impl Drop for Cancelled<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.worker.counts[self.id.index()].cancelled.add(1);
        }
    }
}

/// The request's host without port, lower case.
fn host_of(request: &Request<Incoming>) -> Cow<'_, str> {
    let host = match request.head.uri.host() {
        Some(host) => host,
        None => request.head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    };
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.bytes().position(|byte| byte == b':').map_or(host, |colon| &host[..colon]),
    };
    if bare.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(bare.to_ascii_lowercase())
    } else {
        Cow::Borrowed(bare)
    }
}

/// A request on its way to an upstream. Also what the forwarder sends.
pub(crate) struct Call {
    pub(crate) id: RouteId,
    pub(crate) route: Arc<RouteState>,
    pub(crate) method: Method,
    /// Origin form.
    pub(crate) target: Uri,
    pub(crate) headers: Fields,
    pub(crate) body: Kept,
    pub(crate) deadline: Deadline,
    pub(crate) idempotent: bool,
    /// Which of the upstream's endpoints it is meant for.
    pub(crate) aim: Aim,
    pub(crate) tried: u64,
    pub(crate) attempts: u32,
    pub(crate) began: Mono,
    /// What it shares with its second copy, if it may have one.
    pub(crate) copies: Option<Arc<Copies>>,
    pub(crate) waits: Waits,
    /// True if a layer above us repeats it when it fails, so that we do not.
    pub(crate) retried_above: bool,
    /// True once a copy of it may have been carried out without our having seen a good answer: from here on a no says
    /// nothing about that copy.
    pub(crate) may_have_arrived: bool,
    pub(crate) write: Option<Write>,
    pub(crate) stale_key: Option<stale::Key>,
    /// What its connection is to become, if its route allows that.
    pub(crate) upgrade: Option<HeaderValue>,
    /// The client's connection; the forwarder has none.
    pub(crate) conn: Option<Arc<ConnState>>,
    /// True if the client speaks HTTP/1.1: interim answers mean something to it, and a cut answer shows.
    pub(crate) speaks_1_1: bool,
    /// True if the client speaks HTTP/2: trailers need no announcement.
    pub(crate) speaks_2: bool,
    /// True while it waits for one of the connections an upstream may have.
    pub(crate) awaits_connection: bool,
    /// True if the caller said how long it waits: the upstream is told what is left.
    pub(crate) tells_patience: bool,
    /// True for a call of gRPC.
    pub(crate) is_grpc: bool,
    /// When the caller's own patience ends, if it said so.
    pub(crate) callers_end: Option<Mono>,
    /// The faults, placed on purpose, that have touched a try of it; [`Call::touched`] knows those of its copies too.
    pub(crate) touched: Vec<FaultId>,
    /// True if what the last try was answered with is a fault's work: nothing may be remembered of it.
    pub(crate) is_forged: bool,
    /// True if a fault has changed what the upstream answered to the last try: it may not be remembered.
    pub(crate) is_damaged: bool,
}

/// What the copies of a call share.
pub(crate) struct Copies {
    /// When the first was sent.
    pub(crate) started: Mono,
    /// Where they went, a bit for each endpoint.
    tried: AtomicU64,
    /// True once the second has been answered, and the first has not.
    pub(crate) outrun: AtomicBool,
    /// The faults that have touched one of them.
    pub(crate) touched: Mutex<Vec<FaultId>>,
}

/// A write that must not be lost.
pub(crate) struct Write {
    pub(crate) identity: Identity,
    pub(crate) claiming: Claiming,
    pub(crate) stamped: Option<Stamped>,
    pub(crate) body: Bytes,
}

/// A request's body between tries.
pub(crate) enum Kept {
    /// None.
    Empty,
    /// Whole, and may be sent again.
    Whole(Bytes),
    /// Passed on as it comes, once.
    Once(Option<(Incoming, Vec<Frame<Bytes>>)>, Arc<Progress>),
}

impl Kept {
    pub(crate) fn replayable(&self) -> bool {
        !matches!(self, Self::Once(..))
    }

    fn client_broke_it(&self) -> bool {
        matches!(self, Self::Once(_, progress) if progress.broken.load(Relaxed))
    }

    /// True while the client has not sent all of it.
    fn is_still_coming(&self) -> bool {
        matches!(self, Self::Once(None, progress) if progress.awaits_client())
    }

    fn take(&mut self) -> ReqBody {
        match self {
            Self::Empty => ReqBody::Empty,
            Self::Whole(bytes) => ReqBody::whole(bytes.clone()),
            Self::Once(incoming, progress) => match incoming.take() {
                Some((incoming, come)) => {
                    ReqBody::Stream(ClientBody { come, incoming, progress: Arc::clone(progress), border: None })
                }
                None => ReqBody::Empty,
            },
        }
    }
}

/// Why there is no answer of the upstream's to give.
pub(crate) enum Reason {
    /// A guard said no.
    Refused(Refusal),
    /// The last try failed; if it failed with an answer, here it is.
    Failed(Failure, Option<Response<ResBody>>),
    /// Older records of the same key wait: this one goes behind them.
    Behind,
    /// The client broke its own request.
    Client(Verdict),
}

async fn route_call(
    worker: &Arc<Worker>,
    conn: &Arc<ConnState>,
    peer: &Peer,
    id: RouteId,
    request: Request<Incoming>,
    present: Present,
    started: Mono,
) -> Response<ResBody> {
    let told_id = request.head.headers.get(X_REQUEST_ID).cloned();
    let call = match prepare(worker, conn, peer, id, request, present, started).await {
        Ok(call) => call,
        Err(mut answer) => {
            let id = told_id.unwrap_or_else(|| new_request_id(worker));
            answer.headers_mut().insert(X_REQUEST_ID, id);
            return *answer;
        }
    };
    let (request_id, aim) = (call.headers.get(X_REQUEST_ID).cloned(), call.aim);
    let key = call.write.as_ref().map(|write| write.identity.key.clone());
    let mut response = guarded(worker, call, started).await;
    if let Some(key) = key {
        // Whatever came of it: who asks again must be able to ask for the same thing.
        response.headers_mut().insert_if_absent(IDEMPOTENCY_KEY, || key);
    }
    aim.answered(worker, id, response.status().as_u16());
    response.head.version = http::Version::HTTP_11;
    if let Some(request_id) = request_id {
        response.headers_mut().insert_if_absent(X_REQUEST_ID, || request_id);
    }
    response
}

/// The call through its guards, and its fallback if they give up.
async fn guarded(worker: &Arc<Worker>, mut call: Box<Call>, started: Mono) -> Response<ResBody> {
    if let Err(refusal) = call.route.takes_new() {
        worker.counts[call.id.index()].refused(&refusal);
        return Box::pin(fallback::apply(worker, *call, Reason::Refused(refusal))).await;
    }
    if must_queue(worker, &call) && !Box::pin(queue_clears(worker, &call)).await {
        return Box::pin(fallback::apply(worker, *call, Reason::Behind)).await;
    }
    let place = match call.route.enter(started, call.deadline).await {
        Ok(place) => place,
        Err(refusal) => {
            worker.counts[call.id.index()].refused(&refusal);
            return Box::pin(fallback::apply(worker, *call, Reason::Refused(refusal))).await;
        }
    };
    mirror::send(worker, &call);
    match attempt_loop(worker, &mut call, Some(place)).await {
        Ok(answer) => whole_answer(worker, call, answer),
        // In a box, like every way that is rarely gone: the healthy one stays small.
        Err(reason) => Box::pin(fallback::apply(worker, *call, reason)).await,
    }
}

/// True if older writes of the same key wait in the spool: this one must not overtake them.
fn must_queue(worker: &Worker, call: &Call) -> bool {
    call.write.is_some()
        && order_key(&call.route, &call.headers)
            .is_some_and(|key| worker.node.spool.holds_key(&call.route.upstream_name, key.as_bytes()))
}

/// Waits a moment for the older writes to go out, while the upstream is thought well. Without it, writers that never
/// pause would keep a backlog alive for ever: everything new would have to go behind it.
async fn queue_clears(worker: &Worker, call: &Call) -> bool {
    let clock = &worker.node.clock;
    let now = clock.now();
    let until = now + (call.deadline.left(now) / 4).min(BEHIND_PATIENCE);
    while clock.now() < until && call.route.admits_at().is_none() {
        tokio::time::sleep(BEHIND_LOOK_EVERY).await;
        if !must_queue(worker, call) {
            return true;
        }
    }
    false
}

/// Turns a request into a call: deadline, body, headers, and for writes its identity.
async fn prepare(
    worker: &Arc<Worker>,
    conn: &Arc<ConnState>,
    peer: &Peer,
    id: RouteId,
    request: Request<Incoming>,
    present: Present,
    started: Mono,
) -> Result<Box<Call>, Box<Response<ResBody>>> {
    let node = &worker.node;
    let route = Arc::clone(&node.routes[id.index()]);
    let told_patience = present.has(Present::EXPECTED_TIMEOUT);
    let callers = told_patience.then(|| headers::callers_patience(&request.head.headers)).flatten();
    let is_grpc = request.head.version == http::Version::HTTP_2 && grpc::is_grpc(&request.head.headers);
    let callers = match present.has(Present::GRPC_TIMEOUT) && is_grpc {
        true => grpc::timeout(&request.head.headers).into_iter().chain(callers).min(),
        false => callers,
    };
    let deadline = Deadline::new(started, route.policy.guards.timeout, callers);
    let refuse = |refusal: Refusal| {
        worker.counts[id.index()].refused(&refusal);
        Box::new(Answer::refusal(&refusal).build())
    };
    deadline.check(started).map_err(refuse)?;
    let Request { head, body } = request;
    let is_write = route.policy.spools() && !matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
    if !is_write && !body.is_end_stream() {
        // Nobody should send a body to a dependency that will not be asked.
        refuse_if_open(&route, node.clock.now()).map_err(refuse)?;
    }
    let kept = if body.is_end_stream() {
        Kept::Empty
    } else {
        // HTTP/2 does not have to say how long a body is.
        let may_be_short = head.version == http::Version::HTTP_2;
        let kind = (is_write, may_be_short);
        Box::pin(keep_body(worker, conn, &route, kind, &head.headers, body, deadline)).await?
    };
    let asks = present.has(Present::ASKS);
    let upgrade = if asks { upgrade::wanted(&route.policy.upgrades, &head.headers) } else { None };
    if asks && upgrade.is_none() && head.version == http::Version::HTTP_2 {
        // By HTTP/1.1 it would be an ordinary request beside; a CONNECT is nothing else.
        let detail = "this route carries no WebSocket (`upgrade: websocket`)";
        return Err(Box::new(Answer::new(501, "http_request_denied", "upgrade", detail).build()));
    }
    let hop = Hop::of(peer, &node.via);
    let stale_key = match route.policy.stale_for() {
        Some(_) if head.method == Method::GET && upgrade.is_none() => {
            let is_personal = hop.certificate(&head.headers).is_some();
            stale::Key::new((&route.policy.name, &route.upstream_name), &head.uri, &head.headers, is_personal)
        }
        _ => None,
    };
    let client_key = present.has(Present::IDEMPOTENCY_KEY);
    let mut call = Box::new(Call {
        id,
        aim: Aim::take(worker, &route, &head.headers),
        idempotent: client_key || is_idempotent(head.method.as_str()),
        target: origin_form(&head.uri),
        headers: head.headers,
        method: head.method,
        body: kept,
        deadline,
        tried: 0,
        attempts: 0,
        began: started,
        copies: None,
        waits: Waits::default(),
        retried_above: present.has(Present::RETRY_OWNER),
        may_have_arrived: false,
        write: None,
        stale_key,
        upgrade,
        conn: Some(Arc::clone(conn)),
        speaks_1_1: head.version >= http::Version::HTTP_11,
        speaks_2: head.version == http::Version::HTTP_2,
        awaits_connection: false,
        tells_patience: told_patience,
        is_grpc,
        callers_end: callers.map(|patience| started + patience),
        touched: Vec::new(),
        is_forged: false,
        is_damaged: false,
        route,
    });
    if is_write && let Some(body) = call.whole_body() {
        Box::pin(begin_write(worker, &mut call, body, &hop, client_key)).await?;
    }
    headers::to_upstream(&mut call.headers, present, &hop);
    if let Some(protocol) = &call.upgrade {
        upgrade::say(&mut call.headers, protocol.clone());
    }
    if !call.retried_above && call.can_be_sent_again() && call.route.policy.guards.retry.attempts_max > 1 {
        call.headers.insert(RETRY_OWNER, node.via.clone());
    }
    if let Some(Write { stamped: Some(stamped), .. }) = &call.write
        && let Ok(stamp) = HeaderValue::from_str(&stamped.stamp)
    {
        call.headers.insert(SEAWALL_RECORD, stamp);
    }
    request_id(worker, &mut call.headers);
    Ok(call)
}

impl Call {
    /// A second copy of a call that can be sent again.
    fn twin(&self) -> Self {
        let body = match &self.body {
            Kept::Whole(bytes) => Kept::Whole(bytes.clone()),
            Kept::Empty | Kept::Once(..) => Kept::Empty,
        };
        Self {
            route: Arc::clone(&self.route),
            method: self.method.clone(),
            target: self.target.clone(),
            headers: self.headers.clone(),
            body,
            write: None,
            stale_key: None,
            upgrade: None,
            conn: self.conn.as_ref().map(Arc::clone),
            copies: self.copies.as_ref().map(Arc::clone),
            touched: self.touched.clone(),
            ..*self
        }
    }

    /// True if sending it once more is safe.
    pub(crate) fn can_be_sent_again(&self) -> bool {
        self.body.replayable() && self.idempotent
    }

    /// The faults that have touched a try of it, each once.
    pub(crate) fn touched(&self) -> Vec<FaultId> {
        let mut touched = self.touched.clone();
        if let Some(copies) = &self.copies {
            let of_copies = copies.touched.lock().unwrap_or_else(PoisonError::into_inner);
            of_copies.iter().for_each(|id| note_once(&mut touched, *id));
        }
        touched
    }

    fn whole_body(&self) -> Option<Bytes> {
        match &self.body {
            Kept::Empty => Some(Bytes::new()),
            Kept::Whole(bytes) => Some(bytes.clone()),
            Kept::Once(..) => None,
        }
    }
}

fn refuse_if_open(route: &RouteState, now: Mono) -> Result<(), Refusal> {
    if !route.policy.fallbacks.is_empty() {
        return Ok(());
    }
    route.would_refuse(now).map_or(Ok(()), Err)
}

/// Reads a body whole if it may be needed again and is small enough; passes it on as it comes otherwise.
async fn keep_body(
    worker: &Arc<Worker>,
    conn: &Arc<ConnState>,
    route: &RouteState,
    (is_write, may_be_short): (bool, bool),
    headers: &Fields,
    body: Incoming,
    deadline: Deadline,
) -> Result<Kept, Box<Response<ResBody>>> {
    let limit = route.policy.guards.replay_bytes_max;
    let known = headers::content_length(headers);
    // A body of unknown length is read whole only for writes: elsewhere it may be a conversation.
    let keep = known.map_or(is_write, |length| length <= limit);
    if !keep {
        let progress = Progress::new(conn, worker.node.policy.limits.body_bytes_max);
        let mut body = body;
        let come = match known {
            None if may_be_short => gather(&mut body, limit.min(worker.node.policy.limits.body_bytes_max)).await,
            _ => Gathered::Some(Vec::new()),
        };
        return match come {
            Gathered::All(bytes) => Ok(Kept::Whole(bytes)),
            Gathered::Some(come) => Ok(Kept::Once(Some((body, come)), Arc::new(progress))),
            Gathered::Broken => Err(Box::new(client_broke(worker, conn))),
        };
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    match tokio::time::timeout_at(worker.node.clock.instant(deadline.at()), read_whole(body, limit)).await {
        Ok(Ok(Some(whole))) => Ok(Kept::Whole(whole)),
        Ok(Ok(None)) => {
            let detail = format!("writes of unknown length may have {limit} bytes here (`replay_max`)");
            Err(Box::new(Answer::new(413, "http_request_error", "replay_max", detail).build()))
        }
        Ok(Err(_)) => Err(Box::new(client_broke(worker, conn))),
        Err(_) => {
            let detail = "the request's body did not arrive within the route's `timeout`";
            Err(Box::new(Answer::new(408, "http_request_error", "deadline", detail).build()))
        }
    }
}

/// A body in one piece; `None` if it is too long.
async fn read_whole(mut body: Incoming, limit: usize) -> Result<Option<Bytes>, BoxError> {
    let mut pieces = Pieces::default();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        frame?.into_data().into_iter().for_each(|data| pieces.push(data));
        if pieces.len() > limit {
            return Ok(None);
        }
    }
    Ok(Some(pieces.whole()))
}

/// What of a body has come already.
enum Gathered {
    All(Bytes),
    /// The last first.
    Some(Vec<Frame<Bytes>>),
    Broken,
}

/// Takes what of a body is there now and waits for nothing: a short message of unknown length has mostly come together
/// with its head, and one that is whole can be sent again.
async fn gather(body: &mut Incoming, limit: u64) -> Gathered {
    let (mut come, mut size) = (Vec::new(), 0);
    loop {
        let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await;
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                size += frame.data_ref().map_or(0, Bytes::len) as u64;
                // Trailers of a request are passed on once.
                let goes_on = !frame.is_trailers() && size <= limit;
                come.push(frame);
                if !goes_on {
                    break;
                }
            }
            Poll::Ready(Some(Err(_))) => return Gathered::Broken,
            Poll::Ready(None) => {
                let pieces: Vec<Bytes> = come.into_iter().filter_map(|frame| frame.into_data().ok()).collect();
                return Gathered::All(match pieces.as_slice() {
                    [only] => only.clone(),
                    pieces => pieces.concat().into(),
                });
            }
            Poll::Pending => break,
        }
    }
    come.reverse();
    Gathered::Some(come)
}

/// The answer to a request whose body broke: by the gate's verdict, or because the connection ended.
fn client_broke(worker: &Worker, conn: &ConnState) -> Response<ResBody> {
    let verdict = conn.body_verdict().unwrap_or(Verdict::BodyCut);
    worker.rejections.count(verdict);
    Answer::verdict(verdict).build()
}

/// Gives a write its identity, or the answer it has already got.
async fn begin_write(
    worker: &Arc<Worker>,
    call: &mut Call,
    body: Bytes,
    hop: &Hop<'_>,
    client_key: bool,
) -> Result<(), Box<Response<ResBody>>> {
    call.write = Some(claim(worker, call, body, hop).await?);
    if client_key && let Some(answer) = known_to_spool(worker, call).await {
        if let Some(Write { stamped: Some(stamped), .. }) = call.write.take() {
            stamped.settle(Fate::Refused);
        }
        return Err(Box::new(answer));
    }
    Ok(())
}

/// Claims a write's key and stamps its record.
async fn claim(
    worker: &Arc<Worker>,
    call: &mut Call,
    body: Bytes,
    hop: &Hop<'_>,
) -> Result<Write, Box<Response<ResBody>>> {
    let node = &worker.node;
    let digest = crate::records::digest(&body);
    let name = &call.route.policy.name;
    let target = call.target.to_string();
    let whose = (&call.headers, hop.certificate(&call.headers));
    let identity = Identity::new(name, call.method.as_str(), &target, whose, &digest, &worker.prng);
    let identity = identity.map_err(|BadKey| {
        let detail = "Idempotency-Key must be one string of 1 to 255 characters";
        Box::new(Answer::new(400, "http_request_error", "idempotency_key", detail).build())
    })?;
    let claiming = match node.claims.claim_by(&identity, &node.clock, call.deadline.at()).await {
        Claimed::New(claiming) => claiming,
        Claimed::Done(done) => return Err(Box::new(replay(&done))),
        Claimed::Running(_) => {
            let detail = "a request with this Idempotency-Key is still running";
            let answer = Answer::new(409, "http_request_denied", "idempotency_key", detail);
            return Err(Box::new(answer.retry_in(Duration::from_secs(1)).build()));
        }
        Claimed::Conflict => return Err(Box::new(fallback::key_conflict())),
    };
    call.headers.insert(IDEMPOTENCY_KEY, identity.key.clone());
    call.idempotent = true;
    let key = identity.key.to_str().unwrap_or_default();
    let stamped = Stamped::new(&node.records, name, key, digest);
    Ok(Write { identity, claiming, stamped, body })
}

/// The answer for a key that a record in the spool already has: memory of answers ends with the process, the spool's
/// does not.
async fn known_to_spool(worker: &Arc<Worker>, call: &Call) -> Option<Response<ResBody>> {
    let identity = &call.write.as_ref()?.identity;
    let spool = &worker.node.spool;
    let known = spool.lookup(&identity.owned.0).await.ok()??;
    if known.fingerprint != FingerprintHalf::of(&identity.fingerprint) {
        return Some(fallback::key_conflict());
    }
    // What has left is nobody's reduced answer any more.
    let held = spool.get(known.id).await.ok().flatten().and_then(|account| Some(account.record?.accepted));
    let safe = match held {
        Some(_) => fallback::replicate(&worker.node, &call.route.policy.delivery, known.id).await,
        None => Ok(None),
    };
    let safe = match safe {
        Ok(safe) => safe,
        Err(answer) => return Some(answer),
    };
    let mut answer = fallback::accepted_before(known.id, known.state.name(), &identity.key, held);
    answer.headers_mut().extend(safe.map(|safe| (SEAWALL_DURABILITY, safe)));
    Some(replayed(answer))
}

/// The answer the first request with this key got.
fn replay(done: &DoneAnswer) -> Response<ResBody> {
    let mut response = Response::new(done.status, ResBody::whole(done.body.clone()));
    response.head.headers = done.headers.clone();
    replayed(response)
}

fn replayed(mut response: Response<ResBody>) -> Response<ResBody> {
    response.headers_mut().insert(HeaderName::from_static("idempotency-replayed"), HeaderValue::from_static("true"));
    let details = HeaderValue::from_static("seawall; details=\"the answer the first request with this key got\"");
    response.headers_mut().insert(PROXY_STATUS, details);
    response
}

fn origin_form(uri: &Uri) -> Uri {
    if uri.authority().is_none() && uri.path().starts_with('/') {
        return uri.clone();
    }
    match uri.path_and_query() {
        Some(path) => Uri::from(path.clone()),
        None => Uri::from_static("/"),
    }
}

fn request_id(worker: &Worker, headers: &mut Fields) {
    headers.insert_if_absent(X_REQUEST_ID, || new_request_id(worker));
}

fn new_request_id(worker: &Worker) -> HeaderValue {
    let number = worker.prng.lock().unwrap_or_else(PoisonError::into_inner).next_u64();
    let digit = |place: usize| b"0123456789abcdef"[(number >> (60 - 4 * place)) as usize & 15];
    let text: [u8; 16] = std::array::from_fn(digit);
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
}

/// The key that orders this request among spooled ones.
pub(crate) fn order_key(route: &RouteState, headers: &Fields) -> Option<HeaderValue> {
    headers.get(route.policy.order_by.as_deref()?).cloned()
}

/// An answer of an upstream, and what it holds while it is relayed.
pub(crate) struct Received {
    pub(crate) answer: Response<ResBody>,
    /// When it came.
    pub(crate) at: Mono,
}

/// Tries until there is an answer, no retry is safe, or nothing is left of time or budget.
pub(crate) async fn attempt_loop(
    worker: &Arc<Worker>,
    call: &mut Call,
    mut place: Option<Place>,
) -> Result<Received, Reason> {
    let counts = &worker.counts[call.id.index()];
    let upstream = call.route.policy.upstream;
    // Held while a retry waits and while it is made: both are load that the budget must know of.
    let mut _retry = None;
    loop {
        call.attempts += 1;
        let tried = match hedge_due(worker, call) {
            None => try_once(worker, call, upstream, &mut place).await,
            Some(due) => Box::pin(try_hedged(worker, call, upstream, due, &mut place)).await,
        };
        let (failure, answer, retry_after) = match tried {
            Tried::Answered(received) => return Ok(received),
            Tried::Refused(refusal) => {
                counts.refused(&refusal);
                return Err(Reason::Refused(refusal));
            }
            Tried::ClientBroke => {
                let verdict = call.conn.as_ref().and_then(|conn| conn.body_verdict());
                return Err(Reason::Client(verdict.unwrap_or(Verdict::BodyCut)));
            }
            Tried::ClientTooSlow => return Err(Reason::Client(Verdict::BodyTooSlow)),
            Tried::Failed { failure, answer, retry_after } => (failure, answer, retry_after),
        };
        counts.failed(failure);
        match next_wait(worker, call, failure, retry_after) {
            Some((wait, retry)) => {
                _retry = Some(retry);
                tokio::time::sleep(wait).await;
            }
            None => return Err(Reason::Failed(failure, answer)),
        }
        counts.retries.add(1);
    }
}

/// The wait before another try, if one is safe, in time and afforded.
fn next_wait(
    worker: &Arc<Worker>,
    call: &mut Call,
    failure: Failure,
    retry_after: Option<Duration>,
) -> Option<(Duration, Retry)> {
    let now = worker.node.clock.now();
    let facts = TriedFacts {
        attempts: call.attempts,
        failure,
        idempotent: call.idempotent,
        replayable: call.body.replayable(),
        owned_above: call.retried_above,
        elapsed: now.since(call.began),
        pushback: retry_after.map(Pushback::After),
    };
    let next = {
        let mut prng = worker.prng.lock().unwrap_or_else(PoisonError::into_inner);
        call.route.next_try(now, facts, &mut call.waits, &call.deadline, &mut prng)
    };
    match next {
        Ok(next) => Some(next),
        Err(NoRetry::NotAfforded(refusal)) => {
            worker.counts[call.id.index()].refused(&refusal);
            None
        }
        Err(NoRetry::GaveUp(_) | NoRetry::TooLate) => None,
    }
}

/// What one try came to.
pub(crate) enum Tried {
    Answered(Received),
    Failed { failure: Failure, answer: Option<Response<ResBody>>, retry_after: Option<Duration> },
    Refused(Refusal),
    ClientBroke,
    ClientTooSlow,
}

/// One try: breaker, endpoint, exchange under its timeout, judgement.
pub(crate) async fn try_once(
    worker: &Arc<Worker>,
    call: &mut Call,
    upstream: UpstreamId,
    place: &mut Option<Place>,
) -> Tried {
    let now = worker.node.clock.now();
    match call.route.admit(now) {
        Ok(mut pass) => {
            call.copies.iter().for_each(|copies| pass.one_of(copies));
            try_with(worker, call, upstream, place, now, pass).await
        }
        Err(refusal) => Tried::Refused(refusal),
    }
}

/// When a second copy of a try is due, if it may have one.
fn hedge_due(worker: &Worker, call: &Call) -> Option<(hedge::Call, Mono)> {
    if call.write.is_some() || call.upgrade.is_some() || call.route.policy.guards.hedge.is_none() {
        return None;
    }
    let now = worker.node.clock.now();
    let copied = hedge::Call { started: now, hedges: 0, idempotent: call.can_be_sent_again() };
    call.route.hedge_due(now, copied).map(|due| (copied, due))
}

/// One try, and a second copy of it when the first is slower to answer than most: the first good answer wins, and the
/// other is dropped, which cancels it.
async fn try_hedged(
    worker: &Arc<Worker>,
    call: &mut Call,
    upstream: UpstreamId,
    (copied, due): (hedge::Call, Mono),
    place: &mut Option<Place>,
) -> Tried {
    let (clock, route) = (&worker.node.clock, Arc::clone(&call.route));
    call.touched = call.touched();
    let copies = Copies {
        started: copied.started,
        tried: AtomicU64::new(0),
        outrun: AtomicBool::new(false),
        touched: Mutex::new(Vec::new()),
    };
    let copies = Arc::new(copies);
    call.copies = Some(Arc::clone(&copies));
    let (mut twin, call_id) = (call.twin(), call.id);
    let mut received = {
        let mut first = std::pin::pin!(try_once(worker, call, upstream, place));
        tokio::select! {
            biased;
            tried = &mut first => return tried,
            () = tokio::time::sleep_until(clock.instant(due)) => {}
        }
        let Some(_copy) = route.hedge(clock.now(), copied) else { return first.await };
        let slow = copies.tried.load(Relaxed);
        worker.counts[twin.id.index()].hedges.add(1);
        // The place in the bulkhead stays with the first: two copies are one request.
        let mut nowhere = None;
        let mut second = std::pin::pin!(try_once(worker, &mut twin, upstream, &mut nowhere));
        tokio::select! {
            biased;
            tried = &mut first => match tried {
                Tried::Answered(_) | Tried::ClientBroke | Tried::ClientTooSlow => return tried,
                failed => match second.await {
                    Tried::Answered(received) => received,
                    _ => return failed,
                },
            },
            tried = &mut second => match tried {
                Tried::Answered(received) => {
                    copies.outrun.store(true, Relaxed);
                    let waited = clock.now().since(copies.started);
                    ejection::note_outrun(worker, upstream, slow, waited);
                    // Left out, the slow ones would be missing exactly where copies are sent because of them.
                    worker.counts[call_id.index()].called(Outcome::Success, waited);
                    received
                }
                _ => return first.await,
            },
        }
    };
    worker.counts[call.id.index()].hedges_won.add(1);
    call.may_have_arrived = true;
    (call.is_forged, call.is_damaged) = (twin.is_forged, twin.is_damaged);
    if let ResBody::Relay(relay) = &mut received.answer.body {
        relay.keep_place(place.take());
    }
    Tried::Answered(received)
}

/// One try with another upstream than the route's: the route's breaker has no opinion of it.
pub(crate) async fn try_unguarded(worker: &Arc<Worker>, call: &mut Call, upstream: UpstreamId) -> Tried {
    let now = worker.node.clock.now();
    let pass = call.route.pass_unguarded();
    try_with(worker, call, upstream, &mut None, now, pass).await
}

async fn try_with(
    worker: &Arc<Worker>,
    call: &mut Call,
    upstream: UpstreamId,
    place: &mut Option<Place>,
    now: Mono,
    pass: Pass,
) -> Tried {
    let node = &worker.node;
    let by_copies = call.copies.as_ref().map_or(0, |copies| copies.tried.load(Relaxed));
    let avoid = Avoid { failed: call.tried, busy: by_copies };
    // What stands in for the route's upstream knows nothing of its versions.
    let aim = if upstream == call.route.policy.upstream { call.aim } else { Aim::default() };
    let Some((choice, is_elsewhere)) = worker.choose_for(aim, upstream, avoid, now) else {
        return Tried::Refused(no_healthy_endpoint(worker, upstream));
    };
    if is_elsewhere {
        aim.went_elsewhere(worker, call.id);
    }
    let endpoint = choice.place;
    call.tried |= 1 << (endpoint as u64 % 64);
    if let Some(copies) = &call.copies {
        copies.tried.fetch_or(1 << (endpoint as u64 % 64), Relaxed);
    }
    let load = node.upstreams[upstream.index()].begin(choice);
    let until = call.deadline.of_try(now, call.route.policy.guards.try_timeout);
    let until_instant = node.clock.instant(until);
    let exchanged = match touch(worker, call, (upstream, endpoint), now) {
        None => {
            let exchange = exchange(worker, call, upstream, endpoint, now, until);
            tokio::time::timeout_at(until_instant, exchange).await
        }
        // In a box, like every way that is rarely gone.
        Some(touch) => {
            let exchange = Box::pin(faulted(worker, call, (upstream, endpoint), touch, until));
            tokio::time::timeout_at(until_instant, exchange).await
        }
    };
    if node.faults.is_some() {
        border::note_of_body(call);
    }
    note_outlier(worker, call, (upstream, endpoint), now, &exchanged);
    let counts = &worker.counts[call.id.index()];
    match exchanged {
        Ok(Ok(Exchanged { head, content, at: now, on_body })) => {
            let relay = RelayParts { worker, pass, load, place, upstream, endpoint, on_body };
            judge(call, now, head, content, relay)
        }
        Ok(Err(_)) if call.body.client_broke_it() => Tried::ClientBroke,
        Ok(Err(failure)) => {
            call.may_have_arrived |= !failure.never_sent();
            pass.record(counts, node.clock.now(), Outcome::Failure(failure));
            Tried::Failed { failure, answer: None, retry_after: None }
        }
        // What follows says nothing about the upstream: it never had the whole request, or never had it at all.
        Err(_) if call.body.is_still_coming() => Tried::ClientTooSlow,
        Err(_) if call.awaits_connection => {
            let limit = "connections of the upstream";
            let value = node.policy.upstream(upstream).connections_max.into();
            Tried::Refused(Refusal::LimitReached { limit, value, retry_in: Duration::from_secs(1) })
        }
        Err(_) => {
            call.may_have_arrived = true;
            pass.record(counts, node.clock.now(), Outcome::Failure(Failure::Timeout));
            Tried::Failed { failure: Failure::Timeout, answer: None, retry_after: None }
        }
    }
}

/// Tells how an endpoint did, so that it can be compared with its peers.
fn note_outlier(
    worker: &Worker,
    call: &Call,
    (upstream, endpoint): (UpstreamId, usize),
    began: Mono,
    exchanged: &Result<Result<Exchanged, Failure>, tokio::time::error::Elapsed>,
) {
    if !ejection::is_noted(worker, upstream) {
        return;
    }
    let outcome = match exchanged {
        Ok(Ok(exchanged)) => judge_status(exchanged.head.status.as_u16()),
        Ok(Err(_)) if call.body.client_broke_it() => Outcome::Ignored,
        Ok(Err(failure)) => Outcome::Failure(*failure),
        Err(_) if call.body.is_still_coming() || call.awaits_connection => Outcome::Ignored,
        Err(_) => Outcome::Failure(Failure::Timeout),
    };
    let took = worker.node.clock.now().since(began);
    ejection::note(worker, (upstream, endpoint), outcome, took, call.route.cause());
}

pub(crate) fn no_healthy_endpoint(worker: &Worker, upstream: UpstreamId) -> Refusal {
    if let Some(refusal) = worker.node.upstreams[upstream.index()].drained() {
        return refusal;
    }
    let upstream = worker.node.policy.upstream(upstream);
    Refusal::NoHealthyEndpoint {
        endpoints: u32::try_from(upstream.endpoints.len()).unwrap_or(u32::MAX),
        retry_in: upstream.health.as_ref().map_or(Duration::from_secs(1), |health| health.every),
    }
}

pub(crate) struct Exchanged {
    pub(crate) head: ResponseHead,
    pub(crate) content: Content,
    /// When the head had come, and a short answer's body.
    pub(crate) at: Mono,
    pub(crate) on_body: OnBody,
}

/// What becomes of a body that is still arriving.
pub(crate) enum OnBody {
    Passes,
    /// A fault ends it early.
    EndsEarly,
    /// A fault meddles with it.
    Damaged(Box<Damage>),
}

pub(crate) enum Content {
    Whole(Bytes),
    Arriving(Link),
    Switched(Switched),
}

impl Content {
    /// True if there is no body.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Arriving(..) => false,
            Self::Switched(_) => true,
        }
    }
}

/// Sends the request and takes in the answer: whole if it is short, its head otherwise. A pooled connection that turns
/// out to have been closed by the upstream in the same moment gets one resend on a fresh one, free of charge.
pub(crate) async fn exchange(
    worker: &Arc<Worker>,
    call: &mut Call,
    upstream: UpstreamId,
    endpoint: usize,
    now: Mono,
    until: Mono,
) -> Result<Exchanged, Failure> {
    let clock = &worker.node.clock;
    let pool = worker.pool(upstream, endpoint);
    let mut link = pool.checkout(now, false, &mut call.awaits_connection).await?;
    let to = (upstream, endpoint);
    let mut answered = send(worker, call, &mut link, to, now.until(until)).await;
    if answered.is_err_and_stale(&link, call) {
        call.may_have_arrived |= !link.nothing_written();
        drop(link);
        worker.counts[call.id.index()].resends.add(1);
        let now = clock.now();
        link = pool.checkout(now, true, &mut call.awaits_connection).await?;
        answered = send(worker, call, &mut link, to, now.until(until)).await;
    }
    let head = answered?;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // To what was asked for, or nobody asked.
        let agreed = call.upgrade.as_ref().filter(|wanted| upgrade::agrees(&head.headers, wanted));
        // Who asked in HTTP/2 has no key of its own, and cannot look.
        let agreed = agreed.filter(|_| !call.speaks_2 || upgrade::accepts(&head.headers, &call.headers));
        let switched = agreed.ok_or(Failure::Protocol).and_then(|_| link.into_switched())?;
        return Ok(Exchanged { head, content: Content::Switched(switched), at: clock.now(), on_body: OnBody::Passes });
    }
    let short = call.route.policy.guards.answer_bytes_max;
    // What became of a call of gRPC stands behind its last byte, where reading the whole would lose it.
    let length = link.left().filter(|_| !grpc::is_grpc(&head.headers));
    if length.is_none_or(|length| length > short) && !link.is_over() {
        return Ok(Exchanged { head, content: Content::Arriving(link), at: clock.now(), on_body: OnBody::Passes });
    }
    // A body that ends before its announced end is an incomplete answer, whatever broke it.
    let body = link.read_whole().await.map_err(|_| Failure::Incomplete);
    if is_any_fault(worker) {
        Box::pin(border::cross(worker, call, to)).await;
    }
    let (body, at) = (body?, clock.now());
    pool.checkin(at, link);
    Ok(Exchanged { head, content: Content::Whole(body), at, on_body: OnBody::Passes })
}

trait Stale {
    fn is_err_and_stale(&self, link: &Link, call: &Call) -> bool;
}

impl Stale for Result<ResponseHead, Failure> {
    /// True if a reused connection failed before one byte of an answer, and sending again is safe.
    fn is_err_and_stale(&self, link: &Link, call: &Call) -> bool {
        matches!(self, Err(Failure::ConnectionLost))
            && link.may_be_stale()
            && call.body.replayable()
            && (call.idempotent || link.nothing_written())
    }
}

/// Sends what there is to send on a connection.
async fn send(
    worker: &Arc<Worker>,
    call: &mut Call,
    link: &mut Link,
    to: (UpstreamId, usize),
    patience: Duration,
) -> Result<ResponseHead, Failure> {
    let mut body = call.body.take();
    if let ReqBody::Stream(body) = &mut body {
        body.border = Border::of(worker, call, to, Direction::Upstream).map(Box::new);
    }
    let headers = headers_for(worker, call, to.0, patience);
    let sending = Sending { method: &call.method, target: &call.target, headers, body };
    let client = call.conn.as_ref().filter(|_| call.speaks_1_1 && !call.speaks_2);
    let answered = link.send(sending, |interim| {
        if let Some(conn) = client {
            pass_interim(conn, &worker.node.via, interim.status, &interim.headers);
        }
    });
    let answered = answered.await;
    if is_any_fault(worker) {
        Box::pin(border::cross(worker, call, to)).await;
    }
    answered
}

/// One atomic load at most.
fn is_any_fault(worker: &Worker) -> bool {
    worker.node.faults.as_ref().is_some_and(CallFaults::is_any)
}

/// A call's headers, with what this upstream and this try want of them.
fn headers_for<'a>(worker: &Worker, call: &'a Call, upstream: UpstreamId, patience: Duration) -> Cow<'a, Fields> {
    let mut headers = Cow::Borrowed(&call.headers);
    if let Some(host) = &worker.node.upstreams[upstream.index()].host {
        headers.to_mut().insert(HOST, host.clone());
    }
    if call.tells_patience {
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        headers.to_mut().insert(EXPECTED_TIMEOUT_MS, HeaderValue::from(millis));
    }
    if call.is_grpc {
        // Of the caller's own patience: it ends the whole call, where our timeouts end with the head of the answer.
        if let (Some(end), true) = (call.callers_end, headers.has(GRPC_TIMEOUT)) {
            let left = worker.node.clock.now().until(end);
            headers.to_mut().insert(GRPC_TIMEOUT, grpc::timeout_text(left));
        }
        if call.attempts > 1 {
            headers.to_mut().insert(PREVIOUS_ATTEMPTS, HeaderValue::from(call.attempts - 1));
        }
    }
    headers
}

/// Passes an interim answer (103 and the like) on; 100 is between us and the upstream.
fn pass_interim(conn: &ConnState, via: &HeaderValue, status: StatusCode, headers: &Fields) {
    if status == StatusCode::CONTINUE || status == StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let mut headers = headers.clone();
    headers::to_client(&mut headers, via);
    let mut bytes = Vec::new();
    wire::put_interim(&mut bytes, status, &headers);
    if !conn.send_interim(&bytes) {
        tracing::debug!(status = status.as_u16(), "an interim answer came too late to be passed on");
    }
}

/// What a relayed answer takes over from its try.
struct RelayParts<'a> {
    worker: &'a Arc<Worker>,
    pass: Pass,
    load: InFlight,
    place: &'a mut Option<Place>,
    upstream: UpstreamId,
    endpoint: usize,
    on_body: OnBody,
}

/// Tells the breaker what came, and makes it an answer or a failed try.
fn judge(call: &mut Call, now: Mono, head: ResponseHead, content: Content, relay: RelayParts<'_>) -> Tried {
    let is_grpc = head.status == StatusCode::OK && grpc::is_grpc(&head.headers);
    let outcome = match is_grpc {
        // All there is, or the beginning of an answer.
        true => grpc::outcome(&head.headers).unwrap_or(Outcome::Success),
        false => judge_status(head.status.as_u16()),
    };
    let pushback = if is_grpc { grpc::pushback(&head.headers) } else { None };
    let retry_after = match (outcome, pushback) {
        (Outcome::Failure(_), Some(Pushback::After(wait))) => Some(wait),
        (Outcome::Failure(_), _) => headers::retry_after(&head.headers, relay.worker.node.clock.wall()),
        _ => None,
    };
    let signals = call.route.policy.guards.learned_limit.is_some().then(|| {
        let named = head.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        Signals::read(named, relay.worker.node.clock.wall())
    });
    let answered = Answered { status: Some(head.status.as_u16()), retry_after, signals: signals.as_ref() };
    let counts = &relay.worker.counts[call.id.index()];
    let body = match (content, outcome) {
        (Content::Whole(bytes), _) => {
            relay.pass.report(counts, now, now, outcome, answered);
            ResBody::whole(bytes)
        }
        (Content::Switched(switched), _) => {
            relay.pass.report(counts, now, now, outcome, answered);
            let protocol = call.upgrade.clone().unwrap_or(HeaderValue::from_static("unknown"));
            let _held = (relay.load, relay.place.take());
            let client = call.conn.as_ref().and_then(|conn| conn.client.get().copied());
            let exposed = client.and_then(|client| {
                let asked = Asked { method: call.method.to_string(), path: call.target.path().to_owned() };
                let to = (relay.upstream, relay.endpoint);
                Exposed::new(relay.worker, call.id, to, client, asked, call.touched())
            });
            ResBody::Switched(Box::new(Handover {
                id: call.id,
                worker: Arc::clone(relay.worker),
                switched,
                protocol,
                exposed,
                _held,
            }))
        }
        (Content::Arriving(link), _) => {
            let mut pass = Some(relay.pass);
            if outcome.is_failure() {
                pass.take().into_iter().for_each(|pass| pass.report(counts, now, now, outcome, answered));
            }
            pass.iter_mut().for_each(Pass::answered);
            let announced = call.speaks_2 || headers::announces_trailers(&head.headers);
            let (early, damage) = match relay.on_body {
                OnBody::Passes => (Early::No, None),
                OnBody::EndsEarly => (Early::AtFirstPiece, None),
                OnBody::Damaged(damage) => (Early::No, Some(damage)),
            };
            ResBody::Relay(Box::new(Relay {
                link: Some(link),
                pass,
                head_at: now,
                status: head.status.as_u16(),
                signals: signals.map(Box::new),
                trailers_announced: announced,
                grpc: is_grpc.then(|| grpc::outcome(&head.headers)),
                worker: Arc::clone(relay.worker),
                route: call.id,
                upstream: relay.upstream,
                endpoint: relay.endpoint,
                idle: None,
                ends_with_connection: call.conn.as_ref().filter(|_| !call.speaks_1_1).map(Arc::clone),
                keeping: None,
                early,
                border: Border::of(relay.worker, call, (relay.upstream, relay.endpoint), Direction::Downstream),
                damage,
                _load: relay.load,
                // A failed try may be followed by another: it keeps the place.
                _place: if outcome.is_failure() { None } else { relay.place.take() },
            }))
        }
    };
    match outcome {
        Outcome::Failure(failure) => {
            call.may_have_arrived = true;
            let answer = Some(Response { head, body });
            // It asks not to be asked again: by us as little as by anybody.
            call.retried_above |= pushback == Some(Pushback::Never);
            Tried::Failed { failure, answer, retry_after }
        }
        Outcome::Success | Outcome::Ignored => Tried::Answered(Received { answer: Response { head, body }, at: now }),
    }
}

/// Makes an upstream's answer ours, and finishes what was begun for a write.
pub(crate) fn whole_answer(worker: &Arc<Worker>, mut call: Box<Call>, received: Received) -> Response<ResBody> {
    let (node, now) = (&worker.node, received.at);
    let mut response = received.answer;
    match (call.stale_key.take().filter(|_| !call.is_damaged), &response.body) {
        (Some(key), ResBody::Whole(Some(body))) => {
            node.stale.keep(&key, now, response.status(), response.headers(), body);
        }
        (Some(key), ResBody::Relay(_)) => {
            let head = (response.status(), response.headers().clone());
            if let ResBody::Relay(relay) = &mut response.body {
                relay.keep_for(Wish::Stale(key, head), call.route.policy.guards.answer_bytes_max);
            }
        }
        _ => {}
    }
    headers::to_client(response.headers_mut(), &node.via);
    call.route.whole(now);
    finish(worker, &mut call, &mut response);
    mark_faults(&call.touched(), &mut response);
    response
}

/// Finishes what was begun for a write that was answered. Of an answer that a fault made up or changed nothing is
/// remembered: whoever asks again with the same key asks the upstream.
pub(crate) fn finish(worker: &Worker, call: &mut Call, response: &mut Response<ResBody>) {
    let Some(write) = call.write.take() else { return };
    if !call.is_forged && !call.is_damaged {
        return fallback::finish_write(&worker.node, write, call.may_have_arrived, response);
    }
    if let Some(stamped) = write.stamped {
        stamped.settle(match call.is_forged {
            false => fallback::fate(response.status(), call.may_have_arrived),
            true if call.may_have_arrived => Fate::Indeterminate,
            true => Fate::Refused,
        });
    }
    response.headers_mut().insert_if_absent(IDEMPOTENCY_KEY, || write.identity.key);
}

/// Says on an answer which faults have touched its request.
pub(crate) fn mark_faults(touched: &[FaultId], response: &mut Response<ResBody>) {
    for id in touched {
        if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
            response.headers_mut().append(SEAWALL_FAULT, id);
        }
    }
}

/// A call on its way to an endpoint.
pub(crate) struct InFlight(Arc<EndpointLoad>);

impl InFlight {
    pub(crate) fn new(load: &Arc<EndpointLoad>) -> Self {
        load.in_flight.fetch_add(1, Relaxed);
        load.calls.fetch_add(1, Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
