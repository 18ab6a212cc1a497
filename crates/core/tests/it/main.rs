//! What `seawall-core` promises to those who use it from outside.

mod allocations;
mod examples;
mod replay;
mod vectors;
