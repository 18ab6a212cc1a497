//! Outlier ejection: takes the endpoint that does worse than its peers out of the choice for a while.
//!
//! Picture a team where one falls behind. Every call is noted where it went (O(1)). So many failures in a row eject at
//! once. At the end of each interval the endpoints are compared with each other: one whose success rate lies far below
//! the mean (mean - factor · standard deviation; source: Envoy, "Outlier detection"), or whose latency lies far above
//! the median, is ejected too. An ejection lasts base · count, up to a cap, with jitter so that they do not end
//! together; the count falls by one with every interval spent well.
//!
//! Latency is compared with medians, because one slow endpoint moves a mean and a deviation and so hides itself: beyond
//! `latency_factor` times the median *and* beyond five median absolute deviations, so that peers that are all alike are
//! not told apart by a hair.
//!
//! Invariants: never more than `ejected_max` of the endpoints are out at a time, where one may always go if another
//! stays; when fewer than `panic_below` are well, counting those that fail their health check, ejections are ignored
//! (all sick is more likely our own mistake, and a few would be buried); an ejected endpoint returns at its time.
//! O(endpoints) for an interval; recording does not allocate.
//! Not here: health checks (`health.rs`), the choice (`balance`), what counts as a failure (`outcome.rs`).

use std::time::Duration;

use super::Invalid;
use crate::outcome::Outcome;
use crate::prng::Prng;
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

/// Who is an outlier, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierConfig {
    /// Failures in a row that eject at once.
    pub consecutive_failures: u32,
    /// Time between comparisons.
    pub interval: Duration,
    /// Endpoints with enough requests, before any are compared. Three at least: of two, nobody knows who is odd.
    pub endpoints_min: u32,
    /// Requests in the interval, before an endpoint is compared.
    pub requests_min: u32,
    /// Standard deviations below the mean success rate. 1.9 of a normal distribution leaves 2.9 %.
    pub success_deviations: f64,
    /// Success rates within this much of the mean are never outliers: between 99.9 % and 99.8 % there is noise.
    pub success_margin: Ratio,
    /// Mean latency as a multiple of the median endpoint's; `None` to leave latency out.
    pub latency_factor: Option<f64>,
    /// The first ejection lasts this long, the second in a row twice.
    pub ejection_base: Duration,
    /// No ejection lasts longer, jitter aside.
    pub ejection_max: Duration,
    /// Up to this much is added by chance.
    pub ejection_jitter: Duration,
    /// The share of endpoints that may be out.
    pub ejected_max: Ratio,
    /// With fewer well than this share, ejections are ignored.
    pub panic_below: Ratio,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        let ratio = |share| Ratio::new(share).unwrap_or(Ratio::ZERO);
        Self {
            consecutive_failures: 5,
            interval: Duration::from_secs(10),
            endpoints_min: 3,
            requests_min: 50,
            success_deviations: 1.9,
            success_margin: ratio(0.05),
            latency_factor: Some(3.0),
            ejection_base: Duration::from_secs(30),
            ejection_max: Duration::from_secs(300),
            ejection_jitter: Duration::from_secs(5),
            ejected_max: ratio(0.34),
            panic_below: ratio(0.5),
        }
    }
}

impl OutlierConfig {
    fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value, allowed| Err(Invalid { key, value, allowed });
        if self.consecutive_failures == 0 {
            return invalid("consecutive_failures", "0".into(), "1 or more");
        }
        if self.interval.is_zero() {
            return invalid("interval", "0s".into(), "more than nothing");
        }
        if self.endpoints_min < 3 {
            return invalid("endpoints_min", self.endpoints_min.to_string(), "3 or more");
        }
        if self.requests_min == 0 {
            return invalid("requests_min", "0".into(), "1 or more");
        }
        if !(0.1..=10.0).contains(&self.success_deviations) {
            return invalid("success_deviations", self.success_deviations.to_string(), "0.1 to 10");
        }
        if let Some(factor) = self.latency_factor.filter(|factor| !(1.1..=1_000.0).contains(factor)) {
            return invalid("latency_factor", factor.to_string(), "1.1 to 1000");
        }
        if self.ejection_base.is_zero() {
            return invalid("ejection_base", "0s".into(), "more than nothing");
        }
        if self.ejection_max < self.ejection_base {
            return invalid("ejection_max", format_duration(self.ejection_max), "`ejection_base` or more");
        }
        Ok(())
    }
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// It is out.
    Ejected {
        /// Its place.
        endpoint: usize,
        /// Why.
        reason: Reason,
        /// It returns then.
        until: Mono,
        /// The ejections that its time is reckoned from, this one included.
        count: u32,
    },
    /// Its time is over.
    Returned {
        /// Its place.
        endpoint: usize,
    },
}

