//! The worst case of one request: how many calls its upstream may get, how long it may take, and what the last try has.
//!
//! Plain arithmetic over the guards' numbers, so that it can be checked by hand. The order of chance is replaced by its
//! worst: every wait is as long as it can be, every try takes all its time.
//! Not here: what fallbacks take after the deadline (a spool's sync), layers above and below.

use std::time::Duration;

use seawall_core::guard::retry::{Backoff, Jitter, RetryConfig, Waits};
use seawall_core::policy::{Fallback, Guards, Route};
use seawall_core::prng::Prng;

/// The worst case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Worst {
    /// Tries, the first included.
    pub(crate) tries: u32,
    /// Second copies of slow tries.
    pub(crate) hedges: u32,
    /// Calls sent once more because a pooled connection turned out to be closed: one for each try and copy at most.
    pub(crate) resends: u32,
    /// Calls to another upstream, as a fallback, its resend included.
    pub(crate) to_another: u32,
    /// The longest wait for a place in the bulkhead.
    pub(crate) place_wait: Duration,
    /// The longest wait before the second try, the third, and so on.
    pub(crate) waits: Vec<Duration>,
    /// Place, tries and waits, as if nothing ended them.
    pub(crate) unbounded: Duration,
    /// What it comes to: no more than `timeout`.
    pub(crate) takes: Duration,
    /// So many tries begin when each takes all its time and each wait is the longest.
    pub(crate) tries_begun: u32,
    /// What the last of those has of its time.
    pub(crate) last_try_has: Duration,
}

impl Worst {
    /// Of a route.
    pub(crate) fn of(route: &Route) -> Self {
        let guards = &route.guards;
        let tries = guards.retry.attempts_max;
        let hedges = guards.hedge.map_or(0, |hedge| hedge.hedges_max.saturating_mul(tries));
        let has_other = route.fallbacks.iter().any(|fallback| matches!(fallback, Fallback::Upstream(_)));
        let place_wait = if guards.bulkhead.waiting_max == 0 { Duration::ZERO } else { guards.bulkhead.wait_max };
        let waits: Vec<Duration> = (1..tries).map(|made| longest_wait(&guards.retry, made)).collect();
        let of_tries = guards.try_timeout.saturating_mul(tries);
        let unbounded = waits.iter().fold(place_wait.saturating_add(of_tries), |sum, wait| sum.saturating_add(*wait));
        let (tries_begun, last_try_has) = last_try(guards, place_wait, &waits);
        Self {
            tries,
            hedges,
            resends: tries.saturating_add(hedges),
            to_another: if has_other { 2 } else { 0 },
            place_wait,
            waits,
            unbounded,
            takes: unbounded.min(guards.timeout),
            tries_begun,
            last_try_has,
        }
    }

    /// Calls to the route's own upstream.
    pub(crate) fn calls(&self) -> u32 {
        self.tries.saturating_add(self.hedges).saturating_add(self.resends)
    }
}

/// How many tries begin, and what the last one has, when every one before it took all its time.
fn last_try(guards: &Guards, place_wait: Duration, waits: &[Duration]) -> (u32, Duration) {
    let (mut at, mut begun, mut has) = (place_wait, 0, Duration::ZERO);
    for index in 0..=waits.len() {
        if let Some(wait) = index.checked_sub(1).and_then(|before| waits.get(before)) {
            at = at.saturating_add(*wait);
            if guards.retry.total_max.is_some_and(|total| at > total) {
                break;
            }
        }
        if at >= guards.timeout {
            break;
        }
        begun += 1;
        has = guards.try_timeout.min(guards.timeout - at);
        at = at.saturating_add(has);
    }
    (begun, has)
}

