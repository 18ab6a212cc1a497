//! The replicated engine at work: are its servers to be trusted, what did this node's former self leave there, and what
//! becomes of it, told in the journal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::spool::replica::SLACK_BYTES;
use seawall_core::units::format_size;
use seawall_store::{
    Inherited, Journal, OnDamage, Opened, Password, RealDisk, Replica, ReplicaError, ReplicaOptions, ReplicaState,
    ReplicaStatus, SealKeys, Store, is_new, mark_superseded, superseded, superseded_before,
};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::book;
use crate::cli::get_json;
use crate::clock::RealClock;
use crate::config::{AppConfig, Finding, ReplicaConfig, Severity};
use crate::lifecycle::{open_store, read_first_line, read_seal_keys};

/// How long a node with an empty directory waits for the servers that may know what it had.
const PATIENCE: Duration = Duration::from_secs(60);
const TRY_EVERY: Duration = Duration::from_secs(1);
/// A monitoring port answers at once, or not at all.
const MONITOR_WITHIN: Duration = Duration::from_secs(3);
/// How long a node that has a directory waits for the servers that may know better.
const ASK_FOR: Duration = Duration::from_secs(10);
/// How long a stop waits for the replica to have everything.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// How the store reaches the servers, for one node's records.
pub(crate) fn options(config: &ReplicaConfig, node: &str) -> anyhow::Result<ReplicaOptions> {
    let password = config.password_file.as_deref();
    let password = password.map(|path| read_first_line(path, "password", "password file")).transpose()?;
    if let Some(file) = &config.ca_file {
        std::fs::metadata(file).with_context(|| format!("cannot read `store.ca_file` `{}`", file.display()))?;
    }
    Ok(ReplicaOptions {
        servers: config.servers.clone(),
        copies: config.copies,
        node: node.into(),
        login: config.user.clone().map(|user| (user, Password(password.unwrap_or_default()))),
        ca_file: config.ca_file.clone(),
    })
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It syncs before it answers.
    Syncs,
    /// It does not: why it must not be trusted.
    No(String),
    /// It cannot keep anything, or not enough: why.
    Unfit(String),
    /// It cannot be asked.
    Unknown(String),
}

/// Asks every monitoring port.
pub(crate) async fn inspect(config: &ReplicaConfig, spool_bytes_max: u64) -> Vec<(String, Trust)> {
    let mut found = Vec::new();
    for monitor in &config.monitors {
        let asked = tokio::time::timeout(MONITOR_WITHIN, get_json(monitor, "/varz")).await;
        let trust = match asked {
            Err(_) => Trust::Unknown("no answer in time".into()),
            Ok(Err(reason)) => Trust::Unknown(reason),
            Ok(Ok(answer)) => judge(&answer, storage_for(spool_bytes_max)),
        };
        found.push((monitor.clone(), trust));
    }
    found
}

/// Half a million remembered keys.
const KEYS_BYTES: u64 = 80 << 20;

/// Bytes the stream may take for a spool of so many: twice what lives in it, and a little. Every node of the servers
/// needs as much.
fn storage_for(spool_bytes_max: u64) -> u64 {
    2 * (spool_bytes_max + KEYS_BYTES) + SLACK_BYTES
}

fn judge(varz: &Value, storage_bytes: u64) -> Trust {
    let Some(version) = varz["version"].as_str() else {
        return Trust::Unknown("what answers there is no NATS server".into());
    };
    let jetstream = &varz["jetstream"]["config"];
    if jetstream["store_dir"].as_str().is_none() {
        return Trust::Unfit(
            "it has no JetStream: start it with `jetstream { store_dir: ..., sync_interval: always }`".into(),
        );
    }
    if let Some(has_bytes) = jetstream["max_storage"].as_u64().filter(|has_bytes| *has_bytes < storage_bytes) {
        return Trust::Unfit(format!(
            "it has storage for {}, and this node's spool alone may take {} there: raise `max_file_store`, or lower \
             `store.spool_max`",
            format_size(has_bytes),
            format_size(storage_bytes)
        ));
    }
    if jetstream["sync_always"] == true {
        return Trust::Syncs;
    }
    let every = jetstream["sync_interval"].as_u64().map(Duration::from_nanos);
    let how = every.map_or("now and then".into(), |every| format!("every {every:?}"));
    let advice = match version_of(version) < (2, 10) {
        true => format!("version {version} cannot be told otherwise; 2.10 and later can: `sync_interval: always`"),
        false => "set `jetstream { sync_interval: always }`".into(),
    };
    Trust::No(format!(
        "it syncs {how}, and answers before that: a power cut of two zones loses what was accepted in between; {advice}"
    ))
}

