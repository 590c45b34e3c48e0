//! The binary COPY format: rows on their way into a table, cheaper than as parameters of an INSERT (`performance` section 4).
//!
//! COPY is the one statement that the query macros cannot check: who uses it must list the columns in the order in which it
//! writes them, which every test that records something proves.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use sqlx::postgres::PgCopyIn;
use uuid::Uuid;

use super::super::StoreError;
use super::super::numeric::encode_femtos;

/// Signature, flags and extension length.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What stands where the next row would have its number of columns: there is none.
const TRAILER: i16 = -1;
/// A chunk is sent to the server when it has this size.
const CHUNK_BYTES: usize = 1 << 16;
/// Days from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
const PG_EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
const PG_EPOCH_MICROS: i64 = 946_684_800_000_000;
/// Version byte of jsonb on the wire.
const JSONB_VERSION: u8 = 1;

/// Copies rows, which `encode` writes, and returns how many. The server reads the rows before while the next ones are taken
/// and encoded.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn copy_in<T>(
    connection: &mut PgConnection,
    statement: &str,
    rows: impl Iterator<Item = T>,
    encode: impl Fn(&mut Encoder, T),
) -> Result<u64, StoreError> {
    let mut copy = connection.copy_in_raw(statement).await?;
    let mut encoder = Encoder { out: Vec::with_capacity(2 * CHUNK_BYTES) };
    encoder.out.extend_from_slice(HEADER);
    for row in rows {
        encode(&mut encoder, row);
        if encoder.out.len() >= CHUNK_BYTES {
            copy = send(copy, &encoder.out).await?;
            encoder.out.clear();
        }
    }
    encoder.out.extend_from_slice(&TRAILER.to_be_bytes());
    Ok(send(copy, &encoder.out).await?.finish().await?)
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

/// Rows that are not sent yet, the last one growing.
pub(super) struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    /// Begins a row of so many columns; each is written after it, in order.
    pub(super) fn row(&mut self, columns: i16) {
        self.out.extend_from_slice(&columns.to_be_bytes());
    }

    pub(super) fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.out.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }

    pub(super) fn boolean(&mut self, value: bool) {
        self.fixed([u8::from(value)]);
    }

    pub(super) fn date(&mut self, day: NaiveDate) {
        self.int4(day.to_epoch_days() - PG_EPOCH_DAYS);
    }

    pub(super) fn text_or_null(&mut self, value: Option<&str>) {
        self.optional(value, Self::text);
    }

    fn length(&mut self, bytes: usize) {
        // Every field is bounded far below this by the wire format; a longer one would fail on the server.
        self.out.extend_from_slice(&i32::try_from(bytes).unwrap_or(i32::MAX).to_be_bytes());
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.length(value.len());
        self.out.extend_from_slice(value);
    }

    pub(super) fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    pub(super) fn jsonb(&mut self, value: &str) {
        self.length(value.len() + 1);
        self.out.push(JSONB_VERSION);
        self.out.extend_from_slice(value.as_bytes());
    }

    /// A field whose size is known when this is compiled, so that nothing is called to copy it.
    fn fixed<const BYTES: usize>(&mut self, value: [u8; BYTES]) {
        self.length(BYTES);
        self.out.extend_from_slice(&value);
    }

    pub(super) fn int2(&mut self, value: i16) {
        self.fixed(value.to_be_bytes());
    }

    pub(super) fn int4(&mut self, value: i32) {
        self.fixed(value.to_be_bytes());
    }

    pub(super) fn int8(&mut self, value: i64) {
        self.fixed(value.to_be_bytes());
    }

    pub(super) fn uuid(&mut self, value: Uuid) {
        self.fixed(value.into_bytes());
    }

    pub(super) fn timestamp(&mut self, at: DateTime<Utc>) {
        self.int8(at.timestamp_micros() - PG_EPOCH_MICROS);
    }

    pub(super) fn numeric(&mut self, femtos: i128) {
        let length_at = self.out.len();
        self.length(0);
        let start = self.out.len();
        encode_femtos(femtos, &mut self.out);
        let length = i32::try_from(self.out.len() - start).unwrap_or(i32::MAX);
        self.out[length_at..start].copy_from_slice(&length.to_be_bytes());
    }
}
