//! The PROXY protocol: whatever comes, it does not panic, takes no more than the announcement, and what it understands
//! it understands in the same way when it is announced again.
#![no_main]

use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use seawall_core::policy::Announce;
use seawall_gateway::announce::{read, write};

/// The longest there is: the fixed part, and four KiB.
const ANNOUNCEMENT_MAX: usize = 16 + (4 << 10);

/// What it says, if it is one, and how many bytes it took.
fn heard(input: &[u8]) -> (Option<Option<SocketAddr>>, usize) {
    let mut rest = input;
    let polled = pin!(read(&mut rest)).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(heard) = polled else { panic!("bytes in memory are there") };
    (heard.ok(), input.len() - rest.len())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (first, taken) = heard(data);
    assert!(taken <= ANNOUNCEMENT_MAX, "{taken} bytes");
    let Some(source) = first else { return };
    assert_eq!(heard(&data[..taken]), (Some(source), taken), "what comes after makes a difference");
    let Some(source) = source else { return };
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    let here: SocketAddr = if source.is_ipv4() { ([10, 0, 0, 1], 80).into() } else { ([1; 8], 80).into() };
    for announce in [Announce::Line, Announce::Frame] {
        let again = write(announce, source, here);
        let (told, taken) = heard(&again);
        let told = told.flatten().map(|told| (told.ip().to_canonical(), told.port()));
        assert_eq!((told, taken), (Some((source.ip(), source.port())), again.len()), "{announce:?}");
    }
});
