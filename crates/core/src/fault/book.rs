//! Faults on calls, each held by a lease: who placed which on what, until when, and which tries it touches.
//!
//! Picture a board with notes that fade. Whoever wants a fault pins a note to it ([`Order`]), and must come back to
//! write it anew before it has faded; nobody has to take it down. Every try that is about to be sent walks past the
//! board and is touched by the oldest note that chooses it, or by none.
//! Invariants: a note that has faded decides nothing, whether or not anybody has taken it down; no more notes hang there
//! than [`Caps`] allow, none on everything, none on more of the traffic than is allowed; while the kill switch is on the
//! board is empty. The same orders, seeds and tries, in the same order, give the same choices.
//! Not here: what becomes of a touched try (the gateway's), bytes ([`Link`](super::Link)), the words of the API.

mod kind;
mod scope;
mod timing;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::id::{RouteId, UpstreamId};
use crate::journal::Seq;
use crate::policy::{Endpoint, Fallback, Policy, Protocol};
use crate::prng::Prng;
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

pub use kind::{Act, DATE_MAX, HEAD_BYTES_MAX, Kind, Moment, RetryAfter, Spread, on_body};
pub use scope::{Client, Portion, Scope, Try};
pub use timing::{Flap, Timing};

use scope::check_text;

/// Most tries a fault on the first ones ([`Portion::First`]) may touch: it knows no share that could be capped.
pub const FIRST_MAX: u64 = 1_000;
/// Characters of an owner's name, of a path's beginning, of a header's name or value.
pub const TEXT_CHARS_MAX: usize = 256;
/// Longest delay and longest jitter.
pub const DELAY_MAX: Duration = Duration::from_secs(600);
/// Faults that have ended and are still counted, so that the last counts are seen.
const ENDED_MAX: usize = 32;

/// How far faults may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Caps {
    /// Most of the traffic in its scope a fault may touch, together with those beside it that may meet the same requests.
    pub share_max: Ratio,
    /// Longest time until a lease must be renewed.
    pub ttl_max: Duration,
    /// Most faults at the same time.
    pub count_max: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { share_max: Ratio::of(1, 2).unwrap_or(Ratio::ZERO), ttl_max: Duration::from_secs(900), count_max: 8 }
    }
}

/// A fault's name: never given twice in a data directory, so that a renewal that comes after a restart renews nothing
/// else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    epoch: u64,
    number: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{}-{}", self.epoch, self.number)
    }
}

impl FromStr for Id {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let parts = text.strip_prefix('f').and_then(|rest| rest.split_once('-'));
        let id =
            parts.and_then(|(epoch, number)| Some(Self { epoch: epoch.parse().ok()?, number: number.parse().ok()? }));
        // Written any other way (`f01-1`) it is not the name that was given.
        id.filter(|id| id.to_string() == text).ok_or_else(|| Refused::Unknown { id: text.into() })
    }
}

/// A fault somebody wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Who: renewals must name the same.
    pub owner: String,
    /// On what.
    pub scope: Scope,
    /// On how much of it.
    pub portion: Portion,
    /// What.
    pub kind: Kind,
    /// When, while it lies there.
    pub timing: Timing,
    /// For how long unless it is renewed.
    pub ttl: Option<Duration>,
    /// What its choices follow from; one is drawn where none is given.
    pub seed: Option<u64>,
}

/// Why there was no fault, or none of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The caller made a mistake.
    #[error("{message}")]
    Invalid {
        /// In this field.
        field: &'static str,
        /// What is wrong with it.
        message: String,
        /// What would be right.
        allowed: Vec<String>,
    },
    /// As many as are allowed lie there.
    #[error("{count_max} faults lie here already, and no more are allowed at the same time (`faults.count_max`)")]
    TooMany {
        /// The cap.
        count_max: usize,
    },
    /// The same kind lies on the same scope: together they would be more than either says.
    #[error("fault `{id}` does the same to the same requests; renew or remove that one")]
    Same {
        /// The one that is there.
        id: Id,
    },
    /// The kill switch is on.
    #[error("the kill switch is on (`{reason}`): no fault can be placed until it is released")]
    Killed {
        /// Why, as somebody said.
        reason: String,
    },
    /// No such fault, or no longer.
    #[error("there is no fault `{id}` (any more)")]
    Unknown {
        /// As written.
        id: String,
    },
    /// Somebody else's.
    #[error("fault `{id}` is held by `{owner}`, and only they can renew it")]
    NotOwner {
        /// The fault.
        id: Id,
        /// Who has it.
        owner: String,
    },
}

