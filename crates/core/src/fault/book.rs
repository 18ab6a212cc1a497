//! Faults of a node, each held by a lease: who placed which on what, until when, which tries and connections it
//! touches.
//!
//! Picture a board with notes that fade. Whoever wants a fault pins a note to it ([`Order`]), and must come back to
//! write it anew before it has faded; nobody has to take it down. Every try that is about to be sent walks past the
//! board and is touched by the oldest note that chooses it, or by none; a connection that stands asks again whenever a
//! note comes or goes, and is touched by all that have chosen it. Invariants: a note that has faded decides nothing,
//! whether or not anybody has taken it down; no more notes hang there than [`Caps`] allow, none on everything, none on
//! more of the traffic than is allowed, and what is denied passes unseen; while the kill switch is on the board is
//! empty. The same orders, seeds and tries, in the same order, give the same choices. Not here: what becomes of a
//! touched try (the gateway's), bytes ([`Link`](super::Link)), the words of the API.

mod abort;
mod kind;
mod scope;
mod timing;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Direction, Fault as Toxic, FaultId};
use crate::id::{RouteId, UpstreamId};
use crate::journal::Seq;
use crate::policy::{Endpoint, Fallback, Policy, Protocol};
use crate::prng::Prng;
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

pub use abort::{AbortWhen, OVER_MAX, Seen, Tripped};
pub use kind::{Act, Carries, DATE_MAX, HEAD_BYTES_MAX, Kind, Moment, RetryAfter, Spread, Way, on_body};
pub use scope::{Client, Portion, Scope, Try};
pub use timing::{Flap, Timing};

use abort::Looks;
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
#[derive(Clone, Debug, PartialEq)]
pub struct Caps {
    /// Most of the traffic in its scope a fault may touch, together with those beside it that may meet the same
    /// requests.
    pub share_max: Ratio,
    /// Longest time until a lease must be renewed.
    pub ttl_max: Duration,
    /// Most faults at the same time.
    pub count_max: usize,
    /// What no fault may touch.
    pub deny: Vec<Deny>,
}

/// Tries that no fault may touch: those that fit everything that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deny {
    /// Of this route, by name.
    pub route: Option<String>,
    /// To this upstream, by name.
    pub upstream: Option<String>,
    /// Whose path begins so.
    pub path_prefix: Option<String>,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            share_max: Ratio::of(1, 2).unwrap_or(Ratio::ZERO),
            ttl_max: Duration::from_secs(900),
            count_max: 8,
            deny: Vec::new(),
        }
    }
}

impl Deny {
    /// True if nothing to this upstream may be touched.
    fn is_all_of(&self, upstream: &str) -> bool {
        self.route.is_none() && self.path_prefix.is_none() && self.upstream.as_deref() == Some(upstream)
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
    /// When it is to end before its time.
    pub abort_when: Option<AbortWhen>,
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
    /// The configuration allows none.
    #[error("faults are off on this node: allow them in its configuration")]
    Off,
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
    /// The configuration denies it.
    #[error("{field} `{name}` is on the list of what no fault may touch (`faults.deny`)")]
    Denied {
        /// `route`, `upstream`, `path` or `path_prefix`.
        field: &'static str,
        /// Its name.
        name: String,
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
            Self::Invalid { field, .. } | Self::Denied { field, .. } => Some(field),
            Self::Unknown { .. } => Some("id"),
            Self::NotOwner { .. } => Some("owner"),
            Self::Same { .. } => Some("kind"),
            Self::Off => Some("faults"),
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
    /// When it is to end before its time.
    pub abort_when: Option<AbortWhen>,
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

/// The cut that bytes of a call in flight do not get past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Severed {
    /// Its name.
    pub id: Id,
    /// What the journal says of it.
    pub told: Option<Seq>,
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
    /// It did more harm than was meant.
    Aborted,
    /// Another process took the node over.
    HandedOver,
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
            Self::Aborted => "aborted",
            Self::HandedOver => "handed_over",
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
    /// How far faults may go, where they are allowed.
    pub caps: Option<Caps>,
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
    /// This node's own.
    zone: String,
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
    /// Its calls may become connections.
    upgrades: bool,
    /// Its own upstream first, then those that stand in for it.
    upstreams: Vec<UpstreamId>,
}

/// What a fault lies on, by the present policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Tries to this upstream; of this route, or of any.
    Upstream(Option<RouteId>, UpstreamId),
    /// Everything that leads to the zone of its scope.
    Zone,
}

/// What is to become of the bytes of a connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposure {
    /// What lies on them now.
    pub toxics: Vec<Toxic>,
    /// What the journal says of those that have come to lie on them just now.
    pub told: Vec<Seq>,
    /// Their names.
    pub touched: Vec<Id>,
    /// When it may be something else, if nobody places or takes away anything.
    pub until: Option<Mono>,
}

