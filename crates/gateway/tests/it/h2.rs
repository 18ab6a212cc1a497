//! HTTP/2 from clients, in clear and by TLS: whole, multiplexed, strict, and bounded. The client is the `h2` crate,
//! which lets us see and send frames that a polite one would not.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request};
use seawall_core::guard::health::{Ask, HealthConfig};
use seawall_core::journal::Kind;
use seawall_core::policy::{Fallback, Policy};
use tokio::net::TcpStream;

use crate::world::{Do, PATIENCE, Server, World, answer, ok, policy, route, upstream, wait_until};

/// One HTTP/2 connection and the runtime that drives it.
pub struct Wire {
    runtime: tokio::runtime::Runtime,
    send: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

#[derive(Debug)]
pub struct Heard {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Wire {
    pub fn new(address: SocketAddr) -> Self {
        Self::with_window(address, 65_535)
    }

    /// A client that takes so much of a body before it is asked to take more.
    fn with_window(address: SocketAddr, window: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (send, driver) = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut builder = h2::client::Builder::new();
            let (send, connection) = builder.initial_window_size(window).handshake(stream).await.unwrap();
            (send, tokio::spawn(connection))
        });
        Self { runtime, send, driver }
    }

    /// Sends a request and hears the whole answer.
    pub fn ask(&self, request: Request<()>, body: &[u8]) -> Result<Heard, h2::Error> {
        let mut send = self.send.clone();
        let body = Bytes::copy_from_slice(body);
        // On the driver's thread, so that it has head and body in hand when it writes.
        let asked = self.runtime.spawn(async move {
            let heard = async {
                send = send.ready().await?;
                let (answer, mut stream) = send.send_request(request, body.is_empty())?;
                if !body.is_empty() {
                    stream.send_data(body, true)?;
                }
                let (head, body) = answer.await?.into_parts();
                let (body, trailers) = read(body).await?;
                Ok(Heard { status: head.status.as_u16(), headers: head.headers, body, trailers })
            };
            tokio::time::timeout(PATIENCE, heard).await.expect("an answer in time")
        });
        self.runtime.block_on(asked).unwrap()
    }

    fn get(&self, path: &str) -> Heard {
        self.ask(get(path), b"").unwrap()
    }

    /// How the connection ended.
    fn ended(self) -> Result<(), h2::Error> {
        drop(self.send);
        let driver = self.driver;
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, driver).await.expect("it ends").unwrap() })
    }
}

async fn read(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut whole = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        whole.extend_from_slice(&piece);
    }
    Ok((whole, body.trailers().await?))
}

pub fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://h.example{path}"))
}

fn get(path: &str) -> Request<()> {
    request("GET", path).body(()).unwrap()
}

fn one(server: &Server) -> Policy {
    policy(vec![route("r", 0)], vec![upstream("u", &[server.address])])
}

fn rejected(world: &World, reason: &str) -> u64 {
    (world.view)().rejected.iter().find(|(known, _)| *known == reason).unwrap().1
}

#[test]
fn requests_of_one_connection_go_out_as_http_1_and_come_back_whole() {
    let server = Server::start(|seen, _| ok(&format!("{} {}", seen.line(), seen.body.len())));
    let world = World::new(one(&server));
    let wire = Wire::new(world.address);
    let cookies = request("GET", "/a?b=c").header("cookie", "a=1").header("cookie", "b=2").body(()).unwrap();
    let heard = wire.ask(cookies, b"").unwrap();
    assert_eq!((heard.status, String::from_utf8_lossy(&heard.body).as_ref()), (200, "GET /a?b=c HTTP/1.1 0"));
    assert!(heard.headers.contains_key("x-request-id") && !heard.headers.contains_key("connection"));
    let body = vec![b'x'; 3 << 20];
    let posted = wire.ask(request("POST", "/long").body(()).unwrap(), &body).unwrap();
    assert_eq!(posted.body, format!("POST /long HTTP/1.1 {}", body.len()).as_bytes());
    let seen = &server.seen()[0];
    let header = |name: &str| seen.header(name);
    assert_eq!((header("host").as_deref(), header("cookie").as_deref()), (Some("h.example"), Some("a=1; b=2")));
    assert_eq!(header("x-forwarded-host").as_deref(), Some("h.example"));
    assert_eq!(((world.view)().connections_total, world.route(0).requests_total), (1, 2));
}

#[test]
fn a_hundred_at_once_share_a_connection_and_a_slow_one_holds_nobody_up() {
    let slow = Arc::new(AtomicUsize::new(0));
    let of_server = Arc::clone(&slow);
    let server = Server::start(move |seen, _| {
        if seen.line().contains("/slow") {
            wait_until("all the others were answered", || of_server.load(Relaxed) >= 99);
        }
        ok(seen.line())
    });
    let world = World::new(one(&server));
    let wire = Wire::new(world.address);
    let answered = wire.runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..100 {
            let (mut send, answered) = (wire.send.clone().ready().await.unwrap(), Arc::clone(&slow));
            tasks.spawn(async move {
                let path = if n == 0 { "/slow".to_owned() } else { format!("/{n}") };
                let (answer, _) = send.send_request(get(&path), true).unwrap();
                let (body, _) = read(answer.await.unwrap().into_body()).await.unwrap();
                answered.fetch_add(1, Relaxed);
                body == format!("GET {path} HTTP/1.1").as_bytes()
            });
        }
        tokio::time::timeout(PATIENCE, tasks.join_all()).await.expect("all in time")
    });
    assert_eq!(answered, [true; 100]);
    assert_eq!((world.view)().connections_total, 1);
}

