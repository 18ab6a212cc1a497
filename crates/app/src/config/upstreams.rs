//! Upstreams: endpoints, health checks, connections.

use std::cell::Cell;
use std::time::Duration;

use seawall_core::balance::BalanceConfig;
use seawall_core::guard::health::{Ask, HealthConfig};
use seawall_core::guard::outlier::OutlierConfig;
use seawall_core::id::UpstreamId;
use seawall_core::policy::{Announce, Endpoint, Resolver, Upstream};
use seawall_core::units::Ratio;

use super::address::{is_tcp, is_unix, parse_endpoint, parse_host_port, parse_tcp_url, parse_url};
use super::finding::Spot;
use super::node::{Place, read_zone};
use super::parse_name;
use super::policies::read_switch;
use super::reader::{Field, Keys, Reader, hint_of};
use super::tls::{self, UpstreamTls};

/// Connections per endpoint unless told otherwise.
pub(super) const CONNECTIONS_MAX: u32 = 256;
/// Below the five seconds after which common servers drop an idle connection.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Within a data centre a connection takes milliseconds; two seconds leave room for one lost packet.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// Every upstream, and which of them anybody asks for.
pub(super) struct Upstreams<'n> {
    list: Vec<Named<'n>>,
    /// False if the section is missing: then every reference would be told, which helps nobody.
    written: bool,
}

struct Named<'n> {
    reader: &'n Reader<'n>,
    spot: Spot,
    upstream: Upstream,
    tls: Option<UpstreamTls>,
    used: Cell<bool>,
    /// Used by routes of requests.
    called: Cell<bool>,
    /// Used by listeners of connections.
    connected: Cell<bool>,
    written: WhatIsWritten,
}

/// What is understood only once it is known who uses an upstream.
#[derive(Clone, Copy, Default)]
struct WhatIsWritten {
    /// `url: tcp://...`
    is_tcp: bool,
    /// Its health check says what it asks for.
    health_asks: bool,
    idle_timeout: Option<Spot>,
    /// Keys that mean something to requests alone.
    of_requests: [Option<Spot>; 2],
    proxy_protocol: Option<Spot>,
}

impl<'n> Upstreams<'n> {
    pub(super) fn read(field: Option<Field<'n>>, place: &Place) -> Self {
        let Some(field) = field else { return Self { list: Vec::new(), written: false } };
        let entries = field.entries();
        let list = entries.into_iter().map(|entry| {
            let (upstream, tls, written) = read_upstream(entry, place);
            let (used, called, connected) = (Cell::new(false), Cell::new(false), Cell::new(false));
            Named { reader: entry.reader, spot: entry.key_spot, upstream, tls, used, called, connected, written }
        });
        Self { list: list.collect(), written: true }
    }

    /// The upstream a field names, which is thereby in use for requests.
    pub(super) fn refer(&self, field: Field<'_>) -> Option<UpstreamId> {
        let id = self.find(field)?;
        let named = &self.list[id.index()];
        named.called.set(true);
        if named.written.is_tcp {
            let hint = "use it in a listener with `protocol: tcp`, or write `url: http://...` there";
            field
                .error_with(format!("`{}` is a `tcp://` upstream, which takes no requests", named.upstream.name), hint);
        }
        Some(id)
    }

    /// The upstream a field names, which is thereby in use for connections.
    pub(super) fn refer_connections(&self, field: Field<'_>) -> Option<UpstreamId> {
        let id = self.find(field)?;
        self.list[id.index()].connected.set(true);
        Some(id)
    }

    /// True if requests go there in frames.
    pub(super) fn speaks_http2(&self, id: UpstreamId) -> bool {
        self.list[id.index()].upstream.http2
    }

    fn find(&self, field: Field<'_>) -> Option<UpstreamId> {
        let name = field.text()?;
        let found = self.list.iter().position(|named| named.upstream.name == name);
        match found {
            Some(index) => self.list[index].used.set(true),
            None if self.written => {
                let hint = hint_of(name, self.list.iter().map(|named| named.upstream.name.as_str()));
                field.error_with(format!("upstream `{name}` is not defined"), hint);
            }
            None => {}
        }
        found.map(|index| UpstreamId(u32::try_from(index).unwrap_or(u32::MAX)))
    }