/// A fault at work.
#[derive(Clone, Debug)]
struct Held {
    fault: Fault,
    target: Target,
    /// How much of the traffic in question its scope is: less than all where a zone is cut off.
    of_all: f64,
    /// How many connections there had been when it was placed: its choices count from there.
    connections: u64,
    /// Decides which tries; what is done to them draws from another source, so that a kind changes no choice.
    choices: Prng,
    effects: Prng,
}

/// The board.
#[derive(Clone, Debug)]
pub struct Book {
    /// Nothing while faults are off; then nothing lies there.
    caps: Option<Caps>,
    names: Names,
    generation: u64,
    epoch: u64,
    /// By age.
    held: Vec<Held>,
    ended: Vec<Fault>,
    placed: u64,
    killed: Option<Killed>,
    looks: Looks,
}

impl Book {
    /// An empty one for the routes and upstreams of a policy; without `caps` faults are off. `epoch` is a number no
    /// earlier start of the node has had.
    #[must_use]
    pub fn new(caps: impl Into<Option<Caps>>, policy: &Policy, epoch: u64) -> Self {
        let (names, caps) = (Names::of(policy), caps.into());
        let (held, ended, looks) = (Vec::new(), Vec::new(), Looks::default());
        Self { caps, names, generation: 0, epoch, held, ended, placed: 0, killed: None, looks }
    }

    /// Goes on under the next policy. Faults stay on what is still called the same; tells those that are gone with what
    /// they lay on.
    pub fn follow(&mut self, policy: &Policy) -> Vec<Fault> {
        (self.names, self.generation) = (Names::of(policy), self.generation + 1);
        self.looks.forget();
        let Some(caps) = &self.caps else { return Vec::new() };
        let names = &self.names;
        let mut lost = Vec::new();
        for held in &mut self.held {
            match names.find(&held.fault.scope, held.fault.kind, caps) {
                Ok(found) => (held.target, held.of_all) = found,
                Err(_) => lost.push(held.fault.id),
            }
        }
        self.take(|held| lost.contains(&held.fault.id))
    }

    /// Faults may go so far from here on, or are off. Where that is something else than before, whatever lies there is
    /// gone, as it was placed under other rules.
    pub fn allow(&mut self, caps: Option<Caps>) -> Vec<Fault> {
        if self.caps == caps {
            return Vec::new();
        }
        self.caps = caps;
        self.take(|_| true)
    }

    fn allowed(&self) -> Result<&Caps, Refused> {
        self.caps.as_ref().ok_or(Refused::Off)
    }

