//! Faults, from outside: what lies there, placing, renewing, taking away, the kill switch.
//!
//! A body is read field by field, so that what is wrong is told with its field and with what would be right there; a
//! field nobody knows is refused, because it was meant to narrow something. Nothing happens unless all of it is
//! understood. Not here: caps, leases and choices (`core::fault::book`), and what becomes of a request (the gateway).

mod kind;
mod once;

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use seawall_core::fault::book::{
    AbortWhen, Deny, Fault, Flap, Id, Kind, Look, Order, Portion, Refused, Scope, Standing, Timing,
};
use seawall_core::units::{Ratio, UnitError, format_duration, parse_duration, parse_ratio, parse_size};
use serde_json::{Map, Value, json};

use crate::Admin;
use crate::api::{REASON_ALLOWED, Refusal, fresh, only, read_body_within, reason_of};
use crate::parts::{AdminParts, FaultPort};
use crate::text::rfc3339;

/// Bytes of a body.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What `abort_when` looks at where nobody says otherwise.
const ABORT_OVER: Duration = Duration::from_secs(10);
const ABORT_REQUESTS_MIN: u64 = 20;

/// Fields of an order.
const ORDER: [&str; 23] = [
    "owner",
    "route",
    "upstream",
    "endpoint",
    "zone",
    "version",
    "listener",
    "source",
    "method",
    "path",
    "path_prefix",
    "header",
    "share",
    "connections",
    "first",
    "every",
    "kind",
    "after",
    "lasts",
    "flap",
    "abort_when",
    "ttl",
    "seed",
];

pub(crate) fn router() -> Router<Admin> {
    Router::new()
        .route("/api/faults", only(&["GET", "HEAD", "POST"], get(list).post(place)))
        .route("/api/faults/kill", only(&["POST"], post(kill)))
        .route("/api/faults/release", only(&["POST"], post(release)))
        .route("/api/faults/{id}", only(&["DELETE"], delete(remove)))
        .route("/api/faults/{id}/renew", only(&["POST"], post(renew)))
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::Invalid { .. } => StatusCode::BAD_REQUEST,
            Refused::Unknown { .. } => StatusCode::NOT_FOUND,
            Refused::NotOwner { .. } | Refused::Denied { .. } => StatusCode::FORBIDDEN,
            Refused::Off | Refused::TooMany { .. } | Refused::Same { .. } | Refused::Killed { .. } => {
                StatusCode::CONFLICT
            }
        };
        let refusal = Self::new(status, refused.to_string());
        let refusal = match refused.field() {
            Some(field) => refusal.field(field),
            None => refusal,
        };
        match &refused {
            Refused::Invalid { allowed, .. } => refusal.allowed(allowed.iter().map(String::as_str)),
            Refused::Off => refusal.allowed(["faults: on", "faults: { share_max: 50%, ttl_max: 15m, count_max: 8 }"]),
            _ => refusal,
        }
    }
}

/// The faults, where they are allowed.
fn port(parts: &AdminParts) -> Result<&dyn FaultPort, Refusal> {
    let allowed = parts.faults.as_deref().filter(|faults| faults.look().caps.is_some());
    allowed.ok_or_else(|| Refused::Off.into())
}

async fn list(State(admin): State<Admin>) -> Result<Response, Refusal> {
    let parts = admin.parts();
    let Look { caps, killed, standing, .. } = port(parts)?.look();
    let caps = caps.ok_or(Refused::Off)?;
    let faults: Vec<Value> = standing.iter().map(|standing| standing_json(parts, standing)).collect();
    Ok(fresh(json!({
        "killed": killed.map(|killed| json!({ "reason": killed.reason })),
        "share_max": caps.share_max.to_string(),
        "ttl_max": format_duration(caps.ttl_max),
        "count_max": caps.count_max,
        "deny": caps.deny.iter().map(deny_json).collect::<Vec<_>>(),
        "faults": faults,
    })))
}