/// Why an endpoint was ejected, with the numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// It failed so often in a row.
    Consecutive {
        /// So often.
        failures: u32,
    },
    /// It succeeds less often than its peers.
    SuccessRate {
        /// Its own rate.
        rate: Ratio,
        /// What would have been enough.
        bound: Ratio,
    },
    /// It is slower than its peers.
    Latency {
        /// Its own mean.
        mean: Duration,
        /// The median of all.
        median: Duration,
    },
}

/// What is known of an endpoint, as plain data. Its fields are its own; it is written and read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    in_a_row: u32,
    /// The rest of its time, while it is out.
    ejected_for: Option<Duration>,
    count: u32,
}

/// The machine, for endpoints by their place.
///
/// ```
/// use std::time::Duration;
/// use seawall_core::guard::outlier::{Outlier, OutlierConfig};
/// use seawall_core::{outcome::{Failure, Outcome}, prng::Prng, time::Mono};
///
/// let (now, mut prng) = (Mono::ZERO, Prng::new(1));
/// let mut outlier = Outlier::new(OutlierConfig::default(), 3, now).unwrap();
/// let failed = Outcome::Failure(Failure::Timeout);
/// for _ in 0..5 {
///     outlier.record(now, 1, failed, Duration::from_secs(1), &mut prng);
/// }
/// assert_eq!([0, 1, 2].map(|endpoint| outlier.is_usable(endpoint)), [true, false, true]);
/// ```
#[derive(Clone, Debug)]
pub struct Outlier {
    config: OutlierConfig,
    endpoints: Vec<Endpoint>,
    compare_at: Mono,
    ejected: usize,
    /// Ejected, failing their health check, or both.
    unwell: usize,
    /// Room to sort in.
    scratch: Vec<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Endpoint {
    requests: u64,
    successes: u64,
    /// Of successes: failures are fast or slow for reasons of their own.
    latency_nanos: f64,
    in_a_row: u32,
    ejected_until: Option<Mono>,
    count: u32,
    /// In since the last comparison.
    in_since_last: bool,
    healthy: bool,
}

impl Endpoint {
    const NEW: Self = Self {
        requests: 0,
        successes: 0,
        latency_nanos: 0.0,
        in_a_row: 0,
        ejected_until: None,
        count: 0,
        in_since_last: true,
        healthy: true,
    };

    fn is_well(&self) -> bool {
        self.healthy && self.ejected_until.is_none()
    }

    fn success_rate(&self) -> f64 {
        self.successes as f64 / self.requests.max(1) as f64
    }

    fn latency(&self) -> f64 {
        self.latency_nanos / self.successes.max(1) as f64
    }
}

impl Outlier {
    /// All are in.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration compares nothing.
    pub fn new(config: OutlierConfig, endpoints: usize, now: Mono) -> Result<Self, Invalid> {
        config.check()?;
        Ok(Self {
            config,
            endpoints: vec![Endpoint::NEW; endpoints],
            compare_at: now + config.interval,
            ejected: 0,
            unwell: 0,
            scratch: Vec::with_capacity(endpoints),
        })
    }

    /// What is known of each endpoint, as plain data for another process.
    #[must_use]
    pub fn snapshot(&self, now: Mono) -> Vec<Snapshot> {
        let of = |seen: &Endpoint| Snapshot {
            in_a_row: seen.in_a_row,
            ejected_for: seen.ejected_until.map(|until| now.until(until)),
            count: seen.count,
        };
        self.endpoints.iter().map(of).collect()
    }

    /// Knows of an endpoint what another process knew `age` ago: who was out stays out for the rest of its time, as far
    /// as so many may be out. Comparisons begin anew.
    pub fn restore(&mut self, now: Mono, endpoint: usize, snapshot: Snapshot, age: Duration) {
        let ejected_max = self.ejected_max();
        let Some(seen) = self.endpoints.get_mut(endpoint) else { return };
        (seen.in_a_row, seen.count) = (snapshot.in_a_row, snapshot.count);
        let left = snapshot.ejected_for.map(|left| left.saturating_sub(age).min(self.config.ejection_max));
        if let Some(left) = left
            && seen.ejected_until.is_none()
            && self.ejected < ejected_max
        {
            self.unwell += usize::from(seen.is_well());
            (seen.ejected_until, seen.in_since_last) = (Some(now + left), false);
            self.ejected += 1;
        }
    }

