//! A real gRPC server and clients, with Seawall between them.

use crate::house::{Node, Place, port, wait_until};
use crate::process::code;
use crate::script::Script;

/// The package `grpcio` from PyPI.
const GRPC: Script = Script { tools: "grpc", file: "grpc_echo.py" };

fn node(upstream: u16, policy: &str) -> (Node, Place) {
    let place = Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: echo, match: {{ path_prefix: /seawall.Echo }}, \
         upstream: echo, policy: p }}] }}]\n\
         upstreams: {{ echo: {{ url: \"http://127.0.0.1:{upstream}\", http2: on }} }}\n\
         policies: {{ p: {{ {policy} }} }}\n"
    ));
    (place.node(), place)
}

fn say(node: &Node, arguments: &[&str]) -> String {
    let mut command = GRPC.command();
    command.arg(arguments[0]).arg(node.address().to_string()).args(&arguments[1..]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(code(output.status), 0, "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

#[test]
fn every_kind_of_call_passes_and_what_became_of_it_is_known() {
    let echo = GRPC.serve();
    let (node, _place) = node(echo.port, "timeout: 30s, breaker: off, retry: off");
    assert_eq!(say(&node, &["client"]), "ok");
    // What is about the call is no failure of the upstream; what broke off is.
    wait_until("all are counted", || node.metrics().answers("echo", "2xx") == 10);
    let failures =
        |kind: &str| node.metrics().get(&format!("seawall_failures_total{{route=\"echo\",kind=\"{kind}\"}}"));
    assert_eq!((failures("status"), failures("incomplete"), failures("protocol")), (1, 0, 0));
    assert_eq!(say(&node, &["load", "3000"]), "3000");
    let status = node.status();
    let endpoint = &status["upstreams"][0]["endpoints"][0];
    assert!(endpoint["connections"].as_u64() <= Some(4), "32 at once share connections: {endpoint}");
}

/// A subscription: the client asks once and is silent, the service speaks now and then.
#[test]
fn a_client_that_listens_may_be_silent_for_as_long_as_it_is_answered() {
    let echo = GRPC.serve();
    let (node, place) = node(echo.port, "timeout: 60s, retry: off, breaker: { window: 10 calls, calls_min: 1 }");
    let config = std::fs::read_to_string(place.path().join("seawall.yaml")).unwrap();
    place.write("seawall.yaml", &format!("{config}limits: {{ body_idle_timeout: 1s }}\n"));
    assert_eq!(node.admin_post("/api/reload", &serde_json::json!({})).status, 200);
    assert_eq!(say(&node, &["watch", "12"]), "12", "three times as long");
    let metrics = node.metrics();
    assert_eq!(
        (node.breaker("echo").as_str(), metrics.get("seawall_limit_reached_total{limit=\"body_idle_timeout\"}")),
        ("closed", 0)
    );
}

#[test]
fn our_own_answers_are_said_in_its_words() {
    let echo = GRPC.serve();
    let (node, _place) = node(
        echo.port,
        "timeout: 300ms, retry: off, breaker: { window: 20 calls, calls_min: 4, failure_rate: 50%, open_for: 1h }",
    );
    assert_eq!(say(&node, &["code", "Unary x"]), "OK");
    assert_eq!(say(&node, &["code", "Hang"]), "DEADLINE_EXCEEDED no answer in time");
    let refused = say(&node, &["code", "Fail UNAVAILABLE not now"]);
    assert_eq!(refused, "UNAVAILABLE not now", "the upstream's own words stay");
    wait_until("statuses open the breaker", || {
        say(&node, &["code", "Fail INTERNAL broken"]);
        node.breaker("echo") == "open"
    });
    let refused = say(&node, &["code", "Unary x"]);
    assert!(refused.starts_with("UNAVAILABLE ") && refused.contains("breaker"), "{refused}");
    // No route: that method is not there.
    let elsewhere = Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ match: {{ path: /only }}, upstream: echo }}] }}]\n\
         upstreams: {{ echo: {{ url: \"http://127.0.0.1:{}\", http2: on }} }}\n",
        port()
    ));
    let other = elsewhere.node();
    assert!(say(&other, &["code", "Unary x"]).starts_with("UNIMPLEMENTED no route takes POST"));
}

/// The server has no health of its own to tell but what `Feel` has set.
#[test]
fn an_endpoint_is_as_well_as_its_service_says() {
    let echo = GRPC.serve();
    let straight = format!("127.0.0.1:{}", echo.port);
    let checked = |service: &str| {
        let place = Place::new(&format!(
            "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: echo, upstream: echo }}] }}]\n\
             upstreams: {{ echo: {{ url: \"http://127.0.0.1:{}\", http2: on, \
             health: {{ grpc: \"{service}\", every: 50ms, timeout: 5s, unhealthy_after: 1, healthy_after: 1 }} }} }}\n",
            echo.port
        ));
        (place.node(), place)
    };
    let feels = |service: &str, status: &str| {
        let output = GRPC.command().args(["code", &straight, &format!("Feel {service} {status}")]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "OK");
    };
    let is_well = |node: &Node| node.status()["upstreams"][0]["endpoints"][0]["healthy"] == true;
    let reason = |node: &Node| {
        let journal = node.journal();
        let told = journal.0.iter().rfind(|entry| entry["kind"] == "endpoint_unhealthy");
        told.map(|entry| entry["fields"]["reason"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    let (node, _place) = checked("shop.Stock");
    wait_until("nobody knows the service", || !is_well(&node) && reason(&node) == "answered NOT_FOUND");
    feels("shop.Stock", "SERVING");
    wait_until("it serves", || is_well(&node));
    assert_eq!(say(&node, &["code", "Unary x"]), "OK");
    feels("shop.Stock", "NOT_SERVING");
    wait_until("it does not", || !is_well(&node) && reason(&node) == "says NOT_SERVING");
    assert!(say(&node, &["code", "Unary x"]).starts_with("UNAVAILABLE "));
    feels("shop.Stock", "SERVING");
    wait_until("it serves again", || is_well(&node));

    let (whole, _place) = checked("");
    feels("", "NOT_SERVING");
    wait_until("the server as a whole does not", || !is_well(&whole) && reason(&whole) == "says NOT_SERVING");
    assert!(is_well(&node), "of that service nothing has changed");
}

#[test]
fn a_deadline_goes_on_and_a_spent_one_goes_nowhere() {
    let echo = GRPC.serve();
    let (node, _place) = node(echo.port, "timeout: 30s, retry: off");
    // The client gives up by itself; the call must not live on with us.
    assert!(say(&node, &["code", "Hang", "0.3"]).starts_with("DEADLINE_EXCEEDED"));
    wait_until("its call is over", || node.metrics().get("seawall_in_flight{route=\"echo\"}") == 0);
}
