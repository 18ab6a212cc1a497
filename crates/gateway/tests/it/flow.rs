//! Bodies on their way in both directions at once, and who waits for whom.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use seawall_core::policy::Policy;

use crate::world::{PATIENCE, Server, World, ok, on_path, policy, read_message, route, upstream, wait_until};

/// More than sockets and buffers between two ends hold.
const LONG: usize = 24 << 20;

/// An upstream for one connection, played by a function.
fn playing<T: Send + 'static>(play: impl FnOnce(TcpStream) -> T + Send + 'static) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let playing = thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        play(stream)
    });
    (address, playing)
}

fn before(address: SocketAddr) -> Policy {
    let mut route = route("r", 0);
    route.guards.timeout = Duration::from_secs(20);
    route.guards.try_timeout = Duration::from_secs(20);
    let mut policy = policy(vec![route], vec![upstream("u", &[address])]);
    policy.limits.body_bytes_max = 2 * LONG as u64;
    policy
}

fn connected(world: &World) -> TcpStream {
    let stream = TcpStream::connect(world.addresses()[0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn head_of(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut piece = [0; 4_096];
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "the end came before a whole head");
        bytes.extend_from_slice(&piece[..read]);
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), bytes[end..].to_vec())
}

/// Reads so many bytes more.
fn take(stream: &mut TcpStream, bytes: usize) {
    let taken = std::io::copy(&mut stream.take(bytes as u64), &mut std::io::sink()).unwrap();
    assert_eq!(taken, bytes as u64);
}

/// Sends a whole request with a long body, and tells when not a byte of it was taken for so long: then every buffer on
/// the way is full.
fn send_long(mut stream: &TcpStream, stuck_for: Duration, stuck: &mpsc::Sender<()>) {
    stream.write_all(announced("", LONG).as_bytes()).unwrap();
    stream.set_write_timeout(Some(stuck_for)).unwrap();
    let (body, mut sent) = (vec![b'x'; LONG], 0);
    while sent < LONG {
        match stream.write(&body[sent..]) {
            Ok(bytes) => sent += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => drop(stuck.send(())),
            Err(error) => panic!("{error} after {sent} bytes"),
        }
    }
}

fn announced(headers: &str, bytes: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {bytes}\r\n\r\n")
}

