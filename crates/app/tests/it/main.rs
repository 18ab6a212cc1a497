//! The built binary, from outside: what it prints, where, and how it ends.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use seawall_core::journal::{Draft, Kind};
use seawall_core::spool::{NewRecord, Terms};
use seawall_core::time::{Mono, Wall};
use seawall_store::{ClockFn, RealDisk, Store, StoreOptions};
use serde_json::Value;

fn seawall(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seawall"));
    command.args(arguments).current_dir(dir).env_remove("SEAWALL_LOG").stdin(std::process::Stdio::null());
    command.output().expect("the binary runs")
}

/// Status, standard output, standard error.
fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("an exit status"), text(&output.stdout), text(&output.stderr))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn init_then_check_and_an_existing_file_is_never_touched() {
    let dir = folder();
    let (status, out, _) = said(&seawall(dir.path(), &["init", "--yes"]));
    assert_eq!((status, out.as_str()), (0, "wrote `seawall.yaml`; next: `seawall check`, then `seawall run`\n"));
    let (status, out, _) = said(&seawall(dir.path(), &["check"]));
    assert_eq!((status, out.as_str()), (0, "seawall.yaml: ok, 2 routes\n"));
    std::fs::write(dir.path().join("seawall.yaml"), "mine").unwrap();
    let (status, _, err) = said(&seawall(dir.path(), &["init", "--yes"]));
    assert_eq!(status, 1);
    assert!(err.contains("is there already and stays as it is"), "{err}");
    assert_eq!(std::fs::read_to_string(dir.path().join("seawall.yaml")).unwrap(), "mine");
    let (status, out, _) = said(&seawall(dir.path(), &["init", "--config", "asked.yaml"]));
    assert_eq!(status, 0, "no terminal, no answers: the defaults");
    assert!(out.contains("Where should Seawall listen? [127.0.0.1:8080]: "), "{out}");
    let (status, _, err) = said(&seawall(dir.path(), &["init", "--yes", "--config", "no/such/folder.yaml"]));
    assert!(status == 1 && err.contains("cannot write `no/such/folder.yaml`"), "{err}");
}

#[test]
fn check_prints_every_mistake_and_ends_with_one() {
    let dir = folder();
    std::fs::write(dir.path().join("bad.yaml"), "zone: a b\ncolour: red\n").unwrap();
    let (status, out, err) = said(&seawall(dir.path(), &["check", "--config", "bad.yaml"]));
    assert_eq!((status, err.as_str()), (1, ""));
    assert!(out.starts_with("bad.yaml:1:1: missing key `upstreams`"), "{out}");
    assert!(out.contains("bad.yaml:2:1: unknown key `colour`\n   |  colour: red\n   |  ^^^^^^ known here: "), "{out}");
    assert!(out.ends_with("bad.yaml: 4 mistakes\n"), "{out}");
    let (status, out, _) = said(&seawall(dir.path(), &["check", "--config", "bad.yaml", "--json"]));
    let json: Value = serde_json::from_str(&out).expect("one object");
    assert_eq!((status, &json["errors"], json["findings"].as_array().unwrap().len()), (1, &Value::from(4), 4));
    assert_eq!(json["findings"][2]["line"], 1);
    let (status, _, err) = said(&seawall(dir.path(), &["check"]));
    assert!(status == 1 && err.contains("`seawall init` writes one"), "{err}");
    let (status, _, err) = said(&seawall(dir.path(), &["run", "--config", "bad.yaml"]));
    assert!(status == 1 && err.contains("bad.yaml:2:1: unknown key `colour`"), "{err}");
}

#[test]
fn a_warning_is_told_and_is_no_mistake() {
    let dir = folder();
    let text = "listeners: [{ address: \"127.0.0.1:1\", routes: [{ upstream: a }] }]\n\
                upstreams: { a: { url: \"http://127.0.0.1:2\" }, b: { url: \"http://127.0.0.1:3\" } }\n";
    std::fs::write(dir.path().join("seawall.yaml"), text).unwrap();
    let (status, out, _) = said(&seawall(dir.path(), &["check"]));
    assert_eq!(status, 0);
    assert!(out.ends_with("seawall.yaml: ok, 1 route, 1 warning\n"), "{out}");
}

