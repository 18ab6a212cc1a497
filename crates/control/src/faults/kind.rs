//! Kinds of faults, as they are written: a word, or one name with what it needs.

use std::time::Duration;

use seawall_core::fault::Effect;
use seawall_core::fault::book::{Kind, Moment, RetryAfter, Spread, Way};
use seawall_core::units::{format_duration, format_size, parse_duration};
use serde_json::{Map, Value, json};

use super::{Fields, missing};
use crate::api::Refusal;

const SPREADS: [(&str, Spread); 2] = [("even", Spread::Even), ("tail", Spread::Tail)];

/// Those that may say more, and need not.
const BARE: [&str; 4] = ["black_hole", "reset", "half_close", "zone_cut"];

/// One of each.
fn examples() -> Vec<String> {
    let with_more = [
        json!({ "latency": { "delay": "200ms", "jitter": "50ms", "spread": "even" } }),
        json!({ "head_latency": { "delay": "200ms" } }),
        json!({ "body_latency": { "delay": "200ms" } }),
        json!({ "bandwidth": { "per_second": "10KiB" } }),
        json!({ "abort": { "status": 503, "retry_after": "2m" } }),
        json!({ "grpc": { "code": 14 } }),
        json!({ "corrupt": { "bytes": "1%" } }),
        json!({ "huge_head": { "size": "64KiB" } }),
        json!({ "tcp_latency": { "delay": "200ms", "jitter": "50ms", "way": "down" } }),
        json!({ "tcp_bandwidth": { "per_second": "10KiB", "way": "both" } }),
        json!({ "slow_close": { "delay": "2s", "way": "down" } }),
        json!({ "black_hole": { "after": "10s", "way": "up" } }),
        json!({ "reset": { "after": "0s", "way": "down" } }),
        json!({ "half_close": { "after": "10s", "way": "up" } }),
        json!({ "slicer": { "size": "100B", "variation": "10B", "pause": "1ms", "way": "down" } }),
        json!({ "limit_data": { "size": "1KiB", "way": "down" } }),
        json!({ "tcp_corrupt": { "bytes": "1%", "way": "down" } }),
        json!({ "chunk_loss": { "chunks": "10%", "way": "down" } }),
        json!({ "zone_cut": { "way": "both" } }),
    ];
    Kind::WORDS.iter().map(|kind| json!(kind.name())).chain(with_more).map(|kind| kind.to_string()).collect()
}

pub(super) fn read(value: Option<&Value>) -> Result<Kind, Refusal> {
    let bad = |error: String| {
        let examples = examples();
        Refusal::bad("kind", error).allowed(examples.iter().map(String::as_str))
    };
    let one = |map: &Map<String, Value>| {
        let mut entries = map.iter();
        entries.next().filter(|_| map.len() == 1).map(|(name, value)| (name.clone(), Some(value.clone())))
    };
    let (name, details) = match value {
        Some(Value::String(name)) => (name.clone(), None),
        Some(Value::Object(map)) => one(map).ok_or_else(|| bad("`kind` is one kind with what it needs".into()))?,
        Some(other) => return Err(bad(format!("`{other}` is not a kind of fault"))),
        None => return Err(bad("`kind` is missing".into())),
    };
    let word = Kind::WORDS.into_iter().find(|kind| kind.name() == name);
    match (word, details) {
        (Some(kind), None) => Ok(kind),
        (Some(_), Some(_)) => Err(bad(format!("`{name}` takes nothing: write it as a word"))),
        (None, Some(details)) => {
            with_details(&name, details)?.ok_or_else(|| bad(format!("`{name}` is not a kind of fault")))
        }
        (None, None) if BARE.contains(&name.as_str()) => {
            with_details(&name, json!({}))?.ok_or_else(|| bad(format!("`{name}` is not a kind of fault")))
        }
        (None, None) if Kind::NAMES.contains(&name.as_str()) => Err(bad(format!("`{name}` needs to be told how much"))),
        (None, None) => Err(bad(format!("`{name}` is not a kind of fault"))),
    }
}

