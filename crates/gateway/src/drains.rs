//! Taking an endpoint, a route or a listener out of service while the gateway runs, and back.
//!
//! Picture signs hung on doors and desks, and a list of the signs. The list ([`Book`]) is the truth; the signs are
//! flags where calls pass by: an endpoint's when one is chosen, a route's before its guards, a door's when an answer is
//! given. Under another policy the signs are hung up anew by the list; what is not there any more is struck off it, and
//! told. A listener goes in two steps: first answers end their connections, so that clients and balancers can move on,
//! later its sockets are closed. Back it comes as another door on the same address, by a change to the same policy. Not
//! here: what a call meets (`chain.rs`, `tcp.rs`, `node.rs`), who waits for an end.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_core::drain::{Refused, Standing, Target};
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::observation::RouteSnapshot;
use seawall_core::time::Wall;
use seawall_core::units::format_duration;

use crate::StartError;
use crate::node::{EndpointState, Node};
use crate::seat::{Door, Hall};

/// Everything that is drained.
#[derive(Default)]
pub(crate) struct Book(Mutex<BTreeMap<Target, Drain>>);

struct Drain {
    reason: String,
    since: Wall,
    /// The entry about it.
    entry: Seq,
}

/// Why a drain is over, as the journal has it.
#[derive(Clone, Copy)]
enum Over {
    Resumed,
    /// What was drained is not in the configuration any more.
    Reconfigured,
    Stopped,
    /// It goes on in another process.
    Elsewhere,
}

impl Over {
    const fn name(self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::Reconfigured => "reconfigured",
            Self::Stopped => "stopped",
            Self::Elsewhere => "handed_over",
        }
    }
}

/// Drains of a running gateway. Cheap to clone.
#[derive(Clone)]
pub struct Drains(pub(crate) Arc<Hall>);

impl Drains {
    /// Begins one; of what is drained already nothing changes. A listener refuses after this time.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    pub fn drain(&self, target: &Target, reason: &str, refuse_after: Duration) -> Result<Standing, Refused> {
        let _one_change = self.0.one_change();
        let node = self.0.node();
        let place = node.find(target)?;
        if !node.drains.lock().contains_key(target) {
            let draft = Draft::new(Kind::DrainBegan, format!("{}:{}", target.kind(), target.name()));
            let draft = draft.because(place.told()).with("reason", reason);
            let entry = node.journal.record(match place {
                Place::Door(_) => draft.with("refuses_after", format_duration(refuse_after)),
                _ => draft,
            });
            place.set(true, entry);
            if let Place::Door(door) = &place {
                self.0.refuse_after(Arc::clone(door), entry, refuse_after);
            }
            let drain = Drain { reason: reason.into(), since: node.clock.wall(), entry };
            node.drains.lock().insert(target.clone(), drain);
        }
        let standing = node.standing().into_iter().find(|it| (it.kind, &it.name) == (target.kind(), &target.name()));
        standing.ok_or_else(|| node.unknown(target))
    }

    /// Ends one. Tells whether there was one.
    ///
    /// # Errors
    /// [`Refused`]; it goes on then.
    pub fn resume(&self, target: &Target, seed: u64) -> Result<bool, Refused> {
        let mut one_change = self.0.one_change();
        let node = self.0.node();
        let place = node.find(target)?;
        let Some(entry) = node.drains.lock().get(target).map(|drain| drain.entry) else { return Ok(false) };
        match &place {
            Place::Door(door) if door.drain.is_cancelled() => {
                let why = |error: StartError| error.source().map_or_else(String::new, ToString::to_string);
                let not_reopened = |error| Refused::NotReopened { target: target.clone(), why: why(error) };
                let prepared = self.0.reopening(door).map_err(not_reopened)?;
                node.end_drain(target, Over::Resumed);
                self.0.change_within(&mut one_change, prepared, node.tls.clone(), Some(entry), seed);
                return Ok(true);
            }
            _ => {
                place.set(false, entry);
                if let Place::Endpoint(endpoint) = place {
                    // By degrees, as whoever comes back.
                    endpoint.load.comes(node.clock.now());
                }
            }
        }
        node.end_drain(target, Over::Resumed);
        Ok(true)
    }

    /// Everything that is drained.
    #[must_use]
    pub fn standing(&self) -> Vec<Standing> {
        self.0.node().standing()
    }

    /// A listener that is drained, if one is: balancers should ask elsewhere.
    #[must_use]
    pub fn listener(&self) -> Option<Target> {
        let node = self.0.node();
        let drains = node.drains.lock();
        drains.keys().find(|target| matches!(target, Target::Listener(_))).cloned()
    }
}

