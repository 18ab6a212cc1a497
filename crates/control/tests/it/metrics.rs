//! The metrics: checked by Prometheus' own tool, and by what they say.

use std::io::Write as _;
use std::process::{Command, Stdio};

use seawall_core::observation::NodeSnapshot;

use crate::world::world;

fn promtool(text: &str) -> String {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: install the package `prometheus`");
    tool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("read by promtool");
    let output = tool.wait_with_output().expect("promtool ended");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{text}");
    said
}

#[tokio::test]
async fn prometheus_takes_them_without_a_remark() {
    let world = world().await;
    world.snapshot.lock().unwrap().routes[0].name = "we\"ird\\na\nme".into();
    let answer = world.get("/metrics").await;
    assert!(answer.has("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", answer.head);
    assert_eq!(promtool(&answer.body), "");
    *world.snapshot.lock().unwrap() = NodeSnapshot::default();
    assert_eq!(promtool(&world.get("/metrics").await.body), "", "a node without routes too");
    world.end().await;
}

#[tokio::test]
async fn they_say_what_the_snapshot_says_zeros_included() {
    let world = world().await;
    world.keep("k").await;
    world.park("l").await;
    world.snapshot.lock().unwrap().upstreams[0].endpoints[2].ejected = true;
    let body = world.get("/metrics").await.body;
    for line in [
        r#"seawall_requests_total{route="events",class="2xx"} 90"#,
        r#"seawall_requests_total{route="events",class="1xx"} 0"#,
        r#"seawall_request_duration_seconds_bucket{route="events",le="0.0005"} 0"#,
        r#"seawall_request_duration_seconds_bucket{route="events",le="0.0025"} 90"#,
        r#"seawall_request_duration_seconds_bucket{route="events",le="60"} 90"#,
        r#"seawall_request_duration_seconds_bucket{route="events",le="+Inf"} 100"#,
        r#"seawall_request_duration_seconds_sum{route="events"} 12.5"#,
        r#"seawall_request_duration_seconds_count{route="events"} 100"#,
        r#"seawall_breaker_state{route="events",state="closed"} 1"#,
        r#"seawall_breaker_state{route="events",state="open"} 0"#,
        r#"seawall_breaker_state{route="quotes",state="off"} 1"#,
        r#"seawall_failures_total{route="events",kind="timeout"} 4"#,
        r#"seawall_failures_total{route="events",kind="dns"} 0"#,
        r#"seawall_refused_total{route="events",rule="breaker"} 2"#,
        r#"seawall_refused_total{route="events",rule="budget"} 0"#,
        r#"seawall_retries_total{route="events"} 3"#,
        r#"seawall_degraded_total{route="events",how="spool"} 6"#,
        r#"seawall_degraded_total{route="events",how="stale"} 0"#,
        r#"seawall_spool_records{upstream="queue",state="parked"} 1"#,
        r#"seawall_spool_records{upstream="queue",state="leased"} 0"#,
        r#"seawall_spool_records{upstream="queue",state="waiting"} 1"#,
        r#"seawall_spool_oldest_age_seconds 0"#,
        r#"seawall_limit{limit="connections"} 10000"#,
        r#"seawall_limit_used{limit="connections"} 4"#,
        r#"seawall_limit_reached_total{limit="connections"} 1"#,
        r#"seawall_endpoint_healthy{upstream="queue",endpoint="10.0.0.1:80"} 1"#,
        r#"seawall_endpoint_ejected{upstream="queue",endpoint="10.0.0.1:80"} 0"#,
        r#"seawall_endpoint_ejected{upstream="queue",endpoint="10.2.0.1:80"} 1"#,
        r#"seawall_learned_limit{route="quotes"} 49.5"#,
        r#"seawall_endpoint_info{upstream="queue",endpoint="10.1.0.1:80",zone="us-west",version="v2"} 1"#,
        r#"seawall_endpoint_info{upstream="queue",endpoint="10.3.0.1:80",zone="",version=""} 1"#,
        r#"seawall_endpoint_ramp{upstream="queue",endpoint="10.1.0.1:80"} 0.25"#,
        r#"seawall_endpoint_calls_total{upstream="queue",endpoint="10.1.0.1:80",zone="us-west"} 7"#,
        r#"seawall_dns_failures_total{upstream="queue",endpoint="10.1.0.1:80"} 2"#,
        r#"seawall_dns_addresses{upstream="queue",endpoint="10.1.0.1:80"} 1"#,
        r#"seawall_spilled_total{upstream="queue"} 3"#,
        r#"seawall_spilling{upstream="queue"} 1"#,
        r#"seawall_version_requests_total{route="events",version="canary",class="5xx"} 1"#,
        r#"seawall_mirrored_total{route="events",how="2xx"} 4"#,
        r#"seawall_version_elsewhere_total{route="events",version="canary"} 2"#,
        r#"seawall_concurrency_limit{route="quotes"} 12"#,
        r#"seawall_ledger_records_total{stream="events",class="accepted"} 8"#,
        r#"seawall_ledger_records_total{stream="events",class="corrupted"} 0"#,
        r#"seawall_ledger_outstanding{stream="events",state="waiting"} 2"#,
        r#"seawall_ledger_verdict{verdict="unknown"} 1"#,
        r#"seawall_ledger_verdict{verdict="balanced"} 0"#,
        r#"seawall_rejected_total{reason="no_route"} 9"#,
        r#"seawall_certificate_expiry_timestamp_seconds{subject="listener:0.0.0.0:8443",file="server.pem"} 1800000000"#,
        r#"seawall_build_info{version="0.1.0",git="unknown",node="us-east-1",zone="us-east"} 1"#,
        r#"seawall_ready 1"#,
        r#"seawall_client_connections_total 44"#,
    ] {
        assert!(body.lines().any(|known| known == line), "{line}\n{body}");
    }
    assert!(!body.contains(r#"seawall_limit_used{limit="body_bytes"}"#), "not told is not zero");
    world.end().await;
}
