//! Addresses as people write them: where to listen, where upstreams are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Reads `127.0.0.1:8080`, `[::1]:80`, `localhost:8080` or `:8080` (every interface).
pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("`{text}` has no port; write an address such as `127.0.0.1:8080` or `:8080`"));
    };
    let port = parse_port(text, port, 0)?;
    let host = match host {
        "" | "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ if host.contains(':') => {
            return Err(format!("`{text}` is not an address; an IPv6 one is written `[::1]:8080`"));
        }
        _ => {
            return Err(format!("`{text}` does not begin with an IP address of this machine, such as `0.0.0.0`"));
        }
    };
    Ok(SocketAddr::new(host, port))
}

/// Longer paths do not fit into a socket's address (`sun_path`).
const PATH_BYTES_MAX: usize = 107;

/// Reads `host:port`, where the host may be a name, or `unix:/path/of/a/socket`, and gives it back as it is compared:
/// the host in lower case.
pub(super) fn parse_endpoint(text: &str) -> Result<String, String> {
    let Some(path) = text.strip_prefix("unix:") else { return parse_host_port(text) };
    if !path.starts_with('/') || path.starts_with("//") || path.contains(|c: char| c.is_control()) {
        return Err(format!("`{text}`: a socket's path begins with one `/`, such as `unix:/run/queue.sock`"));
    }
    if path.len() > PATH_BYTES_MAX {
        let bytes = path.len();
        return Err(format!("`{text}`: a socket's path has at most {PATH_BYTES_MAX} bytes; this has {bytes}"));
    }
    Ok(text.to_owned())
}

/// True for what [`parse_endpoint`] has given back for a socket in the file system.
pub(super) fn is_unix(address: &str) -> bool {
    address.starts_with("unix:")
}

/// Reads `host:port`, where the host may be a name, and gives it back with the host in lower case.
pub(super) fn parse_host_port(text: &str) -> Result<String, String> {
    if text.contains("://") {
        return Err(format!("`{text}` is a URL; write `host:port` here, or `url: {text}` in place of `endpoints`"));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` has no port; write it as `{text}:80`"))?;
    check_host(text, host)?;
    Ok(format!("{}:{}", host.to_ascii_lowercase(), parse_port(text, port, 1)?))
}

/// Where a URL leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `host:port`.
    pub(super) address: String,
    /// True for `https`.
    pub(super) sealed: bool,
    /// What a server there is asked for: the host, and the port if it is not the usual one.
    pub(super) host: String,
}

/// Reads `http://host:port`, `https://host:port` or `unix:/path/of/a/socket`.
pub(super) fn parse_url(text: &str) -> Result<Place, String> {
    if is_unix(text) {
        return Ok(Place { address: parse_endpoint(text)?, sealed: false, host: String::new() });
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("`{text}` is not a URL, such as `http://127.0.0.1:3000`"));
    };
    let (sealed, usual) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return Err(format!("`{text}`: `{scheme}` is not supported; upstreams are reached by http or https")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('@') {
        return Err("a user name in the URL is not supported; remove it".into());
    }
    if authority.contains(['/', '?', '#']) {
        return Err(format!("`{text}`: only the host and port are used; a request's own path is passed on as it is"));
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, after)| !after.ends_with(']'));
    let with_port = if has_port { authority.to_string() } else { format!("{authority}:{usual}") };
    let address = parse_host_port(&with_port)?;
    let host = address.strip_suffix(&format!(":{usual}")).unwrap_or(&address).to_owned();
    Ok(Place { address, sealed, host })
}

/// True for an address that says by its scheme that bytes are passed as they come.
pub(super) fn is_tcp(text: &str) -> bool {
    text.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("tcp://"))
}

/// Reads `tcp://host:port` and gives back `host:port`; `unix:/path` stays what it is.
pub(super) fn parse_tcp_url(text: &str) -> Result<String, String> {
    if is_unix(text) {
        return parse_endpoint(text);
    }
    let authority = if is_tcp(text) { &text[6..] } else { text };
    if authority.contains(['/', '?', '#', '@']) {
        return Err(format!("`{text}`: connections have a host and a port, and nothing else: `tcp://host:port`"));
    }
    if !authority.contains(':') {
        return Err(format!("`{text}` has no port; write it as `tcp://{authority}:6379`, say"));
    }
    parse_host_port(authority)
}

fn parse_port(text: &str, port: &str, least: u16) -> Result<u16, String> {
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number) if digits && number >= least => Ok(number),
        _ => Err(format!("`{text}`: `{port}` is not a port, {least} to 65535")),
    }
}

