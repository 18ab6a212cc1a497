//! What becomes of real connections under toxics: when bytes come, how streams end, and what stays behind.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::house::{Held, PATIENCE, SEAWALL, local, wait_for, wait_until};
use crate::toxiproxy::Tox;

/// An upstream that does the same with every connection.
struct Peer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Peer {
    fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(local(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, serve) = (Arc::new(AtomicBool::new(false)), Arc::new(serve));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Relaxed) {
                    return;
                }
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        });
        Self { address, stop }
    }

    /// Sends back what it gets, and ends when the other side does.
    fn echo() -> Self {
        Self::start(|mut stream| {
            let (_, mut back) = (stream.set_nodelay(true), stream.try_clone().unwrap());
            let _ = std::io::copy(&mut stream, &mut back);
            let _ = back.shutdown(Shutdown::Write);
        })
    }

    /// Sends so many bytes and ends.
    fn giving(bytes: usize) -> Self {
        Self::start(move |mut stream| {
            let _ = stream.write_all(&pattern(bytes));
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 1]);
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 7 % 251) as u8).collect()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    stream.read_exact(&mut buffer).unwrap();
    buffer
}

fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

/// Asks with one byte and waits for the answer.
fn ping(stream: &mut TcpStream) {
    stream.write_all(b"x").unwrap();
    assert_eq!(read(stream, 1), b"x");
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A server, an upstream and a proxy `p` between them.
fn stage(peer: &Peer) -> (Tox, SocketAddr) {
    let tox = Tox::new();
    let listen = tox.proxy("p", peer.address);
    (tox, listen)
}

fn toxic(kind: &str, attributes: &Value) -> Value {
    json!({"type": kind, "name": "t", "attributes": attributes})
}

#[test]
fn latency_delays_bytes_but_neither_connecting_nor_closing() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    tox.toxic("p", &json!({"type": "latency", "name": "a", "attributes": {"latency": 300}}));
    tox.toxic("p", &json!({"type": "latency", "name": "b", "attributes": {"latency": 400}}));
    tox.toxic("p", &json!({"type": "latency", "name": "c", "stream": "upstream", "attributes": {"latency": 50}}));
    let mut client = connect(listen);
    let begin = Instant::now();
    ping(&mut client);
    assert!(begin.elapsed() >= ms(750), "{:?}", begin.elapsed());
    // Side by side, not one after the other: twenty chunks are received while the first of them still waits. That they
    // take one latency then, not twenty, is tested where time is an argument (`core::fault`).
    tox.update("p", "c", &json!({"latency": 3_600_000}));
    let [received, sent] = ["received", "sent"].map(|way| tox.passed(way, "p", "upstream"));
    for count in 1..=20 {
        client.write_all(b"y").unwrap();
        wait_until("it is received", || tox.received("p", "upstream") == received + count);
    }
    assert_eq!(tox.passed("sent", "p", "upstream"), sent);
    let begin = Instant::now();
    tox.lift("p", "c");
    assert_eq!(read(&mut client, 20), vec![b'y'; 20]);
    assert!(begin.elapsed() >= ms(700), "{:?}", begin.elapsed());
    client.shutdown(Shutdown::Write).unwrap();
    assert!(rest(&mut client).is_empty());
}

#[test]
fn a_live_latency_lets_go_at_once_when_it_changes_or_goes() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    let mut client = connect(listen);
    ping(&mut client);
    tox.toxic("p", &toxic("latency", &json!({"latency": 3_600_000})));
    let mut sent = tox.received("p", "downstream");
    for change in [true, false] {
        client.write_all(b"held").unwrap();
        sent += 4;
        wait_until("the answer is held", || tox.received("p", "downstream") == sent);
        if change {
            tox.update("p", "t", &json!({"latency": 3_000_000}));
        } else {
            tox.lift("p", "t");
        }
        assert_eq!(read(&mut client, 4), b"held");
    }
    ping(&mut client);
}

