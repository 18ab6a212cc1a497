//! The admin API's answers as text for people.

use std::fmt::Write as _;

use seawall_core::journal::chain::Break;
use serde_json::Value;

use super::table::{facts, table};

/// Colours for words that say how things stand, if the reader wants any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    fn state(self, word: &str) -> String {
        let colour = match word {
            "closed" | "healthy" | "balanced" | "yes" => 32,
            "half_open" | "unknown" | "draining" | "ejected" | "slow_start" => 33,
            "open" | "unhealthy" | "imbalanced" | "no" => 31,
            _ => return word.into(),
        };
        if self.0 { format!("\u{1b}[{colour}m{word}\u{1b}[0m") } else { word.into() }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn percent(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |share| format!("{:.0}%", share * 100.0))
}

fn seconds(value: &Value) -> String {
    let Some(seconds) = value.as_f64() else { return "-".into() };
    match seconds as u64 {
        0..10 => format!("{seconds:.1}s"),
        10..120 => format!("{seconds:.0}s"),
        120..7_200 => format!("{:.0}m", seconds / 60.0),
        7_200..172_800 => format!("{:.0}h", seconds / 3_600.0),
        _ => format!("{:.0}d", seconds / 86_400.0),
    }
}

fn size(value: &Value) -> String {
    let bytes = value.as_u64().unwrap_or(0);
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    let scaled = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    let name = ["B", "KiB", "MiB", "GiB", "TiB"][unit as usize];
    if unit == 0 { format!("{bytes}B") } else { format!("{scaled:.1}{name}") }
}

/// One screen: the node, its routes, its upstreams, the spool, the limits that were reached.
pub(super) fn status(status: &Value, paint: Paint) -> String {
    let ready = match status["not_ready_because"].as_str() {
        Some(reason) => format!("{}, {reason}", paint.state("no")),
        None => paint.state("yes"),
    };
    let node = format!("{} in {}", text(&status["node"]), text(&status["zone"]));
    let digest: String = text(&status["config_digest"]).chars().take(12).collect();
    let mut out = facts(&[
        ("node", node),
        ("ready", ready),
        ("version", text(&status["version"])),
        ("config", digest),
        ("started", format!("{} ({} ago)", text(&status["started_at"]), seconds(&status["uptime_s"]))),
    ]);
    out.push('\n');
    let (tcp, http): (Vec<&Value>, Vec<&Value>) =
        list(status, "routes").iter().partition(|route| route["protocol"] == "tcp");
    if !http.is_empty() {
        out.push_str(&routes(&http, paint));
    }
    out.push_str(&connections(&tcp, !http.is_empty(), paint));
    out.push_str(&found_out(list(status, "routes")));
    out.push('\n');
    out.push_str(&endpoints(list(status, "upstreams"), paint));
    match drains(&status["drains"]) {
        drained if drained.is_empty() => {}
        drained => out.push_str(&format!("\n{drained}")),
    }
    out.push('\n');
    out.push_str(&spool_facts(&status["spool"]));
    out.push_str(&replica_facts(&status["replica"], paint));
    let reached: Vec<Vec<String>> = list(status, "limits")
        .iter()
        .filter(|limit| limit["reached_total"].as_u64().is_some_and(|times| times > 0))
        .map(|limit| ["name", "value", "used", "reached_total"].map(|key| text(&limit[key])).to_vec())
        .collect();
    if !reached.is_empty() {
        out.push('\n');
        out.push_str(&table(&["LIMIT REACHED", "VALUE", "USED", "TIMES"], &reached));
    }
    out
}

/// What is drained; nothing if nothing is.
pub(super) fn drains(drains: &Value) -> String {
    let row = |drain: &Value| {
        let state = if drain["refuses"] == true { "refuses" } else { "moves its clients" };
        vec![
            format!("{} {}", text(&drain["kind"]), text(&drain["name"])),
            text(&drain["since"]),
            state.into(),
            text(&drain["calls"]),
            text(&drain["connections"]),
            text(&drain["reason"]),
        ]
    };
    let rows: Vec<Vec<String>> = drains.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    table(&["DRAINED", "SINCE", "NOW", "CALLS LEFT", "CONNECTIONS", "WHY"], &rows)
}

fn replica_facts(replica: &Value, paint: Paint) -> String {
    let Some(state) = replica["state"].as_str() else { return String::new() };
    let why = match (replica["reason"].as_str(), replica["down_s"].as_f64()) {
        (Some(reason), Some(_)) => format!(" for {}: {reason}", seconds(&replica["down_s"])),
        (Some(reason), None) => format!(": {reason}"),
        _ => String::new(),
    };
    let (held, behind) = (text(&replica["held"]), text(&replica["behind"]));
    facts(&[("replica", format!("{}{why}, {held} held there, {behind} to be told", paint.state(state)))])
}

