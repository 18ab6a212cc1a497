//! What a request asked its connection to become: WebSocket, and whatever else a route allows.
//!
//! Picture a call that is put through. The request passes every guard of its route as any other does; if the upstream
//! answers `101` and names what was asked for, the two connections are taken out of HTTP and joined, and what was said
//! too early on either side is handed on first. From then on it is a connection like those of TCP: bytes, unread, until
//! both have ended. It keeps its place in the bulkhead, its connection of the upstream's, and the node's.
//! Not here: which requests may ask (`http/gate.rs`: one protocol, GET, no body), which routes allow it (`chain.rs`),
//! the bytes (`duplex.rs`).

use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, UPGRADE};
use seawall_core::id::RouteId;
use seawall_core::observation::Ended;
use tokio_util::sync::CancellationToken;

use crate::chain::InFlight;
use crate::duplex::Duplex;
use crate::fault::connection::Exposed;
use crate::http::conn::ClientIo;
use crate::http::fields::Fields;
use crate::http::headers::has_token;
use crate::node::Worker;
use crate::pool::Switched;
use crate::route::Place;
use crate::tcp;

/// A connection that an upstream has agreed to switch, and what it holds until it ends.
pub(crate) struct Handover {
    pub(crate) id: RouteId,
    /// By whose rules: its route may have gone from those in force meanwhile.
    pub(crate) worker: Arc<Worker>,
    pub(crate) switched: Switched,
    pub(crate) protocol: HeaderValue,
    /// Faults may find it.
    pub(crate) exposed: Option<Exposed>,
    pub(crate) _held: (InFlight, Option<Place>),
}

/// What a request asks for, if its route allows it.
pub(crate) fn wanted(allowed: &[String], headers: &Fields) -> Option<HeaderValue> {
    let asked = headers.get(UPGRADE)?;
    let takes = |name: &String| asked.as_bytes().eq_ignore_ascii_case(name.as_bytes());
    allowed.iter().any(takes).then(|| asked.clone())
}

/// Says it, on a request or an answer whose hop-by-hop headers have been taken off.
pub(crate) fn say(headers: &mut Fields, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
    headers.remove(CONTENT_LENGTH);
}

/// True if a `101` names what was asked for, and nothing beside it.
pub(crate) fn agrees(headers: &Fields, wanted: &HeaderValue) -> bool {
    let mut named = headers.get_all(UPGRADE);
    let is_wanted = |named: &HeaderValue| named.as_bytes().eq_ignore_ascii_case(wanted.as_bytes());
    let names_it = headers.get_all(CONNECTION).any(|value| has_token(value, "upgrade"));
    names_it && named.next().is_some_and(is_wanted) && named.next().is_none()
}

/// Goes on with a client's connection that is no HTTP any more.
pub(crate) async fn go_on(handover: Handover, client: ClientIo, stop: &CancellationToken) {
    let (Some(client), early) = client.into_parts() else { return };
    let worker = handover.worker;
    let (clock, counts) = (&worker.node.clock, &worker.counts[handover.id.index()].connections);
    let (began, Switched { stream, said, _open, _slot }) = (clock.now(), handover.switched);
    counts.opened.add(1);
    let idle_timeout = worker.node.policy.route(handover.id).guards.idle_timeout;
    let duplex = Duplex::new(clock.clone(), [client, stream], [early, said.to_vec()], idle_timeout);
    let ended: Ended = tcp::carry(counts, duplex, None, stop, handover.exposed).await;
    counts.lasted(clock.now().since(began));
    counts.ended(ended);
}
