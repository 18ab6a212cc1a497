//! A board and tries that walk past it: named cases, then chance against a model.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::fault::{Direction, Effect, Share};
use crate::policy::{Delivery, Guards, Limits, Listener, Match, Protocol, Route, Upstream};

/// Routes `events` (to `queue`, then `other`) and `quotes` (to `carrier`).
fn policy() -> Policy {
    let route = |name: &str, upstream, fallbacks| Route {
        name: name.into(),
        protocol: Protocol::Http,
        upgrades: Vec::new(),
        matcher: Match::default(),
        upstream: UpstreamId(upstream),
        guards: Guards::default(),
        fallbacks,
        order_by: None,
        delivery: Delivery::default(),
        placement: crate::policy::Placement::default(),
    };
    let upstream = |name: &str| Upstream {
        name: name.into(),
        endpoints: ENDPOINTS.to_vec(),
        health: None,
        outlier: None,
        balance: crate::balance::BalanceConfig::default(),
        connections_max: 1,
        idle_timeout: Duration::ZERO,
        connect_timeout: Duration::ZERO,
        announce: None,
        http2: false,
        host: None,
        resolver: crate::policy::Resolver::default(),
    };
    Policy {
        node: "n".into(),
        zone: "z".into(),
        zones: vec!["z".into()],
        listeners: vec![Listener::new(LISTENER, vec![RouteId(0), RouteId(1)])],
        routes: vec![
            route("events", 0, vec![Fallback::Spool, Fallback::Upstream(UpstreamId(2))]),
            route("quotes", 1, Vec::new()),
        ],
        upstreams: ["queue", "carrier", "other"].map(upstream).into(),
        limits: Limits::default(),
        digest: String::new(),
    }
}

/// There have been so many before any fault is placed.
const CONNECTIONS: u64 = 1_000;

fn book() -> Book {
    Book::new(Caps::default(), &policy(), 7)
}

#[test]
fn off_takes_everything_away_and_on_brings_nothing_back() {
    let mut book = Book::new(None, &policy(), 7);
    let order = || order(Kind::Refuse, Portion::Share(Ratio::of(1, 2).unwrap()));
    assert_eq!(put(&mut book, at(0), order()), Err(Refused::Off));
    assert_eq!(book.look(at(0)).caps, None);
    assert_eq!(book.allow(Some(Caps::default())), []);
    let id = put(&mut book, at(0), order()).unwrap();
    assert_eq!(book.allow(Some(Caps::default())), [], "nothing is different");
    assert!(book.standing_at(at(1)).any(|fault| fault.id == id));
    let gone = |gone: Vec<Fault>| gone.iter().map(|fault| fault.id).collect::<Vec<_>>();
    assert_eq!(gone(book.allow(None)), [id]);
    assert!((0..100).all(|_| book.touch(at(1), &a_try()).is_none()));
    assert_eq!(
        book.renew(at(1), id, "ada", Some(Duration::from_secs(1))),
        Err(Refused::Unknown { id: id.to_string() })
    );
    assert_eq!(book.follow(&policy()), []);
    book.allow(Some(Caps::default()));
    assert_eq!(book.standing_at(at(1)).count(), 0);
    // Under other limits it might not have been placed.
    let id = put(&mut book, at(1), order()).unwrap();
    assert_eq!(gone(book.allow(Some(Caps { count_max: 1, ..Caps::default() }))), [id]);
}

fn at(seconds: u64) -> Mono {
    Mono::from_millis(seconds * 1_000)
}

fn order(kind: Kind, portion: Portion) -> Order {
    let scope = Scope { route: Some("events".into()), ..Scope::default() };
    let ttl = Some(Duration::from_secs(60));
    Order {
        owner: "ada".into(),
        scope,
        portion,
        kind,
        timing: Timing::default(),
        abort_when: None,
        ttl,
        seed: Some(42),
    }
}

fn put(book: &mut Book, now: Mono, order: Order) -> Result<Id, Refused> {
    book.place(now, order, CONNECTIONS, &mut Prng::new(1)).map(|fault| fault.id)
}

fn no_header(_: &str, _: &str) -> bool {
    false
}

/// A try of `events` to its own upstream.
fn a_try() -> Try<'static> {
    Try {
        generation: 0,
        route: RouteId(0),
        upstream: UpstreamId(0),
        endpoint: &ENDPOINTS[0],
        client: Some(Client { listener: LISTENER, source: SOURCE, connection: CONNECTIONS }),
        method: "POST",
        path: "/events/1",
        has_header: &no_header,
        carries: Carries::Call,
        touched: &[],
    }
}

const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

/// Of every upstream.
static ENDPOINTS: LazyLock<[Endpoint; 2]> = LazyLock::new(|| {
    let endpoint = |address: &str, zone: &str, version: &str| Endpoint {
        zone: Some(zone.into()),
        version: Some(version.into()),
        ..Endpoint::at(address)
    };
    [endpoint("a:80", "z", "v1"), endpoint("b:80", "y", "v2")]
});

fn hits(book: &mut Book, tries: usize) -> Vec<bool> {
    (0..tries).map(|_| book.touch(at(1), &a_try()).is_some()).collect()
}

#[test]
fn an_empty_book_touches_nothing() {
    assert_eq!(book().touch(Mono::ZERO, &a_try()), None);
}

#[test]
fn a_lease_that_is_not_renewed_ends_at_its_moment_and_not_before() {
    let mut book = book();
    let id = put(&mut book, at(0), order(Kind::Hang, Portion::Every(2))).unwrap();
    assert_eq!(book.until(at(59), id), Some(at(60)));
    let mut touched_at = |now| (0..2).any(|_| book.touch(now, &a_try()).is_some());
    let last = Mono::from_nanos(at(60).as_nanos() - 1);
    assert!(touched_at(last) && !touched_at(at(60)), "nobody has taken it down, and it decides nothing");
    assert_eq!(book.standing_at(at(60)).count(), 0);
    assert_eq!(
        book.renew(at(60), id, "ada", Some(Duration::from_secs(1))),
        Err(Refused::Unknown { id: id.to_string() })
    );
    let gone = book.expire(at(60));
    assert_eq!((gone.len(), gone[0].id, gone[0].requests), (1, id, 1));
    assert!(book.expire(at(60)).is_empty() && book.look(at(60)).ended.len() == 1);
}

#[test]
fn an_owner_renews_and_nobody_else_does() {
    let mut book = book();
    let id = put(&mut book, at(0), order(Kind::Refuse, Portion::First(1))).unwrap();
    let ttl = Some(Duration::from_secs(60));
    let refused = book.renew(at(30), id, "bob", ttl).unwrap_err();
    assert_eq!(refused, Refused::NotOwner { id, owner: "ada".into() });
    assert_eq!((refused.field(), book.until(at(30), id)), (Some("owner"), Some(at(60))));
    assert_eq!(book.renew(at(30), id, "ada", ttl).unwrap().until, at(90));
    assert_eq!(book.renew(at(31), id, "ada", Some(Duration::from_secs(10))).unwrap().until, at(41), "from now on");
    assert!(matches!(book.renew(at(31), id, "ada", None), Err(Refused::Invalid { field: "ttl", .. })));
    assert_eq!(book.until(at(31), id), Some(at(41)), "a refusal changes nothing");
}

#[test]
fn the_kill_switch_takes_all_and_lets_none_in() {
    let mut book = book();
    put(&mut book, at(0), order(Kind::Refuse, Portion::First(1))).unwrap();
    put(&mut book, at(0), order(Kind::Hang, Portion::First(1))).unwrap();
    assert_eq!(book.kill("pager", Some(Seq(5))).len(), 2);
    assert_eq!(book.touch(at(0), &a_try()), None);
    let refused = put(&mut book, at(0), order(Kind::Cut, Portion::First(1))).unwrap_err();
    assert_eq!(refused, Refused::Killed { reason: "pager".into() });
    assert!(book.kill("again", None).is_empty());
    assert_eq!(book.release(), Some(Killed { reason: "pager".into(), told: Some(Seq(5)) }));
    assert_eq!(book.release(), None);
    assert!(put(&mut book, at(0), order(Kind::Cut, Portion::First(1))).is_ok());
}

