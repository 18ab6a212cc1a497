//! Where a route's calls go among the endpoints of its upstream: shares of versions, what stays together, and who gets
//! copies.

use std::time::Duration;

use seawall_core::balance::assign::{Split, Unit};
use seawall_core::id::UpstreamId;
use seawall_core::policy::{Mirror, Placement};
use seawall_core::units::Ratio;

use super::parse_name;
use super::policies::read_switch;
use super::reader::{Field, Keys, Section, hint_of};
use super::upstreams::Upstreams;

/// `versions`, `versions_by`, `sticky` and `mirror` of a route.
pub(super) fn read(section: &Section<'_>, upstream: Option<UpstreamId>, upstreams: &Upstreams<'_>) -> Placement {
    let weights = section.field("versions").map(|field| read_versions(field, upstream, upstreams));
    let by = section.field("versions_by");
    if let (Some(by), None) = (by, &weights) {
        by.reader.error_with(by.key_spot, "there are no `versions` to share out", "add `versions: { NAME: WEIGHT }`");
    }
    let by =
        by.and_then(|field| field.parsed(|text| if text == "request" { Ok(Unit::Request) } else { parse_unit(text) }));
    let sticky = section.field("sticky").filter(|field| !field.is_off()).and_then(|field| field.parsed(parse_unit));
    let mirror = section.field("mirror").filter(|field| !field.is_off());
    let mirror = mirror.and_then(|field| read_mirror(field, upstream, upstreams));
    Placement { versions: weights.map(|weights| Split { weights, by: by.unwrap_or_default() }), sticky, mirror }
}

const MIRROR: Keys = Keys { of: "`mirror`", known: &["to", "share", "timeout", "writes"], later: &[] };

/// `{ to: NAME, share: 10%, timeout: 1s, writes: off }`.
fn read_mirror(field: Field<'_>, upstream: Option<UpstreamId>, upstreams: &Upstreams<'_>) -> Option<Mirror> {
    let section = field.section(MIRROR);
    let named = section.required("to", "NAME")?;
    let to = upstreams.refer(named);
    if to.is_some() && to == upstream {
        named.error_with("copies go where the requests go", "name another upstream");
    }
    let share = section.field("share").map_or(Some(Ratio::ONE), |field| field.ratio(Ratio::ZERO..=Ratio::ONE));
    let (least, most) = (Duration::from_millis(1), Duration::from_secs(10));
    let timeout = section.duration("timeout", Duration::from_secs(1), least..=most);
    let writes = section.field("writes").is_some_and(read_switch);
    Some(Mirror { to: to?, share: share?, timeout, writes })
}

/// `{ stable: 95, canary: 5 }`.
fn read_versions(field: Field<'_>, upstream: Option<UpstreamId>, upstreams: &Upstreams<'_>) -> Vec<(String, u32)> {
    let mut weights = Vec::new();
    for entry in field.entries() {
        if let Err(problem) = parse_name(entry.key) {
            entry.reader.error(entry.key_spot, problem);
            continue;
        }
        if let Some(upstream) = upstream {
            let known = upstreams.versions(upstream);
            if !known.contains(&entry.key) {
                let message = format!("no endpoint of `{}` is of version `{}`", upstreams.name(upstream), entry.key);
                let hint = hint_of(entry.key, known.iter().copied());
                entry.reader.error_with(entry.key_spot, message, hint);
            }
        }
        weights.extend(entry.count(0..=1_000_000).map(|weight| (entry.key.to_string(), weight)));
    }
    if weights.is_empty() || weights.iter().all(|(_, weight)| *weight == 0) {
        field.error_with("no version has any weight", "write a weight, such as `stable: 95`");
    }
    weights
}

/// `header:NAME`, `cookie:NAME`.
fn parse_unit(text: &str) -> Result<Unit, String> {
    let is_token =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    match text.split_once(':') {
        Some(("header", name)) if is_token(name) => Ok(Unit::Header(name.to_ascii_lowercase())),
        Some(("cookie", name)) if is_token(name) => Ok(Unit::Cookie(name.into())),
        _ => Err(format!("`{text}` says nothing to go by, such as `header:User-Id` or `cookie:session`")),
    }
}
