//! The facts a node keeps: what changed, when, and because of what. Never a payload.
//!
//! An [`Entry`] names its cause by sequence number, so that the story of an incident can be read backwards from any
//! line: a reduced answer because of an open breaker because of a config load. [`chain`] ties the entries together.

pub mod chain;

mod codec;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use codec::DecodeError;

use crate::time::Wall;

/// Number of a journal entry: dense, from 1, in the order written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number.
    pub seq: Seq,
    /// When it was seen.
    pub at: Wall,
    /// What happened.
    pub kind: Kind,
    /// To what: `route:events`, `endpoint:queue/127.0.0.1:80`, `spool`, `node`.
    pub subject: String,
    /// The entry that led to this one, if known.
    pub cause: Option<Seq>,
    /// Numbers and reasons, by name. Never a payload, never a secret.
    pub fields: BTreeMap<String, String>,
}

/// An entry before it has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// What happened.
    pub kind: Kind,
    /// To what.
    pub subject: String,
    /// The entry that led to this one, if known.
    pub cause: Option<Seq>,
    /// Numbers and reasons, by name.
    pub fields: BTreeMap<String, String>,
}

impl Draft {
    /// A fact about a subject.
    #[must_use]
    pub fn new(kind: Kind, subject: impl Into<String>) -> Self {
        Self { kind, subject: subject.into(), cause: None, fields: BTreeMap::new() }
    }

    /// Names its cause.
    #[must_use]
    pub fn because(mut self, cause: Option<Seq>) -> Self {
        self.cause = cause;
        self
    }

