//! How the company calls others: the code one commonly writes in good faith, the same in both runs.
//!
//! A second of patience, up to three tries at once one after the other, and on to the next base address when a
//! connection cannot be made or breaks. 2xx is success; what was read is the answer. Behind Seawall only two command
//! line flags differ: the base addresses, and `--keyed`, which sends the business id as `Idempotency-Key`.
//! Beside that sits the measuring: every call (with all its tries) becomes a line of the call log, and counts as
//! answered as promised when a 2xx came, whole, within [`PROMISE`].

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use crate::clock;
use crate::web::{Ask, Client, Got, Lost};

/// How long one try may take.
pub const TRY_TIMEOUT: Duration = Duration::from_secs(1);
/// Tries, one right after the other.
pub const TRIES: u32 = 3;
/// What the company's own interface agreement says: an answer within two seconds.
pub const PROMISE: Duration = Duration::from_secs(2);

/// What a call was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A scanner's event to the queue.
    Write,
    /// Taking events from the queue.
    Lease,
    /// Telling the queue that they are done.
    Ack,
    /// A carrier's price.
    Quote,
    /// A prediction to the warehouse.
    Predict,
    /// Not a call: an event the predictor gave up.
    Drop,
    /// Not a call: the monitor raised an alert.
    Alert,
}

impl Kind {
    const NAMES: [(Self, &'static str); 7] = [
        (Self::Write, "write"),
        (Self::Lease, "lease"),
        (Self::Ack, "ack"),
        (Self::Quote, "quote"),
        (Self::Predict, "predict"),
        (Self::Drop, "drop"),
        (Self::Alert, "alert"),
    ];

    /// Its name in the call log.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// True for what a client asked and waited for.
    #[must_use]
    pub fn is_call(self) -> bool {
        !matches!(self, Self::Drop | Self::Alert)
    }
}

/// One line of the call log.
#[derive(Clone, Debug, PartialEq)]
pub struct Called {
    /// When it began, in milliseconds since the epoch.
    pub at_ms: u64,
    /// What for.
    pub kind: Kind,
    /// How long it took with all its tries, in milliseconds.
    pub took_ms: f64,
    /// Answered as promised.
    pub kept: bool,
    /// Tries made.
    pub tries: u32,
    /// The last status, 0 if none came.
    pub status: u16,
    /// The last answer was marked as reduced (`Seawall-Degraded`).
    pub degraded: bool,
}

impl Called {
    /// Something that is not a call, as a line of the log.
    #[must_use]
    pub fn mark(kind: Kind) -> Self {
        Self { at_ms: clock::now_ms(), kind, took_ms: 0.0, kept: false, tries: 0, status: 0, degraded: false }
    }

    /// Its line.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { at_ms, kind, took_ms, kept, tries, status, degraded } = self;
        format!("{at_ms},{},{took_ms:.2},{kept},{tries},{status},{degraded}\n", kind.name())
    }
}

impl FromStr for Called {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let fields: Vec<&str> = line.split(',').collect();
        let [at_ms, kind, took_ms, kept, tries, status, degraded] = fields[..] else {
            anyhow::bail!("not a line of the call log: `{line}`");
        };
        let kind = Kind::NAMES.iter().find(|(_, name)| *name == kind).context("unknown kind of call")?.0;
        Ok(Self {
            at_ms: at_ms.parse()?,
            kind,
            took_ms: took_ms.parse()?,
            kept: kept.parse()?,
            tries: tries.parse()?,
            status: status.parse()?,
            degraded: degraded.parse()?,
        })
    }
}

/// Lines appended to a file, each with one write, so that a killed process leaves whole lines.
#[derive(Clone, Debug)]
pub struct LineLog(Arc<Mutex<File>>);

