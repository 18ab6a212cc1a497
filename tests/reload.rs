//! A configuration that changes under a running node: by signal, by itself, by hand; and one that is wrong.

use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::process::Signal;
use serde_json::json;

use crate::house::{Client, Place, local, port, wait_for, wait_until};
use crate::process::code;
use crate::server::{Server, ok, sick};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// One route `api` to this server.
fn config(server: &Server, more: &str) -> String {
    format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: up, policy: p }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\" }} }}\n\
         policies: {{ p: {{ retry: off, breaker: {{ window: 4 calls, calls_min: 4, open_for: 1h }} {more} }} }}\n",
        server.address
    )
}

#[test]
fn a_signal_a_changed_file_and_the_command_all_take_it_in() {
    let (first, second) = (Server::start(|_| ok("first")), Server::start(|_| ok("second")));
    let place = Place::new(&config(&first, ""));
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(place.path()).args(["-c", "user.name=t", "-c", "user.email=t@t"]).args(arguments);
        let output = command.output().expect("git runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    git(&["init", "--quiet"]);
    git(&["add", "seawall.yaml"]);
    git(&["commit", "--quiet", "-m", "one"]);
    let node = place.node();
    let mut client = node.client();
    assert_eq!(client.ask(GET).body, "first");
    assert_eq!(node.journal().first("config_loaded")["fields"]["git"], git(&["rev-parse", "HEAD"]));

    // By itself, once the file has stayed the same for a moment.
    place.configure(&config(&second, ""));
    wait_until("the file is taken in", || client.ask(GET).body == "second");

    // By hand: first only said, then done.
    place.configure(&config(&second, ", timeout: 7s"));
    let admin = format!("http://{}", node.admin);
    let asked = |words: &[&str]| place.seawall(&[&["reload", "--admin", &admin], words].concat());
    let before = node.journal().count("config_loaded");
    asked(&["--dry-run"]).shows(&["would change 2 things:\n  route api: timeout\n  route api: try_timeout"]);
    // The watch may have been quicker.
    let done = asked(&[]);
    assert_eq!(done.code, 0, "{done:?}");
    let loaded = wait_for("it is in force", || {
        let journal = node.journal();
        (journal.count("config_loaded") > before).then(|| journal.last("config_loaded").clone())
    });
    assert_eq!(loaded["fields"]["changed"], "route api: timeout; route api: try_timeout");
    assert_eq!(loaded["fields"]["git"], format!("{} and changes", git(&["rev-parse", "HEAD"])));
    asked(&[]).shows(&["nothing that a running node goes by is different"]);
    assert_eq!(node.status()["config_digest"], loaded["fields"]["digest"]);

    // By a signal; the same as before, it is told and nothing happens.
    let before = node.journal().count("config_loaded");
    node.process.signal(Signal::HUP);
    wait_until("it is told", || node.process.lines().iter().any(|line| line.contains("is as it was")));
    assert_eq!(node.journal().count("config_loaded"), before);
    assert_eq!(client.ask(GET).body, "second", "all the time on one connection");
    assert_eq!(node.metrics().get("seawall_client_connections_total"), 1);
    let lowered = node.process.lines().iter().filter(|line| line.contains("is lowered to")).count();
    assert!(lowered <= 1, "what the machine cannot carry is told once");
    assert_eq!(code(node.stop()), 0);
}

#[test]
fn what_is_wrong_or_wants_a_restart_changes_nothing_and_is_loud() {
    let ill = Arc::new(AtomicBool::new(true));
    let of_server = Arc::clone(&ill);
    let server = Server::start(move |_| if of_server.load(Relaxed) { sick() } else { ok("well") });
    let place = Place::new(&config(&server, ""));
    let node = place.node_with(&["run", "--no-watch"], &[]);
    wait_until("the breaker opens", || {
        node.get("/");
        node.breaker("api") == "open"
    });
    ill.store(false, Relaxed);
    let admin = format!("http://{}", node.admin);
    let reload = || place.seawall(&["reload", "--admin", &admin]);
    let held = port();
    let held = std::net::TcpListener::bind(local(held)).unwrap();
    for (text, words) in [
        (config(&server, ", timeuot: 1s"), "unknown key `timeuot`"),
        ("listeners: [".to_owned(), "seawall.yaml:"),
        (format!("node: other\n{}", config(&server, "")), "`node` changes only with a restart of the node"),
        (
            format!("zone: z\ntoxiproxy: {{ listen: \"127.0.0.1:{}\" }}\n{}", port(), config(&server, "")),
            "`node`, `zone`, `toxiproxy` change only with a restart of the node",
        ),
        (
            config(&server, "").replacen("127.0.0.1:0", &held.local_addr().unwrap().to_string(), 1),
            "another process listens there",
        ),
        (
            config(&server, "").replacen(", routes:", ", tls: { cert_file: none.pem, key_file: none.key }, routes:", 1),
            "`none.pem`: cannot be read",
        ),
    ] {
        place.configure(&text);
        let said = reload();
        assert_eq!(said.code, 1, "{said:?}");
        said.tells(&["the node refused: ", words]);
        assert_eq!(node.breaker("api"), "open");
    }
    place.configure(&config(&server, ", timeuot: 1s"));
    node.process.signal(Signal::HUP);
    wait_until("a signal's refusal is told", || node.journal().count("config_refused") == 7);
    let why = node.journal().last("config_refused")["fields"].clone();
    assert_eq!(why["because"], "signal");
    assert!(why["why"].as_str().unwrap().contains("seawall.yaml:3:"), "{why}");
    let log = node.process.lines().join("\n");
    assert!(log.contains("the old one stays in force") && log.contains("did you mean `timeout`"), "{log}");

    // A breaker that is open stays open over a change of something else.
    place.configure(&config(&server, ", timeout: 7s"));
    assert_eq!(reload().code, 0);
    assert_eq!((node.breaker("api").as_str(), node.get("/").status), ("open", 503));
    let unknown = node.admin_post("/api/reload", &json!({ "dryrun": true }));
    assert_eq!((unknown.status, unknown.json()["field"].as_str().unwrap()), (400, "dryrun"));
    let unknown = node.admin_post("/api/reload", &json!({ "dry_run": "yes" }));
    assert_eq!((unknown.status, unknown.json()["allowed"].clone()), (400, json!(["true", "false"])));
}

#[test]
fn routes_that_spool_come_and_go_and_listeners_move() {
    let server = Server::start(|_| ok("taken"));
    let (old, new) = (port(), port());
    let text = |address: u16, fallback: &str| {
        format!(
            "listeners: [{{ address: \"127.0.0.1:{address}\", routes: [{{ name: api, upstream: up, policy: p }}] }}]\n\
             upstreams: {{ up: {{ url: \"http://{}\" }} }}\npolicies: {{ p: {{ timeout: 5s{fallback} }} }}\n",
            server.address
        )
    };
    let place = Place::new(&text(old, ""));
    let node = place.node_with(&["run", "--no-watch"], &[]);
    let admin = format!("http://{}", node.admin);
    let reload = || {
        let said = place.seawall(&["reload", "--admin", &admin, "--json"]);
        assert_eq!(said.code, 0, "{said:?}");
        said.json()
    };
    place.configure(&text(new, ", fallback: spool"));
    assert_eq!(
        reload()["changed"],
        json!([
            format!("listener 127.0.0.1:{old}: removed"),
            format!("listener 127.0.0.1:{new}: added"),
            "route api: fallback"
        ])
    );
    wait_until("the old port is closed", || TcpStream::connect(local(old)).is_err());
    let mut client = wait_for("the new one is open", || Client::connect(local(new)).ok());
    let write = "POST / HTTP/1.1\r\nHost: h\r\nIdempotency-Key: \"k\"\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(client.ask(write).status, 200);
    let stream = &node.api("/api/ledger")["streams"][0];
    assert_eq!((stream["stream"].as_str(), stream["accepted"].as_u64()), (Some("api"), Some(1)), "counted from now on");
}

#[test]
fn a_node_without_a_file_says_so() {
    let server = Server::start(|_| ok("well"));
    let place = Place::empty();
    let listen = format!("127.0.0.1:{}", port());
    let node = place.node_with(
        &["run", "--listen", &listen, "--upstream", &format!("http://{}", server.address), "--admin", "127.0.0.1:0"],
        &[],
    );
    let said = place.seawall(&["reload", "--admin", &format!("http://{}", node.admin)]);
    assert_eq!(said.code, 1);
    said.tells(&["this node was started without a configuration file"]);
}
