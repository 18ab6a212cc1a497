//! What a breaker remembers of recent calls: how many, how many failed, how many were slow.
//!
//! Two kinds. The last N calls, one byte each. Or the last T of time in slices: every step is O(1), a gap of any length
//! empties it in one go, and a clock that stands still or steps back does no harm.

use std::time::Duration;

use super::config::WindowConfig;
use crate::guard::Seen;
use crate::time::Mono;

const FAILED: u8 = 1;
const SLOW: u8 = 2;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Window {
    Calls { ring: Box<[u8]>, next: usize, full: bool, sum: Seen },
    Time { slices: Box<[Seen]>, slice_nanos: u64, head: u64, sum: Seen },
}

impl Window {
    pub(super) fn new(config: WindowConfig, now: Mono) -> Self {
        match config {
            WindowConfig::Calls(calls) => {
                Self::Calls { ring: vec![0; calls.max(1) as usize].into(), next: 0, full: false, sum: Seen::default() }
            }
            WindowConfig::Time { span, slices } => {
                let slice_nanos = slice_nanos(span, slices);
                let head = now.as_nanos() / slice_nanos;
                let slices = vec![Seen::default(); slices.max(1) as usize].into();
                Self::Time { slices, slice_nanos, head, sum: Seen::default() }
            }
        }
    }

    pub(super) fn record(&mut self, now: Mono, failed: bool, slow: bool) {
        self.advance(now);
        match self {
            Self::Calls { ring, next, full, sum } => {
                if *full {
                    take_call(sum, ring[*next]);
                }
                ring[*next] = (u8::from(failed) * FAILED) | (u8::from(slow) * SLOW);
                sum.add(failed, slow);
                *next += 1;
                if *next == ring.len() {
                    (*next, *full) = (0, true);
                }
            }
            Self::Time { slices, head, sum, .. } => {
                let place = *head as usize % slices.len();
                slices[place].add(failed, slow);
                sum.add(failed, slow);
            }
        }
    }

    /// Takes in so many quick successes at once, into the slice that is newest now.
    pub(super) fn record_good(&mut self, calls: u64) {
        match self {
            Self::Calls { ring, .. } => {
                let calls = calls.min(ring.len() as u64);
                (0..calls).for_each(|_| self.record(Mono::ZERO, false, false));
            }
            Self::Time { slices, head, sum, .. } => {
                let calls = u32::try_from(calls).unwrap_or(u32::MAX);
                let place = *head as usize % slices.len();
                slices[place].calls = slices[place].calls.saturating_add(calls);
                sum.calls = sum.calls.saturating_add(calls);
            }
        }
    }

    pub(super) fn seen(&mut self, now: Mono) -> Seen {
        self.advance(now);
        match self {
            Self::Calls { sum, .. } | Self::Time { sum, .. } => *sum,
        }
    }

    /// Calls beyond which the window cannot grow; a minimum of calls above it could never be met.
    pub(super) fn calls_max(&self) -> u32 {
        match self {
            Self::Calls { ring, .. } => u32::try_from(ring.len()).unwrap_or(u32::MAX),
            Self::Time { .. } => u32::MAX,
        }
    }

    /// When the newest slice ends; never for a window of calls.
    pub(super) fn turns_at(&self) -> Mono {
        match self {
            Self::Calls { .. } => Mono::from_nanos(u64::MAX),
            Self::Time { slice_nanos, head, .. } => Mono::from_nanos((head + 1).saturating_mul(*slice_nanos)),
        }
    }