impl Refused {
    fn invalid<T: Into<String>>(
        field: &'static str,
        message: impl Into<String>,
        allowed: impl IntoIterator<Item = T>,
    ) -> Self {
        Self::Invalid { field, message: message.into(), allowed: allowed.into_iter().map(Into::into).collect() }
    }

    /// The field it is about, if it is one's fault.
    #[must_use]
    pub const fn field(&self) -> Option<&'static str> {
        match self {
            Self::Invalid { field, .. } => Some(field),
            Self::Unknown { .. } => Some("id"),
            Self::NotOwner { .. } => Some("owner"),
            Self::Same { .. } => Some("kind"),
            Self::TooMany { .. } | Self::Killed { .. } => None,
        }
    }
}

/// A fault that lies there, or did.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Its name.
    pub id: Id,
    /// Whose.
    pub owner: String,
    /// On what.
    pub scope: Scope,
    /// On how much of it.
    pub portion: Portion,
    /// What.
    pub kind: Kind,
    /// When, while it lies there.
    pub timing: Timing,
    /// What its choices follow from.
    pub seed: u64,
    /// Placed at this moment.
    pub began: Mono,
    /// Gone from this moment on.
    pub until: Mono,
    /// Tries that came by and were in its scope.
    pub seen: u64,
    /// Of those, touched.
    pub tries: u64,
    /// Requests these belong to: one that is tried again may be touched twice.
    pub requests: u64,
    /// The journal's entry about it.
    pub told: Option<Seq>,
}

/// What is to be done to a try.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Touch {
    /// By which fault.
    pub id: Id,
    /// And how.
    pub act: Act,
}

/// Why a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its lease ran out.
    Expired,
    /// Somebody took it away.
    Removed,
    /// The kill switch took it away.
    Killed,
    /// What it lay on is gone from the configuration.
    Reconfigured,
}

impl Why {
    /// Its word in the journal.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Removed => "removed",
            Self::Killed => "killed",
            Self::Reconfigured => "reconfigured",
        }
    }
}

/// The kill switch, while it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Killed {
    /// Why, as somebody said.
    pub reason: String,
    /// The journal's entry about it.
    pub told: Option<Seq>,
}

/// A fault that lies there, and for how long yet unless it is renewed.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The fault.
    pub fault: Fault,
    /// The rest of its lease.
    pub left: Duration,
}

/// How things are at a moment.
#[derive(Clone, Debug)]
pub struct Look {
    /// How far faults may go.
    pub caps: Caps,
    /// The kill switch, if it is on.
    pub killed: Option<Killed>,
    /// Those that lie there, the oldest first.
    pub standing: Vec<Standing>,
    /// The last that ended, the oldest first.
    pub ended: Vec<Fault>,
}

/// What a policy calls things.
#[derive(Clone, Debug)]
struct Names {
    routes: Vec<RouteName>,
    upstreams: Vec<UpstreamName>,
    listeners: Vec<SocketAddr>,
}