#[test]
fn what_cannot_be_placed_is_told_with_its_field_and_what_would_be_right() {
    let share = |percent: u64| Portion::Share(Ratio::of(percent, 100).unwrap());
    let good = order(Kind::Swallow, share(50));
    let scoped = |scope: Scope| Order { scope, ..good.clone() };
    let named = |route: Option<&str>, upstream: Option<&str>| {
        scoped(Scope { route: route.map(Into::into), upstream: upstream.map(Into::into), ..Scope::default() })
    };
    let narrowed = |change: fn(&mut Scope)| {
        let mut order = good.clone();
        change(&mut order.scope);
        order
    };
    let kind = |kind| Order { kind, ..good.clone() };
    let timing = |timing| Order { timing, ..good.clone() };
    let always = Timing::default();
    let aborting = |percent, millis, requests_min| {
        let (failed_max, over) = (Ratio::of(percent, 100).unwrap(), Duration::from_millis(millis));
        Order { abort_when: Some(AbortWhen { failed_max, over, requests_min }), ..good.clone() }
    };
    let latency = |delay| {
        let (of, jitter, spread) = (Moment::Head, Duration::ZERO, Spread::Even);
        Kind::Latency { of, delay: Duration::from_millis(delay), jitter, spread }
    };
    let brief = |of, delay, jitter| {
        let (delay, jitter) = (Duration::from_micros(delay), Duration::from_micros(jitter));
        Kind::Latency { of, delay, jitter, spread: Spread::Even }
    };
    let portion = |portion| Order { portion, ..good.clone() };
    let ttl = |ttl: Option<u64>| Order { ttl: ttl.map(Duration::from_secs), ..good.clone() };
    let ms = Duration::from_millis;
    let cases = [
        (named(Some("event"), None), "route", "events, quotes"),
        (named(None, Some("que")), "upstream", "queue, carrier, other"),
        (named(None, None), "route", "events, quotes"),
        (named(Some("events"), Some("carrier")), "upstream", "queue, other"),
        (portion(share(51)), "share", "more than 0%, at most 50%"),
        (portion(share(0)), "share", "more than 0%, at most 50%"),
        (portion(Portion::First(0)), "first", "1 to 1000"),
        (portion(Portion::First(1_001)), "first", "1 to 1000"),
        (portion(Portion::Every(1)), "every", "2 or more"),
        (portion(Portion::Every(0)), "every", "2 or more"),
        (ttl(None), "ttl", "more than 0s, at most 15m"),
        (ttl(Some(0)), "ttl", "more than 0s, at most 15m"),
        (ttl(Some(901)), "ttl", "more than 0s, at most 15m"),
        (kind(Kind::abort(200)), "kind", "400 to 599"),
        (kind(Kind::abort(600)), "kind", "400 to 599"),
        (narrowed(|scope| scope.path = Some("/a?b=1".into())), "path", "/orders, /orders/7"),
        (narrowed(|scope| scope.path_prefix = Some("/a#b".into())), "path_prefix", "/, /orders/"),
        (kind(brief(Moment::Body, 500, 500)), "kind", "a delay or a jitter of 1ms or more"),
        (kind(latency(0)), "kind", "a delay or a jitter above 0s, each at most 10m"),
        (kind(latency(600_001)), "kind", "a delay or a jitter above 0s, each at most 10m"),
        (kind(Kind::Bandwidth { bytes_per_second: 0 }), "kind", "1B or more; `hang` for none"),
        (kind(Kind::Abort { status: 503, retry: Some(RetryAfter::Ago(2 * DATE_MAX)) }), "kind", "at most 366d"),
        (kind(Kind::Grpc { code: 0 }), "kind", "1 to 16"),
        (kind(Kind::Corrupt { share: Ratio::ZERO }), "kind", "more than 0%"),
        (kind(Kind::HugeHead { bytes: HEAD_BYTES_MAX + 1 }), "kind", "1B to 1MiB"),
        (portion(Portion::Connections(Ratio::ONE)), "connections", "more than 0%, at most 50%"),
        (timing(Timing { after: ms(600_001), ..always }), "after", "more than 0s, at most 10m"),
        (timing(Timing { lasts: Some(ms(0)), ..always }), "lasts", "more than 0s, at most 10m"),
        (timing(Timing { flap: Some(Flap { on: ms(1), off: ms(0) }), ..always }), "flap", "more than 0s, at most 10m"),
        (aborting(100, 1_000, 1), "abort_when", "`failed`: less than 100%"),
        (aborting(10, 0, 1), "abort_when", "`over`: at most 1m"),
        (aborting(10, 60_001, 1), "abort_when", "`over`: at most 1m"),
        (aborting(10, 1_000, 0), "abort_when", "`requests_min`: 1 or more"),
        (narrowed(|scope| scope.endpoint = Some("c:80".into())), "endpoint", "a:80, b:80"),
        (narrowed(|scope| scope.zone = Some("x".into())), "zone", "z, y"),
        (narrowed(|scope| scope.version = Some("v3".into())), "version", "v1, v2"),
        (narrowed(|scope| scope.listener = Some(SocketAddr::new(SOURCE, 1))), "listener", "127.0.0.1:0"),
        (narrowed(|scope| scope.path = Some("orders".into())), "path", "/orders, /orders/7"),
        (
            narrowed(|scope| (scope.path, scope.path_prefix) = (Some("/a".into()), Some("/".into()))),
            "path",
            "path, path_prefix",
        ),
        (Order { owner: " ".into(), ..good.clone() }, "owner", "1 to 256 characters of one line"),
        (Order { owner: "a\nb".into(), ..good.clone() }, "owner", "1 to 256 characters of one line"),
        (narrowed(|scope| scope.method = Some("G T".into())), "method", "GET, POST, PUT"),
        (narrowed(|scope| scope.path_prefix = Some("orders".into())), "path_prefix", "/, /orders/"),
        (narrowed(|scope| scope.header = Some(("X-A".into(), "1".into()))), "header", "x-tenant"),
        (
            narrowed(|scope| scope.header = Some(("x-a".into(), String::new()))),
            "header",
            "1 to 256 characters of one line",
        ),
    ];
    let mut book = book();
    for (order, wanted, right) in cases {
        match put(&mut book, at(0), order.clone()) {
            Err(Refused::Invalid { field, allowed, message }) => {
                assert_eq!((field, allowed.join(", ").as_str()), (wanted, right), "{message}");
            }
            other => panic!("{order:?}: {other:?}"),
        }
    }
    assert_eq!(book.standing_at(at(0)).count(), 0, "nothing was placed on the way");
    assert_eq!(put(&mut book, at(0), good).unwrap().to_string(), "f7-1", "and no number was used up");
}

#[test]
fn no_more_than_the_cap_and_none_twice() {
    let mut book = book();
    let kinds = [Kind::Hang, Kind::Refuse, Kind::Swallow, Kind::Cut];
    let paths = ["/a", "/b"];
    for (kind, path) in kinds.iter().flat_map(|kind| paths.map(|path| (*kind, path))) {
        let mut order = order(kind, Portion::First(1));
        order.scope.path_prefix = Some(path.into());
        put(&mut book, at(0), order.clone()).unwrap();
        let same = put(&mut book, at(0), order).unwrap_err();
        assert!(matches!(same, Refused::Same { .. }) && same.field() == Some("kind"), "{same}");
    }
    let one_more = order(Kind::abort(503), Portion::First(1));
    assert_eq!(put(&mut book, at(0), one_more.clone()), Err(Refused::TooMany { count_max: 8 }));
    assert!(put(&mut book, at(60), one_more).is_ok(), "those that have run out take no place, taken down or not");
}

