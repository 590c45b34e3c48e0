//! Messages of the stream as recording takes them: as they are delivered, or read again by their sequence.

use async_nats::Subject;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::decide::Incoming;
use super::error::{IngestError, Unusable};
use super::headers::Headers;
use super::stream::{self, UsageStream};

/// The header of a consumer that leaves the bodies out (`headers_only`): how long the body is that it left out.
const LEFT_OUT: &str = "Nats-Msg-Size";

/// A message as the stream keeps it.
pub(super) struct Stored {
    /// The message.
    pub message: Incoming,
    /// Whether the client library cannot hand it over when it is delivered.
    pub undeliverable: bool,
}

/// A message that was delivered, the subject that acknowledges it, and whether its body may have been left out. Only the
/// stream can tell: a publisher of an empty message can set the header, too.
pub(super) fn delivered(message: async_nats::jetstream::Message) -> (Incoming, Option<Subject>, bool) {
    // Sequence and time come from the server's reply subject only; headers of the publisher are not trusted.
    let position = message.info().ok().map(|info| {
        let sequence = i64::try_from(info.stream_sequence).unwrap_or(i64::MAX);
        (sequence, time(info.published.unix_timestamp(), info.published.nanosecond()))
    });
    let message = message.message;
    let headers = Headers::delivered(message.headers);
    let left_out = message.payload.is_empty() && headers.fields.get(LEFT_OUT).is_some();
    let subject = message.subject.to_string();
    (incoming(position.unwrap_or_default(), subject, &headers, message.payload), message.reply, left_out)
}

/// The message of a sequence; `None` where the stream does not hold it any more. The client library is not asked to read
/// its headers: it would refuse the message for them.
///
/// # Errors
/// [`IngestError::Stream`] where the stream does not answer, or with something else.
pub(super) async fn read(stream: &UsageStream, sequence: i64) -> Result<Option<Stored>, IngestError> {
    let Some(found) = stream::stored(stream, sequence).await? else { return Ok(None) };
    let stored = stored(sequence, &found["message"]);
    stored.map(Some).ok_or_else(|| IngestError::stream(stream::READ_AGAIN)(Unusable.into()))
}

fn stored(sequence: i64, message: &Value) -> Option<Stored> {
    let bytes = |field: &str| match &message[field] {
        // What is empty is not sent.
        Value::Null => Some(Vec::new()),
        Value::String(text) => STANDARD.decode(text).ok(),
        _ => None,
    };
    let subject = message["subject"].as_str()?.to_owned();
    let received_at = message["time"].as_str()?.parse().ok()?;
    let headers = Headers::read(&bytes("hdrs")?);
    // JSON has no other place for bytes that are not UTF-8.
    let undeliverable = headers.undeliverable || subject.contains('\u{fffd}');
    let message = incoming((sequence, received_at), subject, &headers, bytes("data")?.into());
    Some(Stored { message, undeliverable })
}

fn time(seconds: i64, nanoseconds: u32) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, nanoseconds).unwrap_or_default()
}

fn incoming(
    (sequence, received_at): (i64, DateTime<Utc>),
    subject: String,
    headers: &Headers,
    payload: Bytes,
) -> Incoming {
    Incoming {
        sequence,
        subject,
        headers: headers.json(),
        encoding: headers.fields.get("Content-Encoding").map(ToString::to_string),
        payload,
        replay_of: None,
        received_at,
        window_waived: false,
    }
}
