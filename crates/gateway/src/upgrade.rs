//! What a request asked its connection to become: WebSocket, and whatever else a route allows.
//!
//! Picture a call that is put through. The request passes every guard of its route as any other does; if the upstream
//! answers `101` and names what was asked for, the two connections are taken out of HTTP and joined, and what was said
//! too early on either side is handed on first. From then on it is a connection like those of TCP: bytes, unread, until
//! both have ended. Where a side speaks HTTP/2 it is one stream of a connection, which goes on beside the others (RFC
//! 8441): what it asks and is told there is put in the words of HTTP/1.1, and back. It keeps its place in the bulkhead,
//! its connection of the upstream's, and the node's. Not here: which requests may ask (`http/gate.rs`: one protocol,
//! GET, no body), which routes allow it (`chain.rs`), the bytes (`duplex.rs`).

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use ring::digest;
use seawall_core::id::RouteId;
use seawall_core::observation::Ended;
use seawall_core::prng::Prng;
use tokio_util::sync::CancellationToken;

use crate::chain::InFlight;
use crate::duplex::Duplex;
use crate::fault::connection::Exposed;
use crate::http::fields::Fields;
use crate::http::headers::has_token;
use crate::http::message::RequestHead;
use crate::net::Stream;
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

/// What an extended CONNECT of HTTP/2 may ask for.
pub(crate) const WEBSOCKET: &str = "websocket";

/// Asked of HTTP/1.1, it is a GET with a key (RFC 8441, section 5).
pub(crate) fn as_lines(head: &mut RequestHead, prng: &Mutex<Prng>) {
    let key: [u8; 16] = {
        let mut prng = prng.lock().unwrap_or_else(PoisonError::into_inner);
        (u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64())).to_be_bytes()
    };
    head.method = Method::GET;
    say(&mut head.headers, HeaderValue::from_static(WEBSOCKET));
    if let Ok(key) = HeaderValue::from_str(&STANDARD.encode(key)) {
        head.headers.insert(SEC_WEBSOCKET_KEY, key);
    }
}

/// An agreement as HTTP/2 says it: by its status alone.
pub(crate) fn as_frames(mut headers: Fields) -> Fields {
    headers.remove_all(|name| [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT].contains(name));
    headers
}

/// What a server says to a key (RFC 6455, section 4.2.2).
pub(crate) fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    const OF_WEBSOCKET: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let said = [key.as_bytes(), OF_WEBSOCKET].concat();
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &said);
    HeaderValue::from_str(&STANDARD.encode(digest)).ok()
}

/// True if a `101` proves that its server has read the key.
pub(crate) fn accepts(answer: &Fields, asked: &Fields) -> bool {
    let expected = asked.get(SEC_WEBSOCKET_KEY).and_then(accept);
    let mut said = answer.get_all(SEC_WEBSOCKET_ACCEPT);
    expected.is_some() && said.next() == expected.as_ref() && said.next().is_none()
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
pub(crate) async fn go_on(handover: Handover, client: Stream, early: Vec<u8>, stop: &CancellationToken) {
    let worker = handover.worker;
    let (clock, counts) = (&worker.node.clock, &worker.counts[handover.id.index()].connections);
    let (began, Switched { stream, said, _whole, _part }) = (clock.now(), handover.switched);
    counts.opened.add(1);
    let idle_timeout = worker.node.policy.route(handover.id).guards.idle_timeout;
    let duplex = Duplex::new(clock.clone(), [client, stream], [early, said.to_vec()], idle_timeout);
    let ended: Ended = tcp::carry(counts, duplex, None, stop, handover.exposed).await;
    counts.lasted(clock.now().since(began));
    counts.ended(ended);
}