#[test]
fn faults_that_may_meet_the_same_requests_share_the_cap() {
    let share = |percent: u64| Portion::Share(Ratio::of(percent, 100).unwrap());
    let mut book = book();
    put(&mut book, at(0), order(Kind::Hang, share(30))).unwrap();
    let narrowed = |kind, portion, change: fn(&mut Scope)| {
        let mut order = order(kind, portion);
        change(&mut order.scope);
        order
    };
    let too_much = [
        (order(Kind::Cut, share(21)), "share"),
        (order(Kind::Cut, Portion::Every(4)), "every"),
        (narrowed(Kind::Hang, share(21), |scope| scope.path_prefix = Some("/".into())), "share"),
        (narrowed(Kind::Cut, share(21), |scope| (scope.route, scope.upstream) = (None, Some("queue".into()))), "share"),
    ];
    for (order, wanted) in too_much {
        match put(&mut book, at(0), order) {
            Err(Refused::Invalid { field, allowed, .. }) => {
                assert_eq!((field, allowed[0].as_str()), (wanted, "at most 20%"));
            }
            other => panic!("{other:?}"),
        }
    }
    type Change = fn(&mut Scope);
    let apart: [(Change, Change); 6] = [
        (|scope| scope.endpoint = Some("a:80".into()), |scope| scope.endpoint = Some("b:80".into())),
        (|scope| scope.zone = Some("z".into()), |scope| scope.zone = Some("y".into())),
        (|scope| scope.version = Some("v1".into()), |scope| scope.version = Some("v2".into())),
        (|scope| scope.source = "10.0.0.0/8".parse().ok(), |scope| scope.source = "11.0.0.0/8".parse().ok()),
        (|scope| scope.path = Some("/a".into()), |scope| scope.path = Some("/b".into())),
        (|scope| scope.path = Some("/a".into()), |scope| scope.path_prefix = Some("/b".into())),
    ];
    for (one, other) in apart {
        let mut book = self::book();
        put(&mut book, at(0), narrowed(Kind::Hang, share(50), one)).unwrap();
        put(&mut book, at(0), narrowed(Kind::Cut, share(50), other)).unwrap();
        assert!(put(&mut book, at(0), narrowed(Kind::Refuse, share(1), one)).is_err(), "the same again");
    }
    // Others' requests, and the first few, are no part of it.
    put(&mut book, at(0), narrowed(Kind::Hang, share(50), |scope| scope.route = Some("quotes".into()))).unwrap();
    put(&mut book, at(0), order(Kind::Refuse, Portion::First(9))).unwrap();
    put(&mut book, at(0), narrowed(Kind::Cut, share(20), |scope| scope.method = Some("GET".into()))).unwrap();
    put(&mut book, at(0), narrowed(Kind::Cut, share(20), |scope| scope.method = Some("PUT".into()))).unwrap();
    assert!(put(&mut book, at(60), order(Kind::Cut, share(50))).is_ok(), "what has run out counts no more");
}

#[test]
fn a_removed_fault_is_gone_and_its_name_with_it() {
    let mut book = book();
    let id = put(&mut book, at(0), order(Kind::Refuse, Portion::First(9))).unwrap();
    assert_eq!(hits(&mut book, 2), [true, true]);
    let gone = book.remove(at(1), id).unwrap();
    assert_eq!((gone.tries, gone.requests, gone.seen), (2, 2, 2));
    assert!(!hits(&mut book, 1)[0]);
    assert_eq!(book.remove(at(1), id), Err(Refused::Unknown { id: "f7-1".into() }));
    let next = put(&mut book, at(1), order(Kind::Refuse, Portion::First(9))).unwrap();
    assert_ne!(id, next);
    assert_eq!(next.to_string().parse(), Ok(next));
    for odd in ["f7", "7-2", "f7-x", "f07-2", "f7-+2", ""] {
        assert_eq!(odd.parse::<Id>(), Err(Refused::Unknown { id: odd.into() }));
    }
}

#[test]
fn only_what_is_in_scope_is_seen() {
    let has = |name: &str, value: &str| (name, value) == ("x-tenant", "acme");
    let full = Scope {
        route: Some("events".into()),
        upstream: None,
        method: Some("POST".into()),
        path_prefix: Some("/events".into()),
        header: Some(("x-tenant".into(), "acme".into())),
        endpoint: Some("a:80".into()),
        zone: Some("z".into()),
        version: Some("v1".into()),
        listener: Some(LISTENER),
        source: Some("10.0.0.0/8".parse().unwrap()),
        path: None,
    };
    let fits = Try { has_header: &has, ..a_try() };
    let client = Client { listener: LISTENER, source: SOURCE, connection: 0 };
    let others = [
        Try { route: RouteId(1), upstream: UpstreamId(1), ..fits },
        // Another route to the same upstream.
        Try { route: RouteId(1), ..fits },
        // What stands in for the route's own upstream is not its own.
        Try { upstream: UpstreamId(2), ..fits },
        Try { method: "GET", ..fits },
        Try { path: "/event", ..fits },
        Try { has_header: &no_header, ..fits },
        Try { endpoint: &ENDPOINTS[1], ..fits },
        Try { endpoint: &Endpoint { zone: None, ..ENDPOINTS[0].clone() }, ..fits },
        Try { endpoint: &Endpoint { version: None, ..ENDPOINTS[0].clone() }, ..fits },
        Try { client: None, ..fits },
        Try { client: Some(Client { listener: SocketAddr::new(SOURCE, 0), ..client }), ..fits },
        Try { client: Some(Client { source: LISTENER.ip(), ..client }), ..fits },
    ];
    let mut book = book();
    put(&mut book, at(0), Order { scope: full, ..order(Kind::Hang, Portion::First(9)) }).unwrap();
    for other in others {
        assert_eq!(book.touch(at(1), &other), None);
    }
    assert_eq!(book.standing_at(at(1)).next().unwrap().seen, 0);
    assert_eq!(book.touch(at(1), &fits).map(|touch| touch.act), Some(Act::Hang));
    // An upstream's is met whoever calls it, also where it stands in.
    let upstream = Scope { upstream: Some("other".into()), ..Scope::default() };
    put(&mut book, at(0), Order { scope: upstream, ..order(Kind::Cut, Portion::First(9)) }).unwrap();
    let stands_in = Try { upstream: UpstreamId(2), ..a_try() };
    assert_eq!(book.touch(at(1), &stands_in).map(|touch| touch.act), Some(Act::Cut));
    assert_eq!(book.touch(at(1), &Try { route: RouteId(1), ..stands_in }).map(|touch| touch.act), Some(Act::Cut));
}

#[test]
fn the_first_few_and_each_nth() {
    let mut first = book();
    put(&mut first, at(0), order(Kind::Hang, Portion::First(2))).unwrap();
    assert_eq!(hits(&mut first, 4), [true, true, false, false]);
    let mut every = book();
    put(&mut every, at(0), order(Kind::Hang, Portion::Every(3))).unwrap();
    assert_eq!(hits(&mut every, 6), [false, false, true, false, false, true]);
}

#[test]
fn a_share_of_connections_is_all_of_some_and_none_of_the_others() {
    let order = order(Kind::Hang, Portion::Connections(Ratio::of(30, 100).unwrap()));
    let chosen = |before: u64, tries: usize| {
        let mut book = book();
        book.place(at(0), order.clone(), before, &mut Prng::new(1)).unwrap();
        let client = |connection| Client { listener: LISTENER, source: SOURCE, connection: before + connection };
        let mut is_hit = |connection| {
            let it = Try { client: Some(client(connection)), ..a_try() };
            let hits = (0..tries).filter(|_| book.touch(at(1), &it).is_some()).count();
            assert!(hits == 0 || hits == tries, "{hits} of {tries} of one connection");
            hits > 0
        };
        let chosen: Vec<u64> = (0..1_000).filter(|connection| is_hit(*connection)).collect();
        assert_eq!(book.touch(at(1), &Try { client: None, ..a_try() }), None, "no connection, no share of them");
        chosen
    };
    let some = chosen(0, 3);
    assert!((250..350).contains(&some.len()), "{}", some.len());
    assert_eq!(chosen(77, 1), some, "counted from where it was placed, the same ones are chosen again");
}

#[test]
fn only_calls_of_grpc_have_a_status_of_it() {
    let mut book = book();
    put(&mut book, at(0), order(Kind::Grpc { code: 14 }, Portion::First(9))).unwrap();
    assert_eq!(book.touch(at(1), &a_try()), None);
    assert_eq!(book.standing_at(at(1)).next().unwrap().seen, 0);
    let of_grpc = Try { carries: Carries::Grpc, ..a_try() };
    assert_eq!(book.touch(at(1), &of_grpc).map(|touch| touch.act), Some(Act::Grpc(14)));
}

#[test]
fn a_path_is_that_path_and_no_other() {
    let mut book = book();
    let mut exact = order(Kind::Hang, Portion::First(9));
    exact.scope.path = Some("/events/1".into());
    put(&mut book, at(0), exact).unwrap();
    assert_eq!(book.touch(at(1), &Try { path: "/events/12", ..a_try() }), None);
    assert!(book.touch(at(1), &a_try()).is_some());
}

