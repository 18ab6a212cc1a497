//! Faults by Toxiproxy's API: the control side's words before the gateway's places.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use seawall_control::BoxFuture;
use seawall_control::toxiproxy::{
    CONNECTIONS_MAX as API_CONNECTIONS_MAX, OpenProxy, ProxyPort, Toxiproxy, TrafficSeries, VERSION,
};
use seawall_core::fault::{Fault, FaultId};
use seawall_gateway::Handed;
use seawall_gateway::fault::{CONNECTIONS_MAX, Counts, FaultProxies, Opening, Series};
use seawall_gateway::net::Net;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::RealClock;
use crate::handover;
use crate::lifecycle::{connections_fitting, entropy, open_files};

/// How the API and its proxies behave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Makes chance repeatable; without, one is drawn.
    pub(crate) seed: Option<i64>,
    /// Whether proxies that do not choose let a side that has ended be answered.
    pub(crate) half_close: bool,
    /// Connections through all proxies together.
    pub(crate) connections_max: usize,
    /// Whether `/metrics` exists.
    pub(crate) has_metrics: bool,
    /// And tells the bytes of each proxy.
    pub(crate) counts_bytes: bool,
}

/// The API, inside the current runtime, and the seed of its chance.
///
/// # Errors
/// When the system has no entropy to give.
pub(crate) fn start(settings: Settings, clock: &RealClock) -> anyhow::Result<(Toxiproxy, i64)> {
    let Settings { seed, half_close, connections_max, has_metrics, counts_bytes } = settings;
    let seed = match seed {
        Some(seed) => seed.cast_unsigned(),
        // Short enough to be typed again.
        None => u64::from(u32::from_le_bytes(entropy()?)),
    };
    let ids = u64::from_le_bytes(entropy()?);
    let proxies = FaultProxies::new(Net::Real, clock.gateway(), seed, half_close, connections_max);
    Ok((Toxiproxy::start(Arc::new(Port { proxies, counts_bytes }), has_metrics, ids), seed.cast_signed()))
}

/// As many connections as are wanted and there are open files for.
pub(crate) fn fitting(wanted: usize) -> usize {
    let fitting = connections_fitting(API_CONNECTIONS_MAX as u64).and_then(|count| usize::try_from(count).ok());
    match fitting.filter(|fitting| *fitting < wanted) {
        Some(fitting) => {
            tracing::warn!(
                wanted,
                fitting,
                "`--connections-max` is lowered to what the limit of open files allows; raise that limit to have more"
            );
            fitting
        }
        None => wanted,
    }
}

/// The API of a node, before it serves.
pub(crate) struct Listening {
    runtime: Handle,
    listener: TcpListener,
}

impl Listening {
    /// On a runtime that is not the admin side's: what floods a proxy must keep nobody else waiting.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn begin(runtime: Handle, address: SocketAddr, handed: Option<Handed>) -> anyhow::Result<Self> {
        let failed = || format!("cannot listen on `{address}` for Toxiproxy's API; choose another `toxiproxy.listen`");
        let listener = runtime.spawn(handover::listen(address, handed)).await?.with_context(failed)?;
        Ok(Self { runtime, listener })
    }

    pub(crate) fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Serves until `stop` is cancelled, as one of `tasks`.
    ///
    /// # Errors
    /// When the system has no entropy to give.
    pub(crate) fn serve(
        self,
        clock: &RealClock,
        stop: CancellationToken,
        grace: Duration,
        tasks: &TaskTracker,
    ) -> anyhow::Result<()> {
        let (connections_max, address) = (share_of_open_files(), self.listener.local_addr()?);
        let entered = self.runtime.enter();
        let settings =
            Settings { seed: None, half_close: false, connections_max, has_metrics: true, counts_bytes: true };
        let (api, seed) = start(settings, clock)?;
        drop(entered);
        tasks.spawn_on(api.serve(self.listener, stop, grace), &self.runtime);
        tracing::info!(%address, seed, version = VERSION, "Toxiproxy's API");
        Ok(())
    }
}

/// The files of a node are its clients' first: a quarter is for these connections, and each needs two.
fn share_of_open_files() -> usize {
    let share = open_files().map_or(CONNECTIONS_MAX as u64, |count| count / 8);
    usize::try_from(share).unwrap_or(usize::MAX).clamp(1, CONNECTIONS_MAX)
}

/// The gateway, as the API needs it.
struct Port {
    proxies: FaultProxies,
    counts_bytes: bool,
}

impl ProxyPort for Port {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(self.proxies.resolve(host))
    }

    fn open(&self, proxy: OpenProxy) -> BoxFuture<'_, io::Result<SocketAddr>> {
        let OpenProxy { name, listen, upstream, target, half_close, faults } = proxy;
        Box::pin(self.proxies.open(Opening { name, listen, upstream, target, half_close, faults }))
    }

    fn close<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(self.proxies.close(name))
    }

    fn set_half_close(&self, name: &str, half_close: Option<bool>) {
        self.proxies.set_half_close(name, half_close);
    }

    fn put(&self, name: &str, fault: Fault) {
        self.proxies.put(name, &fault);
    }

    fn lift(&self, name: &str, fault: &str) {
        self.proxies.lift(name, &FaultId::from(fault));
    }

    fn traffic(&self) -> Vec<TrafficSeries> {
        let all = if self.counts_bytes { self.proxies.traffic() } else { Vec::new() };
        let series = |(series, counts): (Series, Counts)| TrafficSeries {
            direction: series.direction,
            listener: series.listener,
            proxy: series.proxy,
            upstream: series.upstream,
            received_bytes: counts.received_bytes,
            sent_bytes: counts.sent_bytes,
            refused_connections: counts.refused_connections,
        };
        all.into_iter().map(series).collect()
    }
}
