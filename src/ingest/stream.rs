//! The stream and its consumer: made where missing, and asserted, because settings decide whether usage can be lost.
//!
//! Why each value is as it is: `reliability` d.2. Limits retention keeps acknowledged messages, so a database that was
//! restored can read them again; `discard new` makes a full stream refuse instead of forget; unlimited deliveries,
//! because a finite number loses the message that reaches it.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context};
use uuid::Uuid;

use super::IngestError;

/// Largest message, compressed or not: bombs die at the door.
pub const MESSAGE_BYTES_MAX: i32 = 65_536;
/// How long the stream keeps messages: longer than a restore of the database may take, grace included.
const MAX_AGE: Duration = Duration::from_hours(14 * 24);
/// The least age that is accepted in a stream made by somebody else.
const MAX_AGE_LEAST: Duration = Duration::from_hours(7 * 24);
/// The stream's own deduplication: saves traffic, decides nothing.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);
/// Messages that may be out for recording at a time.
const ACK_PENDING_MAX: i64 = 20_000;
/// Requests to the server that wait for messages.
const WAITING_MAX: i64 = 64;
/// The metadata field that tells one life of a stream from the next.
const INCARNATION: &str = "waybill_incarnation";
/// The durable consumer.
pub const CONSUMER: &str = "biller";
/// Time for one request to the server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

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

/// The stream in its present life.
#[derive(Debug, Clone)]
pub struct UsageStream {
    /// The stream.
    pub stream: Stream,
    /// Its names.
    pub names: StreamNames,
    /// Which life of it: sequences count within one.
    pub incarnation: Uuid,
}

