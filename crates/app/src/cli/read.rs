//! The readers: status and journal of a node, by its admin API or from a stopped node's directory.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use seawall_control::api::entry_json;
use seawall_core::journal::chain::Anchor;
use seawall_core::journal::{Entry, Kind, Seq};
use seawall_core::time::Wall;
use seawall_core::units::parse_duration;
use seawall_store::{Clock as _, Query};
use serde_json::{Value, json};

use super::client::{Client, encode};
use super::offline::Stopped;
use super::show::{self, Paint};
use super::{CONFIG_FILE, Ended, UsageError, offline, print, print_json};
use crate::clock::RealClock;
use crate::config::{self, ADMIN_ADDRESS, StoreConfig};
use crate::replica;

pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
  seawall status
  seawall status --admin http://10.0.1.5:9900 --json

Exit status: 0 the node is ready; 1 it is not; 3 it cannot be reached.";
pub(super) const JOURNAL_EXAMPLES: &str = "\
Examples:
  seawall journal --limit 20
  seawall journal --follow --kind breaker_opened
  seawall journal --subject route:events --json
  seawall journal --since 10m --until 5m
  seawall journal --cause 4711                 what that entry led to
  seawall journal --data ./seawall-data        a stopped node's
  seawall journal verify                       whether any entry was changed since it was written
  seawall journal export > journal.jsonl       all of it, an entry a line
  seawall journal export --replica us-west-1   of a node whose disk is gone

Exit status: 0 read, or the chain holds; 1 refused, or it does not hold; 3 the node cannot be reached.";
/// Entries of one page of an export.
const PAGE: usize = 1_000;
/// Time between two looks of `--follow`.
const FOLLOW_EVERY: Duration = Duration::from_millis(300);

/// Which node, and how it is shown.
#[derive(Args, Clone, Debug)]
pub(super) struct Reader {
    /// The node's admin API [default: `admin.address` of ./seawall.yaml, or http://127.0.0.1:9900]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// A file whose first line is the admin token [default: `admin.token_file` of ./seawall.yaml]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A reader that can do without a node.
#[derive(Args, Clone, Debug)]
pub(super) struct OfflineReader {
    #[command(flatten)]
    pub(super) reader: Reader,
    /// Read a stopped node's data directory instead of asking a node
    #[arg(long, value_name = "DIR", conflicts_with = "admin")]
    data: Option<PathBuf>,
    /// The keys its records are sealed with [default: `store.key_file` of ./seawall.yaml]
    #[arg(long, value_name = "FILE", requires = "data")]
    key_file: Option<PathBuf>,
}

impl OfflineReader {
    /// The stopped node, if it is one that is asked.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        let dir = self.data.clone()?;
        Some(Stopped { dir, key_file: self.key_file.clone().or_else(configured_key_file) })
    }
}

/// The key file of the configuration that lies here.
pub(super) fn configured_key_file() -> Option<PathBuf> {
    configured_store()?.key_file
}

/// What the configuration that lies here says of the store.
pub(super) fn configured_store() -> Option<StoreConfig> {
    let file = Path::new(CONFIG_FILE);
    let checked = file.is_file().then(|| config::load(file, &|name| std::env::var(name).ok()))?.ok()?;
    Some(checked.config?.store)
}

