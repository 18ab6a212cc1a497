//! `seawall ledger`: the account, receipts from a file, and a sink that cannot report compared with what was accepted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use seawall_core::ledger::census::{Census, Member, MemberId, Salt};
use seawall_core::ledger::{Digest, RECEIPTS_MAX};
use seawall_core::time::Wall;
use serde_json::{Value, json};

use super::client::encode;
use super::read::{OfflineReader, Reader, parse_time};
use super::rows::Source;
use super::{Ended, UsageError, offline, show};
use crate::clock::RealClock;
use seawall_store::Clock as _;

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall ledger
  seawall ledger --seal --json
  seawall ledger --data ./seawall-data         a stopped node's
  seawall ledger import receipts.csv           what a sink received, from a file
  psql --csv -c \"select idempotency_key from events where ...\" |
    seawall ledger reconcile - --since 2026-11-25T12:00:00Z --until 2026-11-25T13:00:00Z

Exit status: 0 balanced or unknown so far; 1 imbalanced, or a difference; 3 the node cannot be reached.";

const IMPORT_HELP: &str = "\
FILE is CSV with a header line, or a JSON object a line, and has for each record that arrived: `record`, the number from
its `Seawall-Record` header (with or without the tag); `tag`, unless the header is whole; `digest`, the SHA-256 of the
body in hex, or `body`, the body itself as text. Each row is one arrival: a record that arrived twice is there twice.
A file is a sink of its own, named after what is in it: the same file again, or one that was cut off and repeated, changes
nothing. A node keeps the names of 1,024 sinks: a sink that reports every day reports by HTTP.

Examples:
  seawall ledger import receipts.csv
  seawall ledger import - < receipts.jsonl";

const RECONCILE_HELP: &str = "\
For a sink that does not keep Seawall's numbers but has the Idempotency-Key of every record it took. FILE is CSV with a
header line, or a JSON object a line, with one row for every record of the period, however it came. Both sides are
counted into sums that tell whether they are the same records, each as often, and if not, which ones, up to about 60
differences; with more, choose a shorter period.

What this proves: that the keys accepted in the period and the keys in the file are the same, each as often.
What it cannot: say whether the bodies are the same; say when a record arrived; tell a key in the file that was accepted
outside the period from one that never was. Records that wait in the spool, are dead letters, or were given up are missing
here, and are no loss: see `seawall spool ls` and `seawall ledger`. What is missing is named by the hash of its key, and by the key if `--sent` has it. Only what was
accepted since the node started, and in the last day, can be compared; a crash leaves a gap, and it is told. Times are
whole ten seconds for the last twenty minutes, and whole ten minutes before that; with others the command names the
nearest. In a fleet each node knows what it accepted itself: the file must have that node's records only.

Examples:
  seawall ledger reconcile rows.csv --since 2026-11-25T12:00:00Z --until 2026-11-25T13:00:00Z
  seawall ledger reconcile rows.csv --since ... --until ... --column order_id --sent outbox.csv
  psql --csv -c \"select idempotency_key from events where ...\" | seawall ledger reconcile - --since ... --until ...

