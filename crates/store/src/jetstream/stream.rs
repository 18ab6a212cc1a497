//! One node's messages in JetStream: subject `seawall.spool.NODE` of the stream `SEAWALL_SPOOL` (and
//! `seawall.journal.NODE` of `SEAWALL_JOURNAL`), kept in as many copies as were asked for.
//!
//! What there is is asked of the stream's leader: a copy that lags must not tell us what the last message is. Many
//! messages are read through a consumer, a page at a time: a round trip for each would take minutes where pages take
//! seconds. It may stand at a copy that lags, and then has less than there is, never something else. So what it does
//! not have is asked of the leader, one message, before anything is taken for the end. A message is added with
//! `Nats-Expected-Last-Subject-Sequence`, so that a second writer, or a message that was delayed on its way, is
//! refused; and with `Nats-Msg-Id`, so that one sent twice is kept once.

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::error::Error as NatsError;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer};
use async_nats::jetstream::context::{
    AccountErrorKind, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context, ErrorCode, context::ContextBuilder};
use async_nats::{Client, ConnectErrorKind, ConnectOptions};
use bytes::Bytes;
use futures_core::Stream as _;
use tokio::sync::Mutex;

use super::port::{Stream, StreamError};

/// The stream of all nodes' spools.
pub const SPOOL_STREAM: &str = "SEAWALL_SPOOL";
/// The stream of all nodes' journals.
pub const JOURNAL_STREAM: &str = "SEAWALL_JOURNAL";

/// What a stream is for: one stream a purpose, one subject a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Spool,
    Journal,
}

impl Purpose {
    const fn stream(self) -> &'static str {
        match self {
            Self::Spool => SPOOL_STREAM,
            Self::Journal => JOURNAL_STREAM,
        }
    }

    fn subject(self, node: &str) -> String {
        match self {
            Self::Spool => format!("seawall.spool.{node}"),
            Self::Journal => format!("seawall.journal.{node}"),
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Spool => "writes that Seawall nodes keep until they are delivered",
            Self::Journal => "what happened at Seawall nodes",
        }
    }
}

/// How long a server may take to answer; a change of leaders takes longer, and is met by trying again.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Within this JetStream itself knows a message again by its id.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// A consumer that nobody asks is taken away after this.
const CONSUMER_FOR: Duration = Duration::from_secs(30);
/// Messages read at once at most, and bytes beside one message of any size.
const PAGE_MESSAGES: usize = 1024;
const PAGE_BYTES: usize = 8 << 20;

/// Where the replicated engine is, and how to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaOptions {
    /// `nats://host:port` or `tls://host:port`, one of each zone.
    pub servers: Vec<String>,
    /// Copies of every message, one a server: 1, 3 or 5.
    pub copies: usize,
    /// The node whose messages these are.
    pub node: String,
    /// User and password.
    pub login: Option<(String, Password)>,
    /// Certificates of authorities to trust beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// A text that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(
    /// The text.
    pub String,
);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The stream. Connects when it is first used, and again after a change of options at the other end.
#[derive(Debug)]
pub(crate) struct JetStream {
    options: ReplicaOptions,
    purpose: Purpose,
    subject: String,
    open: Mutex<Option<Open>>,
    reading: Mutex<Option<Reading>>,
}

/// Where a reader is.
#[derive(Debug)]
struct Reading {
    /// The number it asks for next.
    from: u64,
    ahead: Ahead,
}

/// What reads ahead of it.
#[derive(Debug)]
enum Ahead {
    /// Nothing yet: most read one message and no more.
    Nothing,
    /// A consumer, and how many messages it has sent.
    Consumer(Box<PullConsumer>, u64),
    /// The servers do not let us have one.
    Refused,
}

/// A connection, and the stream as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    client: Client,
    pub(crate) context: Context,
    stream: jetstream::stream::Stream,
}

impl JetStream {
    pub(crate) fn new(options: ReplicaOptions, purpose: Purpose) -> Self {
        let subject = purpose.subject(&options.node);
        Self { options, purpose, subject, open: Mutex::new(None), reading: Mutex::new(None) }
    }

    pub(crate) const fn copies(&self) -> usize {
        self.options.copies
    }

