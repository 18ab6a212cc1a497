//! What waits to be delivered, in which order, and what becomes of it.
//!
//! Picture a post office with one counter per upstream. A [`record::NewRecord`] is a letter; letters with the same
//! order key leave strictly one after the other, all others side by side. A courier takes letters on a lease. What
//! comes back undelivered waits again, what cannot be delivered is parked where people see it, and nothing else leaves.
//!
//! Pure decisions: [`index`] holds no payload and touches no file; `store` keeps the bytes and calls it. [`pace`] says
//! how fast letters go out, [`replica`] what a stream elsewhere must know of them.

pub mod index;
pub mod pace;
pub mod record;
pub mod replica;
pub mod wire;

pub use index::{Depth, Index, Known, Lease, State};
pub use record::{FingerprintHalf, KeyHash, LaneKey, NewRecord, Outline, Priority, Terms};
