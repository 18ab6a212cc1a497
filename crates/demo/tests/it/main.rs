//! The company's processes over real sockets, and whole runs of the company before Seawall through the example binary.
//! Runs behind Seawall are tested where the `seawall` binary is built.

mod runs;
mod servers;
mod workers;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use seawall_demo::company::free_ports;
use seawall_demo::web::{Ask, Client, Got};
use tokio::task::JoinSet;

/// Servers run for as long as this lives.
type Servers = JoinSet<anyhow::Result<()>>;

/// Each address for one server of one test: the tests run in one process, so nobody is given one twice.
fn address() -> SocketAddr {
    use std::sync::Mutex;
    static FREE: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut free = FREE.lock().unwrap();
    if free.is_empty() {
        *free = free_ports(64).unwrap();
    }
    SocketAddr::from((Ipv4Addr::LOCALHOST, free.pop().expect("64 servers are enough for all tests")))
}

async fn ask(to: SocketAddr, ask: Ask) -> Got {
    Client::default().send(&to.to_string(), &ask).await.expect("an answer")
}

/// Asks until the answer is as wished; a deadline tells what never came.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let trying = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), trying).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

async fn up(server: SocketAddr) {
    let client = Client::default();
    let host = server.to_string();
    until("the server", || async { client.send(&host, &Ask::get("/healthz")).await.ok() }).await;
}