#[test]
fn each_kind_makes_its_own_of_a_try() {
    let (delay, jitter) = (Duration::from_millis(5), Duration::ZERO);
    let late = |of| Kind::Latency { of, delay, jitter, spread: Spread::Tail };
    let mut prng = Prng::new(1);
    let mut act = |kind: Kind| kind.act(&mut prng).unwrap();
    for of in [Moment::Request, Moment::Head, Moment::Body] {
        assert_eq!(act(late(of)), Act::Delay(of, delay));
    }
    let share = Ratio::of(1, 100).unwrap();
    let slow = act(Kind::Bandwidth { bytes_per_second: 7 });
    assert!(matches!(slow, Act::Body(Effect::Bandwidth { bytes_per_second: 7 }, _)), "{slow:?}");
    let corrupt = act(Kind::Corrupt { share });
    assert!(matches!(corrupt, Act::Body(Effect::Corrupt { share: told }, _) if told == share), "{corrupt:?}");
    let retry = Some(RetryAfter::Seconds(9));
    assert_eq!(act(Kind::Abort { status: 503, retry }), Act::Abort(503, retry));
    let words = [Act::Refuse, Act::Hang, Act::Swallow, Act::Cut, Act::Short, Act::Long];
    assert_eq!(Kind::WORDS[..6].iter().map(|kind| act(*kind)).collect::<Vec<_>>(), words);
    assert!(matches!(act(Kind::GarbledHead), Act::GarbledHead(_)));
    assert_eq!([act(Kind::HugeHead { bytes: 5 }), act(Kind::Duplicate)], [Act::HugeHead(5), Act::Duplicate]);
    let toxic = on_body(Effect::Noop);
    assert_eq!((toxic.direction, toxic.share), (Direction::Downstream, Share::ALL));
}

#[test]
fn a_tail_is_short_mostly_and_long_now_and_then() {
    let mut prng = Prng::new(3);
    let jitter = Duration::from_millis(100);
    let drawn: Vec<f64> = (0..10_000).map(|_| Spread::Tail.draw(jitter, &mut prng).as_secs_f64() * 10.0).collect();
    let mean = drawn.iter().sum::<f64>() / 10_000.0;
    let above = |bound: f64| drawn.iter().filter(|draw| **draw > bound).count();
    assert!((0.95..1.05).contains(&mean), "{mean}");
    // By the law of it: a part of 1/e, then of e^-3, and nothing beyond ten.
    assert!((3_500..3_850).contains(&above(1.0)) && (400..600).contains(&above(3.0)) && above(10.0) == 0);
}

/// What [`Timing`] says of each tenth of a second: at work, or not.
fn beats(timing: Timing, tenths: u64) -> String {
    let is_on = |tenth: u64| timing.left(Duration::from_millis(tenth * 100)).is_some();
    (0..tenths).map(|tenth| if is_on(tenth) { '#' } else { '.' }).collect()
}

#[test]
fn later_for_a_while_on_and_off() {
    let ms = Duration::from_millis;
    let flap = Some(Flap { on: ms(200), off: ms(300) });
    let always = Timing::default();
    assert_eq!(beats(always, 5), "#####");
    assert_eq!(beats(Timing { after: ms(200), ..always }, 5), "..###");
    assert_eq!(beats(Timing { lasts: Some(ms(300)), ..always }, 5), "###..");
    assert_eq!(beats(Timing { flap, ..always }, 12), "##...##...##");
    assert_eq!(beats(Timing { after: ms(100), lasts: Some(ms(600)), flap }, 12), ".##...#.....");
    assert_eq!(always.left(ms(1)), Some(Duration::MAX));
    assert_eq!(Timing { flap, ..always }.left(ms(550)), Some(ms(150)), "and then it is off");
    assert_eq!(Timing { lasts: Some(ms(600)), flap, ..always }.left(ms(550)), Some(ms(50)));
}

#[test]
fn who_waits_for_a_fault_that_flaps_waits_until_it_is_off() {
    let mut book = book();
    let flap = Some(Flap { on: Duration::from_secs(2), off: Duration::from_secs(3) });
    let timing = Timing { after: Duration::from_secs(1), flap, ..Timing::default() };
    let id = put(&mut book, at(10), Order { timing, ..order(Kind::Hang, Portion::First(9)) }).unwrap();
    let untils = [10, 11, 12, 13, 15, 16, 66, 67, 70].map(|now| book.until(at(now), id));
    assert_eq!(untils, [None, Some(at(13)), Some(at(13)), None, None, Some(at(18)), Some(at(68)), Some(at(68)), None]);
    assert_eq!([10, 12, 13, 16].map(|now| book.touch(at(now), &a_try()).is_some()), [false, true, false, true]);
    assert_eq!(book.standing_at(at(13)).next().unwrap().seen, 2, "what comes by meanwhile is not seen");
}

/// A policy whose second route carries connections, and a fault on the bytes of a connection of it.
fn of_connections(deny: Vec<Deny>) -> Book {
    let mut policy = policy();
    policy.routes[1].protocol = Protocol::Tcp;
    Book::new(Caps { share_max: Ratio::ONE, deny, ..Caps::default() }, &policy, 7)
}

fn on_quotes(kind: Kind, portion: Portion) -> Order {
    Order { scope: Scope { route: Some("quotes".into()), ..Scope::default() }, ..order(kind, portion) }
}

const LATE: Kind = bytes(Way::Down, Effect::Latency { delay_ms: 50, jitter: Duration::ZERO });

const fn bytes(way: Way, effect: Effect) -> Kind {
    Kind::Bytes { way, effect }
}

/// The `number`-th connection of `quotes` since the fault was placed.
fn connection(number: u64) -> Try<'static> {
    let client = Client { listener: LISTENER, source: SOURCE, connection: CONNECTIONS + number };
    Try { client: Some(client), carries: Carries::Connection, method: "", path: "", ..a_try() }
}

fn exposed(book: &mut Book, now: u64, it: &Try<'_>, fates: &mut Vec<(Id, bool)>) -> Exposure {
    book.expose(at(now), ("quotes", "carrier"), it, fates)
}

#[test]
fn a_connection_is_exposed_to_what_chooses_it_for_as_long_as_that_lies_there() {
    let mut book = of_connections(Vec::new());
    let id = put(&mut book, at(0), on_quotes(LATE, Portion::First(1))).unwrap();
    book.tell(id, Seq(9));
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let exposure = exposed(&mut book, 1, &connection(0), &mut first);
    assert_eq!((exposure.touched.as_slice(), exposure.told.as_slice()), (&[id][..], &[Seq(9)][..]));
    assert_eq!((exposure.toxics.len(), exposure.until), (1, Some(at(60))));
    assert_eq!((exposure.toxics[0].direction, exposure.toxics[0].share), (Direction::Downstream, Share::ALL));
    assert_eq!(exposed(&mut book, 1, &connection(1), &mut second).toxics, [], "one was enough");
    let again = exposed(&mut book, 2, &connection(0), &mut first);
    assert_eq!((again.toxics, again.touched), (exposure.toxics, Vec::new()), "once and for all");
    let fault = book.standing_at(at(2)).next().unwrap();
    assert_eq!((fault.seen, fault.tries, fault.requests), (2, 1, 1));
    assert_eq!(exposed(&mut book, 60, &connection(0), &mut first), Exposure::default());
    book.remove(at(3), id).unwrap();
    assert_eq!(exposed(&mut book, 3, &connection(0), &mut first), Exposure::default());
    assert!(first.is_empty(), "what is gone is forgotten");
    assert_eq!(book.touch(at(1), &Try { route: RouteId(1), upstream: UpstreamId(1), ..connection(2) }), None);
}

#[test]
fn another_policy_counts_by_names_for_a_connection_that_stands() {
    let mut book = of_connections(Vec::new());
    put(&mut book, at(0), on_quotes(LATE, Portion::Every(1))).unwrap();
    let mut next = policy();
    next.routes[1].protocol = Protocol::Tcp;
    next.routes.swap(0, 1);
    assert!(book.follow(&next).is_empty());
    assert_eq!(exposed(&mut book, 1, &connection(0), &mut Vec::new()).toxics.len(), 1);
    let elsewhere = book.expose(at(1), ("events", "carrier"), &connection(0), &mut Vec::new());
    assert_eq!(elsewhere, Exposure::default());
}

#[test]
fn bytes_are_harmed_while_a_fault_is_on_and_the_moments_of_change_are_told() {
    let mut book = of_connections(Vec::new());
    let flap = Some(Flap { on: Duration::from_secs(2), off: Duration::from_secs(3) });
    let timing = Timing { after: Duration::from_secs(1), lasts: Some(Duration::from_secs(8)), flap };
    put(&mut book, at(0), Order { timing, ..on_quotes(bytes(Way::Both, Effect::Noop), Portion::Every(1)) }).unwrap();
    let mut fates = Vec::new();
    let mut look = |now| {
        let exposure = exposed(&mut book, now, &connection(0), &mut fates);
        (exposure.toxics.len(), exposure.until.map(Mono::as_millis))
    };
    let until = |seconds: u64| Some(seconds * 1_000);
    let looks = [look(0), look(1), look(2), look(3), look(5), look(6), look(8), look(9)];
    let wanted = [
        (0, until(1)),
        (2, until(3)),
        (2, until(3)),
        (0, until(6)),
        (0, until(6)),
        (2, until(8)),
        (0, until(11)),
        (0, until(60)),
    ];
    assert_eq!(looks, wanted);
    assert_eq!(Timing::default().turns(Duration::from_secs(1)), None, "always is for ever");
}

