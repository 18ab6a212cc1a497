//! How a node ends: the first signal drains, the second does not wait, and the journal tells which it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::house::{Client, Journal, Node, Place, post, wait_until};
use crate::process::{Process, code};
use crate::server::{Do, Server, ok};

fn place(server: &Server, grace: &str) -> Place {
    Place::new(&format!(
        "limits: {{ grace: {grace} }}\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: writes, match: {{ method: POST }}, upstream: up, policy: writes }}, {{ name: rest, upstream: up }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\" }} }}\npolicies: {{ writes: {{ retry: off, fallback: spool }} }}\n",
        server.address
    ))
}

/// What a stopped node's journal says.
fn journal(place: &Place) -> Journal {
    let said = place.seawall(&["journal", "--data", "data", "--json"]);
    assert_eq!(said.code, 0, "{said:?}");
    Journal::of(&said.json())
}

fn draining(node: &Node) -> bool {
    node.process.lines().iter().any(|line| line.contains("\"draining"))
}

#[test]
fn requests_in_work_end_and_new_ones_find_nobody() {
    let go_on = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&go_on);
    let server = Server::start(move |_| {
        wait_until("it may answer", || of_server.load(Relaxed));
        ok("in the end")
    });
    let (mut node, place) = place(&server, "50s").node_of();
    let (address, mut idle) = (node.address(), node.client());
    thread::scope(|scope| {
        let slow = scope.spawn(|| Client::new(address).ask("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n"));
        wait_until("it is on its way", || server.count() == 1);
        node.process.signal(Signal::TERM);
        wait_until("it drains", || draining(&node));
        wait_until("nobody listens any more", || Client::connect(address).is_err());
        assert_eq!(idle.rest(), "", "idle connections are closed");
        assert!(node.process.ended().is_none(), "it waits for what it has promised");
        let ready = node.admin_get("/readyz");
        assert_eq!((ready.status, &ready.json()["ready"]), (503, &Value::from(false)), "no traffic should come here");
        assert_eq!(node.admin_get("/healthz").status, 200, "and nobody should kill it");
        go_on.store(true, Relaxed);
        let answer = slow.join().unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "in the end"));
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
    });
    assert_eq!(code(node.process.wait()), 0);
    let journal = journal(&place);
    assert_eq!(journal.0.last().unwrap()["kind"], "node_stopped");
    assert_eq!(journal.last("node_stopped")["fields"]["cut_off"], "0");
    assert_eq!(
        journal.story(journal.last("node_stopped")),
        ["node_stopped", "node_draining", "config_loaded", "node_started"]
    );
}

