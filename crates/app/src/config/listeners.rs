//! Listeners and routes, and the mistakes that only show when several are looked at together.

use std::net::SocketAddr;

use seawall_core::block::{Block, BlockError};
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::outcome::is_idempotent;
use seawall_core::policy::{Fallback, Listener, Match, PathMatch, Placement, Protocol, Route};

use super::address::{clash, parse_listen};
use super::finding::Spot;
use super::parse_name;
use super::placement;
use super::policies::{Policies, Rules, is_token};
use super::reader::{Field, Keys, Reader, Section};
use super::tls::{self, ListenerTls};
use super::tree::Data;
use super::upstreams::Upstreams;

/// Paths that Seawall answers itself on every listener.
const OWN_PREFIX: &str = "/.seawall";

struct Written<'n> {
    reader: &'n Reader<'n>,
    spot: Spot,
    /// As written; by default it takes its upstream's.
    name: Option<String>,
    upstream_name: String,
    /// False if what it matches could not be read: then nothing can be said about who takes its requests.
    is_sound: bool,
    route: Route,
}

pub(super) fn read(
    field: Option<Field<'_>>,
    upstreams: &Upstreams<'_>,
    policies: &Policies<'_>,
    taken: &[(&str, SocketAddr)],
) -> (Vec<Listener>, Vec<Route>, Vec<Option<ListenerTls>>) {
    let Some(field) = field else { return (Vec::new(), Vec::new(), Vec::new()) };
    let items = field.list();
    if items.is_empty() && matches!(field.node.data, Data::List(_)) {
        field.error("nothing listens anywhere");
    }
    let (mut listeners, mut written): (Vec<Listener>, Vec<Written<'_>>) = (Vec::new(), Vec::new());
    let mut sealed = Vec::new();
    for item in items {
        let Some(ReadListener { address, routes, front }) = read_listener(item, upstreams, policies) else { continue };
        if let Some((field, address)) = address {
            check_address(field, address, &listeners, taken);
        }
        tell_shadowed(&routes);
        let ids = (written.len()..written.len() + routes.len()).map(|index| RouteId(u32::try_from(index).unwrap_or(0)));
        let address = address.map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |(_, address)| address);
        let Front { tls, announced_by, trusted } = front;
        listeners.push(Listener { announced_by, trusted, ..Listener::new(address, ids.collect()) });
        written.extend(routes);
        sealed.push(tls);
    }
    name_all(&mut written);
    (listeners, written.into_iter().map(|written| written.route).collect(), sealed)
}

const LISTENER: Keys = Keys {
    of: "this listener",
    known: &["address", "protocol", "tls", "proxy_protocol", "trusted_proxies", "routes", "upstream", "policy", "name"],
    later: &[],
};

/// What a listener says.
struct ReadListener<'n> {
    /// With the field to blame for it.
    address: Option<(Field<'n>, SocketAddr)>,
    routes: Vec<Written<'n>>,
    front: Front,
}

/// What comes before the first byte that anybody reads, or forwards.
struct Front {
    tls: Option<ListenerTls>,
    announced_by: Vec<Block>,
    trusted: Vec<Block>,
}

impl Front {
    fn read(section: &Section<'_>, protocol: Protocol) -> Self {
        let blocks = |key: &str| section.field(key).map(read_blocks).unwrap_or_default();
        let tls = section.field("tls").filter(|field| !field.is_off());
        Self {
            tls: tls.and_then(|field| tls::listener(field, protocol)),
            announced_by: blocks("proxy_protocol"),
            trusted: blocks("trusted_proxies"),
        }
    }
}

fn read_blocks(field: Field<'_>) -> Vec<Block> {
    let items = field.list_or_one();
    if items.is_empty() {
        field.error_with("an empty list names nobody", "remove it, or name addresses such as `10.0.0.0/8`");
    }
    items
        .into_iter()
        .filter_map(|item| item.parsed(|text| text.parse().map_err(|error: BlockError| error.to_string())))
        .collect()
}

fn read_listener<'n>(item: Field<'n>, upstreams: &Upstreams<'_>, policies: &Policies<'_>) -> Option<ReadListener<'n>> {
    let protocol = item.protocol();
    match protocol.map(|field| (field, field.peek())) {
        None | Some((_, Some("http"))) => {}
        Some((_, Some("tcp"))) => return Some(read_tcp_listener(item, upstreams, policies)),
        Some((field, _)) => {
            field.parsed(|text| Err::<(), _>(format!("`{text}` is no protocol; known are http and tcp")));
            return None;
        }
    }
    let section = item.section(LISTENER);
    for key in ["upstream", "policy", "name"] {
        if let Some(field) = section.field(key) {
            let message = format!("`{key}` stands in a route, or in a listener with `protocol: tcp`");
            field.reader.error_with(field.key_spot, message, "write `routes: [{ upstream: NAME }]`");
        }
    }
    let address = section.required("address", "127.0.0.1:8080");
    let address = address.and_then(|field| Some((field, field.parsed(parse_listen)?)));
    let front = Front::read(&section, Protocol::Http);
    let Some(routes) = section.required("routes", "[{ upstream: NAME }]") else {
        return Some(ReadListener { address, routes: Vec::new(), front });
    };
    let items = routes.list();
    if items.is_empty() && matches!(routes.node.data, Data::List(_)) {
        routes.error("a listener without routes refuses everything");
    }
    let routes = items.into_iter().map(|route| read_route(route, upstreams, policies)).collect();
    Some(ReadListener { address, routes, front })
}