async fn place(State(admin): State<Admin>, body: Body) -> Result<Response, Refusal> {
    let parts = admin.parts();
    let faults = port(parts)?;
    let placed = faults.place(read_order(body).await?)?;
    Ok((StatusCode::CREATED, fresh(standing_json(parts, &placed))).into_response())
}

async fn renew(State(admin): State<Admin>, Path(id): Path<String>, body: Body) -> Result<Response, Refusal> {
    let parts = admin.parts();
    let faults = port(parts)?;
    let id: Id = id.parse()?;
    let fields = Fields::read(body, &["owner", "ttl"]).await?;
    let owner = fields.required("owner")?;
    let renewed = faults.renew(id, owner, fields.duration("ttl")?)?;
    Ok(fresh(standing_json(parts, &renewed)))
}

async fn remove(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let gone = port(admin.parts())?.remove(id.parse()?)?;
    Ok(fresh(ended_json(&gone)))
}

async fn kill(State(admin): State<Admin>, body: Body) -> Result<Response, Refusal> {
    let faults = port(admin.parts())?;
    let fields = Fields::read(body, &["reason"]).await?;
    let gone = faults.kill(reason_of(fields.required("reason")?)?);
    Ok(fresh(json!({ "killed": true, "faults": gone.iter().map(ended_json).collect::<Vec<_>>() })))
}

async fn release(State(admin): State<Admin>, body: Body) -> Result<Response, Refusal> {
    let faults = port(admin.parts())?;
    let fields = Fields::read(body, &["reason"]).await?;
    let was_killed = faults.release(reason_of(fields.required("reason")?)?);
    Ok(fresh(json!({ "killed": false, "was_killed": was_killed })))
}

fn ended_json(fault: &Fault) -> Value {
    json!({ "id": fault.id.to_string(), "requests": fault.requests, "tries": fault.tries })
}

/// A fault as it was asked for, and how it stands. The value of a header may be a secret, and is not told.
fn standing_json(parts: &AdminParts, standing: &Standing) -> Value {
    let Standing { fault, left } = standing;
    let scope = &fault.scope;
    let Scope { route, upstream, endpoint, zone, version, method, path, path_prefix, header, .. } = scope;
    let (listener, source) = (scope.listener.map(|it| it.to_string()), scope.source.map(|it| it.to_string()));
    let Timing { after, lasts, flap } = fault.timing;
    let mut told = json!({
        "id": fault.id.to_string(), "owner": fault.owner, "route": route, "upstream": upstream,
        "endpoint": endpoint, "zone": zone, "version": version, "listener": listener, "source": source,
        "method": method, "path": path, "path_prefix": path_prefix,
        "header": header.as_ref().map(|(name, _)| json!({ "name": name })),
        "kind": kind::told(fault.kind), "seed": fault.seed,
        "after": format_duration(after), "lasts": lasts.map(format_duration), "flap": flap.map(flap_json),
        "abort_when": fault.abort_when.map(abort_json),
        "expires_at": rfc3339((parts.wall)() + *left), "left_s": left.as_secs_f64(),
        "seen": fault.seen, "requests": fault.requests, "tries": fault.tries,
    });
    match fault.portion {
        Portion::Share(share) => told["share"] = share.to_string().into(),
        Portion::Connections(share) => told["connections"] = share.to_string().into(),
        Portion::First(count) => told["first"] = count.into(),
        Portion::Every(step) => told["every"] = step.into(),
    }
    told
}

fn deny_json(deny: &Deny) -> Value {
    let said = [("route", &deny.route), ("upstream", &deny.upstream), ("path_prefix", &deny.path_prefix)];
    said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect()
}

fn abort_json(when: AbortWhen) -> Value {
    let AbortWhen { failed_max, over, requests_min } = when;
    json!({ "failed": failed_max.to_string(), "over": format_duration(over), "requests_min": requests_min })
}

fn flap_json(flap: Flap) -> Value {
    json!({ "on": format_duration(flap.on), "off": format_duration(flap.off) })
}

