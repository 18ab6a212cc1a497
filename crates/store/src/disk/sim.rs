//! A disk in memory that behaves as badly as real ones may: what was not synced may be lost or torn at a crash, names
//! whose folder was not synced may be forgotten, space runs out, and the n-th call fails. All of it by a seed.
//!
//! Picture two columns: what the program sees, and what the platter holds. Writes go to the first and are noted as
//! pending; a sync moves them over. A crash lets chance decide, in sectors of 512 bytes, which pending writes had
//! arrived, and for names how many of a folder's changes, in order, had.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use seawall_core::prng::Prng;

use super::{Disk, DiskFile, LockError};
use crate::spool::lock;

const SECTOR_BYTES: usize = 512;

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<World>>);

/// A planned failure of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with EIO; half of a write has happened, and of a sync what chance says, the rest never will.
    Io,
    /// The call fails for want of space; it has happened as with [`Self::Io`].
    NoSpace,
    /// The power is gone: this call and all later ones fail. What survives is [`SimDisk::crash`]'s to tell.
    PowerCut,
}

#[derive(Debug)]
struct World {
    prng: Prng,
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    safe_names: BTreeMap<PathBuf, u64>,
    name_changes: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    next_inode: u64,
    capacity_bytes: u64,
    calls: u64,
    faults: BTreeMap<u64, Fault>,
    power_cut: bool,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    safe: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum Pending {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Debug)]
struct NameChange {
    dir: PathBuf,
    set: Vec<(PathBuf, Option<u64>)>,
}

/// One of its files.
#[derive(Debug)]
pub struct SimFile {
    world: Arc<Mutex<World>>,
    inode: u64,
}

/// A lock of a simulated disk.
#[derive(Debug)]
pub struct SimLock {
    world: Arc<Mutex<World>>,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        lock(&self.world).locks.remove(&self.path);
    }
}

impl SimDisk {
    /// Empty and without bounds.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(World {
            prng: Prng::new(seed),
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
            name_changes: Vec::new(),
            dirs: BTreeSet::new(),
            locks: BTreeSet::new(),
            next_inode: 0,
            capacity_bytes: u64::MAX,
            calls: 0,
            faults: BTreeMap::new(),
            power_cut: false,
        })))
    }

    /// From now on files may take so many bytes in all.
    pub fn set_capacity(&self, bytes: u64) {
        lock(&self.0).capacity_bytes = bytes;
    }

    /// Bytes all files take.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        lock(&self.0).used_bytes()
    }

    /// Calls that change something so far: writes, syncs, names.
    #[must_use]
    pub fn calls(&self) -> u64 {
        lock(&self.0).calls
    }

    /// Lets the n-th changing call from now on (1 is the next) fail.
    pub fn fail_call(&self, nth: u64, fault: Fault) {
        let mut world = lock(&self.0);
        let at = world.calls + nth;
        world.faults.insert(at, fault);
    }

    /// Nothing that was planned fails any more.
    pub fn forget_faults(&self) {
        lock(&self.0).faults.clear();
    }

    /// A backup, as one that is taken of a machine that is off: what was synced. This one goes on.
    #[must_use]
    pub fn backup(&self) -> Self {
        let was_cut = lock(&self.0).power_cut;
        let copy = self.crash();
        lock(&self.0).power_cut = was_cut;
        copy
    }

    /// The power is gone and comes back: the disk as the next boot finds it. This one fails every call from now on.
    #[must_use]
    pub fn crash(&self) -> Self {
        let mut world = lock(&self.0);
        world.power_cut = true;
        let seed = world.prng.next_u64();
        let mut prng = world.prng.fork();
        let names = world.surviving_names(&mut prng);
        let next = Self::new(seed);
        {
            let mut after = lock(&next.0);
            for number in names.values() {
                let bytes = world.inodes[number].surviving(&mut prng);
                after.inodes.insert(*number, Inode { seen: bytes.clone(), safe: bytes, pending: Vec::new() });
            }
            after.safe_names.clone_from(&names);
            after.names = names;
            after.dirs.clone_from(&world.dirs);
            after.next_inode = world.next_inode;
            after.capacity_bytes = world.capacity_bytes;
        }
        next
    }

    /// Changes bytes of a file behind everybody's back, as a failing medium does.
    ///
    /// # Panics
    /// If there is no such file or it is shorter.
    pub fn corrupt(&self, path: &Path, offset: usize, mask: u8) {
        let mut world = lock(&self.0);
        let inode = world.inode_at(path).expect("a file to corrupt");
        inode.seen[offset] ^= mask;
        if let Some(byte) = inode.safe.get_mut(offset) {
            *byte ^= mask;
        }
    }

    fn change<T>(&self, act: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let mut world = lock(&self.0);
        match world.next_call()? {
            Some(fault) => Err(fault.error()),
            None => act(&mut world),
        }
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Io | Self::PowerCut => io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()),
            Self::NoSpace => no_space(),
        }
    }
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

