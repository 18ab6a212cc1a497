//! Policies: the guards by name, and what stands in when they gave up.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use seawall_core::guard::breaker::{BreakerConfig, HalfOpen, OpenWait, Ramp, SlowRule, WindowConfig};
use seawall_core::guard::budget::BudgetConfig;
use seawall_core::guard::bulkhead::{BulkheadConfig, Order};
use seawall_core::guard::concurrency::ConcurrencyConfig;
use seawall_core::guard::hedge::HedgeConfig;
use seawall_core::guard::learned::LearnedConfig;
use seawall_core::guard::rate::RateConfig;
use seawall_core::guard::retry::{Backoff, Jitter, RetryConfig, RetryOn};
use seawall_core::guard::throttle::ThrottleConfig;
use seawall_core::outcome::Failure;
use seawall_core::policy::{Delivery, Durability, Fallback, Guards};
use seawall_core::spool::Priority;
use seawall_core::units::{self, Ratio, format_duration, format_size};
use seawall_core::whatif::audit::{Expects, audit};

use super::reader::{Field, Keys, Section, hint_of, parse_slow};
use super::tree::Data;
use super::upstreams::Upstreams;
use super::{StoreConfig, parse_name};

/// A request may take this long in all unless told otherwise.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// Bodies and answers up to this size are kept whole unless told otherwise.
pub(super) const WHOLE_BYTES_MAX: u64 = 64 << 10;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const GIB: u64 = 1 << 30;

/// What a policy says about a route.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) guards: Guards,
    pub(super) fallbacks: Vec<Fallback>,
    pub(super) order_by: Option<String>,
    pub(super) delivery: Delivery,
    /// True if somebody asked for retries or second copies, rather than taking what there is.
    pub(super) wants_repeats: bool,
}

impl Default for Rules {
    fn default() -> Self {
        let guards = Guards {
            timeout: TIMEOUT,
            try_timeout: TIMEOUT,
            retry: RetryConfig::default(),
            budget: BudgetConfig::default(),
            breaker: Some(BreakerConfig::default()),
            bulkhead: BulkheadConfig::default(),
            replay_bytes_max: WHOLE_BYTES_MAX,
            answer_bytes_max: WHOLE_BYTES_MAX,
            ..Guards::default()
        };
        Self { guards, fallbacks: Vec::new(), order_by: None, delivery: Delivery::default(), wants_repeats: false }
    }
}

/// Every policy, and which of them anybody asks for.
pub(super) struct Policies<'n> {
    list: Vec<Named<'n>>,
}

struct Named<'n> {
    entry: Field<'n>,
    rules: Rules,
    /// What is said of its traffic, if its numbers were understood: arithmetic on others would only confuse.
    expects: Option<Expects>,
    used: Cell<bool>,
    /// Used by routes of requests.
    called: Cell<bool>,
    /// The least time that connections have which use it, if any do.
    connects_in: Cell<Option<Duration>>,
}

impl<'n> Policies<'n> {
    pub(super) fn read(field: Option<Field<'n>>, upstreams: &Upstreams<'_>, store: &StoreConfig) -> Self {
        let entries = field.map(|field| field.entries()).unwrap_or_default();
        let list = entries.into_iter().map(|entry| {
            let (rules, expects) = read_policy(entry, upstreams, store);
            let (used, called, connects_in) = Default::default();
            Named { entry, rules, expects, used, called, connects_in }
        });
        Self { list: list.collect() }
    }

    /// The rules a field names, which are thereby in use for requests.
    pub(super) fn refer(&self, field: Field<'_>) -> Option<&Rules> {
        let named = self.find(field)?;
        named.called.set(true);
        Some(&named.rules)
    }

    /// As [`Self::refer`], for the connections of the listener in a line: what they cannot use is told where it stands.
    pub(super) fn refer_connections(
        &self,
        field: Field<'_>,
        line: usize,
        connect_timeout: Option<Duration>,
    ) -> Option<&Rules> {
        let (named, time) = (self.find(field)?, connect_timeout.unwrap_or(Duration::MAX));
        if named.connects_in.get().is_none() {
            tell_what_connections_cannot_use(named.entry, line);
        }
        named.connects_in.set(Some(named.connects_in.get().map_or(time, |least| least.min(time))));
        Some(&named.rules)
    }

