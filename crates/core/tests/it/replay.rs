//! Replays recorded behaviour of another circuit breaker (schema `breaker-vectors/1`) against ours, step by step.
//!
//! The records come from Resilience4j's state machine under a virtual clock: what was asked of it, and everything that
//! could be seen of it afterwards. Ours must show the same, to the last bit of every rate, with two kinds of exception,
//! each counted and named: where the records pin down a bug of that library, and where it lets a result decide that
//! belongs to an earlier state. To be sure that a difference is of the second kind, the same steps are played with
//! `LateResults::Counted`, which takes in such results as that library does: only if that run shows exactly what was
//! recorded, the step is excepted, and the strict run goes on from there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;

use seawall_core::guard::breaker::{
    Breaker, BreakerConfig, HalfOpen, HalfOpenEnd, LateResults, OpenWait, Permit, Report, SlowRule, StateName, Told,
    Trip, WindowConfig,
};
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::time::Mono;
use seawall_core::units::Ratio;
use serde::Deserialize;
use serde_json::Value;

/// What a file of records came to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Sequences.
    pub(crate) vectors: usize,
    /// Steps in all.
    pub(crate) steps: usize,
    /// Steps that differ and must not, each in words.
    pub(crate) differences: Vec<String>,
    /// Steps that differ for a known reason, by reason.
    pub(crate) excepted: BTreeMap<&'static str, usize>,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for difference in &self.differences {
            writeln!(f, "{difference}")?;
        }
        for (reason, steps) in &self.excepted {
            writeln!(f, "excepted: {steps} steps: {reason}")?;
        }
        let excepted: usize = self.excepted.values().sum();
        let (vectors, steps, differences) = (self.vectors, self.steps, self.differences.len());
        write!(f, "{vectors} vectors, {steps} steps, {differences} differences, {excepted} excepted")
    }
}

const LATE: &str = "a result or a release without a probe of its own is no probe: permits have owners";
/// The bugs that records pin down: how a file names one, and why ours does not have it.
const BUGS: [(&str, &str); 6] = [
    ("B1", "B1: a reset leaves the timer of the OPEN state it ended; our timers belong to the state that set them"),
    (
        "B2",
        "B2: a reset leaves the timer of the HALF_OPEN state it ended; our timers belong to the state that set them",
    ),
    ("B3", "B3: OPEN after DISABLED or FORCED_OPEN has a window of size zero; our windows are never empty"),
    ("B4", "B4: an answer that asks for `open now` wedges it; ours opens"),
    ("B5", "B5: a wall clock that steps back destroys the window; our time is monotonic"),
    ("B6", "B6: a release by anyone mints probes; permits have owners"),
];

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    id: String,
    #[serde(default)]
    quirk: Option<String>,
    #[serde(default)]
    quirks: Vec<String>,
    start_ms: u64,
    config: RawConfig,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    window_type: String,
    window_size: u32,
    min_calls: u32,
    failure_rate_threshold: Value,
    slow_rate_threshold: Value,
    slow_call_ms: u64,
    half_open_permits: u32,
    half_open_max_wait_ms: u64,
    half_open_timeout_to: String,
    open_wait_ms: u64,
    open_wait_multiplier: Option<f64>,
    open_wait_max_ms: Option<u64>,
    auto_half_open: bool,
    initial_state: String,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            window_type: "COUNT_BASED".into(),
            window_size: 100,
            min_calls: 100,
            failure_rate_threshold: 50.into(),
            slow_rate_threshold: 100.into(),
            slow_call_ms: 60_000,
            half_open_permits: 10,
            half_open_max_wait_ms: 0,
            half_open_timeout_to: "OPEN".into(),
            open_wait_ms: 60_000,
            open_wait_multiplier: None,
            open_wait_max_ms: None,
            auto_half_open: false,
            initial_state: "CLOSED".into(),
        }
    }
}

#[derive(Deserialize)]
struct Step {
    t: u64,
    op: String,
    #[serde(default)]
    dur_ms: u64,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    trip_ms: Value,
    #[serde(default)]
    to: String,
    #[serde(default)]
    wait_ms: u64,
    #[serde(default)]
    until_ms: u64,
    expect: Expect,
}

#[derive(Deserialize)]
struct Expect {
    state: String,
    failure_rate: Value,
    slow_rate: Value,
    buffered: u32,
    failed: u32,
    slow: u32,
    slow_failed: u32,
    not_permitted: u64,
    events: Vec<String>,
    #[serde(default)]
    permitted: Option<bool>,
    #[serde(default)]
    error: Option<String>,
}

