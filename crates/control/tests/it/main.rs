//! The admin side on a real port, with a store in memory and a ledger and a data path that say what the test wants.

mod api;
mod connections;
mod drains;
mod events;
mod faults;
mod metrics;
mod page;
mod toxiproxy;
mod world;