    fn find(&self, field: Field<'_>) -> Option<&Named<'n>> {
        let name = field.text()?;
        let found = self.list.iter().find(|named| named.entry.key == name);
        match found {
            Some(named) => named.used.set(true),
            None => {
                let hint = hint_of(name, self.list.iter().map(|named| named.entry.key));
                field.error_with(format!("policy `{name}` is not defined"), hint);
            }
        }
        found
    }

    /// What can be told only once it is known who uses which.
    pub(super) fn tell_unused(&self) {
        for Named { entry, .. } in self.list.iter().filter(|named| !named.used.get()) {
            let message = format!("no route uses the policy `{}`", entry.key);
            entry.reader.warning(entry.key_spot, message, "name it in a route, or remove it");
        }
        self.list.iter().for_each(Named::tell_what_cannot_work);
    }
}

impl Named<'_> {
    /// What plain arithmetic finds. Only what was written is blamed: defaults suit most.
    fn tell_what_cannot_work(&self) {
        let Some(expects) = &self.expects else { return };
        let mut guards = self.rules.guards.clone();
        if let (Some(time), false) = (self.connects_in.get(), self.called.get()) {
            guards.try_timeout = guards.try_timeout.min(time);
        }
        let field = |key| self.entry.known_entries().find(|field| field.key == key);
        for line in audit(&guards, expects) {
            let of_traffic = field("expects").filter(|_| line.of_traffic);
            let Some(field) = field(line.key).or(of_traffic) else { continue };
            field.reader.audit(field.spot(), line.message, line.fix);
        }
    }
}

const POLICY: Keys = Keys {
    of: "this policy",
    known: &[
        "timeout",
        "try_timeout",
        "idle_timeout",
        "retry",
        "breaker",
        "bulkhead",
        "concurrency",
        "throttle",
        "rate",
        "learned_limit",
        "hedge",
        "look_ahead",
        "replay_max",
        "answer_max",
        "fallback",
        "order_by",
        "delivery",
        "expects",
    ],
    later: &[],
};

fn read_policy(entry: Field<'_>, upstreams: &Upstreams<'_>, store: &StoreConfig) -> (Rules, Option<Expects>) {
    if let Err(problem) = parse_name(entry.key) {
        entry.reader.error(entry.key_spot, problem);
    }
    let (section, default) = (entry.section(POLICY), Rules::default());
    let told_before = entry.reader.count();
    let timeout = section.duration("timeout", TIMEOUT, MILLISECOND..=DAY);
    let (retry, budget) = section.field("retry").map(read_retry).unwrap_or_default();
    let guards = Guards {
        timeout,
        try_timeout: read_try_timeout(&section, timeout),
        idle_timeout: section
            .field("idle_timeout")
            .filter(|field| !field.is_off())
            .and_then(|field| field.duration(MILLISECOND..=7 * DAY)),
        retry,
        budget,
        breaker: section.field("breaker").map_or(default.guards.breaker, read_breaker),
        bulkhead: section.field("bulkhead").map(read_bulkhead).unwrap_or_default(),
        concurrency: section.field("concurrency").and_then(read_concurrency),
        throttle: section.field("throttle").and_then(read_throttle),
        rate: section.field("rate").and_then(read_rate),
        learned_limit: section.field("learned_limit").and_then(read_learned),
        hedge: section.field("hedge").and_then(read_hedge),
        look_ahead: section.field("look_ahead").is_some_and(read_switch),
        replay_bytes_max: section.size("replay_max", WHOLE_BYTES_MAX, 0..=GIB),
        answer_bytes_max: section.size("answer_max", WHOLE_BYTES_MAX, 0..=GIB),
    };
    let fallbacks = section.field("fallback").map(|field| read_fallbacks(field, upstreams)).unwrap_or_default();
    let order_by = section.field("order_by").and_then(|field| field.parsed(parse_order_by));
    let delivery = section.field("delivery").map(|field| read_delivery(field, store)).unwrap_or_default();
    let wants_repeats =
        ["retry", "hedge"].into_iter().any(|key| section.field(key).is_some_and(|field| !field.is_off()));
    let rules = Rules { guards, fallbacks, order_by, delivery, wants_repeats };
    warn_of_idle_settings(&section, &rules, store);
    let expects = section.field("expects").map(read_expects).unwrap_or_default();
    let is_understood = entry.reader.count() == told_before;
    if is_understood {
        note_what_can_be_played(entry, &section, &rules, &expects);
    }
    (rules, is_understood.then_some(expects))
}

/// Keys of a policy that belong to requests and answers, and why connections have no use for them.
const OF_REQUESTS: [(&str, &str); 11] = [
    ("concurrency", "it is found out from how fast requests are answered"),
    ("throttle", "it goes by answers"),
    ("learned_limit", "it is learned from statuses and headers"),
    ("hedge", "what is sent goes to one endpoint"),
    ("look_ahead", "their callers do not say how long they wait"),
    ("replay_max", "what was sent once is not sent again"),
    ("answer_max", "bytes are passed on as they come"),
    ("fallback", "there is no answer that anything could stand in for"),
    ("order_by", "nothing of them is kept in the spool"),
    ("delivery", "nothing of them is kept in the spool"),
    ("expects", "a rehearsal plays requests"),
];

/// Failures that a connection can begin with.
const OF_CONNECTING: [&str; 4] = ["dns", "connect_refused", "connect_timeout", "connection_lost"];

