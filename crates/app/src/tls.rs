//! Certificates and keys: read from their files, looked at for what will go wrong, and read again while a node runs.
//!
//! Picture a doorkeeper who looks at the pass of every door each ten seconds, and at once when told to (SIGHUP). A new
//! one that fits is shown from then on; one that does not (half written, a key of another certificate) changes nothing,
//! and is told once. Passes that run out are told a month, a week and a day ahead, and when it has happened. Not here:
//! what the configuration says of them (`config/tls.rs`), the handshake (`gateway/tls`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::observation::CertificateSnapshot;
use seawall_core::policy::{Protocol, Route};
use seawall_core::time::Wall;
use seawall_gateway::tls::{
    Authorities, ClientMaterial, ClientSide, Clients, Facts, Identity, ServerMaterial, ServerSide, Tls, TlsError,
};
use seawall_store::Journal;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::{AppConfig, FileAt, Finding, ListenerTls, PairAt, Severity, UpstreamTls, pin_text};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A file of certificates longer than this is none.
const FILE_BYTES_MAX: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);
/// How long before its end a certificate is told of; the last one is the end itself.
const TOLD_AHEAD: [Duration; 4] =
    [Duration::from_secs(30 * 86_400), Duration::from_secs(7 * 86_400), DAY, Duration::ZERO];

/// Who uses a file.
#[derive(Clone)]
enum Side {
    Listener(Box<ListenerTls>, Arc<ServerSide>),
    Upstream(Box<UpstreamTls>, Arc<ClientSide>),
}

/// One listener or upstream that speaks TLS.
#[derive(Clone)]
struct Door {
    /// Its place among the policy's listeners, or upstreams.
    index: usize,
    speech: Speech,
    /// As the journal and the metrics name it.
    subject: String,
    side: Side,
    /// What its files held when they were last taken, or last refused.
    seen: [u8; 32],
    shown: Vec<Shown>,
}

/// A certificate in use.
#[derive(Clone)]
struct Shown {
    file: PathBuf,
    facts: Facts,
    at: Finding,
    /// How many of [`TOLD_AHEAD`] have been told.
    told: usize,
}

/// Everything that speaks TLS, and its files.
#[derive(Default)]
pub(crate) struct Doors(Vec<Door>);

/// What a door's files hold.
struct Gathered<M> {
    material: M,
    shown: Vec<Shown>,
    findings: Vec<Finding>,
    digest: [u8; 32],
}

/// Reads the files of one door and remembers what was in them.
#[derive(Default)]
struct Files {
    digest: Sha256,
    findings: Vec<Finding>,
    shown: Vec<Shown>,
}

fn found(at: &Finding, severity: Severity, message: String, hint: Option<&str>) -> Finding {
    let mut finding = at.clone();
    (finding.severity, finding.message, finding.hint) = (severity, message, hint.map(Into::into));
    finding
}

impl Files {
    fn error(&mut self, file: &FileAt, why: impl std::fmt::Display) {
        self.findings.push(found(&file.at, Severity::Error, format!("`{}`: {why}", file.path.display()), None));
    }

    fn read(&mut self, file: &FileAt) -> Option<Vec<u8>> {
        let read = match fs::metadata(&file.path) {
            Ok(facts) if facts.len() > FILE_BYTES_MAX => {
                Err(format!("{} bytes are too many for certificates; {FILE_BYTES_MAX} at most", facts.len()))
            }
            _ => fs::read(&file.path).map_err(|error| format!("cannot be read: {error}")),
        };
        self.digest.update(read.as_ref().map_or(0, Vec::len).to_le_bytes());
        match read {
            Ok(bytes) => {
                self.digest.update(&bytes);
                Some(bytes)
            }
            Err(why) => {
                self.error(file, why);
                None
            }
        }
    }

    fn pair(&mut self, pair: &PairAt) -> Option<Identity> {
        let (cert, key) = (self.read(&pair.cert), self.read(&pair.key));
        if fs::metadata(&pair.key.path).is_ok_and(|facts| facts.permissions().mode() & 0o007 != 0) {
            let message = format!("everybody on this machine can read `{}`", pair.key.path.display());
            self.findings.push(found(&pair.key.at, Severity::Warning, message, Some("`chmod 600` it")));
        }
        match Identity::from_pem(&cert?, &key?) {
            Ok(identity) => {
                self.show(&pair.cert, identity.facts());
                Some(identity)
            }
            Err(error @ (TlsError::KeyMismatch(_) | TlsError::Pem(_))) if error.to_string().contains("key") => {
                self.error(&pair.key, error);
                None
            }
            Err(error) => {
                self.error(&pair.cert, error);
                None
            }
        }
    }

