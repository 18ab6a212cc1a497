//! The carrier's quote API, with a rate limit that is in no documentation: a token bucket, and 429 without
//! `Retry-After` above it. Retries drink from the same bucket.
//!
//! The price depends on carrier and distance alone, so that the same question has the same answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::time::Instant;

use crate::web::{self, Answer, Call};

/// The carrier's command line.
#[derive(clap::Args, Clone, Debug)]
pub struct CarrierArgs {
    /// Where it serves
    #[arg(long)]
    pub listen: SocketAddr,
    /// Quotes per second it gives before it says 429
    #[arg(long, default_value_t = 150.0)]
    pub limit: f64,
}

/// Runs until dropped.
///
/// # Errors
/// When the port is taken.
pub async fn play(args: CarrierArgs) -> anyhow::Result<()> {
    let listener = web::bind(args.listen).await?;
    let carrier = Arc::new(Carrier::new(args.limit, Instant::now()));
    match web::serve(listener, move |call| std::future::ready(carrier.answer(&call, Instant::now()))).await {}
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// The carrier's state: its bucket.
#[derive(Debug)]
pub struct Carrier {
    per_second: f64,
    bucket: Mutex<Bucket>,
}

impl Carrier {
    /// A full bucket, worth a quarter of a second.
    #[must_use]
    pub fn new(per_second: f64, now: Instant) -> Self {
        Self { per_second, bucket: Mutex::new(Bucket { tokens: per_second / 4.0, filled: now }) }
    }

    /// Answers a quote, or 429.
    #[must_use]
    pub fn answer(&self, call: &Call, now: Instant) -> Answer {
        match (call.method.as_str(), call.path.as_str()) {
            ("GET", "/healthz") => Answer::new(200, "ok\n"),
            ("GET", "/quote") if self.admits(now) => quote(call),
            ("GET", "/quote") => Answer::new(429, "too many requests\n"),
            _ => Answer::new(404, "no such thing\n"),
        }
    }

    fn admits(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().expect("no panic under this lock");
        let earned = now.saturating_duration_since(bucket.filled).as_secs_f64() * self.per_second;
        bucket.tokens = (bucket.tokens + earned).min((self.per_second / 4.0).max(1.0));
        bucket.filled = now;
        let admits = bucket.tokens >= 1.0;
        bucket.tokens -= if admits { 1.0 } else { 0.0 };
        admits
    }
}

fn quote(call: &Call) -> Answer {
    let (Some(carrier), Some(distance)) = (call.parameter("carrier"), call.parameter("distance")) else {
        return Answer::new(400, "expected carrier and distance\n");
    };
    match distance.parse::<u32>() {
        Ok(km) => {
            let base = 390 + carrier.bytes().map(u32::from).sum::<u32>() % 97;
            Answer::json(&json!({"carrier": carrier, "price_cents": base + km * 11 / 2}))
        }
        Err(_) => Answer::new(400, "the distance is not a number\n"),
    }
}