#[derive(Clone, Debug)]
struct UpstreamName {
    name: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
struct RouteName {
    name: String,
    protocol: Protocol,
    /// Its own upstream first, then those that stand in for it.
    upstreams: Vec<UpstreamId>,
}

/// A fault at work.
#[derive(Clone, Debug)]
struct Held {
    fault: Fault,
    /// `None` for any.
    route: Option<RouteId>,
    upstream: UpstreamId,
    /// How many connections there had been when it was placed: its choices count from there.
    connections: u64,
    /// Decides which tries; what is done to them draws from another source, so that a kind changes no choice.
    choices: Prng,
    effects: Prng,
}

/// The board.
#[derive(Clone, Debug)]
pub struct Book {
    caps: Caps,
    names: Names,
    generation: u64,
    epoch: u64,
    /// By age.
    held: Vec<Held>,
    ended: Vec<Fault>,
    placed: u64,
    killed: Option<Killed>,
}

impl Book {
    /// An empty one for the routes and upstreams of a policy. `epoch` is a number no earlier start of the node has had.
    #[must_use]
    pub fn new(caps: Caps, policy: &Policy, epoch: u64) -> Self {
        let names = Names::of(policy);
        Self { caps, names, generation: 0, epoch, held: Vec::new(), ended: Vec::new(), placed: 0, killed: None }
    }

    /// Goes on under the next policy. Faults stay on what is still called the same; tells those that are gone with what
    /// they lay on.
    pub fn follow(&mut self, policy: &Policy) -> Vec<Fault> {
        (self.names, self.generation) = (Names::of(policy), self.generation + 1);
        let names = &self.names;
        let mut lost = Vec::new();
        for held in &mut self.held {
            match names.find(&held.fault.scope) {
                Ok(found) => (held.route, held.upstream) = found,
                Err(_) => lost.push(held.fault.id),
            }
        }
        self.take(|held| lost.contains(&held.fault.id))
    }

    /// The kill switch, if it is on.
    #[must_use]
    pub const fn killed(&self) -> Option<&Killed> {
        self.killed.as_ref()
    }

    /// Places a fault, after so many connections.
    ///
    /// # Errors
    /// [`Refused`]; nothing was placed then.
    pub fn place(&mut self, now: Mono, order: Order, connections: u64, prng: &mut Prng) -> Result<&Fault, Refused> {
        if let Some(Killed { reason, .. }) = &self.killed {
            return Err(Refused::Killed { reason: reason.clone() });
        }
        let (route, upstream) = self.names.find(&order.scope)?;
        let Order { owner, scope, portion, kind, timing, ttl, seed } = order;
        check_text("owner", &owner)?;
        scope.check_words()?;
        portion.check(self.caps.share_max)?;
        kind.check()?;
        timing.check()?;
        let ttl = self.check_ttl(ttl)?;
        let standing: Vec<&Held> = self.held.iter().filter(|held| now < held.fault.until).collect();
        let is_same = |held: &&&Held| held.fault.kind.name() == kind.name() && held.fault.scope == scope;
        if let Some(same) = standing.iter().find(is_same) {
            return Err(Refused::Same { id: same.fault.id });
        }
        if standing.len() >= self.caps.count_max {
            return Err(Refused::TooMany { count_max: self.caps.count_max });
        }
        let beside = standing.iter().filter(|held| held.may_meet(route, upstream, &scope));
        self.check_sum(portion, beside.map(|held| held.fault.portion.share()).sum())?;
        self.placed += 1;
        let id = Id { epoch: self.epoch, number: self.placed };
        // Short enough to be typed again.
        let seed = seed.unwrap_or_else(|| prng.next_u64() >> 32);
        let mut choices = Prng::new(seed);
        let effects = choices.fork();
        let (began, until) = (now, now + ttl);
        let (seen, tries, requests, told) = (0, 0, 0, None);
        let fault = Fault { id, owner, scope, portion, kind, timing, seed, began, until, seen, tries, requests, told };
        self.held.push(Held { fault, route, upstream, connections, choices, effects });
        Ok(&self.held[self.held.len() - 1].fault)
    }

    /// Gives a fault another time to live, from now on.
    ///
    /// # Errors
    /// [`Refused`] where it is gone, somebody else's, or the time is not allowed.
    pub fn renew(&mut self, now: Mono, id: Id, owner: &str, ttl: Option<Duration>) -> Result<&Fault, Refused> {
        let ttl = self.check_ttl(ttl);
        let fault = self.standing(now, id)?;
        if fault.owner != owner {
            return Err(Refused::NotOwner { id, owner: fault.owner.clone() });
        }
        fault.until = now + ttl?;
        Ok(fault)
    }

