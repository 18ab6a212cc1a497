//! Adaptive concurrency limit: finds out how many calls an upstream serves at the same time before they queue.
//!
//! Picture a shop with so many tills. While a till is free, a visit takes as long as serving takes (the baseline). Once
//! all are busy, one more customer inside makes nobody served sooner, and every visit longer: calls on their way =
//! throughput · mean latency (Little's law). So the limit grows while latency stays at its baseline and calls press
//! against it, and shrinks in proportion when latency rises. It settles where latency is `tolerance` above the
//! baseline.
//!
//! It works in windows of at least `samples_min` calls. A window's mean is trusted no further than its own spread says:
//! two standard errors are added to the tolerance. After the limit has changed, one mean latency goes by before the
//! next window begins. Known faults of its relatives, and what is done instead:
//!
//! - *The baseline drifts in a long overload*, because the latency it is learned from contains the queue. Here it is a
//!   low quantile of window means over `baseline_window`; and while calls are refused anyway, every sixth window runs
//!   at 0.9 / tolerance of the limit, just below the knee, so that a tenth of the means never contains a queue.
//! - *Measuring causes refusals*, because the limit is pinned to a minimum. The dips above happen only while calls are
//!   refused anyway; they drain the queue and leave nearly all tills busy (measured: about 5 % of throughput with ten
//!   tills, 3 % with 25). Without refusals there are none.
//! - *An upstream that has become slower for good is strangled*, because its latency looks like a queue. If the limit
//!   has shrunk by two fifths, twice, and latency has not followed, it was no queue: the baseline is learned anew, the
//!   limit restored.
//! - *Constant timeouts look healthy*, because they have no spread. Here timeouts and refusals are drops, no latencies;
//!   more than `drop_share` of them shrink the limit, once for all calls that were on their way together.
//! - *Quiet hours let the limit grow without end*. Here it grows only when it was reached.
//!
//! Invariants: limit_min <= limit <= limit_max; in_flight counts [`Permit`]s not yet recorded; memory is that of one
//! [`Latencies`]; no call allocates.
//! Not here: a queue in front (`bulkhead.rs`), the share of each priority.

use std::time::Duration;

use super::latency::Latencies;
use super::{Invalid, Refusal};
use crate::outcome::{Failure, Outcome};
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

#[cfg(test)]
mod tests;

/// Between which bounds, and how carefully.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConcurrencyConfig {
    /// Where it begins.
    pub limit_initial: u32,
    /// Never fewer.
    pub limit_min: u32,
    /// Never more.
    pub limit_max: u32,
    /// How far mean latency may lie above its baseline: 25 % lets about a quarter of the calls wait.
    pub tolerance: Ratio,
    /// A mean latency above this is never healthy, whatever the baseline has come to be.
    pub healthy_rtt_max: Option<Duration>,
    /// This share of drops in a window shrinks the limit.
    pub drop_share: Ratio,
    /// Calls in a window.
    pub samples_min: u32,
    /// The shortest window.
    pub window_min: Duration,
    /// The longest window: ends with at least ten calls.
    pub window_max: Duration,
    /// How long a mean latency counts for the baseline.
    pub baseline_window: Duration,
}

impl Default for ConcurrencyConfig {
    fn default() -> Self {
        Self {
            limit_initial: 20,
            limit_min: 2,
            limit_max: 1_000,
            tolerance: Ratio::new(0.25).unwrap_or(Ratio::ONE),
            healthy_rtt_max: None,
            drop_share: Ratio::new(0.01).unwrap_or(Ratio::ONE),
            samples_min: 100,
            window_min: Duration::from_millis(100),
            window_max: Duration::from_secs(5),
            baseline_window: Duration::from_secs(600),
        }
    }
}

/// Calls below which no window is judged.
const SAMPLES_FLOOR: u32 = 10;
/// Every so many windows one dips, while calls are refused.
const DIP_EVERY: u32 = 6;
/// The quantile of window means that is the baseline: below the share of dips.
const BASELINE: f64 = 0.1;
/// The tolerance with its standard errors, at most.
const TOLERANCE_MAX: f64 = 1.6;