    fn authorities(&mut self, file: &FileAt) -> Option<Authorities> {
        match Authorities::from_pem(&self.read(file)?) {
            Ok(authorities) => {
                authorities.facts().iter().for_each(|facts| self.show(file, facts));
                Some(authorities)
            }
            Err(error) => {
                self.error(file, error);
                None
            }
        }
    }

    fn show(&mut self, file: &FileAt, facts: &Facts) {
        self.shown.push(Shown { file: file.path.clone(), facts: facts.clone(), at: file.at.clone(), told: 0 });
    }

    fn done<M>(self, material: Option<M>) -> Result<Gathered<M>, (Vec<Finding>, [u8; 32])> {
        let Self { digest, findings, shown } = self;
        let digest = digest.finalize().into();
        let is_sound = findings.iter().all(|finding| finding.severity != Severity::Error);
        match material {
            Some(material) if is_sound => Ok(Gathered { material, shown, findings, digest }),
            _ => Err((findings, digest)),
        }
    }
}

type Gathering<M> = Result<Gathered<M>, (Vec<Finding>, [u8; 32])>;

/// What is spoken behind a door.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// Requests by either version, as the client likes.
    Either,
    /// HTTP/1.1.
    Lines,
    /// HTTP/2.
    Frames,
    /// Bytes of any protocol.
    Bytes,
}

impl Speech {
    /// What is offered, the liked one first (ALPN).
    fn protocols(self) -> Vec<&'static [u8]> {
        match self {
            Self::Either => vec![b"h2", b"http/1.1"],
            Self::Lines => vec![b"http/1.1"],
            Self::Frames => vec![b"h2"],
            Self::Bytes => Vec::new(),
        }
    }
}

fn of_listener(tls: &ListenerTls, speech: Speech) -> Gathering<ServerMaterial> {
    let mut files = Files::default();
    let identities: Vec<_> = tls.pairs.iter().map(|pair| files.pair(pair)).collect();
    let clients = tls.client_ca.as_ref().map(|file| files.authorities(file));
    let (required, passed_on) = (tls.client_required, tls.client_passed_on);
    let clients = match clients {
        None => Some(None),
        Some(authorities) => authorities.map(|authorities| Some(Clients { authorities, required, passed_on })),
    };
    let identities: Option<Vec<Identity>> = identities.into_iter().collect();
    let material = identities.zip(clients).map(|(identities, clients)| ServerMaterial {
        identities,
        clients,
        oldest: tls.oldest,
        protocols: speech.protocols(),
    });
    files.done(material)
}

fn of_upstream(tls: &UpstreamTls, speech: Speech) -> Gathering<ClientMaterial> {
    let mut files = Files::default();
    let authorities = match (&tls.ca, tls.verifies) {
        (_, false) => Some(None),
        (Some(file), true) => files.authorities(file).map(Some),
        (None, true) => match Authorities::of_system() {
            Ok(authorities) => Some(Some(authorities)),
            Err(error) => {
                let message = format!("the system's certificates of authorities cannot be had: {error}");
                let hint = "install `ca-certificates`, or name a `ca_file`";
                files.findings.push(found(&tls.at, Severity::Error, message, Some(hint)));
                None
            }
        },
    };
    let identity = match &tls.pair {
        None => Some(None),
        Some(pair) => files.pair(pair).map(Some),
    };
    let material = authorities.zip(identity).map(|(authorities, identity)| ClientMaterial {
        authorities,
        pins: tls.pins.clone(),
        identity,
        oldest: tls.oldest,
        name: tls.name.clone(),
        protocols: speech.protocols(),
    });
    files.done(material)
}

