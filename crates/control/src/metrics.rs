//! The node's numbers as Prometheus text (format 0.0.4), drawn from the same snapshot as status and page.
//!
//! Labels are bounded: names from the configuration and words of ours, never anything a request brought along. What
//! has not happened yet is shown as zero, so that a rate can be computed from the first event on.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use seawall_core::drain::{Standing, Target};
use seawall_core::guard::Refusal;
use seawall_core::guard::breaker::StateName;
use seawall_core::ledger::{Counts, Summary, Verdict};
use seawall_core::observation::{DURATION_BUCKETS_S, Ended, LATENCY_BUCKETS_S, NodeSnapshot, RouteSnapshot};
use seawall_core::outcome::Failure;
use seawall_core::policy::Protocol;
use seawall_core::spool::Depth;

use crate::Admin;
use crate::api::only;
use crate::parts::AdminParts;
use crate::status;

const BREAKER_OFF: &str = "off";
const FALLBACKS: [&str; 4] = ["spool", "stale", "static", "upstream"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

pub(crate) fn router() -> Router<Admin> {
    Router::new().route("/metrics", only(&["GET", "HEAD"], get(serve)))
}

async fn serve(State(admin): State<Admin>) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    (headers, render(admin.parts())).into_response()
}

/// Every metric of the node.
#[must_use]
pub fn render(parts: &AdminParts) -> String {
    let mut text = Text(String::with_capacity(16 << 10));
    let snapshot = (parts.view)();
    node(&mut text, parts, &snapshot);
    routes(&mut text, &snapshot.routes);
    connections(&mut text, &snapshot.routes);
    upstreams(&mut text, &snapshot);
    limits(&mut text, &snapshot);
    certificates(&mut text, parts);
    faults(&mut text, parts, &snapshot.routes);
    drains(&mut text, &snapshot.drains);
    spool(&mut text, parts);
    replica(&mut text, parts);
    journal(&mut text, parts);
    ledger(&mut text, &parts.ledger.summary());
    text.0
}

/// Labels and their values.
type Labels<'l> = &'l [(&'l str, &'l str)];

struct Text(String);

