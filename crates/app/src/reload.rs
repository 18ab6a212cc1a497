//! Taking in the configuration anew, while the node runs: on SIGHUP, when the file has changed, or by the API.
//!
//! Picture somebody who reads the new house rules to the end before he hangs them up. The file is read and checked as
//! at a start, certificates and sockets included; if anything is wrong, or wants a restart, the old rules stay and it
//! is said aloud. Otherwise one entry of the journal tells what is different, and the next request goes by it. Not
//! here: what stays as it is in the gateway (`seat.rs` there), what is different in words (`core::policy::change`).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seawall_control::{BoxFuture, ConfigPort, NotReloaded, Reloaded};
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::policy::Policy;
use seawall_gateway::fault::CallFaults;
use seawall_gateway::{Changer, Gateway, StartError};
use seawall_store::Journal;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::book::Book;
use crate::config::{AppConfig, Finding, Report};
use crate::lifecycle::{entropy, fit_connections};
use crate::tls;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Changes named in the journal; more are counted.
const TOLD_MAX: usize = 12;

/// A configuration that cannot be taken.
#[derive(Debug)]
pub struct Unfit {
    /// Why, in one line.
    pub error: String,
    /// What is wrong in it, place by place.
    pub findings: Vec<Finding>,
}

impl Unfit {
    fn only(error: impl Into<String>) -> Self {
        Self { error: error.into(), findings: Vec::new() }
    }
}

/// Reads a configuration as a start would, with what the command line says on top.
pub type Read = dyn Fn() -> Result<(AppConfig, Report), Unfit> + Send + Sync;

/// Where a node's configuration comes from.
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// True to take it in by itself when it has changed.
    pub watched: bool,
    /// Reads it.
    pub read: Box<Read>,
}

/// What a node goes by, and how it changes.
pub(crate) struct Rules {
    origin: Option<Arc<Origin>>,
    changer: Changer,
    journal: Journal,
    book: Book,
    doors: tls::Shared,
    faults: CallFaults,
    /// One change at a time.
    now: tokio::sync::Mutex<Now>,
    digest: Mutex<String>,
}

struct Now {
    config: AppConfig,
    /// The entry about it.
    entry: Seq,
}

/// Why the file is read.
#[derive(Clone, Copy)]
enum Because {
    Signal,
    File,
    Asked,
}

impl Because {
    const fn name(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::File => "file",
            Self::Asked => "api",
        }
    }
}

impl Rules {
    pub(crate) fn new(
        origin: Option<Arc<Origin>>,
        (config, entry): (AppConfig, Seq),
        gateway: &Gateway,
        journal: Journal,
        book: Book,
        doors: tls::Shared,
        faults: CallFaults,
    ) -> Arc<Self> {
        let digest = Mutex::new(config.policy.digest.clone());
        let now = tokio::sync::Mutex::new(Now { config, entry });
        Arc::new(Self { origin, changer: gateway.changer(), journal, book, doors, faults, now, digest })
    }

    /// The configuration in force.
    pub(crate) async fn config(&self) -> AppConfig {
        self.now.lock().await.config.clone()
    }

    async fn take(&self, because: Because, dry_run: bool) -> Result<Reloaded, Unfit> {
        let mut now = self.now.lock().await;
        let taken = self.try_take(&mut now, because, dry_run).await;
        if let (Err(unfit), false) = (&taken, dry_run) {
            let report = Report::of(unfit.findings.clone());
            tracing::error!(
                because = because.name(),
                "the new configuration cannot be used; the old one stays in force: {}\n{report}",
                unfit.error
            );
            let draft = Draft::new(Kind::ConfigRefused, "config").because(Some(now.entry));
            self.journal.record(draft.with("because", because.name()).with("why", first_words(unfit)));
        }
        taken
    }

