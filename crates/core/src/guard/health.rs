//! Health of one endpoint, from active checks: a few failures in a row take it out, a few successes bring it back.

use std::time::Duration;

/// How to check, and how often a result must repeat before it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// What it takes to be well.
    pub ask: Ask,
    /// Time between checks.
    pub every: Duration,
    /// Time for one check.
    pub timeout: Duration,
    /// Failures in a row that take an endpoint out.
    pub unhealthy_after: u32,
    /// Successes in a row that bring it back.
    pub healthy_after: u32,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing: it is enough that a connection comes about.
    Connection,
    /// This path, with GET: any 2xx or 3xx is well.
    Path(String),
    /// How this service is, by `grpc.health.v1`: `SERVING` is well. The empty name stands for the server as a whole.
    Grpc(String),
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            ask: Ask::Path("/healthz".into()),
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            unhealthy_after: 3,
            healthy_after: 2,
        }
    }
}

/// What is known of one endpoint. Begins healthy: an unchecked endpoint is worth a try.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Health {
    healthy: bool,
    against: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { healthy: true, against: 0 }
    }
}

impl Health {
    /// Takes in a check. Tells the new state when it changed.
    pub fn on_check(&mut self, config: &HealthConfig, well: bool) -> Option<bool> {
        if well == self.healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if self.healthy { config.unhealthy_after } else { config.healthy_after };
        if self.against < needed {
            return None;
        }
        *self = Self { healthy: well, against: 0 };
        Some(well)
    }

    /// True while it may be chosen.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_repeated_results_count() {
        let (config, mut health) = (HealthConfig::default(), Health::default());
        let mut check = |results: &str| -> Vec<Option<bool>> {
            results.chars().map(|result| health.on_check(&config, result == '+')).collect()
        };
        assert_eq!(check("+--+--"), [None; 6], "never three in a row");
        assert_eq!(check("-"), [Some(false)]);
        assert_eq!(check("-+-++"), [None, None, None, None, Some(true)]);
        assert!(health.is_healthy());
    }
}
