//! `seawall drain` and `seawall resume`: an endpoint, a route or a listener of a running node out of service, and back.

use std::time::Duration;

use clap::Args;
use seawall_core::units::format_duration;
use serde_json::{Map, Value, json};

use super::Ended;
use super::read::Reader;
use super::show;

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall drain                                             what is drained, and what it still waits for
  seawall drain --endpoint queue/10.0.1.5:80 --reason \"new kernel\"
  seawall drain --route events                              503, or its fallback
  seawall drain --listener 0.0.0.0:8080 --refuse-after 30s
  seawall resume --endpoint queue/10.0.1.5:80

What is on its way may end. Drains outlive a reload and a take-over, not a stop.
Exit status: 0 done; 1 refused; 2 the command line cannot be understood; 3 the node cannot be reached.";

#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub(super) struct TargetArgs {
    /// It gets no new calls
    #[arg(long, value_name = "UPSTREAM/ADDRESS")]
    endpoint: Option<String>,
    /// New requests are refused, or get its fallback
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Clients are moved to other connections and `/readyz` says no, then nobody is let in
    #[arg(long, value_name = "ADDRESS")]
    listener: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Why; the journal keeps it
    #[arg(long, default_value = "by hand")]
    reason: String,
    /// With --listener: from when on nobody is let in [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = super::fault::duration, requires = "listener")]
    refuse_after: Option<Duration>,
    #[command(flatten)]
    reader: Reader,
}

#[derive(Args, Clone, Debug)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    reader: Reader,
}

impl TargetArgs {
    fn body(&self) -> Map<String, Value> {
        let named = [("endpoint", &self.endpoint), ("route", &self.route), ("listener", &self.listener)];
        let named = named.into_iter().filter_map(|(kind, name)| Some((kind.to_owned(), name.clone()?.into())));
        named.collect()
    }
}

pub(super) async fn drain(args: &DrainArgs) -> anyhow::Result<Ended> {
    let (client, mut body) = (args.reader.client()?, args.target.body());
    if body.is_empty() {
        let answer = client.get("/api/drain").await?;
        return args.reader.print(&answer, |_| match show::drains(&answer["drains"]) {
            text if text.is_empty() => "nothing is drained\n".into(),
            text => text,
        });
    }
    body.insert("reason".into(), args.reason.clone().into());
    if let Some(time) = args.refuse_after {
        body.insert("refuse_after".into(), format_duration(time).into());
    }
    let answer = client.post("/api/drain", &Value::Object(body)).await?;
    args.reader.print(&answer, |_| {
        let mut text = show::drains(&json!([answer]));
        if answer["last"] == true {
            text += "no endpoint of this upstream is left: its calls are refused, or get their route's fallback\n";
        }
        text
    })
}

pub(super) async fn resume(args: &ResumeArgs) -> anyhow::Result<Ended> {
    let answer = args.reader.client()?.post("/api/resume", &Value::Object(args.target.body())).await?;
    args.reader.print(&answer, |_| {
        let was = if answer["was_draining"] == true { "in service again" } else { "was not drained" };
        let text = |key: &str| answer[key].as_str().unwrap_or_default();
        format!("{} {}: {was}\n", text("kind"), text("name"))
    })
}
