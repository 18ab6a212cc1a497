//! `seawall simulate`: what the numbers of a configuration would do to some traffic, before the night they matter.
//!
//! The guards are the gateway's own and the time is virtual (`seawall_core::whatif`); here are the command line,
//! recorded traffic, and three ways to look at what came of it: words with a table (`words.rs`, `fold.rs`), JSON, and a
//! page with plots (`page.rs`). The output depends on the arguments and the files alone: no clock, no chance but the
//! seed's.

mod course;
mod fold;
mod page;
mod plan;
mod recording;
mod words;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use seawall_core::guard::rate::RateConfig;
use seawall_core::policy::Protocol;
use seawall_core::time::Mono;
use seawall_core::units::{Ratio, parse_duration, parse_rate, parse_ratio};
use seawall_core::whatif::{Report, Scenario, Stretch, Traffic, Trouble};
use seawall_store::Clock as _;
use serde_json::{Value, json};

use self::plan::{Subject, parse_fault};
use super::{CONFIG_FILE, Ended, UsageError, print, which};
use crate::clock::RealClock;
use crate::config::parse_rate_limit;

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall simulate --fault \"60s..90s down\"                      an outage of half a minute
  seawall simulate --route quotes --rate 40/s --fault \"1m..2m slow x20\" --html report.html
  seawall simulate --config now.yaml --compare tomorrow.yaml --fault \"60s..90s fails 70%\"
  seawall simulate --callers 20 --capacity 10 --latency 100ms --rate 80/s --fault \"30s..40s slow x10\"
  seawall simulate --traffic requests.csv                        recorded: at,latency_ms,outcome
  seawall journal --json --kind traffic_changed | seawall simulate --journal - --fault \"60s..90s down\"

Without a configuration and without ./seawall.yaml: the default guards. The same command gives the same bytes.
Exit status: 0 played; 1 a file cannot be used; 2 the command line cannot be understood.";

