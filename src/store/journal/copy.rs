//! Binary COPY into the journal: about four times cheaper than an insert (`performance` section 4).
//!
//! The one statement that the query macros cannot check; `COLUMNS` and [`Encoder::row`] must list the same columns in
//! the same order, which every test that records an event proves.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use sqlx::postgres::PgCopyIn;
use uuid::Uuid;

use super::super::StoreError;
use super::super::numeric::encode_femtos;
use super::super::quantities::rare_json;
use super::partition;
use super::row::{JournalEvent, JournalPart};
use crate::domain::event::Outcome;
use crate::domain::ids::BatchId;
use crate::domain::tokens::Quantities;

/// The columns, in the order in which [`Encoder::row`] writes them.
const COLUMNS: &str = "(booked_on, event_key, part, kind, batch_id, stream_seq, event_index, customer_id, \
     gateway_id, occurred_at, source, id, content_hash, corrects_key, provider, model, platform, region, service_tier, \
     processing, speed, task_id, task_type, task_parent, outcome, project, attributes, status, estimated, latency_ms, \
     tier_input, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost_price_id, \
     sell_price_id, cost, charge, stated_cost, stated_currency)";
/// How many columns that is.
const COLUMN_COUNT: i16 = 44;
/// Signature, flags and extension length of the binary COPY format.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// A chunk is sent to the server when it has this size.
const CHUNK_BYTES: usize = 1 << 16;
/// Days from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
const PG_EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
const PG_EPOCH_MICROS: i64 = 946_684_800_000_000;
/// Version byte of jsonb on the wire.
const JSONB_VERSION: u8 = 1;

/// Appends events to the journal; returns the number of rows. They go into the partition of the booking date directly:
/// PostgreSQL refuses COPY into a table with row-level security. The server reads the rows of the events before while the
/// next ones are taken and encoded.
///
/// # Errors
/// [`StoreError::NoPartition`]; [`StoreError::Database`], where a unique violation means that another writer recorded one of
/// the events in the meantime.
pub async fn copy_events<'e>(
    connection: &mut PgConnection,
    batch: BatchId,
    booked_on: NaiveDate,
    events: impl Iterator<Item = &'e JournalEvent>,
) -> Result<u64, StoreError> {
    let partition = partition(connection, booked_on).await?.ok_or(StoreError::NoPartition(booked_on))?;
    let statement = format!("COPY {partition} {COLUMNS} FROM STDIN (FORMAT binary)");
    let mut copy = connection.copy_in_raw(&statement).await?;
    let mut encoder = Encoder::new(batch, booked_on);
    for event in events {
        encoder.event(event);
        if encoder.out.len() >= CHUNK_BYTES {
            copy = send(copy, &encoder.out).await?;
            encoder.out.clear();
        }
    }
    Ok(send(copy, &encoder.finish()).await?.finish().await?)
}

async fn send<'c>(
    mut copy: PgCopyIn<&'c mut PgConnection>,
    chunk: &[u8],
) -> Result<PgCopyIn<&'c mut PgConnection>, StoreError> {
    match copy.send(chunk).await {
        Ok(_) => Ok(copy),
        Err(error) => {
            // Leave copy mode, or the connection is of no further use; the first error is the one that matters.
            let _ = copy.abort("a chunk could not be sent").await;
            Err(error.into())
        }
    }
}

struct Encoder {
    out: Vec<u8>,
    batch: BatchId,
    booked_on: i32,
}

impl Encoder {
    fn new(batch: BatchId, booked_on: NaiveDate) -> Self {
        let mut out = Vec::with_capacity(2 * CHUNK_BYTES);
        out.extend_from_slice(HEADER);
        let days = booked_on.to_epoch_days() - PG_EPOCH_DAYS;
        Self { out, batch, booked_on: days }
    }

    fn event(&mut self, event: &JournalEvent) {
        if event.parts.is_empty() {
            self.row(event, 0, None);
        }
        for (part, number) in event.parts.iter().zip(0_i16..) {
            self.row(event, number, Some(part));
        }
    }

