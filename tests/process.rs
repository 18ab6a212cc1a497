//! Processes that a test owns: they end with it, however it ends.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::house::{PATIENCE, wait_for};

/// A running program whose standard error is kept, line by line.
pub struct Process {
    pub name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self::read_until(command, None)
    }

    /// After a line with this text nobody reads any more: the program's standard error is broken.
    pub fn read_until(command: &mut Command, last: Option<&'static str>) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start `{name}`: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (kept, stderr) = (Arc::clone(&lines), child.stderr.take().expect("piped"));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let is_last = last.is_some_and(|last| line.contains(last));
                kept.lock().unwrap().push(line);
                if is_last {
                    return;
                }
            }
        });
        Self { name, child, lines, reader: Some(reader), status: None }
    }

    /// True once nobody reads any more.
    pub fn is_broken(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Sends a signal to the program and everything it has started.
    pub fn signal_all(&self, signal: Signal) {
        let family = descendants(self.pid());
        send(self.pid(), signal);
        family.into_iter().for_each(|pid| send(pid, signal));
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("it is our child");
        }
        self.status
    }

    /// Waits until it has ended, and until its last word has been read.
    pub fn wait(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let status = wait_for(&format!("`{name}` ends"), || self.ended());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        status
    }

    /// SIGKILL, to it and its family.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            self.signal_all(Signal::KILL);
        }
        let begin = Instant::now();
        while self.ended().is_none() && begin.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let lines = self.lines();
            eprintln!("--- `{}` said last:", self.name);
            lines[lines.len().saturating_sub(30)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Exit code, or minus the signal that ended it.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that has ended in the same moment needs no signal.
        let _ = kill_process(pid, signal);
    }
}

/// Everything a process has started and that still runs.
fn descendants(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.flat_map(|pid: u32| std::iter::once(pid).chain(descendants(pid))).collect()
}
