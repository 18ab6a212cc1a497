//! Another policy under way: what goes on, what is different, and that nobody notices more than he must.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use seawall_core::drain::Target;
use seawall_core::fault::book::{Kind as FaultKind, Order, Portion, Scope, Timing};
use seawall_core::guard::breaker::BreakerConfig;
use seawall_core::guard::health::{Ask, HealthConfig};
use seawall_core::guard::outlier::OutlierConfig;
use seawall_core::journal::Kind;
use seawall_core::policy::{Fallback, Listener, Match, PathMatch, Policy};

use crate::world::{Client, Do, Server, World, answer, breaker, fixed_wait, ok, policy, route, upstream, wait_until};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// One route `r` to one upstream `u`.
fn one(server: &Server) -> Policy {
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]);
    policy.routes[0].guards.retry.attempts_max = 1;
    policy
}

#[test]
fn the_next_request_goes_by_the_new_rules_on_the_same_connection() {
    let (first, second) = (Server::start(|_, _| ok("first")), Server::start(|_, _| ok("second")));
    let world = World::new(one(&first));
    let mut client = world.client();
    assert_eq!(client.ask(GET).body, "first");
    let mut next = one(&second);
    next.routes.insert(0, route("late", 0));
    next.routes[0].matcher = Match { path: PathMatch::Exact("/late".into()), ..Match::default() };
    next.listeners[0].routes = (0..2).map(seawall_core::id::RouteId).collect();
    world.change(next);
    assert_eq!(client.ask(GET).body, "second");
    assert_eq!(client.ask("GET /late HTTP/1.1\r\nHost: h\r\n\r\n").body, "second");
    assert_eq!((world.view)().connections_total, 1);
    let routes: Vec<_> = (world.view)().routes.iter().map(|it| (it.name.clone(), it.requests_total)).collect();
    assert_eq!(routes, [("late".into(), 1), ("r".into(), 2)], "counts go on");
}

#[test]
fn who_is_being_served_is_served_to_the_end() {
    let (began, may_answer) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (of_server, of_answer) = (Arc::clone(&began), Arc::clone(&may_answer));
    let slow = Server::start(move |_, _| {
        of_server.store(true, Relaxed);
        wait_until("the policy has changed", || of_answer.load(Relaxed));
        ok("old")
    });
    let other = Server::start(|_, _| ok("new"));
    let world = World::new(one(&slow));
    let mut waiting = world.client();
    waiting.send(GET);
    wait_until("it is on its way", || began.load(Relaxed));
    let mut next = one(&other);
    next.routes[0].name = "another".into();
    next.upstreams[0].name = "other".into();
    world.change(next);
    assert_eq!(world.get("/").body, "new");
    may_answer.store(true, Relaxed);
    assert_eq!(waiting.next().unwrap().body, "old");
    assert_eq!(waiting.ask(GET).body, "new");
}

#[test]
fn what_has_not_changed_is_known_as_before() {
    let sick = Arc::new(AtomicBool::new(true));
    let of_server = Arc::clone(&sick);
    let server =
        Server::start(
            move |_, _| {
                if of_server.load(Relaxed) { answer("503 Service Unavailable", "", "sick") } else { ok("well") }
            },
        );
    let mut next = one(&server);
    next.routes[0].guards.breaker = Some(BreakerConfig { wait: fixed_wait(Duration::from_secs(60)), ..breaker() });
    let world = World::new(next.clone());
    wait_until("the breaker opens", || {
        world.get("/");
        world.route(0).breaker.state == "open"
    });
    sick.store(false, Relaxed);
    let asked = server.count();
    next.routes[0].guards.timeout = Duration::from_secs(7);
    world.change(next.clone());
    assert_eq!((world.get("/").status, world.route(0).breaker.state), (503, "open"));
    assert_eq!(server.count(), asked, "it is not asked");
    assert_eq!(world.entries(Kind::BreakerOpened).len(), 1);
    // Known of the upstream, not of the route's name.
    next.upstreams[0].name = "renamed".into();
    world.change(next);
    assert_eq!(world.get("/").body, "well");
}

