//! The way of a TCP connection: limit of connections → bulkhead → attempt loop { breaker → rate → endpoint → dial }
//! within the retry budget → both joined, until they have ended.
//!
//! Picture a switchboard. The guards stand around the connecting; once two lines are joined, nobody listens. A call to
//! an upstream is judged by how it came about: refused, timed out, or broken off before a byte came back is a failure,
//! and its time is the time to connect. Nothing of the client's has been sent until then, so another endpoint may be
//! tried. A connection holds its place in the bulkhead until it has ended.
//! Whoever is refused is reset: a plain close would look like an orderly answer of nothing.
//! Not here: the bytes (`duplex.rs`), what a guard decides (`core::guard`).

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use seawall_core::balance::{Avoid, Choice};
use seawall_core::fault::book::{Client, Id as FaultId};
use seawall_core::guard::Refusal;
use seawall_core::guard::deadline::Deadline;
use seawall_core::guard::pipeline::{Answered, NoRetry};
use seawall_core::guard::retry::{Tried as TriedFacts, Waits};
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::observation::Ended;
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::time::Mono;
use tokio_util::sync::CancellationToken;

use crate::announce;
use crate::chain::{InFlight, no_healthy_endpoint};
use crate::duplex::{Duplex, End, Moved, Peer};
use crate::ejection;
use crate::fault::connection::{self, Asked, Exposed};
use crate::listener::{Guest, Stop, let_in};
use crate::net::Stream;
use crate::node::Worker;
use crate::observe::ConnectionCounts;
use crate::pool::OpenCount;
use crate::route::{Pass, Place, RouteState};
use crate::seat::{Door, Seat};

/// A connection that has stood for so long came about well, whether or not anybody has said anything.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// Takes a client's connection on, or refuses it.
pub(crate) fn admit(
    seat: &Arc<Seat>,
    client: Stream,
    (peer, connection): (SocketAddr, u64),
    door: &Arc<Door>,
    id: RouteId,
    stop: &Stop,
) {
    let worker = seat.worker();
    let counts = &worker.counts[id.index()];
    counts.connections.opened.add(1);
    match worker.node.connections.take() {
        Ok(used) => {
            let (worker, door, stop) = (Arc::clone(&worker), Arc::clone(door), stop.clone());
            let guest = Arc::clone(&door.guests);
            seat.tasks.spawn(async move {
                let _held = (used, guest);
                match let_in(&worker, client, peer, &door, &stop).await {
                    Ok(Guest { stream, peer, of_source }) => {
                        let _of_source = of_source;
                        let at = stream.local().unwrap_or(door.address);
                        let (listener, source) = (door.configured, peer.ip().to_canonical());
                        let whose = Client { listener, source, connection };
                        serve(worker, id, stream, Ends { peer, at, whose }, stop.now).await;
                    }
                    Err(_) => worker.counts[id.index()].connections.ended(Ended::Left),
                }
            });
        }
        Err(refusal) => {
            client.reset_on_close();
            counts.refused(&refusal);
            counts.connections.ended(Ended::Refused);
        }
    }
}

/// Whose connection it is, and where it came in.
#[derive(Clone, Copy)]
struct Ends {
    peer: SocketAddr,
    at: SocketAddr,
    /// As faults ask for it.
    whose: Client,
}

async fn serve(worker: Arc<Worker>, id: RouteId, client: Stream, ends: Ends, stop: CancellationToken) {
    let (clock, counts) = (&worker.node.clock, &worker.counts[id.index()]);
    let started = clock.now();
    let standing = tokio::select! {
        biased;
        () = stop.cancelled() => Err(Ended::Cut),
        () = client.broken() => Err(Ended::Left),
        standing = connect(&worker, id, ends, started) => standing,
    };
    let ended = match standing {
        Ok((upstream, standing, touched)) => {
            counts.took(clock.now().since(started));
            let idle_timeout = standing.route.policy.guards.idle_timeout;
            let duplex = Duplex::new(clock.clone(), [client, upstream], Default::default(), idle_timeout);
            let exposed = Exposed::new(&worker, id, standing.endpoint, ends.whose, Asked::default(), touched);
            let ended = carry(&counts.connections, duplex, Some(standing), &stop, exposed).await;
            counts.connections.lasted(clock.now().since(started));
            ended
        }
        Err(ended) => {
            client.reset_on_close();
            ended
        }
    };
    counts.connections.ended(ended);
}

