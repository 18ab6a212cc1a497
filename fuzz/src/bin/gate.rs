//! The request gate: whatever comes, in whatever pieces, it does not panic, the pieces make no difference, and what it
//! lets pass it lets pass again unchanged, so that nobody behind it can read it in another way than it was read here.
#![no_main]

use seawall_gateway::http::gate::{Gate, GateLimits, Phase, VERDICT_HEADER, Verdict};

const LIMITS: GateLimits = GateLimits { head_bytes_max: 512, headers_max: 16, body_bytes_max: 1_000 };

fn through(input: &[u8], piece: usize) -> (Vec<u8>, Option<Verdict>) {
    let (mut gate, mut out) = (Gate::new(LIMITS), Vec::new());
    let mut broken = input.chunks(piece).find_map(|bytes| gate.feed(bytes, &mut out).err());
    // As if no upgrade that is asked for came about.
    while broken.is_none() && gate.phase() == Phase::Held {
        broken = gate.release(&mut out).err();
    }
    (out, broken)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&piece, input)) = data.split_first() else { return };
    let whole = through(input, usize::MAX);
    assert_eq!(through(input, usize::from(piece).max(1)), whole, "pieces make a difference");
    let (passed, broken) = whole;
    // A refusal is told in a head of our own, with a header that no client may send.
    if broken.is_none() && !passed.windows(VERDICT_HEADER.len()).any(|bytes| bytes == VERDICT_HEADER.as_bytes()) {
        assert_eq!(through(&passed, usize::MAX), (passed.clone(), None), "what passed does not pass again");
    }
});
