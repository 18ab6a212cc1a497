//! The guards under any sequence of calls, answers and clocks: no panic, the shared breaker is the plain one, permits
//! and places are neither lost nor made up, and a budget is never overdrawn.
#![no_main]

use std::time::Duration;

use seawall_core::guard::breaker::{
    Breaker, BreakerConfig, HalfOpen, Ramp, SharedBreaker, SlowRule, StateName, WindowConfig,
};
use seawall_core::guard::budget::{Budget, BudgetConfig};
use seawall_core::guard::bulkhead::{Bulkhead, BulkheadConfig, Entry, Order, Priority};
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::time::Mono;
use seawall_core::units::Ratio;

fn config(shape: [u8; 4]) -> BreakerConfig {
    let [kind, calls_min, probes, flags] = shape;
    let window = if kind % 2 == 0 {
        WindowConfig::Calls(u32::from(kind) + 1)
    } else {
        WindowConfig::Time { span: Duration::from_millis(u64::from(kind) * 10), slices: u32::from(calls_min % 8) + 1 }
    };
    let half_open = HalfOpen { calls: u32::from(probes % 5) + 1, by_timer: flags & 1 != 0, ..HalfOpen::default() };
    BreakerConfig {
        window,
        calls_min: u32::from(calls_min % 16) + 1,
        half_open,
        ramp: (flags & 2 != 0).then(Ramp::default),
        slow: (flags & 4 != 0).then(|| SlowRule {
            rate_max: Ratio::ONE,
            over: Duration::from_millis(50),
            // Slots turn with the traffic of each thread: what hangs may be seen a slot apart.
            in_flight: false,
        }),
        ..BreakerConfig::default()
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((shape, steps)) = data.split_first_chunk::<4>() else { return };
    let config = config(*shape);
    let (Ok(mut plain), Ok(shared)) =
        (Breaker::new(config.clone(), 1, Mono::ZERO), SharedBreaker::new(config, 1, 2, Mono::ZERO, |_| {}))
    else {
        return;
    };
    let order = if shape[3] & 8 != 0 { Order::AdaptiveLifo } else { Order::Fifo };
    let mut bulkhead =
        Bulkhead::new(BulkheadConfig { calls_max: 3, waiting_max: 3, wait_max: Duration::from_millis(10), order });
    let (mut budget, rule, mut active) = (Budget::new(Mono::ZERO), BudgetConfig::default(), 0_u64);
    let (mut now, mut held, mut inside, mut waiting, mut coins) =
        (Mono::ZERO, Vec::new(), 0_u32, Vec::new(), Vec::new());
    for step in steps.chunks_exact(2) {
        let (what, how) = (step[0], step[1]);
        now = now
            + if what & 0x80 != 0 {
                Duration::from_secs(1 << (how % 40))
            } else {
                Duration::from_millis(u64::from(how))
            };
        match what % 10 {
            0 | 1 => {
                let _ = plain.on_time(now);
                match (shared.admit(now), plain.admit(now)) {
                    (Ok(ours), Ok((theirs, _))) => held.push((ours, theirs, now)),
                    (ours, theirs) => assert_eq!(ours.is_ok(), theirs.is_ok(), "one admits and one refuses"),
                }
            }
            2 | 3 if !held.is_empty() => {
                let (ours, theirs, begun) = held.swap_remove(usize::from(how) % held.len());
                let outcome = if how % 3 == 0 { Outcome::Failure(Failure::Timeout) } else { Outcome::Success };
                shared.record(now, ours, outcome, now.since(begun));
                let _ = plain.record(now, theirs, outcome, now.since(begun));
            }
            4 => {
                let to = StateName::ALL[usize::from(how) % 7];
                assert_eq!(shared.move_to(now, to).is_ok(), plain.move_to(now, to).is_ok());
            }
            5 => {
                let urgency = [Priority::Critical, Priority::Normal, Priority::Background][usize::from(how) % 3];
                match bulkhead.enter(now, now + Duration::from_millis(5), urgency) {
                    Ok(Entry::Admitted) => inside += 1,
                    Ok(Entry::Waiting { ticket, evicted, .. }) => {
                        waiting.retain(|other| Some(*other) != evicted);
                        waiting.push(ticket);
                    }
                    Err(_) => {}
                }
            }
            6 if inside > 0 => match bulkhead.leave() {
                Some(next) => waiting.retain(|other| *other != next),
                None => inside -= 1,
            },
            7 if !waiting.is_empty() => {
                assert!(bulkhead.abandon(waiting.swap_remove(usize::from(how) % waiting.len())).is_some());
            }
            8 => {
                budget.deposit(now);
                active += 1;
            }
            9 => match budget.withdraw(now, &rule) {
                Ok(coin) => coins.push(coin),
                Err(_) => coins.drain(..).for_each(|coin| budget.done(coin)),
            },
            _ => {}
        }
        assert_eq!((bulkhead.in_flight(), bulkhead.waiting() as usize), (inside, waiting.len()));
        assert!(inside <= 3);
        // What was paid for may leave the window before it comes back; what is out is bounded by the requests in work.
        let (_, _, out) = budget.look(now);
        assert_eq!(out as usize, coins.len());
        assert!(out <= (active / 5).max(3), "{out} of {active}");
    }
    assert_eq!(shared.state(), plain.state());
    assert_eq!(shared.seen(now), plain.seen(now));
});
