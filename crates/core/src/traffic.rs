//! What passes a route, and whether it has changed so much that the journal should be told.
//!
//! Picture somebody with a tally sheet at a gate who looks at it once a minute and writes into the book only when the
//! traffic is no longer what the book says. [`Counts`] is the sheet: requests, calls to the upstream, and how long the
//! good ones took, counted since the start. [`Watch`] is who looks.
//!
//! What is told has changed by a factor that matters ([`FACTOR`], for latencies [`LATENCY_FACTOR`]) and by more than
//! chance does ([`SIGMAS`] standard deviations of the counts, the old and the new together). What looks changed and may
//! yet be chance is looked at longer; where little passes, a look takes in up to ten minutes. From nothing to something
//! is told at once, and back as soon as silence is no chance any more. After an hour of doubt it is told anyway.
//! Invariants: each request is in one look at most; nothing is told of a span without a difference; the same counts at
//! the same moments tell the same.
//! Not here: who counts and when (the gateway's `observe.rs` and `traffic.rs`), how it is played again (`whatif`).

use std::time::Duration;

use crate::time::Mono;
use crate::units::Ratio;

/// A rate, or a share of failed or of good calls, that differs by less is told as the same.
pub const FACTOR: f64 = 1.5;
/// A latency that differs by less is told as the same.
pub const LATENCY_FACTOR: f64 = 2.0;
/// What lies within so many standard deviations is thought to be chance: 0.3 % of looks at what has not changed.
pub const SIGMAS: f64 = 3.0;

/// A look with so many requests need not take in more.
const REQUESTS_ENOUGH: u64 = 100;
/// Nor one that took in so much time.
const SPAN_ENOUGH: Duration = Duration::from_secs(600);
/// Doubts end here.
const SPAN_MAX: Duration = Duration::from_secs(3_600);
/// Fewer calls say nothing about latency.
const CALLS_MIN: u64 = 20;

const SUBS: usize = 8;
const UNIT_BITS: u32 = 13;
/// 8.2 us times 2^29 is 73 minutes: one linear row and 26 doublings.
const ROWS: usize = 27;
/// How many latencies are told apart: eight for each doubling, so that neighbours differ by an eighth at most.
pub const BUCKETS: usize = SUBS * ROWS;

/// Where a latency is counted; all above 73 minutes in the last place.
#[must_use]
pub fn bucket_of(latency: Duration) -> usize {
    let units = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX) >> UNIT_BITS;
    if units < SUBS as u64 {
        return units as usize;
    }
    // The leading bit chooses the row, the three bits after it the place.
    let doublings = units.ilog2() - SUBS.ilog2();
    ((doublings as usize + 1) * SUBS + ((units >> doublings) as usize & (SUBS - 1))).min(BUCKETS - 1)
}

/// The least latency counted there, in nanoseconds.
fn lower_mark(bucket: usize) -> f64 {
    let (row, sub) = (bucket / SUBS, (bucket % SUBS) as u64);
    let units = if row == 0 { sub } else { (SUBS as u64 + sub) << (row - 1) };
    (units << UNIT_BITS) as f64
}

/// What passed a route, counted since some beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Requests that came, whatever became of them.
    pub requests: u64,
    /// Calls to the upstream that failed.
    pub failed: u64,
    /// Calls to the upstream that were answered well, by [`bucket_of`] of the time to the answer.
    pub answered: Box<[u64; BUCKETS]>,
}

impl Default for Counts {
    fn default() -> Self {
        Self { requests: 0, failed: 0, answered: Box::new([0; BUCKETS]) }
    }
}

impl Counts {
    fn since(&self, earlier: &Self) -> Self {
        let mut answered = self.answered.clone();
        for (now, then) in answered.iter_mut().zip(earlier.answered.iter()) {
            *now = now.saturating_sub(*then);
        }
        let less = u64::saturating_sub;
        Self { requests: less(self.requests, earlier.requests), failed: less(self.failed, earlier.failed), answered }
    }

    fn good(&self) -> u64 {
        self.answered.iter().sum()
    }

    /// Good calls counted in this bucket or a faster one.
    fn good_within(&self, bucket: usize) -> u64 {
        self.answered[..=bucket].iter().sum()
    }
}

/// What passed in some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// How long.
    pub span: Duration,
    counts: Counts,
}