impl Text {
    /// Begins a family; its samples follow.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{label}=\"{}\"", escaped(value));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// One sample a route.
    fn per_route<'r, V: Display>(
        &mut self,
        routes: impl IntoIterator<Item = &'r RouteSnapshot>,
        name: &str,
        kind: &str,
        help: &str,
        value: impl Fn(&RouteSnapshot) -> V,
    ) {
        self.family(name, kind, help);
        for route in routes {
            self.sample(name, &[("route", &route.name)], value(route));
        }
    }

    /// One histogram of a route, from counts that are not cumulative, the rest last.
    fn histogram(&mut self, name: &str, route: &str, bounds: &[f64], counts: &[u64], sum: f64) {
        let bucket = format!("{name}_bucket");
        let mut counts = counts.iter().copied().chain(std::iter::repeat(0));
        let mut cumulative = 0;
        for bound in bounds {
            cumulative += counts.next().unwrap_or(0);
            self.sample(&bucket, &[("route", route), ("le", &bound.to_string())], cumulative);
        }
        cumulative += counts.next().unwrap_or(0);
        self.sample(&bucket, &[("route", route), ("le", "+Inf")], cumulative);
        self.sample(&format!("{name}_sum"), &[("route", route)], sum);
        self.sample(&format!("{name}_count"), &[("route", route)], cumulative);
    }

    /// Samples of a route by a second label, with a zero for each known word that has not come up.
    fn by_word(
        &mut self,
        name: &str,
        route: &str,
        label: &str,
        known: &[&'static str],
        counts: &[(&'static str, u64)],
    ) {
        let mut all: BTreeMap<&str, u64> = known.iter().map(|word| (*word, 0)).collect();
        for (word, count) in counts {
            *all.entry(word).or_default() += count;
        }
        for (word, count) in all {
            self.sample(name, &[("route", route), (label, word)], count);
        }
    }
}

/// As the format wants label values: backslash, quote and line feed escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn node(text: &mut Text, parts: &AdminParts, snapshot: &NodeSnapshot) {
    let info = &parts.info;
    text.family("seawall_build_info", "gauge", "What runs here; always 1.");
    let git = info.git.as_deref().unwrap_or("unknown");
    let labels = [("version", info.version.as_str()), ("git", git), ("node", &info.node), ("zone", &info.zone)];
    text.sample("seawall_build_info", &labels, 1);
    text.family("seawall_config_info", "gauge", "Digest of the configuration in force; always 1.");
    text.sample("seawall_config_info", &[("digest", &parts.config.digest())], 1);
    let started = info.started_at.as_millis() as f64 / 1_000.0;
    text.single("seawall_start_time_seconds", "gauge", "When the node started, in seconds since 1970.", started);
    let ready = u8::from((parts.ready)().is_ok());
    text.single("seawall_ready", "gauge", "1 while traffic should come here.", ready);
    let help = "Client connections open now.";
    text.single("seawall_client_connections", "gauge", help, snapshot.connections);
    let help = "Client connections accepted.";
    text.single("seawall_client_connections_total", "counter", help, snapshot.connections_total);
    text.family("seawall_rejected_total", "counter", "Requests that matched no route or never became one, by reason.");
    for (reason, count) in &snapshot.rejected {
        text.sample("seawall_rejected_total", &[("reason", reason)], count);
    }
}

fn certificates(text: &mut Text, parts: &AdminParts) {
    let name = "seawall_certificate_expiry_timestamp_seconds";
    text.family(name, "gauge", "Until when a certificate in use holds, in seconds since 1970.");
    for certificate in (parts.certificates)() {
        let labels = [("subject", certificate.subject.as_str()), ("file", &certificate.file)];
        text.sample(name, &labels, certificate.not_after_ms / 1_000);
    }
}

/// Those that carry requests; what is counted of requests and answers is theirs alone.
fn of_requests(routes: &[RouteSnapshot]) -> impl Iterator<Item = &RouteSnapshot> + Clone {
    routes.iter().filter(|route| route.protocol == Protocol::Http)
}

fn routes(text: &mut Text, routes: &[RouteSnapshot]) {
    let (name, http) = ("seawall_requests_total", of_requests(routes));
    text.family(name, "counter", "Requests answered, by class of status.");
    for route in http.clone() {
        for (class, count) in CLASSES.iter().zip(route.answers) {
            text.sample(name, &[("route", &route.name), ("class", class)], count);
        }
    }
    let help = "Time from a request's head to its answer's end.";
    latency(text, "seawall_request_duration_seconds", help, http.clone());
    breakers(text, routes);
    failures(text, routes);
    let help = "Retries sent.";
    text.per_route(routes, "seawall_retries_total", "counter", help, |route| route.retries_total);
    let help = "Second copies sent of calls that were slow to answer.";
    text.per_route(http.clone(), "seawall_hedges_total", "counter", help, |route| route.hedges_total);
    let help = "Second copies that answered first.";
    text.per_route(http.clone(), "seawall_hedges_won_total", "counter", help, |route| route.hedges_won_total);
    let help = "Retries that the budget refused.";
    text.per_route(routes, "seawall_retries_refused_total", "counter", help, |route| route.retries_refused_total);
    let help = "Free resends after a pooled connection turned out to be closed.";
    text.per_route(http.clone(), "seawall_resends_total", "counter", help, |route| route.resends_total);
    let help = "Requests whose client went away first.";
    text.per_route(http.clone(), "seawall_cancelled_total", "counter", help, |route| route.cancelled_total);
    let help = "Answers whose body broke after its head had gone to the client.";
    text.per_route(http.clone(), "seawall_cut_total", "counter", help, |route| route.cut_total);
    let help = "Answers whose trailers were left out because the answer had not announced them.";
    text.per_route(http, "seawall_trailers_dropped_total", "counter", help, |route| route.trailers_dropped_total);
    let name = "seawall_version_requests_total";
    text.family(name, "counter", "Requests meant for a version of the upstream, by class of status.");
    for route in routes {
        for (version, counts) in &route.versions {
            for (class, count) in CLASSES.iter().zip(counts.answers) {
                text.sample(name, &[("route", &route.name), ("version", version), ("class", class)], count);
            }
        }
    }
    let name = "seawall_mirrored_total";
    text.family(name, "counter", "Copies of requests, by what became of them.");
    for route in routes {
        for (how, count) in &route.mirrored {
            text.sample(name, &[("route", &route.name), ("how", how)], count);
        }
    }
    let name = "seawall_version_elsewhere_total";
    text.family(name, "counter", "Tries that went to another version, as no endpoint of the one meant was well.");
    for route in routes {
        for (version, counts) in &route.versions {
            text.sample(name, &[("route", &route.name), ("version", version)], counts.elsewhere);
        }
    }
    let name = "seawall_learned_limit";
    text.family(name, "gauge", "Calls per second that the upstream is thought to allow, where one was felt.");
    for (route, limit) in routes.iter().filter_map(|route| Some((route, route.learned_limit_per_s?))) {
        text.sample(name, &[("route", &route.name)], limit);
    }
    let name = "seawall_concurrency_limit";
    text.family(name, "gauge", "Calls at once that are thought right, where that is looked for.");
    for (route, limit) in routes.iter().filter_map(|route| Some((route, route.concurrency_limit?))) {
        text.sample(name, &[("route", &route.name)], limit);
    }
    let help = "Calls on their way now, and connections.";
    text.per_route(routes, "seawall_in_flight", "gauge", help, |route| route.in_flight);
    let help = "Calls and connections that wait for a place now.";
    text.per_route(routes, "seawall_waiting", "gauge", help, |route| route.waiting);
}

/// Routes of connections, and those whose requests may become one.
fn connections(text: &mut Text, routes: &[RouteSnapshot]) {
    let tcp = routes.iter().filter(|route| route.protocol == Protocol::Tcp);
    let help = "Time from a client's connection to the upstream's.";
    latency(text, "seawall_connect_duration_seconds", help, tcp);
    let tcp = routes.iter().filter(|route| route.carries_connections);
    let help = "Connections accepted, and those upgraded.";
    let name = "seawall_connections_opened_total";
    text.per_route(tcp.clone(), name, "counter", help, |route| route.connections.opened_total);
    let help = "Connections open now, those that do not stand yet included.";
    text.per_route(tcp.clone(), "seawall_connections_open", "gauge", help, |route| route.connections.open);
    let name = "seawall_connections_ended_total";
    text.family(name, "counter", "Connections that have ended, by how.");
    for route in tcp.clone() {
        text.by_word(name, &route.name, "how", &Ended::ALL.map(Ended::name), &route.connections.ended);
    }
    let name = "seawall_connection_bytes_total";
    text.family(name, "counter", "Bytes handed on, to the upstream (up) and to clients (down).");
    for route in tcp.clone() {
        text.sample(name, &[("route", &route.name), ("direction", "up")], route.connections.bytes_up_total);
        text.sample(name, &[("route", &route.name), ("direction", "down")], route.connections.bytes_down_total);
    }
    let name = "seawall_connection_duration_seconds";
    text.family(name, "histogram", "How long connections lasted that reached the upstream and have ended.");
    for route in tcp {
        let seen = &route.connections;
        text.histogram(name, &route.name, &DURATION_BUCKETS_S, &seen.duration_counts, seen.duration_sum_s);
    }
}

fn latency<'r>(text: &mut Text, name: &str, help: &str, routes: impl Iterator<Item = &'r RouteSnapshot>) {
    text.family(name, "histogram", help);
    for route in routes {
        text.histogram(name, &route.name, &LATENCY_BUCKETS_S, &route.latency_counts, route.latency_sum_s);
    }
}

