//! Which endpoint gets the next try: near before far, well before ill, and of two drawn by chance the one that will
//! answer sooner.
//!
//! Picture a row of counters on several floors. Endpoints stand in groups: by priority (lower first), and within one
//! the node's own zone before the others. Who looks for a counter draws a group, nearly always the first, then two of
//! its endpoints by weight, and takes the one with the lower cost: peak EWMA of latency times calls on their way
//! ([`latency`]).
//!
//! **Spill.** A group is thought able to carry all traffic while `(1 + spare) · (share of its weight that takes part)`
//! is 1 or more; below that it keeps this much and the rest goes on to the next group. Source: Envoy, "Priority
//! levels", with its overprovisioning factor of 1.4 as the default. What Envoy does not look at is room: an endpoint
//! with `calls_max` calls on their way is full, and just those calls that find their group full go on.
//! **Return.** An endpoint that has come back takes part in a growing share of the choices, over `slow_start`. As this
//! counts for the group as well, a zone that comes back is filled by degrees.
//! **Retry.** What has failed in a zone is tried in another first: a zone goes as a whole more often than two endpoints
//! of it by themselves.
//! **Panic.** With less than `panic_below` of all weight well, nobody's illness is heeded: all of them ill is more
//! likely our own mistake.
//!
//! **Sticky.** For a value ([`Plan::choose_for`]) the draw is by rendezvous: each endpoint has a score for each value,
//! and the highest that is well gets it, so that only those move whose endpoint is gone (Thaler and Ravishankar, 1998;
//! weights after Schindelhauer and Schomaker, 2005).
//!
//! Two choices instead of a search: almost as even as looking at everybody, and no herd runs to whoever was idle a
//! moment ago (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
//! Invariants: an endpoint that is unwell is chosen only in a panic; one without weight never; of endpoints that are
//! alike each gets what its weight says. A choice does not allocate.
//! Not here: which version serves whom ([`assign`]), who is well (`guard/health.rs`, `guard/outlier.rs`), when a spill
//! is told ([`spill`]).

pub mod assign;
pub mod latency;
pub mod spill;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::policy::Endpoint;
use crate::prng::Prng;
use crate::time::Mono;
use crate::units::Ratio;

/// How an upstream's endpoints share its calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalanceConfig {
    /// What a group can carry beyond its usual share: with 40 %, seven of ten endpoints carry what ten did.
    pub spare: Ratio,
    /// For so long an endpoint that has come (back) gets less than its share; zero for its share at once.
    pub slow_start: Duration,
    /// With less than this share of all weight well, health and ejections are ignored; zero for never.
    pub panic_below: Ratio,
    /// An endpoint with so many calls on their way is full; `None` for as many as it may have connections, where a call
    /// takes a connection.
    pub calls_max: Option<u32>,
}

impl Default for BalanceConfig {
    /// Never a panic: with two of three zones gone, the third is a third of the weight, and the right place to ask.
    fn default() -> Self {
        Self {
            spare: Ratio::new(0.4).unwrap_or(Ratio::ZERO),
            slow_start: Duration::from_secs(10),
            panic_below: Ratio::ZERO,
            calls_max: None,
        }
    }
}

/// The least share of the choices that an endpoint in slow start takes part in. Source: Envoy, `min_weight_percent`.
pub const SLOW_START_MIN: f64 = 0.1;

/// The share of the choices an endpoint takes part in that came (back) at `since`: from [`SLOW_START_MIN`] to 1 in a
/// straight line over `slow_start`.
#[must_use]
pub fn ramp(since: Option<Mono>, now: Mono, slow_start: Duration) -> f64 {
    let Some(since) = since else { return 1.0 };
    let passed = now.since(since).as_secs_f64() / slow_start.as_secs_f64();
    if passed.is_nan() { 1.0 } else { passed.clamp(SLOW_START_MIN, 1.0) }
}

