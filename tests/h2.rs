//! HTTP/2 with the programs others use: `curl` and `h2load` in front, `nghttpd` behind.

use std::process::Command;

use crate::house::{Client, Node, Place, local, port, wait_until};
use crate::process::Process;
use crate::server::{Server, ok};
use crate::tls::Authority;

fn curl(node: &Node, arguments: &[&str], scheme: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20", "--write-out", " %{http_version} %{http_code}"]);
    command.args(arguments).arg(format!("{scheme}://localhost:{}/a", node.address().port()));
    let output = command.output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn curl_speaks_it_in_clear_and_by_tls() {
    let authority = Authority::new();
    authority.pass("front", "DNS:localhost", "365");
    let dir = authority.0.path().display();
    let server = Server::start(|seen| ok(&format!("{} {}", seen.line(), seen.body.len())));
    let place = |tls: &str| {
        Place::new(&format!(
            "listeners: [{{ address: \"127.0.0.1:0\", {tls} routes: [{{ name: api, upstream: up }}] }}]\n\
             upstreams: {{ up: {{ url: \"http://{}\" }} }}\n",
            server.address
        ))
    };
    let (clear, _clear_place) = place("").node_of();
    assert_eq!(curl(&clear, &["--http2-prior-knowledge"], "http"), "GET /a HTTP/1.1 0 2 200");
    assert_eq!(curl(&clear, &["--http1.1"], "http"), "GET /a HTTP/1.1 0 1.1 200");
    let long = "x".repeat(1 << 20);
    let file = authority.0.path().join("long");
    std::fs::write(&file, &long).unwrap();
    let posted = curl(&clear, &["--http2-prior-knowledge", "--data-binary", &format!("@{}", file.display())], "http");
    assert_eq!(posted, format!("POST /a HTTP/1.1 {} 2 200", long.len()));
    let (sealed, _sealed_place) =
        place(&format!("tls: {{ cert_file: {dir}/front.pem, key_file: {dir}/front.key }},")).node_of();
    let ca = authority.0.path().join("ca.pem");
    let trusting = ["--cacert", ca.to_str().unwrap()];
    assert_eq!(curl(&sealed, &trusting, "https"), "GET /a HTTP/1.1 0 2 200", "agreed on by ALPN");
    assert_eq!(curl(&sealed, &[&trusting[..], &["--http1.1"]].concat(), "https"), "GET /a HTTP/1.1 0 1.1 200");
}

/// `nghttpd` with a folder of files.
fn nghttpd(files: &std::path::Path) -> (Process, u16) {
    let port = port();
    let mut command = Command::new("nghttpd");
    command.args(["--no-tls", "--address=127.0.0.1", "--htdocs"]).arg(files).arg(port.to_string());
    let process = Process::start(&mut command);
    wait_until("nghttpd serves", || Client::connect(local(port)).is_ok());
    (process, port)
}

#[test]
fn frames_on_both_sides_under_load() {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("a"), "small").unwrap();
    let large: String = (0..400_000).map(|n| format!("{n:07} ")).collect();
    std::fs::write(files.path().join("large"), &large).unwrap();
    let (_server, port) = nghttpd(files.path());
    let (node, _place) = Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: up }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://127.0.0.1:{port}\", http2: on, connections: 8, health: {{ path: /a }} }} }}\n"
    ))
    .node_of();
    assert!(node.get("/large").body == large, "changed on the way");
    let output = Command::new("h2load")
        .args(["--requests=5000", "--clients=10", "--max-concurrent-streams=20"])
        .arg(format!("http://{}/a", node.address()))
        .output()
        .expect("h2load runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    assert!(text.contains("5000 2xx"), "{text}");
    assert_eq!(node.metrics().answers("api", "2xx"), 5_001);
    let endpoint = &node.status()["upstreams"][0]["endpoints"][0];
    assert!(endpoint["connections"].as_u64() <= Some(8) && endpoint["healthy"] == true, "{endpoint}");
}
