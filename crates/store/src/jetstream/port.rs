//! What a replica needs of whatever carries it: messages in order, one writer, a front that can be thrown away.

use bytes::Bytes;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    /// It may have been done or not, and passes by itself.
    #[error("{0}")]
    Lost(String),
    /// It does not pass by itself: a person must act.
    #[error("{0}")]
    Refused(String),
    /// There is no room for another message.
    #[error("{0}")]
    Full(String),
    /// What this directory holds is another's to deliver.
    #[error("{0}")]
    Superseded(String),
}

/// The messages of one node.
pub(crate) trait Stream: Send + Sync + 'static {
    /// The last message and its number; `None` if there never was one.
    fn last(&self) -> impl Future<Output = Result<Option<(u64, Bytes)>, StreamError>> + Send;

    /// The first messages from a number on, as many as come together; empty if there is none. Who asks for what follows
    /// gets more at a time than who asks once.
    fn page(&self, from: u64) -> impl Future<Output = Result<Vec<(u64, Bytes)>, StreamError>> + Send;

    /// Adds a message behind the one of this number (0 for none), and behind no other. Kept by a majority when this
    /// returns its number. `id` names the message: added twice it is kept once.
    fn append(&self, message: Vec<u8>, after: u64, id: &str) -> impl Future<Output = Result<u64, StreamError>> + Send;

    /// Throws away every message below a number.
    fn purge(&self, below: u64) -> impl Future<Output = Result<(), StreamError>> + Send;

    /// Bytes of a message at most.
    fn message_bytes_max(&self) -> usize;
}