    /// Notes what the journal says of a fault.
    pub fn tell(&mut self, id: Id, seq: Seq) {
        if let Some(held) = self.held.iter_mut().find(|held| held.fault.id == id) {
            held.fault.told = Some(seq);
        }
    }

    /// Takes a fault away.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    pub fn remove(&mut self, now: Mono, id: Id) -> Result<Fault, Refused> {
        self.standing(now, id)?;
        let unknown = || Refused::Unknown { id: id.to_string() };
        self.take(|held| held.fault.id == id).pop().ok_or_else(unknown)
    }

    /// Takes down what has faded.
    pub fn expire(&mut self, now: Mono) -> Vec<Fault> {
        if self.held.iter().all(|held| now < held.fault.until) {
            return Vec::new();
        }
        self.take(|held| held.fault.until <= now)
    }

    /// Takes everything away, and lets nothing be placed until [`Self::release`]. On already, it stays on for the first
    /// reason.
    pub fn kill(&mut self, reason: &str, told: Option<Seq>) -> Vec<Fault> {
        self.killed.get_or_insert_with(|| Killed { reason: reason.into(), told });
        self.take(|_| true)
    }

    /// Lets faults be placed again. Tells what was on.
    pub fn release(&mut self) -> Option<Killed> {
        self.killed.take()
    }

    /// Those that lie there now, the oldest first.
    pub fn standing_at(&self, now: Mono) -> impl Iterator<Item = &Fault> {
        self.held.iter().map(|held| &held.fault).filter(move |fault| now < fault.until)
    }

    /// How things are.
    #[must_use]
    pub fn look(&self, now: Mono) -> Look {
        let standing = |fault: &Fault| Standing { fault: fault.clone(), left: now.until(fault.until) };
        Look {
            caps: self.caps,
            killed: self.killed.clone(),
            standing: self.standing_at(now).map(standing).collect(),
            ended: self.ended.clone(),
        }
    }

    /// Until when a fault is at work without a pause, if nobody renews it; `None` while it is not.
    #[must_use]
    pub fn until(&self, now: Mono, id: Id) -> Option<Mono> {
        self.held.iter().find(|held| held.fault.id == id)?.at_work(now).map(|left| now + left)
    }

    /// What becomes of a try: the oldest fault that chooses it touches it.
    pub fn touch(&mut self, now: Mono, it: &Try<'_>) -> Option<Touch> {
        if it.generation != self.generation {
            return None;
        }
        let mut touch = None;
        for held in &mut self.held {
            if held.at_work(now).is_none() || !held.covers(it) {
                continue;
            }
            // Asked of each, touched by one: a neighbour that comes or goes changes nobody's later choices.
            if held.chooses(it) && touch.is_none() {
                held.fault.tries += 1;
                held.fault.requests += u64::from(!it.touched.contains(&held.fault.id));
                touch = Some(Touch { id: held.fault.id, act: held.fault.kind.act(&mut held.effects) });
            }
        }
        touch
    }

    fn standing(&mut self, now: Mono, id: Id) -> Result<&mut Fault, Refused> {
        let held = self.held.iter_mut().find(|held| held.fault.id == id && now < held.fault.until);
        held.map(|held| &mut held.fault).ok_or_else(|| Refused::Unknown { id: id.to_string() })
    }

    fn take(&mut self, which: impl Fn(&Held) -> bool) -> Vec<Fault> {
        let (gone, held): (Vec<Held>, Vec<Held>) = std::mem::take(&mut self.held).into_iter().partition(which);
        self.held = held;
        let gone: Vec<Fault> = gone.into_iter().map(|held| held.fault).collect();
        self.ended.extend(gone.iter().cloned());
        self.ended.drain(..self.ended.len().saturating_sub(ENDED_MAX));
        gone
    }