#[test]
fn connections_to_endpoints_that_stay_are_kept() {
    let (server, added) = (Server::start(|_, _| ok("well")), Server::start(|_, _| ok("added")));
    let world = World::new(one(&server));
    let mut client = world.client();
    client.ask(GET);
    let mut next = one(&server);
    next.routes[0].guards.timeout = Duration::from_secs(7);
    world.change(next.clone());
    client.ask(GET);
    assert_eq!(server.seen().iter().map(|seen| seen.connection).collect::<Vec<_>>(), [0, 0]);
    next.upstreams[0] = upstream("u", &[added.address, server.address]);
    world.change(next.clone());
    wait_until("both are called", || {
        client.ask(GET);
        added.count() > 0 && server.count() > 2
    });
    assert!(server.seen().iter().all(|seen| seen.connection == 0), "and the one that stays by the old connection");
    // Another time to wait for a connection makes other connections.
    next.upstreams[0].connect_timeout += Duration::from_secs(1);
    let before = server.count();
    world.change(next);
    wait_until("it is called again", || {
        client.ask(GET);
        server.count() > before
    });
    assert_eq!(server.seen().last().unwrap().connection, 1);
}

#[test]
fn listeners_come_and_go_without_touching_others() {
    let server = Server::start(|_, _| ok("well"));
    let world = World::new(one(&server));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut stays = world.client();
    stays.ask(GET);
    let mut two = one(&server);
    two.listeners.push(Listener::new(free, two.listeners[0].routes.clone()));
    world.change(two.clone());
    assert_eq!(world.addresses(), [world.address, free]);
    let mut late = Client::new(free);
    assert_eq!((late.ask(GET).status, stays.ask(GET).status), (200, 200));

    // In another order the doors are the same.
    two.listeners.swap(0, 1);
    world.change(two.clone());
    assert_eq!((late.ask(GET).status, stays.ask(GET).status), (200, 200));

    two.listeners.remove(0);
    world.change(two);
    assert!(late.is_closed(), "a connection between two requests ends with its listener");
    wait_until("nobody listens there", || TcpStream::connect(free).is_err());
    assert_eq!(stays.ask(GET).status, 200);
    assert_eq!((world.view)().connections_total, 2);
}

#[test]
fn a_listener_that_comes_back_while_a_change_is_prepared_stays_open() {
    let server = Server::start(|_, _| ok("well"));
    let world = World::new(one(&server));
    let listener = Target::Listener(world.address);
    world.drains().drain(&listener, "works", Duration::ZERO).unwrap();
    wait_until("nobody listens there", || TcpStream::connect(world.address).is_err());
    let prepared = world.prepare(one(&server)).unwrap();
    assert!(world.resume(&listener).unwrap());
    world.put_in_force(prepared);
    assert_eq!((world.get("/").status, world.addresses()), (200, vec![world.address]));
    // Drained and closed, it stays so under another policy.
    world.drains().drain(&listener, "works", Duration::ZERO).unwrap();
    world.change(one(&server));
    wait_until("nobody listens there", || TcpStream::connect(world.address).is_err());
}

#[test]
fn a_listener_comes_back_at_once() {
    let server = Server::start(|_, _| ok("well"));
    let world = World::new(one(&server));
    let listener = Target::Listener(world.address);
    for _ in 0..20 {
        world.drains().drain(&listener, "works", Duration::ZERO).unwrap();
        assert!(world.resume(&listener).unwrap());
    }
    assert_eq!(world.get("/").status, 200);
}

#[test]
fn a_change_that_cannot_be_made_changes_nothing() {
    let (server, other) = (Server::start(|_, _| ok("old")), Server::start(|_, _| ok("new")));
    let world = World::new(one(&server));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut next = one(&other);
    let address: SocketAddr = taken.local_addr().unwrap();
    next.listeners.push(Listener::new(address, next.listeners[0].routes.clone()));
    let refused = world.try_change(next).unwrap_err();
    assert_eq!(refused.to_string(), format!("cannot listen on `{address}`"));
    assert_eq!((world.get("/").body.as_str(), world.addresses()), ("old", vec![world.address]));
}

