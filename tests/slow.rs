//! `slowhttptest` with hundreds of connections: slow heads, slow bodies, slow readers, and ranges without end.

use crate::hostile::{Honest, holds, rejected, world};
use crate::house::wait_until;
use crate::process::Process;

const CONNECTIONS: u64 = 300;
/// For each the kernel keeps megabytes.
const READERS: u64 = 120;

/// Attacks until all of its connections have been counted by this reason, beside clients who only want to be served.
fn besiege(connections: u64, limits: &str, how: &[&str], path: &str, reason: &str) {
    let (server, node, place) = world(limits);
    assert_eq!(node.get("/large").status, 200);
    let (memory, files) = holds(&node);
    let honest = Honest::begin(&node);
    let count = connections.to_string();
    let attacker = Process::start(
        std::process::Command::new("slowhttptest")
            .args(["-c", &count, "-r", &count, "-l", "50", "-u"])
            .arg(format!("http://{}{path}", node.address()))
            .args(how)
            .current_dir(place.path()),
    );
    wait_until("every one is counted", || rejected(&node)[reason] >= connections);
    honest.end();
    drop(attacker);
    wait_until("all are gone", || node.metrics().get("seawall_client_connections") == 0);
    wait_until("no call is left", || {
        ["api", "drip"].iter().all(|route| node.metrics().get(&format!("seawall_in_flight{{route=\"{route}\"}}")) == 0)
    });
    let others: Vec<_> = rejected(&node).into_iter().filter(|(other, count)| *count > 0 && other != reason).collect();
    assert_eq!(others, [], "nobody else is turned away");
    let kept = node.status()["upstreams"][0]["endpoints"][0]["connections"].as_u64().unwrap();
    let (after, files_after) = holds(&node);
    assert!(files_after <= files + kept + 8, "{files_after} files, {files} before, {kept} to the upstream");
    assert!(after < memory + (64 << 10), "from {memory} to {after} KiB");
    drop(server);
}

#[test]
fn slow_heads_are_answered_and_ended() {
    besiege(CONNECTIONS, "header_timeout: 1s", &["-H", "-i", "1", "-x", "8"], "/small", "header_timeout");
}

#[test]
fn bodies_that_stop_are_answered_and_ended() {
    besiege(CONNECTIONS, "body_idle_timeout: 1s", &["-B", "-i", "20", "-s", "100000"], "/small", "body_idle_timeout");
}

/// Never long enough silent: their call's own time is over.
#[test]
fn bodies_that_drip_end_with_the_time_of_their_call() {
    besiege(
        CONNECTIONS,
        "body_idle_timeout: 20s",
        &["-B", "-i", "1", "-s", "100000", "-x", "4"],
        "/drip",
        "body_idle_timeout",
    );
}

#[test]
fn answers_that_are_not_taken_are_broken_off() {
    let how = ["-X", "-n", "5", "-w", "1", "-y", "512", "-z", "5"];
    besiege(READERS, "body_idle_timeout: 1s", &how, "/huge", "unread");
}

/// The heads of CVE-2011-3192: too long for this node. Within its limits they are the upstream's affair.
#[test]
fn ranges_without_end_are_too_long_a_head() {
    besiege(CONNECTIONS, "header_timeout: 20s", &["-R", "-a", "1", "-b", "3000"], "/small", "header_bytes");
}
