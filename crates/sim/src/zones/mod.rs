//! Three zones: in each a real node, endpoints of one dependency, and clients; between them a network that can be cut.
//!
//! Picture three towns with a road between each two. What is asked in a town is answered in it as long as that can be;
//! when a road or a town is lost, its neighbours answer. The nodes are whole gateways with a store each, the very ones
//! that users run; nothing they decide is done again here. What happens to them is drawn from the seed: roads are cut,
//! one way or both, and what is on its way hangs, waits or is reset; endpoints go up and down faster than anybody
//! looks, answer probes and fail calls, or crawl; nodes are killed; and in the middle of it all their configuration
//! changes, by the code that a reload goes by.
//!
//! Safety is checked at every look (`watch.rs`) and at every change (`kept.rs`), liveness where somebody has promised
//! it: [`Zones::lose`] takes zones away and wants every read answered well [`REACH_WITHIN`] later, and
//! [`Zones::give_back`] wants the own zone's share back [`HOME_WITHIN`] after the heal.
//! Not here: disks that fail (`world.rs`), TLS, real sockets (`tests/`).

mod endpoint;
pub(crate) mod kept;
mod plan;
mod reader;
mod trouble;
mod watch;
mod world;

use std::time::Duration;

pub use trouble::Troubles;
pub use world::{Lost, Zones};

/// The zones, by their number.
const NAMES: [&str; 3] = ["a", "b", "c"];
const COUNT: usize = NAMES.len();
/// Endpoints of a zone, the last of which is not in use at first.
const ENDPOINTS: usize = 3;

/// So long after zones were lost, every read is answered well while a zone is well and in reach.
///
/// Five failures in a row eject, or three checks a second apart with half a second each; a breaker that has opened by
/// then asks again after four seconds at most.
pub const REACH_WITHIN: Duration = Duration::from_secs(12);
/// So long after all is well, calls are answered in their own zone: the longest ejection, and the slow start.
pub const HOME_WITHIN: Duration = Duration::from_secs(22);

fn node_name(zone: usize) -> String {
    format!("node-{}", NAMES[zone])
}

fn client_name(zone: usize) -> String {
    format!("client-{}", NAMES[zone])
}

fn sink_name(zone: usize) -> String {
    format!("sink-{}", NAMES[zone])
}

/// An endpoint's host, by its number among all.
fn endpoint_name(endpoint: usize) -> String {
    format!("api-{}{}", NAMES[zone_of(endpoint)], endpoint % ENDPOINTS + 1)
}

const fn zone_of(endpoint: usize) -> usize {
    endpoint / ENDPOINTS
}
