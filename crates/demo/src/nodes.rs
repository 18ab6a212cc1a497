//! The Seawall nodes of the second run: their configuration, and what their admin API tells.
//!
//! One node a zone. The numbers are chosen for clients that wait a second: a node tries for at most 450 ms and then
//! takes the write itself, which leaves room for a busy machine. The routes say what each call can bear: writes wait in
//! the spool, a price may be old, an empty lease is a true answer for "nothing to take just now", and an
//! acknowledgement that got lost only means that events are worked on twice, which keys make harmless.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::web::{Ask, Client, Got};

const TIMEOUT: Duration = Duration::from_millis(1_500);

/// Where everything of one node is.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its zone, and its name.
    pub zone: String,
    /// Its data port.
    pub listen: String,
    /// Its admin port.
    pub admin: String,
}

/// Where the company's own servers are, as `host:port`.
#[derive(Clone, Debug)]
pub struct Servers {
    /// The managed queue.
    pub queue: String,
    /// The carrier.
    pub carrier: String,
    /// The warehouse.
    pub warehouse: String,
}

/// A node's `seawall.yaml`.
#[must_use]
pub fn config(node: &Node, zones: &[&str], servers: &Servers, data: &Path) -> String {
    let Node { zone, listen, admin } = node;
    let Servers { queue, carrier, warehouse } = servers;
    let (zones, data) = (zones.join(", "), serde_json::Value::from(data.display().to_string()));
    format!(
        r#"# Written by `seawall demo`: the node of one zone of the logistics company.
zone: {zone}
zones: [{zones}]
node: {zone}

store:
  path: {data}

listeners:
  - address: {listen}
    routes:
      - name: events
        match: {{ path: /events, method: POST }}
        upstream: queue
        policy: writes
      - name: lease
        match: {{ path: /events/lease, method: GET }}
        upstream: queue
        policy: takes
      - name: ack
        match: {{ path: /events/ack, method: POST }}
        upstream: queue
        policy: acks
      - name: quotes
        match: {{ path: /quote, method: GET }}
        upstream: carrier
        policy: prices
      - name: predictions
        match: {{ path: /predictions, method: POST }}
        upstream: warehouse
        policy: writes

upstreams:
  queue:
    endpoints: [ {{ address: "{queue}", zone: us-east }} ]
    health: {{ path: /healthz, every: 2s, timeout: 1s, unhealthy_after: 3, healthy_after: 2 }}
  carrier: {{ url: "http://{carrier}" }}
  warehouse: {{ url: "http://{warehouse}" }}

policies:
  writes:
    timeout: 450ms
    try_timeout: 200ms
    retry: {{ attempts: 2, backoff: 20ms..100ms, budget: 20%, budget_floor: 3/s }}
    breaker: {{ failure_rate: 50%, slow: 60% over 150ms, window: 40 calls, calls_min: 10, open_for: 1s, open_for_max: 2s, half_open_calls: 3, half_open_for: 2s }}
    fallback: spool
    order_by: header:Shipment-Id
    delivery: {{ attempts: 1000, parallel: 8 }}
  takes:
    timeout: 450ms
    try_timeout: 200ms
    retry: {{ attempts: 2, backoff: 20ms..100ms, budget: 20%, budget_floor: 3/s }}
    breaker: {{ failure_rate: 50%, slow: 60% over 150ms, window: 20 calls, calls_min: 8, open_for: 1s, open_for_max: 2s, half_open_calls: 2, half_open_for: 2s }}
    fallback: {{ static: {{ status: 200, content_type: text/plain, body: "" }} }}
  acks:
    timeout: 450ms
    try_timeout: 200ms
    retry: {{ attempts: 2, backoff: 20ms..100ms, budget: 20%, budget_floor: 3/s }}
    breaker: {{ failure_rate: 50%, slow: 60% over 150ms, window: 20 calls, calls_min: 8, open_for: 1s, open_for_max: 2s, half_open_calls: 2, half_open_for: 2s }}
    fallback: {{ static: {{ status: 202, content_type: text/plain, body: "not told to the queue" }} }}
  prices:
    timeout: 450ms
    try_timeout: 200ms
    retry: {{ attempts: 2, backoff: 50ms..200ms, budget: 20%, budget_floor: 3/s }}
    breaker: {{ failure_rate: 50%, slow: 60% over 150ms, window: 40 calls, calls_min: 10, open_for: 1s, open_for_max: 2s, half_open_calls: 3, half_open_for: 2s }}
    fallback: [ {{ stale: 10m }}, {{ static: {{ status: 200, content_type: application/json, body: '{{"price_cents":null}}' }} }} ]

admin: {{ address: {admin} }}
"#
    )
}

