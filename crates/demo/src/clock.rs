//! The one place where the demo reads a clock. Its processes share nothing but the wall clock of the machine, so that
//! is what every log line carries; durations inside a process are taken with tokio's monotonic `Instant`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the company's processes are real: they read the machine's clock")]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Waits until the wall clock shows this moment; not at all if it has passed.
pub async fn until_ms(moment_ms: u64) {
    tokio::time::sleep(Duration::from_millis(moment_ms.saturating_sub(now_ms()))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_passed_moment_is_not_waited_for() {
        let before = now_ms();
        assert!(before > 1_600_000_000_000, "milliseconds, not seconds");
        until_ms(0).await;
        until_ms(before + 2).await;
        assert!(now_ms() >= before + 2);
    }
}