async fn read_order(body: Body) -> Result<Order, Refusal> {
    let fields = Fields::read(body, &ORDER).await?;
    let text = |name| fields.text(name).map(|text| text.map(str::to_owned));
    let scope = Scope {
        route: text("route")?,
        upstream: text("upstream")?,
        endpoint: text("endpoint")?,
        zone: text("zone")?,
        version: text("version")?,
        listener: fields.parsed("listener", "127.0.0.1:8080")?,
        source: fields.parsed("source", "10.0.0.0/8")?,
        method: text("method")?,
        path: text("path")?,
        path_prefix: text("path_prefix")?,
        header: read_header(&fields)?,
    };
    let kind = kind::read(fields.value("kind"))?;
    Ok(Order {
        owner: fields.required("owner")?.to_owned(),
        scope,
        portion: read_portion(&fields, kind)?,
        kind,
        timing: read_timing(&fields)?,
        abort_when: read_abort_when(&fields)?,
        ttl: fields.duration("ttl")?,
        seed: fields.number("seed")?,
    })
}

fn read_header(fields: &Fields) -> Result<Option<(String, String)>, Refusal> {
    let Some(value) = fields.value("header") else { return Ok(None) };
    let header = Fields::of(value.clone(), "header", &["name", "value"])?;
    Ok(Some((header.required("name")?.to_ascii_lowercase(), header.required("value")?.to_owned())))
}

fn read_portion(fields: &Fields, kind: Kind) -> Result<Portion, Refusal> {
    let said = [
        fields.ratio("share")?.map(Portion::Share),
        fields.ratio("connections")?.map(Portion::Connections),
        fields.number("first")?.map(Portion::First),
        fields.number("every")?.map(Portion::Every),
    ];
    let mut said = said.into_iter().flatten();
    let one_of = |error: &str| Err(Refusal::bad("share", error).allowed(["share", "connections", "first", "every"]));
    match (said.next(), said.next()) {
        (Some(portion), None) => Ok(portion),
        (None, _) if matches!(kind, Kind::ZoneCut { .. }) => Ok(Portion::Every(1)),
        (None, _) => one_of("say how much of the traffic is meant"),
        _ => one_of("only one of `share`, `connections`, `first` and `every` can be given"),
    }
}

fn read_timing(fields: &Fields) -> Result<Timing, Refusal> {
    let flap = match fields.value("flap") {
        None => None,
        Some(value) => {
            let flap = Fields::of(value.clone(), "flap", &["on", "off"])?;
            Some(Flap { on: flap.needed("on")?, off: flap.needed("off")? })
        }
    };
    Ok(Timing { after: fields.duration("after")?.unwrap_or_default(), lasts: fields.duration("lasts")?, flap })
}

fn read_abort_when(fields: &Fields) -> Result<Option<AbortWhen>, Refusal> {
    let Some(value) = fields.value("abort_when") else { return Ok(None) };
    let when = Fields::of(value.clone(), "abort_when", &["failed", "over", "requests_min"])?;
    Ok(Some(AbortWhen {
        failed_max: when.ratio("failed")?.ok_or_else(|| missing("failed"))?,
        over: when.duration("over")?.unwrap_or(ABORT_OVER),
        requests_min: when.number("requests_min")?.unwrap_or(ABORT_REQUESTS_MIN),
    }))
}

