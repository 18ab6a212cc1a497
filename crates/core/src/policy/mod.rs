//! What should be: routes, upstreams and guards, resolved and checked. The configuration file becomes this in one
//! place (`app`), the gateway reads it as one snapshot per request and never sees a file.

mod change;

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::balance::BalanceConfig;
use crate::balance::assign::{Split, Unit};
use crate::block::Block;
use crate::guard::Invalid;
use crate::guard::breaker::BreakerConfig;
use crate::guard::budget::BudgetConfig;
use crate::guard::bulkhead::BulkheadConfig;
use crate::guard::concurrency::ConcurrencyConfig;
use crate::guard::health::HealthConfig;
use crate::guard::hedge::HedgeConfig;
use crate::guard::learned::LearnedConfig;
use crate::guard::outlier::OutlierConfig;
use crate::guard::rate::RateConfig;
use crate::guard::retry::RetryConfig;
use crate::guard::throttle::ThrottleConfig;
use crate::id::{RouteId, UpstreamId};
use crate::outcome::is_idempotent;
use crate::spool::Priority;
use crate::units::Ratio;

/// Everything one node should do.
#[derive(Clone, Debug)]
pub struct Policy {
    /// This node's name, unique in the fleet: the producer of its ledger.
    pub node: String,
    /// This node's zone.
    pub zone: String,
    /// Every zone of the fleet.
    pub zones: Vec<String>,
    /// Where we listen.
    pub listeners: Vec<Listener>,
    /// Every route, by [`RouteId`].
    pub routes: Vec<Route>,
    /// Every upstream, by [`UpstreamId`].
    pub upstreams: Vec<Upstream>,
    /// Bounds of the whole node.
    pub limits: Limits,
    /// SHA-256 of the configuration it came from, hex: what the journal names.
    pub digest: String,
}

impl Policy {
    /// The route with this id.
    #[must_use]
    pub fn route(&self, id: RouteId) -> &Route {
        &self.routes[id.index()]
    }

    /// The route of a listener's connections, by the listener's place; `None` where it takes requests.
    #[must_use]
    pub fn tcp_route(&self, listener: usize) -> Option<RouteId> {
        let first = self.listeners.get(listener)?.routes.first()?;
        (self.route(*first).protocol == Protocol::Tcp).then_some(*first)
    }

    /// The upstream with this id.
    #[must_use]
    pub fn upstream(&self, id: UpstreamId) -> &Upstream {
        &self.upstreams[id.index()]
    }
}

/// An address and the routes tried there, in order: the first match wins. Connections whose bytes nobody reads have one
/// route, and it takes all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Where to listen.
    pub address: SocketAddr,
    /// Which routes, in the order written.
    pub routes: Vec<RouteId>,
    /// Who announces whose connection it passes on, and must (PROXY protocol).
    pub announced_by: Vec<Block>,
    /// Whose word on where a request came from is believed (`X-Forwarded-*`, `Forwarded`).
    pub trusted: Vec<Block>,
}

impl Listener {
    /// One that believes nobody.
    #[must_use]
    pub const fn new(address: SocketAddr, routes: Vec<RouteId>) -> Self {
        Self { address, routes, announced_by: Vec::new(), trusted: Vec::new() }
    }
}

/// How whose connection it is is announced to an upstream (PROXY protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// Version 1, a line of text.
    Line,
    /// Version 2, binary.
    Frame,
}

/// Which requests a route takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Host without port, lower case; any if absent.
    pub host: Option<String>,
    /// Path, without the query.
    pub path: PathMatch,
    /// Methods; any if empty.
    pub methods: Vec<String>,
}

/// How a path is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PathMatch {
    /// Every path.
    #[default]
    Any,
    /// This path and no other.
    Exact(String),
    /// This path and everything below it: `/a` takes `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

impl Match {
    /// True if a request belongs here. `host` is lower case and without port.
    #[must_use]
    pub fn takes(&self, host: &str, path: &str, method: &str) -> bool {
        self.host.as_deref().is_none_or(|wanted| wanted == host)
            && self.path.takes(path)
            && (self.methods.is_empty() || self.methods.iter().any(|wanted| wanted == method))
    }
}

impl PathMatch {
    fn takes(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(wanted) => path == wanted,
            Self::Prefix(prefix) => match path.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'),
                None => false,
            },
        }
    }
}