#[derive(Args, Clone, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    reader: Reader,
}

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct JournalArgs {
    #[command(subcommand)]
    command: Option<JournalCommand>,
    #[command(flatten)]
    from: OfflineReader,
    /// Go on with what happens from now on
    #[arg(long, conflicts_with_all = ["data", "since", "until"])]
    follow: bool,
    /// Only this kind, such as `breaker_opened`
    #[arg(long, value_parser = parse_kind)]
    kind: Option<Kind>,
    /// Only this subject, such as `route:events`
    #[arg(long)]
    subject: Option<String>,
    /// Only what this entry led to, directly
    #[arg(long, value_name = "SEQ")]
    cause: Option<u64>,
    /// Only from this time on, oldest first: `2026-11-25T13:00:00Z`, or how long ago: `10m`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Wall>,
    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Wall>,
    /// Only what follows this number, oldest first
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

#[derive(Clone, Debug, Subcommand)]
enum JournalCommand {
    /// Print every entry there is, oldest first, as a JSON object a line
    #[command(after_help = "\
Examples:
  seawall journal export > journal.jsonl
  seawall journal export --since 24h --kind breaker_opened
  seawall journal export --data ./seawall-data

Exit status: 0 all of it; 1 refused; 3 the node cannot be reached.")]
    Export {
        #[command(flatten)]
        from: OfflineReader,
        /// Of a node whose disk is gone, from what it left in the replica (`store.url` of ./seawall.yaml)
        #[arg(long, value_name = "NODE", conflicts_with_all = ["data", "admin"])]
        replica: Option<String>,
        /// Only this kind, such as `breaker_opened`
        #[arg(long, value_parser = parse_kind)]
        kind: Option<Kind>,
        /// Only from this time on: `2026-11-25T13:00:00Z`, or how long ago: `24h`
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        since: Option<Wall>,
        /// Only before this time
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        until: Option<Wall>,
    },
    /// Walk along the chain that ties the entries together, and tell every change
    #[command(after_help = "\
Every entry carries a keyed tag over the one before it and over its own bytes: what was changed, taken out, put in or
moved by anybody without the data directory's secret is found. Where retention took the oldest ones away, the journal's own
`journal_trimmed` vouches for the first that is left. What was done to the very last entries of a stopped node shows only
against a tag kept elsewhere: keep the `head` that is printed, renew it now and then, and give it as --anchor another time.

Examples:
  seawall journal verify
  seawall journal verify --data ./seawall-data --anchor 4711:8d0c...

Exit status: 0 the chain holds; 1 it does not, or it could not be read; 3 the node cannot be reached.")]
    Verify {
        #[command(flatten)]
        from: OfflineReader,
        /// An entry's number and tag, from an earlier `head`
        #[arg(long, value_name = "SEQ:TAG")]
        anchor: Option<Anchor>,
    },
}

/// A time as RFC 3339 writes it, or how long ago it was.
pub(super) fn parse_time(text: &str) -> Result<Wall, String> {
    let at = text.parse::<Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok());
    let ago = || parse_duration(text).ok().map(|ago| RealClock::new().wall().as_millis().saturating_sub(ago_ms(ago)));
    let told = || "expected a time such as `2026-11-25T13:00:00Z`, or how long ago, such as `10m`".to_owned();
    at.or_else(ago).map(Wall::from_millis).ok_or_else(told)
}

fn ago_ms(ago: Duration) -> u64 {
    u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    text.parse().map_err(|_| {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!("not a kind of entry; there are {}", known.join(", "))
    })
}

impl Reader {
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        self.client_in(Path::new(CONFIG_FILE))
    }

    /// What the command line says goes before what the configuration says.
    fn client_in(&self, config: &Path) -> anyhow::Result<Client> {
        let found = config.is_file().then(|| config::load(config, &|name| std::env::var(name).ok()));
        let admin = found.and_then(Result::ok).and_then(|checked| checked.config).map(|config| config.admin);
        let token_file = match (&self.token_file, &self.admin, &admin) {
            (Some(file), ..) => Some(file.clone()),
            // Another node's token is not for whoever `--admin` names.
            (None, None, Some(admin)) => admin.token_file.clone(),
            _ => None,
        };
        let token = token_file.as_deref().map(read_token).transpose()?;
        match (&self.admin, admin) {
            (Some(address), _) => {
                Client::new(address, token).map_err(|problem| UsageError(format!("--admin: {problem}")).into())
            }
            (None, Some(admin)) => Ok(Client::of(admin.address, token)),
            (None, None) => Client::new(ADMIN_ADDRESS, token).map_err(|problem| UsageError(problem).into()),
        }
    }

    pub(super) fn paint(&self) -> Paint {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Paint(wanted && std::io::stdout().is_terminal())
    }

    pub(super) fn print(&self, answer: &Value, text: impl FnOnce(&Value) -> String) -> anyhow::Result<Ended> {
        if self.json { print_json(answer) } else { print(&text(answer)) }
    }
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| anyhow::anyhow!("cannot read the token file `{}`: {error}", file.display()))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_string())
}

pub(super) async fn status(args: &StatusArgs) -> anyhow::Result<Ended> {
    let answer = args.reader.client()?.get("/api/status").await?;
    args.reader.print(&answer, |answer| show::status(answer, args.reader.paint()))?;
    Ok(if answer["ready"] == json!(true) { Ended::Well } else { Ended::Found })
}

pub(super) async fn journal(args: &JournalArgs) -> anyhow::Result<Ended> {
    match &args.command {
        Some(JournalCommand::Verify { from, anchor }) => return verify(from, *anchor).await,
        Some(JournalCommand::Export { from, replica, kind, since, until }) => {
            let query = Query { kind: *kind, since: *since, until: *until, limit: PAGE, ..Query::default() };
            return match replica {
                Some(node) => export_replica(node, &query).await,
                None => export(from, query).await,
            };
        }
        None => {}
    }
    let reader = &args.from.reader;
    if let Some(stopped) = args.from.stopped() {
        let query = Query {
            after: args.after.unwrap_or(0),
            kind: args.kind,
            subject: args.subject.clone(),
            cause: args.cause.map(Seq),
            since: args.since,
            until: args.until,
            limit: usize::from(args.limit),
            newest: args.after.is_none() && args.since.is_none(),
        };
        let answer = offline::journal(&stopped, query).await?;
        return reader.print(&answer, show::journal);
    }
    let client = reader.client()?;
    if args.follow {
        return follow(&client, args).await;
    }
    let answer = client.get(&journal_target(args, args.after, usize::from(args.limit))).await?;
    reader.print(&answer, show::journal)
}