    /// Notes a call. Tells if that ejected the endpoint. O(1); a place beyond the last is left out.
    ///
    /// Late answers of an ejected endpoint are noted, but eject it no further.
    pub fn record(
        &mut self,
        now: Mono,
        endpoint: usize,
        outcome: Outcome,
        latency: Duration,
        prng: &mut Prng,
    ) -> Option<Event> {
        let seen = self.endpoints.get_mut(endpoint)?;
        match outcome.of_health() {
            Outcome::Ignored => return None,
            Outcome::Success => {
                seen.requests = seen.requests.saturating_add(1);
                seen.successes = seen.successes.saturating_add(1);
                seen.latency_nanos += latency.as_nanos() as f64;
                seen.in_a_row = 0;
                return None;
            }
            Outcome::Failure(_) => {
                seen.requests = seen.requests.saturating_add(1);
                seen.in_a_row = seen.in_a_row.saturating_add(1);
            }
        }
        let failures = seen.in_a_row;
        if failures < self.config.consecutive_failures {
            return None;
        }
        self.eject(now, endpoint, Reason::Consecutive { failures }, prng)
    }

    /// The driver's health check of an endpoint has changed its mind. Counts for the panic threshold only.
    pub fn on_health(&mut self, endpoint: usize, healthy: bool) {
        if let Some(seen) = self.endpoints.get_mut(endpoint) {
            let before = seen.is_well();
            seen.healthy = healthy;
            let after = seen.is_well();
            self.unwell = self.unwell + usize::from(!after) - usize::from(!before);
        }
    }

    /// Brings back those whose time is over, and compares at the end of an interval. Call it when [`Outlier::due`].
    pub fn on_time(&mut self, now: Mono, prng: &mut Prng) -> Vec<Event> {
        let mut events = Vec::new();
        for endpoint in 0..self.endpoints.len() {
            if self.endpoints[endpoint].ejected_until.is_some_and(|until| now >= until) {
                self.bring_back(endpoint);
                events.push(Event::Returned { endpoint });
            }
        }
        if now >= self.compare_at {
            self.compare(now, prng, &mut events);
            // A clock that jumped over ten intervals has seen one.
            self.compare_at = now + self.config.interval;
        }
        events
    }

    /// When [`Outlier::on_time`] has something to do next.
    #[must_use]
    pub fn due(&self) -> Mono {
        let returns = self.endpoints.iter().filter_map(|endpoint| endpoint.ejected_until);
        returns.fold(self.compare_at, Mono::min)
    }

    /// False while it is ejected, unless so few are well that ejections are ignored.
    #[must_use]
    pub fn is_usable(&self, endpoint: usize) -> bool {
        self.endpoints.get(endpoint).is_some_and(|seen| seen.ejected_until.is_none()) || self.is_panicking()
    }

    /// True while ejections are ignored.
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        let well = (self.endpoints.len() - self.unwell) as f64;
        self.ejected > 0 && well < self.config.panic_below.get() * self.endpoints.len() as f64
    }

    /// How many are out.
    #[must_use]
    pub fn ejected(&self) -> usize {
        self.ejected
    }

    fn ejected_max(&self) -> usize {
        let share = (self.config.ejected_max.get() * self.endpoints.len() as f64 + 1e-9) as usize;
        share.max(1).min(self.endpoints.len().saturating_sub(1))
    }

    fn eject(&mut self, now: Mono, endpoint: usize, reason: Reason, prng: &mut Prng) -> Option<Event> {
        let ejected_max = self.ejected_max();
        let seen = &mut self.endpoints[endpoint];
        if seen.ejected_until.is_some() || self.ejected >= ejected_max {
            return None;
        }
        seen.count = seen.count.saturating_add(1);
        let time = self.config.ejection_base.saturating_mul(seen.count).min(self.config.ejection_max);
        let jitter = u64::try_from(self.config.ejection_jitter.as_nanos()).unwrap_or(u64::MAX);
        let until = now + time + Duration::from_nanos(prng.below(jitter.saturating_add(1)));
        self.unwell += usize::from(seen.is_well());
        (seen.ejected_until, seen.in_since_last, seen.in_a_row) = (Some(until), false, 0);
        self.ejected += 1;
        Some(Event::Ejected { endpoint, reason, until, count: seen.count })
    }