/// The longest wait of our own after so many tries. `Retry-After` may ask for more.
fn longest_wait(retry: &RetryConfig, made: u32) -> Duration {
    let longest = match retry.backoff {
        // Three times the wait before, each time: base, 3 base, 9 base.
        Backoff::Decorrelated { base } => base.saturating_mul(3_u32.saturating_pow(made.saturating_sub(1))),
        // What the formula comes to at its two ends: the greatest now less the least before.
        Backoff::DecorrelatedSmooth { base } => {
            let x = |t: f64| t.exp2() * (4.0 * t).sqrt().tanh();
            let before = if made < 2 { 0.0 } else { x(f64::from(made - 2)) };
            let factor = (x(f64::from(made)) - before) / 1.4;
            Duration::try_from_secs_f64(base.as_secs_f64() * factor).unwrap_or(Duration::MAX)
        }
        // The machine itself says how its waits grow; chance only shortens them, but for a share up and down.
        _ => {
            let grown = RetryConfig { jitter: Jitter::None, ..retry.clone() };
            let wait = grown.wait(made, &mut Waits::default(), &mut Prng::new(0));
            let up = if let Jitter::Share(share) = retry.jitter { share.get() } else { 0.0 };
            Duration::try_from_secs_f64(wait.as_secs_f64() * (1.0 + up)).unwrap_or(Duration::MAX)
        }
    };
    longest.min(retry.wait_max)
}

#[cfg(test)]
mod tests {
    use seawall_core::guard::bulkhead::BulkheadConfig;
    use seawall_core::guard::hedge::HedgeConfig;
    use seawall_core::id::UpstreamId;
    use seawall_core::policy::{Delivery, Match, Protocol};
    use seawall_core::units::Ratio;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    fn route(guards: Guards, fallbacks: Vec<Fallback>) -> Route {
        let (matcher, delivery) = (Match::default(), Delivery::default());
        let (name, protocol, upstream) = ("r".into(), Protocol::Http, UpstreamId(0));
        let (upgrades, order_by) = (Vec::new(), None);
        Route {
            name,
            protocol,
            matcher,
            upgrades,
            upstream,
            guards,
            fallbacks,
            order_by,
            delivery,
            placement: seawall_core::policy::Placement::default(),
        }
    }

    /// Two seconds for four tries of half a second, waits of 50, 100 and 200 ms: 0.5 + 0.05 + 0.5 + 0.1 + 0.5 + 0.2 =
    /// 1.85 s are gone when the fourth begins, and 0.15 s are left.
    #[test]
    fn four_tries_of_half_a_second_do_not_fit_two_seconds() {
        let retry = RetryConfig { attempts_max: 4, ..RetryConfig::default() };
        let bulkhead = BulkheadConfig { waiting_max: 0, ..BulkheadConfig::default() };
        let guards = Guards { timeout: 2 * S, try_timeout: 500 * MS, retry, bulkhead, ..Guards::default() };
        let worst = Worst::of(&route(guards.clone(), Vec::new()));
        assert_eq!(worst.waits, [50 * MS, 100 * MS, 200 * MS]);
        assert_eq!((worst.unbounded, worst.takes), (2_350 * MS, 2 * S), "4 x 500 + 350");
        assert_eq!((worst.tries_begun, worst.last_try_has), (4, 150 * MS));
        assert_eq!((worst.tries, worst.resends, worst.to_another, worst.calls()), (4, 4, 0, 8));

        // A second in the queue before: 1 + 0.5 + 0.05 = 1.55 s, the second try has 0.45 s and is the last.
        let bulkhead = BulkheadConfig { wait_max: S, ..BulkheadConfig::default() };
        let worst = Worst::of(&route(Guards { bulkhead, ..guards.clone() }, vec![Fallback::Upstream(UpstreamId(1))]));
        assert_eq!((worst.tries_begun, worst.last_try_has, worst.to_another), (2, 450 * MS, 2));

        // No retry begins after 0.6 s: the second would begin at 0.55 s, the third at 1.15 s.
        let retry = RetryConfig { total_max: Some(600 * MS), ..guards.retry.clone() };
        let worst = Worst::of(&route(Guards { retry, ..guards }, Vec::new()));
        assert_eq!((worst.tries_begun, worst.last_try_has), (2, 500 * MS));
    }