impl ConcurrencyConfig {
    fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value, allowed| Err(Invalid { key, value, allowed });
        if self.limit_min == 0 {
            return invalid("limit_min", "0".into(), "1 or more");
        }
        if !(self.limit_min..=1_000_000).contains(&self.limit_max) {
            return invalid("limit_max", self.limit_max.to_string(), "`limit_min` to 1000000");
        }
        if !(self.limit_min..=self.limit_max).contains(&self.limit_initial) {
            return invalid("limit_initial", self.limit_initial.to_string(), "`limit_min` to `limit_max`");
        }
        if !(0.05..=0.5).contains(&self.tolerance.get()) {
            return invalid("tolerance", self.tolerance.to_string(), "5% to 50%");
        }
        if self.healthy_rtt_max == Some(Duration::ZERO) {
            return invalid("healthy_rtt_max", "0s".into(), "more than nothing");
        }
        if self.drop_share == Ratio::ZERO {
            return invalid("drop_share", "0%".into(), "more than 0%");
        }
        if self.samples_min < SAMPLES_FLOOR {
            return invalid("samples_min", self.samples_min.to_string(), "10 or more");
        }
        if self.window_max < self.window_min || self.window_max.is_zero() {
            return invalid("window_max", format_duration(self.window_max), "`window_min` or more, and not nothing");
        }
        if self.baseline_window < self.window_max.saturating_mul(10) {
            let value = format_duration(self.baseline_window);
            return invalid("baseline_window", value, "at least 10 times `window_max`");
        }
        Ok(())
    }
}

/// A place. Give it back with [`Concurrency::record`].
#[must_use = "a place that is not given back is lost"]
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    started: Mono,
}

/// What a window came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// The limit from now on.
    pub limit: u32,
    /// Why.
    pub why: Why,
    /// The window's mean latency; zero if it had only drops.
    pub rtt: Duration,
    /// What it was compared with.
    pub baseline: Duration,
}

/// Why a limit is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was reached, and nobody had to wait.
    Grew,
    /// Calls wait: latency rose with their number.
    Queueing,
    /// Calls timed out or were turned away.
    Drops,
    /// Lowered for a window, to see the latency without a queue.
    Dip,
    /// Latency does not follow the limit: the upstream is slower for good, and that is its baseline now.
    Slower,
    /// Nothing to change.
    Held,
}

/// The machine.
///
/// ```
/// use seawall_core::guard::concurrency::{Concurrency, ConcurrencyConfig};
/// use seawall_core::{outcome::Outcome, time::Mono};
///
/// let mut limit = Concurrency::new(ConcurrencyConfig::default(), Mono::ZERO).unwrap();
/// let permits: Vec<_> = (0..20).map(|_| limit.admit(Mono::ZERO).unwrap()).collect();
/// assert!(limit.admit(Mono::ZERO).is_err());
/// for permit in permits {
///     limit.record(Mono::from_millis(10), permit, Outcome::Success);
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Concurrency {
    config: ConcurrencyConfig,
    limit: f64,
    /// The limit of this window, if it dips.
    dip: Option<f64>,
    in_flight: u32,
    window: Window,
    means: Latencies,
    /// The last baseline, for when all means are too old.
    baseline_nanos: Option<f64>,
    mean_nanos: f64,
    episode: Option<Episode>,
    windows_refusing: u32,
    /// Drops of calls begun before this were answered for already.
    cut_at: Option<Mono>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    opens: Mono,
    samples: u32,
    drops: u32,
    sum: f64,
    sum_of_squares: f64,
    peak: u32,
    admitted: u32,
    refused: u32,
}

/// A time of shrinking: what was before it, and at its last test.
#[derive(Clone, Copy, Debug)]
struct Episode {
    limit: f64,
    first: (f64, f64),
    calls: f64,
    mean: f64,
    unmoved: u32,
}

