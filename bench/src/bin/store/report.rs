//! Tables of what was measured, and whether it is enough.

use std::time::Duration;

use seawall_bench::{percentile, spread};

use crate::deliver::Rate;
use crate::engine::Kind;
use crate::enqueue::Sample;
use crate::seawall::Watched;

/// Enqueues of one number of producers: for every peer, a sample a round.
pub(crate) struct Enqueues {
    pub(crate) producers: usize,
    pub(crate) samples: Vec<(Kind, Vec<Sample>)>,
}

/// Everything of all rounds.
pub(crate) struct Figures {
    pub(crate) enqueues: Vec<Enqueues>,
    /// Sorted nanoseconds of plain syncs, a list a round.
    pub(crate) syncs: Vec<(Kind, Vec<Vec<u32>>)>,
    pub(crate) duration_seconds: f64,
    pub(crate) deliveries: Vec<(usize, Vec<Rate>)>,
}

impl Enqueues {
    fn of(&self, kind: Kind) -> &[Sample] {
        self.samples.iter().find(|(known, _)| *known == kind).map_or(&[], |(_, samples)| samples)
    }

    /// Of Seawall and a peer in the same round.
    fn ratios(&self, peer: Kind) -> Vec<f64> {
        let pairs = self.of(Kind::Seawall).iter().zip(self.of(peer));
        pairs.map(|(ours, theirs)| ours.per_second / theirs.per_second).collect()
    }

    fn print(&self) {
        println!("\n{} producer(s): enqueues of 1 KiB, answered after the sync; us are microseconds", self.producers);
        println!(
            "{:13} {:>8} {:>17} {:>10} {:>15} {:>17} {:>8}   seawall / it",
            "", "per s", "lowest..highest", "commits/s", "wait us p50/p99", "commit us p50/p99", "CPU us"
        );
        for (kind, samples) in &self.samples {
            let of = |figure: fn(&Sample) -> f64| spread(&samples.iter().map(figure).collect::<Vec<_>>());
            let [low, middle, high] = of(|sample| sample.per_second);
            let median = |figure: fn(&Sample) -> f64| of(figure)[1];
            let waits = [median(|s| micros(&s.waits, 0.5)), median(|s| micros(&s.waits, 0.99))];
            let commits = [median(|s| micros(&s.commits, 0.5)), median(|s| micros(&s.commits, 0.99))];
            println!(
                "{:13} {middle:>8.0} {:>17} {:>10.0} {:>15} {:>17} {:>8.1}   {}",
                kind.name(),
                format!("{low:.0}..{high:.0}"),
                median(|sample| sample.commits_per_second),
                format!("{:.0}/{:.0}", waits[0], waits[1]),
                format!("{:.0}/{:.0}", commits[0], commits[1]),
                median(|sample| sample.cpu_us),
                with_spread(&self.ratios(*kind)),
            );
        }
        self.print_writer();
    }

    /// What the writer of Seawall did in its time.
    fn print_writer(&self) {
        let samples = self.of(Kind::Seawall);
        if samples.is_empty() {
            return;
        }
        let median = |figure: fn(&Sample, &Watched) -> f64| {
            let figures: Vec<f64> =
                samples.iter().filter_map(|sample| Some(figure(sample, sample.watched.as_ref()?))).collect();
            spread(&figures)[1]
        };
        println!(
            "seawall's writer, of its time: {:.0} % writes, {:.0} % syncs, {:.0} % segments, {:.0} % its own work on a CPU; \
             the rest it waits. Its own work is {:.2} us an enqueue, its file calls {:.2} us of CPU",
            median(|sample, watched| share(watched.writes.wall, sample)),
            median(|sample, watched| share(watched.syncs.wall, sample)),
            median(|sample, watched| share(watched.segments.wall, sample)),
            median(|sample, watched| share(Duration::from_nanos(own_nanos(watched)), sample)),
            median(|sample, watched| own_nanos(watched) as f64 / 1e3 / sample.waits.len() as f64),
            median(|sample, watched| file_nanos(watched) as f64 / 1e3 / sample.waits.len() as f64),
        );
    }
}

