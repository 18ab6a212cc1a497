//! Client-side throttling: spares an upstream the calls it would refuse anyway.
//!
//! Refusing a call costs an overloaded upstream too. So each caller counts what it asked for and what was taken on, and
//! refuses by chance what is too much: p = max(0, (requests - K · accepts) / (requests + 1)) over the last two minutes.
//! With K = 2 it sends at most about twice what is taken on; the surplus is how it learns that things are better.
//! Source: Google, "Site Reliability Engineering", chapter 21, "Client-Side Throttling".
//!
//! Two things the formula leaves open. A call counts when it is asked for, refused here or not, else the throttle would
//! forget at once why it throttles. But a call that is on its way has not been refused yet: for `pending_grace` it
//! counts neither way. Without that, the first tenth of a second of traffic, all of it unanswered, throttles itself;
//! with it, an upstream that hangs is still seen, a grace later.
//!
//! Classes count apart: the unimportant may be throttled while the important is not.
//!
//! Invariants: accepts never exceed requests; 0 <= p < 1, so that some call always gets through to find the way back; a
//! lost [`Permit`] counts as not taken on. A fixed 24 slices a class; no decision allocates. Not here: what counts as
//! taken on (the driver's; a 404 is, a 503 is not), retries, breaking the circuit (`breaker.rs`).

use std::time::Duration;

use super::{Invalid, Refusal};
use crate::prng::Prng;
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

const SLICES: usize = 24;

/// How much is too much.
#[derive(Clone, Debug, PartialEq)]
pub struct ThrottleConfig {
    /// K of each class, the most important class first: calls sent for each one taken on. Not below 1, and no class has
    /// more than the one before it.
    pub multipliers: Vec<f64>,
    /// What counts as recent.
    pub window: Duration,
    /// For so long a call on its way counts neither way, rounded up to a slice (1/24 of the window). Zero is the
    /// formula as published, for services whose answers come at once.
    pub pending_grace: Duration,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self { multipliers: vec![2.0], window: Duration::from_secs(120), pending_grace: Duration::from_secs(5) }
    }
}

impl ThrottleConfig {
    /// The length of a slice.
    fn check(&self) -> Result<u64, Invalid> {
        let invalid = |key, value, allowed| Err(Invalid { key, value, allowed });
        if !(1..=256).contains(&self.multipliers.len()) {
            return invalid("multipliers", format!("{} numbers", self.multipliers.len()), "1 to 256 numbers");
        }
        let mut before = f64::MAX;
        for &multiplier in &self.multipliers {
            if !(1.0..=before).contains(&multiplier) {
                return invalid("multipliers", multiplier.to_string(), "1 or more, and none above the one before");
            }
            before = multiplier;
        }
        if self.pending_grace > self.window / 2 {
            return invalid("pending_grace", format_duration(self.pending_grace), "at most half of `window`");
        }
        match u64::try_from(self.window.as_nanos()) {
            Ok(nanos) if nanos >= SLICES as u64 => Ok(nanos / SLICES as u64),
            _ => invalid("window", format!("{:?}", self.window), "24ns to about 584 years"),
        }
    }
}

/// A call that was let through. One that is lost counts as not taken on.
#[must_use = "a call nobody answers for counts as not taken on"]
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    class: usize,
    slice: u64,
}

/// The machine.
///
/// ```
/// use seawall_core::guard::throttle::{Throttle, ThrottleConfig};
/// use seawall_core::{prng::Prng, time::Mono};
///
/// let (mut prng, now) = (Prng::new(1), Mono::ZERO);
/// let mut throttle = Throttle::new(ThrottleConfig::default(), now).unwrap();
/// for i in 0..100 {
///     let permit = throttle.admit(now, 0, &mut prng).unwrap();
///     throttle.record(now, permit, i < 60);
/// }
/// assert_eq!(throttle.probability(now, 0).get(), 0.0, "three in five were taken on: more than half");
/// ```
#[derive(Clone, Debug)]
pub struct Throttle {
    classes: Box<[Class]>,
    slice_nanos: u64,
    grace_slices: u64,
}

#[derive(Clone, Debug)]
struct Class {
    multiplier: f64,
    head: u64,
    slices: [Slice; SLICES],
    sum: Slice,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    requests: u64,
    accepts: u64,
    /// Let through and not answered for.
    pending: u64,
}

