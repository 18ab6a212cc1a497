//! `seawall run --listen A --upstream U`: a policy without a file, with the guards' defaults.

use std::net::SocketAddr;
use std::path::PathBuf;

use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::policy::{Endpoint, Limits, Listener, Match, Policy, Protocol, Resolver, Route, Upstream};

use super::address::{Place, clash, is_tcp, parse_listen, parse_tcp_url, parse_url};
use super::finding::{Finding, Report, Severity, Source, Spot};
use super::policies::Rules;
use super::tls::{TlsConfig, UpstreamTls};
use super::upstreams::{CONNECT_TIMEOUT, CONNECTIONS_MAX, IDLE_TIMEOUT};
use super::{ADMIN_ADDRESS, AdminConfig, AppConfig, StoreConfig, digest};

/// What the command line says in place of a file.
#[derive(Clone, Debug, Default)]
pub struct Quick {
    /// `--listen`, such as `127.0.0.1:8080`, `:8080` or `tcp://:6379`.
    pub listen: String,
    /// `--upstream`, such as `http://127.0.0.1:3000` or `tcp://127.0.0.1:6380`.
    pub upstream: String,
    /// `--admin`, if given.
    pub admin: Option<String>,
    /// `--data`, if given.
    pub data: Option<PathBuf>,
}

/// The configuration for one catch-all route, called `default`; of connections where the upstream is a `tcp://`.
///
/// # Errors
/// Everything that is wrong with the options, at once.
pub fn quick(options: &Quick) -> Result<AppConfig, Report> {
    let mut findings = Vec::new();
    let protocol = if is_tcp(&options.upstream) { Protocol::Tcp } else { Protocol::Http };
    let where_to_listen = options.listen.strip_prefix("tcp://").unwrap_or(&options.listen);
    let listen = parse("--listen", where_to_listen, parse_listen, &mut findings);
    let there = match protocol {
        Protocol::Tcp => {
            let plain = |text: &str| Ok(Place { address: parse_tcp_url(text)?, sealed: false, host: String::new() });
            parse("--upstream", &options.upstream, plain, &mut findings)
        }
        Protocol::Http => parse("--upstream", &options.upstream, parse_url, &mut findings),
    };
    if is_tcp(&options.listen) && protocol == Protocol::Http {
        let message = "connections go to an upstream of connections".into();
        findings.push(finding("--upstream", &options.upstream, message, Some("write `tcp://host:port`")));
    }
    let admin = options.admin.as_deref().unwrap_or(ADMIN_ADDRESS);
    let admin = parse("--admin", admin, parse_listen, &mut findings);
    if let (Some(listen), Some(admin)) = (listen, admin)
        && clash(listen, admin)
    {
        let message = format!("`{listen}` is taken by the admin API on `{admin}`");
        findings.push(finding("--listen", &options.listen, message, Some("move one with `--listen` or `--admin`")));
    }
    match (listen, there, admin) {
        (Some(listen), Some(there), Some(admin)) if findings.is_empty() => {
            let at = finding("--upstream", &options.upstream, String::new(), None);
            let upstream_tls = there.sealed.then(|| UpstreamTls::plain(at));
            let tls = TlsConfig { listeners: vec![None], upstreams: vec![upstream_tls] };
            let store = StoreConfig::default();
            let path = options.data.clone().unwrap_or(store.path);
            let policy = policy(Listener::new(listen, vec![RouteId(0)]), protocol, there, options);
            let admin = AdminConfig { address: admin, token_file: None };
            Ok(AppConfig { policy, store: StoreConfig { path, ..store }, admin, tls, toxiproxy: None, faults: None })
        }
        _ => Err(Report { findings }),
    }
}

/// `--admin` in place of what a file says.
///
/// # Errors
/// What is wrong with it.
pub fn admin_address(text: &str, config: &AppConfig) -> Result<SocketAddr, Report> {
    let mut findings = Vec::new();
    let address = parse("--admin", text, parse_listen, &mut findings);
    let taken = |address: &SocketAddr| config.policy.listeners.iter().find(|other| clash(other.address, *address));
    if let Some(listener) = address.as_ref().and_then(taken) {
        let message = format!("`{text}` is taken by the listener on `{}`", listener.address);
        findings.push(finding("--admin", text, message, Some("use another port")));
    }
    let toxiproxy = config.toxiproxy.as_ref().map(|toxiproxy| toxiproxy.listen);
    if let (Some(address), Some(other)) = (address, toxiproxy)
        && clash(other, address)
    {
        let message = format!("`{text}` is taken by `toxiproxy` on `{other}`");
        findings.push(finding("--admin", text, message, Some("use another port")));
    }
    address.filter(|_| findings.is_empty()).ok_or(Report { findings })
}