fn breakers(text: &mut Text, routes: &[RouteSnapshot]) {
    let name = "seawall_breaker_state";
    text.family(name, "gauge", "1 for the state the breaker is in, 0 for the others.");
    for route in routes {
        for state in StateName::ALL.map(StateName::name).into_iter().chain([BREAKER_OFF]) {
            let is = u8::from(route.breaker.state == state);
            text.sample(name, &[("route", &route.name), ("state", state)], is);
        }
    }
    let help = "How often the breaker opened.";
    text.per_route(routes, "seawall_breaker_opened_total", "counter", help, |route| route.breaker.opened_total);
    let help = "1 while answers are reduced.";
    text.per_route(of_requests(routes), "seawall_degraded", "gauge", help, |route| {
        u8::from(route.degraded_since_ms.is_some())
    });
}

fn failures(text: &mut Text, routes: &[RouteSnapshot]) {
    text.family("seawall_failures_total", "counter", "Tries that failed, by kind.");
    for route in routes {
        text.by_word("seawall_failures_total", &route.name, "kind", &Failure::NAMES, &route.failures);
    }
    text.family("seawall_refused_total", "counter", "Requests and connections refused by a guard, by rule.");
    for route in routes {
        text.by_word("seawall_refused_total", &route.name, "rule", &Refusal::RULES, &route.refused);
    }
    text.family("seawall_degraded_total", "counter", "Reduced answers, by what stood in.");
    for route in of_requests(routes) {
        text.by_word("seawall_degraded_total", &route.name, "how", &FALLBACKS, &route.degraded);
    }
}

