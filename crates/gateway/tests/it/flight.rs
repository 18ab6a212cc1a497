//! Calls that are on their way when a zone is cut off, by HTTP/1 and by HTTP/2.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use seawall_core::fault::book::Way;
use seawall_core::policy::Policy;

use crate::calls::touched;
use crate::connections::{cut, zones};
use crate::h2::{Act, Frames};
use crate::tcp::{Far, named, nobody, patient, read, rest};
use crate::world::{Client, World, wait_until};

const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(20);

/// A call to the zone that will be cut off: the client, the upstream that has its head, and the node between them.
fn under_way(request: &str, tune: impl FnOnce(&mut Policy)) -> (Client, TcpStream, World) {
    let far = Far::new();
    let world = zones(nobody(), far.address(), |policy| {
        patient_and_passing_on(policy);
        tune(policy);
    });
    let mut client = Client::new(world.address);
    client.send(request);
    let mut server = far.accept();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    (client, server, world)
}

fn patient_and_passing_on(policy: &mut Policy) {
    let guards = &mut policy.routes[0].guards;
    (guards.timeout, guards.try_timeout, guards.replay_bytes_max) = (LATER, LATER, 0);
}

/// Nothing comes for a while, and the connection stands.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let read = stream.read(&mut [0]);
    *stream = patient(stream.try_clone().unwrap());
    matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nword";

#[test]
fn an_answer_to_a_call_in_flight_waits_until_the_zone_is_back() {
    for way in [Way::Down, Way::Both] {
        let (mut client, mut server, world) = under_way(GET, |_| {});
        let id = cut(&world, way);
        server.write_all(ANSWER).unwrap();
        assert!(is_silent(&mut client.stream), "{way:?}");
        wait_until("it is touched", || touched(&world, id) == (1, 1));
        world.faults.remove(id).unwrap();
        let answer = client.next().unwrap();
        assert_eq!((answer.body.as_str(), answer.must("seawall-fault")), ("word", id.to_string()));
        assert_eq!((world.route(0).faulted_total, world.route(0).failures_total), (1, 0));
    }
    let (mut client, mut server, world) = under_way(GET, |_| {});
    let id = cut(&world, Way::Up);
    server.write_all(ANSWER).unwrap();
    let answer = client.next().unwrap();
    assert_eq!((answer.body.as_str(), answer.header("seawall-fault")), ("word", None), "that way is open");
    assert_eq!(touched(&world, id), (0, 0));
}

#[test]
fn a_call_in_flight_runs_into_its_timeout() {
    let soon = |policy: &mut Policy| policy.routes[0].guards.try_timeout = Duration::from_millis(500);
    let (mut client, mut server, world) = under_way(GET, soon);
    let id = cut(&world, Way::Down);
    // A short answer whose head came before.
    server.write_all(ANSWER).unwrap();
    let answer = client.next().unwrap();
    assert_eq!((answer.status, answer.must("seawall-fault")), (504, id.to_string()), "{}", answer.head);
    assert!(answer.must("proxy-status").contains("http_response_timeout"), "{}", answer.head);
    assert_eq!((named(&world.route(0).failures, "timeout"), touched(&world, id)), (1, (1, 1)));
}

#[test]
fn the_rest_of_a_short_answer_waits_too() {
    let (mut client, mut server, world) = under_way(GET, |_| {});
    server.write_all(&ANSWER[..ANSWER.len() - 2]).unwrap();
    assert!(is_silent(&mut client.stream), "it is read whole");
    let id = cut(&world, Way::Down);
    server.write_all(&ANSWER[ANSWER.len() - 2..]).unwrap();
    assert!(is_silent(&mut client.stream));
    world.faults.remove(id).unwrap();
    assert_eq!(client.next().unwrap().body, "word");
}

