//! `seawall spool adopt`: moves the records of a node that is gone for good to one that runs.
//!
//! Its records are in its data directory, or in the replica it kept; the latter is first fenced, so that the node
//! writes no more, and copied into a directory of this machine.
//!
//! A batch is read from the old directory, sent, and only then marked there as handed over, first in the old node's
//! ledger, then in its spool, with the number each record has at its new node. Cut short at any point, the same command
//! goes on: what was sent and not marked is known by its key. Until all is done the directory says whose heir it has,
//! and no other node is given any of it.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use seawall_core::id::RecordId;
use seawall_core::journal::{Draft, Kind};
use seawall_store::{Inherited, OnDamage, OpenError, Opened, Orphan, RealDisk, SealKeys, Store, StoreOptions};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{Client, encode};
use super::offline::open_as_named;
use super::read::{Reader, configured_key_file, configured_store};
use super::{CONFIG_FILE, Ended};
use crate::book::Book;
use crate::clock::RealClock;
use crate::config::StoreConfig;
use crate::lifecycle::read_seal_keys;
use crate::replica;

pub(super) const EXAMPLES: &str = "\
The node that the directory belongs to must not run. Dead letters stay dead letters. In the directory every record is
marked as handed over with the number it has at its new node, so that it is not delivered twice should the old node start
again. Until all is done the directory says which node takes it in (ADOPTER), and no other is given any of it. A record that is refused stays, with all that stand behind it in its row; the others go on, and the same command
later takes up what is left. The records are on the new node's ledger from then on, under the numbers they have; in the old
one, which stays in its directory (`seawall ledger --data DIR`), they are handed over.

Examples:
  seawall spool adopt /mnt/old/seawall-data
  seawall spool adopt ./seawall-data-b --admin http://10.0.1.5:9900
  seawall spool adopt --replica us-west-1      its disk is gone; ./seawall.yaml names the NATS servers

Exit status: 0 all taken in; 1 something is left, or was refused; 3 the node cannot be reached.";

/// Records of one batch.
const BATCH_RECORDS: usize = 64;
/// A batch is sent when it has so many bytes.
const BATCH_BYTES: usize = 8 << 20;

#[derive(Args, Clone, Debug)]
pub(super) struct AdoptArgs {
    /// The data directory of the node that is gone
    #[arg(required_unless_present = "replica")]
    dir: Option<PathBuf>,
    /// The name of the node that is gone: from what it left in the replica (`store.url` of ./seawall.yaml)
    #[arg(long, value_name = "NODE", conflicts_with_all = ["dir", "quarantine", "although_begun"])]
    replica: Option<String>,
    /// Go on with what can be saved if the directory is damaged
    #[arg(long)]
    quarantine: bool,
    /// Although another node has begun to take it in: one that is gone for good. Adopt that one's directory as well,
    /// and here: what it had taken in and not marked yet is then known by its keys, and not delivered twice
    #[arg(long)]
    although_begun: bool,
    /// The keys its records are sealed with [default: `store.key_file` of ./seawall.yaml]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    reader: Reader,
}

/// What came of it.
#[derive(Debug, Default)]
struct Done {
    adopted: u64,
    /// Were there already, under the same key.
    already: u64,
    /// Why it ended early.
    refusal: Option<String>,
    left: u64,
}

pub(super) async fn run(args: &AdoptArgs) -> anyhow::Result<Ended> {
    let client = args.reader.client()?;
    let adopter = client.get("/api/status").await?["node"].as_str().unwrap_or("another node").to_owned();
    let key_file = args.key_file.clone().or_else(configured_key_file);
    let keys = key_file.as_deref().map(read_seal_keys).transpose()?;
    let (done, owner) = match (&args.replica, &args.dir) {
        (Some(owner), _) => (from_replica(&client, owner, &adopter, keys).await?, owner.clone()),
        (None, Some(dir)) => from_directory(&client, dir, args, &adopter, keys).await?,
        (None, None) => bail!("which node? name its data directory, or `--replica NODE`"),
    };
    let answer = json!({
        "from": owner, "to": adopter, "adopted": done.adopted, "already": done.already, "left": done.left,
        "error": done.refusal,
    });
    args.reader.print(&answer, |_| told(&done, &owner, &adopter))?;
    match done.refusal {
        Some(refusal) => bail!("{} records stay where they are: {refusal}", done.left),
        None => Ok(Ended::Well),
    }
}

