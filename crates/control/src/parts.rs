//! What the admin side is made of: everything it shows comes through here.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use seawall_core::drain::{Refused as NotDrained, Standing as Drained, Target};
use seawall_core::fault::book::{Fault, Id, Look, Order, Refused, Standing};
use seawall_core::ledger::census::Salt;
use seawall_core::ledger::{Counted, Place, Receipts, Summary};
use seawall_core::observation::{CertificateSnapshot, NodeSnapshot};
use seawall_core::time::Wall;
use seawall_store::{Journal, Spool};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{STREAMS_MAX, api, config, drains, events, faults, guard, metrics, serve, ui};

/// A future in a box, for traits used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who this node is.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Its name.
    pub node: String,
    /// Its zone.
    pub zone: String,
    /// Every zone of the fleet: the columns of the overview.
    pub zones: Vec<String>,
    /// The program's version.
    pub version: String,
    /// The commit it was built from, if known.
    pub git: Option<String>,
    /// When it started.
    pub started_at: Wall,
}

/// The ledger as the admin side needs it; `app` puts core's ledger and the store's log behind it.
pub trait LedgerPort: Send + Sync {
    /// Takes a sink's batch; durable when it returns. Tells how many receipts it held. The same batch again changes
    /// nothing and is no error.
    fn receipts(&self, batch: Receipts) -> BoxFuture<'_, Result<u64, LedgerRefusal>>;

    /// Seals every stream now.
    fn seal(&self) -> BoxFuture<'_, Result<Summary, LedgerRefusal>>;

    /// The books as they stand.
    fn summary(&self) -> Summary;

    /// Which keys a stream accepted between two moments, in seconds since 1970; `None` for a stream nobody counted.
    fn census(&self, stream: &str, since: u64, until: u64) -> Option<Counted>;

    /// What keys are hashed with in a census.
    fn salt(&self) -> Salt;

    /// A record of the spool with this stamp (the `Seawall-Record` header it carries) went somewhere else because a
    /// person said so.
    fn moved(&self, stamp: &str, to: Place);

    /// Records of another node are about to be taken in: enters their numbers, durably, and gives each the stamp it
    /// goes on under, with the same number and a tag of this node's. `None` for what is no stamp: such a record is on
    /// nobody's account.
    fn adopt(&self, records: Vec<Foreign>) -> BoxFuture<'_, Result<Vec<Option<String>>, LedgerRefusal>>;

    /// Records that [`Self::adopt`] stamped are in the spool: they are promised from here; durable when it returns. One
    /// that is on the books already stays as it is.
    fn adopted(&self, records: Vec<(String, Place)>) -> BoxFuture<'_, Result<(), LedgerRefusal>>;
}

/// A record that another node has numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The `Seawall-Record` header it carries.
    pub stamp: String,
    /// SHA-256 of its body.
    pub digest: [u8; 32],
}

/// Why the ledger did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerRefusal {
    /// The caller made a mistake.
    Invalid {
        /// In which field: `sink`, `batch` or `receipts`.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A batch is missing before this one.
    Gap {
        /// The batch to send first.
        expected: u64,
    },
    /// The ledger cannot write now; the same call may succeed later.
    Unavailable {
        /// Why.
        message: String,
    },
}

/// Faults as the admin side needs them; `app` puts the gateway's behind it. What is done is in force, and in the
/// journal, when it returns.
pub trait FaultPort: Send + Sync {
    /// How things are.
    fn look(&self) -> Look;

    /// Places a fault.
    ///
    /// # Errors
    /// [`Refused`]; nothing was placed then.
    fn place(&self, order: Order) -> Result<Standing, Refused>;

    /// Gives a fault another time to live, from now on.
    ///
    /// # Errors
    /// [`Refused`]; nothing changes then.
    fn renew(&self, id: Id, owner: &str, ttl: Option<Duration>) -> Result<Standing, Refused>;

    /// Takes a fault away.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    fn remove(&self, id: Id) -> Result<Fault, Refused>;

    /// Takes all away and lets none be placed until [`Self::release`]. Tells which are gone.
    fn kill(&self, reason: &str) -> Vec<Fault>;

    /// Lets faults be placed again. Tells whether they could not.
    fn release(&self, reason: &str) -> bool;
}

