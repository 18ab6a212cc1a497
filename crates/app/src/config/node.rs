//! The node itself: name and zone, limits, store, admin.

use std::path::PathBuf;
use std::time::Duration;

use seawall_core::fault::book::{Caps, Deny};
use seawall_core::policy::{Limits, Route, Upstream};
use seawall_core::units::Ratio;

use super::address::{clash, parse_listen};
use super::reader::{Field, Keys, Section, hint_of};
use super::{AdminConfig, StoreConfig, ToxiproxyConfig, parse_name, replica};

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Where a node stands.
pub(super) struct Place {
    pub(super) node: String,
    pub(super) zone: String,
    pub(super) zones: Vec<String>,
    /// False if no list of zones was written: then any zone may be named.
    pub(super) zones_are_listed: bool,
}

impl Place {
    /// Tells a zone that is not in the list.
    pub(super) fn check_zone(&self, field: Field<'_>, zone: &str) {
        if self.zones_are_listed && !self.zones.iter().any(|known| known == zone) {
            let hint = hint_of(zone, self.zones.iter().map(String::as_str));
            field.error_with(format!("`{zone}` is not one of `zones`"), hint);
        }
    }
}

pub(super) fn place(top: &Section<'_>) -> Place {
    let listed = top.field("zones");
    let zones: Vec<String> = listed.map(read_zones).unwrap_or_default();
    let written = top.field("zone");
    let zone = written.and_then(|field| field.parsed(parse_name));
    if let (Some(field), None, true) = (listed, written, zones.len() > 1) {
        let message = format!("`zones` names {} zones, and `zone` does not say which one this is", zones.len());
        field.reader.error_with(field.key_spot, message, format!("add `zone: {}`", zones[0]));
    }
    let node = top.field("node").and_then(|field| field.parsed(parse_name));
    let node = node.or_else(|| zone.clone()).unwrap_or_else(|| "seawall".into());
    let zones_are_listed = !zones.is_empty();
    let known = zone.clone().or_else(|| zones.first().cloned()).unwrap_or_else(|| "local".into());
    let zones = if zones_are_listed { zones } else { vec![known.clone()] };
    let place = Place { node, zone: known, zones, zones_are_listed };
    if let (Some(field), Some(zone)) = (written, zone) {
        place.check_zone(field, &zone);
    }
    place
}

fn read_zones(field: Field<'_>) -> Vec<String> {
    let mut zones: Vec<String> = Vec::new();
    for item in field.list() {
        let Some(zone) = item.parsed(parse_name) else { continue };
        if zones.contains(&zone) {
            item.error_with(format!("`{zone}` is given twice"), "remove one");
        } else {
            zones.push(zone);
        }
    }
    zones
}

const LIMITS: Keys = Keys {
    of: "`limits`",
    known: &[
        "connections",
        "connections_per_source",
        "header_bytes",
        "headers",
        "body_bytes",
        "streams",
        "pending",
        "header_timeout",
        "idle_timeout",
        "body_idle_timeout",
        "grace",
    ],
    later: &[],
};

pub(super) fn limits(field: Field<'_>) -> Limits {
    let (section, default) = (field.section(LIMITS), Limits::default());
    let header_bytes = section.size("header_bytes", u64::from(default.header_bytes_max), KIB..=MIB);
    Limits {
        connections_per_source: section.field("connections_per_source").and_then(|field| field.count(1..=1_000_000)),
        connections_max: section.count("connections", default.connections_max, 1..=1_000_000),
        header_bytes_max: u32::try_from(header_bytes).unwrap_or(default.header_bytes_max),
        headers_max: section.count("headers", default.headers_max, 1..=1_000),
        body_bytes_max: section.size("body_bytes", default.body_bytes_max, 1..=TIB),
        streams_max: section.count("streams", default.streams_max, 1..=65_535),
        pending_max: section.count("pending", default.pending_max, 1..=1_000_000),
        header_timeout: section.duration("header_timeout", default.header_timeout, MILLISECOND..=HOUR),
        idle_timeout: section.duration("idle_timeout", default.idle_timeout, MILLISECOND..=DAY),
        body_idle_timeout: section.duration("body_idle_timeout", default.body_idle_timeout, MILLISECOND..=HOUR),
        grace: section.duration("grace", default.grace, Duration::ZERO..=DAY),
    }
}

const STORE: Keys = Keys {
    of: "`store`",
    known: &[
        "path",
        "spool_max",
        "journal_max",
        "journal_keep",
        "record_max",
        "key_file",
        "compress",
        "url",
        "copies",
        "user",
        "password_file",
        "ca_file",
        "monitor",
        "accept_unsynced",
    ],
    later: &[],
};

pub(super) fn store(field: Field<'_>) -> StoreConfig {
    let (section, default) = (field.section(STORE), StoreConfig::default());
    let store = StoreConfig {
        path: section.field("path").and_then(read_path).unwrap_or(default.path),
        spool_bytes_max: section.size("spool_max", default.spool_bytes_max, MIB..=64 * TIB),
        journal_bytes_max: section.size("journal_max", default.journal_bytes_max, MIB..=TIB),
        journal_keep: section.field("journal_keep").and_then(|field| field.duration(HOUR..=3_650 * DAY)),
        record_bytes_max: section.size("record_max", default.record_bytes_max, KIB..=GIB),
        key_file: section.field("key_file").and_then(read_path),
        packs: section.field("compress").filter(|field| !field.is_off()).and_then(|it| it.parsed(parse_pack)).is_some(),
        on_damage: default.on_damage,
        replica: replica::read(&section),
    };
    if store.record_bytes_max > store.spool_bytes_max {
        let written = section.field("record_max").or_else(|| section.field("spool_max"));
        written.unwrap_or(field).error("the spool (`spool_max`) would not hold one record (`record_max`)");
    }
    store
}

