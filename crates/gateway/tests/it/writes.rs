//! Writes that must not be lost: kept when the upstream cannot take them, delivered later, once, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use seawall_core::journal::Kind;
use seawall_core::policy::Fallback;
use seawall_core::spool::State;
use seawall_gateway::Fate;

use crate::world::{Do, Server, World, answer, breaker, ok, policy, post, spooling, upstream, wait_until};

/// An upstream that can be made sick, and well again.
fn moody() -> (Arc<AtomicBool>, Server) {
    let well = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&well);
    let server = Server::start(move |_, _| {
        if of_server.load(Relaxed) { ok("taken") } else { answer("503 Service Unavailable", "", "sick") }
    });
    (well, server)
}

fn world_of(server: &Server) -> World {
    let mut route = spooling("events", 0);
    route.guards.retry.attempts_max = 1;
    World::new(policy(vec![route], vec![upstream("queue", &[server.address])]))
}

#[test]
fn a_write_that_cannot_be_taken_is_kept_and_delivered_later() {
    let (well, server) = moody();
    let world = world_of(&server);
    let kept = world.post("/events?x=1", "Shipment-Id: s1\r\nX-Extra: e\r\n", "payload");
    assert_eq!(kept.status, 202);
    assert!(kept.must("seawall-degraded").starts_with("spool; since=20"));
    assert!(kept.must("proxy-status").contains("answered 503"));
    let key = kept.must("idempotency-key");
    assert!(key.starts_with("\"seawall-"));
    let location = kept.must("location");
    assert!(location.starts_with("/.seawall/records/"));
    let state = world.get(&location);
    assert!(
        state.body.contains("\"state\":\"waiting\"") || state.body.contains("\"state\":\"leased\""),
        "{}",
        state.body
    );
    wait_until("the journal knows", || !world.entries(Kind::SpoolFilling).is_empty());
    well.store(true, Relaxed);
    wait_until("it is delivered", || world.get(&location).body.contains("\"state\":\"delivered\""));
    let last = server.seen().pop().unwrap();
    assert_eq!((last.line(), last.body.as_slice()), ("POST /events?x=1 HTTP/1.1", b"payload".as_slice()));
    assert_eq!(last.header("idempotency-key"), Some(key.clone()), "every try carries the same key");
    assert!(server.seen().iter().all(|seen| seen.header("idempotency-key").as_ref() == Some(&key)));
    assert_eq!(last.header("x-extra").as_deref(), Some("e"));
    assert!(last.header("seawall-record").unwrap().starts_with("events.node.1."));
    wait_until("the account knows", || world.fates() == [Fate::Spooled, Fate::Delivered]);
    wait_until("the journal knows", || !world.entries(Kind::SpoolDrained).is_empty());
    assert_eq!(world.entries(Kind::SpoolFilling).len(), 1);
}

/// Where no breaker has opened, the journal names what the calls came to; a start of the node explains nothing.
#[test]
fn what_led_to_a_reduced_answer_is_told_before_it() {
    let (well, server) = moody();
    let world = world_of(&server);
    assert_eq!(world.post("/", "", "1").status, 202);
    assert_eq!(world.post("/", "", "2").status, 202);
    wait_until("the journal knows", || !world.entries(Kind::SpoolFilling).is_empty());
    let [failing] = world.entries(Kind::CallsFailing).try_into().expect("one story, told once");
    assert_eq!((failing.subject.as_str(), failing.fields["upstream"].as_str()), ("route:events", "queue"));
    assert_eq!(failing.fields["reason"], "answered 503");
    let [degraded] = world.entries(Kind::DegradedStarted).try_into().unwrap();
    assert_eq!(degraded.cause, Some(failing.seq));
    // Whoever looks at the spool may see it fill before or after the first answer was marked.
    let filling = world.entries(Kind::SpoolFilling)[0].cause;
    assert!(filling == Some(failing.seq) || filling == Some(degraded.seq), "{filling:?}");
    well.store(true, Relaxed);
}

