//! WebSocket over HTTP/2 (RFC 8441): one stream of a client's connection becomes a connection to an upstream of
//! HTTP/1.1 or HTTP/2, and one of HTTP/1.1 may become a stream of an upstream's.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use seawall_core::fault::Effect;
use seawall_core::fault::book::{Kind as Fault, Way};
use seawall_core::guard::bulkhead::BulkheadConfig;
use seawall_core::policy::Policy;

use crate::calls::{ALL, order};
use crate::tcp::{Far, is_reset, named, nobody, read, reset, rest};
use crate::upgrades::{allowing, head};
use crate::world::{PATIENCE, Server, World, breaker, header, ok, on_path, policy, route, upstream, wait_until};

/// A client's HTTP/2 connection.
struct Wire {
    runtime: tokio::runtime::Runtime,
    send: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A stream that is a connection, or an answer that is none.
struct Tunnel {
    answer: Response<()>,
    hears: RecvStream,
    says: SendStream<Bytes>,
}

fn ask(protocol: &'static str) -> http::request::Builder {
    let request = Request::builder().method(Method::CONNECT).uri("http://h.example/chat");
    request.extension(Protocol::from_static(protocol))
}

impl Wire {
    fn new(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (send, driver) = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (send, connection) = h2::client::handshake(stream).await.unwrap();
            (send, tokio::spawn(connection))
        });
        wait_until("it is offered", || send.is_extended_connect_protocol_enabled());
        Self { runtime, send, driver }
    }

    /// Asks, while `answers` does what the other side does meanwhile.
    fn open<T>(&self, request: http::request::Builder, answers: impl FnOnce() -> T) -> (Tunnel, T) {
        let mut send = self.send.clone();
        let (answer, says) = self.runtime.block_on(async {
            send = send.ready().await.unwrap();
            send.send_request(request.body(()).unwrap(), false).unwrap()
        });
        let answered = answers();
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
        let (parts, hears) = answer.expect("an answer in time").unwrap().into_parts();
        (Tunnel { answer: Response::from_parts(parts, ()), hears, says }, answered)
    }

    fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let mut send = self.send.clone();
        self.runtime.block_on(async {
            send = send.ready().await.unwrap();
            let request = Request::builder().uri(format!("http://h.example{path}")).body(()).unwrap();
            let (answer, _) = send.send_request(request, true).unwrap();
            let (parts, mut body) = answer.await.unwrap().into_parts();
            (parts.status.as_u16(), all_of(&mut body).await.unwrap())
        })
    }

    /// What comes next, up to so many bytes; less at the end.
    fn hear(&self, tunnel: &mut Tunnel, bytes: usize) -> Result<String, h2::Error> {
        let heard = async {
            let mut heard = Vec::new();
            while heard.len() < bytes {
                let Some(data) = tunnel.hears.data().await else { break };
                let data = data?;
                tunnel.hears.flow_control().release_capacity(data.len())?;
                heard.extend_from_slice(&data);
            }
            Ok(String::from_utf8(heard).unwrap())
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, heard).await }).expect("in time")
    }

    fn rest(&self, tunnel: &mut Tunnel) -> Result<String, h2::Error> {
        self.hear(tunnel, usize::MAX)
    }

    /// Why it was broken off.
    fn broken(&self, tunnel: &mut Tunnel) -> Option<Reason> {
        self.rest(tunnel).expect_err("it breaks off").reason()
    }
}

impl Tunnel {
    fn say(&mut self, words: &str) {
        self.says.send_data(Bytes::copy_from_slice(words.as_bytes()), false).unwrap();
    }

    fn end(&mut self) {
        self.says.send_data(Bytes::new(), true).unwrap();
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.answer.headers().get(name).map(|value| value.to_str().unwrap())
    }
}

async fn all_of(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all)
}

async fn say_all(says: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        says.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| says.poll_capacity(cx)).await.expect("it is open").unwrap();
        says.send_data(bytes.split_to(room.min(bytes.len())), false).unwrap();
    }
    says.send_data(Bytes::new(), true).unwrap();
}

/// RFC 6455, section 4.2.2, once more and by itself.
fn accept(key: &str) -> String {
    let said = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, said.as_bytes()))
}

