//! `seawall.yaml`: read, checked as a whole, resolved to a [`Policy`].
//!
//! Picture a proof reader who never stops at the first mistake: text → tree with positions (`tree.rs`) → sections and
//! fields that tell what is wrong with them (`reader.rs`) → the policy (`policies.rs`, `upstreams.rs`, `listeners.rs`,
//! `node.rs`). A key that would have no effect is refused, because silence would be taken for consent.
//!
//! Not here: files and environment variables are arguments of [`check`]; only [`load`] opens the file it is given.

mod address;
mod finding;
mod listeners;
mod node;
mod placement;
mod policies;
mod quick;
mod reader;
mod replica;
mod suggest;
mod tls;
mod tree;
mod upstreams;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_core::fault::book::Caps;
use seawall_core::policy::Policy;
use seawall_core::whatif::rehearsal::rehearse;
use seawall_store::OnDamage;
use sha2::{Digest as _, Sha256};

pub use finding::{Finding, Report, Severity, Spot};
pub use quick::{Quick, admin_address, quick};
pub use replica::ReplicaConfig;
pub use tls::{FileAt, ListenerTls, PairAt, TlsConfig, UpstreamTls};
pub use tree::Environment;

pub(crate) use finding::Source;
pub(crate) use policies::parse_rate_limit;
pub(crate) use reader::hint_of;
pub(crate) use tls::pin_text;

use reader::{Drill, Field, Keys, Reader};

/// A configuration file longer than this is not one.
const FILE_BYTES_MAX: usize = 4 << 20;

/// Everything a node needs to know.
#[derive(Clone, Debug)]
pub struct AppConfig {
    /// What the gateway should do.
    pub policy: Policy,
    /// Where and how much is remembered.
    pub store: StoreConfig,
    /// Where people steer.
    pub admin: AdminConfig,
    /// The files of what speaks TLS.
    pub tls: TlsConfig,
    /// Faults by Toxiproxy's API, where they are wanted.
    pub toxiproxy: Option<ToxiproxyConfig>,
    /// How far faults may go, where they are allowed.
    pub faults: Option<Caps>,
}

/// Toxiproxy's API inside the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToxiproxyConfig {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// The spool and the journal on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The directory; relative to where the node was started.
    pub path: PathBuf,
    /// Bytes of records waiting to be delivered.
    pub spool_bytes_max: u64,
    /// Bytes of journal; the oldest entries go first.
    pub journal_bytes_max: u64,
    /// How long entries of the journal are kept, where there is room.
    pub journal_keep: Option<Duration>,
    /// Bytes of one record, head and body.
    pub record_bytes_max: u64,
    /// A file with the keys that records are sealed with at rest.
    pub key_file: Option<PathBuf>,
    /// Whether records are packed.
    pub packs: bool,
    /// The replicated engine, if there is one.
    pub replica: Option<ReplicaConfig>,
    /// What to do about damage; never said by a file, as a person decides it for one start.
    pub on_damage: OnDamage,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            path: "./seawall-data".into(),
            spool_bytes_max: 1 << 30,
            journal_bytes_max: 256 << 20,
            journal_keep: None,
            record_bytes_max: 1 << 20,
            key_file: None,
            packs: false,
            replica: None,
            on_damage: OnDamage::Refuse,
        }
    }
}

/// The admin API and the dashboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// A file whose first line must be sent along with every call that is not a probe.
    pub token_file: Option<PathBuf>,
}

/// Where the admin API listens unless told otherwise.
pub const ADMIN_ADDRESS: &str = "127.0.0.1:9900";

impl Default for AdminConfig {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 9900)), token_file: None }
    }
}

/// What became of a text.
#[derive(Clone, Debug)]
pub struct Checked {
    /// `None` if there is an error in the report.
    pub config: Option<AppConfig>,
    /// Everything found.
    pub report: Report,
    drills: Vec<Drill>,
}

impl Checked {
    /// Plays every policy that says what traffic it expects, and adds to the report what comes of it.
    #[must_use]
    pub fn rehearsed(mut self) -> Self {
        let place = |finding: &Finding| (finding.line, finding.column);
        let audits = self.report.findings.iter().filter(|finding| finding.severity == Severity::Audit);
        let blamed: Vec<_> = audits.map(place).collect();
        for drill in self.drills.drain(..) {
            let Some((may_repeat, route)) = &drill.followed else { continue };
            for line in rehearse(&drill.guards, &drill.expects, *may_repeat, route) {
                let of = |key| drill.places.iter().find(|(known, _)| *known == key);
                let Some((key, at)) = of(line.key).or_else(|| of("expects")) else { continue };
                if *key == line.key && blamed.contains(&place(at)) {
                    // Arithmetic has blamed it already: first things first.
                    continue;
                }
                let mut told = at.clone();
                (told.message, told.hint) = (line.message, Some(line.fix));
                self.report.findings.push(told);
            }
        }
        self.report = Report::of(self.report.findings);
        self
    }

    /// The configuration and its warnings, or everything that was found.
    ///
    /// # Errors
    /// The whole report if there is an error in it.
    pub fn into_result(self) -> Result<(AppConfig, Report), Report> {
        match self.config {
            Some(config) => Ok((config, self.report)),
            None => Err(self.report),
        }
    }
}