#[derive(Args, Clone, Debug)]
pub(super) struct SimulateArgs {
    /// The configuration whose guards are tried [default: ./seawall.yaml if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The route; needed where there are several
    #[arg(long)]
    route: Option<String>,
    /// Another configuration, played with the same traffic, beside the first
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    /// Requests per second; the lowest of a diurnal pattern
    #[arg(long, value_parser = parse_rate, default_value = "100/s", help_heading = "Traffic")]
    rate: f64,
    /// How they come
    #[arg(long, value_enum, default_value_t = Pattern::Poisson, help_heading = "Traffic")]
    pattern: Pattern,
    /// The highest rate of a diurnal pattern, which rises and falls once
    #[arg(long, value_name = "RATE", value_parser = parse_rate, help_heading = "Traffic")]
    peak: Option<f64>,
    /// Recorded requests in place of all that: CSV with the columns `at` (seconds, or RFC 3339) or `at_ms`,
    /// `latency_ms`, and `outcome` (ok, error, or a status)
    #[arg(long, value_name = "FILE", help_heading = "Traffic", conflicts_with_all = ["rate", "pattern", "peak"])]
    traffic: Option<PathBuf>,
    /// The course a node's journal tells of in place of all that, the dependency's included: what
    /// `seawall journal --json` prints, `-` for standard input
    #[arg(
        long, value_name = "FILE", help_heading = "Traffic",
        conflicts_with_all = ["rate", "pattern", "peak", "traffic", "latency", "latency_p99", "failure_rate"]
    )]
    journal: Option<PathBuf>,
    /// How long, in virtual time [default: 10m, or the whole record]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, help_heading = "Traffic")]
    lasts: Option<Duration>,
    /// Naive callers in front, who try again at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000), help_heading = "Traffic")]
    callers: Option<u32>,
    /// How often each of them tries
    #[arg(
        long, value_name = "K", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100),
        requires = "callers", help_heading = "Traffic"
    )]
    caller_attempts: u32,
    /// How long each try of theirs waits
    #[arg(
        long, value_name = "TIME", default_value = "1s", value_parser = parse_caller_timeout, requires = "callers",
        help_heading = "Traffic"
    )]
    caller_timeout: Duration,
    /// Nodes of Seawall; each has guards of its own, and a call goes to any
    #[arg(
        long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000),
        help_heading = "Traffic"
    )]
    nodes: u32,

    /// Half of the dependency's answers are faster
    #[arg(
        long, value_name = "TIME", value_parser = parse_duration, default_value = "20ms", conflicts_with = "traffic",
        help_heading = "Dependency"
    )]
    latency: Duration,
    /// One in a hundred is slower [default: 4 times as long]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "traffic", help_heading = "Dependency")]
    latency_p99: Option<Duration>,
    /// Calls it serves at the same time [default: any number]
    #[arg(
        long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), conflicts_with = "traffic",
        help_heading = "Dependency"
    )]
    capacity: Option<u32>,
    /// Calls that may wait there; 503 beyond [default: 1000]
    #[arg(long, value_name = "N", requires = "capacity", help_heading = "Dependency")]
    queue: Option<u32>,
    /// How much slower it serves for each full round of waiting calls: 0.1 is a tenth
    #[arg(long, value_name = "X", requires = "capacity", help_heading = "Dependency")]
    drag: Option<f64>,
    /// A share of calls that fails although it is well
    #[arg(long, value_name = "SHARE", value_parser = parse_ratio, conflicts_with = "traffic", help_heading = "Dependency")]
    failure_rate: Option<Ratio>,
    /// It answers 429 beyond this: `50/s`, or `50/s burst 10`
    #[arg(long, value_name = "RATE", value_parser = parse_rate_limit, conflicts_with = "traffic", help_heading = "Dependency")]
    rate_limit: Option<RateConfig>,
    /// Its 429 says when to come back (`Retry-After`)
    #[arg(long, requires = "rate_limit", help_heading = "Dependency")]
    rate_limit_told: bool,
    /// When it is ill, and of what: `60s..90s down`, `.. hangs`, `.. slow x20`, `.. fails 70%`; may be given several
    /// times
    #[arg(long, value_name = "FAULT", value_parser = parse_fault, conflicts_with = "traffic", help_heading = "Dependency")]
    fault: Vec<Trouble>,

    /// Feeds every chance in it
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page with plots, which opens offline
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// Evenly
    Constant,
    /// At random, independently of each other
    Poisson,
    /// At random, rising from --rate to --peak and falling again
    Diurnal,
}

/// Nobody waits for nothing.
fn parse_caller_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("more than nothing".into()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(error.to_string()),
    }
}

/// A configuration's guards, the experiment and what came of it.
struct Side {
    subject: Subject,
    scenario: Scenario,
    report: Report,
}

