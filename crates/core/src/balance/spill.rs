//! When traffic has left its own zone, and when it is back: each told once, not at every turn.
//!
//! Picture a gauge read once a second. It says AWAY when a tenth of a second's calls went elsewhere, and HOME only
//! after five seconds in a row in which hardly any did: the marks lie apart, and a zone that is filled by degrees is
//! told when it is full. Seconds with fewer than [`CALLS_MIN`] calls are put together with the next: a single retry
//! that was sent elsewhere is no spill.
//! Not here: which endpoint is chosen and why (`mod.rs`).

use std::time::Duration;

use crate::time::Mono;

/// How often calls are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Calls that say something.
pub const CALLS_MIN: u64 = 10;
/// From this share on, traffic is away.
const AWAY_FROM: f64 = 0.1;
/// Below this share it may be at home.
const HOME_BELOW: f64 = 0.01;
/// After so many looks in a row.
const LOOKS: u32 = 5;

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// This share of the calls goes elsewhere.
    Away(f64),
    /// All of it is back, after so long.
    Home(Duration),
}

/// The gauge.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    looked: Option<(Mono, u64, u64)>,
    away_since: Option<Mono>,
    quiet: u32,
}

impl Watch {
    /// Takes in the calls so far, all of them and those that went elsewhere.
    pub fn look(&mut self, now: Mono, calls: u64, away: u64) -> Option<Event> {
        let Some((at, calls_before, away_before)) = self.looked else {
            self.looked = Some((now, calls, away));
            return None;
        };
        let (calls_new, away_new) = (calls.saturating_sub(calls_before), away.saturating_sub(away_before));
        if now.since(at) < LOOK_EVERY || calls_new < CALLS_MIN {
            return None;
        }
        self.looked = Some((now, calls, away));
        let share = away_new as f64 / calls_new as f64;
        self.quiet = if share < HOME_BELOW { self.quiet + 1 } else { 0 };
        match self.away_since {
            None if share >= AWAY_FROM => {
                self.away_since = Some(at);
                Some(Event::Away(share))
            }
            Some(since) if self.quiet >= LOOKS => {
                self.away_since = None;
                Some(Event::Home(now.since(since)))
            }
            _ => None,
        }
    }

    /// True between [`Event::Away`] and [`Event::Home`].
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.away_since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds with so many calls and so many of them elsewhere; what was told, and in which second.
    fn play(seconds: &[(u64, u64)]) -> Vec<(usize, String)> {
        let (mut watch, mut told) = (Watch::default(), Vec::new());
        let (mut calls, mut away) = (0, 0);
        watch.look(Mono::ZERO, 0, 0);
        for (second, (more, elsewhere)) in seconds.iter().enumerate() {
            (calls, away) = (calls + more, away + elsewhere);
            let at = Mono::from_millis(1_000 * (second as u64 + 1));
            if let Some(event) = watch.look(at, calls, away) {
                told.push((second, format!("{event:?} {}", watch.is_away())));
            }
            assert_eq!(watch.look(at + Duration::from_millis(100), calls, away), None, "not between two looks");
        }
        told
    }

    #[test]
    fn each_way_is_told_once() {
        assert_eq!(play(&[(100, 9); 20]), [], "a few retries are no spill");
        let mut course = vec![(100, 0), (100, 40), (100, 100), (100, 5), (100, 0), (100, 90)];
        course.extend([(1_000, 5); 9]);
        assert_eq!(play(&course), [(1, "Away(0.4) true".into()), (10, "Home(10s) false".into())]);
    }

    #[test]
    fn a_trickle_is_put_together() {
        assert_eq!(play(&[(1, 1); 9]), []);
        assert_eq!(play(&[(1, 1); 10]), [(9, "Away(1.0) true".into())]);
        assert_eq!(play(&[(0, 0); 10]), []);
    }
}