/// `lz4`, or `off`.
fn parse_pack(text: &str) -> Result<(), String> {
    if text == "lz4" { Ok(()) } else { Err(format!("`{text}` is no way to compress; known are lz4 and off")) }
}

const ADMIN: Keys = Keys { of: "`admin`", known: &["address", "token_file"], later: &[] };

pub(super) fn admin(field: Field<'_>) -> AdminConfig {
    let (section, default) = (field.section(ADMIN), AdminConfig::default());
    let address = section.field("address").and_then(|field| field.parsed(parse_listen));
    let token_file = section.field("token_file").and_then(read_path);
    let admin = AdminConfig { address: address.unwrap_or(default.address), token_file };
    warn_of_open_admin(&section, &admin);
    admin
}

/// Whoever reaches the admin API may discard records.
fn warn_of_open_admin(section: &Section<'_>, admin: &AdminConfig) {
    let open = !admin.address.ip().is_loopback() && section.field("token_file").is_none();
    if let (true, Some(field)) = (open, section.field("address")) {
        let message = format!("`{}` can be reached from other machines, and no token is asked for", admin.address);
        field.reader.warning(field.spot(), message, "add `token_file`, or listen on 127.0.0.1");
    }
}

const TOXIPROXY: Keys = Keys { of: "`toxiproxy`", known: &["listen"], later: &[] };

/// Nothing where no address was written, which is told.
pub(super) fn toxiproxy(field: Field<'_>, admin: &AdminConfig) -> Option<ToxiproxyConfig> {
    let section = field.section(TOXIPROXY);
    let field = section.required("listen", "127.0.0.1:8474")?;
    let listen = field.parsed(parse_listen)?;
    if clash(admin.address, listen) {
        field.error_with(format!("`{listen}` is taken by `admin` on `{}`", admin.address), "use another port");
    }
    if !listen.ip().is_loopback() {
        let message = format!("`{listen}` can be reached from other machines, and this API knows no token");
        field.reader.warning(field.spot(), message, "listen on 127.0.0.1");
    }
    Some(ToxiproxyConfig { listen })
}

const FAULTS: Keys = Keys { of: "`faults`", known: &["share_max", "ttl_max", "count_max", "deny"], later: &[] };
const DENY: Keys = Keys { of: "`deny`", known: &["route", "upstream", "path_prefix"], later: &[] };

/// `on`, `off`, or how far they may go. Nothing where they are not allowed.
pub(super) fn faults(field: Field<'_>, routes: &[Route], upstreams: &[Upstream]) -> Option<Caps> {
    let default = Caps::default();
    if field.is_off() {
        return None;
    }
    if let Some(word) = field.peek() {
        if !matches!(word, "on" | "true") {
            field.error_with(format!("`{word}` is not understood"), "write `on`, `off` or `{ share_max: 50% }`");
        }
        return Some(default);
    }
    let section = field.section(FAULTS);
    let least = Ratio::of(1, 1_000).unwrap_or(Ratio::ONE);
    let count_max = section.count("count_max", u32::try_from(default.count_max).unwrap_or(u32::MAX), 1..=64);
    Some(Caps {
        share_max: section
            .field("share_max")
            .and_then(|field| field.ratio(least..=Ratio::ONE))
            .unwrap_or(default.share_max),
        ttl_max: section.duration("ttl_max", default.ttl_max, Duration::from_secs(1)..=DAY),
        count_max: usize::try_from(count_max).unwrap_or(usize::MAX),
        deny: section.field("deny").map(|field| deny(field, routes, upstreams)).unwrap_or_default(),
    })
}

/// What no fault may touch.
fn deny(field: Field<'_>, routes: &[Route], upstreams: &[Upstream]) -> Vec<Deny> {
    let routes = || routes.iter().map(|route| route.name.as_str());
    let upstreams = || upstreams.iter().map(|upstream| upstream.name.as_str());
    let read = |field: Field<'_>| {
        let section = field.section(DENY);
        let named = |key: &str, known: Vec<&str>| {
            let field = section.field(key)?;
            let name = field.parsed(parse_name)?;
            if !known.contains(&name.as_str()) {
                field.error_with(format!("there is no {key} `{name}`"), hint_of(&name, known.iter().copied()));
            }
            Some(name)
        };
        let path = |text: &str| match text.starts_with('/') {
            true => Ok(text.to_owned()),
            false => Err(format!("`{text}` is not the beginning of a path, such as `/pay/`")),
        };
        let deny = Deny {
            route: named("route", routes().collect()),
            upstream: named("upstream", upstreams().collect()),
            path_prefix: section.field("path_prefix").and_then(|field| field.parsed(path)),
        };
        let says_nothing = DENY.known.iter().all(|key| section.field(key).is_none());
        if says_nothing && section.readable {
            field.error_with("it names nothing, and would deny everything", "write `faults: off` for that");
        }
        (!says_nothing).then_some(deny)
    };
    field.list().into_iter().filter_map(read).collect()
}

pub(super) fn read_path(field: Field<'_>) -> Option<PathBuf> {
    field.parsed(|text| if text.is_empty() { Err("a path is wanted".into()) } else { Ok(text.into()) })
}

/// The zone of something else than this node.
pub(super) fn read_zone(field: Field<'_>, place: &Place) -> Option<String> {
    let zone = field.parsed(parse_name)?;
    place.check_zone(field, &zone);
    Some(zone)
}
