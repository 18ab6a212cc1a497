//! When a breaker opens and how it finds the way back, as numbers, and the one place where they are checked.
//!
//! Words are Resilience4j's where it has one: failure rate, slow call rate, minimum calls, half-open calls.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::guard::Invalid;
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

/// When to open, and how to find the way back.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerConfig {
    /// Opens when this share of the window failed. At least, not above: 50 % of 2 opens at 1.
    pub failure_rate_max: Ratio,
    /// Opens when too many calls were slow, failed ones included; `None` to ignore slowness.
    pub slow: Option<SlowRule>,
    /// Opens after so many failures in a row, whatever the rates say; `None` to look at rates alone.
    pub consecutive_failures_max: Option<NonZeroU32>,
    /// Which calls count.
    pub window: WindowConfig,
    /// Rates are not judged on fewer calls. Clamped to the window when that is counted in calls.
    pub calls_min: u32,
    /// How long it stays open.
    pub wait: OpenWait,
    /// How it finds out whether the upstream is well again.
    pub half_open: HalfOpen,
    /// How traffic comes back after that; `None` for all at once.
    pub ramp: Option<Ramp>,
    /// The state it begins in.
    pub initial: StateName,
    /// What a result is worth that belongs to an earlier state.
    pub late_results: LateResults,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_rate_max: Ratio::new(0.5).unwrap_or(Ratio::ONE),
            slow: Some(SlowRule {
                rate_max: Ratio::new(0.8).unwrap_or(Ratio::ONE),
                over: Duration::from_secs(10),
                in_flight: true,
            }),
            consecutive_failures_max: None,
            window: WindowConfig::Calls(100),
            calls_min: 20,
            wait: OpenWait::default(),
            half_open: HalfOpen::default(),
            ramp: None,
            initial: StateName::Closed,
            late_results: LateResults::Ignored,
        }
    }
}

/// When slowness opens the breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowRule {
    /// The share of slow calls that opens it.
    pub rate_max: Ratio,
    /// A call is slow when it took longer than this.
    pub over: Duration,
    /// True to count calls that are past `over` and still on their way, at once and until they end: an upstream that
    /// hangs answers nothing, and finished calls alone would never show it.
    pub in_flight: bool,
}

/// Which calls a breaker looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowConfig {
    /// The last so many.
    Calls(u32),
    /// Those of the last while, forgotten a slice at a time: a call leaves between `span - span/slices` and `span`
    /// after it was recorded.
    Time {
        /// The while.
        span: Duration,
        /// Its granularity.
        slices: u32,
    },
}

impl WindowConfig {
    /// A time window of twenty slices.
    #[must_use]
    pub const fn time(span: Duration) -> Self {
        Self::Time { span, slices: 20 }
    }
}

/// How long an open breaker waits before it tries again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OpenWait {
    /// The first wait, in whole milliseconds.
    pub first: Duration,
    /// Each visit to OPEN since it was last closed waits this many times longer. 1.0 for a fixed wait.
    pub multiplier: f64,
    /// No wait is longer, jitter included; `None` for no bound.
    pub max: Option<Duration>,
    /// A wait of `w` is drawn uniformly from `w - w·jitter ..= w + w·jitter`.
    pub jitter: Ratio,
    /// An upstream's `Retry-After` lengthens the wait, up to this; `None` to pay no heed to it.
    pub retry_after_max: Option<Duration>,
}

impl Default for OpenWait {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(10),
            multiplier: 2.0,
            max: Some(Duration::from_secs(60)),
            jitter: Ratio::ZERO,
            retry_after_max: Some(Duration::from_secs(60)),
        }
    }
}

impl OpenWait {
    /// The wait of the `visit`-th visit to OPEN (1 is the first) before jitter, in milliseconds. Each step is truncated
    /// to whole milliseconds, so that the same numbers come out everywhere.
    pub(super) fn millis(&self, visit: u32) -> u64 {
        let cap = self.max.map_or(FOREVER_MS, whole_millis);
        let mut wait = whole_millis(self.first);
        for _ in 1..visit {
            let next = (wait as f64 * self.multiplier) as u64;
            if next == wait || wait >= cap {
                break;
            }
            wait = next;
        }
        wait.min(cap)
    }
}

/// A hundred years: no wait is longer.
const FOREVER_MS: u64 = 100 * 366 * 86_400_000;

pub(super) fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(FOREVER_MS).min(FOREVER_MS)
}