/// Page by page, so that neither the node nor this program has all of it in memory.
async fn export(from: &OfflineReader, query: Query) -> anyhow::Result<Ended> {
    let tell = |entries: &[Value]| print(&entries.iter().map(|entry| format!("{entry}\n")).collect::<String>());
    if let Some(stopped) = from.stopped() {
        offline::journal_pages(&stopped, query, tell).await?;
        return Ok(Ended::Well);
    }
    let Query { kind, since, until, .. } = query;
    let kind = kind.map(|kind| format!("&kind={kind}")).unwrap_or_default();
    let time = |name, time: Option<Wall>| time.map(|time| format!("&{name}={}", time.rfc3339())).unwrap_or_default();
    let (since, until) = (time("since", since), time("until", until));
    let (client, mut after) = (from.reader.client()?, 0);
    loop {
        let answer = client.get(&format!("/api/journal?limit={PAGE}&after={after}{kind}{since}{until}")).await?;
        let entries = answer["entries"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(last) = entries.last() else { return Ok(Ended::Well) };
        after = last["seq"].as_u64().unwrap_or(u64::MAX);
        tell(entries)?;
    }
}

/// What a node left in the replica.
async fn export_replica(node: &str, query: &Query) -> anyhow::Result<Ended> {
    let Some(config) = configured_store().and_then(|store| store.replica) else {
        anyhow::bail!(
            "`./{CONFIG_FILE}` names no NATS servers: run this where the configuration with `store.url` lies"
        );
    };
    let mut told = Ok(Ended::Well);
    let tell = |entry: Entry| {
        if told.is_ok() && query.matches(&entry) {
            told = print(&format!("{}\n", entry_json(&entry)));
        }
    };
    seawall_store::read_journal(replica::options(&config, node)?, tell).await?;
    told
}

async fn verify(from: &OfflineReader, anchor: Option<Anchor>) -> anyhow::Result<Ended> {
    let answer = match from.stopped() {
        Some(stopped) => offline::verify(&stopped, anchor).await?,
        None => {
            let anchor = anchor.map(|anchor| format!("?anchor={anchor}")).unwrap_or_default();
            from.reader.client()?.get(&format!("/api/journal/verify{anchor}")).await?
        }
    };
    from.reader.print(&answer, show::verified)?;
    Ok(if answer["holds"] == true { Ended::Well } else { Ended::Found })
}

fn journal_target(args: &JournalArgs, after: Option<u64>, limit: usize) -> String {
    let mut target = format!("/api/journal?limit={limit}");
    if let Some(after) = after {
        target += &format!("&after={after}");
    }
    if let Some(kind) = args.kind {
        target += &format!("&kind={kind}");
    }
    if let Some(cause) = args.cause {
        target += &format!("&cause={cause}");
    }
    for (name, time) in [("since", args.since), ("until", args.until)] {
        target += &time.map(|time| format!("&{name}={}", time.rfc3339())).unwrap_or_default();
    }
    if let Some(subject) = &args.subject {
        target += &format!("&subject={}", encode(subject));
    }
    target
}

/// The newest entries, then every one that comes; as JSON one a line. Ends with the node, or when nobody reads.
async fn follow(client: &Client, args: &JournalArgs) -> anyhow::Result<Ended> {
    // The last number there is, whatever its kind: what follows is asked for from there.
    let newest = client.get("/api/journal?limit=1").await?;
    let mut last = args.after.unwrap_or_else(|| newest["entries"][0]["seq"].as_u64().unwrap_or(0));
    if args.after.is_none() {
        let answer = client.get(&journal_target(args, None, usize::from(args.limit))).await?;
        print_entries(&answer, args, &mut last)?;
    }
    loop {
        let answer = client.get(&journal_target(args, Some(last), 1_000)).await?;
        print_entries(&answer, args, &mut last)?;
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

fn print_entries(answer: &Value, args: &JournalArgs, last: &mut u64) -> anyhow::Result<()> {
    for entry in answer["entries"].as_array().into_iter().flatten() {
        *last = (*last).max(entry["seq"].as_u64().unwrap_or(0));
        print(&if args.from.reader.json { format!("{entry}\n") } else { show::entry(entry) })?;
    }
    Ok(())
}
