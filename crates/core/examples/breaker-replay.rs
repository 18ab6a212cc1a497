//! Replays recorded behaviour of Resilience4j's circuit breaker against ours: `breaker-replay FILE`.
//!
//! Prints each difference, what was excepted and why, and a last line with the sums. Exits with 1 if anything differs
//! that must not, with 2 if the file cannot be read.

use std::process::ExitCode;

#[path = "../tests/it/replay.rs"]
mod replay;

fn main() -> ExitCode {
    let Some(file) = std::env::args().nth(1) else {
        eprintln!("usage: breaker-replay FILE");
        return ExitCode::from(2);
    };
    let verdict =
        std::fs::read_to_string(&file).map_err(|error| error.to_string()).and_then(|text| replay::replay(&text));
    match verdict {
        Ok(verdict) => {
            println!("{verdict}");
            ExitCode::from(u8::from(!verdict.differences.is_empty()))
        }
        Err(error) => {
            eprintln!("cannot replay `{file}`: {error}");
            ExitCode::from(2)
        }
    }
}
