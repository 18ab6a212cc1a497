//! Plain arithmetic on a route's guards: settings that cannot work, or do what nobody meant.
//!
//! Picture a surveyor with a pocket calculator. Nothing is simulated here: how many calls a window holds at the stated
//! rate, how often chance alone opens a breaker, how much time the last try has left, how often layers multiply. Each
//! finding names the key, the numbers and the smallest change that mends it.
//! Not here: what a text means (`app`), what traffic really does (`whatif`'s world).

use std::time::Duration;

use crate::guard::breaker::{BreakerConfig, WindowConfig};
use crate::policy::Guards;
use crate::units::{Ratio, format_duration, four_digits};

/// What somebody says of a route's traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expects {
    /// Requests per second.
    pub per_second: Option<f64>,
    /// The share of calls that fail while the upstream is well.
    pub failure_rate: Ratio,
    /// Tries that each caller makes.
    pub caller_attempts: u32,
    /// How long a caller waits for one of them.
    pub caller_timeout: Option<Duration>,
}

impl Default for Expects {
    /// One call in a thousand fails by itself; callers try once.
    fn default() -> Self {
        let failure_rate = Ratio::new(0.001).unwrap_or(Ratio::ZERO);
        Self { per_second: None, failure_rate, caller_attempts: 1, caller_timeout: None }
    }
}

/// Something to put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLine {
    /// The key of the policy that it is about.
    pub key: &'static str,
    /// True if it follows from what was said of the traffic, and not from the guards alone.
    pub of_traffic: bool,
    /// What cannot work, with its numbers.
    pub message: String,
    /// The smallest change that mends it.
    pub fix: String,
}

/// An outage shorter than this should not pass unseen.
const BLIND_MAX: Duration = Duration::from_secs(60);
/// A healthy upstream's breaker may open by chance once in so long.
const NOISE_EVERY: Duration = Duration::from_secs(30 * 86_400);

/// Everything that plain arithmetic finds.
#[must_use]
pub fn audit(guards: &Guards, expects: &Expects) -> Vec<AuditLine> {
    let mut lines = Vec::new();
    if let Some(breaker) = &guards.breaker {
        lines.extend(expects.per_second.and_then(|per_second| blind(breaker, per_second)));
        lines.extend(noise(breaker, expects));
        lines.extend(noise_in_a_row(breaker, expects));
    }
    lines.extend(callers(guards, expects));
    lines.iter_mut().for_each(|line| line.of_traffic = true);
    lines.extend(unafforded(guards));
    lines.extend(short_tries(guards));
    lines.extend(long_waits(guards));
    lines
}

/// How long the tries of one request can take with the longest waits between them, at most the deadline.
fn longest(guards: &Guards) -> Duration {
    let attempts = guards.retry.attempts_max;
    let tries = guards.try_timeout.saturating_mul(attempts);
    let waits = guards.retry.wait_max.saturating_mul(attempts - 1);
    tries.saturating_add(waits).min(guards.timeout)
}

fn line(key: &'static str, message: String, fix: String) -> Option<AuditLine> {
    Some(AuditLine { key, of_traffic: false, message, fix })
}

/// A breaker that can never judge at this rate, or only after an outage is over.
fn blind(breaker: &BreakerConfig, per_second: f64) -> Option<AuditLine> {
    let (min, rate) = (f64::from(breaker.calls_min), per_second_words(per_second));
    match breaker.window {
        WindowConfig::Time { span, .. } => {
            let held = per_second * span.as_secs_f64();
            if held >= min {
                return None;
            }
            let shown = format!("{held:.0}");
            let needed = format_duration(whole_seconds(min / per_second));
            line(
                "breaker",
                format!(
                    "at {rate} a window of {} holds {shown} calls and {min} are needed: the breaker can never \
                     open by its rates",
                    format_duration(span)
                ),
                format!("write `calls_min: {}`, or `window: {needed}`", (held as u32).max(1)),
            )
        }
        WindowConfig::Calls(calls) => {
            let min = min.min(f64::from(calls));
            let takes = min / per_second;
            if takes <= BLIND_MAX.as_secs_f64() {
                return None;
            }
            line(
                "breaker",
                format!(
                    "at {rate} it takes {} until the {min} calls have come that the breaker needs to judge: a \
                     shorter outage is not seen",
                    format_duration(whole_seconds(takes))
                ),
                format!("write `calls_min: {}`", ((per_second * BLIND_MAX.as_secs_f64()) as u32).max(1)),
            )
        }
    }
}

