//! What a service manager is told (systemd's `sd_notify`), and the process that SIGUSR2 asks for: the same command
//! line, with whatever binary lies there by now, to take this one's place. It is our child, and so in the same service.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::signal::unix::Signal;

const TAKE_OVER: &str = "--take-over";

/// This process serves, and is the one to look after.
pub(crate) fn tell_ready() {
    tell(&format!("MAINPID={}\nREADY=1", std::process::id()));
}

/// This process ends, and so does the service.
pub(crate) fn tell_stopping() {
    tell("STOPPING=1");
}

fn tell(words: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(Path::new(&socket))?,
        };
        UnixDatagram::unbound()?.send_to_addr(words.as_bytes(), &address).map(drop)
    };
    if let Err(error) = send() {
        let error: io::Error = error;
        tracing::warn!(%error, socket = %socket.display(), "the service manager cannot be told");
    }
}

/// The command line of this process, as long as its own file can still be found under its name.
#[derive(Debug)]
pub(crate) struct Heirs {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Heirs {
    /// # Errors
    /// When the system does not say which program this is.
    pub(crate) fn new() -> io::Result<Self> {
        let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        if !arguments.iter().any(|argument| argument == TAKE_OVER) {
            arguments.push(TAKE_OVER.into());
        }
        Ok(Self { program: std::env::current_exe()?, arguments })
    }

    /// Starts one whenever asked; one that ends while this process is still there has failed, and the next may be asked
    /// for.
    pub(crate) async fn start(self, mut asked: Signal) {
        while asked.recv().await.is_some() {
            let started = Command::new(&self.program).args(&self.arguments).spawn();
            match started {
                Ok(mut heir) => {
                    tracing::info!(pid = heir.id(), program = %self.program.display(), "SIGUSR2: a process to take over is started");
                    let ended = heir.wait().await;
                    tracing::error!(?ended, "the process that was to take over has ended");
                }
                Err(error) => {
                    tracing::error!(%error, program = %self.program.display(), "SIGUSR2: no process can be started");
                }
            }
        }
    }
}