#[test]
fn order_is_kept_per_key_even_for_those_that_come_when_it_is_well_again() {
    let (well, server) = moody();
    let mut route = spooling("events", 0);
    route.guards.retry.attempts_max = 1;
    route.guards.breaker = Some(breaker());
    let world = World::new(policy(vec![route], vec![upstream("queue", &[server.address])]));
    for n in 0..20 {
        assert_eq!(world.post("/", &format!("Shipment-Id: s{}\r\n", n % 3), &n.to_string()).status, 202);
    }
    well.store(true, Relaxed);
    for n in 20..60 {
        let status = world.post("/", &format!("Shipment-Id: s{}\r\n", n % 3), &n.to_string()).status;
        assert!(matches!(status, 200 | 202), "{status}");
    }
    wait_until("the spool is empty", || world.store.spool.depth().waiting + world.store.spool.depth().leased == 0);
    let mut effective: Vec<Vec<usize>> = vec![Vec::new(); 3];
    let mut known = std::collections::BTreeSet::new();
    for seen in server.seen() {
        let n: usize = String::from_utf8(seen.body.clone()).unwrap().parse().unwrap();
        // The first twenty were seen once while sick; what counts is the order in which they were taken.
        if seen.header("x-request-id").is_some() && well.load(Relaxed) {
            effective[n % 3].retain(|other| *other != n);
            effective[n % 3].push(n);
        }
        known.insert(n);
    }
    assert_eq!(known.len(), 60, "nothing is missing");
    for key in effective {
        assert!(key.is_sorted(), "{key:?}");
    }
}

#[test]
fn a_key_has_one_effect() {
    let calls = Arc::new(AtomicUsize::new(0));
    let of_server = Arc::clone(&calls);
    let server = Server::start(move |seen, _| {
        of_server.fetch_add(1, Relaxed);
        if seen.line().contains("slow") {
            return Do::Wait(Duration::from_millis(500), Box::new(ok("slow")));
        }
        answer("201 Created", "X-Made: 1\r\n", "made")
    });
    let world = world_of(&server);
    let first = world.post("/a", "Idempotency-Key: \"k1\"\r\n", "x");
    assert_eq!((first.status, first.body.as_str()), (201, "made"));
    let again = world.post("/a", "Idempotency-Key: k1\r\n", "x");
    assert_eq!((again.status, again.body.as_str(), again.must("x-made").as_str()), (201, "made", "1"));
    assert_eq!(again.must("idempotency-replayed"), "true");
    assert_eq!(calls.load(Relaxed), 1);
    let other = world.post("/a", "Idempotency-Key: k1\r\n", "another payload");
    assert_eq!((other.status, other.must("proxy-status").contains("belongs to another request")), (422, true));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.post("/slow", "Idempotency-Key: k2\r\n", "x").status);
        wait_until("it is on its way", || calls.load(Relaxed) == 2);
        let busy = world.post("/slow", "Idempotency-Key: k2\r\n", "x");
        assert_eq!((busy.status, busy.must("retry-after").as_str()), (409, "1"));
        assert_eq!(slow.join().unwrap(), 200);
    });
    let bad = world.post("/a", &format!("Idempotency-Key: {}\r\n", "k".repeat(300)), "x");
    assert_eq!(bad.status, 400);
    assert_eq!(world.fates(), [Fate::Accepted, Fate::Accepted]);
}

#[test]
fn an_answer_in_chunks_is_given_again_too() {
    let server = Server::start(|seen, _| {
        let body = if seen.line().contains("cut") { "2\r\nok\r\n" } else { "2\r\nok\r\n0\r\n\r\n" };
        Do::SendAndClose(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}").into_bytes())
    });
    let world = world_of(&server);
    for replayed in [None, Some("true".to_owned())] {
        let taken = world.post("/whole", "Idempotency-Key: k\r\n", "x");
        assert_eq!((taken.status, taken.body.as_str(), taken.header("idempotency-replayed")), (200, "ok", replayed));
    }
    assert_eq!(server.count(), 1);
    for tries in [2, 3] {
        world.client().send(&post("/cut", "Idempotency-Key: c\r\n", "x")).rest();
        assert_eq!(server.count(), tries, "nothing was kept of half an answer: the upstream is asked again");
    }
}

#[test]
fn a_no_to_the_second_copy_says_nothing_about_the_first() {
    // Carries out the second request of a connection and closes without a word; says no to its copy.
    let server = Server::start(|seen, _| match (seen.line().contains("/second"), seen.connection) {
        (true, 0) => Do::Close,
        (true, _) => answer("422 Unprocessable Content", "", "I have it"),
        _ => ok("fine"),
    });
    let world = world_of(&server);
    let mut client = world.client();
    assert_eq!(client.ask(&post("/first", "", "x")).status, 200);
    assert_eq!(client.ask(&post("/second", "", "x")).status, 422);
    assert_eq!((world.route(0).resends_total, world.route(0).retries_total), (1, 0));
    assert_eq!(world.fates(), [Fate::Accepted, Fate::Indeterminate]);
}