fn upstreams(text: &mut Text, snapshot: &NodeSnapshot) {
    let endpoints = || {
        let all = snapshot.upstreams.iter();
        all.flat_map(|upstream| upstream.endpoints.iter().map(|endpoint| (upstream.name.as_str(), endpoint)))
    };
    text.family("seawall_endpoint_healthy", "gauge", "1 while an endpoint passes its health check.");
    for (upstream, endpoint) in endpoints() {
        let labels = [("upstream", upstream), ("endpoint", endpoint.address.as_str())];
        text.sample("seawall_endpoint_healthy", &labels, u8::from(endpoint.healthy));
    }
    let name = "seawall_endpoint_ejected";
    text.family(name, "gauge", "1 while an endpoint gets no calls because it did worse than its peers.");
    for (upstream, endpoint) in endpoints() {
        let labels = [("upstream", upstream), ("endpoint", endpoint.address.as_str())];
        text.sample(name, &labels, u8::from(endpoint.ejected));
    }
    let name = "seawall_endpoint_info";
    text.family(name, "gauge", "Zone and version of an endpoint, where they are told; always 1.");
    for (upstream, endpoint) in endpoints() {
        let (zone, version) = (endpoint.zone.as_deref(), endpoint.version.as_deref());
        let labels = [
            ("upstream", upstream),
            ("endpoint", endpoint.address.as_str()),
            ("zone", zone.unwrap_or_default()),
            ("version", version.unwrap_or_default()),
        ];
        text.sample(name, &labels, 1);
    }
    let name = "seawall_endpoint_ramp";
    text.family(name, "gauge", "The part of its share that an endpoint gets: below 1 while it has just come back.");
    for (upstream, endpoint) in endpoints() {
        text.sample(name, &[("upstream", upstream), ("endpoint", endpoint.address.as_str())], endpoint.ramp);
    }
    let name = "seawall_endpoint_calls_total";
    text.family(name, "counter", "Calls sent to an endpoint, tries and second copies counted apart, by its zone.");
    for (upstream, endpoint) in endpoints() {
        let zone = endpoint.zone.as_deref().unwrap_or_default();
        let labels = [("upstream", upstream), ("endpoint", endpoint.address.as_str()), ("zone", zone)];
        text.sample(name, &labels, endpoint.calls_total);
    }
    let name = "seawall_spilled_total";
    text.family(name, "counter", "Calls that went elsewhere than to the nearest endpoints.");
    for upstream in &snapshot.upstreams {
        text.sample(name, &[("upstream", &upstream.name)], upstream.spilled_total);
    }
    let name = "seawall_spilling";
    text.family(name, "gauge", "1 while so many calls go elsewhere that the journal was told.");
    for upstream in &snapshot.upstreams {
        text.sample(name, &[("upstream", &upstream.name)], u8::from(upstream.is_spilling));
    }
    text.family("seawall_endpoint_in_flight", "gauge", "Calls on their way to an endpoint now.");
    for (upstream, endpoint) in endpoints() {
        let labels = [("upstream", upstream), ("endpoint", endpoint.address.as_str())];
        text.sample("seawall_endpoint_in_flight", &labels, endpoint.in_flight);
    }
    text.family("seawall_endpoint_connections", "gauge", "Connections open to an endpoint now.");
    for (upstream, endpoint) in endpoints() {
        let labels = [("upstream", upstream), ("endpoint", endpoint.address.as_str())];
        text.sample("seawall_endpoint_connections", &labels, endpoint.connections);
    }
    let name = "seawall_dns_failures_total";
    text.family(name, "counter", "Times the name of an endpoint was asked for in vain.");
    for (upstream, endpoint) in endpoints() {
        let labels = [("upstream", upstream), ("endpoint", endpoint.address.as_str())];
        text.sample(name, &labels, endpoint.lookups_failed_total);
    }
    let name = "seawall_dns_addresses";
    text.family(
        name,
        "gauge",
        "Addresses that the name of an endpoint has; 0 before it is asked for, and of an address.",
    );
    for (upstream, endpoint) in endpoints() {
        let labels = [("upstream", upstream), ("endpoint", endpoint.address.as_str())];
        text.sample(name, &labels, endpoint.addresses.len());
    }
}

