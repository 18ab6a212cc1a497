//! Which tries a fault lies in the way of, and how many of them it touches.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;

use super::{Carries, FIRST_MAX, Id, Refused, TEXT_CHARS_MAX};
use crate::block::Block;
use crate::id::{RouteId, UpstreamId};
use crate::policy::Endpoint;
use crate::prng::Prng;
use crate::units::Ratio;

/// Which of the tries in a fault's scope it touches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Portion {
    /// Each with this probability.
    Share(Ratio),
    /// All of this share of the clients' connections, and none of the others. What comes from no client is left alone.
    Connections(Ratio),
    /// The first so many, then none.
    First(u64),
    /// Each n-th.
    Every(u64),
}

impl Portion {
    /// Of the tries in scope, in the long run. The first few are none of many.
    pub(super) fn share(self) -> f64 {
        match self {
            Self::Share(share) | Self::Connections(share) => share.get(),
            Self::First(_) => 0.0,
            Self::Every(step) => 1.0 / step.max(1) as f64,
        }
    }

    /// The field it was said in.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Share(_) => "share",
            Self::Connections(_) => "connections",
            Self::First(_) => "first",
            Self::Every(_) => "every",
        }
    }

    pub(super) fn check(self, max: Ratio) -> Result<(), Refused> {
        let refused = |message: String, allowed: String| Err(Refused::invalid(self.field(), message, [allowed]));
        match self {
            Self::Share(share) | Self::Connections(share) if share <= Ratio::ZERO || share > max => refused(
                format!("a share of {share} is not allowed here (`faults.share_max` is {max})"),
                format!("more than 0%, at most {max}"),
            ),
            Self::First(count) if !(1..=FIRST_MAX).contains(&count) => {
                refused(format!("`{count}` is out of range"), format!("1 to {FIRST_MAX}"))
            }
            Self::Every(step) if Ratio::of(1, step).is_none_or(|share| share > max) => refused(
                format!("one in {step} is not allowed here (`faults.share_max` is {max})"),
                format!("{} or more", (1.0 / max.get()).ceil()),
            ),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Portion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => write!(f, "{share}"),
            Self::Connections(share) => write!(f, "{share} of connections"),
            Self::First(count) => write!(f, "first {count}"),
            Self::Every(1) => f.write_str("every one"),
            Self::Every(step) => write!(f, "one in {step}"),
        }
    }
}

/// Which tries a fault lies in the way of: those that fit everything that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Of this route, by name. Without an upstream: to the route's own upstream, not to one that stands in for it.
    pub route: Option<String>,
    /// To this upstream, by name, whoever sends them.
    pub upstream: Option<String>,
    /// To this endpoint of it, by address.
    pub endpoint: Option<String>,
    /// To endpoints in this zone.
    pub zone: Option<String>,
    /// To endpoints of this version.
    pub version: Option<String>,
    /// Of clients that came in by this listener, by its address in the configuration.
    pub listener: Option<SocketAddr>,
    /// Of clients from there.
    pub source: Option<Block>,
    /// With this method, to the letter.
    pub method: Option<String>,
    /// Whose path is this one.
    pub path: Option<String>,
    /// Whose path begins so.
    pub path_prefix: Option<String>,
    /// With this header (name in lower case) of this value.
    pub header: Option<(String, String)>,
}

impl fmt::Display for Scope {
    /// Without the header's value, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in self.said() {
            if let Some(value) = value {
                write!(f, "{separator}{name} {value}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// A try that is about to be sent.
#[derive(Clone, Copy)]
pub struct Try<'a> {
    /// Under which policy, counted from 0: ids of another one mean something else.
    pub generation: u64,
    /// Of which route.
    pub route: RouteId,
    /// To which upstream.
    pub upstream: UpstreamId,
    /// To which of its endpoints.
    pub endpoint: &'a Endpoint,
    /// From which client; `None` for what waited in the spool.
    pub client: Option<Client>,
    /// Its method.
    pub method: &'a str,
    /// Its path, without the query.
    pub path: &'a str,
    /// Whether it has this header with this value.
    pub has_header: &'a dyn Fn(&str, &str) -> bool,
    /// What it is.
    pub carries: Carries,
    /// What touched earlier tries of the same request.
    pub touched: &'a [Id],
}

/// Who a try is sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Where the listener it came in by is, as configured.
    pub listener: SocketAddr,
    /// Where it is itself.
    pub source: IpAddr,
    /// Which of the connections to this node it is, in the order they came.
    pub connection: u64,
}

impl Scope {
    /// Every part of it, and what is said there; of a header only the name.
    fn said(&self) -> [(&'static str, Option<Cow<'_, str>>); 11] {
        fn text(text: &Option<String>) -> Option<Cow<'_, str>> {
            text.as_deref().map(Cow::Borrowed)
        }
        [
            ("route", text(&self.route)),
            ("upstream", text(&self.upstream)),
            ("endpoint", text(&self.endpoint)),
            ("zone", text(&self.zone)),
            ("version", text(&self.version)),
            ("listener", self.listener.map(|listener| listener.to_string().into())),
            ("source", self.source.map(|source| source.to_string().into())),
            ("method", text(&self.method)),
            ("path", text(&self.path)),
            ("path_prefix", text(&self.path_prefix)),
            ("header", self.header.as_ref().map(|(name, _)| name.into())),
        ]
    }

