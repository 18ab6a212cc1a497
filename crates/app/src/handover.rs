//! Handing a node over to the process that takes its place, so that nobody is refused meanwhile: first its listening
//! sockets, then its store.
//!
//! Picture a change of guard at a gate that must not be shut. The new guard reports (`Asks`) and is given keys to the
//! same gate (`Offers`, with the sockets themselves); until it says that it lacks nothing (`Prepared`), the old one
//! lets people in as ever. Then nobody is let in and nobody sent away, people queue up: connections wait in the kernel,
//! which does not care whose the sockets are. The old guard sees off whom it has let in, gives up the book, of which
//! there is only one (`Yours`), and stands by until the new one lets people in (`Serves`). If the new one falls before
//! that, the old one takes the book back.
//!
//! The two speak through a socket in the data directory, which whoever else may be reached by cannot be mistaken for:
//! what is there was made by the process that holds the directory's lock, and is used by processes of the same user
//! alone. Invariants: who has not got every socket and every configured thing right never says `Prepared`; the store is
//! open in at most one of them, by its own lock; a peer that breaks off, at whatever point, is as good as one that is
//! dead. Not here: when a process gives up its place, and what it does until then (`lifecycle.rs`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};
use seawall_core::drain::{Standing, Target};
use seawall_core::journal::Seq;
use seawall_gateway::{Drains, Handed, Heritage};
use seawall_store::{RealDisk, is_in_use};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// The socket's name in the data directory.
const NAME: &str = "handover.sock";
/// Of what the two say to each other. A process that speaks another one is refused.
const VERSION: u32 = 1;
/// Bytes of a message. Breakers of a thousand routes with large windows take a few million.
const WORDS_BYTES_MAX: usize = 64 << 20;
/// Of what is known, the words around it left out.
const LEGACY_BYTES_MAX: usize = WORDS_BYTES_MAX - (4 << 10);
/// Sockets that go with one message; the kernel takes 253.
const SOCKETS_AT_ONCE: usize = 64;
const SOCKETS_MAX: usize = 4_096;
/// Whoever knocks says at once what it wants, and is answered at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Who was given the sockets has looked up its names and read its certificates by then.
const PREPARE_WITHIN: Duration = Duration::from_secs(60);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "snake_case")]
enum Words {
    /// The first of the new process. That there is a `version` here holds for all versions.
    Asks {
        version: u32,
        program: String,
        node: String,
    },
    /// The sockets follow, in this order.
    Offers {
        program: String,
        pid: u32,
        places: Vec<Place>,
    },
    /// Nothing follows.
    Refuses {
        why: String,
    },
    Prepared,
    /// What is known as [`Legacy`], if it can be read: a successor that cannot begins without.
    Yours {
        entry: Seq,
        #[serde(default)]
        legacy: serde_json::Value,
    },
    Serves,
}

/// Which sockets listen where.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    role: Role,
    configured: SocketAddr,
    address: SocketAddr,
    sockets: usize,
}

/// What a process knows beside what is in its store, as it was when it let nobody in any more.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Legacy {
    /// What it had found out about its upstreams.
    pub(crate) heritage: Heritage,
    pub(crate) drains: Vec<Drained>,
    /// Why no fault may be placed, while the kill switch is on.
    pub(crate) faults_killed: Option<String>,
}

/// What is taken out of service by hand, and stays so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drained {
    kind: String,
    name: String,
    reason: String,
}

impl Drained {
    /// Everything that is drained.
    pub(crate) fn all(drains: &Drains) -> Vec<Self> {
        let drained = |Standing { kind, name, reason, .. }| Self { kind: kind.into(), name, reason };
        drains.standing().into_iter().map(drained).collect()
    }

    /// Drains it, if it is still there: at once, as it has had its time.
    pub(crate) fn again(&self, drains: &Drains) {
        let kind = Target::KINDS.into_iter().find(|kind| *kind == self.kind);
        let target = kind.and_then(|kind| Target::read(kind, &self.name).ok());
        let drained = target.map(|target| drains.drain(&target, &self.reason, Duration::ZERO));
        if !matches!(drained, Some(Ok(_))) {
            tracing::warn!(kind = self.kind, name = self.name, "it was drained, and is not there any more");
        }
    }
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Listener,
    Admin,
    Toxiproxy,
}

