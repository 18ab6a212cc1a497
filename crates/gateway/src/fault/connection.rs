//! Faults on the connections of a node's routes: before they come about, and on the bytes of those that stand.
//!
//! Picture a railway line that can be closed for works while trains run. A connection that no fault lies on is carried
//! by `duplex.rs`, and knows of this module only where to hear of one. The first fault that chooses it takes both
//! sockets over, with what had not been passed on yet, and carries them through two links like those of Toxiproxy's
//! places, to the end. Which connection is touched, and what becomes of its bytes, is decided in `core::fault`.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use seawall_core::fault::book::{Act, Carries, Client, Exposure, Id, Touch, Try};
use seawall_core::fault::{Direction, Ending, Fault as Toxic, FaultId, Link, link_prng};
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::observation::Ended;
use seawall_core::outcome::Failure;
use seawall_core::policy::Endpoint;
use seawall_core::time::Mono;
use tokio_util::sync::CancellationToken;

use super::flow::Line;
use super::pipes::Pipes;
use super::{CallFaults, Traffic};
use crate::duplex::{Duplex, Moved, Peer, Rest};
use crate::net::Stream;
use crate::node::Worker;
use crate::observe::ConnectionCounts;
use crate::tcp::{SETTLED_AFTER, Standing, count};

/// A connection that faults may find.
pub(crate) struct Exposed {
    faults: CallFaults,
    worker: Arc<Worker>,
    route: RouteId,
    upstream: UpstreamId,
    endpoint: usize,
    client: Client,
    /// What it began as; nothing where it was a connection from the beginning.
    asked: Asked,
    /// Whether each fault it has met has chosen it.
    fates: Vec<(Id, bool)>,
    touched: Vec<Id>,
}

/// The request that a connection began with.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
}

impl Exposed {
    /// `None` where faults are not allowed.
    pub(crate) fn new(
        worker: &Arc<Worker>,
        route: RouteId,
        (upstream, endpoint): (UpstreamId, usize),
        client: Client,
        asked: Asked,
        touched: Vec<Id>,
    ) -> Option<Self> {
        let faults = worker.node.faults.clone()?;
        let (worker, fates) = (Arc::clone(worker), Vec::new());
        Some(Self { faults, worker, route, upstream, endpoint, client, asked, fates, touched })
    }

    /// What lies on its bytes now.
    fn look(&mut self, now: Mono) -> Exposure {
        if !self.faults.is_any() && self.fates.is_empty() {
            return Exposure::default();
        }
        let it = a_try(&self.worker, self.route, (self.upstream, self.endpoint), self.client, &self.touched);
        let it = Try { method: &self.asked.method, path: &self.asked.path, ..it };
        let route = &self.worker.node.routes[self.route.index()];
        let names = (route.policy.name.as_str(), self.worker.node.upstreams[self.upstream.index()].name.as_str());
        let exposure = self.faults.expose(now, names, &it, &mut self.fates);
        let (touched, told) = (&exposure.touched, &exposure.told);
        if self.touched.is_empty() && !touched.is_empty() {
            self.worker.counts[self.route.index()].faulted.add(1);
        }
        told.iter().for_each(|told| route.touched(now, *told));
        self.touched.extend(touched);
        exposure
    }

    /// Waits until a fault lies on its bytes. Without any, and without change, it costs nothing.
    ///
    /// # Cancel safety
    /// Nothing is lost: it lies there still.
    pub(crate) async fn is_found(&mut self) {
        loop {
            let faults = self.faults.clone();
            let (changed, before) = faults.changed();
            let mut changed = pin!(changed);
            changed.as_mut().enable();
            let exposure = self.look(faults.clock().now());
            if !exposure.toxics.is_empty() {
                return;
            }
            faults.until(changed, before, exposure.until).await;
        }
    }
}