impl Figures {
    pub(crate) fn print(&self) {
        println!("\nplain syncs: write 4 KiB, `fdatasync`, one thread, nothing else");
        for (kind, rounds) in &self.syncs {
            let rates: Vec<f64> = rounds.iter().map(|syncs| syncs.len() as f64 / self.duration_seconds).collect();
            let micros = |share| spread(&rounds.iter().map(|syncs| micros(syncs, share)).collect::<Vec<_>>());
            println!(
                "{:13} per s {}; us p50 {}, p99 {}",
                kind.name(),
                whole(spread(&rates)),
                whole(micros(0.5)),
                whole(micros(0.99))
            );
        }
        self.enqueues.iter().for_each(Enqueues::print);
        if !self.deliveries.is_empty() {
            println!("\nlease and acknowledge, every acknowledgement synced");
        }
        for (workers, rates) in &self.deliveries {
            let per_second: Vec<f64> = rates.iter().map(|rate| rate.per_second).collect();
            let cpu_us: Vec<f64> = rates.iter().map(|rate| rate.cpu_us).collect();
            println!("{workers:3} workers   per s {}; CPU us {:.1}", whole(spread(&per_second)), spread(&cpu_us)[1]);
        }
        self.print_bars();
    }

    fn print_bars(&self) {
        println!("\nbars: medians of ratios within a round");
        for producers in [64, 256] {
            let ratios = self.at(producers, |found| found.ratios(Kind::Fjall));
            at_least(&format!("enqueues / fjall's, {producers} producers"), &ratios, 2.0);
        }
        let ratios = self.at(1, |found| found.ratios(Kind::Raw));
        at_least("commits / raw file's, 1 producer", &ratios, 0.9);
        at_most("commit p99 / plain sync's p99, 64 producers", &self.p99_ratios(|sample| &sample.commits), 4.0);
        at_most("wait p99 / plain sync's p99, 64 producers", &self.p99_ratios(|sample| &sample.waits), 4.0);
        let cpu = self.at(64, |found| found.of(Kind::Seawall).iter().map(|sample| sample.cpu_us).collect());
        at_most("CPU us per enqueue, 64 producers", &cpu, 10.0);
        for (workers, rates) in &self.deliveries {
            let per_second: Vec<f64> = rates.iter().map(|rate| rate.per_second).collect();
            at_least(&format!("lease and acknowledge per s, {workers} workers"), &per_second, 100_000.0);
        }
    }

    fn at(&self, producers: usize, figures: impl Fn(&Enqueues) -> Vec<f64>) -> Vec<f64> {
        self.enqueues.iter().find(|found| found.producers == producers).map(figures).unwrap_or_default()
    }

    fn p99_ratios(&self, times: fn(&Sample) -> &[u32]) -> Vec<f64> {
        let raw = self.syncs.iter().find(|(kind, _)| *kind == Kind::Raw).map_or(&[][..], |(_, rounds)| rounds);
        self.at(64, |found| {
            let pairs = found.of(Kind::Seawall).iter().zip(raw);
            pairs.map(|(ours, raw)| micros(times(ours), 0.99) / micros(raw, 0.99)).collect()
        })
    }
}

/// Of a run's time, in percent.
fn share(spent: Duration, sample: &Sample) -> f64 {
    100.0 * spent.as_secs_f64() / sample.elapsed.as_secs_f64()
}

const fn file_nanos(watched: &Watched) -> u64 {
    watched.writes.cpu_nanos + watched.syncs.cpu_nanos + watched.segments.cpu_nanos
}

const fn own_nanos(watched: &Watched) -> u64 {
    watched.cpu_nanos.saturating_sub(file_nanos(watched))
}

fn at_least(what: &str, figures: &[f64], bar: f64) {
    verdict(what, figures, format!(">= {bar}"), |figure| figure >= bar);
}

fn at_most(what: &str, figures: &[f64], bar: f64) {
    verdict(what, figures, format!("<= {bar}"), |figure| figure <= bar);
}

fn verdict(what: &str, figures: &[f64], bar: String, is_met: impl Fn(f64) -> bool) {
    let word = match (figures.is_empty(), is_met(spread(figures)[1])) {
        (true, _) => "not measured",
        (false, true) => "pass",
        (false, false) => "FAIL",
    };
    println!("{what:46} {:>9}   {word:12} {}", bar, with_spread(figures));
}

fn with_spread(figures: &[f64]) -> String {
    let [low, middle, high] = spread(figures);
    let digits = if middle < 1000.0 { 2 } else { 0 };
    if figures.is_empty() { String::new() } else { format!("{middle:.digits$} ({low:.digits$}..{high:.digits$})") }
}

fn whole([low, middle, high]: [f64; 3]) -> String {
    format!("{middle:.0} ({low:.0}..{high:.0})")
}

fn micros(sorted_nanos: &[u32], share: f64) -> f64 {
    f64::from(percentile(sorted_nanos, share)) / 1000.0
}
