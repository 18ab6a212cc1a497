//! For sinks behind Seawall: says what arrived, so that the ledger can count what did not.
//!
//! Picture the goods-in desk of a warehouse. For every parcel a slip is written: the number on the parcel, its seal,
//! and what was found inside. Slips are filed before the courier gets his signature. From time to time those that have
//! gathered are put into an envelope with the next number and sent to the office the parcels came from, the same
//! envelope again until the office has signed for it.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use seawall_client::{Node, Outbox};
//!
//! let mut outbox = Outbox::open("receipts", "warehouse")?;
//! // For every request, after its row is safe and before it is answered:
//! # let (header, body): (&str, &[u8]) = ("events.us-east-1.7.1042;tag=5f1c2a9b0d3e4f60718293a4b5c6d7e8", b"...");
//! outbox.note(header, body)?;
//! outbox.sync()?;
//! // Every second or so, in a thread of its own:
//! let sent = outbox.send(&Node::new("us-east-1", "10.0.1.5:9900").with_token("secret"))?;
//! println!("{} receipts in {} batches", sent.receipts, sent.batches);
//! # Ok(())
//! # }
//! ```
//!
//! Invariants: what was synced is sent, across kill -9 and power cuts; an envelope is never sent with other contents
//! under the same number; a receipt is in one envelope only. Arrivals are counted, not records: what arrived twice is
//! noted twice. Not here: TLS (the admin address is of the inside), retries' timing, threads. The wire is
//! `docs/guide/ledger.md`'s; a sink in another language needs nothing else.

mod http;
mod outbox;
mod receipt;

pub use http::{Node, SendError};
pub use outbox::{Batch, Outbox, OutboxError, RECEIPTS_MAX, Sent};
pub use receipt::{NotAStamp, Receipt};