/// A listener of connections is a route, too: without a match, as it takes all of them.
fn read_tcp_listener<'n>(item: Field<'n>, upstreams: &Upstreams<'_>, policies: &Policies<'_>) -> ReadListener<'n> {
    let section = item.section(LISTENER);
    if let Some(field) = section.field("routes") {
        let hint = "write `upstream: NAME`, or `protocol: http`";
        field.reader.error_with(field.key_spot, "connections have no requests that routes could tell apart", hint);
    }
    let address = section.required("address", "127.0.0.1:6379");
    let address = address.and_then(|field| Some((field, field.parsed(parse_listen)?)));
    let front = Front::read(&section, Protocol::Tcp);
    if let Some(field) = section.field("trusted_proxies") {
        let hint = "remove it; whose connection it is `proxy_protocol` can say";
        field.reader.error_with(field.key_spot, "connections have no headers to be believed", hint);
    }
    let name = section.field("name").and_then(|field| field.parsed(parse_name));
    let upstream = section.required("upstream", "NAME").and_then(|field| upstreams.refer_connections(field));
    let connect_timeout = upstream.map(|id| upstreams.connect_timeout(id));
    let rules = section
        .field("policy")
        .and_then(|field| policies.refer_connections(field, item.node.spot.line, connect_timeout));
    let Rules { guards, fallbacks, order_by, delivery, .. } = rules.cloned().unwrap_or_default();
    let written = Written {
        reader: item.reader,
        spot: section.field("name").map_or(section.spot(), |field| field.spot()),
        name,
        upstream_name: upstream.map_or("route", |id| upstreams.name(id)).to_string(),
        is_sound: false,
        route: Route {
            name: String::new(),
            protocol: Protocol::Tcp,
            matcher: Match::default(),
            upgrades: Vec::new(),
            upstream: upstream.unwrap_or(UpstreamId(0)),
            guards,
            fallbacks,
            order_by,
            delivery,
            placement: Placement::default(),
        },
    };
    ReadListener { address, routes: vec![written], front }
}

impl<'n> Field<'n> {
    /// What a listener speaks, looked at before its other keys, which depend on it.
    fn protocol(self) -> Option<Field<'n>> {
        self.known_entries().find(|field| field.key == "protocol")
    }
}

fn check_address(field: Field<'_>, address: SocketAddr, others: &[Listener], taken: &[(&str, SocketAddr)]) {
    if let Some(other) = others.iter().find(|other| clash(other.address, address)) {
        field.error_with(
            format!("`{address}` is taken by the listener on `{}`", other.address),
            "merge the two, or use another port",
        );
    } else if let Some((by, other)) = taken.iter().find(|(_, other)| clash(*other, address)) {
        field.error_with(format!("`{address}` is taken by `{by}` on `{other}`"), "use another port");
    }
}

const ROUTE: Keys = Keys {
    of: "this route",
    known: &["name", "match", "upstream", "policy", "upgrade", "versions", "versions_by", "sticky", "mirror"],
    later: &[],
};