    /// Faults that may meet the same requests share the cap: many small ones are one large one to whoever is behind them.
    fn check_sum(&self, portion: Portion, beside: f64) -> Result<(), Refused> {
        let max = self.caps.share_max;
        // Shares are sums of decimals: what differs by less was meant to be the same.
        if portion.share() <= 0.0 || portion.share() + beside <= max.get() + 1e-9 {
            return Ok(());
        }
        let of = |share: f64| Ratio::new(share.clamp(0.0, 1.0)).unwrap_or(Ratio::ZERO);
        let message = format!(
            "with what lies there already ({}) it would be more than is allowed here (`faults.share_max` is {max})",
            of(beside)
        );
        Err(Refused::invalid(portion.field(), message, [format!("at most {}", of(max.get() - beside))]))
    }

    fn check_ttl(&self, ttl: Option<Duration>) -> Result<Duration, Refused> {
        let max = self.caps.ttl_max;
        let allowed = || [format!("more than 0s, at most {}", format_duration(max))];
        match ttl {
            None => Err(Refused::invalid(
                "ttl",
                "`ttl` is missing: a fault that nobody renews must go by itself",
                allowed(),
            )),
            Some(ttl) if ttl.is_zero() || ttl > max => {
                let written = format_duration(ttl);
                let message = format!("`{written}` is not allowed here (`faults.ttl_max` is {})", format_duration(max));
                Err(Refused::invalid("ttl", message, allowed()))
            }
            Some(ttl) => Ok(ttl),
        }
    }
}

impl Names {
    fn of(policy: &Policy) -> Self {
        let route = |route: &crate::policy::Route| {
            let other = |fallback: &Fallback| match fallback {
                Fallback::Upstream(other) => Some(*other),
                _ => None,
            };
            let others = route.fallbacks.iter().filter_map(other);
            let (name, protocol) = (route.name.clone(), route.protocol);
            RouteName { name, protocol, upstreams: [route.upstream].into_iter().chain(others).collect() }
        };
        let upstream = |upstream: &crate::policy::Upstream| UpstreamName {
            name: upstream.name.clone(),
            endpoints: upstream.endpoints.clone(),
        };
        Self {
            routes: policy.routes.iter().map(route).collect(),
            upstreams: policy.upstreams.iter().map(upstream).collect(),
            listeners: policy.listeners.iter().map(|listener| listener.address).collect(),
        }
    }

    /// As [`Self::look_up`], where there are calls: bytes of connections pass no fault of this book.
    fn find(&self, scope: &Scope) -> Result<(Option<RouteId>, UpstreamId), Refused> {
        let (route, upstream) = self.look_up(scope)?;
        let UpstreamName { name, endpoints } = &self.upstreams[upstream.index()];
        scope.check_endpoints(endpoints, name)?;
        if let Some(listener) = scope.listener.filter(|wanted| !self.listeners.contains(wanted)) {
            let known = self.listeners.iter().map(ToString::to_string);
            return Err(Refused::invalid("listener", format!("there is no listener `{listener}`"), known));
        }
        let has_calls = |named: &RouteName| named.protocol == Protocol::Http;
        let leads_there = |named: &&RouteName| named.upstreams.contains(&upstream);
        let (field, carries_none) = match route {
            Some(route) => ("route", !has_calls(&self.routes[route.index()])),
            None => {
                let mut there = self.routes.iter().filter(leads_there).peekable();
                ("upstream", there.peek().is_some() && !there.any(has_calls))
            }
        };
        if carries_none {
            let message = "connections carry no calls that a fault could touch; Toxiproxy's API has faults for them";
            let calls = self.routes.iter().filter(|named| has_calls(named)).map(|named| named.name.as_str());
            return Err(Refused::invalid(field, message, calls));
        }
        Ok((route, upstream))
    }

