//! Publishing to the stream: what the API's `POST /v1/events` and the simulator use.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use bytes::Bytes;

/// How long the stream may take to say that it stored a message.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes messages of usage events and waits until the stream has stored them.
#[derive(Debug, Clone)]
pub struct Publisher {
    context: Context,
    prefix: Arc<str>,
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
    /// The stream did not answer in time: it may or may not have the message.
    #[error("the stream did not confirm the message within {} s; send it again", ACK_TIMEOUT.as_secs())]
    Unconfirmed,
    /// The stream refused the message, for example because it is full.
    #[error("the stream refused the message; send it again later: {0}")]
    Refused(async_nats::jetstream::context::PublishError),
}

impl Publisher {
    /// A publisher on a JetStream context; `prefix` is what the stream's subjects start with.
    pub fn new(context: Context, prefix: &str) -> Self {
        Self { context, prefix: prefix.into() }
    }

    /// Publishes one message (an event, or an array of events, as JSON) for a gateway and waits for the stream's ack.
    ///
    /// # Errors
    /// [`PublishError`]; the caller may repeat the call, copies are recognised by event identity.
    pub async fn publish(&self, gateway: &str, body: Bytes) -> Result<Published, PublishError> {
        let subject = format!("{}.{gateway}", self.prefix);
        let stored = async { self.context.publish(subject, body).await?.await };
        match tokio::time::timeout(ACK_TIMEOUT, stored).await {
            Ok(Ok(ack)) => Ok(Published { sequence: ack.sequence }),
            Ok(Err(error)) if error.kind() == PublishErrorKind::TimedOut => Err(PublishError::Unconfirmed),
            Ok(Err(error)) => Err(PublishError::Refused(error)),
            Err(_) => Err(PublishError::Unconfirmed),
        }
    }
}
