//! HTTP on both sides: the gate, HTTP/1 as bytes, HTTP/2, what a proxy owes to headers, bodies, and our own answers.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod chunks;
pub(crate) mod conn;
pub(crate) mod feed;
pub(crate) mod fields;
pub mod gate;
pub(crate) mod grpc;
pub(crate) mod grpc_health;
pub(crate) mod h2;
pub(crate) mod headers;
pub(crate) mod message;
pub(crate) mod outgoing;
pub(crate) mod passing;
pub(crate) mod serve;
pub(crate) mod stream;
pub(crate) mod tunnel;
pub(crate) mod wire;
