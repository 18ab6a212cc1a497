//! `seawall fault`: break a dependency on purpose, in a running node, for as long as somebody holds on to it.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use seawall_core::fault::book::Kind;
use seawall_core::units::{Ratio, format_duration, parse_duration, parse_ratio};
use serde_json::{Value, json};

use super::client::{CallError, Client, encode};
use super::read::Reader;
use super::{Ended, show};
use crate::lifecycle::Signals;

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall fault place --route events --abort 503 --share 10% --ttl 2m --hold
  seawall fault place --upstream queue --latency 200ms --jitter 50ms --every 4 --ttl 5m
  seawall fault place --route events --swallow --first 1 --ttl 30s       done, and its answer lost
  seawall fault place --route cache --black-hole --connections 10% --ttl 1m
  seawall fault place --zone-cut --zone us-west --abort-when 5% --ttl 2m --hold
  seawall fault ls
  seawall fault renew f12-1 --ttl 5m
  seawall fault rm f12-1
  seawall fault kill --reason \"customers notice\"                         all of them, at once
  seawall fault release

A node allows faults only where its configuration says `faults: on`.
Exit status: 0 done; 1 refused, or a held fault was lost; 2 the command line cannot be understood;
3 the node cannot be reached.";

const PLACE_EXAMPLES: &str = "\
A fault goes when its time is over. With --hold it is renewed every third of that time while this command runs, and removed
when it is stopped with Ctrl-C; killed in any other way, the fault is gone within --ttl.

Examples:
  seawall fault place --route events --abort 503 --share 10% --ttl 2m --hold
  seawall fault place --route quotes --hang --header x-tenant=acme --every 2 --ttl 1m
  seawall fault place --upstream carrier --cut --first 3 --ttl 30s --seed 42
  seawall fault place --route events --abort 503 --retry-at -2h --flap 2s/10s --share 50% --ttl 5m
  seawall fault place --route cache --tcp-latency 200ms --way both --connections 10% --ttl 5m
  seawall fault place --zone-cut --zone us-west --way down --ttl 2m --hold
  seawall fault place --upstream queue --version v2 --head-latency 1s --jitter 300ms --spread tail --every 5 --ttl 5m

Exit status: 0 placed, or held until stopped; 1 refused, or a held fault was lost; 3 the node cannot be reached.";

/// Time between two tries to reach a node that does not answer, while its fault is held.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, Subcommand)]
pub(super) enum FaultCommand {
    /// List the faults of a node, and say whether its kill switch is on
    Ls {
        #[command(flatten)]
        reader: Reader,
    },
    /// Place a fault
    #[command(after_help = PLACE_EXAMPLES, disable_version_flag = true)]
    Place(Box<PlaceArgs>),
    /// Give a fault another time to live, from now on
    Renew {
        /// Its name
        id: String,
        /// For so long
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Duration,
        /// Who holds it [default: $USER]
        #[arg(long)]
        owner: Option<String>,
        #[command(flatten)]
        reader: Reader,
    },
    /// Take a fault away
    Rm {
        /// Its name
        id: String,
        #[command(flatten)]
        reader: Reader,
    },
    /// Take all faults away, and let none be placed until `release`
    Kill(ReasonArgs),
    /// Let faults be placed again
    Release(ReasonArgs),
}

#[derive(Args, Clone, Debug)]
pub(super) struct ReasonArgs {
    /// Why; the journal keeps it
    #[arg(long, default_value = "by hand")]
    reason: String,
    #[command(flatten)]
    reader: Reader,
}

#[derive(Args, Clone, Debug)]
pub(super) struct PlaceArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    kind: KindArgs,
    #[command(flatten)]
    more: MoreArgs,
    #[command(flatten)]
    portion: PortionArgs,
    #[command(flatten)]
    timing: TimingArgs,
    /// Gone after so long unless it is renewed
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ttl: Duration,
    /// Renew it while this command runs, and remove it when it is stopped
    #[arg(long)]
    hold: bool,
    /// Makes its choices repeatable [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
    /// Who holds it: renewals must say the same [default: $USER]
    #[arg(long)]
    owner: Option<String>,
    #[command(flatten)]
    reader: Reader,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "On what")]