/// Reads everything, for a node that begins.
///
/// # Errors
/// What is wrong, each at its place in the configuration. What is only doubtful comes along with the doors.
pub(crate) fn load(config: &AppConfig) -> Result<(Doors, Vec<Finding>), Vec<Finding>> {
    let (mut doors, mut findings) = (Vec::new(), Vec::new());
    let listeners = config.policy.listeners.iter().zip(&config.tls.listeners).enumerate();
    for (index, (listener, said)) in listeners {
        let Some(said) = said else { continue };
        let speech = if config.policy.tcp_route(index).is_some() { Speech::Bytes } else { Speech::Either };
        let opened = open(of_listener(said, speech), ServerSide::new, &said.pairs[0].cert.at, &mut findings);
        let subject = format!("listener:{}", listener.address);
        let side = |side| Side::Listener(Box::new(said.clone()), side);
        doors.extend(opened.map(|opened| opened.door((index, speech), subject, side)));
    }
    let upstreams = config.policy.upstreams.iter().zip(&config.tls.upstreams).enumerate();
    for (index, (upstream, said)) in upstreams {
        let Some(said) = said else { continue };
        let is_of_connections = |route: &Route| route.upstream.index() == index && route.protocol == Protocol::Tcp;
        let speech = match config.policy.routes.iter().any(is_of_connections) {
            true => Speech::Bytes,
            false if upstream.http2 => Speech::Frames,
            false => Speech::Lines,
        };
        let opened = open(of_upstream(said, speech), ClientSide::new, &said.at, &mut findings);
        let subject = format!("upstream:{}", upstream.name);
        let side = |side| Side::Upstream(Box::new(said.clone()), side);
        doors.extend(opened.map(|opened| opened.door((index, speech), subject, side)));
    }
    let is_sound = findings.iter().all(|finding| finding.severity != Severity::Error);
    if is_sound { Ok((Doors(doors), findings)) } else { Err(findings) }
}

/// A side made of its files.
struct Opened<S> {
    side: Arc<S>,
    digest: [u8; 32],
    shown: Vec<Shown>,
}

impl<S> Opened<S> {
    fn door(self, (index, speech): (usize, Speech), subject: String, side: impl FnOnce(Arc<S>) -> Side) -> Door {
        Door { index, speech, subject, side: side(self.side), seen: self.digest, shown: self.shown }
    }
}

/// Nothing if the files make no side, which is told.
fn open<M, S>(
    gathered: Gathering<M>,
    make: impl FnOnce(&M) -> Result<S, TlsError>,
    at: &Finding,
    findings: &mut Vec<Finding>,
) -> Option<Opened<S>> {
    let Gathered { material, shown, findings: doubts, digest } = match gathered {
        Ok(gathered) => gathered,
        Err((wrong, _)) => {
            findings.extend(wrong);
            return None;
        }
    };
    findings.extend(doubts);
    match make(&material) {
        Ok(side) => Some(Opened { side: Arc::new(side), digest, shown }),
        Err(error) => {
            findings.push(found(at, Severity::Error, error.to_string(), None));
            None
        }
    }
}

/// What `check` says of the files: all that is wrong, and what will be.
pub(crate) fn examine(config: &AppConfig, now: Wall) -> Vec<Finding> {
    match load(config) {
        Err(findings) => findings,
        Ok((doors, mut findings)) => {
            findings.extend(doors.0.iter().flat_map(|door| &door.shown).filter_map(|shown| shown.doubt(now)));
            findings
        }
    }
}

impl Shown {
    /// What is to be said of its time.
    fn doubt(&self, now: Wall) -> Option<Finding> {
        let (file, pin) = (self.file.display(), pin_text(&self.facts.pin));
        let Some(left) = self.facts.left(now) else {
            let message = format!("`{file}` ran out on {}: nobody who looks believes it", day(self.facts.not_after));
            return Some(found(&self.at, Severity::Warning, message, Some("renew it")));
        };
        if self.facts.not_before > now {
            let message = format!("`{file}` holds from {} on: nobody believes it yet", day(self.facts.not_before));
            return Some(found(&self.at, Severity::Warning, message, Some("is the clock of this machine right?")));
        }
        if left > TOLD_AHEAD[0] {
            return None;
        }
        let message = format!("`{file}` runs out on {}, in {}", day(self.facts.not_after), days(left));
        let hint = format!("renew it; with the same key its pin stays {pin}");
        Some(found(&self.at, Severity::Audit, message, Some(&hint)))
    }
}

fn days(left: Duration) -> String {
    match left.as_secs() / 86_400 {
        0 => "less than a day".into(),
        1 => "1 day".into(),
        days => format!("{days} days"),
    }
}