/// Routes of connections: no answers, but bytes.
fn connections(routes: &[&Value], follows: bool, paint: Paint) -> String {
    let row = |route: &&Value| {
        let (breaker, seen) = (&route["breaker"], &route["connections"]);
        let size = |key: &str| size(&seen[key]);
        vec![
            text(&route["name"]),
            text(&route["upstream"]),
            text(&breaker["state"]),
            percent(&breaker["failure_rate"]),
            text(&seen["open"]),
            text(&seen["opened_total"]),
            text(&seen["ended"]["refused"]),
            text(&seen["ended"]["failed"]),
            text(&route["retries_total"]),
            size("bytes_up_total"),
            size("bytes_down_total"),
            format!("{}ms", text(&route["latency_p99_ms"])),
        ]
    };
    let headings = [
        "ROUTE (TCP)",
        "UPSTREAM",
        "BREAKER",
        "FAILED",
        "OPEN",
        "OPENED",
        "REFUSED",
        "UNREACHED",
        "RETRIES",
        "UP",
        "DOWN",
        "CONNECT P99",
    ];
    if routes.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = routes.iter().map(row).collect();
    format!("{}{}", if follows { "\n" } else { "" }, painted(&table(&headings, &rows), paint))
}

fn routes(routes: &[&Value], paint: Paint) -> String {
    let row = |route: &&Value| {
        let breaker = &route["breaker"];
        vec![
            text(&route["name"]),
            text(&route["upstream"]),
            text(&breaker["state"]),
            percent(&breaker["failure_rate"]),
            percent(&breaker["slow_rate"]),
            text(&route["degraded_since"]),
            text(&route["requests_total"]),
            text(&route["failures_total"]),
            text(&route["retries_total"]),
            text(&route["degraded_total"]),
            format!("{}ms", text(&route["latency_p50_ms"])),
            format!("{}ms", text(&route["latency_p99_ms"])),
        ]
    };
    let headings = [
        "ROUTE",
        "UPSTREAM",
        "BREAKER",
        "FAILED",
        "SLOW",
        "REDUCED SINCE",
        "REQUESTS",
        "FAILURES",
        "RETRIES",
        "REDUCED",
        "P50",
        "P99",
    ];
    let rows: Vec<Vec<String>> = routes.iter().map(row).collect();
    painted(&table(&headings, &rows), paint)
}

/// What routes have found out about their upstreams, where they look for it.
fn found_out(routes: &[Value]) -> String {
    let known = |route: &Value| {
        let allows = route["learned_limit_per_s"].as_f64().map(|limit| format!("{limit:.1}/s"));
        let at_once = route["concurrency_limit"].as_u64().map(|limit| limit.to_string());
        let or_none = |found: Option<String>| found.unwrap_or_else(|| "-".into());
        (allows.is_some() || at_once.is_some())
            .then(|| vec![text(&route["name"]), text(&route["upstream"]), or_none(allows), or_none(at_once)])
    };
    let rows: Vec<Vec<String>> = routes.iter().filter_map(known).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(&["ROUTE", "UPSTREAM", "SEEMS TO ALLOW", "CALLS AT ONCE"], &rows))
}

fn endpoints(upstreams: &[Value], paint: Paint) -> String {
    let mut rows = Vec::new();
    for upstream in upstreams {
        for endpoint in list(upstream, "endpoints") {
            let is_drained = endpoint["draining"].as_bool() == Some(true);
            let health = match (endpoint["healthy"].as_bool(), endpoint["ejected"].as_bool()) {
                _ if is_drained => "draining",
                (Some(true), Some(true)) => "ejected",
                (Some(true), _) if endpoint["ramp"].as_f64().is_some_and(|ramp| ramp < 1.0) => "slow_start",
                (Some(true), _) => "healthy",
                _ => "unhealthy",
            };
            rows.push(vec![
                text(&upstream["name"]),
                text(&endpoint["address"]),
                text(&endpoint["zone"]),
                text(&endpoint["version"]),
                text(&endpoint["weight"]),
                text(&endpoint["priority"]),
                health.into(),
                text(&endpoint["calls_total"]),
                text(&endpoint["in_flight"]),
                text(&endpoint["connections"]),
            ]);
        }
    }
    let heads = [
        "UPSTREAM",
        "ENDPOINT",
        "ZONE",
        "VERSION",
        "WEIGHT",
        "PRIORITY",
        "HEALTH",
        "CALLS",
        "IN FLIGHT",
        "CONNECTIONS",
    ];
    painted(&table(&heads, &rows), paint)
}