fn whole_seconds(seconds: f64) -> Duration {
    Duration::from_secs(seconds.ceil().clamp(1.0, 1e9) as u64)
}

/// A breaker that chance opens while all is well.
fn noise(breaker: &BreakerConfig, expects: &Expects) -> Option<AuditLine> {
    let (threshold, failing) = (breaker.failure_rate_max.get(), expects.failure_rate.get());
    let calls_min = match breaker.window {
        WindowConfig::Calls(calls) => breaker.calls_min.min(calls),
        WindowConfig::Time { .. } => breaker.calls_min,
    };
    let by_chance = |calls: u32| at_least(calls, needed(calls, threshold), failing);
    let probability = by_chance(calls_min);
    // Windows that follow each other without overlap; those between add little.
    let windows = |calls: u32| expects.per_second.unwrap_or(1.0) * NOISE_EVERY.as_secs_f64() / f64::from(calls);
    if probability * windows(calls_min) <= 1.0 {
        return None;
    }
    let enough = (calls_min..=1_000).find(|calls| by_chance(*calls) * windows(*calls) <= 1.0);
    let per_second = expects.per_second.unwrap_or(1.0);
    let (every, rate) = (f64::from(calls_min) / per_second / probability, per_second_words(per_second));
    line(
        "breaker",
        format!(
            "opens on noise: {} of {calls_min} calls fail by chance with a probability of {}, about once in {} at \
             {rate}, although only {} of calls fail",
            needed(calls_min, threshold),
            percent(probability),
            format_duration(whole_seconds(every)),
            expects.failure_rate,
        ),
        enough.map_or_else(
            || "raise `failure_rate`".into(),
            |calls| match breaker.window {
                WindowConfig::Calls(held) if held < calls => {
                    format!("write `window: {calls} calls` and `calls_min: {calls}`")
                }
                _ => format!("write `calls_min: {calls}`"),
            },
        ),
    )
}

/// A breaker that a row of failures opens by chance: k in a row come about once in `1 / (p^k · (1 - p))` calls.
fn noise_in_a_row(breaker: &BreakerConfig, expects: &Expects) -> Option<AuditLine> {
    let (row, failing) = (breaker.consecutive_failures_max?.get(), expects.failure_rate.get());
    let per_second = expects.per_second.unwrap_or(1.0);
    let every = |row: u32| {
        let chance = failing.powi(i32::try_from(row).unwrap_or(i32::MAX)) * (1.0 - failing);
        if chance > 0.0 { 1.0 / chance / per_second } else { f64::INFINITY }
    };
    if failing >= 1.0 || every(row) >= NOISE_EVERY.as_secs_f64() {
        return None;
    }
    let enough = (row..=1_000).find(|row| every(*row) >= NOISE_EVERY.as_secs_f64());
    let rate = per_second_words(per_second);
    line(
        "breaker",
        format!(
            "opens on noise: {row} failures in a row come by chance about once in {} at {rate}, although only {} \
             of calls fail",
            format_duration(whole_seconds(every(row))),
            expects.failure_rate,
        ),
        enough.map_or_else(
            || "leave `consecutive_failures` out".into(),
            |row| format!("write `consecutive_failures: {row}`"),
        ),
    )
}

/// The fewest failures of so many calls that reach the threshold.
fn needed(calls: u32, threshold: f64) -> u32 {
    ((f64::from(calls) * threshold) - 1e-9).ceil().max(1.0) as u32
}