fn policy(listener: Listener, protocol: Protocol, there: Place, options: &Quick) -> Policy {
    let Rules { guards, fallbacks, order_by, delivery, .. } = Rules::default();
    let upstream = Upstream {
        name: "default".into(),
        endpoints: vec![Endpoint::at(there.address)],
        health: None,
        outlier: None,
        balance: seawall_core::balance::BalanceConfig::default(),
        connections_max: CONNECTIONS_MAX,
        idle_timeout: IDLE_TIMEOUT,
        connect_timeout: CONNECT_TIMEOUT,
        announce: None,
        http2: false,
        host: there.sealed.then_some(there.host),
        resolver: Resolver::default(),
    };
    let (name, matcher, upstream_id) = ("default".into(), Match::default(), UpstreamId(0));
    Policy {
        // Two of these in a row on one machine are two nodes: a name of its own each, or the second sees a loop.
        node: format!("seawall-{}", listener.address.port()),
        zone: "local".into(),
        zones: vec!["local".into()],
        listeners: vec![listener],
        routes: vec![Route {
            name,
            protocol,
            matcher,
            upgrades: Vec::new(),
            upstream: upstream_id,
            guards,
            fallbacks,
            order_by,
            placement: seawall_core::policy::Placement::default(),
            delivery,
        }],
        upstreams: vec![upstream],
        limits: Limits::default(),
        digest: digest(format!("--listen {} --upstream {}", options.listen, options.upstream).as_bytes()),
    }
}

fn parse<T>(
    option: &str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
    findings: &mut Vec<Finding>,
) -> Option<T> {
    parse(text).map_err(|problem| findings.push(finding(option, text, problem, None))).ok()
}

fn finding(option: &str, text: &str, message: String, hint: Option<&str>) -> Finding {
    let source = Source { name: option.into(), text: text.into(), is_argument: true };
    let spot = Spot { line: 1, column: 1, length: text.chars().count() };
    source.finding(Severity::Error, spot, message, hint.map(Into::into))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn options(listen: &str, upstream: &str, admin: Option<&str>) -> Quick {
        Quick { listen: listen.into(), upstream: upstream.into(), admin: admin.map(Into::into), data: None }
    }

    #[test]
    fn one_route_takes_everything() {
        let data = Some("/data".into());
        let config = quick(&Quick { data, ..options(":8080", "http://localhost:3000", None) }).unwrap();
        let Policy { listeners, routes, upstreams, .. } = &config.policy;
        assert_eq!(listeners[0].address.to_string(), "0.0.0.0:8080");
        assert_eq!((routes.len(), routes[0].name.as_str(), &routes[0].matcher), (1, "default", &Match::default()));
        assert_eq!(upstreams[0].endpoints[0].address, "localhost:3000");
        assert!(routes[0].guards.breaker.is_some());
        assert_eq!(config.store.path, Path::new("/data"));
        assert_eq!(config.admin, AdminConfig::default());
        assert_eq!(config.policy.digest.len(), 64);
    }

    #[test]
    fn one_listener_takes_every_connection() {
        for listen in ["tcp://127.0.0.1:6379", "127.0.0.1:6379"] {
            let policy = quick(&options(listen, "tcp://localhost:6380", None)).unwrap().policy;
            assert_eq!((policy.tcp_route(0), policy.listeners[0].address.port()), (Some(RouteId(0)), 6_379));
            assert_eq!(policy.upstreams[0].endpoints[0].address, "localhost:6380");
        }
        let told = quick(&options("tcp://127.0.0.1:6379", "http://localhost:1", None)).unwrap_err().to_string();
        assert!(told.starts_with("--upstream: connections go to an upstream of connections"), "{told}");
        let told = quick(&options("tcp://127.0.0.1", "tcp://localhost", None)).unwrap_err();
        assert_eq!(told.errors(), 2, "{told}");
    }

    #[test]
    fn another_admin_address_must_be_free() {
        let mut config = quick(&options("127.0.0.1:8080", "http://h", None)).unwrap();
        config.toxiproxy = Some(super::super::ToxiproxyConfig { listen: SocketAddr::from(([127, 0, 0, 1], 8474)) });
        assert_eq!(admin_address("127.0.0.1:1", &config).unwrap().port(), 1);
        for (text, by) in [("127.0.0.1:8080", "the listener"), (":8474", "`toxiproxy`")] {
            let told = admin_address(text, &config).unwrap_err().to_string();
            assert!(told.contains(&format!("`{text}` is taken by {by} on `127.0.0.1:")), "{told}");
        }
    }

    #[test]
    fn every_option_that_is_wrong_is_told_at_once() {
        let report = quick(&options("8080", "ftp://api.example", Some(":x"))).unwrap_err();
        assert_eq!(report.errors(), 3);
        assert_eq!(
            report.to_string(),
            "--listen: `8080` has no port; write an address such as `127.0.0.1:8080` or `:8080`\n   |  8080\n   |  ^^^^\n\
             --upstream: `ftp://api.example`: `ftp` is not supported; upstreams are reached by http or https\n   \
             |  ftp://api.example\n   |  ^^^^^^^^^^^^^^^^^\n\
             --admin: `:x`: `x` is not a port, 0 to 65535\n   |  :x\n   |  ^^\n"
        );
        let report = quick(&options(":9900", "http://a", None)).unwrap_err().to_string();
        assert!(
            report.starts_with("--listen: `0.0.0.0:9900` is taken by the admin API on `127.0.0.1:9900`"),
            "{report}"
        );
    }
}
