//! The stream and its consumer: made where missing, and asserted, because settings decide whether usage can be lost.
//!
//! A stream that is deleted and made anew, or that lost its end, counts its sequences again: each such life has an
//! incarnation of its own in the stream's metadata, and sequences mean something within one only.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, ConsumerError, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{self, Context};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::IngestError;
use super::settings::{self, WrongSetting};

/// Largest message, compressed or not: bombs die at the door.
pub const MESSAGE_BYTES_MAX: i32 = 65_536;
/// How long the stream keeps messages: longer than a restore of the database may take, grace included.
const MAX_AGE: Duration = Duration::from_hours(14 * 24);
/// The stream's own deduplication: saves traffic, decides nothing.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);
/// Messages that may be out for recording at a time.
pub(super) const ACK_PENDING_MAX: i64 = 20_000;
/// Requests to the server that wait for messages.
const WAITING_MAX: i64 = 64;
/// The metadata field that tells one life of a stream from the next; the consumer has that of the life it was made for.
pub(super) const INCARNATION: &str = "waybill_incarnation";
/// The durable consumer.
pub const CONSUMER: &str = "biller";
/// Time for any step of the client: while it is not connected, its own queue may be full, and nothing else ends the wait.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(8);
/// What fails where a message cannot be read by its sequence.
pub(super) const READ_AGAIN: &str = "cannot read a message again";
/// The server's code for a stream, consumer or message that does not exist.
const NOT_FOUND: i64 = 404;

/// Names of a stream and its subjects; tests use their own beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamNames {
    /// The stream.
    pub stream: String,
    /// What its subjects start with; a dot and the gateway's name follow.
    pub prefix: String,
}

/// How the stream is stored and delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Copies in the cluster; three where power loss of one machine must lose nothing.
    pub replicas: usize,
    /// Bytes it may hold before it refuses.
    pub bytes_max: i64,
    /// How long a consumer may take to record a message before it is delivered again.
    pub ack_wait: Duration,
}

/// How far the consumer is, in sequences of the stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    /// Everything up to this is acknowledged.
    pub acknowledged: i64,
    /// Everything up to this was delivered at least once.
    pub delivered: i64,
}

/// How full the stream is, and what of it waits to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Bytes that it holds.
    pub bytes: i64,
    /// Bytes that it may hold.
    pub bytes_max: i64,
    /// Messages not yet delivered.
    pub undelivered: i64,
    /// Messages delivered and not yet acknowledged.
    pub unacknowledged: i64,
    /// Messages that may be; `None` where there is no consumer yet, negative where it has no bound.
    pub unacknowledged_max: Option<i64>,
    /// For how long the oldest of all these waits.
    pub oldest: Duration,
}

/// The stream in its present life.
#[derive(Debug, Clone)]
pub struct UsageStream {
    /// The stream.
    pub stream: Stream,
    /// What it is reached through.
    context: Context,
    /// Its names.
    pub names: StreamNames,
    /// Which life of it: sequences count within one.
    pub incarnation: Uuid,
}

/// Waits for a step of the client, but not for ever.
///
/// # Errors
/// [`IngestError::Stream`] where it failed or took too long.
pub(super) async fn within<T, E: Into<async_nats::Error>>(
    what: &'static str,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, IngestError> {
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(IngestError::stream(what)(error.into())),
        Err(elapsed) => Err(IngestError::stream(what)(elapsed.into())),
    }
}

/// One request to the server's administration; `None` where what it is about does not exist.
async fn ask(
    context: &Context,
    what: &'static str,
    subject: String,
    body: &Value,
) -> Result<Option<Value>, IngestError> {
    let answer: Value = within(what, context.request(subject, body)).await?;
    match &answer["error"] {
        Value::Null => Ok(Some(answer)),
        error if error["code"] == NOT_FOUND => Ok(None),
        error => match serde_json::from_value::<jetstream::Error>(error.clone()) {
            Ok(error) => Err(IngestError::stream(what)(error.into())),
            Err(_) => Err(IngestError::stream(what)(format!("the server answers {error}").into())),
        },
    }
}