struct ScopeArgs {
    /// Tries of this route to its own upstream
    #[arg(long, required_unless_present_any = ["upstream", "zone_cut"])]
    route: Option<String>,
    /// Tries to this upstream
    #[arg(long)]
    upstream: Option<String>,
    /// Only to this endpoint of it
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// Only to endpoints in this zone
    #[arg(long)]
    zone: Option<String>,
    /// Only to endpoints of this version
    #[arg(long)]
    version: Option<String>,
    /// Only for clients that came in by this listener
    #[arg(long, value_name = "HOST:PORT")]
    listener: Option<String>,
    /// Only for clients from there: an address, or a block such as 10.0.0.0/8
    #[arg(long, value_name = "BLOCK")]
    source: Option<String>,
    /// Only with this method
    #[arg(long)]
    method: Option<String>,
    /// Only with this path
    #[arg(long, conflicts_with = "path_prefix")]
    path: Option<String>,
    /// Only where the path begins so
    #[arg(long, value_name = "PATH")]
    path_prefix: Option<String>,
    /// Only with this header
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    header: Option<(String, String)>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What")]
#[group(required = true, multiple = false)]
struct KindArgs {
    /// Send later
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    latency: Option<Duration>,
    /// Send, and let the head of the answer come later
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    head_latency: Option<Duration>,
    /// Send, and let the body of the answer come later
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    body_latency: Option<Duration>,
    /// Send, and let no more than this of the answer's body come in a second
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<String>,
    /// Do not send; take this for the upstream's answer
    #[arg(long, value_name = "STATUS")]
    abort: Option<u16>,
    /// Do not send a call of gRPC; take this for the upstream's answer
    #[arg(long, value_name = "CODE")]
    grpc: Option<u8>,
    /// Do not send, as if nobody listened
    #[arg(long)]
    refuse: bool,
    /// Do not send; let the try run into its timeout
    #[arg(long)]
    hang: bool,
    /// Send, and throw the answer away: the upstream has done it, and nobody knows
    #[arg(long)]
    swallow: bool,
    /// Send, and end the answer early
    #[arg(long)]
    cut: bool,
    /// Send, and leave out half of the answer's body, which says that it is whole
    #[arg(long)]
    short_body: bool,
    /// Send, and let the answer say that it is twice as long; its end never comes
    #[arg(long)]
    long_body: bool,
    /// Send, and change this share of the bytes of the answer's body
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    corrupt: Option<Ratio>,
    /// Send, and let the head of the answer have one field more, of this length
    #[arg(long, value_name = "SIZE")]
    huge_head: Option<String>,
    /// Send, and let the head of the answer be unreadable
    #[arg(long)]
    garbled_head: bool,
    /// Send twice, and answer once
    #[arg(long)]
    duplicate: bool,
    /// On connections: let bytes come later
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    tcp_latency: Option<Duration>,
    /// On connections: let no more than this come in a second
    #[arg(long, value_name = "SIZE")]
    tcp_bandwidth: Option<String>,
    /// On connections: let the end come later
    #[arg(long, value_name = "DURATION")]
    slow_close: Option<String>,
    /// On connections: swallow everything
    #[arg(long)]
    black_hole: bool,
    /// On connections: reset them when something comes
    #[arg(long)]
    reset: bool,
    /// On connections: end one way, as if nothing more came, and let the other go on
    #[arg(long)]
    half_close: bool,
    /// On connections: cut what comes into pieces of this size
    #[arg(long, value_name = "SIZE")]
    slicer: Option<String>,
    /// On connections: close them after so many bytes
    #[arg(long, value_name = "SIZE")]
    limit_data: Option<String>,
    /// On connections: change this share of the bytes
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    tcp_corrupt: Option<Ratio>,
    /// On connections: lose this share of what comes at once
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    chunk_loss: Option<Ratio>,
    /// Let nothing pass between this node's zone and the one of --zone
    #[arg(long, requires = "zone")]
    zone_cut: bool,
}

/// Kinds on connections, which go one way or the other.
const WITH_WAY: [&str; 11] = [
    "tcp_latency",
    "tcp_bandwidth",
    "slow_close",
    "black_hole",
    "reset",
    "half_close",
    "slicer",
    "limit_data",
    "tcp_corrupt",
    "chunk_loss",
    "zone_cut",
];
/// Kinds that may be late by chance.
const WITH_JITTER: [&str; 4] = ["latency", "head_latency", "body_latency", "tcp_latency"];

/// Every kind but these, for what goes with no other.
fn but(these: &[&str]) -> Vec<&'static str> {
    Kind::NAMES.into_iter().filter(|name| !these.contains(name)).collect()
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What, more exactly")]
struct MoreArgs {
    /// With a latency: a random time more, which follows from this
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = but(&WITH_JITTER))]
    jitter: Option<Duration>,
    /// With --jitter: up to so much, each as likely, or on average so much, and now and then a lot more
    #[arg(long, value_name = "even|tail", requires = "jitter", conflicts_with_all = but(&WITH_JITTER[..3]))]
    spread: Option<String>,
    /// With --abort: say to come back in so much time
    #[arg(long, value_name = "DURATION", conflicts_with = "retry_at", conflicts_with_all = but(&["abort"]))]
    retry_after: Option<String>,
    /// With --abort: say to come back on a date so far ahead (`+1d`), or one that has passed (`-2h`)
    #[arg(long, value_name = "+-DURATION", allow_hyphen_values = true, conflicts_with_all = but(&["abort"]))]
    retry_at: Option<String>,
    /// On connections, and with --zone-cut: what goes up to the upstream, what comes down from it, or both
    #[arg(long, value_name = "up|down|both", conflicts_with_all = but(&WITH_WAY))]
    way: Option<String>,
    /// With --slicer: after each piece
    #[arg(long, value_name = "DURATION", conflicts_with_all = but(&["slicer"]))]
    pause: Option<String>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "How much of it")]