fn with_details(name: &str, details: Value) -> Result<Option<Kind>, Refusal> {
    let fields = |known: &[&str]| Fields::of(details.clone(), "kind", known);
    Ok(Some(match name {
        "latency" => latency(Moment::Request, &fields(&LATENCY)?)?,
        "head_latency" => latency(Moment::Head, &fields(&LATENCY)?)?,
        "body_latency" => latency(Moment::Body, &fields(&LATENCY)?)?,
        "bandwidth" => Kind::Bandwidth { bytes_per_second: fields(&["per_second"])?.size("per_second")? },
        "abort" => {
            let fields = fields(&["status", "retry_after", "retry_at"])?;
            Kind::Abort { status: fields.whole_as("status")?, retry: retry(&fields)? }
        }
        "grpc" => Kind::Grpc { code: fields(&["code"])?.whole_as("code")? },
        "corrupt" => {
            let share = fields(&["bytes"])?.ratio("bytes")?;
            Kind::Corrupt { share: share.ok_or_else(|| missing("bytes"))? }
        }
        "huge_head" => Kind::HugeHead { bytes: fields(&["size"])?.size("size")? },
        "zone_cut" => Kind::ZoneCut { way: way(&fields(&["way"])?)?.unwrap_or(Way::Both) },
        _ => return on_bytes(name, fields),
    }))
}

/// What is done to the bytes of a connection.
fn on_bytes(name: &str, fields: impl Fn(&[&str]) -> Result<Fields, Refusal>) -> Result<Option<Kind>, Refusal> {
    let share = |fields: &Fields, name| fields.ratio(name)?.ok_or_else(|| missing(name));
    let (fields, effect) = match name {
        "tcp_latency" => {
            let fields = fields(&["delay", "jitter", "way"])?;
            let delay_ms = i64::try_from(fields.needed("delay")?.as_millis()).unwrap_or(i64::MAX);
            let jitter = fields.duration("jitter")?.unwrap_or_default();
            (fields, Effect::Latency { delay_ms, jitter })
        }
        "tcp_bandwidth" => {
            let fields = fields(&["per_second", "way"])?;
            let bytes_per_second = fields.size("per_second")?;
            (fields, Effect::Bandwidth { bytes_per_second })
        }
        "slow_close" => {
            let fields = fields(&["delay", "way"])?;
            let delay = fields.needed("delay")?;
            (fields, Effect::SlowClose { delay })
        }
        "black_hole" => {
            let fields = fields(&["after", "way"])?;
            let after = fields.duration("after")?;
            (fields, Effect::Timeout { after })
        }
        "reset" => {
            let fields = fields(&["after", "way"])?;
            let after = fields.duration("after")?.unwrap_or_default();
            (fields, Effect::ResetPeer { after })
        }
        "half_close" => {
            let fields = fields(&["after", "way"])?;
            let after = fields.duration("after")?.unwrap_or_default();
            (fields, Effect::HalfClose { after })
        }
        "slicer" => {
            let fields = fields(&["size", "variation", "pause", "way"])?;
            let bytes = |size| usize::try_from(size).unwrap_or(usize::MAX);
            let (average, variation) = (bytes(fields.size("size")?), fields.size_or("variation", 0).map(bytes)?);
            let delay = fields.duration("pause")?.unwrap_or_default();
            (fields, Effect::Slicer { average, variation, delay })
        }
        "limit_data" => {
            let fields = fields(&["size", "way"])?;
            let bytes = fields.size("size")?;
            (fields, Effect::LimitData { bytes })
        }
        "tcp_corrupt" => {
            let fields = fields(&["bytes", "way"])?;
            let share = share(&fields, "bytes")?;
            (fields, Effect::Corrupt { share })
        }
        "chunk_loss" => {
            let fields = fields(&["chunks", "way"])?;
            let share = share(&fields, "chunks")?;
            (fields, Effect::Loss { share })
        }
        _ => return Ok(None),
    };
    Ok(Some(Kind::Bytes { way: way(&fields)?.unwrap_or(Way::Down), effect }))
}

fn way(fields: &Fields) -> Result<Option<Way>, Refusal> {
    let Some(word) = fields.text("way")? else { return Ok(None) };
    let unknown = || Refusal::bad("way", format!("`{word}` is no way")).allowed(Way::ALL.map(Way::name));
    Way::ALL.into_iter().find(|way| way.name() == word).map(Some).ok_or_else(unknown)
}

const LATENCY: [&str; 3] = ["delay", "jitter", "spread"];

fn latency(of: Moment, fields: &Fields) -> Result<Kind, Refusal> {
    let delay = fields.needed("delay")?;
    let jitter = fields.duration("jitter")?.unwrap_or_default();
    let spread = match fields.text("spread")? {
        None => Spread::Even,
        Some(word) => {
            let known = SPREADS.iter().find(|(name, _)| *name == word).map(|(_, spread)| *spread);
            let unknown = || Refusal::bad("spread", format!("`{word}` is not a way to spread"));
            known.ok_or_else(|| unknown().allowed(SPREADS.iter().map(|(name, _)| *name)))?
        }
    };
    Ok(Kind::Latency { of, delay, jitter, spread })
}