#[test]
fn the_same_seed_and_order_of_connections_names_the_same_chance() {
    let name = |before: u64, number: u64| {
        let mut book = of_connections(Vec::new());
        book.place(at(0), on_quotes(LATE, Portion::Every(1)), before, &mut Prng::new(1)).unwrap();
        let client = Client { listener: LISTENER, source: SOURCE, connection: before + number };
        let it = Try { client: Some(client), ..connection(0) };
        exposed(&mut book, 1, &it, &mut Vec::new()).toxics[0].id.clone()
    };
    assert_eq!(name(0, 3), name(500, 3));
    assert_ne!(name(0, 3), name(0, 4));
}

#[test]
fn calls_that_may_become_connections_have_both_kinds() {
    let mut policy = policy();
    policy.routes[1].upgrades = vec!["websocket".into()];
    let deny = vec![Deny { path_prefix: Some("/pay/".into()), ..Deny::default() }];
    let mut book = Book::new(Caps { share_max: Ratio::ONE, deny, ..Caps::default() }, &policy, 7);
    let all = Portion::Every(1);
    let mut with_path = on_quotes(LATE, all);
    with_path.scope.path_prefix = Some("/chat".into());
    let id = put(&mut book, at(0), with_path.clone()).unwrap();
    let cut = put(&mut book, at(0), on_quotes(Kind::Cut, Portion::First(1))).unwrap();
    let mut lies_on = |path| {
        let it = Try { method: "GET", path, ..connection(0) };
        exposed(&mut book, 1, &it, &mut Vec::new()).touched
    };
    assert_eq!((lies_on("/chat/1"), lies_on("/other"), lies_on("/pay/1")), (vec![id], vec![], vec![]));
    let call = Try { route: RouteId(1), upstream: UpstreamId(1), path: "/chat", ..a_try() };
    assert_eq!(book.touch(at(1), &call).map(|touch| touch.id), Some(cut), "a call has no bytes yet");
    with_path.scope = Scope { header: Some(("x-tenant".into(), "acme".into())), ..on_quotes(LATE, all).scope };
    let refused = put(&mut book, at(0), with_path).unwrap_err();
    assert_eq!((refused.field(), refused.to_string().contains("no header is kept")), (Some("header"), true));
    // A header still tells calls apart.
    let mut by_header = on_quotes(Kind::Swallow, Portion::First(1));
    by_header.scope.header = Some(("x-tenant".into(), "acme".into()));
    assert!(put(&mut book, at(0), by_header).is_ok());
}

