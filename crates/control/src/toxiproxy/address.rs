//! Addresses as Go's `net` package reads them, with its messages.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Addresses of hosts that were looked up; of one that was not found, none.
pub(super) type Names = BTreeMap<String, Vec<IpAddr>>;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) address: SocketAddr,
    /// As Go prints it: without a host, only the port.
    pub(super) text: String,
}

/// The host of an address that has to be looked up before [`resolve`] can tell where it is.
pub(super) fn host_to_look_up(address: &str) -> Option<&str> {
    let (host, service) = split(address).ok()?;
    let is_name = !host.is_empty() && host.parse::<IpAddr>().is_err();
    (is_name && number(service).is_ok()).then_some(host)
}

/// Where an address is: `host:port`, `:port`, or nothing at all for any port of every interface. A name with several
/// addresses is its first IPv4 one.
///
/// # Errors
/// Go's message.
pub(super) fn resolve(names: &Names, address: &str) -> Result<Resolved, String> {
    let (host, service) = if address.is_empty() { ("", "") } else { split(address)? };
    let number = number(service)?;
    if host.is_empty() {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), number);
        return Ok(Resolved { address: any, text: format!(":{number}") });
    }
    let ip = match host.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) => {
            let all = names.get(host).map_or(&[][..], Vec::as_slice);
            let best = all.iter().find(|ip| ip.is_ipv4()).or(all.first());
            *best.ok_or_else(|| format!("lookup {host}: no such host"))?
        }
    };
    let address = SocketAddr::new(ip, number);
    Ok(Resolved { address, text: address.to_string() })
}

/// Where an upstream is, as Go's `net.Dial` reads it: without a host, here. Its names are looked up when it is called.
///
/// # Errors
/// Go's message.
pub(super) fn target(upstream: &str) -> Result<(String, u16), String> {
    let (host, service) = split(upstream)?;
    let host = if host.is_empty() { Ipv4Addr::LOCALHOST.to_string() } else { host.to_owned() };
    Ok((host, number(service)?))
}

fn split(address: &str) -> Result<(&str, &str), String> {
    let wrong = |why: &str| Err(format!("address {address}: {why}"));
    let Some(last_colon) = address.rfind(':') else { return wrong("missing port in address") };
    let (host, rest) = match address.strip_prefix('[') {
        Some(inner) => {
            let Some(end) = inner.find(']') else { return wrong("missing ']' in address") };
            if end + 2 == address.len() || (end + 2 < last_colon && !inner[end + 1..].starts_with(':')) {
                return wrong("missing port in address");
            }
            if end + 2 != last_colon {
                let is_colon = inner[end + 1..].starts_with(':');
                return wrong(if is_colon { "too many colons in address" } else { "missing port in address" });
            }
            (&inner[..end], &inner[end + 1..])
        }
        None => {
            let host = &address[..last_colon];
            if host.contains(':') {
                return wrong("too many colons in address");
            }
            (host, address)
        }
    };
    if rest.contains('[') || host.contains('[') {
        return wrong("unexpected '[' in address");
    }
    if rest.contains(']') || host.contains(']') {
        return wrong("unexpected ']' in address");
    }
    Ok((host, &address[last_colon + 1..]))
}

fn number(service: &str) -> Result<u16, String> {
    // A sign is a part of a number, and without digits the number is 0.
    let (is_below_zero, digits) = match service.as_bytes() {
        [sign @ (b'+' | b'-'), ..] => (*sign == b'-', &service[1..]),
        _ => (false, service),
    };
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let digits = digits.trim_start_matches('0');
        let number = if digits.is_empty() { Ok(0) } else { digits.parse() };
        let number = number.ok().filter(|number| *number == 0 || !is_below_zero);
        return number.ok_or_else(|| format!("address {service}: invalid port"));
    }
    match service.to_ascii_lowercase().as_str() {
        "domain" => Ok(53),
        "ftp" => Ok(21),
        "ftps" => Ok(990),
        "gopher" => Ok(70),
        "http" => Ok(80),
        "https" => Ok(443),
        "imap2" => Ok(143),
        "imap3" => Ok(220),
        "imaps" => Ok(993),
        "pop3" => Ok(110),
        "pop3s" => Ok(995),
        "smtp" => Ok(25),
        "submissions" => Ok(465),
        "ssh" => Ok(22),
        "telnet" => Ok(23),
        _ => Err(format!("lookup tcp/{service}: unknown port")),
    }
}

