//! Zones as the kernel has them: network namespaces on one bridge, which can be cut off one by one with nftables. Built
//! by whoever needs them and taken down again, however the test ends.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use crate::house::{local, port};

/// Namespaces on one bridge. The test itself, and a node it starts, are on the bridge.
pub struct Network {
    bridge: String,
    namespaces: Vec<String>,
    /// `10.x.y`, of this network alone.
    prefix: String,
}

impl Network {
    /// `None`, and says so, where the machine refuses.
    pub fn new(count: usize) -> Option<Self> {
        let id = port();
        let prefix = format!("10.{}.{}", 64 + id / 256 % 64, id % 256);
        let mut network = Self { bridge: format!("sw{id}"), namespaces: Vec::new(), prefix };
        let bridge = network.bridge.clone();
        let made = Command::new("ip").args(["link", "add", &bridge, "type", "bridge"]).output();
        if !made.as_ref().is_ok_and(|made| made.status.success()) {
            eprintln!("NOT TESTED: this machine makes no network namespaces: {made:?}");
            return None;
        }
        let ip = |words: &str| must(Command::new("ip").args(words.split(' ')));
        ip(&format!("addr add {}.254/24 dev {bridge}", network.prefix));
        ip(&format!("link set {bridge} up"));
        for n in 1..=count {
            let (namespace, outside) = (format!("{bridge}n{n}"), format!("{bridge}v{n}"));
            ip(&format!("netns add {namespace}"));
            network.namespaces.push(namespace.clone());
            ip(&format!("link add {outside} type veth peer name eth0 netns {namespace}"));
            ip(&format!("link set {outside} master {bridge} up"));
            ip(&format!("-n {namespace} addr add {}.{n}/24 dev eth0", network.prefix));
            ip(&format!("-n {namespace} link set eth0 up"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        Some(network)
    }

    /// Drops every packet of a namespace, in both directions.
    pub fn cut(&self, n: usize) {
        let rules = "table inet cut { chain i { type filter hook input priority 0; policy drop; }; \
                     chain o { type filter hook output priority 0; policy drop; }; }";
        self.nft(n, &["add", rules]);
    }

    pub fn mend(&self, n: usize) {
        self.nft(n, &["delete", "table", "inet", "cut"]);
    }

    fn nft(&self, n: usize, arguments: &[&str]) {
        must(Command::new("ip").args(["netns", "exec", &self.namespaces[n], "nft"]).args(arguments));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).status();
    }
}

/// An address for a server in a namespace, or on the machine itself where there are none.
pub fn address_in(network: Option<&Network>, n: usize) -> SocketAddr {
    let Some(network) = network else { return local(port()) };
    let host: IpAddr = format!("{}.{}", network.prefix, n + 1).parse().expect("an address");
    SocketAddr::new(host, port())
}

/// A program in a namespace, or on the machine itself where there are none.
pub fn command_in(network: Option<&Network>, n: usize, program: &Path) -> Command {
    let Some(network) = network else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &network.namespaces[n]]).arg(program);
    command
}

fn must(command: &mut Command) {
    let output = command.output().expect("it can be started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