#[test]
fn a_toxic_with_a_time_is_gone_after_it() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    let mut client = connect(listen);
    ping(&mut client);
    let latency = |ttl: u64| json!({"type": "latency", "name": "t", "attributes": {"latency": 3_600_000}, "ttl": ttl});
    let gone = || tox.call("GET", "/proxies/p/toxics/t", "").status == 404;
    let begin = Instant::now();
    tox.toxic("p", &latency(300));
    // What it holds goes on when its time is over, and nobody has to ask for it.
    client.write_all(b"held").unwrap();
    assert_eq!(read(&mut client, 4), b"held");
    assert!(begin.elapsed() >= ms(300), "{:?}", begin.elapsed());
    assert!(gone());
    // A change renews it: with an hour, then with an instant.
    tox.toxic("p", &latency(3_600_000));
    client.write_all(b"held").unwrap();
    let begin = Instant::now();
    tox.must("PATCH", "/proxies/p/toxics/t", &json!({"ttl": 200}), 200);
    wait_until("it is gone", gone);
    assert!(begin.elapsed() >= ms(200), "{:?}", begin.elapsed());
    assert_eq!(read(&mut client, 4), b"held");
    ping(&mut client);
    // What one has swallowed is missing: the connection ends, as when it is removed.
    tox.toxic("p", &json!({"type": "timeout", "name": "t", "ttl": 3_600_000}));
    let before = tox.received("p", "downstream");
    client.write_all(b"lost").unwrap();
    wait_until("it is swallowed", || tox.received("p", "downstream") > before);
    tox.must("PATCH", "/proxies/p/toxics/t", &json!({"ttl": 1}), 200);
    assert!(rest(&mut client).is_empty());
    ping(&mut connect(listen));
}

#[test]
fn bandwidth_takes_its_time_and_zero_stalls() {
    let giver = Peer::giving(50_000);
    let (tox, listen) = stage(&giver);
    tox.toxic("p", &toxic("bandwidth", &json!({"rate": 100})));
    let begin = Instant::now();
    let (mut client, mut got) = (connect(listen), 0);
    loop {
        let read = client.read(&mut [0; 50_000]).unwrap();
        got += read;
        // A hundred bytes a millisecond, at every moment.
        assert!(got as u128 <= begin.elapsed().as_micros() / 10, "{got} after {:?}", begin.elapsed());
        if read == 0 {
            break;
        }
    }
    assert_eq!(got, 50_000);
    // The largest number there is, the least, and none at all.
    for rate in [json!(i64::MAX), json!(i64::MIN), json!(0)] {
        tox.update("p", "t", &json!({"rate": rate}));
        let mut client = connect(listen);
        if rate == json!(i64::MAX) {
            assert_eq!(rest(&mut client), pattern(50_000));
        } else {
            client.set_read_timeout(Some(ms(100))).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
    }
    let mut client = connect(listen);
    tox.lift("p", "t");
    assert_eq!(rest(&mut client), pattern(50_000));
}

/// Answers once the question has ended.
fn answering() -> Peer {
    Peer::start(|mut stream| {
        let question = rest(&mut stream);
        let _ = stream.write_all(&question);
    })
}

#[test]
fn who_ends_its_side_is_answered_only_where_half_close_is_passed_on() {
    let peer = answering();
    for (arguments, answer) in [(&["--port", "0"][..], ""), (&["--port", "0", "--half-close"], "question")] {
        let tox = Tox::start(arguments);
        let mut client = connect(tox.proxy("p", peer.address));
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client), answer.as_bytes(), "{arguments:?}");
    }
}

#[test]
fn half_close_is_each_proxys_own_choice_and_holds_for_what_is_open() {
    let peer = answering();
    let ask = |client: &mut TcpStream| {
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        rest(client)
    };
    for (arguments, others) in [(&["--port", "0"][..], &b""[..]), (&["--port", "0", "--half-close"], b"question")] {
        let tox = Tox::start(arguments);
        let with = |name: &str, half_close: bool| -> SocketAddr {
            let upstream = peer.address.to_string();
            let body = json!({"name": name, "listen": "127.0.0.1:0", "upstream": upstream, "half_close": half_close});
            tox.must("POST", "/proxies", &body, 201).json()["listen"].as_str().unwrap().parse().unwrap()
        };
        let (yes, no, neither) = (with("yes", true), with("no", false), tox.proxy("neither", peer.address));
        assert_eq!(ask(&mut connect(yes)), b"question");
        assert_eq!(ask(&mut connect(no)), b"");
        assert_eq!(ask(&mut connect(neither)), others);
        let mut open = connect(no);
        tox.must("PATCH", "/proxies/no", &json!({"half_close": true}), 200);
        assert_eq!(ask(&mut open), b"question");
        tox.must("PATCH", "/proxies/no", &json!({"half_close": null}), 200);
        assert_eq!(ask(&mut connect(no)), others);
    }
}