fn agreement(asked: &str) -> String {
    let accept = accept(&header(asked, "sec-websocket-key").expect("a key"));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: talk\r\n\r\n"
    )
}

fn world(far: &Far, tune: impl FnOnce(&mut Policy)) -> World {
    let mut policy = policy(vec![allowing(route("r", 0))], vec![upstream("u", &[far.address()])]);
    policy.routes[0].guards.retry.attempts_max = 1;
    tune(&mut policy);
    World::new(policy)
}

/// Both sides of a stream that has become a connection.
fn switched(wire: &Wire, far: &Far) -> (Tunnel, TcpStream) {
    let (tunnel, server) = wire.open(ask("websocket"), || {
        let mut server = far.accept();
        let asked = head(&mut server);
        server.write_all(agreement(&asked).as_bytes()).unwrap();
        server
    });
    assert_eq!(tunnel.answer.status(), 200);
    (tunnel, server)
}

#[test]
fn a_key_is_answered_as_the_standard_says() {
    assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn a_stream_becomes_a_connection_beside_others() {
    let far = Far::new();
    let other = Server::start(|_, _| ok("beside"));
    let world = world(&far, |policy| {
        policy.routes.push(on_path(route("other", 1), "/other"));
        policy.routes.swap(0, 1);
        policy.upstreams.push(upstream("other", &[other.address]));
        policy.listeners[0].routes = (0..2).map(seawall_core::id::RouteId).collect();
    });
    let wire = Wire::new(world.address);
    let with_headers = ask("websocket").header("sec-websocket-version", "13").header("sec-websocket-key", "theirs");
    let (mut tunnel, (mut server, asked)) = wire.open(with_headers.header("sec-websocket-protocol", "talk"), || {
        let mut server = far.accept();
        let asked = head(&mut server);
        server.write_all(format!("{}soon", agreement(&asked)).as_bytes()).unwrap();
        (server, asked)
    });
    assert!(asked.starts_with("GET /chat HTTP/1.1\r\n"), "{asked}");
    let of = |name: &str| header(&asked, name).unwrap_or_default();
    assert_eq!(
        (of("connection").as_str(), of("upgrade").as_str(), of("host").as_str()),
        ("upgrade", "websocket", "h.example")
    );
    assert_eq!((of("sec-websocket-version").as_str(), of("sec-websocket-protocol").as_str()), ("13", "talk"));
    let key = of("sec-websocket-key");
    assert_eq!(STANDARD.decode(&key).unwrap().len(), 16, "{key}");
    assert_eq!((tunnel.answer.status().as_u16(), tunnel.header("sec-websocket-protocol")), (200, Some("talk")));
    assert_eq!(["sec-websocket-accept", "upgrade", "connection"].map(|name| tunnel.header(name)), [None; 3]);
    assert_eq!(wire.hear(&mut tunnel, 4).unwrap(), "soon");
    for n in 0..100 {
        let word = format!("word {n:03}");
        tunnel.say(&word[..3]);
        tunnel.say(&word[3..]);
        assert_eq!(read(&mut server, 8), word);
        server.write_all(word.as_bytes()).unwrap();
        assert_eq!(wire.hear(&mut tunnel, 8).unwrap(), word);
    }
    assert_eq!(wire.get("/other"), (200, b"beside".to_vec()));
    let seen = world.route(1);
    assert_eq!((seen.answers[0], seen.connections.open, seen.in_flight), (1, 1, 1));
    let pending = (world.view)().limits.into_iter().find(|limit| limit.name == "pending").unwrap();
    assert_eq!((pending.used, (world.view)().connections), (Some(0), 1), "it is no request any more");
    // Another has another key.
    let (second, second_server) = wire.open(ask("websocket"), || {
        let mut server = far.accept();
        let asked = head(&mut server);
        server.write_all(agreement(&asked).as_bytes()).unwrap();
        assert_ne!(header(&asked, "sec-websocket-key").unwrap(), key);
        server
    });
    drop((second, second_server));
    // One side has said all; the other goes on.
    tunnel.end();
    assert_eq!(rest(&mut server).unwrap(), "");
    server.write_all(b"bye").unwrap();
    drop(server);
    assert_eq!(wire.rest(&mut tunnel).unwrap(), "bye");
    wait_until("all is given back", || world.route(1).connections.open == 0 && world.route(1).in_flight == 0);
    let seen = world.route(1);
    assert_eq!(named(&seen.connections.ended, "done"), 1, "{:?}", seen.connections.ended);
    assert_eq!((seen.connections.bytes_up_total, seen.connections.bytes_down_total), (800, 807));
    assert_eq!((seen.failures_total, seen.cancelled_total), (0, 0));
    assert_eq!(wire.get("/other").0, 200, "and the connection goes on");
    assert_eq!((world.view)().rejected.iter().map(|(_, count)| count).sum::<u64>(), 0);
}

#[test]
fn much_goes_both_ways_and_waits_for_who_is_slow() {
    const BYTES: usize = 8 << 20;
    let far = Far::new();
    let world = world(&far, |_| {});
    let wire = Wire::new(world.address);
    let (mut tunnel, server) = switched(&wire, &far);
    let text: Vec<u8> = (0..BYTES as u32 / 4).flat_map(u32::to_le_bytes).collect();
    let (mut writer, of_writer) = (server.try_clone().unwrap(), text.clone());
    let writes = thread::spawn(move || {
        writer.write_all(&of_writer).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    // Nothing of it is read: it waits, and not here.
    wait_until("no more fits", || {
        let before = world.route(0).connections.bytes_down_total;
        thread::sleep(Duration::from_millis(50));
        before > 0 && world.route(0).connections.bytes_down_total == before
    });
    let down = world.route(0).connections.bytes_down_total;
    assert!(down < 1 << 20, "{down} bytes were taken for one who does not read");
    let (mut reader, expected) = (server, text.clone());
    let reads = thread::spawn(move || {
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        seen == expected
    });
    let Tunnel { hears, says, .. } = &mut tunnel;
    let heard = wire.runtime.block_on(async {
        let both = async { tokio::join!(say_all(says, text.clone().into()), all_of(hears)).1 };
        tokio::time::timeout(PATIENCE, both).await.expect("in time").unwrap()
    });
    assert!(heard == text && reads.join().unwrap(), "changed on the way");
    writes.join().unwrap();
    wait_until("it has ended", || named(&world.route(0).connections.ended, "done") == 1);
}

#[test]
fn who_breaks_off_breaks_off_the_other() {
    let far = Far::new();
    let world = world(&far, |policy| policy.routes[0].guards.idle_timeout = Some(Duration::from_secs(2)));
    let wire = Wire::new(world.address);
    let (mut tunnel, mut server) = switched(&wire, &far);
    tunnel.says.send_reset(Reason::CANCEL);
    assert!(is_reset(&mut server), "the upstream's socket");
    // One that has heard the upstream's end already.
    let (mut tunnel, mut server) = switched(&wire, &far);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(wire.rest(&mut tunnel).unwrap(), "");
    tunnel.says.send_reset(Reason::CANCEL);
    assert!(is_reset(&mut server), "though it has ended");
    // And one that has said its own.
    let (mut tunnel, mut server) = switched(&wire, &far);
    tunnel.end();
    assert_eq!(rest(&mut server).unwrap(), "");
    tunnel.says.send_reset(Reason::CANCEL);
    drop(tunnel);
    wait_until("it is heard, though nothing more was to come", || world.route(0).connections.open == 0);
    let (mut tunnel, server) = switched(&wire, &far);
    reset(server);
    assert_eq!(wire.broken(&mut tunnel), Some(Reason::CANCEL));
    let (mut tunnel, mut server) = switched(&wire, &far);
    assert_eq!(wire.broken(&mut tunnel), Some(Reason::CANCEL), "of silence");
    assert!(is_reset(&mut server));
    let (tunnel, mut server) = switched(&wire, &far);
    wire.driver.abort();
    drop(tunnel);
    assert!(is_reset(&mut server), "its client's connection is gone");
    let ended = |how: &str| named(&world.route(0).connections.ended, how);
    wait_until("all are counted", || ["client_reset", "upstream_reset", "idle"].map(ended) == [4, 1, 1]);
}

#[test]
fn who_leaves_before_the_agreement_leaves_nothing_behind() {
    let far = Far::new();
    let world = world(&far, |_| {});
    let wire = Wire::new(world.address);
    let mut send = wire.send.clone();
    let (answer, mut says) = wire.runtime.block_on(async {
        send = send.ready().await.unwrap();
        send.send_request(ask("websocket").body(()).unwrap(), false).unwrap()
    });
    let mut server = far.accept();
    head(&mut server);
    says.send_reset(Reason::CANCEL);
    drop(answer);
    assert!(matches!(server.read(&mut [0]), Ok(0) | Err(_)), "the upstream is let go");
    wait_until("it is counted", || world.route(0).cancelled_total == 1);
    assert_eq!((world.route(0).in_flight, world.route(0).connections.opened_total), (0, 0));
}

#[test]
fn any_other_answer_is_an_ordinary_one() {
    let far = Far::new();
    let world = world(&far, |_| {});
    let wire = Wire::new(world.address);
    for (said, status, body) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nWhy: x\r\n\r\nnot!", 403, "not!"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n0\r\n\r\n", 200, "well"),
        ("HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n", 302, ""),
    ] {
        let (mut tunnel, _server) = wire.open(ask("websocket"), || {
            let mut server = far.accept();
            head(&mut server);
            server.write_all(said.as_bytes()).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            server
        });
        assert_eq!((tunnel.answer.status().as_u16(), wire.rest(&mut tunnel).unwrap().as_str()), (status, body));
    }
    assert_eq!((world.route(0).connections.opened_total, world.route(0).failures_total), (0, 0));
}

#[test]
fn an_agreement_that_does_not_prove_itself_is_none() {
    let far = Far::new();
    let world = world(&far, |_| {});
    let wire = Wire::new(world.address);
    for spoil in [
        |agreement: String| agreement.replace("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x"),
        |agreement: String| agreement.replace("Sec-WebSocket-Accept", "X"),
        |agreement: String| agreement.replace("Sec-WebSocket-Protocol", "Sec-WebSocket-Accept"),
        |agreement: String| agreement.replace("Upgrade: websocket", "Upgrade: other"),
    ] {
        let (tunnel, _server) = wire.open(ask("websocket"), || {
            let mut server = far.accept();
            let asked = head(&mut server);
            server.write_all(spoil(agreement(&asked)).as_bytes()).unwrap();
            server
        });
        assert_eq!(tunnel.answer.status(), 502);
        assert!(tunnel.header("proxy-status").unwrap().contains("http_protocol_error"), "{:?}", tunnel.answer);
    }
    assert_eq!(named(&world.route(0).failures, "protocol"), 4);
}

#[test]
fn what_is_no_websocket_or_not_allowed_is_not_carried() {
    let far = Far::new();
    let world = world(&far, |policy| policy.routes[0].upgrades = Vec::new());
    let wire = Wire::new(world.address);
    let rejected = |reason: &str| (world.view)().rejected.iter().find(|(known, _)| *known == reason).unwrap().1;
    let (refused, ()) = wire.open(ask("websocket"), || {});
    assert_eq!(refused.answer.status(), 501);
    assert!(refused.header("proxy-status").unwrap().contains("`upgrade: websocket`"), "{:?}", refused.answer);
    for other in ["connect-udp", "WebSocket", ""] {
        assert_eq!(wire.open(ask(other), || {}).0.answer.status(), 501, "{other}");
    }
    assert_eq!(rejected("protocol"), 3);
    let (refused, ()) = wire.open(ask("websocket").header("content-length", "0"), || {});
    assert_eq!((refused.answer.status().as_u16(), rejected("upgrade_body")), (400, 1));
    let mut send = wire.send.clone();
    let plain = Request::builder().method(Method::CONNECT).uri("h.example:443").body(()).unwrap();
    let status = wire.runtime.block_on(async { send.send_request(plain, false).unwrap().0.await.unwrap().status() });
    assert_eq!((status.as_u16(), rejected("method")), (405, 1));
    assert_eq!(world.route(0).connections.opened_total, 0);
}

#[test]
fn guards_stand_before_it_and_it_keeps_its_place() {
    let world_of_nobody = World::new({
        let mut policy = policy(vec![allowing(route("r", 0))], vec![upstream("u", &[nobody()])]);
        policy.routes[0].guards.breaker = Some(breaker());
        policy
    });
    let wire = Wire::new(world_of_nobody.address);
    wait_until("the breaker refuses", || wire.open(ask("websocket"), || {}).0.answer.status() == 503);
    let far = Far::new();
    let one = BulkheadConfig { calls_max: 1, waiting_max: 0, ..BulkheadConfig::default() };
    let world = world(&far, |policy| policy.routes[0].guards.bulkhead = one);
    let wire = Wire::new(world.address);
    let sides = switched(&wire, &far);
    assert_eq!(wire.open(ask("websocket"), || {}).0.answer.status(), 503);
    drop(sides);
    wait_until("it is free", || world.route(0).in_flight == 0);
    drop(switched(&wire, &far));
}

#[test]
fn faults_lie_on_its_bytes() {
    let far = Far::new();
    let world = world(&far, |_| {});
    let wire = Wire::new(world.address);
    let (mut tunnel, mut server) = switched(&wire, &far);
    tunnel.say("before");
    assert_eq!(read(&mut server, 6), "before");
    let late = Fault::Bytes { way: Way::Down, effect: Effect::ResetPeer { after: Duration::ZERO } };
    let id = world.faults.place(order("r", late, ALL)).unwrap().fault.id;
    wait_until("it is found", || world.route(0).faulted_total == 1);
    tunnel.say("up");
    assert_eq!(read(&mut server, 2), "up", "one way only");
    server.write_all(b"word").unwrap();
    assert_eq!(wire.broken(&mut tunnel), Some(Reason::CANCEL));
    assert_eq!(world.faults.remove(id).unwrap().requests, 1);
}

#[test]
fn a_stop_cuts_it_when_the_grace_is_over() {
    let far = Far::new();
    let mut world = world(&far, |policy| policy.limits.grace = Duration::from_millis(50));
    let wire = Wire::new(world.address);
    let (mut tunnel, mut server) = switched(&wire, &far);
    assert_eq!(world.stop(false), 1);
    assert!(wire.rest(&mut tunnel).is_err() && is_reset(&mut server));
    assert_eq!(named(&world.route(0).connections.ended, "cut"), 1);
}

#[test]
fn a_stop_lets_it_end() {
    let far = Far::new();
    let mut world = world(&far, |policy| policy.limits.grace = PATIENCE);
    let wire = Wire::new(world.address);
    let (mut tunnel, mut server) = switched(&wire, &far);
    let address = world.address;
    let ends = thread::spawn(move || {
        wait_until("nobody is taken on any more", || TcpStream::connect(address).is_err());
        tunnel.say("still here");
        assert_eq!(read(&mut server, 10), "still here");
        tunnel.end();
        drop(server);
        wire.rest(&mut tunnel).unwrap()
    });
    assert_eq!(world.stop(false), 0);
    assert_eq!(ends.join().unwrap(), "");
}

/// By which method, to become what, with which headers.
type Asked = (Method, Option<String>, HeaderMap);

/// An upstream of HTTP/2, which may let streams become connections; those echo.
struct Echo {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Echo {
    fn start(offers: bool, status: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, asked, connections) = (listener.local_addr().unwrap(), Arc::default(), Arc::default());
        let (of_server, count) = (Arc::clone(&asked), Arc::clone(&connections));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let asked: Arc<Mutex<Vec<Asked>>> = Arc::clone(&of_server);
                AtomicUsize::fetch_add(&count, 1, Relaxed);
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    if offers {
                        builder.enable_connect_protocol();
                    }
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let (parts, mut body) = request.into_parts();
                        let protocol = parts.extensions.get::<Protocol>().map(|protocol| protocol.as_str().to_owned());
                        asked.lock().unwrap().push((parts.method.clone(), protocol.clone(), parts.headers));
                        let answer = Response::builder().status(status).header("sec-websocket-protocol", "talk");
                        let mut says = respond.send_response(answer.body(()).unwrap(), false).unwrap();
                        if protocol.is_none() || status != 200 {
                            says.send_data(Bytes::from_static(b"plain"), true).unwrap();
                            continue;
                        }
                        tokio::spawn(async move {
                            while let Some(Ok(data)) = body.data().await {
                                let _ = body.flow_control().release_capacity(data.len());
                                let _ = says.send_data(data, false);
                            }
                            let _ = says.send_data(Bytes::from_static(b"over"), true);
                        });
                    }
                });
            }
        });
        Self { address, asked, connections, _runtime: runtime }
    }

    fn world(&self) -> World {
        let mut upstream = upstream("u", &[self.address]);
        upstream.http2 = true;
        let mut policy = policy(vec![allowing(route("r", 0))], vec![upstream]);
        policy.routes[0].guards.retry.attempts_max = 1;
        policy.routes[0].guards.breaker = Some(breaker());
        World::new(policy)
    }
}