/// Lets both sides speak until they have ended, or the node stops. Tells how it ended.
pub(crate) async fn carry(
    counts: &ConnectionCounts,
    mut duplex: Duplex,
    mut standing: Option<Standing>,
    stop: &CancellationToken,
    mut exposed: Option<Exposed>,
) -> Ended {
    let mut settled = pin!(tokio::time::sleep(SETTLED_AFTER));
    let ended = loop {
        let is_open = standing.as_ref().is_some_and(Standing::is_open);
        let hear = |peer, moved| count(counts, &mut standing, peer, moved);
        let is_found = async {
            match &mut exposed {
                Some(exposed) => exposed.is_found().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ended::Cut,
            () = is_found => match exposed {
                Some(exposed) => return Box::pin(connection::carry(counts, duplex, standing, stop, exposed)).await,
                None => unreachable!("nobody is found who is not exposed"),
            },
            end = duplex.run(hear) => break match end {
                End::Done => return Ended::Done,
                End::Reset(Peer::Client) => Ended::ClientReset,
                End::Reset(Peer::Upstream) => Ended::UpstreamReset,
                End::Idle => Ended::Idle,
            },
            () = &mut settled, if is_open => {}
        }
        standing.iter_mut().for_each(Standing::well);
    };
    if let (Ended::UpstreamReset, Some(standing)) = (ended, &mut standing) {
        standing.ill();
    }
    duplex.reset();
    ended
}

/// Takes in what came of something a peer said.
pub(crate) fn count(counts: &ConnectionCounts, standing: &mut Option<Standing>, peer: Peer, moved: Moved) {
    match (peer, moved) {
        (Peer::Client, Moved::Bytes(bytes)) => counts.bytes_up.add(bytes as u64),
        (Peer::Upstream, Moved::Bytes(bytes)) => counts.bytes_down.add(bytes as u64),
        (_, Moved::End) => {}
    }
    standing.iter_mut().for_each(|standing| standing.hear(peer, moved));
}

/// A connection to an upstream that has come about, and what it holds until it ends.
pub(crate) struct Standing {
    worker: Arc<Worker>,
    id: RouteId,
    route: Arc<RouteState>,
    endpoint: (UpstreamId, usize),
    /// Until it is known how it came about.
    pass: Option<Pass>,
    began: Mono,
    connected: Mono,
    client_has_ended: bool,
    _held: (Place, InFlight, OpenCount),
}

impl Standing {
    /// True while it is not known how it came about.
    pub(crate) fn is_open(&self) -> bool {
        self.pass.is_some()
    }

    fn hear(&mut self, peer: Peer, moved: Moved) {
        match (peer, moved) {
            (Peer::Upstream, Moved::Bytes(_)) => self.well(),
            // Whoever hangs up on a caller who is still there has not taken the call: what stands in front of a dead
            // server often does that.
            (Peer::Upstream, Moved::End) if !self.client_has_ended => self.ill(),
            (Peer::Upstream, Moved::End) => self.well(),
            (Peer::Client, Moved::End) => self.client_has_ended = true,
            (Peer::Client, Moved::Bytes(_)) => {}
        }
    }

    pub(crate) fn well(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        let (counts, now) = (&self.worker.counts[self.id.index()], self.worker.node.clock.now());
        pass.report(counts, now, self.connected, Outcome::Success, Answered::default());
        let took = self.connected.since(self.began);
        ejection::note(&self.worker, self.endpoint, Outcome::Success, took, self.route.cause());
    }

    pub(crate) fn ill(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        let failure = Failure::ConnectionLost;
        note_failure(&self.worker, (self.id, &self.route), self.endpoint, pass, self.began, failure);
        let now = self.worker.node.clock.now();
        self.route.failing(now, &failure.to_string());
    }
}

/// What the tries of a connection have in common.
#[derive(Default)]
struct Tries {
    /// Where they went, a bit for each endpoint.
    endpoints: u64,
    /// The faults that have touched one of them.
    touched: Vec<FaultId>,
}

/// What became of one try.
enum Tried {
    Stands(Stream, Box<Standing>),
    Refused(Refusal),
    Failed(Failure),
}

/// Finds the client a connection, or tells why there is none. Also which faults touched it on the way.
async fn connect(
    worker: &Arc<Worker>,
    id: RouteId,
    ends: Ends,
    started: Mono,
) -> Result<(Stream, Standing, Vec<FaultId>), Ended> {
    let (clock, counts) = (&worker.node.clock, &worker.counts[id.index()]);
    let route = &worker.node.routes[id.index()];
    let deadline = Deadline::new(started, route.policy.guards.timeout, None);
    let refused = |refusal: Refusal| {
        counts.refused(&refusal);
        // The breaker has told already.
        if !matches!(refusal, Refusal::BreakerOpen { .. }) {
            route.failing(clock.now(), &refusal.to_string());
        }
        Ended::Refused
    };
    route.takes_new().map_err(refused)?;
    let mut place = Some(route.enter(started, deadline).await.map_err(refused)?);
    let (mut tried, mut attempts, mut waits) = (Tries::default(), 0, Waits::default());
    // Held while a retry waits and while it is made: both are load that the budget must know of.
    let mut _retry = None;
    loop {
        attempts += 1;
        let failure = match try_once(worker, (id, ends), &deadline, &mut tried, &mut place).await {
            Tried::Stands(upstream, standing) => return Ok((upstream, *standing, tried.touched)),
            Tried::Refused(refusal) => return Err(refused(refusal)),
            Tried::Failed(failure) => failure,
        };
        let facts = TriedFacts {
            attempts,
            failure,
            // Nothing has been sent.
            idempotent: true,
            replayable: true,
            owned_above: false,
            elapsed: clock.now().since(started),
            pushback: None,
        };
        let next = {
            let mut prng = worker.prng.lock().unwrap_or_else(PoisonError::into_inner);
            route.next_try(clock.now(), facts, &mut waits, &deadline, &mut prng)
        };
        let gives_up = match next {
            Ok((wait, retry)) => {
                _retry = Some(retry);
                tokio::time::sleep(wait).await;
                counts.retries.add(1);
                continue;
            }
            Err(NoRetry::NotAfforded(refusal)) => Some(refusal),
            Err(NoRetry::GaveUp(_) | NoRetry::TooLate) => None,
        };
        gives_up.iter().for_each(|refusal| counts.refused(refusal));
        route.failing(clock.now(), &failure.to_string());
        return Err(Ended::Failed);
    }
}

/// One try: breaker, limits, endpoint, connection under its timeout.
async fn try_once(
    worker: &Arc<Worker>,
    (id, Ends { peer, at, whose }): (RouteId, Ends),
    deadline: &Deadline,
    tried: &mut Tries,
    place: &mut Option<Place>,
) -> Tried {
    let (node, clock) = (&worker.node, &worker.node.clock);
    let route = &node.routes[id.index()];
    let (upstream, began) = (route.policy.upstream, clock.now());
    let mut pass = match route.admit(began) {
        Ok(pass) => pass,
        Err(refusal) => return Tried::Refused(refusal),
    };
    let (choice, open) = match choose(worker, upstream, tried.endpoints, began) {
        Ok(chosen) => chosen,
        Err(refusal) => return Tried::Refused(refusal),
    };
    let endpoint = choice.place;
    tried.endpoints |= bit(endpoint);
    let load = node.upstreams[upstream.index()].begin(choice);
    let announce = node.policy.upstream(upstream).announce;
    let said = announce.map_or_else(Vec::new, |announce| announce::write(announce, peer, at));
    let until = clock.instant(deadline.of_try(began, route.policy.guards.try_timeout));
    let dialled = match connection::touch(worker, id, (upstream, endpoint), whose, &mut tried.touched) {
        None => tokio::time::timeout_at(until, worker.pool(upstream, endpoint).dial_in_time(&said)).await,
        Some(touch) => {
            let dial = Box::pin(connection::dial(worker, (upstream, endpoint), touch, &said));
            tokio::time::timeout_at(until, dial).await
        }
    };
    match (dialled.unwrap_or(Err(Failure::ConnectTimeout)), place.take()) {
        (Ok(stream), Some(place)) => {
            // From here on a silent upstream is nobody's fault.
            pass.answered();
            let standing = Standing {
                worker: Arc::clone(worker),
                id,
                route: Arc::clone(route),
                endpoint: (upstream, endpoint),
                pass: Some(pass),
                began,
                connected: clock.now(),
                client_has_ended: false,
                _held: (place, load, open),
            };
            Tried::Stands(stream, Box::new(standing))
        }
        (Err(failure), kept) => {
            *place = kept;
            note_failure(worker, (id, route), (upstream, endpoint), pass, began, failure);
            Tried::Failed(failure)
        }
        (Ok(_), None) => {
            unreachable!("a place is given up to a connection that stands, and then there is no other try")
        }
    }
}

fn note_failure(
    worker: &Worker,
    (id, route): (RouteId, &RouteState),
    endpoint: (UpstreamId, usize),
    pass: Pass,
    began: Mono,
    failure: Failure,
) {
    let (counts, now) = (&worker.counts[id.index()], worker.node.clock.now());
    counts.failed(failure);
    pass.record(counts, now, Outcome::Failure(failure));
    ejection::note(worker, endpoint, Outcome::Failure(failure), now.since(began), route.cause());
}

/// An endpoint that may have one more connection; those already tried come last.
fn choose(worker: &Worker, upstream: UpstreamId, tried: u64, now: Mono) -> Result<(Choice, OpenCount), Refusal> {
    let most = worker.node.policy.upstream(upstream).connections_max;
    let mut full = 0;
    // What is full goes to the end of the line; once only such are left, those tried before are asked again.
    for failed in [tried, 0] {
        loop {
            let choice = worker.choose(upstream, Avoid { failed, busy: full }, now);
            let choice = choice.ok_or_else(|| no_healthy_endpoint(worker, upstream))?;
            if full & bit(choice.place) != 0 {
                break;
            }
            match worker.pool(upstream, choice.place).reserve(most) {
                Some(open) => return Ok((choice, open)),
                None => full |= bit(choice.place),
            }
        }
    }
    let limit = "connections of the upstream";
    Err(Refusal::LimitReached { limit, value: most.into(), retry_in: Duration::from_secs(1) })
}

/// Beyond 64 endpoints a bit stands for several.
const fn bit(endpoint: usize) -> u64 {
    1 << (endpoint as u64 % 64)
}