impl LineLog {
    /// Appends to this file; it is made if need be.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(Arc::new(Mutex::new(file.with_context(|| format!("cannot open `{}`", path.display()))?))))
    }

    /// Appends a line that ends with its line feed. A full disk ends the measuring, not the company's work.
    pub fn append(&self, line: &str) {
        let _ = self.0.lock().expect("no panic under this lock").write_all(line.as_bytes());
    }
}

/// Calls others for one process.
#[derive(Clone, Debug)]
pub struct Caller {
    client: Client,
    bases: Arc<Vec<String>>,
    log: LineLog,
    keyed: bool,
}

impl Caller {
    /// Calls these base addresses (`host:port`), the first one first.
    #[must_use]
    pub fn new(client: Client, bases: Vec<String>, log: LineLog, keyed: bool) -> Self {
        Self { client, bases: Arc::new(bases), log, keyed }
    }

    /// True if business ids go out as `Idempotency-Key`.
    #[must_use]
    pub fn is_keyed(&self) -> bool {
        self.keyed
    }

    /// One call with all its tries. `key` is the business id of what is written.
    pub async fn call(&self, kind: Kind, key: Option<&str>, ask: Ask) -> Option<Got> {
        let ask = match key {
            Some(key) if self.keyed => ask.with("idempotency-key", key),
            _ => ask,
        };
        let (at_ms, started) = (clock::now_ms(), Instant::now());
        let (mut tries, mut last) = (0, None);
        while tries < TRIES && !last.as_ref().is_some_and(Got::is_success) {
            tries += 1;
            last = tokio::time::timeout(TRY_TIMEOUT, self.attempt(&ask)).await.ok().and_then(Result::ok);
        }
        let took = started.elapsed();
        let success = last.as_ref().is_some_and(Got::is_success);
        self.log.append(
            &Called {
                at_ms,
                kind,
                took_ms: took.as_secs_f64() * 1_000.0,
                kept: success && took <= PROMISE && last.as_ref().is_some_and(|got| got.whole),
                tries,
                status: last.as_ref().map_or(0, |got| got.status),
                degraded: last.as_ref().is_some_and(|got| got.header("seawall-degraded").is_some()),
            }
            .line(),
        );
        last.filter(|_| success)
    }

    /// One try: the first base address that can be reached.
    async fn attempt(&self, ask: &Ask) -> Result<Got, Lost> {
        let mut result = self.client.send(&self.bases[0], ask).await;
        for base in self.bases.iter().skip(1) {
            if result.is_ok() {
                break;
            }
            result = self.client.send(base, ask).await;
        }
        result
    }
}

/// Takes `http://host:port` apart on the command line.
///
/// # Errors
/// When it is something else.
pub fn base(url: &str) -> Result<String, String> {
    let host = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => Ok(host.into()),
        _ => Err(format!("`{url}` is not `http://host:port`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_comes_back_from_its_line() {
        let called =
            Called { at_ms: 5, kind: Kind::Quote, took_ms: 1.25, kept: true, tries: 2, status: 200, degraded: false };
        assert_eq!(called.line().trim_end().parse::<Called>().unwrap(), called);
        for bad in ["", "1,quote,1,true,1,200", "1,walk,1,true,1,200,false", "x,quote,1,true,1,200,false"] {
            assert!(bad.parse::<Called>().is_err(), "{bad}");
        }
        let mark = Called::mark(Kind::Alert);
        assert!(!mark.kind.is_call() && Kind::Write.is_call());
        assert_eq!(mark.line().trim_end().parse::<Called>().unwrap(), mark);
    }

    #[test]
    fn bases_are_hosts_with_a_port() {
        assert_eq!(base("http://127.0.0.1:80/"), Ok("127.0.0.1:80".into()));
        assert_eq!(base("localhost:1"), Ok("localhost:1".into()));
        assert!(base("http://x").is_err() && base(":80").is_err() && base("x:y").is_err());
    }

    #[test]
    fn a_log_needs_its_folder() {
        assert!(LineLog::open(Path::new("no/such/folder/log")).is_err());
    }
}
