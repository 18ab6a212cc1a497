//! `seawall check`: everything that is wrong with a configuration, at once.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use seawall_store::Clock as _;

use super::{CONFIG_FILE, Ended, print, print_json};
use crate::clock::RealClock;
use crate::config::{self, Report};

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall check
  seawall check --config prod.yaml --json

Exit status: 0 no mistakes (there may be warnings, and what the audit finds); 1 mistakes, or the file cannot be read.";

#[derive(Args, Clone, Debug)]
pub(super) struct CheckArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<Ended> {
    let mut checked = config::load(&args.config, &|name| std::env::var(name).ok())?.rehearsed();
    if let Some(config) = &checked.config {
        let findings = crate::tls::examine(config, RealClock::new().wall());
        checked.report = Report::of([checked.report.findings, findings].concat());
    }
    let look = checked.config.as_ref().and_then(|config| Some((config.store.replica.as_ref()?, config)));
    if let Some((replica, config)) = look {
        let examine = crate::replica::examine(replica, config.store.spool_bytes_max, &config.policy.node);
        let findings = super::block_on(async { Ok(examine.await) })?;
        checked.report = Report::of([checked.report.findings, findings].concat());
    }
    let (errors, warnings) = (checked.report.errors(), checked.report.warnings());
    let audits = checked.report.audits();
    if args.json {
        let digest = checked.config.as_ref().map(|config| config.policy.digest.as_str());
        let findings = &checked.report.findings;
        print_json(
            &json!({ "errors": errors, "warnings": warnings, "audit": audits, "digest": digest, "findings": findings }),
        )?;
    } else {
        let file = args.config.display();
        let routes = checked.config.as_ref().map_or(0, |config| config.policy.routes.len());
        let verdict = match errors {
            0 => format!("{file}: ok, {}", counted(routes, "route")),
            _ => format!("{file}: {}", counted(errors, "mistake")),
        };
        let warned = if warnings > 0 { format!(", {}", counted(warnings, "warning")) } else { String::new() };
        let audited = if audits > 0 { format!(", {}", counted(audits, "line of the audit")) } else { String::new() };
        print(&format!("{}{verdict}{warned}{audited}\n", checked.report))?;
    }
    Ok(if errors == 0 { Ended::Well } else { Ended::Found })
}

fn counted(count: usize, what: &str) -> String {
    match (count, what) {
        (1, _) => format!("1 {what}"),
        (_, "line of the audit") => format!("{count} lines of the audit"),
        _ => format!("{count} {what}s"),
    }
}
