//! The built binary against the world: real processes, real sockets, real disks, a real browser.
//!
//! Every test starts what it needs on ports and folders of its own, and takes it down again, also when it fails.
//! Nothing here knows how Seawall works inside; what it promises is asked for from outside.
#![allow(missing_docs, unreachable_pub, reason = "a test program has no readers outside")]
#![expect(clippy::disallowed_methods, reason = "tests hold real clocks and own their threads")]

mod adoption;
mod browser;
mod cli;
#[path = "../crates/store/tests/it/conformance.rs"]
mod conformance;
mod crash;
mod demo;
mod disk;
mod dist;
mod drain;
mod ends;
mod examples;
mod failover;
mod faults;
mod grpc;
mod h2;
mod handover;
mod hostile;
mod house;
mod input;
mod ledger;
mod lossy;
mod names;
mod nats;
mod network;
mod nginx;
mod postgres;
mod power;
mod process;
mod redis;
mod refused;
mod reload;
mod replica;
mod script;
mod seen;
mod server;
mod sick;
mod simulate;
mod slow;
mod soak;
mod spool;
mod stop;
mod tls;
mod toxics;
mod toxiproxy;
mod websocket;
mod zones;
