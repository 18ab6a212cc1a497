//! The way of a healthy call allocates nothing.

use std::time::Duration;

use allocation_counter::measure;
use seawall_core::guard::breaker::{BreakerConfig, SharedBreaker};
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::time::Mono;

#[test]
fn a_breaker_allocates_nothing_while_closed() {
    let breaker = SharedBreaker::new(BreakerConfig::default(), 1, 4, Mono::ZERO, |_| {}).expect("sane");
    let took = Duration::from_millis(1);
    let counted = measure(|| {
        for call in 0..10_000_u64 {
            let now = Mono::from_millis(call);
            let permit = breaker.admit(call as usize, now).expect("closed");
            // Every tenth fails: the slow way is free of allocations too.
            let outcome = if call % 10 == 0 { Outcome::Failure(Failure::Timeout) } else { Outcome::Success };
            breaker.record(now, permit, outcome, took);
        }
    });
    assert_eq!(counted.count_total, 0);
}