/// Every listening socket of a node.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Vec<(Role, Handed)>);

impl Sockets {
    /// These and the gateway's, once more.
    pub(crate) fn and_gateway(&self, doors: Vec<Handed>) -> io::Result<Self> {
        let mut all = Self(doors.into_iter().map(|door| (Role::Listener, door)).collect());
        for (role, Handed { configured, sockets, .. }) in &self.0 {
            for socket in sockets {
                all = all.and(*role, *configured, socket.as_fd())?;
            }
        }
        Ok(all)
    }

    /// And this one, once more.
    pub(crate) fn and(mut self, role: Role, configured: SocketAddr, listener: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = std::net::TcpListener::from(listener.try_clone_to_owned()?);
        let address = socket.local_addr()?;
        self.0.push((role, Handed { configured, address, sockets: vec![socket] }));
        Ok(self)
    }

    /// Takes those for one role out.
    pub(crate) fn take(&mut self, wanted: Role) -> Vec<Handed> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(role, _)| *role == wanted);
        self.0 = left;
        let taken: Vec<(Role, Handed)> = taken;
        taken.into_iter().map(|(_, handed)| handed).collect()
    }

    /// Takes the one for a role out, if it listens where it is wanted.
    pub(crate) fn take_at(&mut self, role: Role, configured: SocketAddr) -> Option<Handed> {
        self.take(role).into_iter().find(|handed| handed.configured == configured)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|(_, handed)| handed.sockets.len()).sum()
    }
}

/// Listens by a socket that was handed over, or by a new one. In the runtime that waits on it.
pub(crate) async fn listen(address: SocketAddr, handed: Option<Handed>) -> io::Result<TcpListener> {
    match handed.and_then(|mut handed| handed.sockets.pop()) {
        Some(socket) => TcpListener::from_std(socket),
        None => TcpListener::bind(address).await,
    }
}

