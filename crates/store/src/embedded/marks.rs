//! Files in a data directory that mark a state it is in: there or not, with a few words for whoever asks. What each
//! stands for is with its name, in `meta`.

use std::path::Path;

use super::log::io_error;
use crate::disk::{Disk, DiskFile};
use crate::error::OpenError;

/// Puts a file with some words into a directory, where there is none yet.
pub(crate) fn mark<D: Disk>(disk: &D, dir: &Path, name: &str, words: &str) -> Result<(), OpenError> {
    let path = dir.join(name);
    if disk.read(&path).is_ok() {
        return Ok(());
    }
    let write = |file: D::File| file.write_at(words.as_bytes(), 0).and_then(|()| file.sync_data());
    disk.create(&path, words.len() as u64).and_then(write).map_err(io_error("make", &path))?;
    disk.sync_dir(dir).map_err(io_error("sync folder", dir))
}

/// What such a file says, if it is there.
pub(crate) fn words<D: Disk>(disk: &D, dir: &Path, name: &str) -> Option<String> {
    let bytes = disk.read(&dir.join(name)).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_matches('\0').to_owned())
}

pub(crate) fn unmark<D: Disk>(disk: &D, dir: &Path, name: &str) -> Result<(), OpenError> {
    let path = dir.join(name);
    if disk.read(&path).is_err() {
        return Ok(());
    }
    disk.remove(&path).map_err(io_error("remove", &path))?;
    disk.sync_dir(dir).map_err(io_error("sync folder", dir))
}
