//! A real server behind Seawall, and real load in front of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::thread::{self, JoinHandle};

use rustix::process::Signal;

use crate::house::{Client, Node, Place, local, port, wait_until};
use crate::process::{Process, code};

/// nginx with a master and two workers, on a port of its own that it keeps over restarts.
pub struct Nginx {
    pub port: u16,
    dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Nginx {
    pub fn start() -> Self {
        let mut nginx = Self { port: port(), dir: tempfile::tempdir().unwrap(), process: None };
        nginx.configure("hello", "");
        nginx.run();
        nginx
    }

    /// What it answers on `/`, and what else stands in its `http` block.
    pub fn configure(&self, text: &str, more: &str) {
        let (dir, port) = (self.dir.path().display(), self.port);
        let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {dir}/{what};\n"))
            .concat();
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let config = format!(
            "{user}daemon off;\nworker_processes 2;\npid {dir}/nginx.pid;\nevents {{ worker_connections 512; }}\n\
             http {{\naccess_log off;\n{folders}{more}\n\
             server {{\nlisten 127.0.0.1:{port};\n\
             location / {{ return 200 '{text}'; }}\n\
             location = /stub {{ stub_status; }}\n\
             location /files/ {{ alias {dir}/files/; }}\n\
             }}\n}}\n"
        );
        std::fs::write(self.dir.path().join("nginx.conf"), config).unwrap();
    }

    /// Starts it, and waits until it serves.
    pub fn run(&mut self) {
        let dir = self.dir.path();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).args(["-e", "stderr"]);
        self.process = Some(Process::start(&mut command));
        wait_until("nginx serves", || {
            let process = self.process.as_mut().unwrap();
            assert!(process.ended().is_none(), "nginx ended: {:?}", process.lines());
            Client::connect(local(self.port)).is_ok()
        });
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// What it answers on `/files/NAME`.
    pub fn file(&self, name: &str, text: &str) {
        let files = self.dir.path().join("files");
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join(name), text).unwrap();
    }

    /// SIGKILL to the master and its workers.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Takes the configuration anew: new workers, the old ones end.
    pub fn reload(&self) {
        self.process.as_ref().unwrap().signal(Signal::HUP);
    }

    /// SIGSTOP: connections are accepted by the kernel, and nobody answers.
    pub fn pause(&self) {
        self.process.as_ref().unwrap().signal_all(Signal::STOP);
    }

    pub fn resume(&self) {
        self.process.as_ref().unwrap().signal_all(Signal::CONT);
    }

    /// Requests it has counted itself; asking counts as one.
    fn requests(&self) -> u64 {
        let text = Client::new(local(self.port)).ask("GET /stub HTTP/1.1\r\nHost: h\r\n\r\n").body;
        text.lines().nth(2).and_then(|line| line.split_whitespace().nth(2)?.parse().ok()).expect("its counts")
    }
}

