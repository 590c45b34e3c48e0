//! Publishing to the stream: what the API's `POST /v1/events` and the simulator use.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::{self, Context};
use async_nats::{ConnectOptions, Event, HeaderMap};
use bytes::Bytes;

use super::connection::CLIENT_CAPACITY;

/// How long the stream may take to say that it stored a message.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a silent server is asked for a sign of life: a frozen one is noticed in seconds.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Publishes messages of usage events and waits until the stream has stored them.
#[derive(Debug, Clone)]
pub struct Publisher {
    context: Context,
    prefix: Arc<str>,
    /// What the server or the client complained of since the stream last took something, as the client says it.
    trouble: Arc<Mutex<Option<String>>>,
}

/// The stream's receipt for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The message's sequence in the stream.
    pub sequence: u64,
}

/// Why a message is not known to be stored; publishing the same message again is always safe.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The stream did not answer in time: it may or may not have the message. With what the server said meanwhile, where it
    /// said something: a permission that is missing is told nowhere else.
    #[error("the stream did not confirm the message within {} s{}; send it again", ACK_TIMEOUT.as_secs(), said(.0.as_deref()))]
    Unconfirmed(Option<String>),
    /// The stream refused the message, for example because it is full.
    #[error("the stream refused the message; send it again later: {0}")]
    Refused(jetstream::context::PublishError),
}

fn said(trouble: Option<&str>) -> String {
    trouble.map_or_else(String::new, |trouble| format!(" ({trouble})"))
}

impl Publisher {
    /// A publisher of one gateway, with that gateway's credentials and an inbox of its own under `_INBOX_<gateway>`. It connects
    /// by itself, now or as soon as a server answers.
    ///
    /// # Errors
    /// [`async_nats::ConnectError`] where the address is malformed.
    pub async fn of_gateway(
        url: &str,
        prefix: &str,
        gateway: &str,
    ) -> Result<Self, async_nats::ConnectError> {
        let trouble = Arc::default();
        let options = ConnectOptions::new()
            .event_callback(note_in(&trouble))
            .name(format!("waybill forward {gateway}"))
            .custom_inbox_prefix(format!("_INBOX_{gateway}"))
            .ping_interval(PING_INTERVAL)
            .connection_timeout(ACK_TIMEOUT)
            .request_timeout(Some(ACK_TIMEOUT))
            .client_capacity(CLIENT_CAPACITY)
            .retry_on_initial_connect();
        let client = super::connect(url, options).await?;
        let context = jetstream::ContextBuilder::new().timeout(ACK_TIMEOUT).build(client);
        Ok(Self { trouble, ..Self::new(context, prefix) })
    }

    /// Whether there is a connection at the moment.
    pub fn connected(&self) -> bool {
        self.context.client().connection_state() == State::Connected
    }

    /// That there is no connection, with why, where that is known.
    pub fn not_connected(&self) -> String {
        self.trouble().map_or_else(|| "not connected".to_owned(), |why| format!("not connected: {why}"))
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A publisher on a JetStream context; `prefix` is what the stream's subjects start with.
    pub fn new(context: Context, prefix: &str) -> Self {
        Self { context, prefix: prefix.into(), trouble: Arc::default() }
    }

    /// Publishes one message (an event, or an array of events, as JSON) for a gateway and waits for the stream's ack.
    ///
    /// # Errors
    /// [`PublishError`]; the caller may repeat the call, copies are recognised by event identity.
    pub async fn publish(&self, gateway: &str, body: Bytes) -> Result<Published, PublishError> {
        self.publish_packed(gateway, body, false).await
    }

    /// The same with a body that may be compressed with zstd, and says so in its header.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn publish_packed(
        &self,
        gateway: &str,
        body: Bytes,
        zstd: bool,
    ) -> Result<Published, PublishError> {
        let subject = format!("{}.{gateway}", self.prefix);
        let mut headers = HeaderMap::new();
        if zstd {
            headers.insert("Content-Encoding", "zstd");
        }
        let stored = async {
            if headers.is_empty() {
                self.context.publish(subject, body).await?.await
            } else {
                self.context.publish_with_headers(subject, headers, body).await?.await
            }
        };
        match tokio::time::timeout(ACK_TIMEOUT, stored).await {
            Ok(Ok(ack)) => {
                // What it complained of before is no reason of what goes wrong later.
                self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
                Ok(Published { sequence: ack.sequence })
            }
            Ok(Err(error)) if error.kind() != PublishErrorKind::TimedOut => Err(PublishError::Refused(error)),
            Ok(Err(_)) | Err(_) => Err(PublishError::Unconfirmed(self.trouble())),
        }
    }
}

/// Keeps what the client says: with a wrong address or password it tries for ever, without a right it waits for answers in
/// vain, and else only its log knows.
fn note_in(
    trouble: &Arc<Mutex<Option<String>>>,
) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + use<> {
    let trouble = Arc::clone(trouble);
    move |event| {
        let why = match event {
            Event::Connected => None,
            Event::ServerError(error) => Some(error.to_string()),
            Event::ClientError(error) => Some(error.to_string()),
            _ => return std::future::ready(()),
        };
        *trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
        std::future::ready(())
    }
}