fn check_host(text: &str, host: &str) -> Result<(), String> {
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match v6 {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            !host.is_empty() && host.len() <= 253 && host.chars().all(allowed)
        }
    };
    if valid { Ok(()) } else { Err(format!("`{text}`: `{host}` is not a host name or IP address")) }
}

/// True if both cannot be listened on at the same time. Port 0 is a free port each time.
pub(super) fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || (a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_listen() {
        for (text, address) in [
            (":8080", "0.0.0.0:8080"),
            ("*:8080", "0.0.0.0:8080"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:80", "[::1]:80"),
            ("localhost:9", "127.0.0.1:9"),
        ] {
            assert_eq!(parse_listen(text).unwrap().to_string(), address, "{text}");
        }
        for (text, words) in [
            ("8080", "has no port"),
            (":70000", "`70000` is not a port, 0 to 65535"),
            (":+80", "`+80` is not a port"),
            (":", "`` is not a port"),
            ("example.org:80", "IP address of this machine"),
            ("::1:80x", "is not a port"),
            ("fe80::zz:80", "is written `[::1]:8080`"),
        ] {
            let problem = parse_listen(text).unwrap_err();
            assert!(problem.contains(words), "{text}: {problem}");
        }
    }

    #[test]
    fn where_upstreams_are() {
        assert_eq!(parse_endpoint("Queue.Example:80").unwrap(), "queue.example:80");
        assert_eq!(parse_endpoint("[::1]:80").unwrap(), "[::1]:80");
        for parse in [parse_endpoint, parse_tcp_url] {
            assert_eq!(parse("unix:/Run/A.sock").unwrap(), "unix:/Run/A.sock");
        }
        assert_eq!(parse_url("unix:/Run/A.sock").unwrap().address, "unix:/Run/A.sock");
        let place = |text: &str| {
            let Place { address, sealed, host } = parse_url(text).unwrap();
            (address, sealed, host)
        };
        for (text, address, sealed, host) in [
            ("http://127.0.0.1:3000", "127.0.0.1:3000", false, "127.0.0.1:3000"),
            ("HTTP://api.example/", "api.example:80", false, "api.example"),
            ("http://[::1]", "[::1]:80", false, "[::1]"),
            ("https://API.example", "api.example:443", true, "api.example"),
            ("https://api.example:8443/", "api.example:8443", true, "api.example:8443"),
        ] {
            assert_eq!(place(text), (address.into(), sealed, host.into()), "{text}");
        }
        assert_eq!(parse_tcp_url("TCP://Cache.example:6379").unwrap(), "cache.example:6379");
        assert_eq!(parse_tcp_url("tcp://[::1]:5432").unwrap(), "[::1]:5432");
        let parse_url = |text: &str| parse_url(text).map(|place| place.address);
        for (problem, words) in [
            (parse_endpoint("unix:run/a.sock"), "begins with one `/`, such as `unix:/run/queue.sock`"),
            (parse_endpoint("unix://run/a.sock"), "begins with one `/`"),
            (parse_endpoint("unix:/a\n"), "begins with one `/`"),
            (parse_endpoint(&format!("unix:/{}", "a".repeat(107))), "at most 107 bytes; this has 108"),
            (parse_endpoint("http://a:1"), "is a URL"),
            (parse_endpoint("a"), "write it as `a:80`"),
            (parse_endpoint("a:0"), "is not a port, 1 to 65535"),
            (parse_endpoint(":80"), "`` is not a host name"),
            (parse_endpoint("a b:80"), "`a b` is not a host name"),
            (parse_endpoint("[::zz]:80"), "`[::zz]` is not a host name"),
            (parse_url("a:80"), "is not a URL"),
            (parse_url("ftp://a"), "`ftp` is not supported"),
            (parse_url("http://me:secret@a"), "remove it"),
            (parse_url("http://a/path"), "only the host and port"),
            (parse_url("http://"), "`` is not a host name"),
            (parse_tcp_url("tcp://a"), "`tcp://a` has no port; write it as `tcp://a:6379`"),
            (parse_tcp_url("TCP://a:1/path"), "a host and a port, and nothing else"),
            (parse_tcp_url("tcp://a b:1"), "`a b` is not a host name"),
        ] {
            let problem = problem.unwrap_err();
            assert!(problem.contains(words), "{problem}");
            assert!(!problem.contains("secret@"), "{problem}");
        }
    }

    #[test]
    fn two_sockets_on_one_port() {
        let clash = |a: &str, b: &str| super::clash(parse_listen(a).unwrap(), parse_listen(b).unwrap());
        assert!(clash(":80", "127.0.0.1:80") && clash("127.0.0.1:80", "127.0.0.1:80"));
        assert!(!clash(":80", ":81") && !clash("127.0.0.1:0", "127.0.0.1:0") && !clash("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!clash("[::1]:80", ":80"));
    }
}