    /// True unless no try can be in both, whatever their routes and upstreams.
    pub(super) fn may_meet(&self, other: &Self) -> bool {
        fn agree<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
            one.is_none() || other.is_none() || one == other
        }
        let begins = |path: &Option<String>, prefix: &Option<String>| match (path, prefix) {
            (Some(path), Some(prefix)) => path.starts_with(prefix.as_str()),
            _ => true,
        };
        let prefixes = begins(&self.path_prefix, &other.path_prefix) || begins(&other.path_prefix, &self.path_prefix);
        // A header may be there twice: two values keep nobody apart.
        agree(&self.endpoint, &other.endpoint)
            && agree(&self.zone, &other.zone)
            && agree(&self.version, &other.version)
            && agree(&self.listener, &other.listener)
            && self.source.is_none_or(|own| other.source.is_none_or(|other| own.meets(other)))
            && agree(&self.method, &other.method)
            && agree(&self.path, &other.path)
            && begins(&self.path, &other.path_prefix)
            && begins(&other.path, &self.path_prefix)
            && prefixes
    }

    /// The field that keeps it to paths that begin so, and what is said there.
    pub(super) fn within(&self, prefix: &str) -> Option<(&'static str, &String)> {
        let said = [("path", &self.path), ("path_prefix", &self.path_prefix)];
        let mut said = said.into_iter().filter_map(|(field, path)| Some((field, path.as_ref()?)));
        said.find(|(_, path)| path.starts_with(prefix))
    }

    /// True if a try to the right upstream is in it.
    pub(super) fn covers(&self, it: &Try<'_>) -> bool {
        let client = |fits: &dyn Fn(&Client) -> bool| it.client.as_ref().is_some_and(fits);
        let Endpoint { address, zone, version, .. } = it.endpoint;
        self.endpoint.as_ref().is_none_or(|wanted| wanted == address)
            && (self.zone.is_none() || self.zone == *zone)
            && (self.version.is_none() || self.version == *version)
            && self.listener.is_none_or(|wanted| client(&|client| client.listener == wanted))
            && self.source.is_none_or(|block| client(&|client| block.contains(client.source)))
            && self.method.as_ref().is_none_or(|method| method == it.method)
            && self.path.as_ref().is_none_or(|path| path == it.path)
            && self.path_prefix.as_ref().is_none_or(|prefix| it.path.starts_with(prefix.as_str()))
            && self.header.as_ref().is_none_or(|(name, value)| (it.has_header)(name, value))
    }

    /// Whether there is such an endpoint among these, and every word of it.
    pub(super) fn check_endpoints(&self, endpoints: &[Endpoint], upstream: &str) -> Result<(), Refused> {
        fn one_of<'a>(
            field: &'static str,
            wanted: Option<&String>,
            upstream: &str,
            known: impl Iterator<Item = &'a String>,
        ) -> Result<(), Refused> {
            let known: Vec<&String> = known.collect();
            match wanted.filter(|wanted| !known.contains(wanted)) {
                None => Ok(()),
                Some(wanted) => {
                    let mut known: Vec<&str> = known.into_iter().map(String::as_str).collect();
                    known.dedup();
                    let message = format!("upstream `{upstream}` has no endpoint of {field} `{wanted}`");
                    Err(Refused::invalid(field, message, known))
                }
            }
        }
        one_of("endpoint", self.endpoint.as_ref(), upstream, endpoints.iter().map(|it| &it.address))?;
        one_of("zone", self.zone.as_ref(), upstream, endpoints.iter().filter_map(|it| it.zone.as_ref()))?;
        one_of("version", self.version.as_ref(), upstream, endpoints.iter().filter_map(|it| it.version.as_ref()))
    }

    /// Whether it says nothing but the zone.
    pub(super) fn check_zone_alone(&self) -> Result<&str, Refused> {
        let said = self.said();
        if let Some((other, _)) = said.iter().find(|(name, value)| *name != "zone" && value.is_some()) {
            let message = format!("a zone is cut off from everybody: `{other}` cannot be given");
            return Err(Refused::invalid(other, message, ["zone"]));
        }
        self.zone.as_deref().ok_or_else(|| Refused::invalid("zone", "`zone` is missing", ["the zone to cut off"]))
    }

    /// Whether it says nothing that only calls have.
    pub(super) fn check_for_connections(&self) -> Result<(), Refused> {
        let of_calls = |name: &str| matches!(name, "method" | "path" | "path_prefix" | "header");
        match self.said().iter().find(|(name, value)| of_calls(name) && value.is_some()) {
            None => Ok(()),
            Some((name, _)) => {
                let right = ["endpoint", "zone", "version", "listener", "source"];
                Err(Refused::invalid(name, format!("connections have no `{name}`"), right))
            }
        }
    }

    /// Whether it says nothing that is not known any more of a connection that began as a call.
    pub(super) fn check_for_upgraded(&self) -> Result<(), Refused> {
        match self.header {
            None => Ok(()),
            Some(_) => {
                let message = "no header is kept of the request that a connection began with";
                Err(Refused::invalid("header", message, ["path", "path_prefix", "listener", "source"]))
            }
        }
    }

    pub(super) fn check_words(&self) -> Result<(), Refused> {
        let is_token = |text: &str| {
            (1..=TEXT_CHARS_MAX).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
        };
        if let Some(method) = self.method.as_ref().filter(|method| !is_token(method)) {
            return Err(Refused::invalid("method", format!("`{method}` is not a method"), ["GET", "POST", "PUT"]));
        }
        check_path("path", self.path.as_deref(), "a path", ["/orders", "/orders/7"])?;
        check_path("path_prefix", self.path_prefix.as_deref(), "the beginning of a path", ["/", "/orders/"])?;
        if self.path.is_some() && self.path_prefix.is_some() {
            let message = "only one of `path` and `path_prefix` can be given";
            return Err(Refused::invalid("path", message, ["path", "path_prefix"]));
        }
        if let Some((name, value)) = &self.header {
            check_text("header", value)?;
            if !is_token(name) || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                let message = format!("`{name}` is not the name of a header");
                return Err(Refused::invalid("header", message, ["x-tenant"]));
            }
        }
        Ok(())
    }
}