/// Everything that can be seen of a breaker after a step.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    state: String,
    failure_rate: f32,
    slow_rate: f32,
    counts: [u32; 4],
    not_permitted: u64,
    events: Vec<String>,
    permitted: Option<bool>,
    error: Option<String>,
}

/// Replays a file of either format: one object with `vectors`, or one sequence a line.
///
/// # Errors
/// What cannot be read, with the line where there are lines.
pub(crate) fn replay(text: &str) -> Result<Verdict, String> {
    let mut verdict = Verdict::default();
    for vector in read(text)? {
        verdict.vectors += 1;
        verdict.steps += vector.steps.len();
        vector.replay(&mut verdict)?;
    }
    Ok(verdict)
}

fn read(text: &str) -> Result<Vec<Vector>, String> {
    if let Ok(file) = serde_json::from_str::<File>(text) {
        return Ok(file.vectors);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let vectors: Vec<Vector> = lines
        .map(|(index, line)| serde_json::from_str(line).map_err(|error| format!("line {}: {error}", index + 1)))
        .collect::<Result<_, _>>()?;
    if vectors.is_empty() { Err("no vectors in it".into()) } else { Ok(vectors) }
}

impl Vector {
    fn replay(&self, verdict: &mut Verdict) -> Result<(), String> {
        let config = self.config().map_err(|error| format!("{}: {error}", self.id))?;
        let mut strict = self.run(&config, 0);
        let mut counted = self.run(&config, self.steps.len());
        let mut bug = None;
        for (index, step) in self.steps.iter().enumerate() {
            bug = bug.or_else(|| self.bug_that_begins(step, &strict.breaker));
            let recorded = step.recorded();
            let ours = strict.play(step);
            let theirs = counted.play(step);
            if ours == recorded {
                continue;
            }
            if theirs == recorded && strict.went_without_owner {
                *verdict.excepted.entry(LATE).or_default() += 1;
                strict = self.run(&config, index + 1);
                self.steps[..=index].iter().for_each(|step| drop(strict.play(step)));
                strict.be_strict();
            } else if let Some(bug) = bug {
                *verdict.excepted.entry(bug).or_default() += 1;
            } else {
                let words = format!("{} step {index} (t {}, {}):\n", self.id, step.t, step.op);
                verdict.differences.push(words + &differences(&recorded, &ours));
            }
        }
        Ok(())
    }

    /// A run that counts late results for so many steps.
    fn run(&self, config: &BreakerConfig, counted_steps: usize) -> Run {
        let late_results = if counted_steps > 0 { LateResults::Counted } else { LateResults::Ignored };
        let config = BreakerConfig { late_results, ..config.clone() };
        let now = Mono::from_millis(self.start_ms);
        let breaker = Breaker::new(config, 0, now).expect("it was checked");
        Run { breaker, held: Vec::new(), went_without_owner: false, now }
    }

    /// The reason why what is recorded from here on is a bug's doing, if the record says so and this step sets it off.
    fn bug_that_begins(&self, step: &Step, breaker: &Breaker) -> Option<&'static str> {
        let named = self.quirk.iter().chain(&self.quirks);
        let bugs: Vec<&str> = named.filter_map(|quirk| quirk.split_whitespace().next()).collect();
        let (state, config) = (breaker.state(), breaker.config());
        let sets_off = |bug: &str| match bug {
            "B1" => step.op == "reset" && state == StateName::Open && config.half_open.by_timer,
            "B2" => step.op == "reset" && state == StateName::HalfOpen && config.half_open.ends_after.is_some(),
            "B3" => {
                let opens = step.op.starts_with("open_") || step.to == "OPEN";
                opens && matches!(state, StateName::Disabled | StateName::ForcedOpen)
            }
            "B4" => step.trip_ms == "now",
            "B6" => step.op == "release" || step.kind == "ignored",
            _ => true,
        };
        BUGS.into_iter().find(|(bug, _)| bugs.contains(bug) && sets_off(bug)).map(|(_, reason)| reason)
    }

    fn config(&self) -> Result<BreakerConfig, String> {
        let raw = &self.config;
        let threshold = |value: &Value| {
            let percent = single(value);
            let ratio = Ratio::new(f64::from(percent) / 100.0).ok_or_else(|| format!("{value} is no percentage"))?;
            if (ratio.get() * 100.0) as f32 == percent { Ok(ratio) } else { Err(format!("{value} does not survive")) }
        };
        let millis = Duration::from_millis;
        let config = BreakerConfig {
            failure_rate_max: threshold(&raw.failure_rate_threshold)?,
            slow: Some(SlowRule {
                rate_max: threshold(&raw.slow_rate_threshold)?,
                over: millis(raw.slow_call_ms),
                in_flight: false,
            }),
            consecutive_failures_max: None::<NonZeroU32>,
            window: match raw.window_type.as_str() {
                "COUNT_BASED" => WindowConfig::Calls(raw.window_size),
                "TIME_BASED" => {
                    let span = Duration::from_secs(raw.window_size.into());
                    WindowConfig::Time { span, slices: raw.window_size }
                }
                other => return Err(format!("unknown window_type {other}")),
            },
            calls_min: raw.min_calls,
            wait: OpenWait {
                first: millis(raw.open_wait_ms),
                multiplier: raw.open_wait_multiplier.unwrap_or(1.0),
                max: raw.open_wait_max_ms.map(millis),
                jitter: Ratio::ZERO,
                retry_after_max: None,
            },
            half_open: HalfOpen {
                calls: raw.half_open_permits,
                probe_for: None,
                ends_after: Some(millis(raw.half_open_max_wait_ms)).filter(|wait| !wait.is_zero()),
                ends_in: if raw.half_open_timeout_to == "CLOSED" { HalfOpenEnd::Closed } else { HalfOpenEnd::Open },
                by_timer: raw.auto_half_open,
                synthetic: false,
            },
            ramp: None,
            initial: state_by_name(&raw.initial_state)?,
            late_results: LateResults::Ignored,
        };
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }
}