fn a_try<'a>(
    worker: &'a Worker,
    route: RouteId,
    (upstream, endpoint): (UpstreamId, usize),
    client: Client,
    touched: &'a [Id],
) -> Try<'a> {
    let endpoint: &Endpoint = &worker.node.policy.upstream(upstream).endpoints[endpoint];
    Try {
        generation: worker.node.generation,
        route,
        upstream,
        endpoint,
        client: Some(client),
        method: "",
        path: "",
        has_header: &|_, _| false,
        carries: Carries::Connection,
        touched,
    }
}

/// The fault point of a connection that is about to be made.
pub(crate) fn touch(
    worker: &Worker,
    id: RouteId,
    to: (UpstreamId, usize),
    client: Client,
    touched: &mut Vec<Id>,
) -> Option<Touch> {
    let faults = worker.node.faults.as_ref().filter(|faults| faults.is_any())?;
    let now = worker.node.clock.now();
    let (touch, told) = faults.touch(now, &a_try(worker, id, to, client, touched))?;
    if touched.is_empty() {
        worker.counts[id.index()].faulted.add(1);
    }
    super::tries::note_once(touched, touch.id);
    told.iter().for_each(|told| worker.node.routes[id.index()].touched(now, *told));
    Some(touch)
}

/// A connection to an endpoint with a fault in its way.
pub(crate) async fn dial(
    worker: &Worker,
    (upstream, endpoint): (UpstreamId, usize),
    touch: Touch,
    said: &[u8],
) -> Result<Stream, Failure> {
    match (touch.act, &worker.node.faults) {
        (Act::Refuse, _) => return Err(Failure::ConnectRefused),
        (Act::Hang | Act::Lost, Some(faults)) => {
            lost(worker, faults, upstream, touch.id).await?;
        }
        _ => {}
    }
    worker.pool(upstream, endpoint).dial_in_time(said).await
}

/// Connects where nobody answers, for as long as somebody would try, or until the fault is gone.
pub(super) async fn lost(worker: &Worker, faults: &CallFaults, upstream: UpstreamId, fault: Id) -> Result<(), Failure> {
    let patience = worker.node.policy.upstream(upstream).connect_timeout;
    let given_up = faults.clock().now() + patience;
    faults.hold(fault, Some(given_up)).await;
    if faults.clock().now() >= given_up { Err(Failure::ConnectTimeout) } else { Ok(()) }
}

