//! An asynchronous client with a breaker, a deadline and a hedge: plain futures, no framework.
//!
//! `cargo run -p seawall-core --example async-client` asks a server of its own that is slow now and then. The second
//! copy of a slow call wins; the budget bounds how many copies there are.
#![expect(clippy::disallowed_methods, reason = "a program holds its own clock, and its tasks end with it")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use seawall_core::guard::budget::{Budget, Coin};
use seawall_core::guard::hedge::{self, HedgeConfig};
use seawall_core::guard::pipeline::{Answered, Pipeline};
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::policy::Guards;
use seawall_core::time::Mono;
use seawall_core::units::Ratio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

struct Client {
    address: std::net::SocketAddr,
    guards: Pipeline,
    origin: Instant,
}

impl Client {
    fn now(&self) -> Mono {
        Mono::ZERO + self.origin.elapsed()
    }

    /// One guarded copy of a call.
    async fn copy(&self) -> Result<u8, Failure> {
        let leave = self.guards.admit(self.now()).map_err(|_| Failure::ConnectRefused)?;
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_u8(7).await?;
            stream.read_u8().await
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), exchange).await;
        let (now, took) = (self.now(), self.now().since(leave.since));
        let result = match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Failure::ConnectionLost),
            Err(_) => Err(Failure::Timeout),
        };
        let outcome = result.map_or_else(Outcome::Failure, |_| Outcome::Success);
        self.guards.report(now, leave, outcome, took, Answered::default());
        result
    }

    /// A call whose second copy is sent when the first is slower than most. The loser is dropped, which cancels it.
    async fn call(&self) -> (Result<u8, Failure>, bool) {
        let call = hedge::Call { started: self.now(), hedges: 0, idempotent: true };
        let first = self.copy();
        let Ok(due) = self.guards.hedge_due(self.now(), call) else { return (first.await, false) };
        tokio::pin!(first);
        tokio::select! {
            answer = &mut first => return (answer, false),
            () = tokio::time::sleep(self.now().until(due)) => {}
        }
        let Ok(coin) = self.guards.hedge(self.now(), call) else { return (first.await, false) };
        let paid = Paid { client: self, coin: Some(coin) };
        let answer = tokio::select! {
            answer = &mut first => answer,
            answer = self.copy() => answer,
        };
        drop(paid);
        (answer, true)
    }
}

/// A second copy that is paid for until it is over, however it ends.
struct Paid<'a> {
    client: &'a Client,
    coin: Option<Coin>,
}

impl Drop for Paid<'_> {
    fn drop(&mut self) {
        if let Some(coin) = self.coin.take() {
            self.client.guards.done(coin);
        }
    }
}

/// Echoes a byte; every twentieth connection takes 300 ms.
async fn serve(listener: TcpListener) {
    for count in 0_u32.. {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let Ok(byte) = stream.read_u8().await else { return };
            if count % 20 == 19 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            let _ = stream.write_u8(byte).await;
        });
    }
}

async fn run() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener));
    let hedge = HedgeConfig {
        quantile: Ratio::new(0.9).unwrap_or(Ratio::ONE),
        samples_min: 20,
        delay_max: Duration::from_millis(100),
        ..HedgeConfig::default()
    };
    let guards = Guards { hedge: Some(hedge), ..Guards::default() };
    let budget = Arc::new(Mutex::new(Budget::new(Mono::ZERO)));
    let guards = Pipeline::new(guards, budget, (1, 1), Mono::ZERO, |_| {}).expect("sane numbers");
    let client = Client { address, guards, origin: Instant::now() };
    let (mut answered, mut hedged) = (0, 0);
    for _ in 0..200 {
        let (answer, second) = client.call().await;
        answered += u32::from(answer == Ok(7));
        hedged += u32::from(second);
    }
    println!("{answered} of 200 calls answered, {hedged} of them with a second copy");
    assert_eq!(answered, 200);
    assert!(hedged > 0, "one in twenty is slow");
    Ok(())
}

pub(crate) fn main() -> std::io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}