    fn denied(&self) -> impl Iterator<Item = &Deny> {
        self.caps.iter().flat_map(|caps| &caps.deny)
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
        let caps = self.allowed()?;
        if let Some(Killed { reason, .. }) = &self.killed {
            return Err(Refused::Killed { reason: reason.clone() });
        }
        let (target, of_all) = self.names.find(&order.scope, order.kind, caps)?;
        let Order { owner, scope, portion, kind, timing, abort_when, ttl, seed } = order;
        check_text("owner", &owner)?;
        scope.check_words()?;
        match kind {
            // It is a part of the traffic already: of each upstream the endpoints that lie there.
            Kind::ZoneCut { .. } if portion == Portion::Every(1) => {}
            Kind::ZoneCut { .. } => {
                let message = "a zone is cut off from everybody, not from a part of them";
                return Err(Refused::invalid(portion.field(), message, ["every: 1"]));
            }
            _ => portion.check(caps.share_max)?,
        }
        kind.check()?;
        timing.check()?;
        abort_when.iter().try_for_each(AbortWhen::check)?;
        let ttl = self.check_ttl(ttl)?;
        let standing: Vec<&Held> = self.held.iter().filter(|held| now < held.fault.until).collect();
        let is_same = |held: &&&Held| held.fault.kind.name() == kind.name() && held.fault.scope == scope;
        if let Some(same) = standing.iter().find(is_same) {
            return Err(Refused::Same { id: same.fault.id });
        }
        if standing.len() >= caps.count_max {
            return Err(Refused::TooMany { count_max: caps.count_max });
        }
        let beside = standing.iter().filter(|held| held.may_meet(target, &scope));
        self.check_sum(portion, portion.share() * of_all, beside.fold(0.0, |sum, held| sum + held.share()))?;
        self.placed += 1;
        let id = Id { epoch: self.epoch, number: self.placed };
        // Short enough to be typed again.
        let seed = seed.unwrap_or_else(|| prng.next_u64() >> 32);
        let mut choices = Prng::new(seed);
        let effects = choices.fork();
        let (began, until) = (now, now + ttl);
        let (seen, tries, requests, told) = (0, 0, 0, None);
        let fault = Fault {
            id,
            owner,
            scope,
            portion,
            kind,
            timing,
            abort_when,
            seed,
            began,
            until,
            seen,
            tries,
            requests,
            told,
        };
        self.held.push(Held { fault, target, of_all, connections, choices, effects });
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

    /// Whether anybody wants to know what clients see.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.held.iter().any(|held| held.fault.abort_when.is_some())
    }