/// What is known of the endpoints at the moment of a choice, by their place.
pub trait Endpoints {
    /// False while its health check fails or it is ejected.
    fn is_well(&self, place: usize) -> bool;
    /// True while it is taken out of service by hand: it is not chosen, panic or not.
    fn is_out(&self, place: usize) -> bool {
        let _ = place;
        false
    }
    /// The share of the choices it takes part in: below 1 in slow start.
    fn ramp(&self, place: usize) -> f64;
    /// Calls on their way to it.
    fn in_flight(&self, place: usize) -> u32;
    /// Its usual latency, in any unit; zero while it is not known.
    fn latency(&self, place: usize) -> f64;
}

/// Where a call should rather not go, a bit for each endpoint; those beyond 64 are never meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Avoid {
    /// It has failed there: other zones come first.
    pub failed: u64,
    /// Another copy of it is there, or there is no room.
    pub busy: u64,
}

impl Avoid {
    fn is_none(self) -> bool {
        self.failed | self.busy == 0
    }
}

const fn has(mask: u64, place: usize) -> bool {
    place < 64 && mask & (1 << place) != 0
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its place.
    pub place: usize,
    /// True if it is in another group than the first.
    pub is_away: bool,
}

/// An upstream's endpoints in their groups. Made once for a policy.
///
/// ```
/// use seawall_core::balance::{Avoid, BalanceConfig, Endpoints, Plan};
/// use seawall_core::{policy::Endpoint, prng::Prng};
///
/// struct AllWell;
/// impl Endpoints for AllWell {
///     fn is_well(&self, _: usize) -> bool { true }
///     fn ramp(&self, _: usize) -> f64 { 1.0 }
///     fn in_flight(&self, _: usize) -> u32 { 0 }
///     fn latency(&self, _: usize) -> f64 { 0.0 }
/// }
/// let at = |address: &str, zone: &str| Endpoint { zone: Some(zone.into()), ..Endpoint::at(address) };
/// let endpoints = [at("a:80", "west"), at("b:80", "east")];
/// let plan = Plan::new(&endpoints, "east", BalanceConfig::default(), u32::MAX);
/// let chosen = plan.choose(&AllWell, Avoid::default(), &mut Prng::new(1)).unwrap();
/// assert_eq!((chosen.place, chosen.is_away), (1, false));
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    members: Vec<Member>,
    groups: Vec<Group>,
    config: BalanceConfig,
    calls_max: u32,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    place: usize,
    weight: u32,
    /// The same number for the same zone; `None` where none was told.
    zone: Option<usize>,
    /// The same for the same address, on every node.
    mark: u64,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    first: usize,
    end: usize,
    weight: u64,
    /// All have the same weight.
    is_even: bool,
}

impl Plan {
    /// The groups of endpoints as a node in `zone` sees them. An endpoint that names no zone counts as near.
    /// `calls_max` is for a configuration that says nothing.
    #[must_use]
    pub fn new(endpoints: &[Endpoint], zone: &str, config: BalanceConfig, calls_max: u32) -> Self {
        let is_far = |endpoint: &Endpoint| endpoint.zone.as_deref().is_some_and(|theirs| theirs != zone);
        let mut places: Vec<usize> = (0..endpoints.len()).filter(|place| endpoints[*place].weight > 0).collect();
        let rank = |place: usize| (endpoints[place].priority, is_far(&endpoints[place]));
        places.sort_by_key(|place| rank(*place));
        let zone_of = |place: usize| {
            let zone = endpoints[place].zone.as_ref()?;
            endpoints.iter().position(|other| other.zone.as_ref() == Some(zone))
        };
        let member = |place: &usize| Member {
            place: *place,
            weight: endpoints[*place].weight,
            zone: zone_of(*place),
            mark: assign::mark("", endpoints[*place].address.as_bytes()),
        };
        let members: Vec<Member> = places.iter().map(member).collect();
        let mut groups: Vec<Group> = Vec::new();
        for (index, place) in places.iter().enumerate() {
            let weight = endpoints[*place].weight;
            match groups.last_mut() {
                Some(group) if rank(places[group.first]) == rank(*place) => {
                    group.end = index + 1;
                    group.weight += u64::from(weight);
                    group.is_even &= weight == members[group.first].weight;
                }
                _ => groups.push(Group { first: index, end: index + 1, weight: weight.into(), is_even: true }),
            }
        }
        Self { members, groups, config, calls_max: config.calls_max.unwrap_or(calls_max) }
    }

