//! Drains from outside: what is asked of the gateway, what is told of them, and what is refused and why.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use seawall_control::DrainPort;
use seawall_core::drain::{Refused, Standing, Target};
use seawall_core::observation::NodeSnapshot;
use serde_json::{Value, json};

use crate::world::{START, world};

/// Drains what the snapshot has, and what it is told to, into the snapshot.
pub(crate) struct FakeDrains(pub(crate) Arc<Mutex<NodeSnapshot>>);

impl DrainPort for FakeDrains {
    fn drain(&self, target: &Target, reason: &str, refuse_after: Duration) -> Result<Standing, Refused> {
        if target.name().contains("nowhere") {
            return Err(Refused::Unknown { target: target.clone(), known: vec!["one".into(), "two".into()] });
        }
        let refuses = !matches!(target, Target::Listener(_)) || refuse_after.is_zero();
        let standing = Standing {
            kind: target.kind(),
            name: target.name(),
            reason: reason.into(),
            since: START,
            calls: 3,
            connections: refuse_after.as_secs(),
            refuses,
            last: false,
        };
        self.0.lock().unwrap().drains.push(standing.clone());
        Ok(standing)
    }

    fn resume(&self, target: &Target) -> Result<bool, Refused> {
        if target.name().ends_with(":1") {
            return Err(Refused::NotReopened { target: target.clone(), why: "somebody has it".into() });
        }
        let drains = &mut self.0.lock().unwrap().drains;
        let before = drains.len();
        drains.retain(|standing| standing.name != target.name());
        Ok(drains.len() < before)
    }
}

#[tokio::test]
async fn what_is_drained_is_told_everywhere() {
    let world = world().await;
    let drained = world.post("/api/drain", r#"{"endpoint": "queue/10.0.0.1:80", "reason": " new kernel "}"#).await;
    let told = json!({
        "kind": "endpoint", "name": "queue/10.0.0.1:80", "reason": "new kernel", "since": "2023-11-14T22:13:20.000Z",
        "calls": 3, "connections": 10, "refuses": true, "last": false,
    });
    assert_eq!((drained.status, drained.json()), (200, told.clone()));
    let slow = world.post("/api/drain", r#"{"listener": "127.0.0.1:8080", "refuse_after": "1m"}"#).await.json();
    assert_eq!(
        (&slow["connections"], &slow["refuses"], &slow["reason"]),
        (&json!(60), &json!(false), &json!("by hand"))
    );
    assert_eq!(world.get("/api/drain").await.json()["drains"], json!([told, slow]));
    assert_eq!(world.get("/api/status").await.json()["drains"], json!([told, slow]));
    let metrics = world.get("/metrics").await.body;
    for sample in [
        "seawall_drains{kind=\"endpoint\"} 1\n",
        "seawall_drains{kind=\"route\"} 0\n",
        "seawall_drain_left{kind=\"endpoint\",name=\"queue/10.0.0.1:80\",what=\"calls\"} 3\n",
        "seawall_drain_left{kind=\"listener\",name=\"127.0.0.1:8080\",what=\"connections\"} 60\n",
    ] {
        assert!(metrics.contains(sample), "no {sample} in {metrics}");
    }
    let page = world.get("/").await.body;
    assert!(page.contains("the listener <code>127.0.0.1:8080</code> is being drained"), "{page}");

    let resume = |name: &'static str| {
        let world = &world;
        async move { world.post("/api/resume", &json!({ "endpoint": name }).to_string()).await.json() }
    };
    let was = resume("queue/10.0.0.1:80").await;
    assert_eq!(was, json!({ "kind": "endpoint", "name": "queue/10.0.0.1:80", "was_draining": true }));
    assert_eq!(resume("queue/10.0.0.1:80").await["was_draining"], false);
    world.end().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_told_with_its_field_and_what_would() {
    let world = world().await;
    let kinds = json!(["endpoint", "route", "listener"]);
    let long = "x".repeat(300);
    let fields = json!(["endpoint", "route", "listener", "reason", "refuse_after"]);
    let cases = [
        ("/api/drain", json!({}), 400, "endpoint", kinds.clone()),
        ("/api/drain", json!({ "route": "events", "endpoint": "a/b" }), 400, "endpoint", kinds.clone()),
        ("/api/drain", json!({ "rout": "events" }), 400, "rout", fields),
        ("/api/drain", json!({ "route": 7 }), 400, "route", json!(["the name of a route"])),
        ("/api/drain", json!({ "route": "events", "reason": long }), 400, "reason", json!(["1 to 256 characters"])),
        ("/api/drain", json!({ "route": "events", "reason": 7 }), 400, "reason", json!(["1 to 256 characters"])),
        (
            "/api/drain",
            json!({ "route": "events", "refuse_after": "1s" }),
            400,
            "refuse_after",
            json!(["with `listener`"]),
        ),
        (
            "/api/drain",
            json!({ "listener": "[::]:80", "refuse_after": "2h" }),
            400,
            "refuse_after",
            json!(["0s to 1h"]),
        ),
        (
            "/api/drain",
            json!({ "listener": "[::]:80", "refuse_after": "2" }),
            400,
            "refuse_after",
            json!(["10s", "0s to 1h"]),
        ),
        ("/api/drain", json!({ "listener": ":80" }), 400, "listener", json!(["127.0.0.1:8080"])),
        ("/api/drain", json!({ "endpoint": "10.0.0.1:80" }), 400, "endpoint", json!(["queue/10.0.1.5:80"])),
        ("/api/drain", json!({ "route": "nowhere" }), 404, "route", json!(["one", "two"])),
        ("/api/resume", json!({ "route": "events", "reason": "x" }), 400, "reason", kinds.clone()),
        ("/api/resume", json!({ "listener": "127.0.0.1:1" }), 409, "listener", Value::Null),
        ("/api/resume", json!([]), 400, "body", kinds),
    ];
    for (path, body, status, field, allowed) in cases {
        let answer = world.post(path, &body.to_string()).await;
        let told = answer.json();
        assert_eq!(
            (answer.status, &told["field"], &told["allowed"]),
            (status, &json!(field), &allowed),
            "{body}: {told}"
        );
    }
    assert_eq!(world.get("/api/drain").await.json()["drains"], json!([]), "nothing happened");
    assert_eq!(world.get("/api/resume").await.status, 405);
    world.end().await;
}
