//! What attacks: a deterministic world in which the real gateway, store, ledger and admin side run.
//!
//! Picture a theatre. On stage stand one Seawall node, a moody queue behind it and producers before it, on a network
//! and a disk that exist only here and behave as badly as real ones may ([`Faults`]). In the box sits one who sees
//! everything and forgets nothing (`checkers`): what was promised, what arrived, in which order. [`World::run_for`]
//! lets time pass with trouble, [`World::settle`] without, until everything promised has arrived, and
//! [`World::close_books`] asks the node's own ledger whether it agrees.
//!
//! One thread, one seed, virtual time: the same seed gives the same [`World::trace`], byte for byte.
//! A second world, [`zones`], has a node, clients and endpoints in each of three zones, and a network between them.
//! Not here: TLS, the command line; the built binary has tests of its own.

mod checkers;
mod faults;
mod http;
mod node;
mod policy;
mod queue;
mod stage;
mod workload;
mod world;
pub mod zones;

pub use checkers::{Event, Truth};
pub use faults::Faults;
pub use world::{World, minutes, seconds};
