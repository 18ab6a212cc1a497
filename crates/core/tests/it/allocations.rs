//! The way of a healthy call allocates nothing.

use std::time::Duration;

use allocation_counter::measure;
use seawall_core::balance::{Avoid, BalanceConfig, Endpoints, Plan};
use seawall_core::fault::book::{Book, Caps, Carries, Kind, Order, Portion, Scope, SharedBook, Timing, Try};
use seawall_core::guard::breaker::{BreakerConfig, SharedBreaker};
use seawall_core::id::{RecordId, RouteId, UpstreamId};
use seawall_core::ledger::{Arrival, Class, Event, Ledger, ReceiptBatch, RecordRef};
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::policy::{Delivery, Endpoint, Guards, Limits, Match, Policy, Protocol, Route, Upstream};
use seawall_core::prng::Prng;
use seawall_core::spool::index::{Admission, Footprint, Index, IndexConfig};
use seawall_core::spool::{FingerprintHalf, KeyHash, LaneKey, Terms};
use seawall_core::time::{Mono, Wall};

#[test]
fn a_breaker_allocates_nothing_while_closed() {
    let breaker = SharedBreaker::new(BreakerConfig::default(), 1, 4, Mono::ZERO, |_| {}).expect("sane");
    let took = Duration::from_millis(1);
    let counted = measure(|| {
        for call in 0..10_000_u64 {
            let now = Mono::from_millis(call);
            let permit = breaker.admit(now).expect("closed");
            // Every tenth fails: the slow way is free of allocations too.
            let outcome = if call % 10 == 0 { Outcome::Failure(Failure::Timeout) } else { Outcome::Success };
            breaker.record(now, permit, outcome, took);
        }
    });
    assert_eq!(counted.count_total, 0);
}

/// The first is ill, the second begins slowly, the third is busy.
struct Moment;

impl Endpoints for Moment {
    fn is_well(&self, place: usize) -> bool {
        place != 0
    }
    fn ramp(&self, place: usize) -> f64 {
        if place == 1 { 0.3 } else { 1.0 }
    }
    fn in_flight(&self, place: usize) -> u32 {
        if place == 2 { 7 } else { 1 }
    }
    fn latency(&self, place: usize) -> f64 {
        1.0 + place as f64
    }
}

#[test]
fn a_choice_allocates_nothing() {
    let zones = ["east", "east", "west", "east", "south"];
    let endpoints = zones.map(|zone| Endpoint { zone: Some(zone.into()), ..Endpoint::at("h:1") });
    let plan = Plan::new(&endpoints, "east", BalanceConfig::default(), 7);
    let mut prng = Prng::new(1);
    let counted = measure(|| {
        for failed in 0..10_000 {
            let avoid = Avoid { failed: if failed % 2 == 0 { 0 } else { failed % 32 }, busy: 0 };
            assert!(plan.choose(&Moment, avoid, &mut prng).is_some());
        }
    });
    assert_eq!(counted.count_total, 0);
}

/// One route to one upstream.
fn policy() -> Policy {
    let route = Route {
        name: "events".into(),
        protocol: Protocol::Http,
        upgrades: Vec::new(),
        matcher: Match::default(),
        upstream: UpstreamId(0),
        guards: Guards::default(),
        fallbacks: Vec::new(),
        order_by: None,
        delivery: Delivery::default(),
        placement: seawall_core::policy::Placement::default(),
    };
    let upstream = Upstream {
        name: "queue".into(),
        endpoints: Vec::new(),
        health: None,
        outlier: None,
        balance: BalanceConfig::default(),
        connections_max: 1,
        idle_timeout: Duration::ZERO,
        connect_timeout: Duration::ZERO,
        announce: None,
        http2: false,
        host: None,
        resolver: seawall_core::policy::Resolver::default(),
    };
    Policy {
        node: "n".into(),
        zone: "z".into(),
        zones: Vec::new(),
        listeners: Vec::new(),
        routes: vec![route],
        upstreams: vec![upstream],
        limits: Limits::default(),
        digest: String::new(),
    }
}

