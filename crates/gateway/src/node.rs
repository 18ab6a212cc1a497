//! What the parts of a gateway share: the policy, the routes' guards, the endpoints, the store's handles, the limits.
//!
//! A [`Node`] is one per process and shared by all workers; a [`Worker`] is one per thread and owns its connections
//! and its counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use seawall_core::balance::{Candidate, choose};
use seawall_core::guard::Refusal;
use seawall_core::guard::budget::Budget;
use seawall_core::guard::outlier::Outlier;
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::journal::Seq;
use seawall_core::observation::{EndpointSnapshot, LimitSnapshot, NodeSnapshot, RouteSnapshot, UpstreamSnapshot};
use seawall_core::policy::{Endpoint, Policy};
use seawall_core::prng::Prng;
use seawall_core::time::Mono;
use seawall_core::traffic::Counts;
use seawall_store::{Journal, Spool};
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::fault::CallFaults;
use crate::http::gate::{GateLimits, Verdict};
use crate::net::Net;
use crate::observe::{Rejections, RouteCounts, finish};
use crate::pool::{EndpointLoad, EndpointPool};
use crate::records::Records;
use crate::route::{self, RouteState};
use crate::stale::Stale;
use crate::tls::Tls;
use crate::writes::Claims;

/// What a gateway is made of.
pub struct Parts {
    /// What it should do.
    pub policy: Arc<Policy>,
    /// Where writes wait.
    pub spool: Spool,
    /// Where facts go.
    pub journal: Journal,
    /// Where records are accounted for.
    pub records: Arc<dyn Records>,
    /// The time.
    pub clock: Clock,
    /// Chance.
    pub seed: u64,
    /// Which network.
    pub net: Net,
    /// The journal entry that everything here follows from: the config's.
    pub cause: Option<Seq>,
    /// How often the journal may hear that the traffic of a route has changed: [`crate::TRAFFIC_EVERY`].
    pub traffic_every: Duration,
    /// What connections are sealed with.
    pub tls: Tls,
    /// Faults on calls, where they are allowed.
    pub faults: Option<CallFaults>,
}

pub(crate) struct Node {
    pub(crate) policy: Arc<Policy>,
    pub(crate) routes: Vec<Arc<RouteState>>,
    pub(crate) upstreams: Vec<UpstreamState>,
    pub(crate) spool: Spool,
    pub(crate) journal: Journal,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) clock: Clock,
    pub(crate) net: Net,
    pub(crate) stale: Stale,
    pub(crate) claims: Arc<Claims>,
    pub(crate) via: HeaderValue,
    /// When its counts began.
    pub(crate) since: Mono,
    pub(crate) traffic_every: Duration,
    pub(crate) tls: Tls,
    pub(crate) faults: Option<CallFaults>,
    pub(crate) connections: Limiter,
    pub(crate) pending: Limiter,
    pub(crate) descriptors_reached: AtomicU64,
    pub(crate) connections_total: AtomicU64,
    workers: Mutex<Vec<Arc<Worker>>>,
}

pub(crate) struct UpstreamState {
    pub(crate) name: String,
    /// The `Host` it is asked for, in place of the client's.
    pub(crate) host: Option<HeaderValue>,
    pub(crate) endpoints: Vec<EndpointState>,
    pub(crate) outlier: Option<Mutex<Outlier>>,
}

pub(crate) struct EndpointState {
    pub(crate) endpoint: Endpoint,
    pub(crate) load: Arc<EndpointLoad>,
    pub(crate) healthy: AtomicBool,
    /// Ejected as an outlier, and that is heeded.
    pub(crate) ejected: AtomicBool,
    /// The entry that last told of its ejection or return, at first the config's: the cause of the next.
    pub(crate) told: Mutex<Option<Seq>>,
}

