//! What a breaker remembers of recent calls: how many, how many failed, how many were slow.
//!
//! Two kinds. The last N calls, one byte each. Or the last T of time, in [`BUCKETS`] slices: a call leaves the window
//! between T and T + T/20 after it was recorded, and an idle gap of any length empties it in one step.

use std::time::Duration;

use super::Seen;
use super::breaker::WindowConfig;
use crate::time::Mono;

const BUCKETS: usize = 20;
const FAILED: u8 = 1;
const SLOW: u8 = 2;

#[derive(Clone, Debug)]
pub(super) enum Window {
    Calls { ring: Box<[u8]>, next: usize, full: bool, sum: Seen },
    Time { slices: Box<[Seen; BUCKETS]>, slice_nanos: u64, head: u64, sum: Seen },
}

impl Window {
    pub(super) fn new(config: WindowConfig, now: Mono) -> Self {
        match config {
            WindowConfig::Calls(calls) => {
                Self::Calls { ring: vec![0; calls.max(1) as usize].into(), next: 0, full: false, sum: Seen::default() }
            }
            WindowConfig::Time(span) => {
                let slice_nanos = slice_nanos(span);
                let head = now.as_nanos() / slice_nanos;
                Self::Time { slices: Box::new([Seen::default(); BUCKETS]), slice_nanos, head, sum: Seen::default() }
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
                add_call(sum, failed, slow);
                *next += 1;
                if *next == ring.len() {
                    (*next, *full) = (0, true);
                }
            }
            Self::Time { slices, head, sum, .. } => {
                add_call(&mut slices[*head as usize % BUCKETS], failed, slow);
                add_call(sum, failed, slow);
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

    fn advance(&mut self, now: Mono) {
        let Self::Time { slices, slice_nanos, head, sum } = self else { return };
        let target = now.as_nanos() / *slice_nanos;
        // Never backwards: a caller with an older `now` records into the newest slice.
        let steps = target.saturating_sub(*head).min(BUCKETS as u64);
        for step in 1..=steps {
            let slice = &mut slices[(target - steps + step) as usize % BUCKETS];
            sum.calls -= slice.calls;
            sum.failed -= slice.failed;
            sum.slow -= slice.slow;
            *slice = Seen::default();
        }
        *head = target.max(*head);
    }
}

fn slice_nanos(span: Duration) -> u64 {
    let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    (nanos / BUCKETS as u64).max(1)
}

fn add_call(sum: &mut Seen, failed: bool, slow: bool) {
    sum.calls += 1;
    sum.failed += u32::from(failed);
    sum.slow += u32::from(slow);
}

fn take_call(sum: &mut Seen, bits: u8) {
    sum.calls -= 1;
    sum.failed -= u32::from(bits & FAILED != 0);
    sum.slow -= u32::from(bits & SLOW != 0);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

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
            }
            prop_assert_eq!(window.calls_max(), size);
        }

        #[test]
        fn time_forgets_within_a_slice(steps in prop::collection::vec((0_u64..400, any::<bool>()), 0..200)) {
            // 2 s in 20 slices of 100 ms.
            let mut window = Window::new(WindowConfig::Time(Duration::from_secs(2)), Mono::ZERO);
            let (mut now_ms, mut model) = (0, Vec::new());
            for (gap_ms, failed) in steps {
                now_ms += gap_ms;
                window.record(Mono::from_millis(now_ms), failed, false);
                model.push((now_ms, failed));
                let first_slice = (now_ms / 100).saturating_sub(BUCKETS as u64 - 1);
                let live = model.iter().filter(|(at, _)| at / 100 >= first_slice);
                let seen = window.seen(Mono::from_millis(now_ms));
                prop_assert_eq!(seen.calls as usize, live.clone().count());
                prop_assert_eq!(seen.failed as usize, live.filter(|call| call.1).count());
            }
        }
    }

    #[test]
    fn an_idle_gap_of_any_length_empties_it_and_time_never_runs_back() {
        let mut window = Window::new(WindowConfig::Time(Duration::from_secs(1)), Mono::ZERO);
        window.record(Mono::from_millis(500), true, true);
        assert_eq!(window.seen(Mono::from_millis(100)).calls, 1, "an older clock changes nothing");
        assert_eq!(window.seen(Mono::from_nanos(u64::MAX)).calls, 0);
        assert_eq!(window.calls_max(), u32::MAX);
        // A span below one nanosecond per slice still has slices.
        let mut tiny = Window::new(WindowConfig::Time(Duration::ZERO), Mono::ZERO);
        tiny.record(Mono::ZERO, true, false);
        assert_eq!(tiny.seen(Mono::ZERO).failed, 1);
    }
}
