//! Keeps a program for as long as the conductor lives: the program is killed when standard input closes or a signal
//! comes, so that even a conductor killed with SIGKILL leaves nothing behind.

use std::ffi::OsString;
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::process::Command;

/// The keeper's command line.
#[derive(clap::Args, Clone, Debug)]
pub struct KeepArgs {
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// Runs the program until it ends or `stop` comes; then it is killed and gone when this returns.
///
/// # Errors
/// When the program cannot be started, or ends by itself with a failure.
pub async fn play(args: KeepArgs, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let Some((program, arguments)) = args.command.split_first() else { bail!("nothing to keep") };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start `{}`", program.display()))?;
    tokio::select! {
        status = child.wait() => match status? {
            status if status.success() => Ok(()),
            status => bail!("`{}` ended with {status}", program.display()),
        },
        () = stop => Ok(child.kill().await?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> KeepArgs {
        KeepArgs { command: words.iter().map(OsString::from).collect() }
    }

    #[tokio::test]
    async fn a_program_that_ends_tells_how() {
        play(args(&["true"]), std::future::pending()).await.unwrap();
        let error = play(args(&["false"]), std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("`false` ended with"), "{error}");
        assert!(play(args(&["/no/such/program"]), std::future::pending()).await.is_err());
        assert!(play(args(&[]), std::future::pending()).await.is_err());
    }

    #[tokio::test]
    async fn a_stop_ends_a_program_that_would_not_end() {
        play(args(&["sleep", "600"]), std::future::ready(())).await.unwrap();
    }
}
