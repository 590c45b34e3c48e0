//! Messages of the stream as recording takes them: as they are delivered, or read again by their sequence.

use async_nats::Subject;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageError};
use chrono::{DateTime, Utc};

use super::IngestError;
use super::decide::Incoming;
use super::stream::{self, UsageStream};

/// The header of a consumer that leaves the bodies out (`headers_only`): how long the body is that it left out.
const LEFT_OUT: &str = "Nats-Msg-Size";

/// A message that was delivered, the subject that acknowledges it, and whether its body may have been left out. Only the
/// stream can tell: a publisher of an empty message can set the header, too.
pub(super) fn delivered(message: async_nats::jetstream::Message) -> (Incoming, Option<Subject>, bool) {
    // Sequence and time come from the server's reply subject only; headers of the publisher are not trusted.
    let position = message.info().ok().map(|info| {
        let sequence = i64::try_from(info.stream_sequence).unwrap_or(i64::MAX);
        (sequence, time(info.published.unix_timestamp(), info.published.nanosecond()))
    });
    let (sequence, received_at) = position.unwrap_or_default();
    let mut message = message.message;
    let reply = message.reply.take();
    let left_out = message.payload.is_empty()
        && message.headers.as_ref().is_some_and(|headers| headers.get(LEFT_OUT).is_some());
    (incoming(sequence, received_at, message), reply, left_out)
}

/// The message of a sequence; `None` where the stream does not hold it any more.
///
/// # Errors
/// [`IngestError::Stream`] where the stream does not answer.
pub(super) async fn read(stream: &UsageStream, sequence: i64) -> Result<Option<Incoming>, IngestError> {
    const WHAT: &str = "cannot read a message again";
    let wanted = u64::try_from(sequence).unwrap_or_default();
    let read = tokio::time::timeout(stream::STEP_TIMEOUT, stream.stream.get_raw_message(wanted));
    match read.await.map_err(|error| IngestError::stream(WHAT)(error.into()))? {
        Ok(message) => {
            let received_at = time(message.time.unix_timestamp(), message.time.nanosecond());
            let message = async_nats::Message {
                subject: message.subject,
                reply: None,
                length: message.payload.len(),
                payload: message.payload,
                headers: Some(message.headers),
                status: None,
                description: None,
            };
            Ok(Some(incoming(sequence, received_at, message)))
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(IngestError::stream(WHAT)(error.into())),
    }
}

fn is_not_found(error: &RawMessageError) -> bool {
    match error.kind() {
        LastRawMessageErrorKind::NoMessageFound => true,
        LastRawMessageErrorKind::JetStream(error) => {
            i64::try_from(error.code()).ok() == Some(stream::NOT_FOUND)
        }
        LastRawMessageErrorKind::InvalidSubject | LastRawMessageErrorKind::Other => false,
    }
}

fn time(seconds: i64, nanoseconds: u32) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, nanoseconds).unwrap_or_default()
}

fn incoming(sequence: i64, received_at: DateTime<Utc>, message: async_nats::Message) -> Incoming {
    let headers = message.headers.as_ref();
    let encoding = headers.and_then(|headers| headers.get("Content-Encoding")).map(ToString::to_string);
    Incoming {
        sequence,
        subject: message.subject.to_string(),
        headers: headers.filter(|headers| !headers.is_empty()).and_then(headers_json),
        encoding,
        payload: message.payload,
        replay_of: None,
        received_at,
        window_waived: false,
    }
}

fn headers_json(headers: &async_nats::HeaderMap) -> Option<String> {
    let object: serde_json::Map<String, serde_json::Value> = headers
        .iter()
        .map(|(name, values)| {
            let values =
                values.iter().map(|value| value.as_str().replace('\0', "\u{fffd}")).collect::<Vec<_>>();
            (name.to_string(), values.into())
        })
        .collect();
    serde_json::to_string(&object).ok()
}
