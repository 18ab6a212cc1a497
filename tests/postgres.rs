//! A real PostgreSQL behind a TCP listener: its own benchmark and its own copy.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::house::{Node, Place, local, port, wait_until};
use crate::process::{Process, code};

/// Whom it runs as: it refuses to be root.
const USER: &str = "postgres";

struct Postgres {
    port: u16,
    dir: tempfile::TempDir,
    process: Process,
}

/// Where Debian keeps the programs of the newest version there is.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("the package `postgresql`");
    let newest = versions.flatten().max_by_key(|version| {
        version.file_name().to_string_lossy().parse::<f32>().map_or(0, |version| (version * 100.0) as u32)
    });
    newest.expect("a version").path().join("bin")
}

/// One of its programs, as its own user if we are root.
fn program(name: &str) -> Command {
    let path = programs().join(name);
    if !rustix::process::geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups"]).arg(path).env("HOME", "/").current_dir("/");
    command
}

fn must(output: std::io::Result<Output>) -> String {
    let output = output.expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(code(output.status), 0, "{out}{err}");
    format!("{out}{err}")
}

impl Postgres {
    fn start() -> Self {
        let (port, dir) = (port(), tempfile::tempdir().unwrap());
        if rustix::process::geteuid().is_root() {
            must(Command::new("chown").arg(USER).arg(dir.path()).output());
        }
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let data = dir.path().join("data");
        must(program("initdb").args(["-A", "trust", "-U", USER, "--no-sync", "-D"]).arg(&data).output());
        let mut command = program("postgres");
        command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port.to_string(), "-F", "-k"]).arg(dir.path());
        let mut process = Process::start(&mut command);
        wait_until("postgres serves", || {
            assert!(process.ended().is_none(), "postgres ended: {:?}", process.lines());
            asked(local(port).port(), "psql").args(["-c", "select 1"]).output().unwrap().status.success()
        });
        Self { port, dir, process }
    }

    fn node(&self) -> (Node, Place) {
        let place = Place::new(&format!(
            "listeners: [{{ address: \"127.0.0.1:0\", protocol: tcp, upstream: db }}]\n\
             upstreams: {{ db: {{ url: \"tcp://127.0.0.1:{}\", health: {{ every: 100ms }} }} }}\n",
            self.port
        ));
        (place.node(), place)
    }
}

impl Drop for Postgres {
    /// It takes its shared memory down itself.
    fn drop(&mut self) {
        self.process.signal(Signal::QUIT);
        if !std::thread::panicking() {
            self.process.wait();
        }
    }
}

/// One of its clients' programs, with where to ask.
fn asked(port: u16, name: &str) -> Command {
    let mut command = Command::new(programs().join(name));
    command.envs([("PGHOST", "127.0.0.1"), ("PGUSER", USER), ("PGDATABASE", USER), ("PGCONNECT_TIMEOUT", "60")]);
    command.env("PGPORT", port.to_string());
    command
}

fn sql(node: &Node, statement: &str) -> String {
    must(asked(node.address().port(), "psql").args(["-qAtc", statement]).output()).trim().to_owned()
}

/// Sessions that stay, and sessions for one transaction each.
#[test]
fn its_benchmark_runs_and_its_books_balance() {
    let postgres = Postgres::start();
    let (node, _place) = postgres.node();
    let port = node.address().port();
    must(asked(port, "pgbench").args(["-i", "-q", "-s", "1"]).output());
    let stay = must(asked(port, "pgbench").args(["-c", "8", "-j", "2", "-t", "100", "-n"]).output());
    assert!(stay.contains("number of transactions actually processed: 800/800"), "{stay}");
    let one_each = must(asked(port, "pgbench").args(["-C", "-c", "4", "-t", "50", "-n"]).output());
    assert!(one_each.contains("number of transactions actually processed: 200/200"), "{one_each}");
    assert_eq!(sql(&node, "select count(*) from pgbench_history"), "1000");
    let balances = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)";
    assert_eq!(sql(&node, balances), "t");
    wait_until("every session has ended", || node.metrics().get("seawall_connections_open{route=\"db\"}") == 0);
    let metrics = node.metrics();
    assert!(metrics.get("seawall_connections_opened_total{route=\"db\"}") > 200);
    let ended = |how: &str| metrics.get(&format!("seawall_connections_ended_total{{route=\"db\",how=\"{how}\"}}"));
    assert_eq!((ended("refused"), ended("failed"), ended("cut"), ended("idle")), (0, 0, 0, 0));
    assert_eq!(metrics.get("seawall_breaker_opened_total{route=\"db\"}"), 0);
    let endpoint = format!("seawall_endpoint_healthy{{upstream=\"db\",endpoint=\"127.0.0.1:{}\"}}", postgres.port);
    assert_eq!(metrics.get(&endpoint), 1, "its health is that it takes a connection");
}

fn copy(node: &Node, command: &str) {
    must(asked(node.address().port(), "psql").args(["-v", "ON_ERROR_STOP=1", "-qc", command]).output());
}

/// Some megabytes in and out again, byte for byte.
#[test]
fn a_copy_is_whole_both_ways() {
    let postgres = Postgres::start();
    let (node, place) = postgres.node();
    let rows: String =
        (0..120_000).map(|n| format!("{n}\t{:x}\tsome text that repeats\n", n * 2_654_435_761_u64)).collect();
    let (there, back): (&Path, PathBuf) = (&place.write("in", &rows), place.path().join("out"));
    sql(&node, "create table t (n int, x text, y text)");
    copy(&node, &format!("\\copy t from '{}'", there.display()));
    copy(&node, &format!("\\copy (select * from t order by n) to '{}'", back.display()));
    assert!(std::fs::read_to_string(&back).unwrap() == rows, "changed on the way");
    let metrics = node.metrics();
    for direction in ["up", "down"] {
        let bytes = metrics.get(&format!("seawall_connection_bytes_total{{route=\"db\",direction=\"{direction}\"}}"));
        assert!(bytes >= rows.len() as u64, "{direction}: {bytes} of {}", rows.len());
    }
    assert!(postgres.dir.path().join("data").is_dir());
}
