//! NATS servers with JetStream, as a test needs them: one, or a cluster of three that can be killed, stopped and wiped.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::house::{Answer, Client, local, port, wait_until};
use crate::process::Process;

/// What `./test` installs.
fn program() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/nats/bin/nats-server");
    assert!(tools.is_file(), "there is no NATS server: `./test install` gets one");
    tools
}

/// How a server syncs what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before it answers.
    Always,
    /// Every two minutes: its default.
    Lazily,
}

/// One server.
pub struct Server {
    pub name: String,
    pub port: u16,
    pub monitor: u16,
    dir: PathBuf,
    config: PathBuf,
    process: Option<Process>,
}

impl Server {
    fn start(&mut self) {
        let mut command = Command::new(program());
        self.process = Some(Process::start(command.arg("-c").arg(&self.config)));
    }

    fn is_healthy(&self) -> bool {
        self.ask("/healthz").is_some_and(|answer| answer.status == 200)
    }

    /// What its monitoring port says; `None` if nobody is there.
    pub fn ask(&self, target: &str) -> Option<Answer> {
        let mut client = Client::connect(local(self.monitor)).ok()?;
        // One that is stopped answers nobody.
        client.stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        client.try_ask(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGSTOP: its connections stay, and nobody answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    /// Forgets everything it had written.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(&self.dir).expect("its folder");
    }
}

/// Servers that know each other.
pub struct Cluster {
    _dir: tempfile::TempDir,
    pub servers: Vec<Server>,
}

impl Cluster {
    /// So many servers, ready to serve.
    pub fn start(count: usize, sync: Sync) -> Self {
        Self::with(count, sync, "")
    }

    /// With more in the configuration of each.
    pub fn with(count: usize, sync: Sync, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let routes: Vec<u16> = (0..count).map(|_| port()).collect();
        let servers = (0..count).map(|n| {
            let name = format!("zone-{}", n + 1);
            let (port, monitor, home) = (port(), port(), dir.path().join(&name));
            let mut text = format!(
                "server_name: {name}\nlisten: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor}\n\
                 jetstream {{ store_dir: {home:?}, max_file_store: 4GB, max_memory_store: 64MB{} }}\n{more}\n",
                if sync == Sync::Always { ", sync_interval: always" } else { "" }
            );
            if count > 1 {
                let all: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
                let (here, all) = (routes[n], all.join(", "));
                let _ = writeln!(text, "cluster {{ name: zones, listen: 127.0.0.1:{here}, routes: [{all}] }}");
            }
            let config = dir.path().join(format!("{name}.conf"));
            std::fs::write(&config, text).expect("a file");
            Server { name, port, monitor, dir: home, config, process: None }
        });
        let mut cluster = Self { servers: servers.collect(), _dir: dir };
        cluster.servers.iter_mut().for_each(Server::start);
        cluster.await_health();
        cluster
    }

    /// The servers, as a configuration lists them.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(|server| format!("nats://127.0.0.1:{}", server.port)).collect()
    }

    pub fn restart(&mut self, n: usize) {
        self.servers[n].kill();
        self.servers[n].start();
    }

    /// Waits until all are well.
    pub fn await_health(&self) {
        for server in &self.servers {
            wait_until(&format!("NATS server {} is well", server.name), || server.is_healthy());
        }
    }

    /// The server that leads a stream, as the others say.
    pub fn leader(&self, stream: &str) -> Option<usize> {
        let asked = self.servers.iter().filter(|server| server.process.is_some());
        for server in asked {
            let Some(answer) = server.ask("/jsz?streams=true") else { continue };
            let body = answer.json();
            let accounts = body["account_details"].as_array().cloned().unwrap_or_default();
            let mut streams =
                accounts.iter().flat_map(|it| it["stream_detail"].as_array().cloned().unwrap_or_default());
            if let Some(found) = streams.find(|it| it["name"] == stream)
                && let Some(leader) = found["cluster"]["leader"].as_str()
            {
                return self.servers.iter().position(|server| server.name == leader);
            }
        }
        None
    }
}
