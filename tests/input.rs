//! Bad input on every port: answered with the rule that was broken, counted, and never more than that.

use std::time::Duration;

use seawall_core::prng::Prng;
use serde_json::Value;

use crate::house::{Client, Node, Place, post, wait_until};
use crate::server::{Server, ok};

fn world() -> (Server, Node, Place) {
    let server = Server::start(|_| ok("fine"));
    let (node, place) = Place::new(&format!(
        "limits: {{ header_bytes: 4KiB, headers: 20, body_bytes: 100KiB, connections: 200, header_timeout: 500ms }}\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: writes, match: {{ path: /w, method: POST }}, upstream: up, policy: writes }}, \
         {{ name: rest, match: {{ path_prefix: /r }}, upstream: up }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\" }} }}\n\
         policies: {{ writes: {{ fallback: spool, replay_max: 64KiB }} }}\n",
        server.address
    ))
    .node_of();
    (server, node, place)
}

fn rejected(node: &Node, reason: &str) -> u64 {
    node.metrics().get(&format!("seawall_rejected_total{{reason=\"{reason}\"}}"))
}

#[test]
fn every_refusal_names_its_rule_and_is_counted() {
    let (server, node, _place) = world();
    let long = "x".repeat(8 << 10);
    let many: String = (0..40).map(|n| format!("h{n}: v\r\n")).collect();
    let get = "GET /r HTTP/1.1\r\n";
    for (bytes, status, rule) in [
        (format!("{get}Host: h\r\nX: {long}\r\n\r\n"), 431, "header_bytes"),
        (format!("{get}Host: h\r\n{many}\r\n"), 431, "headers"),
        (format!("GET /r?{long} HTTP/1.1\r\nHost: h\r\n\r\n"), 431, "header_bytes"),
        ("POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n".into(), 413, "body_bytes"),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n".into(), 405, "method"),
        ("TRACE /r HTTP/1.1\r\nHost: h\r\n\r\n".into(), 405, "method"),
        ("PRI * HTTP/2.0\r\nHost: h\r\n\r\n".into(), 505, "version"),
        (get.to_owned() + "\r\n", 400, "host"),
        (format!("{get}Host: a\r\nHost: b\r\n\r\n"), 400, "host"),
        ("GET  /r HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400, "request_line"),
        (format!("{get}Host: h\r\nA : b\r\n\r\n"), 400, "header_name"),
        (format!("{get}Host: h\r\n folded\r\n\r\n"), 400, "folded_header"),
        ("GET /r HTTP/1.1\nHost: h\n\n".into(), 400, "bare_line_end"),
        (
            "POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            400,
            "length_and_encoding",
        ),
        ("POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\nx".into(), 400, "content_length"),
        ("POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(), 400, "transfer_encoding"),
        ("POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(), 400, "chunk"),
        ("POST /r HTTP/1.1\r\nHost: h\r\nExpect: the-best\r\nContent-Length: 1\r\n\r\nx".into(), 417, "expectation"),
    ] {
        let before = rejected(&node, rule);
        let mut client = node.client();
        let answer = client.send(bytes.as_bytes()).next().unwrap_or_else(|| panic!("no answer to {bytes:?}"));
        assert_eq!(answer.status, status, "{bytes:?}: {answer:?}");
        assert!(answer.must("proxy-status").starts_with("seawall; error="), "{answer:?}");
        assert_eq!(answer.json()["rule"], rule, "{bytes:?}");
        assert_eq!(rejected(&node, rule), before + 1, "{rule}");
    }
    let nowhere = node.get("/nothing/here");
    nowhere.is_ours(404, "destination_not_found");
    assert_eq!(node.post("/w", "Idempotency-Key: a\r\nIdempotency-Key: b\r\n", "x").status, 400);
    assert_eq!(node.client().ask("DELETE /w HTTP/1.1\r\nHost: h\r\n\r\n").status, 404, "this route takes POST");
    assert_eq!(
        node.metrics().all_answers("rest") + rejected(&node, "no_route"),
        2 + 1,
        "the two that broke in their body"
    );
    assert!(server.seen().is_empty(), "none of it got through: {:?}", server.seen());
    assert_eq!((node.get("/r").body.as_str(), node.spooled()), ("fine", 0));
}

/// A body that turns out too long only when it comes, and one beyond what a write may have.
#[test]
fn bodies_beyond_the_limits() {
    let (server, node, _place) = world();
    let chunk = format!("{:x}\r\n{}\r\n", 20_000, "x".repeat(20_000));
    let chunks =
        format!("POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(8));
    let answer = node.client().ask(&chunks);
    assert_eq!((answer.status, &answer.json()["rule"]), (413, &Value::from("body_bytes")), "{answer:?}");
    let chunks =
        format!("POST /w HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(4));
    let answer = node.client().ask(&chunks);
    assert_eq!((answer.status, &answer.json()["rule"]), (413, &Value::from("replay_max")), "{answer:?}");
    assert!(server.seen().iter().all(|seen| seen.line().starts_with("POST /r")), "{:?}", server.seen().len());
    assert_eq!(node.post("/w", "", &"x".repeat(60_000)).status, 200);
}

/// Half a request and then nothing, half a request and then good-bye.
#[test]
fn clients_that_stop_in_the_middle() {
    let (_server, node, _place) = world();
    for half in ["G", "GET /r HTTP/1.1\r\nHo", "GET /r HTTP/1.1\r\nHost: h\r\n"] {
        let answer = node.client().send(half.as_bytes()).next().expect("an answer after `header_timeout`");
        assert_eq!((answer.status, answer.must("connection").as_str()), (408, "close"), "{half:?}");
    }
    for half in
        ["", "G", "GET /r HTTP/1.1\r\nHost: h\r\n", "POST /w HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf"]
    {
        let _ = node.client().send(half.as_bytes());
    }
    wait_until("they are forgotten", || node.metrics().get("seawall_client_connections") == 0);
    assert_eq!((node.get("/r").status, node.spooled()), (200, 0));
}

/// Noise, and good requests with a few bytes changed: whatever it is, it is answered or ended, and the node is well.
#[test]
fn noise() {
    let (_server, node, _place) = world();
    let seed = 0x5ea_0a11;
    println!("seed {seed:#x}");
    let mut prng = Prng::new(seed);
    let good = [
        "GET /r/a?b=c HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n".to_owned(),
        post("/w", "Shipment-Id: s\r\nIdempotency-Key: \"k\"\r\n", "a body"),
        "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n".to_owned(),
    ];
    for round in 0..300 {
        let mut bytes = if round % 3 == 0 {
            (0..prng.below(600)).map(|_| prng.next_u64() as u8).collect()
        } else {
            good[prng.below(3) as usize].clone().into_bytes()
        };
        for _ in 0..prng.below(4) {
            let at = prng.below(bytes.len().max(1) as u64) as usize;
            match prng.below(3) {
                0 if !bytes.is_empty() => bytes[at] = prng.next_u64() as u8,
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"\r\n :,\0"[prng.below(6) as usize]),
            }
        }
        let mut client = node.client();
        client.send(&bytes);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let rest = client.rest();
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 "), "round {round}: {bytes:?}: {rest}");
    }
    assert_eq!(node.get("/r").status, 200);
    wait_until("every place is given back", || node.metrics().get("seawall_client_connections") == 0);
    assert_eq!(node.metrics().get("seawall_in_flight{route=\"rest\"}"), 0);
}

/// One connection too many is told so, and counted; when others leave there is room again.
#[test]
fn connections_have_a_limit() {
    let (_server, node, _place) = world();
    let mut many: Vec<Client> = (0..200).map(|_| node.client()).collect();
    wait_until("all are in", || node.metrics().get("seawall_client_connections") == 200);
    let refused = node.client().next().expect("an answer");
    refused.is_ours(503, "connection_limit_reached");
    assert_eq!(node.metrics().get("seawall_limit_reached_total{limit=\"connections\"}"), 1);
    assert_eq!(many[7].ask("GET /r HTTP/1.1\r\nHost: h\r\n\r\n").status, 200, "who is in is served");
    many.clear();
    wait_until("there is room again", || node.metrics().get("seawall_client_connections") == 0);
    assert_eq!(node.get("/r").status, 200);
}

/// The admin port too: garbage, huge bodies, wrong JSON.
#[test]
fn the_admin_port_takes_no_nonsense_either() {
    let (_server, node, _place) = world();
    for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[0; 2000]] {
        let rest = Client::new(node.admin).send(bytes).rest();
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400"), "{rest}");
    }
    let raw = |target: &str, body: &str| {
        Client::new(node.admin).ask(&post(target, "Content-Type: application/json\r\n", body))
    };
    for body in [
        "",
        "{",
        "[]",
        "{}",
        "{\"sink\":\"a b\",\"batch\":1,\"receipts\":[]}",
        "{\"sink\":\"s\",\"batch\":-1,\"receipts\":[]}",
    ] {
        let answer = raw("/api/ledger/receipts", body);
        assert!((400..500).contains(&answer.status) && answer.json()["error"].is_string(), "{body}: {answer:?}");
    }
    let batch =
        |number: u64| raw("/api/ledger/receipts", &format!("{{\"sink\":\"s\",\"batch\":{number},\"receipts\":[]}}"));
    assert_eq!(batch(5).status, 200, "a sink that was never heard of goes on from where it stands");
    let gap = batch(7);
    assert_eq!((gap.status, gap.json()["allowed"][0].as_str()), (409, Some("6")), "{gap:?}");
    assert_eq!(raw("/api/spool/1/retry", "").status, 404);
    assert_eq!(raw("/api/spool/1/discard", "{}").status, 400);
    let evil = "POST /api/ledger/seal HTTP/1.1\r\nHost: h\r\nOrigin: http://evil.example\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(Client::new(node.admin).ask(evil).status, 403);
    assert_eq!(node.status()["ready"], true);
}

/// A client that says how long it will wait is not kept longer.
#[test]
fn a_slow_reader_holds_nobody_up() {
    let body = "w".repeat(8 << 20);
    let server = Server::start(move |_| ok(&body));
    let (node, _place) = Place::new(&format!(
        "limits: {{ body_idle_timeout: 300ms }}\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ upstream: up }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\" }} }}\n",
        server.address
    ))
    .node_of();
    let mut slow = node.client();
    slow.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it is let go", || server.count() == 1 && node.metrics().get("seawall_client_connections") == 0);
    let mut quick = node.client();
    quick.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(quick.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").body.len(), 8 << 20);
}
