//! Faults: the control side's words before the gateway's book.

use std::time::Duration;

use seawall_control::FaultPort;
use seawall_core::fault::book::{Fault, Id, Look, Order, Refused, Standing};
use seawall_gateway::fault::CallFaults;

/// The gateway, as the admin API needs it.
pub(crate) struct Port(pub(crate) CallFaults);

impl FaultPort for Port {
    fn look(&self) -> Look {
        self.0.look()
    }

    fn place(&self, order: Order) -> Result<Standing, Refused> {
        self.0.place(order)
    }

    fn renew(&self, id: Id, owner: &str, ttl: Option<Duration>) -> Result<Standing, Refused> {
        self.0.renew(id, owner, ttl)
    }

    fn remove(&self, id: Id) -> Result<Fault, Refused> {
        self.0.remove(id)
    }

    fn kill(&self, reason: &str) -> Vec<Fault> {
        self.0.kill(reason)
    }

    fn release(&self, reason: &str) -> bool {
        self.0.release(reason)
    }
}