pub(crate) struct Worker {
    pub(crate) node: Arc<Node>,
    pub(crate) pools: Vec<Vec<EndpointPool>>,
    pub(crate) counts: Vec<RouteCounts>,
    pub(crate) rejections: Rejections,
    pub(crate) prng: Mutex<Prng>,
    pub(crate) tasks: TaskTracker,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { policy, spool, journal, records, clock, net, cause, seed, traffic_every, tls, faults } = parts;
        let upstreams: Vec<UpstreamState> =
            policy.upstreams.iter().map(|upstream| UpstreamState::new(upstream, clock.now(), cause)).collect();
        let budgets: Vec<_> = upstreams.iter().map(|_| Arc::new(Mutex::new(Budget::new(clock.now())))).collect();
        let mut seeds = Prng::new(seed).fork();
        let routes = policy.routes.iter().map(|route| {
            let upstream = route.upstream.index();
            let shared = route::Shared {
                upstream_name: upstreams[upstream].name.clone(),
                budget: Arc::clone(&budgets[upstream]),
                journal: journal.clone(),
                clock: clock.clone(),
                cause,
                seed: seeds.next_u64(),
            };
            Arc::new(RouteState::new(route.clone(), shared))
        });
        let via = HeaderValue::from_str(&format!("1.1 seawall-{}", policy.node));
        Self {
            routes: routes.collect(),
            upstreams,
            spool,
            journal,
            records,
            since: clock.now(),
            clock,
            net,
            stale: Stale::default(),
            claims: Arc::new(Claims::default()),
            via: via.unwrap_or(HeaderValue::from_static("1.1 seawall")),
            traffic_every,
            tls,
            faults,
            connections: Limiter::new("connections", policy.limits.connections_max.into()),
            pending: Limiter::new("pending", policy.limits.pending_max.into()),
            descriptors_reached: AtomicU64::new(0),
            connections_total: AtomicU64::new(0),
            workers: Mutex::new(Vec::new()),
            policy,
        }
    }

    pub(crate) fn gate_limits(&self) -> GateLimits {
        let limits = &self.policy.limits;
        GateLimits {
            head_bytes_max: limits.header_bytes_max as usize,
            headers_max: limits.headers_max as usize,
            body_bytes_max: limits.body_bytes_max,
        }
    }

    /// Everything seen, all workers added up.
    pub(crate) fn snapshot(&self) -> NodeSnapshot {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut rejected = Vec::new();
        workers.iter().for_each(|worker| worker.rejections.add_to(&mut rejected));
        NodeSnapshot {
            routes: (0..self.routes.len()).map(|index| self.route_snapshot(index, &workers)).collect(),
            upstreams: self.upstreams.iter().map(UpstreamState::snapshot).collect(),
            limits: self.limit_snapshots(&workers),
            connections: self.connections.used.load(Relaxed),
            connections_total: self.connections_total.load(Relaxed),
            rejected,
        }
    }

    fn route_snapshot(&self, index: usize, workers: &[Arc<Worker>]) -> RouteSnapshot {
        let mut snapshot = self.routes[index].look(self.clock.now());
        workers.iter().for_each(|worker| worker.counts[index].add_to(&mut snapshot));
        finish(&mut snapshot);
        snapshot
    }

    /// What passed each route so far, in the policy's order.
    pub(crate) fn traffic(&self) -> Vec<Counts> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of_route = |index: usize| {
            let mut sum = Counts::default();
            workers.iter().for_each(|worker| worker.counts[index].add_traffic_to(&mut sum));
            sum
        };
        (0..self.routes.len()).map(of_route).collect()
    }

    fn limit_snapshots(&self, workers: &[Arc<Worker>]) -> Vec<LimitSnapshot> {
        let limits = &self.policy.limits;
        let refused = |verdict: Verdict| workers.iter().map(|worker| worker.rejections.get(verdict)).sum();
        let counted = |verdict: Verdict, value: u64| LimitSnapshot {
            name: verdict.name(),
            value,
            used: None,
            reached_total: refused(verdict),
        };
        vec![
            self.connections.snapshot(),
            self.pending.snapshot(),
            LimitSnapshot {
                name: "descriptors",
                value: descriptors_max(),
                used: None,
                reached_total: self.descriptors_reached.load(Relaxed),
            },
            counted(Verdict::HeadTooLong, limits.header_bytes_max.into()),
            counted(Verdict::TooManyHeaders, limits.headers_max.into()),
            counted(Verdict::BodyTooLong, limits.body_bytes_max),
            counted(Verdict::HeadTooSlow, limits.header_timeout.as_millis() as u64),
            counted(Verdict::BodyTooSlow, limits.body_idle_timeout.as_millis() as u64),
        ]
    }
}

/// File descriptors this process may have; zero where the system does not tell.
fn descriptors_max() -> u64 {
    std::fs::read_to_string("/proc/self/limits")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("Max open files"))?;
            line.split_whitespace().nth(3)?.parse().ok()
        })
        .unwrap_or(0)
}

impl UpstreamState {
    fn new(upstream: &seawall_core::policy::Upstream, now: seawall_core::time::Mono, cause: Option<Seq>) -> Self {
        let endpoints = upstream.endpoints.iter().map(|endpoint| EndpointState {
            endpoint: endpoint.clone(),
            load: Arc::new(EndpointLoad::default()),
            healthy: AtomicBool::new(true),
            ejected: AtomicBool::new(false),
            told: Mutex::new(cause),
        });
        let outlier = upstream.outlier.map(|config| {
            let outlier = Outlier::new(config, upstream.endpoints.len(), now);
            Mutex::new(outlier.expect("a policy's guards are checked where it is read"))
        });
        let host = upstream.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
        Self { name: upstream.name.clone(), host, endpoints: endpoints.collect(), outlier }
    }

