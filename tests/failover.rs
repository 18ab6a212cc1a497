//! A zone goes under load: three nginx, each in a network namespace of its own, and a node that asks the one of its own
//! zone while it can. Nobody is to notice but by its own clock, and the way back is no stampede.
//!
//! `ZONE_ROUNDS=20 cargo test -p seawall --test e2e failover -- --nocapture` plays more rounds, and prints the times.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::house::{Client, Node, Place, wait_for, wait_until};
use crate::network::{Network, address_in, command_in};
use crate::process::Process;

const CLIENTS: usize = 8;
const ZONES: [&str; 3] = ["one", "two", "three"];
/// An answer within this is as quick as ever: ten times what this machine takes when it is busy with other things.
const QUICK: Duration = Duration::from_millis(100);
/// So many quick answers in a row are full service.
const IN_A_ROW: usize = 100;

/// What happens to a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// Every packet is dropped: what connects hangs, and so does who waits for an answer.
    Cut,
    /// SIGKILL to all that runs there.
    Kill,
}

/// A web server that answers with the name of its zone.
struct Zone {
    place: usize,
    address: SocketAddr,
    dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Zone {
    fn new(network: Option<&Network>, place: usize) -> Self {
        let (address, dir) = (address_in(network, place), tempfile::tempdir().unwrap());
        let (home, name) = (dir.path().display(), ZONES[place]);
        let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {home}/{what};\n"))
            .concat();
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let config = format!(
            "{user}daemon off;\nworker_processes 1;\npid {home}/nginx.pid;\nevents {{ worker_connections 512; }}\n\
             http {{\naccess_log off;\nkeepalive_requests 1000000;\n{folders}\
             server {{\nlisten {address};\nlocation / {{ return 200 '{name}'; }}\n}}\n}}\n"
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut zone = Self { place, address, dir, process: None };
        zone.run(network);
        zone
    }

    fn run(&mut self, network: Option<&Network>) {
        let dir = self.dir.path();
        let mut command = command_in(network, self.place, Path::new("nginx"));
        command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).args(["-e", "stderr"]);
        self.process = Some(Process::start(&mut command));
        wait_until("nginx serves", || Client::connect(self.address).is_ok());
    }
}

/// What the guide (docs/guide/balance.md) says to set, and a way back of five seconds.
fn config(zones: &[Zone]) -> String {
    // All that may be on their way to a zone when it goes.
    let at_once = CLIENTS;
    let endpoint = |zone: &Zone| format!("{{ address: \"{}\", zone: {} }}", zone.address, ZONES[zone.place]);
    let endpoints: Vec<String> = zones.iter().map(endpoint).collect();
    format!(
        "zone: one\nzones: [one, two, three]\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: api, policy: reads }}] }}]\n\
         upstreams:\n  api:\n    endpoints: [{}]\n    connect_timeout: 200ms\n    \
         health: {{ path: /, every: 500ms, timeout: 300ms, unhealthy_after: 2, healthy_after: 2 }}\n    \
         outlier: {{ consecutive_failures: 5, eject_for: 3s, eject_for_max: 3s }}\n    balance: {{ slow_start: 5s }}\n\
         policies:\n  reads: {{ timeout: 2s, try_timeout: 300ms, retry: {{ attempts: 3, backoff: 10ms..50ms, budget_at_once: {at_once} }} }}\n",
        endpoints.join(", ")
    )
}

/// One request of the load.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    took: Duration,
    status: u16,
    /// Which zone answered.
    by: Option<usize>,
}

impl Asked {
    fn is_well(&self) -> bool {
        self.status == 200 && self.took <= QUICK
    }
}