/// The chance that at least `least` of `calls` fail when each does with `failing`: the binomial tail, summed from its
/// largest term so that small chances keep their digits.
#[must_use]
pub fn at_least(calls: u32, least: u32, failing: f64) -> f64 {
    if least == 0 || failing >= 1.0 {
        return 1.0;
    }
    if failing <= 0.0 || least > calls {
        return 0.0;
    }
    let (n, odds) = (f64::from(calls), failing / (1.0 - failing));
    let mut log_term = n * (1.0 - failing).ln();
    for k in 0..least {
        log_term += ((n - f64::from(k)) / f64::from(k + 1) * odds).ln();
    }
    let (mut term, mut sum) = (log_term.exp(), 0.0);
    for k in least..=calls {
        sum += term;
        term *= (n - f64::from(k)) / f64::from(k + 1) * odds;
    }
    sum.min(1.0)
}

/// A rate as people write it, to four digits.
pub(super) fn per_second_words(per_second: f64) -> String {
    format!("{}/s", four_digits(per_second))
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 0.01 { format!("{percent:.2} %") } else { format!("{percent:.1e} %") }
}

/// Retries that no budget ever pays for.
fn unafforded(guards: &Guards) -> Option<AuditLine> {
    let (attempts, budget) = (guards.retry.attempts_max, guards.budget);
    if attempts == 1
        || budget.ratio.get() > 0.0
        || budget.floor_per_s * crate::guard::budget::WINDOW.as_secs_f64() >= 1.0
    {
        return None;
    }
    let message = format!("{attempts} attempts and a budget of nothing: no retry is ever afforded");
    line("retry", message, "write `retry: off`, or a `budget`".into())
}

/// Tries that leave nothing for the next.
fn short_tries(guards: &Guards) -> Option<AuditLine> {
    let (attempts, timeout, try_timeout) = (guards.retry.attempts_max, guards.timeout, guards.try_timeout);
    let full = u32::try_from(timeout.as_nanos() / try_timeout.as_nanos().max(1)).unwrap_or(u32::MAX);
    if attempts == 1 || full >= attempts {
        return None;
    }
    let fits = timeout.mul_f64(0.9) / attempts;
    let message = if full <= 1 && try_timeout >= timeout {
        format!(
            "a try that hangs uses up the whole `timeout` of {}: it is never followed by another",
            format_duration(timeout)
        )
    } else {
        format!(
            "{attempts} tries of {} do not fit into a `timeout` of {}: the last one has {}",
            format_duration(try_timeout),
            format_duration(timeout),
            format_duration(timeout.saturating_sub(try_timeout * (attempts - 1))),
        )
    };
    line("retry", message, format!("write `try_timeout: {}`", format_duration(rounded(fits))))
}

/// A duration that people would write: two digits.
fn rounded(duration: Duration) -> Duration {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
    let unit = 10_u64.pow(millis.ilog10().saturating_sub(1));
    Duration::from_millis(millis / unit * unit)
}

/// Waits that the deadline ends first.
fn long_waits(guards: &Guards) -> Option<AuditLine> {
    let timeout = guards.timeout;
    let dead = |key, what: &str, wait: Duration| {
        let message =
            format!("{what} of {} ends with the `timeout` of {}", format_duration(wait), format_duration(timeout));
        line(key, message, "make it shorter, or `timeout` longer".into())
    };
    if guards.bulkhead.waiting_max > 0 && guards.bulkhead.wait_max > timeout {
        return dead("bulkhead", "a `wait`", guards.bulkhead.wait_max);
    }
    if let Some(hedge) = guards.hedge.filter(|hedge| hedge.delay_min >= guards.try_timeout) {
        let (min, ends) = (format_duration(hedge.delay_min), format_duration(guards.try_timeout));
        let message = format!("no second copy is sent before {min}, and a try ends after {ends}");
        return line("hedge", message, "make `min` shorter".into());
    }
    let total = guards.retry.total_max.filter(|total| *total > timeout)?;
    dead("retry", "a `total`", total)
}