fn tell_what_connections_cannot_use(policy: Field<'_>, line: usize) {
    let tell = |field: &Field<'_>, name: &str, why: &str| {
        let message = format!("`{name}` means nothing to the connections of the listener in line {line}: {why}");
        policy.reader.error_with(field.key_spot, message, "remove it, or give that listener a policy of its own");
    };
    for field in policy.known_entries().filter(|field| !field.is_off()) {
        if let Some((key, why)) = OF_REQUESTS.iter().find(|(key, _)| *key == field.key) {
            tell(&field, key, why);
        }
        for inner in field.known_entries().filter(|inner| !inner.is_off()) {
            match (field.key, inner.key) {
                ("retry" | "breaker", "retry_after_max") => {
                    tell(&inner, "retry_after_max", "nobody sends `Retry-After`")
                }
                ("retry", "on") => {
                    let kinds = match &inner.node.data {
                        Data::List(_) => inner.list(),
                        _ => vec![inner],
                    };
                    for kind in kinds.iter().filter(|kind| kind.peek().is_some_and(|it| !OF_CONNECTING.contains(&it))) {
                        let known = OF_CONNECTING.join(", ");
                        let why = format!("once connected, nothing is tried again; left are {known}");
                        tell(&Field { key_spot: kind.spot(), ..*kind }, kind.peek().unwrap_or_default(), &why);
                    }
                }
                _ => {}
            }
        }
    }
}

const EXPECTS: Keys =
    Keys { of: "`expects`", known: &["rate", "failure_rate", "caller_attempts", "caller_timeout"], later: &[] };

/// What is said of the traffic.
fn read_expects(field: Field<'_>) -> Expects {
    let (section, default) = (field.section(EXPECTS), Expects::default());
    let failure_rate = section.field("failure_rate").and_then(|field| field.ratio(Ratio::ZERO..=Ratio::ONE));
    Expects {
        per_second: section.field("rate").and_then(|field| field.rate(0.000_01..=1e9)),
        failure_rate: failure_rate.unwrap_or(default.failure_rate),
        caller_attempts: section.count("caller_attempts", 1, 1..=100),
        caller_timeout: section.field("caller_timeout").and_then(|field| field.duration(MILLISECOND..=DAY)),
    }
}

/// Only what was written may be blamed: defaults suit most.
fn note_what_can_be_played(entry: Field<'_>, policy: &Section<'_>, rules: &Rules, expects: &Expects) {
    let place = |key| policy.field(key).map(|field| (key, field.spot()));
    let places: Vec<_> = ["breaker", "retry", "expects"].into_iter().filter_map(place).collect();
    entry.reader.drill(entry.key, &rules.guards, expects, &places);
}

fn read_try_timeout(section: &Section<'_>, timeout: Duration) -> Duration {
    let Some(field) = section.field("try_timeout") else { return timeout };
    let Some(try_timeout) = field.duration(MILLISECOND..=DAY) else { return timeout };
    if try_timeout > timeout {
        let (one, all) = (format_duration(try_timeout), format_duration(timeout));
        field.error_with(format!("{one} for one try is more than `timeout`, {all} for all of them"), "make it shorter");
    }
    try_timeout
}

/// Settings that are read and then change nothing.
fn warn_of_idle_settings(section: &Section<'_>, rules: &Rules, store: &StoreConfig) {
    let spools = rules.fallbacks.contains(&Fallback::Spool);
    for key in ["order_by", "delivery"] {
        if let (Some(field), false) = (section.field(key), spools) {
            let message = format!("`{key}` has no effect without `fallback: spool`");
            field.reader.warning(field.key_spot, message, "add the fallback, or remove this");
        }
    }
    if spools && rules.guards.replay_bytes_max > store.record_bytes_max {
        let field = section.field("replay_max").or_else(|| section.field("fallback"));
        let Some(field) = field else { return };
        let (replay, record) = (format_size(rules.guards.replay_bytes_max), format_size(store.record_bytes_max));
        let message = format!("bodies up to `replay_max` ({replay}) do not fit a record of the spool ({record})");
        field.reader.warning(field.spot(), message, "raise `store.record_max`");
    }
    let slow = rules.guards.breaker.as_ref().and_then(|breaker| breaker.slow);
    if let (Some(slow), Some(field)) = (slow, section.field("breaker"))
        && slow.over >= rules.guards.try_timeout
    {
        let (over, timeout) = (format_duration(slow.over), format_duration(rules.guards.try_timeout));
        let message = format!("no call can be slow over {over}: a try ends after {timeout}");
        field.reader.warning(field.spot(), message, "make `slow` shorter than `try_timeout`");
    }
}

const RETRY: Keys = Keys {
    of: "`retry`",
    known: &[
        "attempts",
        "backoff",
        "growth",
        "jitter",
        "on",
        "total",
        "retry_after_max",
        "budget",
        "budget_floor",
        "budget_at_once",
    ],
    later: &[],
};