    /// True if there is another group than the first.
    #[must_use]
    pub fn can_spill(&self) -> bool {
        self.groups.len() > 1
    }

    /// True if an upstream of one endpoint asks it whether it is well or not.
    #[must_use]
    pub fn ignores_health(&self) -> bool {
        self.config.panic_below > Ratio::ZERO
    }

    /// The places of the first group: where all traffic goes while all is well.
    pub fn home(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups.first().into_iter().flat_map(|group| self.of(group)).map(|member| member.place)
    }

    /// The endpoint for a call; `None` if none is well. O(endpoints), and does not allocate.
    #[must_use]
    pub fn choose(&self, endpoints: &impl Endpoints, avoid: Avoid, prng: &mut Prng) -> Option<Choice> {
        self.choose_as(endpoints, avoid, None, prng)
    }

    /// The endpoint for a call that belongs to a value: the same as long as it is well and has room. Who had moved away
    /// from one that comes back moves back by degrees, each once.
    #[must_use]
    pub fn choose_for(&self, value: u64, endpoints: &impl Endpoints, avoid: Avoid) -> Option<Choice> {
        self.choose_as(endpoints, avoid, Some(value), &mut Prng::new(value))
    }

    fn choose_as(
        &self,
        endpoints: &impl Endpoints,
        avoid: Avoid,
        value: Option<u64>,
        prng: &mut Prng,
    ) -> Option<Choice> {
        let now = Now { plan: self, endpoints, value, salt: prng.next_u64(), panics: self.panics(endpoints) };
        if avoid.is_none()
            && let Some(group) = now.draw_group(prng)
        {
            let place = now.draw(group, |member| now.takes_part(member) && !now.is_full(member), prng);
            if let Some(place) = place {
                return Some(Choice { place, is_away: group > 0 });
            }
        }
        let fresh = |member: &Member| !has(avoid.failed | avoid.busy, member.place);
        let elsewhere = |member: &Member| !now.has_failed_in_zone_of(member, avoid.failed);
        // What is asked of an endpoint, less from one to the next. To be tried twice is worse than to wait for room.
        let stages: [&dyn Fn(&Member) -> bool; 6] = [
            &|member| now.takes_part(member) && !now.is_full(member) && fresh(member) && elsewhere(member),
            &|member| now.takes_part(member) && !now.is_full(member) && fresh(member),
            &|member| now.is_usable(member) && !now.is_full(member) && fresh(member),
            &|member| now.is_usable(member) && fresh(member),
            &|member| now.is_usable(member) && !now.is_full(member),
            &|member| now.is_usable(member),
        ];
        stages.iter().find_map(|asked| {
            let found = |group| Some(Choice { place: now.draw(group, asked, prng)?, is_away: group > 0 });
            (0..self.groups.len()).find_map(found)
        })
    }

    fn of(&self, group: &Group) -> &[Member] {
        &self.members[group.first..group.end]
    }

    /// What a group carries of which so much weight takes part.
    fn share(&self, weight: f64, group: &Group) -> f64 {
        let share = (1.0 + self.config.spare.get()) * weight / group.weight as f64;
        // Five of seven at a spare of 40 % are all of it, whatever the last bit says.
        if share > 1.0 - 1e-9 { 1.0 } else { share }
    }

    fn panics(&self, endpoints: &impl Endpoints) -> bool {
        let below = self.config.panic_below.get();
        if below <= 0.0 {
            return false;
        }
        let weight = |asked: &dyn Fn(&Member) -> bool| -> f64 {
            let there = self.members.iter().filter(|member| !endpoints.is_out(member.place) && asked(member));
            there.map(|member| f64::from(member.weight)).sum()
        };
        weight(&|member| endpoints.is_well(member.place)) < below * weight(&|_| true)
    }
}

/// A choice in the making.
struct Now<'a, E> {
    plan: &'a Plan,
    endpoints: &'a E,
    /// What the call belongs to.
    value: Option<u64>,
    /// Every endpoint in slow start throws its coin with it, the same at every look.
    salt: u64,
    panics: bool,
}

