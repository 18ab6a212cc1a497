//! What is taken out of service by hand, for a while: an endpoint, a route or a listener. What is on its way may end.
//!
//! Here are the words for it, shared by those who carry it out and those who tell of it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::time::Wall;

/// What is drained. Names are the configuration's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// It gets no new calls; the balancer takes others.
    Endpoint {
        /// Of which upstream.
        upstream: String,
        /// `host:port`, or a socket.
        address: String,
    },
    /// New requests are refused, or get its fallback.
    Route(String),
    /// Clients are moved to other connections, then nobody is let in.
    Listener(SocketAddr),
}

impl Target {
    /// The kinds, as fields and labels have them.
    pub const KINDS: [&'static str; 3] = ["endpoint", "route", "listener"];

    /// Reads what is written for a kind: `queue/10.0.1.5:80`, `events`, `0.0.0.0:8080`.
    ///
    /// # Errors
    /// [`Refused::Unreadable`].
    pub fn read(kind: &'static str, name: &str) -> Result<Self, Refused> {
        let unreadable = |example| Refused::Unreadable { kind, name: name.into(), example };
        match kind {
            "endpoint" => {
                let (upstream, address) = name.split_once('/').ok_or_else(|| unreadable("queue/10.0.1.5:80"))?;
                Ok(Self::Endpoint { upstream: upstream.into(), address: address.into() })
            }
            "route" => Ok(Self::Route(name.into())),
            _ => name.parse().map(Self::Listener).map_err(|_| unreadable("127.0.0.1:8080")),
        }
    }

    /// Which of [`Self::KINDS`].
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Endpoint { .. } => "endpoint",
            Self::Route(_) => "route",
            Self::Listener(_) => "listener",
        }
    }

    /// As [`Self::read`] takes it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Endpoint { upstream, address } => format!("{upstream}/{address}"),
            Self::Route(name) => name.clone(),
            Self::Listener(address) => address.to_string(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind(), self.name())
    }
}

/// A drain, and what it still waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Of which kind it is.
    pub kind: &'static str,
    /// What is drained.
    pub name: String,
    /// Why.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    #[serde(skip)]
    pub since: Wall,
    /// Calls on their way.
    pub calls: u64,
    /// Connections open: of an endpoint to it, of a route those that are no requests, of a listener its clients'.
    pub connections: u64,
    /// True once nobody is let in: always for endpoints and routes.
    pub refuses: bool,
    /// True if no endpoint of the upstream is left that could be asked.
    pub last: bool,
}

/// Why something is not drained, or not taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be such a name.
    #[error("`{name}` names no {kind}")]
    Unreadable {
        /// What was to be named.
        kind: &'static str,
        /// What was written.
        name: String,
        /// How one looks.
        example: &'static str,
    },
    /// There is none.
    #[error("there is no {target}")]
    Unknown {
        /// What was named.
        target: Target,
        /// What there is of its kind.
        known: Vec<String>,
    },
    /// A listener whose address cannot be had back.
    #[error("{target} stays closed: {why}")]
    NotReopened {
        /// Which.
        target: Target,
        /// What the system said.
        why: String,
    },
}

/// What goes on for so long when a listener is drained: clients are moved to new connections, and may still come.
pub const REFUSE_AFTER: Duration = Duration::from_secs(10);

/// The longest.
pub const REFUSE_AFTER_MAX: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_written_again() {
        for (kind, name) in [
            ("endpoint", "queue/10.0.1.5:80"),
            ("endpoint", "local/unix:/run/app.sock"),
            ("route", "events"),
            ("listener", "127.0.0.1:8080"),
            ("listener", "[::]:80"),
        ] {
            let target = Target::read(kind, name).unwrap();
            assert_eq!((target.kind(), target.name().as_str()), (kind, name));
            assert_eq!(target.to_string(), format!("{kind} `{name}`"));
        }
        for (kind, name, example) in
            [("endpoint", "10.0.1.5:80", "queue/10.0.1.5:80"), ("listener", ":80", "127.0.0.1:8080")]
        {
            let refused = Target::read(kind, name).unwrap_err();
            assert_eq!(refused, Refused::Unreadable { kind, name: name.into(), example });
        }
    }
}