async fn from_directory(
    client: &Client,
    dir: &Path,
    args: &AdoptArgs,
    adopter: &str,
    keys: Option<SealKeys>,
) -> anyhow::Result<(Done, String)> {
    if !dir.join("META").is_file() {
        bail!("`{}` is not the data directory of a node", dir.display());
    }
    let (opened, owner) = open(dir, args.quarantine, keys)?;
    if let Some(first) = seawall_store::adopter(&RealDisk, dir).filter(|first| first != adopter) {
        if !args.although_begun {
            bail!(
                "`{first}` has begun to take in what `{}` holds, and may have records that are not marked there: repeat the \
                 command with `{first}`; if that node is gone for good adopt its own directory too, and this one with \
                 `--although-begun`",
                dir.display(),
            );
        }
        seawall_store::end_adoption(&RealDisk, dir)?;
    }
    seawall_store::begin_adoption(&RealDisk, dir, adopter)?;
    let done = move_from(opened, client, &owner, adopter).await?;
    if done.left == 0 {
        seawall_store::end_adoption(&RealDisk, dir)?;
    }
    Ok((done, owner))
}

/// Moves what an open store holds, and closes it.
async fn move_from(opened: Opened<RealDisk>, client: &Client, owner: &str, adopter: &str) -> anyhow::Result<Done> {
    let Opened { store, engine, ledger_records, .. } = opened;
    let threads = engine.spawn_threads().context("cannot start the store's threads")?;
    let moved = async {
        let book = Book::look(&store, &ledger_records, owner).await.context("the old node's ledger cannot be read")?;
        move_all(&store, &book, client, owner, adopter).await
    };
    let moved = moved.await;
    store.close().await;
    drop(store);
    threads.join();
    moved
}

/// A folder that is removed when it is no longer needed, however that comes.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a folder that is no longer needed stays");
        }
    }
}

async fn from_replica(client: &Client, owner: &str, adopter: &str, keys: Option<SealKeys>) -> anyhow::Result<Done> {
    if owner == adopter {
        bail!("`{owner}` runs, and delivers its records itself");
    }
    let Some(StoreConfig { path, replica: Some(config), packs, record_bytes_max, .. }) = configured_store() else {
        bail!("`./{CONFIG_FILE}` names no NATS servers: run this where the configuration with `store.url` lies");
    };
    let mut inherited = Inherited::look(replica::options(&config, owner)?, keys.as_ref(), packs).await?;
    if inherited.is_empty() {
        bail!("the replica never heard of a node `{owner}`");
    }
    let clock = RealClock::new();
    if inherited.is_present(&clock).await? {
        bail!("`{owner}` is there, and delivers its records itself: stop it first");
    }
    // Drawn before anything is copied: what the node would write from now on is refused, and it stops.
    inherited.fence(&format!("adopted by {adopter}")).await?;
    let options =
        StoreOptions { seal_keys: keys, record_bytes_max, ..StoreOptions::new(scratch(&path, owner)?, owner) };
    let work = copy_and_move(&inherited, client, adopter, options, &clock);
    let done = inherited.alone(adopter, &clock, work).await??;
    if done.left == 0 {
        inherited.clear().await?;
    }
    Ok(done)
}

