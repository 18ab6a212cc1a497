//! What the binary `seawall` is made of: it wires and decides nothing.

pub mod config;
