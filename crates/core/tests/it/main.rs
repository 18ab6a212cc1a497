//! What `seawall-core` promises to those who use it from outside.

mod allocations;
mod replay;
mod vectors;