impl World {
    /// Counts a call that changes something, and says whether it is to fail.
    fn next_call(&mut self) -> io::Result<Option<Fault>> {
        self.check_power()?;
        self.calls += 1;
        let fault = self.faults.remove(&self.calls);
        self.power_cut |= fault == Some(Fault::PowerCut);
        Ok(fault)
    }

    fn check_power(&self) -> io::Result<()> {
        if self.power_cut { Err(Fault::PowerCut.error()) } else { Ok(()) }
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|number| self.inodes[number].seen.len() as u64).sum()
    }

    fn inode_at(&mut self, path: &Path) -> io::Result<&mut Inode> {
        let number = *self.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(self.inodes.get_mut(&number).expect("a name has an inode"))
    }

    fn rename_all(&mut self, dir: &Path, set: Vec<(PathBuf, Option<u64>)>) {
        for (path, number) in &set {
            match number {
                Some(number) => self.names.insert(path.clone(), *number),
                None => self.names.remove(path),
            };
        }
        self.name_changes.push(NameChange { dir: dir.into(), set });
    }

    fn sync_dir(&mut self, dir: &Path) {
        let (done, left) = std::mem::take(&mut self.name_changes).into_iter().partition(|change| change.dir == dir);
        self.name_changes = left;
        apply_names(&mut self.safe_names, &done);
    }

    /// Of each folder's pending changes, the first few had reached the disk.
    fn surviving_names(&self, prng: &mut Prng) -> BTreeMap<PathBuf, u64> {
        let mut names = self.safe_names.clone();
        let dirs: BTreeSet<&PathBuf> = self.name_changes.iter().map(|change| &change.dir).collect();
        for dir in dirs {
            let changes: Vec<NameChange> =
                self.name_changes.iter().filter(|change| change.dir == *dir).cloned().collect();
            let kept = prng.below(changes.len() as u64 + 1) as usize;
            apply_names(&mut names, &changes[..kept]);
        }
        names
    }
}

fn apply_names(names: &mut BTreeMap<PathBuf, u64>, changes: &[NameChange]) {
    for (path, number) in changes.iter().flat_map(|change| &change.set) {
        match number {
            Some(number) => names.insert(path.clone(), *number),
            None => names.remove(path),
        };
    }
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        write_into(&mut self.seen, offset, bytes);
        self.pending.push(Pending::Write { offset, bytes: bytes.into() });
    }

    fn set_len(&mut self, bytes: usize) {
        self.seen.resize(bytes, 0);
        self.pending.push(Pending::Length(bytes));
    }

    fn sync(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Write { offset, bytes } => write_into(&mut self.safe, offset, &bytes),
                Pending::Length(bytes) => self.safe.resize(bytes, 0),
            }
        }
    }

    /// What the platter did not take is forgotten: it still reads well, and no later sync writes it.
    fn fail_sync(&mut self, prng: &mut Prng) {
        self.safe = self.surviving(prng);
        self.pending.clear();
    }

    /// Each sector of each pending write arrived or did not, in any order.
    fn surviving(&self, prng: &mut Prng) -> Vec<u8> {
        let mut bytes = self.safe.clone();
        let share = [0.0, 0.5, 1.0][prng.below(3) as usize];
        for pending in &self.pending {
            match pending {
                Pending::Write { offset, bytes: written } => {
                    for (start, end) in sectors(*offset, written.len()) {
                        if prng.chance(share) {
                            write_into(&mut bytes, offset + start, &written[start..end]);
                        }
                    }
                }
                Pending::Length(length) if prng.chance(share) => bytes.resize(*length, 0),
                Pending::Length(_) => {}
            }
        }
        bytes
    }
}

/// The parts of a write that lie in different sectors, as ranges of the written bytes.
fn sectors(offset: usize, length: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= length {
            return None;
        }
        let end = ((offset + start) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset;
        let part = (start, end.min(length));
        start = end;
        Some(part)
    })
}

