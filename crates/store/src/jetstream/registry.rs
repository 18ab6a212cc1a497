//! Small facts that nodes agree on, in a key-value bucket of JetStream: who is there, and who holds what.
//!
//! Every value has a number that grows with every change of the bucket; a value is changed only against the number it
//! was read with. So whoever acts on what he read is refused if it has moved since.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::{Config, CreateErrorKind, Store as Bucket, UpdateErrorKind};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, StorageType};
use seawall_core::lease::{Holder, Onlooker, Verdict};

use super::port::StreamError;
use super::stream::{JetStream, whole};
use crate::clock::Clock;

/// The bucket of all nodes.
pub const REGISTRY_BUCKET: &str = "SEAWALL_REGISTRY";
/// How long a node counts as being there after it last said so.
pub const PRESENT_FOR: Duration = Duration::from_secs(6);

/// A value was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeError {
    /// Somebody else changed it first.
    #[error("somebody else has changed it")]
    Moved,
    /// Not known, or not possible.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// The bucket.
#[derive(Clone, Debug)]
pub(crate) struct Registry(Arc<JetStream>);

impl Registry {
    pub(crate) const fn new(stream: Arc<JetStream>) -> Self {
        Self(stream)
    }

    async fn bucket(&self) -> Result<Bucket, StreamError> {
        let context = self.0.open().await?.context;
        if let Ok(bucket) = context.get_key_value(REGISTRY_BUCKET).await {
            return Ok(bucket);
        }
        let config = Config {
            bucket: REGISTRY_BUCKET.into(),
            description: "what Seawall nodes agree on".into(),
            history: 1,
            storage: StorageType::File,
            num_replicas: self.0.copies(),
            ..Config::default()
        };
        let made = context.create_key_value(config).await;
        made.map_err(|error| StreamError::Lost(format!("bucket `{REGISTRY_BUCKET}`: {}", whole(&error))))
    }

    /// A value and its number.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, StreamError> {
        // Of the leader: a copy that lags would make somebody who lives look still.
        let subject = format!("$KV.{REGISTRY_BUCKET}.{key}");
        match self.bucket().await?.stream.get_last_raw_message_by_subject(&subject).await {
            // Given up: what is left says so in a header.
            Ok(message) if message.headers.get("KV-Operation").is_some() => Ok(None),
            Ok(message) => Ok(Some((message.payload.to_vec(), message.sequence))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(StreamError::Lost(whole(&error))),
        }
    }

    /// Writes a value if it still has this number, or if there is none. Its new number.
    pub(crate) async fn put(&self, key: &str, value: Vec<u8>, number: Option<u64>) -> Result<u64, ChangeError> {
        let bucket = self.bucket().await?;
        match number {
            Some(number) => bucket.update(key, value.into(), number).await.map_err(|error| match error.kind() {
                UpdateErrorKind::WrongLastRevision => ChangeError::Moved,
                _ => StreamError::Lost(whole(&error)).into(),
            }),
            None => bucket.create(key, value.into()).await.map_err(|error| match error.kind() {
                CreateErrorKind::AlreadyExists => ChangeError::Moved,
                _ => StreamError::Lost(whole(&error)).into(),
            }),
        }
    }

    /// Gives a value up, if it still has this number.
    pub(crate) async fn remove(&self, key: &str, number: u64) -> Result<(), StreamError> {
        let bucket = self.bucket().await?;
        bucket.delete_expect_revision(key, Some(number)).await.map_err(|error| StreamError::Lost(whole(&error)))
    }
}

/// Says, again and again, that a node is there.
pub(crate) struct Presence {
    registry: Registry,
    key: String,
    value: Vec<u8>,
    clock: Arc<dyn Clock>,
}

impl Presence {
    /// `facts` are what others may want to know of the node.
    pub(crate) fn new(registry: Registry, node: &str, facts: &BTreeMap<&str, String>, clock: Arc<dyn Clock>) -> Self {
        let value = serde_json::to_vec(facts).expect("texts are JSON");
        Self { registry, key: key(node), value, clock }
    }