fn limits(text: &mut Text, snapshot: &NodeSnapshot) {
    text.family("seawall_limit", "gauge", "Value of a limit of the node.");
    for limit in &snapshot.limits {
        text.sample("seawall_limit", &[("limit", limit.name)], limit.value);
    }
    text.family("seawall_limit_used", "gauge", "What is used of a limit now, where that can be told.");
    for limit in &snapshot.limits {
        if let Some(used) = limit.used {
            text.sample("seawall_limit_used", &[("limit", limit.name)], used);
        }
    }
    text.family("seawall_limit_reached_total", "counter", "How often a limit was reached.");
    for limit in &snapshot.limits {
        text.sample("seawall_limit_reached_total", &[("limit", limit.name)], limit.reached_total);
    }
}

/// What is out of service by hand.
fn drains(text: &mut Text, drains: &[Standing]) {
    text.family("seawall_drains", "gauge", "What is taken out of service by hand, by kind.");
    for kind in Target::KINDS {
        let count = drains.iter().filter(|standing| standing.kind == kind).count();
        text.sample("seawall_drains", &[("kind", kind)], count);
    }
    let name = "seawall_drain_left";
    text.family(name, "gauge", "Calls on their way and connections open of what is drained.");
    for Standing { kind, name: of, calls, connections, .. } in drains {
        for (what, count) in [("calls", calls), ("connections", connections)] {
            text.sample(name, &[("kind", kind), ("name", of), ("what", what)], count);
        }
    }
}

/// Faults: those that lie there and the last that ended, so that a label does not grow for ever.
fn faults(text: &mut Text, parts: &AdminParts, routes: &[RouteSnapshot]) {
    let look = parts.faults.as_ref().map(|faults| faults.look());
    let (standing, ended, killed) =
        look.map_or_else(Default::default, |look| (look.standing, look.ended, look.killed.is_some()));
    text.single("seawall_faults_active", "gauge", "Faults that lie there now.", standing.len());
    let help = "1 while the kill switch is on: no fault can be placed.";
    text.single("seawall_faults_killed", "gauge", help, u8::from(killed));
    let name = "seawall_fault_requests_total";
    text.family(name, "counter", "Requests a fault has touched: those that lie there, and the last that ended.");
    for fault in ended.iter().chain(standing.iter().map(|standing| &standing.fault)) {
        text.sample(name, &[("fault", &fault.id.to_string()), ("kind", fault.kind.name())], fault.requests);
    }
    let help = "Requests of a route that a fault has touched, and deliveries from the spool.";
    text.per_route(of_requests(routes), "seawall_faulted_total", "counter", help, |route| route.faulted_total);
}