Exit status: 0 no difference; 1 a difference, or it cannot be said; 3 the node cannot be reached.";

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct LedgerArgs {
    #[command(subcommand)]
    command: Option<LedgerCommand>,
    #[command(flatten)]
    from: OfflineReader,
    /// Seal every stream first: what is missing then is lost
    #[arg(long, conflicts_with = "data")]
    seal: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum LedgerCommand {
    /// Report what a sink received, from a file
    #[command(after_help = IMPORT_HELP)]
    Import(ImportArgs),
    /// Compare a sink that cannot report with what was accepted
    #[command(after_help = RECONCILE_HELP)]
    Reconcile(ReconcileArgs),
}

#[derive(Args, Clone, Debug)]
struct ImportArgs {
    /// The file; `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    reader: Reader,
}

#[derive(Args, Clone, Debug)]
struct ReconcileArgs {
    /// The file; `-` for standard input
    file: PathBuf,
    /// The stream: the name of the route
    #[arg(long, default_value = "events")]
    stream: String,
    /// From when on records were accepted: `2026-11-25T13:00:00Z`, or how long ago: `2h`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Wall,
    /// Until when [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Wall>,
    /// The column with the idempotency keys
    #[arg(long, default_value = "idempotency_key")]
    column: String,
    /// Keys that were sent, in the same column of another file: to name what is missing
    #[arg(long, value_name = "FILE")]
    sent: Option<PathBuf>,
    #[command(flatten)]
    reader: Reader,
}

pub(super) async fn run(args: &LedgerArgs) -> anyhow::Result<Ended> {
    match &args.command {
        Some(LedgerCommand::Import(args)) => return import(args).await,
        Some(LedgerCommand::Reconcile(args)) => return reconcile(args).await,
        None => {}
    }
    let reader = &args.from.reader;
    let answer = match args.from.stopped() {
        Some(stopped) => offline::ledger(&stopped).await?,
        None if args.seal => reader.client()?.post("/api/ledger/seal", &Value::Null).await?,
        None => reader.client()?.get("/api/ledger").await?,
    };
    reader.print(&answer, |answer| show::ledger(answer, reader.paint()))?;
    Ok(if answer["verdict"] == "imbalanced" { Ended::Found } else { Ended::Well })
}

async fn import(args: &ImportArgs) -> anyhow::Result<Ended> {
    let client = args.reader.client()?;
    let (mut receipts, mut chain) = (Vec::new(), Digest([0; 32]));
    Source::open(&args.file)?.rows()?.each(&["record"], &["tag", "digest", "body"], |_, cells| {
        let receipt = receipt(cells)?;
        chain = Digest::of(&[chain.0.as_slice(), receipt.to_string().as_bytes()].concat());
        receipts.push(receipt);
        Ok(())
    })?;
    // Named after what it says, so that the same receipts again are the same batches again.
    let sink = format!("file-{}", &chain.to_string()[..16]);
    for (batch, receipts) in (1_u64..).zip(receipts.chunks(BATCH.min(RECEIPTS_MAX))) {
        let body = json!({ "sink": sink, "batch": batch, "receipts": receipts });
        client.post("/api/ledger/receipts", &body).await?;
    }
    let answer = json!({ "sink": sink, "receipts": receipts.len() });
    args.reader.print(&answer, |_| format!("{} receipts of `{sink}` are on the books\n", receipts.len()))
}

/// Receipts of one call.
const BATCH: usize = 20_000;

fn receipt(cells: &[Option<String>]) -> anyhow::Result<Value> {
    let [Some(record), tag, digest, body] = cells else { bail!("there is no `record`") };
    let (record, tag) = match record.split_once(";tag=") {
        Some((record, of_record)) => (record, of_record.trim()),
        None => (record.as_str(), tag.as_deref().unwrap_or_default()),
    };
    if tag.is_empty() {
        bail!("record `{record}` has no tag: keep the whole `Seawall-Record` header, or a column `tag`");
    }
    let digest = match (digest.as_deref().filter(|digest| !digest.is_empty()), body) {
        (Some(digest), _) => digest.to_owned(),
        (None, Some(body)) => Digest::of(body.as_bytes()).to_string(),
        (None, None) => {
            bail!("record `{record}` has neither `digest` nor `body`: whether it arrived whole cannot be said")
        }
    };
    Ok(json!({ "record": record.trim(), "tag": tag, "digest": digest }))
}

async fn reconcile(args: &ReconcileArgs) -> anyhow::Result<Ended> {
    let client = args.reader.client()?;
    let until = args.until.unwrap_or_else(|| RealClock::new().wall());
    if until.since(args.since) < Duration::from_secs(1) {
        return Err(UsageError("`--until` must be later than `--since`".into()).into());
    }
    if args.file.as_os_str() == "-" && args.sent.as_ref().is_some_and(|sent| sent.as_os_str() == "-") {
        return Err(UsageError("standard input can be the file or `--sent`, not both".into()).into());
    }
    let (stream, since, until) = (encode(&args.stream), args.since.rfc3339(), until.rfc3339());
    let told = client.get(&format!("/api/ledger/census?stream={stream}&since={since}&until={until}")).await?;
    check_bounds(&told, [&since, &until])?;
    let salt = read_salt(&told)?;
    let accepted: Census =
        serde_json::from_value(told["census"].clone()).context("the node's census cannot be read")?;
    let (source, mut file) = (Source::open(&args.file)?, Census::default());
    let rows = each_key(args, &source, &salt, |_, member| file.count(&member))?;
    let differences = accepted.differences(&file);
    let names = names(args, &source, &salt, &differences.named)?;
    let list = |wanted: fn(&Named) -> bool| {
        let found = differences.named.iter().map(|(id, times)| Named::of(*id, *times, &names)).filter(wanted);
        found.map(|named| named.json()).collect::<Vec<Value>>()
    };
    let (missing, doubled, extra) = (
        list(|named| named.times > 0),
        list(|named| named.times < 0 && named.in_file > named.times.unsigned_abs()),
        list(|named| named.times < 0 && named.in_file <= named.times.unsigned_abs()),
    );
    let is_same = accepted.bag == file.bag;
    let is_known = told["is_complete"] == true;
    let answer = json!({
        "stream": args.stream, "since": told["since"], "until": told["until"], "is_complete": is_known,
        "accepted": accepted.bag.count, "rows": rows, "is_same": is_same, "all_named": differences.is_complete,
        "missing": missing, "duplicated": doubled, "extra": extra,
    });
    args.reader.print(&answer, show::reconciled)?;
    Ok(if is_same && is_known { Ended::Well } else { Ended::Found })
}

/// A file of another time than what it is compared with would differ at both ends, and mean nothing.
fn check_bounds(told: &Value, asked: [&str; 2]) -> anyhow::Result<()> {
    let bounds = [&told["since"], &told["until"]].map(|bound| bound.as_str().unwrap_or_default());
    if bounds.iter().zip(asked).all(|(told, asked)| same_second(told, asked)) {
        return Ok(());
    }
    let [since, until] = bounds;
    bail!(
        "the node keeps this time in periods that end elsewhere: export what was accepted from {since} to {until}, and \
         compare it with `--since {since} --until {until}`"
    );
}

fn same_second(one: &str, other: &str) -> bool {
    one.split('.').next() == other.split('.').next()
}

fn read_salt(told: &Value) -> anyhow::Result<Salt> {
    let text = told["salt"].as_str().context("the node did not tell its salt")?;
    let digest: Digest = text.parse().map_err(|_| anyhow::anyhow!("the node's salt cannot be read"))?;
    Ok(Salt(digest.0))
}

/// Shows every key of a file; tells how many there are.
fn each_key(
    args: &ReconcileArgs,
    source: &Source,
    salt: &Salt,
    mut key: impl FnMut(&str, Member),
) -> anyhow::Result<u64> {
    source.rows()?.each(&[args.column.as_str()], &[], |_, cells| {
        let text = cells[0].as_deref().unwrap_or_default().trim();
        if text.is_empty() {
            bail!("the key is empty; leave rows without a key out, or name another `--column`");
        }
        key(text, Member::of(salt, text));
        Ok(())
    })
}

/// Of the keys that differ, those that the files have: the key, and how often it is in the file.
type Names = BTreeMap<MemberId, (String, u64)>;

fn names(args: &ReconcileArgs, source: &Source, salt: &Salt, named: &[(MemberId, i64)]) -> anyhow::Result<Names> {
    let mut names: Names = BTreeMap::new();
    if named.is_empty() {
        return Ok(names);
    }
    let wanted: Vec<MemberId> = named.iter().map(|(id, _)| *id).collect();
    if let Some(sent) = &args.sent {
        each_key(args, &Source::open(sent)?, salt, |key, member| {
            if wanted.binary_search(&member.id()).is_ok() {
                names.entry(member.id()).or_insert_with(|| (key.to_owned(), 0));
            }
        })?;
    }
    each_key(args, source, salt, |key, member| {
        if wanted.binary_search(&member.id()).is_ok() {
            names.entry(member.id()).or_insert_with(|| (key.to_owned(), 0)).1 += 1;
        }
    })?;
    Ok(names)
}

/// A key that differs.
struct Named {
    id: MemberId,
    key: Option<String>,
    /// More often accepted than in the file if positive.
    times: i64,
    in_file: u64,
}

impl Named {
    fn of(id: MemberId, times: i64, names: &Names) -> Self {
        let (key, in_file) = names.get(&id).map_or((None, 0), |(key, in_file)| (Some(key.clone()), *in_file));
        Self { id, key, times, in_file }
    }

    fn json(&self) -> Value {
        json!({ "hash": self.id.to_string(), "key": self.key, "times": self.times.unsigned_abs() })
    }
}