    /// What a scope's names mean: with a route alone, the tries to its own upstream.
    fn look_up(&self, scope: &Scope) -> Result<(Option<RouteId>, UpstreamId), Refused> {
        let routes = || self.routes.iter().map(|route| route.name.as_str());
        let place = |found: usize| u32::try_from(found).unwrap_or(u32::MAX);
        let route = match &scope.route {
            None => None,
            Some(name) => Some(
                routes()
                    .position(|known| known == name)
                    .ok_or_else(|| Refused::invalid("route", format!("there is no route `{name}`"), routes()))?,
            ),
        };
        let upstream = match &scope.upstream {
            None => None,
            Some(name) => {
                let found = self.upstreams.iter().position(|known| known.name == *name).ok_or_else(|| {
                    let known = self.upstreams.iter().map(|known| known.name.as_str());
                    Refused::invalid("upstream", format!("there is no upstream `{name}`"), known)
                })?;
                Some(UpstreamId(place(found)))
            }
        };
        match (route, upstream) {
            (None, None) => {
                let message = "a fault lies on a route or an upstream, never on everything: give `route` or `upstream`";
                Err(Refused::invalid("route", message, routes()))
            }
            (None, Some(upstream)) => Ok((None, upstream)),
            (Some(route), None) => Ok((Some(RouteId(place(route))), self.routes[route].upstreams[0])),
            (Some(route), Some(upstream)) => {
                let RouteName { name, upstreams, .. } = &self.routes[route];
                if upstreams.contains(&upstream) {
                    return Ok((Some(RouteId(place(route))), upstream));
                }
                let message =
                    format!("route `{name}` never calls upstream `{}`", self.upstreams[upstream.index()].name);
                let known = upstreams.iter().map(|known| self.upstreams[known.index()].name.as_str());
                Err(Refused::invalid("upstream", message, known))
            }
        }
    }
}

impl Held {
    /// True unless no try can be in both scopes.
    fn may_meet(&self, route: Option<RouteId>, upstream: UpstreamId, scope: &Scope) -> bool {
        let routes = self.route.is_none() || route.is_none() || self.route == route;
        self.upstream == upstream && routes && self.fault.scope.may_meet(scope)
    }

    /// For how long it is at work from now on; `None` while it is not.
    fn at_work(&self, now: Mono) -> Option<Duration> {
        let Fault { until, began, timing, .. } = &self.fault;
        if now < *until { Some(timing.left(now.since(*began))?.min(now.until(*until))) } else { None }
    }

    fn covers(&self, it: &Try<'_>) -> bool {
        self.upstream == it.upstream
            && self.route.is_none_or(|route| route == it.route)
            && (it.is_grpc || !matches!(self.fault.kind, Kind::Grpc { .. }))
            && self.fault.scope.covers(it)
    }

    fn chooses(&mut self, it: &Try<'_>) -> bool {
        self.fault.seen += 1;
        match self.fault.portion {
            Portion::Share(share) => self.choices.chance(share.get()),
            Portion::Connections(share) => {
                let number = |client: Client| client.connection.wrapping_sub(self.connections);
                it.client.is_some_and(|client| scope::is_chosen(self.fault.seed, number(client), share))
            }
            Portion::First(count) => self.fault.tries < count,
            Portion::Every(step) => self.fault.seen.is_multiple_of(step),
        }
    }
}

/// A book that many tries walk past at the same time: one atomic load while it is empty, a short lock otherwise.
#[derive(Debug)]
pub struct SharedBook {
    any: AtomicBool,
    book: Mutex<Book>,
}

impl SharedBook {
    /// Ready to be shared.
    #[must_use]
    pub fn new(book: Book) -> Self {
        Self { any: AtomicBool::new(!book.held.is_empty()), book: Mutex::new(book) }
    }

    /// True while there may be a fault.
    #[inline]
    pub fn is_any(&self) -> bool {
        // A try that is sent at the very moment a fault is placed may miss it; whoever placed it cannot tell.
        self.any.load(Relaxed)
    }

    /// What becomes of a try.
    pub fn touch(&self, now: Mono, it: &Try<'_>) -> Option<Touch> {
        if self.is_any() { self.with(|book| book.touch(now, it)) } else { None }
    }

    /// Does something with the book, alone.
    pub fn with<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut book);
        self.any.store(!book.held.is_empty(), Relaxed);
        done
    }
}

#[cfg(test)]
mod tests;
