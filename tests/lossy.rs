//! A file system (FUSE) that keeps its promises to the letter and not a byte further, for the real binary to live on.
//!
//! Picture two columns for each file and each folder: what programs see, and what the platter holds. Changes go to the
//! first and are noted; fsync of the file moves its bytes over, fsync of the folder its names. When the power is cut,
//! chance decides, in sectors of 512 bytes and in any order, what of the rest had arrived. A failed fsync is as on
//! Linux: the bytes count as written from then on, and are not.
//!
//! Nothing is cached between a program and this, and every call that changes something is counted. A call that was
//! chosen before fails, or is the moment at which the power goes: then the program is killed before it learns of
//! anything. Not here: whole devices, mmap (the store uses none), renames from one folder into another.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::process::Signal;
use seawall_core::prng::Prng;

use crate::process::send;

const SECTOR_BYTES: usize = 512;
const BLOCK_BYTES: u32 = 4096;
/// Blocks that are said to be free: 4 GiB.
const BLOCKS: u64 = 1 << 20;
const ROOT: u64 = 1;
/// Nothing is remembered by the kernel.
const TTL: Duration = Duration::ZERO;

/// What becomes of the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power is gone in the middle of it.
    Cut,
    /// It fails with EIO. Half of a write has happened, and any part of a sync.
    Io,
    /// It fails with ENOSPC, if it is one that takes room; else the next one that does. Half of a write has happened.
    NoSpace,
}

/// What becomes of that which was not synced when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Chance decides.
    ByChance,
    /// The worst that may be.
    Lost,
}

/// The call that was hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// As the system call is named.
    pub call: &'static str,
    /// Below the mount.
    pub path: String,
}

/// A mounted lossy file system; gone when dropped.
pub struct Lossy {
    world: Arc<Mutex<World>>,
    dir: tempfile::TempDir,
    session: Option<BackgroundSession>,
}

impl Lossy {
    /// `None`, and says so, where the machine mounts none.
    pub fn new(seed: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut lossy = Self { world: Arc::new(Mutex::new(World::new(seed))), dir, session: None };
        match lossy.mount() {
            Ok(()) => Some(lossy),
            Err(error) => {
                eprintln!(
                    "NOT TESTED: this machine mounts no FUSE file system ({error}); what the store does on a disk that \
                     forgets is shown by the simulated disk only (`cargo test -p seawall-store`)"
                );
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Calls that changed something so far.
    pub fn calls(&self) -> u64 {
        self.look().calls
    }

    /// The n-th call from now on (1 is the next) is hit.
    pub fn choose(&self, nth: u64, fault: Fault) {
        let mut world = self.look();
        world.chosen = Some((world.calls + nth, fault));
        world.hit = None;
    }

    /// The call that was hit since the last choice.
    pub fn hit(&self) -> Option<Hit> {
        self.look().hit.clone()
    }

    /// The power goes, if it has not, and comes back: mounted again with what had arrived. Nobody may have files open.
    pub fn power_cycle(&mut self, rest: Rest) {
        self.unmount();
        self.look().power_cycle(rest);
        self.mount().expect("it was mounted before");
    }

    /// The same disk as it is, again: for several ends of one story.
    pub fn image(&self) -> Image {
        Image(self.look().nodes.clone())
    }

    /// Another disk put in. Nobody may have files open.
    pub fn insert(&mut self, image: &Image) {
        self.unmount();
        let mut world = self.look();
        world.nodes = image.0.clone();
        drop(world);
        self.mount().expect("it was mounted before");
    }

    /// Files and their bytes as they are seen, by path below the mount.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let world = self.look();
        let files = world.nodes.iter().filter_map(|(number, node)| match node {
            Node::File(file) if !world.path(*number).is_empty() => Some((world.path(*number), file.seen.clone())),
            _ => None,
        });
        files.collect()
    }

    /// Changes bits of a byte behind everybody's back, as a failing medium does.
    pub fn flip(&self, path: &str, offset: usize, mask: u8) {
        let mut world = self.look();
        let number = *world.nodes.keys().find(|number| world.path(**number) == path).expect("a file");
        let Some(Node::File(file)) = world.nodes.get_mut(&number) else { panic!("`{path}` is no file") };
        file.seen[offset] ^= mask;
        if let Some(byte) = file.safe.get_mut(offset) {
            *byte ^= mask;
        }
    }

    fn look(&self) -> MutexGuard<'_, World> {
        look(&self.world)
    }

    fn mount(&mut self) -> std::io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("lossy".into()), MountOption::NoSuid, MountOption::NoDev];
        self.session = Some(fuser::spawn_mount(Mounted(Arc::clone(&self.world)), self.dir.path(), &config)?);
        Ok(())
    }

    fn unmount(&mut self) {
        let Some(session) = self.session.take() else { return };
        // Lazily: a process that was killed may still be giving its files back.
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
        let _ = session.join();
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        // Not waited for: a test that failed may have left somebody in it.
        if self.session.is_some() {
            let _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
        }
    }
}