    fn snapshot(&self) -> UpstreamSnapshot {
        let endpoints = self.endpoints.iter().map(|state| EndpointSnapshot {
            address: state.endpoint.address.clone(),
            zone: state.endpoint.zone.clone(),
            healthy: state.healthy.load(Relaxed),
            ejected: state.ejected.load(Relaxed),
            in_flight: state.load.in_flight.load(Relaxed).into(),
            connections: state.load.connections.load(Relaxed).into(),
        });
        UpstreamSnapshot { name: self.name.clone(), endpoints: endpoints.collect() }
    }
}

impl Worker {
    /// A worker of `workers` in all: each gets its share of the connections an endpoint may have.
    pub(crate) fn new(node: &Arc<Node>, workers: usize, seed: u64) -> Arc<Self> {
        let pools = node.policy.upstreams.iter().zip(&node.upstreams).enumerate().map(|(index, (upstream, state))| {
            let share = (upstream.connections_max as usize).div_ceil(workers);
            let pool = |endpoint: &EndpointState| {
                let address = endpoint.endpoint.address.clone();
                let (tls, load) = (node.tls.upstream(index), Arc::clone(&endpoint.load));
                EndpointPool::new(address, node.net, node.clock.clone(), upstream, tls, share, load)
            };
            state.endpoints.iter().map(pool).collect()
        });
        let worker = Arc::new(Self {
            node: Arc::clone(node),
            pools: pools.collect(),
            counts: node.routes.iter().map(|_| RouteCounts::default()).collect(),
            rejections: Rejections::default(),
            prng: Mutex::new(Prng::new(seed)),
            tasks: TaskTracker::new(),
        });
        node.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&worker));
        worker
    }

    /// The less loaded of two healthy endpoints; those already tried come last.
    pub(crate) fn choose(&self, upstream: UpstreamId, tried: u64) -> Option<usize> {
        let endpoints = &self.node.upstreams[upstream.index()].endpoints;
        if let [only] = endpoints.as_slice() {
            return only.healthy.load(Relaxed).then_some(0);
        }
        let candidates = endpoints.iter().enumerate().map(|(place, state)| Candidate {
            healthy: state.healthy.load(Relaxed) && !state.ejected.load(Relaxed),
            tried: place < 64 && tried & (1 << place) != 0,
            in_flight: state.load.in_flight.load(Relaxed),
        });
        choose(candidates, &mut self.prng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn pool(&self, upstream: UpstreamId, endpoint: usize) -> &EndpointPool {
        &self.pools[upstream.index()][endpoint]
    }

    /// The first route of a listener that takes the request.
    pub(crate) fn route(&self, listener: usize, host: &str, path: &str, method: &str) -> Option<RouteId> {
        let policy = &self.node.policy;
        let fits = |id: &&RouteId| policy.route(**id).matcher.takes(host, path, method);
        policy.listeners[listener].routes.iter().find(fits).copied()
    }
}

/// A limit of the node with what is used of it.
#[derive(Debug)]
pub(crate) struct Limiter {
    name: &'static str,
    value: u64,
    pub(crate) used: AtomicU64,
    reached: AtomicU64,
}

/// One used; given back when dropped.
pub(crate) struct Used(Arc<Node>, fn(&Node) -> &Limiter);

impl Limiter {
    fn new(name: &'static str, value: u64) -> Self {
        Self { name, value, used: AtomicU64::new(0), reached: AtomicU64::new(0) }
    }

    /// Takes one.
    pub(crate) fn take(node: &Arc<Node>, which: fn(&Node) -> &Self) -> Result<Used, Refusal> {
        let limiter = which(node);
        if limiter.used.fetch_add(1, Relaxed) >= limiter.value {
            limiter.used.fetch_sub(1, Relaxed);
            limiter.reached.fetch_add(1, Relaxed);
            let retry_in = Duration::from_secs(1);
            return Err(Refusal::LimitReached { limit: limiter.name, value: limiter.value, retry_in });
        }
        Ok(Used(Arc::clone(node), which))
    }

    fn snapshot(&self) -> LimitSnapshot {
        LimitSnapshot {
            name: self.name,
            value: self.value,
            used: Some(self.used.load(Relaxed)),
            reached_total: self.reached.load(Relaxed),
        }
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        (self.1)(&self.0).used.fetch_sub(1, Relaxed);
    }
}
