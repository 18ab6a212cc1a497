//! What the binary `seawall` is made of: it wires and decides nothing.
//!
//! [`cli`] reads the command line, [`config`] the configuration; [`lifecycle`] runs a node, with the real clock
//! ([`clock`]), the ledger at work ([`book`]), the replicated engine (`replica`), faults (`faults`) and by Toxiproxy's
//! API (`toxics`), what is drained (`drains`), certificates (`tls`), the configuration taken in anew ([`reload`]), its
//! place handed on to another process (`handover`), what a service manager is told (`service`), and logs to stderr
//! ([`logs`]).

pub mod book;
pub mod cli;
pub mod clock;
pub mod config;
mod drains;
mod faults;
mod handover;
pub mod lifecycle;
pub mod logs;
pub mod reload;
mod replica;
mod service;
mod tls;
mod toxics;
