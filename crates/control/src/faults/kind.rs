//! Kinds of faults, as they are written: a word, or one name with what it needs.

use seawall_core::fault::book::{Kind, Moment, RetryAfter, Spread};
use seawall_core::units::{format_duration, format_size, parse_duration};
use serde_json::{Map, Value, json};

use super::Fields;
use crate::api::Refusal;

const SPREADS: [(&str, Spread); 2] = [("even", Spread::Even), ("tail", Spread::Tail)];

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
            // What does not fit is no status either, and is told with those that are.
            let status = u16::try_from(fields.whole("status")?).unwrap_or(u16::MAX);
            Kind::Abort { status, retry: retry(&fields)? }
        }
        "grpc" => Kind::Grpc { code: u8::try_from(fields(&["code"])?.whole("code")?).unwrap_or(u8::MAX) },
        "corrupt" => {
            let share = fields(&["bytes"])?.ratio("bytes")?;
            Kind::Corrupt { share: share.ok_or_else(|| Refusal::bad("bytes", "`bytes` is missing").allowed(["1%"]))? }
        }
        "huge_head" => Kind::HugeHead { bytes: fields(&["size"])?.size("size")? },
        _ => return Ok(None),
    }))
}

const LATENCY: [&str; 3] = ["delay", "jitter", "spread"];

fn latency(of: Moment, fields: &Fields) -> Result<Kind, Refusal> {
    let missing = || Refusal::bad("delay", "`delay` is missing").allowed(["200ms"]);
    let delay = fields.duration("delay")?.ok_or_else(missing)?;
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
        word => return word.name().into(),
    };
    json!({ kind.name(): details })
}