impl Flow {
    /// Requests a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.counts.requests as f64 / self.seconds()
    }

    /// Calls to the upstream that came to something.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.counts.good() + self.counts.failed
    }

    /// The share of them that failed; `None` of nothing.
    #[must_use]
    pub fn failed(&self) -> Option<Ratio> {
        Ratio::of(self.counts.failed, self.calls())
    }

    /// The latency below which this share of the good calls lies, to a sixteenth; `None` without any.
    #[must_use]
    pub fn latency(&self, share: Ratio) -> Option<Duration> {
        let (bucket, within) = self.place_of(share)?;
        let (low, high) = (lower_mark(bucket), lower_mark(bucket + 1));
        Some(Duration::from_nanos((low + (high - low) * within).round().max(1_000.0) as u64))
    }

    /// The bucket of a quantile, and how far into it.
    fn place_of(&self, share: Ratio) -> Option<(usize, f64)> {
        let wanted = share.get() * self.counts.good() as f64;
        let mut below = 0.0;
        for (bucket, count) in self.counts.answered.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= wanted {
                return Some((bucket, ((wanted - below) / count).clamp(0.0, 1.0)));
            }
            below += count;
        }
        None
    }

    fn seconds(&self) -> f64 {
        // A span of nothing would have an infinite rate.
        self.span.as_secs_f64().max(0.001)
    }

    fn is_nothing(&self) -> bool {
        self.counts.requests == 0
    }

    /// True if the rates differ by a factor that matters.
    fn rate_is_off(&self, other: &Self) -> bool {
        beyond_factor(self.per_second(), other.per_second(), FACTOR)
    }

    /// True if the difference of the rates is more than chance makes of two Poisson counts.
    fn rate_differs(&self, other: &Self) -> bool {
        let variance = |flow: &Self| flow.counts.requests as f64 / flow.seconds().powi(2);
        let deviation = (variance(self) + variance(other)).sqrt();
        (self.per_second() - other.per_second()).abs() > SIGMAS * deviation
    }

    fn failures_differ(&self, told: &Self) -> bool {
        let (calls, then) = (self.calls(), told.calls());
        if then == 0 {
            // Nothing was known of the upstream, and now something is.
            return calls >= CALLS_MIN;
        }
        let (now, before) = (self.counts.failed, told.counts.failed);
        let share = |failed: u64, of: u64| failed as f64 / of.max(1) as f64;
        let (now_share, then_share) = (share(now, calls), share(before, then));
        // From 70 % to all of them: the failed are hardly more, but the good are gone.
        let matters =
            beyond_factor(now_share, then_share, FACTOR) || beyond_factor(1.0 - now_share, 1.0 - then_share, FACTOR);
        matters && shares_differ((now, calls), (before, then))
    }

    /// True if this quantile has moved: by a factor that matters, and so that the one's share of calls below the lower
    /// of the two is not the other's by chance. Whatever the shape of the latencies.
    fn latency_differs(&self, told: &Self, share: Ratio) -> bool {
        let (good, then) = (self.counts.good(), told.counts.good());
        if then == 0 {
            return good >= CALLS_MIN;
        }
        let (Some(now_at), Some(then_at)) = (self.latency(share), told.latency(share)) else { return false };
        if good.min(then) < CALLS_MIN || !beyond_factor(now_at.as_secs_f64(), then_at.as_secs_f64(), LATENCY_FACTOR) {
            return false;
        }
        let lower = bucket_of(now_at.min(then_at));
        shares_differ((self.counts.good_within(lower), good), (told.counts.good_within(lower), then))
    }
}

/// True for a factor of at least `factor` between two numbers, zero and anything included.
fn beyond_factor(a: f64, b: f64, factor: f64) -> bool {
    let (low, high) = (a.min(b), a.max(b));
    high > 0.0 && high >= low * factor
}

/// True if two shares differ by more than chance: the two-proportion test with a common share.
fn shares_differ((part, whole): (u64, u64), (other_part, other_whole): (u64, u64)) -> bool {
    if whole == 0 || other_whole == 0 {
        return false;
    }
    let (n, m) = (whole as f64, other_whole as f64);
    let common = (part + other_part) as f64 / (n + m);
    let deviation = (common * (1.0 - common) * (1.0 / n + 1.0 / m)).sqrt();
    (part as f64 / n - other_part as f64 / m).abs() > SIGMAS * deviation
}

