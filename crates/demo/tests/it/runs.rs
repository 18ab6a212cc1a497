//! Whole runs of the company before Seawall, with every part a process: what a user's terminal sees.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use seawall_demo::company::Company;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::*;

/// The example binary: where `cargo test` puts it, or where somebody says who builds it elsewhere (coverage does).
fn company() -> PathBuf {
    let told = std::env::var_os("SEAWALL_COMPANY").map(PathBuf::from);
    let beside = || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/company");
    let company = told.unwrap_or_else(beside);
    assert!(company.exists(), "`{}` is built by `cargo test -p seawall-demo`, not by `--test it`", company.display());
    company
}

fn demo(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(company());
    command.arg("demo").args(arguments).args(["--only", "before", "--report"]).arg(dir.join("report.html"));
    command.env("TMPDIR", dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Processes of the company that were given this folder, by their environment or command line: nobody else's.
fn processes_of(dir: &Path) -> Vec<String> {
    let needle = dir.display().to_string();
    let text = |path: PathBuf| Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).replace('\0', " "));
    let ours = |entry: std::fs::DirEntry| {
        let (words, environment) = (text(entry.path().join("cmdline"))?, text(entry.path().join("environ"))?);
        let given = words.contains(&needle) || environment.contains(&format!("TMPDIR={needle}"));
        (given && words.contains("demo-role")).then_some(words)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(ours).collect()
}

#[tokio::test]
async fn the_run_before_shows_what_such_code_costs() {
    let dir = tempfile::tempdir().unwrap();
    let output = demo(dir.path(), &["--json", "--speed", "6", "--rate", "60"]).output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "without the other run nothing is promised\n{told}");
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let before = &outcome["before"];
    assert_eq!((before["ledger"].as_str(), outcome["seed"].as_u64()), (Some("unknown"), Some(7)));
    assert!(before["availability_ratio"].as_f64().unwrap() < 0.999, "{before}");
    assert!(before["lost"].as_u64().unwrap() + before["duplicated"].as_u64().unwrap() > 0, "{before}");
    assert_eq!(
        before["generated"].as_u64().unwrap(),
        before["accepted"].as_u64().unwrap() + before["given_up"].as_u64().unwrap()
    );
    assert!(before["degraded_seen_after_s"].is_null(), "the health check was well all the time: {before}");
    assert!(outcome["model"]["mae_hours"].as_f64() < outcome["model"]["mae_baseline_hours"].as_f64());
    for phase in ["brown-out", "503", "reset", "cut", "surge", "(no node here)", "zone", "report:"] {
        assert!(told.contains(phase), "{phase} in\n{told}");
    }
    assert!(std::fs::read_to_string(dir.path().join("report.html")).unwrap().contains("<svg"));
    assert!(processes_of(dir.path()).is_empty());
}

#[tokio::test]
async fn the_table_ends_a_run_for_people() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.jsonl");
    let row = |n: u32| {
        format!(
            r#"{{"shipment_id":"MY{n}","sequence":1,"carrier":"mine","weekday":1,"hour":9,"distance_km":{},"weather":"clear","load":0.5}}"#,
            100 + n
        )
    };
    std::fs::write(&own, (0..40).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let input = own.display().to_string();
    let output = demo(dir.path(), &["--speed", "10", "--records", "30", "--input", &input]).output().await.unwrap();
    let (table, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for part in ["before\n", "available ", "records lost", "of 30\n", "ETA model: mean error"] {
        assert!(table.contains(part), "{part} in\n{table}\n{told}");
    }
    assert!(told.contains("30 of the input's 40 events fit"), "{told}");
}

/// Starts a run and waits until trouble begins.
async fn under_way(dir: &Path) -> Child {
    let mut child = demo(dir, &["--speed", "1"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("brown-out") {
            assert!(processes_of(dir).len() >= 10, "{:?}", processes_of(dir));
            return child;
        }
    }
    panic!("the run ended before trouble began");
}

async fn nobody_left(dir: &Path) {
    until("the last process's end", || async { processes_of(dir).is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_signal_ends_everything_in_order() {
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = under_way(dir.path()).await;
        let pid = child.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
        let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.expect("an end").unwrap();
        assert!(!status.success());
        assert!(processes_of(dir.path()).is_empty(), "{signal}: {:?}", processes_of(dir.path()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its folder is gone too");
    }
}

#[tokio::test]
async fn even_sigkill_of_the_conductor_leaves_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = under_way(dir.path()).await;
    child.kill().await.unwrap();
    nobody_left(dir.path()).await;
}

#[tokio::test]
async fn a_kept_program_goes_with_its_keeper() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Company::new(company(), dir.path().into());
    let words = |words: &[&str]| words.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
    let mark = format!("demo-role {}", dir.path().display());
    let script = format!("echo up; while :; do sleep 0.1; done # {mark}");
    stage.start("kept", words(&["keep", "--", "sh", "-c", &script])).unwrap();
    let log = dir.path().join("kept.log");
    until("the kept program", || async { std::fs::read_to_string(&log).ok().filter(|text| text.contains("up")) }).await;
    stage.close("kept").await;
    nobody_left(dir.path()).await;
}

#[tokio::test]
async fn who_does_not_start_is_named_with_his_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Company::new(company(), dir.path().into());
    stage.start("clerk", vec!["clerk".into()]).unwrap();
    let error = stage.ready(&Client::default(), "clerk", &address().to_string(), "/healthz").await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.starts_with("clerk ended with") && text.contains("unrecognized subcommand"), "{text}");
    assert!(stage.wait("nobody").await.is_err());
    stage.kill("nobody").await.unwrap();
    let missing = Company::new("/no/such/program".into(), dir.path().into());
    assert!(missing.start("x", Vec::new()).unwrap_err().to_string().contains("/no/such/program"));
}
