//! The guards as a `tower` layer around any service.
//!
//! `cargo run -p seawall-core --features tower --example tower-layer`

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use seawall_core::guard::breaker::BreakerConfig;
use seawall_core::guard::budget::Budget;
use seawall_core::guard::pipeline::Pipeline;
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::policy::Guards;
use seawall_core::time::Mono;
use seawall_core::tower::{GuardedError, GuardsLayer};
use tower_layer::Layer as _;
use tower_service::Service;

/// A dependency that is down for its first calls.
#[derive(Clone)]
struct Dependency {
    calls: Arc<AtomicU64>,
    down_for: u64,
}

impl Service<&'static str> for Dependency {
    type Response = String;
    type Error = &'static str;
    type Future = std::future::Ready<Result<String, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: &'static str) -> Self::Future {
        let is_down = self.calls.fetch_add(1, Relaxed) < self.down_for;
        std::future::ready(if is_down { Err("down") } else { Ok(format!("hello {request}")) })
    }
}

async fn run() {
    // A clock of our own; a program would use `Instant`.
    let millis = Arc::new(AtomicU64::new(0));
    let clock = {
        let millis = Arc::clone(&millis);
        move || Mono::from_millis(millis.load(Relaxed))
    };
    let judge = |result: &Result<String, &'static str>| match result {
        Ok(_) => Outcome::Success,
        Err(_) => Outcome::Failure(Failure::ConnectionLost),
    };
    let breaker = BreakerConfig { calls_min: 5, ..BreakerConfig::default() };
    let guards = Guards { breaker: Some(breaker), ..Guards::default() };
    let budget = Arc::new(Mutex::new(Budget::new(Mono::ZERO)));
    let pipeline = Pipeline::new(guards, budget, (1, 4), Mono::ZERO, |_| {}).expect("sane numbers");
    let calls = Arc::new(AtomicU64::new(0));
    let dependency = Dependency { calls: Arc::clone(&calls), down_for: 5 };
    let mut service = GuardsLayer::new(Arc::new(pipeline), clock, judge).layer(dependency);

    let mut told = Vec::new();
    for _ in 0..20 {
        std::future::poll_fn(|context| service.poll_ready(context)).await.expect("always ready");
        told.push(service.call("world").await);
        millis.fetch_add(1_000, Relaxed);
    }
    let refused = told.iter().filter(|answer| matches!(answer, Err(GuardedError::Refused(_)))).count();
    println!("20 calls, a second apart: {refused} refused, {} reached the dependency", calls.load(Relaxed));
    println!(
        "the first refusal: {}",
        told.iter()
            .find_map(|answer| answer.as_ref().err().filter(|e| matches!(e, GuardedError::Refused(_))))
            .expect("one was refused")
    );
    assert_eq!(told.last(), Some(&Ok("hello world".into())), "it came back by itself");
    assert_eq!(refused as u64 + calls.load(Relaxed), 20);
    // A call that is dropped half way gives back what it held.
    drop(service.call("nobody"));
    assert!(
        tokio::time::timeout(Duration::from_secs(5), service.call("again")).await.is_ok_and(|answer| answer.is_ok())
    );
}

pub(crate) fn main() {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(run());
}
