//! What the parts of a gateway share: the policy, the routes' guards, the endpoints, the store's handles, the limits.
//!
//! A [`Node`] is shared by all workers; a [`Worker`] is one per thread and has its connections and its counters. Both
//! are of one policy: under the next one another takes over what has not changed (`seat.rs`).

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::HeaderValue;
use seawall_core::balance::spill::Watch;
use seawall_core::balance::{Avoid, Choice, Endpoints, Plan, ramp};
use seawall_core::fault::book::Seen;
use seawall_core::guard::Refusal;
use seawall_core::guard::budget::Budget;
use seawall_core::guard::health::Health;
use seawall_core::guard::outlier::Outlier;
use seawall_core::guard::pipeline;
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::journal::Seq;
use seawall_core::observation::{EndpointSnapshot, LimitSnapshot, NodeSnapshot, RouteSnapshot, UpstreamSnapshot};
use seawall_core::policy::{Endpoint, Listener, Policy, Protocol, Upstream};
use seawall_core::prng::Prng;
use seawall_core::time::Mono;
use seawall_core::traffic::Counts;
use seawall_store::{Journal, Spool};
use tokio_util::task::TaskTracker;

use crate::aim::Aim;
use crate::chain::InFlight;
use crate::clock::Clock;
use crate::drains;
use crate::ejection;
use crate::fault::CallFaults;
use crate::heritage::Heritage;
use crate::http::gate::{GateLimits, Verdict};
use crate::mirror::COPIES_MAX;
use crate::net::Net;
use crate::observe::{Rejections, RouteCounts, finish};
use crate::pool::{EndpointLoad, EndpointPool};
use crate::records::Records;
use crate::route::{self, RouteState};
use crate::seat::Door;
use crate::sources::Sources;
use crate::stale::Stale;
use crate::tls::{ServerSide, Tls};
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
    /// Faults, where they are allowed.
    pub faults: Option<CallFaults>,
}

/// What a gateway goes by under one policy.
pub(crate) struct Node {
    pub(crate) policy: Arc<Policy>,
    /// Counted from 0: ids mean nothing under another one.
    pub(crate) generation: u64,
    /// One for each listener of the policy.
    pub(crate) doors: Vec<Arc<Door>>,
    pub(crate) routes: Vec<Arc<RouteState>>,
    pub(crate) upstreams: Vec<UpstreamState>,
    pub(crate) spool: Spool,
    pub(crate) journal: Journal,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) clock: Clock,
    pub(crate) net: Net,
    pub(crate) stale: Arc<Stale>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) via: HeaderValue,
    /// When the policy came into force.
    pub(crate) since: Mono,
    pub(crate) traffic_every: Duration,
    pub(crate) tls: Tls,
    pub(crate) faults: Option<CallFaults>,
    pub(crate) drains: Arc<drains::Book>,
    pub(crate) connections: Arc<Limiter>,
    pub(crate) pending: Arc<Limiter>,
    pub(crate) sources: Arc<Sources>,
    pub(crate) mirrors: Arc<Limiter>,
    /// What cannot go on without the store: calls of routes that spool, and forwarders. As many as like.
    pub(crate) of_store: Arc<Limiter>,
    pub(crate) descriptors_reached: Arc<AtomicU64>,
    pub(crate) connections_total: Arc<AtomicU64>,
    /// Weakly: a worker holds its node.
    workers: Mutex<Vec<Weak<Worker>>>,
}

pub(crate) struct UpstreamState {
    pub(crate) name: String,
    /// The `Host` it is asked for, in place of the client's.
    pub(crate) host: Option<HeaderValue>,
    pub(crate) endpoints: Vec<Arc<EndpointState>>,
    pub(crate) outlier: Option<Arc<Mutex<Outlier>>>,
    /// Where its calls go.
    pub(crate) plan: Plan,
    /// Where those go that are meant for a version.
    pub(crate) versions: Vec<(String, Plan)>,
    slow_start: Duration,
    pub(crate) spill: Arc<Spill>,
    budget: Arc<Mutex<Budget>>,
}

/// Calls that went elsewhere than to the nearest endpoints.
#[derive(Default)]
pub(crate) struct Spill {
    pub(crate) total: AtomicU64,
    pub(crate) watch: Mutex<Watch>,
    /// The entry that last told of it.
    pub(crate) told: Mutex<Option<Seq>>,
}