/// How a half-open breaker finds out whether the upstream is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    /// Probes per visit, in all. The verdict falls when `calls_min` of them, or all, have come back.
    pub calls: u32,
    /// A probe that has not come back after this long counts as failed and slow; `None` to wait for ever.
    pub probe_for: Option<Duration>,
    /// A visit without a verdict ends after this long, whatever is out; `None` for never.
    pub ends_after: Option<Duration>,
    /// How such a visit ends.
    pub ends_in: HalfOpenEnd,
    /// True to leave OPEN when the wait is over; false to leave it with the first call after that.
    pub by_timer: bool,
    /// True if the driver probes on its own ([`super::Breaker::admit_probe`]) and users' calls are refused until the
    /// verdict. Implies `by_timer`.
    pub synthetic: bool,
}

impl Default for HalfOpen {
    fn default() -> Self {
        Self {
            calls: 5,
            probe_for: Some(Duration::from_secs(10)),
            ends_after: None,
            ends_in: HalfOpenEnd::Open,
            by_timer: false,
            synthetic: false,
        }
    }
}

/// How a half-open visit ends that came to no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfOpenEnd {
    /// Thought sick: OPEN again.
    Open,
    /// Thought well: CLOSED.
    Closed,
}

/// Recovery by degrees: after the probes, a small share of calls goes through, then a larger one. Each step that holds
/// is followed by the next, a step that fails by the one before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ramp {
    /// The shares, rising; after the last comes CLOSED.
    pub steps: Vec<Ratio>,
    /// How long a step must hold. At least one call goes through in each such while, however small the share.
    pub step_for: Duration,
    /// Calls that must have come back before a step is judged, either way.
    pub calls_min: u32,
}

impl Default for Ramp {
    /// 1, 5 and 25 %, ten seconds each.
    fn default() -> Self {
        let steps = [0.01, 0.05, 0.25].into_iter().filter_map(Ratio::new).collect();
        Self { steps, step_for: Duration::from_secs(10), calls_min: 3 }
    }
}

/// What becomes of a result whose permit was given in an earlier state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LateResults {
    /// It is shown while open and decides nothing.
    #[default]
    Ignored,
    /// It counts for whatever state there is, as in Resilience4j, where permits have no owner: a half-open breaker may
    /// close on the strength of calls made before it opened. For replaying what that library would have done.
    Counted,
}

/// The state by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// Everything passes and is counted.
    Closed,
    /// Everything is refused until the wait is over.
    Open,
    /// Probes pass.
    HalfOpen,
    /// A share of the calls passes ([`Ramp`]).
    Recovering,
    /// By hand: everything passes, nothing is counted.
    Disabled,
    /// By hand: everything is refused, until somebody says otherwise.
    ForcedOpen,
    /// By hand: everything passes and is counted; what would have opened it is told once.
    ObserveOnly,
}

impl StateName {
    /// As shown in metrics, journal and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Recovering => "recovering",
            Self::Disabled => "disabled",
            Self::ForcedOpen => "forced_open",
            Self::ObserveOnly => "observe_only",
        }
    }

    /// Every state, for metrics that must show zeros too.
    pub const ALL: [Self; 7] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::Recovering,
        Self::Disabled,
        Self::ForcedOpen,
        Self::ObserveOnly,
    ];

    /// True if a person may move a breaker from here to there. To itself is always allowed and begins anew.
    #[must_use]
    pub const fn may_become(self, to: Self) -> bool {
        use StateName::{Closed, Disabled, ForcedOpen, HalfOpen, ObserveOnly, Open, Recovering};
        match (self, to) {
            (Recovering, Recovering) => true,
            // A share of nothing measured: only the probes lead there.
            (_, Recovering) => false,
            (Closed, HalfOpen) | (ObserveOnly, Open | HalfOpen) => false,
            (_, Closed | Open | HalfOpen | Disabled | ForcedOpen | ObserveOnly) => true,
        }
    }
}

/// The longest window: its counters are 32 bits wide, enough for a million calls a second.
const SPAN_MAX: Duration = Duration::from_secs(3_600);