/// What a disk holds.
pub struct Image(BTreeMap<u64, Node>);

fn look(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

struct World {
    prng: Prng,
    nodes: BTreeMap<u64, Node>,
    next: u64,
    calls: u64,
    chosen: Option<(u64, Fault)>,
    hit: Option<Hit>,
    is_off: bool,
}

#[derive(Clone)]
enum Node {
    File(File),
    Folder(Folder),
    Socket,
}

#[derive(Clone, Default)]
struct File {
    seen: Vec<u8>,
    safe: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

type Names = BTreeMap<OsString, u64>;

#[derive(Clone, Default)]
struct Folder {
    seen: Names,
    safe: Names,
    /// Each is one step: names, and what they mean then.
    pending: Vec<Vec<(OsString, Option<u64>)>>,
}

/// What a call that changes something is to do.
enum Turn {
    Act,
    /// Act in part, then fail.
    Fail(Errno),
}

impl World {
    fn new(seed: u64) -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::Folder(Folder::default()))]);
        Self { prng: Prng::new(seed), nodes, next: ROOT, calls: 0, chosen: None, hit: None, is_off: false }
    }

    /// Counts a call, and says what it is to do.
    fn turn(&mut self, request: &Request, call: &'static str, node: u64, name: Option<&OsStr>) -> Turn {
        if self.is_off {
            return Turn::Fail(Errno::EIO);
        }
        self.calls += 1;
        let takes_room = matches!(call, "write" | "create" | "mkdir" | "mknod" | "fallocate" | "truncate");
        let is_it = |(at, fault): &mut (u64, Fault)| *at <= self.calls && (takes_room || *fault != Fault::NoSpace);
        let Some((_, fault)) = self.chosen.take_if(is_it) else { return Turn::Act };
        let folder = self.path(node);
        let path = match name {
            Some(name) => format!("{folder}/{}", name.to_string_lossy()).trim_start_matches('/').to_owned(),
            None => folder,
        };
        self.hit = Some(Hit { call, path });
        Turn::Fail(match fault {
            Fault::NoSpace => Errno::ENOSPC,
            Fault::Io => Errno::EIO,
            Fault::Cut => {
                self.is_off = true;
                kill(request.pid());
                Errno::EIO
            }
        })
    }

    fn path(&self, number: u64) -> String {
        let mut names = Vec::new();
        let mut at = number;
        while at != ROOT {
            let above = self.nodes.iter().find_map(|(above, node)| match node {
                Node::Folder(folder) => {
                    folder.seen.iter().find(|(_, it)| **it == at).map(|(name, _)| (*above, name.clone()))
                }
                _ => None,
            });
            let Some((above, name)) = above else { return String::new() };
            names.push(name.to_string_lossy().into_owned());
            at = above;
        }
        names.reverse();
        names.join("/")
    }

    fn folder(&mut self, number: u64) -> Result<&mut Folder, Errno> {
        match self.nodes.get_mut(&number) {
            Some(Node::Folder(folder)) => Ok(folder),
            Some(_) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn file(&mut self, number: u64) -> Result<&mut File, Errno> {
        match self.nodes.get_mut(&number) {
            Some(Node::File(file)) => Ok(file),
            Some(_) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn child(&mut self, folder: u64, name: &OsStr) -> Result<u64, Errno> {
        self.folder(folder)?.seen.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn add(&mut self, folder: u64, name: &OsStr, node: Node) -> Result<u64, Errno> {
        let number = self.next + 1;
        let above = self.folder(folder)?;
        if above.seen.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        above.change(vec![(name.into(), Some(number))]);
        self.nodes.insert(number, node);
        self.next = number;
        Ok(number)
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let node = self.nodes.get(&number).ok_or(Errno::ENOENT)?;
        let (kind, perm, size) = match node {
            Node::File(file) => (FileType::RegularFile, 0o600, file.seen.len() as u64),
            Node::Folder(_) => (FileType::Directory, 0o700, 0),
            Node::Socket => (FileType::Socket, 0o600, 0),
        };
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        })
    }

    /// What had arrived, and nothing else.
    fn power_cycle(&mut self, rest: Rest) {
        let mut found = BTreeMap::new();
        let mut open = BTreeSet::from([ROOT]);
        while let Some(number) = open.pop_first() {
            let after = match &self.nodes[&number] {
                Node::Folder(folder) => {
                    let names = folder.surviving(rest, &mut self.prng);
                    open.extend(names.values());
                    Node::Folder(Folder { seen: names.clone(), safe: names, pending: Vec::new() })
                }
                Node::File(file) => {
                    let bytes = file.surviving(rest, &mut self.prng);
                    Node::File(File { seen: bytes.clone(), safe: bytes, pending: Vec::new() })
                }
                Node::Socket => Node::Socket,
            };
            found.insert(number, after);
        }
        self.nodes = found;
        self.chosen = None;
        self.is_off = false;
    }
}

impl Folder {
    fn change(&mut self, step: Vec<(OsString, Option<u64>)>) {
        apply(&mut self.seen, &step);
        self.pending.push(step);
    }

    fn sync(&mut self) {
        std::mem::take(&mut self.pending).iter().for_each(|step| apply(&mut self.safe, step));
    }

    /// None of the steps had arrived, or all, or the first few, or any.
    fn surviving(&self, rest: Rest, prng: &mut Prng) -> Names {
        let mut names = self.safe.clone();
        if rest == Rest::Lost {
            return names;
        }
        let (mode, first) = (prng.below(4), prng.below(self.pending.len() as u64 + 1) as usize);
        for (at, step) in self.pending.iter().enumerate() {
            let arrived = match mode {
                0 => false,
                1 => true,
                2 => at < first,
                _ => prng.chance(0.5),
            };
            if arrived {
                apply(&mut names, step);
            }
        }
        names
    }
}

fn apply(names: &mut Names, step: &[(OsString, Option<u64>)]) {
    for (name, number) in step {
        match number {
            Some(number) => names.insert(name.clone(), *number),
            None => names.remove(name),
        };
    }
}

impl File {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.seen, offset, bytes);
        self.pending.push(Change::Write { offset, bytes: bytes.into() });
    }

    fn set_len(&mut self, bytes: usize) {
        self.seen.resize(bytes, 0);
        self.pending.push(Change::Length(bytes));
    }

    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Write { offset, bytes } => put(&mut self.safe, offset, &bytes),
                Change::Length(bytes) => self.safe.resize(bytes, 0),
            }
        }
    }

    /// Each sector of each change had arrived or had not.
    fn surviving(&self, rest: Rest, prng: &mut Prng) -> Vec<u8> {
        let mut bytes = self.safe.clone();
        let share = if rest == Rest::Lost { 0.0 } else { [0.0, 0.5, 1.0][prng.below(3) as usize] };
        for change in &self.pending {
            match change {
                Change::Write { offset, bytes: written } => {
                    let mut start = 0;
                    while start < written.len() {
                        let end = (((offset + start) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset).min(written.len());
                        if prng.chance(share) {
                            put(&mut bytes, offset + start, &written[start..end]);
                        }
                        start = end;
                    }
                }
                Change::Length(length) if prng.chance(share) => bytes.resize(*length, 0),
                Change::Length(_) => {}
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    let end = offset + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(written);
}

/// Kills the process of a thread before its call returns. Never the test's own.
fn kill(thread: u32) {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")).and_then(|pid| pid.trim().parse().ok());
    if let Some(process) = process.filter(|&pid: &u32| pid != std::process::id()) {
        send(process, Signal::KILL);
    }
}

/// The world as the kernel asks for it.
struct Mounted(Arc<Mutex<World>>);

impl Mounted {
    fn look(&self) -> MutexGuard<'_, World> {
        look(&self.0)
    }

    /// A call that changes names of a folder: happens whole or not at all.
    fn rename_step<T>(
        &self,
        request: &Request,
        call: &'static str,
        folder: INodeNo,
        name: &OsStr,
        act: impl FnOnce(&mut World) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut world = self.look();
        match world.turn(request, call, folder.0, Some(name)) {
            Turn::Act => act(&mut world),
            Turn::Fail(error) => {
                // The power may go before it or after it.
                if world.is_off && world.prng.chance(0.5) {
                    let _ = act(&mut world);
                }
                Err(error)
            }
        }
    }

    fn resize(&self, request: &Request, call: &'static str, node: INodeNo, bytes: u64) -> Result<(), Errno> {
        let mut world = self.look();
        match world.turn(request, call, node.0, None) {
            Turn::Act => world.file(node.0).map(|file| file.set_len(bytes as usize)),
            Turn::Fail(error) => Err(error),
        }
    }

    fn sync_node(&self, request: &Request, node: INodeNo) -> Result<(), Errno> {
        let mut world = self.look();
        let turn = world.turn(request, "fsync", node.0, None);
        let mut prng = world.prng.fork();
        let is_off = world.is_off;
        let Turn::Fail(error) = turn else {
            match world.nodes.get_mut(&node.0).ok_or(Errno::ENOENT)? {
                Node::File(file) => file.sync(),
                Node::Folder(folder) => folder.sync(),
                Node::Socket => {}
            }
            return Ok(());
        };
        if !is_off {
            match world.nodes.get_mut(&node.0) {
                Some(Node::File(file)) => {
                    file.safe = file.surviving(Rest::ByChance, &mut prng);
                    file.pending.clear();
                }
                // Names are in the file system's own journal: one that cannot be written ends the mount, and forgets
                // nothing.
                Some(Node::Folder(_) | Node::Socket) | None => {}
            }
        }
        Err(error)
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut world = self.look();
        match world.child(parent.0, name).and_then(|number| world.attributes(number)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.look().attributes(node.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = size.map_or(Ok(()), |size| self.resize(request, "truncate", node, size));
        match resized.and_then(|()| self.look().attributes(node.0)) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.rename_step(request, "mknod", parent, name, |world| {
            let number = world.add(parent.0, name, Node::Socket)?;
            world.attributes(number)
        });
        match made {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.rename_step(request, "mkdir", parent, name, |world| {
            let number = world.add(parent.0, name, Node::Folder(Folder::default()))?;
            world.attributes(number)
        });
        match made {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = self.rename_step(request, "unlink", parent, name, |world| {
            world.child(parent.0, name)?;
            world.folder(parent.0).map(|folder| folder.change(vec![(name.into(), None)]))
        });
        answer(gone, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.unlink(request, parent, name, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.rename_step(request, "rename", parent, new_name, |world| {
            if parent != new_parent {
                return Err(Errno::EXDEV);
            }
            let number = world.child(parent.0, name)?;
            let step = vec![(name.into(), None), (new_name.into(), Some(number))];
            world.folder(parent.0).map(|folder| folder.change(step))
        });
        answer(renamed, reply);
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.rename_step(request, "create", parent, name, |world| {
            let number = world.add(parent.0, name, Node::File(File::default()))?;
            world.attributes(number)
        });
        match made {
            Ok(attributes) => {
                reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut world = self.look();
        if world.is_off {
            return reply.error(Errno::EIO);
        }
        match world.file(node.0) {
            Ok(file) => {
                let start = (offset as usize).min(file.seen.len());
                let end = (start + size as usize).min(file.seen.len());
                reply.data(&file.seen[start..end]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut world = self.look();
        let turn = world.turn(request, "write", node.0, None);
        match (turn, world.file(node.0)) {
            (_, Err(error)) => reply.error(error),
            (Turn::Act, Ok(file)) => {
                file.write(offset as usize, data);
                reply.written(data.len() as u32);
            }
            (Turn::Fail(error), Ok(file)) => {
                file.write(offset as usize, &data[..data.len() / 2]);
                reply.error(error);
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, request: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.sync_node(request, node), reply);
    }

    fn fsyncdir(&self, request: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.sync_node(request, node), reply);
    }

    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut world = self.look();
        let names = match world.folder(node.0) {
            Ok(folder) => folder.seen.clone(),
            Err(error) => return reply.error(error),
        };
        let own = [(OsString::from("."), node.0), (OsString::from(".."), ROOT)];
        for (at, (name, number)) in own.into_iter().chain(names).enumerate().skip(offset as usize) {
            let kind = world.attributes(number).map_or(FileType::RegularFile, |it| it.kind);
            if reply.add(INodeNo(number), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn fallocate(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        answer(self.resize(request, "fallocate", node, offset + length), reply);
    }
}

fn answer(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}