#[test]
fn what_http_1_would_be_refused_for_is_refused() {
    let server = Server::start(|_, _| ok("well"));
    let mut policy = one(&server);
    policy.limits.headers_max = 5;
    policy.limits.body_bytes_max = 1_000;
    let world = World::new(policy);
    let wire = Wire::new(world.address);
    let no_host = Request::builder().uri("/").body(()).unwrap();
    let five = (0..6).fold(request("GET", "/"), |request, n| request.header(format!("x-{n}"), "1"));
    for (asked, status, reason) in [
        (request("TRACE", "/").body(()).unwrap(), 405, "method"),
        (request("GET", "/").header("host", "other.example").body(()).unwrap(), 400, "host_mismatch"),
        (no_host, 400, "host"),
        (five.body(()).unwrap(), 431, "headers"),
        (request("GET", "/").header("seawall-gate-verdict", "chunk").body(()).unwrap(), 400, "header_name"),
        (request("GET", "/").header("expect", "miracles").body(()).unwrap(), 417, "expectation"),
        (request("GET", "/").header("x-a", " 1").body(()).unwrap(), 400, "header_value"),
    ] {
        let heard = wire.ask(asked, b"");
        // The library refuses some of them itself, before anything is asked of us.
        match heard {
            Ok(heard) => {
                assert_eq!(heard.status, status, "{reason}");
                assert_eq!(rejected(&world, reason), 1, "{reason}");
            }
            Err(error) => assert!(error.is_reset() || error.is_library(), "{reason}: {error}"),
        }
    }
    let long = request("POST", "/").header("content-length", "1001").body(()).unwrap();
    assert_eq!(wire.ask(long, &[0; 1_001]).unwrap().status, 413);
    // Of unknown length it is found out on the way.
    assert_eq!(wire.ask(request("POST", "/").body(()).unwrap(), &[0; 5_000]).unwrap().status, 413);
    assert_eq!(rejected(&world, "body_bytes"), 2);
    assert_eq!(wire.get("/").status, 200, "and the connection goes on");
}

#[test]
fn hosts_and_targets_are_read_as_strictly_as_of_http_1() {
    let server = Server::start(|_, _| ok("well"));
    let world = World::new(one(&server));
    let wire = Wire::new(world.address);
    let to = |uri: &str| Request::builder().uri(uri).body(()).unwrap();
    // Without an authority: the library lets that pass for a request that was HTTP/1.1 once.
    let by_header = |host: &[u8]| {
        Request::builder().version(http::Version::HTTP_11).uri("/").header("host", host).body(()).unwrap()
    };
    let mut refused = [0, 0];
    for (asked, reason) in [
        (to("http://a'b$&!(c;d=e/"), "host"),
        (to("http://a:99999999/"), "host"),
        (by_header(b"a b"), "host"),
        (by_header(b"a/b"), "host"),
        (by_header(b"a,b"), "host"),
        (by_header(b"a:99999999"), "host"),
        (by_header(b"\xc3\xa4"), "host"),
        (by_header(b"u@a"), "host"),
        (to("http://h/{a}"), "target"),
        (to("http://h/a\\b"), "target"),
        (to("http://h/a?b=^"), "target"),
    ] {
        let said = format!("{asked:?}");
        assert_eq!(wire.ask(asked, b"").unwrap().status, 400, "{said}");
        refused[usize::from(reason == "target")] += 1;
        assert_eq!([rejected(&world, "host"), rejected(&world, "target")], refused, "{said}");
    }
    for asked in [to("http://[::1]:8080/a?b=%22"), to("http://a.example:65535/"), by_header(b"a.example:80")] {
        assert_eq!(wire.ask(asked, b"").unwrap().status, 200);
    }
    assert_eq!(server.count(), 3, "nothing of the others went on");
}

/// As they find those of HTTP/1.
#[test]
fn faults_find_calls_by_who_sent_them() {
    use seawall_core::fault::book::{Kind as Fault, Order, Scope};

    let server = Server::start(|_, _| ok("well"));
    let world = World::new(one(&server));
    let wire = Wire::new(world.address);
    for (source, status) in [("127.0.0.2", 200), ("127.0.0.1", 503)] {
        let all = crate::calls::order("r", Fault::abort(503), crate::calls::ALL);
        let scope = Scope { source: Some(source.parse().unwrap()), ..all.scope };
        let id = world.faults.place(Order { scope, ..all }).unwrap().fault.id;
        assert_eq!(wire.get("/").status, status, "{source}");
        world.faults.remove(id).unwrap();
    }
}

