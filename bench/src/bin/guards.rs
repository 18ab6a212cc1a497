//! What a healthy call costs in its guards: ours beside those of other Rust libraries, in alternating runs.
//!
//! `cargo run --release --manifest-path bench/Cargo.toml --bin guards -- [--rounds N] [--calls N]`
//! `... --bin guards -- --instructions` counts instructions instead (valgrind's callgrind), which a noisy machine does
//! not disturb, and compares them with what `bench/instructions.txt` records; `--record` writes that file anew.
//!
//! Counts CPU time of the calling threads, not wall time. One thread, then two threads on one breaker, since that is
//! where locks and shared counters show. Every contestant is asked and told of a success, nothing else: the call itself
//! is empty. Ours is told the time (`seawall`), and reads the clock itself, twice a call, to be asked like the others
//! (`seawall+clock`). `seawall pipeline` is every default guard of a route for one healthy call: deadline, budget,
//! bulkhead, breaker, and the way back. Ratios are taken within a round, so that what disturbs the machine disturbs all
//! of them.

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use anyhow::{Context as _, bail};
use failsafe::CircuitBreaker as _;
use seawall_bench::{now, spread, thread_cpu_nanos};
use seawall_core::guard::breaker::{BreakerConfig, SharedBreaker};
use seawall_core::guard::budget::Budget;
use seawall_core::guard::bulkhead::{Entry, Priority};
use seawall_core::guard::deadline::Deadline;
use seawall_core::guard::pipeline::{Answered, Pipeline};
use seawall_core::outcome::Outcome;
use seawall_core::policy::Guards;
use seawall_core::time::Mono;
use tower::{Layer as _, Service as _, service_fn};
use tower_resilience_circuitbreaker::CircuitBreakerLayer;

type Op = Box<dyn FnMut(u64) + Send>;

/// Something to measure: its name, and an operation for each thread.
struct Contestant {
    name: &'static str,
    /// What a thread does for so many calls.
    of_thread: Box<dyn Fn(usize) -> Op>,
}

fn main() -> anyhow::Result<()> {
    let Options { rounds, calls, mode } = options()?;
    match mode {
        Mode::Times => {}
        Mode::Instructions { record } => return instructions(record),
        Mode::Only(name) => return only(&name, calls),
    }
    for threads in [1, 2] {
        println!("{threads} thread(s), {calls} calls each, {rounds} rounds; CPU ns per call");
        let contestants = contestants();
        let mut figures: Vec<Vec<f64>> = vec![Vec::new(); contestants.len()];
        for _ in 0..rounds {
            for (contestant, figures) in contestants.iter().zip(&mut figures) {
                figures.push(measure(contestant, threads, calls)?);
            }
        }
        println!("{:26} {:>8} {:>8} {:>8}   ratio to seawall (lowest..highest)", "", "median", "lowest", "highest");
        for (contestant, own) in contestants.iter().zip(&figures) {
            let ratios: Vec<f64> = own.iter().zip(&figures[0]).map(|(own, ours)| own / ours).collect();
            let [low, middle, high] = spread(own);
            let [ratio_low, ratio, ratio_high] = spread(&ratios);
            println!(
                "{:26} {middle:8.1} {low:8.1} {high:8.1}   {ratio:6.2} ({ratio_low:.2}..{ratio_high:.2})",
                contestant.name
            );
        }
        println!();
    }
    Ok(())
}

struct Options {
    rounds: usize,
    calls: u64,
    mode: Mode,
}

enum Mode {
    Times,
    Instructions {
        record: bool,
    },
    /// One contestant, for somebody who counts from outside.
    Only(String),
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options { rounds: 9, calls: 2_000_000, mode: Mode::Times };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("`{arg}` wants a value"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--calls" => options.calls = value()?.parse()?,
            "--only" => options.mode = Mode::Only(value()?),
            "--instructions" => options.mode = Mode::Instructions { record: false },
            "--record" => options.mode = Mode::Instructions { record: true },
            _ => bail!("unknown option `{arg}`; known are --rounds, --calls, --instructions and --record"),
        }
    }
    Ok(options)
}