fn read_retry(field: Field<'_>) -> (RetryConfig, BudgetConfig) {
    let (retry, budget) = (RetryConfig::default(), BudgetConfig::default());
    if field.is_off() {
        return (RetryConfig::off(), budget);
    }
    let section = field.section(RETRY);
    let backoff = section.field("backoff").and_then(read_backoff);
    let (base, wait_max) = backoff.unwrap_or((Duration::from_millis(50), retry.wait_max));
    let ratio = section.field("budget").and_then(|field| field.ratio(Ratio::ZERO..=Ratio::ONE));
    let floor = section.field("budget_floor").and_then(|field| field.rate(0.0..=1_000_000.0));
    let growth = section.field("growth").and_then(|field| field.parsed(|text| parse_growth(text, base)));
    let read = RetryConfig {
        attempts_max: section.count("attempts", retry.attempts_max, 1..=20),
        backoff: growth.unwrap_or(Backoff::Exponential { base, multiplier: 2.0 }),
        jitter: section.field("jitter").and_then(|field| field.parsed(parse_jitter)).unwrap_or(retry.jitter),
        wait_max,
        total_max: section.field("total").and_then(|field| field.duration(MILLISECOND..=DAY)),
        retry_after_max: section.duration("retry_after_max", retry.retry_after_max, Duration::ZERO..=DAY),
        on: section.field("on").and_then(read_retry_on).unwrap_or(retry.on),
    };
    let budget = BudgetConfig {
        ratio: ratio.unwrap_or(budget.ratio),
        floor_per_s: floor.unwrap_or(budget.floor_per_s),
        in_flight_min: section.count("budget_at_once", budget.in_flight_min, 0..=1_000_000),
        ..budget
    };
    (read, budget)
}

/// `exponential`, `x1.5`, `linear`, `fixed`, `fibonacci`, `decorrelated`, `smooth`.
fn parse_growth(text: &str, base: Duration) -> Result<Backoff, String> {
    if let Some(multiplier) = text.strip_prefix('x').and_then(|number| number.parse::<f64>().ok()) {
        return match multiplier {
            1.0..=100.0 => Ok(Backoff::Exponential { base, multiplier }),
            _ => Err(format!("`{text}` is out of range: x1 to x100")),
        };
    }
    match text {
        "exponential" => Ok(Backoff::Exponential { base, multiplier: 2.0 }),
        "linear" => Ok(Backoff::Linear { base, step: base }),
        "fixed" => Ok(Backoff::Fixed(base)),
        "fibonacci" => Ok(Backoff::Fibonacci { base }),
        "decorrelated" => Ok(Backoff::Decorrelated { base }),
        "smooth" => Ok(Backoff::DecorrelatedSmooth { base }),
        _ => Err(format!(
            "`{text}` is no growth; known are exponential, x1.5 and the like, linear, fixed, fibonacci, decorrelated, \
             smooth"
        )),
    }
}

/// `full`, `equal`, `none`, or a percentage up and down.
fn parse_jitter(text: &str) -> Result<Jitter, String> {
    match text {
        "full" => Ok(Jitter::Full),
        "equal" => Ok(Jitter::Equal),
        "none" => Ok(Jitter::None),
        share => match units::parse_ratio(share) {
            Ok(share) => Ok(Jitter::Share(share)),
            Err(_) => Err(format!("`{text}` is no jitter; known are full, equal, none, and a share such as `25%`")),
        },
    }
}

/// Kinds of failure and statuses: `[timeout, connect_refused, 503]`.
fn read_retry_on(field: Field<'_>) -> Option<RetryOn> {
    let (mut kinds, mut statuses) = (Vec::new(), Vec::new());
    let items = field.list_or_one();
    if items.is_empty() {
        field.error_with("`on` names no failure", "write `retry: off`, or leave `on` out");
    }
    for item in items {
        let Some(text) = item.text() else { continue };
        match text.parse::<u16>() {
            Ok(status @ 500..=599) => statuses.push(status),
            Ok(429) => item.error_with("429 goes by the name of its kind", "write `throttled`"),
            Ok(_) => item.error(format!("`{text}` is no status of failure: 500 to 599")),
            Err(_) if Failure::NAMES.contains(&text) => kinds.push(text),
            Err(_) => {
                let hint = hint_of(text, Failure::NAMES);
                item.error_with(format!("`{text}` is no kind of failure"), hint);
            }
        }
    }
    RetryOn::only(kinds, statuses)
}

/// `50ms..1s`, or one duration for both.
fn read_backoff(field: Field<'_>) -> Option<(Duration, Duration)> {
    field.parsed(|text| {
        let (base, max) = text.split_once("..").unwrap_or((text, text));
        let parse = |part: &str| units::parse_duration(part).map_err(|error| error.to_string());
        let (base, max) = (parse(base)?, parse(max)?);
        if base > max {
            let (base, max) = (format_duration(base), format_duration(max));
            return Err(format!("`{text}` is the wrong way round; write `{max}..{base}`"));
        }
        if !(MILLISECOND..=HOUR).contains(&base) || max > HOUR {
            return Err(format!("`{text}` is out of range: 1ms to 1h"));
        }
        Ok((base, max))
    })
}