#[test]
fn trailers_pass_unannounced() {
    let server = Server::start(|_, _| {
        Do::Send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\ngrpc-status: 0\r\n\r\n".to_vec(),
        )
    });
    let world = World::new(one(&server));
    let heard = Wire::new(world.address).get("/");
    assert_eq!((heard.body.as_slice(), heard.trailers.unwrap()["grpc-status"].as_bytes()), (&b"abc"[..], &b"0"[..]));
}

#[test]
fn an_answer_that_breaks_off_is_broken_off() {
    let server =
        Server::start(|_, _| Do::SendAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nonly this".to_vec()));
    let world = World::new(one(&server));
    let wire = Wire::new(world.address);
    let broken = wire.ask(get("/"), b"").unwrap_err();
    assert_eq!(broken.reason(), Some(Reason::INTERNAL_ERROR), "{broken}");
    assert_eq!(world.route(0).cut_total, 1);
}

#[test]
fn a_write_is_kept_for_later() {
    let server = Server::start(|_, _| answer("503 Service Unavailable", "", ""));
    let mut policy = one(&server);
    policy.routes[0].fallbacks = vec![Fallback::Spool];
    let world = World::new(policy);
    let heard = Wire::new(world.address).ask(request("POST", "/").body(()).unwrap(), b"one").unwrap();
    assert_eq!(heard.status, 202);
    assert!(heard.headers.contains_key("location") && heard.headers.contains_key("seawall-degraded"));
}

#[test]
fn who_takes_back_what_he_asks_for_is_let_go() {
    let server = Server::start(|_, _| Do::Hang);
    let world = World::new(one(&server));
    let wire = Wire::new(world.address);
    let mut send = wire.send.clone();
    wire.runtime.block_on(async {
        // Until we are let go; a connection that would bear it for ever ends the test by its patience.
        let abuse = async {
            loop {
                let Ok(ready) = send.clone().ready().await else { return };
                send = ready;
                let Ok((answer, mut stream)) = send.send_request(get("/"), true) else { return };
                stream.send_reset(Reason::CANCEL);
                drop(answer);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, abuse).await.expect("we are let go");
    });
    wait_until("it is counted", || rejected(&world, "h2_resets") == 1);
    let _ = wire.ended();
}

/// Asks more often than anybody may take back, until the connection is idle: it must end in order then.
fn is_not_let_go(answer: &'static [u8], closes: bool, is_whole: bool) -> Server {
    let server =
        Server::start(move |_, _| if closes { Do::SendAndClose(answer.to_vec()) } else { Do::Send(answer.to_vec()) });
    let mut policy = one(&server);
    policy.limits.idle_timeout = Duration::from_secs(1);
    let world = World::new(policy);
    let wire = Wire::new(world.address);
    for _ in 0..120 {
        assert_eq!(wire.ask(get("/"), b"").is_ok(), is_whole);
    }
    // Abuse is looked for before idleness is.
    wait_until("it is closed", || (world.view)().connections == 0);
    assert_eq!(rejected(&world, "h2_resets"), 0);
    assert!(wire.ended().is_ok(), "with a farewell, not with a break");
    server
}

#[test]
fn an_answer_that_ends_with_trailers_was_not_taken_back() {
    let server = is_not_let_go(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n",
        false,
        true,
    );
    assert!(server.seen().iter().all(|seen| seen.connection == 0), "the upstream's connection was used again");
}

#[test]
fn an_answer_that_the_upstream_breaks_was_not_taken_back() {
    is_not_let_go(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nonly this", true, false);
}

#[test]
fn who_does_not_read_is_let_go_and_holds_nobody_else() {
    let long = "x".repeat(4 << 20);
    let server = Server::start(move |_, _| ok(&long));
    let mut policy = one(&server);
    policy.limits.body_idle_timeout = Duration::from_millis(300);
    let world = World::new(policy);
    let wire = Wire::new(world.address);
    let held = wire.runtime.block_on(async {
        let mut send = wire.send.clone().ready().await.unwrap();
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        // The head comes, the body is never taken.
        answer.await.unwrap()
    });
    wait_until("it is counted", || rejected(&world, "h2_stalled") == 1);
    wait_until("its connection is closed", || (world.view)().connections == 0);
    drop(held);
    let _ = wire.ended();
}

#[test]
fn an_answer_that_is_not_taken_is_taken_back_alone() {
    let server = Server::start(|seen, _| match seen.line().contains("/empty") {
        true => ok(""),
        false => ok(&"x".repeat(60 << 10)),
    });
    // Nothing of it leaves, the beginning of its first piece, all but the end of its last.
    for (window, sent) in [(0, 0), (1, 1), ((60 << 10) - 1, (60 << 10) - 1)] {
        let mut policy = one(&server);
        (policy.limits.body_idle_timeout, policy.limits.idle_timeout) =
            (Duration::from_millis(300), Duration::from_millis(900));
        let world = World::new(policy);
        let wire = Wire::with_window(world.address, window);
        let mut body = wire.runtime.block_on(async {
            let mut send = wire.send.clone().ready().await.unwrap();
            let (answer, _) = send.send_request(get("/"), true).unwrap();
            answer.await.unwrap().into_body()
        });
        wait_until("it is counted", || {
            assert_eq!(wire.get("/empty").status, 200, "whoever is beside it is served");
            rejected(&world, "unread") == 1
        });
        let (heard, error) = wire.runtime.block_on(async {
            let mut heard = 0;
            loop {
                match body.data().await.expect("it does not end as if it were whole") {
                    Ok(data) => heard += data.len(),
                    Err(error) => return (heard, error),
                }
            }
        });
        assert_eq!((heard, error.reason()), (sent, Some(Reason::CANCEL)));
        assert_eq!(wire.get("/empty").status, 200, "and the connection goes on");
        assert_eq!((rejected(&world, "h2_stalled"), (world.view)().connections), (0, 1));
        wait_until("it is idle", || (world.view)().connections == 0);
        assert!(wire.ended().is_ok(), "with a farewell, not with a break");
        let seen = world.route(0);
        assert_eq!(seen.in_flight, 0);
    }
}

/// All of its streams wait for the same room: none of them is at fault alone.
#[test]
fn a_connection_whose_window_is_used_up_is_ended_with_all_its_streams() {
    let server = Server::start(|_, _| ok(&"x".repeat(60 << 10)));
    let mut policy = one(&server);
    policy.limits.body_idle_timeout = Duration::from_millis(500);
    let world = World::new(policy);
    let wire = Wire::new(world.address);
    let bodies = wire.runtime.block_on(async {
        let mut bodies = Vec::new();
        for _ in 0..3 {
            let mut send = wire.send.clone().ready().await.unwrap();
            let (answer, _) = send.send_request(get("/"), true).unwrap();
            bodies.push(answer.await.unwrap().into_body());
        }
        bodies
    });
    wait_until("it is counted", || rejected(&world, "h2_stalled") == 1);
    wait_until("it is closed", || (world.view)().connections == 0);
    assert_eq!(rejected(&world, "unread"), 0);
    drop(bodies);
    assert_eq!((world.view)().rejected.iter().map(|(_, count)| count).sum::<u64>(), 1);
}

/// Whatever it says: half a body is never the whole of one.
#[test]
fn a_body_that_is_taken_back_is_not_a_shorter_one() {
    let far = crate::tcp::Far::new();
    let world = World::new(policy(vec![route("r", 0)], vec![upstream("u", &[far.address()])]));
    let wire = Wire::new(world.address);
    for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        let (answer, mut body) = wire.runtime.block_on(async {
            let mut send = wire.send.clone().ready().await.unwrap();
            let (answer, mut body) = send.send_request(request("POST", "/").body(()).unwrap(), false).unwrap();
            body.send_data(Bytes::from_static(b"half of it"), false).unwrap();
            (answer, body)
        });
        let mut server = far.accept();
        let mut seen = String::new();
        while !seen.ends_with("half of it\r\n") {
            seen += &crate::tcp::read(&mut server, 1);
        }
        body.send_reset(reason);
        drop(answer);
        let rest = crate::tcp::rest(&mut server).unwrap_or_default();
        assert!(!rest.contains("0\r\n"), "{reason:?}: it is ended as if it were whole: {rest:?}");
    }
    wait_until("all are counted", || rejected(&world, "body_cut") + world.route(0).cancelled_total == 3);
    assert_eq!(world.route(0).failures_total, 0, "nobody blames the upstream");
}

#[test]
fn an_idle_connection_is_closed_in_order() {
    let server = Server::start(|_, _| ok("well"));
    let mut policy = one(&server);
    policy.limits.idle_timeout = Duration::from_millis(200);
    let world = World::new(policy);
    let wire = Wire::new(world.address);
    assert_eq!(wire.get("/").status, 200);
    wait_until("it is closed", || (world.view)().connections == 0);
    assert!(wire.ended().is_ok(), "with a farewell, not with a break");
}

#[test]
fn a_stop_lets_requests_in_work_end() {
    let (began, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (of_server, end) = (Arc::clone(&began), Arc::clone(&may_end));
    let server = Server::start(move |_, _| {
        of_server.store(1, Relaxed);
        wait_until("it may end", || end.load(Relaxed) == 1);
        ok("late")
    });
    let mut world = World::new(one(&server));
    let wire = Wire::new(world.address);
    let asked = std::thread::spawn(move || {
        let heard = wire.get("/");
        (heard.body, wire.ended().is_ok())
    });
    wait_until("it is on its way", || began.load(Relaxed) == 1);
    let ending = std::thread::spawn(move || world.stop(false));
    may_end.store(1, Relaxed);
    assert_eq!(ending.join().unwrap(), 0, "nothing is cut off");
    assert_eq!(asked.join().unwrap(), (b"late".to_vec(), true));
}

#[test]
fn the_preface_may_come_in_pieces_and_what_only_looks_like_it_is_http_1() {
    let server = Server::start(|seen, _| ok(seen.line()));
    let mut policy = one(&server);
    policy.limits.header_timeout = Duration::from_millis(300);
    let world = World::new(policy);
    // The preface byte by byte, then empty SETTINGS: our SETTINGS come back.
    let mut client = world.client();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        client.stream.write_all(&[*byte]).unwrap();
    }
    let mut head = [0; 9];
    client.stream.read_exact(&mut head).unwrap();
    assert_eq!((head[3], &head[5..]), (4, &[0; 4][..]), "SETTINGS of the connection: {head:?}");
    // A method that begins alike.
    let mut client = world.client();
    client.stream.write_all(b"P").unwrap();
    client.stream.write_all(b"R").unwrap();
    assert_eq!(client.ask("OPFIND / HTTP/1.1\r\nHost: h\r\n\r\n").body, "PROPFIND / HTTP/1.1");
    let mut client = world.client();
    assert_eq!(client.ask("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").body, "PUT / HTTP/1.1");
    // Whoever stops in the middle of it is too slow.
    let mut client = world.client();
    client.stream.write_all(b"PRI * HT").unwrap();
    assert_eq!(client.next().unwrap().status, 408);
}

/// What a server of HTTP/2 does with a request, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Answer,
    /// With trailers after the body.
    Trail,
    /// A failure of gRPC, all in the head; asks to be asked again after so many milliseconds, or never.
    Unavailable(&'static str),
    /// A status of gRPC in the head, and a body of nothing.
    Early(&'static str),
    /// Says that it has not begun.
    Refuse,
    Reset,
    /// Half an answer, and then a reset.
    Cut,
    Hang,
}

/// By which connection a request came, its head and its body.
type Seen = (usize, Request<()>, Vec<u8>);

/// A server of HTTP/2 in clear. `act` is asked with the connection's number, the path and the request's number.
pub struct Frames {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Frames {
    pub fn start(seats: u32, act: impl Fn(usize, &str, usize) -> Act + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (act, of_server) = (Arc::new(act), Arc::clone(&seen));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (act, seen) = (Arc::clone(&act), Arc::clone(&of_server));
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    let Ok(mut connection) = builder.max_concurrent_streams(seats).handshake::<_, Bytes>(stream).await
                    else {
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let (act, seen) = (Arc::clone(&act), Arc::clone(&seen));
                        tokio::spawn(serve(number, request, respond, act, seen));
                    }
                });
            }
        });
        Self { address, seen, _runtime: runtime }
    }

    fn answering() -> Self {
        Self::start(100, |_, _, _| Act::Answer)
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn connections(&self) -> usize {
        self.seen.lock().unwrap().iter().map(|(connection, ..)| connection + 1).max().unwrap_or(0)
    }

    /// One route to it.
    pub fn policy(&self) -> Policy {
        let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[self.address])]);
        policy.upstreams[0].http2 = true;
        policy.routes[0].guards.retry.attempts_max = 1;
        policy
    }
}

