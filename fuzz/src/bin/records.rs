//! What is read back from disks and sinks: any bytes are an error or exactly one value, which is written as it was
//! read.
#![no_main]

use seawall_core::journal::Entry;
use seawall_core::journal::chain::{ChainKey, Ends, Verifier};
use seawall_core::ledger::{Event, RecordRef, Stamp};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else { return };
    match kind % 5 {
        0 => {
            if let Ok(event) = Event::decode(bytes) {
                assert_eq!(event.encode(), bytes);
            }
        }
        1 => {
            if let Ok(entry) = Entry::decode(bytes) {
                let mut again = Vec::new();
                entry.encode(&mut again);
                assert_eq!(Entry::decode(&again).as_ref(), Ok(&entry));
            }
        }
        2 => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(stamp) = text.parse::<Stamp>() {
                assert_eq!(stamp.to_string().parse::<Stamp>().as_ref(), Ok(&stamp));
            }
        }
        3 => {
            let mut verifier = Verifier::new(ChainKey::new(&[7; 32]), None);
            bytes.split(|&byte| byte == b'\n').for_each(|entry| verifier.take(entry));
            let found = verifier.finish(Ends::default());
            // Nobody makes a tag without the key.
            assert!(found.linked <= found.breaks_total);
        }
        _ => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(record) = text.parse::<RecordRef>() {
                assert_eq!(record.to_string(), text);
            }
        }
    }
});
