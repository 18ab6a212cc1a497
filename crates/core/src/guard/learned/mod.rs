//! Learned limit: finds out how many calls per second an upstream allows without having been told, and stays just
//! below.
//!
//! Picture somebody finding the height of a ceiling in the dark. FREE: no ceiling was ever felt, all calls pass. A
//! refusal (429 or 503): PAUSE, then one trial call at a time until one is taken. HOLD: calls are paced at `hold` of
//! what is believed. When the last refusals are paid for, PROBE: the pace rises, slowly near the ceiling, faster beyond
//! it, until the next refusal, and every step that passed is the new belief.
//!
//! How a refusal becomes a number. From one time that everything is used up to the next, the upstream has taken exactly
//! what it allows, whatever it counts with: fixed or sliding windows, a token bucket. So after the second refusal in a
//! row the belief is accepted calls / time between, and not below what was accepted over the last 15 to 20 s unless the
//! limit fell by far: a sliding window gives back what was taken a window ago. After a probe it is the last step that
//! passed. A refusal at a pace that was thought safe also halves what may go at once; steps that pass give it back.
//!
//! Other evidence: `RateLimit` headers are believed at once, up and down, until refusals contradict; what they say is
//! left is spread over the time it must last. `Retry-After` is obeyed up to `pause_max`; every fourth time one trial
//! call goes out early, and if it is taken the next wish counts half (a refused one restores it). Latency that doubles
//! while fewer calls come back than go out is a queue at a limit that nobody refuses at: the belief is what came back.
//!
//! Invariants: probing costs at most about `refusal_share_max` of calls (a probe begins only when the refusals of the
//! last one are paid for); one refused flight is one piece of evidence; a refusal never raises the belief and at most
//! quarters it; calls that pass without pressing against the pace prove nothing; after `forget_after` without evidence
//! nothing is believed. Memory is fixed; no call allocates.
//! Not here: waiting for `retry_in` (the driver's: pacing needs somebody who waits), who else uses up the same limit.

mod signals;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub use signals::{Left, Signals};

use super::latency::Latencies;
use super::rate::{Denied, Pace, Ticks};
use super::{Invalid, Refusal};
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

/// How closely to follow, and what it may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnedConfig {
    /// The share of the believed limit that is used.
    pub hold: Ratio,
    /// The share of calls that may be refused by the upstream for the sake of learning.
    pub refusal_share_max: Ratio,
    /// No probe sooner after a refusal.
    pub probe_after: Duration,
    /// No `Retry-After` and no reset is waited for longer without trying.
    pub pause_max: Duration,
    /// This much time's worth of calls may go at once, at least one.
    pub burst: Duration,
    /// A belief without new evidence for so long is dropped.
    pub forget_after: Duration,
}

impl Default for LearnedConfig {
    fn default() -> Self {
        Self {
            hold: Ratio::new(0.95).unwrap_or(Ratio::ONE),
            refusal_share_max: Ratio::new(0.01).unwrap_or(Ratio::ONE),
            probe_after: Duration::from_secs(10),
            pause_max: Duration::from_secs(60),
            burst: Duration::from_millis(100),
            forget_after: Duration::from_secs(3_600),
        }
    }
}

impl LearnedConfig {
    fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value, allowed| Err(Invalid { key, value, allowed });
        if !(0.5..=0.99).contains(&self.hold.get()) {
            return invalid("hold", self.hold.to_string(), "50% to 99%");
        }
        if !(0.001..=0.2).contains(&self.refusal_share_max.get()) {
            return invalid("refusal_share_max", self.refusal_share_max.to_string(), "0.1% to 20%");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&self.pause_max) {
            return invalid("pause_max", format_duration(self.pause_max), "1s to 1h");
        }
        if self.burst > Duration::from_secs(60) {
            return invalid("burst", format_duration(self.burst), "at most 1m");
        }
        if self.probe_after.is_zero() {
            return invalid("probe_after", "0s".into(), "more than nothing");
        }
        if self.forget_after < self.probe_after.saturating_add(self.pause_max) {
            return invalid("forget_after", format_duration(self.forget_after), "at least `probe_after` + `pause_max`");
        }
        Ok(())
    }
}