#[test]
fn a_change_to_the_journal_is_found_by_the_node_and_after_it() {
    let server = Server::start(|_| ok("yes"));
    let (mut node, place) = place(&server, "5s").node_of();
    let admin = format!("http://{}", node.admin);
    let living = place.seawall(&["journal", "verify", "--admin", &admin]);
    assert_eq!(living.code, 0, "{living:?}");
    assert!(living.out.starts_with("the chain holds\n"), "{living:?}");
    let head = living.out.lines().find_map(|line| line.strip_prefix("head      ")).unwrap().to_owned();
    let asked = |more: &[&str]| {
        let said = place.seawall(&[&["journal", "--json"], more].concat());
        assert_eq!(said.code, 0, "{said:?}");
        Journal::of(&said.json()).0.len()
    };
    let all = asked(&["--admin", &admin]);
    assert_eq!(asked(&["--admin", &admin, "--since", "1h"]), all);
    assert_eq!(asked(&["--admin", &admin, "--until", "1h"]), 0);
    assert_eq!(asked(&["--admin", &admin, "--cause", "1"]), 2, "what was found, and the configuration");
    node.process.signal(Signal::TERM);
    assert_eq!(code(node.process.wait()), 0);
    assert_eq!(asked(&["--data", "data", "--until", "2000-01-01T00:00:00Z"]), 0);
    assert!(asked(&["--data", "data", "--since", "1h"]) > all);
    let verify = |anchor: &str| place.seawall(&["journal", "verify", "--data", "data", "--anchor", anchor]);
    assert_eq!(verify(&head).code, 0);
    let (seq, tag) = head.split_once(':').unwrap();
    let cut = verify(&format!("{}:{tag}", seq.parse::<u64>().unwrap() + 1_000));
    assert_eq!(cut.code, 1, "{cut:?}");
    assert!(cut.out.contains("is not there, and a tag was given for it"), "{cut:?}");
    // Somebody rewrites a line and does not mind the checksums.
    let path = place.data().join("journal/0000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(13).position(|window| window == b"config_loaded").unwrap();
    bytes[at..at + 13].copy_from_slice(b"node_draining");
    std::fs::write(&path, bytes).unwrap();
    let changed = place.seawall(&["journal", "verify", "--data", "data"]);
    assert_eq!(changed.code, 1, "{changed:?}");
    assert!(changed.out.contains("THE CHAIN DOES NOT HOLD"), "{changed:?}");
}

#[test]
fn grace_has_an_end() {
    let server = Server::start(|_| Do::Hang);
    let (mut node, place) = place(&server, "300ms").node_of();
    let mut client = node.client();
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it is on its way", || server.count() == 1);
    let begin = Instant::now();
    node.process.signal(Signal::TERM);
    assert_eq!(code(node.process.wait()), 0);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!(journal(&place).last("node_stopped")["fields"]["cut_off"], "1");
    assert!(client.next().is_none(), "no half answer");
}

#[test]
fn the_second_signal_does_not_wait() {
    for second in [Signal::TERM, Signal::INT] {
        let server = Server::start(|_| Do::Hang);
        let (mut node, place) = place(&server, "1h").node_of();
        let mut client = node.client();
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        wait_until("it is on its way", || server.count() == 1);
        node.process.signal(Signal::INT);
        wait_until("it drains", || draining(&node));
        let begin = Instant::now();
        node.process.signal(second);
        assert_eq!(code(node.process.wait()), 0);
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        assert_eq!(journal(&place).last("node_stopped")["fields"]["cut_off"], "1");
    }
}

/// What was promised before the stop is kept over it, and delivered by the next start.
#[test]
fn the_spool_outlives_the_node() {
    let (well, server) = Server::moody();
    let (node, place) = place(&server, "5s").node_of();
    let kept: Vec<String> = (0..5).map(|n| node.post("/w", "", &n.to_string()).must("location")).collect();
    assert_eq!(code(node.stop()), 0);
    let held = place.seawall(&["spool", "ls", "--data", "data", "--json"]).json();
    assert_eq!(held["records"].as_array().unwrap().len(), 5);
    well.store(true, Relaxed);
    let node = place.node();
    wait_until("they are delivered", || node.spooled() == 0);
    for location in kept {
        let became = node.get(&location).json();
        assert_eq!((&became["state"], &became["status"]), (&"delivered".into(), &200.into()), "{became}");
    }
    let journal = node.journal();
    assert_eq!(journal.last("store_recovered")["fields"]["waiting"], "5");
    assert_eq!(journal.count("node_stopped"), 1);
    assert_eq!(journal.epochs(), [0, 1], "a start is an epoch, a look is not");
}

/// Who asks again after a restart gets the same answer, marked as what it is.
#[test]
fn a_key_outlives_the_node() {
    let (well, server) = Server::moody();
    let (node, place) = place(&server, "5s").node_of();
    let ask = |node: &Node| node.post("/w", "Idempotency-Key: \"k\"\r\n", "x");
    let location = ask(&node).must("location");
    node.kill();
    let node = place.node();
    let again = ask(&node);
    assert_eq!((again.status, again.must("location")), (202, location.clone()));
    assert_eq!(again.must("idempotency-replayed"), "true");
    assert!(again.must("seawall-degraded").starts_with("spool; since=20"), "{again:?}");
    assert!(again.must("proxy-status").starts_with("seawall; details="), "{again:?}");
    well.store(true, Relaxed);
    wait_until("it is delivered", || node.spooled() == 0);
    let settled = ask(&node);
    assert_eq!((settled.status, settled.must("location")), (202, location));
    assert_eq!(settled.json()["state"], "delivered");
    assert_eq!(settled.header("seawall-degraded"), None, "what has arrived is not reduced");
    assert_eq!(node.post("/w", "Idempotency-Key: k\r\n", "y").status, 422);
}

/// Between two words of a pipelining client, too: what was read is answered, the rest is not begun.
#[test]
fn a_stop_under_load_loses_no_answer() {
    let server = Server::start(|_| ok("fine"));
    let (mut node, _place) = place(&server, "20s").node_of();
    let (address, stop) = (node.address(), Arc::new(AtomicBool::new(false)));
    let answered = thread::scope(|scope| {
        let ask = || {
            let (mut answered, Ok(mut client)) = (0_u64, Client::connect(address)) else { return 0 };
            while !stop.load(Relaxed) {
                match client.try_ask(&post("/w", "", "x")) {
                    Some(answer) => assert_eq!(answer.status, 200, "{answer:?}"),
                    None => return answered,
                }
                answered += 1;
            }
            answered
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        wait_until("load runs", || server.count() > 100);
        node.process.signal(Signal::TERM);
        assert_eq!(code(node.process.wait()), 0);
        stop.store(true, Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<u64>()
    });
    assert_eq!(answered, server.count() as u64, "what the upstream did, a client knows of");
}

/// Readers of the admin port's events hold nobody up.
#[test]
fn whoever_watches_is_let_go() {
    let server = Server::start(|_| ok("fine"));
    let (mut node, _place) = place(&server, "50s").node_of();
    let mut events = Client::new(node.admin);
    events.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", node.admin).as_bytes());
    let mut seen = vec![0; 64 << 10];
    wait_until("it reads", || {
        let read = events.stream.peek(&mut seen).unwrap();
        String::from_utf8_lossy(&seen[..read]).contains("event: snapshot")
    });
    let begin = Instant::now();
    node.process.signal(Signal::TERM);
    assert_eq!(code(node.process.wait()), 0);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(events.rest().starts_with("HTTP/1.1 200 OK"));
}

/// A signal that comes while the node is not yet up ends it all the same, and leaves nothing in the way of the next.
#[test]
fn a_signal_that_comes_early() {
    let server = Server::start(|_| ok("fine"));
    let place = place(&server, "5s");
    for round in 0..25 {
        let mut node = place.spawn(&["run"], &[]);
        thread::sleep(Duration::from_micros(round * 1_500));
        node.process.signal(Signal::TERM);
        // Before there are ears for it, the signal ends the process in the system's own way.
        let ended = code(node.process.wait());
        assert!(ended == 0 || ended == -Signal::TERM.as_raw(), "round {round} ended with {ended}");
    }
    assert_eq!(place.node().get("/").body, "fine");
}

/// Whoever reads the log may go away: `seawall run 2>&1 | head`, a log service that is started anew.
#[test]
fn a_log_that_nobody_reads_any_more_stops_nothing() {
    let go_on = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&go_on);
    let server = Server::start(move |_| {
        wait_until("it may answer", || of_server.load(Relaxed));
        ok("in the end")
    });
    let place = place(&server, "50s");
    let mut command = place.command(&["run", "--log", "json"]);
    let mut node = Node::of(Process::read_until(&mut command, Some("overview and admin API")));
    assert!(node.wait_ready());
    wait_until("nobody reads", || node.process.is_broken());
    let address = node.address();
    thread::scope(|scope| {
        let slow = scope.spawn(|| Client::new(address).try_ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
        wait_until("it is on its way", || server.count() == 1);
        node.process.signal(Signal::TERM);
        wait_until("nobody listens any more", || Client::connect(address).is_err());
        go_on.store(true, Relaxed);
        let answer = slow.join().unwrap();
        assert_eq!(answer.map(|answer| answer.body).as_deref(), Some("in the end"), "a drain is a drain");
    });
    assert_eq!(code(node.process.wait()), 0, "it panicked where it could not write its log");
    assert!(journal(&place).has("node_stopped"));
}

/// A node whose account was closed cleanly leaves no number in doubt.
#[test]
fn a_clean_stop_leaves_nothing_in_doubt() {
    let server = Server::start(|_| ok("fine"));
    let (node, place) = place(&server, "5s").node_of();
    for _ in 0..3 {
        assert_eq!(node.post("/w", "", "x").status, 200);
    }
    assert_eq!(code(node.stop()), 0);
    let node = place.node();
    let ledger = node.api("/api/ledger");
    let totals = &ledger["totals"];
    assert_eq!((&totals["accepted"], &totals["indeterminate"]), (&Value::from(3), &Value::from(0)), "{ledger:#}");
}

#[test]
fn a_terminal_that_goes_away_takes_nothing_with_it() {
    let server = Server::start(|_| ok("fine"));
    let (mut node, _place) = place(&server, "5s").node_of();
    node.process.signal(Signal::HUP);
    wait_until("it is told", || {
        node.process
            .lines()
            .iter()
            .any(|line| line.contains("SIGHUP: the configuration and its certificates are read again"))
    });
    assert_eq!(node.get("/").status, 200);
    assert!(node.process.ended().is_none());
}
