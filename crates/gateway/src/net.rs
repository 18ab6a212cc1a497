//! The only door to sockets, but for questions about names (`dns`). Here the simulator steps in: with the feature
//! `sim`, a [`Net::Sim`] speaks to its world instead of the kernel's, and everything above notices nothing. A sealed
//! connection ([`Stream::Tls`]) is one on top of either, and so is a stream of HTTP/2 that has become a connection
//! ([`Stream::Tunnel`]).

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use seawall_core::addresses::Found;
use seawall_core::policy::Resolver;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio_rustls::TlsStream;

use crate::dns;
use crate::http::tunnel::Tunnel;

/// One read from the kernel takes at most this much.
pub(crate) const SCRATCH_BYTES: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// Lends the thread's one buffer for a read: who waits for bytes holds none.
pub(crate) fn with_scratch<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| read(scratch))
}

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// The kernel's.
    Real,
    /// The simulator's.
    #[cfg(feature = "sim")]
    Sim,
}

/// Waits for connections.
pub enum Listener {
    /// The kernel's.
    Real(tokio::net::TcpListener),
    /// The simulator's.
    #[cfg(feature = "sim")]
    Sim(turmoil::net::TcpListener),
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.local_addr()).finish()
    }
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// The kernel's.
    Real(tokio::net::TcpStream),
    /// The kernel's, within this machine.
    Unix(tokio::net::UnixStream),
    /// The simulator's.
    #[cfg(feature = "sim")]
    Sim(turmoil::net::TcpStream),
    /// Sealed, over one of the others.
    Tls(Box<TlsStream<Stream>>),
    /// A stream of an HTTP/2 connection that others share.
    Tunnel(Box<Tunnel>),
}

impl Net {
    /// Listens. On a real network every worker listens on the same address (`SO_REUSEPORT`) and the kernel shares
    /// connections out.
    ///
    /// # Errors
    /// The kernel's: address in use, not ours, not allowed.
    pub async fn listen(self, address: SocketAddr) -> io::Result<Listener> {
        match self {
            Self::Real => listen_shared(address, true).map(Listener::Real),
            #[cfg(feature = "sim")]
            Self::Sim => turmoil::net::TcpListener::bind(address).await.map(Listener::Sim),
        }
    }

    /// Listens where nobody else does, not even this process.
    ///
    /// # Errors
    /// The kernel's: address in use, not ours, not allowed.
    pub async fn listen_alone(self, address: SocketAddr) -> io::Result<Listener> {
        match self {
            Self::Real => listen_shared(address, false).map(Listener::Real),
            #[cfg(feature = "sim")]
            Self::Sim => turmoil::net::TcpListener::bind(address).await.map(Listener::Sim),
        }
    }

    /// Connects; small writes go out at once.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn connect(self, address: SocketAddr) -> io::Result<Stream> {
        match self {
            Self::Real => {
                let stream = tokio::net::TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Real(stream))
            }
            #[cfg(feature = "sim")]
            Self::Sim => turmoil::net::TcpStream::connect(address).await.map(Stream::Sim),
        }
    }

    /// Connects to a socket in the file system.
    ///
    /// # Errors
    /// The kernel's; the simulator has no file system.
    pub async fn connect_unix(self, path: &Path) -> io::Result<Stream> {
        match self {
            Self::Real => tokio::net::UnixStream::connect(path).await.map(Stream::Unix),
            #[cfg(feature = "sim")]
            Self::Sim => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Every address of `host:port`.
    ///
    /// # Errors
    /// When the name does not resolve.
    pub(crate) async fn resolve(self, host_port: &str, resolver: Resolver) -> io::Result<Found> {
        if let Ok(address) = host_port.parse::<SocketAddr>() {
            return Ok(vec![address].into());
        }
        match (self, resolver) {
            (Self::Real, Resolver::Own) => dns::look_up(host_port).await,
            (Self::Real, Resolver::System) => dns::look_up_by_system(host_port).await,
            #[cfg(feature = "sim")]
            (Self::Sim, _) => Ok(vec![(turmoil::lookup(host_of(host_port)), port_of(host_port)).into()].into()),
        }
    }
}

#[cfg(feature = "sim")]
fn host_of(host_port: &str) -> &str {
    host_port.rsplit_once(':').map_or(host_port, |(host, _)| host)
}

#[cfg(feature = "sim")]
fn port_of(host_port: &str) -> u16 {
    host_port.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80)
}

/// Listens on a real address. With `shared`, others of this process may listen there too; a first socket without it
/// finds out whether somebody else has the port.
///
/// # Errors
/// The kernel's.
pub fn listen_shared(address: SocketAddr, shared: bool) -> io::Result<tokio::net::TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};

    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1_024)?;
    tokio::net::TcpListener::from_std(socket.into())
}

impl Listener {
    /// The next connection and who is at its other end.
    ///
    /// # Errors
    /// The kernel's; out of descriptors among them.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Self::Real(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Real(stream), peer))
            }
            #[cfg(feature = "sim")]
            Self::Sim(listener) => listener.accept().await.map(|(stream, peer)| (Stream::Sim(stream), peer)),
        }
    }

    /// The same socket once more, for whoever takes our place; the simulator's cannot be shared.
    ///
    /// # Errors
    /// The kernel's; out of descriptors among them.
    pub(crate) fn shared(&self) -> io::Result<std::net::TcpListener> {
        match self {
            Self::Real(listener) => listener.as_fd().try_clone_to_owned().map(Into::into),
            #[cfg(feature = "sim")]
            Self::Sim(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Real(listener) => listener.local_addr(),
            #[cfg(feature = "sim")]
            Self::Sim(listener) => listener.local_addr(),
        }
    }
}

