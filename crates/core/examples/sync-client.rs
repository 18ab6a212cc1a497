//! A synchronous client with a breaker, retries and a budget: no runtime, no layer, the machines by hand.
//!
//! `cargo run -p seawall-core --example sync-client` calls a server of its own that fails every second time, then one
//! that is not there, and prints what the guards did.
#![expect(clippy::disallowed_methods, reason = "a program holds its own clock")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use seawall_core::guard::Refusal;
use seawall_core::guard::breaker::BreakerConfig;
use seawall_core::guard::budget::Budget;
use seawall_core::guard::bulkhead::{Entry, Priority};
use seawall_core::guard::deadline::Deadline;
use seawall_core::guard::pipeline::{Answered, Pipeline};
use seawall_core::guard::retry::{Tried, Waits};
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::policy::Guards;
use seawall_core::prng::Prng;
use seawall_core::time::Mono;

/// One dependency, as a program sees it.
struct Client {
    address: SocketAddr,
    guards: Pipeline,
    prng: Prng,
    origin: Instant,
}

#[derive(Debug)]
enum CallError {
    /// A guard said no, and when to come back.
    Refused(Refusal),
    /// The last try failed.
    Failed(Failure),
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let breaker = BreakerConfig { calls_min: 8, ..BreakerConfig::default() };
        let guards = Guards { timeout: Duration::from_secs(2), breaker: Some(breaker), ..Guards::default() };
        let budget = Arc::new(Mutex::new(Budget::new(Mono::ZERO)));
        let tell = |told: &seawall_core::guard::breaker::Told| {
            if let Some(change) = told.transition {
                println!("  breaker: {} to {} ({})", change.from.name(), change.to.name(), change.why.name());
            }
        };
        let guards = Pipeline::new(guards, budget, (1, 1), Mono::ZERO, tell).expect("sane numbers");
        Self { address, guards, prng: Prng::new(1), origin: Instant::now() }
    }

    fn now(&self) -> Mono {
        Mono::ZERO + self.origin.elapsed()
    }

    fn call(&mut self, question: &[u8]) -> Result<Vec<u8>, CallError> {
        let (began, guards) = (self.now(), self.guards.guards());
        let (timeout, try_timeout) = (guards.timeout, guards.try_timeout);
        let deadline = Deadline::new(began, timeout, None);
        let entered = self.guards.enter(began, &deadline, Priority::Normal);
        let answer = match entered {
            Ok(Entry::Admitted) => {
                let answer = self.tries(question, began, &deadline, try_timeout);
                self.guards.leave();
                answer
            }
            // One thread never waits for itself.
            Ok(Entry::Waiting { ticket, .. }) => {
                Err(CallError::Refused(self.guards.abandon(ticket).unwrap_or_else(|| self.guards.evicted())))
            }
            Err(refusal) => Err(CallError::Refused(refusal)),
        };
        self.guards.end();
        answer
    }

    fn tries(
        &mut self,
        question: &[u8],
        began: Mono,
        deadline: &Deadline,
        try_timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let (mut waits, mut attempts, mut coin) = (Waits::default(), 0, None);
        loop {
            attempts += 1;
            let leave = match self.guards.admit(self.now()) {
                Ok(leave) => leave,
                Err(refusal) => {
                    coin.take().into_iter().for_each(|coin| self.guards.done(coin));
                    return Err(CallError::Refused(refusal));
                }
            };
            let patience = self.now().until(deadline.of_try(self.now(), try_timeout));
            let result = exchange(self.address, question, patience);
            let (now, took) = (self.now(), self.now().since(leave.since));
            let outcome = result.as_ref().map_or_else(|failure| Outcome::Failure(*failure), |_| Outcome::Success);
            self.guards.report(now, leave, outcome, took, Answered::default());
            coin.take().into_iter().for_each(|coin| self.guards.done(coin));
            let failure = match result {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let tried = Tried {
                attempts,
                failure,
                idempotent: true,
                replayable: true,
                owned_above: false,
                elapsed: now.since(began),
                pushback: None,
            };
            match self.guards.next_try(now, tried, &mut waits, deadline, &mut self.prng) {
                Ok((wait, paid)) => {
                    coin = Some(paid);
                    std::thread::sleep(wait);
                }
                Err(_) => return Err(CallError::Failed(failure)),
            }
        }
    }
}

/// One try over a connection of its own.
fn exchange(address: SocketAddr, question: &[u8], patience: Duration) -> Result<Vec<u8>, Failure> {
    let patience = patience.max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(|_| Failure::ConnectRefused)?;
    let talk = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(question)?;
        let mut answer = vec![0; question.len()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    talk(&mut stream).map_err(|_: std::io::Error| Failure::ConnectionLost)
}

/// Answers every second connection and closes the others.
fn moody_server() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for (count, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { continue };
            let mut question = [0; 5];
            if count % 2 == 1 && stream.read_exact(&mut question).is_ok() {
                let _ = stream.write_all(&question);
            }
        }
    });
    Ok(address)
}

pub(crate) fn main() -> std::io::Result<()> {
    let mut moody = Client::new(moody_server()?);
    let answered = (0..3).filter(|_| moody.call(b"hello").is_ok()).count();
    println!("a server that fails every second time: {answered} of 3 calls answered");
    assert_eq!(answered, 3, "three retries are always afforded");

    let gone = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut nobody = Client::new(gone);
    let told = (0..10).map(|_| nobody.call(b"hello")).collect::<Vec<_>>();
    let refused = told.iter().filter(|answer| matches!(answer, Err(CallError::Refused(_)))).count();
    println!("nobody there: {refused} of 10 calls were spared the attempt");
    match told.last() {
        Some(Err(CallError::Refused(refusal))) => println!("  {refusal}"),
        Some(Err(CallError::Failed(failure))) => println!("  {failure}"),
        _ => {}
    }
    assert!(refused > 0 && told.iter().all(Result::is_err), "{told:?}");
    Ok(())
}