/// The copy of the spool in the replicated engine, where one is kept.
fn replica(text: &mut Text, parts: &AdminParts) {
    let Some(status) = parts.spool.replica() else { return };
    text.family("seawall_replica_state", "gauge", "1 for the state the replica is in.");
    for state in ["comparing", "current", "down", "refused", "superseded"] {
        text.sample("seawall_replica_state", &[("state", state)], u8::from(status.state.name() == state));
    }
    let gauge = "gauge";
    text.single(
        "seawall_replica_behind_records",
        gauge,
        "Records whose latest the replica does not have.",
        status.behind,
    );
    text.single("seawall_replica_records", gauge, "Records and remembered keys the replica holds.", status.held);
    text.single("seawall_replica_bytes", gauge, "Bytes of this node's messages in the stream.", status.held_bytes);
    let help = "Records that only the replica has: this directory has lost them.";
    text.single("seawall_replica_missing_records", gauge, help, status.missing);
    let counter = "counter";
    let mut count = |name, help, value| text.single(name, counter, help, value);
    count("seawall_replica_letters_total", "Letters confirmed by the stream.", status.letters_total);
    count("seawall_replica_records_total", "Records these were about.", status.records_total);
    count("seawall_replica_lost_total", "Letters without an answer, or refused.", status.lost_total);
    count("seawall_replica_unreadable_total", "Records that could not be read here for it.", status.unreadable_total);
    count("seawall_replica_misread_total", "Messages of the stream nobody understood.", status.misread_total);
}

fn spool(text: &mut Text, parts: &AdminParts) {
    let (depth, now) = (parts.spool.depth(), (parts.wall)());
    let known = (parts.view)().upstreams.into_iter().map(|upstream| (upstream.name, Depth::default()));
    let mut upstreams: BTreeMap<String, Depth> = known.collect();
    upstreams.extend(parts.spool.depths());
    text.family("seawall_spool_records", "gauge", "Records in the spool, by upstream and state.");
    for (upstream, depth) in &upstreams {
        for (state, count) in [("waiting", depth.waiting), ("leased", depth.leased), ("parked", depth.parked)] {
            text.sample("seawall_spool_records", &[("upstream", upstream), ("state", state)], count);
        }
    }
    let deserted: u64 = status::deserted(parts, &(parts.view)()).values().sum();
    let help = "Records to be delivered to upstreams that no route keeps writes for.";
    text.single("seawall_spool_deserted_records", "gauge", help, deserted);
    text.single("seawall_spool_bytes", "gauge", "Bytes of the records in the spool.", depth.bytes);
    text.single("seawall_spool_max_bytes", "gauge", "Bytes the records in the spool may take.", depth.bytes_max);
    text.single("seawall_spool_disk_bytes", "gauge", "Bytes of the spool's files.", depth.disk_bytes);
    let oldest = depth.oldest.map_or(0.0, |at| now.since(at).as_secs_f64());
    text.single(
        "seawall_spool_oldest_age_seconds",
        "gauge",
        "Age of the oldest record to be delivered; 0 if none.",
        oldest,
    );
    let full = u8::from(depth.disk_full);
    text.single("seawall_spool_disk_full", "gauge", "1 while the disk has no room for another record.", full);
    let failed = u8::from(parts.spool.failure().is_some());
    text.single("seawall_spool_failed", "gauge", "1 once the spool has stopped for good.", failed);
    let forgotten = depth.keys_forgotten_early_total;
    let help = "Idempotency keys forgotten before their time.";
    text.single("seawall_spool_keys_forgotten_early_total", "counter", help, forgotten);
}