/// What the system said, without Rust's capital letter and number.
pub(super) fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().collect::<String>() + letters.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_split_as_in_go() {
        for (address, host, service) in
            [("localhost:80", "localhost", "80"), (":80", "", "80"), ("[::1]:80", "::1", "80"), ("a:", "a", "")]
        {
            assert_eq!(split(address), Ok((host, service)));
        }
        for (address, why) in [
            ("nope", "missing port in address"),
            ("[::1]", "missing port in address"),
            ("[::1]80:", "missing port in address"),
            ("[::1]::80", "too many colons in address"),
            ("[::1", "missing ']' in address"),
            ("::1:80", "too many colons in address"),
            ("a[:80", "unexpected '[' in address"),
            ("a]:80", "unexpected ']' in address"),
        ] {
            assert_eq!(split(address), Err(format!("address {address}: {why}")));
        }
    }

    #[test]
    fn upstreams_are_called_as_go_dials() {
        for (upstream, host, port) in [
            (":6379", "127.0.0.1", 6379),
            ("db:5432", "db", 5432),
            ("web:http", "web", 80),
            (":https", "127.0.0.1", 443),
            ("[::1]:ssh", "::1", 22),
            ("h:", "h", 0),
        ] {
            assert_eq!(target(upstream), Ok((host.to_owned(), port)), "{upstream}");
        }
        assert_eq!(target("no port"), Err("address no port: missing port in address".into()));
        assert_eq!(target("h:nope"), Err("lookup tcp/nope: unknown port".into()));
        assert_eq!(target("h:70000"), Err("address 70000: invalid port".into()));
    }

    #[test]
    fn only_names_are_looked_up() {
        assert_eq!(host_to_look_up("localhost:http"), Some("localhost"));
        for address in ["", ":80", "127.0.0.1:80", "[::1]:80", "nope", "localhost:nope", "localhost:99999"] {
            assert_eq!(host_to_look_up(address), None, "{address}");
        }
    }

    #[test]
    fn ports_are_numbers_or_well_known() {
        for (service, port) in [("+80", 80), ("0080", 80), ("+", 0), ("-0", 0), ("-", 0)] {
            assert_eq!(number(service), Ok(port), "{service}");
        }
        for (service, port) in [("", 0), ("80", 80), ("HTTP", 80), ("https", 443), ("ssh", 22), ("65535", 65_535)] {
            assert_eq!(number(service), Ok(port));
        }
        let known = "domain ftp ftps gopher imap2 imap3 imaps pop3 pop3s smtp submissions telnet";
        assert!(known.split(' ').all(|name| number(name).is_ok()));
        assert_eq!(number("99999"), Err("address 99999: invalid port".into()));
        assert_eq!(number("-1"), Err("address -1: invalid port".into()));
        assert_eq!(number("+65536"), Err("address +65536: invalid port".into()));
        assert_eq!(number("-http"), Err("lookup tcp/-http: unknown port".into()));
        assert_eq!(number("8o"), Err("lookup tcp/8o: unknown port".into()));
        assert_eq!(number("nope"), Err("lookup tcp/nope: unknown port".into()));
    }

    #[test]
    fn the_system_speaks_in_small_letters() {
        let in_use = io::Error::from_raw_os_error(98);
        assert_eq!(system_text(&in_use), "address already in use");
        assert_eq!(system_text(&io::Error::other("")), "");
    }
}
