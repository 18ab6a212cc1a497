//! What the system's files say about names: who is asked (`nsswitch.conf`), which servers and how (`resolv.conf`), and
//! what needs no asking (`hosts`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

/// As many of each as the C library takes.
const SERVERS_MAX: usize = 3;
const NDOTS_MAX: usize = 15;
const TIMEOUT_MAX_S: u64 = 30;
const ATTEMPTS_MAX: usize = 5;
/// What systemd-resolved listens on: whoever asks there gets what the source `resolve` tells.
const RESOLVED: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];

/// Who is asked for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `/etc/hosts`.
    Files,
    /// The servers of `/etc/resolv.conf`.
    Dns,
    /// The system's own resolver, for what only it knows.
    System,
}

/// The files as they are.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// `/etc/nsswitch.conf`.
    pub(super) switch: String,
    /// `/etc/resolv.conf`.
    pub(super) resolv: String,
    /// `/etc/hosts`.
    pub(super) hosts: String,
    /// What this machine is called.
    pub(super) hostname: String,
    /// The environment says something about names too.
    pub(super) is_overridden: bool,
}

/// Which servers are asked, and for what.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Servers {
    pub(super) addresses: Vec<SocketAddr>,
    /// Domains that a name may lie in.
    pub(super) search: Vec<String>,
    /// A name with so many dots is asked for as it is first.
    pub(super) ndots: usize,
    pub(super) timeout: Duration,
    pub(super) attempts: usize,
    pub(super) by_tcp: bool,
    pub(super) without_ipv6: bool,
}

