//! The machine's files as they are, with every change kept in memory: a stopped node's store, opened as its next start
//! would open it, and not a byte of it touched.
//!
//! Files are opened for reading only, so that a copy on read-only media will do. The lock is looked at and not held:
//! looking must not keep a node from starting. Whoever must know that none has started meanwhile asks for the lock
//! again afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::FlockOperation;

use super::real::written_pid;
use super::{Disk, DiskFile, LockError, RealDisk};

/// The machine's file system, to be looked at. Clones see each other's changes.
#[derive(Clone, Debug, Default)]
pub struct LookDisk(Arc<Mutex<Seen>>);

/// One of its files.
#[derive(Debug)]
pub struct LookFile {
    disk: LookDisk,
    content: Arc<Content>,
}

#[derive(Debug, Default)]
struct Seen {
    files: BTreeMap<PathBuf, Known>,
    folders: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug)]
enum Known {
    /// Open somewhere, and as it is on the disk.
    AsItIs(Weak<Content>),
    Changed(Arc<Content>),
    Removed,
}

type Content = Mutex<Bytes>;

#[derive(Debug)]
enum Bytes {
    OnDisk(File),
    /// Made or changed: all of it.
    InMemory(Vec<u8>),
}

impl LookDisk {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, content: &Arc<Content>) -> LookFile {
        LookFile { disk: self.clone(), content: Arc::clone(content) }
    }
}

impl Seen {
    fn find(&mut self, path: &Path) -> io::Result<Arc<Content>> {
        match self.files.get(path) {
            Some(Known::Removed) => return Err(io::ErrorKind::NotFound.into()),
            Some(Known::Changed(content)) => return Ok(Arc::clone(content)),
            Some(Known::AsItIs(content)) => {
                if let Some(content) = content.upgrade() {
                    return Ok(content);
                }
            }
            None => {}
        }
        let content = Arc::new(Mutex::new(Bytes::OnDisk(File::open(path)?)));
        self.files.insert(path.into(), Known::AsItIs(Arc::downgrade(&content)));
        Ok(content)
    }

    /// What was opened is changed now: it lives as long as the disk does.
    fn keep(&mut self, content: &Arc<Content>) {
        let is_it = |known: &&mut Known| matches!(known, Known::AsItIs(weak) if weak.as_ptr() == Arc::as_ptr(content));
        if let Some(known) = self.files.values_mut().find(is_it) {
            *known = Known::Changed(Arc::clone(content));
        }
    }
}

fn locked(content: &Content) -> MutexGuard<'_, Bytes> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bytes {
    fn whole(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::InMemory(bytes) => Ok(bytes.clone()),
            Self::OnDisk(file) => {
                let mut bytes = vec![0; file.metadata()?.len() as usize];
                file.read_exact_at(&mut bytes, 0)?;
                Ok(bytes)
            }
        }
    }
}

impl Disk for LookDisk {
    type File = LookFile;
    type Lock = ();

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if !path.is_dir() {
            self.seen().folders.insert(path.into());
        }
        Ok(())
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<LookFile> {
        let mut seen = self.seen();
        if seen.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = Arc::new(Mutex::new(Bytes::InMemory(vec![0; bytes as usize])));
        seen.files.insert(path.into(), Known::Changed(Arc::clone(&content)));
        Ok(self.file(&content))
    }

    fn open(&self, path: &Path) -> io::Result<LookFile> {
        self.seen().find(path).map(|content| self.file(&content))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let content = self.seen().find(path)?;
        locked(&content).whole()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let seen = self.seen();
        let there = if seen.folders.contains(dir) { Vec::new() } else { RealDisk.list(dir)? };
        let mut names: BTreeSet<String> = there.into_iter().collect();
        for (path, known) in seen.files.iter().filter(|(path, _)| path.parent() == Some(dir)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if matches!(known, Known::Removed) {
                names.remove(&name)
            } else {
                names.insert(name)
            };
        }
        Ok(names.into_iter().collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut seen = self.seen();
        seen.find(path)?;
        seen.files.insert(path.into(), Known::Removed);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut seen = self.seen();
        let content = seen.find(from)?;
        seen.files.insert(from.into(), Known::Removed);
        seen.files.insert(to.into(), Known::Changed(content));
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        RealDisk.free_bytes(dir)
    }

    /// Tells whether a node has it.
    fn lock(&self, path: &Path) -> Result<(), LockError> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            // A copy of a folder may come without it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(LockError::Io(error)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held { pid: written_pid(&mut file) }),
            Err(error) => Err(LockError::Io(error.into())),
        }
    }
}

impl LookFile {
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut bytes = locked(&self.content);
        if let Bytes::OnDisk(_) = *bytes {
            *bytes = Bytes::InMemory(bytes.whole()?);
            self.disk.seen().keep(&self.content);
        }
        if let Bytes::InMemory(bytes) = &mut *bytes {
            change(bytes);
        }
        Ok(())
    }
}

impl DiskFile for LookFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (begin, end) = (offset as usize, offset as usize + bytes.len());
        self.change(|all| {
            all.resize(all.len().max(end), 0);
            all[begin..end].copy_from_slice(bytes);
        })
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let begin = offset as usize;
        match &*locked(&self.content) {
            Bytes::OnDisk(file) => file.read_exact_at(bytes, offset),
            Bytes::InMemory(all) => {
                let from = all.get(begin..begin + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                bytes.copy_from_slice(from);
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.change(|all| all.resize(bytes as usize, 0))
    }

    fn size(&self) -> io::Result<u64> {
        match &*locked(&self.content) {
            Bytes::OnDisk(file) => Ok(file.metadata()?.len()),
            Bytes::InMemory(bytes) => Ok(bytes.len() as u64),
        }
    }
}