    pub(super) fn name(&self, id: UpstreamId) -> &str {
        &self.list[id.index()].upstream.name
    }

    /// What runs at its endpoints, where that is told.
    pub(super) fn versions(&self, id: UpstreamId) -> Vec<&str> {
        let versions = self.list[id.index()].upstream.endpoints.iter().filter_map(|it| it.version.as_deref());
        versions.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    pub(super) fn connect_timeout(&self, id: UpstreamId) -> Duration {
        self.list[id.index()].upstream.connect_timeout
    }

    pub(super) fn tell_unused(&self) {
        for named in self.list.iter().filter(|named| !named.used.get()) {
            let message = format!("no route goes to the upstream `{}`", named.upstream.name);
            named.reader.warning(named.spot, message, "name it in a route, or remove it");
        }
        for named in self.list.iter().filter(|named| named.called.get()) {
            let Some(spot) = named.written.proxy_protocol else { continue };
            let message =
                "`proxy_protocol`: connections that carry requests are shared by clients, and announce nobody";
            named.reader.error_with(spot, message, "remove it; requests carry `X-Forwarded-For`");
        }
        // Frames are agreed on in the handshake, and connections of bytes may have agreed on nothing.
        for named in self.list.iter().filter(|named| named.called.get() && named.connected.get()) {
            let Some(spot) = named.written.of_requests[1].filter(|_| named.upstream.http2 && named.tls.is_some())
            else {
                continue;
            };
            let message = "`http2` over TLS, and connections go here too: one handshake cannot offer both";
            named.reader.error_with(spot, message, "define an upstream for each");
        }
        for named in self.list.iter().filter(|named| named.takes_only_connections()) {
            for (spot, key) in named.written.of_requests.iter().zip(["host", "http2"]) {
                let Some(spot) = spot else { continue };
                let message = format!("`{key}` is for requests, and none come here");
                named.reader.error_with(*spot, message, "remove it");
            }
            let Some(spot) = named.written.idle_timeout else { continue };
            let message =
                "`idle_timeout` is for connections that are kept for the next request, and no request comes here";
            named.reader.error_with(spot, message, "remove it; `idle_timeout` of a policy cuts silent connections");
        }
    }

    pub(super) fn resolved(self) -> (Vec<Upstream>, Vec<Option<UpstreamTls>>) {
        let resolve = |mut named: Named<'_>| {
            let asks_nothing = named.takes_only_connections() && !named.written.health_asks;
            if let Some(health) = named.upstream.health.as_mut().filter(|_| asks_nothing) {
                health.ask = Ask::Connection;
            }
            (named.upstream, named.tls)
        };
        self.list.into_iter().map(resolve).unzip()
    }
}

impl Named<'_> {
    fn takes_only_connections(&self) -> bool {
        self.used.get() && !self.called.get()
    }
}

const UPSTREAM: Keys = Keys {
    of: "this upstream",
    known: &[
        "url",
        "endpoints",
        "health",
        "outlier",
        "balance",
        "connections",
        "idle_timeout",
        "connect_timeout",
        "tls",
        "host",
        "http2",
        "proxy_protocol",
        "resolver",
    ],
    later: &[],
};