/// A JSON object whose fields are known.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) async fn read(body: Body, known: &[&str]) -> Result<Self, Refusal> {
        let bytes = read_body_within(body, BODY_BYTES_MAX).await?;
        Self::of(once::read(&bytes)?, "body", known)
    }

    fn of(value: Value, field: &'static str, known: &[&str]) -> Result<Self, Refusal> {
        let allowed = |refusal: Refusal| refusal.allowed(known.iter().copied());
        let Value::Object(map) = value else {
            return Err(allowed(Refusal::bad(field, format!("an object is wanted as `{field}`, not `{value}`"))));
        };
        match map.keys().find(|name| !known.contains(&name.as_str())) {
            Some(unknown) => Err(allowed(Refusal::bad(unknown.clone(), format!("unknown field `{unknown}`")))),
            None => Ok(Self(map)),
        }
    }

    /// What is written as null is not written.
    fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &'static str) -> Result<Option<&str>, Refusal> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| right(name, format!("`{name}` is a text, not `{value}`")))
    }

    fn required(&self, name: &'static str) -> Result<&str, Refusal> {
        self.text(name)?.ok_or_else(|| missing(name))
    }

    fn number(&self, name: &'static str) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let not_one = || right(name, format!("`{name}` is a whole number, not `{value}`"));
        value.as_u64().map(Some).ok_or_else(not_one)
    }

    /// A number that must be there, of few digits.
    fn whole_as<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T, Refusal> {
        let number = self.whole(name)?;
        T::try_from(number).map_err(|_| right(name, format!("`{number}` is out of range")))
    }

    /// A number that must be there.
    fn whole(&self, name: &'static str) -> Result<u64, Refusal> {
        self.number(name)?.ok_or_else(|| missing(name))
    }

    /// Bytes, which must be there.
    fn size(&self, name: &'static str) -> Result<u64, Refusal> {
        parse_size(self.required(name)?).map_err(|error| right(name, error.to_string()))
    }

    fn size_or(&self, name: &'static str, default: u64) -> Result<u64, Refusal> {
        if self.value(name).is_none() { Ok(default) } else { self.size(name) }
    }

    /// A time that must be there.
    fn needed(&self, name: &'static str) -> Result<Duration, Refusal> {
        self.duration(name)?.ok_or_else(|| missing(name))
    }

    fn ratio(&self, name: &'static str) -> Result<Option<Ratio>, Refusal> {
        let bad = |error: UnitError| right(name, error.to_string());
        self.text(name)?.map(|text| parse_ratio(text).map_err(bad)).transpose()
    }

    fn parsed<T: FromStr<Err: Display>>(&self, name: &'static str, example: &str) -> Result<Option<T>, Refusal> {
        let bad = |text: &str, error: T::Err| {
            Refusal::bad(name, format!("`{text}` is not understood: {error}")).allowed([example])
        };
        self.text(name)?.map(|text| text.parse().map_err(|error| bad(text, error))).transpose()
    }

    pub(crate) fn duration(&self, name: &'static str) -> Result<Option<Duration>, Refusal> {
        let bad = |error: UnitError| right(name, error.to_string());
        self.text(name)?.map(|text| parse_duration(text).map_err(bad)).transpose()
    }
}

fn missing(name: &'static str) -> Refusal {
    right(name, format!("`{name}` is missing"))
}

/// What is wrong with a field, and what would be right there.
fn right(name: &'static str, error: impl Into<String>) -> Refusal {
    Refusal::bad(name, error).allowed(examples(name).iter().copied())
}

/// How each field may be written.
fn examples(name: &str) -> &'static [&'static str] {
    match name {
        "owner" => &["1 to 256 characters of one line"],
        "reason" => &[REASON_ALLOWED],
        "route" => &["the name of a route"],
        "upstream" => &["the name of an upstream"],
        "endpoint" => &["queue/10.0.1.5:80", "10.0.1.5:80"],
        "zone" => &["the name of a zone"],
        "version" => &["v1"],
        "listener" => &["127.0.0.1:8080"],
        "source" => &["10.0.0.0/8"],
        "method" => &["GET", "POST", "PUT"],
        "path" => &["/orders", "/orders/7"],
        "path_prefix" => &["/", "/orders/"],
        "name" => &["x-tenant"],
        "value" => &["blue"],
        "share" | "connections" | "failed" => &["10%", "20%"],
        "bytes" | "chunks" => &["1%", "10%"],
        "first" => &["1 to 1000"],
        "every" => &["2 or more"],
        "requests_min" => &["20"],
        "seed" => &["0 to 18446744073709551615"],
        "status" => &["400 to 599"],
        "code" => &["1 to 16"],
        "per_second" | "size" | "variation" => &["100B", "64KiB"],
        "way" => &["up", "down", "both"],
        "spread" => &["even", "tail"],
        "retry_at" => &["+1d", "-2h"],
        "refuse_after" => &["10s", "0s to 1h"],
        // Times.
        _ => &["200ms", "2m"],
    }
}
