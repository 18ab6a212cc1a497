//! The company's processes: started, killed and brought back by name, and gone when the conductor goes.
//!
//! Every process has a pipe from the conductor as its standard input and ends when that closes; so nothing is left
//! however the conductor ends, SIGKILL included. Each is a process group of its own, so that a Ctrl-C in the terminal
//! reaches the conductor alone and things end in order. Their output goes to `NAME.log` in the run's folder.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, timeout};

use crate::web::{Ask, Client};

/// A process that does not end by itself after this long is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
const READY_PATIENCE: Duration = Duration::from_secs(15);
const READY_EVERY: Duration = Duration::from_millis(25);
/// Ports below this are not handed out by the system to outgoing connections, so a killed node finds its own again.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

#[derive(Debug)]
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
}

/// The running processes, by name.
#[derive(Debug)]
pub struct Company {
    program: PathBuf,
    dir: PathBuf,
    processes: Mutex<BTreeMap<String, Process>>,
}

impl Company {
    /// Nobody yet. `program` understands `demo-role`; `dir` takes the logs.
    #[must_use]
    pub fn new(program: PathBuf, dir: PathBuf) -> Self {
        Self { program, dir, processes: Mutex::default() }
    }

    /// Starts `demo-role ARGUMENTS` under this name.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, arguments: Vec<OsString>) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(name))?;
        let mut child = Command::new(&self.program)
            .arg("demo-role")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{}` as {name}", self.program.display()))?;
        let stdin = child.stdin.take();
        self.processes().insert(name.into(), Process { child, stdin });
        Ok(())
    }

    /// SIGKILL, and waits until it is gone. Nothing happens if there is no such process.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(&self, name: &str) -> anyhow::Result<()> {
        match self.take(name) {
            Some(mut process) => Ok(process.child.kill().await?),
            None => Ok(()),
        }
    }

    /// Closes its standard input and waits until it is gone; kills it if it does not go. For a keeper this is a
    /// SIGKILL of the program it keeps.
    pub async fn close(&self, name: &str) {
        if let Some(process) = self.take(name) {
            close(process).await;
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When there is no such process.
    pub async fn wait(&self, name: &str) -> anyhow::Result<ExitStatus> {
        let Some(Process { mut child, stdin }) = self.take(name) else { bail!("{name} is not running") };
        let status = child.wait().await;
        drop(stdin);
        Ok(status?)
    }

    /// Ends every process.
    pub async fn stop(&self) {
        let processes = std::mem::take(&mut *self.processes());
        let closing: tokio::task::JoinSet<()> = processes.into_values().map(close).collect();
        closing.join_all().await;
    }

    /// Waits until `http://address/path` answers 2xx.
    ///
    /// # Errors
    /// When the process of this name ends, or does not answer in time; with the end of its log.
    pub async fn ready(&self, client: &Client, name: &str, address: &str, path: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_PATIENCE;
        while Instant::now() < deadline {
            let got = client.send_within(Duration::from_secs(1), address, &Ask::get(path)).await;
            if got.is_ok_and(|got| got.is_success()) {
                return Ok(());
            }
            if let Some(status) = self.ended(name) {
                bail!("{name} ended with {status}\n{}", self.last_words(name));
            }
            tokio::time::sleep(READY_EVERY).await;
        }
        bail!("{name} is not ready after {} s\n{}", READY_PATIENCE.as_secs(), self.last_words(name))
    }

    fn ended(&self, name: &str) -> Option<ExitStatus> {
        self.processes().get_mut(name)?.child.try_wait().ok().flatten()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn last_words(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn take(&self, name: &str) -> Option<Process> {
        self.processes().remove(name)
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Process>> {
        self.processes.lock().expect("no panic under this lock")
    }
}

async fn close(mut process: Process) {
    drop(process.stdin.take());
    if timeout(STOP_PATIENCE, process.child.wait()).await.is_err() {
        let _ = process.child.kill().await;
    }
}

/// Command line arguments of mixed kinds.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { vec![$(::std::ffi::OsString::from($argument)),*] };
}
pub(crate) use arguments;

/// Free ports on loopback, all different.
///
/// # Errors
/// When there are not enough.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // Where to begin depends on who asks, so that two demos at once do not meet.
    let offset = (std::process::id().wrapping_mul(61) % u32::from(PORTS.end - PORTS.start)) as u16;
    let mut ports = Vec::with_capacity(count);
    for port in (PORTS.start + offset..PORTS.end).chain(PORTS.start..PORTS.start + offset) {
        if ports.len() == count {
            break;
        }
        if TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok() {
            ports.push(port);
        }
    }
    if ports.len() < count {
        bail!("only {} of {count} free ports on loopback between {} and {}", ports.len(), PORTS.start, PORTS.end);
    }
    Ok(ports)
}

/// Reads a file of lines that each parse; nothing if it was never made.
///
/// # Errors
/// When it cannot be read, or a line is something else.
pub fn read_lines<T: std::str::FromStr<Err = anyhow::Error>>(path: &Path) -> anyhow::Result<Vec<T>> {
    match std::fs::read_to_string(path) {
        Ok(text) => text.lines().map(str::parse).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_different() {
        let ports = free_ports(20).unwrap();
        let different: std::collections::BTreeSet<&u16> = ports.iter().collect();
        assert_eq!((ports.len(), different.len()), (20, 20));
        assert!(free_ports(usize::from(u16::MAX)).is_err());
    }

    #[test]
    fn a_file_never_made_has_no_lines() {
        let none: Vec<crate::tally::Handed> = read_lines(Path::new("no/such/file")).unwrap();
        assert!(none.is_empty());
        assert!(read_lines::<crate::tally::Handed>(Path::new(".")).is_err());
    }
}