#[group(multiple = false)]
struct PortionArgs {
    /// Touch each with this probability
    #[arg(
        long,
        value_name = "PERCENT",
        value_parser = share,
        required_unless_present_any = ["connections", "first", "every", "zone_cut"],
    )]
    share: Option<Ratio>,
    /// Touch all of this share of the clients' connections
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    connections: Option<Ratio>,
    /// Touch the first so many
    #[arg(long, value_name = "COUNT")]
    first: Option<u64>,
    /// Touch each so many-th
    #[arg(long, value_name = "COUNT")]
    every: Option<u64>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "When")]
struct TimingArgs {
    /// Begin so much later
    #[arg(long, value_name = "DURATION")]
    after: Option<String>,
    /// Be at work for so long
    #[arg(long, value_name = "DURATION")]
    lasts: Option<String>,
    /// Be at work for a while, then not for a while, again and again
    #[arg(long, value_name = "ON/OFF", value_parser = flap)]
    flap: Option<(String, String)>,
    /// End it when more than this share of what clients ask of a route fails
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    abort_when: Option<Ratio>,
    /// With --abort-when: within so much time [default: 10s]
    #[arg(long, value_name = "DURATION", requires = "abort_when")]
    abort_over: Option<String>,
    /// With --abort-when: if it was so many at least [default: 20]
    #[arg(long, value_name = "COUNT", requires = "abort_when")]
    abort_min: Option<u64>,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

fn share(text: &str) -> Result<Ratio, String> {
    parse_ratio(text).map_err(|error| error.to_string())
}

fn header(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').ok_or_else(|| format!("`{text}` is not a header, such as `x-tenant=acme`"))?;
    Ok((parts.0.into(), parts.1.into()))
}

fn flap(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('/').ok_or_else(|| format!("`{text}` is not `ON/OFF`, such as `500ms/2s`"))?;
    Ok((parts.0.into(), parts.1.into()))
}

pub(super) async fn run(command: &FaultCommand) -> anyhow::Result<Ended> {
    match command {
        FaultCommand::Ls { reader } => {
            let answer = reader.client()?.get("/api/faults").await?;
            reader.print(&answer, show::faults)
        }
        FaultCommand::Place(args) => place(args).await,
        FaultCommand::Renew { id, ttl, owner, reader } => {
            let answer = renew(&reader.client()?, id, &owner_or_user(owner.as_deref()), *ttl).await?;
            reader.print(&answer, |_| format!("fault {id} stays for {}\n", format_duration(*ttl)))
        }
        FaultCommand::Rm { id, reader } => {
            let answer = remove(&reader.client()?, id).await?;
            reader.print(&answer, show::fault_gone)
        }
        FaultCommand::Kill(ReasonArgs { reason, reader }) => {
            let answer = reader.client()?.post("/api/faults/kill", &json!({ "reason": reason })).await?;
            reader.print(&answer, show::faults_killed)
        }
        FaultCommand::Release(ReasonArgs { reason, reader }) => {
            let answer = reader.client()?.post("/api/faults/release", &json!({ "reason": reason })).await?;
            reader.print(&answer, |answer| match answer["was_killed"].as_bool() {
                Some(true) => "faults can be placed again\n".into(),
                _ => "the kill switch was not on\n".into(),
            })
        }
    }
}

fn owner_or_user(owner: Option<&str>) -> String {
    let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
    owner.map(Into::into).or_else(user).unwrap_or_else(|| "somebody".into())
}

async fn renew(client: &Client, id: &str, owner: &str, ttl: Duration) -> Result<Value, CallError> {
    let body = json!({ "owner": owner, "ttl": format_duration(ttl) });
    client.post(&format!("/api/faults/{}/renew", encode(id)), &body).await
}

async fn remove(client: &Client, id: &str) -> Result<Value, CallError> {
    client.delete(&format!("/api/faults/{}", encode(id))).await
}

async fn place(args: &PlaceArgs) -> anyhow::Result<Ended> {
    let client = args.reader.client()?;
    let owner = owner_or_user(args.owner.as_deref());
    // Heard from before there is a fault: one that is stopped in between takes it away all the same.
    let signals = if args.hold { Some(Signals::new()?) } else { None };
    let placed = client.post("/api/faults", &order(args, &owner)).await?;
    let id = placed["id"].as_str().context("the node named no fault")?.to_owned();
    args.reader.print(&placed, |placed| show::fault_placed(placed, args.hold))?;
    match signals {
        None => Ok(Ended::Well),
        Some(signals) => hold(args, &client, (&id, &owner), signals).await,
    }
}

fn order(args: &PlaceArgs, owner: &str) -> Value {
    let PlaceArgs { scope, kind, more, portion, timing, ttl, seed, .. } = args;
    let header = scope.header.as_ref().map(|(name, value)| json!({ "name": name, "value": value }));
    let flap = timing.flap.as_ref().map(|(on, off)| json!({ "on": on, "off": off }));
    let abort_when = timing.abort_when.map(
        |failed| json!({ "failed": failed.to_string(), "over": timing.abort_over, "requests_min": timing.abort_min }),
    );
    let percent = |share: Option<Ratio>| share.map(|share| share.to_string());
    json!({
        "owner": owner, "route": scope.route, "upstream": scope.upstream, "endpoint": scope.endpoint,
        "zone": scope.zone, "version": scope.version, "listener": scope.listener, "source": scope.source,
        "method": scope.method, "path": scope.path, "path_prefix": scope.path_prefix, "header": header,
        "share": percent(portion.share), "connections": percent(portion.connections), "first": portion.first,
        "every": portion.every, "kind": kind_of(kind, more), "after": timing.after, "lasts": timing.lasts,
        "flap": flap, "abort_when": abort_when, "ttl": format_duration(*ttl), "seed": seed,
    })
}

/// The one that was typed, in the words of the API.
fn kind_of(kind: &KindArgs, more: &MoreArgs) -> Value {
    let way = &more.way;
    let latency = |delay: Duration| {
        let jitter = more.jitter.map(format_duration);
        json!({ "delay": format_duration(delay), "jitter": jitter, "spread": more.spread })
    };
    let abort = |status| json!({ "status": status, "retry_after": more.retry_after, "retry_at": more.retry_at });
    let with_more = [
        ("latency", kind.latency.map(latency)),
        ("head_latency", kind.head_latency.map(latency)),
        ("body_latency", kind.body_latency.map(latency)),
        ("bandwidth", kind.bandwidth.as_ref().map(|rate| json!({ "per_second": rate }))),
        ("abort", kind.abort.map(abort)),
        ("grpc", kind.grpc.map(|code| json!({ "code": code }))),
        ("corrupt", kind.corrupt.map(|share| json!({ "bytes": share.to_string() }))),
        ("huge_head", kind.huge_head.as_ref().map(|size| json!({ "size": size }))),
        (
            "tcp_latency",
            kind.tcp_latency.map(|delay| {
                let jitter = more.jitter.map(format_duration);
                json!({ "delay": format_duration(delay), "jitter": jitter, "way": way })
            }),
        ),
        ("tcp_bandwidth", kind.tcp_bandwidth.as_ref().map(|rate| json!({ "per_second": rate, "way": way }))),
        ("slow_close", kind.slow_close.as_ref().map(|delay| json!({ "delay": delay, "way": way }))),
        ("black_hole", kind.black_hole.then(|| json!({ "way": way }))),
        ("reset", kind.reset.then(|| json!({ "way": way }))),
        ("half_close", kind.half_close.then(|| json!({ "way": way }))),
        ("slicer", kind.slicer.as_ref().map(|size| json!({ "size": size, "pause": more.pause, "way": way }))),
        ("limit_data", kind.limit_data.as_ref().map(|size| json!({ "size": size, "way": way }))),
        ("tcp_corrupt", kind.tcp_corrupt.map(|share| json!({ "bytes": share.to_string(), "way": way }))),
        ("chunk_loss", kind.chunk_loss.map(|share| json!({ "chunks": share.to_string(), "way": way }))),
        ("zone_cut", kind.zone_cut.then(|| json!({ "way": way }))),
    ];
    let words = [
        ("refuse", kind.refuse),
        ("hang", kind.hang),
        ("swallow", kind.swallow),
        ("cut", kind.cut),
        ("short_body", kind.short_body),
        ("long_body", kind.long_body),
        ("garbled_head", kind.garbled_head),
        ("duplicate", kind.duplicate),
    ];
    let details = with_more.into_iter().find_map(|(name, details)| Some(json!({ name: details? })));
    details.unwrap_or_else(|| json!(words.iter().find(|(_, wanted)| *wanted).map(|(word, _)| word)))
}

/// Renews until stopped, and takes the fault away then.
async fn hold(
    args: &PlaceArgs,
    client: &Client,
    (id, owner): (&str, &str),
    mut signals: Signals,
) -> anyhow::Result<Ended> {
    let lost = tokio::select! {
        () = signals.next() => None,
        lost = keep_renewing(client, id, owner, args.ttl) => Some(lost),
    };
    if let Some(lost) = lost {
        bail!("fault `{id}` is not held any more: {lost}");
    }
    let gone = remove(client, id).await.with_context(|| {
        format!("cannot take fault `{id}` away; it goes by itself within {}", format_duration(args.ttl))
    })?;
    args.reader.print(&gone, show::fault_gone)
}

/// Ends when the node says no, or has not answered for as long as the fault lives.
async fn keep_renewing(client: &Client, id: &str, owner: &str, ttl: Duration) -> CallError {
    let mut unreached = Duration::ZERO;
    let mut wait = ttl / 3;
    loop {
        tokio::time::sleep(wait).await;
        match renew(client, id, owner, ttl).await {
            Ok(_) => (wait, unreached) = (ttl / 3, Duration::ZERO),
            Err(error @ CallError::Unreachable { .. }) if unreached < ttl => {
                let _ = writeln!(io::stderr(), "seawall: {error}");
                wait = AGAIN_AFTER.min(ttl / 3).max(Duration::from_millis(1));
                unreached += wait;
            }
            Err(error) => return error,
        }
    }
}