#[test]
fn what_waits_is_delivered_by_the_new_rules_once() {
    let (dead, well) = (Server::start(|_, _| Do::Close), Server::start(|_, _| ok("taken")));
    let spooling = |server: &Server| {
        let mut policy = one(server);
        policy.routes[0].fallbacks = vec![Fallback::Spool];
        policy
    };
    let world = World::new(spooling(&dead));
    for n in 0..20 {
        assert_eq!(world.post("/", &format!("Idempotency-Key: \"k{n}\"\r\n"), "body").status, 202);
    }
    world.change(spooling(&well));
    wait_until("the spool is empty", || {
        let depth = world.store.spool.depth();
        depth.waiting + depth.leased == 0
    });
    let mut keys: Vec<_> = well.seen().iter().map(|seen| seen.header("idempotency-key").unwrap()).collect();
    keys.sort();
    let before = keys.len();
    keys.dedup();
    assert_eq!((before, keys.len()), (20, 20));
}

#[test]
fn an_endpoint_stays_as_well_or_ill_as_its_checks_say() {
    let ill = Arc::new(AtomicBool::new(true));
    let of_server = Arc::clone(&ill);
    let server = Server::start(move |_, _| {
        if of_server.load(Relaxed) { answer("500 Internal Server Error", "", "ill") } else { ok("well") }
    });
    let checked = |timeout| {
        let mut policy = one(&server);
        let every = Duration::from_millis(20);
        policy.upstreams[0].health = Some(HealthConfig { every, timeout, ..HealthConfig::default() });
        policy
    };
    let world = World::new(checked(Duration::from_secs(1)));
    let healthy = || (world.view)().upstreams[0].endpoints[0].healthy;
    wait_until("it is thought ill", || !healthy());
    let mut next = checked(Duration::from_secs(1));
    next.routes[0].guards.timeout = Duration::from_secs(7);
    world.change(next);
    assert!(!healthy(), "not forgotten");
    ill.store(false, Relaxed);
    wait_until("it is thought well", healthy);
    assert_eq!((world.entries(Kind::EndpointUnhealthy).len(), world.entries(Kind::EndpointHealthy).len()), (1, 1));
}

#[test]
fn other_checks_leave_ejections_and_counts_alone() {
    let (sick, well) =
        (Server::start(|_, _| answer("503 Service Unavailable", "", "sick")), Server::start(|_, _| ok("well")));
    let checked = |seconds| {
        let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[sick.address, well.address])]);
        policy.routes[0].guards.breaker = None;
        let (ask, every) = (Ask::Connection, Duration::from_secs(seconds));
        policy.upstreams[0].health = Some(HealthConfig { ask, every, ..HealthConfig::default() });
        policy.upstreams[0].outlier = Some(OutlierConfig { consecutive_failures: 3, ..OutlierConfig::default() });
        policy
    };
    let world = World::new(checked(50));
    let sicks = || (world.view)().upstreams[0].endpoints[0].clone();
    world.change(checked(60));
    wait_until("it is ejected by what judges it", || {
        world.get("/");
        sicks().ejected
    });
    let (asked, before) = (sick.count(), sicks());
    world.change(checked(70));
    for _ in 0..5 {
        assert_eq!(world.get("/").body, "well");
    }
    assert_eq!((sick.count(), sicks().ejected, sicks().calls_total), (asked, true, before.calls_total));
    assert_eq!(world.entries(Kind::EndpointEjected).len(), 1);
}

#[test]
fn an_endpoint_that_was_ill_by_other_checks_comes_back_slowly() {
    let (ill, well) =
        (Server::start(|_, _| answer("500 Internal Server Error", "", "ill")), Server::start(|_, _| ok("well")));
    let checked = |ask, every| {
        let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[ill.address, well.address])]);
        let every = Duration::from_millis(every);
        policy.upstreams[0].health = Some(HealthConfig { ask, every, ..HealthConfig::default() });
        policy
    };
    let world = World::new(checked(Ask::Path("/".into()), 20));
    let first = || (world.view)().upstreams[0].endpoints[0].clone();
    wait_until("it is thought ill", || !first().healthy);
    world.change(checked(Ask::Connection, 60_000));
    assert!(first().healthy && first().ramp < 1.0, "{:?}", first());
}