fn write_into(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    let end = offset + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(written);
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new(""))
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.change(|world| {
            world.dirs.extend(path.ancestors().map(Path::to_path_buf));
            Ok(())
        })
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<SimFile> {
        let inode = self.change(|world| {
            if world.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if !world.dirs.contains(dir_of(path)) {
                return Err(not_found(dir_of(path)));
            }
            if world.used_bytes().saturating_add(bytes) > world.capacity_bytes {
                return Err(no_space());
            }
            let number = world.next_inode;
            world.next_inode += 1;
            let mut inode = Inode::default();
            inode.set_len(usize::try_from(bytes).map_err(|_| no_space())?);
            world.inodes.insert(number, inode);
            world.rename_all(dir_of(path), vec![(path.into(), Some(number))]);
            Ok(number)
        })?;
        Ok(SimFile { world: Arc::clone(&self.0), inode })
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let world = lock(&self.0);
        world.check_power()?;
        let inode = *world.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(SimFile { world: Arc::clone(&self.0), inode })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut world = lock(&self.0);
        world.check_power()?;
        Ok(world.inode_at(path)?.seen.clone())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = lock(&self.0);
        world.check_power()?;
        if !world.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let files = world.names.keys().chain(&world.dirs).filter(|path| path.parent() == Some(dir));
        let names: BTreeSet<String> =
            files.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
        Ok(names.into_iter().collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|world| {
            world.inode_at(path)?;
            world.rename_all(dir_of(path), vec![(path.into(), None)]);
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|world| {
            let number = *world.names.get(from).ok_or_else(|| not_found(from))?;
            world.rename_all(dir_of(to), vec![(from.into(), None), (to.into(), Some(number))]);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(|world| {
            world.sync_dir(dir);
            Ok(())
        })
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let world = lock(&self.0);
        Ok(world.capacity_bytes.saturating_sub(world.used_bytes()))
    }

    fn lock(&self, path: &Path) -> Result<SimLock, LockError> {
        if !lock(&self.0).locks.insert(path.into()) {
            return Err(LockError::Held { pid: 1 });
        }
        Ok(SimLock { world: Arc::clone(&self.0), path: path.into() })
    }
}

impl SimFile {
    fn change<T>(&self, act: impl FnOnce(&mut Inode, Option<Fault>) -> T) -> io::Result<T> {
        let mut world = lock(&self.world);
        let fault = world.next_call()?;
        let done = act(world.inodes.get_mut(&self.inode).expect("an open file has an inode"), fault);
        fault.map_or(Ok(done), |fault| Err(fault.error()))
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(|inode, fault| {
            let written = if fault.is_some() { bytes.len() / 2 } else { bytes.len() };
            inode.write(offset as usize, &bytes[..written]);
        })
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let world = lock(&self.world);
        world.check_power()?;
        let seen = &world.inodes[&self.inode].seen;
        let start = offset as usize;
        let found = seen.get(start..start + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = lock(&self.world);
        let fault = world.next_call()?;
        let mut prng = Prng::new(world.calls);
        let inode = world.inodes.get_mut(&self.inode).expect("an open file has an inode");
        match fault {
            None => inode.sync(),
            Some(Fault::PowerCut) => {}
            Some(Fault::Io | Fault::NoSpace) => inode.fail_sync(&mut prng),
        }
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut world = lock(&self.world);
        if let Some(fault) = world.next_call()? {
            return Err(fault.error());
        }
        let now = world.inodes[&self.inode].seen.len() as u64;
        if world.used_bytes().saturating_add(bytes.saturating_sub(now)) > world.capacity_bytes {
            return Err(no_space());
        }
        world.inodes.get_mut(&self.inode).expect("an open file has an inode").set_len(bytes as usize);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.world).inodes[&self.inode].seen.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (SimDisk, PathBuf) {
        let disk = SimDisk::new(1);
        disk.create_dir_all(Path::new("a/b")).unwrap();
        (disk, PathBuf::from("a/b/file"))
    }

    #[test]
    fn what_was_synced_survives_and_what_was_not_may_be_torn() {
        let mut torn = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            disk.create_dir_all(Path::new("d")).unwrap();
            let path = Path::new("d/file");
            let file = disk.create(path, 4096).unwrap();
            file.write_at(&[1; 1000], 0).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("d")).unwrap();
            file.write_at(&[2; 2000], 1000).unwrap();
            let after = disk.crash().read(path).unwrap();
            assert_eq!(after[..1000], [1; 1000]);
            let kept = after[1000..3000].iter().filter(|&&byte| byte == 2).count();
            torn += usize::from(kept > 0 && kept < 2000);
            assert!(disk.read(path).is_err(), "the old machine is gone");
        }
        assert!(torn > 5, "{torn}");
    }

    #[test]
    fn a_name_without_a_synced_folder_may_be_forgotten() {
        let forgotten = (0..50).filter(|&seed| {
            let disk = SimDisk::new(seed);
            disk.create_dir_all(Path::new("d")).unwrap();
            disk.create(Path::new("d/file"), 10).unwrap().sync_data().unwrap();
            disk.crash().read(Path::new("d/file")).is_err()
        });
        assert!((5..45).contains(&forgotten.count()));
    }

    #[test]
    fn it_says_no_as_files_do() {
        let (disk, path) = disk();
        let file = disk.create(&path, 100).unwrap();
        assert_eq!(file.size().unwrap(), 100);
        assert_eq!(disk.create(&path, 1).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(disk.create(Path::new("x/y"), 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(disk.open(Path::new("a/b/none")).is_err());
        assert!(disk.rename(Path::new("a/b/none"), &path).is_err());
        assert!(disk.remove(Path::new("a/b/none")).is_err());
        assert!(disk.list(Path::new("x")).is_err());
        assert_eq!(disk.list(Path::new("a")).unwrap(), ["b"]);
        disk.set_capacity(150);
        assert_eq!(disk.free_bytes(&path).unwrap(), 50);
        assert_eq!(file.set_len(200).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.fail_call(1, Fault::Io);
        assert!(file.set_len(120).is_err());
        let held = disk.lock(&path).unwrap();
        assert!(matches!(disk.lock(&path), Err(LockError::Held { .. })));
        drop(held);
        assert!(disk.lock(&path).is_ok());
    }
}
