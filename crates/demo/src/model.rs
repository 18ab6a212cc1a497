//! The ETA model: gradient-boosted trees (smartcore) trained on past trips, and the plain yardstick it must beat.
//!
//! Features: distance, weekday, hour, load, and for carrier and weather the mean pace (hours per kilometre) they had
//! in the training data, alone and times the distance. Names never seen in training get the overall pace.
//! The yardstick is what one writes first: distance divided by one average speed, taken from the same training data.
//! Training is deterministic from the seed; the predictors train when they start.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use smartcore::linalg::basic::matrix::DenseMatrix;
use smartcore::xgboost::{XGRegressor, XGRegressorParameters};

use crate::tracking::{Event, Scan};

/// Past trips beyond this many do not make it better, only slower to start.
pub const TRIPS_MAX: usize = 1_500;
const TREES: usize = 60;

/// A trained model.
pub struct Model {
    trees: XGRegressor<f64, f64, DenseMatrix<f64>, Vec<f64>>,
    paces: Paces,
}

/// Mean pace by carrier and by weather, in hours per kilometre.
struct Paces {
    overall: f64,
    carriers: BTreeMap<String, f64>,
    weathers: BTreeMap<String, f64>,
}

/// How well it does, in hours, on shipments it has not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelError {
    /// Trips it was trained on.
    pub trips_trained: usize,
    /// Trips of other shipments it was tested on.
    pub trips_tested: usize,
    /// Mean absolute error of the model.
    pub mae_hours: f64,
    /// Mean absolute error of distance / average speed.
    pub mae_baseline_hours: f64,
}

impl Model {
    /// Learns from trips whose duration is known; later ones are passed over beyond [`TRIPS_MAX`].
    ///
    /// # Errors
    /// With fewer than 20 known trips, or when the trees cannot be built.
    pub fn train(scans: &[Scan], seed: u64) -> anyhow::Result<Self> {
        let known: Vec<(&Event, f64)> = known(scans).take(TRIPS_MAX).collect();
        if known.len() < 20 {
            bail!("cannot train on {} trips of known duration: at least 20 are needed", known.len());
        }
        let paces = Paces::of(&known);
        let rows: Vec<Vec<f64>> = known.iter().map(|(event, _)| paces.features(event)).collect();
        let hours: Vec<f64> = known.iter().map(|(_, hours)| *hours).collect();
        let features = DenseMatrix::from_2d_vec(&rows)?;
        let parameters = XGRegressorParameters::default()
            .with_n_estimators(TREES)
            .with_max_depth(4)
            .with_learning_rate(0.15)
            .with_subsample(0.8)
            .with_base_score(hours.iter().sum::<f64>() / hours.len() as f64)
            .with_seed(seed);
        let trees = XGRegressor::fit(&features, &hours, parameters).map_err(|error| anyhow!("{error}"))?;
        Ok(Self { trees, paces })
    }

    /// Hours until delivery.
    #[must_use]
    pub fn predict(&self, event: &Event) -> f64 {
        let row = DenseMatrix::from_2d_vec(&vec![self.paces.features(event)]).ok();
        let hours = row.and_then(|row| self.trees.predict(&row).ok()).and_then(|hours| hours.first().copied());
        hours.unwrap_or_else(|| self.paces.baseline(event)).max(0.0)
    }

    /// The yardstick: distance divided by the average speed of the training data.
    #[must_use]
    pub fn baseline(&self, event: &Event) -> f64 {
        self.paces.baseline(event)
    }

    /// Tests on trips of shipments that were not trained on.
    #[must_use]
    pub fn test(&self, trained: &[Scan], unseen: &[Scan]) -> ModelError {
        let trips: Vec<(&Event, f64)> = known(unseen).collect();
        let mae = |of: &dyn Fn(&Event) -> f64| {
            trips.iter().map(|(event, hours)| (of(event) - hours).abs()).sum::<f64>() / trips.len().max(1) as f64
        };
        ModelError {
            trips_trained: known(trained).count().min(TRIPS_MAX),
            trips_tested: trips.len(),
            mae_hours: mae(&|event| self.predict(event)),
            mae_baseline_hours: mae(&|event| self.baseline(event)),
        }
    }
}