fn read_route<'n>(item: Field<'n>, upstreams: &Upstreams<'_>, policies: &Policies<'_>) -> Written<'n> {
    let section = item.section(ROUTE);
    let name = section.field("name").and_then(|field| field.parsed(parse_name));
    let before = item.reader.count();
    let matcher = section.field("match").map(read_match).unwrap_or_default();
    let is_sound = item.reader.count() == before;
    let upstream_field = section.required("upstream", "NAME");
    let upstream = upstream_field.and_then(|field| upstreams.refer(field));
    let policy = section.field("policy");
    let rules = policy.and_then(|field| policies.refer(field)).cloned().unwrap_or_default();
    let upgrades = section.field("upgrade").map(read_upgrades).unwrap_or_default();
    if let (Some(field), Some(other)) = (section.field("upgrade"), upgrades.iter().find(|name| *name != "websocket"))
        && upstream.is_some_and(|id| upstreams.speaks_http2(id))
    {
        let message = format!(
            "`{other}`: this upstream is spoken to in HTTP/2 (`http2: on`), where only `websocket` can be asked for"
        );
        field.error_with(message, "name an upstream of HTTP/1, or remove this");
    }
    let placement = placement::read(&section, upstream, upstreams);
    if let Some(field) = policy.filter(|_| rules.guards.idle_timeout.is_some() && upgrades.is_empty()) {
        let message =
            "its `idle_timeout` is for connections (`protocol: tcp`, `upgrade`), and this route takes requests";
        field.error_with(message, "`limits.idle_timeout` is for clients that ask nothing; use a policy without it");
    }
    if let Some(field) = policy {
        check_fallbacks(field, &rules, &matcher, upstream, upstreams);
    }
    let upstream_name = upstream.map_or("route", |id| upstreams.name(id)).to_string();
    if let Some(field) = policy.filter(|_| rules.wants_repeats) {
        warn_of_unsafe_repeats(field, &matcher, &rules);
    }
    let Rules { guards, fallbacks, order_by, delivery, .. } = rules;
    let upstream = upstream.unwrap_or(UpstreamId(0));
    let protocol = Protocol::Http;
    let name_later = String::new();
    let route = Route {
        name: name_later,
        protocol,
        matcher,
        upgrades,
        upstream,
        guards,
        fallbacks,
        order_by,
        delivery,
        placement,
    };
    if let Some(policy) = policy.and_then(|field| field.text()) {
        item.reader.follows(policy, route.may_repeat(), name.as_deref().unwrap_or_default());
    }
    let spot = section.field("name").map_or(section.spot(), |field| field.spot());
    Written { reader: item.reader, spot, name, upstream_name, is_sound, route }
}

/// Retries and second copies on a route whose requests may not be repeated.
fn warn_of_unsafe_repeats(policy: Field<'_>, matcher: &Match, rules: &Rules) {
    let harms = |method: &String| !is_idempotent(method);
    if !matcher.methods.is_empty() && matcher.methods.iter().all(harms) && !rules.fallbacks.contains(&Fallback::Spool) {
        let methods = matcher.methods.join(", ");
        policy.reader.audit(
            policy.spot(),
            format!("{methods} may not be repeated: its retries happen only before anything was sent"),
            "send `Idempotency-Key`, or use a policy with `retry: off`",
        );
    }
}

/// Fallbacks that cannot work on this route.
fn check_fallbacks(
    policy: Field<'_>,
    rules: &Rules,
    matcher: &Match,
    upstream: Option<UpstreamId>,
    upstreams: &Upstreams<'_>,
) {
    let reads = |method: &String| matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE");
    let reads_only = !matcher.methods.is_empty() && matcher.methods.iter().all(reads);
    if reads_only && rules.fallbacks == [Fallback::Spool] {
        policy.error_with(
            format!("its fallback `spool` keeps writes, and this route takes only {}", matcher.methods.join(", ")),
            "reads can fall back to `stale`, `static` or another `upstream`",
        );
    }
    for fallback in &rules.fallbacks {
        if let (Fallback::Upstream(other), Some(own)) = (fallback, upstream)
            && *other == own
        {
            let name = upstreams.name(own);
            policy.error_with(
                format!("its fallback is the upstream `{name}`, where this route goes already"),
                "fall back to another one",
            );
        }
    }
}

const MATCH: Keys = Keys { of: "`match`", known: &["path", "path_prefix", "host", "method"], later: &[] };

fn read_match(field: Field<'_>) -> Match {
    let section = field.section(MATCH);
    let (path, prefix) = (section.field("path"), section.field("path_prefix"));
    if let (Some(_), Some(prefix)) = (path, prefix) {
        prefix.reader.error(prefix.key_spot, "a match has a `path` or a `path_prefix`, not both");
    }
    let exact = path.and_then(|field| field.parsed(parse_route_path)).map(PathMatch::Exact);
    let prefix = prefix.and_then(|field| field.parsed(parse_route_path)).map(PathMatch::Prefix);
    Match {
        host: section.field("host").and_then(|field| field.parsed(parse_host)),
        path: exact.or(prefix).unwrap_or_default(),
        methods: section.field("method").map(read_methods).unwrap_or_default(),
    }
}

fn read_methods(field: Field<'_>) -> Vec<String> {
    let items = field.list_or_one();
    if items.is_empty() {
        field.error_with("an empty list takes no request", "remove it to take every method");
    }
    let mut methods: Vec<String> = Vec::new();
    for item in items {
        let Some(method) = item.parsed(parse_method) else { continue };
        if methods.contains(&method) {
            item.error_with(format!("`{method}` is given twice"), "remove one");
        } else {
            methods.push(method);
        }
    }
    methods
}