#[test]
fn a_body_goes_on_after_its_answer_has_begun() {
    let (stuck, is_stuck) = mpsc::channel();
    let (address, upstream) = playing(move |mut stream| {
        let (_, begun) = head_of(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        is_stuck.recv_timeout(PATIENCE).expect("the body waits");
        take(&mut stream, LONG - begun.len());
        stream.write_all(b"4\r\ndone\r\n0\r\n\r\n").unwrap();
    });
    let world = World::new(before(address));
    let mut client = connected(&world);
    let sending = client.try_clone().unwrap();
    let sender = thread::spawn(move || send_long(&sending, Duration::from_millis(200), &stuck));
    let (head, body) = read_message(&mut client, &mut Vec::new(), false).expect("a whole answer");
    assert!(head.starts_with("HTTP/1.1 200") && body == b"done", "{head}");
    sender.join().unwrap();
    upstream.join().unwrap();
}

#[test]
fn who_reads_only_when_all_is_sent_is_not_waited_for() {
    let (address, upstream) = playing(|mut stream| {
        let (_, begun) = head_of(&mut stream);
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n").as_bytes()).unwrap();
        let mut answering = stream.try_clone().unwrap();
        let answer = thread::spawn(move || answering.write_all(&vec![b'y'; LONG]).unwrap());
        take(&mut stream, LONG - begun.len());
        answer.join().unwrap();
        stream
    });
    let world = World::new(before(address));
    let mut client = connected(&world);
    client.write_all(announced("", LONG).as_bytes()).unwrap();
    client.write_all(&vec![b'x'; LONG]).unwrap();
    let (_, body) = read_message(&mut client, &mut Vec::new(), false).expect("a whole answer");
    assert_eq!(body.len(), LONG);
    drop(upstream.join().unwrap());
}

#[test]
fn nobody_is_told_to_go_on_in_the_middle_of_an_answer() {
    let (begun, has_begun) = mpsc::channel();
    let (address, upstream) = playing(move |mut stream| {
        head_of(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n").unwrap();
        has_begun.recv_timeout(PATIENCE).expect("the answer begins");
        stream.write_all(b"2\r\ncd\r\n0\r\n\r\n").unwrap();
        // Whatever else comes until it is closed.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let world = World::new(before(address));
    let mut client = connected(&world);
    client.write_all(announced("Expect: 100-continue\r\n", 1 << 20).as_bytes()).unwrap();
    let mut come = Vec::new();
    while !come.ends_with(b"ab\r\n") {
        let mut byte = [0; 1];
        client.read_exact(&mut byte).unwrap();
        come.extend_from_slice(&byte);
    }
    begun.send(()).unwrap();
    let _ = client.read_to_end(&mut come);
    let come = String::from_utf8_lossy(&come).into_owned();
    let answer = come.split_once("HTTP/1.1 200").map_or("", |(_, answer)| answer);
    assert!(answer.ends_with("2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"), "{come}");
    assert!(!answer.contains("100 Continue"), "{come}");
    drop(world);
    upstream.join().unwrap();
}

#[test]
fn an_upstream_that_is_slow_to_take_a_body_is_not_the_clients_fault() {
    let (stuck, is_stuck) = mpsc::channel();
    let (address, upstream) = playing(move |mut stream| {
        let (_, begun) = head_of(&mut stream);
        is_stuck.recv_timeout(PATIENCE).expect("the body waits");
        take(&mut stream, LONG - begun.len());
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").unwrap();
        stream
    });
    let mut policy = before(address);
    policy.limits.body_idle_timeout = Duration::from_millis(300);
    let world = World::new(policy);
    let mut client = connected(&world);
    send_long(&client, Duration::from_millis(900), &stuck);
    let (head, body) = read_message(&mut client, &mut Vec::new(), false).expect("a whole answer");
    assert!(head.starts_with("HTTP/1.1 200") && body == b"done", "{head}");
    drop(upstream.join().unwrap());
}

#[test]
fn a_client_that_listens_may_be_silent_for_as_long_as_it_is_answered() {
    let (address, upstream) = playing(|mut stream| {
        head_of(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        // Longer than a body may be silent before it is answered, and never silent for so long.
        for _ in 0..9 {
            thread::sleep(Duration::from_millis(100));
            stream.write_all(b"1\r\nx\r\n").unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
        stream
    });
    let mut policy = before(address);
    policy.limits.body_idle_timeout = Duration::from_millis(400);
    let world = World::new(policy);
    let mut client = connected(&world);
    client.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n?\r\n").unwrap();
    let (head, body) = read_message(&mut client, &mut Vec::new(), false).expect("a whole answer");
    assert!(head.starts_with("HTTP/1.1 200") && body == b"xxxxxxxxx", "{head}");
    drop(upstream.join().unwrap());
}

#[test]
fn interim_answers_have_an_end() {
    let (address, upstream) = playing(|mut stream| {
        head_of(&mut stream);
        while stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n").is_ok() {}
    });
    let world = World::new(before(address));
    let mut client = connected(&world);
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut come = String::new();
    client.read_to_string(&mut come).unwrap();
    assert!(come.contains("HTTP/1.1 502"), "{come}");
    assert!(come.matches("HTTP/1.1 103").count() <= 32);
    upstream.join().unwrap();
}

#[test]
fn a_body_in_pieces_of_a_byte_is_whole_and_leaves_in_few() {
    let server = Server::start(|seen, _| ok(&seen.body.len().to_string()));
    let world = World::simple(&server);
    let mut client = connected(&world);
    client.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    client.write_all("1\r\nx\r\n".repeat(50_000).as_bytes()).unwrap();
    client.write_all(b"0\r\n\r\n").unwrap();
    let (_, body) = read_message(&mut client, &mut Vec::new(), false).expect("a whole answer");
    assert_eq!(body, b"50000");
}

#[test]
fn a_body_that_nobody_wanted_does_not_end_its_connection_if_it_is_there() {
    let server = Server::start(|_, _| ok("x"));
    let route = on_path(route("r", 0), "/there/");
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let mut client = world.client();
    for _ in 0..2 {
        let answer = client.ask("POST /gone HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!((answer.status, answer.header("connection")), (404, None));
    }
    client.send("POST /gone HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc");
    let answer = client.next().unwrap();
    assert_eq!((answer.status, answer.must("connection")), (404, "close".into()), "told before it is closed");
    wait_until("it is closed", || client.is_closed());
}
