//! Looks from the side: health checks of endpoints, and the level of the spool, told to the journal when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Uri};
use seawall_core::balance::spill::Event;
use seawall_core::guard::health::{Ask, HealthConfig};
use seawall_core::id::UpstreamId;
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::time::Mono;
use seawall_core::units::{Ratio, format_duration};
use tokio_util::sync::CancellationToken;

use crate::ejection;
use crate::fault;
use crate::forwarder;
use crate::http::body::{ReqBody, Sending};
use crate::http::grpc_health;
use crate::http::message::Request;
use crate::node::{Node, UpstreamState, Worker};
use crate::pool::Link;
use crate::seat::Seat;

const LEVEL_EVERY: Duration = Duration::from_millis(100);
const DESERTED_EVERY: Duration = Duration::from_secs(1);
const LIMITS_EVERY: Duration = Duration::from_millis(250);
/// One entry about a limit says it; a thousand would drown the journal.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Checks one endpoint until stopped.
pub(crate) async fn check_endpoint(
    worker: Arc<Worker>,
    upstream: UpstreamId,
    endpoint: usize,
    cause: Option<Seq>,
    stop: CancellationToken,
) {
    let node = Arc::clone(&worker.node);
    let Some(config) = node.policy.upstream(upstream).health.clone() else { return };
    let state = &node.upstreams[upstream.index()].endpoints[endpoint];
    let subject = format!("endpoint:{}/{}", node.upstreams[upstream.index()].name, state.endpoint.address);
    let mut last = cause;
    loop {
        let checked = tokio::time::timeout(config.timeout, check(&worker, upstream, endpoint, &config)).await;
        let failed = match &checked {
            Ok(Ok(())) => None,
            Ok(Err(reason)) => Some(reason.clone()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        // Asked by rules that hold no more: those that do have asked by themselves.
        if stop.is_cancelled() {
            return;
        }
        let judged = state.health.lock().unwrap_or_else(PoisonError::into_inner).on_check(&config, failed.is_none());
        if let Some(healthy) = judged {
            if healthy {
                state.load.comes(node.clock.now());
            }
            state.healthy.store(healthy, Relaxed);
            ejection::on_health(&node.upstreams[upstream.index()], endpoint, healthy);
            let kind = if healthy { Kind::EndpointHealthy } else { Kind::EndpointUnhealthy };
            let mut draft = Draft::new(kind, subject.clone()).because(last);
            if let Some(reason) = failed {
                draft = draft.with("reason", reason);
            }
            last = Some(node.journal.record(draft));
            *state.told.lock().unwrap_or_else(PoisonError::into_inner) = last;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(config.every) => {}
        }
    }
}

async fn check(worker: &Worker, upstream: UpstreamId, endpoint: usize, config: &HealthConfig) -> Result<(), String> {
    let (pool, state) = (worker.pool(upstream, endpoint), &worker.node.upstreams[upstream.index()]);
    // Whoever is cut off is not found well either.
    fault::stand_before_cut(worker, upstream, endpoint).await;
    let request = match &config.ask {
        Ask::Connection => return pool.dial_in_time(b"").await.map(drop).map_err(|failure| failure.to_string()),
        Ask::Path(path) => {
            let path = path.parse::<Uri>().map_err(|error| error.to_string())?;
            Request::new(Method::GET, path, ReqBody::Empty)
        }
        Ask::Grpc(service) => grpc_health::question(service),
    };
    let mut link = pool.probe().await.map_err(|failure| failure.to_string())?;
    let host = match &state.host {
        Some(host) => host.clone(),
        None => match state.endpoints[endpoint].endpoint.address.as_str() {
            path if path.starts_with("unix:") => HeaderValue::from_static("localhost"),
            address => HeaderValue::from_str(address).map_err(|error| error.to_string())?,
        },
    };
    let Request { head: mut asked, body } = request;
    asked.headers.insert(HOST, host);
    asked.headers.insert(USER_AGENT, HeaderValue::from_static("seawall-health"));
    let response = link.send(Sending::of(&asked, body), |_| {}).await.map_err(|failure| failure.to_string())?;
    let status = response.status;
    if let (Ask::Grpc(_), true) = (&config.ask, status.is_success()) {
        let (body, trailers) = read_with_trailers(&mut link, grpc_health::ANSWER_BYTES_MAX).await?;
        return grpc_health::judge(&response.headers, &body, trailers.as_ref());
    }
    link.read_whole().await.map_err(|failure| failure.to_string())?;
    let is_well = status.is_success() || status.is_redirection() && matches!(config.ask, Ask::Path(_));
    if is_well { Ok(()) } else { Err(format!("answered {status}")) }
}

/// A short answer's body, and what follows it.
async fn read_with_trailers(link: &mut Link, bytes_max: usize) -> Result<(Bytes, Option<HeaderMap>), String> {
    let mut body = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| link.poll_body(cx)).await {
        match frame.map_err(|failure| failure.to_string())?.into_data() {
            Ok(data) if body.len() + data.len() > bytes_max => {
                return Err(format!("answered more than {bytes_max} bytes"));
            }
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => return Ok((body.freeze(), frame.into_trailers().ok())),
        }
    }
    Ok((body.freeze(), None))
}

/// Lets the breakers' time pass: an upstream that hangs answers nothing, and traffic that has stopped asks nothing.
pub(crate) async fn watch_guards(seat: Arc<Seat>, stop: CancellationToken) {
    loop {
        let worker = seat.worker();
        let now = worker.node.clock.now();
        worker.node.routes.iter().for_each(|route| route.on_time(now));
        ejection::on_time(&worker, now);
        worker.node.upstreams.iter().for_each(|upstream| tell_spill(&worker.node, upstream, now));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LEVEL_EVERY) => {}
        }
    }
}