/// `websocket`, a list, or `off`.
fn read_upgrades(field: Field<'_>) -> Vec<String> {
    if field.is_off() {
        return Vec::new();
    }
    let (mut upgrades, items): (Vec<String>, _) = (Vec::new(), field.list_or_one());
    if items.is_empty() {
        field.error_with("an empty list allows nothing", "write `off`, or leave it out");
    }
    for item in items {
        let Some(upgrade) = item.parsed(parse_upgrade) else { continue };
        if upgrades.contains(&upgrade) {
            item.error_with(format!("`{upgrade}` is given twice"), "remove one");
        } else {
            upgrades.push(upgrade);
        }
    }
    upgrades
}

/// What the gate would never pass on may not be asked for either.
fn parse_upgrade(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    if name.split('/').count() > 2 || !name.split('/').all(is_token) {
        return Err(format!("`{text}` is not a protocol, such as `websocket`"));
    }
    if ["h2", "http/", "tls/"].iter().any(|other| name.starts_with(other)) {
        return Err(format!("`{text}` is between the two ends of one connection and never passed on"));
    }
    Ok(name)
}

fn parse_method(text: &str) -> Result<String, String> {
    if !is_token(text) {
        return Err(format!("`{text}` is not a method"));
    }
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(format!("methods are written in capitals: `{}`", text.to_ascii_uppercase()));
    }
    if text == "CONNECT" { Err("`CONNECT` is not supported".into()) } else { Ok(text.into()) }
}

pub(super) fn parse_host(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let bracketed = text.starts_with('[') && text.ends_with(']');
    if bracketed || (!text.is_empty() && text.chars().all(allowed)) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("`{text}` is not a host name; it is written without scheme, port and wildcard"))
}

/// A path as it may stand in a request line.
pub(super) fn parse_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("`{text}` does not begin with `/`"));
    }
    if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '?' | '#')) {
        return Err(format!("`{text}`: a path has no `{}`", c.escape_debug()));
    }
    Ok(text.into())
}

fn parse_route_path(text: &str) -> Result<String, String> {
    let path = parse_path(text)?;
    match path.strip_prefix(OWN_PREFIX) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            Err(format!("paths below `{OWN_PREFIX}` are answered by Seawall itself"))
        }
        _ => Ok(path),
    }
}

/// Routes that no request can reach because an earlier one takes everything they would.
fn tell_shadowed(routes: &[Written<'_>]) {
    let sound: Vec<&Written<'_>> = routes.iter().filter(|route| route.is_sound).collect();
    for (index, late) in sound.iter().enumerate() {
        let Some(early) = sound[..index].iter().find(|early| covers(&early.route.matcher, &late.route.matcher)) else {
            continue;
        };
        let same = early.route.matcher == late.route.matcher;
        let how = if same { "matches the same requests" } else { "takes all of its requests" };
        let message = format!("this route is never reached: the one in line {} {how}", early.spot.line);
        late.reader.error_with(late.spot, message, "the first match wins: move it up, or make the other one narrower");
    }
}

fn covers(wide: &Match, narrow: &Match) -> bool {
    let host = wide.host.is_none() || wide.host == narrow.host;
    let method = wide.methods.is_empty()
        || (!narrow.methods.is_empty() && narrow.methods.iter().all(|method| wide.methods.contains(method)));
    host && method && covers_path(wide, &narrow.path)
}

fn covers_path(wide: &Match, narrow: &PathMatch) -> bool {
    match (&wide.path, narrow) {
        (PathMatch::Any, _) => true,
        (PathMatch::Prefix(prefix), PathMatch::Any) => prefix == "/",
        (PathMatch::Exact(_), PathMatch::Any | PathMatch::Prefix(_)) => false,
        (wide, PathMatch::Exact(path) | PathMatch::Prefix(path)) => {
            let anything = Match { path: wide.clone(), ..Match::default() };
            anything.takes("", path, "")
        }
    }
}

/// Names as written must be unique; the others take their upstream's, with a number if that is taken.
fn name_all(written: &mut [Written<'_>]) {
    let mut taken: Vec<(String, Spot)> = Vec::new();
    for route in written.iter() {
        let Some(name) = &route.name else { continue };
        match taken.iter().find(|(known, _)| known == name) {
            Some((_, first)) => {
                let hint = format!("rename one; the first is in line {}", first.line);
                route.reader.error_with(route.spot, format!("two routes are called `{name}`"), hint);
            }
            None => taken.push((name.clone(), route.spot)),
        }
    }
    for written in written {
        let name = written.name.take().unwrap_or_else(|| free_name(&written.upstream_name, &taken));
        taken.push((name.clone(), written.spot));
        written.route.name = name;
    }
}

fn free_name(wish: &str, taken: &[(String, Spot)]) -> String {
    let numbered = (2..).map(|number| format!("{wish}-{number}"));
    let mut names = std::iter::once(wish.to_string()).chain(numbered);
    names.find(|name| !taken.iter().any(|(known, _)| known == name)).unwrap_or_default()
}