    /// The same calls in a window of another shape, as far as it holds them. Between two shapes of one kind nothing is
    /// guessed; a slice of time that becomes single calls is taken as its successes first, and single calls that become
    /// time as made just now.
    pub(super) fn reshape(&self, config: WindowConfig, now: Mono) -> Self {
        let mut new = Self::new(config, now);
        match (self, &mut new) {
            (Self::Calls { ring, next, full, .. }, _) => {
                let (newer, older) = ring.split_at(*next);
                let older = if *full { older } else { &[] };
                for bits in older.iter().chain(newer) {
                    new.record(now, bits & FAILED != 0, bits & SLOW != 0);
                }
            }
            (Self::Time { slice_nanos, .. }, Self::Time { slices: new_slices, slice_nanos: new_nanos, head, sum }) => {
                for (number, slice) in self.slices() {
                    // By its end, so that nothing seems older than it is and is dropped too early.
                    let target = ((number + 1).saturating_mul(*slice_nanos) - 1) / *new_nanos;
                    let target = target.min(*head);
                    if *head - target < new_slices.len() as u64 {
                        let place = target as usize % new_slices.len();
                        new_slices[place].merge(slice);
                        sum.merge(slice);
                    }
                }
            }
            (Self::Time { .. }, Self::Calls { .. }) => {
                for (_, slice) in self.slices() {
                    // Of the slow ones, `slow_failed` failed too.
                    let both = slice.slow_failed;
                    let (failed, slow) = (slice.failed - both, slice.slow - both);
                    new.record_good(u64::from(slice.calls - failed - slow - both));
                    for (calls, failed, slow) in [(slow, false, true), (failed, true, false), (both, true, true)] {
                        (0..calls).for_each(|_| new.record(now, failed, slow));
                    }
                }
            }
        }
        new
    }

    /// Slices that hold anything, oldest first.
    fn slices(&self) -> Vec<(u64, Seen)> {
        let Self::Time { slices, head, .. } = self else { return Vec::new() };
        let length = slices.len() as u64;
        let numbers = head.saturating_sub(length - 1)..=*head;
        numbers.map(|number| (number, slices[(number % length) as usize])).filter(|(_, seen)| seen.calls > 0).collect()
    }

    fn advance(&mut self, now: Mono) {
        let Self::Time { slices, slice_nanos, head, sum } = self else { return };
        let target = now.as_nanos() / *slice_nanos;
        // Never backwards: a caller with an older `now` records into the newest slice.
        let length = slices.len() as u64;
        let steps = target.saturating_sub(*head).min(length);
        for step in 0..steps {
            let slice = &mut slices[((target - step) % length) as usize];
            sum.calls -= slice.calls;
            sum.failed -= slice.failed;
            sum.slow -= slice.slow;
            sum.slow_failed -= slice.slow_failed;
            *slice = Seen::default();
        }
        *head = target.max(*head);
    }

    /// The window as plain data, ages instead of moments.
    pub(super) fn kept(&self) -> Kept {
        match self {
            Self::Calls { ring, next, full, .. } => {
                let (newer, older) = ring.split_at(*next);
                let older = if *full { older } else { &[] };
                Kept::Calls(older.iter().chain(newer).copied().collect())
            }
            Self::Time { slice_nanos, head, .. } => {
                let slices = self.slices().into_iter().map(|(number, seen)| (head - number, seen)).collect();
                Kept::Time { slice_nanos: *slice_nanos, slices }
            }
        }
    }

    /// The window a snapshot tells of, aged by the time since it was taken, in the shape the configuration wants.
    pub(super) fn restore(kept: &Kept, age: Duration, config: WindowConfig, now: Mono) -> Self {
        match kept {
            Kept::Calls(calls) => {
                let length = u32::try_from(calls.len()).unwrap_or(u32::MAX).max(1);
                let mut old = Self::new(WindowConfig::Calls(length), now);
                calls.iter().for_each(|bits| old.record(now, bits & FAILED != 0, bits & SLOW != 0));
                old.reshape(config, now)
            }
            Kept::Time { slice_nanos, slices } => {
                let slice_nanos = (*slice_nanos).max(1);
                let age_slices = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX) / slice_nanos;
                let mut new = Self::new(config, now);
                for (ago, seen) in slices {
                    let ago_nanos = ago.saturating_add(age_slices).saturating_mul(slice_nanos);
                    if let WindowConfig::Time { span, .. } = config
                        && Duration::from_nanos(ago_nanos) >= span
                    {
                        continue;
                    }
                    // What is older than this clock's origin is taken as old as the clock: it stays a little longer.
                    let head = now.as_nanos().saturating_sub(ago_nanos) / slice_nanos;
                    let old = Self::Time { slices: vec![*seen].into(), slice_nanos, head, sum: *seen };
                    match (&mut new, old.reshape(config, now)) {
                        (Self::Time { slices, sum, .. }, Self::Time { slices: more, sum: more_sum, .. }) => {
                            slices.iter_mut().zip(&more).for_each(|(slice, more)| slice.merge(*more));
                            sum.merge(more_sum);
                        }
                        (window, other) => {
                            if let Kept::Calls(calls) = other.kept() {
                                calls.iter().for_each(|bits| window.record(now, bits & FAILED != 0, bits & SLOW != 0));
                            }
                        }
                    }
                }
                new
            }
        }
    }
}

