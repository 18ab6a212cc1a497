//! The house in order: arrows that end in `core`, a `core` without a clock, documented modules, nothing unfinished.
//! `clippy.toml` bans what a compiler can see; here is the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which of our crates may use which. Nothing may use `sim`, and only `app` may use `demo`.
const ARROWS: [(&str, &[&str]); 8] = [
    ("seawall-core", &[]),
    ("seawall-store", &["seawall-core"]),
    ("seawall-gateway", &["seawall-core", "seawall-store"]),
    ("seawall-control", &["seawall-core", "seawall-store"]),
    ("seawall-client", &[]),
    ("seawall-demo", &["seawall-client", "seawall-core"]),
    ("seawall", &["seawall-control", "seawall-core", "seawall-demo", "seawall-gateway", "seawall-store"]),
    ("seawall-sim", &["seawall", "seawall-control", "seawall-core", "seawall-gateway", "seawall-store"]),
];

/// What would let a clock, a socket, a thread or chance into `core`, however far down.
const NOT_BELOW_CORE: [&str; 11] = [
    "async-std",
    "futures-executor",
    "getrandom",
    "hyper",
    "mio",
    "rand",
    "rand_core",
    "rustix",
    "smol",
    "socket2",
    "tokio",
];

/// What `core` never says.
const NOT_IN_CORE: [&str; 9] =
    ["std::fs", "std::thread", "Instant", "SystemTime", "async fn", "RandomState", "HashMap", "HashSet", "std::env"];

/// Of the standard library's network, addresses are only numbers.
const NET_TYPES: [&str; 4] = ["SocketAddr", "IpAddr", "Ipv4Addr", "Ipv6Addr"];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("crates/sim lies two folders deep").to_path_buf()
}

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    // Crates for other systems than this one have not been fetched, and are not built.
    let version = Command::new("rustc").arg("-vV").output().expect("rustc runs").stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc knows its host");
    let arguments = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host];
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo speaks JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Every file below a folder whose name ends so.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                dirs.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, text)
    };
    files(&root().join("crates"), ".rs").into_iter().map(read).collect()
}

/// Lines of code with their numbers: no comments, and nothing from the tests at a file's end on.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn arrows_end_in_core() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut wrong = Vec::new();
    for package in list(&metadata, "packages").filter(|package| package["source"].is_null()) {
        let name = text(package, "name");
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        for dependency in list(package, "dependencies") {
            let (to, kind) = (text(dependency, "name"), text(dependency, "kind"));
            let is_ours = ARROWS.iter().any(|(ours, _)| *ours == to);
            if is_ours && kind != "dev" && !allowed.contains(&to) {
                wrong.push(format!("{name} -> {to}"));
            }
        }
    }
    assert_none("dependencies against the table", &wrong);
}

#[test]
fn nothing_below_core_knows_time_or_chance() {
    let metadata = metadata();
    let nodes: BTreeMap<&str, &Value> =
        list(&metadata["resolve"], "nodes").map(|node| (text(node, "id"), node)).collect();
    let names: BTreeMap<&str, &str> =
        list(&metadata, "packages").map(|package| (text(package, "id"), text(package, "name"))).collect();
    let core = names.iter().find(|(_, name)| **name == "seawall-core").expect("there is a core").0;
    let (mut below, mut open) = (BTreeSet::new(), vec![*core]);
    while let Some(id) = open.pop() {
        for dependency in list(nodes[id], "deps") {
            let is_linked = list(dependency, "dep_kinds").any(|kind| kind["kind"].is_null());
            let id = text(dependency, "pkg");
            if is_linked && below.insert(names[id]) {
                open.push(id);
            }
        }
    }
    let wrong: Vec<String> = NOT_BELOW_CORE.iter().filter(|name| below.contains(*name)).map(|s| (*s).into()).collect();
    assert!(below.contains("serde"), "the walk finds what is there");
    assert_none("core depends on", &wrong);
}

#[test]
fn core_says_nothing_of_clocks_sockets_files_or_threads() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if !path.starts_with(root().join("crates/core/src")) || path.ends_with("tests.rs") {
            continue;
        }
        for (number, line) in code(&text) {
            let is_socket =
                line.split("std::net::").skip(1).any(|rest| !NET_TYPES.iter().any(|ty| rest.starts_with(ty)));
            if is_socket || NOT_IN_CORE.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{}:{number}: {line}", path.display()));
            }
        }
    }
    assert_none("in core", &wrong);
}

