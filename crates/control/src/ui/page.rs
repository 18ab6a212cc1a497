//! The parts of the overview as HTML.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use seawall_core::drain::Standing;
use seawall_core::journal::Entry;
use seawall_core::ledger::{Summary, Verdict};
use seawall_core::observation::{EndpointSnapshot, NodeSnapshot, RouteSnapshot, UpstreamSnapshot};
use seawall_core::policy::Protocol;
use seawall_core::time::Wall;
use serde_json::{Value, json};

use crate::parts::{AdminParts, NodeInfo};
use crate::text::{Escaped, rfc3339, rough, rough_size};

/// Journal entries on the page; the script keeps to it too.
const ENTRIES_MAX: usize = 50;

/// The whole page.
pub(super) fn render(parts: &AdminParts) -> String {
    let part = Parts::draw(parts);
    let info = &parts.info;
    let entries = parts.journal.recent(ENTRIES_MAX);
    let last = entries.last().map_or(0, |entry| entry.seq.0);
    let list: String = entries.iter().rev().map(|entry| entry_html(entry)).collect();
    let (node, zone) = (Escaped(&info.node), Escaped(&info.zone));
    let in_force = parts.config.digest();
    let (version, digest) = (Escaped(&info.version), Escaped(&in_force));
    let short = Escaped(in_force.chars().take(12).collect::<String>());
    let started = rfc3339(info.started_at);
    let Parts { summary, routes, dependencies, spool, ledger } = part;
    format!(
        r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{node} · Seawall</title>
<link rel="icon" href="/assets/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/assets/overview.css">
<noscript><meta http-equiv="refresh" content="10"></noscript>
<script src="/assets/overview.js" defer></script>
</head>
<body data-live="no">
<a class="skip" href="#main">Skip to the overview</a>
<header>
<h1>{node} <small>in {zone}</small></h1>
<p id="live" role="status">as of loading; reload for newer</p>
</header>
<main id="main">
<section id="summary" aria-label="Summary">{summary}</section>
<section aria-labelledby="routes-title">
<h2 id="routes-title">Routes</h2>
<div class="scroll" tabindex="0" role="region" aria-labelledby="routes-title">
<table><thead><tr><th scope="col">Route</th><th scope="col">Breaker</th><th scope="col">Answers</th><th scope="col">Failed</th><th scope="col">Slow</th><th scope="col">p50</th><th scope="col">p99</th><th scope="col">Requests</th><th scope="col">Retries</th><th scope="col">Now</th></tr></thead>
<tbody id="routes">{routes}</tbody></table>
</div>
</section>
<section aria-labelledby="dependencies-title">
<h2 id="dependencies-title">Dependencies by zone</h2>
<div class="scroll" tabindex="0" role="region" aria-labelledby="dependencies-title">
<table id="dependencies">{dependencies}</table>
</div>
</section>
<div class="pair">
<section aria-labelledby="spool-title">
<h2 id="spool-title">Spool</h2>
<dl id="spool">{spool}</dl>
</section>
<section aria-labelledby="ledger-title">
<h2 id="ledger-title">Ledger</h2>
<div id="ledger">{ledger}</div>
</section>
</div>
<section aria-labelledby="journal-title">
<h2 id="journal-title">Journal</h2>
<ol id="journal" reversed data-last="{last}" data-max="{ENTRIES_MAX}">{list}</ol>
</section>
</main>
<footer>
<p>Seawall {version} · configuration <code title="{digest}">{short}</code> · started <time datetime="{started}">{started}</time></p>
<p><a href="/metrics">metrics</a> · <a href="/api/status">status</a> · <a href="/api/journal">journal</a> · <a href="/api/spool?state=parked">dead letters</a> · <a href="/api/ledger">ledger</a></p>
</footer>
</body>
</html>
"##
    )
}