impl Files {
    /// Reads them. One that is not there says nothing.
    pub(super) fn of_the_system() -> Self {
        let read = |path: &str| fs::read(Path::new(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let read = |path| read(path).unwrap_or_default();
        Self {
            switch: read("/etc/nsswitch.conf"),
            resolv: read("/etc/resolv.conf"),
            hosts: read("/etc/hosts"),
            hostname: read("/proc/sys/kernel/hostname").trim().to_owned(),
            is_overridden: ["LOCALDOMAIN", "RES_OPTIONS", "HOSTALIASES"].iter().any(|name| env::var_os(name).is_some()),
        }
    }

    /// Who is asked, in order, and which servers. `None` if there is anything in it that only the system's own resolver
    /// understands.
    pub(super) fn understood(&self) -> Option<(Vec<Source>, Servers)> {
        let servers = Servers::read(&self.resolv, &self.hostname)?;
        let sources = self.sources(&servers)?;
        Some((sources, servers)).filter(|_| !self.is_overridden)
    }

    fn sources(&self, servers: &Servers) -> Option<Vec<Source>> {
        let line = self.switch.lines().find_map(|line| without_comment(line).trim().strip_prefix("hosts:"));
        let asks_resolved =
            || servers.addresses.iter().all(|server| RESOLVED.iter().any(|there| server.ip() == *there));
        let (mut sources, mut may_decide) = (Vec::new(), false);
        for word in line.unwrap_or("files dns").split_whitespace() {
            match word {
                "files" => sources.push(Source::Files),
                "dns" => sources.push(Source::Dns),
                "resolve" if asks_resolved() => sources.push(Source::Dns),
                // This machine's own name, and its router's.
                "myhostname" => sources.push(Source::System),
                // What `resolve` says stands unless it is not there: so it is with its server.
                "[!UNAVAIL=return]" if may_decide => {}
                _ => return None,
            }
            may_decide = word == "resolve";
        }
        // Who is asked last is not asked twice. The system knows what these know, so it goes last.
        let asks_system = sources.contains(&Source::System);
        sources.retain(|source| *source != Source::System);
        sources.dedup();
        sources.extend(asks_system.then_some(Source::System));
        Some(sources)
    }

    /// Every address this name has in `/etc/hosts`, if any.
    pub(super) fn addresses(&self, host: &str) -> Option<Vec<IpAddr>> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let mut found = Vec::new();
        for line in self.hosts.lines() {
            let mut words = without_comment(line).split_whitespace();
            let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
            if words.any(|name| name.eq_ignore_ascii_case(host)) {
                found.push(address);
            }
        }
        Some(found).filter(|found| !found.is_empty())
    }
}

impl Servers {
    /// `None` if a server is written in a way that only the C library understands, such as one with a network
    /// interface.
    fn read(resolv: &str, hostname: &str) -> Option<Self> {
        let own_domain = hostname.split_once('.').map(|(_, domain)| domain.to_owned());
        let mut servers = Self {
            addresses: Vec::new(),
            search: own_domain.into_iter().collect(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            by_tcp: false,
            without_ipv6: false,
        };
        for line in resolv.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next()?.parse().ok()?;
                    servers.addresses.push(SocketAddr::new(server, 53));
                }
                Some("search") => servers.search = words.map(Into::into).collect(),
                Some("domain") => servers.search = words.take(1).map(Into::into).collect(),
                Some("options") => words.for_each(|word| servers.option(word)),
                _ => {}
            }
        }
        servers.addresses.truncate(SERVERS_MAX);
        if servers.addresses.is_empty() {
            servers.addresses.push((Ipv4Addr::LOCALHOST, 53).into());
        }
        Some(servers)
    }

    /// Those that are not known here concern how the C library asks, not what comes of it.
    fn option(&mut self, word: &str) {
        let (key, value) = word.split_once(':').unwrap_or((word, ""));
        let count = value.parse::<u64>().ok();
        match (key, count) {
            ("ndots", Some(count)) => self.ndots = usize::try_from(count).unwrap_or(NDOTS_MAX).min(NDOTS_MAX),
            ("timeout", Some(seconds)) => self.timeout = Duration::from_secs(seconds.clamp(1, TIMEOUT_MAX_S)),
            ("attempts", Some(count)) => {
                self.attempts = usize::try_from(count).unwrap_or(ATTEMPTS_MAX).clamp(1, ATTEMPTS_MAX);
            }
            ("use-vc", None) => self.by_tcp = true,
            ("no-aaaa", None) => self.without_ipv6 = true,
            _ => {}
        }
    }

    /// What a name may stand for, in the order in which to ask.
    pub(super) fn candidates(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.into()];
        }
        let as_it_is = [format!("{host}.")];
        let within = self.search.iter().map(|domain| match domain.trim_matches('.') {
            "" => format!("{host}."),
            domain => format!("{host}.{domain}."),
        });
        let mut names: Vec<String> = if host.matches('.').count() >= self.ndots {
            as_it_is.into_iter().chain(within).collect()
        } else {
            within.chain(as_it_is).collect()
        };
        let mut place = 0;
        while place < names.len() {
            let is_new = !names[..place].contains(&names[place]);
            if is_new { place += 1 } else { drop(names.remove(place)) }
        }
        names
    }
}