fn known(scans: &[Scan]) -> impl Iterator<Item = (&Event, f64)> {
    scans.iter().filter_map(|scan| Some((&scan.event, scan.actual_hours?)))
}

impl Paces {
    fn of(trips: &[(&Event, f64)]) -> Self {
        let mut sums: [BTreeMap<String, (f64, f64)>; 2] = Default::default();
        let mut overall = (0.0, 0.0);
        for (event, hours) in trips {
            let [carriers, weathers] = &mut sums;
            let carrier = carriers.entry(event.carrier.clone()).or_default();
            let weather = weathers.entry(event.weather.clone()).or_default();
            for (sum_hours, sum_km) in [carrier, weather, &mut overall] {
                *sum_hours += hours;
                *sum_km += event.distance_km;
            }
        }
        let pace = |(hours, km): (f64, f64)| hours / km.max(f64::MIN_POSITIVE);
        let [carriers, weathers] = sums.map(|sums| sums.into_iter().map(|(name, sum)| (name, pace(sum))).collect());
        Self { overall: pace(overall), carriers, weathers }
    }

    fn baseline(&self, event: &Event) -> f64 {
        event.distance_km * self.overall
    }

    fn features(&self, event: &Event) -> Vec<f64> {
        let carrier = self.carriers.get(&event.carrier).copied().unwrap_or(self.overall);
        let weather = self.weathers.get(&event.weather).copied().unwrap_or(self.overall);
        let km = event.distance_km;
        let (hour, weekday) = (f64::from(event.hour), f64::from(event.weekday));
        let expected = km * carrier * weather / self.overall.max(f64::MIN_POSITIVE);
        vec![km, carrier, weather, expected, expected * event.load, event.load, hour, weekday]
    }
}

/// What the predictors train on, as a file they read at their start.
#[derive(Serialize, Deserialize)]
struct Trip {
    line: String,
    hours: f64,
}

/// Writes past trips for the predictors.
///
/// # Errors
/// When the file cannot be written.
pub fn write_history(path: &Path, scans: &[Scan]) -> anyhow::Result<()> {
    let trips: Vec<Trip> = known(scans).map(|(event, hours)| Trip { line: event.line(), hours }).collect();
    fs::write(path, serde_json::to_vec(&trips)?).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Reads what [`write_history`] wrote.
///
/// # Errors
/// When the file cannot be read or is something else.
pub fn read_history(path: &Path) -> anyhow::Result<Vec<Scan>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let trips: Vec<Trip> = serde_json::from_slice(&bytes)?;
    trips.iter().map(|trip| Ok(Scan { event: Event::parse(&trip.line)?, actual_hours: Some(trip.hours) })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracking::Generator;

    #[test]
    fn the_model_beats_the_yardstick_on_unseen_shipments() {
        let (trained, unseen) = (Generator::new(1, "H").take(900), Generator::new(2, "U").take(400));
        let model = Model::train(&trained, 7).unwrap();
        let error = model.test(&trained, &unseen);
        assert!(error.mae_hours < 0.7 * error.mae_baseline_hours, "{error:?}");
        assert_eq!((error.trips_trained, error.trips_tested), (900, 400));
        let again = Model::train(&trained, 7).unwrap();
        assert_eq!(model.predict(&unseen[0].event), again.predict(&unseen[0].event), "training is deterministic");
    }

    #[test]
    fn names_never_seen_get_the_overall_pace() {
        let model = Model::train(&Generator::new(1, "H").take(100), 7).unwrap();
        let stranger = Event {
            carrier: "nobody".into(),
            weather: "ash".into(),
            ..Generator::new(9, "U").take(1)[0].event.clone()
        };
        assert!(model.predict(&stranger).is_finite());
        assert!(model.baseline(&stranger) > 0.0);
    }

    #[test]
    fn too_little_history_is_refused() {
        let error = Model::train(&Generator::new(1, "H").take(5), 7).err().unwrap();
        assert!(error.to_string().contains("at least 20"), "{error}");
    }

    #[test]
    fn history_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.json");
        let scans = Generator::new(1, "H").take(30);
        write_history(&path, &scans).unwrap();
        assert_eq!(read_history(&path).unwrap().len(), 30);
        assert!(read_history(&dir.path().join("none")).is_err());
        assert!(write_history(&dir.path().join("no/dir"), &scans).is_err());
    }
}