    /// Whether it could be used: nothing is made.
    pub(crate) async fn examine(&self) -> Result<(), StreamError> {
        let client = connect(&self.options).await?;
        let context = ContextBuilder::new().timeout(ANSWER_WITHIN).build(client);
        context.query_account().await.map_err(|error| match error.kind() {
            AccountErrorKind::JetStreamUnavailable | AccountErrorKind::JetStream(_) => no_jetstream(),
            _ => StreamError::Lost(whole(&error)),
        })?;
        match context.get_stream(self.purpose.stream()).await {
            Ok(stream) => suits(&stream.cached_info().config, &self.options, self.purpose),
            // It is made by the first node that starts.
            Err(error) if is_not_there(&error) => Ok(()),
            Err(error) => Err(StreamError::Lost(whole(&error))),
        }
    }

    /// The connection; made, and the stream looked for or made, if that has not been done.
    pub(crate) async fn open(&self) -> Result<Open, StreamError> {
        let mut open = self.open.lock().await;
        if let Some(open) = open.as_ref()
            && open.client.connection_state() == State::Connected
        {
            return Ok(open.clone());
        }
        // What the old one may still hold back must not be sent when it comes to itself.
        *open = None;
        let client = connect(&self.options).await?;
        let context = ContextBuilder::new().timeout(ANSWER_WITHIN).ack_timeout(ANSWER_WITHIN).build(client.clone());
        let stream = ensure(&context, &self.options, self.purpose).await?;
        Ok(open.insert(Open { client, context, stream }).clone())
    }
}

/// A connection to one of the servers.
async fn connect(options: &ReplicaOptions) -> Result<Client, StreamError> {
    let mut wishes = ConnectOptions::new()
        .name(format!("seawall {}", options.node))
        .connection_timeout(CONNECT_WITHIN)
        .request_timeout(Some(ANSWER_WITHIN))
        .ping_interval(Duration::from_secs(5));
    if let Some((user, Password(password))) = &options.login {
        wishes = wishes.user_and_password(user.clone(), password.clone());
    }
    if let Some(file) = &options.ca_file {
        wishes = wishes.add_root_certificates(file.clone());
    }
    let servers = options.servers.join(",");
    wishes.connect(options.servers.clone()).await.map_err(|error| match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => StreamError::Refused(format!(
            "the NATS servers {servers} do not let us in: {}; see `store.user` and `store.password_file`",
            whole(&error)
        )),
        ConnectErrorKind::ServerParse => StreamError::Refused(format!("`{servers}`: {}", whole(&error))),
        _ => StreamError::Lost(format!("no NATS server of {servers} can be reached: {}", whole(&error))),
    })
}

/// What the stream must be.
fn wanted(options: &ReplicaOptions, purpose: Purpose) -> Config {
    Config {
        name: purpose.stream().into(),
        description: Some(purpose.words().into()),
        subjects: vec![purpose.subject("*")],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: options.copies,
        // What does not fit is refused: the oldest message may be the only one about a record.
        discard: DiscardPolicy::New,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    }
}

/// Finds the stream, or makes it, and sees that it is what we need.
async fn ensure(
    context: &Context,
    options: &ReplicaOptions,
    purpose: Purpose,
) -> Result<jetstream::stream::Stream, StreamError> {
    let name = purpose.stream();
    let stream = context.get_or_create_stream(wanted(options, purpose)).await.map_err(|error| {
        let detail = whole(&error);
        match error.kind() {
            CreateStreamErrorKind::JetStreamUnavailable => no_jetstream(),
            CreateStreamErrorKind::JetStream(error) => refusal(&error, options, purpose, detail),
            _ => StreamError::Lost(format!("stream `{name}` cannot be opened: {detail}")),
        }
    })?;
    suits(&stream.cached_info().config, options, purpose).map(|()| stream)
}