fn without_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(switch: &str, resolv: &str) -> Files {
        Files { switch: switch.into(), resolv: resolv.into(), ..Files::default() }
    }

    fn servers(resolv: &str) -> Servers {
        Servers::read(resolv, "web1").unwrap()
    }

    #[test]
    fn who_is_asked_is_in_the_switch() {
        use Source::{Dns, Files as Hosts, System};
        let stub = "nameserver 127.0.0.53\n";
        for (switch, resolv, expected) in [
            ("", "", Some(vec![Hosts, Dns])),
            ("passwd: ldap\nhosts: files dns # and no more\n", "", Some(vec![Hosts, Dns])),
            ("hosts: dns files", "", Some(vec![Dns, Hosts])),
            ("hosts: files", "", Some(vec![Hosts])),
            ("hosts: files myhostname dns", "", Some(vec![Hosts, Dns, System])),
            ("hosts: resolve [!UNAVAIL=return] files dns", stub, Some(vec![Dns, Hosts, Dns])),
            ("hosts: files resolve dns", stub, Some(vec![Hosts, Dns])),
            // It knows of networks with names of their own, which its servers do not.
            ("hosts: resolve files dns", "nameserver 10.0.0.2\n", None),
            ("hosts: files mdns4_minimal [NOTFOUND=return] dns", "", None),
            ("hosts: files [!UNAVAIL=return] dns", "", None),
            ("hosts: files ldap", "", None),
        ] {
            assert_eq!(files(switch, resolv).understood().map(|known| known.0), expected, "{switch}");
        }
        assert_eq!(Files { is_overridden: true, ..files("", "") }.understood(), None);
        assert_eq!(files("", "nameserver fe80::1%eth0\n").understood(), None);
        assert_eq!(files("", "nameserver\n").understood(), None);
    }

    #[test]
    fn which_servers_are_asked_and_how() {
        let none = servers("");
        assert_eq!((none.addresses, none.search, none.ndots), (vec!["127.0.0.1:53".parse().unwrap()], vec![], 1));
        let pod = servers(
            "# of a pod\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\n\
             options ndots:5 timeout:2 attempts:3 rotate edns0 trust-ad\n",
        );
        assert_eq!(pod.addresses, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!((pod.search.len(), pod.ndots, pod.timeout, pod.attempts), (3, 5, Duration::from_secs(2), 3));
        let odd = servers(
            "domain old.example\nsearch one.example\nnameserver ::1 ; this machine\nnameserver 10.0.0.1\n\
             nameserver 10.0.0.2\nnameserver 10.0.0.3\noptions ndots:99 timeout:0 attempts:99 use-vc no-aaaa ndots:x\n",
        );
        assert_eq!(odd.addresses, ["[::1]:53", "10.0.0.1:53", "10.0.0.2:53"].map(|it| it.parse().unwrap()));
        assert_eq!(odd.search, ["one.example"], "the last line counts");
        assert_eq!((odd.ndots, odd.timeout, odd.attempts), (15, Duration::from_secs(1), 5));
        assert!(odd.by_tcp && odd.without_ipv6);
        assert_eq!(Servers::read("", "web1.corp.example").unwrap().search, ["corp.example"]);
        assert_eq!(servers("domain corp.example other\n").search, ["corp.example"]);
    }

    #[test]
    fn a_name_is_looked_for_in_the_domains_of_the_list() {
        let pod = servers("search shop.svc.cluster.local cluster.local.\noptions ndots:2\n");
        for (host, expected) in [
            ("depot", vec!["depot.shop.svc.cluster.local.", "depot.cluster.local.", "depot."]),
            ("depot.test", vec!["depot.test.shop.svc.cluster.local.", "depot.test.cluster.local.", "depot.test."]),
            (
                "a.depot.test",
                vec!["a.depot.test.", "a.depot.test.shop.svc.cluster.local.", "a.depot.test.cluster.local."],
            ),
            ("depot.", vec!["depot."]),
        ] {
            assert_eq!(pod.candidates(host), expected);
        }
        let root = servers("search .\n");
        assert_eq!(root.candidates("depot"), ["depot."]);
    }

    #[test]
    fn all_addresses_of_a_name_in_the_file() {
        let hosts =
            "127.0.0.1 localhost\n10.0.0.1 depot.test Depot # not this\n10.0.0.2\tdepot\nfd00::1 depot\nx depot\n";
        let files = Files { hosts: hosts.into(), ..Files::default() };
        let addresses =
            |host| files.addresses(host).map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(addresses("DEPOT").unwrap(), ["10.0.0.1", "10.0.0.2", "fd00::1"]);
        assert_eq!(addresses("depot.test.").unwrap(), ["10.0.0.1"]);
        assert_eq!(addresses("not"), None);
        assert_eq!(addresses("this"), None);
    }
}
