//! The logistics company that suffers: `seawall demo`.
//!
//! Scanners report parcels, a managed queue in one zone takes the reports, a predictor per zone asks a carrier for a
//! price and predicts the arrival, a warehouse must not lose a record. Every part is a process of its own and speaks
//! HTTP over loopback. The same seeded hour of trouble is played twice: once as the company was, once with each zone's
//! calls going through its Seawall node.
//!
//! # Is "before" a straw man?
//! It is meant not to be. The company's code is the same program in both runs; only the base addresses and one header
//! (`Idempotency-Key`, flag `--keyed`) differ. What it does is what such code commonly does:
//! - a second of patience and up to three tries, one right after the other: the first retry loop everybody writes;
//! - an answer is what was read until the peer closed, and nobody compares it with `Content-Length`: so did `requests`
//!   on urllib3 1.x and Ruby's `Net::HTTP` by default, and so does much hand-written code;
//! - a text format with the number last, which still parses when cut;
//! - a batch is acknowledged as a whole when it was worked through; one event that fails three times is logged and
//!   dropped, so that it does not block the others;
//! - no idempotency key, because the queue's tutorial has none;
//! - a health monitor that asks `/healthz`, which the provider answers from a place that is always well.
//!
//! None of these is foolish on a calm day. What it costs on another day is what the demo counts.
//!
//! # Who decides
//! The warehouse's own rows against the scanners' own manifests ([`tally`]); availability and latency are measured by
//! the clients. From Seawall come only its ledger's verdict and the time of its first journal entry.
//!
//! # Rooms
//! Pure: [`tracking`], [`model`], [`schedule`], [`plan`], [`tally`], [`figures`], [`report`]. Processes: [`queue`],
//! [`carrier`], [`warehouse`], [`predictor`], [`producer`], [`monitor`], [`keep`], on [`web`] and [`caller`].
//! Conducting: [`company`], [`nodes`], [`conduct`].

pub mod caller;
pub mod carrier;
pub mod clock;
pub mod company;
pub mod conduct;
pub mod figures;
pub mod keep;
pub mod model;
pub mod monitor;
pub mod nodes;
pub mod plan;
pub mod predictor;
pub mod producer;
pub mod queue;
pub mod report;
pub mod schedule;
pub mod tally;
pub mod tracking;
pub mod warehouse;
pub mod web;

use std::cell::Cell;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::conduct::{Programs, Stage};
use crate::figures::{Outcome, Record, Run};
use crate::plan::Plan;

/// `seawall demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {
    /// Seed of events, trouble and moods; the same seed plays the same score
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Plays the score this many times as fast (0.25 to 10)
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// How many events the scanners report [default: as many as fit]
    #[arg(long)]
    pub records: Option<usize>,
    /// Events per second over all scanners, outside the surge [default: 80]
    #[arg(long)]
    pub rate: Option<f64>,
    /// Your own events instead of the generator's: CSV with header, or JSON lines, with the columns shipment_id,
    /// sequence, carrier, weekday (0 = Monday), hour, distance_km, weather, load (0..1) and, if known, actual_hours
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Where the report goes: one file that opens offline
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    pub report: PathBuf,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// Leave the company behind Seawall up, with fresh events, until Ctrl-C
    #[arg(long)]
    pub keep_running: bool,
    /// Play one run only; then no promise is judged and the exit status is 1
    #[arg(long, hide = true)]
    pub only: Option<Run>,
}

impl Default for DemoArgs {
    fn default() -> Self {
        Self {
            seed: 7,
            speed: 1.0,
            records: None,
            rate: None,
            input: None,
            report: "report.html".into(),
            json: false,
            keep_running: false,
            only: None,
        }
    }
}

/// `seawall demo-role`: one process of the company.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Role {
    /// The managed queue
    Queue(queue::QueueArgs),
    /// The carrier's quote API
    Carrier(carrier::CarrierArgs),
    /// The warehouse
    Warehouse(warehouse::WarehouseArgs),
    /// The ETA predictor of a zone
    Predictor(predictor::PredictorArgs),
    /// The scanners' gateway of a zone
    Producer(producer::ProducerArgs),
    /// The health monitor
    Monitor(monitor::MonitorArgs),
    /// Keeps a program for as long as standard input is open
    Keep(keep::KeepArgs),
}

/// Plays a role until its work is done, standard input closes, or a signal asks it to stop.
///
/// # Errors
/// When the role cannot do its work: a port is taken, a file is missing.
pub async fn play(role: Role) -> anyhow::Result<()> {
    let parent = parent_gone();
    let stop = async {
        tokio::select! {
            () = parent.cancelled() => {}
            _ = stop_asked() => {}
        }
    };
    if let Role::Keep(args) = role {
        return keep::play(args, stop).await;
    }
    tokio::select! {
        result = perform(role) => result,
        () = stop => Ok(()),
    }
}