/// Clients that go on until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(node: &Node) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let client = |_| {
            let (stop, asked, mut client) = (Arc::clone(&stop), Arc::clone(&asked), node.client());
            thread::spawn(move || {
                while !stop.load(Relaxed) {
                    let at = Instant::now();
                    let answer = client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
                    let by = ZONES.iter().position(|zone| *zone == answer.body);
                    let (took, status) = (at.elapsed(), answer.status);
                    asked.lock().unwrap().push(Asked { at, took, status, by });
                    thread::sleep(Duration::from_millis(10));
                }
            })
        };
        Self { clients: (0..CLIENTS).map(client).collect(), stop, asked }
    }

    /// Those that began after this, in the order they began.
    fn since(&self, begin: Instant) -> Vec<Asked> {
        let mut asked: Vec<Asked> = self.asked.lock().unwrap().iter().filter(|it| it.at >= begin).copied().collect();
        asked.sort_by_key(|it| it.at);
        asked
    }

    /// The beginning of the first so many requests in a row that are as wanted.
    fn first_row(&self, begin: Instant, wanted: impl Fn(&Asked) -> bool) -> Option<Instant> {
        let asked = self.since(begin);
        let mut row = 0;
        for (index, one) in asked.iter().enumerate() {
            row = if wanted(one) { row + 1 } else { 0 };
            if row == IN_A_ROW {
                return Some(asked[index + 1 - row].at);
            }
        }
        None
    }

    fn end(self) -> Vec<Asked> {
        self.stop.store(true, Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// What was seen in one round.
struct Seen {
    /// From the blow to full service.
    gap: Duration,
    /// Answers that were no good.
    errors: usize,
    /// Good ones that were not quick.
    slow: usize,
    asked: usize,
    /// Of the first hundred answers since the first of the own zone, those of it.
    own_at_first: usize,
    /// From that first to a hundred in a row.
    return_took: Duration,
}

fn is_own(asked: &Asked) -> bool {
    asked.by == Some(0)
}

fn round(network: Option<&Network>, zones: &mut [Zone], node: &Node, blow: Blow) -> Seen {
    let refused = || node.metrics().get("seawall_retries_refused_total{route=\"api\"}");
    let (load, refused_before) = (Load::start(node), refused());
    let begin = Instant::now();
    wait_until("the own zone serves", || load.first_row(begin, |it| it.is_well() && is_own(it)).is_some());
    let blown = Instant::now();
    match (blow, network) {
        (Blow::Cut, Some(network)) => network.cut(0),
        _ => zones[0].process = None,
    }
    let full = wait_for("full service elsewhere", || load.first_row(blown, |it| it.is_well() && !is_own(it)));
    // Not before its checks have seen it too: else the return would be over before it has begun.
    wait_until("it is known to be ill", || {
        let status = node.status();
        status["upstreams"][0]["endpoints"][0]["healthy"] == false && status["upstreams"][0]["is_spilling"] == true
    });
    let mended = Instant::now();
    match (blow, network) {
        (Blow::Cut, Some(network)) => network.mend(0),
        _ => zones[0].run(network),
    }
    wait_until("the own zone serves again", || load.first_row(mended, |it| it.is_well() && is_own(it)).is_some());
    wait_until("the journal says that it is back", || node.status()["upstreams"][0]["is_spilling"] == false);
    let after = load.since(mended);
    let back = after.iter().position(is_own).expect("it serves");
    let own_at_first = after[back..].iter().take(IN_A_ROW).filter(|it| is_own(it)).count();
    let whole = load.first_row(mended, |it| it.is_well() && is_own(it)).expect("it serves");
    let asked = load.end();
    let errors = asked.iter().filter(|it| it.status != 200).count();
    let slow = asked.iter().filter(|it| it.status == 200 && !it.is_well()).count();
    let not_afforded = refused() - refused_before;
    assert!(errors as u64 <= not_afforded, "{blow:?}: {errors} errors, and the budget refused {not_afforded} retries");
    assert!(
        own_at_first < IN_A_ROW / 2,
        "{blow:?}: {own_at_first} of the first {IN_A_ROW} went to who had just come back"
    );
    Seen { gap: full - blown, errors, slow, asked: asked.len(), own_at_first, return_took: whole - after[back].at }
}

#[test]
fn a_zone_goes_and_calls_are_answered_from_another() {
    let rounds: usize = std::env::var("ZONE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let network = Network::new(3);
    let network = network.as_ref();
    let mut zones: Vec<Zone> = (0..3).map(|place| Zone::new(network, place)).collect();
    let place = Place::new(&config(&zones));
    let node = place.node();
    // Without namespaces there is nothing to cut, which has been said.
    let blows = if network.is_some() { vec![Blow::Cut, Blow::Kill] } else { vec![Blow::Kill] };
    for blow in blows {
        let seen: Vec<Seen> = (0..rounds).map(|_| round(network, &mut zones, &node, blow)).collect();
        let mut gaps: Vec<Duration> = seen.iter().map(|it| it.gap).collect();
        gaps.sort();
        let mut returns: Vec<Duration> = seen.iter().map(|it| it.return_took).collect();
        returns.sort();
        let sum = |of: fn(&Seen) -> usize| seen.iter().map(of).sum::<usize>();
        println!(
            "{blow:?}, {rounds} rounds: full service elsewhere after median {:?} worst {:?}; of {} requests {} errors, {} \
             slower than {QUICK:?}; the return took median {:?}, own zone's share of its first {IN_A_ROW} answers at most {} %",
            gaps[rounds / 2],
            gaps[rounds - 1],
            sum(|it| it.asked),
            sum(|it| it.errors),
            sum(|it| it.slow),
            returns[rounds / 2],
            seen.iter().map(|it| it.own_at_first).max().unwrap_or(0) * 100 / IN_A_ROW,
        );
    }
    let journal = node.journal();
    let blown = rounds * if network.is_some() { 2 } else { 1 };
    assert_eq!((journal.count("traffic_spilled"), journal.count("traffic_home")), (blown, blown), "each is told once");
    assert!(node.stop().success());
}