impl Throttle {
    /// Nothing is known, so nothing is refused.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no throttle.
    pub fn new(config: ThrottleConfig, now: Mono) -> Result<Self, Invalid> {
        let slice_nanos = config.check()?;
        let head = now.as_nanos() / slice_nanos;
        let class = |&multiplier| Class { multiplier, head, slices: Default::default(), sum: Slice::default() };
        let grace = u64::try_from(config.pending_grace.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self {
            classes: config.multipliers.iter().map(class).collect(),
            slice_nanos,
            grace_slices: grace.div_ceil(slice_nanos),
        })
    }

    /// Counts a call and lets it through, or not. A class beyond the last is the last. No allocation.
    ///
    /// # Errors
    /// [`Refusal::Throttled`] with the chance that decided.
    pub fn admit(&mut self, now: Mono, class: usize, prng: &mut Prng) -> Result<Permit, Refusal> {
        let (probability, requests, accepts) = self.judge(now, class);
        let index = self.class(class);
        let class = &mut self.classes[index];
        class.count(class.head, |slice| slice.requests += 1);
        // No draw where nothing is to be decided: a healthy route takes no numbers from anybody else's chance.
        if probability > 0.0 && prng.chance(probability) {
            let probability = Ratio::new(probability).unwrap_or(Ratio::ONE);
            let retry_in = Duration::from_nanos(self.slice_nanos);
            return Err(Refusal::Throttled { probability, requests, accepts, retry_in });
        }
        class.count(class.head, |slice| slice.pending += 1);
        Ok(Permit { class: index, slice: class.head })
    }

    /// Says whether the upstream took the call on. An answer about a call that has left the window changes nothing.
    pub fn record(&mut self, now: Mono, permit: Permit, accepted: bool) {
        let Some(class) = self.classes.get_mut(permit.class) else { return };
        class.advance(now, self.slice_nanos);
        class.count(permit.slice, |slice| {
            slice.pending = slice.pending.saturating_sub(1);
            slice.accepts += u64::from(accepted);
        });
    }

    /// The call came to nothing that tells about the upstream: it was never asked for.
    pub fn forget(&mut self, now: Mono, permit: Permit) {
        let Some(class) = self.classes.get_mut(permit.class) else { return };
        class.advance(now, self.slice_nanos);
        class.count(permit.slice, |slice| {
            slice.pending = slice.pending.saturating_sub(1);
            slice.requests = slice.requests.saturating_sub(1);
        });
    }

    /// The chance with which the next call of this class would be refused.
    pub fn probability(&mut self, now: Mono, class: usize) -> Ratio {
        Ratio::new(self.judge(now, class).0).unwrap_or(Ratio::ZERO)
    }

    /// Chance, requests, accepts.
    fn judge(&mut self, now: Mono, class: usize) -> (f64, u64, u64) {
        let index = self.class(class);
        let (class, grace) = (&mut self.classes[index], self.grace_slices);
        class.advance(now, self.slice_nanos);
        let young = (0..=grace).filter_map(|age| class.head.checked_sub(age).filter(|_| grace > 0));
        let undecided: u64 = young.map(|slice| class.slices[slice as usize % SLICES].pending).sum();
        let requests = class.sum.requests.saturating_sub(undecided);
        let too_many = requests as f64 - class.multiplier * class.sum.accepts as f64;
        ((too_many / (requests as f64 + 1.0)).max(0.0), requests, class.sum.accepts)
    }

    fn class(&self, class: usize) -> usize {
        class.min(self.classes.len() - 1)
    }
}

impl Class {
    /// Changes a live slice and the sum alike.
    fn count(&mut self, slice: u64, change: impl Fn(&mut Slice)) {
        if self.head.checked_sub(slice).is_some_and(|age| age < SLICES as u64) {
            change(&mut self.slices[slice as usize % SLICES]);
            change(&mut self.sum);
        }
    }