/// Drains as the admin side needs them; `app` puts the gateway's behind it. What stands is in the snapshot.
pub trait DrainPort: Send + Sync {
    /// Takes something out of service; a listener refuses after this time.
    ///
    /// # Errors
    /// [`NotDrained`]; nothing changes then.
    fn drain(&self, target: &Target, reason: &str, refuse_after: Duration) -> Result<Drained, NotDrained>;

    /// Takes it back. Tells whether it was drained.
    ///
    /// # Errors
    /// [`NotDrained`]; nothing changes then.
    fn resume(&self, target: &Target) -> Result<bool, NotDrained>;
}

/// The configuration as the admin side needs it.
pub trait ConfigPort: Send + Sync {
    /// SHA-256 of the one in force, hex.
    fn digest(&self) -> String;

    /// Takes the file in anew, or only says what that would change.
    fn reload(&self, dry_run: bool) -> BoxFuture<'_, Result<Reloaded, NotReloaded>>;
}

/// A configuration that is in force now, or could be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// SHA-256, hex.
    pub digest: String,
    /// What is different, a line each.
    pub changed: Vec<String>,
    /// What is doubtful in it.
    pub warnings: Vec<String>,
}

/// Why the one before stays in force.
#[derive(Clone, Debug, PartialEq)]
pub struct NotReloaded {
    /// In one line.
    pub error: String,
    /// Place by place, as `seawall check` prints it.
    pub report: String,
    /// Place by place, as `seawall check --json` has it.
    pub findings: Vec<serde_json::Value>,
}

/// Everything the admin side shows and moves.
#[derive(Clone)]
pub struct AdminParts {
    /// Who this node is.
    pub info: NodeInfo,
    /// Draws a snapshot of the data path.
    pub view: Arc<dyn Fn() -> NodeSnapshot + Send + Sync>,
    /// Writes to be delivered.
    pub spool: Spool,
    /// What happened.
    pub journal: Journal,
    /// The account of every record.
    pub ledger: Arc<dyn LedgerPort>,
    /// Whether traffic should come here, or why not.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The time as people write it.
    pub wall: Arc<dyn Fn() -> Wall + Send + Sync>,
    /// The configuration.
    pub config: Arc<dyn ConfigPort>,
    /// The certificates in use.
    pub certificates: Arc<dyn Fn() -> Vec<CertificateSnapshot> + Send + Sync>,
    /// Faults, where the configuration allows them.
    pub faults: Option<Arc<dyn FaultPort>>,
    /// What is taken out of service by hand.
    pub drains: Arc<dyn DrainPort>,
    /// Asked for with every call but probes and metrics, if set.
    pub token: Option<String>,
}

/// The admin side of one node. Cheap to clone.
#[derive(Clone)]
pub struct Admin(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) parts: AdminParts,
    /// One permit for each follower of the events.
    pub(crate) streams: Arc<Semaphore>,
    /// Ends the followers.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("info", &self.0.parts.info).finish_non_exhaustive()
    }
}

impl Admin {
    /// Ready to be served. Nothing runs until [`Self::serve`].
    #[must_use]
    pub fn new(parts: AdminParts) -> Self {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        Self(Arc::new(Shared { parts, streams, stop: CancellationToken::new(), tasks: TaskTracker::new() }))
    }

    /// Every endpoint, with the guards around them.
    pub fn router(&self) -> Router {
        let open = Router::new().merge(api::probes()).merge(metrics::router());
        let closed = Router::new()
            .merge(api::router())
            .merge(drains::router())
            .merge(faults::router())
            .merge(config::router())
            .merge(ui::router())
            .merge(events::router());
        let closed = closed.layer(axum::middleware::from_fn_with_state(self.clone(), guard::check));
        open.merge(closed).fallback(api::no_such_path).with_state(self.clone())
    }

    /// Serves connections until `stop` is cancelled, then lets calls in work end within `grace`, or until `cut` is.
    ///
    /// # Cancel safety
    /// Dropped, connections end at once.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken, grace: Duration, cut: CancellationToken) {
        serve::run(self, listener, stop, grace, cut).await;
    }

    pub(crate) fn parts(&self) -> &AdminParts {
        &self.0.parts
    }
}
