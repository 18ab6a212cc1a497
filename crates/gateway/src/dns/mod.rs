//! From a name to its addresses, and how long they are good for: `/etc/hosts`, then the servers of `/etc/resolv.conf`.
//!
//! Picture the system's own resolver, with the one thing it does not tell: the TTL. The same files decide, read anew
//! for every lookup: which sources in which order, which servers, which domains are searched. Where they say something
//! that is not understood here, the system's own is asked, and tells no TTL. When nobody can answer for one domain, the
//! next is not searched, which might have another's address; the name as it is can be nobody else's, and is asked for.
//! Not here: how long an answer is kept (`core/addresses.rs`), who asks (`name.rs`), what a packet means (the library).

mod files;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, Name, ParsedName};
use domain::rdata::AllRecordData;
use domain::resolv::StubResolver;
use domain::resolv::stub::conf::{ResolvConf, ServerConf, Transport};
use seawall_core::addresses::{Family, Found};

use files::{Files, Servers, Source};

/// Every address of `host:port`.
///
/// # Errors
/// When the name does not resolve.
pub(crate) async fn look_up(host_port: &str) -> io::Result<Found> {
    let files = tokio::task::spawn_blocking(Files::of_the_system).await.map_err(io::Error::other)?;
    look_up_by(&files, host_port).await
}

/// The same, by the system's own resolver, which tells no TTL.
///
/// # Errors
/// When the name does not resolve.
pub(crate) async fn look_up_by_system(host_port: &str) -> io::Result<Found> {
    Ok(tokio::net::lookup_host(host_port).await?.collect::<Vec<_>>().into())
}