impl<E: Endpoints> Now<'_, E> {
    fn is_usable(&self, member: &Member) -> bool {
        !self.endpoints.is_out(member.place) && (self.panics || self.endpoints.is_well(member.place))
    }

    fn takes_part(&self, member: &Member) -> bool {
        self.is_usable(member) && {
            let ramp = self.endpoints.ramp(member.place);
            ramp >= 1.0 || Prng::new(self.salt ^ member.place as u64).chance(ramp)
        }
    }

    fn is_full(&self, member: &Member) -> bool {
        self.endpoints.in_flight(member.place) >= self.plan.calls_max
    }

    fn has_failed_in_zone_of(&self, member: &Member, failed: u64) -> bool {
        failed != 0
            && member.zone.is_some()
            && self.plan.members.iter().any(|other| has(failed, other.place) && other.zone == member.zone)
    }

    /// A group by what each can carry; `None` if none can carry anything.
    fn draw_group(&self, prng: &mut Prng) -> Option<usize> {
        let groups = &self.plan.groups;
        let share = |group: &Group| {
            let members = self.plan.of(group).iter().filter(|member| self.takes_part(member));
            self.plan.share(members.map(|member| f64::from(member.weight)).sum(), group)
        };
        let first = share(groups.first()?);
        if first >= 1.0 {
            return Some(0);
        }
        let mut total = first;
        for group in &groups[1..] {
            total += share(group).min(1.0 - total);
        }
        // Where all together cannot carry it all, each gets as much more.
        let (drawn, mut sum) = (prng.unit() * total, 0.0);
        for (index, group) in groups.iter().enumerate() {
            sum += share(group).min(1.0 - sum);
            if drawn < sum {
                return Some(index);
            }
        }
        None
    }

    /// One of a group's members that meet what is asked, the cheaper of two drawn by weight.
    fn draw(&self, group: usize, asked: impl Fn(&Member) -> bool, prng: &mut Prng) -> Option<usize> {
        let group = &self.plan.groups[group];
        let fit = || self.plan.of(group).iter().filter(|member| asked(member));
        if let Some(value) = self.value {
            let score = |member: &Member| {
                let unit = Prng::new(value ^ member.mark).unit();
                f64::from(member.weight) / -unit.max(f64::MIN_POSITIVE).ln()
            };
            return fit().max_by(|one, other| score(one).total_cmp(&score(other))).map(|member| member.place);
        }
        let (first, second) = if group.is_even {
            let count = fit().count() as u64;
            let first = prng.below(count);
            // Never the same twice: skip over the first.
            let second = (first + 1 + prng.below(count.saturating_sub(1))) % count.max(1);
            (fit().nth(first as usize)?, fit().nth(second as usize)?)
        } else {
            // The same twice is taken: else of two both would always be drawn, and the light one get far beyond its
            // share whenever it is idle.
            let weight = fit().map(|member| u64::from(member.weight)).sum();
            let mut drawn = || {
                let mut left = prng.below(weight);
                fit().find(|member| {
                    let is_it = left < u64::from(member.weight);
                    left = left.saturating_sub(member.weight.into());
                    is_it
                })
            };
            (drawn()?, drawn()?)
        };
        Some(if self.is_better(first, second) { second.place } else { first.place })
    }

    /// True if the second drawn should take the call. Where latencies are alike or unknown it does if, with this call,
    /// it has no more on its way for its weight than the first has without; so the idle share by weight, and the busy
    /// level out. Else the product of latency and calls decides, as in Finagle.
    fn is_better(&self, first: &Member, second: &Member) -> bool {
        if first.place == second.place {
            return false;
        }
        let calls = [first, second].map(|member| f64::from(self.endpoints.in_flight(member.place)));
        let latency = [first, second].map(|member| self.endpoints.latency(member.place));
        let weight = [first.weight, second.weight].map(f64::from);
        if latency::are_alike(latency[0], latency[1]) {
            return calls[0] / weight[0] >= (calls[1] + 1.0) / weight[1];
        }
        let most = weight[0].max(weight[1]);
        let cost = |it: usize| latency[it] * (calls[it] * most / weight[it] + 1.0);
        cost(1) < cost(0)
    }
}
