//! Events and messages that could not be recorded, as a recording transaction stores them. Lists of them, and what finance
//! does about them, are [`super::super::rejections`]'s.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::StoreError;
use super::binary::{Encoder, copy_in};
use crate::domain::event::SequenceMark;
use crate::domain::identity::{EventIdentity, EventKey};
use crate::domain::ids::{BatchId, GatewayId, RejectionId};

/// By COPY, which no query macro checks: where a gateway sends nothing that can be billed, there is a row for every event.
/// The columns are those that [`copy_rejections`] writes.
const COPY: &str = "COPY rejections (batch_id, incarnation, catalog_version, stream_seq, event_index, subject, headers, \
     raw, reason, detail, gateway, customer, event_source, event_id, provider, model, waits_for, \
     event_time, received_at, content_hash, reading) FROM STDIN (FORMAT binary)";
/// How many columns that is.
const COLUMN_COUNT: i16 = 21;

/// Where a rejected event stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RejectionPosition {
    /// Sequence of its message.
    pub stream_seq: i64,
    /// Its position in the message, or -1 for the message as a whole.
    pub event_index: i32,
}

impl RejectionPosition {
    /// That of a rejection of its message as a whole.
    #[must_use]
    pub const fn of_message(self) -> Self {
        Self { event_index: WHOLE_MESSAGE, ..self }
    }
}

/// The index of a rejection that is about the message as a whole.
pub const WHOLE_MESSAGE: i32 = -1;

/// What a copy of an event is told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadEvent {
    /// Its identity ...
    pub identity: EventIdentity,
    /// ... and the key made of it.
    pub key: EventKey,
    /// Hash of its billable content; `None` where it cannot be read, though an earlier release may have read it.
    pub content_hash: Option<Uuid>,
    /// Whether its gateway may send old events, so that the look-up covers every partition.
    pub backfill: bool,
    /// Whether it is looked for in the journal: not where it comes from a gateway that is not registered, which is told of,
    /// copy or not. Copies of what was discarded are told all the same.
    pub may_be_recorded: bool,
}

/// Messages of a life of the stream, from one sequence to another.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The life; of rejections that are tried again, which may be of several, `None`.
    pub incarnation: Option<Uuid>,
    /// The first sequence.
    pub first: i64,
    /// The last one.
    pub last: i64,
    /// When the oldest of their events happened ...
    pub oldest: Option<DateTime<Utc>>,
    /// ... and the newest.
    pub newest: Option<DateTime<Utc>>,
}

/// An event, or a whole message, that could not be recorded.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// Where it stood.
    pub position: RejectionPosition,
    /// The subject of its message.
    pub subject: String,
    /// The headers of its message as a JSON object.
    pub headers: Option<String>,
    /// Its bytes as received, without the texts of prompts and answers.
    pub raw: Vec<u8>,
    /// Stable reason code.
    pub reason: &'static str,
    /// One sentence for people.
    pub detail: String,
    /// The gateway of the subject.
    pub gateway: Option<String>,
    /// Best knowledge of the customer.
    pub customer: Option<String>,
    /// Best knowledge of the event's source.
    pub event_source: Option<String>,
    /// Best knowledge of the event's id.
    pub event_id: Option<String>,
    /// Best knowledge of when the event happened.
    pub event_time: Option<DateTime<Utc>>,
    /// When the stream took its message.
    pub received_at: DateTime<Utc>,
    /// Best knowledge of the provider.
    pub provider: Option<String>,
    /// Best knowledge of the model.
    pub model: Option<String>,
    /// The gateway's own count in it, of a gateway that is registered: a kept rejection is settled as well.
    pub mark: Option<(GatewayId, SequenceMark)>,
    /// Of a correction: the estimate that it is tried again for, or [`NOTHING`].
    pub waits_for: Option<EventKey>,
    /// Of an event that may be a copy of another.
    pub event: Option<ReadEvent>,
    /// What copies are told by once it is discarded: the hash of its billable content, or where that cannot be read, of its
    /// bytes; of a message as a whole, nothing.
    pub content_hash: Option<Uuid>,
}

/// What a correction waits for whose estimate can never be there: a key that no event has.
pub const NOTHING: EventKey = EventKey(Uuid::nil());

/// Which of the positions are rejections already. They are of one batch, whose sequences lie near each other: looked for
/// in that range only, because of messages that come for the first time there is none in it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn known_rejections(
    connection: &mut PgConnection,
    incarnation: Uuid,
    positions: &[RejectionPosition],
) -> Result<Vec<RejectionPosition>, StoreError> {
    let sequences: Vec<i64> = positions.iter().map(|position| position.stream_seq).collect();
    let (Some(first), Some(last)) = (sequences.iter().min(), sequences.iter().max()) else {
        return Ok(Vec::new());
    };
    let indexes: Vec<i32> = positions.iter().map(|position| position.event_index).collect();
    let known = sqlx::query_as!(
        RejectionPosition,
        "SELECT stream_seq, event_index FROM rejections
         WHERE incarnation = $1 AND stream_seq BETWEEN $4 AND $5
           AND (stream_seq, event_index) IN (SELECT * FROM unnest($2::bigint[], $3::int[]))",
        incarnation,
        &sequences,
        &indexes,
        first,
        last
    )
    .fetch_all(connection)
    .await?;
    Ok(known)
}

