//! Names that move, and names that nobody knows any more, asked for through the system's own resolver: the node runs in
//! a mount namespace whose `/etc/hosts` is ours to write.

use std::path::Path;
use std::process::Command;

use crate::house::{Node, Place, SEAWALL, wait_until};
use crate::process::{Process, code};
use crate::server::{Server, answer};

/// Puts two files over the system's and becomes the rest of the command.
const OVER: &str = "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/nsswitch.conf && shift 2 && exec \"$@\"";

fn over(hosts: &Path, switch: &Path, then: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", OVER, "sh"]).arg(hosts).arg(switch).args(then);
    command
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
    let hosts = place.write("hosts", "127.0.0.1 depot.test\n");
    let switch = place.write("nsswitch.conf", "hosts: files\n");
    let may = over(&hosts, &switch, &["true"]).output().expect("unshare runs");
    if !may.status.success() {
        println!("no mounts here, so this proves nothing here: {}", String::from_utf8_lossy(&may.stderr).trim());
        return;
    }
    let mut command = over(&hosts, &switch, &[SEAWALL, "run", "--log", "json"]);
    command.current_dir(place.path()).env_remove("SEAWALL_LOG");
    let mut node = Node::of(Process::start(&mut command));
    assert!(node.wait_ready(), "{:?}", node.process.lines());
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