#[test]
fn a_node_that_is_not_there_is_told_with_a_way_out() {
    let dir = folder();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for arguments in [&["status"][..], &["journal"], &["spool", "ls"], &["spool", "retry", "1"], &["ledger", "--json"]]
    {
        let (status, out, err) = said(&seawall(dir.path(), &[arguments, &["--admin", &free]].concat()));
        assert_eq!((status, out.as_str()), (3, ""), "{arguments:?}: {err}");
        assert!(err.starts_with(&format!("seawall: cannot reach a node at `http://{free}`")), "{err}");
        assert!(err.contains("--data DIR"), "{err}");
    }
    let config = format!(
        "admin: {{ address: {free} }}\nlisteners: [{{ address: \":1\", routes: [{{ upstream: a }}] }}]\nupstreams: {{ a: {{ url: \"http://a\" }} }}\n"
    );
    std::fs::write(dir.path().join("seawall.yaml"), config).unwrap();
    let (status, _, err) = said(&seawall(dir.path(), &["status"]));
    assert!(status == 3 && err.contains(&free), "the address of ./seawall.yaml: {err}");
    let (status, _, err) = said(&seawall(dir.path(), &["status", "--admin", "nowhere"]));
    assert!(status == 2 && err.contains("has no port"), "{err}");
    let (status, _, err) = said(&seawall(dir.path(), &["status", "--token-file", "none"]));
    assert!(status == 1 && err.contains("cannot read the token file `none`"), "{err}");
}

#[test]
fn what_cannot_be_understood_ends_with_two_and_help_with_zero() {
    let dir = folder();
    for wrong in [&["nothing"][..], &["run", "--listen", ":80"], &["run", "--listen", "x", "--upstream", "y"]] {
        assert_eq!(said(&seawall(dir.path(), wrong)).0, 2, "{wrong:?}");
    }
    let (status, out, _) = said(&seawall(dir.path(), &["--help"]));
    assert!(status == 0 && out.contains("Examples:") && !out.contains("demo-role"), "{out}");
    let (status, out, _) = said(&seawall(dir.path(), &["completions", "bash"]));
    assert!(status == 0 && out.contains("_seawall()"), "{out}");
    assert!(said(&seawall(dir.path(), &["--version"])).1.starts_with("seawall "));
}

/// A stopped node's directory with an entry, a waiting record and a dead letter.
async fn stopped_node(dir: &Path, held: impl AsyncFnOnce()) {
    let wall = || Wall::from_millis(1_700_000_000_000);
    let opened =
        Store::open(RealDisk, StoreOptions::new(dir, "us-east-1"), ClockFn(|| Mono::ZERO, wall), || [7; 32]).unwrap();
    let threads = opened.engine.spawn_threads().unwrap();
    let store = opened.store;
    store.journal.record(Draft::new(Kind::NodeStarted, "node"));
    store.journal.record(Draft::new(Kind::BreakerOpened, "route:events"));
    for key in ["1", "2"] {
        store.spool.enqueue(&record(key)).await.unwrap();
    }
    let mut leases = store.spool.lease("queue", 1, std::time::Duration::from_secs(60)).await.unwrap();
    assert!(store.spool.park(leases.leased.remove(0).lease, "answered 422", "no").await.unwrap());
    held().await;
    store.close().await;
    drop(store);
    threads.join();
}

fn record(key: &str) -> NewRecord {
    NewRecord {
        upstream: "queue".into(),
        route: "events".into(),
        order_key: Some(b"s-1".to_vec()),
        idempotency_key: key.into(),
        fingerprint: [3; 32],
        ledger: None,
        method: "POST".into(),
        target: "/events".into(),
        headers: Vec::new(),
        body: b"the payload".to_vec(),
        accepted: Wall::from_millis(1_700_000_000_000),
        first_failure: "the breaker is open".into(),
        attempts: 1,
        terms: Terms::default(),
    }
}

#[tokio::test]
async fn a_stopped_nodes_directory_is_read_and_a_running_ones_is_not() {
    let dir = folder();
    let data = dir.path().join("data");
    let ask = |arguments: &[&str]| said(&seawall(dir.path(), &[arguments, &["--data", "data"]].concat()));
    let (status, _, err) = ask(&["journal"]);
    assert!(status == 1 && err.contains("`data` is not the data directory of a node"), "{err}");
    assert!(!data.exists(), "looking makes nothing");
    stopped_node(&data, async || {
        let (status, _, err) = ask(&["spool", "ls"]);
        assert!(
            status == 1 && err.contains("is in use by another running node (pid ") && err.contains("leave out"),
            "{err}"
        );
    })
    .await;
    let (status, out, err) = ask(&["journal"]);
    assert_eq!((status, out.lines().count()), (0, 2), "{out}{err}");
    assert!(out.contains("2023-11-14T22:13:20.000Z  breaker_opened        route:events"), "{out}");
    assert_eq!(ask(&["journal", "--limit", "1"]).1.lines().count(), 1);
    assert!(ask(&["journal", "--limit", "1"]).1.contains("breaker_opened"), "the newest");
    assert!(ask(&["journal", "--limit", "1", "--after", "0"]).1.contains("node_started"), "the first");
    let (_, out, _) = ask(&["journal", "--kind", "breaker_opened", "--subject", "route:events", "--json"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["entries"].as_array().unwrap().len(), 1);
    let (status, out, _) = ask(&["journal", "export"]);
    let kinds: Vec<Value> =
        out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone()).collect();
    assert_eq!((status, kinds), (0, vec!["node_started".into(), "breaker_opened".into()]), "{out}");
    assert_eq!(
        ask(&["journal", "export", "--kind", "breaker_opened", "--until", "2024-01-01T00:00:00Z"]).1.lines().count(),
        1
    );
    let (status, out, _) = ask(&["spool", "ls", "--state", "parked"]);
    assert!(status == 0 && out.contains("answered 422") && !out.contains("payload"), "{out}");
    let json: Value = serde_json::from_str(&ask(&["spool", "ls", "--json"]).1).unwrap();
    let id = json["records"][0]["id"].to_string();
    let (_, out, _) = ask(&["spool", "show", &id]);
    assert!(out.contains("first_failure    the breaker is open"), "{out}");
    let (status, _, err) = ask(&["spool", "show", "99"]);
    assert!(status == 1 && err.contains("there is no record 99"), "{err}");
}

