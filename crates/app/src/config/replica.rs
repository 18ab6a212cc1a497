//! The replicated engine: where it is, how to be let in, and whether it can be trusted.

use std::path::PathBuf;

use super::finding::Finding;
use super::node::read_path;
use super::policies::read_switch;
use super::reader::{Field, Section};

/// The replicated engine.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// `nats://host:port` or `tls://host:port`, one of each zone.
    pub servers: Vec<String>,
    /// Copies of every record, one a server.
    pub copies: usize,
    /// Whom we are for the servers.
    pub user: Option<String>,
    /// A file whose first line is the password.
    pub password_file: Option<PathBuf>,
    /// Certificates of authorities to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The monitoring ports of the servers, `host:port`: they say whether a server syncs before it answers.
    pub monitors: Vec<String>,
    /// Servers that do not, or that cannot be asked, are taken all the same.
    pub accepts_unsynced: bool,
    /// Where `url` and `monitor` are written, for what the servers say of themselves.
    pub places: Box<[Finding; 2]>,
}

impl PartialEq for ReplicaConfig {
    /// Where it is written says nothing of what it is.
    fn eq(&self, other: &Self) -> bool {
        let Self { servers, copies, user, password_file, ca_file, monitors, accepts_unsynced, places: _ } = self;
        (servers, copies, user, password_file, ca_file, monitors, accepts_unsynced)
            == (
                &other.servers,
                &other.copies,
                &other.user,
                &other.password_file,
                &other.ca_file,
                &other.monitors,
                &other.accepts_unsynced,
            )
    }
}

impl Eq for ReplicaConfig {}

const COPIES: usize = 3;
const NATS_PORT: u16 = 4222;

/// Keys of `store` that mean nothing without `url`.
pub(super) const KEYS: [&str; 6] = ["copies", "user", "password_file", "ca_file", "monitor", "accept_unsynced"];

pub(super) fn read(section: &Section<'_>) -> Option<ReplicaConfig> {
    let Some(url) = section.field("url") else {
        for field in KEYS.iter().filter_map(|key| section.field(key)) {
            field.error_with(
                "it is about the servers of `url`, and none are named",
                "add `url: nats://zone-1:4222,nats://zone-2:4222,nats://zone-3:4222`",
            );
        }
        return None;
    };
    let monitors: Vec<String> = section
        .field("monitor")
        .map(|field| field.list_or_one().into_iter().filter_map(|item| item.parsed(parse_monitor)).collect())
        .unwrap_or_default();
    let place = |field: Option<Field<'_>>| url.reader.place(field.unwrap_or(url).spot());
    let config = ReplicaConfig {
        places: Box::new([place(None), place(section.field("monitor"))]),
        servers: url.parsed(parse_servers).unwrap_or_default(),
        copies: section.field("copies").and_then(|field| field.parsed(parse_copies)).unwrap_or(COPIES),
        user: section.field("user").and_then(|field| field.parsed(|text| Ok(text.to_owned()))),
        password_file: section.field("password_file").and_then(read_path),
        ca_file: section.field("ca_file").and_then(read_path),
        monitors,
        accepts_unsynced: section.field("accept_unsynced").is_some_and(read_switch),
    };
    if let (Some(field), None) = (section.field("password_file"), &config.user) {
        field.error_with("a password without a user", "add `user`");
    }
    let is_double = |(at, monitor): (usize, &String)| config.monitors[..at].contains(monitor);
    if let (Some(field), true) = (section.field("monitor"), config.monitors.iter().enumerate().any(is_double)) {
        field.error_with("a monitoring port is listed twice", "list the port of each server once");
    }
    if config.user.is_some() && config.servers.iter().any(|server| server.starts_with("nats://")) {
        let message = "the password goes over the network in clear";
        url.reader.warning(url.spot(), message, "use `tls://`, or a network that nobody else reads");
    }
    if config.monitors.is_empty() && !config.accepts_unsynced {
        let message = "whether these servers sync what they keep before they answer cannot be seen; one that does not (the \
                       default of NATS is every two minutes) loses accepted writes when the power goes";
        let hint = "list their monitoring ports, `monitor: [http://zone-1:8222, ...]`, or say `accept_unsynced: true`";
        url.error_with(message, hint);
    } else if !config.monitors.is_empty() && config.monitors.len() < config.copies && !config.accepts_unsynced {
        let message = format!("{} of {} servers are looked at", config.monitors.len(), config.copies);
        let at = section.field("monitor").unwrap_or(url);
        at.reader.warning(at.spot(), message, "list the monitoring port of each");
    }
    Some(config)
}

/// `nats://a:4222,nats://b:4222`.
fn parse_servers(text: &str) -> Result<Vec<String>, String> {
    let servers: Vec<_> = text
        .split(',')
        .map(|server| {
            let server = server.trim();
            let Some((scheme @ ("nats" | "tls"), rest)) = server.split_once("://") else {
                return Err(format!("`{server}` is no server: expected `nats://host:port`, or `tls://host:port`"));
            };
            if rest.contains('@') {
                return Err("a password does not belong into a configuration: use `user` and `password_file`".into());
            }
            let authority = authority(rest, Some(NATS_PORT)).ok_or(format!("`{server}` has no host, or no port"))?;
            Ok(format!("{scheme}://{authority}"))
        })
        .collect();
    let wrong: Vec<String> = servers.iter().filter_map(|server| server.clone().err()).collect();
    if wrong.is_empty() { Ok(servers.into_iter().flatten().collect()) } else { Err(wrong.join("; ")) }
}

/// `http://a:8222`.
fn parse_monitor(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    authority(rest, None).ok_or(format!("`{text}` is no monitoring port: expected `http://host:8222`"))
}

/// `host:port`, with a port of its own or a usual one.
fn authority(text: &str, usual: Option<u16>) -> Option<String> {
    let ends_in_port = text.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let (host, port) = match (ends_in_port, usual) {
        (true, _) => text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))?,
        (false, Some(usual)) => (text, usual),
        (false, None) => return None,
    };
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#', ' ', '@']);
    (is_host && port > 0).then(|| format!("{host}:{port}"))
}

fn parse_copies(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(copies @ (1 | 3 | 5)) => Ok(copies),
        _ => Err(format!("`{text}` copies cannot agree: 1, 3 or 5 can")),
    }
}