/// What a route carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Requests and their answers.
    #[default]
    Http,
    /// Connections: bytes both ways, as they come.
    Tcp,
}

/// One route: what it takes, where it goes, how it is guarded.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its name in metrics, journal and ledger: `[A-Za-z0-9_-]+`.
    pub name: String,
    /// What it carries.
    pub protocol: Protocol,
    /// Which requests; of connections all.
    pub matcher: Match,
    /// What a connection may be upgraded to when a request asks for it, such as `websocket`; lower case.
    pub upgrades: Vec<String>,
    /// Where to.
    pub upstream: UpstreamId,
    /// The guards.
    pub guards: Guards,
    /// What to do when the guards gave up, tried in order.
    pub fallbacks: Vec<Fallback>,
    /// Header whose value keys the order of spooled records; without it each record is its own key.
    pub order_by: Option<String>,
    /// How the forwarder delivers what was spooled.
    pub delivery: Delivery,
    /// Where its calls go among the upstream's endpoints.
    pub placement: Placement,
}

/// Where a route's calls go among the endpoints of its upstream, and who gets copies of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// Shares of versions, if there are any.
    pub versions: Option<Split>,
    /// What stays with one endpoint as long as that is well.
    pub sticky: Option<Unit>,
    /// Who gets copies.
    pub mirror: Option<Mirror>,
}

/// Copies of requests for an upstream that is being tried out; what it answers is thrown away.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Which upstream.
    pub to: UpstreamId,
    /// The share of requests that are copied.
    pub share: Ratio,
    /// A copy ends after this long; a node that stops waits for it.
    pub timeout: Duration,
    /// True to copy writes of a route that spools, too.
    pub writes: bool,
}

impl Route {
    /// True if a write that cannot be delivered now is made durable.
    #[must_use]
    pub fn spools(&self) -> bool {
        self.fallbacks.iter().any(|fallback| matches!(fallback, Fallback::Spool))
    }

    /// True if its requests may be sent twice: every method it takes is idempotent, or they get a key because it
    /// spools.
    #[must_use]
    pub fn may_repeat(&self) -> bool {
        self.spools() || self.matcher.methods.iter().all(|method| is_idempotent(method))
    }

    /// True if bytes are carried as they come: those of connections, or those that follow an upgrade.
    #[must_use]
    pub fn carries_connections(&self) -> bool {
        self.protocol == Protocol::Tcp || !self.upgrades.is_empty()
    }

    /// For how long a last good answer may stand in, if at all.
    #[must_use]
    pub fn stale_for(&self) -> Option<Duration> {
        self.fallbacks.iter().find_map(|fallback| match fallback {
            Fallback::Stale { for_at_most } => Some(*for_at_most),
            _ => None,
        })
    }
}

/// Every guard of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct Guards {
    /// Total time for a request, all tries and waits included.
    pub timeout: Duration,
    /// Time for one try; never beyond what is left of `timeout`.
    pub try_timeout: Duration,
    /// A connection without a byte in either direction for this long is cut; `None` to let it be silent for ever.
    pub idle_timeout: Option<Duration>,
    /// Tries and the waits between them.
    pub retry: RetryConfig,
    /// How many retries the route's traffic affords.
    pub budget: BudgetConfig,
    /// The circuit breaker; `None` when switched off.
    pub breaker: Option<BreakerConfig>,
    /// Calls at the same time.
    pub bulkhead: BulkheadConfig,
    /// Spares an upstream that takes on only a part of what it is sent.
    pub throttle: Option<ThrottleConfig>,
    /// A rate that is kept.
    pub rate: Option<RateConfig>,
    /// Finds the upstream's own rate limit and keeps it.
    pub learned_limit: Option<LearnedConfig>,
    /// Finds how many calls at once the upstream serves without a queue.
    pub concurrency: Option<ConcurrencyConfig>,
    /// Second copies of slow calls.
    pub hedge: Option<HedgeConfig>,
    /// True to refuse a request at once whose caller waits for less time than such calls usually take.
    pub look_ahead: bool,
    /// Request bodies up to this many bytes are kept whole so that they may be sent again or spooled.
    pub replay_bytes_max: u64,
    /// Answers of a known length up to this many bytes are read whole before their first byte goes on, so that a cut
    /// one is a failed try and not a broken answer.
    pub answer_bytes_max: u64,
}

