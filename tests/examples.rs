//! Every configuration in `examples/` is checked, started, and does what it is an example of.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::house::{Client, Node, Place, local, port, wait_until};
use crate::server::{Server, ok};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// The example in a folder of its own, every port and address in it taken from `environment`.
fn start(name: &str, environment: &[(&str, String)]) -> (Node, Place) {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let place = Place::empty();
    place.write("seawall.yaml", &text);
    let mut command = place.command(&["check"]);
    let checked = command.envs(environment.iter().map(|(name, value)| (name, value))).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        said.contains("seawall.yaml: ok, ") && !said.contains("warning") && !said.contains("audit"),
        "{name}: {said}"
    );
    let node = place.node_with(&["run"], environment);
    assert_eq!(node.status()["ready"], true);
    (node, place)
}

fn anywhere() -> String {
    "127.0.0.1:0".into()
}

/// Somebody who is not there.
fn nobody() -> String {
    local(port()).to_string()
}

fn at(address: SocketAddr) -> String {
    address.to_string()
}

const TESTED: [&str; 6] =
    ["connections.yaml", "first.yaml", "logistics.yaml", "reads.yaml", "two-zones.yaml", "writes.yaml"];

#[test]
fn each_has_a_test_and_stands_as_it_is() {
    let found: BTreeSet<String> =
        std::fs::read_dir(folder()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), TESTED, "give a new example its test here");
    let place = Place::empty();
    for name in TESTED {
        let path = folder().join(name);
        let said = place.seawall(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!(said.code, 0, "without any variable set: {said:?}");
        assert!(!said.out.contains("warning") && !said.out.contains("audit"), "{said:?}");
    }
}

#[test]
fn first() {
    let server = Server::start(|_| ok("hello"));
    let environment = [("LISTEN", anywhere()), ("ADMIN", anywhere()), ("UPSTREAM", at(server.address))];
    let (node, _place) = start("first.yaml", &environment);
    assert_eq!(node.get("/").body, "hello");
}

#[test]
fn connections() {
    let (cache, second) = (Server::start(|_| ok("from the cache")), Server::start(|_| ok("from the second")));
    let environment = [
        ("CACHE_LISTEN", anywhere()),
        ("DB_LISTEN", anywhere()),
        ("ADMIN", anywhere()),
        ("CACHE", at(cache.address)),
        ("DB_FIRST", nobody()),
        ("DB_SECOND", at(second.address)),
    ];
    let (node, _place) = start("connections.yaml", &environment);
    let ask = |address| Client::new(address).ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").body;
    assert_eq!(ask(node.addresses[0]), "from the cache");
    for _ in 0..5 {
        assert_eq!(ask(node.addresses[1]), "from the second", "the first cannot be reached");
    }
}

#[test]
fn writes() {
    let (well, server) = Server::moody();
    let environment = [("LISTEN", anywhere()), ("ADMIN", anywhere()), ("QUEUE", at(server.address))];
    let (node, _place) = start("writes.yaml", &environment);
    for n in 0..3 {
        assert_eq!(node.post("/events", "Shipment-Id: s\r\n", &n.to_string()).status, 202);
    }
    well.store(true, std::sync::atomic::Ordering::Relaxed);
    wait_until("they are delivered", || node.spooled() == 0);
    let bodies: Vec<String> = server.seen().iter().map(crate::server::Seen::text).collect();
    assert!(bodies.ends_with(&["0".into(), "1".into(), "2".into()]), "in order: {bodies:?}");
}

#[test]
fn reads() {
    let fallback = Server::start(|_| ok("from the other one"));
    let environment = [
        ("LISTEN", anywhere()),
        ("ADMIN", anywhere()),
        ("QUOTES", nobody()),
        ("QUOTES_BACKUP", at(fallback.address)),
        ("BANNER", nobody()),
    ];
    let (node, _place) = start("reads.yaml", &environment);
    let other = node.get("/quotes/1");
    assert_eq!((other.status, other.body.as_str()), (200, "from the other one"));
    assert!(other.must("seawall-degraded").starts_with("upstream; since="));
    let fixed = node.get("/banner");
    assert_eq!(fixed.status, 200);
    assert!(fixed.must("seawall-degraded").starts_with("static; since="));
}

#[test]
fn two_zones() {
    let (near, far) = (Server::start(|_| ok("near")), Server::start(|_| ok("far")));
    let environment = [
        ("LISTEN", anywhere()),
        ("ADMIN", anywhere()),
        ("ORDERS_EAST", at(near.address)),
        ("ORDERS_WEST", at(far.address)),
    ];
    let (node, _place) = start("two-zones.yaml", &environment);
    drop(near);
    wait_until("both are asked", || node.get("/").body == "far");
    assert_eq!(node.status()["upstreams"][0]["endpoints"].as_array().map(Vec::len), Some(2));
}

#[test]
fn logistics() {
    let (queue, carrier) = (Server::start(|_| ok("queued")), Server::start(|_| ok("42 EUR")));
    let warehouse = Server::start(|_| ok("stored"));
    let environment = [
        ("EVENTS_LISTEN", anywhere()),
        ("QUOTES_LISTEN", anywhere()),
        ("ADMIN", anywhere()),
        ("QUEUE", at(queue.address)),
        ("CARRIER", at(carrier.address)),
        ("WAREHOUSE", at(warehouse.address)),
    ];
    let (node, _place) = start("logistics.yaml", &environment);
    let (events, quotes) = (node.addresses[0], node.addresses[1]);
    let ask = |address, target: &str, method: &str| {
        Client::new(address).ask(&format!("{method} {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")).body
    };
    assert_eq!(ask(events, "/events", "POST"), "queued");
    assert_eq!(ask(events, "/predictions", "POST"), "stored");
    assert_eq!(ask(quotes, "/quotes/7", "GET"), "42 EUR");
    assert!(ask(quotes, "/events", "POST").contains("no route"), "each listener has its own routes");
}