async fn perform(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Queue(args) => queue::play(args).await,
        Role::Carrier(args) => carrier::play(args).await,
        Role::Warehouse(args) => warehouse::play(args).await,
        Role::Predictor(args) => predictor::play(args).await,
        Role::Producer(args) => producer::play(args).await,
        Role::Monitor(args) => monitor::play(args).await,
        Role::Keep(args) => keep::play(args, std::future::pending()).await,
    }
}

/// Cancelled when standard input ends. A thread reads it, not the runtime: a runtime would wait for that read when the
/// role's work is done.
fn parent_gone() -> CancellationToken {
    let gone = CancellationToken::new();
    let told = gone.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while matches!(std::io::stdin().read(&mut bytes), Ok(1..)) {}
        told.cancel();
    });
    gone
}

/// SIGINT, SIGTERM, or a terminal that is gone. Heard from the call on, not only once somebody waits.
fn stop_asked() -> impl Future<Output = &'static str> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let signals = kinds.map(signal);
    async move {
        let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    }
}

/// Plays the whole demo with `seawall` as both the company's program and the gateway. True if what Seawall promises
/// held.
///
/// # Errors
/// When the arguments make no sense, something does not start, or a signal ends it early.
pub async fn run(args: DemoArgs, seawall: PathBuf) -> anyhow::Result<bool> {
    run_with(args, Programs { company: seawall.clone(), seawall }).await
}

/// [`run`] with a program of its own for the company.
///
/// # Errors
/// As for [`run`].
pub async fn run_with(args: DemoArgs, programs: Programs) -> anyhow::Result<bool> {
    let stopped = stop_asked();
    let plan = Plan::new(&args)?;
    let dir = tempfile::Builder::new().prefix("seawall-demo-").tempdir().context("cannot make a temporary folder")?;
    let before = Stage::new(Run::Before, &plan, &programs, dir.path().join("before"))?;
    let after = Stage::new(Run::After, &plan, &programs, dir.path().join("after"))?;
    introduce(&plan);
    let concluded = Cell::new(None);
    let story = async {
        let held = both(&args, &plan, &before, &after).await?;
        concluded.set(Some(held));
        if args.keep_running && args.only != Some(Run::Before) {
            linger(&after).await?;
        }
        anyhow::Ok(held)
    };
    // One place hears the signals for all of it, so that none is missed in between.
    let result = tokio::select! {
        result = story => result,
        signal = stopped => concluded.get().ok_or_else(|| anyhow!("stopped by {signal}")),
    };
    before.stop().await;
    after.stop().await;
    result
}

/// Both runs and the counting. The company behind Seawall is still up afterwards.
async fn both(args: &DemoArgs, plan: &Plan, before: &Stage<'_>, after: &Stage<'_>) -> anyhow::Result<bool> {
    let mut records = Vec::with_capacity(2);
    if args.only != Some(Run::After) {
        eprintln!("{}", Run::Before.name());
        records.push(before.play().await?);
        before.stop().await;
    }
    if args.only != Some(Run::Before) {
        eprintln!("{}", Run::After.name());
        records.push(after.play().await?);
    }
    conclude(args, plan, &records)
}

fn introduce(plan: &Plan) {
    eprintln!(
        "seawall demo: {} events at {:.0}/s (twice that in the surge), seed {}, {:.0} s of trouble, played twice",
        plan.scans.len(),
        plan.rate,
        plan.seed,
        plan.length_ms() as f64 / 1_000.0
    );
    for note in &plan.notes {
        eprintln!("  note: {note}");
    }
}

/// Counts, writes the report, prints. True if the promise held.
fn conclude(args: &DemoArgs, plan: &Plan, records: &[Record]) -> anyhow::Result<bool> {
    let of = |run| records.iter().find(|record| record.run == run).map(|record| figures::figures(record).0);
    let outcome =
        Outcome { seed: plan.seed, before: of(Run::Before), after: of(Run::After), model: plan.model_error()? };
    let page = report::page(&outcome, &records.iter().collect::<Vec<_>>());
    std::fs::write(&args.report, page).with_context(|| format!("cannot write `{}`", args.report.display()))?;
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        let model = &outcome.model;
        println!("\n{}", figures::table(&outcome));
        println!(
            "ETA model: mean error {:.2} h on {} unseen trips; distance / average speed: {:.2} h",
            model.mae_hours, model.trips_tested, model.mae_baseline_hours
        );
    }
    eprintln!("report: {}", args.report.display());
    if records.iter().any(|record| record.drained_after_s.is_none()) {
        bail!("a run did not come to rest in time: its figures are in the report, and not to be trusted");
    }
    Ok(outcome.after.is_some_and(|after| after.promise_held()) && outcome.before.is_some())
}

/// Fresh events until somebody ends it.
async fn linger(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.encore()?;
    eprintln!("\nThe company is up, trouble is over, events keep coming for an hour. Dashboards:");
    for dashboard in stage.dashboards() {
        eprintln!("  {dashboard}");
    }
    eprintln!("Ctrl-C ends it.");
    std::future::pending().await
}