/// Beside our own data, where payloads may lie; nobody else can look into it. What an earlier run left there goes.
fn scratch(data: &Path, owner: &str) -> anyhow::Result<PathBuf> {
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push(format!(".adopt-{owner}"));
    let dir = data.with_file_name(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.with_context(|| format!("cannot make `{}`", dir.display()))?;
    Ok(dir)
}

async fn copy_and_move(
    inherited: &Inherited,
    client: &Client,
    adopter: &str,
    options: StoreOptions,
    clock: &RealClock,
) -> anyhow::Result<Done> {
    let (_folder, owner) = (Scratch(options.dir.clone()), options.node.clone());
    let options = StoreOptions { spool_bytes_max: u64::MAX, ..options };
    let secret = crate::lifecycle::entropy()?;
    let mut opened = Store::open(RealDisk, options, clock.clone(), || secret)?;
    inherited.copy_into(&mut opened).await?;
    move_from(opened, client, &owner, adopter).await
}

fn told(done: &Done, owner: &str, adopter: &str) -> String {
    let already = if done.already > 0 { format!(", {} were there already", done.already) } else { String::new() };
    format!("{} records of `{owner}` are `{adopter}`'s to deliver now{already}\n", done.adopted)
}

fn open(dir: &Path, quarantine: bool, keys: Option<SealKeys>) -> anyhow::Result<(Opened<RealDisk>, String)> {
    let on_damage = if quarantine { OnDamage::Quarantine } else { OnDamage::Refuse };
    let options = |node: &str| {
        let seal_keys = keys.clone();
        StoreOptions { on_damage, seal_keys, spool_bytes_max: u64::MAX, ..StoreOptions::new(dir, node) }
    };
    match open_as_named(&RealDisk, options) {
        Ok(found) => Ok(found),
        Err(error @ OpenError::InUse { .. }) => bail!("{error}: its node runs, and delivers its records itself"),
        Err(error @ OpenError::Damaged { .. }) => bail!("{error}; `--quarantine` goes on with what can be saved"),
        Err(error) => match error.hint() {
            Some(hint) => bail!("{error}; {hint}"),
            None => Err(error.into()),
        },
    }
}

async fn move_all(store: &Store, book: &Book, client: &Client, owner: &str, adopter: &str) -> anyhow::Result<Done> {
    let (mut done, mut after, mut blocked) = (Done::default(), RecordId(0), BTreeSet::new());
    while let Some(page) = next_page(store, after).await? {
        after = page.last;
        // What stands behind a record that stays, stays too: it must not go before it.
        let mut batch: Vec<Orphan> = page.orphans;
        batch.retain(|orphan| orphan.record.lane().is_none_or(|lane| !blocked.contains(&lane)));
        if batch.is_empty() {
            continue;
        }
        let answer = send(client, owner, &batch).await?;
        let taken = mark(store, book, adopter, (&batch, &answer), &mut done).await?;
        let left = batch.iter().filter(|orphan| !taken.contains(&orphan.id));
        blocked.extend(left.filter_map(|orphan| orphan.record.lane()));
    }
    let depth = store.spool.depth();
    done.left = depth.waiting + depth.leased + depth.parked;
    if done.adopted + done.already > 0 {
        let draft = Draft::new(Kind::RecordsAdopted, format!("node:{adopter}"));
        store.journal.record(draft.with("records", done.adopted).with("already", done.already));
    }
    Ok(done)
}

/// Some of the oldest records above a number.
struct Page {
    orphans: Vec<Orphan>,
    last: RecordId,
}

async fn next_page(store: &Store, after: RecordId) -> anyhow::Result<Option<Page>> {
    let accounts = store.spool.list_above(after, None, BATCH_RECORDS).await?;
    let (mut orphans, mut bytes) = (Vec::new(), 0);
    for orphan in accounts.into_iter().filter_map(Orphan::of) {
        bytes += orphan.record.encoded_len();
        if bytes > BATCH_BYTES && !orphans.is_empty() {
            break;
        }
        orphans.push(orphan);
    }
    Ok(orphans.last().map(|orphan: &Orphan| orphan.id).map(|last| Page { orphans, last }))
}

async fn send(client: &Client, owner: &str, batch: &[Orphan]) -> Result<Value, super::client::CallError> {
    let mut body = Vec::new();
    for orphan in batch {
        let at = body.len();
        body.extend_from_slice(&[0; 4]);
        orphan.encode(&mut body);
        let length = u32::try_from(body.len() - at - 4).expect("a record is below 4 GiB");
        body[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
    client.post_bytes(&format!("/api/spool/adopt?node={}", encode(owner)), body.into()).await
}

/// What is safe at the new node is handed over here, with one sync for all. Which these are. The ledger comes first:
/// the spool may forget soon what it handed over, and its word, as long as it has one, is the later one.
async fn mark(
    store: &Store,
    book: &Book,
    adopter: &str,
    (batch, answer): (&[Orphan], &Value),
    done: &mut Done,
) -> anyhow::Result<BTreeSet<RecordId>> {
    let (mut taken, mut names) = (BTreeSet::new(), Vec::new());
    for record in answer["records"].as_array().into_iter().flatten() {
        let from = record["from"].as_u64().context("the node did not say which record it took")?;
        if let Some(error) = record["error"].as_str() {
            done.refusal.get_or_insert_with(|| format!("record {from}: {error}"));
            continue;
        }
        let id = record["id"].as_u64().context("the node did not say under which number it took a record")?;
        names.push((RecordId(from), format!("{adopter} as record {id}")));
        taken.insert(RecordId(from));
        if record["already"] == true { done.already += 1 } else { done.adopted += 1 }
    }
    let stamps = batch.iter().filter(|orphan| taken.contains(&orphan.id)).filter_map(|it| it.record.ledger.as_deref());
    book.handed_over(stamps).await.context("the old node's ledger cannot be written: repeat the command")?;
    let mut marks = JoinSet::new();
    for (from, to) in names {
        let spool = store.spool.clone();
        marks.spawn(async move { spool.hand_over(from, to).await });
    }
    while let Some(marked) = marks.join_next().await {
        marked.context("a mark was not made")??;
    }
    if let Some(failure) = store.failure() {
        bail!("the old directory cannot be written any more: {failure}; mend that and repeat the command");
    }
    if store.spool.depth().disk_full {
        bail!("the old directory's disk is full: free some space and repeat the command, or its node may send again");
    }
    Ok(taken)
}