/// Callers who give up before we do, or multiply what we do.
fn callers(guards: &Guards, expects: &Expects) -> Option<AuditLine> {
    if let Some(patience) = expects.caller_timeout.filter(|patience| *patience < guards.timeout) {
        return line(
            "timeout",
            format!(
                "callers give up after {} and we after {}: we work for nobody in between",
                format_duration(patience),
                format_duration(guards.timeout)
            ),
            format!("write `timeout: {}`", format_duration(rounded(patience.mul_f64(0.9)))),
        );
    }
    let (theirs, ours) = (expects.caller_attempts, guards.retry.attempts_max);
    if theirs <= 1 || ours <= 1 {
        return None;
    }
    let seconds = longest(guards).saturating_mul(theirs);
    line(
        "retry",
        format!(
            "retries multiply: {theirs} tries of a caller and {ours} of ours are {} calls of one, over {}",
            theirs.saturating_mul(ours),
            format_duration(seconds)
        ),
        "retry in one layer only: `retry: off` here, or `Seawall-Retry-Owner` from the caller".into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::budget::BudgetConfig;
    use crate::guard::bulkhead::BulkheadConfig;
    use crate::guard::retry::RetryConfig;

    const S: Duration = Duration::from_secs(1);

    fn guards() -> Guards {
        Guards {
            timeout: 3 * S,
            try_timeout: S,
            bulkhead: BulkheadConfig { wait_max: S, ..BulkheadConfig::default() },
            ..Guards::default()
        }
    }

    fn told(guards: &Guards, expects: &Expects) -> Vec<String> {
        audit(guards, expects)
            .into_iter()
            .map(|line| format!("{}: {} -> {}", line.key, line.message, line.fix))
            .collect()
    }

    fn breaker(window: WindowConfig, calls_min: u32) -> Guards {
        Guards { breaker: Some(BreakerConfig { window, calls_min, ..BreakerConfig::default() }), ..guards() }
    }

    #[test]
    fn what_works_is_not_blamed() {
        assert_eq!(told(&guards(), &Expects::default()), [""; 0]);
        let busy = Expects { per_second: Some(200.0), ..Expects::default() };
        assert_eq!(told(&guards(), &busy), [""; 0]);
        assert_eq!(told(&breaker(WindowConfig::time(10 * S), 20), &Expects { per_second: Some(2.0), ..busy }), [""; 0]);
    }

    #[test]
    fn a_breaker_that_cannot_open_is_told_with_what_would_do() {
        let quiet = Expects { per_second: Some(2.0), ..Expects::default() };
        assert_eq!(
            told(&breaker(WindowConfig::time(10 * S), 50), &quiet),
            [
                "breaker: at 2/s a window of 10s holds 20 calls and 50 are needed: the breaker can never open by its rates \
              -> write `calls_min: 20`, or `window: 25s`"
            ]
        );
        assert_eq!(
            told(&breaker(WindowConfig::Calls(500), 300), &quiet),
            ["breaker: at 2/s it takes 150s until the 300 calls have come that the breaker needs to judge: a shorter \
              outage is not seen -> write `calls_min: 120`"]
        );
    }

    #[test]
    fn a_breaker_that_chance_opens_is_told_with_its_odds() {
        let expects =
            Expects { per_second: Some(100.0), failure_rate: Ratio::new(0.01).unwrap(), ..Expects::default() };
        assert_eq!(
            told(&breaker(WindowConfig::Calls(4), 4), &expects),
            [
                "breaker: opens on noise: 2 of 4 calls fail by chance with a probability of 0.06 %, about once in 68s at \
              100/s, although only 1% of calls fail -> write `window: 9 calls` and `calls_min: 9`"
            ]
        );
    }

    #[test]
    fn a_row_that_chance_brings_is_told_too() {
        let expects =
            Expects { per_second: Some(1_000.0), failure_rate: Ratio::new(0.1).unwrap(), ..Expects::default() };
        let row = BreakerConfig {
            consecutive_failures_max: std::num::NonZeroU32::new(2),
            failure_rate_max: Ratio::ONE,
            ..BreakerConfig::default()
        };
        assert_eq!(
            told(&Guards { breaker: Some(row), ..guards() }, &expects),
            [
                "breaker: opens on noise: 2 failures in a row come by chance about once in 1s at 1000/s, although only 10% \
                 of calls fail -> write `consecutive_failures: 10`"
            ]
        );
    }

    /// By hand: 1 - 0.99^4 - 4·0.01·0.99^3 = 0.000592; of 20 at 1 %, C(20,10)·1e-20·0.99^10 + C(20,11)·1e-22·0.99^9.
    #[test]
    fn odds_are_those_of_the_binomial() {
        assert!((at_least(4, 2, 0.01) - 0.000_592_03).abs() < 1e-8);
        assert!((at_least(20, 10, 0.01) / 1.686_3e-15 - 1.0).abs() < 1e-3, "{:e}", at_least(20, 10, 0.01));
        assert!((at_least(1_000, 500, 0.5) - 0.512_6).abs() < 1e-3, "{}", at_least(1_000, 500, 0.5));
        assert_eq!(
            (at_least(5, 0, 0.1), at_least(5, 6, 0.1), at_least(5, 1, 0.0), at_least(5, 5, 1.0)),
            (1.0, 0.0, 0.0, 1.0)
        );
        assert_eq!((needed(4, 0.5), needed(3, 0.5), needed(3, 1.0 / 3.0), needed(10, 0.001)), (2, 2, 1, 1));
    }

    #[test]
    fn retries_that_cannot_work_are_told() {
        let none = BudgetConfig { ratio: Ratio::ZERO, floor_per_s: 0.0, ..BudgetConfig::default() };
        assert_eq!(
            told(&Guards { budget: none, ..guards() }, &Expects::default()),
            [
                "retry: 3 attempts and a budget of nothing: no retry is ever afforded -> write `retry: off`, or a `budget`"
            ]
        );
        assert!(told(&Guards { budget: none, retry: RetryConfig::off(), ..guards() }, &Expects::default()).is_empty());
        assert_eq!(
            told(&Guards { timeout: 2 * S, ..guards() }, &Expects::default()),
            [
                "retry: 3 tries of 1s do not fit into a `timeout` of 2s: the last one has 0s -> write `try_timeout: 600ms`"
            ]
        );
        assert_eq!(
            told(&Guards { try_timeout: 3 * S, ..guards() }, &Expects::default()),
            ["retry: a try that hangs uses up the whole `timeout` of 3s: it is never followed by another \
              -> write `try_timeout: 900ms`"]
        );
        let total = RetryConfig { total_max: Some(9 * S), ..RetryConfig::default() };
        assert!(
            told(&Guards { retry: total, ..guards() }, &Expects::default())[0].starts_with("retry: a `total` of 9s")
        );
        let wait = BulkheadConfig { wait_max: 4 * S, ..BulkheadConfig::default() };
        assert!(
            told(&Guards { bulkhead: wait, ..guards() }, &Expects::default())[0]
                .starts_with("bulkhead: a `wait` of 4s")
        );
    }

    #[test]
    fn callers_who_give_up_first_or_multiply_are_told() {
        let hasty = Expects { caller_timeout: Some(S), ..Expects::default() };
        assert_eq!(
            told(&guards(), &hasty),
            [
                "timeout: callers give up after 1s and we after 3s: we work for nobody in between -> write `timeout: 900ms`"
            ]
        );
        let stubborn = Expects { caller_attempts: 4, ..Expects::default() };
        assert_eq!(longest(&guards()), 3 * S);
        assert_eq!(longest(&Guards { timeout: 30 * S, ..guards() }), 5 * S);
        assert!(
            told(&guards(), &stubborn)[0].starts_with(
                "retry: retries multiply: 4 tries of a caller and 3 of ours are 12 calls of one, over 12s"
            )
        );
    }
}
