//! Places through faults where it takes long: on real sockets, by a clock that jumps.

use std::io::Write as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use seawall_core::time::Wall;
use seawall_gateway::Clock;
use seawall_gateway::fault::{CONNECTIONS_MAX, FaultProxies, Opening};
use seawall_gateway::net::Net;
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout};

fn proxies(half_close: bool) -> FaultProxies {
    let clock = Clock::new(Instant::now(), Arc::new(|| Wall::from_millis(0)));
    FaultProxies::new(Net::Real, clock, 1, half_close, CONNECTIONS_MAX)
}

async fn open(proxies: &FaultProxies, upstream: SocketAddr) -> SocketAddr {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (name, target) = ("p".to_owned(), Ok((upstream.ip().to_string(), upstream.port())));
    let upstream = upstream.to_string();
    proxies.open(Opening { name, listen, upstream, target, half_close: None, faults: Vec::new() }).await.unwrap()
}

/// Nobody takes from its queue, which is full: a call to it is not answered.
fn full() -> (Socket, SocketAddr, Vec<TcpStream>) {
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let fill = |_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let queued: Vec<_> = (0..8).map_while(fill).collect();
    assert!(queued.len() < 8, "the queue never fills");
    (full, address, queued)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_ended_its_side_is_called_for_a_while_and_no_longer() {
    let upstream = full();
    for (half_close, words) in [(false, &b"words"[..]), (true, b"words"), (true, b"")] {
        let proxies = proxies(half_close);
        let listen = open(&proxies, upstream.1).await;
        let mut client = TcpStream::connect(listen).unwrap();
        client.write_all(words).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = tokio::net::TcpStream::from_std(client).unwrap();
        let begin = Instant::now();
        // The kernel alone would give up after two minutes.
        let read = timeout(Duration::from_secs(60), client.read(&mut [0; 1])).await.expect("it is given up");
        assert!(begin.elapsed() >= Duration::from_secs(15), "{:?}", begin.elapsed());
        assert!(matches!(read, Ok(0)), "{read:?}");
        proxies.close("p").await;
    }
}