/// One breaker on its way through a sequence. The records do not say whose result a result is: while one is held it is
/// taken for that of the permit held longest, as long as that is of this state.
struct Run {
    breaker: Breaker,
    held: Vec<Permit>,
    went_without_owner: bool,
    now: Mono,
}

impl Run {
    fn be_strict(&mut self) {
        let config = BreakerConfig { late_results: LateResults::Ignored, ..self.breaker.config().clone() };
        self.breaker.reconfigure(config, self.now).expect("only the rule for late results changes");
        self.went_without_owner = false;
    }

    fn play(&mut self, step: &Step) -> Shown {
        let now = Mono::from_millis(step.t);
        let (mut events, mut permitted, mut error) = (Vec::new(), None, None);
        while let Some(due) = self.breaker.next_timer().filter(|due| *due <= now) {
            tell(&mut events, self.breaker.on_time(due));
        }
        self.now = now;
        let is_silent = |breaker: &Breaker| matches!(breaker.state(), StateName::Disabled | StateName::ForcedOpen);
        let say = |breaker: &Breaker, events: &mut Vec<String>, what: &str| {
            if !is_silent(breaker) {
                events.push(what.into());
            }
        };
        match step.op.as_str() {
            "tick" => {}
            "acquire" => match self.breaker.admit(now) {
                Ok((permit, told)) => {
                    tell(&mut events, told);
                    self.held.push(permit);
                    permitted = Some(true);
                }
                Err(_) => {
                    permitted = Some(false);
                    say(&self.breaker, &mut events, "NOT_PERMITTED");
                }
            },
            "release" => self.release(),
            "error" if step.kind == "ignored" => {
                say(&self.breaker, &mut events, "IGNORED_ERROR");
                self.release();
            }
            "success" | "error" => {
                let is_failure = step.op == "error" && step.kind == "recorded";
                say(&self.breaker, &mut events, if is_failure { "ERROR" } else { "SUCCESS" });
                let outcome = if is_failure { Outcome::Failure(Failure::Status(500)) } else { Outcome::Success };
                let trip = match &step.trip_ms {
                    Value::Null => None,
                    Value::Number(wait_ms) => wait_ms.as_u64().map(|wait_ms| Trip::For(Duration::from_millis(wait_ms))),
                    _ => Some(Trip::Now),
                };
                let report = Report { trip, ..Report::new(outcome, Duration::from_millis(step.dur_ms)) };
                tell(&mut events, self.report(report));
            }
            "reset" => {
                tell(&mut events, Some(self.breaker.reset(now)));
                events.push("RESET".into());
            }
            "transition" => match self.breaker.move_to(now, state_by_name(&step.to).expect("a state")) {
                Ok(told) => tell(&mut events, told),
                Err(_) => error = Some("IllegalTransition".into()),
            },
            "open_for" | "open_until" => {
                let until = if step.op == "open_for" {
                    now + Duration::from_millis(step.wait_ms)
                } else {
                    Mono::from_millis(step.until_ms)
                };
                match self.breaker.open_until(now, until) {
                    Ok(told) => tell(&mut events, told),
                    Err(_) => error = Some("IllegalTransition".into()),
                }
            }
            other => error = Some(format!("unknown op {other}")),
        }
        let (rates, seen) = (self.breaker.rates(now), self.breaker.seen(now));
        Shown {
            state: state_name(self.breaker.state()).into(),
            failure_rate: rates.map_or(-1.0, |rates| rates.failure),
            slow_rate: rates.map_or(-1.0, |rates| rates.slow),
            counts: [seen.calls, seen.failed, seen.slow, seen.slow_failed],
            not_permitted: self.breaker.not_permitted(),
            events,
            permitted,
            error,
        }
    }

