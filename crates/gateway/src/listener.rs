//! Accepts clients and serves them: one task per connection, a limit on how many, a sweep for the slow, a drain.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use seawall_core::block::Block;
use seawall_core::fault::book::Client;
use seawall_core::policy;
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

use crate::announce;
use crate::chain::{self, Peer};
use crate::http::conn::{ClientIo, ConnState, Patience};
use crate::http::h2;
use crate::http::serve::{self, End, Order};
use crate::net::{Listener, Stream};
use crate::node::Worker;
use crate::seat::{Door, Seat};
use crate::sources::OfSource;
use crate::tls::Unsealed;
use crate::{tcp, upgrade};

/// Who has said nothing for so long while a drain goes on is not waited for.
pub(crate) const QUIET: Duration = Duration::from_secs(1);
const SWEEP_EVERY: Duration = Duration::from_millis(250);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nproxy-status: seawall; error=connection_limit_reached; \
    details=\"the limit `connections` is reached\"\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const TOO_MANY_OF_YOURS: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nproxy-status: seawall; \
    error=connection_limit_reached; details=\"the limit `connections_per_source` is reached\"\r\nretry-after: 1\r\n\
    content-length: 0\r\nconnection: close\r\n\r\n";
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 44\r\n\
    connection: close\r\n\r\nthis port speaks TLS: ask again by https://\n";

/// When to stop: softly, then hard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    /// No new requests; those in work may end.
    pub(crate) drain: CancellationToken,
    /// Nothing goes on.
    pub(crate) now: CancellationToken,
    /// True while every answer of HTTP/1 is the last of its connection.
    pub(crate) parting: Arc<AtomicBool>,
}

/// Connections of one worker, for the sweep.
#[derive(Default)]
pub(crate) struct Open(Mutex<Vec<std::sync::Weak<ConnState>>>);

impl Open {
    /// Has every one of them look around.
    fn nudge(&self) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().filter_map(std::sync::Weak::upgrade).for_each(|state| state.nudge());
    }

    /// True while a request may come in by one of them, on which none is.
    pub(crate) fn may_ask(&self) -> bool {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().filter_map(std::sync::Weak::upgrade).any(|state| state.may_ask())
    }
}

/// Accepts on one listener until the drain begins.
pub(crate) async fn accept(seat: Arc<Seat>, door: Arc<Door>, listener: Arc<Listener>, stop: Stop) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = door.drain.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => admit(&seat, stream, peer, &door, &stop),
            Err(error) => pause_after(&seat.worker(), &error).await,
        }
    }
    // Those who came in by it learn of it.
    seat.open.nudge();
}

/// Out of descriptors: told, counted, and given a moment, instead of spinning.
async fn pause_after(worker: &Worker, error: &io::Error) {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) {
        // Told once here; the journal tells again while it goes on.
        if worker.node.descriptors_reached.fetch_add(1, Relaxed) > 0 {
            return tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        tracing::warn!(%error, "out of file descriptors: raise the limit of open files, or lower `limits.connections`");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    } else {
        tracing::debug!(%error, "a client went away before it was accepted");
    }
}

fn admit(seat: &Arc<Seat>, stream: Stream, peer: SocketAddr, door: &Arc<Door>, stop: &Stop) {
    let node = Arc::clone(&seat.worker().node);
    let connection = node.connections_total.fetch_add(1, Relaxed);
    if let Some(route) = node.tcp_route_of(door) {
        return tcp::admit(seat, stream, (peer, connection), door, route, stop);
    }
    match node.connections.take() {
        Ok(used) => {
            let (seat_of_task, door, stop) = (Arc::clone(seat), Arc::clone(door), stop.clone());
            seat.tasks.spawn(async move {
                let _used = used;
                let worker = seat_of_task.worker();
                // Known before the first word: a drain must not think that nobody can ask any more.
                let state = Arc::new(ConnState::new(worker.node.clock.now()));
                seat_of_task.open.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&state));
                let guest = match let_in(&worker, stream, peer, &door, &stop).await {
                    Ok(guest) => guest,
                    Err(refused) => return refused.say().await,
                };
                drop(worker);
                let Guest { stream, peer, of_source } = guest;
                let _of_source = of_source;
                let (listener, source) = (door.configured, peer.ip().to_canonical());
                let _ = state.client.set(Client { listener, source, connection });
                serve_connection(seat_of_task, stream, peer, door, state, stop).await;
            });
        }
        Err(_) => {
            // Where TLS is spoken a plain answer would be noise: the end says as much.
            if node.tls_of(door).is_none() {
                seat.tasks.spawn(say_and_close(stream, TOO_MANY));
            }
        }
    }
}

/// A connection that may come in.
pub(crate) struct Guest {
    pub(crate) stream: Stream,
    /// Whose it is.
    pub(crate) peer: SocketAddr,
    pub(crate) of_source: Option<OfSource>,
}