const KEYED: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn an_upstream_of_http_2_that_offers_it_is_asked_for_it() {
    let echo = Echo::start(true, 200);
    let world = echo.world();
    let wire = Wire::new(world.address);
    let (mut tunnel, ()) = wire.open(ask("websocket"), || {});
    assert_eq!((tunnel.answer.status().as_u16(), tunnel.header("sec-websocket-protocol")), (200, Some("talk")));
    tunnel.say("hello");
    assert_eq!(wire.hear(&mut tunnel, 5).unwrap(), "hello");
    // By HTTP/1.1 too.
    let mut client = TcpStream::connect(world.address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(format!("{KEYED}early").as_bytes()).unwrap();
    let answer = head(&mut client);
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert_eq!(header(&answer, "sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(header(&answer, "upgrade").as_deref(), Some("websocket"));
    assert_eq!(read(&mut client, 5), "early");
    client.write_all(b" and late").unwrap();
    assert_eq!(read(&mut client, 9), " and late");
    assert_eq!(wire.get("/").1, b"plain");
    assert_eq!(world.route(0).connections.open, 2);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client).unwrap(), "over");
    tunnel.end();
    assert_eq!(wire.rest(&mut tunnel).unwrap(), "over");
    wait_until("both have ended", || named(&world.route(0).connections.ended, "done") == 2);
    let connections = echo.connections.load(Relaxed);
    assert_eq!((world.view)().upstreams[0].endpoints[0].connections, connections as u64, "they are kept");
    for (method, protocol, headers) in &echo.asked.lock().unwrap()[..2] {
        assert_eq!((method, protocol.as_deref()), (&Method::CONNECT, Some("websocket")));
        assert!(["sec-websocket-key", "upgrade", "connection"].iter().all(|name| !headers.contains_key(*name)));
    }
}

#[test]
fn an_upstream_of_http_2_may_refuse_it() {
    let echo = Echo::start(true, 403);
    let world = echo.world();
    let wire = Wire::new(world.address);
    let (mut refused, ()) = wire.open(ask("websocket"), || {});
    assert_eq!((refused.answer.status().as_u16(), wire.rest(&mut refused).unwrap().as_str()), (403, "plain"));
    let refused = world.client().ask(KEYED);
    assert_eq!((refused.status, refused.body.as_str()), (403, "plain"));
}

#[test]
fn an_upstream_of_http_2_that_does_not_offer_it_is_not_asked() {
    let echo = Echo::start(false, 200);
    let world = echo.world();
    let wire = Wire::new(world.address);
    for _ in 0..20 {
        let (refused, ()) = wire.open(ask("websocket"), || {});
        assert_eq!(refused.answer.status(), 502);
        assert!(refused.header("proxy-status").unwrap().contains("http_upgrade_failed"), "{:?}", refused.answer);
    }
    let refused = world.client().ask(KEYED);
    assert_eq!(refused.status, 502);
    assert!(refused.body.contains("does not offer WebSocket over HTTP/2"), "{refused:?}");
    assert_eq!(named(&world.route(0).failures, "upgrade"), 21);
    assert_eq!(wire.get("/").0, 200, "it is well, and asked for what it has");
    assert_eq!(echo.asked.lock().unwrap().len(), 1);
}