/// Tells the journal when an upstream's calls begin to go elsewhere than to its nearest endpoints, and when they are
/// back.
fn tell_spill(node: &Node, upstream: &UpstreamState, now: Mono) {
    if !upstream.plan.can_spill() {
        return;
    }
    let spill = &upstream.spill;
    let mut watch = spill.watch.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(event) = watch.look(now, upstream.calls(), spill.total.load(Relaxed)) else { return };
    let subject = format!("upstream:{}", upstream.name);
    let mut told = spill.told.lock().unwrap_or_else(PoisonError::into_inner);
    // What happened to the nearest endpoints last is why.
    let of_home = upstream.plan.home().filter_map(|place| {
        let told = upstream.endpoints[place].told.lock();
        *told.unwrap_or_else(PoisonError::into_inner)
    });
    let cause = of_home.max().max(*told);
    let draft = match event {
        Event::Away(share) => {
            Draft::new(Kind::TrafficSpilled, subject).with("share", Ratio::new(share).unwrap_or(Ratio::ONE))
        }
        Event::Home(after) => Draft::new(Kind::TrafficHome, subject).with("after", format_duration(after)),
    };
    *told = Some(node.journal.record(draft.because(cause)));
}

/// Tells the journal when the spool begins to fill, is empty again, is nearly full, or refuses.
pub(crate) async fn watch_spool(seat: Arc<Seat>, stop: CancellationToken) {
    let (mut level, mut work) = (Level::default(), seat.worker().node.spool.work_signal());
    loop {
        let node = Arc::clone(&seat.worker().node);
        let depth = node.spool.depth();
        let held = depth.waiting + depth.leased;
        let share = depth.bytes as f64 / depth.bytes_max.max(1) as f64;
        for kind in level.moves(held, share, depth.disk_full) {
            let cause =
                node.routes.iter().filter(|route| route.policy.spools()).filter_map(|route| route.cause()).max();
            let draft = Draft::new(kind, "spool")
                .because(cause)
                .with("waiting", held)
                .with("bytes", depth.bytes)
                .with("bytes_max", depth.bytes_max)
                .with("disk_full", depth.disk_full);
            node.journal.record(draft);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = work.arrived() => {}
            () = tokio::time::sleep(LEVEL_EVERY) => {}
        }
    }
}

