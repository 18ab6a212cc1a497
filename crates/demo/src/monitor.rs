//! The health monitor of the run before Seawall: asks the queue's `/healthz` every two seconds and raises an alert
//! after three failures in a row. It is what most teams have, and it is right every time it looks.

use std::path::PathBuf;
use std::time::Duration;

use crate::caller::{self, Called, Kind, LineLog};
use crate::web::{Ask, Client, Got};

const EVERY: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(1);
const FAILURES: u32 = 3;

/// The monitor's command line.
#[derive(clap::Args, Clone, Debug)]
pub struct MonitorArgs {
    /// Whose health
    #[arg(long, value_parser = caller::base)]
    pub target: String,
    /// Where alerts are written
    #[arg(long)]
    pub log: PathBuf,
}

/// Counts failures in a row.
#[derive(Debug, Default)]
struct Probe {
    failures: u32,
}

impl Probe {
    /// True when this check is the one that raises the alert.
    fn alerts(&mut self, well: bool) -> bool {
        self.failures = if well { 0 } else { self.failures + 1 };
        self.failures == FAILURES
    }
}

/// Runs until dropped.
///
/// # Errors
/// When the log cannot be opened.
pub async fn play(args: MonitorArgs) -> anyhow::Result<()> {
    let (client, log, mut probe) = (Client::default(), LineLog::open(&args.log)?, Probe::default());
    loop {
        let got = client.send_within(TIMEOUT, &args.target, &Ask::get("/healthz")).await;
        if probe.alerts(got.is_ok_and(|got: Got| got.is_success())) {
            log.append(&Called::mark(Kind::Alert).line());
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_are_one_alert() {
        let mut probe = Probe::default();
        let alerts: Vec<bool> =
            [true, false, false, true, false, false, false, false].map(|well| probe.alerts(well)).into();
        assert_eq!(alerts.iter().position(|alert| *alert), Some(6));
        assert_eq!(alerts.iter().filter(|alert| **alert).count(), 1);
    }
}