async fn serve(
    connection: usize,
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    act: Arc<impl Fn(usize, &str, usize) -> Act>,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let (head, body) = request.into_parts();
    let number = seen.lock().unwrap().len();
    let path = head.uri.path().to_owned();
    let act = act(connection, &path, number);
    if act == Act::Refuse {
        seen.lock().unwrap().push((connection, Request::from_parts(head, ()), Vec::new()));
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    let Ok((body, _)) = read(body).await else { return };
    let said = format!("{} {path} {}", head.method, body.len());
    seen.lock().unwrap().push((connection, Request::from_parts(head, ()), body));
    let answer = http::Response::builder().status(200);
    match act {
        Act::Answer => {
            let answer = answer.header("content-length", said.len()).body(()).unwrap();
            respond.send_response(answer, false).unwrap().send_data(said.into(), true).unwrap();
        }
        Act::Trail => {
            let mut stream = respond.send_response(answer.body(()).unwrap(), false).unwrap();
            stream.send_data(said.into(), false).unwrap();
            stream.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())])).unwrap();
        }
        Act::Unavailable(pushback) => {
            let answer = answer.header("content-type", "application/grpc").header("grpc-status", "14");
            let answer = answer.header("grpc-retry-pushback-ms", pushback).body(()).unwrap();
            respond.send_response(answer, true).unwrap();
        }
        Act::Early(status) => {
            let answer = answer.header("content-type", "application/grpc").header("grpc-status", status);
            let answer = answer.body(()).unwrap();
            respond.send_response(answer, false).unwrap().send_data(Bytes::new(), true).unwrap();
        }
        Act::Reset => respond.send_reset(Reason::INTERNAL_ERROR),
        Act::Cut => {
            let mut stream = respond.send_response(answer.body(()).unwrap(), false).unwrap();
            // More than fits into any window: what follows comes after the head has been taken.
            for _ in 0..40 {
                stream.reserve_capacity(64 << 10);
                let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
                stream.send_data(vec![b'x'; room].into(), false).unwrap();
            }
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
        Act::Hang => std::future::pending().await,
        Act::Refuse => unreachable!("handled before the body was read"),
    }
}