#[test]
fn a_spooled_key_answers_the_same_when_asked_again() {
    let (_well, server) = moody();
    let world = world_of(&server);
    let first = world.post("/a", "Idempotency-Key: k1\r\n", "x");
    let again = world.post("/a", "Idempotency-Key: k1\r\n", "x");
    assert_eq!((first.status, again.status), (202, 202));
    assert_eq!(first.must("location"), again.must("location"));
    assert_eq!(first.must("seawall-degraded"), again.must("seawall-degraded"), "still reduced");
    assert_eq!(again.must("idempotency-replayed"), "true");
    assert_eq!(world.post("/a", "Idempotency-Key: k1\r\n", "y").status, 422);
    wait_until("one record is held", || {
        let depth = world.store.spool.depth();
        depth.waiting + depth.leased == 1
    });
}

#[test]
fn a_permanent_refusal_is_parked_with_the_upstreams_last_words() {
    let mode = Arc::new(AtomicUsize::new(503));
    let of_server = Arc::clone(&mode);
    let server = Server::start(move |_, _| match of_server.load(Relaxed) {
        503 => answer("503 Service Unavailable", "", "sick"),
        _ => answer("400 Bad Request", "", "field `weight` is missing"),
    });
    let world = world_of(&server);
    let kept = world.post("/", "Shipment-Id: s\r\n", "poison");
    let behind = world.post("/", "Shipment-Id: s\r\n", "behind it");
    assert_eq!((kept.status, behind.status), (202, 202));
    mode.store(400, Relaxed);
    // A parked record does not block its key. It is told once it is parked.
    wait_until("both are told", || world.entries(Kind::RecordParked).len() == 2);
    assert_eq!(world.store.spool.depth().parked, 2);
    let parked = world.block_on(world.store.spool.list(State::Parked, 10)).unwrap();
    let reason = parked[0].parked.clone().unwrap();
    assert_eq!(reason.reason, "the upstream refused it with 400 Bad Request");
    assert_eq!(reason.last_words, "field `weight` is missing");
    assert!(world.get(&kept.must("location")).body.contains("\"state\":\"parked\""));
    wait_until("the account knows", || world.fates().iter().filter(|fate| **fate == Fate::Parked).count() == 2);
}

#[test]
fn a_direct_refusal_is_the_clients_to_know_and_is_not_kept() {
    let server = Server::start(|_, _| answer("400 Bad Request", "", "no"));
    let world = world_of(&server);
    assert_eq!(world.post("/", "", "x").status, 400);
    assert_eq!(world.fates(), [Fate::Refused]);
    assert_eq!(world.store.spool.depth().waiting, 0);
}

#[test]
fn a_full_spool_says_so_and_keeps_nothing() {
    let (well, server) = moody();
    let mut route = spooling("events", 0);
    route.guards.retry.attempts_max = 1;
    route.fallbacks = vec![Fallback::Spool];
    let policy = policy(vec![route], vec![upstream("queue", &[server.address])]);
    let world = World::with_store(policy, |options| options.spool_bytes_max = 20_000);
    let body = "b".repeat(4_000);
    let statuses: Vec<u16> = (0..8).map(|_| world.post("/", "", &body).status).collect();
    assert_eq!(statuses[..3], [202; 3]);
    assert_eq!(statuses.last(), Some(&503));
    let full = world.post("/", "", &body);
    assert!(full.must("proxy-status").contains("the spool is full") && full.must("retry-after") == "5");
    wait_until("the journal knows", || !world.entries(Kind::SpoolHigh).is_empty());
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    well.store(true, Relaxed);
    wait_until("it drains", || world.store.spool.depth().waiting + world.store.spool.depth().leased == 0);
    wait_until("it takes writes again", || world.post("/", "", &body).status == 200);
    let delivered = world.fates().iter().filter(|fate| **fate == Fate::Delivered).count();
    assert_eq!(delivered, accepted);
}

