//! A process takes the place of another one: nobody is refused, nothing is lost, and whoever falls leaves the other
//! standing.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::house::{Client, Node, Place, local, port, post, wait_for, wait_until};
use crate::process::{Process, code};
use crate::server::{Server, ok, sick};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// Writes that spool, and whatever else comes, to one server.
fn config(server: &Server) -> String {
    format!(
        "node: here\n\
         limits: {{ grace: 50s }}\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: writes, match: {{ method: POST }}, upstream: up, policy: writes }}, {{ name: rest, upstream: up }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\" }} }}\n\
         policies: {{ writes: {{ retry: off, breaker: off, fallback: spool, timeout: 40s }} }}\n",
        server.address
    )
}

fn says(node: &Node, words: &str) -> bool {
    node.process.lines().iter().any(|line| line.contains(words))
}

/// For how long the kernel kept clients waiting.
fn gap_ms(old: &Node) -> u64 {
    wait_for("it is told", || {
        let lines = old.process.lines();
        let told = lines.iter().find(|line| line.contains("handed over; "))?;
        serde_json::from_str::<Value>(told).unwrap()["gap_ms"].as_str().and_then(|ms| ms.parse().ok())
    })
}

/// A process beside the one that runs, until it serves in its place.
fn take_over(place: &Place, old: &Node) -> Node {
    let new = place.node_with(&["run", "--take-over"], &[]);
    assert_eq!((new.admin, &new.addresses), (old.admin, &old.addresses), "the same sockets");
    new
}

/// Takes its process's end as it should be.
fn ended_well(mut node: Node) {
    assert_eq!(code(node.process.wait()), 0, "{:?}", node.process.lines());
}

/// Asks for one thing after the other; tells how many answers there were, and what went wrong.
fn ask_on(
    address: SocketAddr,
    keeps: bool,
    request: impl Fn(usize) -> String,
    stop: &AtomicBool,
) -> (usize, Vec<String>) {
    let (mut count, mut wrong, mut client, mut heard) = (0, Vec::new(), None::<Client>, Instant::now());
    while !stop.load(Relaxed) {
        // On a machine too busy to let it ask for so long it takes its connection for closed, as careful clients do.
        let present = client.take().filter(|_| heard.elapsed() < Duration::from_millis(500));
        let mut present = match present {
            Some(present) => present,
            None => match Client::connect(address) {
                Ok(present) => present,
                Err(error) => {
                    wrong.push(format!("refused: {error}"));
                    continue;
                }
            },
        };
        match present.try_ask(&request(count)) {
            Some(answer) if matches!(answer.status, 200 | 202) => {
                let closes = answer.header("connection").is_some_and(|value| value == "close");
                client = Some(present).filter(|_| keeps && !closes);
            }
            answer => wrong.push(format!("answer {count}: {answer:?}")),
        }
        (count, heard) = (count + 1, Instant::now());
        // Ports are not without number.
        thread::sleep(Duration::from_millis(2));
    }
    (count, wrong)
}

