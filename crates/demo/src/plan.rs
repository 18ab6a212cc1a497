//! What will be played: the events and when they are due, the past trips to learn from, the score of trouble. Made once
//! from the arguments, the same for both runs, and pure but for reading `--input`.

use std::collections::BTreeMap;

use anyhow::bail;

use crate::DemoArgs;
use crate::model::{Model, ModelError};
use crate::producer::Due;
use crate::schedule::{Schedule, ZONES};
use crate::tracking::{Generator, Scan, read_input};

/// Events per second over all scanners, unless told otherwise.
pub const RATE_DEFAULT: f64 = 80.0;
const HISTORY_TRIPS: usize = 1_500;
const UNSEEN_TRIPS: usize = 600;
/// The user's own trips are enough to learn from when this many have a known duration.
const OWN_TRIPS_MIN: usize = 200;

/// What both runs play.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed of everything.
    pub seed: u64,
    /// Trouble, and how long it lasts.
    pub schedule: Schedule,
    /// The events, in the order they are due.
    pub scans: Vec<Scan>,
    /// Events per second outside the surge.
    pub rate: f64,
    /// Past trips to learn from.
    pub history: Vec<Scan>,
    /// Trips of other shipments to test on.
    pub unseen: Vec<Scan>,
    /// Something the user should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// From the arguments.
    ///
    /// # Errors
    /// When an argument makes no sense or the input cannot be read.
    pub fn new(args: &DemoArgs) -> anyhow::Result<Self> {
        if !(0.25..=10.0).contains(&args.speed) {
            bail!("--speed {} is out of range: expected 0.25 to 10", args.speed);
        }
        if args.records == Some(0) || args.rate.is_some_and(|rate| !(0.1..=2_000.0).contains(&rate)) {
            bail!("expected --records of at least 1 and --rate of 0.1 to 2000 events per second");
        }
        let schedule = Schedule::new(args.seed, args.speed);
        // As many as were asked for; spread over the schedule unless a rate was asked for too.
        let length_s = schedule.events_count(1_000.0) as f64 / 1_000.0;
        let rate = args.rate.or(args.records.map(|records| records as f64 / length_s)).unwrap_or(RATE_DEFAULT);
        let count = args.records.unwrap_or_else(|| schedule.events_count(rate));
        let mut plan = Self {
            seed: args.seed,
            schedule,
            scans: Vec::new(),
            rate: rate.min(2_000.0),
            history: Generator::new(args.seed ^ 0x0b5e_55ed, "H").take(HISTORY_TRIPS),
            unseen: Generator::new(args.seed ^ 0x0dd5_ea50, "U").take(UNSEEN_TRIPS),
            notes: Vec::new(),
        };
        match &args.input {
            None => plan.scans = Generator::new(args.seed, "S").take(count),
            Some(path) => plan.bring(read_input(path)?, count),
        }
        Ok(plan)
    }

    /// Takes the user's own events in place of the generator's.
    fn bring(&mut self, mut scans: Vec<Scan>, count: usize) {
        let known = scans.iter().filter(|scan| scan.actual_hours.is_some()).count();
        if known >= OWN_TRIPS_MIN {
            (self.history, self.unseen) = split_by_shipment(&scans);
        } else {
            self.notes.push(format!(
                "{known} trips of the input have `actual_hours`: the model learns from the generator's (own ones from {OWN_TRIPS_MIN} on)"
            ));
        }
        if scans.len() > count {
            self.notes
                .push(format!("{count} of the input's {} events fit: --records and --rate change that", scans.len()));
            scans.truncate(count);
        }
        self.scans = scans;
    }

    /// Trains once, to tell how good the model is.
    ///
    /// # Errors
    /// When it cannot be trained.
    pub fn model_error(&self) -> anyhow::Result<ModelError> {
        Ok(Model::train(&self.history, self.seed)?.test(&self.history, &self.unseen))
    }

    /// What each zone's gateway sends when. A shipment stays with its gateway.
    #[must_use]
    pub fn by_zone(&self) -> BTreeMap<&'static str, Vec<Due>> {
        let mut gateways: BTreeMap<&str, usize> = BTreeMap::new();
        let mut due: BTreeMap<&'static str, Vec<Due>> = ZONES.iter().map(|zone| (*zone, Vec::new())).collect();
        for (scan, at_ms) in self.scans.iter().zip(self.schedule.due_ms(self.rate)) {
            let next = gateways.len() % ZONES.len();
            let zone = ZONES[*gateways.entry(&scan.event.shipment).or_insert(next)];
            due.entry(zone).or_default().push(Due { at_ms, line: scan.event.line() });
        }
        due
    }

    /// The carrier's silent limit, in quotes per second: well above the usual traffic, below the surge.
    #[must_use]
    pub fn carrier_limit(&self) -> f64 {
        (self.rate * 1.75).max(2.0)
    }

    /// When the last event is due, or the score ends, whichever is later. In milliseconds.
    #[must_use]
    pub fn length_ms(&self) -> u64 {
        let last = self.schedule.due_ms(self.rate).take(self.scans.len()).last().unwrap_or(0);
        last.max(self.schedule.length_ms)
    }
}

