//! What Seawall decides. No clock, no socket, no file, no thread, no async fn, no entropy source: time and chance are
//! arguments, so that the same inputs give the same bytes and everything here can be simulated.
//!
//! - [`fault`]: what becomes of bytes and calls on the way through faults that are placed on purpose.
//! - [`guard`]: breaker, retry and its budget, deadline, bulkhead, health.
//! - [`balance`]: which endpoint gets the next try.
//! - [`addresses`]: where an endpoint is, and which of its addresses is tried first.
//! - [`spool`]: what waits to be delivered, in which order, and what becomes of it.
//! - [`journal`]: the facts we keep, linked by cause.
//! - [`lease`]: who holds a thing, between machines that share no clock.
//! - [`ledger`]: exact accounts of every record accepted and received.
//! - [`traffic`]: what passes a route, and whether it has changed.
//! - [`whatif`]: traffic against the guards in virtual time.
//! - [`policy`] goes down to the gateway, [`observation`] comes up from it.

pub mod addresses;
pub mod balance;
pub mod block;
pub mod drain;
pub mod fault;
pub mod guard;
pub mod id;
pub mod journal;
pub mod lease;
pub mod ledger;
pub mod observation;
pub mod outcome;
pub mod policy;
pub mod prng;
pub mod spool;
pub mod time;
#[cfg(feature = "tower")]
pub mod tower;
pub mod traffic;
pub mod units;
pub mod whatif;