/// Large files, parts of files, heads of files and "not modified": as nginx gives them, byte for byte.
#[test]
fn files_arrive_byte_for_byte() {
    let nginx = Nginx::start();
    let text: String = (0..1_500_000).map(|n| format!("{n:07} ")).collect();
    nginx.file("large", &text);
    let (node, _place) = place(&nginx).node_of();
    let ask = |headers: &str| node.client().ask(&format!("GET /files/large HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
    let whole = ask("");
    assert_eq!((whole.status, whole.body.len()), (200, text.len()));
    assert!(whole.body == text, "changed on the way");
    let part = ask("Range: bytes=8000000-8000007\r\n");
    assert_eq!((part.status, part.body.as_str()), (206, "1000000 "));
    let etag = whole.must("etag");
    let known = ask(&format!("If-None-Match: {etag}\r\n"));
    assert_eq!((known.status, known.must("etag")), (304, etag));
    let mut client = node.client();
    client.send(b"HEAD /files/large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    let head = client.rest().to_lowercase();
    assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", text.len())), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "a head has no body");
    assert_eq!(node.get("/files/none").status, 404);
}

/// What `wrk` saw.
#[derive(Debug, PartialEq, Eq)]
struct Load {
    requests: u64,
    not_2xx: u64,
    socket_errors: u64,
}

const CONNECTIONS: u64 = 16;

fn wrk(node: &Node, seconds: u32) -> JoinHandle<Load> {
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--connections", &CONNECTIONS.to_string(), "--duration", &format!("{seconds}s")]);
    command.arg(format!("http://{}/", node.address()));
    thread::spawn(move || {
        let output = command.output().expect("wrk runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(code(output.status), 0, "{text}{}", String::from_utf8_lossy(&output.stderr));
        let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label).map(str::to_owned));
        let requests = text.lines().find(|line| line.contains(" requests in ")).expect("a sum");
        let errors = after("Socket errors: ").unwrap_or_default();
        Load {
            requests: requests.split_whitespace().next().unwrap().parse().unwrap(),
            not_2xx: after("Non-2xx or 3xx responses: ").map_or(0, |count| count.parse().unwrap()),
            socket_errors: errors.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum(),
        }
    })
}

fn place(nginx: &Nginx) -> Place {
    Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: web, upstream: nginx, policy: quick }}] }}]\n\
         upstreams: {{ nginx: {{ url: \"{}\" }} }}\n\
         policies:\n  quick:\n    timeout: 3s\n    retry: {{ attempts: 3, backoff: 5ms..50ms }}\n    \
         breaker: {{ failure_rate: 50%, window: 50 calls, calls_min: 20, open_for: 200ms, open_for_max: 200ms }}\n",
        nginx.url()
    ))
}

/// Every counter there is tells the same story: wrk's, Seawall's, nginx's.
#[test]
fn under_load_every_answer_is_whole_and_the_counts_agree() {
    let nginx = Nginx::start();
    let node = place(&nginx).node_of();
    let before = nginx.requests();
    let load = wrk(&node.0, 2).join().unwrap();
    assert!(load.requests > 100, "{load:?}");
    assert_eq!((load.not_2xx, load.socket_errors), (0, 0), "{load:?}");
    wait_until("nothing is on its way", || node.0.metrics().get("seawall_in_flight{route=\"web\"}") == 0);
    let metrics = node.0.metrics();
    let answered = metrics.answers("web", "2xx");
    assert_eq!(metrics.all_answers("web"), answered, "nothing but 2xx");
    // wrk leaves with the last answer of each connection unread.
    assert!((load.requests..=load.requests + CONNECTIONS).contains(&answered), "{answered} {load:?}");
    assert_eq!(metrics.get("seawall_request_duration_seconds_count{route=\"web\"}"), answered);
    let cancelled = metrics.get("seawall_cancelled_total{route=\"web\"}");
    let resends = metrics.get("seawall_resends_total{route=\"web\"}");
    let at_nginx = nginx.requests() - before - 1;
    assert!((answered..=answered + cancelled + resends).contains(&at_nginx), "{at_nginx}: {answered} + {cancelled}");
    assert_eq!(metrics.get("seawall_breaker_opened_total{route=\"web\"}"), 0);
    assert!(metrics.get("seawall_client_connections_total") >= CONNECTIONS);
}

/// A server that is reloaded closes its connections whenever it likes: no client notices.
#[test]
fn a_reload_and_connections_that_end_early_are_nobodys_business() {
    let nginx = Nginx::start();
    nginx.configure("hello", "keepalive_requests 7;");
    nginx.reload();
    let (node, _place) = place(&nginx).node_of();
    let load = wrk(&node, 3);
    for text in ["one", "two", "three"] {
        let seen = node.metrics().answers("web", "2xx");
        wait_until("load runs", || load.is_finished() || node.metrics().answers("web", "2xx") > seen + 50);
        nginx.configure(text, "keepalive_requests 7;");
        nginx.reload();
        wait_until("the new configuration answers", || node.get("/").body == text);
    }
    let load = load.join().unwrap();
    assert_eq!((load.not_2xx, load.socket_errors), (0, 0), "{load:?}");
    let metrics = node.metrics();
    assert_eq!(metrics.all_answers("web"), metrics.answers("web", "2xx"));
    assert_eq!(node.journal().count("breaker_opened"), 0);
}

/// Killed under load: clients are told at once, nobody waits, and it is well again by itself.
#[test]
fn killed_and_started_again_under_load() {
    let mut nginx = Nginx::start();
    let (node, _place) = place(&nginx).node_of();
    let load = wrk(&node, 4);
    wait_until("load runs", || node.metrics().answers("web", "2xx") > 100);
    nginx.kill();
    wait_until("the breaker opens", || node.breaker("web") == "open");
    let refused = node.get("/");
    refused.is_ours(503, "destination_unavailable");
    assert!(refused.must("proxy-status").contains("the breaker is open"), "{refused:?}");
    wait_until("load is refused", || node.metrics().get("seawall_refused_total{route=\"web\",rule=\"breaker\"}") > 50);
    nginx.run();
    wait_until("the breaker closes", || {
        node.get("/");
        node.breaker("web") == "closed"
    });
    let load = load.join().unwrap();
    assert_eq!(node.get("/").status, 200);
    assert_eq!(load.socket_errors, 0, "every request is answered, whatever happens behind us: {load:?}");
    let metrics = node.metrics();
    let failed = metrics.answers("web", "5xx");
    assert!(load.not_2xx > 0 && failed >= load.not_2xx, "{load:?}");
    // The same answers, seen from both sides; our own few requests and the unread last ones apart.
    let total = metrics.all_answers("web");
    assert!(total >= load.requests, "{total} {load:?}");
    let by_name: BTreeMap<&str, u64> = ["connect_refused", "connection_lost", "timeout", "protocol"]
        .into_iter()
        .map(|name| (name, metrics.get(&format!("seawall_failures_total{{route=\"web\",kind=\"{name}\"}}"))))
        .collect();
    assert!(by_name["connect_refused"] > 0, "{by_name:?}");
    assert_eq!((by_name["timeout"], by_name["protocol"]), (0, 0), "{by_name:?}");
    let journal = node.journal();
    let closed = journal.last("breaker_closed");
    let story = journal.story(closed);
    assert_eq!(story[..3], ["breaker_closed", "breaker_half_opened", "breaker_opened"], "{story:?}");
}

impl Place {
    /// A node, and the place it must not outlive.
    pub fn node_of(self) -> (Node, Self) {
        (self.node(), self)
    }
}
