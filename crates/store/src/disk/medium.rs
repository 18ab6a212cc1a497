//! What a directory lies on, and whether "synced" can mean there what we promise.
//!
//! How it is told: by the type that statfs(2) gives for the directory, and by the options of the mount it is under in
//! `/proc/self/mountinfo`. What a disk's own cache does, or a hypervisor's, cannot be told from here.

use std::path::{Path, PathBuf};

/// Why a sync may not be worth what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The file system or the option.
    pub what: String,
    /// What follows from it.
    pub why: &'static str,
}

const MEMORY: &str = "what is kept here is gone with the machine's next restart";
const SERVER: &str = "whether a sync reaches a disk is decided by another machine, or by another program";
const OFF: &str = "the mount says that syncs need not reach the disk";

/// Types of file systems, as statfs(2) and the kernel's `magic.h` number them.
const KINDS: [(u64, &str, &str); 9] = [
    (0x0102_1994, "tmpfs", MEMORY),
    (0x8584_58f6, "ramfs", MEMORY),
    (0x0000_6969, "nfs", SERVER),
    (0xff53_4d42, "cifs", SERVER),
    (0xfe53_4d42, "smb2", SERVER),
    (0x0102_1997, "9p", SERVER),
    (0x6573_5546, "fuse", SERVER),
    (0x786f_4256, "vboxsf", SERVER),
    (0x00c3_6400, "ceph", SERVER),
];

/// Options that make a sync do less than it says.
const OPTIONS: [&str; 4] = ["nobarrier", "barrier=0", "volatile", "fsync_mode=nobarrier"];

/// What makes us doubt a directory, or the nearest one above it that exists.
#[must_use]
pub fn doubts(dir: &Path) -> Vec<Doubt> {
    let Some(dir) = dir.ancestors().find_map(|dir| std::fs::canonicalize(nonempty(dir)).ok()) else {
        return Vec::new();
    };
    let kind = rustix::fs::statfs(&dir).ok().and_then(|stat| doubt_of_kind(u64::from(stat.f_type as u32)));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    kind.into_iter().chain(doubt_of_mount(&mounts, &dir)).chain(doubt_of_preload()).collect()
}

fn nonempty(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

fn doubt_of_kind(kind: u64) -> Option<Doubt> {
    let (_, what, why) = KINDS.into_iter().find(|(known, ..)| *known == kind)?;
    Some(Doubt { what: what.into(), why })
}

/// The mount a directory is under is the last one with the longest path above it.
fn doubt_of_mount(mounts: &str, dir: &Path) -> Option<Doubt> {
    let mut found: Option<(PathBuf, Vec<&str>)> = None;
    for line in mounts.lines() {
        let Some((mount, super_block)) = line.split_once(" - ") else { continue };
        let mut fields = mount.split(' ').skip(4);
        let (Some(at), Some(options)) = (fields.next(), fields.next()) else { continue };
        let at = PathBuf::from(at.replace("\\040", " "));
        let is_nearer = found.as_ref().is_none_or(|(nearest, _)| at.as_os_str().len() >= nearest.as_os_str().len());
        if dir.starts_with(&at) && is_nearer {
            let of_block = super_block.split(' ').nth(2).unwrap_or_default();
            found = Some((at, options.split(',').chain(of_block.split(',')).collect()));
        }
    }
    let (at, options) = found?;
    let option = options.into_iter().find(|option| OPTIONS.contains(option))?;
    Some(Doubt { what: format!("`{option}` of the mount `{}`", at.display()), why: OFF })
}

/// A library that makes every sync do nothing, for tests of other programs.
fn doubt_of_preload() -> Option<Doubt> {
    let loaded = std::env::var("LD_PRELOAD").unwrap_or_default();
    let why = "it makes every sync do nothing";
    loaded.contains("eatmydata").then(|| Doubt { what: "`libeatmydata` in LD_PRELOAD".into(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_servers_are_known_by_their_type() {
        assert_eq!(doubt_of_kind(0x0102_1994), Some(Doubt { what: "tmpfs".into(), why: MEMORY }));
        assert_eq!(doubt_of_kind(0xff53_4d42).unwrap().why, SERVER);
        assert_eq!(doubt_of_kind(0xef53), None, "ext4");
        let in_memory = doubts(Path::new("/dev/shm/not/made/yet"));
        assert!(
            in_memory.iter().any(|doubt| doubt.what == "tmpfs") || !Path::new("/dev/shm").is_dir(),
            "{in_memory:?}"
        );
    }

    #[test]
    fn the_nearest_mount_counts() {
        let mounts = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
                      40 22 0:30 / /data rw - overlay overlay rw,lowerdir=/a,volatile\n\
                      41 40 254:1 / /data/my\\040disk rw - ext4 /dev/vdb rw,barrier=1\n\
                      garbage\n\
                      50 22 254:2 / /fast rw,nobarrier - xfs /dev/vdc rw\n";
        let of = |dir: &str| doubt_of_mount(mounts, Path::new(dir)).map(|doubt| doubt.what);
        assert_eq!(of("/var/lib"), None);
        assert_eq!(of("/data/spool").as_deref(), Some("`volatile` of the mount `/data`"));
        assert_eq!(of("/data/my disk/spool"), None);
        assert_eq!(of("/fast/x").as_deref(), Some("`nobarrier` of the mount `/fast`"));
        assert_eq!(of("/fastest/x"), None, "another folder");
    }
}