#[test]
fn one_process_after_the_other_under_load_and_nobody_is_refused() {
    // What is written is refused the first time and taken when the spool brings it.
    let taken: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let of_server = Arc::clone(&taken);
    let server = Server::start(move |seen| match seen.text() {
        body if body.is_empty() => ok("read"),
        body => match of_server.lock().unwrap().entry(body).and_modify(|times| *times += 1).or_insert(0) {
            0 => sick(),
            _ => ok("taken"),
        },
    });
    let place = Place::new(&config(&server));
    let mut node = place.node();
    let (address, stop, asked) = (node.address(), AtomicBool::new(false), AtomicUsize::new(0));
    let read = |_| GET.to_owned();
    let write = |_| post("/w", "", &format!("record {}", asked.fetch_add(1, Relaxed)));
    let (node, longest, answers) = thread::scope(|scope| {
        let (stop, write) = (&stop, &write);
        let readers = (0..6).map(|n| scope.spawn(move || ask_on(address, n % 2 == 0, read, stop)));
        let mut clients: Vec<_> = readers.collect();
        clients.extend((0..2).map(|n| scope.spawn(move || ask_on(address, n == 0, write, stop))));
        let (mut longest, mut gaps) = (Duration::ZERO, Vec::new());
        for _ in 0..6 {
            let before = server.count();
            wait_until("load runs", || server.count() > before + 300);
            let begin = Instant::now();
            let new = take_over(&place, &node);
            longest = longest.max(begin.elapsed());
            gaps.push(gap_ms(&node));
            ended_well(std::mem::replace(&mut node, new));
        }
        stop.store(true, Relaxed);
        println!("nobody was let in for {gaps:?} ms");
        (node, longest, clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>())
    });
    let wrong: Vec<&String> = answers.iter().flat_map(|(_, wrong)| wrong).collect();
    let count: usize = answers.iter().map(|(count, _)| count).sum();
    println!("{count} requests over 6 take-overs, the longest {longest:?}");
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
    wait_until("the spool is empty", || node.spooled() == 0);
    let taken = taken.lock().unwrap();
    assert_eq!(taken.len(), asked.load(Relaxed), "what was accepted was sent");
    let odd: Vec<_> = taken.iter().filter(|(_, times)| **times != 1).collect();
    assert!(odd.is_empty(), "taken once each: {odd:?}");

    let journal = node.journal();
    assert_eq!((journal.count("node_handed_over"), journal.count("node_took_over")), (6, 6));
    let took_over = journal.last("node_took_over");
    assert_eq!(
        journal.story(took_over)[..5],
        ["node_took_over", "node_started", "node_handed_over", "node_handing_over", "config_loaded"]
    );
    let workers = thread::available_parallelism().unwrap().get();
    assert_eq!(took_over["fields"]["sockets"], (workers + 1).to_string(), "one for each worker, and the admin side's");
    assert_eq!(journal.epochs(), [0, 1, 2, 3, 4, 5, 6]);
}

/// Speaks with a running node as a process would that wants its place.
struct Stranger(UnixStream);

impl Stranger {
    fn at(place: &Place) -> Self {
        let stream = UnixStream::connect(place.data().join("handover.sock")).unwrap();
        stream.set_read_timeout(Some(crate::house::PATIENCE)).unwrap();
        Self(stream)
    }

    fn say(&mut self, words: &Value) -> &mut Self {
        let text = words.to_string();
        self.0.write_all(&u32::try_from(text.len()).unwrap().to_be_bytes()).unwrap();
        self.0.write_all(text.as_bytes()).unwrap();
        self
    }

    /// What it hears; nothing if the other side breaks off.
    fn hear(&mut self) -> Option<Value> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut text = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut text).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    fn ask(&mut self) -> Value {
        self.say(&asks(1, "here")).hear().unwrap()
    }

    /// Asks, and lets the sockets go that come with the answer.
    fn prepared(place: &Place) -> Self {
        let mut stranger = Self::at(place);
        let offer = stranger.ask();
        assert_eq!(offer["says"], "offers", "{offer}");
        stranger.0.read_exact(&mut [0]).unwrap();
        stranger.say(&json!({ "says": "prepared" }));
        stranger
    }
}

fn asks(version: u32, node: &str) -> Value {
    json!({ "says": "asks", "version": version, "program": "9.9.9", "node": node })
}