fn only(name: &str, calls: u64) -> anyhow::Result<()> {
    let contestants = contestants();
    let contestant = contestants.iter().find(|contestant| contestant.name == name);
    (contestant.with_context(|| format!("nobody is called `{name}`"))?.of_thread)(0)(calls);
    Ok(())
}

/// Ours, whose instructions are recorded.
const RECORDED: [&str; 2] = ["seawall", "seawall pipeline"];
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");
/// More than this share above the record is a regression.
const TOLERANCE: f64 = 0.03;

fn instructions(record: bool) -> anyhow::Result<()> {
    let recorded = std::fs::read_to_string(RECORD).unwrap_or_default();
    let (mut written, mut worse) = (String::new(), Vec::new());
    for name in RECORDED {
        // The difference of two runs: what starting costs is in both.
        let (few, many) = (50_000, 150_000);
        let per_call = (count(name, many)? - count(name, few)?) as f64 / (many - few) as f64;
        let known = recorded.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse::<f64>().ok());
        let beside = known.map_or("nothing recorded".into(), |known| format!("{known:.1} recorded"));
        println!("{name}: {per_call:.1} instructions per call, {beside}");
        if known.is_some_and(|known| per_call > known * (1.0 + TOLERANCE)) {
            worse.push(name);
        }
        written += &format!("{name}: {per_call:.1}\n");
    }
    if record {
        std::fs::write(RECORD, written)?;
        return Ok(());
    }
    if worse.is_empty() { Ok(()) } else { bail!("more instructions than recorded: {}", worse.join(", ")) }
}

/// Instructions of a run with one contestant.
fn count(name: &str, calls: u64) -> anyhow::Result<i64> {
    let out = tempfile::NamedTempFile::new()?;
    let status = std::process::Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.path().display()))
        .arg(std::env::current_exe()?)
        .args(["--only", name, "--calls", &calls.to_string()])
        .status()
        .context("cannot start valgrind (Debian's package `valgrind`)")?;
    anyhow::ensure!(status.success(), "valgrind ended with {status}");
    let text = std::fs::read_to_string(out.path())?;
    let total = text.lines().find_map(|line| line.strip_prefix("summary: ")).context("callgrind gave no summary")?;
    Ok(total.trim().parse()?)
}