    fn row(&mut self, event: &JournalEvent, number: i16, part: Option<&JournalPart>) {
        self.out.extend_from_slice(&COLUMN_COUNT.to_be_bytes());
        self.int4(self.booked_on);
        self.uuid(event.key.0);
        self.int2(number);
        self.text(if part.is_some() { "usage" } else { "outcome" });
        self.int8(self.batch.0);
        self.int8(event.stream_seq);
        self.int4(event.event_index);
        self.int8(event.customer.0);
        self.int4(event.gateway.0);
        self.timestamp(event.occurred_at);
        self.text(&event.identity.source);
        self.text(&event.identity.id);
        self.uuid(event.content_hash);
        self.optional(event.corrects, |encoder, key| encoder.uuid(key.0));
        self.model(part);
        self.text_or_null(event.task.as_ref().map(|task| task.id.as_str()));
        self.text_or_null(event.task.as_ref().and_then(|task| task.kind.as_deref()));
        self.text_or_null(event.task.as_ref().and_then(|task| task.parent.as_deref()));
        self.text_or_null(event.outcome.map(Outcome::as_str));
        self.text_or_null(event.project.as_deref());
        self.optional(event.attributes.as_deref(), Self::jsonb);
        self.text_or_null(event.status.as_deref());
        self.fixed([u8::from(event.estimated)]);
        self.optional(event.latency_ms, Self::int8);
        self.usage(part);
    }

    fn model(&mut self, part: Option<&JournalPart>) {
        self.text_or_null(part.map(|part| part.provider.as_str()));
        self.text_or_null(part.map(|part| part.model.as_str()));
        let conditions = part.map(|part| &part.conditions);
        self.text_or_null(conditions.and_then(|conditions| conditions.platform.as_deref()));
        self.text_or_null(conditions.and_then(|conditions| conditions.region.as_deref()));
        self.text_or_null(conditions.and_then(|conditions| conditions.service_tier.as_deref()));
        self.text_or_null(conditions.and_then(|conditions| conditions.processing.as_deref()));
        self.text_or_null(conditions.and_then(|conditions| conditions.speed.as_deref()));
    }

    fn usage(&mut self, part: Option<&JournalPart>) {
        self.int8(part.map_or(0, |part| part.tier_input));
        let quantities = part.map_or(&Quantities::NONE, |part| &part.quantities);
        for units in quantities.main() {
            self.int8(units);
        }
        self.optional(rare_json(quantities.rare()).as_deref(), Self::jsonb);
        self.optional(part.map(|part| part.cost_price.0), Self::int8);
        self.optional(part.map(|part| part.sell_price.0), Self::int8);
        self.numeric(part.map_or(0, |part| part.cost.femtos()));
        self.numeric(part.map_or(0, |part| part.charge.femtos()));
        let stated = part.and_then(|part| part.stated_cost);
        self.optional(stated.map(|stated| stated.amount.femtos()), Self::numeric);
        self.optional(stated.map(|stated| stated.currency), |encoder, currency| {
            encoder.text(currency.as_str());
        });
    }

    fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.out.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }

    fn text_or_null(&mut self, value: Option<&str>) {
        self.optional(value, Self::text);
    }

    fn length(&mut self, bytes: usize) {
        // Every field is bounded far below this by the wire format; a longer one would fail on the server.
        self.out.extend_from_slice(&i32::try_from(bytes).unwrap_or(i32::MAX).to_be_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        self.length(value.len());
        self.out.extend_from_slice(value);
    }

    fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    fn jsonb(&mut self, value: &str) {
        self.length(value.len() + 1);
        self.out.push(JSONB_VERSION);
        self.out.extend_from_slice(value.as_bytes());
    }

    /// A field whose size is known when this is compiled, so that nothing is called to copy it.
    fn fixed<const BYTES: usize>(&mut self, value: [u8; BYTES]) {
        self.length(BYTES);
        self.out.extend_from_slice(&value);
    }

    fn int2(&mut self, value: i16) {
        self.fixed(value.to_be_bytes());
    }

    fn int4(&mut self, value: i32) {
        self.fixed(value.to_be_bytes());
    }

    fn int8(&mut self, value: i64) {
        self.fixed(value.to_be_bytes());
    }

    fn uuid(&mut self, value: Uuid) {
        self.fixed(value.into_bytes());
    }

    fn timestamp(&mut self, at: DateTime<Utc>) {
        self.int8(at.timestamp_micros() - PG_EPOCH_MICROS);
    }

    fn numeric(&mut self, femtos: i128) {
        let length_at = self.out.len();
        self.length(0);
        let start = self.out.len();
        encode_femtos(femtos, &mut self.out);
        let length = i32::try_from(self.out.len() - start).unwrap_or(i32::MAX);
        self.out[length_at..start].copy_from_slice(&length.to_be_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(&(-1_i16).to_be_bytes());
        self.out
    }
}