/// How a belief came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nothing is believed.
    Nothing,
    /// The upstream refused calls.
    Refusals,
    /// The upstream said so in headers.
    Headers,
    /// Latency rose while no more calls came back.
    Latency,
    /// More passed than was believed.
    Probes,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Refusals => "its refusals",
            Self::Headers => "its headers",
            Self::Latency => "its latency",
            Self::Probes => "probing",
        })
    }
}

/// What is believed, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Belief {
    /// Calls per second that the upstream allows; `None` while no limit was ever felt.
    pub per_second: Option<f64>,
    /// Calls per second that are let through at this moment; `None` for all.
    pub pace: Option<f64>,
    /// How it came about.
    pub source: Source,
    /// Accepted calls in the evidence; a count c is good to about 1/c. Zero for headers.
    pub samples: u64,
    /// When this number was first believed.
    pub since: Mono,
    /// When something last agreed with it.
    pub confirmed_at: Mono,
}

/// What the upstream did with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Took it on, whatever came of it.
    Accepted,
    /// Turned it away for its rate: 429, or 503.
    Refused,
    /// Nobody knows.
    Unknown,
}

impl Answer {
    /// Of a status.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        if matches!(status, 429 | 503) { Self::Refused } else { Self::Accepted }
    }
}

/// A call that was let through.
#[must_use = "a call nobody tells about teaches nothing"]
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    sent: Mono,
    trial: bool,
}

/// Pace is kept in 2^-20 ns.
const TICKS_PER_NANO: u32 = 1 << 20;
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// After an outage of an hour, the next refusal is not worth a quarter of that.
const PAUSE_FIRST_MAX: Duration = Duration::from_secs(2);
/// What was accepted lately: four slices of five seconds.
const RECENT: usize = 4;
const RECENT_SLICE_NANOS: u64 = 5_000_000_000;
/// Accepted calls below which a time between refusals is no measure.
const EVIDENCE_MIN: u64 = 20;
/// A shorter time between refusals is none either: a window of theirs may still be full of what came before.
const EVIDENCE_TIME_MIN: Duration = Duration::from_secs(3);
/// Accepted calls in a step of a probe.
const STEP_CALLS: f64 = 20.0;
const STEP_MIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum Phase {
    Free,
    /// No call before `until`; then one at a time.
    Pause {
        until: Mono,
        wait: Duration,
        /// When the trial call that is out is given up.
        trial: Option<Mono>,
        /// The upstream's wish was cut short to see whether it is meant.
        early: bool,
        /// When the wish itself would be over.
        wished: Mono,
    },
    Hold,
    Probe {
        step: u32,
        base: f64,
        since: Mono,
        accepts: u64,
    },
}

/// The machine.
///
/// ```
/// use seawall_core::guard::learned::{Answer, Learned, LearnedConfig, Signals};
/// use seawall_core::time::{Mono, Wall};
///
/// let mut learned = Learned::new(LearnedConfig::default(), Mono::ZERO).unwrap();
/// let permit = learned.admit(Mono::ZERO).unwrap();
/// let signals = Signals::read([("RateLimit-Policy", "\"a\";q=100;w=10")], Wall::default());
/// learned.record(Mono::from_millis(50), permit, Answer::Accepted, &signals);
/// assert_eq!(learned.belief().per_second, Some(10.0));
/// ```
#[derive(Clone, Debug)]
pub struct Learned {
    config: LearnedConfig,
    phase: Phase,
    /// Calls per second believed allowed; meaningless while free.
    ceiling: f64,
    rate: f64,
    pace: Pace,
    tat: Ticks,
    source: Source,
    samples: u64,
    since: Mono,
    confirmed_at: Mono,
    /// The last refusal that counted, what it cost, and when calls went out again after it.
    event_at: Option<Mono>,
    cost: u64,
    resumed_at: Mono,
    /// What was accepted since evidence was last drawn from it, and how much of that time was pause.
    accepts: u64,
    accepts_since: Mono,
    paused_in: Duration,
    /// The share of `burst` in use.
    burst_share: f64,
    recent: [u64; RECENT],
    recent_head: u64,
    /// Calls let through in this time; while free, and in the time before.
    sent: u64,
    sent_before: f64,
    /// Refusals in spite of what headers say.
    doubts: u32,
    /// How long the last pause had to be.
    paused: Duration,
    trust: f64,
    wishes: u32,
    left: Option<Spread>,
    declared: Option<f64>,
    knee: Knee,
}