/// What the server answered where it refuses to make what is missing, or has no JetStream for us: with the configuration as
/// it is, asking again or over another connection would not help. `None` where the server does not answer, or not now.
pub(super) fn refusal(error: &IngestError) -> Option<String> {
    /// What passes by itself: an election, and another process that was faster.
    const PASSING: [ErrorCode; 2] = [ErrorCode::CLUSTER_NOT_AVAILABLE, ErrorCode::STREAM_NAME_EXIST];
    const DISABLED: [ErrorCode; 2] =
        [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT];
    let IngestError::Stream { cause, .. } = error else { return None };
    if let Some(said) = cause.downcast_ref::<jetstream::Error>() {
        return DISABLED.contains(&said.error_code()).then(|| said.to_string());
    }
    let stream = cause.downcast_ref::<CreateStreamError>().map(CreateStreamError::kind);
    let consumer = cause.downcast_ref::<ConsumerError>().map(ConsumerError::kind);
    match (stream, consumer) {
        (Some(CreateStreamErrorKind::JetStream(said)), _) | (_, Some(ConsumerErrorKind::JetStream(said))) => {
            (!PASSING.contains(&said.error_code())).then(|| said.to_string())
        }
        _ => None,
    }
}

/// What the server tells about the stream: its settings and how far it is. `None` where it does not exist.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn info(context: &Context, names: &StreamNames) -> Result<Option<Value>, IngestError> {
    let subject = format!("STREAM.INFO.{}", names.stream);
    ask(context, "cannot look at the stream", subject, &json!({})).await
}

/// The last sequence that the stream gave.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn last_sequence(stream: &UsageStream) -> Result<i64, IngestError> {
    state(stream, "last_seq").await
}

/// The first sequence that the stream still holds.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn first_sequence(stream: &UsageStream) -> Result<i64, IngestError> {
    state(stream, "first_seq").await
}

async fn state(stream: &UsageStream, field: &str) -> Result<i64, IngestError> {
    let info = info(&stream.context, &stream.names).await?.unwrap_or_default();
    Ok(info["state"][field].as_i64().unwrap_or_default())
}

/// A message as the stream keeps it, in the server's own words: headers and body in base64. `None` where it holds it no more.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn stored(stream: &UsageStream, sequence: i64) -> Result<Option<Value>, IngestError> {
    let subject = format!("STREAM.MSG.GET.{}", stream.names.stream);
    ask(&stream.context, READ_AGAIN, subject, &json!({"seq": sequence})).await
}

/// When the stream took a message; `None` where it holds it no more.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn published_at(
    stream: &UsageStream,
    sequence: i64,
) -> Result<Option<DateTime<Utc>>, IngestError> {
    let time =
        stored(stream, sequence).await?.and_then(|found| found["message"]["time"].as_str()?.parse().ok());
    Ok(time)
}

/// Makes the stream.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn create(
    context: &Context,
    names: &StreamNames,
    limits: StreamLimits,
) -> Result<(), IngestError> {
    let made = context.get_or_create_stream(config(names, limits));
    within("cannot make the stream", made).await.map(drop)
}

/// The stream in the life that its settings name.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn handle(
    context: &Context,
    names: &StreamNames,
    incarnation: Uuid,
) -> Result<UsageStream, IngestError> {
    let stream = within("cannot open the stream", context.get_stream(&names.stream)).await?;
    Ok(UsageStream { stream, context: context.clone(), names: names.clone(), incarnation })
}

/// Makes the stream where it is missing, and refuses one that could lose or change usage.
///
/// # Errors
/// [`IngestError::Drift`] names every wrong setting; [`IngestError::Stream`].
pub async fn open(
    context: &Context,
    names: &StreamNames,
    limits: StreamLimits,
) -> Result<UsageStream, IngestError> {
    create(context, names, limits).await?;
    existing(context, names, limits).await
}

