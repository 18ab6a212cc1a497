//! A real WebSocket server and client, with Seawall between them.

use rustix::process::Signal;

use crate::house::{Node, Place, local, port, wait_until};
use crate::process::{Process, code};
use crate::script::Script;

/// The package `websockets` from PyPI.
pub const WEBSOCKETS: Script = Script { tools: "websockets", file: "websocket.py" };

/// The same with PyPI's `h2` between it and the wire.
const OVER_H2: Script = Script { tools: "websockets", file: "websocket_h2.py" };

pub fn node(upstream: u16, more: &str) -> (Node, Place) {
    let place = Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [\n\
         {{ name: chat, match: {{ path: /chat }}, upstream: echo, upgrade: websocket, policy: p }},\n\
         {{ name: rest, upstream: echo }}] }}]\n\
         upstreams: {{ echo: {{ url: \"http://127.0.0.1:{upstream}\" }} }}\n\
         policies: {{ p: {{ retry: off, breaker: {{ window: 10 calls, calls_min: 4 }} }} }}\n{more}\n"
    ));
    (place.node(), place)
}

pub fn say(node: &Node, what: &str, path: &str) -> String {
    let output = WEBSOCKETS.command().args([what, &format!("ws://{}{path}", node.address())]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(code(output.status), 0, "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

#[test]
fn a_client_and_a_server_understand_each_other() {
    let echo = WEBSOCKETS.serve();
    let (node, place) = node(echo.port, "");
    assert_eq!(say(&node, "client", "/chat"), "ok");
    wait_until("all have ended", || node.metrics().get("seawall_connections_open{route=\"chat\"}") == 0);
    let metrics = node.metrics();
    assert_eq!(metrics.get("seawall_connections_opened_total{route=\"chat\"}"), 21);
    assert_eq!(metrics.get("seawall_connections_ended_total{route=\"chat\",how=\"done\"}"), 21);
    assert_eq!((metrics.answers("chat", "1xx"), metrics.all_answers("chat")), (21, 21));
    assert!(metrics.get("seawall_connection_bytes_total{route=\"chat\",direction=\"up\"}") > 4 << 20);
    assert_eq!(metrics.get("seawall_in_flight{route=\"chat\"}"), 0);
    place.seawall(&["explain", "chat"]).shows(&["Once upgraded", "websocket: bytes are carried as they come"]);
    // Where no route allows it, the server sees an ordinary request, and says so.
    assert_eq!(say(&node, "refused", "/other"), "426");
}

#[test]
fn an_open_breaker_refuses_the_handshake() {
    let (node, _place) = node(port(), "");
    wait_until("the breaker opens", || say(&node, "refused", "/chat") == "503");
    assert_eq!(node.breaker("chat"), "open");
    assert_eq!(node.metrics().get("seawall_connections_opened_total{route=\"chat\"}"), 0);
}

#[test]
fn a_stop_cuts_what_is_still_open_after_its_grace() {
    let echo = WEBSOCKETS.serve();
    let (mut node, place) = node(echo.port, "limits: { grace: 50ms }");
    let mut client = Process::start(WEBSOCKETS.command().args(["hold", &format!("ws://{}/chat", node.address())]));
    wait_until("it is open", || client.lines().iter().any(|line| line == "open"));
    node.process.signal(Signal::TERM);
    assert_eq!((code(node.process.wait()), code(client.wait())), (0, 0));
    assert_eq!(client.lines().last().unwrap(), "cut");
    let journal = place.seawall(&["journal", "--data", "data", "--json", "--kind", "node_stopped"]);
    assert!(journal.out.contains("\"cut_off\": \"1\""), "{journal:?}");
    assert!(crate::house::Client::connect(local(echo.port)).is_ok(), "the server lives on");
}

fn say_over_h2(node: &Node, what: &str, path: &str) -> String {
    let output = OVER_H2.command().args([what, &node.address().to_string(), path]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(code(output.status), 0, "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

#[test]
fn a_client_of_http_2_is_understood_too() {
    let echo = WEBSOCKETS.serve();
    let (node, _place) = node(echo.port, "");
    assert_eq!(say_over_h2(&node, "client", "/chat"), "ok");
    wait_until("all have ended", || node.metrics().get("seawall_connections_open{route=\"chat\"}") == 0);
    let metrics = node.metrics();
    assert_eq!(metrics.get("seawall_connections_opened_total{route=\"chat\"}"), 21);
    assert_eq!(metrics.get("seawall_connections_ended_total{route=\"chat\",how=\"done\"}"), 21);
    assert_eq!((metrics.answers("chat", "1xx"), metrics.all_answers("chat")), (21, 21));
    assert!(metrics.get("seawall_connection_bytes_total{route=\"chat\",direction=\"up\"}") > 4 << 20);
    // One that resets its stream takes its upstream's socket along, and nothing else.
    assert_eq!(say_over_h2(&node, "reset", "/chat"), "ok");
    wait_until("both have ended", || node.metrics().get("seawall_connections_open{route=\"chat\"}") == 0);
    assert!(node.metrics().get("seawall_connections_ended_total{route=\"chat\",how=\"client_reset\"}") >= 1);
    assert_eq!(node.metrics().get("seawall_in_flight{route=\"chat\"}"), 0);
    // Whoever is refused hears so: by the server, and where no route allows it.
    assert_eq!(say_over_h2(&node, "refused", "/chat?refused"), "403 8");
    assert!(say_over_h2(&node, "refused", "/other").starts_with("501 "));
}

#[test]
fn a_stop_cuts_one_over_http_2_after_its_grace() {
    let echo = WEBSOCKETS.serve();
    let (mut node, _place) = node(echo.port, "limits: { grace: 50ms }");
    let mut client = Process::start(OVER_H2.command().args(["hold", &node.address().to_string(), "/chat"]));
    wait_until("it is open", || client.lines().iter().any(|line| line == "open"));
    node.process.signal(Signal::TERM);
    assert_eq!((code(node.process.wait()), code(client.wait())), (0, 0));
    assert_eq!(client.lines().last().unwrap(), "cut");
}
