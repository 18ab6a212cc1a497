//! What can go wrong, what it was done to, and what a person can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use seawall_core::id::RecordId;
use seawall_core::spool::State;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it.
    #[error("data directory `{}` is in use by another running node (pid {pid})", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The other process; 0 if it did not say.
        pid: u32,
    },
    /// It belongs to a node of another name.
    #[error("data directory `{}` belongs to node `{found}`, this node is `{node}`", dir.display())]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// As written there.
        found: String,
        /// Ours.
        node: String,
    },
    /// It holds something, and not a store.
    #[error("`{}` holds files but no Seawall store (`{file}`, for one)", dir.display())]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// One of the files.
        file: String,
    },
    /// A file in our place that we did not write.
    #[error("`{}` is not {expected}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// Written by a newer program.
    #[error("`{}` has format version {found}, this program knows up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// As written there.
        found: u32,
        /// The newest we know.
        known: u32,
    },
    /// Written by an older program whose format is no longer read.
    #[error("`{}` has format version {found}, this program knows {known} and later", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// As written there.
        found: u32,
        /// The oldest we know.
        known: u32,
    },
    /// Records that cannot be read without their key.
    #[error("`{}`: {reason}", path.display())]
    Sealed {
        /// The segment with the first of them.
        path: PathBuf,
        /// Whether there is no key, or another.
        reason: String,
    },
    /// Bytes that were synced do not read as written.
    #[error("segment `{}` is damaged at byte {offset}: {what}, and what follows it was written later", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// What says whose directory it is cannot be read.
    #[error("`{}` is damaged: neither of its two copies matches its checksum", path.display())]
    MetaDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl OpenError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::InUse { .. } => Some("stop the other node, or give this one its own `store.path` (`--data`)"),
            Self::OtherNode { .. } => Some("give the node its old name, or another `store.path` (`--data`)"),
            Self::NotOurs { .. } | Self::Foreign { .. } => {
                Some("point `store.path` (`--data`) at a directory of its own")
            }
            Self::Newer { .. } => Some("start the version that wrote it, or a later one"),
            Self::Older { .. } => Some("drain it with the version that wrote it"),
            Self::Sealed { .. } => {
                Some("set `store.key_file` (`--key-file`) to the file with the key they were sealed with")
            }
            Self::Damaged { .. } => Some("check the disk; `seawall run --quarantine` goes on with what can be saved"),
            Self::MetaDamaged { .. } => {
                Some("check the disk; nobody knows whose directory it is: what is left is to restore it, as a whole")
            }
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Some("the node must be able to write to `store.path`")
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("free some space: opening needs room for a segment or two")
                }
                _ => None,
            },
        }
    }
}

/// Why a record was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnqueueError {
    /// The spool holds as much as it may.
    #[error("the spool is full ({used_bytes} of {limit_bytes} bytes)")]
    Full {
        /// What it holds.
        used_bytes: u64,
        /// What it may.
        limit_bytes: u64,
    },
    /// The spool holds as much from one route as it may.
    #[error("the spool holds {used_bytes} bytes of route `{route}`, which may have {limit_bytes}")]
    RouteFull {
        /// Which route.
        route: String,
        /// What it holds.
        used_bytes: u64,
        /// What it may.
        limit_bytes: u64,
    },
    /// The disk has no room for another record; acknowledgements still have some.
    #[error("the disk is full")]
    DiskFull,
    /// The record alone is beyond its limit.
    #[error("the record takes {bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// What it takes.
        bytes: u64,
        /// What it may.
        limit_bytes: u64,
    },
    /// The key belongs to another request.
    #[error("the idempotency key belongs to record {id} with another payload")]
    KeyConflict {
        /// That request's record.
        id: RecordId,
    },
    /// The store has stopped: a sync failed, or the node is stopping. Whether the record was kept is not known.
    #[error("the store has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

