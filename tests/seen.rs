//! What is seen: metrics a Prometheus accepts, probes, logs for machines, traces and ids that pass through.

use std::io::Write as _;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::house::{Client, Node, Place, local, port, wait_until};
use crate::process::Process;
use crate::server::Server;

fn place(server: &Server) -> Place {
    Place::new(&format!(
        "zone: us-east\nzones: [us-east, us-west]\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: events, match: {{ path: /events, method: POST }}, upstream: queue, policy: writes }}, \
         {{ name: rest, upstream: queue }}] }}]\n\
         upstreams: {{ queue: {{ url: \"http://{}\" }} }}\n\
         policies: {{ writes: {{ retry: off, fallback: spool, order_by: \"header:Shipment-Id\" }} }}\n",
        server.address
    ))
}

fn promtool(metrics: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, from Debian's package `prometheus`");
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn metrics_pass_promtool_before_and_after_traffic() {
    let (_well, server) = Server::moody();
    let (node, _place) = place(&server).node_of();
    let fresh = node.metrics();
    promtool(&fresh.0);
    assert_eq!(fresh.all_answers("events"), 0, "zeros are shown");
    for n in 0..5 {
        assert_eq!(node.post("/events", "Shipment-Id: s\r\n", &n.to_string()).status, 202);
        assert_eq!(node.get("/other").status, 503);
    }
    let _ = Client::new(node.address()).send(b"garbage\r\n\r\n").rest();
    let metrics = node.metrics();
    promtool(&metrics.0);
    assert_eq!((metrics.answers("events", "2xx"), metrics.answers("rest", "5xx")), (5, 5));
    assert_eq!(metrics.get("seawall_degraded_total{route=\"events\",how=\"spool\"}"), 5);
    assert_eq!(metrics.get("seawall_ready"), 1);
    let content_type = node.admin_get("/metrics").must("content-type");
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
}

#[test]
fn probes_answer_and_tell_what_is_wrong_with_a_question() {
    let (_well, server) = Server::moody();
    let (node, _place) = place(&server).node_of();
    assert_eq!(node.api("/healthz")["status"], "ok");
    assert_eq!(node.api("/readyz")["ready"], true);
    let status = node.status();
    assert_eq!(
        (&status["node"], &status["zone"], &status["ready"]),
        (&"us-east".into(), &"us-east".into(), &true.into())
    );
    assert_eq!(status["config_digest"].as_str().unwrap().len(), 64);
    let unknown = node.admin_get("/api/nothing");
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["allowed"].as_array().is_some_and(|paths| paths.contains(&"/api/status".into())));
    for (target, field) in
        [("/api/journal?kind=odd", "kind"), ("/api/spool?state=odd", "state"), ("/api/spool/x", "id")]
    {
        let bad = node.admin_get(target);
        assert_eq!((bad.status, &bad.json()["field"]), (400, &Value::from(field)), "{target}");
    }
    assert_eq!(node.admin_post("/api/status", &Value::Null).status, 405);
}

/// Whoever writes here from another site's page is turned away, whoever has no token too.
#[test]
fn the_admin_port_asks_for_its_token() {
    let (_well, server) = Server::moody();
    let place = Place::empty();
    place.write("token", "s3cret\nanything\n");
    place.configure(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ upstream: up }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\" }} }}\nadmin: {{ address: \"127.0.0.1:0\", token_file: ./token }}\n",
        server.address
    ));
    let node = place.node();
    assert_eq!(node.admin_get("/api/status").status, 401);
    assert_eq!(node.admin_get("/").status, 401);
    assert_eq!((node.admin_get("/healthz").status, node.admin_get("/readyz").status), (200, 200));
    let ask = |headers: &str| {
        let request = format!("GET /api/status HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", node.admin);
        Client::new(node.admin).ask(&request).status
    };
    assert_eq!((ask("Authorization: Bearer s3cret\r\n"), ask("Authorization: Bearer wrong\r\n")), (200, 401));
    let admin = node.admin.to_string();
    assert_eq!(place.seawall(&["status", "--admin", &admin]).code, 1);
    assert_eq!(place.seawall(&["status", "--admin", &admin, "--token-file", "token"]).code, 0);
    let shown =
        [place.seawall(&["journal", "--admin", &admin, "--token-file", "token"]).out, node.process.lines().join("")];
    assert!(shown.iter().all(|text| !text.contains("s3cret")), "no secret in any output");
}

fn crosses(node: &Node, server: &Server, headers: &str) -> (crate::house::Answer, crate::server::Seen) {
    let answer = node.client().ask(&format!("GET /x HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
    (answer, server.seen().pop().expect("the upstream saw it"))
}

#[test]
fn traces_pass_through_and_every_request_has_an_id() {
    let server = Server::start(|_| crate::server::ok("fine"));
    let (node, _place) = place(&server).node_of();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = format!("traceparent: {trace}\r\ntracestate: a=1,b=2\r\nbaggage: k=v\r\nX-Request-Id: mine-1\r\n");
    let (answer, seen) = crosses(&node, &server, &headers);
    assert_eq!(seen.header("traceparent").as_deref(), Some(trace));
    assert_eq!(seen.header("tracestate").as_deref(), Some("a=1,b=2"));
    assert_eq!(seen.header("baggage").as_deref(), Some("k=v"));
    assert_eq!(
        (seen.header("x-request-id").as_deref(), answer.must("x-request-id").as_str()),
        (Some("mine-1"), "mine-1")
    );
    let (first, seen) = crosses(&node, &server, "");
    assert_eq!(seen.header("x-request-id"), first.header("x-request-id"), "made where there is none");
    let (second, _) = crosses(&node, &server, "");
    assert_ne!(first.must("x-request-id"), second.must("x-request-id"));
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert!(seen.header("via").is_some_and(|via| via.contains("us-east") || via.contains("seawall")), "{seen:?}");
}

#[test]
fn logs_are_json_lines_or_text_for_people() {
    let (_well, server) = Server::moody();
    let place = place(&server);
    let mut node = place.node();
    node.process.signal(Signal::TERM);
    node.process.wait();
    let lines: Vec<Value> = node.process.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.len() >= 3
            && lines
                .iter()
                .all(|line| { ["timestamp", "level", "message", "target"].iter().all(|key| line[key].is_string()) }),
        "{lines:?}"
    );
    let mut text = Process::start(&mut place.command(&["run", "--log", "text"]));
    wait_until("it says where it listens", || {
        text.lines().iter().any(|line| line.contains("listening address=127.0.0.1:"))
    });
    assert!(text.lines().iter().all(|line| !line.contains('\u{1b}')), "no colours where nobody sees them");
    text.signal(Signal::TERM);
    assert!(text.wait().success());
    let admin = local(port());
    let arguments = ["run", "--log", "json", "--log-level", "error", "--admin", &admin.to_string()];
    let mut quiet = Process::start(&mut place.command(&arguments));
    wait_until("it serves", || Client::connect(admin).is_ok());
    quiet.signal(Signal::TERM);
    assert!(quiet.wait().success());
    assert!(quiet.lines().is_empty(), "all is well: {:?}", quiet.lines());
}