fn version_of(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Everything that can be said of the servers from here, where the configuration names them. Nothing is changed there.
pub(crate) async fn examine(config: &ReplicaConfig, spool_bytes_max: u64, node: &str) -> Vec<Finding> {
    let [url, monitor] = config.places.as_ref();
    let told = |place: &Finding, severity, message| {
        let mut finding = place.clone();
        (finding.severity, finding.message) = (severity, message);
        finding
    };
    let mut findings = Vec::new();
    for (name, trust) in inspect(config, spool_bytes_max).await {
        let severity = if config.accepts_unsynced { Severity::Warning } else { Severity::Error };
        match trust {
            Trust::Syncs => {}
            Trust::No(why) => {
                let message = format!("the NATS server at `{name}` must not be trusted: {why}");
                let hint =
                    (severity == Severity::Error).then(|| "or take it all the same: `accept_unsynced: true`".into());
                let mut finding = told(monitor, severity, message);
                finding.hint = hint;
                findings.push(finding);
            }
            Trust::Unfit(why) => {
                findings.push(told(
                    monitor,
                    Severity::Error,
                    format!("the NATS server at `{name}` cannot be used: {why}"),
                ));
            }
            Trust::Unknown(why) => {
                let message = format!("whether the NATS server at `{name}` syncs cannot be seen from here: {why}");
                findings.push(told(monitor, Severity::Warning, message));
            }
        }
    }
    let looked = match options(config, node) {
        Ok(options) => seawall_store::examine_replica(options).await,
        Err(error) => Err(ReplicaError::Refused(format!("{error:#}"))),
    };
    match looked {
        Ok(()) => {}
        Err(ReplicaError::Lost(reason)) => findings.push(told(url, Severity::Warning, format!("from here, {reason}"))),
        Err(error) => findings.push(told(url, Severity::Error, error.to_string())),
    }
    findings
}

/// Refuses servers that lose what they have accepted; says which could not be asked.
async fn require_trust(config: &ReplicaConfig, spool_bytes_max: u64) -> anyhow::Result<()> {
    for (monitor, trust) in inspect(config, spool_bytes_max).await {
        match trust {
            Trust::Syncs => {}
            Trust::No(why) if config.accepts_unsynced => tracing::warn!(monitor, "accepted all the same: {why}"),
            Trust::No(why) => {
                bail!("the NATS server at `{monitor}` must not be trusted: {why}; or say `store.accept_unsynced: true`")
            }
            Trust::Unfit(why) => bail!("the NATS server at `{monitor}` cannot be used: {why}"),
            Trust::Unknown(why) => tracing::warn!(monitor, why, "whether this NATS server syncs cannot be seen"),
        }
    }
    Ok(())
}

/// What was opened, and what a former self had left in the replica.
pub(crate) struct OpenedHere {
    pub(crate) opened: Opened<RealDisk>,
    /// Entries taken over.
    pub(crate) taken_over: Option<u64>,
}

/// Opens the data directory; a new one takes over what the replica holds of this node.
pub(crate) async fn open(config: &AppConfig, clock: &RealClock) -> anyhow::Result<OpenedHere> {
    if let Some(reason) = superseded_before(&RealDisk, &config.store.path) {
        bail!(superseded_words(&reason, &config.store.path));
    }
    let Some(replica) = &config.store.replica else {
        return Ok(OpenedHere { opened: open_store(config, clock, 1)?, taken_over: None });
    };
    require_trust(replica, config.store.spool_bytes_max).await?;
    let dir = &config.store.path;
    if !is_new(&RealDisk, dir)? {
        return Ok(OpenedHere { opened: open_known(config, replica, clock).await?, taken_over: None });
    }
    let inherited = look(config, replica).await?;
    let node = &config.policy.node;
    if !inherited.is_empty() {
        tracing::info!(path = %dir.display(), "an empty directory: taking over what the replica holds of this node");
        // Its former self may be alive, in another place.
        if !inherited.is_fenced() && is_present(&inherited, clock).await? {
            bail!("another node named `{node}` is running: give each node a name of its own, or stop it first");
        }
    }
    inherited.begin(&RealDisk, dir)?;
    let mut opened = open_store(config, clock, inherited.epoch_min())?;
    let inherited = inherited.restamped_by(book::restamp(&opened.store.secret));
    let taken_over = inherited.take_over(&mut opened, &RealDisk, dir).await?;
    Ok(OpenedHere { opened, taken_over: (taken_over > 0).then_some(taken_over) })
}

/// Opens a directory that has been in use: if it still is this node's to deliver, and with what it lost to damage.
async fn open_known(
    config: &AppConfig,
    replica: &ReplicaConfig,
    clock: &RealClock,
) -> anyhow::Result<Opened<RealDisk>> {
    let dir = &config.store.path;
    let mut must_fill = Inherited::is_filling(&RealDisk, dir);
    if config.store.on_damage == OnDamage::Quarantine {
        Inherited::begin_fill(&RealDisk, dir)?;
    }
    let mut opened = open_store(config, clock, 1)?;
    // What was taken in by another while this node was away must not be delivered again from here.
    if let Some(reason) = ask_superseded(&opened.store, &options(replica, &config.policy.node)?).await {
        mark_superseded(&RealDisk, dir, &reason)?;
        bail!(superseded_words(&reason, dir));
    }
    must_fill |= opened.report.is_damaged();
    if must_fill {
        let filled = look(config, replica).await?.fill(&mut opened).await?;
        tracing::warn!(records = filled, "what this damaged directory had lost was taken from its replica");
    }
    Inherited::end_fill(&RealDisk, dir)?;
    Ok(opened)
}

/// Asks for a while whether the directory's records are still its own; after a power cut the servers may come later
/// than the node.
async fn ask_superseded(store: &Store, options: &ReplicaOptions) -> Option<String> {
    let begin = tokio::time::Instant::now();
    loop {
        match superseded(store, options.clone()).await {
            Ok(answer) => return answer,
            Err(ReplicaError::Lost(_)) if begin.elapsed() < ASK_FOR => tokio::time::sleep(TRY_EVERY).await,
            Err(error) => {
                tracing::warn!(%error, "the replica cannot be asked; what is here is delivered from here");
                return None;
            }
        }
    }
}

fn superseded_words(reason: &str, dir: &Path) -> String {
    format!(
        "{reason}; `{dir}` keeps what it held: `seawall spool adopt {dir}` at a node that runs takes in what it had accepted \
         since, and with an empty directory this node begins anew",
        dir = dir.display()
    )
}

/// Looks what the replica holds of this node; without an answer nobody knows what an empty directory had promised.
async fn look(config: &AppConfig, replica: &ReplicaConfig) -> anyhow::Result<Inherited> {
    let keys = seal_keys(config)?;
    let options = options(replica, &config.policy.node)?;
    let begin = tokio::time::Instant::now();
    loop {
        match Inherited::look(options.clone(), keys.as_ref(), config.store.packs).await {
            Ok(inherited) => return Ok(inherited),
            Err(ReplicaError::Lost(reason)) if begin.elapsed() < PATIENCE => {
                tracing::warn!(
                    reason,
                    "an empty directory, and the replica that may know what it held is not there yet"
                );
                tokio::time::sleep(TRY_EVERY).await;
            }
            Err(error @ ReplicaError::Lost(_)) => {
                return Err(error).context(
                    "the data directory is empty, and the replica that may know what it held cannot be asked; start again \
                     when it can, or without `store.url`",
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// True if the former self still runs. Servers that have just come back elect a leader of the registry last.
async fn is_present(inherited: &Inherited, clock: &RealClock) -> Result<bool, ReplicaError> {
    let begin = tokio::time::Instant::now();
    loop {
        match inherited.is_present(clock).await {
            Err(ReplicaError::Lost(reason)) if begin.elapsed() < PATIENCE => {
                tracing::warn!(reason, "whether another node of this name runs cannot be asked yet");
                tokio::time::sleep(TRY_EVERY).await;
            }
            answer => return answer,
        }
    }
}

fn seal_keys(config: &AppConfig) -> anyhow::Result<Option<SealKeys>> {
    config.store.key_file.as_deref().map(read_seal_keys).transpose()
}

/// Begins to keep the replica.
pub(crate) fn keep(config: &AppConfig, store: &Store, clock: &RealClock) -> anyhow::Result<Option<Replica>> {
    let Some(replica) = &config.store.replica else { return Ok(None) };
    let options = options(replica, &config.policy.node)?;
    let facts = BTreeMap::from([
        ("node", config.policy.node.clone()),
        ("zone", config.policy.zone.clone()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("admin", config.admin.address.to_string()),
        ("epoch", store.epoch.to_string()),
    ]);
    let keys = seal_keys(config)?;
    let kept = Replica::keep(
        store,
        options,
        keys.as_ref(),
        config.store.packs,
        config.store.journal_bytes_max,
        &facts,
        clock.clone(),
    );
    Ok(Some(kept.context("cannot start the replica's thread")?))
}

/// Tells the journal what becomes of the replica.
pub(crate) async fn tell(
    mut status: watch::Receiver<ReplicaStatus>,
    dir: PathBuf,
    journal: Journal,
    cause: Seq,
    stop: CancellationToken,
) {
    let mut told = ReplicaState::Comparing;
    let mut trouble = None;
    loop {
        let state = status.borrow_and_update().state.clone();
        if state.name() != told.name() {
            let draft = match &state {
                ReplicaState::Comparing => None,
                ReplicaState::Current => {
                    let held = status.borrow().held;
                    Some(
                        Draft::new(Kind::ReplicaCurrent, "replica").because(trouble.or(Some(cause))).with("held", held),
                    )
                }
                ReplicaState::Down { reason, .. } => {
                    Some(Draft::new(Kind::ReplicaDown, "replica").with("reason", reason.as_ref()))
                }
                ReplicaState::Superseded { reason } => {
                    if let Err(error) = mark_superseded(&RealDisk, &dir, reason) {
                        tracing::error!(%error, "the directory cannot be marked: do not start this node again");
                    }
                    Some(Draft::new(Kind::ReplicaRefused, "replica").because(trouble).with("reason", reason.as_ref()))
                }
                ReplicaState::Refused { reason } => {
                    Some(Draft::new(Kind::ReplicaRefused, "replica").because(trouble).with("reason", reason.as_ref()))
                }
            };
            let entry = draft.map(|draft| journal.record(draft));
            trouble = if state.reason().is_some() { entry } else { None };
            told = state;
        }
        let changed = stop.run_until_cancelled(status.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            return;
        }
    }
}

/// Waits a moment for the replica to have everything, then stops keeping it.
pub(crate) async fn stop(replica: Option<Replica>, store: &Store) {
    let Some(replica) = replica else { return };
    match tokio::time::timeout(FLUSH_WITHIN, store.spool.all_replicated()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "the replica does not have everything; it gets it after the next start")
        }
        Err(_) => tracing::warn!("the replica did not confirm everything in time; it gets it after the next start"),
    }
    // Its thread may be in the middle of a call.
    let _ = tokio::task::spawn_blocking(|| replica.stop()).await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_is_judged_by_what_it_says() {
        let server = |version: &str, config: Value| {
            judge(&json!({ "version": version, "jetstream": { "config": config } }), 1 << 30)
        };
        let told = |trust: Trust| match trust {
            Trust::Syncs => "syncs".to_owned(),
            Trust::No(why) | Trust::Unfit(why) | Trust::Unknown(why) => why,
        };
        assert_eq!(server("2.15.1", json!({ "store_dir": "/js", "sync_always": true })), Trust::Syncs);
        let lazy = told(server("2.15.1", json!({ "store_dir": "/js", "sync_interval": 120_000_000_000_u64 })));
        assert!(lazy.contains("syncs every 120s") && lazy.contains("`jetstream { sync_interval: always }`"), "{lazy}");
        let old = told(server("2.9.10", json!({ "store_dir": "/js" })));
        assert!(old.contains("now and then") && old.contains("2.9.10 cannot be told otherwise"), "{old}");
        assert!(told(server("2.15.1", json!({}))).contains("no JetStream"));
        let small =
            told(server("2.15.1", json!({ "store_dir": "/js", "sync_always": true, "max_storage": 1_000_000 })));
        assert!(small.contains("raise `max_file_store`"), "{small}");
        assert!(told(judge(&json!({}), 0)).contains("no NATS server"));
    }
}