/// Colours have no width: they are put on when the columns stand.
fn painted(table: &str, paint: Paint) -> String {
    if !paint.0 {
        return table.into();
    }
    let words = ["closed", "half_open", "open", "healthy", "slow_start", "ejected", "draining", "unhealthy"];
    let paint_word = |word: &str| if words.contains(&word) { paint.state(word) } else { word.into() };
    let lines = table.lines().map(|line| line.split(' ').map(paint_word).collect::<Vec<_>>().join(" ") + "\n");
    lines.collect()
}

fn spool_facts(spool: &Value) -> String {
    let full = if spool["disk_full"].as_bool() == Some(true) { ", the disk is full" } else { "" };
    facts(&[
        ("spool waiting", text(&spool["waiting"])),
        ("being delivered", text(&spool["leased"])),
        ("dead letters", text(&spool["parked"])),
        ("oldest", seconds(&spool["oldest_s"])),
        ("size", format!("{} of {}{full}", size(&spool["bytes"]), size(&spool["bytes_max"]))),
    ]) + &deserted(&spool["deserted"])
}

/// What nobody delivers.
fn deserted(upstreams: &Value) -> String {
    let of = |(upstream, records): (&String, &Value)| {
        format!("{records} records for `{}` are not delivered: no route keeps writes for it\n", printable(upstream))
    };
    upstreams.as_object().into_iter().flatten().map(of).collect()
}

/// One line an entry, causes by number.
pub(super) fn journal(answer: &Value) -> String {
    list(answer, "entries").iter().map(entry).collect()
}

/// What a walk along the journal's chain found.
pub(super) fn verified(answer: &Value) -> String {
    let linked = answer["linked"].as_u64().unwrap_or(0);
    let mut text = match (answer["holds"] == true, linked) {
        (true, 0) => "there is nothing to vouch for: no entry carries a link\n".to_owned(),
        (true, _) => "the chain holds\n".to_owned(),
        (false, _) => format!("THE CHAIN DOES NOT HOLD, in {} places\n", self::text(&answer["breaks_total"])),
    };
    let breaks: Vec<Break> = serde_json::from_value(answer["breaks"].clone()).unwrap_or_default();
    for Break { seq, flaw } in breaks {
        let _ = writeln!(text, "  entry {seq} {}", flaw.description());
    }
    let _ = writeln!(text, "entries   {linked}");
    if let Some(unlinked @ 1..) = answer["unlinked"].as_u64() {
        let _ = writeln!(text, "unlinked  {unlinked}, written without a link: nothing vouches for them");
    }
    if let Some(first) = answer["first"].as_u64() {
        let elders = match (answer["starts_late"] == true, answer["front_is_told"] == true) {
            (true, true) => ", older ones went by retention, as the journal says",
            (true, false) => ", older ones went by retention or were taken away",
            (false, _) => "",
        };
        let _ = writeln!(text, "first     {first}{elders}");
    }
    if let Some(missing @ 1..) = answer["numbers_missing"].as_u64() {
        let _ = writeln!(text, "missing   {missing} numbers: not written, as the journal says itself where it could");
    }
    if answer["anchor_too_old"] == true {
        text += "anchor    older than the first entry left: it could not be compared\n";
    }
    if let Some(seq) = answer["head"]["seq"].as_u64() {
        let _ = writeln!(text, "head      {seq}:{}", self::text(&answer["head"]["tag"]));
    }
    text
}

/// One entry as one line.
pub(super) fn entry(entry: &Value) -> String {
    let mut line = format!(
        "{:>6}  {}  {:<20}  {}",
        text(&entry["seq"]),
        text(&entry["at"]),
        text(&entry["kind"]),
        text(&entry["subject"])
    );
    if let Some(cause) = entry["cause"].as_u64() {
        let _ = write!(line, "  because of {cause}");
    }
    for (name, value) in entry["fields"].as_object().into_iter().flatten() {
        let _ = write!(line, "  {name}={}", quoted(&text(value)));
    }
    line + "\n"
}

/// In quotes where a blank or worse would end the value.
fn quoted(value: &str) -> String {
    let plain = !value.is_empty() && value.chars().all(|c| c.is_alphanumeric() || ".,:;/%_-+".contains(c));
    if plain { value.into() } else { format!("{value:?}") }
}