    fn advance(&mut self, now: Mono, slice_nanos: u64) {
        let target = (now.as_nanos() / slice_nanos).max(self.head);
        let steps = (target - self.head).min(SLICES as u64);
        for step in 0..steps {
            let slice = std::mem::take(&mut self.slices[(target - step) as usize % SLICES]);
            self.sum.requests = self.sum.requests.saturating_sub(slice.requests);
            self.sum.accepts = self.sum.accepts.saturating_sub(slice.accepts);
            self.sum.pending = self.sum.pending.saturating_sub(slice.pending);
        }
        self.head = target;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(multipliers: &[f64]) -> ThrottleConfig {
        ThrottleConfig { multipliers: multipliers.into(), pending_grace: Duration::ZERO, ..ThrottleConfig::default() }
    }

    /// Asks so often, whatever is answered, and answers the first so many of what went through.
    fn ask(throttle: &mut Throttle, now: Mono, class: usize, requests: u32, accepts: u32) -> u32 {
        let mut prng = Prng::new(5);
        let mut through = 0;
        for _ in 0..requests {
            if let Ok(permit) = throttle.admit(now, class, &mut prng) {
                throttle.record(now, permit, through < accepts);
                through += 1;
            }
        }
        through
    }

    #[test]
    fn the_published_anchor() {
        // The order matters for what is let through, not for what is counted: 40 taken on first, then 60 more asked
        // for.
        let mut throttle = Throttle::new(plain(&[2.0]), Mono::ZERO).unwrap();
        ask(&mut throttle, Mono::ZERO, 0, 100, 40);
        assert_eq!(throttle.probability(Mono::ZERO, 0).get(), 20.0 / 101.0);
        // Envoy's anchor, which is the same number by another road: threshold 95 % of 76 of 100.
        let mut throttle = Throttle::new(plain(&[1.0 / 0.95]), Mono::ZERO).unwrap();
        ask(&mut throttle, Mono::ZERO, 0, 100, 76);
        assert!((throttle.probability(Mono::ZERO, 0).get() - 20.0 / 101.0).abs() < 1e-12);
    }

    #[test]
    fn local_refusals_count_and_the_window_forgets() {
        let mut throttle = Throttle::new(plain(&[2.0]), Mono::ZERO).unwrap();
        let through = ask(&mut throttle, Mono::ZERO, 0, 1_000, 0);
        assert!(through < 20, "{through} of 1,000 reached an upstream that takes nothing on");
        assert_eq!(throttle.probability(Mono::ZERO, 0).get(), 1_000.0 / 1_001.0);
        assert_eq!(throttle.probability(Mono::from_millis(119_999), 0).get(), 1_000.0 / 1_001.0);
        assert_eq!(throttle.probability(Mono::from_millis(120_000), 0), Ratio::ZERO);
    }

    #[test]
    fn what_is_on_its_way_is_no_refusal_until_it_hangs() {
        let mut prng = Prng::new(1);
        let mut throttle = Throttle::new(ThrottleConfig::default(), Mono::ZERO).unwrap();
        let permits: Vec<Permit> =
            (0..500).map(|_| throttle.admit(Mono::ZERO, 0, &mut prng).expect("nothing was refused yet")).collect();
        assert_eq!(throttle.probability(Mono::from_millis(9_999), 0), Ratio::ZERO);
        let hung = throttle.probability(Mono::from_millis(10_000), 0).get();
        assert_eq!(hung, 500.0 / 501.0, "by the published formula from the first moment");
        for permit in permits {
            throttle.record(Mono::from_millis(20_000), permit, true);
        }
        assert_eq!(throttle.probability(Mono::from_millis(20_000), 0), Ratio::ZERO);
        let permit = throttle.admit(Mono::from_millis(20_000), 0, &mut prng).unwrap();
        let before = throttle.classes[0].sum.requests;
        throttle.forget(Mono::from_millis(20_000), permit);
        assert_eq!(throttle.classes[0].sum.requests, before - 1);
    }

    #[test]
    fn an_answer_that_comes_after_its_slice_has_left_changes_nothing() {
        let (mut throttle, mut prng) = (Throttle::new(plain(&[2.0]), Mono::ZERO).unwrap(), Prng::new(1));
        let permit = throttle.admit(Mono::ZERO, 0, &mut prng).unwrap();
        throttle.record(Mono::from_millis(120_000), permit, true);
        assert_eq!(throttle.judge(Mono::from_millis(120_000), 0), (0.0, 0, 0));
    }

    #[test]
    fn classes_count_apart() {
        let mut throttle = Throttle::new(plain(&[3.0, 1.5]), Mono::ZERO).unwrap();
        for class in [0, 1] {
            ask(&mut throttle, Mono::ZERO, class, 100, 40);
        }
        assert_eq!(throttle.probability(Mono::ZERO, 0), Ratio::ZERO, "40 · 3 > 100");
        let unimportant = throttle.probability(Mono::ZERO, 1);
        assert!(unimportant.get() >= 40.0 / 101.0);
        assert_eq!(throttle.probability(Mono::ZERO, 7), unimportant, "beyond the last is the last");
    }

    #[test]
    fn an_upstream_at_half_its_size_is_sent_about_twice_what_it_takes_on() {
        // 100/s asked for ten minutes, 20/s taken on, then all again. Answers at once.
        let mut prng = Prng::new(3);
        let mut throttle = Throttle::new(plain(&[2.0]), Mono::ZERO).unwrap();
        let mut sent = [0_u32; 20];
        for (minute, sent) in sent.iter_mut().enumerate() {
            for second in 0..60 {
                let mut taken = 0;
                for i in 0..100 {
                    let now = Mono::from_millis((minute as u64 * 60 + second) * 1_000 + i * 10);
                    if let Ok(permit) = throttle.admit(now, 0, &mut prng) {
                        *sent += 1;
                        let room = (2..10).contains(&minute) && taken >= 20;
                        taken += 1;
                        throttle.record(now, permit, !room);
                    }
                }
            }
        }
        assert_eq!(sent[..2], [6_000; 2], "a healthy upstream is left alone");
        assert!(sent[5..10].iter().all(|sent| (2_200..2_700).contains(sent)), "{sent:?}");
        assert!(sent[13..].iter().all(|sent| *sent > 5_900), "{sent:?}");
    }

    #[test]
    fn slices_of_a_nanosecond_at_the_end_of_time() {
        let config = ThrottleConfig { window: Duration::from_nanos(24), ..plain(&[2.0]) };
        let (mut throttle, mut prng) = (Throttle::new(config, Mono::ZERO).unwrap(), Prng::new(1));
        let end = Mono::from_nanos(u64::MAX);
        let early = throttle.admit(Mono::ZERO, 0, &mut prng).unwrap();
        let late = throttle.admit(end, 0, &mut prng).unwrap();
        throttle.record(end, early, true);
        throttle.record(Mono::ZERO, late, true);
        assert_eq!(throttle.judge(end, 0), (0.0, 1, 1));
    }

    #[test]
    fn numbers_that_make_no_throttle_are_named() {
        let message = |config| Throttle::new(config, Mono::ZERO).unwrap_err().to_string();
        assert_eq!(message(plain(&[])), "`multipliers` is 0 numbers; allowed is 1 to 256 numbers");
        for (multipliers, value) in
            [(&[0.5][..], "0.5"), (&[f64::NAN], "NaN"), (&[2.0, 3.0], "3"), (&[f64::INFINITY], "inf")]
        {
            let allowed = "1 or more, and none above the one before";
            assert_eq!(message(plain(multipliers)), format!("`multipliers` is {value}; allowed is {allowed}"));
        }
        let window = ThrottleConfig { window: Duration::from_nanos(1), ..plain(&[2.0]) };
        assert_eq!(message(window), "`window` is 1ns; allowed is 24ns to about 584 years");
        let grace = ThrottleConfig { pending_grace: Duration::from_secs(61), ..plain(&[2.0]) };
        assert_eq!(message(grace), "`pending_grace` is 61s; allowed is at most half of `window`");
    }

    proptest! {
        #[test]
        fn as_a_list_of_calls(
            steps in prop::collection::vec(
                (prop_oneof![8 => 0_u64..2_000, 1 => 0_u64..200_000, 1 => any::<u64>()], 0_u8..4), 1..300),
            grace_s in 0_u64..12, seed: u64,
        ) {
            let config = ThrottleConfig { pending_grace: Duration::from_secs(grace_s), ..plain(&[2.0]) };
            let (mut throttle, mut prng) = (Throttle::new(config, Mono::ZERO).unwrap(), Prng::new(seed));
            // (slice, let through and pending, accepted)
            let (mut calls, mut permits) = (Vec::<(u64, bool, bool)>::new(), Vec::new());
            let mut now = Mono::ZERO;
            for (gap_ms, step) in steps {
                now = now + Duration::from_millis(gap_ms);
                let slice = now.as_nanos() / 5_000_000_000;
                match step {
                    0 | 1 => {
                        let permit = throttle.admit(now, 0, &mut prng);
                        if let Ok(permit) = permit {
                            permits.push((permit, calls.len()));
                            calls.push((slice, true, false));
                        } else {
                            calls.push((slice, false, false));
                        }
                    }
                    _ => if let Some((permit, call)) = permits.pop() {
                        throttle.record(now, permit, step == 3);
                        (calls[call].1, calls[call].2) = (false, step == 3);
                    },
                }
                let live = || calls.iter().filter(|call| call.0 + 24 > slice);
                let young = |call: &&(u64, bool, bool)| grace_s > 0 && call.1 && call.0 + grace_s.div_ceil(5) >= slice;
                let requests = live().count() - live().filter(young).count();
                let accepts = live().filter(|call| call.2).count();
                let expected = ((requests as f64 - 2.0 * accepts as f64) / (requests as f64 + 1.0)).max(0.0);
                let told = throttle.probability(now, 0).get();
                prop_assert_eq!(told, expected);
                prop_assert!(accepts <= requests && told < 1.0);
            }
        }
    }
}