/// Connects to NATS with the settings that notice a dead server in seconds, not minutes.
///
/// # Errors
/// [`IngestError::Stream`] where the URL is malformed or the server refuses.
pub async fn jetstream(url: &str, name: &str) -> Result<Context, IngestError> {
    let options = async_nats::ConnectOptions::new()
        .name(name)
        .ping_interval(Duration::from_secs(5))
        .connection_timeout(Duration::from_secs(5))
        .request_timeout(Some(REQUEST_TIMEOUT));
    let client = super::connect(url, options)
        .await
        .map_err(|error| IngestError::stream("cannot connect to NATS")(error.into()))?;
    Ok(jetstream::ContextBuilder::new().timeout(REQUEST_TIMEOUT).build(client))
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
    let wanted = config(names, limits);
    let stream = context
        .get_or_create_stream(wanted)
        .await
        .map_err(|error| IngestError::stream("cannot open the stream")(error.into()))?;
    let info = stream.cached_info();
    let drift = drift(&info.config, names, limits);
    if !drift.is_empty() {
        return Err(IngestError::Drift { object: format!("stream {}", names.stream), drift });
    }
    let incarnation = info.config.metadata.get(INCARNATION).and_then(|text| Uuid::parse_str(text).ok());
    let Some(incarnation) = incarnation else {
        let missing = vec![format!(
            "metadata {INCARNATION} is missing, must be a UUID of its own for each life of the stream"
        )];
        return Err(IngestError::Drift { object: format!("stream {}", names.stream), drift: missing });
    };
    Ok(UsageStream { stream, names: names.clone(), incarnation })
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

/// Compares settings one by one and says each that differs.
struct Comparison(Vec<String>);

impl Comparison {
    fn must_be<T: PartialEq + std::fmt::Debug>(&mut self, field: &str, is: &T, must: &T) {
        if is != must {
            self.0.push(format!("{field} is {is:?}, must be {must:?}"));
        }
    }
}

/// The settings of a stream that are wrong, each with what it is and must be.
fn drift(is: &Config, names: &StreamNames, limits: StreamLimits) -> Vec<String> {
    let mut compare = Comparison(Vec::new());
    compare.must_be("subjects", &is.subjects, &vec![format!("{}.*", names.prefix)]);
    compare.must_be("retention", &is.retention, &RetentionPolicy::Limits);
    compare.must_be("discard", &is.discard, &DiscardPolicy::New);
    compare.must_be("storage", &is.storage, &StorageType::File);
    compare.must_be("num_replicas", &is.num_replicas, &limits.replicas);
    compare.must_be("max_msgs", &is.max_messages, &-1);
    compare.must_be("max_msgs_per_subject", &is.max_messages_per_subject, &-1);
    compare.must_be("max_msg_size", &is.max_message_size, &MESSAGE_BYTES_MAX);
    compare.must_be("no_ack", &is.no_ack, &false);
    compare.must_be("allow_rollup_hdrs", &is.allow_rollup, &false);
    compare.must_be("allow_msg_ttl", &is.allow_message_ttl, &false);
    compare.must_be("allow_msg_schedules", &is.allow_message_schedules, &false);
    compare.must_be("allow_msg_counter", &is.allow_message_counter, &false);
    compare.must_be("deny_delete", &is.deny_delete, &true);
    compare.must_be("deny_purge", &is.deny_purge, &true);
    compare.must_be("allow_direct", &is.allow_direct, &true);
    compare.must_be("sealed", &is.sealed, &false);
    let synchronous = !format!("{:?}", is.persist_mode).contains("Async");
    compare.must_be("persist_mode is synchronous", &synchronous, &true);
    if is.max_age != Duration::ZERO && is.max_age < MAX_AGE_LEAST {
        compare.0.push(format!("max_age is {:?}, must be at least {MAX_AGE_LEAST:?}", is.max_age));
    }
    if is.duplicate_window == Duration::ZERO {
        compare.0.push("duplicate_window is 0, must be above".to_owned());
    }
    compare.0
}

impl UsageStream {
    /// Makes the durable consumer where it is missing, and refuses one that could lose usage.
    ///
    /// # Errors
    /// [`IngestError::Drift`] names every wrong setting; [`IngestError::Stream`].
    pub async fn consumer(&self, limits: StreamLimits) -> Result<Consumer<pull::Config>, IngestError> {
        let wanted = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: limits.ack_wait,
            max_deliver: -1,
            max_ack_pending: ACK_PENDING_MAX,
            max_waiting: WAITING_MAX,
            ..pull::Config::default()
        };
        let consumer: Consumer<pull::Config> = self
            .stream
            .get_or_create_consumer(CONSUMER, wanted)
            .await
            .map_err(|error| IngestError::stream("cannot open the consumer")(error.into()))?;
        let is = &consumer.cached_info().config;
        let mut compare = Comparison(Vec::new());
        compare.must_be("ack_policy", &is.ack_policy, &AckPolicy::Explicit);
        compare.must_be("max_deliver", &is.max_deliver, &-1);
        compare.must_be("filter_subject", &is.filter_subject.as_str(), &"");
        compare.must_be("backoff", &is.backoff, &Vec::new());
        compare.must_be("headers_only", &is.headers_only, &false);
        compare.must_be("inactive_threshold", &is.inactive_threshold, &Duration::ZERO);
        if compare.0.is_empty() {
            Ok(consumer)
        } else {
            Err(IngestError::Drift { object: format!("consumer {CONSUMER}"), drift: compare.0 })
        }
    }

    /// Looks at the stream's settings again.
    ///
    /// # Errors
    /// [`IngestError::Drift`] names every setting that has been changed to a wrong one; [`IngestError::Stream`].
    pub async fn check(&self, limits: StreamLimits) -> Result<(), IngestError> {
        let info = self
            .stream
            .get_info()
            .await
            .map_err(|error| IngestError::stream("cannot look at the stream")(error.into()))?;
        let mut drift = drift(&info.config, &self.names, limits);
        let incarnation = info.config.metadata.get(INCARNATION).map(String::as_str);
        if incarnation != Some(self.incarnation.to_string().as_str()) {
            drift.push(
                "the stream was deleted and made anew; restart Waybill to count its new sequences".to_owned(),
            );
        }
        if drift.is_empty() {
            Ok(())
        } else {
            Err(IngestError::Drift { object: format!("stream {}", self.names.stream), drift })
        }
    }
}
