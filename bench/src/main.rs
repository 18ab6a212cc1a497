//! CPU per request of Seawall (all guards on), nginx and HAProxy (Debian's packages), in alternating runs.
//!
//! `cargo run --release --manifest-path bench/Cargo.toml -- [--rounds N] [--seconds S] [--connections C]`
//!
//! Every peer stands between the same nginx upstream and the same `wrk`. What counts is CPU time (user and system) of
//! the peer's processes per request that `wrk` saw answered, never wall time: machines are shared. Peers take turns
//! within a round, and ratios are taken within a round, so that what disturbs the machine disturbs all of them.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use seawall_bench::{now, spread};

struct Options {
    rounds: usize,
    seconds: u32,
    connections: u32,
}

struct Peer {
    name: &'static str,
    port: u16,
    process: Owned,
}

/// Ends with us.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let begin = now();
        while begin.elapsed() < Duration::from_secs(5) {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let seawall = build_seawall()?;
    let dir = tempfile::tempdir()?;
    let upstream_port = free_port()?;
    let _upstream = start_nginx(dir.path(), "upstream", &upstream_config(upstream_port), upstream_port)?;
    let peers = [
        start_peer("nginx", |port| start_nginx(dir.path(), "nginx", &nginx_config(port, upstream_port), port))?,
        start_peer("haproxy", |port| start_haproxy(dir.path(), port, upstream_port))?,
        start_peer("seawall", |port| start_seawall(&seawall, dir.path(), port, upstream_port))?,
    ];
    println!(
        "{} rounds of {} s, {} connections kept alive, 27-byte answers; CPU us per request (user + system)\n",
        options.rounds, options.seconds, options.connections
    );
    println!(
        "{:>5}  {:>8}  {:>8}  {:>8}  {:>16}  {:>14}",
        "round", "nginx", "haproxy", "seawall", "seawall/haproxy", "seawall/nginx"
    );
    for peer in &peers {
        measure(peer, 1, options.connections)?; // warm
    }
    let (mut to_haproxy, mut to_nginx) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let mut costs = Vec::new();
        for peer in &peers {
            costs.push(measure(peer, options.seconds, options.connections)?);
        }
        to_haproxy.push(costs[2] / costs[1]);
        to_nginx.push(costs[2] / costs[0]);
        println!(
            "{round:>5}  {:>8.2}  {:>8.2}  {:>8.2}  {:>16.2}  {:>14.2}",
            costs[0],
            costs[1],
            costs[2],
            costs[2] / costs[1],
            costs[2] / costs[0]
        );
    }
    println!("\nseawall / haproxy: {}", shown(&to_haproxy));
    println!("seawall / nginx:   {}", shown(&to_nginx));
    Ok(())
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options { rounds: 7, seconds: 4, connections: 32 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("`{name}` needs a number"))?;
        match name.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--connections" => options.connections = value.parse()?,
            _ => bail!("unknown option `{name}`; known are --rounds, --seconds and --connections"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0 && options.connections > 0, "numbers must be above zero");
    Ok(options)
}

/// The binary as users build it.
fn build_seawall() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built =
        Command::new("cargo").args(["build", "--release", "--locked", "-p", "seawall"]).current_dir(&root).status()?;
    ensure!(built.success(), "seawall does not build");
    Ok(root.join("target/release/seawall"))
}

fn start_peer(name: &'static str, start: impl FnOnce(u16) -> anyhow::Result<Owned>) -> anyhow::Result<Peer> {
    let port = free_port()?;
    let process = start(port).with_context(|| format!("cannot start {name}"))?;
    Ok(Peer { name, port, process })
}

fn start_nginx(dir: &Path, name: &str, config: &str, port: u16) -> anyhow::Result<Owned> {
    let home = dir.join(name);
    fs::create_dir_all(&home)?;
    let file = home.join("nginx.conf");
    fs::write(&file, config)?;
    let process = Command::new("nginx").arg("-p").arg(&home).arg("-c").arg(&file).stderr(Stdio::null()).spawn();
    answering(Owned(process.context("nginx is not installed")?), port)
}

fn upstream_config(port: u16) -> String {
    nginx_head(1)
        + &format!(
            "server {{ listen 127.0.0.1:{port} reuseport; location / {{ return 200 \"hello world, a small answer\"; }} }} }}\n"
        )
}

fn nginx_config(port: u16, upstream: u16) -> String {
    nginx_head(2)
        + &format!(
            "upstream u {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 10000000; }}\n\
             server {{ listen 127.0.0.1:{port} reuseport; location / {{ proxy_pass http://u; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
             proxy_set_header X-Forwarded-For $remote_addr; proxy_next_upstream error timeout http_503; }} }} }}\n"
        )
}

fn nginx_head(workers: u32) -> String {
    format!(
        "daemon off; worker_processes {workers}; pid nginx.pid; error_log error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 10000000; client_body_temp_path b; proxy_temp_path p;\n\
         fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n"
    )
}

fn start_haproxy(dir: &Path, port: u16, upstream: u16) -> anyhow::Result<Owned> {
    let file = dir.join("haproxy.cfg");
    let config = format!(
        "global\n  nbthread 2\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n  \
         timeout server 30s\n  http-reuse always\n  option forwardfor\n  retries 2\nfrontend f\n  bind 127.0.0.1:{port}\n  \
         default_backend b\nbackend b\n  server s 127.0.0.1:{upstream} maxconn 1024 pool-max-conn 1024\n"
    );
    fs::write(&file, config)?;
    let process = Command::new("haproxy").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    answering(Owned(process.context("haproxy is not installed")?), port)
}

fn start_seawall(binary: &Path, dir: &Path, port: u16, upstream: u16) -> anyhow::Result<Owned> {
    let process = Command::new(binary)
        .args(["run", "--listen", &format!("127.0.0.1:{port}"), "--upstream", &format!("http://127.0.0.1:{upstream}")])
        .args(["--admin", &format!("127.0.0.1:{}", free_port()?), "--log-level", "error", "--data"])
        .arg(dir.join("seawall"))
        .spawn();
    answering(Owned(process?), port)
}

fn answering(process: Owned, port: u16) -> anyhow::Result<Owned> {
    let begin = now();
    while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
        ensure!(begin.elapsed() < Duration::from_secs(10), "nobody answers on port {port}");
        sleep(Duration::from_millis(20));
    }
    Ok(process)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// CPU microseconds per request of one run.
fn measure(peer: &Peer, seconds: u32, connections: u32) -> anyhow::Result<f64> {
    let before = cpu_ticks(peer.process.0.id())?;
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s")])
        .arg(format!("http://127.0.0.1:{}/", peer.port))
        .output()
        .context("wrk is not installed")?;
    let after = cpu_ticks(peer.process.0.id())?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("Non-2xx"), "{} answered with failures:\n{text}", peer.name);
    let requests: f64 = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk did not say how many requests:\n{text}"))?;
    Ok((after - before) as f64 * 1e6 / ticks_per_second()? / requests)
}

/// CPU ticks of a process and its children.
fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let mut ticks = 0;
    for pid in family(pid)? {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(ticks)
}

fn family(pid: u32) -> anyhow::Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let mut family = vec![pid];
    family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    Ok(family)
}

fn ticks_per_second() -> anyhow::Result<f64> {
    let output = Command::new("getconf").arg("CLK_TCK").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

fn shown(ratios: &[f64]) -> String {
    let [low, middle, high] = spread(ratios);
    format!("median {middle:.2}, from {low:.2} to {high:.2}")
}