/// Who looks at a route's counts now and then, and knows what was last told.
///
/// ```
/// use seawall_core::time::Mono;
/// use seawall_core::traffic::{Counts, Watch};
///
/// let at = |second: u64| Mono::from_millis(second * 1_000);
/// let seen = |requests| Counts { requests, ..Counts::default() };
/// let mut watch = Watch::new(at(0), Counts::default());
/// assert_eq!(watch.look(at(60), seen(0)), None, "nothing, as before");
/// assert_eq!(watch.look(at(120), seen(600)).unwrap().per_second(), 10.0);
/// assert_eq!(watch.look(at(180), seen(1_230)), None, "10.5 a second are told as 10");
/// assert_eq!(watch.look(at(240), seen(1_230)).unwrap().per_second(), 0.0);
/// ```
#[derive(Clone, Debug)]
pub struct Watch {
    since: Mono,
    counted: Counts,
    told: Option<Flow>,
}

impl Watch {
    /// From now on, with what was counted before.
    #[must_use]
    pub const fn new(now: Mono, counted: Counts) -> Self {
        Self { since: now, counted, told: None }
    }

    /// Looks. `Some` is what should be told: it passed since the look before, or since the last of the looks whose span
    /// was not enough to judge by.
    pub fn look(&mut self, now: Mono, counted: Counts) -> Option<Flow> {
        let seen = Flow { span: now.since(self.since), counts: counted.since(&self.counted) };
        let verdict = match self.told.as_ref().filter(|told| !told.is_nothing()) {
            None if seen.is_nothing() => Verdict::Same,
            None => Verdict::Changed,
            Some(told) => judge(told, &seen),
        };
        if verdict != Verdict::LooksOn {
            (self.since, self.counted) = (now, counted);
        }
        (verdict == Verdict::Changed).then(|| self.told.insert(seen).clone())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Changed,
    /// There is too little to judge by: the span goes on.
    LooksOn,
}

fn judge(told: &Flow, seen: &Flow) -> Verdict {
    const MEDIAN: f64 = 0.5;
    const P99: f64 = 0.99;
    let off = seen.rate_is_off(told);
    let latency_differs = |share: f64| Ratio::new(share).is_some_and(|share| seen.latency_differs(told, share));
    let changed = (off && seen.rate_differs(told))
        || seen.failures_differ(told)
        || latency_differs(MEDIAN)
        || latency_differs(P99);
    match () {
        () if changed || (off && seen.span >= SPAN_MAX) => Verdict::Changed,
        () if off => Verdict::LooksOn,
        () if seen.counts.requests >= REQUESTS_ENOUGH || seen.span >= SPAN_ENOUGH => Verdict::Same,
        () => Verdict::LooksOn,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prng::Prng;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A minute of so many requests, each a call; of these so many fail, and the others take about so long.
    #[derive(Clone, Copy, Debug)]
    struct Minute(u64, u64, u64);

    struct Gate {
        now: Mono,
        counts: Counts,
        watch: Watch,
    }

    impl Gate {
        fn new() -> Self {
            Self { now: Mono::ZERO, counts: Counts::default(), watch: Watch::new(Mono::ZERO, Counts::default()) }
        }

        /// Half of the good ones take `ms`, the others up to half as long again.
        fn minute(&mut self, Minute(requests, failed, ms): Minute) -> Option<Flow> {
            self.counts.requests += requests;
            self.counts.failed += failed;
            for nth in 0..requests - failed {
                let more = (nth * ms * 1_000).checked_div(2 * (requests - failed)).unwrap_or(0);
                self.counts.answered[bucket_of(Duration::from_micros(ms * 1_000 + more))] += 1;
            }
            self.now = self.now + MINUTE;
            self.watch.look(self.now, self.counts.clone())
        }

        /// What is told of some minutes, a line each.
        fn told(&mut self, minutes: &[Minute]) -> Vec<String> {
            minutes.iter().filter_map(|minute| self.minute(*minute)).map(|flow| words(&flow)).collect()
        }
    }

    fn words(flow: &Flow) -> String {
        let failed = flow.failed().map_or_else(|| "-".into(), |share| share.to_string());
        let p50 = flow.latency(Ratio::new(0.5).unwrap()).map_or(0, |p50| p50.as_millis());
        format!("{:.2}/s {failed} {p50}ms in {}s", flow.per_second(), flow.span.as_secs())
    }

    #[test]
    fn what_has_changed_is_told_and_what_has_not_is_not() {
        let calm = Minute(600, 0, 20);
        for (then, told) in [
            (calm, None),
            (Minute(880, 0, 20), None),
            (Minute(900, 0, 20), Some("15.00/s 0% 24ms in 60s")),
            (Minute(400, 0, 20), Some("6.67/s 0% 24ms in 60s")),
            (Minute(420, 0, 20), None),
            (Minute(0, 0, 20), Some("0.00/s - 0ms in 60s")),
            (Minute(600, 8, 20), None),
            (Minute(600, 12, 20), Some("10.00/s 2% 24ms in 60s")),
            (Minute(600, 600, 20), Some("10.00/s 100% 0ms in 60s")),
            (Minute(600, 0, 36), None),
            (Minute(600, 0, 44), Some("10.00/s 0% 54ms in 60s")),
            (Minute(600, 0, 9), Some("10.00/s 0% 11ms in 60s")),
        ] {
            let mut gate = Gate::new();
            assert_eq!(gate.told(&[calm]), ["10.00/s 0% 24ms in 60s"]);
            assert_eq!(gate.told(&[then, then, then]), Vec::from_iter(told), "{then:?}");
        }
    }

    #[test]
    fn few_requests_are_looked_at_longer() {
        let (nothing, few) = (Minute(0, 0, 20), Minute(6, 0, 20));
        let mut gate = Gate::new();
        assert_eq!(gate.told(&[nothing; 5]), [] as [&str; 0]);
        assert_eq!(gate.told(&[few]), ["0.10/s 0% 24ms in 60s"], "at once");
        assert_eq!(gate.told(&[few; 60]), [] as [&str; 0]);
        // Twice as many in one minute might be chance.
        assert_eq!(gate.told(&[Minute(12, 0, 20), few, few, few, few, few, few, few]), [] as [&str; 0]);
        let mut gate = Gate::new();
        gate.told(&[Minute(12, 0, 20)]);
        assert_eq!(
            gate.told(&[nothing]),
            ["0.00/s - 0ms in 60s"],
            "12 where none come: beyond three times the root of 12"
        );
        gate.told(&[Minute(6, 0, 20)]);
        let told: Vec<usize> = (1..=60).filter(|_| gate.minute(nothing).is_some()).collect();
        assert_eq!(told, [60], "six might be late; after an hour they are not coming");
        // A single failure of ten says nothing, a bad quarter of an hour does.
        let mut gate = Gate::new();
        gate.told(&[Minute(60, 0, 20)]);
        assert_eq!(gate.told(&[Minute(10, 1, 20)]).len(), 1, "the rate has fallen to a sixth");
        let told = gate.told(&[Minute(10, 8, 20); 15]);
        assert_eq!(told.len(), 1, "{told:?}");
    }

    #[test]
    fn a_tail_that_grows_is_told_by_its_p99() {
        let mut gate = Gate::new();
        let tail = |gate: &mut Gate, calls: u64, ms: u64| {
            gate.counts.answered[bucket_of(Duration::from_millis(ms))] += calls;
            gate.counts.requests += calls;
            gate.minute(Minute(3_000, 0, 20))
        };
        assert!(tail(&mut gate, 22, 500).is_some(), "0.7 %: p99 is 30 ms");
        assert!(tail(&mut gate, 40, 500).is_none(), "1.3 %: p99 is far away now, but 22 or 40 of 3,000 may be chance");
        assert!(tail(&mut gate, 90, 500).is_some(), "3 %");
        assert!(tail(&mut gate, 10, 500).is_some(), "and back");
    }

    #[test]
    fn an_upstream_that_is_seen_again_is_told() {
        let mut gate = Gate::new();
        gate.counts.requests = 600;
        gate.now = gate.now + MINUTE;
        let flow = gate.watch.look(gate.now, gate.counts.clone()).unwrap();
        assert_eq!((words(&flow).as_str(), flow.calls()), ("10.00/s - 0ms in 60s", 0), "all refused by a guard");
        assert_eq!(gate.told(&[Minute(600, 600, 20)]), ["10.00/s 100% 0ms in 60s"]);
        assert_eq!(gate.told(&[Minute(600, 0, 20)]), ["10.00/s 0% 24ms in 60s"]);
    }

    #[test]
    fn a_span_of_no_time_is_no_division_by_zero() {
        let mut watch = Watch::new(Mono::ZERO, Counts::default());
        let flow = watch.look(Mono::ZERO, Counts { requests: 1, ..Counts::default() }).unwrap();
        assert!(flow.per_second().is_finite());
    }

    #[test]
    fn marks_and_buckets_agree() {
        for bucket in 0..BUCKETS {
            let mark = Duration::from_nanos(lower_mark(bucket) as u64);
            assert_eq!(bucket_of(mark), bucket);
            assert_eq!(bucket_of(mark.saturating_sub(Duration::from_nanos(1))), bucket.saturating_sub(1));
        }
        assert_eq!((bucket_of(Duration::ZERO), bucket_of(Duration::MAX)), (0, BUCKETS - 1));
        assert_eq!(lower_mark(BUCKETS) / 60e9, f64::from(1_u32 << 13) * f64::from(1_u32 << 29) / 60e9, "73 minutes");
    }

    /// A Poisson count: arrivals with exponential gaps until the time is over.
    fn poisson(mean: f64, prng: &mut Prng) -> u64 {
        let (mut at, mut count) = (0.0, 0);
        loop {
            at -= (1.0 - prng.unit()).ln();
            if at > mean {
                return count;
            }
            count += 1;
        }
    }

    /// A look at what has not changed is taken for a change by chance in 0.27 % of looks, for each of rate, failures,
    /// median and p99, and once more as often after a wrong one: 22 of 1,000. Four standard deviations on top are 41.
    #[test]
    fn steady_traffic_is_hardly_told() {
        for (seed, per_minute) in [0.1, 0.5, 2.0, 20.0, 60.0, 200.0, 2_000.0].into_iter().enumerate() {
            let (mut prng, mut gate, mut told) = (Prng::new(seed as u64), Gate::new(), 0);
            for _ in 0..1_000 {
                let requests = poisson(per_minute, &mut prng);
                let failed = (0..requests).filter(|_| prng.chance(0.05)).count() as u64;
                for _ in 0..requests - failed {
                    // Half come from a cache: the median lies between two worlds.
                    let mean_ms = if prng.chance(0.5) { 1.0 } else { 50.0 };
                    let ms = mean_ms * (0.5 + prng.unit());
                    gate.counts.answered[bucket_of(Duration::from_micros((ms * 1_000.0) as u64))] += 1;
                }
                (gate.counts.requests, gate.counts.failed) =
                    (gate.counts.requests + requests, gate.counts.failed + failed);
                gate.now = gate.now + MINUTE;
                told += u32::from(gate.watch.look(gate.now, gate.counts.clone()).is_some());
            }
            assert!((1..=41).contains(&told), "{per_minute} a minute: {told} times");
        }
    }

    proptest! {
        /// From any past: a change that is twice too large and beyond doubt is told in the next look.
        #[test]
        fn no_great_change_is_missed(
            past in prop::collection::vec(0_u64..2_000, 0..8), before in 100_u64..5_000, up: bool, seed: u64,
        ) {
            let (mut gate, mut prng) = (Gate::new(), Prng::new(seed));
            gate.told(&past.iter().map(|requests| Minute(*requests, 0, 20)).collect::<Vec<_>>());
            // Two looks, so that what is told is the present and no span is left open.
            gate.told(&[Minute(before, 0, 20), Minute(before, 0, 20)]);
            let after = if up { before * 3 + prng.below(100) } else { before / 4 };
            prop_assert!(gate.minute(Minute(after, 0, 20)).is_some(), "{} to {}", before, after);
        }

        /// No counts panic, every request is told of at most once, and nothing is told without a difference.
        #[test]
        fn spans_do_not_overlap(minutes in prop::collection::vec((0_u64..50, 0_u64..50, 1_u64..100), 1..200)) {
            let mut gate = Gate::new();
            let (mut told, mut spent) = (0, Duration::ZERO);
            for (requests, failed, ms) in minutes.iter().copied() {
                if let Some(flow) = gate.minute(Minute(requests, failed.min(requests), ms)) {
                    told += flow.counts.requests;
                    spent += flow.span;
                    prop_assert!(flow.span >= MINUTE && flow.span <= SPAN_MAX);
                    let quantile = |share| flow.latency(Ratio::new(share).unwrap());
                    prop_assert!(quantile(0.5) <= quantile(0.99));
                }
            }
            prop_assert!(told <= gate.counts.requests && spent <= gate.now.since(Mono::ZERO));
        }
    }
}
