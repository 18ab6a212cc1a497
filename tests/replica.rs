//! The replicated engine against real NATS servers.

use std::path::Path;
use std::time::Duration;

use seawall_store::{Inherited, Opened, RealDisk, Replica, ReplicaOptions, Spool, Store, StoreOptions, is_new};

use crate::conformance::{SceneClock, options, plays};
use crate::house::PATIENCE;
use crate::nats::{Cluster, Sync};

fn replica(cluster: &Cluster, node: &str) -> ReplicaOptions {
    let copies = cluster.servers.len();
    ReplicaOptions { servers: cluster.urls(), copies, node: node.into(), login: None, ca_file: None }
}

/// Opens a directory as a node with a replica does: a new one takes over what the stream holds.
async fn open(options: StoreOptions, replica: &ReplicaOptions, clock: &SceneClock, secret: u8) -> Opened<RealDisk> {
    let (dir, secret) = (options.dir.clone(), [secret; 32]);
    if !is_new(&RealDisk, &dir).expect("a folder") {
        return Store::open(RealDisk, options, clock.clone(), || secret).expect("opens");
    }
    let inherited = Inherited::look(replica.clone(), None, false).await.expect("the stream can be read");
    inherited.begin(&RealDisk, &dir).expect("a folder");
    let options = StoreOptions { epoch_min: inherited.epoch() + 1, ..options };
    let mut opened = Store::open(RealDisk, options, clock.clone(), || secret).expect("opens");
    inherited.take_over(&mut opened, &RealDisk, &dir).await.expect("it takes over");
    opened
}

/// Until the replica has it all, whatever happens on the way.
async fn settle(spool: &Spool) {
    let done = async {
        while let Err(error) = spool.all_replicated().await {
            println!("not yet: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.expect("the replica has it all");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Every scene begins with an empty directory.
fn conforms(cluster: &Cluster, dir: &Path) {
    for (number, play) in plays().into_iter().enumerate() {
        let (node, clock) = (format!("node-{number}"), SceneClock::default());
        for (act, scene) in play.scenes.into_iter().enumerate() {
            println!("{}, scene {act}", play.name);
            let dir = dir.join(format!("{node}-{act}"));
            runtime().block_on(async {
                let replica = replica(cluster, &node);
                let opened = open(options(&dir, &node), &replica, &clock, act as u8 + 1).await;
                let threads = opened.engine.spawn_threads().expect("threads");
                let kept = Replica::keep(&opened.store, replica, None, false, clock.clone()).expect("a thread");
                scene(&opened.store.spool, &clock).await;
                settle(&opened.store.spool).await;
                kept.stop();
                opened.store.close().await;
                threads.join();
            });
        }
    }
}

#[test]
fn the_replicated_engine_conforms() {
    let cluster = Cluster::start(3, Sync::Always);
    let dir = tempfile::tempdir().expect("a folder");
    conforms(&cluster, dir.path());
}