/// What changes, by the id of the element it stands in.
pub(crate) fn fragments(parts: &AdminParts) -> Value {
    let Parts { summary, routes, dependencies, spool, ledger } = Parts::draw(parts);
    json!({
        "at": rfc3339((parts.wall)()),
        "html": { "summary": summary, "routes": routes, "dependencies": dependencies, "spool": spool, "ledger": ledger },
    })
}

struct Parts {
    summary: String,
    routes: String,
    dependencies: String,
    spool: String,
    ledger: String,
}

impl Parts {
    fn draw(parts: &AdminParts) -> Self {
        let (snapshot, now) = ((parts.view)(), (parts.wall)());
        Self {
            summary: summary(parts, &snapshot),
            routes: routes(&snapshot.routes, now),
            dependencies: dependencies(&snapshot.upstreams, &parts.info),
            spool: spool(parts, now),
            ledger: ledger(&parts.ledger.summary()),
        }
    }
}

/// In plain words: is anything reduced, and what?
fn summary(parts: &AdminParts, snapshot: &NodeSnapshot) -> String {
    let open = snapshot.routes.iter().filter(|route| !matches!(route.breaker.state, "closed" | "off")).count();
    let degraded = snapshot.routes.iter().filter(|route| route.degraded_since_ms.is_some()).count();
    let sick = snapshot.upstreams.iter().flat_map(|upstream| &upstream.endpoints).filter(|it| !it.healthy).count();
    let (mut class, mut words) = ("good", Vec::new());
    if let Err(reason) = (parts.ready)() {
        (class, words) = ("bad", vec![format!("not ready: {}", Escaped(reason))]);
    }
    if let Some(failure) = parts.spool.failure() {
        (class, _) = ("bad", words.push(format!("the spool has stopped: {}", Escaped(failure))));
    }
    for (count, what) in [(degraded, "with reduced answers"), (open, "with a breaker that is not closed")] {
        if count > 0 {
            words.push(format!("{count} of {} routes {what}", snapshot.routes.len()));
        }
    }
    if sick > 0 {
        let endpoints = if sick == 1 { "endpoint fails its" } else { "endpoints fail their" };
        words.push(format!("{sick} {endpoints} health check"));
    }
    let out = snapshot.upstreams.iter().flat_map(|upstream| &upstream.endpoints).filter(|it| it.ejected).count();
    if out > 0 {
        let endpoints = if out == 1 { "endpoint is" } else { "endpoints are" };
        words.push(format!("{out} {endpoints} ejected as worse than the others"));
    }
    for Standing { kind, name, .. } in &snapshot.drains {
        words.push(format!("the {kind} <code>{}</code> is being drained", Escaped(name)));
    }
    if class == "good" && !words.is_empty() {
        class = "warn";
    }
    let text = if words.is_empty() { "every route answers in full".into() } else { words.join("; ") };
    format!(r#"<p class="verdict {class}" data-summary="{class}">{text}</p>"#)
}

fn routes(routes: &[RouteSnapshot], now: Wall) -> String {
    routes.iter().map(|route| route_row(route, now)).collect()
}

fn route_row(route: &RouteSnapshot, now: Wall) -> String {
    let (name, upstream) = (Escaped(&route.name), Escaped(&route.upstream));
    let state = route.breaker.state;
    let (class, word) = match state {
        "closed" => ("good", "closed"),
        "half_open" => ("warn", "half-open"),
        "recovering" => ("warn", "recovering"),
        "open" => ("bad", "open"),
        "forced_open" => ("bad", "forced open"),
        "disabled" => ("none", "disabled"),
        "observe_only" => ("none", "observes only"),
        "off" => ("none", "off"),
        _ => ("none", "unknown"),
    };
    let since = rough(Duration::try_from_secs_f64(route.breaker.since_s).unwrap_or_default());
    let opened = route.breaker.opened_total;
    let degraded = route.degraded_since_ms.map(|since| rough(now.since(Wall::from_millis(since))));
    let answers = match degraded {
        _ if route.protocol == Protocol::Tcp => "connections".into(),
        Some(since) => format!(r#"<span class="state warn">reduced for {since}</span>"#),
        None => r#"<span class="state good">in full</span>"#.into(),
    };
    let (failed, slow) = (share(route.breaker.failure_rate), share(route.breaker.slow_rate));
    let (p50, p99) = (millis(route.latency_p50_ms), millis(route.latency_p99_ms));
    let requests = match route.protocol {
        Protocol::Http => route.requests_total.to_string(),
        Protocol::Tcp => {
            let seen = &route.connections;
            let (up, down) = (rough_size(seen.bytes_up_total), rough_size(seen.bytes_down_total));
            format!("{} <small>{up} up, {down} down</small>", seen.opened_total)
        }
    };
    let retries = route.retries_total;
    let waiting = if route.waiting > 0 { format!(" + {} waiting", route.waiting) } else { String::new() };
    let in_flight = route.in_flight;
    format!(
        r#"<tr data-route="{name}" data-breaker-state="{state}"><th scope="row">{name} <small>to {upstream}</small></th><td><span class="state {class}" title="for {since}, opened {opened} times">{word}</span></td><td>{answers}</td><td>{failed}</td><td>{slow}</td><td>{p50}</td><td>{p99}</td><td>{requests}</td><td>{retries}</td><td>{in_flight}{waiting}</td></tr>"#
    )
}

/// Too few calls to judge is not zero.
fn share(rate: Option<f64>) -> String {
    rate.map_or_else(
        || r#"<span title="too few calls to judge">–</span>"#.into(),
        |rate| format!("{:.0} %", rate * 100.0),
    )
}

fn millis(ms: f64) -> String {
    if ms >= 1_000.0 { format!("{} s", ms / 1_000.0) } else { format!("{ms} ms") }
}

/// Zones as columns, dependencies as rows.
fn dependencies(upstreams: &[UpstreamSnapshot], info: &NodeInfo) -> String {
    let written = upstreams.iter().flat_map(|upstream| &upstream.endpoints);
    let mut zones: Vec<&str> = info.zones.iter().map(String::as_str).collect();
    let others: BTreeSet<&str> = written.clone().filter_map(|endpoint| endpoint.zone.as_deref()).collect();
    zones.extend(others.into_iter().filter(|zone| !info.zones.iter().any(|known| known == zone)));
    let somewhere = written.clone().any(|endpoint| endpoint.zone.is_none());
    let mut html = String::from(r#"<thead><tr><th scope="col">Dependency</th>"#);
    for zone in &zones {
        let here = if *zone == info.zone { " <small>(here)</small>" } else { "" };
        let _ = write!(html, r#"<th scope="col">{}{here}</th>"#, Escaped(zone));
    }
    if somewhere {
        html.push_str(r#"<th scope="col">zone not told</th>"#);
    }
    html.push_str("</tr></thead><tbody>");
    for upstream in upstreams {
        let name = Escaped(&upstream.name);
        let _ = write!(html, r#"<tr data-upstream="{name}"><th scope="row">{name}</th>"#);
        let cells = zones.iter().map(|zone| Some(*zone)).chain(somewhere.then_some(None));
        for zone in cells {
            let there = upstream.endpoints.iter().filter(|endpoint| endpoint.zone.as_deref() == zone);
            let _ = write!(html, "<td>{}</td>", there.map(endpoint_html).collect::<String>());
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody>");
    html
}

fn endpoint_html(endpoint: &EndpointSnapshot) -> String {
    let (class, word) = match endpoint {
        EndpointSnapshot { draining: true, .. } => ("warn", "draining"),
        EndpointSnapshot { healthy: false, .. } => ("bad", "unhealthy"),
        EndpointSnapshot { ejected: true, .. } => ("warn", "ejected"),
        EndpointSnapshot { ramp, .. } if *ramp < 1.0 => ("warn", "slow start"),
        _ => ("good", "healthy"),
    };
    let (address, healthy) = (Escaped(&endpoint.address), endpoint.healthy);
    let (in_flight, connections) = (endpoint.in_flight, endpoint.connections);
    format!(
        r#"<span class="endpoint" data-endpoint="{address}" data-healthy="{healthy}"><span class="state {class}">{word}</span> <code>{address}</code> <small>{in_flight} on their way, {connections} connections</small></span>"#
    )
}

fn spool(parts: &AdminParts, now: Wall) -> String {
    let depth = parts.spool.depth();
    let oldest = depth.oldest.map_or_else(|| "–".into(), |at| rough(now.since(at)));
    let (bytes, bytes_max) = (rough_size(depth.bytes), rough_size(depth.bytes_max));
    let parked = if depth.parked > 0 { "state warn" } else { "" };
    let disk = if depth.disk_full { r#"<span class="state bad">full</span>"# } else { "has room" };
    let (waiting, leased, dead) = (depth.waiting, depth.leased, depth.parked);
    format!(
        r#"<div><dt>waiting</dt><dd id="spool-waiting">{waiting}</dd></div><div><dt>being delivered</dt><dd id="spool-leased">{leased}</dd></div><div><dt>dead letters</dt><dd id="spool-parked" class="{parked}">{dead}</dd></div><div><dt>oldest</dt><dd id="spool-oldest">{oldest}</dd></div><div><dt>size</dt><dd id="spool-bytes">{bytes} of {bytes_max}</dd></div><div><dt>disk</dt><dd id="spool-disk">{disk}</dd></div>"#
    )
}

fn ledger(summary: &Summary) -> String {
    let (class, name, words) = match summary.verdict {
        Verdict::Balanced => ("good", "balanced", "every record is accounted for"),
        Verdict::Imbalanced => ("bad", "imbalanced", "something was lost, repeated, damaged or never sent"),
        Verdict::Unknown if summary.totals.unproven > 0 => {
            ("none", "unknown", "something arrived that cannot be judged here")
        }
        Verdict::Unknown => ("none", "unknown", "no sink has reported yet, or records are still on their way"),
    };
    let totals = &summary.totals;
    let mut html = format!(
        r#"<p class="verdict {class}" id="ledger-verdict" data-verdict="{name}"><strong>{name}</strong>: {words}</p><dl>"#
    );
    for (word, count) in [
        ("accepted", totals.accepted),
        ("delivered", totals.delivered),
        ("waiting", totals.waiting),
        ("parked", totals.parked),
        ("given up", totals.expired),
        ("handed over", totals.handed_over),
        ("missing so far", totals.missing_so_far),
        ("lost", totals.lost),
        ("duplicated", totals.duplicated),
        ("corrupted", totals.corrupted),
        ("phantom", totals.phantom),
        ("unproven", totals.unproven),
    ] {
        let _ = write!(html, "<div><dt>{word}</dt><dd>{count}</dd></div>");
    }
    html.push_str("</dl>");
    html
}

/// One entry; its cause is one click away.
pub(crate) fn entry_html(entry: &Entry) -> String {
    let (seq, kind, at) = (entry.seq.0, entry.kind.name(), rfc3339(entry.at));
    let time = at.get(11..19).unwrap_or(&at);
    let cause = entry.cause.map_or_else(String::new, |cause| {
        format!(r##" <a class="cause" href="#entry-{cause}" data-cause="{cause}">because of {cause}</a>"##)
    });
    let mut fields = String::new();
    for (name, value) in &entry.fields {
        let _ = write!(fields, " <small>{}={}</small>", Escaped(name), Escaped(value));
    }
    let subject = Escaped(&entry.subject);
    format!(
        r#"<li id="entry-{seq}" tabindex="-1" value="{seq}" data-kind="{kind}"><time datetime="{at}">{time}</time> <b>{}</b> <span>{subject}</span>{cause}{fields}</li>"#,
        kind.replace('_', " ")
    )
}
