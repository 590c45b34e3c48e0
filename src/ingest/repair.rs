//! Reading unaccounted sequences again: after a restore of the database, or after acks that nobody earned.

use chrono::{DateTime, Utc};

use super::IngestError;
use super::consumer::incoming;
use super::record::Recorder;
use super::stream::{StreamLimits, UsageStream};
use crate::store::journal::Origin;
use crate::store::{Scope, completeness};

/// Messages read again per transaction.
const REPAIR_BATCH_MESSAGES: usize = 200;
/// JetStream's error code for "no message found".
const NOT_FOUND: u64 = 404;

/// What a repair came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Sequences that no batch accounts for.
    pub unaccounted: usize,
    /// Of these, read again and recorded (as whatever their events are).
    pub repaired: usize,
    /// Of these, no longer in the stream: expired, or deleted by an operator.
    pub gone: usize,
}

/// Reads every sequence again that the consumer has acknowledged and no batch accounts for.
///
/// # Errors
/// [`IngestError`].
pub async fn repair(
    stream: &UsageStream,
    limits: StreamLimits,
    recorder: &Recorder,
) -> Result<Repaired, IngestError> {
    let mut consumer = stream.consumer(limits).await?;
    let info = consumer
        .info()
        .await
        .map_err(|error| IngestError::stream("cannot look at the consumer")(error.into()))?;
    let floor = i64::try_from(info.ack_floor.stream_sequence).unwrap_or(i64::MAX);
    let mut tx = recorder.database().read(Scope::Everything).await?;
    let holes = completeness::unaccounted(&mut tx, stream.incarnation, floor).await?;
    drop(tx);
    let mut repaired = Repaired { unaccounted: holes.len(), ..Repaired::default() };
    for sequences in holes.chunks(REPAIR_BATCH_MESSAGES) {
        let mut messages = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            match read(stream, *sequence).await? {
                Some(message) => messages.push(message),
                None => repaired.gone += 1,
            }
        }
        repaired.repaired += messages.len();
        if !messages.is_empty() {
            let batch = recorder.decide(messages);
            recorder.record(Origin::Repair(stream.incarnation), batch).await?;
        }
    }
    Ok(repaired)
}

async fn read(stream: &UsageStream, sequence: i64) -> Result<Option<super::decide::Incoming>, IngestError> {
    let wanted = u64::try_from(sequence).unwrap_or_default();
    match stream.stream.get_raw_message(wanted).await {
        Ok(message) => {
            let at =
                DateTime::<Utc>::from_timestamp(message.time.unix_timestamp(), message.time.nanosecond());
            let message = async_nats::Message {
                subject: message.subject,
                reply: None,
                length: message.payload.len(),
                payload: message.payload,
                headers: Some(message.headers),
                status: None,
                description: None,
            };
            Ok(Some(incoming(sequence, at.unwrap_or_default(), message)))
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(IngestError::stream("cannot read a message again")(error.into())),
    }
}

fn is_not_found(error: &async_nats::jetstream::stream::RawMessageError) -> bool {
    use async_nats::jetstream::stream::LastRawMessageErrorKind;
    match error.kind() {
        LastRawMessageErrorKind::NoMessageFound => true,
        LastRawMessageErrorKind::JetStream(error) => u64::try_from(error.code()).ok() == Some(NOT_FOUND),
        LastRawMessageErrorKind::InvalidSubject | LastRawMessageErrorKind::Other => false,
    }
}