impl Default for Guards {
    /// What a route has that says nothing: thirty seconds, three tries within a fifth of the traffic, a breaker.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            try_timeout: Duration::from_secs(30),
            idle_timeout: None,
            retry: RetryConfig::default(),
            budget: BudgetConfig::default(),
            breaker: Some(BreakerConfig::default()),
            bulkhead: BulkheadConfig::default(),
            throttle: None,
            rate: None,
            learned_limit: None,
            concurrency: None,
            hedge: None,
            look_ahead: false,
            replay_bytes_max: 64 << 10,
            answer_bytes_max: 64 << 10,
        }
    }
}

impl Guards {
    /// # Errors
    /// [`Invalid`] with the first number that makes no guard, of those that their machines do not check themselves.
    pub fn check(&self) -> Result<(), Invalid> {
        self.retry.check()?;
        self.budget.check()?;
        self.bulkhead.check()?;
        self.breaker.as_ref().map_or(Ok(()), BreakerConfig::check)
    }
}

/// What stands in when an upstream cannot answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Make the write durable, answer 202, deliver later.
    Spool,
    /// The last good answer to the same request.
    Stale {
        /// Not older than this.
        for_at_most: Duration,
    },
    /// A fixed answer.
    Static {
        /// Its status.
        status: u16,
        /// Its media type.
        content_type: String,
        /// Its body.
        body: String,
    },
    /// Another upstream, tried once.
    Upstream(UpstreamId),
}

impl Fallback {
    /// Its word in `Seawall-Degraded`, metrics and journal.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Spool => "spool",
            Self::Stale { .. } => "stale",
            Self::Static { .. } => "static",
            Self::Upstream(_) => "upstream",
        }
    }
}

/// How the forwarder empties the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Answers of failure after which a record is parked as a dead letter. Tries without any answer do not count: a
    /// dead upstream must not turn a backlog into dead letters.
    pub attempts_max: u32,
    /// Records of different keys on their way at the same time.
    pub parallel: u32,
    /// Which of an upstream's records go first.
    pub priority: Priority,
    /// What waits longer than this is given up.
    pub expire: Option<Duration>,
    /// Bytes of the spool that the route's records may take.
    pub bytes_max: Option<u64>,
    /// How safe a write is when its `202` is given.
    pub durability: Durability,
    /// How long a `202` waits for the replica.
    pub replicated_within: Duration,
}

/// How safe a write is when the answer says that it was accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Synced on the node's own disk.
    #[default]
    Local,
    /// Kept by a majority of the zones, too; if that cannot be had, the answer is no.
    Replicated,
    /// As [`Self::Replicated`]; if that cannot be had, the answer says that it is local.
    ReplicatedOrLocal,
}

impl Durability {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Local, Self::Replicated, Self::ReplicatedOrLocal];

    /// As configurations write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Replicated => "replicated",
            Self::ReplicatedOrLocal => "replicated_or_local",
        }
    }
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            attempts_max: 100,
            parallel: 16,
            priority: Priority::Normal,
            expire: None,
            bytes_max: None,
            durability: Durability::Local,
            replicated_within: Duration::from_secs(2),
        }
    }
}

/// A dependency.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Where it can be reached.
    pub endpoints: Vec<Endpoint>,
    /// Active health checks, if any.
    pub health: Option<HealthConfig>,
    /// Takes endpoints out that do worse than their peers, if set.
    pub outlier: Option<OutlierConfig>,
    /// How its endpoints share the calls.
    pub balance: BalanceConfig,
    /// Connections at most per endpoint.
    pub connections_max: u32,
    /// A pooled connection is dropped after this long without use; keep it below the upstream's own.
    pub idle_timeout: Duration,
    /// A connection attempt may take this long, TLS included.
    pub connect_timeout: Duration,
    /// How it is told whose connection it gets; not at all if absent.
    pub announce: Option<Announce>,
    /// True if it is spoken to in HTTP/2.
    pub http2: bool,
    /// The `Host` it is asked for; the client's if absent.
    pub host: Option<String>,
    /// Who is asked for the addresses of its names.
    pub resolver: Resolver,
}