#[test]
fn only_those_who_own_a_clock_may_read_it() {
    let owners = ["crates/app/src/clock.rs", "crates/demo/src/clock.rs", "crates/gateway/src/clock.rs"];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let relative = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        let is_test = relative.contains("/tests/") || relative.contains("/examples/");
        let lifts_a_ban = |line: &str| line.contains("clippy::disallowed_");
        for (number, line) in code(&text).filter(|(_, line)| lifts_a_ban(line)) {
            if !is_test && !owners.contains(&relative.as_str()) {
                wrong.push(format!("{relative}:{number}: {line}"));
            }
        }
    }
    assert_none("bans lifted where no clock belongs", &wrong);
}

#[test]
fn every_ban_has_its_reason() {
    let text = fs::read_to_string(root().join("clippy.toml")).expect("clippy.toml");
    let bans: Vec<&str> = text.lines().filter(|line| line.contains("path =")).collect();
    assert!(bans.len() >= 6, "{text}");
    let wrong: Vec<String> = bans.into_iter().filter(|ban| !ban.contains("reason =")).map(Into::into).collect();
    assert_none("bans without a reason", &wrong);
}

#[test]
fn every_crate_keeps_the_lints_of_the_house() {
    let manifests = files(&root().join("crates"), "Cargo.toml");
    let keeps = |path: &PathBuf| fs::read_to_string(path).expect("a manifest").contains("[lints]\nworkspace = true");
    let wrong: Vec<String> =
        manifests.iter().filter(|path| !keeps(path)).map(|path| path.display().to_string()).collect();
    assert_none("manifests without `[lints] workspace = true`", &wrong);
}

#[test]
fn every_file_says_what_it_is_for() {
    let is_silent = |text: &str| !text.starts_with("//! ") || text.lines().next().is_some_and(|line| line.len() < 20);
    let wrong: Vec<String> =
        sources().iter().filter(|(_, text)| is_silent(text)).map(|(path, _)| path.display().to_string()).collect();
    assert_none("files that do not open with `//! ...`", &wrong);
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    // In two pieces, so that this file does not find itself.
    let markers = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["todo", "!("], ["unimplemented", "!("], ["#[ign", "ore"]];
    let markers = markers.map(|pieces| pieces.concat());
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if markers.iter().any(|marker| line.contains(marker.as_str())) {
                wrong.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert_none("unfinished", &wrong);
}

/// Without `biased;` the order in which arms are asked comes from chance that no seed decides.
#[test]
fn what_the_world_runs_chooses_in_a_fixed_order() {
    let places = ["crates/sim/", "crates/gateway/", "crates/store/", "crates/app/src/book.rs"];
    // Beside real sockets only: no world runs the proxy of connections, or a log that another server keeps.
    let outside = ["crates/gateway/src/fault/place.rs", "crates/store/src/jetstream/"];
    let is_in = |relative: &str, places: &[&str]| places.iter().any(|place| relative.starts_with(place));
    // In two pieces, so that this file does not find itself.
    let choice = ["select!", " {"].concat();
    let (mut count, mut wrong) = (0, Vec::new());
    for (path, text) in sources() {
        let relative = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        if is_in(&relative, &outside) || !is_in(&relative, &places) {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        for (number, pair) in lines.windows(2).enumerate().filter(|(_, pair)| pair[0].contains(&choice)) {
            count += 1;
            if pair[1].trim() != "biased;" {
                wrong.push(format!("{relative}:{}: {}", number + 1, pair[0].trim()));
            }
        }
    }
    assert!(count > 20, "the search finds what is there: {count}");
    assert_none("choices without `biased;` on their first line", &wrong);
}

#[test]
fn pages_that_are_named_exist() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (at, _) in text.match_indices("docs/") {
            let page: String =
                text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/._-".contains(*c)).collect();
            let page = page.trim_end_matches('.');
            if page.ends_with(".md") && !root().join(page).exists() {
                wrong.push(format!("{}: {page}", path.display()));
            }
        }
    }
    assert_none("pages named and not written", &wrong);
}