#[test]
fn what_one_direction_holds_arrives_although_the_other_has_ended() {
    let (tell, told) = std::sync::mpsc::channel();
    let peer = Peer::start(move |mut stream| tell.send(rest(&mut stream)).unwrap());
    let (tox, listen) = stage(&peer);
    tox.toxic(
        "p",
        &json!({"type": "latency", "name": "late", "stream": "upstream", "attributes": {"latency": 3_600_000}}),
    );
    let mut client = connect(listen);
    client.write_all(b"late").unwrap();
    wait_until("it is held", || tox.received("p", "upstream") == 4);
    tox.toxic("p", &toxic("timeout", &json!({"timeout": 1})));
    assert!(rest(&mut client).is_empty(), "the way back has ended");
    assert!(told.try_recv().is_err(), "the way forth has not");
    tox.lift("p", "late");
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), b"late");
}

#[test]
fn slow_close_holds_the_end() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    tox.toxic("p", &toxic("slow_close", &json!({"delay": 300})));
    let mut client = connect(listen);
    ping(&mut client);
    let begin = Instant::now();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(rest(&mut client).is_empty());
    assert!(begin.elapsed() >= ms(300), "{:?}", begin.elapsed());
    tox.update("p", "t", &json!({"delay": 3_600_000}));
    let mut client = connect(listen);
    ping(&mut client);
    client.shutdown(Shutdown::Write).unwrap();
    tox.lift("p", "t");
    assert!(rest(&mut client).is_empty());
}

#[test]
fn timeout_swallows_and_closes() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    tox.toxic("p", &toxic("timeout", &json!({"timeout": 300})));
    let begin = Instant::now();
    let mut client = connect(listen);
    client.write_all(b"lost").unwrap();
    assert!(rest(&mut client).is_empty());
    assert!(begin.elapsed() >= ms(300), "{:?}", begin.elapsed());
    tox.update("p", "t", &json!({"timeout": 0}));
    let before = tox.received("p", "downstream");
    let mut client = connect(listen);
    client.write_all(b"lost").unwrap();
    wait_until("it is lost", || tox.received("p", "downstream") > before);
    client.set_read_timeout(Some(ms(100))).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock, "never by itself");
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    tox.lift("p", "t");
    assert!(rest(&mut client).is_empty(), "bytes are missing: the connection must not go on");
    ping(&mut connect(listen));
}

#[test]
fn reset_is_a_reset_on_connections_opened_with_it() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    let mut early = connect(listen);
    ping(&mut early);
    tox.toxic("p", &toxic("reset_peer", &json!({"timeout": 100})));
    let mut client = connect(listen);
    let begin = Instant::now();
    client.write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(begin.elapsed() >= ms(100), "{:?}", begin.elapsed());
    early.write_all(b"x").unwrap();
    assert!(rest(&mut early).is_empty(), "on one that was open already, an orderly end");
    // An hour's wait is over at once when the toxic goes.
    tox.update("p", "t", &json!({"timeout": 3_600_000}));
    let before = tox.received("p", "downstream");
    let mut client = connect(listen);
    client.write_all(b"x").unwrap();
    wait_until("it has begun", || tox.received("p", "downstream") > before);
    tox.lift("p", "t");
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Where one lies in wait, whatever ends the connection ends it with a reset.
    tox.toxic("p", &toxic("reset_peer", &json!({"timeout": 3_600_000})));
    let before = tox.received("p", "downstream");
    let mut client = connect(listen);
    client.write_all(b"x").unwrap();
    wait_until("it has begun", || tox.received("p", "downstream") > before);
    tox.must("POST", "/proxies/p", &json!({"enabled": false}), 200);
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    tox.must("POST", "/reset", &Value::Null, 204);
    // A toxicity of 0 touches nobody, not even how connections end.
    tox.toxic("p", &json!({"type": "reset_peer", "toxicity": 0}));
    let mut client = connect(listen);
    ping(&mut client);
    client.shutdown(Shutdown::Write).unwrap();
    assert!(rest(&mut client).is_empty());
}

#[test]
fn slicer_cuts_and_keeps_every_byte() {
    let giver = Peer::giving(1_000);
    let (tox, listen) = stage(&giver);
    tox.toxic("p", &toxic("slicer", &json!({"average_size": 100, "size_variation": 20, "delay": 10_000})));
    let begin = Instant::now();
    assert_eq!(rest(&mut connect(listen)), pattern(1_000));
    assert!(begin.elapsed() >= ms(80), "{:?}", begin.elapsed());
    // What stops the original: no size at all, and a variation beyond the size.
    for attributes in [json!({"average_size": 0, "delay": 0}), json!({"average_size": 1, "size_variation": 5_000})] {
        tox.update("p", "t", &attributes);
        assert_eq!(rest(&mut connect(listen)), pattern(1_000), "{attributes}");
    }
}

