//! The demo as its first user runs it: both halves, by the built binary, which is the company, the nodes and the judge.
//!
//! Integrity is asserted, whatever the machine does; how available the company was is a matter of speed, and only the
//! exit status has to agree with it.

use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;

use crate::house::{Place, wait_until};
use crate::process::{Process, code};

/// Processes that were given this folder by their environment: the demo's, and nobody else's.
fn processes_of(dir: &Path) -> usize {
    let needle = format!("TMPDIR={}", dir.display());
    let of = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("environ")).ok();
    let is_ours = |environment: &Vec<u8>| String::from_utf8_lossy(environment).split('\0').any(|pair| pair == needle);
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).filter(is_ours).count()
}

#[test]
fn the_incident_before_and_after() {
    let place = Place::empty();
    let mut demo = place.command(&["demo", "--json", "--speed", "6", "--rate", "60", "--seed", "11"]);
    let output = demo.env("TMPDIR", place.path()).stderr(Stdio::piped()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}\n{told}"));
    let (before, after) = (&outcome["before"], &outcome["after"]);
    for (word, count) in [("lost", 0), ("duplicated", 0), ("corrupted", 0), ("given_up", 0)] {
        assert_eq!(after[word], count, "{word}: {after}\n{told}");
    }
    assert_eq!((&after["ledger"], &after["accepted"]), (&"balanced".into(), &after["generated"]), "{after}\n{told}");
    assert_eq!((&outcome["seed"], &after["delivered"]), (&11.into(), &after["accepted"]));
    assert!(after["degraded_seen_after_s"].as_f64().is_some(), "somebody was told: {after}");
    assert!(before["lost"].as_u64().unwrap() + before["duplicated"].as_u64().unwrap() > 0, "{before}");
    let is_available = after["availability_ratio"].as_f64().unwrap() >= 0.9999;
    assert_eq!(code(output.status), i32::from(!is_available), "{after}\n{told}");
    let report = std::fs::read_to_string(place.path().join("report.html")).unwrap();
    for part in ["<svg", "balanced", "SIGKILL"] {
        assert!(report.contains(part), "{part}");
    }
    assert_eq!(processes_of(place.path()), 0);
}

#[test]
fn your_own_events_behind_seawall_until_ctrl_c() {
    let place = Place::empty();
    let row = |n: u32| format!("MY{n},1,mine,1,9,{},clear,0.5\n", 100 + n);
    let head = "shipment_id,sequence,carrier,weekday,hour,distance_km,weather,load\n";
    let own = place.write("own.csv", &(0..40).fold(head.to_owned(), |text, n| text + &row(n)));
    let input = own.display().to_string();
    let arguments = ["demo", "--only", "after", "--speed", "10", "--input", &input, "--keep-running"];
    let mut demo = Process::start(place.command(&arguments).env("TMPDIR", place.path()));
    wait_until("trouble is over", || demo.lines().iter().any(|line| line.contains("Ctrl-C ends it")));
    assert!(processes_of(place.path()) > 10, "the company is up");
    demo.signal(Signal::INT);
    assert_eq!(code(demo.wait()), 1, "half of the demo promises nothing");
    assert_eq!(processes_of(place.path()), 0);
}

#[test]
fn ctrl_c_in_the_middle_leaves_nobody() {
    stopped_in_the_middle(Signal::INT);
}

#[test]
fn a_terminal_that_is_closed_in_the_middle_leaves_nobody() {
    stopped_in_the_middle(Signal::HUP);
}

fn stopped_in_the_middle(by: Signal) {
    let place = Place::empty();
    let arguments = ["demo", "--only", "after", "--speed", "2"];
    let mut demo = Process::start(place.command(&arguments).env("TMPDIR", place.path()));
    wait_until("trouble begins", || demo.lines().iter().any(|line| line.contains("brown-out")));
    demo.signal(by);
    assert_eq!(code(demo.wait()), 1);
    assert!(demo.lines().iter().any(|line| line.contains("stopped by")), "{:?}", demo.lines().last());
    assert_eq!(processes_of(place.path()), 0);
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("seawall-demo")), "{left:?}");
}
