//! Which call a request is. Paths are cleaned and decoded before they are compared, and a known path with another
//! method is a 405 without a word.

use std::borrow::Cow;

/// A call of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Version,
    Metrics,
    List,
    Create,
    Show(String),
    Update(String),
    Delete(String),
    ListToxics(String),
    AddToxic(String),
    ShowToxic(String, String),
    UpdateToxic(String, String),
    RemoveToxic(String, String),
    Populate,
    Reset,
}

impl Call {
    /// Whether its body says something: another's is not waited for, as the original does not read it.
    pub(super) fn takes_a_body(&self) -> bool {
        match self {
            Self::Create | Self::Update(_) | Self::AddToxic(_) | Self::UpdateToxic(..) | Self::Populate => true,
            Self::Version
            | Self::Metrics
            | Self::List
            | Self::Show(_)
            | Self::Delete(_)
            | Self::ListToxics(_)
            | Self::ShowToxic(..)
            | Self::RemoveToxic(..)
            | Self::Reset => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Routed {
    Call(Call),
    /// To the same path, cleaned.
    Elsewhere(String),
    NotFound,
    WrongMethod,
    /// The path is no path.
    Nonsense,
}

pub(super) fn route(method: &str, path: &str, has_metrics: bool) -> Routed {
    let Some(decoded) = decoded(path) else { return Routed::Nonsense };
    let clean = cleaned(&decoded);
    if clean != decoded {
        return Routed::Elsewhere(encoded(&clean));
    }
    let parts: Vec<&str> = clean.split('/').skip(1).collect();
    let name = |part: &&str| (*part).to_owned();
    let call = match (parts.as_slice(), method) {
        (["version"], "GET") => Call::Version,
        // As the original, by any method.
        (["metrics"], _) if has_metrics => Call::Metrics,
        (["proxies"], "GET") => Call::List,
        (["proxies"], "POST") => Call::Create,
        (["populate"], "POST") => Call::Populate,
        (["reset"], "POST") => Call::Reset,
        (["proxies", ""] | ["proxies", _, ""] | ["proxies", _, "toxics", ""], _) => return Routed::NotFound,
        (["proxies", proxy], "GET") => Call::Show(name(proxy)),
        (["proxies", proxy], "POST" | "PATCH") => Call::Update(name(proxy)),
        (["proxies", proxy], "DELETE") => Call::Delete(name(proxy)),
        (["proxies", proxy, "toxics"], "GET") => Call::ListToxics(name(proxy)),
        (["proxies", proxy, "toxics"], "POST") => Call::AddToxic(name(proxy)),
        (["proxies", proxy, "toxics", toxic], "GET") => Call::ShowToxic(name(proxy), name(toxic)),
        (["proxies", proxy, "toxics", toxic], "POST" | "PATCH") => Call::UpdateToxic(name(proxy), name(toxic)),
        (["proxies", proxy, "toxics", toxic], "DELETE") => Call::RemoveToxic(name(proxy), name(toxic)),
        (["version" | "populate" | "reset"] | ["proxies"] | ["proxies", _] | ["proxies", _, "toxics"], _)
        | (["proxies", _, "toxics", _], _) => return Routed::WrongMethod,
        _ => return Routed::NotFound,
    };
    Routed::Call(call)
}

/// Without double slashes and dots; a slash at the end stays.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{end}", parts.join("/"))
}

/// `None` where a percent sign is not followed by two digits. What is no UTF-8 then is no name anybody has.
fn decoded(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(if byte == b'%' { u8::try_from(digit()? * 16 + digit()?).ok()? } else { byte });
    }
    Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

/// As Go's `net/url` writes a path that it has not just read.
fn encoded(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~$&+,/:;=@".contains(&byte);
    let encode = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    path.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_decoded() {
        for (path, clean) in [
            ("//proxies", "/proxies"),
            ("/proxies/../version", "/version"),
            ("/./proxies//a/", "/proxies/a/"),
            ("/%2F%20b", "/%20b"),
            ("//a!'()*b$&+,:;=@-._~", "/a%21%27%28%29%2Ab$&+,:;=@-._~"),
            ("//a%3Fb%23%25\u{e4}", "/a%3Fb%23%25%C3%A4"),
        ] {
            assert_eq!(route("GET", path, false), Routed::Elsewhere(clean.into()));
        }
        assert_eq!(route("GET", "/proxies/a%20b", false), Routed::Call(Call::Show("a b".into())));
        assert_eq!(route("GET", "/proxies/a%2Fb", false), Routed::NotFound, "a slash in a name is a path");
        assert_eq!(route("GET", "/proxies/%zz", false), Routed::Nonsense);
        assert_eq!(route("GET", "/proxies/%4", false), Routed::Nonsense);
    }

    #[test]
    fn unknown_is_404_and_known_with_another_method_405() {
        for path in
            ["/", "/proxies/", "/proxies/a/", "/proxies/a/toxics/", "/nope", "/version/", "/metrics", "/proxies/a/b"]
        {
            assert_eq!(route("GET", path, false), Routed::NotFound, "{path}");
        }
        for path in
            ["/version", "/proxies", "/populate", "/reset", "/proxies/a", "/proxies/a/toxics", "/proxies/a/toxics/b"]
        {
            assert_eq!(route("HEAD", path, false), Routed::WrongMethod, "{path}");
            assert_eq!(route("PUT", path, true), Routed::WrongMethod, "{path}");
        }
        assert_eq!(route("POST", "/metrics", true), Routed::Call(Call::Metrics));
        assert_eq!(route("GET", "/metrics", true), Routed::Call(Call::Metrics));
    }
}