#[test]
fn limit_data_lets_exactly_so_many_bytes_pass() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    tox.toxic("p", &toxic("limit_data", &json!({"bytes": 100})));
    let mut client = connect(listen);
    client.write_all(&pattern(60)).unwrap();
    assert_eq!(read(&mut client, 60), pattern(60));
    tox.update("p", "t", &json!({"bytes": 90}));
    client.write_all(&pattern(60)).unwrap();
    assert_eq!(rest(&mut client), pattern(60)[..30], "the count survives a change");
    tox.update("p", "t", &json!({"bytes": 0}));
    let mut client = connect(listen);
    client.set_read_timeout(Some(ms(100))).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock, "not before the first byte");
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"x").unwrap();
    assert!(rest(&mut client).is_empty());
}

#[test]
fn a_proxy_that_is_off_refuses_and_ends_what_was_open() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    let mut client = connect(listen);
    ping(&mut client);
    tox.must("POST", "/proxies/p", &json!({"enabled": false}), 200);
    assert!(rest(&mut client).is_empty());
    assert_eq!(TcpStream::connect(listen).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    tox.must("POST", "/reset", &Value::Null, 204);
    ping(&mut connect(listen));
    // An upstream that is not there: connecting works, then the stream ends.
    let nobody = TcpListener::bind(local(0)).unwrap().local_addr().unwrap();
    tox.must("PATCH", "/proxies/p", &json!({"upstream": nobody.to_string()}), 200);
    assert!(rest(&mut connect(listen)).is_empty());
    tox.must("PATCH", "/proxies/p", &json!({"upstream": "no port"}), 200);
    assert!(rest(&mut connect(listen)).is_empty());
    let is_told =
        |line: &String| line.contains("cannot reach the upstream") && line.contains("missing port in address");
    wait_until("it is told", || tox.process.lines().iter().any(is_told));
    // Without a host it is here, as in Go.
    tox.must("PATCH", "/proxies/p", &json!({"upstream": format!(":{}", echo.address.port())}), 200);
    ping(&mut connect(listen));
    tox.must("PATCH", "/proxies/p", &json!({"upstream": format!("localhost:+{}", echo.address.port())}), 200);
    ping(&mut connect(listen));
}

/// An upstream whose queue is full, and nobody takes from it: whoever connects now waits.
struct Full {
    listener: TcpListener,
    address: SocketAddr,
    queued: Vec<TcpStream>,
}

impl Full {
    fn new() -> Self {
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&local(0).into()).unwrap();
        full.listen(0).unwrap();
        let address = full.local_addr().unwrap().as_socket().unwrap();
        let fill = |_| TcpStream::connect_timeout(&address, ms(200));
        let queued: Vec<_> = (0..8).map_while(|n| fill(n).ok()).collect();
        assert!(queued.len() < 8, "the queue never fills");
        Self { listener: full.into(), address, queued }
    }

    /// Calls to it that wait for an answer (`SYN_SENT`), as the kernel lists them.
    fn calls(&self) -> usize {
        let to = format!("0100007F:{:04X}", self.address.port());
        let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let is_call = |line: &&str| line.split_whitespace().skip(2).take(2).eq([to.as_str(), "02"]);
        all.lines().filter(is_call).count()
    }
}

/// Descriptors that a server has open.
fn open_files(tox: &Tox) -> u64 {
    Held::by(&tox.process).descriptors()
}

#[test]
fn an_upstream_is_called_for_nobody_who_has_left() {
    let full = Full::new();
    let tox = Tox::new();
    let listen = tox.proxy("p", full.address);
    let silent: Vec<_> = (0..4).map(|_| connect(listen)).collect();
    let broken: Vec<_> = (0..4).map(|_| connect(listen)).collect();
    for mut client in &broken {
        client.write_all(b"question").unwrap();
        socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)).unwrap();
    }
    wait_until("each is called for", || full.calls() == 8);
    drop(silent);
    wait_until("nobody is called for those who said nothing", || full.calls() == 4);
    drop(broken);
    wait_until("nor for those who broke off", || full.calls() == 0);
    // Who has said something and ended his side is called for: his words are to arrive.
    let mut client = connect(listen);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    wait_until("it is called for", || full.calls() == 1);
    let queued = full.queued.len();
    drop(full.queued);
    (0..queued).for_each(|_| drop(full.listener.accept().unwrap()));
    let mut called = full.listener.accept().unwrap().0;
    assert_eq!(rest(&mut called), b"question");
}