fn read_upstream(entry: Field<'_>, place: &Place) -> (Upstream, Option<UpstreamTls>, WhatIsWritten) {
    if let Err(problem) = parse_name(entry.key) {
        entry.reader.error(entry.key_spot, problem);
    }
    let section = entry.section(UPSTREAM);
    let url = section.field("url").filter(|url| !url.peek().is_some_and(is_tcp));
    let url = url.and_then(|url| Some((url, url.parsed(parse_url)?)));
    let endpoints = match (section.field("url"), section.field("endpoints")) {
        (Some(url), None) if url.peek().is_some_and(is_tcp) => {
            url.parsed(parse_tcp_url).map(Endpoint::at).into_iter().collect()
        }
        (Some(_), None) => url.iter().map(|(_, there)| Endpoint::at(&there.address)).collect(),
        (None, Some(list)) => read_endpoints(list, place),
        (Some(url), Some(_)) => {
            url.error("an upstream has a `url` or `endpoints`, not both");
            Vec::new()
        }
        (None, None) => {
            section.required("url", "\"http://host:port\"");
            Vec::new()
        }
    };
    if endpoints.len() <= 1 {
        let alone = [
            ("outlier", "with one endpoint there is none to compare it with"),
            ("balance", "with one endpoint there is nothing to share"),
        ];
        for (key, message) in alone {
            if let Some(field) = section.field(key).filter(|field| !field.is_off()) {
                field.reader.audit(field.spot(), message, "add endpoints, or remove this");
            }
        }
    }
    let https = url.as_ref().filter(|(_, there)| there.sealed);
    let announce = section.field("proxy_protocol").filter(|field| !field.is_off()).and_then(|field| {
        field.parsed(|text| match text {
            "v1" => Ok(Announce::Line),
            "v2" => Ok(Announce::Frame),
            _ => Err(format!("`{text}` is no version of it; known are v1, v2 and off")),
        })
    });
    let http2 = section.field("http2").is_some_and(read_switch);
    let tls = tls::upstream(section.field("tls"), https.map(|(url, _)| *url));
    let host = match section.field("host") {
        Some(field) if field.peek() == Some("client") => None,
        Some(field) => field.parsed(parse_authority),
        // A server that is known by its certificate is asked for by the name it has there.
        None => https.map(|(_, there)| there.host.clone()),
    };
    if let (Some(field), None) = (section.field("tls").filter(|_| tls.is_some()), &host)
        && endpoints.iter().any(|endpoint| is_unix(&endpoint.address))
    {
        let message = "a socket in the file system has no name that its certificate could show";
        field.error_with(message, "say whose it is: `host: queue.internal`");
    }
    let written = WhatIsWritten {
        is_tcp: section.field("url").and_then(|url| url.peek()).is_some_and(is_tcp),
        health_asks: section
            .field("health")
            .is_some_and(|it| it.known_entries().any(|it| matches!(it.key, "path" | "grpc"))),
        idle_timeout: section.field("idle_timeout").map(|field| field.key_spot),
        of_requests: ["host", "http2"].map(|key| section.field(key).map(|field| field.key_spot)),
        proxy_protocol: section.field("proxy_protocol").map(|field| field.key_spot),
    };
    let upstream = Upstream {
        name: entry.key.into(),
        endpoints,
        health: section.field("health").and_then(|field| read_health(field, http2)),
        outlier: section.field("outlier").and_then(read_outlier),
        balance: section.field("balance").map(read_balance).unwrap_or_default(),
        connections_max: section.count("connections", CONNECTIONS_MAX, 1..=65_535),
        idle_timeout: section.duration("idle_timeout", IDLE_TIMEOUT, MILLISECOND..=HOUR),
        connect_timeout: section.duration("connect_timeout", CONNECT_TIMEOUT, MILLISECOND..=HOUR),
        announce,
        http2,
        host,
        resolver: section.field("resolver").and_then(|field| field.parsed(parse_resolver)).unwrap_or_default(),
    };
    (upstream, tls, written)
}

fn parse_resolver(text: &str) -> Result<Resolver, String> {
    match text {
        "own" => Ok(Resolver::Own),
        "system" => Ok(Resolver::System),
        _ => Err(format!("`{text}` is no resolver; known are own and system")),
    }
}

/// A host, with or without a port, as it may stand in `Host`.
fn parse_authority(text: &str) -> Result<String, String> {
    let has_port = text.rsplit_once(':').is_some_and(|(_, after)| !after.ends_with(']'));
    if has_port { parse_host_port(text) } else { super::listeners::parse_host(text) }
}