fn day(at: Wall) -> String {
    let timestamp = i64::try_from(at.as_millis()).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| "a day beyond all calendars".into(), |at| at.strftime("%Y-%m-%d").to_string())
}

impl Side {
    /// What the configuration says of it, wherever it says so.
    fn said(&self) -> String {
        let file = |file: &Option<FileAt>| format!("{:?}", file.as_ref().map(|file| &file.path));
        let pair = |pair: &PairAt| format!("{:?} {:?}", pair.cert.path, pair.key.path);
        match self {
            Self::Listener(said, _) => {
                let ListenerTls { pairs, client_ca, client_required, client_passed_on, oldest } = &**said;
                let pairs: Vec<_> = pairs.iter().map(pair).collect();
                format!("{pairs:?} {} {client_required} {client_passed_on:?} {oldest:?}", file(client_ca))
            }
            Self::Upstream(said, _) => {
                let UpstreamTls { ca, pair: own, name, pins, verifies, oldest, at: _ } = &**said;
                format!("{} {:?} {name:?} {pins:?} {verifies} {oldest:?}", file(ca), own.as_ref().map(pair))
            }
        }
    }
}

/// The doors of a running node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shared {
    doors: Arc<Mutex<Doors>>,
    nudge: Arc<Notify>,
}

/// Doors that could be the next ones.
pub(crate) struct Next {
    doors: Doors,
    changed: Vec<String>,
    listeners: usize,
    upstreams: usize,
}

impl Next {
    /// What is different, a line each.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.changed.clone()
    }
}

impl Shared {
    pub(crate) fn new(doors: Doors) -> Self {
        Self { doors: Arc::new(Mutex::new(doors)), nudge: Arc::default() }
    }

    /// The files are looked at now.
    pub(crate) fn look_now(&self) {
        self.nudge.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Doors> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in use now, for the metrics.
    pub(crate) fn snapshot(&self) -> Vec<CertificateSnapshot> {
        self.lock().snapshot()
    }

    /// Reads the files of another configuration. A door of which it says the same stays the very same, and what clients
    /// and upstreams have agreed on with it.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub(crate) fn next(&self, config: &AppConfig) -> Result<Next, Vec<Finding>> {
        let (mut doors, _) = load(config)?;
        let (mut known, mut changed) = (self.lock().0.clone(), Vec::new());
        for door in &mut doors.0 {
            let place = known.iter().position(|known| known.subject == door.subject);
            match place.map(|place| known.remove(place)) {
                Some(same) if same.side.said() == door.side.said() && same.speech == door.speech => {
                    *door = Door { index: door.index, ..same }
                }
                _ => changed.push(format!("{}: tls", door.subject.replacen(':', " ", 1))),
            }
        }
        let policy = &config.policy;
        let stays = |subject: &str| {
            policy.listeners.iter().any(|it| subject == format!("listener:{}", it.address))
                || policy.upstreams.iter().any(|it| subject == format!("upstream:{}", it.name))
        };
        let gone = known.iter().filter(|gone| stays(&gone.subject));
        changed.extend(gone.map(|gone| format!("{}: tls off", gone.subject.replacen(':', " ", 1))));
        Ok(Next { doors, changed, listeners: policy.listeners.len(), upstreams: policy.upstreams.len() })
    }

    /// Looks after these from now on.
    pub(crate) fn take(&self, next: Next) -> Tls {
        let tls = next.doors.tls(next.listeners, next.upstreams);
        *self.lock() = next.doors;
        // A door that stays may have files that have changed.
        self.look_now();
        tls
    }
}

impl Doors {
    /// As the gateway wants them.
    pub(crate) fn tls(&self, listeners: usize, upstreams: usize) -> Tls {
        let mut tls = Tls { listeners: vec![None; listeners], upstreams: vec![None; upstreams] };
        for door in &self.0 {
            match &door.side {
                Side::Listener(_, side) => tls.listeners[door.index] = Some(Arc::clone(side)),
                Side::Upstream(_, side) => tls.upstreams[door.index] = Some(Arc::clone(side)),
            }
        }
        tls
    }

