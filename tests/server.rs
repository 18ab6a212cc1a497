//! An upstream on a real socket that does as it is told, however rude.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::house::{header, local, read_message};

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What it does with a request.
#[derive(Clone, Debug)]
pub enum Do {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes and closes.
    SendAndClose(Vec<u8>),
    /// Waits first.
    Wait(Duration, Box<Do>),
    /// Resets the connection.
    Reset,
    /// Says nothing until the other side goes away.
    Hang,
}

pub fn answer(status: &str, headers: &str, body: &str) -> Do {
    Do::Send(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

pub fn ok(body: &str) -> Do {
    answer("200 OK", "", body)
}

pub fn sick() -> Do {
    answer("503 Service Unavailable", "", "sick")
}

type Script = Arc<dyn Fn(&Seen) -> Do + Send + Sync>;

pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn start(script: impl Fn(&Seen) -> Do + Send + Sync + 'static) -> Self {
        Self::start_at(local(0), script)
    }

    pub fn start_at(address: SocketAddr, script: impl Fn(&Seen) -> Do + Send + Sync + 'static) -> Self {
        Self::with(address, script, true)
    }

    /// Keeps nothing of what it has seen, so that it can see much.
    pub fn forgetful(script: impl Fn(&Seen) -> Do + Send + Sync + 'static) -> Self {
        Self::with(local(0), script, false)
    }

    fn with(address: SocketAddr, script: impl Fn(&Seen) -> Do + Send + Sync + 'static, keeps: bool) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (of_server, stopped, script): (_, _, Script) = (Arc::clone(&seen), Arc::clone(&stop), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Relaxed) {
                    return;
                }
                let (seen, script) = (Arc::clone(&of_server), Arc::clone(&script));
                let Ok(stream) = stream else { continue };
                thread::spawn(move || serve(stream, keeps.then_some(&seen), &script));
            }
        });
        Self { address, seen, stop }
    }

    /// Well or sick, as the switch says.
    pub fn moody() -> (Arc<AtomicBool>, Self) {
        let well = Arc::new(AtomicBool::new(false));
        let of_server = Arc::clone(&well);
        (well, Self::start(move |_| if of_server.load(Relaxed) { ok("taken") } else { sick() }))
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, seen: Option<&Mutex<Vec<Seen>>>, script: &Script) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_message(&mut stream, &mut buffer) {
        let request = Seen { head, body };
        if let Some(seen) = seen {
            seen.lock().unwrap().push(request.clone());
        }
        if !act(&mut stream, script(&request)) {
            return;
        }
    }
}

/// True if the connection goes on.
fn act(stream: &mut TcpStream, what: Do) -> bool {
    match what {
        Do::Send(bytes) => stream.write_all(&bytes).is_ok(),
        Do::SendAndClose(bytes) => {
            let _ = stream.write_all(&bytes);
            false
        }
        Do::Wait(wait, next) => {
            thread::sleep(wait);
            act(stream, *next)
        }
        Do::Reset => {
            let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
            false
        }
        Do::Hang => {
            let mut sink = [0; 1024];
            while stream.read(&mut sink).is_ok_and(|read| read > 0) {}
            false
        }
    }
}
