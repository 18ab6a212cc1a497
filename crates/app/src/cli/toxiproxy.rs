//! `seawall toxiproxy`: the gateway's faults behind Toxiproxy's API, in the place of the original server.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use seawall_control::toxiproxy::{Toxiproxy, VERSION};
use seawall_gateway::fault::CONNECTIONS_MAX;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::RealClock;
use crate::lifecycle::{Signals, raise_open_files};
use crate::logs::{self, Format, Level};
use crate::toxics::{self, Settings};

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall toxiproxy                                      on localhost:8474, where clients look for it
  seawall toxiproxy --host 0.0.0.0 --port 8474 --config toxiproxy.json
  seawall toxiproxy --seed 42                            the same chance in every run

Flags may have one dash, as the original's; LOG_LEVEL says how much is logged.
Exit status: 0 stopped as asked; 1 could not start; 2 the command line cannot be understood.";

/// Calls to the API may end for this long after a signal, as the original's.
const GRACE: Duration = Duration::from_secs(30);

#[derive(Args, Clone, Debug)]
pub(super) struct ToxiproxyArgs {
    /// The API's address
    #[arg(long, default_value = "localhost")]
    host: String,
    /// The API's port; 0 takes any that is free
    #[arg(long, default_value_t = 8474)]
    port: u16,
    /// Proxies to begin with: a JSON array as `/populate` takes it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Makes chance repeatable: the n-th connection of a proxy meets the same fate in every run [default: a new one]
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<i64>,
    /// Let a side that has ended still be answered; the original closes both ways. A proxy chooses for itself by
    /// `"half_close"` in its JSON
    #[arg(long)]
    half_close: bool,
    /// Connections through all proxies together; one proxy takes at most as many as it leaves free. Those beyond are
    /// closed at once
    #[arg(long, value_name = "COUNT", default_value_t = CONNECTIONS_MAX)]
    connections_max: usize,
    /// Serve `/metrics` with the bytes of each proxy
    #[arg(long)]
    proxy_metrics: bool,
    /// Serve `/metrics`; there is no Go runtime to measure
    #[arg(long)]
    runtime_metrics: bool,
    /// Print the version of Toxiproxy that is spoken, and stop
    #[arg(long)]
    version: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,
}

/// Flags with one dash become flags with two, for this command alone: what starts the original starts this one.
pub(super) fn with_two_dashes(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    const FLAGS: [&str; 7] = ["host", "port", "config", "seed", "proxy-metrics", "runtime-metrics", "version"];
    let mut arguments: Vec<OsString> = arguments.collect();
    if arguments.get(1).is_some_and(|command| command == "toxiproxy") {
        for argument in &mut arguments[2..] {
            let flag = argument.to_str().and_then(|text| text.strip_prefix('-'));
            let name = flag.and_then(|flag| flag.split('=').next());
            if name.is_some_and(|name| FLAGS.contains(&name)) {
                *argument = OsString::from(format!("-{}", argument.to_string_lossy()));
            }
        }
    }
    arguments
}

pub(super) fn run(args: &ToxiproxyArgs) -> anyhow::Result<ExitCode> {
    if args.version {
        super::print(&format!("toxiproxy-server version {VERSION}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    logs::begin(args.log, level(std::env::var("LOG_LEVEL").ok().as_deref()));
    raise_open_files();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let ended = runtime.block_on(live(args));
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

/// The original's names for how much is logged.
fn level(wanted: Option<&str>) -> Level {
    match wanted.unwrap_or_default().to_ascii_lowercase().as_str() {
        "panic" | "fatal" | "error" => Level::Error,
        "warn" | "warning" => Level::Warn,
        "debug" => Level::Debug,
        "trace" => Level::Trace,
        _ => Level::Info,
    }
}

async fn live(args: &ToxiproxyArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let listener = listen(&args.host, args.port).await?;
    let address = listener.local_addr().context("cannot tell the API's own address")?;
    let settings = Settings {
        seed: args.seed,
        half_close: args.half_close,
        connections_max: toxics::fitting(args.connections_max),
        has_metrics: args.proxy_metrics || args.runtime_metrics,
        counts_bytes: args.proxy_metrics,
    };
    let (api, seed) = toxics::start(settings, &RealClock::new())?;
    if let Some(file) = &args.config {
        populate(&api, file).await;
    }
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "whoever reaches this port can break what runs through the proxies: there is no token");
    }
    tracing::info!(%address, seed, version = VERSION, "Toxiproxy's API");
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let serving = api.serve(listener, stop, GRACE);
    let told = async {
        signals.next().await;
        tracing::info!(grace = ?GRACE, "stopping; a second signal stops at once");
        stopping.cancel();
        signals.next().await;
    };
    tokio::select! {
        () = serving => {}
        () = told => {}
    }
    Ok(())
}

/// As the original: a file that cannot be used is told, and the server starts all the same.
async fn populate(api: &Toxiproxy, file: &Path) {
    let populated = match std::fs::read(file) {
        Ok(proxies) => api.populate(proxies.into()).await,
        Err(error) => Err(error.to_string()),
    };
    match populated {
        Ok(()) => tracing::info!(config = %file.display(), "proxies created"),
        Err(error) => {
            tracing::error!(config = %file.display(), error, "cannot create the proxies of this file; going on without");
        }
    }
}

/// On the first IPv4 address of a name that has several, as the original does.
async fn listen(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    let failed = || format!("cannot listen on `{host}:{port}`: choose another --host or --port");
    if host.is_empty() {
        // Both families, or the one there is.
        if let Ok(listener) = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
            return Ok(listener);
        }
        return TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await.with_context(failed);
    }
    let mut all: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.with_context(failed)?.collect();
    all.sort_by_key(SocketAddr::is_ipv6);
    let address = *all.first().with_context(failed)?;
    TcpListener::bind(address).await.with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dashed(arguments: &[&str]) -> Vec<String> {
        let all = with_two_dashes(arguments.iter().map(OsString::from));
        all.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn one_dash_is_enough_for_the_originals_flags() {
        assert_eq!(
            dashed(&["seawall", "toxiproxy", "-host=h", "-port", "1", "--seed", "-2", "-x", "-proxy-metrics"]),
            ["seawall", "toxiproxy", "--host=h", "--port", "1", "--seed", "-2", "-x", "--proxy-metrics"]
        );
        assert_eq!(dashed(&["seawall", "run", "-config"]), ["seawall", "run", "-config"]);
    }

    #[test]
    fn log_levels_have_the_originals_names() {
        assert_eq!(level(None), Level::Info);
        assert_eq!(level(Some("PANIC")), Level::Error);
        assert_eq!(level(Some("warn")), Level::Warn);
        assert_eq!(level(Some("debug")), Level::Debug);
        assert_eq!(level(Some("trace")), Level::Trace);
    }
}