pub(crate) struct EndpointState {
    pub(crate) endpoint: Endpoint,
    pub(crate) load: Arc<EndpointLoad>,
    pub(crate) healthy: AtomicBool,
    /// What its checks have come to.
    pub(crate) health: Mutex<Health>,
    /// Ejected as an outlier, and that is heeded.
    pub(crate) ejected: Arc<AtomicBool>,
    /// Taken out of service by hand.
    pub(crate) draining: AtomicBool,
    /// [`UpstreamState::judge`] of the one in force: what a call of an old policy came to is no business of the new one.
    pub(crate) judge: Arc<AtomicUsize>,
    /// The entry that last told of its health, its ejection or its return, at first the config's: the cause of the
    /// next.
    pub(crate) told: Mutex<Option<Seq>>,
}

pub(crate) struct Worker {
    pub(crate) node: Arc<Node>,
    pub(crate) pools: Vec<Vec<Arc<EndpointPool>>>,
    pub(crate) counts: Vec<Arc<RouteCounts>>,
    pub(crate) rejections: Arc<Rejections>,
    pub(crate) prng: Mutex<Prng>,
    pub(crate) tasks: TaskTracker,
}

impl Node {
    /// `heritage` is what another process knew so long ago.
    pub(crate) fn new(parts: Parts, doors: Vec<Arc<Door>>, (heritage, age): (&Heritage, Duration)) -> Self {
        let Parts { policy, spool, journal, records, clock, net, cause, seed, traffic_every, tls, faults } = parts;
        let connections_total = faults.as_ref().map(CallFaults::connections).unwrap_or_default();
        let upstream = |upstream| UpstreamState::new(upstream, &policy.zone, clock.now(), cause);
        let upstreams: Vec<UpstreamState> = policy.upstreams.iter().map(upstream).collect();
        for (state, upstream) in upstreams.iter().zip(&policy.upstreams) {
            heritage.tell(state, upstream.health.is_some(), age, clock.now());
        }
        let (mut seeds, nothing) = (Prng::new(seed).fork(), pipeline::Snapshot::default());
        let routes = policy.routes.iter().map(|route| {
            let upstream = &upstreams[route.upstream.index()];
            let known = heritage.guards(&route.name, &upstream.name).unwrap_or(&nothing);
            let shared = upstream.shared(&journal, &clock, cause, seeds.next_u64());
            Arc::new(RouteState::begin(route.clone(), shared, (known, age)))
        });
        let via = HeaderValue::from_str(&format!("1.1 seawall-{}", policy.node));
        Self {
            generation: 0,
            doors,
            routes: routes.collect(),
            upstreams,
            spool,
            journal,
            records,
            since: clock.now(),
            clock,
            net,
            stale: Arc::default(),
            claims: Arc::new(Claims::default()),
            via: via.unwrap_or(HeaderValue::from_static("1.1 seawall")),
            traffic_every,
            tls,
            faults,
            drains: Arc::default(),
            connections: Arc::new(Limiter::new("connections", policy.limits.connections_max.into())),
            pending: Arc::new(Limiter::new("pending", policy.limits.pending_max.into())),
            sources: Arc::default(),
            mirrors: Arc::new(Limiter::new("mirrors", COPIES_MAX)),
            of_store: Arc::new(Limiter::new("of_store", u64::MAX)),
            descriptors_reached: Arc::default(),
            connections_total,
            workers: Mutex::new(Vec::new()),
            policy,
        }
    }