/// CPU nanoseconds per call, over all threads.
fn measure(contestant: &Contestant, threads: usize, calls: u64) -> anyhow::Result<f64> {
    let mut ops: Vec<Op> = (0..threads).map(|thread| (contestant.of_thread)(thread)).collect();
    let cpu_nanos: u64 = std::thread::scope(|scope| {
        let running: Vec<_> = ops
            .iter_mut()
            .map(|op| {
                scope.spawn(move || {
                    op(calls / 10);
                    let begin = thread_cpu_nanos();
                    op(calls);
                    thread_cpu_nanos() - begin
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    });
    Ok(cpu_nanos as f64 / (calls * threads as u64) as f64)
}

fn contestants() -> Vec<Contestant> {
    vec![seawall(), seawall_with_clock(), pipeline(), recloser(), failsafe(), tower_resilience()]
}

fn seawall() -> Contestant {
    let breaker = our_breaker();
    let of_thread = move |_| -> Op {
        let (breaker, mut at) = (Arc::clone(&breaker), 0);
        Box::new(move |calls| {
            for _ in 0..calls {
                // A hundred thousand calls a second.
                at += 10_000;
                let now = Mono::from_nanos(at);
                let Ok(permit) = breaker.admit(black_box(now)) else { continue };
                black_box(());
                breaker.record(now, permit, Outcome::Success, Duration::from_nanos(5_000));
            }
        })
    };
    Contestant { name: "seawall", of_thread: Box::new(of_thread) }
}

fn seawall_with_clock() -> Contestant {
    let breaker = our_breaker();
    let of_thread = move |_| -> Op {
        let (breaker, origin) = (Arc::clone(&breaker), now());
        let now = move || Mono::from_nanos(origin.elapsed().as_nanos() as u64);
        Box::new(move |calls| {
            for _ in 0..calls {
                let began = now();
                let Ok(permit) = breaker.admit(began) else { continue };
                let ended = now();
                breaker.record(ended, permit, Outcome::Success, ended.since(began));
            }
        })
    };
    Contestant { name: "seawall+clock", of_thread: Box::new(of_thread) }
}

fn pipeline() -> Contestant {
    let budget = Arc::new(Mutex::new(Budget::new(Mono::ZERO)));
    let pipeline = Pipeline::new(Guards::default(), budget, (1, 4), Mono::ZERO, |_| {});
    let pipeline = Arc::new(pipeline.expect("the default guards are sane"));
    let of_thread = move |_| -> Op {
        let (pipeline, mut at) = (Arc::clone(&pipeline), 0);
        Box::new(move |calls| {
            for _ in 0..calls {
                at += 10_000;
                let now = black_box(Mono::from_nanos(at));
                let deadline = Deadline::new(now, Duration::from_secs(30), None);
                if pipeline.enter(now, &deadline, Priority::Normal) != Ok(Entry::Admitted) {
                    continue;
                }
                if let Ok(leave) = pipeline.admit(now) {
                    black_box(deadline.of_try(now, Duration::from_secs(30)));
                    let took = Duration::from_nanos(5_000);
                    pipeline.report(now, leave, Outcome::Success, took, Answered::default());
                }
                black_box(pipeline.leave());
                pipeline.end();
            }
        })
    };
    Contestant { name: "seawall pipeline", of_thread: Box::new(of_thread) }
}

fn our_breaker() -> Arc<SharedBreaker> {
    let breaker = SharedBreaker::new(BreakerConfig::default(), 1, 4, Mono::ZERO, |_| {});
    Arc::new(breaker.expect("the default configuration makes a breaker"))
}

fn recloser() -> Contestant {
    let breaker = Arc::new(recloser::Recloser::custom().error_rate(0.5).closed_len(100).build());
    let of_thread = move |_| -> Op {
        let breaker = Arc::clone(&breaker);
        Box::new(move |calls| {
            for _ in 0..calls {
                let _ = black_box(breaker.call(|| black_box(Ok::<(), ()>(()))));
            }
        })
    };
    Contestant { name: "recloser", of_thread: Box::new(of_thread) }
}

fn failsafe() -> Contestant {
    let breaker = failsafe::Config::new().build();
    let of_thread = move |_| -> Op {
        let breaker = breaker.clone();
        Box::new(move |calls| {
            for _ in 0..calls {
                let _ = black_box(breaker.call(|| black_box(Ok::<(), ()>(()))));
            }
        })
    };
    Contestant { name: "failsafe", of_thread: Box::new(of_thread) }
}

fn tower_resilience() -> Contestant {
    let layer = CircuitBreakerLayer::builder().failure_rate_threshold(0.5).sliding_window_size(100).build();
    let layer = layer.expect("its defaults make a breaker");
    let service = layer.layer(service_fn(|_: ()| std::future::ready(Ok::<(), std::io::Error>(()))));
    let of_thread = move |_| -> Op {
        let mut service = service.clone();
        Box::new(move |calls| {
            let mut context = Context::from_waker(Waker::noop());
            for _ in 0..calls {
                let _ = service.poll_ready(&mut context);
                let mut call = std::pin::pin!(service.call(()));
                while call.as_mut().poll(&mut context).is_pending() {}
            }
        })
    };
    Contestant { name: "tower-resilience", of_thread: Box::new(of_thread) }
}