    /// The permit held longest of those given in this state.
    fn owner(&mut self) -> Option<Permit> {
        let place = self.held.iter().position(|permit| self.breaker.is_of_now(permit))?;
        Some(self.held.remove(place))
    }

    fn report(&mut self, report: Report) -> Option<Told> {
        match (self.owner(), self.breaker.state()) {
            (Some(permit), _) => self.breaker.report(self.now, permit, report),
            // Whoever calls without asking while everything passes would have been let through.
            (None, StateName::Closed | StateName::ObserveOnly) => {
                let (permit, _) = self.breaker.admit(self.now).expect("everything passes");
                self.breaker.report(self.now, permit, report)
            }
            (None, _) => {
                self.went_without_owner = true;
                self.breaker.record_late(self.now, report)
            }
        }
    }

    fn release(&mut self) {
        match self.owner() {
            Some(permit) => self.breaker.release(permit),
            None => {
                self.went_without_owner = true;
                self.breaker.release_late();
            }
        }
    }
}

fn tell(events: &mut Vec<String>, told: Option<Told>) {
    let Some(told) = told else { return };
    if let Some(rate) = told.exceeded.failure_rate {
        events.push(format!("FAILURE_RATE_EXCEEDED:{rate:?}"));
    }
    if let Some(rate) = told.exceeded.slow_rate {
        events.push(format!("SLOW_CALL_RATE_EXCEEDED:{rate:?}"));
    }
    if let Some(change) = told.transition.filter(|change| change.from != change.to) {
        events.push(format!("STATE_TRANSITION:{}>{}", state_name(change.from), state_name(change.to)));
    }
}

impl Step {
    fn recorded(&self) -> Shown {
        let expect = &self.expect;
        Shown {
            state: expect.state.clone(),
            failure_rate: single(&expect.failure_rate),
            slow_rate: single(&expect.slow_rate),
            counts: [expect.buffered, expect.failed, expect.slow, expect.slow_failed],
            not_permitted: expect.not_permitted,
            events: expect.events.clone(),
            permitted: expect.permitted,
            error: expect.error.clone(),
        }
    }
}

/// A number as it is written, read in single precision: by way of double precision it would be rounded twice.
fn single(value: &Value) -> f32 {
    value.to_string().parse().unwrap_or(f32::NAN)
}

const STATES: [(&str, StateName); 7] = [
    ("CLOSED", StateName::Closed),
    ("OPEN", StateName::Open),
    ("HALF_OPEN", StateName::HalfOpen),
    ("DISABLED", StateName::Disabled),
    ("FORCED_OPEN", StateName::ForcedOpen),
    ("METRICS_ONLY", StateName::ObserveOnly),
    ("RECOVERING", StateName::Recovering),
];

fn state_by_name(name: &str) -> Result<StateName, String> {
    let state = STATES.into_iter().find(|(known, _)| *known == name);
    state.map(|(_, state)| state).ok_or_else(|| format!("unknown state {name}"))
}

fn state_name(state: StateName) -> &'static str {
    STATES.into_iter().find(|(_, known)| *known == state).map_or("?", |(name, _)| name)
}

/// What differs, a line each.
fn differences(recorded: &Shown, ours: &Shown) -> String {
    let (recorded, ours) = (format!("{recorded:#?}"), format!("{ours:#?}"));
    let mut words = String::new();
    for (theirs, ours) in recorded.lines().zip(ours.lines()).filter(|(theirs, ours)| theirs != ours) {
        let _ = writeln!(words, "  recorded {}, ours {}", theirs.trim(), ours.trim());
    }
    words
}
