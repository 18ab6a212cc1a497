//! The hour of trouble: which fault begins when and lasts how long, from the seed alone, and the pace of the scanners.
//!
//! Picture a score with two staves. The upper one is the managed queue: it has one mood at a time (brown-out, 503s,
//! resets, cut answers). The lower one is everything else: a surge that runs into the carrier's rate limit, a
//! predictor, a Seawall node and a whole zone killed. Both runs play the same score. Where a fault has no meaning in
//! the run before Seawall (there is no node to kill), it is a rest there, and the report says so.

use std::fmt;

use seawall_core::prng::Prng;
use serde::{Deserialize, Serialize};

/// The zones. The managed queue lives in the first one only.
pub const ZONES: [&str; 3] = ["us-east", "us-west", "eu-central"];

/// What the queue does to calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mood {
    /// Answers at once.
    #[default]
    Calm,
    /// Every call takes 1 to 4 seconds.
    BrownOut,
    /// Most calls get 503.
    Errors,
    /// Most connections are reset.
    Resets,
    /// Most answers end in the middle.
    Cuts,
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The queue's mood changes.
    Queue(Mood),
    /// The scanners' rate doubles and the carrier's silent limit is reached.
    Surge,
    /// A zone's predictor is killed with SIGKILL.
    PredictorKilled(String),
    /// A zone's Seawall node is killed with SIGKILL; there is none before.
    NodeKilled(String),
    /// A zone goes: its node and its predictor, killed with SIGKILL.
    ZoneGone(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(Mood::Calm) => f.write_str("queue: calm"),
            Self::Queue(Mood::BrownOut) => f.write_str("queue: brown-out, 1-4 s a call"),
            Self::Queue(Mood::Errors) => f.write_str("queue: burst of 503"),
            Self::Queue(Mood::Resets) => f.write_str("queue: connections reset"),
            Self::Queue(Mood::Cuts) => f.write_str("queue: answers cut in the middle"),
            Self::Surge => f.write_str("surge: twice the events, carrier limits silently"),
            Self::PredictorKilled(zone) => write!(f, "predictor {zone}: SIGKILL"),
            Self::NodeKilled(zone) => write!(f, "Seawall node {zone}: SIGKILL"),
            Self::ZoneGone(zone) => write!(f, "zone {zone} gone: node and predictor SIGKILL"),
        }
    }
}

/// A trouble and its time, in milliseconds from the start of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When it begins.
    pub at_ms: u64,
    /// How long it lasts.
    pub for_ms: u64,
    /// What it is.
    pub trouble: Trouble,
}

impl Fault {
    /// When it is over.
    #[must_use]
    pub const fn end_ms(&self) -> u64 {
        self.at_ms + self.for_ms
    }
}

/// The whole score.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Faults, by their begin.
    pub faults: Vec<Fault>,
    /// The scanners' last event is due here, in milliseconds.
    pub length_ms: u64,
}

/// One end of a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cue<'a> {
    /// When, in milliseconds from the start.
    pub at_ms: u64,
    /// True where the fault begins.
    pub begins: bool,
    /// Its place in [`Schedule::faults`].
    pub index: usize,
    /// Which.
    pub fault: &'a Fault,
}

impl Schedule {
    /// The score of this seed. `speed` 2 plays it in half the time.
    #[must_use]
    pub fn new(seed: u64, speed: f64) -> Self {
        let mut prng = Prng::new(seed ^ 0x5eaf_00d5);
        let zone = |prng: &mut Prng| ZONES[prng.below(3) as usize].to_string();
        // The queue lives in us-east and stays up when "a whole zone" goes: one of the two others goes.
        let gone = ZONES[1 + prng.below(2) as usize].to_string();
        let score = [
            (3_000, 3_000, Trouble::Queue(Mood::BrownOut)),
            (8_000, 2_000, Trouble::Queue(Mood::Errors)),
            (11_500, 2_000, Trouble::Queue(Mood::Resets)),
            (15_000, 2_500, Trouble::Queue(Mood::Cuts)),
            (19_000, 4_500, Trouble::Surge),
            (21_000, 2_500, Trouble::Queue(Mood::BrownOut)),
            (25_500, 1_500, Trouble::PredictorKilled(zone(&mut prng))),
            (28_500, 1_500, Trouble::NodeKilled(zone(&mut prng))),
            (31_500, 6_000, Trouble::ZoneGone(gone)),
            (33_000, 3_500, Trouble::Queue(Mood::BrownOut)),
            (38_000, 1_500, Trouble::Queue(Mood::Cuts)),
        ];
        let scaled = |ms: u64| (ms as f64 / speed).round() as u64;
        let mut faults: Vec<Fault> = Vec::with_capacity(score.len());
        for (at_ms, for_ms, trouble) in score {
            let (late_ms, longer_ms) = (prng.below(600), prng.below(900));
            faults.push(Fault { at_ms: scaled(at_ms + late_ms), for_ms: scaled(for_ms + longer_ms), trouble });
        }
        Self { faults, length_ms: scaled(42_000) }
    }