    /// Takes in what clients have seen of the routes of a policy, in its order, and takes down what has done too much.
    pub fn judge(&mut self, now: Mono, generation: u64, seen: Vec<Seen>) -> Vec<(Fault, Tripped)> {
        if generation != self.generation {
            return Vec::new();
        }
        self.looks.add(now, seen);
        let mut tripped = Vec::new();
        for held in &self.held {
            let Some(when) = &held.fault.abort_when else { continue };
            let leads_there = |named: &RouteName| match held.target {
                Target::Zone | Target::Upstream(Some(_), _) => true,
                Target::Upstream(None, upstream) => named.upstreams.contains(&upstream),
            };
            let routes = self.names.routes.iter().enumerate().filter(|(_, named)| leads_there(named));
            let routes = routes.map(|(place, _)| RouteId(place_of(Some(place))));
            let routes = routes.filter(|id| !matches!(held.target, Target::Upstream(Some(only), _) if only != *id));
            if let Some((route, seen)) = self.looks.too_much(when, held.fault.began, routes) {
                let route = self.names.routes[route.index()].name.clone();
                tripped.push((held.fault.id, Tripped { route, seen, over: when.over }));
            }
        }
        if tripped.is_empty() {
            return Vec::new();
        }
        let gone = self.take(|held| tripped.iter().any(|(id, _)| *id == held.fault.id));
        gone.into_iter().zip(tripped.into_iter().map(|(_, tripped)| tripped)).collect()
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
            caps: self.caps.clone(),
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

    /// What becomes of a try: the oldest fault that chooses it touches it, and a zone that is cut off before all
    /// others.
    pub fn touch(&mut self, now: Mono, it: &Try<'_>) -> Option<Touch> {
        if it.generation != self.generation || self.is_denied(it) {
            return None;
        }
        let mut chosen: Option<usize> = None;
        for (place, held) in self.held.iter_mut().enumerate() {
            // The bytes of a connection are asked about when it stands.
            let is_about_bytes = match held.fault.kind {
                Kind::ZoneCut { way: Way::Down } => it.carries == Carries::Connection,
                kind => kind.on_bytes().is_some() && held.target != Target::Zone,
            };
            if is_about_bytes || held.at_work(now).is_none() || !held.covers(it) {
                continue;
            }
            // Asked of each, touched by one: a neighbour that comes or goes changes nobody's later choices.
            if held.chooses(it) && (chosen.is_none() || held.target == Target::Zone) {
                chosen = Some(place);
            }
        }
        let held = &mut self.held[chosen?];
        let act = held.fault.kind.act(&mut held.effects)?;
        held.fault.tries += 1;
        held.fault.requests += u64::from(!it.touched.contains(&held.fault.id));
        Some(Touch { id: held.fault.id, act })
    }

    /// What lies on the bytes of a connection that stands. Of the policy it came about under only the names of its
    /// route and upstream count. `fates` are its own: whether each fault it has met has chosen it, once and for all.
    pub fn expose(
        &mut self,
        now: Mono,
        (route, upstream): (&str, &str),
        it: &Try<'_>,
        fates: &mut Vec<(Id, bool)>,
    ) -> Exposure {
        let mut exposure = Exposure::default();
        fates.retain(|(id, _)| self.held.iter().any(|held| held.fault.id == *id));
        let it = &Try { route: self.names.route(route), upstream: self.names.upstream(upstream), ..*it };
        if self.is_denied(it) {
            return exposure;
        }
        for held in &mut self.held {
            let Some((way, effect)) = held.fault.kind.on_bytes() else { continue };
            if held.fault.until <= now || !held.covers(it) {
                continue;
            }
            let passed = now.since(held.fault.began);
            let turns =
                held.fault.timing.turns(passed).map_or(held.fault.until, |left| held.fault.until.min(now + left));
            exposure.until = Some(exposure.until.map_or(turns, |until| until.min(turns)));
            if held.at_work(now).is_none() {
                continue;
            }
            let is_chosen = match fates.iter().find(|(id, _)| *id == held.fault.id) {
                Some((_, is_chosen)) => *is_chosen,
                None => {
                    let is_chosen = held.chooses(it);
                    fates.push((held.fault.id, is_chosen));
                    if is_chosen {
                        held.fault.tries += 1;
                        held.fault.requests += u64::from(!it.touched.contains(&held.fault.id));
                        exposure.touched.push(held.fault.id);
                        exposure.told.extend(held.fault.told);
                    }
                    is_chosen
                }
            };
            if is_chosen {
                // The same for the same seed and order of connections, whatever else has been placed.
                let connection = it.client.map_or(0, |client| client.connection.wrapping_sub(held.connections));
                let id = FaultId(format!("{}:{connection}:{}", held.fault.seed, held.fault.id).into());
                exposure.toxics.extend(way.directions().map(|direction| kind::toxic(id.clone(), direction, effect)));
            }
        }
        exposure
    }

    /// The cut that lets no bytes of a call in flight go this way. A call is counted once: whoever has met the cut says
    /// so in `it.touched`. Of the policy it began under only the names of its route and upstream count.
    pub fn severed(
        &mut self,
        now: Mono,
        (route, upstream): (&str, &str),
        it: &Try<'_>,
        direction: Direction,
    ) -> Option<Severed> {
        let it = &Try { route: self.names.route(route), upstream: self.names.upstream(upstream), ..*it };
        if self.is_denied(it) {
            return None;
        }
        let cuts = |held: &&mut Held| match held.fault.kind {
            Kind::ZoneCut { way } => {
                way.directions().any(|cut| cut == direction) && held.at_work(now).is_some() && held.covers(it)
            }
            _ => false,
        };
        let fault = &mut self.held.iter_mut().find(cuts)?.fault;
        if !it.touched.contains(&fault.id) {
            (fault.tries, fault.requests) = (fault.tries + 1, fault.requests + 1);
        }
        Some(Severed { id: fault.id, told: fault.told })
    }

    /// Whether a zone is cut off, in either direction, for probes of this upstream's endpoints there.
    #[must_use]
    pub fn cut(&self, now: Mono, upstream: &str, zone: &str) -> Option<Id> {
        let is_cut = |held: &&Held| {
            held.target == Target::Zone && held.fault.scope.zone.as_deref() == Some(zone) && held.at_work(now).is_some()
        };
        if self.denied().any(|deny| deny.is_all_of(upstream)) {
            return None;
        }
        self.held.iter().find(is_cut).map(|held| held.fault.id)
    }

    /// True for what no fault may touch.
    fn is_denied(&self, it: &Try<'_>) -> bool {
        let route = |name: &String| self.names.routes.get(it.route.index()).is_some_and(|known| known.name == *name);
        let upstream =
            |name: &String| self.names.upstreams.get(it.upstream.index()).is_some_and(|known| known.name == *name);
        self.denied().any(|deny| {
            deny.route.as_ref().is_none_or(route)
                && deny.upstream.as_ref().is_none_or(upstream)
                && deny.path_prefix.as_ref().is_none_or(|prefix| it.path.starts_with(prefix.as_str()))
        })
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

    /// Faults that may meet the same requests share the cap: many small ones are one large one to whoever is behind
    /// them.
    fn check_sum(&self, portion: Portion, share: f64, beside: f64) -> Result<(), Refused> {
        let max = self.allowed()?.share_max;
        // Shares are sums of decimals: what differs by less was meant to be the same.
        if share <= 0.0 || share + beside <= max.get() + 1e-9 {
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
        let max = self.allowed()?.ttl_max;
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
            let (name, protocol, upgrades) = (route.name.clone(), route.protocol, !route.upgrades.is_empty());
            RouteName { name, protocol, upgrades, upstreams: [route.upstream].into_iter().chain(others).collect() }
        };
        let upstream = |upstream: &crate::policy::Upstream| UpstreamName {
            name: upstream.name.clone(),
            endpoints: upstream.endpoints.clone(),
        };
        Self {
            routes: policy.routes.iter().map(route).collect(),
            upstreams: policy.upstreams.iter().map(upstream).collect(),
            listeners: policy.listeners.iter().map(|listener| listener.address).collect(),
            zone: policy.zone.clone(),
        }
    }

    /// What a fault of this kind lies on, and how much of the traffic in question that is.
    fn find(&self, scope: &Scope, kind: Kind, caps: &Caps) -> Result<(Target, f64), Refused> {
        if let Kind::ZoneCut { .. } = kind {
            return Ok((Target::Zone, self.check_cut(scope.check_zone_alone()?, caps)?));
        }
        let (route, upstream) = self.look_up(scope)?;
        let UpstreamName { name, endpoints } = &self.upstreams[upstream.index()];
        let of = |named: &Option<String>, known: &str| named.as_ref().is_some_and(|named| named == known);
        for Deny { route, upstream, path_prefix } in &caps.deny {
            let route_fits = route.is_none() || (route.is_some() && *route == scope.route);
            let upstream_fits = upstream.is_none() || of(upstream, name);
            if !route_fits || !upstream_fits {
                continue;
            }
            let denied = match path_prefix {
                None => Some(route.as_ref().map_or(("upstream", name), |route| ("route", route))),
                Some(prefix) => scope.within(prefix),
            };
            if let Some((field, name)) = denied {
                return Err(Refused::Denied { field, name: name.clone() });
            }
        }
        scope.check_endpoints(endpoints, name)?;
        if let Some(listener) = scope.listener.filter(|wanted| !self.listeners.contains(wanted)) {
            let known = self.listeners.iter().map(ToString::to_string);
            return Err(Refused::invalid("listener", format!("there is no listener `{listener}`"), known));
        }
        self.check_fit(scope, kind, (route, upstream))?;
        Ok((Target::Upstream(route, upstream), 1.0))
    }

    /// Whether there is anything in scope that a fault of this kind can touch.
    fn check_fit(
        &self,
        scope: &Scope,
        kind: Kind,
        (route, upstream): (Option<RouteId>, UpstreamId),
    ) -> Result<(), Refused> {
        let fits = |(protocol, upgrades): (Protocol, bool)| match protocol {
            Protocol::Http => {
                kind.fits(Carries::Call) || kind.fits(Carries::Grpc) || (upgrades && kind.fits(Carries::Connection))
            }
            Protocol::Tcp => kind.fits(Carries::Connection),
        };
        let mut there = self.routes.iter().filter(|named| named.upstreams.contains(&upstream)).peekable();
        let speech = |named: &RouteName| (named.protocol, named.upgrades);
        let (who, speaks) = match route {
            Some(route) => {
                let name = scope.route.as_deref().unwrap_or_default();
                (format!("route `{name}`"), speech(&self.routes[route.index()]))
            }
            // Whom nobody calls yet may be called by a policy to come.
            None if there.peek().is_none() => return Ok(()),
            None => {
                let all: Vec<(Protocol, bool)> = there.map(speech).collect();
                let fitting = all.iter().copied().find(|speaks| fits(*speaks));
                (format!("upstream `{}`", self.upstreams[upstream.index()].name), fitting.unwrap_or(all[0]))
            }
        };
        let (protocol, _) = speaks;
        if !fits(speaks) {
            let (what, carries) = match protocol {
                Protocol::Http => ("calls", Carries::Call),
                Protocol::Tcp => ("connections", Carries::Connection),
            };
            let message = format!("{who} carries {what}, which `{}` cannot touch", kind.name());
            return Err(Refused::invalid("kind", message, Kind::names_for(carries)));
        }
        match protocol {
            Protocol::Tcp => scope.check_for_connections(),
            Protocol::Http if kind.on_bytes().is_some() => scope.check_for_upgraded(),
            Protocol::Http => Ok(()),
        }
    }

    /// The largest part of an upstream's endpoints, by weight, that lie in a zone.
    fn check_cut(&self, zone: &str, caps: &Caps) -> Result<f64, Refused> {
        let zones: BTreeSet<&str> =
            self.upstreams.iter().flat_map(|known| &known.endpoints).filter_map(|it| it.zone.as_deref()).collect();
        if zone == self.zone || !zones.contains(zone) {
            let message = match zone == self.zone {
                true => format!("`{zone}` is this node's own zone"),
                false => format!("no upstream has an endpoint in zone `{zone}`"),
            };
            return Err(Refused::invalid("zone", message, zones.into_iter().filter(|known| *known != self.zone)));
        }
        let mut most = 0.0_f64;
        for UpstreamName { name, endpoints } in &self.upstreams {
            let weight = |endpoints: &mut dyn Iterator<Item = &Endpoint>| -> u64 {
                endpoints.map(|endpoint| u64::from(endpoint.weight)).sum()
            };
            let there = weight(&mut endpoints.iter().filter(|endpoint| endpoint.zone.as_deref() == Some(zone)));
            let share = Ratio::of(there, weight(&mut endpoints.iter()).max(1)).unwrap_or(Ratio::ONE);
            if caps.deny.iter().any(|deny| deny.is_all_of(name)) {
                continue;
            }
            if share > caps.share_max {
                let max = caps.share_max;
                let message = format!(
                    "{share} of upstream `{name}` lie in zone `{zone}`, more than is allowed here (`faults.share_max` is {max})"
                );
                return Err(Refused::invalid("zone", message, [format!("a zone with at most {max} of each upstream")]));
            }
            most = most.max(share.get());
        }
        Ok(most)
    }

    fn route(&self, name: &str) -> RouteId {
        RouteId(place_of(self.routes.iter().position(|known| known.name == name)))
    }

    fn upstream(&self, name: &str) -> UpstreamId {
        UpstreamId(place_of(self.upstreams.iter().position(|known| known.name == name)))
    }

    /// What a scope's names mean: with a route alone, the tries to its own upstream.
    fn look_up(&self, scope: &Scope) -> Result<(Option<RouteId>, UpstreamId), Refused> {
        let routes = || self.routes.iter().map(|route| route.name.as_str());
        let place = |found: usize| place_of(Some(found));
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
    /// Of the traffic it may meet, in the long run.
    fn share(&self) -> f64 {
        self.fault.portion.share() * self.of_all
    }

    /// True unless no try can be in both scopes.
    fn may_meet(&self, target: Target, scope: &Scope) -> bool {
        let meet = match (self.target, target) {
            (Target::Upstream(route, upstream), Target::Upstream(other_route, other_upstream)) => {
                upstream == other_upstream && (route.is_none() || other_route.is_none() || route == other_route)
            }
            // Two zones are two parts of the same upstream: together they are more.
            (Target::Zone, Target::Zone) => return true,
            _ => true,
        };
        meet && self.fault.scope.may_meet(scope)
    }

    /// For how long it is at work from now on; `None` while it is not.
    fn at_work(&self, now: Mono) -> Option<Duration> {
        let Fault { until, began, timing, .. } = &self.fault;
        if now < *until { Some(timing.left(now.since(*began))?.min(now.until(*until))) } else { None }
    }

    fn covers(&self, it: &Try<'_>) -> bool {
        let leads_there = match self.target {
            Target::Zone => true,
            Target::Upstream(route, upstream) => upstream == it.upstream && route.is_none_or(|route| route == it.route),
        };
        leads_there && self.fault.kind.fits(it.carries) && self.fault.scope.covers(it)
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

/// The number of a place; of none, a number nobody has.
fn place_of(place: Option<usize>) -> u32 {
    place.and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX)
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
