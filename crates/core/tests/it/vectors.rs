//! The recorded behaviour of Resilience4j's breaker, step by step. The records lie beside the repository, where CI has
//! them; elsewhere the first test says so and the second, with records of our own, still runs.

use std::path::Path;

use crate::replay::replay;

#[test]
fn what_was_recorded_is_what_we_show() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    for (name, vectors) in [("breaker_vectors.json", 20), ("breaker_sequences.jsonl", 120)] {
        let Ok(text) = std::fs::read_to_string(folder.join(name)) else {
            println!("`{name}` is not beside this repository: nothing to compare");
            continue;
        };
        let verdict = replay(&text).expect("it can be read");
        assert!(verdict.differences.is_empty(), "{verdict}");
        assert!(verdict.vectors >= vectors && verdict.steps > vectors, "{verdict}");
    }
}

/// A good step, a late result that the recorded library counts as a probe, a bug it names, and a step that is wrong.
const OWN: &str = r#"
{"id":"own-1","start_ms":0,"config":{"window_size":2,"min_calls":2,"half_open_permits":2,"open_wait_ms":100},"steps":[
{"t":1,"op":"error","dur_ms":1,"kind":"recorded","expect":{"state":"CLOSED","failure_rate":-1.0,"slow_rate":-1.0,"buffered":1,"failed":1,"slow":0,"slow_failed":0,"not_permitted":0,"events":["ERROR"]}},
{"t":2,"op":"error","dur_ms":1,"kind":"recorded","expect":{"state":"OPEN","failure_rate":100.0,"slow_rate":0.0,"buffered":2,"failed":2,"slow":0,"slow_failed":0,"not_permitted":0,"events":["ERROR","FAILURE_RATE_EXCEEDED:100.0","STATE_TRANSITION:CLOSED>OPEN"]}},
{"t":103,"op":"acquire","expect":{"state":"HALF_OPEN","failure_rate":-1.0,"slow_rate":-1.0,"buffered":0,"failed":0,"slow":0,"slow_failed":0,"not_permitted":0,"events":["STATE_TRANSITION:OPEN>HALF_OPEN"],"permitted":true}},
{"t":104,"op":"success","dur_ms":1,"expect":{"state":"HALF_OPEN","failure_rate":-1.0,"slow_rate":-1.0,"buffered":1,"failed":0,"slow":0,"slow_failed":0,"not_permitted":0,"events":["SUCCESS"]}},
{"t":105,"op":"success","dur_ms":1,"expect":{"state":"CLOSED","failure_rate":-1.0,"slow_rate":-1.0,"buffered":0,"failed":0,"slow":0,"slow_failed":0,"not_permitted":0,"events":["SUCCESS","STATE_TRANSITION:HALF_OPEN>CLOSED"]}},
{"t":106,"op":"tick","expect":{"state":"CLOSED","failure_rate":-1.0,"slow_rate":-1.0,"buffered":7,"failed":0,"slow":0,"slow_failed":0,"not_permitted":0,"events":[]}}
]}
"#;

#[test]
fn a_difference_is_told_and_an_exception_has_its_reason() {
    let verdict = replay(&OWN.replace('\n', "")).expect("it can be read");
    assert_eq!((verdict.vectors, verdict.steps, verdict.excepted.values().sum::<usize>()), (1, 6, 1), "{verdict}");
    let [difference] = &verdict.differences[..] else { panic!("{verdict}") };
    assert!(difference.starts_with("own-1 step 5 (t 106, tick)") && difference.contains("recorded 7,, ours 0,"));
    assert!(verdict.to_string().ends_with("1 vectors, 6 steps, 1 differences, 1 excepted"), "{verdict}");
    assert!(replay("{}").is_err_and(|error| error.starts_with("line 1: ")));
    assert!(replay("").is_err());
    let broken = OWN.replace('\n', "").replace("\"window_size\":2", "\"window_size\":0");
    assert_eq!(replay(&broken).unwrap_err(), "own-1: `window` is 0 calls; allowed is 1 to 1000000 calls");
}