/// Whether a stream that is there is what we need.
fn suits(found: &Config, options: &ReplicaOptions, purpose: Purpose) -> Result<(), StreamError> {
    let (wanted, name) = (wanted(options, purpose), purpose.stream());
    let differs = [
        (found.subjects != wanted.subjects, format!("its subjects are {}", found.subjects.join(", "))),
        (found.retention != wanted.retention, "it throws messages away once they were taken".into()),
        (found.storage != wanted.storage, "it is kept in memory".into()),
        (found.discard != wanted.discard, "it makes room by throwing away the oldest messages".into()),
        (found.max_age != Duration::ZERO, format!("it throws messages away after {:?}", found.max_age)),
        (found.max_bytes > 0, format!("it holds {} bytes at most, of all nodes", found.max_bytes)),
        (found.max_messages > 0, format!("it holds {} messages at most", found.max_messages)),
        (found.max_message_size > 0, format!("it takes messages of {} bytes at most", found.max_message_size)),
        (found.no_ack || found.sealed, "it confirms nothing, or is sealed".into()),
        (found.max_messages_per_subject > 0, "it keeps only the newest messages of a subject".into()),
        (
            found.num_replicas < options.copies,
            format!("copies of a message are {}, and {} were asked for", found.num_replicas, options.copies),
        ),
    ];
    match differs.into_iter().find(|(differs, _)| *differs) {
        None => Ok(()),
        Some((_, how)) => Err(StreamError::Refused(format!(
            "the stream `{name}` is there and is not what Seawall needs: {how}; change it with `nats stream \
             edit`, or remove it if it is not Seawall's"
        ))),
    }
}

fn no_jetstream() -> StreamError {
    StreamError::Refused("the NATS server has no JetStream: start it with `jetstream { store_dir: ... }`".into())
}

fn refusal(error: &jetstream::Error, options: &ReplicaOptions, purpose: Purpose, detail: String) -> StreamError {
    let (name, subjects) = (purpose.stream(), purpose.subject("*"));
    match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => no_jetstream(),
        ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => StreamError::Refused(format!(
            "the NATS servers have too little storage for `{name}` ({detail}): raise `max_file_store`, or the \
                 account's limit"
        )),
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => StreamError::Refused(format!(
            "{} copies need a cluster, and the server is alone: set `store.copies: 1`, or start servers in more zones",
            options.copies
        )),
        ErrorCode::STREAM_SUBJECT_OVERLAP => StreamError::Refused(format!(
            "another stream takes messages of `{subjects}`, which are Seawall's: {detail}"
        )),
        _ => StreamError::Lost(format!("stream `{name}` cannot be opened: {detail}")),
    }
}

fn is_not_there(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn is_full(error: &PublishError) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<jetstream::Error>());
    let full = [
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::STREAM_STORE_FAILED,
    ];
    cause.is_some_and(|cause| full.contains(&cause.error_code()))
}

/// What a consumer has to send now. Less if an answer is lost or late: what follows a gap is left out.
async fn page_of(consumer: &PullConsumer, sent: &mut u64, message_bytes_max: usize) -> Vec<(u64, Bytes)> {
    let asked = consumer.fetch().max_messages(PAGE_MESSAGES).max_bytes(PAGE_BYTES + message_bytes_max).messages();
    let Ok(Ok(mut batch)) = tokio::time::timeout(ANSWER_WITHIN, asked).await else { return Vec::new() };
    let mut page = Vec::new();
    loop {
        let next = poll_fn(|cx| Pin::new(&mut batch).poll_next(cx));
        // An error tells that there is no more for now, or that no more finds room.
        let Ok(Some(Ok(message))) = tokio::time::timeout(ANSWER_WITHIN, next).await else { break };
        let place = message.info().map(|info| (info.consumer_sequence, info.stream_sequence));
        let Some((_, number)) = place.ok().filter(|(place, _)| *place == *sent + 1) else { break };
        *sent += 1;
        page.push((number, message.message.payload));
    }
    page
}

