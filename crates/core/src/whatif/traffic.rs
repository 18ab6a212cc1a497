//! Who asks, and when.

use std::time::Duration;

use crate::guard::Invalid;
use crate::prng::Prng;
use crate::time::Mono;

/// How requests arrive.
#[derive(Clone, Debug, PartialEq)]
pub enum Traffic {
    /// Evenly.
    Constant {
        /// Requests per second.
        per_second: f64,
    },
    /// Independently of each other: gaps are exponential.
    Poisson {
        /// Requests per second on average.
        per_second: f64,
    },
    /// Poisson arrivals whose rate rises and falls as a sine, from the trough on.
    Diurnal {
        /// Requests per second at the trough.
        low: f64,
        /// Requests per second at the peak.
        high: f64,
        /// From trough to trough.
        period: Duration,
    },
    /// As recorded, in order of time.
    Recorded(Vec<Recorded>),
    /// Poisson arrivals at rates that were recorded, each from its moment to the next one's.
    Pieces {
        /// In order of time, the first from the start on. The last one goes on.
        pieces: Vec<Piece>,
        /// The end of the record.
        until: Duration,
    },
}

/// A rate from a moment on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// Since the start of the record.
    pub from: Duration,
    /// Requests per second; zero where there were none.
    pub per_second: f64,
}

/// One recorded request, and what its dependency did with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Since the start of the record.
    pub at: Duration,
    /// How long the dependency took.
    pub latency: Duration,
    /// True if it answered well.
    pub well: bool,
}

impl Traffic {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let rate = |per_second: f64| {
            if (0.001..=1_000_000.0).contains(&per_second) {
                return Ok(());
            }
            Err(Invalid { key: "rate", value: format!("{per_second}/s"), allowed: "0.001/s to 1000000/s" })
        };
        match self {
            Self::Constant { per_second } | Self::Poisson { per_second } => rate(*per_second),
            Self::Diurnal { low, high, period } => {
                rate(*low)?;
                rate(*high)?;
                if high < low || *period < Duration::from_secs(1) {
                    let value = format!("{low}/s to {high}/s in {}", crate::units::format_duration(*period));
                    let allowed = "a peak that is no lower than the trough, in 1s or more";
                    return Err(Invalid { key: "rate", value, allowed });
                }
                Ok(())
            }
            Self::Recorded(recorded) => {
                if recorded.is_empty() || !recorded.is_sorted_by_key(|request| request.at) {
                    let allowed = "requests in order of time, at least one";
                    return Err(Invalid { key: "traffic", value: format!("{} requests", recorded.len()), allowed });
                }
                Ok(())
            }
            Self::Pieces { pieces, until } => {
                // Once an hour is a rate too, where it was seen.
                let out = pieces.iter().find(|piece| !(0.0..=1_000_000.0).contains(&piece.per_second));
                if let Some(Piece { per_second, .. }) = out {
                    return Err(Invalid { key: "rate", value: format!("{per_second}/s"), allowed: "0/s to 1000000/s" });
                }
                let begins = pieces.first().is_some_and(|first| first.from.is_zero());
                let in_order = pieces.is_sorted_by(|one, next| one.from < next.from);
                let ends = pieces.last().is_some_and(|last| last.from < *until);
                if !begins || !in_order || !ends || pieces.iter().all(|piece| piece.per_second == 0.0) {
                    let allowed = "rates in order of time from 0s on, an end after the last, one of them above 0/s";
                    return Err(Invalid { key: "traffic", value: format!("{} rates", pieces.len()), allowed });
                }
                Ok(())
            }
        }
    }

    /// Requests to be expected until then, where a rate is recorded; `None` elsewhere.
    #[must_use]
    pub fn recorded_requests(&self, until: Duration) -> Option<f64> {
        let Self::Pieces { pieces, .. } = self else { return None };
        let ends = pieces.iter().skip(1).map(|piece| piece.from).chain([until]);
        let of = |(piece, end): (&Piece, Duration)| {
            piece.per_second * end.min(until).saturating_sub(piece.from).as_secs_f64()
        };
        Some(pieces.iter().zip(ends).map(of).sum())
    }

    /// When the next one comes after this one, the `nth` (from zero); `None` when there are no more.
    pub(super) fn next(&self, now: Mono, nth: usize, prng: &mut Prng) -> Option<Mono> {
        match self {
            Self::Constant { per_second } => Some(Mono::ZERO + seconds((nth + 1) as f64 / per_second)),
            Self::Poisson { per_second } => Some(now + seconds(exponential(1.0 / per_second, prng))),
            Self::Diurnal { low, high, period } => {
                // Thinning (Lewis and Shedler, 1979): candidates at the peak's rate, each kept by the rate of its
                // moment.
                let mut at = now;
                loop {
                    at = at + seconds(exponential(1.0 / high, prng));
                    let turn = at.as_nanos() as f64 / period.as_nanos() as f64 * std::f64::consts::TAU;
                    let rate = low + (high - low) * (1.0 - turn.cos()) / 2.0;
                    if prng.chance(rate / high) {
                        return Some(at);
                    }
                }
            }
            Self::Recorded(recorded) => recorded.get(nth + 1).map(|request| Mono::ZERO + request.at),
            Self::Pieces { pieces, .. } => next_of_pieces(pieces, now, prng),
        }
    }

    /// When the first one comes, if any does.
    pub(super) fn first(&self, prng: &mut Prng) -> Option<Mono> {
        match self {
            Self::Recorded(recorded) => Some(Mono::ZERO + recorded[0].at),
            Self::Pieces { pieces, .. } => next_of_pieces(pieces, Mono::ZERO, prng),
            _ => Some(Mono::ZERO),
        }
    }

    /// What the record says of the `nth` request.
    pub(super) fn recorded(&self, nth: usize) -> Option<Recorded> {
        match self {
            Self::Recorded(recorded) => recorded.get(nth).copied(),
            _ => None,
        }
    }
}

/// One gap, measured in requests to be expected, is spent at the rate of each piece it crosses: that is exact.
fn next_of_pieces(pieces: &[Piece], now: Mono, prng: &mut Prng) -> Option<Mono> {
    let mut at = now.since(Mono::ZERO);
    let mut left = exponential(1.0, prng);
    let begun = pieces.partition_point(|piece| piece.from <= at).saturating_sub(1);
    for (place, piece) in pieces.iter().enumerate().skip(begun) {
        let end = pieces.get(place + 1).map(|next| next.from);
        let requests = end.map_or(f64::INFINITY, |end| piece.per_second * end.saturating_sub(at).as_secs_f64());
        if piece.per_second > 0.0 && left <= requests {
            return Some(Mono::ZERO + at + seconds(left / piece.per_second));
        }
        (at, left) = (end?, left - requests);
    }
    None
}

/// A number with this mean, memoryless.
pub(super) fn exponential(mean: f64, prng: &mut Prng) -> f64 {
    -mean * (1.0 - prng.unit()).ln()
}

pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
