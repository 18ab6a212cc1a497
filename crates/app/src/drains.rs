//! Drains: the control side's words before the gateway's.

use std::time::Duration;

use seawall_control::DrainPort;
use seawall_core::drain::{Refused, Standing, Target};
use seawall_gateway::Drains;

use crate::lifecycle::entropy;

/// The gateway, as the admin API needs it.
pub(crate) struct Port(pub(crate) Drains);

impl DrainPort for Port {
    fn drain(&self, target: &Target, reason: &str, refuse_after: Duration) -> Result<Standing, Refused> {
        let standing = self.0.drain(target, reason, refuse_after)?;
        tracing::info!(%target, reason, "being drained");
        Ok(standing)
    }

    fn resume(&self, target: &Target) -> Result<bool, Refused> {
        let seed = entropy().map(u64::from_le_bytes);
        let seed = seed.map_err(|error| Refused::NotReopened { target: target.clone(), why: format!("{error:#}") })?;
        let was_draining = self.0.resume(target, seed)?;
        match was_draining {
            true => tracing::info!(%target, "in service again"),
            false => tracing::info!(%target, "it was not being drained: it stays in service"),
        }
        Ok(was_draining)
    }
}
