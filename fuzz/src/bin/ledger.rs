//! The ledger under any log: no event makes it panic, what it refuses changes nothing, replay gives the same books, and
//! its equations hold.
#![no_main]

use seawall_core::ledger::{Event, Ledger};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut ledger = Ledger::new("n").expect("a name");
    let mut log = Vec::new();
    let mut rest = data;
    while let Some((&length, bytes)) = rest.split_first() {
        let (event, after) = bytes.split_at(usize::from(length).min(bytes.len()));
        rest = after;
        let Ok(event) = Event::decode(event) else { continue };
        let before = ledger.summary();
        match ledger.apply(&event) {
            Ok(_) => log.push(event),
            Err(_) => assert_eq!(ledger.summary(), before, "a refused event changed the books: {event:?}"),
        }
    }
    let mut again = Ledger::new("n").expect("a name");
    for event in &log {
        let _ = again.apply(event);
    }
    let summary = ledger.summary();
    assert_eq!(again.summary(), summary);
    for stream in &summary.streams {
        let tally = ledger.tally(&stream.stream, stream.epoch).expect("it is in the summary");
        assert_eq!(tally.residue, 0, "{stream:?}");
    }
});