fn read_endpoints(list: Field<'_>, place: &Place) -> Vec<Endpoint> {
    let items = list.list();
    if items.is_empty() && matches!(list.node.data, super::tree::Data::List(_)) {
        list.error_with("an upstream has at least one endpoint", "add `{ address: \"host:port\" }`");
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for item in items {
        let Some((field, endpoint)) = read_endpoint(item, place) else { continue };
        if endpoints.iter().any(|known| known.address == endpoint.address) {
            field.error_with(format!("`{}` is given twice", endpoint.address), "remove one");
        } else {
            endpoints.push(endpoint);
        }
    }
    if !endpoints.is_empty() && endpoints.iter().all(|endpoint| endpoint.weight == 0) {
        list.error_with("every endpoint has a weight of 0: nobody would be asked", "give one of them a weight");
    }
    audit_zones(list, &endpoints, place);
    endpoints
}

/// What goes with a zone.
fn audit_zones(list: Field<'_>, endpoints: &[Endpoint], place: &Place) {
    let Some(first) = endpoints.first() else { return };
    let told = |message: String, fix: &str| list.reader.audit(list.key_spot, message, fix);
    let named = || endpoints.iter().filter_map(|endpoint| endpoint.zone.as_deref());
    if named().next().is_some() && endpoints.iter().all(|it| it.zone.as_deref().is_some_and(|zone| zone != place.zone))
    {
        let message = format!("no endpoint is in this node's zone `{}`: every call leaves it", place.zone);
        told(message, "add one there, or see whether `zone` is right");
    }
    if place.zones.len() < 2 {
        return;
    }
    match (endpoints, first.zone.as_deref()) {
        ([_], None) => told("one endpoint: when it goes, the upstream is gone".into(), "add one in another zone"),
        (_, Some(zone)) if endpoints.iter().all(|endpoint| endpoint.zone == first.zone) => {
            let message = format!("all that is here is in `{zone}`: when this zone goes, the upstream is gone");
            told(message, "add an endpoint in another zone");
        }
        _ => {}
    }
}

const ENDPOINT: Keys =
    Keys { of: "this endpoint", known: &["address", "zone", "version", "weight", "priority"], later: &[] };

/// `{ address: "host:port", zone: a }`, or just `"host:port"`.
fn read_endpoint<'n>(item: Field<'n>, place: &Place) -> Option<(Field<'n>, Endpoint)> {
    if item.peek().is_some() {
        return item.parsed(parse_endpoint).map(|address| (item, Endpoint::at(address)));
    }
    let section = item.section(ENDPOINT);
    let zone = section.field("zone").and_then(|field| read_zone(field, place));
    let version = section.field("version").and_then(|field| field.parsed(parse_name));
    let weight = section.count("weight", 1, 0..=10_000);
    let priority = section.count("priority", 0, 0..=100);
    let field = section.required("address", "\"host:port\"")?;
    field.parsed(parse_endpoint).map(|address| (field, Endpoint { address, zone, version, weight, priority }))
}

const OUTLIER: Keys = Keys {
    of: "`outlier`",
    known: &[
        "consecutive_failures",
        "interval",
        "requests_min",
        "latency_factor",
        "eject_for",
        "eject_for_max",
        "ejected_max",
    ],
    later: &[],
};

