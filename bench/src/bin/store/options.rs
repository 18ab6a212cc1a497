//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::engine::Kind;

pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) duration: Duration,
    /// Where the data directories are made; a temporary one if not given.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) producers: Vec<usize>,
    pub(crate) only: Vec<Kind>,
    /// Records one lease asks for; 0 measures no leases.
    pub(crate) lease_batch: usize,
    /// Records that wait; 0 measures the engines instead.
    pub(crate) backlog: usize,
    /// Records that stay while others pass; 0 measures the engines instead.
    pub(crate) stragglers: usize,
    /// We are the process that fills this directory and is killed.
    pub(crate) filler: Option<PathBuf>,
}

pub(crate) fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        rounds: 3,
        duration: Duration::from_secs(2),
        dir: None,
        producers: vec![1, 16, 64, 256],
        only: Kind::ALL.to_vec(),
        lease_batch: 16,
        backlog: 0,
        stragglers: 0,
        filler: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("`{arg}` wants a value"))?;
        set(&mut options, &arg, &value).with_context(|| format!("cannot take `{value}` for `{arg}`"))?;
    }
    ensure!(options.rounds > 0, "rounds must be above zero");
    ensure!(options.backlog == 0 || options.lease_batch > 0, "a backlog is emptied by leases of at least one record");
    ensure!(!options.producers.is_empty() && !options.producers.contains(&0), "producers must be above zero");
    Ok(options)
}

fn set(options: &mut Options, name: &str, value: &str) -> anyhow::Result<()> {
    match name {
        "--rounds" => options.rounds = value.parse()?,
        "--seconds" => options.duration = Duration::try_from_secs_f64(value.parse()?)?,
        "--dir" => options.dir = Some(value.into()),
        "--producers" => options.producers = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
        "--only" => options.only = value.split(',').map(Kind::named).collect::<anyhow::Result<_>>()?,
        "--lease-batch" => options.lease_batch = value.parse()?,
        "--backlog" => options.backlog = value.parse()?,
        "--stragglers" => options.stragglers = value.parse()?,
        "--filler" => options.filler = Some(value.into()),
        _ => bail!(
            "unknown option; known are --rounds, --seconds, --dir, --producers, --only, --lease-batch, --backlog and \
             --stragglers"
        ),
    }
    Ok(())
}

/// A directory of our own, on a file system that keeps what is synced. Gone with the returned value.
pub(crate) fn data_dir(parent: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
    std::fs::create_dir_all(&parent).with_context(|| format!("cannot make folder `{}`", parent.display()))?;
    let found = rustix::fs::statfs(&parent)?;
    let is_memory = u64::try_from(found.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC);
    ensure!(!is_memory, "`{}` is memory (tmpfs) and syncs for nothing: give a disk by --dir", parent.display());
    let dir = tempfile::Builder::new().prefix("seawall-bench-").tempdir_in(&parent)?;
    println!("data in {} (file system type {:#x}, not tmpfs)", dir.path().display(), found.f_type);
    Ok(dir)
}