#[test]
fn an_upstream_is_spoken_to_in_frames() {
    let server = Frames::answering();
    let mut policy = server.policy();
    policy.upstreams[0].host = Some("inner.example:81".into());
    let world = World::new(policy);
    let mut client = world.client();
    for _ in 0..3 {
        assert_eq!(client.ask("GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n").body, "GET /a 0");
    }
    let long = "x".repeat(3 << 20);
    assert_eq!(client.ask(&crate::world::post("/", "", &long)).body, format!("POST / {}", long.len()));
    let chunked = "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(client.ask(chunked).body, "POST /c 3");
    assert_eq!((server.count(), server.connections()), (5, 1));
    let seen = server.seen.lock().unwrap();
    let (_, head, _) = &seen[0];
    assert_eq!(head.uri().to_string(), "http://inner.example:81/a?b=c");
    assert!(!head.headers().contains_key("host") && head.headers().contains_key("via"));
}

#[test]
fn calls_share_connections_within_what_the_upstream_allows() {
    let (inside, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let of_server = Arc::clone(&inside);
    // Three at once on a connection.
    let server = Frames::start(3, move |_, path, _| {
        of_server.fetch_add(1, Relaxed);
        if path == "/wait" { Act::Hang } else { Act::Answer }
    });
    let mut policy = server.policy();
    policy.routes[0].guards.timeout = Duration::from_secs(3);
    policy.routes[0].guards.try_timeout = Duration::from_secs(3);
    // One worker's share of four is two.
    policy.upstreams[0].connections_max = 4;
    let world = World::new(policy);
    // The first tells how many there may be.
    assert_eq!(world.get("/").status, 200);
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let address = world.address;
            std::thread::spawn(move || {
                crate::world::Client::new(address).ask("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").status
            })
        })
        .collect();
    wait_until("as many as there are places for are inside", || inside.load(Relaxed) >= 7);
    let statuses: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(statuses.iter().all(|status| matches!(status, 503 | 504)), "{statuses:?}");
    assert!(server.connections() <= 4, "{}", server.connections());
    may_end.store(1, Relaxed);
    assert_eq!(world.get("/").status, 200, "the places are free again");
}

