//! Real servers and clients of a protocol, as scripts of Python with a package that `./test install` puts there.

use std::path::Path;
use std::process::Command;

use crate::house::wait_for;
use crate::process::Process;

/// A script in `clients`, and the folder of tools whose Python has its package.
pub struct Script {
    pub tools: &'static str,
    pub file: &'static str,
}

/// One that serves; it ends with this.
pub struct Serving {
    pub port: u16,
    _process: Process,
}

impl Script {
    pub fn command(&self) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = root.join("../../target/tools").join(self.tools).join("bin/python");
        assert!(program.exists(), "no `{}`: run `./test install`", program.display());
        let mut command = Command::new(program);
        command.arg(root.join("../../tests/clients").join(self.file));
        command
    }

    pub fn serve(&self) -> Serving {
        let mut process = Process::start(self.command().arg("server"));
        let port = wait_for("the server tells its port", || {
            assert!(process.ended().is_none(), "the server ended: {:?}", process.lines());
            process.lines().iter().find_map(|line| line.strip_prefix("port ")?.parse().ok())
        });
        Serving { port, _process: process }
    }
}
