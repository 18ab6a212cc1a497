//! The engines on one machine play the conformance suite: on the simulated disk, which forgets what was not synced, and
//! on the machine's own.

use std::path::Path;

use seawall_store::{Disk, RealDisk, SimDisk, Store};

use crate::conformance::{SceneClock, options, plays};
use crate::with;

/// Plays everything, each play on a disk of its own, which `lose` makes of the one before at the end of every scene.
fn play_all<D: Disk>(mut disk_for: impl FnMut(usize) -> D, mut lose: impl FnMut(D) -> D, dir: &Path) {
    for (number, play) in plays().into_iter().enumerate() {
        let (mut disk, clock) = (disk_for(number), SceneClock::default());
        let dir = dir.join(number.to_string());
        for (act, scene) in play.scenes.into_iter().enumerate() {
            println!("{}, scene {act}", play.name);
            let opened = Store::open(disk.clone(), options(&dir, "a"), clock.clone(), || [7; 32]).expect("opens");
            with(opened, async |store| scene(&store.spool, &clock).await);
            disk = lose(disk);
        }
    }
}

#[test]
fn the_embedded_engine_in_memory_conforms() {
    play_all(|number| SimDisk::new(number as u64), |disk| disk.crash(), Path::new("data"));
}

#[test]
fn the_embedded_engine_on_the_disk_conforms() {
    let dir = tempfile::tempdir().expect("a folder");
    play_all(|_| RealDisk, |disk| disk, dir.path());
}