    fn bring_back(&mut self, endpoint: usize) {
        let seen = &mut self.endpoints[endpoint];
        seen.ejected_until = None;
        // It begins anew: what it did before its ejection is paid for.
        (seen.requests, seen.successes, seen.latency_nanos, seen.in_a_row) = (0, 0, 0.0, 0);
        self.unwell -= usize::from(seen.is_well());
        self.ejected -= 1;
    }

    fn compare(&mut self, now: Mono, prng: &mut Prng, events: &mut Vec<Event>) {
        let requests_min = u64::from(self.config.requests_min);
        let judged = |seen: &Endpoint| seen.ejected_until.is_none() && seen.requests >= requests_min;
        let count = self.endpoints.iter().filter(|seen| judged(seen)).count();
        if count >= self.config.endpoints_min as usize {
            let success_bound = self.success_bound(count, judged);
            let latency = self.latency_bound(requests_min);
            for endpoint in 0..self.endpoints.len() {
                let seen = self.endpoints[endpoint];
                if !judged(&seen) {
                    continue;
                }
                let (rate, mean) = (seen.success_rate(), seen.latency());
                let reason = match latency {
                    _ if rate < success_bound => Reason::SuccessRate { rate: ratio(rate), bound: ratio(success_bound) },
                    Some((bound, median)) if seen.successes >= requests_min && mean > bound => {
                        Reason::Latency { mean: nanos(mean), median: nanos(median) }
                    }
                    _ => continue,
                };
                events.extend(self.eject(now, endpoint, reason, prng));
            }
        }
        for seen in &mut self.endpoints {
            let is_in = seen.ejected_until.is_none();
            // A whole interval spent in, and well, takes back an ejection.
            if is_in && seen.in_since_last {
                seen.count = seen.count.saturating_sub(1);
            }
            seen.in_since_last = is_in;
            (seen.requests, seen.successes, seen.latency_nanos) = (0, 0, 0.0);
        }
    }

    /// Mean minus so many standard deviations, and never within the margin.
    fn success_bound(&self, count: usize, judged: impl Fn(&Endpoint) -> bool) -> f64 {
        let rates = || self.endpoints.iter().filter(|seen| judged(seen)).map(Endpoint::success_rate);
        let mean = rates().sum::<f64>() / count as f64;
        let variance = rates().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count as f64;
        // One of n lies at most sqrt(n - 1) deviations from the mean, so that with four or fewer endpoints the usual
        // 1.9 could never be met (Samuelson's inequality).
        let factor = self.config.success_deviations.min(0.95 * (count as f64 - 1.0).sqrt());
        (mean - factor * variance.sqrt()).min(mean - self.config.success_margin.get())
    }

    /// The mean latency that is too high, and the median; `None` if too few are known or nobody asks.
    fn latency_bound(&mut self, requests_min: u64) -> Option<(f64, f64)> {
        let factor = self.config.latency_factor?;
        let known = |seen: &&Endpoint| seen.ejected_until.is_none() && seen.successes >= requests_min;
        self.scratch.clear();
        self.scratch.extend(self.endpoints.iter().filter(known).map(Endpoint::latency));
        if self.scratch.len() < self.config.endpoints_min as usize {
            return None;
        }
        let median = median(&mut self.scratch);
        self.scratch.iter_mut().for_each(|latency| *latency = (*latency - median).abs());
        let deviation = self::median(&mut self.scratch);
        // 1.4826 makes a median absolute deviation comparable with a standard deviation (Rousseeuw and Croux, 1993).
        Some(((median * factor).max(median + 5.0 * 1.4826 * deviation), median))
    }
}

/// The lower median, in O(n).
fn median(numbers: &mut [f64]) -> f64 {
    let middle = (numbers.len() - 1) / 2;
    *numbers.select_nth_unstable_by(middle, f64::total_cmp).1
}

fn ratio(share: f64) -> Ratio {
    Ratio::new(share.clamp(0.0, 1.0)).unwrap_or(Ratio::ZERO)
}

