//! The command line: what can be typed, and which exit status comes of it.

mod adopt;
mod check;
mod client;
mod drain;
mod explain;
mod fault;
mod init;
mod ledger;
mod offline;
mod read;
mod reload;
mod rows;
mod run;
mod show;
mod simulate;
mod spool;
mod table;
mod toxiproxy;
mod which;

#[cfg(test)]
mod tests;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use seawall_demo::{DemoArgs, Role};

use client::CallError;
pub(crate) use client::get_json;

/// The configuration that is read unless another is named.
pub const CONFIG_FILE: &str = "seawall.yaml";

const EXIT_CODES: &str = "\
Exit status: 0 all is well; 1 something is wrong, or was refused; 2 the command line cannot be understood;
3 the node cannot be reached.
Colours are left out when NO_COLOR is set or the output is not a terminal.";

const EXAMPLES: &str = "\
Examples:
  seawall demo                                               the story, before and after, in two minutes
  seawall run --listen :8080 --upstream http://localhost:3000
  seawall init && seawall check && seawall run
  seawall explain events
  seawall simulate --route events --fault \"60s..90s down\"
  seawall status
  seawall journal --follow --kind breaker_opened
  seawall spool ls --state parked
  seawall spool retry 17
  seawall fault place --route events --abort 503 --share 10% --ttl 2m --hold

Exit status: 0 all is well; 1 something is wrong, or was refused; 2 the command line cannot be understood;
3 the node cannot be reached.";

/// Keeps services right when what they depend on falters, and proves it.
#[derive(Debug, Parser)]
#[command(name = "seawall", version, after_help = EXAMPLES, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node: the gateway, its spool, the admin API and the overview
    #[command(after_help = run::EXAMPLES)]
    Run(run::RunArgs),
    /// Check a configuration and print everything that is wrong with it
    #[command(after_help = check::EXAMPLES)]
    Check(check::CheckArgs),
    /// What a request of a route meets, in which order, with which numbers, and the worst that can come of it
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::ExplainArgs),
    /// Play traffic against the guards of a configuration in virtual time, and tell what they do to it
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(Box<simulate::SimulateArgs>),
    /// Write a commented configuration after a few questions
    #[command(after_help = init::EXAMPLES)]
    Init(init::InitArgs),
    /// Routes, breakers, spool and limits of a node on one screen
    #[command(after_help = read::STATUS_EXAMPLES)]
    Status(read::StatusArgs),
    /// What happened, and because of what
    #[command(after_help = read::JOURNAL_EXAMPLES)]
    Journal(read::JournalArgs),
    /// Have a running node take in its configuration anew
    #[command(after_help = reload::EXAMPLES)]
    Reload(reload::ReloadArgs),
    /// What waits to be delivered, and the dead letters
    #[command(subcommand, after_help = spool::EXAMPLES)]
    Spool(spool::SpoolCommand),
    /// The account of every record: accepted, delivered, lost, duplicated, corrupted
    #[command(after_help = ledger::EXAMPLES)]
    Ledger(ledger::LedgerArgs),
    /// Break a dependency on purpose, in a running node: requests that fail, hang, come late or are lost
    #[command(subcommand, after_help = fault::EXAMPLES)]
    Fault(fault::FaultCommand),
    /// Take an endpoint, a route or a listener of a running node out of service; what is on its way may end
    #[command(after_help = drain::EXAMPLES)]
    Drain(drain::DrainArgs),
    /// Take back into service what was drained
    #[command(after_help = drain::EXAMPLES)]
    Resume(drain::ResumeArgs),
    /// Stand in for Toxiproxy: faults on TCP connections, moved by its clients
    #[command(after_help = toxiproxy::EXAMPLES, disable_version_flag = true)]
    Toxiproxy(toxiproxy::ToxiproxyArgs),
    /// Play an hour of trouble twice: as it was, and behind Seawall
    #[command(after_help = EXIT_CODES)]
    Demo(DemoArgs),
    /// One process of the demo's company
    #[command(hide = true)]
    DemoRole {
        #[command(subcommand)]
        role: Role,
    },
    /// Print the completions for a shell, to be sourced or saved
    #[command(after_help = "Example:\n  seawall completions bash > /etc/bash_completion.d/seawall")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How a command ended, where it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Well,
    /// It did what was asked, and found something wrong.
    Found,
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    // clap ends the process itself for --help, --version and what it does not understand (status 2).
    let cli = Cli::parse_from(toxiproxy::with_two_dashes(std::env::args_os()));
    match perform(cli.command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "seawall: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn perform(command: Command) -> anyhow::Result<ExitCode> {
    let ended = match command {
        Command::Run(args) => return run::run(&args),
        Command::Demo(args) => return demo(args),
        Command::Toxiproxy(args) => return toxiproxy::run(&args),
        Command::DemoRole { role } => return block_on(seawall_demo::play(role)).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => completions(shell)?,
        Command::Check(args) => check::run(&args)?,
        Command::Explain(args) => explain::run(&args)?,
        Command::Simulate(args) => simulate::run(&args)?,
        Command::Init(args) => init::run(&args)?,
        Command::Reload(args) => block_on(reload::run(&args))?,
        Command::Status(args) => block_on(read::status(&args))?,
        Command::Journal(args) => block_on(read::journal(&args))?,
        Command::Spool(command) => block_on(spool::run(&command))?,
        Command::Ledger(args) => block_on(ledger::run(&args))?,
        Command::Drain(args) => block_on(drain::drain(&args))?,
        Command::Resume(args) => block_on(drain::resume(&args))?,
        Command::Fault(command) => block_on(fault::run(&command))?,
    };
    Ok(match ended {
        Ended::Well => ExitCode::SUCCESS,
        Ended::Found => ExitCode::from(1),
    })
}

fn demo(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let seawall: PathBuf = std::env::current_exe().context("cannot find this program's own file")?;
    let held = block_on(seawall_demo::run(args, seawall))?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Ended> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "seawall", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Commands but `run` have little to do at the same time.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(work);
    // A read of a terminal may be left over that never ends.
    runtime.shutdown_background();
    result
}

/// To standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<Ended> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Ended::Well)
}

fn print_json(value: &serde_json::Value) -> anyhow::Result<Ended> {
    print(&format!("{value:#}\n"))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<CallError>() {
        Some(CallError::Unreachable { .. }) => 3,
        _ if error.is::<UsageError>() => 2,
        _ => 1,
    }
}

/// A command line that is understood and makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);