impl EnqueueError {
    /// What a person can do about it.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Full { .. } => Some("raise `store.spool_max`, or see why the upstream is slow"),
            Self::RouteFull { .. } => Some("raise `delivery.max` of its policy, or see why the upstream is slow"),
            Self::DiskFull => Some("free some space; the spool goes on by itself"),
            Self::TooLarge { .. } => Some("raise `store.record_max`"),
            Self::KeyConflict { .. } => Some("a new request needs a new key"),
            Self::Stopped { .. } => Some("see the log; the node must be started again"),
        }
    }

    /// When it makes sense to try again; `None` if it never does as it is.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Full { .. } | Self::RouteFull { .. } => Some(Duration::from_secs(1)),
            Self::DiskFull | Self::Stopped { .. } => Some(Duration::from_secs(5)),
            Self::TooLarge { .. } | Self::KeyConflict { .. } => None,
        }
    }
}

/// Why the store could not do something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such record, or it is forgotten.
    #[error("there is no record {id}")]
    NotFound {
        /// As asked.
        id: RecordId,
    },
    /// Only what waits or is parked can be discarded.
    #[error("record {id} is {} and cannot be discarded", state.name())]
    NotHere {
        /// As asked.
        id: RecordId,
        /// What it is.
        state: State,
    },
    /// Only dead letters can be retried.
    #[error("record {id} is {}, not parked", state.name())]
    NotParked {
        /// As asked.
        id: RecordId,
        /// What it is.
        state: State,
    },
    /// The disk has no room.
    #[error("the disk is full")]
    DiskFull,
    /// Kept bytes could not be read.
    #[error("cannot read {what}: {reason}")]
    Read {
        /// What was to be read.
        what: String,
        /// What went wrong.
        reason: String,
    },
    /// The store has stopped: a sync failed, or the node is stopping.
    #[error("the store has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

impl StoreError {
    /// What a person can do about it.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { .. } => Some("settled records are forgotten after a day"),
            Self::NotHere { state: State::Leased, .. } => {
                Some("it is being delivered right now; if that fails it waits, and can be discarded then")
            }
            Self::NotHere { .. } => Some("it has left the spool"),
            Self::NotParked { .. } => Some("the forwarder delivers waiting records by itself"),
            Self::DiskFull => Some("free some space; the store goes on by itself"),
            Self::Read { .. } => Some("check the disk"),
            Self::Stopped { .. } => Some("see the log; the node must be started again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let id = RecordId(1);
        let reason = || String::from("a failed sync");
        let enqueue = [
            EnqueueError::Full { used_bytes: 1, limit_bytes: 1 },
            EnqueueError::DiskFull,
            EnqueueError::TooLarge { bytes: 2, limit_bytes: 1 },
            EnqueueError::KeyConflict { id },
            EnqueueError::Stopped { reason: reason() },
        ];
        assert!(enqueue.iter().all(|error| error.hint().is_some()));
        let later: Vec<bool> = enqueue.iter().map(|error| error.retry_after().is_some()).collect();
        assert_eq!(later, [true, true, false, false, true]);
        let store = [
            StoreError::NotFound { id },
            StoreError::NotHere { id, state: State::Leased },
            StoreError::NotHere { id, state: State::Delivered },
            StoreError::NotParked { id, state: State::Leased },
            StoreError::DiskFull,
            StoreError::Read { what: "record 1".into(), reason: reason() },
            StoreError::Stopped { reason: reason() },
        ];
        assert!(store.iter().all(|error| error.hint().is_some()));
        assert_eq!(store[3].to_string(), "record 1 is leased, not parked");
        let denied = io::ErrorKind::PermissionDenied.into();
        let error = OpenError::Io { what: "open", path: "data".into(), source: denied };
        assert_eq!(error.hint(), Some("the node must be able to write to `store.path`"));
    }
}

/// Why a record is not known to be safe elsewhere. It is safe here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplicated {
    /// No replica is kept.
    #[error("this node keeps no replica: set `store.url`")]
    None,
    /// It cannot be written to for now, or at all.
    #[error("the replica is not written to: {reason}")]
    Down {
        /// Why.
        reason: std::sync::Arc<str>,
    },
}