/// What waits, oldest first.
pub(super) fn spool(answer: &Value) -> String {
    let row = |record: &Value| {
        let why = match record["parked"]["reason"].as_str() {
            Some(reason) => reason.to_string(),
            None if text(&record["last_error"]).is_empty() => text(&record["first_failure"]),
            None => text(&record["last_error"]),
        };
        vec![
            text(&record["id"]),
            text(&record["state"]),
            text(&record["upstream"]),
            text(&record["order_key"]),
            seconds(&record["age_s"]),
            text(&record["attempts"]),
            printable(&why),
        ]
    };
    let rows: Vec<Vec<String>> = list(answer, "records").iter().map(row).collect();
    if rows.is_empty() {
        return "nothing\n".into();
    }
    table(&["ID", "STATE", "UPSTREAM", "ORDER KEY", "AGE", "TRIES", "BECAUSE"], &rows)
}

/// What an upstream said must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Everything about a record.
pub(super) fn record(record: &Value) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    for key in [
        "id",
        "state",
        "upstream",
        "route",
        "method",
        "target",
        "order_key",
        "idempotency_key",
        "record",
        "body_bytes",
        "accepted",
        "attempts",
        "first_failure",
        "last_error",
    ] {
        if !record[key].is_null() && record[key] != "" {
            lines.push((key, printable(&text(&record[key]))));
        }
    }
    let headers: Vec<String> = list(record, "headers").iter().map(text).collect();
    if !headers.is_empty() {
        lines.push(("headers", headers.join(", ")));
    }
    for (key, value) in record["parked"].as_object().into_iter().flatten() {
        lines.push(match key.as_str() {
            "at" => ("parked at", text(value)),
            "reason" => ("parked because", printable(&text(value))),
            _ => ("last words", printable(&text(value))),
        });
    }
    for (key, value) in record["settled"].as_object().into_iter().flatten() {
        lines.push(match key.as_str() {
            "at" => ("settled at", text(value)),
            "status" => ("answered with", text(value)),
            _ => ("given up because", text(value)),
        });
    }
    facts(&lines)
}

/// The faults of a node, and its kill switch.
pub(super) fn faults(answer: &Value) -> String {
    let on = |fault: &Value| {
        let narrowed =
            ["route", "upstream", "endpoint", "zone", "version", "listener", "source", "method", "path", "path_prefix"];
        let mut parts: Vec<String> = narrowed
            .into_iter()
            .filter(|key| !fault[*key].is_null())
            .map(|key| format!("{key} {}", text(&fault[key])))
            .collect();
        parts.extend(fault["header"]["name"].as_str().map(|name| format!("header {name}")));
        printable(&parts.join(", "))
    };
    let share = |fault: &Value| {
        let said = |key: &str| Some(text(&fault[key])).filter(|_| !fault[key].is_null());
        let connections = || said("connections").map(|share| format!("{share} of connections"));
        let first = || said("first").map(|first| format!("first {first}"));
        let share = said("share").or_else(connections).or_else(first);
        share.unwrap_or_else(|| format!("one in {}", text(&fault["every"])))
    };
    let row = |fault: &Value| {
        vec![
            text(&fault["id"]),
            fault_kind(&fault["kind"]),
            on(fault),
            share(fault),
            seconds(&fault["left_s"]),
            text(&fault["requests"]),
            printable(&text(&fault["owner"])),
        ]
    };
    let rows: Vec<Vec<String>> = list(answer, "faults").iter().map(row).collect();
    let killed = answer["killed"]["reason"].as_str().map(|reason| {
        format!("the kill switch is on ({}): `seawall fault release` lets faults be placed again\n", printable(reason))
    });
    match (killed, rows.is_empty()) {
        (Some(killed), _) => killed,
        (None, true) => "no faults\n".into(),
        (None, false) => table(&["ID", "FAULT", "ON", "SHARE", "LEFT", "REQUESTS", "OWNER"], &rows),
    }
}

/// A word, or a name and what it needs.
fn fault_kind(kind: &Value) -> String {
    let Some((name, details)) = kind.as_object().and_then(|kind| kind.iter().next()) else { return text(kind) };
    let details: Vec<(&String, String)> =
        details.as_object().into_iter().flatten().map(|(key, value)| (key, text(value))).collect();
    match details.as_slice() {
        [(_, only)] => format!("{name} {only}"),
        several => {
            let several: Vec<String> = several.iter().map(|(key, value)| format!("{key} {value}")).collect();
            format!("{name} {}", several.join(", "))
        }
    }
}