const BREAKER: Keys = Keys {
    of: "`breaker`",
    known: &[
        "failure_rate",
        "slow",
        "consecutive_failures",
        "window",
        "calls_min",
        "open_for",
        "open_for_max",
        "open_for_jitter",
        "retry_after_max",
        "half_open_calls",
        "half_open_for",
        "ramp",
    ],
    later: &[],
};

fn read_breaker(field: Field<'_>) -> Option<BreakerConfig> {
    if field.is_off() {
        return None;
    }
    let (section, default) = (field.section(BREAKER), BreakerConfig::default());
    let told_before = field.reader.count();
    let failure_rate = section.field("failure_rate").and_then(|field| field.ratio(one_per_mille()..=Ratio::ONE));
    let window = section.field("window").and_then(read_window).unwrap_or(default.window);
    let (open_for, open_for_max) = read_open_for(&section, &default.wait);
    let jitter = section.field("open_for_jitter").and_then(|field| field.ratio(Ratio::ZERO..=Ratio::ONE));
    let heeds = section.field("retry_after_max").filter(|field| !field.is_off());
    let ignores = section.field("retry_after_max").is_some_and(|field| field.is_off());
    let retry_after_max = heeds.and_then(|field| field.duration(Duration::ZERO..=DAY));
    let half_open_for = default.half_open.probe_for.unwrap_or(Duration::from_secs(10));
    let breaker = BreakerConfig {
        failure_rate_max: failure_rate.unwrap_or(default.failure_rate_max),
        slow: section.field("slow").and_then(read_slow),
        consecutive_failures_max: section
            .field("consecutive_failures")
            .and_then(|field| NonZeroU32::new(field.count(1..=1_000_000)?)),
        calls_min: read_calls_min(&section, window, default.calls_min),
        window,
        wait: OpenWait {
            first: open_for,
            max: Some(open_for_max),
            jitter: jitter.unwrap_or(default.wait.jitter),
            retry_after_max: if ignores { None } else { retry_after_max.or(default.wait.retry_after_max) },
            ..default.wait
        },
        half_open: HalfOpen {
            calls: section.count("half_open_calls", default.half_open.calls, 1..=1_000),
            probe_for: Some(section.duration("half_open_for", half_open_for, MILLISECOND..=HOUR)),
            ..default.half_open
        },
        ramp: section.field("ramp").filter(|field| !field.is_off()).and_then(read_ramp),
        ..default
    };
    if let Err(invalid) = breaker.check() {
        if field.reader.count() > told_before {
            return None;
        }
        // What the readers above let through and still makes no breaker.
        section.field(invalid.key).unwrap_or(field).error(invalid.to_string());
        return None;
    }
    Some(breaker)
}

/// `1% 5% 25% each 10s`.
fn read_ramp(field: Field<'_>) -> Option<Ramp> {
    field.parsed(|text| {
        let wanted = || format!("`{text}` is no ramp, such as `1% 5% 25% each 10s`");
        let (shares, step_for) = text.split_once(" each ").ok_or_else(wanted)?;
        let step_for = units::parse_duration(step_for.trim()).map_err(|error| error.to_string())?;
        let shares = shares.split([' ', ',']).filter(|share| !share.is_empty()).map(units::parse_ratio);
        let steps = shares.collect::<Result<Vec<Ratio>, _>>().map_err(|error| error.to_string())?;
        let ramp = Ramp { steps, step_for, ..Ramp::default() };
        match (BreakerConfig { ramp: Some(ramp.clone()), ..BreakerConfig::default() }).check() {
            Ok(()) => Ok(ramp),
            Err(invalid) => Err(format!("`{text}` is out of range: {}", invalid.allowed)),
        }
    })
}

/// A rate of zero would open at the first call, whatever it came to.
fn one_per_mille() -> Ratio {
    Ratio::of(1, 1_000).unwrap_or(Ratio::ZERO)
}

fn read_slow(field: Field<'_>) -> Option<SlowRule> {
    field.parsed(|text| match parse_slow(text)? {
        (rate, _) if rate < one_per_mille() => Err(format!("`{text}` is out of range: 0.1% to 100%")),
        (_, over) if over.is_zero() => Err(format!("`{text}`: every call takes longer than that")),
        (rate_max, over) => Ok(SlowRule { rate_max, over, in_flight: true }),
    })
}

