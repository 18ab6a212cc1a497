//! CPU per request of Seawall (all guards on), nginx and HAProxy (Debian's packages), in alternating runs.
//!
//! `cargo run --release --manifest-path bench/Cargo.toml -- [--rounds N] [--seconds S] [--only ROW]`
//!
//! Every peer stands between the same nginx upstream and the same load. What counts is CPU time (user and system) of
//! the peer's processes per request that was answered, never wall time: machines are shared. Peers take turns within a
//! round, and ratios are taken within a round, so that what disturbs the machine disturbs all of them.

use anyhow::{Context as _, bail, ensure};
use seawall_bench::peers::{Peer, Street};
use seawall_bench::{load, percentile, spread};

/// A row of the table: what is asked, and what a request of it may cost, as ratios to HAProxy and nginx.
struct Row {
    name: &'static str,
    what: &'static str,
    goals: [Option<f64>; 2],
    ask: fn(&Peer, u32) -> Option<anyhow::Result<f64>>,
}

const ROWS: [Row; 6] = [
    Row {
        name: "small-32",
        what: "HTTP/1.1, 27-byte answers, 32 connections kept alive",
        goals: [Some(1.0), Some(1.1)],
        ask: |peer, seconds| Some(load::wrk(peer.http, "/", 32, seconds, false)),
    },
    Row {
        name: "small-256",
        what: "the same, 256 connections",
        goals: [Some(1.0), Some(1.1)],
        ask: |peer, seconds| Some(load::wrk(peer.http, "/", 256, seconds, false)),
    },
    Row {
        name: "big",
        what: "answers of 1 MiB, 16 connections",
        goals: [Some(1.2), None],
        ask: |peer, seconds| Some(load::wrk(peer.http, "/big", 16, seconds, false)),
    },
    Row {
        name: "new",
        what: "a new connection for each request, 32 at once",
        goals: [Some(1.2), None],
        ask: |peer, seconds| Some(load::wrk(peer.http, "/", 32, seconds, true)),
    },
    Row {
        name: "h2",
        what: "HTTP/2 from clients, HTTP/1.1 to the upstream, 8 connections of 16 streams",
        goals: [None, None],
        ask: |peer, seconds| Some(load::h2load(peer.h2, seconds)),
    },
    Row {
        name: "tcp",
        what: "the first row carried as TCP",
        goals: [Some(1.2), None],
        ask: |peer, seconds| peer.tcp.map(|port| load::wrk(port, "/", 32, seconds, false)),
    },
];

struct Options {
    rounds: usize,
    seconds: u32,
    only: Option<String>,
}

impl Options {
    fn wants(&self, row: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == row)
    }
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let street = Street::open(options.wants("faults"))?;
    println!("{} rounds of {} s a peer; CPU us per request (user + system), medians", options.rounds, options.seconds);
    println!("ratios within a round: median, lowest to highest\n");
    for row in ROWS.iter().filter(|row| options.wants(row.name)) {
        measure(row, &street.peers[..3], &options)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if options.wants("latency") {
        runtime.block_on(latency(&street, &options))?;
    }
    if options.wants("idle") {
        runtime.block_on(idle(&street))?;
    }
    if let (true, [_, _, off, on]) = (options.wants("faults"), &street.peers[..]) {
        faults(off, on, &options)?;
    }
    Ok(())
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options { rounds: 7, seconds: 3, only: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--help" {
            println!("seawall-bench [--rounds N] [--seconds S] [--only ROW]\nrows: {}", known_rows().join(", "));
            std::process::exit(0);
        }
        let value = arguments.next().with_context(|| format!("`{name}` needs a value"))?;
        match name.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--only" => options.only = Some(value),
            _ => bail!("unknown option `{name}`; known are --rounds, --seconds and --only"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "numbers must be above zero");
    let known = known_rows();
    if let Some(only) = options.only.as_ref().filter(|only| !known.contains(&only.as_str())) {
        bail!("no row is called `{only}`; there are {}", known.join(", "));
    }
    Ok(options)
}

fn known_rows() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.name).chain(["latency", "idle", "faults"]).collect()
}