/// A window as plain data.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kept {
    /// One byte a call, oldest first: 1 failed, 2 slow, 3 both.
    Calls(Vec<u8>),
    /// Slices by age, oldest first.
    Time { slice_nanos: u64, slices: Vec<(u64, Seen)> },
}

fn slice_nanos(span: Duration, slices: u32) -> u64 {
    let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    (nanos / u64::from(slices.max(1))).max(1)
}

fn take_call(sum: &mut Seen, bits: u8) {
    let (failed, slow) = (bits & FAILED != 0, bits & SLOW != 0);
    sum.calls -= 1;
    sum.failed -= u32::from(failed);
    sum.slow -= u32::from(slow);
    sum.slow_failed -= u32::from(failed && slow);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const TWO_SECONDS: WindowConfig = WindowConfig::time(Duration::from_secs(2));

    proptest! {
        #[test]
        fn the_last_calls_and_no_others(size in 1_u32..40, calls in prop::collection::vec(any::<(bool, bool)>(), 0..200)) {
            let mut window = Window::new(WindowConfig::Calls(size), Mono::ZERO);
            let mut model: VecDeque<(bool, bool)> = VecDeque::new();
            for (failed, slow) in calls {
                window.record(Mono::ZERO, failed, slow);
                model.push_back((failed, slow));
                if model.len() > size as usize { model.pop_front(); }
                let seen = window.seen(Mono::ZERO);
                prop_assert_eq!(seen.calls as usize, model.len());
                prop_assert_eq!(seen.failed as usize, model.iter().filter(|call| call.0).count());
                prop_assert_eq!(seen.slow as usize, model.iter().filter(|call| call.1).count());
                prop_assert_eq!(seen.slow_failed as usize, model.iter().filter(|call| call.0 && call.1).count());
            }
            prop_assert_eq!(window.calls_max(), size);
        }

        #[test]
        fn time_forgets_within_a_slice(steps in prop::collection::vec((0_u64..400, any::<bool>()), 0..200)) {
            // 2 s in 20 slices of 100 ms.
            let mut window = Window::new(TWO_SECONDS, Mono::ZERO);
            let (mut now_ms, mut model) = (0, Vec::new());
            for (gap_ms, failed) in steps {
                now_ms += gap_ms;
                window.record(Mono::from_millis(now_ms), failed, false);
                model.push((now_ms, failed));
                let first_slice = (now_ms / 100).saturating_sub(19);
                let live = model.iter().filter(|(at, _)| at / 100 >= first_slice);
                let seen = window.seen(Mono::from_millis(now_ms));
                prop_assert_eq!(seen.calls as usize, live.clone().count());
                prop_assert_eq!(seen.failed as usize, live.filter(|call| call.1).count());
                prop_assert_eq!(window.turns_at(), Mono::from_millis((now_ms / 100 + 1) * 100));
            }
        }

        /// A window that is reshaped to its own shape, or kept and restored at once, is the same window.
        #[test]
        fn the_same_shape_loses_nothing(
            steps in prop::collection::vec((0_u64..400, any::<(bool, bool)>()), 0..100), by_calls: bool,
        ) {
            let config = if by_calls { WindowConfig::Calls(30) } else { TWO_SECONDS };
            let (mut window, mut now) = (Window::new(config, Mono::ZERO), Mono::ZERO);
            for (gap_ms, (failed, slow)) in steps {
                now = now + Duration::from_millis(gap_ms);
                window.record(now, failed, slow);
            }
            let seen = window.seen(now);
            prop_assert_eq!(window.reshape(config, now).seen(now), seen);
            prop_assert_eq!(Window::restore(&window.kept(), Duration::ZERO, config, now).seen(now), seen);
            // Of another kind and large enough, it holds the same calls.
            let other = if by_calls { TWO_SECONDS } else { WindowConfig::Calls(200) };
            prop_assert_eq!(window.reshape(other, now).seen(now), seen);
            prop_assert_eq!(Window::restore(&window.kept(), Duration::ZERO, other, now).seen(now), seen);
            // An hour later nothing of a window of time is left, while calls never age.
            let left = Window::restore(&window.kept(), Duration::from_secs(3_600), config, now).seen(now);
            prop_assert_eq!(left, if by_calls { seen } else { Seen::default() });
        }
    }

    #[test]
    fn a_smaller_window_keeps_the_newest() {
        let mut window = Window::new(WindowConfig::Calls(4), Mono::ZERO);
        [true, true, true, false, false].into_iter().for_each(|failed| window.record(Mono::ZERO, failed, false));
        let seen = window.reshape(WindowConfig::Calls(3), Mono::ZERO).seen(Mono::ZERO);
        assert_eq!((seen.calls, seen.failed), (3, 1));
        let mut window = Window::new(TWO_SECONDS, Mono::ZERO);
        window.record(Mono::from_millis(50), true, true);
        let now = Mono::from_millis(1_900);
        window.record(now, false, false);
        let seen = window.reshape(WindowConfig::time(Duration::from_secs(1)), now).seen(now);
        assert_eq!(seen, Seen { calls: 1, ..Seen::default() }, "the failure is older than a second");
        let aged = Window::restore(&window.kept(), Duration::from_secs(1), TWO_SECONDS, Mono::from_millis(5_000));
        assert_eq!(aged.clone().seen(Mono::from_millis(5_000)).calls, 1, "of 3 s and 1 s ago, one is left of 2 s");
    }

    #[test]
    fn a_call_that_moves_to_another_window_is_forgotten_at_its_own_time() {
        let mut window = Window::new(TWO_SECONDS, Mono::ZERO);
        window.record(Mono::from_millis(250), true, false);
        let now = Mono::from_millis(1_900);
        assert_eq!(window.seen(now).failed, 1);
        let restored = Window::restore(&window.kept(), Duration::ZERO, TWO_SECONDS, now);
        for mut moved in [window.reshape(TWO_SECONDS, now), restored] {
            assert_eq!(moved.seen(Mono::from_millis(2_199)).failed, 1);
            assert_eq!(moved.seen(Mono::from_millis(2_200)), Seen::default());
        }
    }

    #[test]
    fn an_idle_gap_of_any_length_empties_it_and_time_never_runs_back() {
        let mut window = Window::new(WindowConfig::time(Duration::from_secs(1)), Mono::ZERO);
        window.record(Mono::from_millis(500), true, true);
        assert_eq!(window.seen(Mono::from_millis(100)).calls, 1, "an older clock changes nothing");
        assert_eq!(window.seen(Mono::from_nanos(u64::MAX)).calls, 0);
        assert_eq!((window.calls_max(), window.turns_at().as_nanos() > 0), (u32::MAX, true));
        // A span below one nanosecond per slice still has slices.
        let mut tiny = Window::new(WindowConfig::time(Duration::ZERO), Mono::ZERO);
        tiny.record(Mono::ZERO, true, false);
        assert_eq!(tiny.seen(Mono::ZERO).failed, 1);
    }
}