#[test]
fn a_body_too_long_to_be_kept_is_passed_on_or_told() {
    let (_well, server) = moody();
    let world = world_of(&server);
    let long = "l".repeat(100 << 10);
    assert_eq!(world.post("/", "", &long).status, 503, "beyond `replay_max`: passed on as it comes, not kept");
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    let told = world.client().ask(&chunked);
    assert_eq!((told.status, told.body.contains("replay_max")), (413, true));
}

#[test]
fn ambiguous_failures_are_accounted_as_such() {
    let server = Server::start(|_, _| Do::Hang);
    let world = world_of(&server);
    let mut client = world.client();
    client.send(&post("/", "", "x"));
    wait_until("it is on its way", || server.count() == 1);
    drop(client);
    wait_until("the account says so", || world.fates() == [Fate::Indeterminate]);
}

#[test]
fn records_are_asked_for_politely() {
    let (_well, server) = moody();
    let world = world_of(&server);
    assert_eq!(world.get("/.seawall/records/999").status, 404);
    assert_eq!(world.get("/.seawall/records/x").status, 404);
    assert_eq!(world.post("/.seawall/records/1", "", "").status, 405);
}

#[test]
fn whoever_asks_again_can_ask_for_the_same_thing() {
    let server = Server::start(|_, _| Do::Close);
    let mut route = spooling("events", 0);
    route.guards.retry.attempts_max = 1;
    let policy = policy(vec![route], vec![upstream("queue", &[server.address])]);
    let world = World::with_store(policy, |options| options.spool_bytes_max = 1);
    let refused = world.post("/", "", "x");
    assert_eq!(refused.status, 503);
    assert_eq!(server.seen()[0].header("idempotency-key"), Some(refused.must("idempotency-key")));
}

#[test]
fn nothing_overtakes_by_way_of_another_upstream() {
    let (sick, other) =
        (Server::start(|_, _| Do::Reset), Server::start(|_, n| if n == 0 { Do::Reset } else { ok("x") }));
    let mut route = spooling("events", 0);
    route.guards.retry.attempts_max = 1;
    route.fallbacks = vec![Fallback::Upstream(seawall_core::id::UpstreamId(1)), Fallback::Spool];
    let upstreams = vec![upstream("queue", &[sick.address]), upstream("other", &[other.address])];
    let world = World::new(policy(vec![route], upstreams));
    let key = "Shipment-Id: s\r\n";
    assert_eq!((world.post("/", key, "1").status, world.post("/", key, "2").status), (202, 202));
}

#[test]
fn a_record_that_is_always_put_off_is_parked_in_the_end() {
    let server = Server::start(|_, _| answer("409 Conflict", "", "still busy"));
    let mut route = spooling("events", 0);
    route.delivery.attempts_max = 2;
    let world = World::new(policy(vec![route], vec![upstream("queue", &[server.address])]));
    assert_eq!(world.post("/", "", "direct").status, 409, "a direct conflict is the client's to know");
    let (well, sick) = moody();
    let mut route = spooling("events", 0);
    route.guards.retry.attempts_max = 1;
    route.delivery.attempts_max = 2;
    let world = World::new(policy(vec![route], vec![upstream("queue", &[sick.address])]));
    assert_eq!(world.post("/", "", "kept").status, 202);
    wait_until("it is parked", || world.store.spool.depth().parked == 1);
    let parked = world.block_on(world.store.spool.list(State::Parked, 1)).unwrap().remove(0).parked.unwrap();
    assert!(parked.reason.contains("the last one answered 503") && parked.last_words == "sick", "{parked:?}");
    drop(well);
}

#[test]
fn a_cut_answer_acknowledges_nothing() {
    let mode = Arc::new(AtomicUsize::new(0));
    let of_server = Arc::clone(&mode);
    let server = Server::start(move |_, _| match of_server.load(Relaxed) {
        0 => Do::Reset,
        1 => Do::SendAndClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_vec()),
        _ => ok("whole"),
    });
    let world = world_of(&server);
    let location = world.post("/", "", "x").must("location");
    mode.store(1, Relaxed);
    let asked = server.count();
    wait_until("it was asked and cut", || server.count() > asked + 1);
    assert!(!world.get(&location).body.contains("delivered"));
    mode.store(2, Relaxed);
    wait_until("it is delivered", || world.get(&location).body.contains("delivered"));
}
