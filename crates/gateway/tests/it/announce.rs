//! Whose connection it is: announced by those who are listed, told to upstreams, counted by source.

use std::io::Read as _;
use std::net::TcpListener;
use std::time::Duration;

use rustls::pki_types::ServerName;
use seawall_core::journal::Kind;
use seawall_core::policy::{Announce, Policy, Protocol};
use seawall_gateway::tls::Tls;

use crate::tls::{Authority, shows};
use crate::world::{Client, Server, World, ok, policy, route, upstream, wait_until};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const LINE: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";

fn announced(server: &Server) -> Policy {
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]);
    policy.listeners[0].announced_by = vec!["127.0.0.0/8".parse().unwrap()];
    policy.limits.header_timeout = Duration::from_millis(300);
    policy
}

fn rejected(world: &World, reason: &str) -> u64 {
    (world.view)().rejected.iter().find(|(known, _)| *known == reason).unwrap().1
}

#[test]
fn who_is_listed_must_announce_and_is_believed() {
    let server = Server::start(|_, _| ok("well"));
    let world = World::new(announced(&server));
    let mut client = world.client();
    assert_eq!(client.send(LINE).ask(GET).status, 200);
    assert_eq!(client.ask(GET).status, 200, "once for a connection");
    assert_eq!(world.client().send("PROXY UNKNOWN\r\n").ask(GET).status, 200);
    let from: Vec<_> = server.seen().iter().map(|seen| seen.header("x-forwarded-for").unwrap()).collect();
    assert_eq!(from, ["192.0.2.7", "192.0.2.7", "127.0.0.1"]);
    // Whoever does not, or takes too long, is closed without a word.
    assert_eq!(world.client().send(GET).rest(), "");
    assert_eq!(world.client().send("PROXY TCP4 192.0.2.7 ").rest(), "");
    wait_until("both are counted", || rejected(&world, "proxy_protocol") == 2);
}

#[test]
fn who_is_not_listed_speaks_no_protocol_of_ours() {
    let server = Server::start(|_, _| ok("well"));
    let mut policy = announced(&server);
    policy.listeners[0].announced_by = vec!["10.0.0.0/8".parse().unwrap()];
    let world = World::new(policy);
    assert_eq!(world.client().send(LINE).ask(GET).status, 400);
    assert_eq!((world.get("/").status, server.count()), (200, 1));
}

#[test]
fn an_announcement_comes_before_tls() {
    let authority = Authority::new();
    let server = Server::start(|_, _| ok("well"));
    let side = seawall_gateway::tls::ServerSide::new(&shows(&[&authority.pass(&["h.example"])])).unwrap();
    let world = World::sealed(announced(&server), Tls { listeners: vec![Some(side.into())], upstreams: vec![None] });
    let mut plain = world.client();
    plain.send(LINE);
    let name = ServerName::try_from("h.example").unwrap();
    let session = rustls::ClientConnection::new(authority.client(None).into(), name).unwrap();
    let mut client = Client::over(rustls::StreamOwned::new(session, plain.stream));
    assert_eq!(client.ask(GET).status, 200);
    assert_eq!(server.seen()[0].header("x-forwarded-for").as_deref(), Some("192.0.2.7"));
}

#[test]
fn an_upstream_of_connections_is_told_whose_they_are() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for announce in [Announce::Line, Announce::Frame] {
        let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[address])]);
        policy.routes[0].protocol = Protocol::Tcp;
        policy.upstreams[0].announce = Some(announce);
        policy.listeners[0].announced_by = vec!["127.0.0.1".parse().unwrap()];
        let world = World::new(policy);
        let mut client = world.client();
        client.send(LINE).send("hello");
        let (mut upstream, _) = listener.accept().unwrap();
        let port = world.address.port();
        let expected = match announce {
            Announce::Line => format!("PROXY TCP4 192.0.2.7 127.0.0.1 56324 {port}\r\nhello").into_bytes(),
            Announce::Frame => [
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\xdc\x04".as_slice(),
                &port.to_be_bytes(),
                b"hello",
            ]
            .concat(),
        };
        let mut heard = vec![0; expected.len()];
        upstream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, expected);
    }
}

#[test]
fn each_source_has_so_many_connections_and_no_more() {
    let server = Server::start(|_, _| ok("well"));
    let mut policy = announced(&server);
    policy.limits.connections_per_source = Some(2);
    let world = World::new(policy);
    let announce = |source: &str| {
        let mut client = world.client();
        let answer = client.send(&format!("PROXY TCP4 {source} 198.51.100.1 1 2\r\n")).ask(GET);
        (client, answer.status)
    };
    let held = [announce("192.0.2.1"), announce("192.0.2.1"), announce("192.0.2.2")];
    assert_eq!(held.each_ref().map(|(_, status)| *status), [200; 3]);
    let (mut refused, status) = announce("192.0.2.1");
    assert_eq!((status, refused.is_closed()), (429, true));
    let limit = |world: &World| {
        let limits = (world.view)().limits;
        let limit = limits.iter().find(|limit| limit.name == "connections_per_source").unwrap().clone();
        (limit.value, limit.reached_total)
    };
    assert_eq!((limit(&world), rejected(&world, "connections_per_source")), ((2, 1), 1));
    drop(held);
    wait_until("they are given back", || announce("192.0.2.1").1 == 200);
    wait_until("the journal knows", || !world.entries(Kind::LimitReached).is_empty());
}

#[test]
fn a_trusted_proxy_is_added_to() {
    let server = Server::start(|_, _| ok("well"));
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]);
    policy.listeners[0].trusted = vec!["127.0.0.1".parse().unwrap()];
    let world = World::new(policy.clone());
    let ask = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: https\r\n\r\n";
    assert_eq!(world.client().ask(ask).status, 200);
    policy.listeners[0].trusted = vec!["10.0.0.0/8".parse().unwrap()];
    world.change(policy);
    assert_eq!(world.client().ask(ask).status, 200);
    let seen = server.seen();
    let told = |n: usize| ["x-forwarded-for", "x-forwarded-proto"].map(|name| seen[n].header(name).unwrap());
    assert_eq!(
        (told(0), told(1)),
        (["192.0.2.9, 127.0.0.1".into(), "https".into()], ["127.0.0.1".into(), "http".into()])
    );
}
