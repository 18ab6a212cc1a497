//! What the benchmarks share: figures of several rounds, and what a process has used.

pub mod load;
pub mod peers;

use std::time::Instant;

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};

/// The machine's own clock.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Lowest, median, highest; not-a-number if there are none.
#[must_use]
pub fn spread(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

/// The value below which a share of the sorted figures lies; 0 if there are none.
#[must_use]
pub fn percentile(sorted: &[u32], share: f64) -> u32 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// CPU microseconds of all threads of this process, user and system.
#[must_use]
pub fn process_cpu_us() -> f64 {
    nanos(ClockId::ProcessCPUTime) as f64 / 1e3
}

/// CPU nanoseconds of the calling thread.
#[must_use]
pub fn thread_cpu_nanos() -> u64 {
    nanos(ClockId::ThreadCPUTime)
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Bytes of this process in memory.
///
/// # Errors
/// If `/proc/self/statm` cannot be read.
pub fn resident_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("cannot read `/proc/self/statm`")?;
    let pages = text.split_whitespace().nth(1).context("`/proc/self/statm` has no second field")?;
    Ok(pages.parse::<u64>()? * rustix::param::page_size() as u64)
}
