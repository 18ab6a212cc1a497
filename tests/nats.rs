//! NATS servers with JetStream, as a test needs them: one, or a cluster of three that can be killed, stopped, wiped
//! and, in network namespaces of their own, cut off.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Signal;

use crate::house::{Answer, Client, wait_until};
use crate::network::{Network, address_in, command_in};
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
    /// It has no JetStream at all.
    Never,
    /// Before it answers.
    Always,
    /// Every two minutes: its default.
    Lazily,
}

/// One server.
pub struct Server {
    pub name: String,
    pub address: SocketAddr,
    pub monitor: SocketAddr,
    /// The network it has a namespace of, if any, and which.
    network: Option<Rc<Network>>,
    place: usize,
    dir: PathBuf,
    config: PathBuf,
    process: Option<Process>,
}

impl Server {
    fn start(&mut self) {
        let mut command = command_in(self.network.as_deref(), self.place, &program());
        self.process = Some(Process::start(command.arg("-c").arg(&self.config)));
    }

    fn is_healthy(&self) -> bool {
        self.ask("/healthz").is_some_and(|answer| answer.status == 200)
    }

    /// What its monitoring port says; `None` if nobody is there.
    pub fn ask(&self, target: &str) -> Option<Answer> {
        let mut client = Client::connect(self.monitor).ok()?;
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

    /// Drops every packet of its namespace, in both directions.
    pub fn cut(&self) {
        self.network.as_ref().expect("it has a namespace").cut(self.place);
    }

    pub fn mend(&self) {
        self.network.as_ref().expect("it has a namespace").mend(self.place);
    }

    /// Forgets everything it had written.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(&self.dir).expect("its folder");
    }
}

/// Servers that know each other.
pub struct Cluster {
    pub servers: Vec<Server>,
    _dir: tempfile::TempDir,
    /// Goes last: who runs in it ends first.
    network: Option<Rc<Network>>,
}

impl Cluster {
    /// So many servers, ready to serve.
    pub fn start(count: usize, sync: Sync) -> Self {
        Self::with(count, sync, "")
    }

    /// Each server in a network namespace of its own, where the machine has them.
    pub fn apart(count: usize) -> Self {
        Self::on(count, Sync::Always, "", Network::new(count))
    }

    /// One server that has no JetStream.
    pub fn bare() -> Self {
        Self::with(1, Sync::Never, "")
    }

    /// With more in the configuration of each.
    pub fn with(count: usize, sync: Sync, more: &str) -> Self {
        Self::on(count, sync, more, None)
    }

    fn on(count: usize, sync: Sync, more: &str, network: Option<Network>) -> Self {
        let (dir, network) = (tempfile::tempdir().expect("a folder"), network.map(Rc::new));
        let at = |n: usize| address_in(network.as_deref(), n);
        let routes: Vec<SocketAddr> = (0..count).map(at).collect();
        let servers = (0..count).map(|n| {
            let name = format!("zone-{}", n + 1);
            let (address, monitor, home) = (at(n), at(n), dir.path().join(&name));
            let mut text = format!("server_name: {name}\nlisten: \"{address}\"\nhttp: \"{monitor}\"\n{more}\n");
            let always = if sync == Sync::Always { ", sync_interval: always" } else { "" };
            if sync != Sync::Never {
                let sizes = "max_file_store: 4GB, max_memory_store: 64MB";
                let _ = writeln!(text, "jetstream {{ store_dir: {home:?}, {sizes}{always} }}");
            }
            if count > 1 {
                let all: Vec<String> = routes.iter().map(|address| format!("\"nats://{address}\"")).collect();
                let (here, all) = (routes[n], all.join(", "));
                let _ = writeln!(text, "cluster {{ name: zones, listen: \"{here}\", routes: [{all}] }}");
            }
            let config = dir.path().join(format!("{name}.conf"));
            std::fs::write(&config, text).expect("a file");
            let network = network.clone();
            Server { name, address, monitor, network, place: n, dir: home, config, process: None }
        });
        let mut cluster = Self { servers: servers.collect(), _dir: dir, network };
        cluster.servers.iter_mut().for_each(Server::start);
        cluster.await_health();
        cluster
    }

    /// The servers, as a configuration lists them.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(|server| format!("nats://{}", server.address)).collect()
    }

    /// True if servers can be cut off.
    pub fn is_apart(&self) -> bool {
        self.network.is_some()
    }

    /// `store` of a node that keeps its replica here.
    pub fn store(&self) -> String {
        let monitors: Vec<String> =
            self.servers.iter().map(|server| format!("\"http://{}\"", server.monitor)).collect();
        format!(
            "store: {{ path: ./data, url: \"{}\", copies: {}, monitor: [{}] }}\n",
            self.urls().join(","),
            self.servers.len(),
            monitors.join(", ")
        )
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
