//! Logs: structured, to stderr, as text for people or JSON lines for machines. What happened to the data path is in
//! the journal; the log is for whoever starts and stops the program.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// How much is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// What ends or breaks something.
    Error,
    /// And what may soon.
    Warn,
    /// And what the program does.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And every step.
    Trace,
}

/// Begins to log. `SEAWALL_LOG` says more than a level can: `info,seawall_gateway=debug`.
pub fn begin(format: Format, level: Level) {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).with_env_var("SEAWALL_LOG").from_env_lossy();
    // Every connection is news to it; what becomes of the replica we tell ourselves.
    let is_asked_for = std::env::var("SEAWALL_LOG").is_ok_and(|text| text.contains("async_nats"));
    let filter = match "async_nats=error".parse() {
        Ok(directive) if level <= LevelFilter::INFO && !is_asked_for => filter.add_directive(directive),
        _ => filter,
    };
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A log whose reader has gone away must not take the node with it.
    let builder = builder.log_internal_errors(false);
    // Somebody who began before us (a test) keeps the log.
    let _ = match format {
        Format::Text => builder.with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
