//! Upstreams behind a socket in the file system.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use seawall_core::guard::health::{Ask, HealthConfig};
use seawall_core::policy::{Policy, Upstream};

use crate::tcp::{patient, rest};
use crate::world::{World, policy, read_message, route, upstream, wait_until};

fn at(path: &Path) -> Upstream {
    let mut upstream = upstream("u", &[([127, 0, 0, 1], 1).into()]);
    upstream.endpoints[0].address = format!("unix:{}", path.display());
    upstream
}

fn one(path: &Path) -> Policy {
    let mut policy = policy(vec![route("r", 0)], vec![at(path)]);
    policy.routes[0].guards.retry.attempts_max = 1;
    policy
}

/// Answers every request with its `Host` and how many bytes it brought.
fn serve(listener: UnixListener) {
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            thread::spawn(move || answer_all(stream));
        }
    });
}

fn answer_all(mut stream: UnixStream) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_message(&mut stream, &mut buffer, false) {
        let said = format!("{} {}", crate::world::header(&head, "host").unwrap_or_default(), body.len());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn requests_reach_it_and_where_nobody_is_they_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.sock");
    let world = World::new(one(&path));
    assert_eq!(world.get("/").status, 502);
    assert!(world.route(0).failures.contains(&("connect_refused", 1)));
    serve(UnixListener::bind(&path).unwrap());
    let mut client = world.client();
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h.example\r\n\r\n").body, "h.example 0");
    let long = "x".repeat(1 << 20);
    let answer = client.ask(&crate::world::post("/", "", &long));
    assert!(answer.body.ends_with(&format!(" {}", long.len())), "{}", answer.body);
}

#[test]
fn it_is_looked_after_by_the_name_of_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (told, asked) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (head, _) = read_message(&mut stream, &mut Vec::new(), false).unwrap();
        told.send(head).unwrap();
    });
    let mut policy = one(&path);
    policy.upstreams[0].health = Some(HealthConfig { ask: Ask::Path("/ready".into()), ..HealthConfig::default() });
    let _world = World::new(policy);
    let head = asked.recv_timeout(crate::world::PATIENCE).unwrap();
    assert!(head.starts_with("GET /ready ") && head.contains("host: localhost"), "{head}");
}

#[test]
fn connections_reach_it_and_end_one_side_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redis.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut policy = one(&path);
    policy.routes[0].protocol = seawall_core::policy::Protocol::Tcp;
    let world = World::new(policy);
    let mut client = patient(TcpStream::connect(world.address).unwrap());
    client.write_all(b"all of it").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut said = String::new();
    server.read_to_string(&mut said).unwrap();
    assert_eq!(said, "all of it");
    server.write_all(b"and the answer").unwrap();
    drop(server);
    assert_eq!(rest(&mut client).unwrap(), "and the answer");

    // One who is cut off behind has his client told.
    let mut client = patient(TcpStream::connect(world.address).unwrap());
    drop(listener.accept().unwrap());
    assert_eq!(rest(&mut client).unwrap(), "");
    drop(client);
    wait_until("nothing is left", || (world.view)().upstreams[0].endpoints[0].connections == 0);
}