    /// The same node under another policy. What is called the same and has not changed stays what it is: breakers and
    /// windows of routes, health and ejections of endpoints, answers kept, counts. Whoever is counted by a limit stays
    /// counted.
    pub(crate) fn succeed(
        &self,
        policy: Arc<Policy>,
        doors: Vec<Arc<Door>>,
        tls: Tls,
        cause: Option<Seq>,
        seed: u64,
    ) -> Self {
        let now = self.clock.now();
        let upstreams: Vec<UpstreamState> = policy
            .upstreams
            .iter()
            .map(|upstream| match self.known_upstream(&upstream.name) {
                Some((id, state)) => state.succeed(self.policy.upstream(id), upstream, &policy.zone, now, cause),
                None => UpstreamState::new(upstream, &policy.zone, now, cause),
            })
            .collect();
        let mut seeds = Prng::new(seed).fork();
        let routes = policy.routes.iter().map(|route| {
            let upstream = &upstreams[route.upstream.index()];
            let shared = upstream.shared(&self.journal, &self.clock, cause, seeds.next_u64());
            Arc::new(match self.routes.iter().find(|old| old.policy.name == route.name) {
                Some(old) => old.succeed(route.clone(), shared),
                None => RouteState::new(route.clone(), shared),
            })
        });
        self.connections.value.store(policy.limits.connections_max.into(), Relaxed);
        self.pending.value.store(policy.limits.pending_max.into(), Relaxed);
        Self {
            generation: self.generation + 1,
            doors,
            routes: routes.collect(),
            upstreams,
            spool: self.spool.clone(),
            journal: self.journal.clone(),
            records: Arc::clone(&self.records),
            since: now,
            clock: self.clock.clone(),
            net: self.net,
            stale: Arc::clone(&self.stale),
            claims: Arc::clone(&self.claims),
            via: self.via.clone(),
            traffic_every: self.traffic_every,
            tls,
            faults: self.faults.clone(),
            drains: Arc::clone(&self.drains),
            connections: Arc::clone(&self.connections),
            pending: Arc::clone(&self.pending),
            sources: Arc::clone(&self.sources),
            mirrors: Arc::clone(&self.mirrors),
            of_store: Arc::clone(&self.of_store),
            descriptors_reached: Arc::clone(&self.descriptors_reached),
            connections_total: Arc::clone(&self.connections_total),
            workers: Mutex::new(Vec::new()),
            policy,
        }
    }

    /// New pools for the endpoints of an upstream, for one worker of `workers`.
    fn pools_of(&self, upstream: usize, workers: usize) -> Vec<Arc<EndpointPool>> {
        let (state, policy) = (&self.upstreams[upstream], &self.policy.upstreams[upstream]);
        let share = (policy.connections_max as usize).div_ceil(workers);
        let pool = |endpoint: &Arc<EndpointState>| {
            let address = &endpoint.endpoint.address;
            let (tls, load) = (self.tls.upstream(upstream), Arc::clone(&endpoint.load));
            Arc::new(EndpointPool::new(address, self.net, self.clock.clone(), policy, tls, share, load))
        };
        state.endpoints.iter().map(pool).collect()
    }

    pub(crate) fn known_upstream(&self, name: &str) -> Option<(UpstreamId, &UpstreamState)> {
        let place = self.upstreams.iter().position(|state| state.name == name)?;
        Some((UpstreamId(u32::try_from(place).ok()?), &self.upstreams[place]))
    }

    /// Which of the policy's listeners a door is; none if the policy does not have it.
    fn listener_of(&self, door: &Arc<Door>) -> Option<usize> {
        self.doors.iter().position(|known| Arc::ptr_eq(known, door))
    }

    /// The route of a door whose bytes nobody reads.
    pub(crate) fn tcp_route_of(&self, door: &Arc<Door>) -> Option<RouteId> {
        self.policy.tcp_route(self.listener_of(door)?)
    }

    /// What the policy says of a door; nothing if it does not have it.
    pub(crate) fn listener(&self, door: &Arc<Door>) -> Option<&Listener> {
        Some(&self.policy.listeners[self.listener_of(door)?])
    }

    /// What a door is sealed with.
    pub(crate) fn tls_of(&self, door: &Arc<Door>) -> Option<Arc<ServerSide>> {
        self.tls.listener(self.listener_of(door)?)
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
        let workers = self.workers();
        let mut rejected = Vec::new();
        workers.iter().for_each(|worker| worker.rejections.add_to(&mut rejected));
        let routes: Vec<_> = (0..self.routes.len()).map(|index| self.route_snapshot(index, &workers)).collect();
        NodeSnapshot {
            drains: self.drains_seen(&routes),
            routes,
            upstreams: self.upstreams.iter().map(|upstream| upstream.snapshot(self.clock.now())).collect(),
            limits: self.limit_snapshots(&workers),
            connections: self.connections.used.load(Relaxed),
            connections_total: self.connections_total.load(Relaxed),
            rejected,
        }
    }

    pub(crate) fn workers(&self) -> Vec<Arc<Worker>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn route_snapshot(&self, index: usize, workers: &[Arc<Worker>]) -> RouteSnapshot {
        let mut snapshot = self.routes[index].look(self.clock.now());
        workers.iter().for_each(|worker| worker.counts[index].add_to(&mut snapshot));
        finish(&mut snapshot);
        snapshot
    }