async fn look_up_by(files: &Files, host_port: &str) -> io::Result<Found> {
    let Some((host, port)) = host_port.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)))
    else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{host_port}` is no `host:port`")));
    };
    let Some((sources, servers)) = files.understood() else { return look_up_by_system(host_port).await };
    for source in sources {
        let answer = match source {
            Source::Files => files.addresses(host).map(Answered::lasting),
            Source::Dns => servers.search(host).await?,
            Source::System => return look_up_by_system(host_port).await,
        };
        if let Some(answer) = answer {
            return Ok(answer.at(port));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "nobody knows this name"))
}

/// Addresses without a port.
#[derive(Debug, Default)]
struct Answered {
    addresses: Vec<IpAddr>,
    ttl: Option<Duration>,
    without: Option<Family>,
}

impl Answered {
    /// Nobody told how long they are good for.
    fn lasting(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, ttl: None, without: None }
    }

    fn at(self, port: u16) -> Found {
        let addresses = self.addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        Found { addresses, ttl: self.ttl, without: self.without }
    }
}

impl Servers {
    /// The addresses of the first of the names that `host` may stand for which has any.
    ///
    /// # Errors
    /// When nobody could tell, of one of these names, and the name as it is has none.
    async fn search(&self, host: &str) -> io::Result<Option<Answered>> {
        if let Some(known) = special(host) {
            return Ok(known.map(Answered::lasting));
        }
        let mut failure = None;
        for candidate in self.candidates(host) {
            let is_itself = candidate.trim_end_matches('.') == host.trim_end_matches('.');
            // Too long with this domain, or no name at all.
            let Ok(name) = candidate.parse::<Name<Vec<u8>>>() else { continue };
            if failure.is_some() && !is_itself {
                continue;
            }
            match self.addresses(&name).await {
                Ok(Some(answer)) => return Ok(Some(answer)),
                Ok(None) => {}
                Err(error) => {
                    let error = io::Error::new(error.kind(), format!("`{}`: {error}", candidate.trim_end_matches('.')));
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Both families at once. One of which nobody could tell does not keep the other from being used.
    async fn addresses(&self, name: &Name<Vec<u8>>) -> io::Result<Option<Answered>> {
        let six = async { if self.without_ipv6 { Ok(Part::default()) } else { self.ask(name, Rtype::AAAA).await } };
        let (four, six) = tokio::join!(self.ask(name, Rtype::A), six);
        let (whole, without) = match (four, six) {
            (Ok(four), Ok(six)) => (four.and(six), None),
            (Ok(four), Err(error)) if four.addresses.is_empty() => return Err(error),
            (Err(error), Ok(six)) if six.addresses.is_empty() => return Err(error),
            (Ok(four), Err(_)) => (four, Some(Family::V6)),
            (Err(_), Ok(six)) => (six, Some(Family::V4)),
            (Err(error), Err(_)) => return Err(error),
        };
        let answer = Answered { addresses: whole.addresses, ttl: whole.ttl, without };
        Ok(Some(answer).filter(|answer| !answer.addresses.is_empty()))
    }

    /// One server after the other, as often as the file says, until one knows, or knows that there is nothing.
    async fn ask(&self, name: &Name<Vec<u8>>, what: Rtype) -> io::Result<Part> {
        let mut failure = io::Error::other("no server to ask");
        for _ in 0..self.attempts {
            for server in &self.addresses {
                match self.ask_one(*server, name, what).await {
                    Ok(part) => return Ok(part),
                    Err(error) => failure = error,
                }
            }
        }
        Err(failure)
    }

    async fn ask_one(&self, server: SocketAddr, name: &Name<Vec<u8>>, what: Rtype) -> io::Result<Part> {
        let mut conf = ResolvConf::new();
        conf.servers = vec![ServerConf::new(server, if self.by_tcp { Transport::Tcp } else { Transport::UdpTcp })];
        conf.options.timeout = self.timeout;
        conf.finalize();
        // One for each question: what it keeps running ends with it, and belongs to no other worker's runtime.
        let answer = StubResolver::from_conf(conf).query((name, what)).await.map_err(|error| {
            let why =
                if error.kind() == io::ErrorKind::TimedOut { "no answer in time".into() } else { error.to_string() };
            io::Error::new(error.kind(), format!("{server}: {why}"))
        })?;
        match answer.header().rcode() {
            Rcode::NOERROR => Part::read(answer.for_slice(), what)
                .ok_or_else(|| io::Error::other(format!("{server}: an answer that makes no sense"))),
            Rcode::NXDOMAIN => Ok(Part::default()),
            code => Err(io::Error::other(format!("{server}: {code}"))),
        }
    }
}

/// What an answer says of one family.
#[derive(Debug, Default, PartialEq)]
struct Part {
    addresses: Vec<IpAddr>,
    /// The least of all that led there.
    ttl: Option<Duration>,
}

impl Part {
    /// `None` if it makes no sense: aliases that stand for each other, or what is no record.
    fn read(message: &Message<[u8]>, what: Rtype) -> Option<Self> {
        let name = message.canonical_name()?;
        let mut part = Self::default();
        for record in message.answer().ok()?.limit_to::<AllRecordData<&[u8], ParsedName<&[u8]>>>() {
            let record = record.ok()?;
            let is_asked_for = record.rtype() == what && *record.owner() == name;
            let address: Option<IpAddr> = match record.data() {
                AllRecordData::Cname(_) => None,
                AllRecordData::A(a) if is_asked_for => Some(a.addr().into()),
                AllRecordData::Aaaa(aaaa) if is_asked_for => Some(aaaa.addr().into()),
                _ => continue,
            };
            part.addresses.extend(address);
            part.lasts(record.ttl().as_secs());
        }
        Some(part)
    }

    /// A TTL that does not fit 31 bits is none (RFC 2181, section 8).
    fn lasts(&mut self, ttl_s: u32) {
        let ttl = Duration::from_secs(i32::try_from(ttl_s).map_or(0, |_| ttl_s.into()));
        self.ttl = Some(self.ttl.map_or(ttl, |least| least.min(ttl)));
    }

    fn and(mut self, other: Self) -> Self {
        // Of a family that has no address it does not matter how long that is good for: the other's end has both asked
        // for.
        match (self.addresses.is_empty(), other.addresses.is_empty()) {
            (true, _) => other,
            (_, true) => self,
            _ => {
                self.addresses.extend(other.addresses);
                self.ttl = self.ttl.min(other.ttl);
                self
            }
        }
    }
}

/// Names that need no asking (RFC 6761): this machine, and one that nobody has.
fn special(host: &str) -> Option<Option<Vec<IpAddr>>> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let last = host.rsplit('.').next();
    match last {
        Some("localhost") => Some(Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])),
        Some("invalid") => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use domain::base::iana::Class;
    use domain::base::message_builder::AnswerBuilder;
    use domain::base::{MessageBuilder, Record, Ttl};
    use domain::rdata::{A, Aaaa, Cname};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, UdpSocket};
    use tokio::task::JoinSet;

    use super::*;

    /// What a server says of a name: a code, and lines such as `30 a 10.0.0.1`. `cut` has it ask again over TCP.
    type Script = fn(name: &str, what: Rtype) -> (Rcode, &'static str);

    /// A server on this machine, which speaks for as long as it lives.
    struct Server {
        address: SocketAddr,
        asked: Arc<Mutex<Vec<String>>>,
        _tasks: JoinSet<()>,
    }

    impl Server {
        async fn start(script: Script) -> Self {
            // Of a port that is free for one of them, somebody else may have the other.
            let (udp, tcp, address) = loop {
                let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let address = udp.local_addr().unwrap();
                if let Ok(tcp) = TcpListener::bind(address).await {
                    break (udp, tcp, address);
                }
            };
            let (asked, mut tasks) = (Arc::<Mutex<Vec<String>>>::default(), JoinSet::new());
            let of_udp = Arc::clone(&asked);
            tasks.spawn(async move {
                let mut bytes = [0; 4096];
                loop {
                    let (length, from) = udp.recv_from(&mut bytes).await.unwrap();
                    let answer = answer(&bytes[..length], script, &of_udp, "udp");
                    udp.send_to(&answer, from).await.unwrap();
                }
            });
            let of_tcp = Arc::clone(&asked);
            tasks.spawn(async move {
                loop {
                    let (mut stream, _) = tcp.accept().await.unwrap();
                    let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
                    stream.read_exact(&mut bytes).await.unwrap();
                    let answer = answer(&bytes, script, &of_tcp, "tcp");
                    stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            });
            Self { address, asked, _tasks: tasks }
        }

        fn asked(&self) -> Vec<String> {
            let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
            asked.sort();
            asked
        }
    }

    fn answer(question: &[u8], script: Script, asked: &Mutex<Vec<String>>, by: &str) -> Vec<u8> {
        let question = Message::from_octets(question).unwrap();
        assert!(question.opt().is_some(), "we say how much we take in one piece (EDNS)");
        let (name, what) = question.first_question().map(|it| (it.qname().to_string(), it.qtype())).unwrap();
        asked.lock().unwrap().push(format!("{by} {what} {name}"));
        let (code, lines) = script(&name, what);
        let mut builder = MessageBuilder::new_vec().start_answer(&question, code).unwrap();
        if lines == "cut" && by == "udp" {
            builder.header_mut().set_tc(true);
            return builder.finish();
        }
        lines
            .split(", ")
            .filter(|line| !line.is_empty() && *line != "cut")
            .for_each(|line| push(&mut builder, &name, line));
        if lines == "cut" {
            push(&mut builder, &name, "9 a 10.0.0.9");
        }
        builder.finish()
    }

    /// `30 a 10.0.0.1`, `30 alias other.test`, or with the owner first: `other.test 30 a 10.0.0.1`.
    fn push(builder: &mut AnswerBuilder<Vec<u8>>, name: &str, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        let (owner, rest) = if words.len() == 4 { (words[0], &words[1..]) } else { (name, &words[..]) };
        let owner: Name<Vec<u8>> = owner.parse().unwrap();
        let ttl = Ttl::from_secs(rest[0].parse().unwrap());
        match rest[1] {
            "a" => builder.push(Record::new(owner, Class::IN, ttl, A::new(rest[2].parse().unwrap()))),
            "aaaa" => builder.push(Record::new(owner, Class::IN, ttl, Aaaa::new(rest[2].parse().unwrap()))),
            _ => {
                builder.push(Record::new(owner, Class::IN, ttl, Cname::new(rest[2].parse::<Name<Vec<u8>>>().unwrap())))
            }
        }
        .unwrap();
    }

    fn servers(addresses: &[SocketAddr]) -> Servers {
        Servers {
            addresses: addresses.to_vec(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(30),
            attempts: 1,
            by_tcp: false,
            without_ipv6: false,
        }
    }

    /// What was found, in a line.
    async fn found(servers: &Servers, host: &str) -> String {
        match servers.search(host).await {
            Ok(Some(Answered { addresses, ttl, without })) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                let without = without.map_or_else(String::new, |family| format!(" without {family:?}"));
                format!("{} for {:?}{without}", addresses.join(" "), ttl.unwrap_or_default())
            }
            Ok(None) => "unknown".into(),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn an_answer_tells_addresses_and_how_long_they_are_good_for() {
        let server = Server::start(|name, what| match (name, what) {
            ("depot.test", Rtype::A) => (Rcode::NOERROR, "30 a 10.0.0.1, 20 a 10.0.0.2, other.test 1 a 10.9.9.9"),
            ("depot.test", _) => (Rcode::NOERROR, "25 aaaa fd00::1"),
            ("four.test", Rtype::A) => (Rcode::NOERROR, "0 a 10.0.0.4"),
            ("huge.test", Rtype::A) => (Rcode::NOERROR, "4000000000 a 10.0.0.5"),
            ("alias.test", Rtype::A) => {
                (Rcode::NOERROR, "60 alias b.test, b.test 7 alias c.test, c.test 30 a 10.0.0.6, b.test 30 a 10.9.9.9")
            }
            ("circle.test", _) => (Rcode::NOERROR, "60 alias b.test, b.test 60 alias circle.test"),
            ("large.test", Rtype::A) => (Rcode::NOERROR, "cut"),
            (name, _) if name.starts_with("gone") => (Rcode::NXDOMAIN, ""),
            _ => (Rcode::NOERROR, ""),
        })
        .await;
        let servers = servers(&[server.address]);
        let circle = format!("`circle.test`: {}: an answer that makes no sense", server.address);
        for (host, expected) in [
            ("depot.test", "10.0.0.1 10.0.0.2 fd00::1 for 20s"),
            ("four.test", "10.0.0.4 for 0ns"),
            ("huge.test", "10.0.0.5 for 0ns"),
            ("alias.test", "10.0.0.6 for 7s"),
            ("circle.test", &circle),
            ("large.test", "10.0.0.9 for 9s"),
            ("gone.test", "unknown"),
            ("nothing.test", "unknown"),
            ("no name", "unknown"),
        ] {
            assert_eq!(found(&servers, host).await, expected, "{host}");
        }
        assert!(server.asked().contains(&"tcp A large.test".to_owned()));
    }

    #[tokio::test]
    async fn what_nobody_can_tell_is_no_answer_and_the_other_family_is_used() {
        let sick = Server::start(|name, what| match (name, what) {
            ("four.test", Rtype::A) => (Rcode::NOERROR, "30 a 10.0.0.1"),
            ("six.test", Rtype::AAAA) => (Rcode::NOERROR, "30 aaaa fd00::1"),
            ("none.test", Rtype::A) => (Rcode::NOERROR, ""),
            ("refused.test", _) => (Rcode::REFUSED, ""),
            _ => (Rcode::SERVFAIL, ""),
        })
        .await;
        let only = servers(&[sick.address]);
        let (address, failed) = (sick.address, format!("`none.test`: {}: SERVFAIL", sick.address));
        assert_eq!(found(&only, "four.test").await, "10.0.0.1 for 30s without V6");
        assert_eq!(found(&only, "six.test").await, "fd00::1 for 30s without V4");
        assert_eq!(found(&only, "none.test").await, failed);
        assert_eq!(found(&only, "refused.test").await, format!("`refused.test`: {address}: REFUSED"));
        // Another one knows.
        let well = Server::start(|_, _| (Rcode::NOERROR, "30 a 10.0.0.7")).await;
        let both = servers(&[sick.address, well.address]);
        assert_eq!(found(&both, "none.test").await, "unknown");
        assert_eq!(found(&both, "depot.test").await, "10.0.0.7 for 30s");
        let by_four = Servers { without_ipv6: true, ..servers(&[well.address]) };
        well.asked();
        found(&by_four, "depot.test").await;
        assert_eq!(well.asked(), ["udp A depot.test"]);
        let by_tcp = Servers { by_tcp: true, attempts: 2, ..by_four };
        found(&by_tcp, "depot.test").await;
        assert_eq!(well.asked(), ["tcp A depot.test"]);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_passed_over_and_nothing_is_left_running() {
        let alive = tokio::runtime::Handle::current().metrics();
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let well = Server::start(|_, _| (Rcode::NOERROR, "30 a 10.0.0.7")).await;
        let before = alive.num_alive_tasks();
        let timeout = Duration::from_millis(50);
        let silent_only = Servers { timeout, attempts: 2, ..servers(&[silent.local_addr().unwrap()]) };
        let expected = format!("`depot.test`: {}: no answer in time", silent.local_addr().unwrap());
        assert_eq!(found(&silent_only, "depot.test").await, expected);
        let all = Servers { addresses: vec![gone, silent.local_addr().unwrap(), well.address], ..silent_only };
        assert_eq!(found(&all, "depot.test").await, "10.0.0.7 for 30s");
        while alive.num_alive_tasks() > before {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_search_goes_on_where_a_name_is_unknown_and_not_where_nobody_can_tell() {
        let server = Server::start(|name, what| match (name, what) {
            ("depot.b.test", Rtype::A) => (Rcode::NOERROR, "30 a 10.0.0.1"),
            ("sick.a.test", _) => (Rcode::SERVFAIL, ""),
            ("sick.b.test" | "sick.known.test.b.test", _) => (Rcode::NOERROR, "30 a 10.9.9.9"),
            ("sick.known.test.a.test", _) => (Rcode::SERVFAIL, ""),
            ("sick.known.test", Rtype::A) => (Rcode::NOERROR, "30 a 10.0.0.2"),
            _ => (Rcode::NXDOMAIN, ""),
        })
        .await;
        let search = vec!["a.test".to_owned(), "b.test".to_owned()];
        let servers = Servers { search, without_ipv6: true, ..servers(&[server.address]) };
        assert_eq!(found(&servers, "depot").await, "10.0.0.1 for 30s");
        assert_eq!(server.asked(), ["udp A depot.a.test", "udp A depot.b.test"]);
        assert_eq!(found(&servers, "sick").await, format!("`sick.a.test`: {}: SERVFAIL", server.address));
        let deep = Servers { ndots: 5, ..servers.clone() };
        assert_eq!(found(&deep, "sick.known.test").await, "10.0.0.2 for 30s", "the name as it is");
        assert_eq!(found(&servers, "depot.").await, "unknown");
        assert_eq!(found(&servers, &"a".repeat(64)).await, "unknown", "no label is so long");
    }

    #[tokio::test]
    async fn names_that_need_no_asking_are_not_asked_for() {
        let nobody = servers(&[]);
        assert_eq!(found(&nobody, "LocalHost").await, "127.0.0.1 ::1 for 0ns");
        assert_eq!(found(&nobody, "depot.localhost.").await, "127.0.0.1 ::1 for 0ns");
        assert_eq!(found(&nobody, "depot.invalid").await, "unknown");
        assert_eq!(found(&nobody, "depot.test").await, "`depot.test`: no server to ask");
    }

    #[tokio::test]
    async fn the_files_decide_who_is_asked() {
        let hosts = "10.0.0.1 depot.test\n".to_owned();
        let files = Files { hosts, switch: "hosts: files".into(), ..Files::default() };
        let found = look_up_by(&files, "depot.test:80").await.unwrap();
        assert_eq!((found.addresses, found.ttl), (vec!["10.0.0.1:80".parse().unwrap()], None));
        let error = look_up_by(&files, "other.test:80").await.unwrap_err();
        assert_eq!(error.to_string(), "nobody knows this name");
        assert_eq!(look_up_by(&files, "depot.test").await.unwrap_err().to_string(), "`depot.test` is no `host:port`");
        // What they say is not understood, or the system knows what is left: its own resolver is asked.
        for switch in ["hosts: files winbind", "hosts: files myhostname"] {
            let files = Files { switch: switch.into(), ..Files::default() };
            let found = look_up_by(&files, "localhost:80").await.unwrap();
            assert!(found.addresses.contains(&"127.0.0.1:80".parse().unwrap()), "{switch}");
        }
    }
}