    /// What a route has that says nothing: one try may take it all.
    #[test]
    fn by_default_a_hanging_upstream_gets_one_try() {
        let worst = Worst::of(&route(Guards::default(), vec![Fallback::Spool]));
        assert_eq!((worst.tries, worst.tries_begun, worst.last_try_has), (3, 1, 29 * S), "a second in the queue first");
        assert_eq!((worst.unbounded, worst.takes), (Duration::from_millis(91_150), 30 * S), "1 + 3 x 30 + 0.05 + 0.1");
        let bulkhead = BulkheadConfig { wait_max: 40 * S, ..BulkheadConfig::default() };
        let worst = Worst::of(&route(Guards { bulkhead, ..Guards::default() }, Vec::new()));
        assert_eq!((worst.tries_begun, worst.last_try_has), (0, Duration::ZERO), "the queue alone may take it all");
    }

    #[test]
    fn the_longest_waits_follow_the_backoff_and_never_pass_their_upper_end() {
        let waits = |backoff, jitter| {
            let retry = RetryConfig { attempts_max: 5, backoff, jitter, ..RetryConfig::default() };
            Worst::of(&route(Guards { retry, ..Guards::default() }, Vec::new())).waits
        };
        let base = 100 * MS;
        assert_eq!(waits(Backoff::Fixed(base), Jitter::Full), [base; 4]);
        assert_eq!(waits(Backoff::Linear { base, step: base }, Jitter::Equal), [1, 2, 3, 4].map(|n| n * base));
        assert_eq!(waits(Backoff::Fibonacci { base }, Jitter::None), [1, 1, 2, 3].map(|n| n * base));
        assert_eq!(waits(Backoff::Decorrelated { base }, Jitter::Full), [base, 3 * base, 9 * base, S], "27 is cut");
        let share = Jitter::Share(Ratio::new(0.5).unwrap());
        assert_eq!(waits(Backoff::Exponential { base, multiplier: 2.0 }, share), [150 * MS, 300 * MS, 600 * MS, S]);
    }

    /// No draw of the machine is ever longer than what is called the longest.
    #[test]
    fn no_wait_of_the_machine_is_longer() {
        let base = 100 * MS;
        for backoff in [
            Backoff::Decorrelated { base },
            Backoff::DecorrelatedSmooth { base },
            Backoff::Exponential { base, multiplier: 1.7 },
        ] {
            let jitter = Jitter::Share(Ratio::new(0.3).unwrap());
            let retry = RetryConfig { backoff, jitter, wait_max: 20 * S, ..RetryConfig::default() };
            let mut prng = Prng::new(3);
            for _ in 0..2_000 {
                let mut waits = Waits::default();
                for made in 1..6 {
                    let wait = retry.wait(made, &mut waits, &mut prng);
                    let longest = longest_wait(&retry, made) + Duration::from_nanos(1);
                    assert!(wait <= longest, "{backoff:?} {made}: {wait:?} > {longest:?}");
                }
            }
        }
    }

    #[test]
    fn copies_count_too_and_only_safe_methods_may_be_repeated() {
        let guards = Guards { hedge: Some(HedgeConfig::default()), ..Guards::default() };
        let worst = Worst::of(&route(guards, Vec::new()));
        assert_eq!((worst.hedges, worst.calls()), (3, 12), "three tries, a copy of each, a resend of all six");
        let mut writes = route(Guards::default(), Vec::new());
        assert!(writes.may_repeat(), "any method: most are reads");
        writes.matcher.methods = vec!["GET".into(), "POST".into()];
        assert!(!writes.may_repeat());
        writes.fallbacks = vec![Fallback::Spool];
        assert!(writes.may_repeat(), "it gets a key");
    }
}
