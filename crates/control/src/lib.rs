//! Where people steer: the admin API, the metrics and the overview page of one node.
//!
//! Picture a window into the engine room, with a few levers. Everything shown is drawn from snapshots that others hand
//! over ([`AdminParts`]): this crate does not know the gateway. The levers (retry or discard a dead letter, take
//! receipts, seal the ledger, place a fault, drain an endpoint) call the store and the ledger, and leave an entry in
//! the journal.
//!
//! - [`api`]: the JSON endpoints. Every bad call is a 4xx that names the field and what would be allowed.
//! - [`metrics`]: the same numbers as Prometheus text.
//! - [`ui`]: the overview page, rendered here, kept alive by server-sent events.
//! - [`toxiproxy`]: the API of Toxiproxy, on a port of its own.
//! - `guard`: who may call: the token, and no writes from other sites' pages.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections, [`STREAMS_MAX`] of them with events, bodies of [`api::BODY_BYTES_MAX`].
//! Not here: decisions (core), the data path (gateway), the configuration (app).

pub mod api;
pub mod metrics;
pub mod parts;
pub mod toxiproxy;
pub mod ui;

mod adopt;
mod config;
mod drains;
mod events;
mod faults;
mod guard;
mod serve;
mod status;
mod text;

pub use parts::{
    Admin, AdminParts, BoxFuture, ConfigPort, DrainPort, FaultPort, Foreign, LedgerPort, LedgerRefusal, NodeInfo,
    NotReloaded, Reloaded,
};
pub use serve::CONNECTIONS_MAX;
pub use status::Status;

/// Pages and programs that may follow the events at the same time.
pub const STREAMS_MAX: usize = 64;