/// What a request of a row costs each of those who can be asked.
fn measure(row: &Row, peers: &[Peer], options: &Options) -> anyhow::Result<()> {
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); peers.len()];
    for round in 0..=options.rounds {
        for (peer, costs) in peers.iter().zip(&mut costs) {
            // The first is to warm up.
            let seconds = if round == 0 { 1 } else { options.seconds };
            let Some(cost) = cost(peer, seconds, row.ask)? else { continue };
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    println!("{}: {}", row.name, row.what);
    for (peer, costs) in peers.iter().zip(&costs).filter(|(_, costs)| !costs.is_empty()) {
        println!("  {:<10}{:>8.2} us", peer.name, spread(costs)[1]);
    }
    for (index, goal) in [(1, row.goals[0]), (0, row.goals[1])] {
        if !costs[index].is_empty() {
            let goal = goal.map_or(String::new(), |goal| format!("   (goal: at most {goal:.1})"));
            println!("  seawall / {:<8} {}{goal}", peers[index].name, shown(&ratios(&costs[2], &costs[index])));
        }
    }
    println!();
    Ok(())
}

/// CPU microseconds per request of one run.
fn cost(peer: &Peer, seconds: u32, ask: fn(&Peer, u32) -> Option<anyhow::Result<f64>>) -> anyhow::Result<Option<f64>> {
    let before = peer.cpu_us()?;
    let Some(requests) = ask(peer, seconds) else { return Ok(None) };
    let requests = requests.with_context(|| format!("{} did not answer", peer.name))?;
    Ok(Some((peer.cpu_us()? - before) / requests))
}

/// What each adds to the time of an answer, at half of what Seawall answers when asked for all it can.
async fn latency(street: &Street, options: &Options) -> anyhow::Result<()> {
    const SHARES: [f64; 3] = [0.50, 0.99, 0.999];
    let full = load::wrk(street.peers[2].http, "/", 32, options.seconds, false)? / f64::from(options.seconds);
    let rate = (full / 2.0) as u32;
    println!(
        "latency: {rate} requests a second (half load), 32 connections; us from when each was due, less direct's in the same \
         round; medians of the rounds"
    );
    println!("  {:<10}{:>8}{:>8}{:>8}", "", "p50", "p99", "p99.9");
    let peers = &street.peers[..3];
    let mut direct: [Vec<f64>; 3] = Default::default();
    let mut added: Vec<[Vec<f64>; 3]> = vec![Default::default(); peers.len()];
    for _ in 0..options.rounds {
        let took = load::pace(street.upstream, rate, 32, options.seconds).await?;
        let base = SHARES.map(|share| f64::from(percentile(&took, share)));
        direct.iter_mut().zip(base).for_each(|(direct, base)| direct.push(base));
        for (peer, added) in peers.iter().zip(&mut added) {
            let took = load::pace(peer.http, rate, 32, options.seconds).await?;
            for (place, added) in added.iter_mut().enumerate() {
                added.push(f64::from(percentile(&took, SHARES[place])) - base[place]);
            }
        }
    }
    let rows = std::iter::once(("direct", &direct)).chain(peers.iter().map(|peer| peer.name).zip(&added));
    for (name, took) in rows {
        let [p50, p99, p999] = [0, 1, 2].map(|place| spread(&took[place])[1]);
        println!("  {name:<10}{p50:>8.0}{p99:>8.0}{p999:>8.0}");
    }
    println!();
    Ok(())
}

/// Memory of a connection that has asked once and is silent.
async fn idle(street: &Street) -> anyhow::Result<()> {
    const CONNECTIONS: u32 = 8_000;
    println!("idle: {CONNECTIONS} silent connections; private memory of each peer, a connection");
    for peer in &street.peers[..3] {
        let before = peer.private_bytes()?;
        let streams = load::idle(peer.http, CONNECTIONS).await?;
        let grown = peer.private_bytes()?.saturating_sub(before);
        drop(streams);
        println!("  {:<10}{:>8.2} KiB", peer.name, grown as f64 / 1024.0 / f64::from(CONNECTIONS));
    }
    println!();
    Ok(())
}

/// What it costs that faults could be placed, while none is.
fn faults(off: &Peer, on: &Peer, options: &Options) -> anyhow::Result<()> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        for (peer, costs) in [(off, &mut without), (on, &mut with)] {
            let Some(cost) = cost(peer, options.seconds, ROWS[0].ask)? else { continue };
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    println!("faults: the first row with `faults: on` and none placed / without: {}", shown(&ratios(&with, &without)));
    Ok(())
}

fn ratios(these: &[f64], to: &[f64]) -> Vec<f64> {
    these.iter().zip(to).map(|(this, to)| this / to).collect()
}

fn shown(ratios: &[f64]) -> String {
    let [low, middle, high] = spread(ratios);
    format!("{middle:.2}, {low:.2} to {high:.2}")
}