impl BreakerConfig {
    /// # Errors
    /// [`Invalid`] with the first number that makes no guard: its key, what it is, and what is allowed.
    pub fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value: String, allowed| Err(Invalid { key, value, allowed });
        if self.failure_rate_max.get() <= 0.0 {
            return invalid("failure_rate", self.failure_rate_max.to_string(), "above 0% and up to 100%");
        }
        if let Some(slow) = &self.slow {
            if slow.rate_max.get() <= 0.0 {
                return invalid("slow", slow.rate_max.to_string(), "above 0% and up to 100%");
            }
            if slow.over.is_zero() {
                return invalid("slow", "over 0s".into(), "over 1ns or more");
            }
        }
        match self.window {
            WindowConfig::Calls(calls) if !(1..=CALLS_MAX).contains(&calls) => {
                return invalid("window", format!("{calls} calls"), "1 to 1000000 calls");
            }
            WindowConfig::Time { span, slices } => {
                if !(Duration::from_millis(1)..=SPAN_MAX).contains(&span) {
                    return invalid("window", format_duration(span), "1ms to 1h");
                }
                if !(1..=SLICES_MAX).contains(&slices) {
                    return invalid("window", format!("{slices} slices"), "1 to 3600 slices");
                }
            }
            WindowConfig::Calls(_) => {}
        }
        if self.calls_min == 0 {
            return invalid("calls_min", "0".into(), "1 or more");
        }
        self.wait.check()?;
        self.half_open.check()?;
        if let Some(ramp) = &self.ramp {
            ramp.check()?;
        }
        match self.initial {
            StateName::Recovering => invalid(
                "initial",
                "recovering".into(),
                "closed, open, half_open, disabled, forced_open or observe_only",
            ),
            _ => Ok(()),
        }
    }
}

pub(super) const CALLS_MAX: u32 = 1_000_000;
const SLICES_MAX: u32 = 3_600;

impl OpenWait {
    fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value: String, allowed| Err(Invalid { key, value, allowed });
        if self.first < Duration::from_millis(1) {
            return invalid("open_for", format_duration(self.first), "1ms or more");
        }
        if !(1.0..=100.0).contains(&self.multiplier) {
            return invalid("open_for", format!("times {}", self.multiplier), "times 1 to times 100");
        }
        match self.max {
            Some(max) if max < self.first => {
                invalid("open_for_max", format_duration(max), "at least as long as open_for")
            }
            _ => Ok(()),
        }
    }

    /// When a breaker that opens now for the `visit`-th time may try again. `hinted` is the upstream's own wish.
    pub(super) fn until(&self, now: Mono, visit: u32, hinted: Option<Mono>, prng: &mut crate::prng::Prng) -> Mono {
        let wait = self.millis(visit);
        let (jitter, cap) = (self.jitter.get(), self.max.map_or(FOREVER_MS, whole_millis));
        let drawn = if jitter > 0.0 {
            let (low, high) = (wait as f64 * (1.0 - jitter), wait as f64 * (1.0 + jitter) + 1.0);
            ((low + prng.unit() * (high - low)) as u64).clamp(1, cap.max(1))
        } else {
            wait
        };
        let ours = now + Duration::from_millis(drawn);
        match (self.retry_after_max, hinted) {
            (Some(max), Some(hinted)) => ours.max(hinted.min(now + max)),
            _ => ours,
        }
    }
}

impl HalfOpen {
    fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value: String, allowed| Err(Invalid { key, value, allowed });
        if !(1..=10_000).contains(&self.calls) {
            return invalid("half_open_calls", self.calls.to_string(), "1 to 10000");
        }
        for (key, span) in [("half_open_for", self.probe_for), ("half_open_ends_after", self.ends_after)] {
            if span.is_some_and(|span| span < Duration::from_millis(1)) {
                return invalid(key, format_duration(span.unwrap_or_default()), "1ms or more");
            }
        }
        Ok(())
    }
}

impl Ramp {
    fn check(&self) -> Result<(), Invalid> {
        let shown = || self.steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let rises = self.steps.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self.steps.iter().all(|step| step.get() > 0.0 && step.get() < 1.0);
        if self.steps.is_empty() || self.steps.len() > 20 || !rises || !inside {
            let allowed = "1 to 20 rising shares between 0% and 100%, both excluded";
            return Err(Invalid { key: "ramp", value: shown(), allowed });
        }
        if self.step_for < Duration::from_millis(1) {
            return Err(Invalid {
                key: "ramp",
                value: format_duration(self.step_for),
                allowed: "steps of 1ms or more",
            });
        }
        if self.calls_min == 0 {
            return Err(Invalid { key: "ramp", value: "0 calls".into(), allowed: "1 call or more a step" });
        }
        Ok(())
    }
}