/// Where messages of a life of the stream hold what finance has discarded; asked where [`open`](super::open) has told that
/// there is such.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn discarded(
    connection: &mut PgConnection,
    incarnation: Uuid,
    sequences: &[i64],
) -> Result<Vec<RejectionPosition>, StoreError> {
    let discarded = sqlx::query_as!(
        RejectionPosition,
        "SELECT stream_seq, event_index FROM rejections
         WHERE incarnation = $1 AND stream_seq = ANY($2) AND resolution = 'discarded'",
        incarnation,
        sequences
    )
    .fetch_all(connection)
    .await?;
    Ok(discarded)
}

/// An event that may be a copy of a discarded one.
#[derive(Debug, Clone, Copy)]
pub struct Suspect<'a> {
    /// The gateway of its subject.
    pub gateway: &'a str,
    /// Its source ...
    pub source: &'a str,
    /// ... and id.
    pub id: &'a str,
    /// When it happened.
    pub time: DateTime<Utc>,
}

/// Discarded events that have the names and the time of one of those that were asked for, and one content.
#[derive(Debug, Clone)]
pub struct DiscardedEvent {
    /// The place of that one among them.
    pub suspect: i64,
    /// Their hash, as a rejection keeps it ...
    pub content_hash: Option<Uuid>,
    /// ... and where an earlier release kept none, or that of another reading, the rejection: what it says has to be read.
    pub unhashed: Option<RejectionId>,
    /// When the first of them was discarded.
    pub discarded_at: DateTime<Utc>,
}

/// The discarded events that came from the same gateway with the same source, id and time, those of one content once; whether
/// they say the same is for the caller to compare, whose hashes are of `reading`. None of their bytes are read.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn discarded_events(
    connection: &mut PgConnection,
    suspects: &[Suspect<'_>],
    reading: i16,
) -> Result<Vec<DiscardedEvent>, StoreError> {
    let gateways: Vec<&str> = suspects.iter().map(|suspect| suspect.gateway).collect();
    let sources: Vec<&str> = suspects.iter().map(|suspect| suspect.source).collect();
    let ids: Vec<&str> = suspects.iter().map(|suspect| suspect.id).collect();
    let times: Vec<DateTime<Utc>> = suspects.iter().map(|suspect| suspect.time).collect();
    let discarded = sqlx::query_as!(
        DiscardedEvent,
        // A whole message has no event of its own.
        r#"SELECT asked.number - 1 AS "suspect!", CASE WHEN r.reading = $5 THEN r.content_hash END AS content_hash,
                  CASE WHEN r.reading = $5 AND r.content_hash IS NOT NULL THEN NULL ELSE r.id END AS "unhashed: RejectionId",
                  min(r.resolved_at) AS "discarded_at!"
           FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) WITH ORDINALITY
                AS asked (gateway, source, id, happened_at, number)
           JOIN rejections r ON r.event_id = asked.id AND r.event_source = asked.source AND r.gateway = asked.gateway
                            AND r.event_time = asked.happened_at
           WHERE r.resolution = 'discarded' AND r.event_index >= 0
           GROUP BY 1, 2, 3"#,
        &gateways as _,
        &sources as _,
        &ids as _,
        &times,
        reading
    )
    .fetch_all(connection)
    .await?;
    Ok(discarded)
}

/// The bytes of rejections.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn bytes_of(
    connection: &mut PgConnection,
    rejections: &[RejectionId],
) -> Result<Vec<(RejectionId, Vec<u8>)>, StoreError> {
    let ids: Vec<i64> = rejections.iter().map(|id| id.0).collect();
    let rows =
        sqlx::query!(r#"SELECT id AS "id: RejectionId", raw FROM rejections WHERE id = ANY($1)"#, &ids)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.raw)).collect())
}

/// Stores rejections of a batch, whose hashes are of a reading.
///
/// # Errors
/// [`StoreError::Database`]; a unique violation means that another consumer rejected one of them in the meantime.
pub async fn copy_rejections(
    connection: &mut PgConnection,
    batch: BatchId,
    incarnation: Uuid,
    catalog_version: i64,
    reading: i16,
    rejections: impl ExactSizeIterator<Item = &Rejection>,
) -> Result<(), StoreError> {
    if rejections.len() == 0 {
        return Ok(());
    }
    copy_in(connection, COPY, rejections, |out, rejection| {
        out.row(COLUMN_COUNT);
        out.int8(batch.0);
        out.uuid(incarnation);
        out.int8(catalog_version);
        out.int8(rejection.position.stream_seq);
        out.int4(rejection.position.event_index);
        out.text(&rejection.subject);
        out.optional(rejection.headers.as_deref(), Encoder::jsonb);
        out.bytes(&rejection.raw);
        out.text(rejection.reason);
        out.text(&rejection.detail);
        out.text_or_null(rejection.gateway.as_deref());
        out.text_or_null(rejection.customer.as_deref());
        out.text_or_null(rejection.event_source.as_deref());
        out.text_or_null(rejection.event_id.as_deref());
        out.text_or_null(rejection.provider.as_deref());
        out.text_or_null(rejection.model.as_deref());
        out.optional(rejection.waits_for, |out, key| out.uuid(key.0));
        out.optional(rejection.event_time, Encoder::timestamp);
        out.timestamp(rejection.received_at);
        out.optional(rejection.content_hash, Encoder::uuid);
        out.int2(reading);
    })
    .await?;
    Ok(())
}
