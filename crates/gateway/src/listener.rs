//! Accepts clients and serves them: one task per connection, a limit on how many, a sweep for the slow, a drain.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

use crate::chain::{Peer, serve};
use crate::http::conn::{ClientIo, ConnState, Patience};
use crate::net::{Listener, Stream};
use crate::node::{Limiter, Worker};
use crate::tls::Unsealed;

const SWEEP_EVERY: Duration = Duration::from_millis(250);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nproxy-status: seawall; error=connection_limit_reached; \
    details=\"the limit `connections` is reached\"\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 44\r\n\
    connection: close\r\n\r\nthis port speaks TLS: ask again by https://\n";

/// When to stop: softly, then hard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    /// No new requests; those in work may end.
    pub(crate) drain: CancellationToken,
    /// Nothing goes on.
    pub(crate) now: CancellationToken,
}

/// Connections of one worker, for the sweep.
#[derive(Default)]
pub(crate) struct Open(Mutex<Vec<std::sync::Weak<ConnState>>>);

/// Accepts on one listener until the drain begins.
pub(crate) async fn accept(worker: Arc<Worker>, listener: Listener, index: usize, open: Arc<Open>, stop: Stop) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => admit(&worker, stream, peer, index, &open, &stop),
            Err(error) => pause_after(&worker, &error).await,
        }
    }
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

fn admit(worker: &Arc<Worker>, stream: Stream, peer: SocketAddr, index: usize, open: &Arc<Open>, stop: &Stop) {
    let node = &worker.node;
    node.connections_total.fetch_add(1, Relaxed);
    match Limiter::take(node, |node| &node.connections) {
        Ok(used) => {
            let state = Arc::new(ConnState::default());
            open.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&state));
            let (worker_of_task, stop) = (Arc::clone(worker), stop.clone());
            worker.tasks.spawn(async move {
                let _used = used;
                let Some(stream) = unseal(&worker_of_task, stream, index, &stop).await else { return };
                serve_connection(worker_of_task, stream, peer, index, state, stop).await;
            });
        }
        Err(_) => {
            // Where TLS is spoken a plain answer would be noise: the end says as much.
            if node.tls.listener(index).is_none() {
                worker.tasks.spawn(say_and_close(stream, TOO_MANY));
            }
        }
    }
}

/// The handshake, where the listener speaks TLS. Nothing is left of a client that does not come through it.
async fn unseal(worker: &Worker, stream: Stream, index: usize, stop: &Stop) -> Option<Stream> {
    let Some(side) = worker.node.tls.listener(index) else { return Some(stream) };
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
    worker: Arc<Worker>,
    stream: Stream,
    peer: SocketAddr,
    index: usize,
    state: Arc<ConnState>,
    stop: Stop,
) {
    let node = &worker.node;
    let ip = peer.ip().to_canonical();
    let ip_text = HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
    let peer = Arc::new(Peer { listener: index, ip_text, sealed: stream.is_sealed() });
    let io = ClientIo::new(stream, node.gate_limits(), node.clock.clone(), Arc::clone(&state));
    let limits = &node.policy.limits;
    let service = service_fn(|request| serve(Arc::clone(&worker), Arc::clone(&state), Arc::clone(&peer), request));
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits.headers_max as usize + 8)
        .max_buf_size((limits.header_bytes_max as usize).max(8 << 10) + (8 << 10))
        .header_read_timeout(None);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::trace!(%error, "a connection ended");
                }
                return;
            }
            () = state.nudge.notified() => {}
            () = stop.drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = stop.now.cancelled() => return,
        }
    }
}

/// Marks overdue connections of a worker, until stopped.
pub(crate) async fn sweep(worker: Arc<Worker>, open: Arc<Open>, stop: CancellationToken) {
    let limits = worker.node.policy.limits.clone();
    let patience =
        Patience { header: limits.header_timeout, idle: limits.idle_timeout, body: limits.body_idle_timeout };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        let now = worker.node.clock.now();
        let mut open = open.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|state| match state.upgrade() {
            Some(state) => {
                state.sweep(now, patience);
                true
            }
            None => false,
        });
    }
}
