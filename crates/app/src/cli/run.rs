//! `seawall run`: from the command line to a configuration; the node itself is `lifecycle`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use seawall_store::OnDamage;

use super::{CONFIG_FILE, UsageError};
use crate::config::{self, AppConfig, Quick, Report};
use crate::lifecycle;
use crate::logs::{self, Format, Level};
use crate::reload::{Origin, Unfit};

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall run                                                 with ./seawall.yaml
  seawall run --config prod.yaml --log json
  seawall run --listen :8080 --upstream http://localhost:3000 without a file
  seawall run --listen tcp://:6379 --upstream tcp://cache:6379 connections instead of requests
  seawall run --take-over                                     in place of the process that runs, as after an upgrade

The first SIGTERM or Ctrl-C drains within `limits.grace`, the second stops at once. SIGUSR2 starts this command line again
with `--take-over`: the way to upgrade under systemd.
Exit status: 0 stopped as asked; 1 could not start or go on; 2 the command line cannot be understood.";

#[derive(Args, Clone, Debug, Default)]
pub(super) struct RunArgs {
    /// The configuration [default: ./seawall.yaml]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["listen", "upstream"])]
    config: Option<PathBuf>,
    /// Listen here, without a configuration: `127.0.0.1:8080`, `:8080` for every interface, `tcp://:6379` for
    /// connections
    #[arg(long, value_name = "ADDRESS", requires = "upstream")]
    listen: Option<String>,
    /// Send everything there, without a configuration: `http://127.0.0.1:3000`, or `tcp://127.0.0.1:6380`
    #[arg(long, value_name = "URL", requires = "listen")]
    upstream: Option<String>,
    /// The admin API's address, before what the configuration says
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// The data directory, before what the configuration says
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Go on with what can be saved of a damaged data directory; damaged files are kept as `*.damaged`
    #[arg(long)]
    quarantine: bool,
    /// Take the configuration in anew on SIGHUP and by `seawall reload` only, not whenever its file changes
    #[arg(long)]
    no_watch: bool,
    /// Take the place of the process that runs this node, without refusing anybody; where none runs, just start
    #[arg(long)]
    take_over: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,
    /// How much is logged; SEAWALL_LOG says it by module
    #[arg(long, value_enum, default_value_t = Level::Info)]
    log_level: Level,
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut config = configure(args, Path::new(CONFIG_FILE))?;
    if args.quarantine {
        config.store.on_damage = OnDamage::Quarantine;
    }
    logs::begin(args.log, args.log_level);
    lifecycle::run(config, origin(args, Path::new(CONFIG_FILE)), args.take_over)
}

/// The configuration in force: the file's or the command line's.
pub(super) fn configure(args: &RunArgs, default_file: &Path) -> anyhow::Result<AppConfig> {
    if let (Some(listen), Some(upstream)) = (args.listen.clone(), args.upstream.clone()) {
        let quick = Quick { listen, upstream, admin: args.admin.clone(), data: args.data.clone() };
        return config::quick(&quick).map_err(|report| UsageError(format!("cannot run like this\n{report}")).into());
    }
    let file = args.config.as_deref().unwrap_or(default_file);
    let (config, warnings) = match config::load(file, &|name| std::env::var(name).ok())?.into_result() {
        Ok(read) => read,
        Err(report) => bail!("cannot run with `{}`\n{report}", file.display(), report = report.without_audit()),
    };
    let _ = write!(std::io::stderr(), "{}", warnings.without_audit());
    overridden(config, args).map_err(|report| UsageError(report.to_string()).into())
}

/// What the command line says before the file.
fn overridden(mut config: AppConfig, args: &RunArgs) -> Result<AppConfig, Report> {
    if let Some(admin) = &args.admin {
        config.admin.address = config::admin_address(admin, &config)?;
    }
    if let Some(data) = &args.data {
        config.store.path.clone_from(data);
    }
    Ok(config)
}

/// The file a node can take in anew, if it has one.
fn origin(args: &RunArgs, default_file: &Path) -> Option<Origin> {
    if args.listen.is_some() {
        return None;
    }
    let file = args.config.clone().unwrap_or_else(|| default_file.to_owned());
    let (said, of_read) = (args.clone(), file.clone());
    let read = move || {
        let wrong = |report: Report| Unfit {
            error: format!("cannot run with `{}`", of_read.display()),
            findings: report.without_audit().findings,
        };
        let checked = config::load(&of_read, &|name| std::env::var(name).ok())
            .map_err(|error| Unfit { error: format!("{error:#}"), findings: Vec::new() })?;
        let (config, report) = checked.into_result().map_err(wrong)?;
        Ok((overridden(config, &said).map_err(wrong)?, report))
    };
    Some(Origin { file, watched: !args.no_watch, read: Box::new(read) })
}