    /// Both ends of every fault, in the order they happen.
    #[must_use]
    pub fn cues(&self) -> Vec<Cue<'_>> {
        let mut cues: Vec<Cue<'_>> = Vec::with_capacity(self.faults.len() * 2);
        for (index, fault) in self.faults.iter().enumerate() {
            cues.push(Cue { at_ms: fault.at_ms, begins: true, index, fault });
            cues.push(Cue { at_ms: fault.end_ms(), begins: false, index, fault });
        }
        cues.sort_by_key(|cue| cue.at_ms);
        cues
    }

    /// When the first fault begins.
    #[must_use]
    pub fn first_fault_ms(&self) -> u64 {
        self.faults.iter().map(|fault| fault.at_ms).min().unwrap_or(0)
    }

    /// How many events per second are due at this moment, relative to the base rate.
    #[must_use]
    pub fn pace(&self, at_ms: u64) -> f64 {
        let surges = |fault: &&Fault| fault.trouble == Trouble::Surge && (fault.at_ms..fault.end_ms()).contains(&at_ms);
        if self.faults.iter().find(surges).is_some() { 2.0 } else { 1.0 }
    }

    /// How many events fit at this rate (events per second outside the surge).
    #[must_use]
    pub fn events_count(&self, rate: f64) -> usize {
        self.due_ms(rate).take_while(|due_ms| *due_ms < self.length_ms).count()
    }

    /// When each event is due, without end.
    pub fn due_ms(&self, rate: f64) -> impl Iterator<Item = u64> + '_ {
        let mut at_ms = 0.0_f64;
        std::iter::repeat_with(move || {
            let due_ms = at_ms as u64;
            at_ms += 1_000.0 / (rate * self.pace(due_ms));
            due_ms
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_score_and_every_kind_of_trouble() {
        assert_eq!(Schedule::new(7, 1.0), Schedule::new(7, 1.0));
        assert_ne!(Schedule::new(7, 1.0), Schedule::new(8, 1.0));
        let text: Vec<String> = Schedule::new(7, 1.0).faults.iter().map(|fault| fault.trouble.to_string()).collect();
        for word in ["brown-out", "503", "reset", "cut", "surge", "predictor", "node", "zone"] {
            assert!(text.iter().any(|text| text.contains(word)), "{word} in {text:?}");
        }
        assert_eq!(Trouble::Queue(Mood::Calm).to_string(), "queue: calm");
    }

    #[test]
    fn the_queue_has_one_mood_at_a_time_and_all_ends_before_the_last_event() {
        for seed in 0..500 {
            let schedule = Schedule::new(seed, 1.0);
            let moods: Vec<&Fault> =
                schedule.faults.iter().filter(|fault| matches!(fault.trouble, Trouble::Queue(_))).collect();
            assert!(moods.windows(2).all(|pair| pair[0].end_ms() < pair[1].at_ms), "seed {seed}");
            assert!(schedule.faults.iter().all(|fault| fault.end_ms() < schedule.length_ms), "seed {seed}");
            let gone = |fault: &Fault| fault.trouble == Trouble::ZoneGone(ZONES[0].into());
            assert!(!schedule.faults.iter().any(gone), "the queue's zone stays");
        }
    }

    #[test]
    fn kills_do_not_overlap_so_that_each_brings_back_what_it_took() {
        for seed in 0..500 {
            let schedule = Schedule::new(seed, 1.0);
            let kills: Vec<&Fault> = schedule
                .faults
                .iter()
                .filter(|fault| !matches!(fault.trouble, Trouble::Queue(_) | Trouble::Surge))
                .collect();
            assert!(kills.windows(2).all(|pair| pair[0].end_ms() < pair[1].at_ms), "seed {seed}");
        }
    }

    #[test]
    fn speed_scales_time_and_the_surge_doubles_the_pace() {
        let (slow, fast) = (Schedule::new(7, 1.0), Schedule::new(7, 2.0));
        assert_eq!(fast.length_ms, 21_000);
        assert!(fast.faults[3].at_ms.abs_diff(slow.faults[3].at_ms / 2) <= 1);
        let surge = slow.faults.iter().find(|fault| fault.trouble == Trouble::Surge).unwrap();
        assert_eq!((slow.pace(surge.at_ms), slow.pace(surge.end_ms())), (2.0, 1.0));
        let flat = (42_000.0 / 1_000.0) * 50.0;
        assert!(slow.events_count(50.0) as f64 > flat + 50.0 * 4.0);
        assert!(slow.first_fault_ms() >= 3_000);
    }

    #[test]
    fn cues_come_in_order_and_in_pairs() {
        let schedule = Schedule::new(7, 1.0);
        let cues = schedule.cues();
        assert!(cues.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
        assert_eq!(cues.iter().filter(|cue| cue.begins).count() * 2, cues.len());
    }
}
