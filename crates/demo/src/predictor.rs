//! The ETA predictor of a zone: takes events from the queue, asks the carrier for a price, predicts the arrival with
//! the trained model, writes the prediction to the warehouse, acknowledges the lease.
//!
//! Written as such workers commonly are. Lines that parse are events; a line that does not is logged and passed over.
//! An event whose quote or prediction fails three times is logged and dropped, so that one bad event does not block
//! the rest. When the batch is through, the lease is acknowledged as a whole.
//!
//! The `Seawall-Record` an event came with goes on in the prediction's `record` field: the end-to-end account. The
//! price travels in a header, so that the same event gives the same body however often it is worked on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::caller::{self, Called, Caller, Kind, LineLog};
use crate::model::{self, Model};
use crate::tracking::Event;
use crate::web::{Ask, Client, Got};

/// Events per lease.
const LEASE_MAX: usize = 20;
/// Events worked on at the same time.
const PARALLEL: usize = 8;
/// Between two leases when the queue had nothing, or little.
const PAUSE: Duration = Duration::from_millis(100);
/// Prices go by bands of this many kilometres.
const BAND_KM: f64 = 100.0;

/// A predictor's command line.
#[derive(clap::Args, Clone, Debug)]
pub struct PredictorArgs {
    /// The zone it works in
    #[arg(long)]
    pub zone: String,
    /// The queue; the next one when a connection fails
    #[arg(long, value_parser = caller::base, required = true)]
    pub queue: Vec<String>,
    /// The carrier's quote API
    #[arg(long, value_parser = caller::base, required = true)]
    pub carrier: Vec<String>,
    /// The warehouse
    #[arg(long, value_parser = caller::base, required = true)]
    pub warehouse: Vec<String>,
    /// Past trips to train on
    #[arg(long)]
    pub history: PathBuf,
    /// Where calls are logged
    #[arg(long)]
    pub log: PathBuf,
    /// Send the business id as Idempotency-Key
    #[arg(long)]
    pub keyed: bool,
    /// Seed of the training
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

struct Predictor {
    zone: String,
    queue: Caller,
    carrier: Caller,
    warehouse: Caller,
    model: Model,
    log: LineLog,
}

/// Trains, then works until dropped.
///
/// # Errors
/// When the history or the log cannot be opened, or the model not be trained.
pub async fn play(args: PredictorArgs) -> anyhow::Result<()> {
    let model = Model::train(&model::read_history(&args.history)?, args.seed)?;
    let (client, log) = (Client::default(), LineLog::open(&args.log)?);
    let caller = |bases| Caller::new(client.clone(), bases, log.clone(), args.keyed);
    let predictor = Arc::new(Predictor {
        zone: args.zone,
        queue: caller(args.queue),
        carrier: caller(args.carrier),
        warehouse: caller(args.warehouse),
        model,
        log: log.clone(),
    });
    loop {
        let events_count = turn(&predictor).await;
        if events_count < LEASE_MAX {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// One lease: how many lines it had.
async fn turn(predictor: &Arc<Predictor>) -> usize {
    let ask = Ask::get(format!("/events/lease?max={LEASE_MAX}"));
    let Some(got) = predictor.queue.call(Kind::Lease, None, ask).await else { return 0 };
    let lines = lines(&got);
    let (slots, mut working) = (Arc::new(Semaphore::new(PARALLEL)), JoinSet::new());
    let lines_count = lines.len();
    for (line, record) in lines {
        let (predictor, slots) = (Arc::clone(predictor), Arc::clone(&slots));
        working.spawn(async move {
            let _slot = slots.acquire().await;
            if predictor.work(&line, record.as_deref()).await.is_none() {
                predictor.log.append(&Called::mark(Kind::Drop).line());
            }
        });
    }
    while working.join_next().await.is_some() {}
    if let Some(lease) = got.header("lease-id") {
        let ask = Ask::post(format!("/events/ack?lease={lease}"), "");
        predictor.queue.call(Kind::Ack, Some(&format!("ack-{lease}")), ask).await;
    }
    lines_count
}

/// What arrived, line by line: the event's line and its `Seawall-Record`.
fn lines(got: &Got) -> Vec<(String, Option<String>)> {
    String::from_utf8_lossy(&got.body)
        .lines()
        .map(|line| match line.split_once('\t') {
            Some((line, record)) => (line.to_string(), Some(record.to_string())),
            None => (line.to_string(), None),
        })
        .collect()
}

impl Predictor {
    /// `None` when the event was given up.
    async fn work(&self, line: &str, record: Option<&str>) -> Option<()> {
        let event = Event::parse(line).ok()?;
        let price = self.price(&event).await?;
        let eta_hours = (self.model.predict(&event) * 100.0).round() / 100.0;
        let body = json!({"id": event.id(), "event": line, "eta_hours": eta_hours, "record": record}).to_string();
        let mut ask = Ask::post("/predictions", body)
            .with("content-type", "application/json")
            .with("shipment-id", event.shipment.as_str())
            .with("predicted-in", self.zone.as_str());
        if let Some(cents) = price {
            ask = ask.with("quote-cents", cents.to_string());
        }
        self.warehouse.call(Kind::Predict, Some(&key(&event, record)), ask).await.map(|_| ())
    }

    /// The carrier's price in cents; `Some(None)` when the answer was that there is none just now.
    async fn price(&self, event: &Event) -> Option<Option<u64>> {
        let km = ((event.distance_km / BAND_KM).ceil() * BAND_KM) as u64;
        let ask = Ask::get(format!("/quote?carrier={}&distance={km}", event.carrier));
        let quote = self.carrier.call(Kind::Quote, None, ask).await?.json().ok()?;
        Some(quote.get("price_cents").and_then(serde_json::Value::as_u64))
    }
}

/// The prediction's key: the business id. A second copy of an event bears another account number and is another write,
/// so that both accounts reach the warehouse, where the business id makes one row of them.
fn key(event: &Event, record: Option<&str>) -> String {
    let record = record.and_then(|record| record.split(';').next()).unwrap_or_default();
    format!("{}.{record}", event.id()).trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_with_another_account_number_is_another_write() {
        let event = crate::tracking::Generator::new(1, "S").take(1).remove(0).event;
        assert_eq!(key(&event, None), "S000001-1");
        assert_eq!(key(&event, Some("events.us-east.1.17;tag=00")), "S000001-1.events.us-east.1.17");
    }
}