    /// Adds a named number or reason.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.fields.insert(name.into(), value.to_string());
        self
    }

    /// The entry it becomes.
    #[must_use]
    pub fn numbered(self, seq: Seq, at: Wall) -> Entry {
        Entry { seq, at, kind: self.kind, subject: self.subject, cause: self.cause, fields: self.fields }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What can happen. The names are part of the format: they are never reused for something else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Kind { $($(#[$doc])* #[serde(rename = $name)] $kind,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// Its name on disk, in JSON and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    /// The process is up and its store is open.
    NodeStarted = "node_started",
    /// A stop was asked for; requests in work may end.
    NodeDraining = "node_draining",
    /// The last entry of a clean stop.
    NodeStopped = "node_stopped",
    /// Another process of this node is about to take its place; which is in the fields. Requests in work may end.
    NodeHandingOver = "node_handing_over",
    /// The last entry before another process of this node goes on: sockets and store are its own from here.
    NodeHandedOver = "node_handed_over",
    /// The process has taken the place of another one, listening sockets included; how many is in the fields.
    NodeTookOver = "node_took_over",
    /// The process that was to take the place of this one did not come up: this one goes on.
    NodeTookBack = "node_took_back",
    /// A configuration is in force; its digest is in the fields.
    ConfigLoaded = "config_loaded",
    /// Another configuration was to come into force and cannot be used: the one before stays; why is in the fields.
    ConfigRefused = "config_refused",
    /// A listener or an upstream uses other certificates from now on; which files is in the fields.
    CertificateChanged = "certificate_changed",
    /// Files of certificates changed and cannot be used: the old ones stay; why is in the fields.
    CertificateRefused = "certificate_refused",
    /// A certificate in use runs out soon, or has; when is in the fields.
    CertificateExpiring = "certificate_expiring",
    /// The store was opened; what it found is in the fields.
    StoreRecovered = "store_recovered",
    /// A breaker refuses calls.
    BreakerOpened = "breaker_opened",
    /// A breaker lets probes through.
    BreakerHalfOpened = "breaker_half_opened",
    /// A breaker lets everything through again.
    BreakerClosed = "breaker_closed",
    /// A breaker lets a share of the calls through; the share is in the fields.
    BreakerRecovering = "breaker_recovering",
    /// A breaker was disabled, forced open or made to observe only, by hand.
    BreakerSet = "breaker_set",
    /// An endpoint fails its health check.
    EndpointUnhealthy = "endpoint_unhealthy",
    /// An endpoint passes its health check again.
    EndpointHealthy = "endpoint_healthy",
    /// An endpoint does worse than its peers and gets no calls for a while.
    EndpointEjected = "endpoint_ejected",
    /// An ejected endpoint gets calls again.
    EndpointReturned = "endpoint_returned",
    /// Calls of a route that has fallbacks begin to fail or to be refused; the first reason is in the fields.
    CallsFailing = "calls_failing",
    /// What passes a route is no longer what was last told; rate, failures and latencies are in the fields.
    TrafficChanged = "traffic_changed",
    /// Calls of an upstream go elsewhere than to its nearest endpoints, because these are ill or full; the share is in
    /// the fields.
    TrafficSpilled = "traffic_spilled",
    /// All calls of an upstream go to its nearest endpoints again.
    TrafficHome = "traffic_home",
    /// A route's answers are reduced.
    DegradedStarted = "degraded_started",
    /// A route's answers are whole again.
    DegradedEnded = "degraded_ended",
    /// The spool holds more than its high mark.
    SpoolHigh = "spool_high",
    /// The spool is below its low mark again.
    SpoolLow = "spool_low",
    /// The spool took its first record after being empty.
    SpoolFilling = "spool_filling",
    /// The spool delivered its last waiting record.
    SpoolDrained = "spool_drained",
    /// The spool refuses records: its limit is reached or the disk is full.
    SpoolFull = "spool_full",
    /// The spool takes records again.
    SpoolRecovered = "spool_recovered",
    /// A record became a dead letter.
    RecordParked = "record_parked",
    /// Somebody asked for a dead letter to be delivered again.
    RecordRetried = "record_retried",
    /// Somebody gave up a record.
    RecordDiscarded = "record_discarded",
    /// Records whose time was over were given up; how many and which are in the fields.
    RecordsExpired = "records_expired",
    /// Records wait for an upstream that no route keeps writes for: nobody delivers them; how many is in the fields.
    RecordsDeserted = "records_deserted",
    /// Records of a spool whose node is gone were taken in; how many and whose are in the fields.
    RecordsAdopted = "records_adopted",
    /// The replica has everything, and gets every change as it happens.
    ReplicaCurrent = "replica_current",
    /// The replica cannot be reached; why is in the fields. Records stay safe here, and go there later.
    ReplicaDown = "replica_down",
    /// The replica is not written to any more, and a person must act; why is in the fields.
    ReplicaRefused = "replica_refused",
    /// A node with an empty directory took over what its former self had left in the replica; how much is in the
    /// fields.
    ReplicaTakenOver = "replica_taken_over",
    /// A ledger stream was sealed; its counts are in the fields.
    LedgerSealed = "ledger_sealed",
    /// A write went on without a number, the first of its stream and epoch: the ledger cannot vouch for it.
    LedgerUnnumbered = "ledger_unnumbered",
    /// The oldest entries go: for their age, or for want of room. How many there were, and the number and tag of the
    /// last of them, are in the fields: `seawall journal verify` holds the first that is left against these.
    JournalTrimmed = "journal_trimmed",
    /// A fault was placed on purpose: whose, on what, what and for how long is in the fields.
    FaultPlaced = "fault_placed",
    /// A fault's lease was renewed by its owner.
    FaultRenewed = "fault_renewed",
    /// A fault is gone: why (`expired`, `removed`, `killed`) and how many requests it touched is in the fields.
    FaultEnded = "fault_ended",
    /// The kill switch was turned on: every fault is gone, and none can be placed.
    FaultsKilled = "faults_killed",
    /// The kill switch was turned off.
    FaultsReleased = "faults_released",
    /// An endpoint, a route or a listener was taken out of service by hand; why is in the fields.
    DrainBegan = "drain_began",
    /// It is in service again, or gone: why (`resumed`, `reconfigured`, `stopped`, `handed_over`) is in the fields.
    DrainEnded = "drain_ended",
    /// A limit was reached; its name is the subject, how often so far is in the fields.
    LimitReached = "limit_reached",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no kind of entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind of journal entry")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name).ok_or_else(|| UnknownKind(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_kinds() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("\"{kind}\""));
        }
        let unknown = "nothing".parse::<Kind>().unwrap_err();
        assert_eq!(unknown.to_string(), "`nothing` is not a kind of journal entry");
    }

    #[test]
    fn a_draft_becomes_an_entry() {
        let entry = Draft::new(Kind::BreakerOpened, "route:events")
            .because(Some(Seq(3)))
            .with("failure_rate", "57%")
            .numbered(Seq(4), Wall::from_millis(9));
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            r#"{"seq":4,"at":9,"kind":"breaker_opened","subject":"route:events","cause":3,"fields":{"failure_rate":"57%"}}"#
        );
        assert_eq!(entry.seq.to_string(), "4");
    }
}
