//! Who is measured: nginx and HAProxy from Debian's packages, and Seawall, each as a proxy before the same nginx.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::now;

/// Connections that each of them takes.
const CONNECTIONS_MAX: u32 = 9_000;

/// A proxy, and where it takes what.
pub struct Peer {
    /// For tables.
    pub name: &'static str,
    /// HTTP/1 and, where it knows the preface, HTTP/2.
    pub http: u16,
    /// HTTP/2 in the clear.
    pub h2: u16,
    /// TCP, if it is one of those measured by it.
    pub tcp: Option<u16>,
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

/// Everybody, for as long as it lives.
pub struct Street {
    /// nginx, HAProxy, Seawall.
    pub peers: Vec<Peer>,
    /// Where all of them send everything.
    pub upstream: u16,
    _upstream: Owned,
    _dir: tempfile::TempDir,
}

impl Street {
    /// Builds Seawall as users do, and starts them all. With `faults`, a second Seawall whose fault engine is on and
    /// has nothing to do.
    ///
    /// # Errors
    /// If one of them is not there or does not start.
    pub fn open(faults: bool) -> anyhow::Result<Self> {
        let seawall = build_seawall()?;
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("big"), vec![b'x'; 1 << 20])?;
        let upstream = free_port()?;
        let files = dir.path().display().to_string();
        let process = start_nginx(dir.path(), "upstream", &upstream_config(upstream, &files), upstream)?;
        let mut peers = vec![nginx(dir.path(), upstream)?, haproxy(dir.path(), upstream)?];
        peers.push(self::seawall("seawall", &seawall, dir.path(), upstream, "")?);
        if faults {
            peers.push(self::seawall("faults on", &seawall, dir.path(), upstream, "faults: on\n")?);
        }
        Ok(Self { peers, upstream, _upstream: process, _dir: dir })
    }
}

impl Peer {
    /// CPU microseconds it has used so far, user and system, its children's too.
    ///
    /// # Errors
    /// If it is gone.
    pub fn cpu_us(&self) -> anyhow::Result<f64> {
        let mut ticks = 0;
        for pid in self.family()? {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        }
        Ok(ticks as f64 * 1e6 / ticks_per_second()?)
    }

    /// Its memory that nobody else has, in bytes.
    ///
    /// # Errors
    /// If it is gone.
    pub fn private_bytes(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for pid in self.family()? {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            for line in text.lines().filter(|line| line.starts_with("Private_")) {
                let kib = line.split_whitespace().nth(1).context("a line of smaps_rollup has no number")?;
                bytes += kib.parse::<u64>()? << 10;
            }
        }
        Ok(bytes)
    }

    fn family(&self) -> anyhow::Result<Vec<u32>> {
        let pid = self.process.0.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let mut family = vec![pid];
        family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        Ok(family)
    }
}