/// `100 calls`, or a duration.
fn read_window(field: Field<'_>) -> Option<WindowConfig> {
    field.parsed(|text| {
        if let Some(calls) = text.strip_suffix("calls").or_else(|| text.strip_suffix("call")) {
            return match calls.trim().replace('_', "").parse::<u32>() {
                Ok(calls @ 1..=100_000) => Ok(WindowConfig::Calls(calls)),
                Ok(_) => Err(format!("`{text}` is out of range: 1 to 100000 calls")),
                Err(_) => Err(format!("`{text}` is not a window, such as `100 calls` or `10s`")),
            };
        }
        if text.parse::<u32>().is_ok() {
            return Err(format!("`{text}` needs a unit, such as `{text} calls` or `{text}s`"));
        }
        match units::parse_duration(text) {
            Ok(span) if (Duration::from_millis(100)..=HOUR).contains(&span) => Ok(WindowConfig::time(span)),
            Ok(_) => Err(format!("`{text}` is out of range: 100ms to 1h")),
            Err(_) => Err(format!("`{text}` is not a window, such as `100 calls` or `10s`")),
        }
    })
}

fn read_calls_min(section: &Section<'_>, window: WindowConfig, default: u32) -> u32 {
    let most = if let WindowConfig::Calls(calls) = window { calls } else { u32::MAX };
    let Some(field) = section.field("calls_min") else { return default.min(most) };
    let calls_min = field.count(1..=1_000_000).unwrap_or(1);
    if calls_min > most {
        field.error_with(
            format!("{calls_min} calls never fit a window of {most}: the breaker could never open"),
            format!("write {most} at most"),
        );
    }
    calls_min
}

fn read_open_for(section: &Section<'_>, default: &OpenWait) -> (Duration, Duration) {
    let open_for = section.duration("open_for", default.first, MILLISECOND..=HOUR);
    let usual_max = default.max.map_or(open_for, |max| max.max(open_for));
    let Some(field) = section.field("open_for_max") else { return (open_for, usual_max) };
    let open_for_max = field.duration(MILLISECOND..=DAY).unwrap_or(usual_max);
    if open_for_max < open_for {
        field.error(format!(
            "{} is less than `open_for`, {}",
            format_duration(open_for_max),
            format_duration(open_for)
        ));
    }
    (open_for, open_for_max)
}

const BULKHEAD: Keys = Keys { of: "`bulkhead`", known: &["calls", "waiting", "wait", "order"], later: &[] };

fn read_bulkhead(field: Field<'_>) -> BulkheadConfig {
    let (section, default) = (field.section(BULKHEAD), BulkheadConfig::default());
    BulkheadConfig {
        calls_max: section.count("calls", default.calls_max, 1..=1_000_000),
        waiting_max: section.count("waiting", default.waiting_max, 0..=1_000_000),
        wait_max: section.duration("wait", default.wait_max, Duration::ZERO..=HOUR),
        order: section.field("order").and_then(|field| field.parsed(parse_order)).unwrap_or(default.order),
    }
}

fn parse_order(text: &str) -> Result<Order, String> {
    match text {
        "fifo" => Ok(Order::Fifo),
        "adaptive_lifo" => Ok(Order::AdaptiveLifo),
        _ => Err(format!("`{text}` is no order; known are fifo and adaptive_lifo")),
    }
}

const DELIVERY: Keys = Keys {
    of: "`delivery`",
    known: &["attempts", "parallel", "priority", "expire", "max", "durability", "replicated_within"],
    later: &[],
};

fn read_delivery(field: Field<'_>, store: &StoreConfig) -> Delivery {
    let (section, default) = (field.section(DELIVERY), Delivery::default());
    Delivery {
        attempts_max: section.count("attempts", default.attempts_max, 1..=1_000_000),
        parallel: section.count("parallel", default.parallel, 1..=1_024),
        priority: section.field("priority").and_then(|field| field.parsed(parse_priority)).unwrap_or(default.priority),
        expire: section.field("expire").and_then(|field| field.duration(SECOND..=3_650 * DAY)),
        bytes_max: section.field("max").and_then(|field| field.size(4_096..=65_536 * GIB)),
        durability: section.field("durability").map(|field| read_durability(field, store)).unwrap_or_default(),
        replicated_within: section.duration("replicated_within", default.replicated_within, MILLISECOND..=HOUR),
    }
}

/// `local`, `replicated`, `replicated_or_local`; the latter two need somewhere to replicate to.
fn read_durability(field: Field<'_>, store: &StoreConfig) -> Durability {
    let parse = |text: &str| {
        let found = Durability::ALL.into_iter().find(|durability| durability.name() == text);
        found.ok_or_else(|| format!("`{text}` is no durability; known are local, replicated and replicated_or_local"))
    };
    let durability = field.parsed(parse).unwrap_or_default();
    if durability != Durability::Local && store.replica.is_none() {
        let hint = "add `store: { url: nats://zone-1:4222,... }`";
        field.error_with(format!("`{}` needs somewhere to replicate to", durability.name()), hint);
    }
    durability
}

/// `high`, `normal`, `low`.
fn parse_priority(text: &str) -> Result<Priority, String> {
    let found = Priority::ALL.into_iter().find(|priority| priority.name() == text);
    found.ok_or_else(|| format!("`{text}` is no priority; known are high, normal and low"))
}