    /// What passed each route so far, in the policy's order. Of connections, each is a request.
    pub(crate) fn traffic(&self) -> Vec<Counts> {
        let workers = self.workers();
        let of_route = |index: usize| {
            let mut sum = Counts::default();
            let is_tcp = self.routes[index].policy.protocol == Protocol::Tcp;
            for worker in &workers {
                worker.counts[index].add_traffic_to(&mut sum);
                sum.requests += if is_tcp { worker.counts[index].connections.opened.get() } else { 0 };
            }
            sum
        };
        (0..self.routes.len()).map(of_route).collect()
    }

    /// What clients have seen of each route so far, in the policy's order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let workers = self.workers();
        let of_route = |index: usize| {
            workers.iter().fold(Seen::default(), |sum, worker| {
                let Seen { requests, failed } = worker.counts[index].seen();
                Seen { requests: sum.requests + requests, failed: sum.failed + failed }
            })
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
            self.mirrors.snapshot(),
            LimitSnapshot {
                name: "descriptors",
                value: descriptors_max(),
                used: None,
                reached_total: self.descriptors_reached.load(Relaxed),
            },
            LimitSnapshot {
                name: "connections_per_source",
                value: limits.connections_per_source.map_or(0, u64::from),
                used: None,
                reached_total: workers.iter().map(|worker| worker.rejections.per_source.get()).sum(),
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
    fn new(upstream: &Upstream, zone: &str, now: Mono, cause: Option<Seq>) -> Self {
        let endpoints = upstream.endpoints.iter().map(|endpoint| Arc::new(EndpointState::new(endpoint, cause)));
        let calls_max = if upstream.http2 { u32::MAX } else { upstream.connections_max };
        let outlier = upstream.outlier.map(|config| {
            let outlier = Outlier::new(config, upstream.endpoints.len(), now);
            Arc::new(Mutex::new(outlier.expect("a policy's guards are checked where it is read")))
        });
        let budget = Arc::new(Mutex::new(Budget::new(now)));
        let host = upstream.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
        let state = Self {
            name: upstream.name.clone(),
            host,
            endpoints: endpoints.collect(),
            outlier,
            plan: Plan::new(&upstream.endpoints, zone, upstream.balance, calls_max),
            versions: plans_of_versions(upstream, zone, calls_max),
            slow_start: upstream.balance.slow_start,
            spill: Arc::default(),
            budget,
        };
        state.appoint();
        state
    }

    /// Has its endpoints judged by its own outlier ejection from now on, by nobody who did before.
    fn appoint(&self) {
        let mut outlier = self.outlier.as_ref().map(|outlier| outlier.lock().unwrap_or_else(PoisonError::into_inner));
        for (place, endpoint) in self.endpoints.iter().enumerate() {
            endpoint.judge.store(self.judge(), Relaxed);
            endpoint.ejected.store(false, Relaxed);
            if let Some(outlier) = outlier.as_mut().filter(|_| !endpoint.healthy.load(Relaxed)) {
                outlier.on_health(place, false);
            }
        }
    }

    /// By whom its endpoints are judged, as far as it knows: a number that no other has while this one is there.
    pub(crate) fn judge(&self) -> usize {
        self.outlier.as_ref().map_or(0, |outlier| Arc::as_ptr(outlier).addr())
    }

    /// The same upstream under another policy: endpoints that stay keep their load, their health where they are checked
    /// as before, and, where all stay, what they are compared by. One that is new among others begins slowly.
    fn succeed(&self, old: &Upstream, new: &Upstream, zone: &str, now: Mono, cause: Option<Seq>) -> Self {
        let fresh = Self::new(new, zone, now, cause);
        let addresses = |upstream: &Upstream| -> Vec<String> {
            upstream.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect()
        };
        let compared_alike = old.outlier == new.outlier && addresses(old) == addresses(new);
        let checked_alike = old.health == new.health;
        let endpoints = fresh.endpoints.into_iter().map(|endpoint| {
            let known = self.endpoints.iter().find(|known| known.endpoint.address == endpoint.endpoint.address);
            let Some(known) = known else {
                endpoint.load.comes(now);
                return endpoint;
            };
            if known.endpoint == endpoint.endpoint && checked_alike {
                return Arc::clone(known);
            }
            let told = known.as_told_now(endpoint.endpoint.clone());
            if !checked_alike {
                told.begin_health(now);
            }
            Arc::new(told)
        });
        let endpoints = endpoints.collect();
        let outlier = if compared_alike { self.outlier.clone() } else { fresh.outlier };
        let (spill, budget) = (Arc::clone(&self.spill), Arc::clone(&self.budget));
        let state = Self { endpoints, outlier, spill, budget, ..fresh };
        if !compared_alike {
            // Nobody is just being judged by the old one, and nobody is any more.
            let _old = self.outlier.as_ref().map(|outlier| outlier.lock().unwrap_or_else(PoisonError::into_inner));
            state.appoint();
        } else if !checked_alike {
            (0..state.endpoints.len()).for_each(|place| ejection::on_health(&state, place, true));
        }
        state
    }

    /// Why none of its endpoints can be asked, if it is because those that are well are being drained.
    pub(crate) fn drained(&self) -> Option<Refusal> {
        let is_kept = |it: &&Arc<EndpointState>| {
            it.draining.load(Relaxed) && it.healthy.load(Relaxed) && !it.ejected.load(Relaxed)
        };
        let endpoint = self.endpoints.iter().find(is_kept)?;
        let name = format!("{}/{}", self.name, endpoint.endpoint.address);
        Some(Refusal::Draining { what: "endpoint", name, retry_in: route::DRAINED_RETRY_IN })
    }

    /// A call goes where it was chosen to go.
    pub(crate) fn begin(&self, choice: Choice) -> InFlight {
        if choice.is_away {
            self.spill.total.fetch_add(1, Relaxed);
        }
        InFlight::new(&self.endpoints[choice.place].load)
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.endpoints.iter().map(|endpoint| endpoint.load.calls.load(Relaxed)).sum()
    }

    fn ramp(&self, endpoint: &EndpointState, now: Mono) -> f64 {
        ramp(endpoint.load.since(), now, self.slow_start)
    }

    /// What a route to it shares with others.
    fn shared(&self, journal: &Journal, clock: &Clock, cause: Option<Seq>, seed: u64) -> route::Shared {
        route::Shared {
            upstream_name: self.name.clone(),
            budget: Arc::clone(&self.budget),
            journal: journal.clone(),
            clock: clock.clone(),
            cause,
            seed,
        }
    }

    fn snapshot(&self, now: Mono) -> UpstreamSnapshot {
        let endpoints = self.endpoints.iter().map(|state| EndpointSnapshot {
            address: state.endpoint.address.clone(),
            zone: state.endpoint.zone.clone(),
            version: state.endpoint.version.clone(),
            weight: state.endpoint.weight,
            priority: state.endpoint.priority,
            healthy: state.healthy.load(Relaxed),
            ejected: state.ejected.load(Relaxed),
            draining: state.draining.load(Relaxed),
            ramp: self.ramp(state, now),
            latency_ms: (state.load.latency.at(now) * 1e6).round() / 1e3,
            calls_total: state.load.calls.load(Relaxed),
            in_flight: state.load.in_flight.load(Relaxed).into(),
            connections: state.load.connections.load(Relaxed).into(),
            addresses: state.load.known.addresses(),
            lookups_failed_total: state.load.known.failed_total(),
        });
        UpstreamSnapshot {
            name: self.name.clone(),
            endpoints: endpoints.collect(),
            spilled_total: self.spill.total.load(Relaxed),
            is_spilling: self.spill.watch.lock().unwrap_or_else(PoisonError::into_inner).is_away(),
        }
    }
}

/// A plan for each version, of its endpoints alone.
fn plans_of_versions(upstream: &Upstream, zone: &str, calls_max: u32) -> Vec<(String, Plan)> {
    let mut names: Vec<&String> = upstream.endpoints.iter().filter_map(|endpoint| endpoint.version.as_ref()).collect();
    names.sort();
    names.dedup();
    let plan = |name: &String| {
        let weight = |endpoint: &Endpoint| if endpoint.version.as_ref() == Some(name) { endpoint.weight } else { 0 };
        let own = |endpoint: &Endpoint| Endpoint { weight: weight(endpoint), ..endpoint.clone() };
        let own: Vec<Endpoint> = upstream.endpoints.iter().map(own).collect();
        (name.clone(), Plan::new(&own, zone, upstream.balance, calls_max))
    };
    names.into_iter().map(plan).collect()
}

impl EndpointState {
    fn new(endpoint: &Endpoint, cause: Option<Seq>) -> Self {
        Self {
            endpoint: endpoint.clone(),
            load: Arc::new(EndpointLoad::default()),
            healthy: AtomicBool::new(true),
            health: Mutex::default(),
            ejected: Arc::default(),
            draining: AtomicBool::new(false),
            judge: Arc::default(),
            told: Mutex::new(cause),
        }
    }

    /// True if a call may go there.
    pub(crate) fn can_be_asked(&self) -> bool {
        self.healthy.load(Relaxed) && !self.ejected.load(Relaxed) && !self.draining.load(Relaxed)
    }

    /// Is checked by other rules from now on: well until they say something else. If it was not, it comes back.
    fn begin_health(&self, now: Mono) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::default();
        if !self.healthy.swap(true, Relaxed) {
            self.load.comes(now);
        }
    }

    /// The same, of which something else is told.
    fn as_told_now(&self, endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            load: Arc::clone(&self.load),
            healthy: AtomicBool::new(self.healthy.load(Relaxed)),
            health: Mutex::new(self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            ejected: Arc::clone(&self.ejected),
            draining: AtomicBool::new(self.draining.load(Relaxed)),
            judge: Arc::clone(&self.judge),
            told: Mutex::new(*self.told.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// An upstream's endpoints at one moment.
struct AtMoment<'a> {
    upstream: &'a UpstreamState,
    now: Mono,
}

impl Endpoints for AtMoment<'_> {
    fn is_well(&self, place: usize) -> bool {
        let state = &self.upstream.endpoints[place];
        state.healthy.load(Relaxed) && !state.ejected.load(Relaxed)
    }

    fn is_out(&self, place: usize) -> bool {
        self.upstream.endpoints[place].draining.load(Relaxed)
    }

    fn ramp(&self, place: usize) -> f64 {
        self.upstream.ramp(&self.upstream.endpoints[place], self.now)
    }

    fn in_flight(&self, place: usize) -> u32 {
        self.upstream.endpoints[place].load.in_flight.load(Relaxed)
    }

    fn latency(&self, place: usize) -> f64 {
        self.upstream.endpoints[place].load.latency.at(self.now)
    }
}

impl Worker {
    /// A worker of `workers` in all: each gets its share of the connections an endpoint may have.
    pub(crate) fn new(node: &Arc<Node>, workers: usize, seed: u64) -> Arc<Self> {
        let pools = (0..node.upstreams.len()).map(|upstream| node.pools_of(upstream, workers));
        Self::at(
            node,
            Self {
                node: Arc::clone(node),
                pools: pools.collect(),
                counts: node.routes.iter().map(|_| Arc::default()).collect(),
                rejections: Arc::default(),
                prng: Mutex::new(Prng::new(seed)),
                tasks: TaskTracker::new(),
            },
        )
    }

    /// The same worker under another policy: connections to endpoints that stay are kept, and so are counts of routes.
    pub(crate) fn succeed(&self, node: &Arc<Node>, workers: usize) -> Arc<Self> {
        let old = &self.node;
        let pools = (0..node.upstreams.len()).map(|upstream| {
            let mut pools = node.pools_of(upstream, workers);
            let (state, policy) = (&node.upstreams[upstream], &node.policy.upstreams[upstream]);
            let Some((id, known)) = old.known_upstream(&state.name) else { return pools };
            if !reaches_alike(old, id, node, upstream, policy) {
                return pools;
            }
            for (pool, endpoint) in pools.iter_mut().zip(&state.endpoints) {
                // The very same: one that was forgotten and found again counts its load anew.
                if let Some(place) = known.endpoints.iter().position(|other| Arc::ptr_eq(&other.load, &endpoint.load)) {
                    *pool = Arc::clone(&self.pools[id.index()][place]);
                }
            }
            pools
        });
        let counts = node.routes.iter().map(|route| {
            let place = old.routes.iter().position(|known| known.policy.name == route.policy.name);
            place.map_or_else(Arc::default, |place| Arc::clone(&self.counts[place]))
        });
        let fork = self.prng.lock().unwrap_or_else(PoisonError::into_inner).fork();
        Self::at(
            node,
            Self {
                node: Arc::clone(node),
                pools: pools.collect(),
                counts: counts.collect(),
                rejections: Arc::clone(&self.rejections),
                prng: Mutex::new(fork),
                tasks: self.tasks.clone(),
            },
        )
    }

    fn at(node: &Arc<Node>, worker: Self) -> Arc<Self> {
        let worker = Arc::new(worker);
        node.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&worker));
        worker
    }

    /// Where a call should go; `true` if that is not of the version it aims at, because none of it is well.
    pub(crate) fn choose_for(&self, aim: Aim, upstream: UpstreamId, avoid: Avoid, now: Mono) -> Option<(Choice, bool)> {
        if aim.version.is_none() && aim.value.is_none() {
            return self.choose(upstream, avoid, now).map(|choice| (choice, false));
        }
        let upstream = &self.node.upstreams[upstream.index()];
        let by = |plan: &Plan| match aim.value {
            Some(value) => plan.choose_for(value, &AtMoment { upstream, now }, avoid),
            None => {
                let mut prng = self.prng.lock().unwrap_or_else(PoisonError::into_inner);
                plan.choose(&AtMoment { upstream, now }, avoid, &mut prng)
            }
        };
        let of_version = aim.version.and_then(|version| by(&upstream.versions[version].1));
        match of_version {
            Some(choice) => Some((choice, false)),
            None => by(&upstream.plan).map(|choice| (choice, aim.version.is_some())),
        }
    }

    /// Where a call should go.
    pub(crate) fn choose(&self, upstream: UpstreamId, avoid: Avoid, now: Mono) -> Option<Choice> {
        let upstream = &self.node.upstreams[upstream.index()];
        if let [only] = upstream.endpoints.as_slice() {
            let is_well = only.healthy.load(Relaxed) || upstream.plan.ignores_health();
            let is_usable = is_well && !only.draining.load(Relaxed);
            return is_usable.then_some(Choice { place: 0, is_away: false });
        }
        let mut prng = self.prng.lock().unwrap_or_else(PoisonError::into_inner);
        upstream.plan.choose(&AtMoment { upstream, now }, avoid, &mut prng)
    }

    pub(crate) fn pool(&self, upstream: UpstreamId, endpoint: usize) -> &EndpointPool {
        &self.pools[upstream.index()][endpoint]
    }

    /// The first route of a listener that takes the request.
    pub(crate) fn route(&self, door: &Arc<Door>, host: &str, path: &str, method: &str) -> Option<RouteId> {
        let policy = &self.node.policy;
        let fits = |id: &&RouteId| policy.route(**id).matcher.takes(host, path, method);
        policy.listeners[self.node.listener_of(door)?].routes.iter().find(fits).copied()
    }
}

/// True if connections to an upstream's endpoints are made and kept under one policy as under the other.
fn reaches_alike(old: &Node, id: UpstreamId, new: &Node, upstream: usize, policy: &Upstream) -> bool {
    let was = old.policy.upstream(id);
    let tls = match (old.tls.upstream(id.index()), new.tls.upstream(upstream)) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(&one, &other),
        _ => false,
    };
    tls && was.connections_max == policy.connections_max
        && was.idle_timeout == policy.idle_timeout
        && was.connect_timeout == policy.connect_timeout
        && was.http2 == policy.http2
        && was.resolver == policy.resolver
}

/// A limit of the node with what is used of it.
#[derive(Debug)]
pub(crate) struct Limiter {
    name: &'static str,
    value: AtomicU64,
    pub(crate) used: AtomicU64,
    reached: AtomicU64,
}

/// One used; given back when dropped.
pub(crate) struct Used(Arc<Limiter>);

impl Limiter {
    fn new(name: &'static str, value: u64) -> Self {
        Self { name, value: AtomicU64::new(value), used: AtomicU64::new(0), reached: AtomicU64::new(0) }
    }

    /// Takes one.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Used, Refusal> {
        let value = self.value.load(Relaxed);
        if self.used.fetch_add(1, Relaxed) >= value {
            self.used.fetch_sub(1, Relaxed);
            self.reached.fetch_add(1, Relaxed);
            return Err(Refusal::LimitReached { limit: self.name, value, retry_in: Duration::from_secs(1) });
        }
        Ok(Used(Arc::clone(self)))
    }

    fn snapshot(&self) -> LimitSnapshot {
        LimitSnapshot {
            name: self.name,
            value: self.value.load(Relaxed),
            used: Some(self.used.load(Relaxed)),
            reached_total: self.reached.load(Relaxed),
        }
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Relaxed);
    }
}