/// Who is asked for the addresses of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolver {
    /// Our own, which knows how long an answer is good for, where the system's files say nothing that it does not know.
    #[default]
    Own,
    /// The system's.
    System,
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`; the host may be a name.
    pub address: String,
    /// Where it runs, if told.
    pub zone: Option<String>,
    /// What runs there, if told.
    pub version: Option<String>,
    /// Its share of the calls beside its peers'; zero for none.
    pub weight: u32,
    /// Lower ones are asked first.
    pub priority: u32,
}

impl Endpoint {
    /// One of which nothing but the address was told.
    #[must_use]
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: address.into(), zone: None, version: None, weight: 1, priority: 0 }
    }
}

/// Bounds of the node. Each has a name in `seawall_limit{limit="..."}` and a counter of how often it was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections from one address at the same time (`connections_per_source`); any number if absent.
    pub connections_per_source: Option<u32>,
    /// Client connections at the same time (`connections`).
    pub connections_max: u32,
    /// Bytes of a request's head (`header_bytes`).
    pub header_bytes_max: u32,
    /// Header lines of a request (`headers`).
    pub headers_max: u32,
    /// Bytes of a request's body (`body_bytes`).
    pub body_bytes_max: u64,
    /// Requests of one HTTP/2 connection at the same time (`streams`); more wait with the client.
    pub streams_max: u32,
    /// Requests in work at the same time (`pending`).
    pub pending_max: u32,
    /// A request's head must be complete this long after its first byte (`header_timeout`).
    pub header_timeout: Duration,
    /// A connection without a request is closed after this long.
    pub idle_timeout: Duration,
    /// A body without a new byte for this long ends the request (`body_idle_timeout`).
    pub body_idle_timeout: Duration,
    /// How long requests in work may take to end after SIGTERM.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_source: None,
            connections_max: 10_000,
            header_bytes_max: 32 << 10,
            headers_max: 100,
            body_bytes_max: 16 << 20,
            streams_max: 100,
            pending_max: 4_096,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_idle_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let route = Match { path: PathMatch::Prefix("/a".into()), ..Match::default() };
        assert!(route.takes("h", "/a", "GET") && route.takes("h", "/a/b", "GET"));
        assert!(!route.takes("h", "/ab", "GET") && !route.takes("h", "/b", "GET"));
        assert!(PathMatch::Prefix("/".into()).takes("/anything"));
    }

    #[test]
    fn host_path_and_method_must_all_fit() {
        let route = Match {
            host: Some("api.example".into()),
            path: PathMatch::Exact("/events".into()),
            methods: vec!["POST".into(), "PUT".into()],
        };
        assert!(route.takes("api.example", "/events", "PUT"));
        assert!(!route.takes("other.example", "/events", "PUT"));
        assert!(!route.takes("api.example", "/events/1", "PUT"));
        assert!(!route.takes("api.example", "/events", "GET"));
        assert!(Match::default().takes("any", "/any", "ANY"));
    }

    #[test]
    fn a_listener_of_connections_has_a_route_of_its_own() {
        let route = |protocol| Route {
            name: "r".into(),
            protocol,
            matcher: Match::default(),
            upgrades: Vec::new(),
            upstream: UpstreamId(0),
            guards: Guards::default(),
            fallbacks: Vec::new(),
            order_by: None,
            delivery: Delivery::default(),
            placement: Placement::default(),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = |route| Listener::new(address, vec![RouteId(route)]);
        let policy = Policy {
            node: "n".into(),
            zone: "z".into(),
            zones: Vec::new(),
            listeners: vec![listener(0), listener(1), Listener::new(address, Vec::new())],
            routes: vec![route(Protocol::Http), route(Protocol::Tcp)],
            upstreams: Vec::new(),
            limits: Limits::default(),
            digest: String::new(),
        };
        let found = [0, 1, 2, 3].map(|listener| policy.tcp_route(listener));
        assert_eq!(found, [None, Some(RouteId(1)), None, None]);
    }

    #[test]
    fn fallbacks_are_known_by_their_word() {
        let stale = Fallback::Stale { for_at_most: Duration::from_secs(1) };
        let fixed = Fallback::Static { status: 200, content_type: String::new(), body: String::new() };
        let names = [Fallback::Spool.name(), stale.name(), fixed.name(), Fallback::Upstream(UpstreamId(0)).name()];
        assert_eq!(names, ["spool", "stale", "static", "upstream"]);
    }
}