fn check_path(
    field: &'static str,
    path: Option<&str>,
    wanted: &str,
    examples: [&'static str; 2],
) -> Result<(), Refused> {
    let Some(path) = path else { return Ok(()) };
    check_text(field, path)?;
    if !path.starts_with('/') {
        return Err(Refused::invalid(field, format!("`{path}` is not {wanted}"), examples));
    }
    if path.contains(['?', '#']) {
        let message = format!("`{path}` would never be met: a path ends before its query (`?`) and its fragment (`#`)");
        return Err(Refused::invalid(field, message, examples));
    }
    Ok(())
}

pub(super) fn check_text(field: &'static str, text: &str) -> Result<(), Refused> {
    let count = text.chars().count();
    if text.trim().is_empty() || count > TEXT_CHARS_MAX || text.chars().any(char::is_control) {
        let message = if count == 0 { format!("`{field}` is empty") } else { format!("`{field}` is not a short text") };
        return Err(Refused::invalid(field, message, [format!("1 to {TEXT_CHARS_MAX} characters of one line")]));
    }
    Ok(())
}

/// Whether a connection is one of this share of them: the same ones for the same seed, whatever is asked when.
pub(super) fn is_chosen(seed: u64, connection: u64, share: Ratio) -> bool {
    let of_fault = Prng::new(seed).next_u64();
    Prng::new(of_fault.wrapping_add(connection)).chance(share.get())
}