const CONCURRENCY: Keys = Keys { of: "`concurrency`", known: &["initial", "min", "max"], later: &[] };

/// `on`, or bounds.
fn read_concurrency(field: Field<'_>) -> Option<ConcurrencyConfig> {
    let default = ConcurrencyConfig::default();
    if field.is_off() {
        return None;
    }
    if field.peek() == Some("on") {
        return Some(default);
    }
    let section = field.section(CONCURRENCY);
    let limit_min = section.count("min", default.limit_min, 1..=1_000_000);
    let limit_max = section.count("max", default.limit_max.max(limit_min), limit_min..=1_000_000);
    let usual = default.limit_initial.clamp(limit_min, limit_max.max(limit_min));
    let limit_initial = section.count("initial", usual, limit_min..=limit_max.max(limit_min));
    Some(ConcurrencyConfig { limit_initial, limit_min, limit_max, ..default })
}

/// `on`, or how many calls may be sent for each one that the upstream takes on: `x1.5`.
fn read_throttle(field: Field<'_>) -> Option<ThrottleConfig> {
    if field.is_off() {
        return None;
    }
    let multiplier = field.parsed(|text| match (text, text.strip_prefix('x').map(str::parse::<f64>)) {
        ("on", _) => Ok(2.0),
        (_, Some(Ok(multiplier @ 1.0..=100.0))) => Ok(multiplier),
        (_, Some(Ok(_))) => Err(format!("`{text}` is out of range: x1 to x100")),
        _ => Err(format!("`{text}` is no throttle, such as `on` or `x2`")),
    })?;
    Some(ThrottleConfig { multipliers: vec![multiplier], ..ThrottleConfig::default() })
}

/// `100/s`, or `100/s burst 20`.
fn read_rate(field: Field<'_>) -> Option<RateConfig> {
    if field.is_off() { None } else { field.parsed(parse_rate_limit) }
}

/// Reads `100/s`, or `100/s burst 20`.
pub(crate) fn parse_rate_limit(text: &str) -> Result<RateConfig, String> {
    let (rate, burst) = text.split_once(" burst ").map_or((text, None), |(rate, burst)| (rate, Some(burst)));
    let per_second = units::parse_rate(rate.trim()).map_err(|error| error.to_string())?;
    // In whole cells over the shortest time that has them, so that nothing is rounded but the most crooked rates.
    let spans = [1_u32, 60, 3_600, 86_400];
    let whole = |span: &u32| (per_second * f64::from(*span)).fract() == 0.0;
    let span = spans.into_iter().find(whole).unwrap_or(86_400);
    let cells = (per_second * f64::from(span)).round();
    if !(1.0..=1e9).contains(&cells) {
        return Err(format!("`{text}` is out of range: 1/d to 1000000000/s"));
    }
    let burst = match burst {
        Some(burst) => burst.trim().parse::<u32>().ok().filter(|burst| *burst > 0),
        // A tenth of a second's worth.
        None => Some(((per_second / 10.0) as u32).max(1)),
    };
    let burst = burst.ok_or_else(|| format!("`{text}` is no rate, such as `100/s burst 20`"))?;
    Ok(RateConfig { cells: cells as u32, per: Duration::from_secs(span.into()), burst })
}

const HEDGE: Keys = Keys { of: "`hedge`", known: &["after", "min", "max"], later: &[] };

/// `p95`, or bounds beside it.
fn read_hedge(field: Field<'_>) -> Option<HedgeConfig> {
    let default = HedgeConfig::default();
    if field.is_off() {
        return None;
    }
    let quantile = |field: Field<'_>| {
        field.parsed(|text| match text.strip_prefix('p').map(str::parse::<f64>) {
            Some(Ok(percent @ 50.0..=99.9)) => Ok(percent / 100.0),
            Some(Ok(_)) => Err(format!("`{text}` is out of range: p50 to p99.9")),
            _ => Err(format!("`{text}` is no percentile, such as `p95`")),
        })
    };
    let (share, delay_min, delay_max) = if field.peek().is_some() {
        (quantile(field), default.delay_min, default.delay_max)
    } else {
        let section = field.section(HEDGE);
        let share = section.field("after").map_or(Some(default.quantile.get()), quantile);
        let delay_min = section.duration("min", default.delay_min, MILLISECOND..=HOUR);
        (share, delay_min, section.duration("max", default.delay_max.max(delay_min), delay_min..=HOUR))
    };
    let share = share?;
    let quantile = Ratio::new(share)?;
    // As many as it takes for the percentile to be something else than the slowest of all.
    let samples_min = default.samples_min.max((1.0 / (1.0 - share)).ceil() as u32);
    Some(HedgeConfig { quantile, samples_min, delay_min, delay_max, ..default })
}

/// `on` or `off`.
pub(super) fn read_switch(field: Field<'_>) -> bool {
    let switch = field.parsed(|text| match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("`{text}` is neither `on` nor `off`")),
    });
    switch.unwrap_or(false)
}