/// Reads a file and checks it.
///
/// # Errors
/// When the file cannot be read; what is wrong in it is in the report.
pub fn load(path: &Path, environment: &Environment<'_>) -> anyhow::Result<Checked> {
    let bytes = fs::read(path).map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::NotFound { "; `seawall init` writes one" } else { "" };
        anyhow::anyhow!("cannot read the configuration `{}`: {error}{hint}", path.display())
    })?;
    Ok(check(&path.display().to_string(), &bytes, environment))
}

/// Checks the bytes of a file called `name`.
#[must_use]
pub fn check(name: &str, bytes: &[u8], environment: &Environment<'_>) -> Checked {
    let mut findings = Vec::new();
    let source = match readable(name, bytes) {
        Ok(source) => source,
        Err(finding) => return Checked { config: None, report: Report::of(vec![*finding]), drills: Vec::new() },
    };
    let Some(root) = tree::parse(&source, environment, &mut findings) else {
        return Checked { config: None, report: Report::of(findings), drills: Vec::new() };
    };
    let reader = Reader::new(&source, findings);
    let config = resolve(Field { reader: &reader, key: name, key_spot: Spot { length: 1, ..root.spot }, node: &root });
    let (findings, drills) = reader.into_parts();
    let report = Report::of(findings);
    let config = (report.errors() == 0).then_some(config);
    Checked {
        config: config.map(|config| AppConfig { policy: Policy { digest: digest(bytes), ..config.policy }, ..config }),
        report,
        drills,
    }
}

/// The bytes as text, or why they are none.
fn readable(name: &str, bytes: &[u8]) -> Result<Source, Box<Finding>> {
    let source = |text: &str| Source { name: name.into(), text: text.into(), is_argument: false };
    let fail = |text: &str, spot, message: String| Box::new(source(text).finding(Severity::Error, spot, message, None));
    if bytes.len() > FILE_BYTES_MAX {
        let message = format!("the file has {} bytes; a configuration has {FILE_BYTES_MAX} at most", bytes.len());
        return Err(fail("", Spot::default(), message));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(source(text.strip_prefix('\u{feff}').unwrap_or(text))),
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let line = before.split('\n').count();
            let column = before.split('\n').next_back().unwrap_or_default().chars().count() + 1;
            let message = format!("byte {:#04x} is not text: save the file as UTF-8", bytes[error.valid_up_to()]);
            Err(fail(&before, Spot { line, column, length: 1 }, message))
        }
    }
}

/// SHA-256, hex: the name by which the journal knows a configuration.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

const TOP: Keys = Keys {
    of: "the configuration",
    known: &[
        "zone",
        "zones",
        "node",
        "store",
        "limits",
        "listeners",
        "upstreams",
        "policies",
        "admin",
        "toxiproxy",
        "faults",
    ],
    later: &["slos", "experiments", "run_books", "notify"],
};

fn resolve(root: Field<'_>) -> AppConfig {
    let top = root.section(TOP);
    let place = node::place(&top);
    let limits = top.field("limits").map(node::limits).unwrap_or_default();
    let store = top.field("store").map(node::store).unwrap_or_default();
    if let (Some(_), None, Some(field)) = (&store.replica, top.field("node"), top.field("store")) {
        let hint = format!("add `node: {}-1`, and never give it to another", place.zone);
        field.reader.error_with(field.key_spot, "with a `url` the node needs a name of its own", hint);
    }
    let admin = top.field("admin").map(node::admin).unwrap_or_default();
    let toxiproxy = top.field("toxiproxy").and_then(|field| node::toxiproxy(field, &admin));
    let mut taken = vec![("admin", admin.address)];
    taken.extend(toxiproxy.as_ref().map(|toxiproxy| ("toxiproxy", toxiproxy.listen)));
    let upstreams =
        upstreams::Upstreams::read(top.required("upstreams", "{ api: { url: \"http://127.0.0.1:3000\" } }"), &place);
    let policies = policies::Policies::read(top.field("policies"), &upstreams, &store);
    let (listeners, routes, listeners_tls) = listeners::read(
        top.required("listeners", "[{ address: \"127.0.0.1:8080\", routes: [...] }]"),
        &upstreams,
        &policies,
        &taken,
    );
    upstreams.tell_unused();
    policies.tell_unused();
    let (upstreams, upstreams_tls) = upstreams.resolved();
    let faults = top.field("faults").and_then(|field| node::faults(field, &routes, &upstreams));
    let tls = TlsConfig { listeners: listeners_tls, upstreams: upstreams_tls };
    let policy = Policy {
        node: place.node,
        zone: place.zone,
        zones: place.zones,
        listeners,
        routes,
        upstreams,
        limits,
        digest: String::new(),
    };
    AppConfig { policy, store, admin, tls, toxiproxy, faults }
}

/// True for `[A-Za-z0-9_-]+` of a bearable length: what may stand in a record's id, a label and a journal subject.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn parse_name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.into());
    }
    Err(format!("`{text}` is not a name: letters, digits, `_` and `-`, 64 at most"))
}