    fn snapshot(&self) -> Vec<CertificateSnapshot> {
        // A file of many authorities is one line: the first of them to end.
        let mut first: BTreeMap<(&str, String), &Facts> = BTreeMap::new();
        for door in &self.0 {
            for shown in &door.shown {
                let known = first.entry((&door.subject, shown.file.display().to_string())).or_insert(&shown.facts);
                if shown.facts.not_after < known.not_after {
                    *known = &shown.facts;
                }
            }
        }
        let lines = first.into_iter().map(|((subject, file), facts)| CertificateSnapshot {
            subject: subject.into(),
            file,
            names: facts.names.join(" "),
            not_after_ms: facts.not_after.as_millis(),
            pin: pin_text(&facts.pin),
        });
        lines.collect()
    }

    /// Looks at every file and takes what has changed.
    fn look(&mut self, journal: &Journal, cause: Seq, now: Wall) {
        for door in &mut self.0 {
            door.look(journal, cause);
            for shown in &mut door.shown {
                shown.tell(&door.subject, journal, cause, now);
            }
        }
    }
}

impl Door {
    fn look(&mut self, journal: &Journal, cause: Seq) {
        let taken = match &self.side {
            Side::Listener(said, side) => {
                take(self.seen, of_listener(said, self.speech), |material| side.replace(material))
            }
            Side::Upstream(said, side) => {
                take(self.seen, of_upstream(said, self.speech), |material| side.replace(material))
            }
        };
        let draft = |kind| Draft::new(kind, self.subject.clone()).because(Some(cause));
        match taken {
            Taken::Same => {}
            Taken::New(shown, digest) => {
                let files =
                    shown.iter().map(|shown| format!("{} until {}", shown.file.display(), day(shown.facts.not_after)));
                let files = files.collect::<Vec<_>>().join(", ");
                tracing::info!(subject = self.subject, files, "new certificates are in use");
                journal.record(draft(Kind::CertificateChanged).with("files", files));
                (self.shown, self.seen) = (shown, digest);
            }
            Taken::Refused(why, digest) => {
                tracing::error!(subject = self.subject, why, "new certificates cannot be used; the old ones stay");
                journal.record(draft(Kind::CertificateRefused).with("why", why));
                self.seen = digest;
            }
        }
    }
}

enum Taken {
    Same,
    New(Vec<Shown>, [u8; 32]),
    Refused(String, [u8; 32]),
}

fn take<M>(seen: [u8; 32], read: Gathering<M>, put: impl FnOnce(&M) -> Result<(), TlsError>) -> Taken {
    match read {
        Ok(gathered) if gathered.digest == seen => Taken::Same,
        Err((_, digest)) if digest == seen => Taken::Same,
        Ok(gathered) => match put(&gathered.material) {
            Ok(()) => Taken::New(gathered.shown, gathered.digest),
            Err(error) => Taken::Refused(error.to_string(), gathered.digest),
        },
        Err((findings, digest)) => {
            let errors = findings.into_iter().filter(|finding| finding.severity == Severity::Error);
            Taken::Refused(errors.map(|finding| finding.message).collect::<Vec<_>>().join("; "), digest)
        }
    }
}

impl Shown {
    /// Tells each mark once, and several that were passed at once as one.
    fn tell(&mut self, subject: &str, journal: &Journal, cause: Seq, now: Wall) {
        let left = self.facts.left(now).unwrap_or_default();
        let passed = TOLD_AHEAD.iter().filter(|ahead| left <= **ahead).count();
        if passed <= self.told {
            return;
        }
        self.told = passed;
        let (file, until) = (self.file.display(), day(self.facts.not_after));
        let draft = Draft::new(Kind::CertificateExpiring, subject).because(Some(cause));
        journal.record(draft.with("file", file).with("until", &until).with("days_left", left.as_secs() / 86_400));
        match left.is_zero() {
            true => tracing::error!(subject, file = %self.file.display(), until, "a certificate has run out"),
            false => tracing::warn!(subject, file = %self.file.display(), until, "a certificate runs out soon"),
        }
    }
}

/// Looks again and again, and when nudged, until stopped.
pub(crate) async fn keep(
    doors: Shared,
    journal: Journal,
    cause: Seq,
    wall: impl Fn() -> Wall + Send + 'static,
    stop: CancellationToken,
) {
    loop {
        let (of_look, journal, now) = (doors.clone(), journal.clone(), wall());
        // Files are read on a thread that may wait for a disk.
        let looked = tokio::task::spawn_blocking(move || of_look.lock().look(&journal, cause, now));
        if let Err(error) = looked.await {
            tracing::error!(%error, "a look at the certificates failed");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = doors.nudge.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
