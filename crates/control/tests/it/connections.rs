//! A route of connections has numbers of its own, and none that belong to requests.

use seawall_core::observation::{ConnectionsSnapshot, RouteSnapshot};
use seawall_core::policy::Protocol;
use serde_json::json;

use crate::world::{World, world};

/// The second route carries connections.
async fn with_connections() -> World {
    let world = world().await;
    {
        let mut snapshot = world.snapshot.lock().unwrap();
        let breaker = snapshot.routes[1].breaker.clone();
        snapshot.routes[1] = RouteSnapshot {
            name: "cache".into(),
            upstream: "redis".into(),
            protocol: Protocol::Tcp,
            carries_connections: true,
            breaker,
            failures: vec![("connect_refused", 2)],
            retries_total: 1,
            in_flight: 3,
            latency_counts: vec![7],
            latency_sum_s: 0.002,
            connections: ConnectionsSnapshot {
                opened_total: 9,
                open: 3,
                ended: vec![("done", 4), ("refused", 2)],
                bytes_up_total: 2_048,
                bytes_down_total: 3 << 20,
                duration_counts: vec![0, 1, 3],
                duration_sum_s: 2.5,
            },
            ..RouteSnapshot::default()
        };
    }
    world
}

#[tokio::test]
async fn metrics_tell_of_connections() {
    let world = with_connections().await;
    let body = world.get("/metrics").await.body;
    for line in [
        r#"seawall_connections_opened_total{route="cache"} 9"#,
        r#"seawall_connections_open{route="cache"} 3"#,
        r#"seawall_connections_ended_total{route="cache",how="done"} 4"#,
        r#"seawall_connections_ended_total{route="cache",how="idle"} 0"#,
        r#"seawall_connection_bytes_total{route="cache",direction="up"} 2048"#,
        r#"seawall_connection_bytes_total{route="cache",direction="down"} 3145728"#,
        r#"seawall_connect_duration_seconds_bucket{route="cache",le="0.0005"} 7"#,
        r#"seawall_connect_duration_seconds_count{route="cache"} 7"#,
        r#"seawall_connection_duration_seconds_bucket{route="cache",le="0.1"} 1"#,
        r#"seawall_connection_duration_seconds_bucket{route="cache",le="86400"} 4"#,
        r#"seawall_connection_duration_seconds_sum{route="cache"} 2.5"#,
        r#"seawall_failures_total{route="cache",kind="connect_refused"} 2"#,
        r#"seawall_retries_total{route="cache"} 1"#,
        r#"seawall_in_flight{route="cache"} 3"#,
        r#"seawall_requests_total{route="events",class="2xx"} 90"#,
    ] {
        assert!(body.lines().any(|it| it == line), "no line {line} in\n{body}");
    }
    for nonsense in ["requests_total", "request_duration", "hedges", "resends", "cut_total", "degraded", "trailers"] {
        let says = |line: &&str| line.contains(nonsense) && line.contains("\"cache\"");
        assert_eq!(body.lines().find(says), None);
    }
    assert!(!body.contains("seawall_connections_open{route=\"events\"}"), "requests are no connections");
    world.end().await;
}

#[tokio::test]
async fn status_and_page_tell_of_connections() {
    let world = with_connections().await;
    let status = world.get("/api/status").await.json();
    let route = &status["routes"][1];
    assert_eq!((&route["protocol"], &route["in_flight"]), (&json!("tcp"), &json!(3)));
    assert_eq!(
        route["connections"],
        json!({
            "opened_total": 9, "open": 3, "ended": {"done": 4, "refused": 2},
            "bytes_up_total": 2_048, "bytes_down_total": 3_145_728,
        })
    );
    assert_eq!(status["routes"][0].get("connections"), None);
    let page = world.get("/").await.body;
    let row = page.split("data-route=\"cache\"").nth(1).unwrap().split("</tr>").next().unwrap();
    assert!(row.contains("<td>connections</td>"), "{row}");
    assert!(row.contains("<td>9 <small>2.0 KiB up, 3.0 MiB down</small></td>"), "{row}");
    world.end().await;
}