/// A node that is killed if the test ends early.
struct Node {
    process: Child,
    log: BufReader<ChildStderr>,
    admin: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Node {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seawall"));
        command.args(["run", "--log", "json"]).current_dir(dir).env_remove("SEAWALL_LOG");
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut log = BufReader::new(process.stderr.take().expect("piped"));
        let admin = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).expect("readable") > 0, "the node ended before it served");
            let line: Value = serde_json::from_str(&line).expect("one object a line");
            if line["message"] == "overview and admin API" {
                break line["address"].as_str().expect("an address").to_string();
            }
        };
        Self { process, log, admin }
    }

    /// Asks it to stop and waits: its exit status.
    fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        // Read to the end, so that the node never waits for us.
        let _ = std::io::copy(&mut self.log, &mut std::io::sink());
        self.process.wait().expect("it ended").code()
    }
}

#[test]
fn a_running_node_is_read_and_steered_with_its_token() {
    let dir = folder();
    std::fs::write(dir.path().join("token"), "s3cret\n").unwrap();
    let config = "node: us-east-1\nadmin: { address: \"127.0.0.1:0\", token_file: token }\n\
                  listeners: [{ address: \"127.0.0.1:0\", routes: [{ name: events, upstream: queue, policy: writes }] }]\n\
                  upstreams: { queue: { url: \"http://127.0.0.1:1\" } }\npolicies: { writes: { fallback: spool } }\n";
    std::fs::write(dir.path().join("seawall.yaml"), config).unwrap();
    let node = Node::start(dir.path());
    let ask = |arguments: &[&str]| {
        said(&seawall(dir.path(), &[arguments, &["--admin", &node.admin, "--token-file", "token"]].concat()))
    };
    let (status, out, err) = ask(&["status"]);
    assert!(status == 0 && out.starts_with("node     us-east-1 in local\nready    yes\n"), "{out}{err}");
    let (status, out, _) = ask(&["ledger", "--json"]);
    let ledger: Value = serde_json::from_str(&out).expect("one object");
    assert_eq!((status, &ledger["totals"]["accepted"]), (0, &Value::from(0)));
    let (status, out, _) = ask(&["ledger", "--seal"]);
    assert!(status == 0 && out.contains("STREAM"), "{out}");
    let (status, out, _) = ask(&["journal", "export", "--since", "1h"]);
    assert!(status == 0 && out.lines().next().unwrap().contains("\"node_started\""), "{out}");
    let (status, out, _) = ask(&["journal", "--kind", "node_started", "--subject", "node", "--after", "0"]);
    assert!(status == 0 && out.lines().count() == 1 && out.contains("node=us-east-1"), "{out}");
    assert_eq!(ask(&["spool", "ls"]).1, "nothing\n");
    let gone = "seawall: the node refused: there is no record 99; settled records are forgotten after a day\n";
    for refused in
        [&["spool", "show", "99"][..], &["spool", "retry", "99"], &["spool", "discard", "99", "--reason", "r"]]
    {
        assert_eq!(ask(refused), (1, String::new(), gone.into()), "{refused:?}");
    }
    let (status, _, err) = said(&seawall(dir.path(), &["status", "--admin", &node.admin]));
    assert!(status == 1 && err.contains("a token is needed"), "another node's token is not sent along: {err}");
    follow(dir.path(), &node.admin);
    assert_eq!(node.stop(), Some(0));
    let (_, out, _) = said(&seawall(dir.path(), &["journal", "--data", "seawall-data", "--limit", "1"]));
    assert!(out.contains("node_stopped"), "{out}");
}

/// The entries so far come at once, one a line; it goes on until it is ended.
fn follow(dir: &Path, admin: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seawall"));
    command.args(["journal", "--follow", "--json", "--admin", admin, "--token-file", "token"]).current_dir(dir);
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
    let first: Value = serde_json::from_str(&lines.next().expect("a line").expect("readable")).expect("an object");
    assert_eq!((&first["seq"], &first["kind"]), (&Value::from(1), &Value::from("node_started")));
    assert!(process.try_wait().expect("asked").is_none(), "it follows");
    process.kill().expect("ended");
    process.wait().expect("ended");
}
