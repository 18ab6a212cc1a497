//! Names that move, and names that nobody knows any more: the node runs in a mount namespace whose files about names
//! are ours to write, and asks a server of ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use rustix::process::Signal;

use crate::house::{Node, Place, SEAWALL, wait_until};
use crate::process::{Process, code};
use crate::server::{Server, answer, ok};

/// Puts three files over the system's and becomes the rest of the command.
const OVER: &str = "mount --bind hosts /etc/hosts && mount --bind nsswitch.conf /etc/nsswitch.conf && \
                    mount --bind resolv.conf /etc/resolv.conf && exec \"$@\"";

/// Runs a command with these files in place of the system's.
fn over(place: &Place, then: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", OVER, "sh"]).args(then).current_dir(place.path()).env_remove("SEAWALL_LOG");
    command
}

/// A node there, unless this machine lets nobody put one file over another.
fn node(place: &Place) -> Option<Node> {
    let may = over(place, &["true"]).output().expect("unshare runs");
    if !may.status.success() {
        println!("no mounts here, so this proves nothing here: {}", String::from_utf8_lossy(&may.stderr).trim());
        return None;
    }
    let mut node = Node::of(Process::start(&mut over(place, &[SEAWALL, "run", "--log", "json"])));
    assert!(node.wait_ready(), "{:?}", node.process.lines());
    Some(node)
}

#[test]
fn a_name_is_asked_for_again_and_its_last_addresses_are_kept_while_nobody_knows_it() {
    // Every answer ends its connection, so that every call needs an address.
    let server = Server::start(|_| answer("200 OK", "Connection: close\r\n", "here"));
    let place = Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: depot, policy: p }}] }}]\n\
         upstreams: {{ depot: {{ url: \"http://depot.test:{}\" }} }}\n\
         policies: {{ p: {{ retry: off, breaker: off }} }}\n",
        server.address.port()
    ));
    place.write("hosts", "127.0.0.1 depot.test\n");
    place.write("nsswitch.conf", "hosts: files\n");
    place.write("resolv.conf", "");
    let Some(node) = node(&place) else { return };
    assert_eq!(node.get("/").body, "here");

    // Nobody knows it: told, and no call fails.
    place.write("hosts", "127.0.0.1 localhost\n");
    wait_until("it is told", || {
        assert_eq!(node.get("/").body, "here");
        node.process.lines().iter().any(|line| line.contains("does not resolve; its last addresses are kept"))
    });
    assert_eq!(node.get("/").body, "here");

    // It has moved to where nobody listens.
    place.write("hosts", "127.0.0.9 depot.test\n");
    wait_until("the call goes where the name is now", || node.get("/").status == 502);

    // It has two addresses, one of them dead: no call fails.
    place.write("hosts", "127.0.0.9 depot.test\n127.0.0.1 depot.test\n");
    wait_until("the other address is known", || node.get("/").status == 200);
    (0..20).for_each(|_| assert_eq!(node.get("/").body, "here"));
    assert_eq!(code(node.stop()), 0);
}

/// A name server of this test's own, on an address no other test has.
struct Names {
    address: Ipv4Addr,
    place: Place,
    server: Option<Process>,
}

impl Names {
    fn start(last: u8, hosts: &str) -> Self {
        let [high, low] = u16::try_from(std::process::id() % 0xffff).unwrap_or(1).to_be_bytes();
        let mut names = Self { address: Ipv4Addr::new(127, high, low, last), place: Place::empty(), server: None };
        names.tell(hosts);
        names.start_again();
        names
    }

    fn start_again(&mut self) {
        let mut command = Command::new("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
        ]);
        command.args(["--user=root", "--pid-file=", "--log-facility=-", "--local=/test/", "--local-ttl=1"]);
        command.args(["--cname=depot.shop.test,host.test"]).arg(format!("--listen-address={}", self.address));
        command.arg(format!("--addn-hosts={}", self.place.path().join("hosts").display()));
        let server = Process::start(&mut command);
        wait_until("the name server is there", || server.lines().iter().any(|line| line.contains("read ")));
        self.server = Some(server);
    }

    /// What it answers from here on.
    fn tell(&self, hosts: &str) {
        self.place.write("hosts", hosts);
        self.server.iter().for_each(|server| server.signal(Signal::HUP));
    }
}

#[test]
fn a_name_moves_with_its_ttl_and_takes_along_what_is_idle() {
    let first = Server::start(|_| ok("first"));
    let port = first.address.port();
    let _second = Server::start_at(SocketAddr::from(([127, 0, 0, 2], port)), |_| ok("second"));
    let mut names = Names::start(53, "127.0.0.1 host.test\n");
    // The name lies in the second domain of the list, as that of a service in Kubernetes may.
    let place = Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: depot, policy: p }}] }}]\n\
         upstreams: {{ depot: {{ url: \"http://depot:{port}\", idle_timeout: 10m }} }}\n\
         policies: {{ p: {{ retry: off, breaker: off }} }}\n"
    ));
    place.write("hosts", "");
    place.write("nsswitch.conf", "hosts: files dns\n");
    let resolv = format!("search none.test shop.test\nnameserver {}\noptions ndots:5\n", names.address);
    place.write("resolv.conf", &resolv);
    let Some(node) = node(&place) else { return };
    let addresses = || node.status()["upstreams"][0]["endpoints"][0]["addresses"].to_string();
    let failed =
        || node.metrics().get(&format!("seawall_dns_failures_total{{upstream=\"depot\",endpoint=\"depot:{port}\"}}"));
    assert_eq!(node.get("/").body, "first");
    assert_eq!(addresses(), format!("[\"127.0.0.1:{port}\"]"));

    // A connection is there and good for ten minutes, but the name is elsewhere.
    names.tell("127.0.0.2 host.test\n");
    wait_until("the name has moved", || addresses() == format!("[\"127.0.0.2:{port}\"]"));
    assert_eq!(node.get("/").body, "second");
    assert_eq!(failed(), 0);

    // Nobody to ask, then somebody who knows no such name: the last good address is kept, and each time is counted.
    names.server.take().expect("it runs").kill();
    wait_until("it is counted", || failed() > 0);
    assert_eq!(node.get("/").body, "second");
    names.tell("");
    names.start_again();
    let before = failed();
    wait_until("it is counted", || failed() > before + 1);
    assert_eq!(node.get("/").body, "second");
    let told = |line: &String| line.contains("does not resolve; its last addresses are kept");
    assert!(node.process.lines().iter().any(told));

    // Another server, by another file: it is read again, and the node asks there.
    let other = Names::start(54, "127.0.0.1 host.test\n");
    place.write("resolv.conf", &resolv.replace(&names.address.to_string(), &other.address.to_string()));
    wait_until("the name has moved back", || addresses() == format!("[\"127.0.0.1:{port}\"]"));
    assert_eq!(node.get("/").body, "first");
    assert_eq!(code(node.stop()), 0);
}