#[test]
fn faults_allocate_nothing_whether_there_are_any_or_not() {
    let book = SharedBook::new(Book::new(Caps::default(), &policy(), 1));
    let (has_header, endpoint) = (|_: &str, _: &str| false, Endpoint::at("a:80"));
    let it = Try {
        generation: 0,
        route: RouteId(0),
        upstream: UpstreamId(0),
        endpoint: &endpoint,
        client: None,
        method: "POST",
        path: "/events",
        has_header: &has_header,
        carries: Carries::Call,
        touched: &[],
    };
    let touched = |tries: u64| (0..tries).filter(|_| book.touch(Mono::ZERO, &it).is_some()).count();
    assert_eq!(measure(|| assert_eq!(touched(10_000), 0)).count_total, 0);
    let scope = Scope { route: Some("events".into()), ..Scope::default() };
    let (ttl, portion) = (Some(Duration::from_secs(1)), Portion::Every(2));
    let (kind, timing) = (Kind::Refuse, Timing::default());
    let order = Order { owner: "ada".into(), scope, portion, kind, timing, abort_when: None, ttl, seed: None };
    book.with(|book| assert!(book.place(Mono::ZERO, order, 0, &mut Prng::new(1)).is_ok()));
    assert_eq!(measure(|| assert_eq!(touched(10_000), 5_000)).count_total, 0);
}

/// As the embedded engine says where a record is.
#[derive(Clone, Copy, Debug)]
struct Place([u32; 3]);

impl Footprint for Place {
    fn bytes(&self) -> u64 {
        self.0[2].into()
    }
}

fn admission(id: u64, lane: Option<LaneKey>) -> Admission<'static, Place> {
    Admission {
        id: RecordId(id),
        upstream: "queue",
        route: "events",
        lane,
        key: KeyHash::new(&id.to_string()),
        fingerprint: FingerprintHalf([id as u8; 16]),
        accepted: Wall::from_millis(id),
        attempts: 1,
        last_error: "connect_refused",
        terms: Terms::default(),
        place: Place([1, 2, 1000]),
    }
}

/// Bytes the index takes for each of so many records that wait.
fn bytes_per_record(records: u64, lane: impl Fn(u64) -> Option<LaneKey>) -> f64 {
    let mut index = Index::new(IndexConfig::default());
    let counted = measure(|| (1..=records).for_each(|id| index.enqueue(admission(id, lane(id)))));
    assert_eq!(index.depth_total().waiting, records);
    counted.bytes_current as f64 / records as f64
}

#[test]
fn a_waiting_record_takes_about_a_hundred_bytes() {
    let lane_of = |key: u64| Some(LaneKey::new("queue", &key.to_le_bytes()));
    for records in [100_000, 160_000, 230_000] {
        let (free, few_lanes) =
            (bytes_per_record(records, |_| None), bytes_per_record(records, |id| lane_of(id % 100)));
        let own_lane = bytes_per_record(records, lane_of);
        println!("{records} records: {free:.1} bytes each, {few_lanes:.1} in rows, {own_lane:.1} each in its own");
        assert!(free < 105.0 && few_lanes < 105.0 && own_lane < 175.0, "{free} {few_lanes} {own_lane}");
    }
}

#[test]
fn memory_follows_the_records_that_are_left() {
    let mut index = Index::new(IndexConfig { remember_max: 0, ..IndexConfig::default() });
    let counted = measure(|| {
        (1..=100_000).for_each(|id| index.enqueue(admission(id, None)));
        while let Some(lease) = index.lease("queue", 1, Mono::ZERO, Duration::from_secs(1)).pop() {
            assert!(index.ack(&lease, 200, Wall::default()));
            index.forget(Wall::default());
        }
    });
    assert!(counted.bytes_max > 9_000_000 && counted.bytes_current < 1_000_000, "{counted:?}");
}

#[test]
fn ten_thousand_producers_are_accounted_for_in_ten_megabytes() {
    let mut ledger = Ledger::new("node").unwrap();
    let counted = measure(|| {
        let mut arrivals = Vec::new();
        for producer in 0..10_000 {
            let stream = format!("producer-{producer}");
            ledger.apply(&Event::Reserved { stream: stream.clone(), epoch: 1, up_to: 1024 }).unwrap();
            for seq in 1..=10 {
                let outcome = Event::Outcome { stream: stream.clone(), epoch: 1, seq, class: Class::Accepted };
                ledger.apply(&outcome).unwrap();
                let record = RecordRef::new(&stream, "node", 1, seq).unwrap();
                arrivals.push(Arrival::Record { record, is_whole: true });
            }
        }
        ledger.apply(&Event::Receipts(ReceiptBatch { sink: "warehouse".into(), batch: 1, arrivals })).unwrap();
    });
    let megabytes = counted.bytes_current as f64 / 1e6;
    println!("{megabytes:.1} MB for 10,000 producers");
    assert!(megabytes <= 10.0, "{megabytes} MB");
}
