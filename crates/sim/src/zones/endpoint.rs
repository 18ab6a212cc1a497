//! An endpoint of the dependency: a [`Shop`] that may turn away whoever comes from a zone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::net::TcpListener;

use super::plan::{ORDERS, QUOTES};
use super::{COUNT, node_name};
use crate::faults::Mood;
use crate::policy::{QUEUE_PORT, everywhere};
use crate::queue::{READ, Shop};
use crate::stage::{Score, Temper};

/// What the conductor has of an endpoint.
pub(super) struct Handle {
    pub(super) temper: Temper,
    score: Arc<Score>,
    /// Cancelled while connections from the zone are reset.
    welcome: Mutex<[CancellationToken; COUNT]>,
    /// When the last call came, by the zone it came from and the upstream it was meant for.
    heard: Mutex<BTreeMap<(usize, &'static str), u64>>,
}

impl Handle {
    pub(super) fn new(score: &Arc<Score>, number: usize) -> Arc<Self> {
        Arc::new(Self {
            temper: Arc::new(Mutex::new((Mood::Well, score.dice(50, number as u64)))),
            score: Arc::clone(score),
            welcome: Mutex::default(),
            heard: Mutex::default(),
        })
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        self.temper.lock().unwrap_or_else(PoisonError::into_inner).0 = mood;
    }

    /// Resets connections from a zone, those to come too; or takes them again.
    pub(super) fn set_welcome(&self, zone: usize, welcome: bool) {
        let token = &mut self.welcome.lock().unwrap_or_else(PoisonError::into_inner)[zone];
        if welcome {
            *token = CancellationToken::new();
        } else {
            token.cancel();
        }
    }

    fn welcome(&self, zone: usize) -> CancellationToken {
        self.welcome.lock().unwrap_or_else(PoisonError::into_inner)[zone].clone()
    }

    /// When the last call came from a zone for an upstream.
    pub(super) fn heard(&self, zone: usize, upstream: &'static str) -> Option<u64> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(&(zone, upstream)).copied()
    }

    fn hear(&self, zone: usize, path: &str) {
        let upstream = if path.starts_with(READ) { QUOTES } else { ORDERS };
        let now = self.score.now_ms();
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert((zone, upstream), now);
    }
}

/// One life of it, until it is killed.
pub(super) async fn live(handle: Arc<Handle>, shop: Arc<Shop>) -> turmoil::Result {
    let listener = TcpListener::bind(everywhere(QUEUE_PORT)).await?;
    let tasks = TaskTracker::new();
    loop {
        let (stream, peer) = listener.accept().await?;
        let from = turmoil::reverse_lookup(peer.ip()).unwrap_or_default();
        let zone = (0..COUNT).find(|zone| from == node_name(*zone)).expect("only nodes call endpoints");
        let (handle, shop, welcome) = (Arc::clone(&handle), Arc::clone(&shop), handle.welcome(zone));
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = welcome.cancelled() => {}
                // A caller that breaks off is no news here.
                _ = shop.converse(stream, |path| handle.hear(zone, path)) => {}
            }
        });
    }
}