/// A belief as plain data. Its fields are its own; it is written and read whole.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    per_second: f64,
    source: Source,
    samples: u64,
    burst_share: f64,
    confirmed_for: Duration,
    /// What is left of a pause.
    pauses_for: Duration,
}

/// What is left of a quota, spread over the time it must last.
#[derive(Clone, Copy, Debug)]
struct Spread {
    calls: u64,
    /// New ones come, or we try anyway.
    until: Mono,
    per_second: f64,
    pace: Pace,
    tat: Ticks,
}

/// Watches for calls that wait at the upstream.
#[derive(Clone, Debug)]
struct Knee {
    opened: Mono,
    sent: u64,
    back: u64,
    sum_nanos: f64,
    means: Latencies,
    suspicious: u32,
    draining: bool,
}

impl Learned {
    /// Nothing is believed yet, so all calls pass.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no limit.
    pub fn new(config: LearnedConfig, now: Mono) -> Result<Self, Invalid> {
        config.check()?;
        let means = Latencies::new(Duration::from_secs(600), now)?;
        Ok(Self {
            config,
            phase: Phase::Free,
            ceiling: f64::MAX,
            rate: f64::MAX,
            pace: Pace::new(TICKS_PER_NANO, 1, 1),
            tat: 0,
            source: Source::Nothing,
            samples: 0,
            since: now,
            confirmed_at: now,
            event_at: None,
            cost: 0,
            resumed_at: now,
            accepts: 0,
            accepts_since: now,
            paused_in: Duration::ZERO,
            burst_share: 1.0,
            recent: [0; RECENT],
            recent_head: now.as_nanos() / RECENT_SLICE_NANOS,
            sent: 0,
            sent_before: 0.0,
            doubts: 0,
            paused: PAUSE_MIN,
            trust: 1.0,
            wishes: 0,
            left: None,
            declared: None,
            knee: Knee { opened: now, sent: 0, back: 0, sum_nanos: 0.0, means, suspicious: 0, draining: false },
        })
    }

    /// Asks whether a call is due.
    ///
    /// # Errors
    /// [`Refusal::LearnedLimit`] with the time until one is.
    pub fn admit(&mut self, now: Mono) -> Result<Permit, Refusal> {
        self.on_time(now);
        if let Err(retry_in) = self.spread(now) {
            let (per_second, source) = (self.left.map_or(0.0, |left| left.per_second), Source::Headers);
            return Err(Refusal::LearnedLimit { per_second, source, retry_in });
        }
        let mut is_trial = false;
        match &mut self.phase {
            Phase::Free => {}
            Phase::Pause { until, trial, .. } => {
                let free_at = trial.unwrap_or(*until);
                if now < free_at {
                    // A trial that is out may come back at any time.
                    let retry_in = if trial.is_some() { PAUSE_MIN } else { now.until(free_at) };
                    return Err(self.refusal(retry_in));
                }
                *trial = Some(now + self.config.pause_max);
                is_trial = true;
            }
            Phase::Hold | Phase::Probe { .. } => match self.pace.admit(self.tat, now, 1) {
                Ok(tat) => self.tat = tat,
                Err(Denied::Wait(retry_in)) => return Err(self.refusal(retry_in)),
                Err(Denied::Never(_)) => unreachable!("a burst is at least one"),
            },
        }
        if let Some(left) = &mut self.left {
            left.calls = left.calls.saturating_sub(1);
            left.tat = left.pace.admit(left.tat, now, 1).unwrap_or(left.tat);
        }
        self.knee.sent += 1;
        self.sent += 1;
        Ok(Permit { sent: now, trial: is_trial })
    }