    pub(crate) async fn run(self) {
        let mut holder = Holder::new(PRESENT_FOR);
        let (mut number, mut is_told) = (None, true);
        loop {
            let begun = self.clock.mono();
            match self.say(number).await {
                Ok(new) => {
                    number = Some(new);
                    holder.written(begun);
                }
                // It is ours to say: whoever of this name said it before is gone, or is told apart by the stream.
                Err(ChangeError::Moved) => number = None,
                Err(ChangeError::Stream(error)) => {
                    number = None;
                    if is_told && !holder.holds(self.clock.mono()) {
                        tracing::warn!(%error, "others cannot see that this node is there, and may take it for gone");
                    }
                }
            }
            is_told = holder.holds(self.clock.mono());
            tokio::time::sleep(holder.write_every()).await;
        }
    }

    async fn say(&self, number: Option<u64>) -> Result<u64, ChangeError> {
        let number = match number {
            Some(number) => Some(number),
            None => self.registry.get(&self.key).await?.map(|(_, number)| number),
        };
        self.registry.put(&self.key, self.value.clone(), number).await
    }
}

fn key(node: &str) -> String {
    format!("node.{node}")
}

/// Watches whether a node is there, for as long as it takes to be sure.
pub(crate) async fn is_present(registry: &Registry, node: &str, clock: &dyn Clock) -> Result<bool, StreamError> {
    let mut onlooker = Onlooker::new(PRESENT_FOR);
    loop {
        let number = registry.get(&key(node)).await?.map(|(_, number)| number);
        match onlooker.look(clock.mono(), number) {
            Verdict::Free | Verdict::Lapsed => return Ok(false),
            Verdict::Held => return Ok(true),
            Verdict::Unsure => tokio::time::sleep(PRESENT_FOR / 9).await,
        }
    }
}

/// Holds something alone for a while: an entry of the registry that is ours.
#[derive(Debug)]
pub(crate) struct Claim {
    registry: Registry,
    key: String,
    number: u64,
}

impl Claim {
    /// Takes it, if nobody holds it; who held it and let it lapse has lost it. `None` if somebody does.
    pub(crate) async fn take(
        registry: &Registry,
        key: &str,
        who: &str,
        clock: &dyn Clock,
    ) -> Result<Option<Self>, StreamError> {
        let mut onlooker = Onlooker::new(PRESENT_FOR);
        loop {
            let number = registry.get(key).await?.map(|(_, number)| number);
            // What nobody holds is taken at once: only one can be the first.
            let verdict = if number.is_none() { Verdict::Free } else { onlooker.look(clock.mono(), number) };
            match verdict {
                Verdict::Held => return Ok(None),
                Verdict::Unsure => tokio::time::sleep(PRESENT_FOR / 9).await,
                Verdict::Free | Verdict::Lapsed => match registry.put(key, who.into(), number).await {
                    Ok(number) => return Ok(Some(Self { registry: registry.clone(), key: key.into(), number })),
                    Err(ChangeError::Moved) => return Ok(None),
                    Err(ChangeError::Stream(error)) => return Err(error),
                },
            }
        }
    }

    /// Keeps it: again and again. Returns when it is lost.
    pub(crate) async fn keep(&mut self, who: &str, clock: &dyn Clock) -> ChangeError {
        let mut holder = Holder::new(PRESENT_FOR);
        holder.written(clock.mono());
        loop {
            tokio::time::sleep(holder.write_every()).await;
            let begun = clock.mono();
            match self.registry.put(&self.key, who.into(), Some(self.number)).await {
                Ok(number) => {
                    self.number = number;
                    holder.written(begun);
                }
                Err(ChangeError::Stream(_)) if holder.holds(clock.mono()) => {}
                Err(error) => return error,
            }
        }
    }

    /// Gives it back.
    pub(crate) async fn give_back(self) -> Result<(), StreamError> {
        self.registry.remove(&self.key, self.number).await
    }
}