#[test]
fn whoever_falls_before_it_serves_leaves_the_old_one_standing() {
    let server = Server::start(|_| ok("fine"));
    let place = Place::new(&config(&server));
    let node = place.node();
    let mut client = node.client();
    assert_eq!(client.ask(GET).status, 200);

    // Given the sockets, and gone.
    drop(Stranger::at(&place).ask());
    wait_until("it is told", || says(&node, "nobody took over"));
    assert_eq!(client.ask(GET).header("connection"), None);

    // Prepared, and gone: answers that end their connections are the only trace.
    drop(Stranger::prepared(&place));
    wait_until("it is told", || says(&node, "the process that was to take over ended: this one goes on"));
    assert_eq!(Client::new(node.address()).ask(GET).header("connection"), None);
    assert!(!node.journal().has("node_handing_over"), "nothing has happened yet");

    // Given the store, and gone: this process takes everything back, and who came meanwhile is served. Whoever has been
    // let in and is just asking is heard to the end.
    let mut asking = node.client();
    asking.send(&GET.as_bytes()[..20]);
    let mut stranger = Stranger::prepared(&place);
    wait_until("nobody is let in", || says(&node, "handing over to another process"));
    asking.send(&GET.as_bytes()[20..]);
    let answer = asking.next().unwrap();
    assert_eq!((answer.status, answer.header("connection").as_deref()), (200, Some("close")));
    assert_eq!(stranger.hear().unwrap()["says"], "yours");
    let mut waits = node.client();
    waits.send(post("/w", "", "x").as_bytes());
    let mut watches = Client::new(node.admin);
    wait_until("it complains", || says(&node, "does not serve yet, and clients wait: end it"));
    drop(stranger);
    assert_eq!(waits.next().unwrap().status, 200);
    assert_eq!(watches.ask("GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);
    let journal = node.journal();
    assert_eq!(journal.story(journal.last("node_took_back")), ["node_took_back", "node_started"]);
    assert_eq!((journal.count("node_handed_over"), journal.count("node_took_over")), (1, 0));
    assert!(says(&node, "ended before it served: this one goes on"));

    // And it can still be taken over from, and stopped.
    let new = take_over(&place, &node);
    ended_well(node);
    assert_eq!(new.get("/").status, 200);
    assert_eq!(code(new.stop()), 0);
}

/// The store is waited for: what is on its way through a route that spools ends first. If the old process is killed
/// then, or told to stop, the new one has the sockets and goes on.
#[test]
fn whoever_falls_after_it_has_given_its_sockets_is_not_missed() {
    for signal in [Signal::KILL, Signal::TERM] {
        let go_on = Arc::new(AtomicBool::new(false));
        let of_server = Arc::clone(&go_on);
        let server = Server::start(move |seen| {
            wait_until("it may answer", || seen.text() != "slow" || of_server.load(Relaxed));
            ok("fine")
        });
        let place = Place::new(&config(&server));
        let mut old = place.node();
        let mut slow = old.client();
        slow.send(post("/w", "", "slow").as_bytes());
        wait_until("it is on its way", || server.count() == 1);
        let mut new = place.spawn(&["run", "--take-over"], &[]);
        wait_until("nobody is let in", || says(&old, "handing over to another process"));
        let mut waits = old.client();
        waits.send(GET.as_bytes());
        assert!(old.process.ended().is_none() && new.process.ended().is_none());
        old.process.signal(signal);
        assert!(new.wait_ready());
        assert_eq!(waits.next().unwrap().status, 200, "who waited is served");
        go_on.store(true, Relaxed);
        let expected = if signal == Signal::KILL { -9 } else { 0 };
        assert_eq!(code(old.process.wait()), expected);
        assert_eq!(slow.next().map(|answer| answer.status), (signal == Signal::TERM).then_some(200));
        assert_eq!(new.post("/w", "", "x").status, 200);
        let has_lost = says(&new, "the process that handed over broke off");
        assert_eq!(has_lost, signal == Signal::KILL);
    }
}

#[test]
fn who_does_not_need_the_store_does_not_hold_it_back() {
    let go_on = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&go_on);
    let server = Server::start(move |seen| {
        wait_until("it may answer", || !seen.line().contains("slow") || of_server.load(Relaxed));
        ok("fine")
    });
    let echo = TcpListener::bind(local(0)).unwrap();
    let echo_address = echo.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in echo.incoming().map_while(Result::ok) {
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    let text = config(&server)
        .replacen("listeners: [", "listeners: [{ address: \"127.0.0.1:0\", protocol: tcp, upstream: echo }, ", 1)
        .replacen("upstreams: {", &format!("upstreams: {{ echo: {{ url: \"tcp://{echo_address}\" }},"), 1);
    let toxiproxy = port();
    let place = Place::new(&format!("{text}toxiproxy: {{ listen: \"127.0.0.1:{toxiproxy}\" }}\n"));
    let old = place.node();
    let mut line = Client::new(old.addresses[0]);
    let mut say = |word: &str| {
        line.send(word.as_bytes());
        let mut heard = vec![0; word.len()];
        line.stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, word.as_bytes());
    };
    say("before");
    let mut slow = Client::new(old.addresses[1]);
    slow.send(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut silent = Client::new(old.addresses[1]);
    wait_until("it is on its way", || server.count() == 1);
    let new = take_over(&place, &old);
    say("after");
    assert_eq!(Client::new(new.addresses[1]).ask(GET).status, 200);
    let version = Client::new(local(toxiproxy)).ask("GET /version HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(version.status, 200, "this port is the new one's too");
    assert_eq!(silent.rest(), "", "who has never asked for anything is let go");
    let mut old = old;
    assert!(old.process.ended().is_none(), "it waits for those it let in");
    go_on.store(true, Relaxed);
    let answer = slow.next().unwrap();
    assert_eq!((answer.status, answer.header("connection").as_deref()), (200, Some("close")));
    say("to the end");
    drop(line);
    ended_well(old);
}

/// What lies on a connection that goes on in the old process could be taken away by nobody; and a call of the admin API
/// that hangs keeps nobody waiting.
#[test]
fn faults_end_with_their_process_and_a_call_that_hangs_costs_no_time() {
    let echo = TcpListener::bind(local(0)).unwrap();
    let place = Place::new(&format!(
        "node: here\nlimits: {{ grace: 50s }}\nfaults: on\n\
         listeners: [{{ address: \"127.0.0.1:0\", protocol: tcp, upstream: echo }}]\n\
         upstreams: {{ echo: {{ url: \"tcp://{}\" }} }}\n",
        echo.local_addr().unwrap()
    ));
    thread::spawn(move || {
        for mut stream in echo.incoming().map_while(Result::ok) {
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    let old = place.node();
    let late = json!({ "tcp_latency": { "delay": "5m", "way": "up" } });
    let order = json!({ "owner": "ada", "upstream": "echo", "first": 9, "kind": late, "ttl": "10m" });
    let placed = old.admin_post("/api/faults", &order);
    assert_eq!(placed.status, 201, "{}", placed.body);
    let mut line = Client::new(old.addresses[0]);
    line.send(b"held");
    wait_until("it is held", || old.api("/api/faults")["faults"][0]["requests"] == 1);
    let mut hangs = Client::new(old.admin);
    hangs.send(b"POST /api/drain HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{");
    let new = take_over(&place, &old);
    let mut heard = [0; 4];
    line.stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"held");
    assert!(gap_ms(&old) < 1_500, "{} ms", gap_ms(&old));
    let journal = new.journal();
    assert_eq!(journal.count("fault_ended"), 1, "{:?}", journal.kinds());
    drop(line);
    ended_well(old);
}

/// What was found out stays known, whoever goes on: the next process, or this one when the next has fallen.
#[test]
fn what_is_known_of_upstreams_goes_over() {
    let (ill, well) = (Server::start(|_| sick()), Server::start(|_| ok("fine")));
    let place = Place::new(&format!(
        "node: here\nfaults: on\nlimits: {{ grace: 50s }}\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: ill, match: {{ path: /ill }}, upstream: ill, policy: strict }}, {{ name: pair, upstream: pair }}] }}]\n\
         upstreams:\n  ill: {{ url: \"http://{}\" }}\n  pair:\n    endpoints: [{{ address: \"{}\" }}, {{ address: \"{}\" }}]\n\
         \x20   health: {{ path: /, every: 20ms, timeout: 5s, unhealthy_after: 2 }}\n\
         policies: {{ strict: {{ retry: off, breaker: {{ window: 10 calls, calls_min: 5, open_for: 10m, open_for_max: 10m }} }} }}\n",
        ill.address,
        well.address,
        local(port()),
    ));
    let node = place.node();
    node.refused_by_breaker("/ill");
    wait_until("it is found ill", || node.journal().has("endpoint_unhealthy"));
    let asked = ill.count();
    let why = json!({ "reason": "customers notice" });
    assert_eq!(node.admin_post("/api/faults/kill", &why).status, 200);
    // What is drained after the sockets were offered is drained all the same: with a client there, it takes a second.
    let mut client = node.client();
    assert_eq!(client.ask(GET).status, 200);
    let mut stranger = Stranger::prepared(&place);
    assert_eq!(node.admin_post("/api/drain", &json!({ "route": "pair", "reason": "late" })).status, 200);
    let yours = stranger.hear().unwrap();
    assert_eq!(yours["legacy"]["drains"][0]["reason"], "late", "{yours}");

    let knows = |node: &Node| {
        let (status, answer) = (node.status(), node.get("/ill"));
        answer.is_ours(503, "destination_unavailable");
        assert!(answer.body.contains("the breaker is open"), "{answer:?}");
        let breaker = &status["routes"][0]["breaker"];
        assert_eq!((&breaker["state"], &breaker["failure_rate"]), (&json!("open"), &json!(1.0)), "{breaker}");
        let before = well.count();
        wait_until("health is checked on", || well.count() > before + 3);
        assert_eq!(node.status()["upstreams"][1]["endpoints"][1]["healthy"], false);
        assert_eq!(node.journal().count("endpoint_unhealthy"), 1, "known, and not found out again");
        assert_eq!(node.api("/api/faults")["killed"]["reason"], "customers notice");
        assert_eq!(node.api("/api/drain")["drains"][0]["reason"], "late");
        assert_eq!(ill.count(), asked, "nobody asks what is known to be ill");
    };
    drop(stranger);
    wait_until("it goes on", || says(&node, "ended before it served: this one goes on"));
    wait_until("it serves", || Client::connect(node.admin).is_ok_and(|mut admin| admin.try_ask(GET).is_some()));
    knows(&node);
    let new = take_over(&place, &node);
    ended_well(node);
    knows(&new);
    assert_eq!(code(new.stop()), 0);
}

/// Asks by HTTP/2 for one thing after the other; whoever is told that no more is taken on a connection goes to another.
async fn ask_by_frames(address: SocketAddr, stop: &AtomicBool) -> (usize, usize, Vec<String>) {
    let (mut count, mut connections, mut wrong, mut sender) = (0, 0, Vec::new(), None);
    while !stop.load(Relaxed) {
        let mut present: SendRequest<Empty<Bytes>> = match sender.take() {
            Some(present) => present,
            None => match tokio::net::TcpStream::connect(address).await {
                Ok(stream) => {
                    let (present, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
                    tokio::spawn(connection);
                    connections += 1;
                    present
                }
                Err(error) => {
                    wrong.push(format!("refused: {error}"));
                    continue;
                }
            },
        };
        if present.ready().await.is_err() {
            continue;
        }
        let request = Request::get(format!("http://{address}/")).body(Empty::new()).unwrap();
        match present.send_request(request).await {
            Ok(answer) if answer.status() == 200 => match answer.into_body().collect().await {
                Ok(_) => (count, sender) = (count + 1, Some(present)),
                Err(error) => wrong.push(format!("body {count}: {error:?}")),
            },
            // It was not sent any more, or is said not to have been taken: what the upstream has seen shows whether
            // that is so.
            Err(error) if error.is_canceled() || format!("{error:?}").contains("NO_ERROR, Remote") => {}
            other => wrong.push(format!("answer {count}: {other:?}")),
        }
    }
    (count, connections, wrong)
}

#[test]
fn clients_of_http2_are_told_to_go_elsewhere_and_lose_nothing() {
    let server = Server::start(|_| ok("fine"));
    let place = Place::new(&config(&server));
    let mut node = place.node();
    let (address, stop) = (node.address(), Arc::new(AtomicBool::new(false)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            runtime.spawn(async move { ask_by_frames(address, &stop).await })
        })
        .collect();
    for _ in 0..3 {
        let before = server.count();
        wait_until("load runs", || server.count() > before + 200);
        let new = take_over(&place, &node);
        ended_well(std::mem::replace(&mut node, new));
    }
    let before = server.count();
    wait_until("load runs on", || server.count() > before + 200);
    stop.store(true, Relaxed);
    let mut all = 0;
    for client in clients {
        let (count, connections, wrong) = runtime.block_on(client).unwrap();
        all += count;
        assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
        assert_eq!(connections, 4, "one for each process");
    }
    assert_eq!(all, server.count(), "each was answered that was sent");
}

#[test]
fn a_websocket_goes_on_in_the_old_process() {
    let echo = crate::websocket::WEBSOCKETS.serve();
    let (old, place) = crate::websocket::node(echo.port, "");
    let hold = ["hold".to_owned(), format!("ws://{}/chat", old.address())];
    let mut client = Process::start(crate::websocket::WEBSOCKETS.command().args(hold));
    wait_until("it is open", || client.lines().iter().any(|line| line == "open"));
    let new = take_over(&place, &old);
    assert_eq!(crate::websocket::say(&new, "client", "/chat"), "ok");
    let lines = client.lines();
    assert!(client.ended().is_none() && lines.last().is_some_and(|line| line == "open"), "{lines:?}");
    client.kill();
    ended_well(old);
}

#[test]
fn words_that_make_no_sense_change_nothing() {
    let server = Server::start(|_| ok("fine"));
    let place = Place::new(&config(&server));
    let node = place.node();
    let mode = std::fs::metadata(place.data().join("handover.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refusal = |words: &Value| {
        let heard = Stranger::at(&place).say(words).hear().unwrap();
        assert_eq!(heard["says"], "refuses", "{heard}");
        heard["why"].as_str().unwrap().to_owned()
    };
    let why = refusal(&asks(2, "here"));
    assert!(why.contains("version 9.9.9 hands over by protocol 2, and version") && why.contains("by 1: stop"), "{why}");
    assert_eq!(refusal(&asks(1, "there")), "this is node `here`, and not `there`");
    assert!(refusal(&json!({ "says": "prepared" })).contains("instead of asking"));
    assert!(refusal(&json!({ "hello": "world" })).contains("what it says is not understood"));
    assert!(refusal(&json!([["deep"]])).contains("what it says is not understood"));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 4, b'{', b'{', b'{', b'{'], &[0, 0]] {
        let mut stranger = Stranger::at(&place);
        stranger.0.write_all(garbage).unwrap();
        stranger.0.shutdown(std::net::Shutdown::Write).unwrap();
        let heard = stranger.hear().unwrap();
        assert_eq!(heard["says"], "refuses", "{heard}");
    }
    // Out of turn.
    let mut stranger = Stranger::at(&place);
    stranger.ask();
    stranger.0.read_exact(&mut [0]).unwrap();
    stranger.say(&json!({ "says": "serves" }));
    assert_eq!(stranger.hear(), None);
    assert_eq!(node.get("/").status, 200);
    assert_eq!(node.journal().kinds(), ["node_started", "store_recovered", "config_loaded"]);
    ended_well(take_over_and_return_old(&place, node));
}

fn take_over_and_return_old(place: &Place, old: Node) -> Node {
    let new = take_over(place, &old);
    assert_eq!(code(new.stop()), 0);
    old
}

#[test]
fn whoever_lacks_something_never_asks() {
    let server = Server::start(|_| ok("fine"));
    let place = Place::new(&config(&server));
    let node = place.node();
    let held = TcpListener::bind(local(port())).unwrap();
    let elsewhere = held.local_addr().unwrap();
    for (text, words, is_told) in [
        (config(&server).replacen("grace:", "gracious:", 1), "unknown key `gracious`", false),
        (config(&server).replacen("node: here", "node: there", 1), "this is node `here`, and not `there`", true),
        (config(&server).replacen("127.0.0.1:0", &elsewhere.to_string(), 1), "another process listens there", true),
    ] {
        place.configure(&text);
        let before = node.process.lines().len();
        let said = place.refused(&["run", "--take-over", "--no-watch"]);
        assert_eq!(said.code, 1, "{said:?}");
        said.tells(&[words]);
        let told = || node.process.lines()[before..].iter().any(|line| line.contains("nobody took over"));
        if is_told {
            wait_until("it is told", told);
        }
        assert_eq!((node.get("/").status, told()), (200, is_told));
    }
    assert_eq!(code(node.stop()), 0);

    // Nobody runs: what a process left that was killed is no process.
    place.configure(&config(&server));
    place.node().kill();
    assert!(place.data().join("handover.sock").exists());
    let node = place.node_with(&["run", "--take-over"], &[]);
    assert!(says(&node, "no process runs this node"));
    assert_eq!(node.get("/").status, 200);
    assert_eq!(code(node.stop()), 0);
    assert!(!place.data().join("handover.sock").exists());
}

/// A process that no test has started.
struct Heir(u32);

impl Drop for Heir {
    fn drop(&mut self) {
        crate::process::send(self.0, Signal::KILL);
    }
}

/// As systemd sees an upgrade: the main process is told to start another, which says that it is the main one from now
/// on.
#[test]
fn a_signal_starts_the_next_process_and_the_service_manager_is_told() {
    let server = Server::start(|_| ok("fine"));
    let place = Place::new(&config(&server));
    let manager = UnixDatagram::bind(place.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(crate::house::PATIENCE)).unwrap();
    let heard = || {
        let mut words = [0; 256];
        let length = manager.recv(&mut words).unwrap();
        String::from_utf8_lossy(&words[..length]).into_owned()
    };
    let program = place.path().join("seawall");
    std::fs::copy(crate::house::SEAWALL, &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["run", "--log", "json"]).current_dir(place.path());
    let mut node = Node::of(Process::start(command.env("NOTIFY_SOCKET", place.path().join("notify"))));
    assert!(node.wait_ready());
    assert_eq!(heard(), format!("MAINPID={}\nREADY=1", node.process.pid()));

    // No configuration: the one that runs goes on, and can be asked again.
    std::fs::remove_file(place.path().join("seawall.yaml")).unwrap();
    node.process.signal(Signal::USR2);
    wait_until("it is told", || says(&node, "the process that was to take over has ended"));
    assert_eq!(node.get("/").status, 200);

    // Another binary in the place of this one.
    place.configure(&config(&server));
    std::fs::remove_file(&program).unwrap();
    std::fs::copy(crate::house::SEAWALL, &program).unwrap();
    node.process.signal(Signal::USR2);
    let words = heard();
    let pid = words.strip_prefix("MAINPID=").and_then(|words| words.strip_suffix("\nREADY=1"));
    let heir = Heir(pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{words}")));
    assert_ne!(heir.0, node.process.pid());
    assert_eq!(code(wait_for("the old one ends", || node.process.ended())), 0);
    assert_eq!(node.get("/").status, 200);
    assert_eq!(node.journal().last("node_took_over")["fields"]["pid"], node.process.pid().to_string());
    crate::process::send(heir.0, Signal::TERM);
    assert_eq!(heard(), "STOPPING=1");
    wait_until("it has ended", || Client::connect(node.admin).is_err());
}

/// Who can pass by the file's mode is still of another user.
#[test]
fn other_users_are_refused() {
    const NOBODY: u32 = 65_534;
    assert!(rustix::process::geteuid().is_root(), "this test runs a node as another user: it needs to be root");
    let server = Server::start(|_| ok("fine"));
    let place = Place::new(&config(&server));
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = place.command(&["run", "--log", "json"]);
    let mut node = Node::of(Process::start(command.uid(NOBODY).gid(NOBODY)));
    assert!(node.wait_ready(), "{:?}", node.process.lines());
    let mut stranger = Stranger::at(&place);
    assert_eq!(stranger.hear(), None);
    wait_until("it is told", || says(&node, &format!("it is a process of user 0, not of {NOBODY}")));
    place.refused(&["run", "--take-over"]).tells(&[&format!("it is a process of user {NOBODY}, not of 0")]);
    assert_eq!(node.get("/").status, 200);
}