/// `on`.
fn read_learned(field: Field<'_>) -> Option<LearnedConfig> {
    if field.is_off() {
        return None;
    }
    field.parsed(|text| match text {
        "on" => Ok(LearnedConfig::default()),
        _ => Err(format!(
            "`{text}` is neither `on` nor `off`: the limit is learned, not told; `rate` is for a known one"
        )),
    })
}

/// `header:Shipment-Id`, kept in lower case as headers are compared.
fn parse_order_by(text: &str) -> Result<String, String> {
    let Some(name) = text.strip_prefix("header:") else {
        return Err(format!("`{text}` is not a source of keys, such as `header:Shipment-Id`"));
    };
    if is_token(name) { Ok(name.to_ascii_lowercase()) } else { Err(format!("`{name}` is not the name of a header")) }
}

/// A `token` of RFC 9110 section 5.6.2: what header names and methods are made of.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

const FALLBACKS: [&str; 4] = ["spool", "stale", "static", "upstream"];

fn read_fallbacks(field: Field<'_>, upstreams: &Upstreams<'_>) -> Vec<Fallback> {
    let mut fallbacks: Vec<Fallback> = Vec::new();
    let mut last_word = false;
    for item in field.list_or_one() {
        let Some(fallback) = read_fallback(item, upstreams) else { continue };
        if fallbacks.iter().any(|known| known.name() == fallback.name()) {
            item.error_with(format!("`{}` is given twice", fallback.name()), "remove one");
            continue;
        }
        if last_word {
            item.reader.warning(item.spot(), "never tried: `static` before it always answers", "move it up");
        }
        last_word |= matches!(fallback, Fallback::Static { .. });
        fallbacks.push(fallback);
    }
    fallbacks
}

const FALLBACK: Keys = Keys { of: "this fallback", known: &FALLBACKS, later: &[] };

/// `spool`, or a mapping of one kind to its settings.
fn read_fallback(item: Field<'_>, upstreams: &Upstreams<'_>) -> Option<Fallback> {
    if let Some(word) = item.peek() {
        return match word {
            "spool" => Some(Fallback::Spool),
            "stale" => refuse_bare(item, "stale: 10m"),
            "static" => refuse_bare(item, "static: { status: 200, body: \"...\" }"),
            "upstream" => refuse_bare(item, "upstream: other"),
            _ => {
                item.error_with(format!("`{word}` is not a fallback"), hint_of(word, FALLBACKS));
                None
            }
        };
    }
    let section = item.section(FALLBACK);
    let mut kinds = FALLBACKS.iter().filter_map(|kind| section.field(kind));
    let (first, second) = (kinds.next(), kinds.next());
    if let (Some(_), Some(second)) = (first, second) {
        second.reader.error_with(
            second.key_spot,
            "a fallback is one of its kinds",
            "write a list to try several: `[{ stale: 10m }, spool]`",
        );
        return None;
    }
    let kind = first?;
    match kind.key {
        "spool" => refuse_settings(kind),
        "stale" => kind.duration(MILLISECOND..=365 * DAY).map(|for_at_most| Fallback::Stale { for_at_most }),
        "static" => Some(read_static(kind)),
        _ => upstreams.refer(kind).map(Fallback::Upstream),
    }
}

fn refuse_bare(item: Field<'_>, example: &str) -> Option<Fallback> {
    item.error_with("this fallback has settings", format!("write `{{ {example} }}`"));
    None
}

fn refuse_settings(kind: Field<'_>) -> Option<Fallback> {
    match kind.node.data {
        Data::Empty => return Some(Fallback::Spool),
        Data::Unresolved => {}
        _ => kind.reader.error_with(kind.key_spot, "`spool` has no settings here", "write `fallback: spool`"),
    }
    None
}

const STATIC: Keys = Keys { of: "`static`", known: &["status", "content_type", "body"], later: &[] };

fn read_static(kind: Field<'_>) -> Fallback {
    let section = kind.section(STATIC);
    let status = section.count("status", 200, 200..=599);
    let content_type = section.field("content_type").and_then(|field| field.parsed(parse_content_type));
    let body = section.field("body").and_then(|field| field.text()).unwrap_or_default();
    if let (204 | 304, false, Some(field)) = (status, body.is_empty(), section.field("body")) {
        field.error(format!("an answer of status {status} has no body"));
    }
    Fallback::Static {
        status: u16::try_from(status).unwrap_or(200),
        content_type: content_type.unwrap_or_else(|| "text/plain; charset=utf-8".into()),
        body: body.into(),
    }
}

fn parse_content_type(text: &str) -> Result<String, String> {
    let (kind, rest) = text.split_once('/').unwrap_or((text, ""));
    let subtype = rest.split(';').next().unwrap_or_default().trim();
    let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if is_token(kind) && is_token(subtype) && printable {
        return Ok(text.into());
    }
    Err(format!("`{text}` is not a media type, such as `text/plain`"))
}