/// A look at a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeSample {
    /// Records in the spool, waiting or on their way.
    pub spooled: u64,
    /// Dead letters.
    pub parked: u64,
    /// Each route and its breaker's state.
    pub breakers: Vec<(String, String)>,
}

impl NodeSample {
    /// Reads `/api/status`.
    #[must_use]
    pub fn of(status: &Value) -> Self {
        let spool = |field: &str| status["spool"][field].as_u64().unwrap_or(0);
        let breaker = |route: &Value| {
            let state = route["breaker"]["state"].as_str().unwrap_or("off");
            Some((route["name"].as_str()?.to_string(), state.to_string()))
        };
        Self {
            spooled: spool("waiting") + spool("leased"),
            parked: spool("parked"),
            breakers: status["routes"].as_array().into_iter().flatten().filter_map(breaker).collect(),
        }
    }
}

/// An entry of a node's journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The node.
    pub node: String,
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// What.
    pub kind: String,
    /// To what.
    pub subject: String,
}

/// A stream's account, as a node's ledger tells it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    /// The node.
    pub node: String,
    /// Its verdict.
    pub verdict: String,
    /// The streams, as the node told them.
    pub streams: Vec<Value>,
}

/// Asks one node's admin API.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
    node: Node,
}

impl Admin {
    /// For this node.
    #[must_use]
    pub fn new(client: Client, node: Node) -> Self {
        Self { client, node }
    }

    async fn ask(&self, ask: Ask) -> Option<Value> {
        let got: Got = self.client.send_within(TIMEOUT, &self.node.admin, &ask).await.ok()?;
        got.is_success().then(|| got.json().ok()).flatten()
    }

    /// A look at it; `None` while it is gone.
    pub async fn sample(&self) -> Option<NodeSample> {
        self.ask(Ask::get("/api/status")).await.map(|status| NodeSample::of(&status))
    }

    /// Its whole journal, page by page.
    pub async fn journal(&self) -> Vec<Entry> {
        let (mut entries, mut after) = (Vec::new(), 0);
        while let Some(page) = self.ask(Ask::get(format!("/api/journal?after={after}&limit=500"))).await {
            let rows = page["entries"].as_array().cloned().unwrap_or_default();
            let last = rows.iter().filter_map(|row| row["seq"].as_u64()).max().unwrap_or(0);
            entries.extend(rows.iter().filter_map(|row| entry(&self.node.zone, row)));
            if last <= after {
                break;
            }
            after = last;
        }
        entries
    }

    /// Seals its ledger and reads the verdict; unknown if the node does not answer.
    pub async fn seal(&self) -> Account {
        let sealed = self.ask(Ask::post("/api/ledger/seal", "")).await;
        let told = match sealed {
            Some(_) => self.ask(Ask::get("/api/ledger")).await,
            None => None,
        };
        account(&self.node.zone, told.as_ref())
    }
}

fn account(node: &str, told: Option<&Value>) -> Account {
    let verdict = told.and_then(|told| told["verdict"].as_str()).unwrap_or("unknown");
    let streams = told.and_then(|told| told["streams"].as_array()).cloned().unwrap_or_default();
    Account { node: node.into(), verdict: verdict.into(), streams }
}

fn entry(node: &str, row: &Value) -> Option<Entry> {
    Some(Entry {
        node: node.into(),
        at_ms: moment(&row["at"])?,
        kind: row["kind"].as_str()?.into(),
        subject: row["subject"].as_str().unwrap_or_default().into(),
    })
}