/// Waits until no process has the data directory: what ends lets go of it last.
pub(crate) async fn wait_for_store(dir: &Path) {
    while is_in_use(&RealDisk, dir) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Where a running node can be asked for its place.
#[derive(Debug)]
pub(crate) struct Host {
    listener: UnixListener,
    path: PathBuf,
}

/// The process that takes our place.
#[derive(Debug)]
pub(crate) struct Successor {
    stream: UnixStream,
    /// As the kernel says; zero for one of another namespace.
    pub(crate) pid: i32,
    pub(crate) program: String,
    /// What it was given, once more: if it falls, they are ours again.
    pub(crate) sockets: Sockets,
}

/// The process whose place is taken.
#[derive(Debug)]
pub(crate) struct Predecessor {
    stream: UnixStream,
    pub(crate) pid: u32,
    pub(crate) program: String,
}

/// What a process leaves that gives up its place.
#[derive(Debug)]
pub(crate) struct Left {
    /// Its last entry in the journal.
    pub(crate) entry: Seq,
    pub(crate) legacy: Legacy,
}

impl Host {
    /// In a directory that we have locked: what lies there under this name is left over. Nothing if it cannot be had,
    /// which is told and no reason not to serve.
    pub(crate) fn open(dir: &Path) -> Option<Self> {
        let path = dir.join(NAME);
        let _ = std::fs::remove_file(&path);
        let open = || {
            let listener = UnixListener::bind(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            io::Result::Ok(listener)
        };
        match open() {
            Ok(listener) => Some(Self { listener, path }),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "no other process can take over from this one (`--take-over`)");
                None
            }
        }
    }

    /// Waits for a process that has been given all sockets and lacks nothing to take this one's place.
    ///
    /// # Cancel safety
    /// Whoever is just being talked to is let down.
    pub(crate) async fn successor(&self, node: &str, given: impl Fn() -> io::Result<Sockets>) -> Successor {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept who wants to take over");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match meet(stream, node, &given).await {
                Ok(successor) => return successor,
                Err(error) => tracing::warn!(error = format!("{error:#}"), "nobody took over"),
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn meet(
    mut stream: UnixStream,
    node: &str,
    given: impl Fn() -> io::Result<Sockets>,
) -> anyhow::Result<Successor> {
    let pid = of_same_user(&stream)?.unwrap_or_default();
    let (program, sockets) = match within(ANSWER_WITHIN, hear(&mut stream)).await.and_then(|words| judge(words, node)) {
        Ok(program) => (program, given().context("cannot share the sockets")?),
        Err(error) => {
            let refusal = Words::Refuses { why: format!("{error:#}") };
            let _ = within(ANSWER_WITHIN, say(&mut stream, &refusal)).await;
            return Err(error);
        }
    };
    within(ANSWER_WITHIN, offer(&mut stream, &sockets)).await?;
    match within(PREPARE_WITHIN, hear(&mut stream)).await.context("it did not come so far as to take over")? {
        Words::Prepared => Ok(Successor { stream, pid, program, sockets }),
        other => bail!("it says {other:?} instead of being prepared"),
    }
}

/// Whether whoever asks may have our place: which program it is.
fn judge(words: Words, node: &str) -> anyhow::Result<String> {
    let Words::Asks { version, program, node: wanted } = words else { bail!("it says {words:?} instead of asking") };
    if version != VERSION {
        bail!(
            "version {program} hands over by protocol {version}, and version {} by {VERSION}: stop this node, and start \
             the other",
            env!("CARGO_PKG_VERSION")
        );
    }
    if wanted != node {
        bail!("this is node `{node}`, and not `{wanted}`");
    }
    Ok(program)
}

async fn offer(stream: &mut UnixStream, sockets: &Sockets) -> anyhow::Result<()> {
    let place = |(role, handed): &(Role, Handed)| Place {
        role: *role,
        configured: handed.configured,
        address: handed.address,
        sockets: handed.sockets.len(),
    };
    let places = sockets.0.iter().map(place).collect();
    let (program, pid) = (env!("CARGO_PKG_VERSION").into(), std::process::id());
    say(stream, &Words::Offers { program, pid, places }).await?;
    let sockets: Vec<BorrowedFd<'_>> =
        sockets.0.iter().flat_map(|(_, handed)| &handed.sockets).map(|socket| socket.as_fd()).collect();
    for some in sockets.chunks(SOCKETS_AT_ONCE) {
        let sent = stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_AT_ONCE))];
            let mut with = SendAncillaryBuffer::new(&mut space);
            with.push(SendAncillaryMessage::ScmRights(some));
            Ok(sendmsg(&*stream, &[IoSlice::new(b".")], &mut with, SendFlags::NOSIGNAL)?)
        });
        sent.await.context("cannot send the sockets")?;
    }
    Ok(())
}

impl Successor {
    /// Waits until it has broken off: before it is told that the store is its own, it has nothing to say.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn gone(&self) {
        let peek = || Ok(recv(&self.stream, &mut [0], RecvFlags::PEEK)?);
        let _ = self.stream.async_io(Interest::READABLE, peek).await;
    }

    /// Tells it that the store is its own, and waits until it serves. False if it breaks off before.
    pub(crate) async fn serves(&mut self, entry: Seq, legacy: &Legacy) -> bool {
        let mut legacy = serde_json::to_value(legacy).unwrap_or_default();
        if legacy.to_string().len() > LEGACY_BYTES_MAX {
            tracing::warn!(
                "what is known of upstreams is too much to be handed over: breakers, health and drains begin anew there"
            );
            legacy = serde_json::Value::Null;
        }
        let told = say(&mut self.stream, &Words::Yours { entry, legacy }).await;
        told.is_ok() && matches!(hear(&mut self.stream).await, Ok(Words::Serves))
    }
}