impl Concurrency {
    /// Begins at `limit_initial`.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no limit.
    pub fn new(config: ConcurrencyConfig, now: Mono) -> Result<Self, Invalid> {
        config.check()?;
        Ok(Self {
            config,
            limit: f64::from(config.limit_initial),
            dip: None,
            in_flight: 0,
            window: Window { opens: now, ..Window::default() },
            means: Latencies::new(config.baseline_window, now)?,
            baseline_nanos: None,
            mean_nanos: 0.0,
            episode: None,
            windows_refusing: 0,
            cut_at: None,
        })
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`Refusal::ConcurrencyLimited`] when the limit is reached.
    pub fn admit(&mut self, now: Mono) -> Result<Permit, Refusal> {
        let limit = self.limit();
        if self.in_flight >= limit {
            self.window.refused = self.window.refused.saturating_add(1);
            let retry_in = Duration::from_nanos((self.mean_nanos / f64::from(limit)) as u64);
            return Err(Refusal::ConcurrencyLimited { limit, in_flight: self.in_flight, retry_in });
        }
        self.in_flight += 1;
        self.window.admitted = self.window.admitted.saturating_add(1);
        self.window.peak = self.window.peak.max(self.in_flight);
        Ok(Permit { started: now })
    }

    /// Gives the place back and takes in what the call came to. Tells what followed when this ended a window.
    ///
    /// A success is a latency. Timeouts, refusals to serve and lost connections are drops. Other failures, and calls
    /// that are ignored, say nothing: an error may come sooner than any honest answer.
    pub fn record(&mut self, now: Mono, permit: Permit, outcome: Outcome) -> Option<Change> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let window = &mut self.window;
        match outcome {
            Outcome::Success if now >= window.opens => {
                let nanos = now.since(permit.started).as_nanos() as f64;
                window.samples = window.samples.saturating_add(1);
                window.sum += nanos;
                window.sum_of_squares += nanos * nanos;
            }
            Outcome::Failure(failure) if is_drop(failure) && self.cut_at.is_none_or(|cut| permit.started > cut) => {
                window.drops = window.drops.saturating_add(1);
            }
            _ => return None,
        }
        let (samples, elapsed) = (window.samples.saturating_add(window.drops), now.since(window.opens));
        let full = samples >= self.config.samples_min && elapsed >= self.config.window_min;
        let late = samples >= SAMPLES_FLOOR && elapsed >= self.config.window_max;
        let failing = window.drops >= SAMPLES_FLOOR && window.drops >= samples / 2;
        (full || late || failing).then(|| self.judge(now))
    }

    /// Calls that may be on their way.
    #[must_use]
    pub fn limit(&self) -> u32 {
        (self.dip.unwrap_or(self.limit) as u32).max(self.config.limit_min)
    }

    /// Calls on their way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The latency without a queue, as far as it is known.
    #[must_use]
    pub fn baseline(&self) -> Option<Duration> {
        self.baseline_nanos.map(|nanos| Duration::from_nanos(nanos as u64))
    }

    fn judge(&mut self, now: Mono) -> Change {
        let window = self.window;
        let (reached, dipped) = (window.peak >= self.limit(), self.dip.take().is_some());
        let drops = f64::from(window.drops) / f64::from(window.drops.saturating_add(window.samples).max(1));
        let mut why = Why::Held;
        if drops >= self.config.drop_share.get() {
            // From what was really used: a limit that was never reached says nothing.
            self.limit = self.limit.min(f64::from(window.peak).max(1.0)) * (1.0 - drops).clamp(0.5, 0.9);
            (self.cut_at, self.episode, why) = (Some(now), None, Why::Drops);
        } else if window.samples >= SAMPLES_FLOOR {
            why = self.compare(now, window, reached, dipped);
        }
        self.limit = self.limit.clamp(f64::from(self.config.limit_min), f64::from(self.config.limit_max));
        // The next window begins when the calls of this one have ended, on average.
        let settle = Duration::from_nanos(self.mean_nanos as u64).min(self.config.window_max);
        self.window = Window { opens: now + settle, peak: self.in_flight, ..Window::default() };
        let rtt = Duration::from_nanos(if window.samples > 0 { self.mean_nanos as u64 } else { 0 });
        Change { limit: self.limit(), why, rtt, baseline: self.baseline().unwrap_or(rtt) }
    }

    fn compare(&mut self, now: Mono, window: Window, reached: bool, dipped: bool) -> Why {
        let samples = f64::from(window.samples);
        let mean = window.sum / samples;
        self.mean_nanos = mean;
        if mean <= 0.0 {
            return Why::Held; // The clock stood still.
        }
        let variance = (window.sum_of_squares / samples - mean * mean).max(0.0);
        let standard_error = (variance / samples).sqrt() / mean;
        let tolerance = (1.0 + self.config.tolerance.get() + 2.0 * standard_error).min(TOLERANCE_MAX);

        self.means.record(now, Duration::from_nanos(mean as u64));
        let quantile = Ratio::new(BASELINE).unwrap_or(Ratio::ZERO);
        let learned = self.means.quantile(now, quantile).map_or(mean, |quantile| quantile.as_nanos() as f64);
        let healthy_max = self.config.healthy_rtt_max.map_or(f64::MAX, |max| max.as_nanos() as f64);
        let baseline = learned.min(healthy_max);
        self.baseline_nanos = Some(baseline);
        let bound = (baseline * tolerance).min(healthy_max);

        let attempts = f64::from(window.admitted) + f64::from(window.refused);
        let refusing = f64::from(window.refused) > 0.05 * attempts;
        self.windows_refusing = if refusing && !dipped { self.windows_refusing + 1 } else { 0 };
        if dipped {
            return Why::Held; // It was lower than it is: neither a reason to grow nor to shrink.
        }
        // Where the limit was not reached, only latency beyond doubt counts.
        let queueing = mean > if reached { bound } else { 2.0 * bound };
        if queueing {
            return self.shrink(now, window, mean, bound, healthy_max);
        }
        self.episode = None;
        if self.windows_refusing >= DIP_EVERY - 1 && mean > baseline {
            self.windows_refusing = 0;
            self.dip = Some(self.limit * 0.9 / tolerance);
            return Why::Dip;
        }
        if !reached {
            return Why::Held;
        }
        // Full speed at the baseline, none at the bound.
        let room = ((bound - mean) / (bound - baseline).max(1.0)).clamp(0.0, 1.0);
        self.limit += self.limit.sqrt() * room;
        if room > 0.0 { Why::Grew } else { Why::Held }
    }

    fn shrink(&mut self, now: Mono, window: Window, mean: f64, bound: f64, healthy_max: f64) -> Why {
        let calls = f64::from(window.peak).min(self.limit).max(1.0);
        let fresh = Episode { limit: self.limit, first: (calls, mean), calls, mean, unmoved: 0 };
        let episode = self.episode.get_or_insert(fresh);
        // A queue of our making: latency is in proportion to calls. None: it is the same. Halfway between is the judge.
        let moved = |(from_calls, from_mean): (f64, f64)| mean / from_mean <= (calls / from_calls).sqrt();
        if calls <= 0.6 * episode.calls {
            episode.unmoved = if moved((episode.calls, episode.mean)) { 0 } else { episode.unmoved + 1 };
            (episode.calls, episode.mean) = (calls, mean);
        } else if calls <= f64::from(self.config.limit_min) && !moved(episode.first) {
            episode.unmoved += 1; // It cannot shrink further: compare with the beginning.
        }
        if episode.unmoved >= 2 && mean < healthy_max {
            self.limit = episode.limit;
            self.episode = None;
            self.means.clear();
            self.means.record(now, Duration::from_nanos(mean as u64));
            self.baseline_nanos = Some(mean);
            return Why::Slower;
        }
        // Once suspected, it is put to the test: the first window may have seen the change itself and prove nothing.
        let suspected = episode.unmoved > 0;
        self.limit = calls * if suspected { 0.55 } else { (bound / mean).clamp(0.5, 1.0) };
        Why::Queueing
    }
}

/// True for failures that say the upstream had no room.
fn is_drop(failure: Failure) -> bool {
    match failure {
        Failure::Timeout | Failure::ConnectTimeout | Failure::ConnectionLost | Failure::Throttled => true,
        Failure::Status(status) => matches!(status, 503 | 504),
        _ => false,
    }
}