/// What a target is in a node.
enum Place<'n> {
    Endpoint(&'n EndpointState),
    Route(&'n crate::route::RouteState),
    Door(&'n Arc<Door>),
}

impl Place<'_> {
    /// What was last told of it.
    fn told(&self) -> Option<Seq> {
        match self {
            Self::Endpoint(endpoint) => *endpoint.told.lock().unwrap_or_else(PoisonError::into_inner),
            Self::Route(route) => route.cause(),
            Self::Door(_) => None,
        }
    }

    fn set(&self, draining: bool, entry: Seq) {
        match self {
            Self::Endpoint(endpoint) => {
                endpoint.draining.store(draining, Relaxed);
                *endpoint.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
            }
            Self::Route(route) => route.set_draining(draining, entry),
            Self::Door(door) => door.parting.store(if draining { entry.0 } else { 0 }, Relaxed),
        }
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Target, Drain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn find(&self, target: &Target) -> Result<Place<'_>, Refused> {
        let found = match target {
            Target::Endpoint { upstream, address } => {
                let upstream = self.upstreams.iter().find(|state| state.name == *upstream);
                let mut endpoints = upstream.into_iter().flat_map(|upstream| &upstream.endpoints);
                endpoints.find(|state| state.endpoint.address == *address).map(|state| Place::Endpoint(state))
            }
            Target::Route(name) => {
                self.routes.iter().find(|route| route.policy.name == *name).map(|route| Place::Route(route))
            }
            Target::Listener(address) => self.doors.iter().find(|door| door.address == *address).map(Place::Door),
        };
        found.ok_or_else(|| self.unknown(target))
    }

    fn unknown(&self, target: &Target) -> Refused {
        let known = match target {
            Target::Endpoint { .. } => {
                let of_one = |upstream: &crate::node::UpstreamState| {
                    let name = upstream.name.clone();
                    let names = upstream.endpoints.iter().map(move |it| format!("{name}/{}", it.endpoint.address));
                    names.collect::<Vec<_>>()
                };
                self.upstreams.iter().flat_map(of_one).collect()
            }
            Target::Route(_) => self.routes.iter().map(|route| route.policy.name.clone()).collect(),
            Target::Listener(_) => self.doors.iter().map(|door| door.address.to_string()).collect(),
        };
        Refused::Unknown { target: target.clone(), known }
    }

    /// Hangs up the signs in a node that has just been made.
    pub(crate) fn follow_drains(&self) {
        let drains: Vec<(Target, Seq)> =
            self.drains.lock().iter().map(|(target, drain)| (target.clone(), drain.entry)).collect();
        for (target, entry) in drains {
            match self.find(&target) {
                Ok(place) => place.set(true, entry),
                Err(_) => self.end_drain(&target, Over::Reconfigured),
            }
        }
    }

    /// With a gateway that stops, every drain is over: the next one begins without.
    pub(crate) fn end_drains(&self) {
        self.end_drains_as(Over::Stopped);
    }

    /// With a gateway whose place another process takes, they are over here: there they go on.
    pub(crate) fn hand_over_drains(&self) {
        self.end_drains_as(Over::Elsewhere);
    }

    fn end_drains_as(&self, why: Over) {
        let drains: Vec<Target> = self.drains.lock().keys().cloned().collect();
        drains.iter().for_each(|target| self.end_drain(target, why));
    }

    fn end_drain(&self, target: &Target, why: Over) {
        let Some(drain) = self.drains.lock().remove(target) else { return };
        let draft = Draft::new(Kind::DrainEnded, format!("{}:{}", target.kind(), target.name()));
        self.journal.record(draft.because(Some(drain.entry)).with("why", why.name()));
    }

    fn standing(&self) -> Vec<Standing> {
        let workers = self.workers();
        let routes: Vec<RouteSnapshot> = match self.drains.lock().is_empty() {
            true => Vec::new(),
            false => (0..self.routes.len()).map(|index| self.route_snapshot(index, &workers)).collect(),
        };
        self.drains_seen(&routes)
    }

    /// What is drained, and what is left there.
    pub(crate) fn drains_seen(&self, routes: &[RouteSnapshot]) -> Vec<Standing> {
        let drains = self.drains.lock();
        let standing = drains.iter().filter_map(|(target, drain)| {
            let (calls, connections, refuses, last) = match self.find(target).ok()? {
                Place::Endpoint(endpoint) => {
                    let Target::Endpoint { upstream, .. } = target else { return None };
                    let (_, upstream) = self.known_upstream(upstream)?;
                    let load = &endpoint.load;
                    let (calls, connections) = (load.in_flight.load(Relaxed), load.connections.load(Relaxed));
                    (calls.into(), connections.into(), true, !upstream.endpoints.iter().any(|it| it.can_be_asked()))
                }
                Place::Route(route) => {
                    let route = routes.iter().find(|seen| seen.name == route.policy.name)?;
                    (route.in_flight, route.connections.open, true, false)
                }
                Place::Door(door) => {
                    let guests = Arc::strong_count(&door.guests) as u64 - 1;
                    (0, guests, door.drain.is_cancelled(), false)
                }
            };
            Some(Standing {
                kind: target.kind(),
                name: target.name(),
                reason: drain.reason.clone(),
                since: drain.since,
                calls,
                connections,
                refuses,
                last,
            })
        });
        standing.collect()
    }
}