impl Predecessor {
    /// Asks the process that runs a node for its place. Nothing if there is none.
    ///
    /// # Errors
    /// Why that process keeps it.
    pub(crate) async fn ask(dir: &Path, node: &str) -> anyhow::Result<Option<(Self, Sockets)>> {
        let path = dir.join(NAME);
        let mut stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            // Left over by one that was killed, or never there.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot ask at `{}`", path.display())),
        };
        of_same_user(&stream)?;
        let (version, program) = (VERSION, env!("CARGO_PKG_VERSION").into());
        let asked = async {
            say(&mut stream, &Words::Asks { version, program, node: node.into() }).await?;
            match hear(&mut stream).await? {
                Words::Offers { program, pid, places } => Ok((program, pid, receive(&stream, places).await?)),
                Words::Refuses { why } => bail!("the process that runs keeps its place: {why}"),
                other => bail!("the process that runs says {other:?} instead of handing over"),
            }
        };
        let asked = within(ANSWER_WITHIN * 2, asked).await;
        let (program, pid, sockets) = asked.with_context(|| {
            let at = path.display();
            format!("the process that runs does not hand over (asked at `{at}`): it may just be ending, or handing over to another; look at its log, and try again")
        })?;
        Ok(Some((Self { stream, pid, program }, sockets)))
    }

    /// Tells it that nothing is lacking, and waits until the store is ours. What it left; none if it broke off.
    ///
    /// # Cancel safety
    /// Dropped, it is let down.
    pub(crate) async fn leaves(&mut self, dir: &Path) -> Option<Left> {
        let told = say(&mut self.stream, &Words::Prepared).await;
        let heard = if told.is_ok() { hear(&mut self.stream).await.ok() } else { None };
        let left = match heard {
            Some(Words::Yours { entry, legacy: serde_json::Value::Null }) => {
                Some(Left { entry, legacy: Legacy::default() })
            }
            Some(Words::Yours { entry, legacy }) => {
                let legacy = serde_json::from_value(legacy).unwrap_or_else(|error| {
                    tracing::warn!(%error, "what the other process knew cannot be read: breakers, health and drains begin anew");
                    Legacy::default()
                });
                Some(Left { entry, legacy })
            }
            _ => {
                tracing::warn!(
                    pid = self.pid,
                    "the process that handed over broke off; its sockets are here all the same"
                );
                None
            }
        };
        wait_for_store(dir).await;
        left
    }

    /// Tells it that we serve.
    pub(crate) async fn relieve(mut self) {
        // One that is gone needs no telling.
        let _ = say(&mut self.stream, &Words::Serves).await;
    }
}

/// The peer's process, if it is one of the same user.
fn of_same_user(stream: &UnixStream) -> anyhow::Result<Option<i32>> {
    let peer = stream.peer_cred().context("cannot see whose process it is")?;
    let own = rustix::process::geteuid().as_raw();
    anyhow::ensure!(peer.uid() == own, "it is a process of user {}, not of {own}", peer.uid());
    Ok(peer.pid())
}

async fn within<T>(time: Duration, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| bail!("no answer within {} s", time.as_secs()))
}

/// Length, then JSON.
async fn say(stream: &mut UnixStream, words: &Words) -> anyhow::Result<()> {
    let text = serde_json::to_vec(words)?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
    stream.write_all(&[&length[..], &text].concat()).await.context("it is gone")
}

async fn hear(stream: &mut UnixStream) -> anyhow::Result<Words> {
    let length = stream.read_u32().await.context("it is gone")? as usize;
    anyhow::ensure!(length <= WORDS_BYTES_MAX, "what it says is not understood");
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await.context("it is gone")?;
    serde_json::from_slice(&text).context("what it says is not understood")
}

async fn receive(stream: &UnixStream, places: Vec<Place>) -> anyhow::Result<Sockets> {
    let wanted = places.iter().fold(0_usize, |sum, place| sum.saturating_add(place.sockets));
    anyhow::ensure!(wanted <= SOCKETS_MAX, "{wanted} sockets are too many");
    let mut received: Vec<OwnedFd> = Vec::new();
    while received.len() < wanted {
        let some = stream.async_io(Interest::READABLE, || receive_some(stream)).await;
        received.extend(some.context("cannot receive the sockets")?);
    }
    let mut received = received.into_iter().map(std::net::TcpListener::from);
    let handed = places.into_iter().map(|Place { role, configured, address, sockets }| {
        (role, Handed { configured, address, sockets: received.by_ref().take(sockets).collect() })
    });
    Ok(Sockets(handed.collect()))
}

fn receive_some(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_AT_ONCE))];
    let (mut with, mut byte) = (RecvAncillaryBuffer::new(&mut space), [0]);
    let got = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut with, RecvFlags::CMSG_CLOEXEC)?;
    let sockets: Vec<OwnedFd> = with
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        })
        .flatten()
        .collect();
    if got.bytes == 0 || sockets.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("this process has no room for more open files"));
    }
    Ok(sockets)
}
