//! Which trouble there is, and when: drawn from the seed, begun by chance, ended in time.

use std::time::Duration;

use seawall_core::prng::Prng;

/// The kinds of trouble that may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Links lose what is on its way, now and then.
    pub drops: bool,
    /// Messages take up to two seconds.
    pub delays: bool,
    /// Links are cut, both ways or one way, or hold everything back for a while.
    pub partitions: bool,
    /// The node, the queue and producers are killed and start again; the node is also drained gently.
    pub crashes: bool,
    /// The power of the node goes: what its disk had not synced may be gone or torn.
    pub power_cuts: bool,
    /// The disk fails a call, or runs full for a while.
    pub disk: bool,
    /// The queue is slow, errs, resets, cuts its answers, or says nothing.
    pub moods: bool,
}

impl Faults {
    /// Everything.
    #[must_use]
    pub const fn all() -> Self {
        Self { drops: true, delays: true, partitions: true, crashes: true, power_cuts: true, disk: true, moods: true }
    }

    /// Nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            drops: false,
            delays: false,
            partitions: false,
            crashes: false,
            power_cuts: false,
            disk: false,
            moods: false,
        }
    }

    fn kinds(self) -> Vec<Kind> {
        let wanted = [
            (self.drops, Kind::Drops, 1),
            (self.delays, Kind::Delays, 1),
            (self.partitions, Kind::Partition, 2),
            (self.crashes, Kind::Crash, 2),
            (self.power_cuts, Kind::PowerCut, 2),
            (self.disk, Kind::Disk, 2),
            (self.moods, Kind::Mood, 4),
        ];
        let kinds = wanted.into_iter().filter(|(is_wanted, ..)| *is_wanted);
        kinds.flat_map(|(_, kind, weight)| std::iter::repeat_n(kind, weight)).collect()
    }

    /// The next fault, if any kind is wanted.
    pub(crate) fn draw(self, dice: &mut Prng) -> Option<Fault> {
        let kinds = self.kinds();
        let kind = *kinds.get(dice.below(kinds.len() as u64) as usize)?;
        Some(kind.draw(dice))
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Drops,
    Delays,
    Partition,
    Crash,
    PowerCut,
    Disk,
    Mood,
}

/// How the queue behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    Slow,
    Errors,
    Resets,
    Cuts,
    Silence,
    /// Every call fails, at once; whoever only asks for its health is told that all is well.
    Broken,
    /// No call is answered; whoever only asks for its health is.
    Hung,
    /// Each call another of these.
    Mixed,
}

impl Mood {
    pub(crate) const BAD: [Self; 5] = [Self::Slow, Self::Errors, Self::Resets, Self::Cuts, Self::Silence];
}

/// A host of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Node,
    Queue,
    Producer(u64),
}

/// A link between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    NodeQueue,
    NodeProducer(u64),
}

/// A way to cut a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// What is sent is lost.
    Both,
    /// What the node sends is lost.
    FromNode,
    /// What is sent to the node is lost.
    ToNode,
    /// What is sent waits.
    Hold,
}

/// A way to trouble a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskTrouble {
    /// The call after so many fails; the store stops for good and the node with it.
    Io { calls: u64 },
    /// The power goes with the call after so many.
    PowerCut { calls: u64 },
    /// There is room for so many more bytes.
    Full { bytes: u64 },
}

/// A fault that begins now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    Drops { rate: f64, lasts: Duration },
    Delays { max: Duration, lasts: Duration },
    Partition { link: Link, cut: Cut, lasts: Duration },
    Crash { host: Host, down_for: Duration },
    Drain { down_for: Duration },
    PowerCut { down_for: Duration },
    Disk { trouble: DiskTrouble, lasts: Duration },
    Mood { mood: Mood, lasts: Duration },
}

/// Producers of the world.
pub(crate) const PRODUCERS: u64 = 2;

pub(crate) fn millis(dice: &mut Prng, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + dice.below(to - from))
}

/// One of these, each as likely.
pub(crate) fn one_of<T: Copy>(dice: &mut Prng, all: &[T]) -> T {
    all[dice.below(all.len() as u64) as usize]
}

impl Kind {
    fn draw(self, dice: &mut Prng) -> Fault {
        match self {
            Self::Drops => Fault::Drops { rate: 0.005 + 0.05 * dice.unit(), lasts: millis(dice, 500, 6_000) },
            Self::Delays => Fault::Delays { max: millis(dice, 100, 2_000), lasts: millis(dice, 1_000, 6_000) },
            Self::Partition => Fault::Partition {
                link: match dice.below(3) {
                    0 => Link::NodeProducer(dice.below(PRODUCERS)),
                    _ => Link::NodeQueue,
                },
                cut: one_of(dice, &[Cut::Both, Cut::FromNode, Cut::ToNode, Cut::Hold]),
                lasts: millis(dice, 200, 8_000),
            },
            Self::Crash => match dice.below(6) {
                0 => Fault::Drain { down_for: millis(dice, 100, 2_000) },
                1 => Fault::Crash { host: Host::Queue, down_for: millis(dice, 100, 6_000) },
                2 => Fault::Crash { host: Host::Producer(dice.below(PRODUCERS)), down_for: millis(dice, 100, 2_000) },
                _ => Fault::Crash { host: Host::Node, down_for: millis(dice, 50, 3_000) },
            },
            Self::PowerCut => Fault::PowerCut { down_for: millis(dice, 200, 3_000) },
            Self::Disk => Fault::Disk {
                trouble: match dice.below(3) {
                    0 => DiskTrouble::Io { calls: 1 + dice.below(60) },
                    1 => DiskTrouble::PowerCut { calls: 1 + dice.below(60) },
                    _ => DiskTrouble::Full { bytes: dice.below(64 << 10) },
                },
                lasts: millis(dice, 1_000, 8_000),
            },
            Self::Mood => Fault::Mood {
                mood: match dice.below(6) {
                    5 => Mood::Mixed,
                    bad => Mood::BAD[bad as usize],
                },
                lasts: millis(dice, 1_000, 8_000),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_wish_there_is_no_fault() {
        assert_eq!(Faults::none().draw(&mut Prng::new(1)), None);
        let only = Faults { moods: true, ..Faults::none() };
        assert!(matches!(only.draw(&mut Prng::new(1)), Some(Fault::Mood { .. })));
    }

    #[test]
    fn every_kind_comes_up() {
        let mut dice = Prng::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let fault = Faults::all().draw(&mut dice).expect("something is wanted");
            let text = format!("{fault:?}");
            seen.insert(text.split([' ', '{']).next().unwrap_or_default().to_owned());
        }
        let names: Vec<&str> = seen.iter().map(String::as_str).collect();
        assert_eq!(names, ["Crash", "Delays", "Disk", "Drain", "Drops", "Mood", "Partition", "PowerCut"]);
    }
}