    /// Takes in what became of a call.
    pub fn record(&mut self, now: Mono, permit: Permit, answer: Answer, signals: &Signals) {
        self.on_time(now);
        self.hear(now, signals, answer);
        match answer {
            Answer::Accepted => self.accepted(now, permit),
            Answer::Refused => self.refused(now, permit, signals.retry_after),
            // It neither counts as back, nor as sent in vain; a trial may be made again at once.
            Answer::Unknown => {
                self.knee.sent = self.knee.sent.saturating_sub(1);
                if let (true, Phase::Pause { trial, .. }) = (permit.trial, &mut self.phase) {
                    *trial = None;
                }
            }
        }
    }

    /// What is believed at this moment.
    #[must_use]
    pub fn belief(&self) -> Belief {
        let free = matches!(self.phase, Phase::Free);
        Belief {
            per_second: (!free).then_some(self.ceiling),
            pace: (!free).then_some(if matches!(self.phase, Phase::Pause { .. }) { 0.0 } else { self.rate }),
            source: self.source,
            samples: self.samples,
            since: self.since,
            confirmed_at: self.confirmed_at,
        }
    }

    /// What is believed, as plain data for another process; nothing while nothing is.
    #[must_use]
    pub fn snapshot(&self, now: Mono) -> Option<Snapshot> {
        let pauses_for = match self.phase {
            Phase::Free => return None,
            Phase::Pause { until, .. } => now.until(until),
            Phase::Hold | Phase::Probe { .. } => Duration::ZERO,
        };
        Some(Snapshot {
            per_second: self.ceiling,
            source: self.source,
            samples: self.samples,
            burst_share: self.burst_share,
            confirmed_for: now.since(self.confirmed_at),
            pauses_for,
        })
    }

    /// One that believes what another believed `age` ago, and holds to it from the first call on: without a burst, as
    /// the other may have had it.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no limit.
    pub fn restore(config: LearnedConfig, snapshot: &Snapshot, age: Duration, now: Mono) -> Result<Self, Invalid> {
        let mut learned = Self::new(config, now)?;
        if !snapshot.per_second.is_finite() {
            return Ok(learned);
        }
        learned.believe(now, snapshot.per_second, snapshot.source, snapshot.samples);
        learned.confirmed_at = now - snapshot.confirmed_for.saturating_add(age);
        learned.burst_share = snapshot.burst_share.clamp(1e-3, 1.0);
        learned.set_rate(learned.ceiling * learned.config.hold.get());
        learned.resume(now);
        let pauses_for = snapshot.pauses_for.saturating_sub(age);
        if !pauses_for.is_zero() {
            learned.pause(now, pauses_for, None);
        }
        Ok(learned)
    }