/// The stream that there is; refuses one that could lose or change usage.
///
/// # Errors
/// [`IngestError::Drift`] names every wrong setting; [`IngestError::Stream`], also where there is none.
pub async fn existing(
    context: &Context,
    names: &StreamNames,
    limits: StreamLimits,
) -> Result<UsageStream, IngestError> {
    let Some(info) = info(context, names).await? else {
        let missing =
            format!("there is no stream {}; check the address of NATS, or restore it", names.stream);
        return Err(IngestError::stream("cannot open the stream")(missing.into()));
    };
    let wrong = settings::stream(&info["config"], names, limits);
    match settings::incarnation(&info["config"]) {
        Some(incarnation) if wrong.is_empty() => handle(context, names, incarnation).await,
        _ => Err(drift("stream", &names.stream, &wrong)),
    }
}

fn drift(kind: &str, name: &str, wrong: &[WrongSetting]) -> IngestError {
    let drift = wrong.iter().map(|wrong| format!("{} {}", wrong.setting, wrong.detail)).collect();
    IngestError::Drift { object: format!("{kind} {name}"), drift }
}

fn config(names: &StreamNames, limits: StreamLimits) -> Config {
    Config {
        name: names.stream.clone(),
        description: Some("Usage events of AI gateways, billed by Waybill".to_owned()),
        subjects: vec![format!("{}.*", names.prefix)],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: limits.replicas,
        max_bytes: limits.bytes_max,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_age: MAX_AGE,
        max_message_size: MESSAGE_BYTES_MAX,
        duplicate_window: DUPLICATE_WINDOW,
        deny_delete: true,
        deny_purge: true,
        allow_direct: true,
        metadata: HashMap::from([(INCARNATION.to_owned(), Uuid::now_v7().to_string())]),
        ..Config::default()
    }
}

impl UsageStream {
    /// Makes the durable consumer where it is missing, and refuses one that could lose usage.
    ///
    /// # Errors
    /// [`IngestError::Drift`] names every wrong setting; [`IngestError::Stream`].
    pub async fn consumer(&self, limits: StreamLimits) -> Result<Consumer<pull::Config>, IngestError> {
        let info = self.consumer_info(limits).await?;
        let wrong = settings::consumer(&info, limits);
        if !wrong.is_empty() {
            return Err(drift("consumer", CONSUMER, &wrong));
        }
        within("cannot open the consumer", self.stream.get_consumer(CONSUMER)).await
    }

    /// How far the consumer is; it is made where it is missing.
    ///
    /// # Errors
    /// [`IngestError::Stream`].
    pub(super) async fn delivery(&self, limits: StreamLimits) -> Result<Delivery, IngestError> {
        let info = self.consumer_info(limits).await?;
        let sequence = |of: &str| info[of]["stream_seq"].as_i64().unwrap_or_default();
        Ok(Delivery { acknowledged: sequence("ack_floor"), delivered: sequence("delivered") })
    }

    /// How full the stream is, and what of it waits: all of it, where it has no consumer yet.
    ///
    /// # Errors
    /// [`IngestError::Stream`].
    pub async fn standing(&self) -> Result<Standing, IngestError> {
        let info = info(&self.context, &self.names).await?.unwrap_or_default();
        let consumer = existing_consumer(&self.context, &self.names).await?;
        let state = |field: &str| info["state"][field].as_i64().unwrap_or_default();
        let mut standing = Standing {
            bytes: state("bytes"),
            bytes_max: info["config"]["max_bytes"].as_i64().unwrap_or_default(),
            undelivered: state("messages"),
            unacknowledged: 0,
            unacknowledged_max: None,
            oldest: Duration::ZERO,
        };
        let mut first = state("first_seq");
        if let Some(consumer) = &consumer {
            standing.undelivered = consumer["num_pending"].as_i64().unwrap_or_default();
            standing.unacknowledged = consumer["num_ack_pending"].as_i64().unwrap_or_default();
            standing.unacknowledged_max = consumer["config"]["max_ack_pending"].as_i64();
            first = first.max(consumer["ack_floor"]["stream_seq"].as_i64().unwrap_or_default() + 1);
        }
        if standing.undelivered > 0 || standing.unacknowledged > 0 {
            // By the server's own clock, which the time of the message is by too.
            let now = info["ts"].as_str().and_then(|text| text.parse::<DateTime<Utc>>().ok());
            let since = published_at(self, first).await?;
            let age = now.zip(since).and_then(|(now, since)| (now - since).to_std().ok());
            standing.oldest = age.unwrap_or_default();
        }
        Ok(standing)
    }