/// `on`, or numbers.
fn read_outlier(field: Field<'_>) -> Option<OutlierConfig> {
    let default = OutlierConfig::default();
    if field.is_off() {
        return None;
    }
    if field.peek() == Some("on") {
        return Some(default);
    }
    let section = field.section(OUTLIER);
    let ejection_base = section.duration("eject_for", default.ejection_base, MILLISECOND..=HOUR);
    let factor = section.field("latency_factor").filter(|field| !field.is_off()).map(|field| {
        field.parsed(|text| match text.strip_prefix('x').map(str::parse::<f64>) {
            Some(Ok(factor @ 1.1..=1_000.0)) => Ok(factor),
            _ => Err(format!("`{text}` is no factor, such as `x3` (x1.1 to x1000)")),
        })
    });
    let without_latency = section.field("latency_factor").is_some_and(|field| field.is_off());
    let ejected_max = section
        .field("ejected_max")
        .and_then(|field| field.ratio(Ratio::of(1, 100).unwrap_or(Ratio::ZERO)..=Ratio::ONE));
    Some(OutlierConfig {
        consecutive_failures: section.count("consecutive_failures", default.consecutive_failures, 1..=1_000_000),
        interval: section.duration("interval", default.interval, MILLISECOND..=HOUR),
        requests_min: section.count("requests_min", default.requests_min, 1..=1_000_000),
        latency_factor: if without_latency { None } else { factor.flatten().or(default.latency_factor) },
        ejection_base,
        ejection_max: section.duration(
            "eject_for_max",
            default.ejection_max.max(ejection_base),
            ejection_base..=HOUR * 24,
        ),
        ejected_max: ejected_max.unwrap_or(default.ejected_max),
        ..default
    })
}

const BALANCE: Keys = Keys { of: "`balance`", known: &["spare", "slow_start", "panic", "calls"], later: &[] };

fn read_balance(field: Field<'_>) -> BalanceConfig {
    let (section, default) = (field.section(BALANCE), BalanceConfig::default());
    let share = |key: &str| match section.field(key) {
        Some(field) if field.is_off() => Some(Ratio::ZERO),
        Some(field) => field.ratio(Ratio::ZERO..=Ratio::ONE),
        None => None,
    };
    let slow_start = match section.field("slow_start") {
        Some(field) if field.is_off() => Some(Duration::ZERO),
        Some(field) => field.duration(MILLISECOND..=HOUR),
        None => None,
    };
    BalanceConfig {
        spare: share("spare").unwrap_or(default.spare),
        slow_start: slow_start.unwrap_or(default.slow_start),
        panic_below: share("panic").unwrap_or(default.panic_below),
        calls_max: section.field("calls").and_then(|field| field.count(1..=1_000_000)),
    }
}

/// Names of services are short.
const SERVICE_BYTES_MAX: usize = 256;

const HEALTH: Keys = Keys {
    of: "`health`",
    known: &["path", "grpc", "every", "timeout", "unhealthy_after", "healthy_after"],
    later: &[],
};

fn read_health(field: Field<'_>, http2: bool) -> Option<HealthConfig> {
    if field.is_off() {
        return None;
    }
    let (section, default) = (field.section(HEALTH), HealthConfig::default());
    let path = section.field("path").and_then(|field| field.parsed(super::listeners::parse_path));
    let service = section.field("grpc");
    if let Some(field) = &service {
        if section.field("path").is_some() {
            field.error_with("a health check asks for a `path` or by `grpc`, not both", "remove one of them");
        }
        if !http2 {
            field.error_with("gRPC is spoken over HTTP/2, and this upstream is spoken to in HTTP/1", "add `http2: on`");
        }
    }
    let service = service.and_then(|field| field.parsed(parse_service));
    Some(HealthConfig {
        ask: service.map(Ask::Grpc).or(path.map(Ask::Path)).unwrap_or(default.ask),
        every: section.duration("every", default.every, Duration::from_millis(10)..=HOUR),
        timeout: section.duration("timeout", default.timeout, MILLISECOND..=HOUR),
        unhealthy_after: section.count("unhealthy_after", default.unhealthy_after, 1..=1_000),
        healthy_after: section.count("healthy_after", default.healthy_after, 1..=1_000),
    })
}

/// The name of a service of gRPC; the empty one stands for the server as a whole.
fn parse_service(text: &str) -> Result<String, String> {
    match text {
        _ if text.len() > SERVICE_BYTES_MAX => {
            Err(format!("a name of {} bytes; at most {SERVICE_BYTES_MAX} are allowed", text.len()))
        }
        _ if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.into()),
        _ => Err(format!("`{text}` is not the name of a service, such as `shop.Stock`")),
    }
}
