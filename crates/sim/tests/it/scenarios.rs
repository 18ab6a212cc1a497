//! Seeded stories. `SIM_SEED=0x51c2` tells one again, `SIM_SEEDS=100` sets how many are told and `SIM_FROM=100` from
//! which on, `SIM_MINUTES=5` how long each goes wrong, and `SIM_TRACE=FILE` keeps everything that happened in the one
//! that fails.

use std::ops::Range;

use seawall_sim::{Faults, Truth, World, minutes, seconds};

/// How many stories are told unless asked otherwise.
const SEEDS: u64 = 25;

/// Seeds that once failed, each with what it found.
const KEPT: [(u64, &str); 4] = [
    (0x01, "a write answered with 409 after a try that was carried out was on the books as refused"),
    (0x06, "the same, fifteen times over; and two ready events in one turn of the forwarder, served in any order"),
    (0x24, "a ledger whose log had failed said 503 to every receipt, and the node lived on"),
    (0x39, "two ready events of a listener that drains, served in any order"),
];

fn story(seed: u64) -> World {
    let mut world = World::new(seed);
    let trouble = number("SIM_MINUTES").map_or(seconds(40), minutes);
    world.run_for(trouble, Faults::all());
    world.run_for(seconds(5), Faults::none());
    world.settle(minutes(3));
    assert_eq!(world.accepted(), world.delivered());
    assert_eq!(world.parked(), 0, "every refusal here passes by waiting");
    world.close_books();
    world
}

pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// The seeds to tell: so many unless asked otherwise.
pub(crate) fn seeds(count: u64) -> Range<u64> {
    if let Some(seed) = number("SIM_SEED") {
        return seed..seed + 1;
    }
    let first = number("SIM_FROM").unwrap_or(0);
    first..first + number("SIM_SEEDS").unwrap_or(count)
}

#[test]
fn what_was_accepted_arrives_once_and_in_order() {
    for seed in seeds(SEEDS) {
        let world = story(seed);
        let (events, copies) = (world.accepted().len(), world.truth(Truth::copies));
        println!("seed {seed:#x}: {events} events, {copies} copies stopped by their keys");
    }
}

/// Disks that fail under a backlog: what they still hold must not be overtaken by what comes after. Seeds 0x27 and
/// 0x317 once found a record that could not be read made a dead letter in memory only, and its row free, while the
/// store was about to stop.
#[test]
fn a_dying_disk_keeps_the_order() {
    for seed in (0..5).chain([0x27, 0x317]) {
        let mut world = World::new(seed);
        world.run_for(seconds(30), Faults { disk: true, moods: true, ..Faults::none() });
        world.settle(minutes(3));
        world.close_books();
    }
}

#[test]
fn kept_seeds_hold() {
    for (seed, found) in KEPT {
        println!("seed {seed:#x}: {found}");
        drop(story(seed));
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [0x51c2, 0x06, 0x39] {
        let first = story(seed).trace();
        let second = story(seed).trace();
        let differs = first.lines().zip(second.lines()).find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed:#x}");
        assert_eq!(first.len(), second.len());
    }
}

#[test]
fn another_seed_gives_another_trace() {
    let trace = |seed| {
        let mut world = World::new(seed);
        world.run_for(seconds(5), Faults::all());
        world.trace()
    };
    assert_ne!(trace(1), trace(2));
}

#[test]
fn without_faults_nothing_is_degraded() {
    let mut world = World::new(1);
    world.run_for(seconds(20), Faults::none());
    world.settle(minutes(1));
    world.close_books();
    assert!(world.accepted().len() > 200, "{} events", world.accepted().len());
    let trace = world.trace();
    // Producers that go away in the middle of their own request are everyday life and make no copy wait.
    assert!(!trace.contains("degraded_started") && !trace.contains("breaker_opened"), "{trace}");
}

#[test]
#[should_panic(expected = "to see it again: SIM_SEED=0x7")]
fn a_world_that_cannot_come_right_says_so() {
    let mut world = World::new(7);
    world.run_for(seconds(10), Faults { moods: true, ..Faults::none() });
    world.settle(seconds(0));
}