#[test]
fn calls_and_connections_have_kinds_of_their_own() {
    let mut book = of_connections(Vec::new());
    let all = Portion::Every(1);
    let on_queue = Order { scope: Scope { upstream: Some("queue".into()), ..Scope::default() }, ..order(LATE, all) };
    for order in [order(LATE, all), on_queue, on_quotes(Kind::Cut, all), on_quotes(Kind::Grpc { code: 14 }, all)] {
        match put(&mut book, at(0), order) {
            Err(Refused::Invalid { field: "kind", message, allowed }) => {
                assert!(message.contains("cannot touch") && allowed.contains(&"refuse".to_owned()), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    let mut with_path = on_quotes(LATE, all);
    with_path.scope.path_prefix = Some("/".into());
    let refused = put(&mut book, at(0), with_path).unwrap_err();
    assert_eq!(
        (refused.field(), refused.to_string().as_str()),
        (Some("path_prefix"), "connections have no `path_prefix`")
    );
    let id = put(&mut book, at(0), on_quotes(Kind::Refuse, Portion::First(1))).unwrap();
    let it = Try { route: RouteId(1), upstream: UpstreamId(1), ..connection(0) };
    assert_eq!(book.touch(at(1), &it), Some(Touch { id, act: Act::Refuse }));
    // Whom nobody calls yet may be called tomorrow.
    let mut unused = policy();
    unused.routes[0].fallbacks.clear();
    let mut book = Book::new(Caps::default(), &unused, 7);
    let order =
        Order { scope: Scope { upstream: Some("other".into()), ..Scope::default() }, ..order(LATE, Portion::First(1)) };
    assert!(put(&mut book, at(0), order).is_ok());
}

#[test]
fn what_harms_bytes_makes_sense_or_is_refused() {
    let mut book = of_connections(Vec::new());
    let long = DELAY_MAX + Duration::from_millis(1);
    let none = Ratio::ZERO;
    for (effect, right) in [
        (Effect::Latency { delay_ms: 0, jitter: Duration::ZERO }, "1ms or more, at most 10m"),
        (Effect::Latency { delay_ms: 0, jitter: Duration::from_micros(500) }, "1ms or more, at most 10m"),
        (Effect::Latency { delay_ms: -5, jitter: Duration::from_secs(1) }, "1ms or more, at most 10m"),
        (Effect::Bandwidth { bytes_per_second: 0 }, "1B or more; `black_hole` for none"),
        (Effect::SlowClose { delay: long }, "at most 10m"),
        (Effect::Timeout { after: Some(long) }, "at most 10m"),
        (Effect::ResetPeer { after: long }, "at most 10m"),
        (Effect::HalfClose { after: long }, "at most 10m"),
        (Effect::Slicer { average: 1, variation: 0, delay: long }, "at most 10m"),
        (Effect::Slicer { average: 0, variation: 0, delay: Duration::ZERO }, "1B or more"),
        (Effect::Corrupt { share: none }, "more than 0%"),
        (Effect::Loss { share: none }, "more than 0%"),
    ] {
        match put(&mut book, at(0), on_quotes(bytes(Way::Up, effect), Portion::Every(1))) {
            Err(Refused::Invalid { field: "kind", allowed, .. }) => assert_eq!(allowed, [right], "{effect:?}"),
            other => panic!("{effect:?}: {other:?}"),
        }
    }
    let second = Duration::from_secs(1);
    let share = Ratio::of(1, 100).unwrap();
    for (effect, words) in [
        (Effect::Latency { delay_ms: 50, jitter: second }, "tcp_latency 50ms give or take 1s, up"),
        (Effect::Bandwidth { bytes_per_second: 2_048 }, "tcp_bandwidth 2KiB/s, up"),
        (Effect::SlowClose { delay: second }, "slow_close 1s, up"),
        (Effect::Timeout { after: Some(second) }, "black_hole 1s, up"),
        (Effect::Timeout { after: None }, "black_hole, up"),
        (Effect::ResetPeer { after: second }, "reset 1s, up"),
        (Effect::HalfClose { after: second }, "half_close 1s, up"),
        (Effect::Slicer { average: 9, variation: 3, delay: second }, "slicer 9B, up"),
        (Effect::LimitData { bytes: 0 }, "limit_data 0B, up"),
        (Effect::Corrupt { share }, "tcp_corrupt 1%, up"),
        (Effect::Loss { share }, "chunk_loss 1%, up"),
    ] {
        let kind = bytes(Way::Up, effect);
        assert!(Kind::NAMES.contains(&kind.name()) && kind.to_string() == words, "{kind}");
        let id = put(&mut book, at(0), on_quotes(kind, Portion::Every(1))).unwrap();
        book.remove(at(0), id).unwrap();
    }
    assert_eq!(bytes(Way::Up, Effect::Noop).name(), "noop");
}

fn cut(way: Way, zone: &str) -> Order {
    let scope = Scope { zone: Some(zone.into()), ..Scope::default() };
    Order { scope, ..order(Kind::ZoneCut { way }, Portion::Every(1)) }
}

#[test]
fn a_zone_that_is_cut_off_is_cut_off_for_all_and_before_all_other_faults() {
    let mut book = book();
    put(&mut book, at(0), order(Kind::Refuse, Portion::First(9))).unwrap();
    let id = put(&mut book, at(0), cut(Way::Up, "y")).unwrap();
    let there = Try { endpoint: &ENDPOINTS[1], ..a_try() };
    assert_eq!(book.touch(at(1), &there), Some(Touch { id, act: Act::Lost }));
    assert_eq!(
        book.touch(at(1), &Try { route: RouteId(1), upstream: UpstreamId(1), client: None, ..there }).unwrap().id,
        id
    );
    assert_eq!(book.touch(at(1), &a_try()).map(|touch| touch.act), Some(Act::Refuse), "here all is as it was");
    assert_eq!((book.cut(at(1), "queue", "y"), book.cut(at(1), "queue", "z")), (Some(id), None));
    assert_eq!(book.cut(at(60), "queue", "y"), None);
    let standing = Try { endpoint: &ENDPOINTS[1], ..connection(0) };
    let toxics = |book: &mut Book| exposed(book, 1, &standing, &mut Vec::new()).toxics;
    assert_eq!(toxics(&mut book).iter().map(|toxic| toxic.direction).collect::<Vec<_>>(), [Direction::Upstream]);
    book.remove(at(1), id).unwrap();
    let id = put(&mut book, at(0), cut(Way::Down, "y")).unwrap();
    assert_eq!(book.touch(at(1), &there), Some(Touch { id, act: Act::Mute }));
    let coming = Try { carries: Carries::Connection, ..there };
    assert_eq!(
        book.touch(at(1), &coming).map(|touch| touch.act),
        Some(Act::Refuse),
        "a mute one can be refused before"
    );
    let refusing = book.standing_at(at(1)).next().unwrap().id;
    book.remove(at(1), refusing).unwrap();
    assert_eq!(book.touch(at(1), &coming), None, "it comes about, and is mute");
    assert_eq!(toxics(&mut book).iter().map(|toxic| toxic.direction).collect::<Vec<_>>(), [Direction::Downstream]);
    book.remove(at(1), id).unwrap();
    let id = put(&mut book, at(0), cut(Way::Both, "y")).unwrap();
    assert_eq!((book.touch(at(1), &there), toxics(&mut book).len()), (Some(Touch { id, act: Act::Lost }), 2));
    assert_eq!(cut(Way::Both, "y").kind.to_string(), "zone_cut both");
    assert_eq!(Way::ALL.map(Way::name), ["up", "down", "both"]);
}

#[test]
fn a_zone_is_cut_off_alone_whole_and_within_the_cap() {
    let mut book = book();
    let with = |change: fn(&mut Order)| {
        let mut order = cut(Way::Both, "y");
        change(&mut order);
        order
    };
    for (order, wanted, right) in [
        (with(|order| order.scope.route = Some("events".into())), "route", "zone"),
        (with(|order| order.scope.zone = None), "zone", "the zone to cut off"),
        (cut(Way::Both, "x"), "zone", "y"),
        (cut(Way::Both, "z"), "zone", "y"),
        (with(|order| order.portion = Portion::First(1)), "first", "every: 1"),
    ] {
        match put(&mut book, at(0), order) {
            Err(Refused::Invalid { field, allowed, .. }) => {
                assert_eq!((field, allowed.join(", ").as_str()), (wanted, right))
            }
            other => panic!("{other:?}"),
        }
    }
    // Half of every upstream lies there.
    put(&mut book, at(0), cut(Way::Both, "y")).unwrap();
    let too_much = put(&mut book, at(0), order(Kind::Cut, Portion::Every(2)));
    assert!(matches!(too_much, Err(Refused::Invalid { field: "every", .. })), "{too_much:?}");
    let mut heavy = policy();
    heavy.upstreams[1].endpoints[1].weight = 3;
    let mut book = Book::new(Caps::default(), &heavy, 7);
    let Err(Refused::Invalid { field: "zone", message, .. }) = put(&mut book, at(0), cut(Way::Both, "y")) else {
        panic!("75 % of `carrier` lie there")
    };
    assert!(message.starts_with("75% of upstream `carrier` lie in zone `y`"), "{message}");
    let deny = vec![Deny { upstream: Some("carrier".into()), ..Deny::default() }];
    let mut book = Book::new(Caps { deny, ..Caps::default() }, &heavy, 7);
    let id = put(&mut book, at(0), cut(Way::Both, "y")).unwrap();
    assert_eq!((book.cut(at(1), "carrier", "y"), book.cut(at(1), "queue", "y")), (None, Some(id)));
}

#[test]
fn what_is_denied_is_not_touched_whatever_lies_there() {
    let deny = |route: Option<&str>, upstream: Option<&str>, path: Option<&str>| Deny {
        route: route.map(Into::into),
        upstream: upstream.map(Into::into),
        path_prefix: path.map(Into::into),
    };
    let mut policy = policy();
    policy.routes[1].protocol = Protocol::Tcp;
    let book = |deny: Deny| Book::new(Caps { deny: vec![deny], share_max: Ratio::ONE, ..Caps::default() }, &policy, 7);
    let all = |kind| order(kind, Portion::Every(1));
    let on_queue = Order { scope: Scope { upstream: Some("queue".into()), ..Scope::default() }, ..all(Kind::Cut) };
    let narrowed = |path: Option<&str>, path_prefix: Option<&str>| {
        let mut order = all(Kind::Cut);
        (order.scope.path, order.scope.path_prefix) = (path.map(Into::into), path_prefix.map(Into::into));
        order
    };
    let (on_path, on_prefix) = (|path| narrowed(Some(path), None), |path| narrowed(None, Some(path)));
    // Asked for by name it is refused with the name.
    for (denied, order, field) in [
        (deny(Some("events"), None, None), all(Kind::Cut), "route"),
        (deny(None, Some("queue"), None), all(Kind::Cut), "upstream"),
        (deny(None, Some("queue"), None), on_queue.clone(), "upstream"),
        (deny(Some("events"), Some("queue"), None), all(Kind::Cut), "route"),
        (deny(None, None, Some("/admin")), on_path("/admin"), "path"),
        (deny(Some("events"), None, Some("/admin")), on_path("/admin/users"), "path"),
        (deny(None, Some("queue"), Some("/admin")), on_prefix("/admin/"), "path_prefix"),
    ] {
        let refused = put(&mut book(denied), at(0), order).unwrap_err();
        assert!(matches!(refused, Refused::Denied { .. }) && refused.field() == Some(field), "{refused}");
    }
    // What comes by another way, or by its path, is left alone as it passes.
    for (denied, order) in [
        (deny(Some("events"), None, None), on_queue),
        (deny(None, None, Some("/events")), all(Kind::Cut)),
        (deny(None, None, Some("/events")), on_prefix("/e")),
        (deny(Some("quotes"), None, Some("/events")), Order { kind: Kind::Refuse, ..on_prefix("/x") }),
        (deny(Some("events"), None, Some("/events")), all(Kind::Cut)),
        (deny(Some("events"), None, None), cut(Way::Up, "y")),
    ] {
        let mut book = book(denied.clone());
        put(&mut book, at(0), order).unwrap();
        let there = Try { endpoint: &ENDPOINTS[1], ..a_try() };
        assert_eq!((book.touch(at(1), &a_try()), book.touch(at(1), &there)), (None, None), "{denied:?}");
        let other = Try { path: "/other", route: RouteId(1), ..there };
        assert!(denied.route.is_none() || book.touch(at(1), &other).is_some() || denied.path_prefix.is_some());
    }
    let mut book = book(deny(Some("quotes"), None, None));
    put(&mut book, at(0), Order { scope: Scope { upstream: Some("carrier".into()), ..Scope::default() }, ..all(LATE) })
        .unwrap();
    assert_eq!(exposed(&mut book, 1, &connection(0), &mut Vec::new()), Exposure::default());
}

/// What is judged at which second, of `events` and `quotes`; and which faults are gone then.
fn judged(book: &mut Book, seconds: u64, events: (u64, u64), quotes: (u64, u64)) -> Vec<(Id, String)> {
    let seen = [events, quotes].map(|(requests, failed)| Seen { requests, failed }).into();
    let gone = book.judge(at(seconds), 0, seen);
    gone.into_iter().map(|(fault, tripped)| (fault.id, tripped.to_string())).collect()
}

/// Ends when more than a fifth of ten or more fail within five seconds.
fn careful(order: Order) -> Order {
    let (failed_max, over) = (Ratio::of(20, 100).unwrap(), Duration::from_secs(5));
    Order { abort_when: Some(AbortWhen { failed_max, over, requests_min: 10 }), ..order }
}

#[test]
fn a_fault_that_does_too_much_is_taken_down() {
    let mut book = book();
    let id = put(&mut book, at(10), careful(order(Kind::Hang, Portion::Every(2)))).unwrap();
    let bold = put(&mut book, at(10), order(Kind::Refuse, Portion::First(9))).unwrap();
    assert!(book.is_watching());
    assert_eq!(judged(&mut book, 9, (500, 500), (0, 0)), [], "what failed before it is not its work");
    assert_eq!(judged(&mut book, 10, (1_000, 900), (0, 0)), []);
    assert_eq!(judged(&mut book, 11, (1_009, 909), (0, 0)), [], "nine are too few");
    assert_eq!(
        judged(&mut book, 12, (1_020, 904), (99, 99)),
        [],
        "a fifth is not more than a fifth, and others are others"
    );
    let gone = judged(&mut book, 13, (1_025, 906), (99, 99));
    assert_eq!(gone, [(id, "6 of 25 of route events failed within 5s".to_owned())]);
    assert_eq!(book.standing_at(at(13)).map(|fault| fault.id).collect::<Vec<_>>(), [bold]);
    assert!(!book.is_watching() && book.look(at(13)).ended.len() == 1);
    assert_eq!(Why::Aborted.name(), "aborted");
}

#[test]
fn what_is_judged_is_the_window_and_every_route_that_may_be_touched() {
    let mut book = book();
    let scope = Scope { upstream: Some("carrier".into()), ..Scope::default() };
    let of_carrier = careful(Order { scope, ..order(Kind::Hang, Portion::Every(2)) });
    put(&mut book, at(0), of_carrier.clone()).unwrap();
    let zone = put(&mut book, at(0), careful(cut(Way::Up, "y"))).map(|_| ());
    assert!(zone.is_err(), "both together would be too much");
    assert_eq!(judged(&mut book, 0, (0, 0), (0, 0)), []);
    assert_eq!(judged(&mut book, 1, (100, 100), (100, 20)), [], "`events` never calls `carrier`");
    assert_eq!(judged(&mut book, 7, (100, 100), (109, 29)), [], "what is older than five seconds is over");
    assert_eq!(judged(&mut book, 8, (100, 100), (119, 32)).len(), 1);
    let mut book = self::book();
    put(&mut book, at(0), careful(cut(Way::Up, "y"))).unwrap();
    assert_eq!(judged(&mut book, 1, (0, 0), (0, 0)), []);
    assert_eq!(judged(&mut book, 2, (10, 3), (10, 3)).len(), 1, "everybody may be touched by it");
    // Under another policy the numbers are another's.
    let id = put(&mut book, at(2), of_carrier).unwrap();
    assert_eq!(judged(&mut book, 3, (10, 3), (10, 3)), []);
    book.follow(&policy());
    assert_eq!(judged(&mut book, 4, (99, 99), (99, 99)), []);
    let seen = |count| vec![Seen { requests: count, failed: count }; 2];
    assert!(book.judge(at(4), 1, seen(99)).is_empty(), "there is nothing to compare it with yet");
    assert_eq!(book.judge(at(5), 1, seen(199))[0].0.id, id);
}

#[test]
fn looks_are_forgotten_when_no_window_reaches_them() {
    let mut looks = abort::Looks::default();
    (0..3_000).for_each(|step| looks.add(Mono::from_millis(step), Vec::new()));
    assert!(format!("{looks:?}").matches("Mono").count() <= 1_024);
    looks.add(at(100), Vec::new());
    looks.add(at(161), Vec::new());
    assert_eq!(format!("{looks:?}").matches("Mono").count(), 2, "one beyond the window, to begin with");
}

#[test]
fn a_request_that_is_tried_again_is_one_request() {
    let mut book = book();
    let id = put(&mut book, at(0), order(Kind::Hang, Portion::First(9))).unwrap();
    book.touch(at(1), &a_try());
    book.touch(at(1), &Try { touched: &[id], ..a_try() });
    let fault = book.standing_at(at(1)).next().unwrap();
    assert_eq!((fault.tries, fault.requests), (2, 1));
}

#[test]
fn one_try_is_touched_by_the_oldest_that_chooses_it() {
    let mut book = book();
    let old = put(&mut book, at(0), order(Kind::Hang, Portion::First(1))).unwrap();
    let young = put(&mut book, at(0), order(Kind::Refuse, Portion::First(1))).unwrap();
    let mut by = || book.touch(at(1), &a_try()).map(|touch| touch.id);
    assert_eq!([by(), by(), by()], [Some(old), Some(young), None]);
}

#[test]
fn words_for_people() {
    let ms = Duration::from_millis;
    let latency = |of, jitter, spread| Kind::Latency { of, delay: ms(200), jitter: ms(jitter), spread };
    let abort = |retry| Kind::Abort { status: 503, retry };
    let day = Duration::from_secs(86_400);
    for (kind, words) in [
        (latency(Moment::Request, 50, Spread::Even), "latency 200ms to 250ms"),
        (latency(Moment::Head, 0, Spread::Even), "head_latency 200ms"),
        (latency(Moment::Body, 50, Spread::Tail), "body_latency 200ms and a tail of 50ms"),
        (Kind::Bandwidth { bytes_per_second: 10 << 10 }, "bandwidth 10KiB/s"),
        (abort(None), "abort 503"),
        (abort(Some(RetryAfter::Seconds(120))), "abort 503, Retry-After 2m"),
        (abort(Some(RetryAfter::Ahead(day))), "abort 503, Retry-After a date 1d ahead"),
        (abort(Some(RetryAfter::Ago(day))), "abort 503, Retry-After a date 1d ago"),
        (Kind::Grpc { code: 14 }, "grpc 14"),
        (Kind::Corrupt { share: Ratio::of(1, 100).unwrap() }, "corrupt 1% of the bytes"),
        (Kind::HugeHead { bytes: 64 << 10 }, "huge_head 64KiB"),
    ] {
        assert_eq!(kind.to_string(), words);
        assert!(Kind::NAMES.contains(&kind.name()));
    }
    for kind in Kind::WORDS {
        assert!(kind.to_string() == kind.name() && Kind::NAMES.contains(&kind.name()));
    }
    let flap = Some(Flap { on: ms(500), off: ms(1_500) });
    let timing = Timing { after: ms(200), lasts: Some(day / 24), flap };
    assert_eq!(timing.to_string(), "after 200ms, for 1h, 500ms on, 1.5s off");
    assert_eq!(Timing::default().to_string(), "always");
    assert_eq!(Portion::Connections(Ratio::ONE).to_string(), "100% of connections");
    let portions = [Portion::First(3), Portion::Every(4), Portion::Every(1), Portion::Share(Ratio::ONE)];
    assert_eq!(portions.map(|it| it.to_string()), ["first 3", "one in 4", "every one", "100%"]);
    let scope = Scope {
        route: Some("events".into()),
        header: Some(("authorization".into(), "secret".into())),
        ..Scope::default()
    };
    assert_eq!(scope.to_string(), "route events, header authorization", "and never its value");
}

/// Something that is done to a board.
#[derive(Clone, Debug)]
enum Op {
    Place { kind: usize, ttl: u64 },
    Renew { which: usize, ttl: u64, is_owner: bool },
    Remove { which: usize },
    Expire,
    Kill,
    Release,
    Try,
    Pass { seconds: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..12_usize, 0..20_u64).prop_map(|(kind, ttl)| Op::Place { kind, ttl }),
        3 => (0..10_usize, 1..20_u64, any::<bool>()).prop_map(|(which, ttl, is_owner)| Op::Renew { which, ttl, is_owner }),
        1 => (0..10_usize).prop_map(|which| Op::Remove { which }),
        1 => Just(Op::Expire),
        1 => Just(Op::Kill),
        2 => Just(Op::Release),
        5 => Just(Op::Try),
        4 => (0..8_u64).prop_map(|seconds| Op::Pass { seconds }),
    ]
}

/// Twelve that differ in kind or path.
fn one_of(kind: usize, ttl: u64) -> Order {
    let kinds = [Kind::Hang, Kind::Refuse, Kind::Swallow, Kind::Cut, Kind::abort(500), Kind::abort(404)];
    let mut order = order(kinds[kind / 2], Portion::First(FIRST_MAX));
    order.scope.path_prefix = (kind % 2 == 1).then(|| "/events".into());
    order.ttl = Some(Duration::from_secs(ttl));
    order
}

proptest! {
    /// Whatever is done in whatever order, a board holds what a list of names and moments holds, and no fault outlives
    /// its lease, its removal or the kill switch by one try.
    #[test]
    fn no_fault_without_a_lease(ops in prop::collection::vec(op(), 1..120)) {
        let mut book = book();
        let mut model: BTreeMap<Id, (Mono, Order)> = BTreeMap::new();
        let (mut ids, mut now, mut is_killed) = (Vec::new(), at(0), false);
        for op in ops {
            let alive: BTreeMap<Id, (Mono, Order)> =
                model.iter().filter(|(_, (until, _))| now < *until).map(|(id, it)| (*id, it.clone())).collect();
            match op {
                Op::Place { kind, ttl } => {
                    let order = one_of(kind, ttl);
                    let is_twice = alive.values().any(|(_, it)| it.kind.name() == order.kind.name() && it.scope == order.scope);
                    let may = !is_killed && ttl > 0 && !is_twice && alive.len() < 8;
                    let placed = put(&mut book, now, order.clone());
                    prop_assert_eq!(placed.is_ok(), may, "{:?}", placed);
                    if let Ok(id) = placed {
                        prop_assert!(!ids.contains(&id), "a name is given once");
                        ids.push(id);
                        model.insert(id, (now + Duration::from_secs(ttl), order));
                    }
                }
                Op::Renew { which, ttl, is_owner } => if let Some(id) = ids.get(which) {
                    let ttl = Duration::from_secs(ttl);
                    let renewed = book.renew(now, *id, if is_owner { "ada" } else { "bob" }, Some(ttl)).is_ok();
                    prop_assert_eq!(renewed, is_owner && alive.contains_key(id));
                    if let (true, Some((until, _))) = (renewed, model.get_mut(id)) {
                        *until = now + ttl;
                    }
                },
                Op::Remove { which } => if let Some(id) = ids.get(which) {
                    prop_assert_eq!(book.remove(now, *id).is_ok(), alive.contains_key(id));
                    if alive.contains_key(id) {
                        model.remove(id);
                    }
                },
                Op::Expire => {
                    let gone: Vec<Id> = book.expire(now).iter().map(|fault| fault.id).collect();
                    let faded: Vec<Id> = model.keys().copied().filter(|id| !alive.contains_key(id)).collect();
                    prop_assert_eq!(gone, faded);
                    model = alive;
                }
                Op::Kill => {
                    book.kill("now", None);
                    (is_killed, model) = (true, BTreeMap::new());
                }
                Op::Release => {
                    prop_assert_eq!(book.release().is_some(), is_killed);
                    is_killed = false;
                }
                Op::Try => if let Some(touch) = book.touch(now, &a_try()) {
                    prop_assert!(alive.contains_key(&touch.id) && !is_killed, "{} is gone", touch.id);
                },
                Op::Pass { seconds } => now = now + Duration::from_secs(seconds),
            }
            let standing: Vec<(Id, Mono)> = book.standing_at(now).map(|fault| (fault.id, fault.until)).collect();
            let wanted: Vec<(Id, Mono)> =
                model.iter().filter(|(_, (until, _))| now < *until).map(|(id, (until, _))| (*id, *until)).collect();
            prop_assert_eq!(standing, wanted);
        }
    }

    /// The same seed and tries give the same choices and delays, whatever lies beside it.
    #[test]
    fn a_seed_is_a_promise(seed: u64, share in 1..=50_u64, tries in 1..200_usize, neighbour: bool) {
        let (delay, jitter) = (Duration::from_millis(5), Duration::from_millis(50));
        let latency = Kind::late(delay, jitter);
        let order = Order { seed: Some(seed), ..order(latency, Portion::Share(Ratio::of(share, 100).unwrap())) };
        let run = |neighbour: bool| {
            let mut book = book();
            put(&mut book, at(0), order.clone()).unwrap();
            if neighbour {
                put(&mut book, at(0), one_of(2, 60)).unwrap();
            }
            let id = book.standing_at(at(0)).next().unwrap().id;
            let mut own = || book.touch(at(1), &a_try()).filter(|touch| touch.id == id);
            (0..tries).map(|_| own()).collect::<Vec<_>>()
        };
        let acts = run(false);
        prop_assert_eq!(&acts, &run(neighbour));
        for touch in acts.into_iter().flatten() {
            let Act::Delay(Moment::Request, delay) = touch.act else { panic!("{touch:?}") };
            prop_assert!((5..=55).contains(&delay.as_millis()), "{:?}", delay);
        }
    }

    /// A share is kept: in ten thousand tries no farther from it than six standard deviations.
    #[test]
    fn a_share_is_a_share(seed: u64, percent in 1..=50_u64) {
        let mut book = book();
        let share = percent as f64 / 100.0;
        let order = Order { seed: Some(seed), ..order(Kind::Hang, Portion::Share(Ratio::new(share).unwrap())) };
        put(&mut book, at(0), order).unwrap();
        let hits = hits(&mut book, 10_000).into_iter().filter(|hit| *hit).count() as f64;
        let allowed = 6.0 * (10_000.0 * share * (1.0 - share)).sqrt();
        prop_assert!((hits - 10_000.0 * share).abs() <= allowed, "{hits} of 10000 at {percent} %");
    }
}

#[test]
fn under_another_policy_a_fault_stays_on_what_is_called_the_same() {
    let mut book = book();
    let stays = put(&mut book, at(1), order(Kind::Cut, Portion::First(9))).unwrap();
    let scope = Scope { upstream: Some("carrier".into()), ..Scope::default() };
    let goes = put(&mut book, at(1), Order { scope, ..order(Kind::Cut, Portion::First(9)) }).unwrap();
    let mut next = policy();
    // `quotes` and `carrier` are gone, and `events` and `other` go by other numbers.
    next.routes = vec![Route { name: "more".into(), upstream: UpstreamId(1), ..next.routes[0].clone() }];
    next.routes.push(Route { upstream: UpstreamId(1), fallbacks: Vec::new(), ..policy().routes[0].clone() });
    next.upstreams = vec![next.upstreams[2].clone(), next.upstreams[0].clone()];
    next.routes[0].fallbacks.clear();
    let gone = book.follow(&next);
    assert_eq!(gone.iter().map(|fault| fault.id).collect::<Vec<_>>(), [goes]);
    let moved = Try { generation: 1, route: RouteId(1), upstream: UpstreamId(1), ..a_try() };
    assert_eq!(book.touch(at(1), &moved).map(|touch| touch.id), Some(stays));
    assert_eq!(book.touch(at(1), &a_try()), None, "a try of before goes by other numbers");
}

#[test]
fn a_cut_zone_weighs_what_lies_there_under_the_policy_in_force() {
    let mut book = book();
    put(&mut book, at(0), cut(Way::Both, "y")).unwrap();
    let quarter = order(Kind::Cut, Portion::Every(4));
    assert!(put(&mut book, at(0), quarter.clone()).is_err(), "half of every upstream is cut off already");
    let mut lighter = policy();
    lighter.upstreams.iter_mut().for_each(|upstream| upstream.endpoints[0].weight = 9);
    assert!(book.follow(&lighter).is_empty());
    put(&mut book, at(0), quarter).unwrap();
}

#[test]
fn a_call_in_flight_is_severed_where_it_goes_and_counted_once() {
    let deny = vec![Deny { upstream: Some("carrier".into()), ..Deny::default() }];
    let mut book = Book::new(Caps { deny, ..Caps::default() }, &policy(), 7);
    let id = put(&mut book, at(0), cut(Way::Down, "y")).unwrap();
    let there = Try { endpoint: &ENDPOINTS[1], generation: 9, ..a_try() };
    let mut severed = |seconds, names, it: &Try<'_>, direction| {
        book.severed(at(seconds), names, it, direction).map(|severed| severed.id)
    };
    let (names, down) = (("events", "queue"), Direction::Downstream);
    assert_eq!(severed(1, names, &there, down), Some(id));
    assert_eq!(severed(2, names, &Try { touched: &[id], ..there }, down), Some(id), "it has met it before");
    assert_eq!(severed(2, names, &there, Direction::Upstream), None, "that way is open");
    assert_eq!(severed(2, names, &a_try(), down), None, "elsewhere");
    assert_eq!(severed(2, ("quotes", "carrier"), &there, down), None, "denied");
    assert_eq!(severed(60, names, &there, down), None, "its time is over");
    let fault = book.remove(at(3), id).unwrap();
    assert_eq!((fault.requests, fault.tries), (1, 1));
}

#[test]
fn each_protocol_is_told_what_can_touch_it() {
    let (of_calls, of_bytes) = (Kind::names_for(Carries::Call), Kind::names_for(Carries::Connection));
    assert_eq!(of_calls, Kind::NAMES[..16]);
    assert_eq!(of_bytes, [&["refuse", "hang"], &Kind::NAMES[16..26]].concat());
}