#[test]
fn what_was_not_begun_is_sent_again_and_what_may_have_been_is_not() {
    let server = Frames::start(100, |_, path, number| match (path, number) {
        ("/refused", 0) => Act::Refuse,
        ("/reset", _) => Act::Reset,
        _ => Act::Answer,
    });
    let world = World::new(server.policy());
    assert_eq!(world.post("/refused", "", "once").body, "POST /refused 4");
    assert_eq!((server.count(), world.route(0).resends_total), (2, 1));
    assert_eq!(world.post("/reset", "", "once").status, 502);
    assert_eq!(server.count(), 3, "nobody knows whether it was done");
}

#[test]
fn trailers_and_broken_answers_pass_between_frames() {
    let server = Frames::start(100, |_, path, _| if path == "/cut" { Act::Cut } else { Act::Trail });
    let world = World::new(server.policy());
    let wire = Wire::new(world.address);
    let heard = wire.get("/");
    assert_eq!((heard.body.as_slice(), heard.trailers.unwrap()["x-sum"].as_bytes()), (&b"GET / 0"[..], &b"7"[..]));
    assert!(wire.ask(get("/cut"), b"").unwrap_err().is_reset());
    // To a client that was not told of them they cannot go.
    assert_eq!((world.get("/").body.as_str(), world.route(0).trailers_dropped_total), ("GET / 0", 1));
}

#[test]
fn an_upstream_that_goes_is_found_again() {
    let server = Frames::answering();
    let address = server.address;
    let world = World::new(server.policy());
    assert_eq!(world.get("/").status, 200);
    drop(server);
    wait_until("nobody is there", || world.get("/").status == 502);
    let listener = std::net::TcpListener::bind(address);
    drop(listener);
    // A server of HTTP/1 there now: no frames come back.
    let lines = Server::start_at(address, |_, _| ok("lines"));
    assert_eq!(world.get("/").status, 502);
    drop(lines);
}

#[test]
fn by_tls_the_version_is_agreed_on() {
    use crate::tls::{Authority, calls, connect, shows, shut, trusts};
    let authority = Authority::new();
    let server = Server::start(|seen, _| ok(seen.line()));
    let both = |protocols: Vec<&'static [u8]>| seawall_gateway::tls::ServerMaterial {
        protocols,
        ..shows(&[&authority.pass(&["127.0.0.1"])])
    };
    let (inner, _) = shut(&server, |_| {}, &both(vec![b"h2", b"http/1.1"]));
    // A client that offers both is served by frames, one that offers nothing by lines.
    let mut config = authority.client(None);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = connect(inner.address, config, "127.0.0.1");
    client.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut head = [0; 9];
    client.stream.read_exact(&mut head).unwrap();
    assert_eq!(head[3], 4, "SETTINGS: {head:?}");
    let mut lines = connect(inner.address, authority.client(None), "127.0.0.1");
    assert_eq!(lines.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);

    // And so are we by an upstream; one that does not speak it is told apart from one that cannot be trusted.
    let frames = |policy: &mut Policy| {
        policy.node = "front".into();
        policy.upstreams[0].http2 = true;
    };
    let material = seawall_gateway::tls::ClientMaterial { protocols: vec![b"h2"], ..trusts(&authority) };
    let front = calls(&[inner.address], frames, &material);
    assert_eq!(front.get("/x").body, "GET /x HTTP/1.1");
    let (old, _) = shut(&server, |_| {}, &both(vec![b"http/1.1"]));
    let front = calls(&[old.address], frames, &material);
    assert_eq!(front.get("/x").status, 502);
    assert!(front.route(0).failures.contains(&("tls", 1)));
}

