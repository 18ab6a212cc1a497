//! Seeded stories. `SIM_SEED=0x51c2` tells one again, `SIM_SEEDS=1000` sets how many are told.

use seawall_sim::{Faults, World, minutes, seconds};

/// How many stories are told unless asked otherwise.
const SEEDS: u64 = 25;

/// Seeds that once failed, with what they found.
const KEPT: &[u64] = &[];

fn story(seed: u64) -> World {
    let mut world = World::new(seed);
    world.run_for(seconds(40), Faults::all());
    world.run_for(seconds(5), Faults::none());
    world.settle(minutes(3));
    assert_eq!(world.accepted(), world.delivered());
    assert_eq!(world.parked(), 0);
    world.close_books();
    world
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn what_was_accepted_arrives_once_and_in_order() {
    let seeds: Vec<u64> = match number("SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    for seed in seeds {
        let begin = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let world = story(seed);
        let took = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - begin;
        println!(
            "seed {seed:#x}: {} events, {} copies stopped, {took:?}, {} lines",
            world.accepted().len(),
            world.truth(seawall_sim::Truth::copies),
            world.trace().lines().count()
        );
    }
}

#[test]
fn kept_seeds_hold() {
    KEPT.iter().for_each(|seed| drop(story(*seed)));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..number("SIM_SEEDS").unwrap_or(3) {
        let first = story(seed).trace(); let second = story(seed).trace();
        let differs = first.lines().zip(second.lines()).enumerate().find(|(_, (a, b))| a != b);
        std::fs::write(format!("/tmp/c{seed}"), first.as_bytes()).unwrap(); if differs.is_some() { println!("{seed} {differs:?}"); std::fs::write(format!("/tmp/a{seed}"), first).unwrap(); std::fs::write(format!("/tmp/b{seed}"), second).unwrap(); }
    }
}