/// Milliseconds since the epoch, from a number of them or from RFC 3339 in UTC.
fn moment(at: &Value) -> Option<u64> {
    at.as_u64().or_else(|| rfc3339_ms(at.as_str()?))
}

/// `YYYY-MM-DDTHH:MM:SS[.fff...]Z`. Howard Hinnant's `days_from_civil`.
fn rfc3339_ms(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, separator| {
        text.split(separator).map(|part| part.parse::<i64>().ok()).collect::<Option<Vec<i64>>>()
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let ([year, month, day], [hour, minute, second]) =
        (numbers(date, '-')?.try_into().ok()?, numbers(time, ':')?.try_into().ok()?);
    let year: i64 = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let millis = format!("{fraction:0<3}").get(..3)?.parse::<i64>().ok()?;
    u64::try_from(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000 + millis).ok()
}

/// The verdict of several: balanced only if all are, imbalanced if one is, else unknown.
#[must_use]
pub fn verdict(accounts: &[Account]) -> &'static str {
    let all = !accounts.is_empty() && accounts.iter().all(|account| account.verdict == "balanced");
    match accounts.iter().any(|account| account.verdict == "imbalanced") {
        true => "imbalanced",
        false if all => "balanced",
        false => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_becomes_a_sample() {
        let status = json!({"spool": {"waiting": 3, "leased": 2, "parked": 1},
            "routes": [{"name": "events", "breaker": {"state": "open"}}, {"name": "x"}, {}]});
        let sample = NodeSample::of(&status);
        assert_eq!((sample.spooled, sample.parked), (5, 1));
        assert_eq!(sample.breakers, [("events".into(), "open".into()), ("x".into(), "off".into())]);
        assert_eq!(NodeSample::of(&Value::Null), NodeSample::default());
    }

    #[test]
    fn moments_are_numbers_or_rfc_3339() {
        assert_eq!(moment(&json!(1_700_000_000_123_u64)), Some(1_700_000_000_123));
        assert_eq!(moment(&json!("2023-11-14T22:13:20.123456Z")), Some(1_700_000_000_123));
        assert_eq!(moment(&json!("2024-02-29T00:00:00Z")), Some(1_709_164_800_000));
        assert_eq!(moment(&json!("yesterday")), None);
        let row = json!({"seq": 1, "at": 5, "kind": "breaker_opened", "subject": "route:events"});
        assert_eq!(entry("a", &row).unwrap().kind, "breaker_opened");
        assert_eq!(entry("a", &json!({})), None);
    }

    #[test]
    fn unknown_is_never_shown_as_good() {
        let of = |verdict: &str| account("a", Some(&json!({"verdict": verdict, "streams": []})));
        assert_eq!(verdict(&[]), "unknown");
        assert_eq!(verdict(&[of("balanced"), of("balanced")]), "balanced");
        assert_eq!(verdict(&[of("balanced"), of("unknown")]), "unknown");
        assert_eq!(verdict(&[of("unknown"), of("imbalanced")]), "imbalanced");
        assert_eq!(verdict(&[account("a", None)]), "unknown");
    }

    #[test]
    fn a_configuration_names_every_address() {
        let node = Node { zone: "us-west".into(), listen: "127.0.0.1:1".into(), admin: "127.0.0.1:2".into() };
        let servers =
            Servers { queue: "127.0.0.1:3".into(), carrier: "127.0.0.1:4".into(), warehouse: "127.0.0.1:5".into() };
        let text = config(&node, &["us-east", "us-west"], &servers, Path::new("a folder"));
        for part in [
            "zone: us-west",
            "[us-east, us-west]",
            "path: \"a folder\"",
            "address: 127.0.0.1:2 }",
            r#"'{"price_cents":null}'"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(servers_all(&servers).iter().all(|server| text.contains(server.as_str())));
    }

    fn servers_all(servers: &Servers) -> [&String; 3] {
        [&servers.queue, &servers.carrier, &servers.warehouse]
    }
}
