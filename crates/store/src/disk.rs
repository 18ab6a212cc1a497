//! The only door to files. [`RealDisk`] opens it to the machine, [`LookDisk`] to the machine without changing anything,
//! [`SimDisk`] to a simulated one that forgets what was not synced.
//!
//! The contract, as POSIX and journaling file systems give it: bytes written are safe after [`DiskFile::sync_data`]
//! returned `Ok`; a name made, changed or removed is safe after [`Disk::sync_dir`] of its folder; a failed sync says
//! nothing about anything written before it, and repeating it proves nothing.

mod background;
mod look;
pub mod medium;
mod real;
mod sim;

use std::fmt::Debug;
use std::io;
use std::path::Path;

pub use background::Background;
pub use look::{LookDisk, LookFile};
pub use real::{RealDisk, RealFile, RealLock};
pub use sim::{Fault, SimDisk, SimFile, SimLock};

/// A file system.
pub trait Disk: Clone + Debug + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;
    /// Held as long as the directory is ours.
    type Lock: Debug + Send + Sync + 'static;

    /// Makes a folder and those above it.
    ///
    /// # Errors
    /// What the file system says, as for all of these.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Makes a file of `bytes` zeros whose room is reserved, so that writing into it does not run out of space on file
    /// systems that overwrite in place. Leaves nothing behind if it fails.
    ///
    /// # Errors
    /// `StorageFull` or `QuotaExceeded` if there is no room; `AlreadyExists`.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<Self::File>;

    /// Opens a file to read and write.
    ///
    /// # Errors
    /// `NotFound`, for one.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// Reads a file whole.
    ///
    /// # Errors
    /// `NotFound`, for one.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// `NotFound`, for one.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`, for one.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, replacing what was there.
    ///
    /// # Errors
    /// `NotFound`, for one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a folder safe.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names safe by which a folder is reached, as far up as they may be new: where a whole path was made
    /// ([`Disk::create_dir_all`]) each folder of it is a name in the one above.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_above(&self, dir: &Path) -> io::Result<()> {
        dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    /// Bytes a process without privileges may still use.
    ///
    /// # Errors
    /// What the file system says.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Begins work that nobody waits for yet: beside the caller where that is possible, at once and to its end where it
    /// is not.
    fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Background<T> {
        Background::of(work())
    }

    /// Takes the lock file of a directory, and writes our process id into it.
    ///
    /// # Errors
    /// [`LockError`].
    fn lock(&self, path: &Path) -> Result<Self::Lock, LockError>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Writes all of it at an offset.
    ///
    /// # Errors
    /// What the file system says; some of it may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Writes the zeros of a new file, from an offset to its end, where that makes later syncs cheaper: a block that
    /// was only reserved is marked as written by the first sync after its first write, in the file system's own log.
    ///
    /// # Errors
    /// What the file system says.
    fn write_zeros(&self, _from: u64) -> io::Result<()> {
        Ok(())
    }

    /// Fills the buffer from an offset.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Makes everything written safe, and the length.
    ///
    /// # Errors
    /// What the file system says. Never repeat it.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts the file, or reserves zeros at its end.
    ///
    /// # Errors
    /// `StorageFull` or `QuotaExceeded` if there is no room.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Bytes of the file.
    ///
    /// # Errors
    /// What the file system says.
    fn size(&self) -> io::Result<u64>;
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it.
    Held {
        /// As written in the file; 0 if nothing readable is there.
        pid: u32,
    },
    /// The file system said no.
    Io(io::Error),
}

/// True if there was no room, on the disk or in the table of open files: what passes by itself and has changed nothing.
#[must_use]
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) || is_out_of_files(error)
}

/// True if this process, or the system, has as many files open as it may.
#[must_use]
pub fn is_out_of_files(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}