/// Looks after records whose upstream no route keeps writes for any more, so that no forwarder does: their time passes
/// all the same, and the journal tells of them once.
pub(crate) async fn watch_deserted(seat: Arc<Seat>, stop: CancellationToken) {
    let mut told: BTreeSet<String> = BTreeSet::new();
    loop {
        let node = Arc::clone(&seat.worker().node);
        let serves = |name: &str| node.routes.iter().any(|it| it.policy.spools() && it.upstream_name == name);
        let mut wait = DESERTED_EVERY;
        for (upstream, depth) in node.spool.depths() {
            let held = depth.waiting + depth.leased;
            if held == 0 || serves(&upstream) {
                told.remove(&upstream);
                continue;
            }
            wait = wait.min(forwarder::expire(&node, &upstream).await);
            if told.insert(upstream.clone()) {
                tracing::warn!(
                    upstream,
                    held,
                    "no route keeps writes for this upstream: its records are not delivered"
                );
                node.journal
                    .record(Draft::new(Kind::RecordsDeserted, format!("upstream:{upstream}")).with("waiting", held));
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The spool's level as last told.
#[derive(Debug, Default)]
struct Level {
    filling: bool,
    high: bool,
    full: bool,
}

impl Level {
    /// What has changed. High and low marks lie apart, so that a level at the mark does not chatter.
    fn moves(&mut self, held: u64, share: f64, disk_full: bool) -> Vec<Kind> {
        let mut moves = Vec::new();
        let mut step = |state: &mut bool, now: bool, up: Kind, down: Kind| {
            if *state != now {
                *state = now;
                moves.push(if now { up } else { down });
            }
        };
        let high = share >= if self.high { 0.6 } else { 0.8 };
        let full = disk_full || share >= if self.full { 0.95 } else { 0.999 };
        step(&mut self.filling, held > 0, Kind::SpoolFilling, Kind::SpoolDrained);
        step(&mut self.high, high, Kind::SpoolHigh, Kind::SpoolLow);
        step(&mut self.full, full, Kind::SpoolFull, Kind::SpoolRecovered);
        moves
    }
}

/// Tells the journal which limits are being reached: at once, then at most every [`TOLD_EVERY`] while it goes on.
pub(crate) async fn watch_limits(seat: Arc<Seat>, stop: CancellationToken) {
    let mut told: BTreeMap<&'static str, (u64, Mono)> = BTreeMap::new();
    loop {
        let node = Arc::clone(&seat.worker().node);
        let now = node.clock.now();
        for limit in node.snapshot().limits.into_iter().filter(|limit| limit.reached_total > 0) {
            let known = told.get(limit.name);
            let is_news = known.is_none_or(|(count, at)| limit.reached_total > *count && now.since(*at) >= TOLD_EVERY);
            if is_news {
                told.insert(limit.name, (limit.reached_total, now));
                let draft = Draft::new(Kind::LimitReached, format!("limit:{}", limit.name))
                    .with("value", limit.value)
                    .with("reached_total", limit.reached_total);
                node.journal.record(draft);
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LIMITS_EVERY) => {}
        }
    }
}

/// Closes idle connections of every pool now and then.
pub(crate) async fn sweep_pools(seat: Arc<Seat>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
        let worker = seat.worker();
        for (upstream, pools) in worker.node.upstreams.iter().zip(&worker.pools) {
            for (endpoint, pool) in upstream.endpoints.iter().zip(pools) {
                pool.sweep(endpoint.draining.load(Relaxed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_told_once() {
        let mut level = Level::default();
        assert_eq!(level.moves(0, 0.0, false), []);
        assert_eq!(level.moves(1, 0.1, false), [Kind::SpoolFilling]);
        assert_eq!(level.moves(9, 0.85, false), [Kind::SpoolHigh]);
        assert_eq!(level.moves(9, 0.7, false), [], "between the marks nothing is told");
        assert_eq!(level.moves(9, 0.7, true), [Kind::SpoolFull]);
        assert_eq!(level.moves(9, 0.5, false), [Kind::SpoolLow, Kind::SpoolRecovered]);
        assert_eq!(level.moves(0, 0.0, false), [Kind::SpoolDrained]);
    }
}