pub(super) fn run(args: &SimulateArgs) -> anyhow::Result<Ended> {
    let (traffic, course) = match (&args.traffic, &args.journal) {
        (Some(file), _) => (Traffic::Recorded(read_recording(file)?), Vec::new()),
        (None, Some(file)) => course::read(file, args.route.as_deref())?,
        (None, None) => (plan::described(args).map_err(UsageError)?, Vec::new()),
    };
    let here = Path::new(CONFIG_FILE);
    let first = args.config.as_deref().or_else(|| here.exists().then_some(here));
    let mut subjects = vec![subject(args, first)?];
    if let Some(other) = &args.compare {
        subjects.push(subject(args, Some(other))?);
    }
    let many = subjects.len();
    let mut sides = Vec::new();
    for (index, subject) in subjects.into_iter().enumerate() {
        let label = if many > 1 { format!("simulating, {} of {many}", index + 1) } else { "simulating".into() };
        sides.push(play(args, (traffic.clone(), course.clone()), subject, &label)?);
    }
    if let Some(file) = &args.html {
        std::fs::write(file, page::page(&sides)).with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    match (args.json, sides.as_slice()) {
        (true, [a, b]) => print(&format!("{:#}\n", json!({ "a": as_json(a), "b": as_json(b) }))),
        (true, [one, ..]) => print(&format!("{:#}\n", as_json(one))),
        (false, [a, b]) => print(&words::both(a, b)),
        (false, [one, ..]) => print(&words::one(one)),
        (_, []) => Ok(Ended::Well),
    }
}

fn read_recording(file: &Path) -> anyhow::Result<Vec<seawall_core::whatif::Recorded>> {
    let cannot = || format!("cannot read `{}`", file.display());
    let size = std::fs::metadata(file).with_context(cannot)?.len();
    if size > recording::FILE_BYTES_MAX {
        bail!(
            "`{}` has {size} bytes; a record has {} at most: take a part of it",
            file.display(),
            recording::FILE_BYTES_MAX
        );
    }
    let bytes = std::fs::read(file).with_context(cannot)?;
    recording::read(&file.display().to_string(), &bytes)
        .map_err(|report| anyhow::anyhow!("cannot replay `{}`\n{}", file.display(), report.trim_end()))
}

fn subject(args: &SimulateArgs, file: Option<&Path>) -> anyhow::Result<Subject> {
    match (file, &args.route) {
        (Some(file), route) => {
            let policy = which::load(file)?;
            let route = which::find_or_only(&policy, route.as_deref(), file)?;
            if route.protocol == Protocol::Tcp {
                let message = format!("`{}` carries connections; requests and answers can be played", route.name);
                return Err(UsageError(message).into());
            }
            Ok(Subject::of(&file.display().to_string(), route))
        }
        (None, None) => Ok(Subject::default_guards()),
        // It names the route whose traffic is played.
        (None, Some(_)) if args.journal.is_some() => Ok(Subject::default_guards()),
        (None, Some(route)) => {
            let message =
                format!("there is no `{CONFIG_FILE}` here to have a route `{route}`; name a file with `--config`");
            Err(UsageError(message).into())
        }
    }
}

fn play(
    args: &SimulateArgs,
    (traffic, course): (Traffic, Vec<Stretch>),
    subject: Subject,
    label: &str,
) -> anyhow::Result<Side> {
    let mut scenario = plan::scenario(args, traffic, &subject).map_err(UsageError)?;
    course::follow(&mut scenario.dependency, course);
    let mut progress = Progress::new(label, scenario.lasts);
    let played = scenario.run_telling(&mut |at| progress.tell(at));
    progress.end();
    let report = played.map_err(|invalid| UsageError(format!("that is no experiment: {invalid}")))?;
    Ok(Side { subject, scenario, report })
}

fn as_json(side: &Side) -> Value {
    json!({
        "seed": side.report.seed,
        "scenario": plan::as_json(&side.subject, &side.scenario),
        "summary": side.report.summary,
        "rows": side.report.rows,
    })
}

/// How far it is, for somebody at a terminal, once it takes longer than a moment.
struct Progress {
    label: String,
    lasts: Duration,
    clock: RealClock,
    next: Mono,
    wanted: bool,
    told: bool,
}

/// Before that nobody wonders.
const PROGRESS_AFTER: Duration = Duration::from_secs(2);
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

impl Progress {
    fn new(label: &str, lasts: Duration) -> Self {
        let clock = RealClock::new();
        let (next, wanted) = (Mono::ZERO + PROGRESS_AFTER, std::io::stderr().is_terminal());
        Self { label: label.into(), lasts, clock, next, wanted, told: false }
    }

    fn tell(&mut self, at: Duration) {
        if !self.wanted || self.clock.mono() < self.next {
            return;
        }
        let now = self.clock.mono();
        self.next = now + PROGRESS_EVERY;
        self.told = true;
        let words = progress_words(&self.label, now.since(Mono::ZERO), at, self.lasts);
        let _ = write!(std::io::stderr(), "\r{words}\u{1b}[K");
    }

    fn end(&self) {
        if self.told {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}

fn progress_words(label: &str, spent: Duration, at: Duration, lasts: Duration) -> String {
    let share = (at.as_secs_f64() / lasts.as_secs_f64()).clamp(0.001, 1.0);
    let left = spent.as_secs_f64() * (1.0 - share) / share;
    format!("{label}: {:.0} %, about {left:.0} s more", share * 100.0)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use seawall_core::whatif::{Ailment, Dependency, Layer, Summary};

    use super::*;

    /// A minute of 100/s with a trouble from 20 s to 30 s, and an empty report.
    pub(super) fn side(ailment: Ailment) -> Side {
        let troubles = vec![Trouble { from: Duration::from_secs(20), until: Duration::from_secs(30), ailment }];
        let subject = Subject { label: "f, route r".into(), ..Subject::default_guards() };
        let layer = Layer::gateway(subject.guards.clone());
        let scenario = Scenario {
            seed: 7,
            lasts: Duration::from_secs(60),
            traffic: Traffic::Poisson { per_second: 100.0 },
            layers: vec![layer],
            dependency: Dependency { troubles, ..Dependency::default() },
        };
        Side { subject, scenario, report: Report { seed: 7, summary: Summary::default(), rows: Vec::new() } }
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn args(line: &[&str]) -> Result<SimulateArgs, String> {
        let words = std::iter::once("simulate").chain(line.iter().copied());
        Line::try_parse_from(words).map(|line| line.args).map_err(|error| error.to_string())
    }

    fn planned(line: &[&str]) -> Result<Scenario, String> {
        let args = args(line)?;
        plan::scenario(&args, plan::described(&args)?, &Subject::default_guards())
    }

    #[test]
    fn a_line_becomes_an_experiment() {
        let scenario = planned(&[
            "--rate",
            "200/s",
            "--pattern",
            "constant",
            "--for",
            "2m",
            "--latency",
            "10ms",
            "--capacity",
            "5",
            "--queue",
            "9",
            "--drag",
            "0.5",
            "--failure-rate",
            "1%",
            "--rate-limit",
            "50/s burst 7",
            "--rate-limit-told",
            "--fault",
            "60s..90s down",
            "--fault",
            "1s..2s hangs",
            "--nodes",
            "3",
            "--callers",
            "20",
            "--caller-attempts",
            "4",
            "--caller-timeout",
            "500ms",
            "--seed",
            "9",
        ])
        .unwrap();
        assert_eq!(scenario.traffic, Traffic::Constant { per_second: 200.0 });
        assert_eq!((scenario.seed, scenario.lasts), (9, Duration::from_secs(120)));
        let layers: Vec<(&str, u32, u32, bool)> = scenario
            .layers
            .iter()
            .map(|it| (it.name.as_str(), it.instances, it.guards.retry.attempts_max, it.marks_retries))
            .collect();
        assert_eq!(layers, [("callers", 20, 4, false), ("gateway", 3, 3, true)]);
        let of = &scenario.dependency;
        assert_eq!((of.workers, of.queue_max, of.drag, of.troubles.len()), (Some(5), 9, 0.5, 2));
        assert!(of.rate_limit.is_some_and(|limit| limit.says_when && limit.rate.burst == 7 && limit.rate.cells == 50));
        assert!(plan::as_json(&Subject::default_guards(), &scenario)["dependency"]["rate_limit_per_s"] == 50.0);
        let day = planned(&["--pattern", "diurnal", "--rate", "10/s", "--peak", "90/s"]).unwrap();
        assert_eq!(day.traffic, Traffic::Diurnal { low: 10.0, high: 90.0, period: Duration::from_secs(600) });
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (line, words) in [
            (&["--rate", "200"][..], "needs a unit, such as `200/s`"),
            (&["--for", "10"], "needs a unit"),
            (&["--fault", "now"], "is no fault, such as"),
            (&["--traffic", "f", "--rate", "1/s"], "cannot be used with"),
            (&["--traffic", "f", "--fault", "1s..2s down"], "cannot be used with"),
            (&["--journal", "f", "--rate", "1/s"], "cannot be used with"),
            (&["--journal", "f", "--peak", "1/s"], "cannot be used with"),
            (&["--journal", "f", "--pattern", "constant"], "cannot be used with"),
            (&["--journal", "f", "--traffic", "f"], "cannot be used with"),
            (&["--journal", "f", "--latency", "1ms"], "cannot be used with"),
            (&["--journal", "f", "--latency-p99", "1ms"], "cannot be used with"),
            (&["--journal", "f", "--failure-rate", "1%"], "cannot be used with"),
            (&["--queue", "5"], "--capacity"),
            (&["--caller-attempts", "5"], "--callers"),
            (&["--callers", "1", "--caller-timeout", "0s"], "more than nothing"),
            (&["--rate-limit-told"], "--rate-limit"),
            (&["--nodes", "0"], "1..=1000"),
            (&["--peak", "5/s"], "`--peak` belongs to `--pattern diurnal`"),
            (&["--pattern", "diurnal"], "say how high"),
            (&["--rate", "100000/s", "--for", "1h"], "360000000 requests are too many"),
        ] {
            let error = planned(line).unwrap_err();
            assert!(error.contains(words), "{line:?}: {error}");
        }
        let wrong = args(&["--rate", "0/s"]).unwrap();
        let error =
            play(&wrong, (plan::described(&wrong).unwrap(), Vec::new()), Subject::default_guards(), "").err().unwrap();
        assert_eq!(error.to_string(), "that is no experiment: `rate` is 0/s; allowed is 0.001/s to 1000000/s");
        assert!(error.is::<UsageError>());
    }

    #[test]
    fn a_record_lasts_as_long_as_its_last_request() {
        let args = args(&["--traffic", "f"]).unwrap();
        let at = Duration::from_millis(4_500);
        let recorded = vec![seawall_core::whatif::Recorded { at, latency: Duration::from_millis(700), well: true }];
        let scenario = plan::scenario(&args, Traffic::Recorded(recorded), &Subject::default_guards()).unwrap();
        assert_eq!(scenario.lasts, Duration::from_secs(6));
        assert!(
            plan::as_json(&Subject::default_guards(), &scenario)["dependency"].is_null(),
            "the record says what it did"
        );
        assert_eq!(plan::traffic_words(&scenario), "1 recorded requests");
    }

    #[test]
    fn a_course_lasts_as_long_as_it_was_seen_and_longer_if_asked() {
        let s = Duration::from_secs;
        let lasting = |line: &[&str], until, per_second| {
            let pieces = vec![seawall_core::whatif::Piece { from: Duration::ZERO, per_second }];
            let args = args(&[&["--journal", "f"], line].concat()).unwrap();
            plan::scenario(&args, Traffic::Pieces { pieces, until }, &Subject::default_guards())
        };
        assert_eq!(lasting(&[], s(217), 5.0).unwrap().lasts, s(217));
        assert_eq!(lasting(&[], s(216) + Duration::from_millis(1), 5.0).unwrap().lasts, s(217), "whole seconds");
        let long = lasting(&["--for", "10m", "--fault", "5m..6m down", "--capacity", "3"], s(217), 5.0).unwrap();
        assert_eq!((long.lasts, long.dependency.troubles.len(), long.dependency.workers), (s(600), 1, Some(3)));
        assert_eq!(plan::mean_rate(&long), 5.0);
        let error = lasting(&["--for", "1h"], s(217), 100_000.0).unwrap_err();
        assert!(error.contains("360000000 requests are too many"), "{error}");
    }

    #[test]
    fn progress_tells_share_and_rest() {
        let s = Duration::from_secs;
        assert_eq!(progress_words("simulating", s(2), s(600), s(3_600)), "simulating: 17 %, about 10 s more");
        assert_eq!(progress_words("x", s(2), s(3_600), s(3_600)), "x: 100 %, about 0 s more");
    }
}