/// A fault that has just been placed.
pub(super) fn fault_placed(fault: &Value, is_held: bool) -> String {
    let id = text(&fault["id"]);
    let then = match is_held {
        true => "held until this command is stopped".into(),
        false => format!("gone at {} unless it is renewed", text(&fault["expires_at"])),
    };
    format!("fault {id} is in force, seed {}: {then}\n", text(&fault["seed"]))
}

/// One that is gone.
pub(super) fn fault_gone(fault: &Value) -> String {
    format!("fault {} is gone; requests touched: {}\n", text(&fault["id"]), text(&fault["requests"]))
}

/// What the kill switch took away.
pub(super) fn faults_killed(answer: &Value) -> String {
    let gone: String = list(answer, "faults").iter().map(fault_gone).collect();
    format!("{gone}the kill switch is on: no fault can be placed until `seawall fault release`\n")
}

/// The accounts and the verdict.
pub(super) fn ledger(answer: &Value, paint: Paint) -> String {
    let mut columns = vec![
        ("stream", "STREAM"),
        ("producer", "PRODUCER"),
        ("epoch", "EPOCH"),
        ("state", "STATE"),
        ("accepted", "ACCEPTED"),
        ("delivered", "DELIVERED"),
        ("waiting", "WAITING"),
        ("parked", "PARKED"),
        ("expired", "EXPIRED"),
        ("missing_so_far", "MISSING"),
        ("lost", "LOST"),
        ("duplicated", "DUPLICATED"),
        ("corrupted", "CORRUPTED"),
        ("phantom", "PHANTOM"),
        ("indeterminate", "IN DOUBT"),
        ("recovered", "RECOVERED"),
        ("refused", "REFUSED"),
        ("resurrected", "RESURRECTED"),
    ];
    // Few nodes ever have any of these.
    let totals = &answer["totals"];
    let rare = [("handed_over", "HANDED OVER"), ("unproven", "UNPROVEN")];
    columns.extend(rare.into_iter().filter(|(key, _)| totals[*key].as_u64() > Some(0)));
    let cell = |of: &Value, key: &str| if of[key].is_null() { "0".into() } else { text(&of[key]) };
    let row = |account: &Value| columns.iter().map(|(key, _)| cell(account, key)).collect();
    let mut rows: Vec<Vec<String>> = list(answer, "streams").iter().map(row).collect();
    let mut total = vec!["total".to_string(), String::new(), "-".into(), String::new()];
    total.extend(columns[4..].iter().map(|(key, _)| cell(totals, key)));
    rows.push(total);
    let verdict = text(&answer["verdict"]);
    let words = match verdict.as_str() {
        "balanced" => "every record is accounted for",
        "imbalanced" => "something was lost, repeated, damaged or never sent",
        _ if totals["unproven"].as_u64() > Some(0) => "something arrived that cannot be judged here",
        _ => "no sink has reported yet, or records are still on their way",
    };
    let headings: Vec<&str> = columns.iter().map(|(_, heading)| *heading).collect();
    format!("{}\n{}: {words}\n", table(&headings, &rows), paint.state(&verdict))
}

/// What a comparison with a sink's own rows found.
pub(super) fn reconciled(answer: &Value) -> String {
    let number = |key: &str| text(&answer[key]);
    let mut out = format!(
        "stream {}, {} to {}: {} keys accepted, {} rows in the file\n",
        number("stream"),
        number("since"),
        number("until"),
        number("accepted"),
        number("rows")
    );
    if answer["is_complete"] != true {
        out += "the node cannot say everything it accepted in this time: it crashed or did not run, or it is not over yet\n";
    }
    for (what, words) in [
        ("missing", "accepted, and not in the file"),
        ("duplicated", "more often in the file than accepted"),
        ("extra", "in the file, and not accepted in this time"),
    ] {
        for named in list(answer, what) {
            let key = named["key"].as_str().map(|key| format!("  {}", printable(key))).unwrap_or_default();
            let times = if named["times"] == 1 { String::new() } else { format!("  {} times", named["times"]) };
            out += &format!("{what:<10}  {}{key}{times}  ({words})\n", text(&named["hash"]));
        }
    }
    out += match (answer["is_same"] == true, answer["all_named"] == true) {
        (true, _) => "the same keys, each as often\n",
        (false, true) => "these are all the differences\n",
        (false, false) => "there are more differences than can be named: choose a shorter period\n",
    };
    out
}
