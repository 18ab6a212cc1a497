//! `seawall spool`: what waits, why, and what people can do about it.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, Subcommand};
use seawall_core::spool::State;
use seawall_core::units::{format_duration, parse_duration};
use serde_json::{Value, json};

use super::read::{OfflineReader, Reader};
use super::{Ended, adopt, offline, show};

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall spool ls --state parked
  seawall spool show 17
  seawall spool retry 17 18
  seawall spool retry --parked                 every dead letter
  seawall spool discard 17 --reason \"a test order\"
  seawall spool drain --for-at-most 10m        before a node is taken away
  seawall spool adopt /mnt/old/seawall-data    the records of a node that will not come back

Exit status: 0 done; 1 refused, or something is left; 3 the node cannot be reached.";

/// Time between two looks of `drain`.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Records of one listing.
const LIST_MAX: usize = 1_000;

#[derive(Clone, Debug, Subcommand)]
pub(super) enum SpoolCommand {
    /// List records, oldest first
    Ls {
        #[command(flatten)]
        from: OfflineReader,
        /// Only in this state [default: all that have not left]
        #[arg(long, value_enum)]
        state: Option<ListedState>,
        /// At most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Show one record
    Show {
        /// Its number
        id: u64,
        #[command(flatten)]
        from: OfflineReader,
    },
    /// Deliver dead letters after all
    Retry {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        reader: Reader,
    },
    /// Give up dead letters or records that wait; the journal keeps the reason
    Discard {
        #[command(flatten)]
        which: Which,
        /// Why
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        reader: Reader,
    },
    /// Wait until nothing waits to be delivered
    Drain(DrainArgs),
    /// Take in the records of a node that is gone for good, from its data directory
    #[command(after_help = adopt::EXAMPLES)]
    Adopt(adopt::AdoptArgs),
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// Their numbers
    #[arg(value_name = "ID")]
    ids: Vec<u64>,
    /// Every dead letter
    #[arg(long)]
    parked: bool,
}

#[derive(Args, Clone, Debug)]
pub(super) struct DrainArgs {
    /// Give up waiting after this long [default: never]
    #[arg(long, value_name = "DURATION", value_parser = |text: &str| parse_duration(text).map_err(|error| error.to_string()))]
    for_at_most: Option<Duration>,
    #[command(flatten)]
    reader: Reader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ListedState {
    /// Waits for its turn
    Waiting,
    /// Is being delivered
    Leased,
    /// Dead letter
    Parked,
}

impl ListedState {
    fn state(self) -> State {
        match self {
            Self::Waiting => State::Waiting,
            Self::Leased => State::Leased,
            Self::Parked => State::Parked,
        }
    }
}

pub(super) async fn run(command: &SpoolCommand) -> anyhow::Result<Ended> {
    match command {
        SpoolCommand::Ls { from, state, limit } => {
            let (state, limit) = (state.map(ListedState::state), usize::from(*limit));
            let answer = match from.stopped() {
                Some(stopped) => offline::spool(&stopped, state, limit).await?,
                None => {
                    let state = state.map(|state| format!("state={}&", state.name())).unwrap_or_default();
                    from.reader.client()?.get(&format!("/api/spool?{state}limit={limit}")).await?
                }
            };
            from.reader.print(&answer, show::spool)
        }
        SpoolCommand::Show { id, from } => {
            let answer = match from.stopped() {
                Some(stopped) => offline::record(&stopped, *id).await?,
                None => from.reader.client()?.get(&format!("/api/spool/{id}")).await?,
            };
            from.reader.print(&answer, show::record)
        }
        SpoolCommand::Retry { which, reader } => {
            each(which, reader, "retry", &Value::Null, "waits for delivery again").await
        }
        SpoolCommand::Discard { which, reason, reader } => {
            each(which, reader, "discard", &json!({ "reason": reason }), "is given up").await
        }
        SpoolCommand::Drain(args) => drain(args).await,
        SpoolCommand::Adopt(args) => adopt::run(args).await,
    }
}

/// Does the same with each record: with one as the node answers it, with several by a list of what was done. The first
/// refusal of several is told and does not keep the others from their turn.
async fn each(which: &Which, reader: &Reader, what: &str, body: &Value, then: &str) -> anyhow::Result<Ended> {
    let client = reader.client()?;
    let call = async |id: u64| client.post(&format!("/api/spool/{id}/{what}"), body).await;
    if let [id] = which.ids[..] {
        let answer = call(id).await?;
        return reader.print(&answer, |_| format!("record {id} {then}\n"));
    }
    let (mut done, mut refused, mut first_refusal) = (0_u64, 0_u64, None);
    let mut pages = Pages { given: which.ids.clone(), parked: which.parked, after: 0 };
    loop {
        let ids = pages.next(&client).await?;
        if ids.is_empty() {
            break;
        }
        for id in ids {
            match call(id).await {
                Ok(_) => done += 1,
                Err(error @ super::client::CallError::Refused { .. }) => {
                    refused += 1;
                    first_refusal.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    let answer = json!({ "done": done, "refused": refused });
    reader.print(&answer, |_| format!("{done} {}: each {then}\n", if done == 1 { "record" } else { "records" }))?;
    match first_refusal {
        Some(error) => anyhow::bail!("{refused} of {}: {error}", done + refused),
        None => Ok(Ended::Well),
    }
}

/// The records to do something with: those named, or the dead letters there are, each once.
struct Pages {
    given: Vec<u64>,
    parked: bool,
    /// The highest number seen.
    after: u64,
}

impl Pages {
    async fn next(&mut self, client: &super::client::Client) -> anyhow::Result<Vec<u64>> {
        if !self.parked {
            return Ok(std::mem::take(&mut self.given));
        }
        let after = self.after;
        let answer = client.get(&format!("/api/spool?state=parked&after={after}&limit={LIST_MAX}")).await?;
        let listed = answer["records"].as_array().into_iter().flatten().filter_map(|record| record["id"].as_u64());
        let ids: Vec<u64> = listed.collect();
        self.after = ids.last().copied().unwrap_or(self.after);
        Ok(ids)
    }
}

async fn drain(args: &DrainArgs) -> anyhow::Result<Ended> {
    let client = args.reader.client()?;
    let mut waited = Duration::ZERO;
    let mut shown = None;
    loop {
        let status = client.get("/api/status").await?;
        let depth = |key: &str| status["spool"][key].as_u64().unwrap_or(0);
        let (left, parked) = (depth("waiting") + depth("leased"), depth("parked"));
        let over = args.for_at_most.is_some_and(|limit| waited >= limit);
        if left == 0 || over {
            let answer = json!({ "left": left, "parked": parked });
            args.reader.print(&answer, |_| drained(left, parked, waited))?;
            return Ok(if left == 0 { Ended::Well } else { Ended::Found });
        }
        if shown.replace(left) != Some(left) && io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r{left} to deliver        \r");
        }
        tokio::time::sleep(LOOK_EVERY).await;
        waited += LOOK_EVERY;
    }
}

fn drained(left: u64, parked: u64, waited: Duration) -> String {
    let mut text = match left {
        0 => "nothing waits to be delivered\n".to_owned(),
        _ => format!("{left} still to deliver after {}; `seawall status` says why\n", format_duration(waited)),
    };
    if parked > 0 {
        text += &format!("{parked} dead letters stay until somebody decides: `seawall spool ls --state parked`\n");
    }
    text
}
