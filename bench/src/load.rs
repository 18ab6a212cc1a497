//! What is asked of them: as much as can be answered (`wrk`, `h2load`), at a steady rate, or nothing at all by many.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n";

/// Requests that `wrk` saw answered.
///
/// # Errors
/// If it is not there, or one was answered badly.
pub fn wrk(port: u16, path: &str, connections: u32, seconds: u32, closing: bool) -> anyhow::Result<f64> {
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s")]);
    if closing {
        command.args(["-H", "Connection: close"]);
    }
    let output = command.arg(format!("http://127.0.0.1:{port}{path}")).output().context("wrk is not installed")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("Non-2xx"), "port {port} answered with failures:\n{text}");
    text.lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk did not say how many requests:\n{text}"))
}

/// Requests that `h2load` saw answered by HTTP/2.
///
/// # Errors
/// If it is not there, or one was answered badly.
pub fn h2load(port: u16, seconds: u32) -> anyhow::Result<f64> {
    let output = Command::new("h2load")
        .args(["-c8", "-m16", "-t1", &format!("-D{seconds}"), &format!("http://127.0.0.1:{port}/")])
        .output()
        .context("h2load is not installed")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counts = text.lines().find_map(|line| line.strip_prefix("status codes: "));
    let counts = counts.with_context(|| format!("h2load did not say what was answered:\n{text}"))?;
    let good = counts.split_once(" 2xx").and_then(|(good, _)| good.trim().parse().ok());
    ensure!(counts.contains("0 4xx, 0 5xx"), "port {port} answered with failures:\n{text}");
    good.with_context(|| format!("h2load's count is not understood: {counts}"))
}

/// Asks at a steady rate, by so many connections, and tells how long each took from the moment it was due, in
/// microseconds, sorted: who is late is late for the next as well.
///
/// # Errors
/// If one is not answered.
pub async fn pace(port: u16, rate: u32, connections: u32, seconds: u32) -> anyhow::Result<Vec<u32>> {
    let (begin, mut tasks) = (Instant::now() + Duration::from_millis(100), JoinSet::new());
    let every = Duration::from_secs_f64(f64::from(connections) / f64::from(rate));
    for number in 0..connections {
        let first = begin + every.mul_f64(f64::from(number) / f64::from(connections));
        let rounds = u32::try_from((u128::from(seconds) * 1_000_000_000) / every.as_nanos())?;
        tasks.spawn(async move {
            let mut stream = connect(port).await?;
            let (mut took, mut buffer) = (Vec::with_capacity(rounds as usize), [0; 4_096]);
            for round in 0..rounds {
                let mut due = first + every * round;
                if Instant::now() < due {
                    sleep_until(due).await;
                    // The timer's own lateness is nobody's fault.
                    due = Instant::now();
                }
                ask(&mut stream, &mut buffer).await?;
                took.push(u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(took) = tasks.join_next().await {
        all.extend(took??);
    }
    all.sort_unstable();
    Ok(all)
}

/// Connections that have asked once and say nothing more, for as long as they live.
///
/// # Errors
/// If one is not answered.
pub async fn idle(port: u16, connections: u32) -> anyhow::Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let mut stream = connect(port).await?;
        ask(&mut stream, &mut [0; 4_096]).await?;
        streams.push(stream);
    }
    Ok(streams)
}

async fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request; its answer is short and comes in one piece, or a few.
async fn ask(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
    stream.write_all(REQUEST).await?;
    let mut come = 0;
    while !buffer[..come].ends_with(b"a small answer") {
        let bytes = timeout(Duration::from_secs(10), stream.read(&mut buffer[come..])).await??;
        ensure!(bytes > 0, "a connection ended without an answer");
        come += bytes;
    }
    ensure!(buffer.starts_with(b"HTTP/1.1 200"), "answered badly");
    Ok(())
}