#[test]
fn a_body_that_is_passed_on_stalls_until_the_zone_is_back_or_its_patience_ends() {
    const BEGIN: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n";
    const END: &[u8] = b"3\r\nend\r\n0\r\n\r\n";
    let begun = |tune: fn(&mut Policy)| {
        let (mut client, mut server, world) = under_way(GET, tune);
        server.write_all(BEGIN).unwrap();
        let mut come = String::new();
        while !come.ends_with("begin\r\n") {
            come += &read(&mut client.stream, 1);
        }
        assert!(!come.contains("seawall-fault"), "{come}");
        let id = cut(&world, Way::Down);
        server.write_all(END).unwrap();
        (client, server, world, id)
    };
    let (mut client, _server, world, id) = begun(|_| {});
    assert!(is_silent(&mut client.stream));
    assert_eq!((touched(&world, id), world.route(0).faulted_total), ((1, 1), 1));
    world.faults.remove(id).unwrap();
    assert_eq!(read(&mut client.stream, END.len()).as_bytes(), END);

    let (mut client, _server, world, id) = begun(|policy| policy.limits.body_idle_timeout = SOON);
    assert!(!rest(&mut client.stream).unwrap_or_default().contains("end"), "broken off");
    wait_until("it counts as one", || named(&world.route(0).failures, "timeout") == 1);
    assert_eq!(touched(&world, id), (1, 1));
}

const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n";

#[test]
fn a_request_that_is_passed_on_stalls_and_its_client_is_not_to_blame() {
    let (mut client, mut server, world) = under_way(POST, |_| {});
    client.send("12345");
    assert_eq!(read(&mut server, 5), "12345");
    let id = cut(&world, Way::Up);
    client.send("67890");
    assert!(is_silent(&mut server));
    assert_eq!(touched(&world, id), (1, 1));
    world.faults.remove(id).unwrap();
    assert_eq!(read(&mut server, 5), "67890");
    server.write_all(ANSWER).unwrap();
    assert_eq!(client.next().unwrap().must("seawall-fault"), id.to_string());

    let soon = |policy: &mut Policy| policy.routes[0].guards.try_timeout = Duration::from_millis(500);
    let (mut client, mut server, world) = under_way(POST, soon);
    let id = cut(&world, Way::Both);
    client.send("1234567890");
    assert!(is_silent(&mut server));
    let answer = client.next().unwrap();
    assert_eq!((answer.status, answer.must("seawall-fault")), (504, id.to_string()), "{}", answer.head);
    assert_eq!((named(&world.route(0).failures, "timeout"), touched(&world, id)), (1, (1, 1)));
}

#[test]
fn calls_by_http_2_wait_as_well() {
    let (goes_on, gate) = mpsc::channel();
    let (gate, inside) = (Mutex::new(gate), Arc::new(AtomicUsize::new(0)));
    let of_server = Arc::clone(&inside);
    let server = Frames::start(100, move |_, path, _| {
        of_server.fetch_add(1, Relaxed);
        if path == "/wait" {
            gate.lock().unwrap().recv().unwrap();
        }
        Act::Answer
    });
    let mut policy = server.policy();
    policy.upstreams[0].endpoints[0].zone = Some("there".into());
    patient_and_passing_on(&mut policy);
    let world = World::new(policy);
    let mut client = world.client();
    client.send("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it is inside", || inside.load(Relaxed) == 1);
    let id = cut(&world, Way::Down);
    goes_on.send(()).unwrap();
    assert!(is_silent(&mut client.stream));
    wait_until("it is touched", || touched(&world, id) == (1, 1));
    world.faults.remove(id).unwrap();
    let answer = client.next().unwrap();
    assert_eq!((answer.body.as_str(), answer.must("seawall-fault")), ("GET /wait 0", id.to_string()));

    client.send(POST).send("12345");
    wait_until("it is inside", || inside.load(Relaxed) == 2);
    let id = cut(&world, Way::Up);
    client.send("67890");
    assert!(is_silent(&mut client.stream));
    assert_eq!((server.count(), touched(&world, id)), (1, (1, 1)));
    world.faults.remove(id).unwrap();
    let answer = client.next().unwrap();
    assert_eq!((answer.body.as_str(), answer.must("seawall-fault")), ("POST / 10", id.to_string()));
}