#[test]
fn connections_beyond_the_limit_are_closed_told_and_counted() {
    let echo = Peer::echo();
    let tox = Tox::start(&["--port", "0", "--proxy-metrics", "--connections-max", "4"]);
    let (p, q) = (tox.proxy("p", echo.address), tox.proxy("q", echo.address));
    let served = |listen| {
        let mut client = connect(listen);
        ping(&mut client);
        client
    };
    let clients = [served(p), served(p), served(p)];
    for _ in 0..2 {
        assert!(rest(&mut connect(p)).is_empty(), "one place is left, and p has more than that");
    }
    let other = served(q);
    assert!(rest(&mut connect(q)).is_empty(), "none is left");
    let refused = |proxy: &str| {
        let text = tox.call("GET", "/metrics", "").body;
        let is_it = |line: &&str| line.starts_with("toxiproxy_proxy_refused") && line.contains(proxy);
        text.lines().find(is_it).unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!((refused("proxy=\"p\""), refused("proxy=\"q\"")), ("2".into(), "1".into()));
    let lines = tox.process.lines().into_iter().filter(|line| line.contains("too many connections"));
    assert_eq!(lines.count(), 2, "once for each proxy");
    drop(clients);
    wait_until("their places are given back", || {
        let mut client = connect(p);
        client.write_all(b"x").is_ok() && client.read(&mut [0; 1]).is_ok_and(|read| read == 1)
    });
    drop(other);
}

#[test]
fn there_are_no_more_connections_than_open_files() {
    let mut command = std::process::Command::new("prlimit");
    command.args(["--nofile=128:128", SEAWALL]);
    let echo = Peer::echo();
    let tox = Tox::by(command, &["--port", "0"]);
    let lines = tox.process.lines().join("\n");
    assert!(lines.contains("`--connections-max` is lowered") && lines.contains("\"fitting\":20"), "{lines}");
    let listen = tox.proxy("p", echo.address);
    let clients: Vec<TcpStream> = (0..40).map(|_| connect(listen)).collect();
    tox.toxic("p", &toxic("latency", &json!({"latency": 1})));
    drop(clients);
    wait_until("there is room again", || {
        let mut client = connect(listen);
        client.write_all(b"x").is_ok() && client.read(&mut [0; 1]).is_ok_and(|read| read == 1)
    });
}

#[test]
fn an_upstream_that_does_not_answer_keeps_nobody() {
    let full = Full::new();
    let tox = Tox::new();
    let listen = tox.proxy("p", full.address);
    let mut waiting: Vec<TcpStream> = (0..3).map(|_| connect(listen)).collect();
    wait_until("each is called for", || full.calls() == 3);
    tox.toxic("p", &toxic("latency", &json!({"latency": 1})));
    tox.lift("p", "t");
    tox.must("DELETE", "/proxies/p", &Value::Null, 204);
    assert!(waiting.iter_mut().all(|client| rest(client).is_empty()));
}

#[test]
fn a_change_waits_for_no_peer() {
    // It sends for ever, and nobody reads.
    let flood = Peer::start(|mut stream| while stream.write_all(&[0; 64 << 10]).is_ok() {});
    let (tox, listen) = stage(&flood);
    let clients: Vec<TcpStream> = (0..5).map(|_| connect(listen)).collect();
    let mut before = 0;
    let mut still = 0;
    wait_until("everything is full", || {
        let now = tox.received("p", "downstream");
        still = if now == before && now > 0 { still + 1 } else { 0 };
        before = now;
        still > 20
    });
    for kind in ["latency", "bandwidth", "slicer", "timeout"] {
        tox.toxic("p", &json!({"type": kind, "name": "t"}));
        tox.update("p", "t", &json!({}));
        tox.lift("p", "t");
    }
    tox.must("DELETE", "/proxies/p", &Value::Null, 204);
    drop(clients);
}

#[test]
fn a_seed_gives_the_same_fates_again() {
    let echo = Peer::echo();
    let fates = |seed: &str| {
        let tox = Tox::start(&["--port", "0", "--seed", seed]);
        let listen = tox.proxy("p", echo.address);
        tox.toxic("p", &json!({"type": "limit_data", "toxicity": 0.5}));
        let fate = |_| {
            let mut client = connect(listen);
            client.write_all(b"x").unwrap();
            client.read(&mut [0; 1]).unwrap() == 1
        };
        (0..40).map(fate).collect::<Vec<bool>>()
    };
    let first = fates("42");
    assert!(first.contains(&true) && first.contains(&false), "{first:?}");
    assert_eq!(first, fates("42"));
    assert_ne!(first, fates("43"));
}

#[test]
fn much_passes_whole_in_both_directions_under_changing_toxics() {
    let echo = Peer::echo();
    let tox = Tox::start(&["--port", "0", "--half-close"]);
    let listen = tox.proxy("p", echo.address);
    let (size, mut client) = (8 << 20, connect(listen));
    let mut writer = client.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&pattern(size)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let reading = thread::spawn(move || rest(&mut client));
    let mut round = 0;
    while !reading.is_finished() && round < 40 {
        for (kind, attributes) in [
            ("latency", json!({"latency": 5, "jitter": 5})),
            ("slicer", json!({"average_size": 1_000, "size_variation": 500})),
            ("bandwidth", json!({"rate": 5_000})),
        ] {
            let stream = ["upstream", "downstream"][round % 2];
            tox.toxic("p", &json!({"type": kind, "name": kind, "stream": stream, "attributes": attributes}));
        }
        ["latency", "bandwidth", "slicer"].iter().for_each(|name| tox.lift("p", name));
        round += 1;
    }
    writing.join().unwrap();
    assert!(reading.join().unwrap() == pattern(size), "bytes differ after {round} rounds");
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let echo = Peer::echo();
    let (tox, listen) = stage(&echo);
    tox.toxic("p", &json!({"type": "latency", "attributes": {"latency": 1}}));
    tox.toxic("p", &json!({"type": "reset_peer", "toxicity": 0.2}));
    let before = open_files(&tox);
    for round in 0..10 {
        let clients: Vec<TcpStream> = (0..100).map(|_| connect(listen)).collect();
        for (index, mut client) in clients.into_iter().enumerate() {
            let _ = client.write_all(b"x");
            if (index + round) % 2 == 0 {
                let _ = client.read(&mut [0; 1]);
            }
        }
    }
    wait_until("every descriptor is given back", || open_files(&tox) <= before);
    let sent = wait_for("it counts", || Some(tox.received("p", "upstream")).filter(|&count| count > 0));
    assert!(sent <= 1_000, "{sent}");
}

#[test]
fn a_reset_reaches_the_upstream_too() {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let peer = Peer::start(move |mut stream| {
        let _ = stream.write_all(b"hello");
        let _ = tell.try_send(stream.read(&mut [0; 1]).map_err(|error| error.kind()));
    });
    let (tox, listen) = stage(&peer);
    tox.toxic("p", &json!({"type": "reset_peer"}));
    let mut client = connect(listen);
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn links_hold_a_bounded_amount_and_a_full_proxy_leaves_others_theirs() {
    let flood = Peer::start(|mut stream| while stream.write_all(&[0; 64 << 10]).is_ok() {});
    let tox = Tox::new();
    let hold = |name: &str| {
        let listen = tox.proxy(name, flood.address);
        tox.toxic(name, &toxic("latency", &json!({"latency": 3_600_000})));
        // Each would hold 32 MiB: 384 together.
        let clients: Vec<TcpStream> = (0..12).map(|_| connect(listen)).collect();
        (listen, clients)
    };
    let held_at_rest = |name: &str, least: u64| {
        let (mut before, mut still) = (0, 0);
        wait_until("senders wait", || {
            let now = tox.received(name, "downstream");
            still = if now == before && now > 0 { still + 1 } else { 0 };
            before = now;
            still > 30 && now >= least
        });
        before
    };
    let (listen, clients) = hold("p");
    let held = held_at_rest("p", 126 << 20);
    assert!(held <= 132 << 20, "{held} bytes are held: half of 256 MiB, and what was under way");
    // Another gets half of what is left, however full the first is.
    let (_, others) = hold("q");
    let held_by_other = held_at_rest("q", 60 << 20);
    assert!(held_by_other <= 68 << 20, "{held_by_other} bytes are held");
    // Who comes now, and holds nothing yet, may still begin, even here.
    let late = connect(listen);
    wait_until("the next one begins", || tox.received("p", "downstream") > held);
    // What is let go is there for others.
    tox.must("DELETE", "/proxies/p", &Value::Null, 204);
    let (_, more) = hold("r");
    assert!(held_at_rest("r", 90 << 20) <= 100 << 20, "half of the 192 MiB that are left");
    drop((clients, late, others, more));
}
