//! The scanners' gateway of a zone: hands each event over when it is due and writes down what became of it.
//!
//! Scanners do not wait for each other: an event is sent when it is due, however slow the ones before it are (up to
//! [`IN_FLIGHT_MAX`] at a time). What is not taken after three tries is logged and dropped, as such gateways do. The
//! manifest (business id, digest of the line, taken or not) is the company's own list of what it handed over; the
//! warehouse's rows are compared with it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::caller::{self, Caller, Kind, LineLog};
use crate::clock;
use crate::tally::Handed;
use crate::tracking::{Event, digest};
use crate::web::{Ask, Client};

/// Events on their way at the same time.
pub const IN_FLIGHT_MAX: usize = 512;

/// A gateway's command line.
#[derive(clap::Args, Clone, Debug)]
pub struct ProducerArgs {
    /// What to send when: JSON lines
    #[arg(long)]
    pub events: PathBuf,
    /// The start of the run, in milliseconds since the epoch
    #[arg(long)]
    pub start_ms: u64,
    /// Where to send it; the next one when a connection fails
    #[arg(long, value_parser = caller::base, required = true)]
    pub target: Vec<String>,
    /// Where the manifest is written
    #[arg(long)]
    pub manifest: PathBuf,
    /// Where calls are logged
    #[arg(long)]
    pub log: PathBuf,
    /// Send the business id as Idempotency-Key
    #[arg(long)]
    pub keyed: bool,
}

/// An event and when it is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// Milliseconds from the start of the run.
    pub at_ms: u64,
    /// The event's line.
    pub line: String,
}

/// Sends every event, then returns.
///
/// # Errors
/// When a file cannot be read or written, or the events are not ours.
pub async fn play(args: ProducerArgs) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(&args.events).with_context(|| format!("cannot read `{}`", args.events.display()))?;
    let events: Vec<Due> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let manifest = LineLog::open(&args.manifest)?;
    let caller = Caller::new(Client::default(), args.target, LineLog::open(&args.log)?, args.keyed);
    let (slots, mut sending) = (Arc::new(Semaphore::new(IN_FLIGHT_MAX)), JoinSet::new());
    for due in events {
        clock::until_ms(args.start_ms + due.at_ms).await;
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let (caller, manifest) = (caller.clone(), manifest.clone());
        sending.spawn(async move {
            let handed = hand_over(&caller, &due.line).await;
            drop(slot);
            if let Some(handed) = handed {
                manifest.append(&handed.line());
            }
        });
        while sending.try_join_next().is_some() {}
    }
    while sending.join_next().await.is_some() {}
    Ok(())
}

async fn hand_over(caller: &Caller, line: &str) -> Option<Handed> {
    let event = Event::parse(line).ok()?;
    let (id, at_ms) = (event.id(), clock::now_ms());
    let ask = Ask::post("/events", line.to_string())
        .with("content-type", "text/plain")
        .with("shipment-id", event.shipment.as_str());
    let accepted = caller.call(Kind::Write, Some(&id), ask).await.is_some();
    Some(Handed { id, digest: digest(line.as_bytes()), accepted, at_ms })
}