fn retry(fields: &Fields) -> Result<Option<RetryAfter>, Refusal> {
    match (fields.duration("retry_after")?, fields.text("retry_at")?) {
        (None, None) => Ok(None),
        (Some(after), None) if after.subsec_nanos() > 0 => {
            let message = format!("`Retry-After` counts whole seconds, and `{}` are none", format_duration(after));
            Err(Refusal::bad("retry_after", message).allowed(["0s", "1s", "2m"]))
        }
        (Some(after), None) => Ok(Some(RetryAfter::Seconds(after.as_secs()))),
        (None, Some(at)) => {
            let bad = |why: String| Refusal::bad("retry_at", why).allowed(["+1d", "-2h"]);
            let (sign, by) = at.split_at_checked(1).unwrap_or_default();
            let by = |make: fn(_) -> RetryAfter| parse_duration(by).map(make).map_err(|error| bad(error.to_string()));
            match sign {
                "+" => by(RetryAfter::Ahead).map(Some),
                "-" => by(RetryAfter::Ago).map(Some),
                _ => Err(bad(format!("`{at}` does not say whether the date is ahead (`+`) or has passed (`-`)"))),
            }
        }
        (Some(_), Some(_)) => {
            let message = "only one of `retry_after` and `retry_at` can be given";
            Err(Refusal::bad("retry_at", message).allowed(["retry_after", "retry_at"]))
        }
    }
}

/// As it could have been written.
pub(super) fn told(kind: Kind) -> Value {
    let details = match kind {
        Kind::Latency { delay, jitter, spread, .. } => {
            let spread = SPREADS.iter().find(|(_, known)| *known == spread).map(|(name, _)| *name);
            json!({ "delay": format_duration(delay), "jitter": format_duration(jitter), "spread": spread })
        }
        Kind::Bandwidth { bytes_per_second } => json!({ "per_second": format_size(bytes_per_second) }),
        Kind::Abort { status, retry: None } => json!({ "status": status }),
        Kind::Abort { status, retry: Some(RetryAfter::Seconds(seconds)) } => {
            json!({ "status": status, "retry_after": format!("{seconds}s") })
        }
        Kind::Abort { status, retry: Some(RetryAfter::Ahead(by)) } => {
            json!({ "status": status, "retry_at": format!("+{}", format_duration(by)) })
        }
        Kind::Abort { status, retry: Some(RetryAfter::Ago(by)) } => {
            json!({ "status": status, "retry_at": format!("-{}", format_duration(by)) })
        }
        Kind::Grpc { code } => json!({ "code": code }),
        Kind::Corrupt { share } => json!({ "bytes": share.to_string() }),
        Kind::HugeHead { bytes } => json!({ "size": format_size(bytes) }),
        Kind::ZoneCut { way } => json!({ "way": way.name() }),
        Kind::Bytes { way, effect } => {
            let mut details = match effect {
                Effect::Noop => json!({}),
                Effect::Latency { delay_ms, jitter } => {
                    let delay = Duration::from_millis(u64::try_from(delay_ms).unwrap_or(0));
                    json!({ "delay": format_duration(delay), "jitter": format_duration(jitter) })
                }
                Effect::Bandwidth { bytes_per_second } => json!({ "per_second": format_size(bytes_per_second) }),
                Effect::SlowClose { delay } => json!({ "delay": format_duration(delay) }),
                Effect::Timeout { after } => json!({ "after": after.map(format_duration) }),
                Effect::ResetPeer { after } | Effect::HalfClose { after } => json!({ "after": format_duration(after) }),
                Effect::Slicer { average, variation, delay } => {
                    let (size, variation) = (format_size(average as u64), format_size(variation as u64));
                    json!({ "size": size, "variation": variation, "pause": format_duration(delay) })
                }
                Effect::LimitData { bytes } => json!({ "size": format_size(bytes) }),
                Effect::Corrupt { share } => json!({ "bytes": share.to_string() }),
                Effect::Loss { share } => json!({ "chunks": share.to_string() }),
            };
            details["way"] = way.name().into();
            details
        }
        word => return word.name().into(),
    };
    json!({ kind.name(): details })
}