fn nanos(nanos: f64) -> Duration {
    Duration::from_nanos(nanos as u64)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::outcome::Failure;

    const FAIL: Outcome = Outcome::Failure(Failure::Timeout);

    fn config() -> OutlierConfig {
        OutlierConfig { ejection_jitter: Duration::ZERO, ..OutlierConfig::default() }
    }

    fn tell(events: &[Event]) -> String {
        let mut told = String::new();
        for event in events {
            match event {
                Event::Returned { endpoint } => write!(told, "{endpoint} back; ").unwrap(),
                Event::Ejected { endpoint, reason, until, count } => {
                    let why = match reason {
                        Reason::Consecutive { failures } => format!("{failures} in a row"),
                        Reason::SuccessRate { rate, bound } => format!("{rate} below {bound}"),
                        Reason::Latency { mean, median } => format!("{mean:?} beside {median:?}"),
                    };
                    write!(told, "{endpoint} out to {}s, {why}, x{count}; ", until.as_millis() / 1_000).unwrap();
                }
            }
        }
        told.trim_end_matches("; ").into()
    }

    /// One interval: (failed of a hundred, latency in ms) of each endpoint that is in.
    fn interval(outlier: &mut Outlier, at_s: u64, endpoints: &[(u32, u64)]) -> String {
        let (now, mut prng) = (Mono::from_millis(at_s * 1_000), Prng::new(1));
        let mut events = Vec::new();
        for (endpoint, (failed, latency_ms)) in endpoints.iter().enumerate() {
            for call in 0..100 {
                // Spread, so that failures are not in a row.
                let outcome = if call * failed % 100 + failed >= 100 { FAIL } else { Outcome::Success };
                if outlier.endpoints[endpoint].ejected_until.is_none() {
                    events.extend(outlier.record(
                        now,
                        endpoint,
                        outcome,
                        Duration::from_millis(*latency_ms),
                        &mut prng,
                    ));
                }
            }
        }
        events.extend(outlier.on_time(now, &mut prng));
        tell(&events)
    }

    #[test]
    fn failures_in_a_row_eject_at_once_and_for_longer_each_time() {
        let mut outlier = Outlier::new(config(), 3, Mono::ZERO).unwrap();
        let all_fail = [(0, 10), (100, 10), (0, 10)];
        assert_eq!(interval(&mut outlier, 5, &all_fail), "1 out to 35s, 5 in a row, x1");
        assert_eq!(interval(&mut outlier, 34, &all_fail), "");
        assert_eq!(interval(&mut outlier, 35, &all_fail), "1 back");
        assert_eq!(interval(&mut outlier, 36, &all_fail), "1 out to 96s, 5 in a row, x2");
        assert_eq!(interval(&mut outlier, 96, &[(0, 10); 3]), "1 back");
        assert_eq!((outlier.endpoints[1].count, outlier.due()), (2, Mono::from_millis(106_000)));
        interval(&mut outlier, 106, &[(0, 10); 3]);
        assert_eq!(outlier.endpoints[1].count, 1, "a whole interval spent well takes one back");
    }

    #[test]
    fn who_is_out_stays_out_under_the_next_process() {
        let mut outlier = Outlier::new(config(), 4, Mono::ZERO).unwrap();
        interval(&mut outlier, 0, &[(0, 1), (100, 1), (0, 1), (0, 1)]);
        let kept = serde_json::to_string(&outlier.snapshot(Mono::from_millis(10_000))).unwrap();
        let kept: Vec<Snapshot> = serde_json::from_str(&kept).unwrap();
        let (mut next, now) = (Outlier::new(config(), 4, Mono::ZERO).unwrap(), Mono::from_millis(1));
        let age = Duration::from_secs(5);
        // By their names, which here stand in another order.
        for (place, of) in [3, 1, 2, 0].into_iter().zip(&kept).chain([(9, &kept[1])]) {
            next.restore(now, place, *of, age);
        }
        assert_eq!([0, 1, 2, 3].map(|place| next.is_usable(place)), [true, false, true, true]);
        assert_eq!((next.ejected(), next.unwell, next.endpoints[1].count), (1, 1, 1));
        // Not more than may be out, whatever was kept.
        next.restore(now, 2, kept[1], age);
        assert!(next.is_usable(2));
        let back = now + Duration::from_secs(15);
        let mut prng = Prng::new(1);
        assert_eq!(tell(&next.on_time(back - Duration::from_nanos(1), &mut prng)), "");
        assert_eq!(tell(&next.on_time(back, &mut prng)), "1 back");
        assert_eq!((next.ejected(), next.unwell), (0, 0));
    }

    #[test]
    fn time_is_capped() {
        let mut outlier = Outlier::new(config(), 2, Mono::ZERO).unwrap();
        outlier.endpoints[0].count = 9;
        assert_eq!(interval(&mut outlier, 0, &[(100, 1), (0, 1)]), "0 out to 300s, 5 in a row, x10");
        outlier.endpoints[0].count = u32::MAX;
        outlier.bring_back(0);
        assert!(interval(&mut outlier, 0, &[(100, 1), (0, 1)]).starts_with("0 out to 300s"));
    }

    #[test]
    fn the_success_rate_is_compared_with_the_peers() {
        let mut outlier = Outlier::new(config(), 5, Mono::ZERO).unwrap();
        // Mean 0.928, deviation 0.144 in 0.64: Envoy's own bound.
        let one_bad = [(0, 10), (0, 10), (0, 10), (0, 10), (36, 10)];
        assert_eq!(interval(&mut outlier, 10, &one_bad), "4 out to 40s, 64% below 65.44%, x1");
        let mut outlier = Outlier::new(config(), 3, Mono::ZERO).unwrap();
        assert_eq!(interval(&mut outlier, 10, &[(0, 10), (36, 10), (1, 10)]), "1 out to 40s, 64% below 65.177%, x1");
        let mut outlier = Outlier::new(config(), 5, Mono::ZERO).unwrap();
        assert_eq!(interval(&mut outlier, 10, &[(36, 10); 5]), "", "all alike: no outlier");
        assert_eq!(interval(&mut outlier, 20, &[(0, 1), (0, 1), (0, 1), (0, 1), (3, 1)]), "", "within the margin");
        let mut few = Outlier::new(OutlierConfig { requests_min: 101, ..config() }, 5, Mono::ZERO).unwrap();
        assert_eq!(interval(&mut few, 10, &one_bad), "", "too few requests");
        let mut enough = Outlier::new(OutlierConfig { requests_min: 100, ..config() }, 5, Mono::ZERO).unwrap();
        assert_eq!(interval(&mut enough, 10, &one_bad), "4 out to 40s, 64% below 65.44%, x1");
        let mut slow = Outlier::new(OutlierConfig { requests_min: 100, ..config() }, 3, Mono::ZERO).unwrap();
        assert_eq!(interval(&mut slow, 10, &[(0, 1), (0, 1), (0, 9)]), "2 out to 40s, 9ms beside 1ms, x1");
    }

    #[test]
    fn the_slow_one_is_found_and_does_not_hide_itself() {
        let mut outlier = Outlier::new(config(), 3, Mono::ZERO).unwrap();
        assert_eq!(interval(&mut outlier, 10, &[(0, 10), (0, 12), (0, 2_000)]), "2 out to 40s, 2s beside 12ms, x1");
        let mut outlier = Outlier::new(config(), 5, Mono::ZERO).unwrap();
        let alike = |odd_ms| [(0, 10), (0, 10), (0, 10), (0, 10), (0, odd_ms)];
        assert_eq!(interval(&mut outlier, 10, &alike(29)), "", "less than three times the median");
        assert_eq!(interval(&mut outlier, 20, &alike(31)), "4 out to 50s, 31ms beside 10ms, x1");
        let mut outlier = Outlier::new(config(), 5, Mono::ZERO).unwrap();
        let wide = [(0, 10), (0, 20), (0, 30), (0, 60), (0, 95)];
        assert_eq!(interval(&mut outlier, 10, &wide), "", "more than three times the median, but they differ anyway");
    }

    #[test]
    fn never_more_than_the_share_and_one_only_if_another_stays() {
        for (endpoints, out) in [(1, 0), (2, 1), (3, 1), (6, 2), (10, 3)] {
            let mut outlier = Outlier::new(config(), endpoints, Mono::ZERO).unwrap();
            interval(&mut outlier, 1, &vec![(100, 1); endpoints]);
            assert_eq!(outlier.ejected(), out, "of {endpoints}");
        }
    }

    #[test]
    fn when_few_are_well_ejections_are_ignored() {
        let mut outlier = Outlier::new(config(), 4, Mono::ZERO).unwrap();
        interval(&mut outlier, 1, &[(100, 1), (0, 1), (0, 1), (0, 1)]);
        outlier.on_health(0, false);
        outlier.on_health(1, false);
        assert!(!outlier.is_panicking() && !outlier.is_usable(0), "two of four are well");
        outlier.on_health(2, false);
        assert!(outlier.is_panicking() && outlier.is_usable(0));
        outlier.on_health(2, true);
        assert!(!outlier.is_usable(0) && !outlier.is_usable(9));
    }

    #[test]
    fn numbers_that_compare_nothing_are_named() {
        for (key, config) in [
            ("consecutive_failures", OutlierConfig { consecutive_failures: 0, ..config() }),
            ("interval", OutlierConfig { interval: Duration::ZERO, ..config() }),
            ("endpoints_min", OutlierConfig { endpoints_min: 2, ..config() }),
            ("requests_min", OutlierConfig { requests_min: 0, ..config() }),
            ("success_deviations", OutlierConfig { success_deviations: f64::NAN, ..config() }),
            ("latency_factor", OutlierConfig { latency_factor: Some(1.0), ..config() }),
            ("ejection_base", OutlierConfig { ejection_base: Duration::ZERO, ..config() }),
            ("ejection_max", OutlierConfig { ejection_max: Duration::ZERO, ..config() }),
        ] {
            assert_eq!(Outlier::new(config, 1, Mono::ZERO).unwrap_err().key, key);
        }
    }

    proptest! {
        #[test]
        fn as_a_list_of_who_is_out(
            endpoints in 0_usize..12, share in 0.0..=1.0, seed: u64,
            steps in prop::collection::vec(
                (0_usize..14, 0_u8..8, prop_oneof![8 => 0_u64..3_000, 1 => 0_u64..900_000_000, 1 => any::<u64>()]), 1..400),
        ) {
            let config = OutlierConfig {
                ejected_max: Ratio::new(share).unwrap(), consecutive_failures: 2, requests_min: 2, ..OutlierConfig::default()
            };
            let (mut outlier, mut prng) = (Outlier::new(config, endpoints, Mono::ZERO).unwrap(), Prng::new(seed));
            let mut out = vec![None; endpoints];
            let mut sick = vec![false; endpoints];
            let mut now = Mono::ZERO;
            for (endpoint, step, gap_ms) in steps {
                now = now + Duration::from_millis(gap_ms);
                let mut events = Vec::new();
                match step {
                    0..=3 => events.extend(outlier.record(now, endpoint, FAIL, Duration::ZERO, &mut prng)),
                    4 | 5 => {
                        let latency = Duration::from_millis(if endpoint == 3 { gap_ms } else { 1 });
                        events.extend(outlier.record(now, endpoint, Outcome::Success, latency, &mut prng));
                    }
                    6 => {
                        outlier.on_health(endpoint, gap_ms % 2 == 0);
                        if let Some(sick) = sick.get_mut(endpoint) { *sick = gap_ms % 2 == 1; }
                    }
                    _ => events = outlier.on_time(now, &mut prng),
                }
                for event in events {
                    match event {
                        Event::Ejected { endpoint, until, count, .. } => {
                            prop_assert!(out[endpoint].is_none() && count > 0);
                            prop_assert!(until >= now + config.ejection_base.min(now.until(Mono::from_nanos(u64::MAX))));
                            prop_assert!(until <= now + config.ejection_max + config.ejection_jitter);
                            out[endpoint] = Some(until);
                        }
                        Event::Returned { endpoint } => {
                            prop_assert!(out[endpoint].is_some_and(|until| now >= until));
                            out[endpoint] = None;
                        }
                    }
                }
                let count = out.iter().flatten().count();
                prop_assert_eq!(outlier.ejected(), count);
                prop_assert!(count <= ((share * endpoints as f64 + 1e-9) as usize).max(1) && (count == 0 || count < endpoints));
                let well = (0..endpoints).filter(|&i| out[i].is_none() && !sick[i]).count();
                let panics = count > 0 && (well as f64) < 0.5 * endpoints as f64;
                for (endpoint, out) in out.iter().enumerate() {
                    prop_assert_eq!(outlier.is_usable(endpoint), out.is_none() || panics);
                }
            }
        }
    }
}
