//! What may happen between zones and to endpoints, drawn from the seed.

use std::time::Duration;

use seawall_core::prng::Prng;

use super::{COUNT, ENDPOINTS};
use crate::faults::{Mood, millis, one_of};

/// The kinds of trouble that may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Roads between zones are cut or slow.
    pub roads: bool,
    /// Endpoints go up and down, alone or with their zone.
    pub flaps: bool,
    /// Endpoints answer probes and fail calls, or are slow.
    pub moods: bool,
    /// Nodes change their configuration.
    pub reloads: bool,
    /// Nodes are killed, lose their power, or are drained.
    pub crashes: bool,
}

impl Troubles {
    /// Everything.
    #[must_use]
    pub const fn all() -> Self {
        Self { roads: true, flaps: true, moods: true, reloads: true, crashes: true }
    }

    /// Nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self { roads: false, flaps: false, moods: false, reloads: false, crashes: false }
    }

    /// The next trouble, if any kind is wanted.
    pub(super) fn draw(self, dice: &mut Prng) -> Option<Trouble> {
        let wanted =
            [(self.roads, 0, 4), (self.flaps, 1, 4), (self.moods, 2, 3), (self.reloads, 3, 6), (self.crashes, 4, 1)];
        let kinds = wanted.into_iter().filter(|(is_wanted, ..)| *is_wanted);
        let kinds: Vec<u64> = kinds.flat_map(|(_, kind, weight)| std::iter::repeat_n(kind, weight)).collect();
        let kind = *kinds.get(dice.below(kinds.len() as u64) as usize)?;
        Some(draw(kind, dice))
    }
}

/// How a road is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// What is sent is lost: calls hang.
    Both,
    /// What the first sends to the second is lost.
    There,
    /// What the second sends to the first is lost.
    Back,
    /// What is sent waits, and comes when the road is free.
    Hold,
    /// Connections are reset, and so is who comes anew.
    Reset,
    /// Nothing is lost, it takes its time.
    Slow,
}

impl Cut {
    pub(super) const ALL: [Self; 6] = [Self::Both, Self::There, Self::Back, Self::Hold, Self::Reset, Self::Slow];
}

/// What endpoints may be like for a while.
const MOODS: [Mood; 6] = [Mood::Broken, Mood::Silence, Mood::Slow, Mood::Resets, Mood::Cuts, Mood::Mixed];

/// Trouble that begins now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trouble {
    Road { between: (usize, usize), cut: Cut, lasts: Duration },
    Flap { endpoints: Vec<usize>, up_ms: u64, down_ms: u64, lasts: Duration },
    Mood { endpoints: Vec<usize>, mood: Mood, lasts: Duration },
    Reload { zone: usize },
    Crash { zone: usize, with_power: bool, down_for: Duration },
    Drain { zone: usize },
}

/// Those of a zone, or one.
fn some(dice: &mut Prng) -> Vec<usize> {
    let first = dice.below((COUNT * ENDPOINTS) as u64) as usize;
    if dice.below(4) > 0 {
        return vec![first];
    }
    of_zone(first / ENDPOINTS)
}

pub(super) fn of_zone(zone: usize) -> Vec<usize> {
    (zone * ENDPOINTS..(zone + 1) * ENDPOINTS).collect()
}

fn draw(kind: u64, dice: &mut Prng) -> Trouble {
    let zone = dice.below(COUNT as u64) as usize;
    match kind {
        0 => Trouble::Road {
            between: (zone, (zone + 1 + dice.below(COUNT as u64 - 1) as usize) % COUNT),
            cut: one_of(dice, &Cut::ALL),
            lasts: millis(dice, 200, 6_000),
        },
        1 => {
            // Faster than any check sees, about as fast, or slower than a breaker's window.
            let scale = one_of(dice, &[40, 400, 3_000]);
            Trouble::Flap {
                endpoints: some(dice),
                up_ms: 1 + dice.below(scale),
                down_ms: 1 + dice.below(scale),
                lasts: millis(dice, 500, 8_000),
            }
        }
        2 => Trouble::Mood { endpoints: some(dice), mood: one_of(dice, &MOODS), lasts: millis(dice, 500, 8_000) },
        3 => Trouble::Reload { zone },
        _ => match dice.below(4) {
            0 => Trouble::Drain { zone },
            kind => Trouble::Crash { zone, with_power: kind > 2, down_for: millis(dice, 100, 1_500) },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_up_where_it_is_wanted() {
        let mut dice = Prng::new(1);
        assert_eq!(Troubles::none().draw(&mut dice), None);
        let only = Troubles { reloads: true, ..Troubles::none() };
        assert!(matches!(only.draw(&mut dice), Some(Trouble::Reload { .. })));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let text = format!("{:?}", Troubles::all().draw(&mut dice).expect("something is wanted"));
            seen.insert(text.split([' ', '{']).next().unwrap_or_default().to_owned());
        }
        let names: Vec<&str> = seen.iter().map(String::as_str).collect();
        assert_eq!(names, ["Crash", "Drain", "Flap", "Mood", "Reload", "Road"]);
    }
}