    /// How far the consumer is.
    ///
    /// # Errors
    /// [`IngestError::Stream`].
    pub async fn progress(&self) -> Result<jetstream::consumer::Info, IngestError> {
        within("cannot look at the consumer", self.stream.consumer_info(CONSUMER)).await
    }

    /// What the server tells about the consumer, which is made where it is missing. One that was made for another life of
    /// the stream is made anew: it would take the first messages of this life for acknowledged.
    ///
    /// # Errors
    /// [`IngestError::Stream`].
    pub(super) async fn consumer_info(&self, limits: StreamLimits) -> Result<Value, IngestError> {
        if let Some(info) = existing_consumer(&self.context, &self.names).await? {
            let made_for = info["config"]["metadata"][INCARNATION].as_str();
            // A consumer of an earlier release does not say.
            if made_for.is_none_or(|life| life == self.incarnation.to_string()) {
                return Ok(info);
            }
            tracing::warn!(
                consumer = CONSUMER,
                "the consumer is of another life of the stream; making it anew"
            );
            delete_consumer(&self.context, &self.names).await?;
        }
        let made = self.stream.create_consumer(self.consumer_config(limits));
        within("cannot make the consumer", made).await?;
        tracing::info!(consumer = CONSUMER, incarnation = %self.incarnation, "made the consumer");
        Ok(existing_consumer(&self.context, &self.names).await?.unwrap_or_default())
    }

    fn consumer_config(&self, limits: StreamLimits) -> pull::Config {
        pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: limits.ack_wait,
            max_deliver: -1,
            max_ack_pending: ACK_PENDING_MAX,
            max_waiting: WAITING_MAX,
            metadata: HashMap::from([(INCARNATION.to_owned(), self.incarnation.to_string())]),
            ..pull::Config::default()
        }
    }

    /// The client it is reached through.
    pub(super) fn client(&self) -> async_nats::Client {
        self.context.client()
    }
}

/// What the server tells about the consumer; `None` where it does not exist.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn existing_consumer(
    context: &Context,
    names: &StreamNames,
) -> Result<Option<Value>, IngestError> {
    let subject = format!("CONSUMER.INFO.{}.{CONSUMER}", names.stream);
    ask(context, "cannot look at the consumer", subject, &json!({})).await
}

/// Removes the consumer; that there is none is fine.
async fn delete_consumer(context: &Context, names: &StreamNames) -> Result<(), IngestError> {
    let subject = format!("CONSUMER.DELETE.{}.{CONSUMER}", names.stream);
    ask(context, "cannot remove the consumer", subject, &json!({})).await.map(drop)
}

/// Gives a stream whose sequences count again a new incarnation, and has its consumer start from its first message.
///
/// # Errors
/// [`IngestError::Stream`].
pub(super) async fn begin_new_life(
    context: &Context,
    names: &StreamNames,
    of: Uuid,
) -> Result<(), IngestError> {
    delete_consumer(context, names).await?;
    let Some(info) = info(context, names).await? else { return Ok(()) };
    let mut config = info["config"].clone();
    if settings::incarnation(&config) != Some(of) {
        // Another process was faster.
        return Ok(());
    }
    config["metadata"][INCARNATION] = json!(Uuid::now_v7().to_string());
    let subject = format!("STREAM.UPDATE.{}", names.stream);
    ask(context, "cannot mark the stream's new life", subject, &config).await.map(drop)
}