    /// Whether what is left of a quota allows a call now.
    fn spread(&self, now: Mono) -> Result<(), Duration> {
        match self.left {
            Some(left) if left.calls == 0 => Err(now.until(left.until)),
            Some(left) => match left.pace.admit(left.tat, now, 1) {
                // Never beyond the reset: then there are new ones.
                Err(Denied::Wait(wait)) => Err(wait.min(now.until(left.until))),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    fn refusal(&self, retry_in: Duration) -> Refusal {
        Refusal::LearnedLimit { per_second: self.ceiling, source: self.source, retry_in }
    }

    fn believe(&mut self, now: Mono, per_second: f64, source: Source, samples: u64) {
        let least = 1.0 / self.config.pause_max.as_secs_f64();
        let per_second = per_second.clamp(least, 1e9);
        if per_second != self.ceiling || source != self.source {
            self.since = now;
        }
        (self.ceiling, self.source, self.samples, self.confirmed_at) = (per_second, source, samples, now);
    }

    fn set_rate(&mut self, rate: f64) {
        let least = 1.0 / self.config.pause_max.as_secs_f64();
        self.rate = rate.clamp(least, 1e9);
        self.pace = pace_of(self.rate, self.config.burst.mul_f64(self.burst_share));
    }

    /// What time alone brings: forgetting, the end of a quota, the next probe and its steps.
    fn on_time(&mut self, now: Mono) {
        let head = (now.as_nanos() / RECENT_SLICE_NANOS).max(self.recent_head);
        for step in 0..(head - self.recent_head).min(RECENT as u64) {
            self.recent[(head - step) as usize % RECENT] = 0;
        }
        self.recent_head = head;
        if self.left.is_some_and(|left| now >= left.until) {
            self.left = None;
        }
        if !matches!(self.phase, Phase::Free) && now.since(self.confirmed_at) >= self.config.forget_after {
            (self.phase, self.event_at, self.declared) = (Phase::Free, None, None);
            (self.source, self.samples, self.ceiling) = (Source::Nothing, 0, f64::MAX);
            (self.since, self.confirmed_at) = (now, now);
            self.knee.draining = false;
        }
        match self.phase {
            Phase::Hold => {
                let paid = self.accepts as f64 * self.config.refusal_share_max.get() >= self.cost.max(1) as f64;
                // Headers that still agree make probing needless.
                let told = self.source == Source::Headers && self.declared.is_some();
                if paid && !told && !self.knee.draining && now.since(self.resumed_at) >= self.config.probe_after {
                    self.phase = Phase::Probe { step: 0, base: self.ceiling, since: now, accepts: 0 };
                    self.next_step(now);
                }
            }
            Phase::Probe { since, accepts, .. } => {
                let step_time = STEP_MIN.max(Duration::from_secs_f64((STEP_CALLS / self.rate).min(3_600.0)));
                let elapsed = now.since(since);
                if elapsed >= step_time {
                    // A step that was not used proves nothing: it begins again.
                    let used = accepts as f64 >= 0.8 * self.rate * elapsed.as_secs_f64();
                    if used {
                        if self.rate > self.ceiling {
                            self.believe(now, self.rate, Source::Probes, accepts);
                        } else {
                            self.confirmed_at = now;
                        }
                        self.burst_share = (self.burst_share * 1.1).min(1.0);
                        self.next_step(now);
                    } else if let Phase::Probe { since, accepts, .. } = &mut self.phase {
                        (*since, *accepts) = (now, 0);
                    }
                }
            }
            Phase::Free => {
                let took = now.since(self.accepts_since);
                if took >= EVIDENCE_TIME_MIN {
                    self.sent_before = self.sent as f64 / took.as_secs_f64();
                    self.restart(now);
                }
            }
            Phase::Pause { .. } => {}
        }
    }

    fn restart(&mut self, now: Mono) {
        (self.accepts, self.sent, self.accepts_since, self.paused_in) = (0, 0, now, Duration::ZERO);
    }

    /// 0.975, 1.025, 1.1, 1.2, 1.325 ... of the ceiling that the probe began below: slow near it, faster beyond. Triple
    /// after twelve steps.
    fn next_step(&mut self, now: Mono) {
        let Phase::Probe { step, base, since, accepts } = &mut self.phase else { return };
        *step = step.saturating_add(1).min(1_000);
        (*since, *accepts) = (now, 0);
        let rate = *base * (self.config.hold.get() + growth(f64::from(*step)));
        let told = self.declared.map_or(f64::MAX, |declared| declared * self.config.hold.get());
        self.set_rate(rate.min(told.max(self.rate)));
    }

    /// Accepted calls per second in the last 15 to 20 seconds.
    fn lately(&self, now: Mono) -> f64 {
        let covered = (RECENT as u64 - 1) * RECENT_SLICE_NANOS + now.as_nanos() % RECENT_SLICE_NANOS;
        self.recent.iter().sum::<u64>() as f64 / (covered as f64 / 1e9)
    }

    fn accepted(&mut self, now: Mono, permit: Permit) {
        self.accepts += 1;
        self.recent[self.recent_head as usize % RECENT] += 1;
        if self.event_at.is_none_or(|event| permit.sent > event) {
            match &mut self.phase {
                Phase::Probe { accepts, .. } => *accepts += 1,
                Phase::Pause { early, wished, .. } if permit.trial => {
                    if *early && permit.sent < *wished {
                        self.trust = (self.trust / 2.0).max(1.0 / 64.0);
                    }
                    self.paused = self.event_at.map_or(PAUSE_MIN, |event| permit.sent.since(event));
                    self.paused_in += self.paused;
                    self.resume(now);
                }
                _ => {}
            }
        }
        self.watch_latency(now, now.since(permit.sent));
    }

    fn refused(&mut self, now: Mono, permit: Permit, wish: Option<Duration>) {
        self.knee.sent = self.knee.sent.saturating_sub(1);
        self.cost += 1;
        if self.event_at.is_some_and(|event| permit.sent <= event) {
            return; // The same flight.
        }
        if let Phase::Pause { wait, early, .. } = self.phase {
            // The trial came too soon, or a call came that was sent before the pause and after its cause.
            if permit.trial {
                self.trust = if early { 1.0 } else { self.trust };
                self.pause(now, wait.saturating_mul(2), wish);
            }
            return;
        }
        let took = now.since(self.accepts_since);
        let enough = self.accepts >= EVIDENCE_MIN && took >= EVIDENCE_TIME_MIN;
        let measured = self.accepts as f64 / took.as_secs_f64().max(1e-3);
        let limit = match self.phase {
            // What was sent lately: too much, if anything. The next refusal will tell.
            Phase::Free => Some(self.sent_before.max(self.sent as f64 / took.as_secs_f64().max(0.05))),
            // A limit that is nearly right is not paused for long: it is the last step that passed, or what was held.
            Phase::Probe { step, base, .. } if self.paused_in < took / 4 => {
                let passed = f64::from(step.saturating_sub(1));
                Some((base * (self.config.hold.get() + growth(passed))).min(self.ceiling))
            }
            _ if self.source == Source::Headers && self.doubts == 0 => None,
            // A sliding window gives back what was taken a window ago, be that little or much: what was accepted for
            // longer is a floor, unless the limit fell for good.
            _ if enough => {
                let lately = self.lately(now);
                let measured = if measured >= 0.6 * lately { measured.max(lately) } else { measured };
                Some(measured.clamp(self.rate / 4.0, self.rate))
            }
            _ => None,
        };
        if matches!(self.phase, Phase::Hold) {
            // The pace was thought safe: perhaps it was the calls that came at once.
            self.burst_share = (self.burst_share / 2.0).max(1e-3);
        }
        self.doubts = self.doubts.saturating_add(1);
        if let Some(limit) = limit {
            self.believe(now, limit, Source::Refusals, self.accepts);
            self.restart(now);
        } else {
            self.confirmed_at = now;
        }
        self.event_at = Some(now);
        self.cost = 1;
        self.set_rate(self.ceiling * self.config.hold.get());
        self.knee.restart(now);
        let first = (self.paused / 4).clamp(PAUSE_MIN, PAUSE_FIRST_MAX.min(self.config.pause_max));
        self.pause(now, first, wish);
    }

    /// Paced calls from here on, and no burst at first: what caused the pause may still be there.
    fn resume(&mut self, now: Mono) {
        (self.phase, self.resumed_at) = (Phase::Hold, now);
        self.tat = self.pace.empty_at(now);
    }

    fn pause(&mut self, now: Mono, wait: Duration, wish: Option<Duration>) {
        let wait = wait.min(self.config.pause_max);
        let (mut until, mut early, mut wished) = (wait, false, now);
        if let Some(wish) = wish {
            self.wishes = self.wishes.wrapping_add(1);
            early = self.wishes.is_multiple_of(4) || self.trust < 1.0;
            let wish = wish.min(self.config.pause_max);
            let share = if early { self.trust.min(1.0) * 0.5 } else { 1.0 };
            until = wait.max(wish.mul_f64(share));
            wished = now + wish;
        }
        self.phase = Phase::Pause { until: now + until, wait, trial: None, early, wished };
    }

    fn hear(&mut self, now: Mono, signals: &Signals, answer: Answer) {
        if let Some(left) = signals.left {
            let left = Left { resets_in: left.resets_in.min(signals::TIME_MAX), ..left };
            let per_second = left.calls as f64 / left.resets_in.as_secs_f64().max(1e-3);
            let until = if left.calls > 0 { left.resets_in } else { left.resets_in.min(self.config.pause_max) };
            let pace = pace_of(per_second.clamp(1e-6, 1e9), self.config.burst);
            let tat = self.left.map_or(0, |left| left.tat);
            self.left = Some(Spread { calls: left.calls, until: now + until, per_second, pace, tat });
        }
        let Some(told) = signals.per_second else { return };
        let is_news = self.declared.is_none_or(|declared| (declared - told).abs() > 0.01 * declared);
        self.declared = Some(told);
        if is_news {
            self.doubts = 0;
            self.believe(now, told, Source::Headers, 0);
            self.set_rate(self.ceiling * self.config.hold.get());
            if !matches!(self.phase, Phase::Pause { .. }) {
                self.resume(now);
            }
        } else if self.source == Source::Headers && answer == Answer::Accepted {
            self.confirmed_at = now;
        }
    }

    /// A period of at least a second and twenty answers: did latency double while fewer came back than went out?
    fn watch_latency(&mut self, now: Mono, latency: Duration) {
        let knee = &mut self.knee;
        knee.back += 1;
        knee.sum_nanos += latency.as_nanos() as f64;
        let elapsed = now.since(knee.opened);
        if knee.back < STEP_CALLS as u64 || elapsed < STEP_MIN {
            return;
        }
        let mean = Duration::from_nanos((knee.sum_nanos / knee.back as f64) as u64);
        let quantile = Ratio::new(0.1).unwrap_or(Ratio::ZERO);
        let usual = knee.means.quantile(now, quantile).unwrap_or(mean);
        let high = mean > usual * 2;
        if !high {
            knee.means.record(now, mean);
        }
        let (back, behind) = (knee.back, (knee.back as f64) < 0.97 * knee.sent as f64);
        knee.suspicious = if high && behind { knee.suspicious + 1 } else { 0 };
        let (found, drained) = (knee.suspicious >= 2, knee.draining && mean < usual.mul_f64(1.5));
        knee.restart_keeping(now);
        let returned = back as f64 / elapsed.as_secs_f64();
        if found && !matches!(self.phase, Phase::Pause { .. }) {
            self.believe(now, returned, Source::Latency, back);
            self.phase = Phase::Hold;
            (self.event_at, self.cost, self.resumed_at) = (Some(now), 1, now);
            self.restart(now);
            self.knee.draining = true;
            self.knee.suspicious = 0;
            // What waits there must go first.
            self.set_rate(self.ceiling * 0.8);
            self.tat = self.tat.max(self.pace.ticks(now));
        } else if drained {
            self.knee.draining = false;
            self.set_rate(self.ceiling * self.config.hold.get());
        }
    }
}

/// How far a probe is above where it began after so many steps, as a share.
fn growth(step: f64) -> f64 {
    0.0125 * step * (step + 1.0)
}

/// So many calls per second, with so much time's worth of them at once.
fn pace_of(per_second: f64, burst: Duration) -> Pace {
    let cell = (1e9 * f64::from(TICKS_PER_NANO) / per_second) as u64;
    Pace::new(TICKS_PER_NANO, cell, (per_second * burst.as_secs_f64()) as u32)
}

impl Knee {
    fn restart(&mut self, now: Mono) {
        self.suspicious = 0;
        self.restart_keeping(now);
    }

    fn restart_keeping(&mut self, now: Mono) {
        (self.opened, self.sent, self.back, self.sum_nanos) = (now, 0, 0, 0.0);
    }
}