#[test]
fn a_call_of_grpc_that_may_be_repeated_is_and_says_so() {
    let server = Frames::start(100, |_, path, number| match (path, number) {
        ("/again", 0) => Act::Unavailable("1"),
        ("/never", _) => Act::Unavailable("-1"),
        _ => Act::Answer,
    });
    let mut policy = server.policy();
    policy.routes[0].guards.retry.attempts_max = 3;
    let world = World::new(policy);
    let wire = Wire::new(world.address);
    let call = |path: &str| {
        let request = request("POST", path).header("content-type", "application/grpc").header("te", "trailers");
        request.header("idempotency-key", "\"k\"").header("grpc-timeout", "5S").body(()).unwrap()
    };
    assert_eq!(wire.ask(call("/again"), b"message").unwrap().body, b"POST /again 7");
    let heard = wire.ask(call("/never"), b"message").unwrap();
    assert_eq!((heard.status, heard.headers["grpc-status"].as_bytes()), (200, &b"14"[..]), "the upstream's own words");
    let seen = server.seen.lock().unwrap();
    let header = |n: usize, name: &str| {
        let (_, head, _) = &seen[n];
        head.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(seen.len(), 3, "once more where it may be, and once where it may not");
    let attempts: Vec<_> = (0..3).map(|n| header(n, "grpc-previous-rpc-attempts")).collect();
    assert_eq!(attempts, [None, Some("1".into()), None]);
    let left: u64 = header(1, "grpc-timeout").unwrap().trim_end_matches('u').parse().unwrap();
    assert!(left < 5_000_000, "what is left of five seconds: {left} us");
    assert_eq!(header(0, "te").as_deref(), Some("trailers"));
    assert!(world.route(0).failures.contains(&("status", 2)));
}

fn failures(world: &World) -> u64 {
    world.route(0).failures.iter().map(|(_, count)| count).sum()
}

#[test]
fn those_who_wait_for_a_connection_all_get_on_when_it_is_there() {
    let inside = Arc::new(AtomicUsize::new(0));
    let of_server = Arc::clone(&inside);
    let server = Frames::start(100, move |_, _, _| {
        of_server.fetch_add(1, Relaxed);
        Act::Hang
    });
    let mut policy = server.policy();
    policy.routes[0].guards.timeout = Duration::from_secs(20);
    policy.routes[0].guards.try_timeout = Duration::from_secs(20);
    // One a worker.
    policy.upstreams[0].connections_max = 2;
    let world = World::new(policy);
    let mut clients: Vec<_> = (0..24).map(|_| world.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    wait_until("all are inside, and none has come out", || inside.load(Relaxed) == 24);
    assert!(server.connections() <= 2);
}

#[test]
fn an_upstream_that_cannot_be_reached_is_not_tried_by_one_after_the_other() {
    // It takes connections and shakes no hands.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let authority = crate::tls::Authority::new();
    let material = seawall_gateway::tls::ClientMaterial { protocols: vec![b"h2"], ..crate::tls::trusts(&authority) };
    let tune = |policy: &mut Policy| {
        policy.upstreams[0].http2 = true;
        policy.upstreams[0].connect_timeout = Duration::from_millis(500);
        policy.routes[0].guards.timeout = Duration::from_secs(4);
        policy.routes[0].guards.try_timeout = Duration::from_secs(4);
        policy.routes[0].guards.retry.attempts_max = 1;
    };
    let world = crate::tls::calls(&[silent.local_addr().unwrap()], tune, &material);
    let mut clients: Vec<_> = (0..40).map(|_| world.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    clients.iter_mut().for_each(|client| drop(client.next().unwrap()));
    assert!(world.route(0).failures.contains(&("connect_timeout", 40)), "none ran out of time waiting for others");
}

#[test]
fn a_refused_call_is_sent_again_on_the_same_connection() {
    let server = Frames::start(100, |_, _, number| if number % 5 == 1 { Act::Refuse } else { Act::Answer });
    let world = World::new(server.policy());
    let mut client = world.client();
    for _ in 0..100 {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);
    }
    assert_eq!((server.count(), server.connections()), (125, 1));
}

#[test]
fn what_was_begun_and_reset_is_a_failure_and_not_sent_again_for_nothing() {
    let server = Frames::start(100, |_, path, _| if path == "/reset" { Act::Reset } else { Act::Answer });
    let world = World::new(server.policy());
    let mut client = world.client();
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);
    assert_eq!(client.ask("GET /reset HTTP/1.1\r\nHost: h\r\n\r\n").status, 502);
    assert_eq!((server.count(), world.route(0).resends_total), (2, 0));
}

/// What answers is asked how it is in gRPC's own way, and what is wrong with the answer is told.
#[test]
fn a_health_check_by_grpc_says_what_is_wrong() {
    for (act, reason) in [
        (Act::Early("12"), "answered UNIMPLEMENTED"),
        (Act::Trail, "what answers does not speak gRPC"),
        (Act::Cut, "answered more than 4096 bytes"),
        (Act::Hang, "no answer in time"),
    ] {
        let server = Frames::start(100, move |_, _, _| act);
        let mut policy = server.policy();
        policy.upstreams[0].health = Some(HealthConfig {
            ask: Ask::Grpc("a.B".into()),
            every: Duration::from_millis(10),
            unhealthy_after: 1,
            ..HealthConfig::default()
        });
        let world = World::new(policy);
        wait_until("it is ill", || !world.entries(Kind::EndpointUnhealthy).is_empty());
        assert_eq!(world.entries(Kind::EndpointUnhealthy)[0].fields["reason"], reason);
        let (_, head, body) = server.seen.lock().unwrap()[0].clone();
        assert_eq!((head.method().as_str(), head.uri().path()), ("POST", "/grpc.health.v1.Health/Check"));
        assert_eq!(
            (&head.headers()["te"], body.as_slice()),
            (&"trailers".parse().unwrap(), &b"\0\0\0\0\x05\x0a\x03a.B"[..])
        );
    }
}

#[test]
fn who_names_no_host_asks_for_the_address_and_one_that_frames_cannot_say_is_refused_before_anybody_is_blamed() {
    let server = Frames::answering();
    let world = World::new(server.policy());
    let mut client = world.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.next().unwrap().body, "GET / 0");
    assert_eq!(server.seen.lock().unwrap()[0].1.uri().authority().unwrap().as_str(), server.address.to_string());
    let answer = world.client().ask("GET / HTTP/1.1\r\nHost: a%41\r\n\r\n");
    assert_eq!((answer.status, rejected(&world, "host")), (400, 1));
    assert!(answer.body.contains("`a%41` cannot be said in HTTP/2"), "{}", answer.body);
    assert_eq!((server.count(), failures(&world)), (1, 0));
}