fn journal(text: &mut Text, parts: &AdminParts) {
    let journal = &parts.journal;
    let last = journal.last().map_or(0, |seq| seq.0);
    text.single("seawall_journal_entries_total", "counter", "Entries recorded since the journal began.", last);
    let help = "Entries that could not be written.";
    text.single("seawall_journal_dropped_total", "counter", help, journal.dropped_total());
    text.single("seawall_journal_disk_bytes", "gauge", "Bytes of the journal's files.", journal.disk_bytes());
}

/// Classes that only grow.
fn grown(counts: &Counts) -> [(&'static str, u64); 10] {
    [
        ("accepted", counts.accepted),
        ("refused", counts.refused),
        ("indeterminate", counts.indeterminate),
        ("delivered", counts.delivered),
        ("duplicated", counts.duplicated),
        ("corrupted", counts.corrupted),
        ("recovered", counts.recovered),
        ("resurrected", counts.resurrected),
        ("late", counts.late),
        ("unnumbered", counts.unnumbered),
    ]
}

/// Where accepted records are that have not arrived.
fn held(counts: &Counts) -> [(&'static str, u64); 6] {
    [
        ("waiting", counts.waiting),
        ("parked", counts.parked),
        ("expired", counts.expired),
        ("handed_over", counts.handed_over),
        ("missing_so_far", counts.missing_so_far),
        ("lost", counts.lost),
    ]
}

/// Counts by stream and word.
type ByStream<'s> = BTreeMap<(&'s str, &'static str), u64>;

fn add<'s>(sums: &mut ByStream<'s>, stream: &'s str, counts: impl IntoIterator<Item = (&'static str, u64)>) {
    for (word, count) in counts {
        *sums.entry((stream, word)).or_default() += count;
    }
}

fn ledger(text: &mut Text, summary: &Summary) {
    text.family("seawall_ledger_verdict", "gauge", "1 for the ledger's verdict, 0 for the others.");
    for (name, verdict) in
        [("balanced", Verdict::Balanced), ("unknown", Verdict::Unknown), ("imbalanced", Verdict::Imbalanced)]
    {
        text.sample("seawall_ledger_verdict", &[("verdict", name)], u8::from(summary.verdict == verdict));
    }
    // Epochs are summed up: each start of the node makes one, and a label must not grow with them.
    let (mut classes, mut states): (ByStream<'_>, ByStream<'_>) = Default::default();
    for stream in &summary.streams {
        add(&mut classes, &stream.stream, grown(&stream.counts));
        add(&mut states, &stream.stream, held(&stream.counts));
    }
    text.family("seawall_ledger_records_total", "counter", "Records on the ledger, by stream and class.");
    for ((stream, class), count) in &classes {
        text.sample("seawall_ledger_records_total", &[("stream", stream), ("class", class)], count);
    }
    text.family("seawall_ledger_outstanding", "gauge", "Accepted records that have not arrived, by where they are.");
    for ((stream, state), count) in &states {
        text.sample("seawall_ledger_outstanding", &[("stream", stream), ("state", state)], count);
    }
    let phantom = summary.totals.phantom;
    text.single("seawall_ledger_phantoms_total", "counter", "Arrivals that nobody here sent.", phantom);
    let unproven = summary.totals.unproven;
    text.single("seawall_ledger_unproven_total", "counter", "Arrivals that cannot be judged here.", unproven);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut text = Text(String::new());
        text.sample("m", &[("a", "x\"y\\z\n"), ("b", "")], 1.5);
        text.sample("m", &[], 0);
        assert_eq!(text.0, "m{a=\"x\\\"y\\\\z\\n\",b=\"\"} 1.5\nm 0\n");
    }

    #[test]
    fn a_word_nobody_knew_is_shown_all_the_same() {
        let mut text = Text(String::new());
        text.by_word("m", "r", "kind", &["dns"], &[("new", 2)]);
        assert_eq!(text.0, "m{route=\"r\",kind=\"dns\"} 0\nm{route=\"r\",kind=\"new\"} 2\n");
    }
}