fn ticks_per_second() -> anyhow::Result<f64> {
    let output = Command::new("getconf").arg("CLK_TCK").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// The binary as users build it.
fn build_seawall() -> anyhow::Result<PathBuf> {
    if let Some(binary) = std::env::var_os("SEAWALL_BINARY") {
        return Ok(binary.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built =
        Command::new("cargo").args(["build", "--release", "--locked", "-p", "seawall"]).current_dir(&root).status()?;
    ensure!(built.success(), "seawall does not build");
    Ok(root.join("target/release/seawall"))
}

fn nginx(dir: &Path, upstream: u16) -> anyhow::Result<Peer> {
    let (http, h2) = (free_port()?, free_port()?);
    let process = start_nginx(dir, "nginx", &nginx_config(http, h2, upstream), http)?;
    Ok(Peer { name: "nginx", http, h2, tcp: None, process })
}

fn haproxy(dir: &Path, upstream: u16) -> anyhow::Result<Peer> {
    let (http, h2, tcp) = (free_port()?, free_port()?, free_port()?);
    let file = dir.join("haproxy.cfg");
    let config = format!(
        "global\n  nbthread 2\n  maxconn {CONNECTIONS_MAX}\ndefaults\n  mode http\n  timeout connect 1s\n  \
         timeout client 300s\n  timeout server 300s\n  timeout http-keep-alive 300s\n  http-reuse always\n  \
         option forwardfor\n  retries 2\nfrontend f\n  bind 127.0.0.1:{http}\n  bind 127.0.0.1:{h2} proto h2\n  \
         default_backend b\nbackend b\n  server s 127.0.0.1:{upstream} maxconn 1024 pool-max-conn 1024\nlisten t\n  \
         mode tcp\n  bind 127.0.0.1:{tcp}\n  server s 127.0.0.1:{upstream}\n"
    );
    fs::write(&file, config)?;
    let process = Command::new("haproxy").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let process = answering(Owned(process.context("haproxy is not installed")?), http)?;
    Ok(Peer { name: "haproxy", http, h2, tcp: Some(tcp), process })
}

/// With every guard that a node has without a word said about guards, and metrics.
fn seawall(name: &'static str, binary: &Path, dir: &Path, upstream: u16, more: &str) -> anyhow::Result<Peer> {
    let (http, tcp, admin) = (free_port()?, free_port()?, free_port()?);
    let home = dir.join(name.replace(' ', "-"));
    fs::create_dir_all(&home)?;
    let file = home.join("seawall.yaml");
    let config = format!(
        "admin: {{ address: 127.0.0.1:{admin} }}\nlimits: {{ connections: {CONNECTIONS_MAX}, idle_timeout: 5m }}\n{more}\
         listeners:\n  - address: 127.0.0.1:{http}\n    routes: [{{ name: web, upstream: web, policy: web }}]\n  \
         - {{ address: 127.0.0.1:{tcp}, protocol: tcp, upstream: bytes }}\nupstreams:\n  \
         web: {{ url: \"http://127.0.0.1:{upstream}\" }}\n  bytes: {{ url: \"tcp://127.0.0.1:{upstream}\" }}\n\
         policies:\n  web: {{ timeout: 10s, retry: {{ attempts: 3 }}, breaker: {{ failure_rate: 50% }}, \
         bulkhead: {{ calls: 1024 }} }}\n"
    );
    fs::write(&file, config)?;
    let process = Command::new(binary)
        .args(["run", "--no-watch", "--log-level", "error", "--config"])
        .arg(&file)
        .arg("--data")
        .arg(home.join("data"))
        .spawn()?;
    let process = answering(Owned(process), http)?;
    Ok(Peer { name, http, h2: http, tcp: Some(tcp), process })
}

fn start_nginx(dir: &Path, name: &str, config: &str, port: u16) -> anyhow::Result<Owned> {
    let home = dir.join(name);
    fs::create_dir_all(&home)?;
    let file = home.join("nginx.conf");
    fs::write(&file, config)?;
    let process = Command::new("nginx").arg("-p").arg(&home).arg("-c").arg(&file).stderr(Stdio::null()).spawn();
    answering(Owned(process.context("nginx is not installed")?), port)
}

fn upstream_config(port: u16, files: &str) -> String {
    nginx_head(1)
        + &format!(
            "server {{ listen 127.0.0.1:{port} reuseport; location / {{ return 200 \"hello world, a small answer\"; }}\n\
             location = /big {{ root {files}; }} }} }}\n"
        )
}

fn nginx_config(http: u16, h2: u16, upstream: u16) -> String {
    let place = "location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
                 proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
                 proxy_next_upstream error timeout http_503; proxy_max_temp_file_size 0; }";
    nginx_head(2)
        + &format!(
            "upstream u {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 10000000; }}\n\
             server {{ listen 127.0.0.1:{http} reuseport; {place} }}\n\
             server {{ listen 127.0.0.1:{h2} reuseport http2; {place} }} }}\n"
        )
}

fn nginx_head(workers: u32) -> String {
    let user = if rustix::process::geteuid().is_root() { "user root; " } else { "" };
    format!(
        "{user}daemon off; worker_processes {workers}; pid nginx.pid; error_log error.log;\n\
         events {{ worker_connections {CONNECTIONS_MAX}; }}\n\
         http {{ access_log off; keepalive_requests 10000000; keepalive_timeout 300s; client_body_temp_path b;\n\
         proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n"
    )
}

fn answering(process: Owned, port: u16) -> anyhow::Result<Owned> {
    let begin = now();
    while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
        if begin.elapsed() >= Duration::from_secs(10) {
            bail!("nobody answers on port {port}");
        }
        sleep(Duration::from_millis(20));
    }
    Ok(process)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