/// Two thirds of the shipments to learn from, the others to test on: no shipment is in both.
fn split_by_shipment(scans: &[Scan]) -> (Vec<Scan>, Vec<Scan>) {
    let mut shipments: BTreeMap<&str, usize> = BTreeMap::new();
    for scan in scans {
        let next = shipments.len();
        shipments.entry(&scan.event.shipment).or_insert(next);
    }
    scans.iter().cloned().partition(|scan| shipments[scan.event.shipment.as_str()] % 3 != 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn args() -> DemoArgs {
        DemoArgs::default()
    }

    #[test]
    fn the_same_arguments_give_the_same_plan() {
        let (a, b) = (Plan::new(&args()).unwrap(), Plan::new(&args()).unwrap());
        assert_eq!((&a.scans, a.by_zone()), (&b.scans, b.by_zone()));
        assert!(a.scans.len() > 3_300, "{}", a.scans.len());
        assert_eq!(a.length_ms(), a.schedule.length_ms);
        assert!(a.model_error().unwrap().mae_hours > 0.0);
    }

    #[test]
    fn a_shipment_stays_with_its_gateway_and_nothing_is_left_out() {
        let plan = Plan::new(&args()).unwrap();
        let by_zone = plan.by_zone();
        assert_eq!(by_zone.values().map(Vec::len).sum::<usize>(), plan.scans.len());
        let shipments: Vec<BTreeSet<&str>> =
            by_zone.values().map(|due| due.iter().filter_map(|due| due.line.split('|').next()).collect()).collect();
        assert!(shipments[0].is_disjoint(&shipments[1]) && shipments[1].is_disjoint(&shipments[2]));
        assert!(by_zone.values().all(|due| due.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms)));
    }

    #[test]
    fn records_spread_over_the_schedule_and_a_rate_may_go_beyond() {
        let plan = Plan::new(&DemoArgs { records: Some(500), ..args() }).unwrap();
        assert_eq!(plan.scans.len(), 500);
        assert!((9.0..13.0).contains(&plan.rate), "{}", plan.rate);
        let plan = Plan::new(&DemoArgs { records: Some(600), rate: Some(10.0), speed: 4.0, ..args() }).unwrap();
        assert!(plan.length_ms() > plan.schedule.length_ms * 4);
        assert!(plan.carrier_limit() > 10.0);
    }

    #[test]
    fn arguments_out_of_range_are_refused() {
        for bad in [
            DemoArgs { speed: 0.0, ..args() },
            DemoArgs { records: Some(0), ..args() },
            DemoArgs { rate: Some(-1.0), ..args() },
            DemoArgs { input: Some("no/such/file".into()), ..args() },
        ] {
            assert!(Plan::new(&bad).is_err());
        }
    }

    #[test]
    fn own_events_replace_the_generators() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.csv");
        let row = |scan: &Scan| {
            let event = &scan.event;
            format!(
                "{},{},{},{},{},{},{},{},{}\n",
                event.shipment,
                event.sequence,
                event.carrier,
                event.weekday,
                event.hour,
                event.distance_km,
                event.weather,
                event.load,
                scan.actual_hours.unwrap()
            )
        };
        let write = |count| {
            let rows: String = Generator::new(3, "OWN").take(count).iter().map(row).collect();
            let header = "shipment_id,sequence,carrier,weekday,hour,distance_km,weather,load,actual_hours\n";
            std::fs::write(&path, format!("{header}{rows}")).unwrap();
            Plan::new(&DemoArgs { input: Some(path.clone()), records: Some(250), ..args() }).unwrap()
        };
        let plan = write(300);
        assert_eq!((plan.scans.len(), plan.history.len() + plan.unseen.len()), (250, 300));
        assert!(plan.scans.iter().all(|scan| scan.event.shipment.starts_with("OWN")));
        assert!(plan.notes[0].starts_with("250 of the input's 300 events fit"), "{:?}", plan.notes);
        let trained: BTreeSet<&str> = plan.history.iter().map(|scan| scan.event.shipment.as_str()).collect();
        assert!(plan.unseen.iter().all(|scan| !trained.contains(scan.event.shipment.as_str())));
        let plan = write(50);
        assert_eq!((plan.scans.len(), plan.history.len()), (50, HISTORY_TRIPS));
        assert!(plan.notes[0].starts_with("50 trips of the input have `actual_hours`"), "{:?}", plan.notes);
    }
}
