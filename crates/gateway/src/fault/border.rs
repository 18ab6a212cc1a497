//! Calls that are in flight when a zone is cut off: what of them passes no more.
//!
//! Picture a road across a border that is closed while letters are on it: they wait there, and go on when it opens, if
//! somebody still waits for them. Bytes of a call ask at three places: what has come of an answer before its try is
//! over (`chain.rs`), each piece of an answer that is passed on (`relay.rs`), each piece of a request's body that is
//! passed on as it comes (`http/body.rs`). What a socket or HTTP/2's window holds already has crossed. Where no fault
//! stands, asking is one atomic load. Not here: tries that begin while a zone is cut off (`tries.rs`), connections
//! (`connection.rs`).

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use seawall_core::fault::Direction;
use seawall_core::fault::book::{Carries, Client, Id, Severed, Try};
use seawall_core::id::{RouteId, UpstreamId};

use super::CallFaults;
use super::tries::note_once;
use crate::chain::{Call, Kept};
use crate::http::body::Progress;
use crate::node::Worker;

/// Where bytes of one call go to a zone, or come from it.
pub(crate) struct Border {
    worker: Arc<Worker>,
    faults: CallFaults,
    route: RouteId,
    to: (UpstreamId, usize),
    client: Option<Client>,
    target: Option<PathAndQuery>,
    direction: Direction,
    /// The call's body, if it is passed on as it comes: who asks for it, and who asks for the answer, are one call.
    body: Option<Arc<Progress>>,
    /// The cuts that have touched the call so far.
    touched: Vec<Id>,
    closed: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Border {
    /// `None` where no zone can be cut off.
    pub(crate) fn of(worker: &Arc<Worker>, call: &Call, to: (UpstreamId, usize), direction: Direction) -> Option<Self> {
        let faults = worker.node.faults.clone()?;
        worker.node.policy.upstream(to.0).endpoints[to.1].zone.as_ref()?;
        Some(Self {
            worker: Arc::clone(worker),
            faults,
            route: call.id,
            to,
            client: call.conn.as_ref().and_then(|conn| conn.client.get().copied()),
            target: call.target.path_and_query().cloned(),
            direction,
            body: match &call.body {
                Kept::Once(_, progress) => Some(Arc::clone(progress)),
                Kept::Empty | Kept::Whole(_) => None,
            },
            touched: call.touched(),
            closed: None,
        })
    }

    /// Ready while bytes may pass.
    #[inline]
    pub(crate) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.closed.is_none() && !self.faults.is_any() { Poll::Ready(()) } else { self.poll_closed(cx) }
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(closed) = &mut self.closed {
                if closed.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.closed = None;
                self.tell_body(false);
            }
            let Some(id) = self.look() else { return Poll::Ready(()) };
            let faults = self.faults.clone();
            self.closed = Some(Box::pin(async move { faults.hold(id, None).await }));
            self.tell_body(true);
        }
    }

    /// The cut that stands here now.
    fn look(&mut self) -> Option<Id> {
        if let Some(body) = &self.body {
            body.touched().iter().for_each(|id| note_once(&mut self.touched, *id));
        }
        let node = &self.worker.node;
        let (route, upstream) = (&node.routes[self.route.index()], node.policy.upstream(self.to.0));
        let now = self.faults.clock().now();
        let it = Try {
            generation: node.generation,
            route: self.route,
            upstream: self.to.0,
            endpoint: &upstream.endpoints[self.to.1],
            client: self.client,
            method: "",
            path: self.target.as_ref().map_or("/", PathAndQuery::path),
            has_header: &|_, _| false,
            carries: Carries::Call,
            touched: &self.touched,
        };
        let names = (route.policy.name.as_str(), upstream.name.as_str());
        let Severed { id, told } = self.faults.severed(now, names, &it, self.direction)?;
        if self.touched.is_empty() {
            self.worker.counts[self.route.index()].faulted.add(1);
        }
        told.iter().for_each(|told| route.touched(now, *told));
        note_once(&mut self.touched, id);
        if let Some(body) = &self.body {
            note_once(&mut body.touched(), id);
        }
        Some(id)
    }

    /// Whose fault it is that a body does not go on.
    fn tell_body(&self, is_closed: bool) {
        if let (Some(body), Direction::Upstream) = (&self.body, self.direction) {
            body.set_held_up(is_closed);
        }
    }
}

/// Holds back what has come of an answer for as long as its zone is cut off. The try's timeout goes on.
///
/// # Cancel safety
/// What it has noted stays.
pub(crate) async fn cross(worker: &Arc<Worker>, call: &mut Call, to: (UpstreamId, usize)) {
    let Some(mut border) = Border::of(worker, call, to, Direction::Downstream) else { return };
    std::future::poll_fn(|cx| {
        let polled = border.poll_open(cx);
        border.touched.iter().for_each(|id| note(call, *id));
        polled
    })
    .await;
}

/// Notes what has touched the body on its way: the answer tells it.
pub(crate) fn note_of_body(call: &mut Call) {
    let Kept::Once(_, progress) = &call.body else { return };
    let touched = progress.touched().clone();
    touched.iter().for_each(|id| note(call, *id));
}

fn note(call: &mut Call, id: Id) {
    note_once(&mut call.touched, id);
    if let Some(copies) = &call.copies {
        note_once(&mut copies.touched.lock().unwrap_or_else(PoisonError::into_inner), id);
    }
}