    async fn try_take(&self, now: &mut Now, because: Because, dry_run: bool) -> Result<Reloaded, Unfit> {
        let origin = self.origin.as_ref().ok_or_else(|| {
            Unfit::only("this node was started without a configuration file: there is nothing to take in anew")
        })?;
        let (mut config, report) = (origin.read)()?;
        // A decision for one start.
        config.store.on_damage = now.config.store.on_damage;
        let warnings: Vec<String> = report.without_audit().findings.iter().map(ToString::to_string).collect();
        fit_connections(&mut config, Some(now.config.policy.limits.connections_max));
        restart_wanted(&now.config, &config)?;
        let doors = self
            .doors
            .next(&config)
            .map_err(|findings| Unfit { error: "its certificates cannot be used".into(), findings })?;
        let mut changed = config.policy.changes_from(&now.config.policy);
        changed.extend(doors.changes());
        changed.extend((config.faults != now.config.faults).then(|| "faults".to_owned()));
        let digest = config.policy.digest.clone();
        if digest == now.config.policy.digest && changed.is_empty() {
            return Ok(Reloaded { digest, changed, warnings });
        }
        let policy = Arc::new(config.policy.clone());
        let prepared = self.changer.prepare(Arc::clone(&policy)).map_err(unfit_to_listen)?;
        if dry_run {
            return Ok(Reloaded { digest, changed, warnings });
        }
        let seed = entropy().map(u64::from_le_bytes).map_err(|error| Unfit::only(format!("{error:#}")))?;
        let streams = policy.routes.iter().filter(|route| route.spools()).map(|route| route.name.clone());
        if let Err(error) = self.book.count_also(streams).await {
            return Err(Unfit::only(format!("the ledger cannot count its new streams: {error}")));
        }
        let entry = self.journal.record(
            loaded(&policy, Some(&origin.file), now.entry)
                .with("because", because.name())
                .with("changed", told(&changed)),
        );
        // Before the next request: what lies there was placed under the rules that are gone.
        self.faults.allow(config.faults.clone(), Some(entry));
        self.changer.change(prepared, self.doors.take(doors), Some(entry), seed);
        tracing::info!(
            because = because.name(),
            digest,
            changed = changed.join("; "),
            "another configuration is in force"
        );
        self.digest.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&digest);
        *now = Now { config, entry };
        Ok(Reloaded { digest, changed, warnings })
    }

    /// Takes the file in when told to, and when it has changed and then stayed the same for a look.
    pub(crate) async fn follow(self: Arc<Self>, told: Arc<Notify>, stop: CancellationToken) {
        let watched = self.origin.as_ref().filter(|origin| origin.watched).map(|origin| origin.file.clone());
        let (mut known, mut before) = (look(watched.as_deref()), None);
        loop {
            let because = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = told.notified() => Some(Because::Signal),
                () = tokio::time::sleep(LOOK_EVERY) => None,
            };
            let seen = look(watched.as_deref());
            let has_settled = seen.is_some() && seen != known && seen == before;
            before = seen;
            let Some(because) = because.or(has_settled.then_some(Because::File)) else { continue };
            known = seen.or(known);
            if matches!(because, Because::Signal) {
                self.doors.look_now();
            }
            if let Ok(Reloaded { changed, warnings, .. }) = self.take(because, false).await {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                if changed.is_empty() {
                    tracing::info!(because = because.name(), "the configuration is as it was");
                }
            }
        }
    }
}

impl ConfigPort for Rules {
    fn digest(&self) -> String {
        self.digest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reload(&self, dry_run: bool) -> BoxFuture<'_, Result<Reloaded, NotReloaded>> {
        Box::pin(async move {
            self.take(Because::Asked, dry_run).await.map_err(|Unfit { error, findings }| NotReloaded {
                error,
                report: Report::of(findings.clone()).to_string(),
                findings: findings.iter().map(|it| serde_json::to_value(it).unwrap_or(Value::Null)).collect(),
            })
        })
    }
}

/// What a file holds, as a mark; nothing while it cannot be read.
fn look(file: Option<&Path>) -> Option<[u8; 32]> {
    std::fs::read(file?).ok().map(|bytes| Sha256::digest(bytes).into())
}

/// The entry about a configuration that comes into force.
pub(crate) fn loaded(policy: &Policy, file: Option<&Path>, cause: Seq) -> Draft {
    let draft = Draft::new(Kind::ConfigLoaded, "config").because(Some(cause)).with("digest", &policy.digest);
    match file.and_then(commit) {
        Some(commit) => draft.with("git", commit),
        None => draft,
    }
}

/// The commit a file is of, with a mark if it was changed since; nothing outside of a repository, or without `git`.
fn commit(file: &Path) -> Option<String> {
    let (folder, name) = (file.parent()?, file.file_name()?);
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).arg("--").arg(name).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["log", "-1", "--format=%H"]).filter(|commit| !commit.is_empty())?;
    let is_clean = git(&["status", "--porcelain"])?.is_empty();
    Some(if is_clean { commit } else { format!("{commit} and changes") })
}

fn told(changed: &[String]) -> String {
    let mut told = changed.iter().take(TOLD_MAX).map(String::as_str).collect::<Vec<_>>().join("; ");
    if changed.len() > TOLD_MAX {
        let _ = write!(told, "; and {} more", changed.len() - TOLD_MAX);
    }
    told
}

/// What the journal says of a configuration that was refused: the first mistake, and how many there are.
fn first_words(unfit: &Unfit) -> String {
    match unfit.findings.as_slice() {
        [] => unfit.error.clone(),
        [first, rest @ ..] => {
            let Finding { source, line, column, message, .. } = first;
            let more = if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
            format!("{source}:{line}:{column}: {message}{more}")
        }
    }
}

fn unfit_to_listen(error: StartError) -> Unfit {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        let _ = write!(text, ": {source}");
    }
    if let Some(hint) = error.hint() {
        let _ = write!(text, "; {hint}");
    }
    Unfit::only(text)
}

/// What holds for the life of a process.
fn restart_wanted(old: &AppConfig, new: &AppConfig) -> Result<(), Unfit> {
    let place = |config: &AppConfig| (config.policy.zone.clone(), config.policy.zones.clone());
    let different = [
        ("node", old.policy.node != new.policy.node),
        ("zone", place(old) != place(new)),
        ("store", old.store != new.store),
        ("admin", old.admin != new.admin),
        ("toxiproxy", old.toxiproxy != new.toxiproxy),
    ];
    let wanted: Vec<_> = different.iter().filter(|(_, differs)| *differs).map(|(key, _)| format!("`{key}`")).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let verb = if wanted.len() == 1 { "changes" } else { "change" };
    Err(Unfit::only(format!("{} {verb} only with a restart of the node", wanted.join(", "))))
}
