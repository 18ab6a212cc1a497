//! Faults from outside: what is answered, what is refused and why. Behind it is the real book, on a clock that stands.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use seawall_control::FaultPort;
use seawall_core::fault::book::{Book, Caps, Carries, Deny, Fault, Id, Kind, Look, Order, Refused, Standing, Try};
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::policy::{Delivery, Endpoint, Guards, Limits, Listener, Match, Policy, Protocol, Route, Upstream};
use seawall_core::prng::Prng;
use seawall_core::time::Mono;
use serde_json::{Value, json};

use crate::world::{Answer, World, world, world_with_faults};

pub(crate) struct FakeFaults {
    book: Mutex<Book>,
    now_ms: AtomicU64,
}

impl FakeFaults {
    /// Routes `events` to `queue` and `quotes` to `carrier`.
    fn new() -> Self {
        let route = |name: &str, upstream| Route {
            name: name.into(),
            protocol: Protocol::Http,
            upgrades: Vec::new(),
            matcher: Match::default(),
            upstream: UpstreamId(upstream),
            guards: Guards::default(),
            fallbacks: Vec::new(),
            order_by: None,
            delivery: Delivery::default(),
            placement: seawall_core::policy::Placement::default(),
        };
        let upstream = |name: &str| Upstream {
            name: name.into(),
            endpoints: ["here", "there"]
                .map(|zone| Endpoint {
                    zone: Some(zone.into()),
                    version: Some("v1".into()),
                    ..Endpoint::at(format!("{name}{}:80", if zone == "here" { "" } else { "-2" }))
                })
                .into(),
            health: None,
            outlier: None,
            balance: seawall_core::balance::BalanceConfig::default(),
            connections_max: 1,
            idle_timeout: Duration::ZERO,
            connect_timeout: Duration::ZERO,
            announce: None,
            http2: false,
            host: None,
            resolver: seawall_core::policy::Resolver::default(),
        };
        let policy = Policy {
            node: "n".into(),
            zone: "here".into(),
            zones: Vec::new(),
            listeners: vec![Listener::new(([127, 0, 0, 1], 8080).into(), vec![RouteId(0), RouteId(1)])],
            routes: vec![
                route("events", 0),
                route("quotes", 1),
                Route { protocol: Protocol::Tcp, ..route("bytes", 1) },
                route("denied", 2),
            ],
            upstreams: vec![upstream("queue"), upstream("carrier"), upstream("vault")],
            limits: Limits::default(),
            digest: String::new(),
        };
        let deny = vec![Deny { route: Some("denied".into()), ..Deny::default() }];
        let caps = Caps { deny, ..Caps::default() };
        Self { book: Mutex::new(Book::new(caps, &policy, 12)), now_ms: AtomicU64::new(0) }
    }

    fn now(&self) -> Mono {
        Mono::from_millis(self.now_ms.load(SeqCst))
    }

    fn standing(&self, fault: &Fault) -> Standing {
        Standing { fault: fault.clone(), left: self.now().until(fault.until) }
    }
}

impl FaultPort for FakeFaults {
    fn look(&self) -> Look {
        let mut book = self.book.lock().unwrap();
        book.expire(self.now());
        book.look(self.now())
    }

    fn place(&self, order: Order) -> Result<Standing, Refused> {
        let mut book = self.book.lock().unwrap();
        let placed = book.place(self.now(), order, 0, &mut Prng::new(1)).map(|fault| self.standing(fault))?;
        // One request comes by.
        let (has_header, endpoint) = (|_: &str, _: &str| true, Endpoint::at("queue:80"));
        book.touch(
            self.now(),
            &Try {
                generation: 0,
                route: RouteId(0),
                upstream: UpstreamId(0),
                endpoint: &endpoint,
                client: None,
                method: "POST",
                path: "/",
                has_header: &has_header,
                carries: Carries::Call,
                touched: &[],
            },
        );
        Ok(placed)
    }

    fn renew(&self, id: Id, owner: &str, ttl: Option<Duration>) -> Result<Standing, Refused> {
        let mut book = self.book.lock().unwrap();
        book.renew(self.now(), id, owner, ttl).map(|fault| self.standing(fault))
    }

    fn remove(&self, id: Id) -> Result<Fault, Refused> {
        self.book.lock().unwrap().remove(self.now(), id)
    }

    fn kill(&self, reason: &str) -> Vec<Fault> {
        self.book.lock().unwrap().kill(reason, None)
    }