/// Lets both sides speak through the faults that lie on them, until they have ended, or the node stops.
pub(crate) async fn carry(
    counts: &ConnectionCounts,
    duplex: Duplex,
    mut standing: Option<Standing>,
    stop: &CancellationToken,
    mut exposed: Exposed,
) -> Ended {
    let faults = exposed.faults.clone();
    let (clock, means) = (faults.clock(), faults.means());
    let (changed, mut before) = faults.changed();
    let mut changed = pin!(changed);
    // Heard from before the look on: what changes between the look and the wait is not missed.
    changed.as_mut().enable();
    let mut exposure = exposed.look(clock.now());
    let Rest { streams, flows, idle_timeout } = duplex.into_rest();
    let lines = Direction::ALL
        .map(|direction| Arc::new(Line::new(Link::new(clock.now(), direction, link_prng(0, "", 0, direction), &[]))));
    let (traffic, held_bytes) = ([Traffic::default(), Traffic::default()], faults.held_bytes());
    let mut pipes = Pipes::new(means, streams, &lines, [&traffic[0], &traffic[1]], held_bytes);
    for (way, rest) in flows.into_iter().enumerate() {
        lay(&lines[way], &[], &exposure.toxics, clock.now());
        lines[way].change(|link| {
            link.push(clock.now(), rest.held.into());
            if rest.has_ended {
                link.end(Ending::Half);
            }
        });
        if rest.is_over {
            pipes.is_over(way);
        }
    }
    let (mut settled, mut moved_at, mut sent) = (pin!(tokio::time::sleep(SETTLED_AFTER)), clock.now(), [0; 2]);
    let mut broken = None;
    while pipes.is_open() {
        let idle_at = idle_timeout.map(|idle| clock.instant(moved_at + idle));
        let idle = async {
            match idle_at {
                Some(idle_at) => tokio::time::sleep_until(idle_at).await,
                None => std::future::pending().await,
            }
        };
        let is_open = standing.as_ref().is_some_and(Standing::is_open);
        // Asked on every pass: while both sockets are always ready, no waiting is ever come to.
        let is_over = faults.changes() != before || exposure.until.is_some_and(|until| until <= clock.now());
        let step = if is_over {
            Step::Look
        } else {
            let mut next = pin!(poll_fn(|cx| {
                let ended = pipes.poll_end(cx);
                let passed = [0, 1].map(|way| traffic[way].sent_bytes.load(Relaxed));
                match ended {
                    Poll::Ready(ended) => Poll::Ready(Step::Ended(ended, passed)),
                    Poll::Pending if passed != sent => Poll::Ready(Step::Moved(passed)),
                    Poll::Pending => Poll::Pending,
                }
            }));
            tokio::select! {
                biased;
                () = stop.cancelled() => Step::Stopped,
                step = &mut next => step,
                () = faults.until(changed.as_mut(), before, exposure.until) => Step::Look,
                () = idle => Step::Idle,
                () = &mut settled, if is_open => Step::Settled,
            }
        };
        if let Step::Ended(_, passed) | Step::Moved(passed) = &step {
            for (way, peer) in [(0, Peer::Client), (1, Peer::Upstream)] {
                let bytes = usize::try_from(passed[way] - sent[way]).unwrap_or(usize::MAX);
                if bytes > 0 {
                    count(counts, &mut standing, peer, Moved::Bytes(bytes));
                    moved_at = clock.now();
                }
            }
            sent = *passed;
        }
        match step {
            Step::Stopped | Step::Idle => {
                pipes.reset();
                return if stop.is_cancelled() { Ended::Cut } else { Ended::Idle };
            }
            Step::Moved(_) => {}
            Step::Settled => standing.iter_mut().for_each(Standing::well),
            Step::Look => {
                let again = faults.changed();
                before = again.1;
                changed.set(again.0);
                changed.as_mut().enable();
                let next = exposed.look(clock.now());
                lines.iter().for_each(|line| lay(line, &exposure.toxics, &next.toxics, clock.now()));
                exposure = next;
            }
            Step::Ended((way, ending), _) => {
                let peer = if way == 0 { Peer::Client } else { Peer::Upstream };
                count(counts, &mut standing, peer, Moved::End);
                if ending != Ending::Half {
                    broken.get_or_insert(peer);
                }
                if !pipes.end(way, ending, true).await {
                    break;
                }
            }
        }
    }
    pipes.close().await;
    match broken {
        None => Ended::Done,
        Some(Peer::Client) => Ended::ClientReset,
        Some(Peer::Upstream) => {
            standing.iter_mut().for_each(Standing::ill);
            Ended::UpstreamReset
        }
    }
}

/// What happens next to a connection.
enum Step {
    Stopped,
    Idle,
    Settled,
    /// What lies on it may be something else.
    Look,
    /// So many bytes have passed in all.
    Moved([u64; 2]),
    /// One direction has ended, and so many bytes have passed.
    Ended((usize, Ending), [u64; 2]),
}

/// Lays on a line what is to lie there, and takes away what did and is not to.
fn lay(line: &Line, before: &[Toxic], after: &[Toxic], now: Mono) {
    let is_in = |all: &[Toxic], id: &FaultId| all.iter().any(|toxic| toxic.id == *id);
    let gone = before.iter().filter(|toxic| !is_in(after, &toxic.id));
    let new: Vec<&Toxic> = after.iter().filter(|toxic| !is_in(before, &toxic.id)).collect();
    line.change(|link| {
        gone.for_each(|toxic| {
            link.lift(&toxic.id);
        });
        new.into_iter().for_each(|toxic| link.put_armed(now, toxic.clone()));
    });
}