impl Stream {
    /// Closes with a reset instead of an orderly end, where there is a kernel to do so.
    pub(crate) fn reset_on_close(&self) {
        match self {
            Self::Real(stream) => {
                let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
            // It knows no reset.
            Self::Unix(_) => {}
            #[cfg(feature = "sim")]
            Self::Sim(_) => {}
            Self::Tls(sealed) => sealed.get_ref().0.reset_on_close(),
            // Whoever leaves one without an end resets it.
            Self::Tunnel(_) => {}
        }
    }

    /// Our own end, where there is a kernel to know it.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Real(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
            #[cfg(feature = "sim")]
            Self::Sim(stream) => stream.local_addr().ok(),
            Self::Tls(sealed) => sealed.get_ref().0.local(),
            Self::Tunnel(_) => None,
        }
    }

    /// The other end, where it has an address.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Real(stream) => stream.peer_addr().ok(),
            Self::Unix(_) => None,
            #[cfg(feature = "sim")]
            Self::Sim(stream) => stream.peer_addr().ok(),
            Self::Tls(sealed) => sealed.get_ref().0.peer(),
            Self::Tunnel(_) => None,
        }
    }

    /// True if both sides have agreed on HTTP/2 beforehand (ALPN).
    pub(crate) fn agreed_on_h2(&self) -> bool {
        matches!(self, Self::Tls(sealed) if sealed.get_ref().1.alpn_protocol() == Some(b"h2"))
    }

    /// What the peer has shown for itself, its own certificate first; nothing where it showed none.
    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        match self {
            Self::Tls(sealed) => sealed.get_ref().1.peer_certificates().unwrap_or_default(),
            _ => &[],
        }
    }

    /// True if nobody on the way can read what passes.
    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// A connection that may be silent for long is asked whether its peer is still there after this long, ...
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// ... and again after each of these; the kernel gives it up after nine that were not answered.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

impl Stream {
    /// Has the kernel find out when a silent peer has vanished.
    pub(crate) fn keep_alive(&self) {
        match self {
            Self::Real(stream) => {
                let asked = socket2::TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
                let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&asked);
            }
            // The kernel knows at once when a peer on the same machine has vanished.
            Self::Unix(_) => {}
            #[cfg(feature = "sim")]
            Self::Sim(_) => {}
            Self::Tls(sealed) => sealed.get_ref().0.keep_alive(),
            // HTTP/2 asks for itself.
            Self::Tunnel(_) => {}
        }
    }

    /// True if the peer has broken off: tells once.
    pub(crate) fn is_broken(&self) -> bool {
        match self {
            Self::Real(stream) => !matches!(stream.take_error(), Ok(None)),
            Self::Unix(stream) => !matches!(stream.take_error(), Ok(None)),
            #[cfg(feature = "sim")]
            Self::Sim(_) => false,
            Self::Tls(sealed) => sealed.get_ref().0.is_broken(),
            // Heard when it is flushed.
            Self::Tunnel(_) => false,
        }
    }
}

/// How a peer has left off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HungUp {
    /// It will say no more, but may still listen.
    Ended {
        /// Some of what it said has not been read yet.
        has_words: bool,
    },
    /// It is gone.
    Broken,
}

impl Stream {
    /// Waits until the peer has left off, without reading what it said. In the simulator nobody does before he is read.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn hung_up(&self) -> HungUp {
        match self {
            // To wait for urgent bytes is to wait for the end too, and not for ordinary bytes: they may lie there
            // already.
            Self::Real(stream) => {
                let ready = stream.ready(Interest::PRIORITY | Interest::ERROR).await;
                left_off(ready, || socket2::SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]))
            }
            Self::Unix(stream) => {
                let ready = stream.ready(Interest::PRIORITY | Interest::ERROR).await;
                left_off(ready, || socket2::SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]))
            }
            #[cfg(feature = "sim")]
            Self::Sim(_) => std::future::pending().await,
            Self::Tls(sealed) => Box::pin(sealed.get_ref().0.hung_up()).await,
            // A request is never heard on one.
            Self::Tunnel(_) => std::future::pending().await,
        }
    }

    /// Waits until the peer has broken off.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn broken(&self) {
        match self {
            Self::Real(stream) => drop(stream.ready(Interest::ERROR).await),
            Self::Unix(stream) => drop(stream.ready(Interest::ERROR).await),
            #[cfg(feature = "sim")]
            Self::Sim(_) => std::future::pending().await,
            Self::Tls(sealed) => Box::pin(sealed.get_ref().0.broken()).await,
            Self::Tunnel(_) => std::future::pending().await,
        }
    }
}

fn left_off(ready: io::Result<Ready>, peek: impl FnOnce() -> io::Result<usize>) -> HungUp {
    match ready {
        Ok(ready) if !ready.is_error() => match peek() {
            Ok(bytes) => HungUp::Ended { has_words: bytes > 0 },
            Err(_) => HungUp::Broken,
        },
        _ => HungUp::Broken,
    }
}

macro_rules! on_stream {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Real($stream) => $call,
            Stream::Unix($stream) => $call,
            #[cfg(feature = "sim")]
            Stream::Sim($stream) => $call,
            Stream::Tls($stream) => $call,
            Stream::Tunnel($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
