//! A gateway on real sockets and real files: what goes in, what comes out, byte for byte.
#![allow(missing_docs, unreachable_pub, reason = "a test program has no readers outside")]
#![expect(clippy::disallowed_methods, reason = "tests hold real clocks and own their threads")]

mod announce;
mod answers;
mod calls;
mod connections;
mod damage;
mod faults;
mod flight;
mod flow;
mod framing;
mod guards;
mod h2;
mod limits;
mod pipeline;
mod reload;
mod tcp;
mod tls;
mod traffic;
mod tunnels;
mod unix;
mod upgrades;
mod world;
mod writes;
mod zones;