#[test]
fn a_fault_stays_on_the_route_of_its_name() {
    let server = Server::start(|_, _| ok("well"));
    let world = World::new(one(&server));
    let order = Order {
        owner: "ada".into(),
        scope: Scope { route: Some("r".into()), ..Scope::default() },
        portion: Portion::Every(1),
        kind: FaultKind::abort(418),
        timing: Timing::default(),
        abort_when: None,
        ttl: Some(Duration::from_secs(60)),
        seed: Some(1),
    };
    world.faults.place(order).unwrap();
    assert_eq!(world.get("/").status, 418);
    let mut next = one(&server);
    next.routes.insert(0, route("other", 0));
    next.routes[0].matcher = Match { path: PathMatch::Exact("/other".into()), ..Match::default() };
    next.listeners[0].routes = (0..2).map(seawall_core::id::RouteId).collect();
    world.change(next.clone());
    assert_eq!((world.get("/").status, world.get("/other").status), (418, 200));
    next.routes[1].name = "renamed".into();
    world.change(next);
    assert_eq!(world.get("/").status, 200);
    let ended = world.entries(Kind::FaultEnded);
    assert_eq!((ended.len(), ended[0].fields["why"].as_str()), (1, "reconfigured"));
}

#[test]
fn what_calls_of_the_old_rules_come_to_ejects_nobody_under_the_new_ones() {
    let may_answer = Arc::new(AtomicBool::new(false));
    let held = |said: fn() -> Do| {
        let may_answer = Arc::clone(&may_answer);
        Server::start(move |_, _| {
            wait_until("the policy has changed", || may_answer.load(Relaxed));
            said()
        })
    };
    let (slow, other) = (held(|| answer("503 Service Unavailable", "", "sick")), held(|| ok("well")));
    let judged = |addresses: &[SocketAddr]| {
        let mut policy = policy(vec![route("r", 0)], vec![upstream("u", addresses)]);
        policy.routes[0].guards.retry.attempts_max = 1;
        policy.upstreams[0].outlier = Some(OutlierConfig { consecutive_failures: 2, ..OutlierConfig::default() });
        policy
    };
    let world = World::new(judged(&[slow.address, other.address]));
    let mut waiting = Vec::new();
    while slow.count() < 3 {
        let mut client = world.client();
        client.send(GET);
        waiting.push(client);
        wait_until("it is there", || slow.count() + other.count() == waiting.len());
    }
    let third = Server::start(|_, _| ok("well"));
    world.change(judged(&[slow.address, other.address, third.address]));
    may_answer.store(true, Relaxed);
    let statuses: Vec<_> = waiting.iter_mut().map(|client| client.next().unwrap().status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 3, "{statuses:?}");
    assert_eq!(world.entries(Kind::EndpointEjected).len(), 0);
    assert!((world.view)().upstreams[0].endpoints.iter().all(|endpoint| !endpoint.ejected));
}

#[test]
fn nobody_is_told_of_no_route_while_a_listener_goes() {
    let server = Server::start(|_, _| ok("well"));
    let world = World::new(one(&server));
    for _ in 0..20 {
        let mut two = one(&server);
        two.listeners.push(Listener::new(([127, 0, 0, 1], 0).into(), two.listeners[0].routes.clone()));
        world.change(two);
        let address = world.addresses()[1];
        let asked = Arc::new(AtomicBool::new(false));
        let clients = (0..4).map(|_| {
            let (asked, mut client) = (Arc::clone(&asked), Client::new(address));
            std::thread::spawn(move || {
                // To the end of the connection, which comes between two answers.
                std::iter::from_fn(|| {
                    client.stream.write_all(GET.as_bytes()).ok()?;
                    asked.store(true, Relaxed);
                    client.next().map(|answer| answer.status)
                })
                .find(|status| *status != 200)
            })
        });
        let clients: Vec<_> = clients.collect();
        wait_until("they ask", || asked.load(Relaxed));
        world.change(one(&server));
        for client in clients {
            assert_eq!(client.join().unwrap(), None);
        }
    }
}