#[test]
fn a_write_the_upstream_has_not_begun_when_it_leaves_is_sent_again() {
    use std::io::Read as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[listener.local_addr().unwrap()])]);
    policy.upstreams[0].http2 = true;
    policy.routes[0].guards.retry.attempts_max = 1;
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        // SETTINGS, empty.
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0").unwrap();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            std::io::copy(&mut (&mut stream).take(length.into()), &mut std::io::sink()).unwrap();
            // HEADERS
            if head[3] == 1 {
                break;
            }
        }
        // GOAWAY: no stream was begun, and nothing is wrong.
        stream.write_all(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
        let (second, _) = listener.accept().unwrap();
        second.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(second).unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let (body, _) = read(request.into_body()).await.unwrap();
                    let answer = http::Response::builder().status(200).body(()).unwrap();
                    respond.send_response(answer, false).unwrap().send_data(body.into(), true).unwrap();
                });
            }
        });
    });
    let world = World::new(policy);
    assert_eq!(world.post("/", "", "once").body, "once");
    assert_eq!((world.route(0).resends_total, failures(&world)), (1, 0));
    drop(world);
    server.join().unwrap();
}

#[test]
fn a_status_in_the_head_counts_once_whatever_follows() {
    let server = Frames::start(100, |_, path, _| Act::Early(if path == "/well" { "0" } else { "13" }));
    let world = World::new(server.policy());
    let wire = Wire::new(world.address);
    let call = |path: &str| request("POST", path).header("content-type", "application/grpc").body(()).unwrap();
    assert_eq!(wire.ask(call("/well"), b"message").unwrap().headers["grpc-status"], "0");
    assert_eq!(world.route(0).failures_total, 0);
    assert_eq!(wire.ask(call("/ill"), b"message").unwrap().headers["grpc-status"], "13");
    assert_eq!(world.route(0).failures_total, 1);
    assert!(world.route(0).failures.contains(&("status", 1)));
}

#[test]
fn the_upstream_is_told_the_patience_of_the_caller_and_not_ours_for_a_head() {
    let server = Frames::answering();
    let world = World::new(server.policy());
    let wire = Wire::new(world.address);
    let call = |patience: &str| {
        let request = request("POST", "/").header("content-type", "application/grpc");
        wire.ask(request.header("grpc-timeout", patience).body(()).unwrap(), b"message").unwrap()
    };
    // The route gives a head five seconds.
    assert_eq!((call("1H").status, call("2S").status), (200, 200));
    let seen = server.seen.lock().unwrap();
    let told = |n: usize| {
        let (_, head, _) = &seen[n];
        millis(head.headers()["grpc-timeout"].to_str().unwrap())
    };
    assert!((3_000_000..=3_600_000).contains(&told(0)), "what is left of an hour: {} ms", told(0));
    assert!(told(1) <= 2_000, "what is left of two seconds: {} ms", told(1));
}

fn millis(patience: &str) -> u64 {
    let (digits, unit) = patience.split_at(patience.len() - 1);
    let number: u64 = digits.parse().unwrap();
    match unit {
        "u" => number / 1_000,
        "m" => number,
        _ => number * 1_000,
    }
}