/// An error with what caused it.
pub(crate) fn whole<K>(error: &NatsError<K>) -> String
where
    K: Clone + std::fmt::Debug + std::fmt::Display + PartialEq + Send + Sync + 'static,
{
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

impl Stream for Arc<JetStream> {
    async fn last(&self) -> Result<Option<(u64, Bytes)>, StreamError> {
        let open = self.open().await?;
        match open.stream.get_last_raw_message_by_subject(&self.subject).await {
            Ok(message) => Ok(Some((message.sequence, message.payload))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.lost(whole(&error)).await),
        }
    }

    async fn page(&self, from: u64) -> Result<Vec<(u64, Bytes)>, StreamError> {
        let mut reading = self.reading.lock().await;
        let mut ahead = Ahead::Nothing;
        if let Some(before) = reading.take().filter(|before| before.from == from) {
            ahead = self.ahead(before).await;
            if let Ahead::Consumer(consumer, sent) = &mut ahead {
                let page = page_of(consumer, sent, self.message_bytes_max()).await;
                if let Some((last, _)) = page.last() {
                    *reading = Some(Reading { from: last + 1, ahead });
                    return Ok(page);
                }
                self.dismiss(consumer).await;
                ahead = Ahead::Nothing;
            }
        }
        let first = self.first(from).await?;
        *reading = first.as_ref().map(|(number, _)| Reading { from: number + 1, ahead });
        Ok(first.into_iter().collect())
    }

    async fn append(&self, message: Vec<u8>, after: u64, id: &str) -> Result<u64, StreamError> {
        let open = self.open().await?;
        let message = PublishMessage::build()
            .payload(message.into())
            .message_id(format!("{}-{id}", self.options.node))
            .expected_stream(self.purpose.stream())
            .expected_last_subject_sequence(after);
        let sent = async { open.context.send_publish(self.subject.clone(), message).await?.await };
        match sent.await {
            // No message is sent twice under one id: what is there already is not this one.
            Ok(ack) if ack.duplicate => Err(StreamError::Lost(format!("another message has the id of this one: {id}"))),
            Ok(ack) => Ok(ack.sequence),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                Err(StreamError::Lost("another message came first".into()))
            }
            Err(error) if is_full(&error) => Err(StreamError::Full(format!(
                "the NATS servers have no room for another message: {}; raise `max_file_store`, or the account's limit",
                whole(&error)
            ))),
            Err(error) => Err(self.lost(whole(&error)).await),
        }
    }

    async fn purge(&self, below: u64) -> Result<(), StreamError> {
        let open = self.open().await?;
        let purge = open.stream.purge().filter(self.subject.clone()).sequence(below);
        match purge.await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(whole(&error)).await),
        }
    }

    fn message_bytes_max(&self) -> usize {
        // Not connected: nothing is sent before that is known.
        let open = self.open.try_lock().ok();
        let open = open.as_deref().and_then(Option::as_ref);
        open.map_or(64 << 10, |open| open.client.server_info().max_payload)
    }
}

impl JetStream {
    /// The first message from a number on, as the leader says.
    async fn first(&self, from: u64) -> Result<Option<(u64, Bytes)>, StreamError> {
        let open = self.open().await?;
        match open.stream.get_first_raw_message_by_subject(&self.subject, from).await {
            Ok(message) => Ok(Some((message.sequence, message.payload))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.lost(whole(&error)).await),
        }
    }

    /// A consumer for a reader that goes on, if there can be one.
    async fn ahead(&self, reading: Reading) -> Ahead {
        let Reading { from, ahead: Ahead::Nothing } = reading else { return reading.ahead };
        let Ok(open) = self.open().await else { return Ahead::Nothing };
        let config = pull::Config {
            description: Some(format!("node {} reads what it left here", self.options.node)),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            filter_subject: self.subject.clone(),
            // It is worth nothing once we are gone.
            inactive_threshold: CONSUMER_FOR,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        match open.stream.create_consumer(config).await {
            Ok(consumer) => Ahead::Consumer(Box::new(consumer), 0),
            Err(error) => {
                let stream = self.purpose.stream();
                tracing::warn!(stream, error = whole(&error), "no consumer can be had: messages are read one by one");
                Ahead::Refused
            }
        }
    }

    /// Takes a consumer away; one that cannot be reached goes by itself.
    async fn dismiss(&self, consumer: &PullConsumer) {
        let name = &consumer.cached_info().name;
        if let Ok(open) = self.open().await {
            let _ = tokio::time::timeout(ANSWER_WITHIN, open.stream.delete_consumer(name)).await;
        }
    }

    /// No answer, or none that helps: the next call goes to whichever server answers first then. One that hangs keeps
    /// its connections open.
    async fn lost(&self, reason: String) -> StreamError {
        *self.open.lock().await = None;
        StreamError::Lost(reason)
    }
}
