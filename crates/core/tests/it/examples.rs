//! Every example runs, and asserts what it shows.

#[path = "../../examples/async-client.rs"]
mod async_client;
#[path = "../../examples/sync-client.rs"]
mod sync_client;
#[path = "../../examples/tower-layer.rs"]
mod tower_layer;

#[test]
fn a_synchronous_client() {
    sync_client::main().expect("loopback works");
}

#[test]
fn an_asynchronous_client() {
    async_client::main().expect("loopback works");
}

#[test]
fn a_tower_layer() {
    tower_layer::main();
}