    fn release(&self, _: &str) -> bool {
        self.book.lock().unwrap().release().is_some()
    }
}

async fn allowing() -> World {
    world_with_faults(FakeFaults::new()).await
}

impl World {
    async fn remove(&self, id: &Value) {
        assert_eq!(delete(self, &format!("/api/faults/{}", id.as_str().unwrap())).await.status, 200);
    }
}

async fn delete(world: &World, target: &str) -> Answer {
    world.call(&format!("DELETE {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", world.address)).await
}

fn order() -> Value {
    json!({ "owner": "ada", "route": "events", "first": 1, "kind": { "abort": { "status": 503 } }, "ttl": "2m", "seed": 7 })
}

#[tokio::test]
async fn a_fault_is_placed_listed_renewed_and_taken_away() {
    let world = allowing().await;
    let placed = world.post("/api/faults", &order().to_string()).await;
    assert_eq!(placed.status, 201);
    assert_eq!(
        placed.json(),
        json!({
            "id": "f12-1", "owner": "ada", "route": "events", "upstream": null, "endpoint": null, "zone": null,
            "version": null, "listener": null, "source": null, "method": null, "path": null, "path_prefix": null,
            "header": null, "first": 1, "kind": { "abort": { "status": 503 } }, "seed": 7, "after": "0s", "lasts": null,
            "flap": null, "abort_when": null,
            "expires_at": "2023-11-14T22:15:20.000Z", "left_s": 120.0, "seen": 0, "requests": 0, "tries": 0,
        })
    );
    let listed = world.get("/api/faults").await.json();
    assert_eq!(
        (&listed["killed"], &listed["share_max"], &listed["ttl_max"]),
        (&Value::Null, &json!("50%"), &json!("15m"))
    );
    assert_eq!(listed["deny"], json!([{ "route": "denied" }]));
    let mut denied = order();
    denied["route"] = json!("denied");
    let refused = world.post("/api/faults", &denied.to_string()).await;
    assert_eq!((refused.status, &refused.json()["field"]), (403, &json!("route")), "{}", refused.body);
    assert_eq!((&listed["count_max"], &listed["faults"][0]["requests"]), (&json!(8), &json!(1)));
    let renewed = world.post("/api/faults/f12-1/renew", r#"{"owner": "ada", "ttl": "10m"}"#).await;
    assert_eq!((renewed.status, &renewed.json()["left_s"]), (200, &json!(600.0)));
    let metrics = world.get("/metrics").await.body;
    for line in [
        "seawall_faults_active 1",
        "seawall_faults_killed 0",
        r#"seawall_fault_requests_total{fault="f12-1",kind="abort"} 1"#,
        r#"seawall_faulted_total{route="events"} 0"#,
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line}\n{metrics}");
    }
    let gone = delete(&world, "/api/faults/f12-1").await;
    assert_eq!((gone.status, gone.json()), (200, json!({ "id": "f12-1", "requests": 1, "tries": 1 })));
    assert_eq!(delete(&world, "/api/faults/f12-1").await.status, 404);
    let metrics = world.get("/metrics").await.body;
    assert!(metrics.contains("seawall_faults_active 0"), "{metrics}");
    assert!(
        metrics.contains(r#"seawall_fault_requests_total{fault="f12-1",kind="abort"} 1"#),
        "the last count is seen"
    );
    world.end().await;
}

#[tokio::test]
async fn every_kind_and_portion_can_be_said() {
    let world = allowing().await;
    let late = json!({ "delay": "200ms" });
    let told_late = json!({ "delay": "200ms", "jitter": "0s", "spread": "even" });
    let words = Kind::WORDS.iter().map(|kind| (json!(kind.name()), json!(kind.name())));
    let same = |kind: Value| (kind.clone(), kind);
    let with_more = [
        (json!({ "latency": late }), json!({ "latency": told_late })),
        (json!({ "head_latency": late }), json!({ "head_latency": told_late })),
        same(json!({ "body_latency": { "delay": "200ms", "jitter": "50ms", "spread": "tail" } })),
        same(json!({ "bandwidth": { "per_second": "10KiB" } })),
        same(json!({ "abort": { "status": 404 } })),
        same(json!({ "grpc": { "code": 14 } })),
        same(json!({ "corrupt": { "bytes": "1%" } })),
        same(json!({ "huge_head": { "size": "64KiB" } })),
    ];
    let of_bytes = [
        same(json!({ "tcp_latency": { "delay": "200ms", "jitter": "50ms", "way": "up" } })),
        same(json!({ "tcp_bandwidth": { "per_second": "10KiB", "way": "both" } })),
        same(json!({ "slow_close": { "delay": "2s", "way": "down" } })),
        (json!("black_hole"), json!({ "black_hole": { "after": null, "way": "down" } })),
        (json!("reset"), json!({ "reset": { "after": "0s", "way": "down" } })),
        (json!("half_close"), json!({ "half_close": { "after": "0s", "way": "down" } })),
        same(json!({ "slicer": { "size": "100B", "variation": "10B", "pause": "1ms", "way": "down" } })),
        (json!({ "limit_data": { "size": "0B" } }), json!({ "limit_data": { "size": "0B", "way": "down" } })),
        same(json!({ "tcp_corrupt": { "bytes": "1%", "way": "down" } })),
        same(json!({ "chunk_loss": { "chunks": "10%", "way": "down" } })),
        (json!("zone_cut"), json!({ "zone_cut": { "way": "both" } })),
    ];
    let mut names = Vec::new();
    for (kind, told) in words.chain(with_more).chain(of_bytes.clone()) {
        let mut order = order();
        order["kind"] = kind;
        if of_bytes.iter().any(|(_, of_bytes)| *of_bytes == told) {
            order["route"] = json!("bytes");
        }
        if told.get("zone_cut").is_some() {
            (order["route"], order["first"], order["zone"]) = (Value::Null, Value::Null, json!("there"));
        }
        let placed = world.post("/api/faults", &order.to_string()).await;
        assert_eq!((placed.status, &placed.json()["kind"]), (201, &told), "{}", placed.body);
        let name = told.as_str().or_else(|| told.as_object()?.keys().next().map(String::as_str));
        names.push(name.unwrap().to_owned());
        world.remove(&placed.json()["id"]).await;
    }
    names.sort();
    let mut all = Kind::NAMES;
    all.sort_unstable();
    assert_eq!(names, all);
    for retry in [json!({ "retry_after": "120s" }), json!({ "retry_at": "+1d" }), json!({ "retry_at": "-2h" })] {
        let mut order = order();
        order["kind"] = json!({ "abort": { "status": 503 } });
        order["kind"]["abort"].as_object_mut().unwrap().extend(retry.as_object().unwrap().clone());
        let placed = world.post("/api/faults", &order.to_string()).await.json();
        assert_eq!(placed["kind"], order["kind"], "{placed}");
        world.remove(&placed["id"]).await;
    }
    let header = json!({ "name": "X-Tenant", "value": "secret" });
    for (name, value) in [("share", json!("10%")), ("every", json!(4)), ("connections", json!("10%"))] {
        let mut order = json!({
            "owner": "ada", "upstream": "carrier", "method": "GET", "path_prefix": "/quotes", "header": header,
            "endpoint": "carrier:80", "zone": "here", "version": "v1", "listener": "127.0.0.1:8080",
            "source": "10.0.0.0/8", "kind": if name == "share" { "cut" } else { "hang" }, "ttl": "1s",
            "after": "5s", "lasts": "1m", "flap": { "on": "500ms", "off": "2s" },
            "abort_when": { "failed": "20%", "over": "30s", "requests_min": 50 },
        });
        if name == "connections" {
            (order["path"], order["path_prefix"]) = (json!("/quotes/7"), Value::Null);
        }
        order[name] = value.clone();
        let placed = world.post("/api/faults", &order.to_string()).await;
        let told = placed.json();
        assert_eq!((placed.status, &told[name], &told["header"]), (201, &value, &json!({ "name": "x-tenant" })));
        assert!(told["seed"].is_u64() && !placed.body.contains("secret"), "{told}");
        for field in
            ["endpoint", "zone", "version", "listener", "source", "path", "after", "lasts", "flap", "abort_when"]
        {
            assert_eq!(told[field], order[field], "{field}");
        }
        world.remove(&told["id"]).await;
    }
    world.end().await;
}

#[tokio::test]
async fn every_mistake_is_told_with_its_field_and_changes_nothing() {
    let world = allowing().await;
    let with = |field: &str, value: Value| {
        let mut order = order();
        order[field] = value;
        order.to_string()
    };
    let without = |field: &str| {
        let mut order = order();
        order.as_object_mut().unwrap().remove(field);
        order.to_string()
    };
    let cases = [
        ("{".into(), "body", ""),
        ("[]".into(), "body", "owner"),
        (with("shares", json!("10%")), "shares", "share"),
        (without("owner"), "owner", "1 to 256 characters of one line"),
        (with("owner", json!(5)), "owner", "1 to 256 characters of one line"),
        (with("owner", json!("")), "owner", "1 to 256 characters of one line"),
        (without("route"), "route", "events"),
        (with("route", json!("event")), "route", "events"),
        (with("upstream", json!("que")), "upstream", "queue"),
        (with("upstream", json!("carrier")), "upstream", "queue"),
        (with("method", json!("A B")), "method", "GET"),
        (with("path_prefix", json!("x")), "path_prefix", "/"),
        (with("header", json!("x=y")), "header", "name"),
        (with("header", json!({ "name": "x" })), "value", "blue"),
        (with("share", json!(10)), "share", "10%"),
        (with("every", json!("4")), "every", "2 or more"),
        (r#"{ "owner": "ada", "owner": "bob" }"#.into(), "owner", ""),
        (r#"{ "kind": { "abort": { "status": 503, "status": 504 } } }"#.into(), "status", ""),
        (with("header", json!({ "name": "x y", "value": "z" })), "header", "x-tenant"),
        (with("header", json!({ "name": "x", "value": "z", "more": 1 })), "more", "name"),
        (without("first"), "share", "every"),
        (with("share", json!("10%")), "share", "first"),
        (with("first", json!(0)), "first", "1 to 1000"),
        (with("first", json!(-1)), "first", "1 to 1000"),
        (with("first", json!("1")), "first", "1 to 1000"),
        (without("kind"), "kind", "\"refuse\""),
        (with("kind", json!("explode")), "kind", "\"refuse\""),
        (with("kind", json!("latency")), "kind", "\"refuse\""),
        (with("kind", json!({ "refuse": {} })), "kind", "\"refuse\""),
        (with("kind", json!({ "abort": {} })), "status", "400 to 599"),
        (with("kind", json!({ "abort": { "status": 200 } })), "kind", "400 to 599"),
        (with("kind", json!({ "abort": { "status": 99_999_999 } })), "status", "400 to 599"),
        (with("kind", json!({ "abort": { "status": "503" } })), "status", "400 to 599"),
        (with("kind", json!({ "abort": { "status": 503, "retry_after": "500ms" } })), "retry_after", "1s"),
        (with("kind", json!({ "body_latency": { "delay": "500us" } })), "kind", "a delay or a jitter of 1ms or more"),
        (with("kind", json!({ "abort": { "status": 503, "body": "x" } })), "body", "status"),
        (with("kind", json!({ "latency": { "delay": "200" } })), "delay", "200ms"),
        (with("kind", json!({ "latency": { "jitter": "1s" } })), "delay", "200ms"),
        (
            with("kind", json!({ "latency": { "delay": "1s", "jitter": "11m" } })),
            "kind",
            "a delay or a jitter above 0s, each at most 10m",
        ),
        (with("kind", json!({ "hang": 1, "cut": 1 })), "kind", "\"refuse\""),
        (with("kind", json!({ "latency": { "delay": "1s", "spread": "odd" } })), "spread", "tail"),
        (with("kind", json!({ "bandwidth": {} })), "per_second", "64KiB"),
        (with("kind", json!({ "bandwidth": { "per_second": 10 } })), "per_second", "64KiB"),
        (with("kind", json!({ "bandwidth": { "per_second": "fast" } })), "per_second", "64KiB"),
        (with("kind", json!({ "bandwidth": { "per_second": "0B" } })), "kind", "1B or more; `hang` for none"),
        (with("kind", json!({ "abort": { "status": 503, "retry_after": "soon" } })), "retry_after", "2m"),
        (with("kind", json!({ "abort": { "status": 503, "retry_at": "1d" } })), "retry_at", "-2h"),
        (with("kind", json!({ "abort": { "status": 503, "retry_at": "-" } })), "retry_at", "+1d"),
        (with("kind", json!({ "abort": { "status": 503, "retry_at": "" } })), "retry_at", "+1d"),
        (with("kind", json!({ "abort": { "status": 503, "retry_at": "+2000d" } })), "kind", "at most 366d"),
        (
            with("kind", json!({ "abort": { "status": 503, "retry_at": "+1d", "retry_after": "1s" } })),
            "retry_at",
            "retry_after",
        ),
        (with("kind", json!({ "grpc": { "code": 0 } })), "kind", "1 to 16"),
        (with("kind", json!({ "grpc": { "code": 300 } })), "code", "1 to 16"),
        (with("kind", json!({ "corrupt": {} })), "bytes", "1%"),
        (with("kind", json!({ "corrupt": { "bytes": "0%" } })), "kind", "more than 0%"),
        (with("kind", json!({ "huge_head": { "size": "2MiB" } })), "kind", "1B to 1MiB"),
        (with("kind", json!({ "huge_head": { "size": 5 } })), "size", ""),
        (with("kind", json!({ "explode": {} })), "kind", "\"refuse\""),
        (with("kind", json!({ "tcp_latency": { "delay": "1s" } })), "kind", "refuse"),
        (with("kind", json!({ "tcp_latency": {} })), "delay", "200ms"),
        (with("kind", json!({ "tcp_latency": { "delay": "1s", "way": "back" } })), "way", "both"),
        (with("kind", json!({ "slicer": { "size": "1B", "variation": 5 } })), "variation", ""),
        (with("kind", json!({ "chunk_loss": {} })), "chunks", "1%"),
        (with("kind", json!({ "tcp_corrupt": { "bytes": "x" } })), "bytes", "10%"),
        (with("kind", json!("slicer")), "kind", "\"refuse\""),
        (with("kind", json!("zone_cut")), "route", "zone"),
        (with("endpoint", json!("queue:81")), "endpoint", "queue:80"),
        (with("zone", json!("nowhere")), "zone", "here"),
        (with("version", json!("v2")), "version", "v1"),
        (with("listener", json!("8080")), "listener", "127.0.0.1:8080"),
        (with("listener", json!("127.0.0.1:1")), "listener", "127.0.0.1:8080"),
        (with("source", json!("here")), "source", "10.0.0.0/8"),
        (with("path", json!("x")), "path", "/orders"),
        (with("after", json!("11m")), "after", "more than 0s, at most 10m"),
        (with("lasts", json!("0s")), "lasts", "more than 0s, at most 10m"),
        (with("flap", json!("1s")), "flap", "on"),
        (with("flap", json!({ "on": "1s" })), "off", "2m"),
        (with("flap", json!({ "on": "1s", "off": "0s" })), "flap", "more than 0s, at most 10m"),
        (with("abort_when", json!("20%")), "abort_when", "failed"),
        (with("abort_when", json!({})), "failed", "20%"),
        (with("abort_when", json!({ "failed": "much" })), "failed", "10%"),
        (with("abort_when", json!({ "failed": "100%" })), "abort_when", "`failed`: less than 100%"),
        (with("abort_when", json!({ "failed": "20%", "over": "2m" })), "abort_when", "`over`: at most 1m"),
        (without("ttl"), "ttl", "more than 0s, at most 15m"),
        (with("ttl", json!("0s")), "ttl", "more than 0s, at most 15m"),
        (with("ttl", json!("16m")), "ttl", "more than 0s, at most 15m"),
        (with("ttl", json!("soon")), "ttl", "2m"),
        (with("ttl", json!(120)), "ttl", "2m"),
        (with("seed", json!("x")), "seed", "0 to 18446744073709551615"),
    ];
    for (body, field, allowed) in cases {
        let refused = world.post("/api/faults", &body).await;
        let told = refused.json();
        assert_eq!((refused.status, &told["field"]), (400, &json!(field)), "{body}: {told}");
        let names = |it: &Value| it.as_array().is_some_and(|all| all.iter().any(|one| one == allowed));
        assert!(allowed.is_empty() || names(&told["allowed"]), "{body}: {told}");
    }
    let mut half = order();
    (half["share"], half["first"]) = (json!("51%"), Value::Null);
    let told = world.post("/api/faults", &half.to_string()).await.json();
    assert_eq!((&told["field"], &told["allowed"][0]), (&json!("share"), &json!("more than 0%, at most 50%")));
    (half["share"], half["every"]) = (Value::Null, json!(1));
    assert_eq!(world.post("/api/faults", &half.to_string()).await.json()["allowed"], json!(["2 or more"]));
    assert_eq!(world.get("/api/faults").await.json()["faults"], json!([]));
    let long = format!("{{\"owner\": \"{}\"}}", "x".repeat(70_000));
    let told = world.post("/api/faults", &long).await;
    assert_eq!((told.status, &told.json()["field"]), (413, &json!("body")));
    assert_eq!(told.json()["allowed"], json!(["at most 64KiB"]));
    let huge = with("kind", json!({ "abort": { "status": 99_999_999 } }));
    let told = world.post("/api/faults", &huge).await.json();
    assert_eq!(told["error"], "`99999999` is out of range");
    let told = world.post("/api/faults", r#"{ "owner": "ada", "owner": "bob" }"#).await.json();
    assert!(told["error"].as_str().unwrap().starts_with("`owner` is given twice"), "{told}");
    world.end().await;
}

#[tokio::test]
async fn what_is_not_ones_own_or_not_there_is_told() {
    let world = allowing().await;
    assert_eq!(world.post("/api/faults", &order().to_string()).await.status, 201);
    let again = world.post("/api/faults", &order().to_string()).await;
    assert_eq!((again.status, &again.json()["field"]), (409, &json!("kind")), "{}", again.body);
    let renew = |id: &str, body: &str| {
        let (target, body) = (format!("/api/faults/{id}/renew"), body.to_owned());
        let world = &world;
        async move {
            let answer = world.post(&target, &body).await;
            (answer.status, answer.json()["field"].as_str().map(str::to_owned))
        }
    };
    let field = |name: &str| Some(name.to_owned());
    assert_eq!(renew("f12-1", r#"{"owner": "bob", "ttl": "1m"}"#).await, (403, field("owner")));
    assert_eq!(renew("f12-2", r#"{"owner": "ada", "ttl": "1m"}"#).await, (404, field("id")));
    assert_eq!(renew("17", r#"{"owner": "ada", "ttl": "1m"}"#).await, (404, field("id")));
    assert_eq!(renew("f12-1", r#"{"owner": "ada"}"#).await, (400, field("ttl")));
    assert_eq!(renew("f12-1", r#"{"ttl": "1m"}"#).await, (400, field("owner")));
    assert_eq!(renew("f12-1", r#"{"owner": "ada", "ttl": "1h"}"#).await, (400, field("ttl")));
    assert_eq!(renew("f12-1", r#"{"owner": "ada", "ttl": "1m", "until": 1}"#).await, (400, field("until")));
    assert_eq!(world.get("/api/faults").await.json()["faults"][0]["left_s"], json!(120.0), "none of it changed it");
    assert_eq!(world.get("/api/faults/f12-1").await.status, 405);
    assert_eq!(delete(&world, "/api/faults").await.status, 405);
    assert_eq!(world.get("/api/faults/kill").await.status, 405);
    world.end().await;
}

#[tokio::test]
async fn the_kill_switch_wants_a_reason_and_lets_nothing_in() {
    let world = allowing().await;
    assert_eq!(world.post("/api/faults", &order().to_string()).await.status, 201);
    for body in ["{}", r#"{"reason": " "}"#, r#"{"reason": "x", "force": true}"#, ""] {
        assert_eq!(world.post("/api/faults/kill", body).await.status, 400, "{body}");
    }
    let killed = world.post("/api/faults/kill", r#"{"reason": "pager"}"#).await;
    assert_eq!(killed.json(), json!({ "killed": true, "faults": [{ "id": "f12-1", "requests": 1, "tries": 1 }] }));
    let refused = world.post("/api/faults", &order().to_string()).await;
    assert_eq!(refused.status, 409);
    assert!(refused.body.contains("the kill switch is on (`pager`)"), "{}", refused.body);
    assert_eq!(world.get("/api/faults").await.json()["killed"], json!({ "reason": "pager" }));
    assert!(world.get("/metrics").await.body.contains("seawall_faults_killed 1"));
    let released = world.post("/api/faults/release", r#"{"reason": "over"}"#).await;
    assert_eq!(released.json(), json!({ "killed": false, "was_killed": true }));
    assert_eq!(world.post("/api/faults", &order().to_string()).await.status, 201);
    world.end().await;
}

#[tokio::test]
async fn where_they_are_off_it_is_said_what_to_write() {
    let world = world().await;
    let answers = [
        world.get("/api/faults").await,
        world.post("/api/faults", &order().to_string()).await,
        world.post("/api/faults/f1-1/renew", "{}").await,
        world.post("/api/faults/kill", "{}").await,
        world.post("/api/faults/release", "{}").await,
        delete(&world, "/api/faults/f1-1").await,
    ];
    for answer in answers {
        let told = answer.json();
        assert_eq!((answer.status, &told["field"], &told["allowed"][0]), (409, &json!("faults"), &json!("faults: on")));
    }
    let metrics = world.get("/metrics").await.body;
    assert!(metrics.contains("seawall_faults_active 0") && metrics.contains("seawall_faults_killed 0"), "{metrics}");
    world.end().await;
}
