//! The demo without the `seawall` binary around it: `company demo ...` and `company demo-role ...`.
//!
//! The environment variable `SEAWALL` names the binary used as gateway; without it only `--only before` works.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use seawall_demo::conduct::Programs;
use seawall_demo::{DemoArgs, Role};

#[derive(Parser)]
enum Company {
    /// Plays the demo.
    Demo(DemoArgs),
    /// One process of it.
    #[command(subcommand)]
    DemoRole(Role),
}

fn main() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match Company::parse() {
            Company::DemoRole(role) => seawall_demo::play(role).await.map(|()| ExitCode::SUCCESS),
            Company::Demo(args) => {
                let company = std::env::current_exe()?;
                let seawall = std::env::var_os("SEAWALL").map_or_else(|| company.clone(), PathBuf::from);
                let held = seawall_demo::run_with(args, Programs { company, seawall }).await?;
                Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        }
    })
}