/// A connection that may not, and what can still be said on it.
pub(crate) struct Refused(Option<(Stream, &'static [u8])>);

impl Refused {
    const SILENTLY: Self = Self(None);

    /// Says it, and closes.
    async fn say(self) {
        if let Some((stream, words)) = self.0 {
            say_and_close(stream, words).await;
        }
    }
}

/// What comes before the first request, for every connection: announcement, number, handshake.
pub(crate) async fn let_in(
    worker: &Worker,
    mut stream: Stream,
    mut peer: SocketAddr,
    door: &Arc<Door>,
    stop: &Stop,
) -> Result<Guest, Refused> {
    let node = &worker.node;
    let is_announced = |listener: &policy::Listener| is_in(&listener.announced_by, peer.ip());
    if node.listener(door).is_some_and(is_announced) {
        let heard = tokio::select! {
            biased;
            heard = tokio::time::timeout(node.policy.limits.header_timeout, announce::read(&mut stream)) => heard,
            () = stop.now.cancelled() => return Err(Refused::SILENTLY),
        };
        match heard {
            Ok(Ok(source)) => peer = source.unwrap_or(peer),
            Ok(Err(announce::Malformed)) | Err(_) => {
                worker.rejections.unannounced.add(1);
                return Err(Refused::SILENTLY);
            }
        }
    }
    let of_source = match node.policy.limits.connections_per_source {
        None => None,
        Some(most) => {
            let Some(held) = node.sources.take(peer.ip(), most) else {
                worker.rejections.per_source.add(1);
                let is_plain = node.tls_of(door).is_none() && node.tcp_route_of(door).is_none();
                return Err(Refused(is_plain.then_some((stream, TOO_MANY_OF_YOURS))));
            };
            Some(held)
        }
    };
    let stream = unseal(worker, stream, door, stop).await.ok_or(Refused::SILENTLY)?;
    Ok(Guest { stream, peer, of_source })
}

fn is_in(blocks: &[Block], address: IpAddr) -> bool {
    blocks.iter().any(|block| block.contains(address))
}

/// The handshake, where the listener speaks TLS. Nothing is left of a client that does not come through it.
async fn unseal(worker: &Worker, stream: Stream, door: &Arc<Door>, stop: &Stop) -> Option<Stream> {
    let Some(side) = worker.node.tls_of(door) else { return Some(stream) };
    let handshake = tokio::time::timeout(worker.node.policy.limits.header_timeout, side.accept(stream));
    let ended = tokio::select! {
        biased;
        ended = handshake => ended,
        () = stop.now.cancelled() => return None,
    };
    match ended {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(Unsealed::Plain(stream))) => {
            worker.rejections.plain.add(1);
            say_and_close(stream, PLAIN).await;
            None
        }
        Ok(Err(Unsealed::Failed(error))) => {
            worker.rejections.handshakes.add(1);
            tracing::debug!(%error, "a client's TLS handshake failed");
            None
        }
        Err(_) => {
            worker.rejections.handshakes_slow.add(1);
            None
        }
    }
}

async fn say_and_close(mut stream: Stream, words: &[u8]) {
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        stream.write_all(words).await?;
        stream.shutdown().await
    })
    .await;
}

async fn serve_connection(
    seat: Arc<Seat>,
    stream: Stream,
    peer: SocketAddr,
    door: Arc<Door>,
    state: Arc<ConnState>,
    stop: Stop,
) {
    let node = Arc::clone(&seat.worker().node);
    let ip = peer.ip().to_canonical();
    let ip_text = HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
    let trusted = node.listener(&door).is_some_and(|listener| is_in(&listener.trusted, ip));
    let (sealed, _guest) = (stream.is_sealed(), Arc::clone(&door.guests));
    let shown = node.tls_of(&door).map(|side| side.shown(&stream)).unwrap_or_default();
    let peer = Arc::new(Peer { door: Arc::clone(&door), _guest, ip_text, sealed, shown, trusted });
    let speaks_frames = stream.agreed_on_h2();
    let io = ClientIo::new(stream, node.gate_limits(), node.clock.clone(), Arc::clone(&state));
    if speaks_frames {
        return Box::pin(h2::serve_connection(seat, io.for_frames(), peer, door, stop)).await;
    }
    let mut io = io;
    // Each request by the policy in force when it comes.
    let answer = |request| chain::serve(seat.worker_for(&peer.door), Arc::clone(&state), Arc::clone(&peer), request);
    let orders = || match (stop.now.is_cancelled(), door.drain.is_cancelled()) {
        (true, _) => Order::Stop,
        (false, true) => Order::Drain,
        (false, false) => Order::GoOn,
    };
    let is_last = || stop.parting.load(Relaxed) || door.parting.load(Relaxed) != 0;
    state.nudge();
    let end = serve::serve_connection(&mut io, &state, &node.clock, orders, is_last, answer).await;
    if end == End::Closed {
        if state.was_unread() {
            seat.worker().rejections.untaken(&peer.ip_text, node.clock.now());
        }
        return;
    }
    if let Some(switch) = state.take_switch() {
        // Nobody asks for anything here any more.
        state.set_in_request(node.clock.now(), true);
        let (Some(client), early) = io.into_parts() else { return };
        upgrade::go_on(*switch, client, early, &stop.now).await;
    } else if let Some(io) = io.into_frames() {
        Box::pin(h2::serve_connection(seat, io, peer, door, stop)).await;
    }
}

/// Marks overdue connections of a seat, until stopped.
pub(crate) async fn sweep(seat: Arc<Seat>, stop: Stop) {
    loop {
        tokio::select! {
            biased;
            () = stop.now.cancelled() => return seat.open.nudge(),
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        seat.sweep_doors();
        let node = Arc::clone(&seat.worker().node);
        let (limits, now) = (&node.policy.limits, node.clock.now());
        let idle = if stop.drain.is_cancelled() { limits.idle_timeout.min(QUIET) } else { limits.idle_timeout };
        let patience = Patience { header: limits.header_timeout, idle, body: limits.body_idle_timeout };
        let mut open = seat.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|state| match state.upgrade() {
            Some(state) => {
                state.sweep(now, patience);
                true
            }
            None => false,
        });
    }
}
