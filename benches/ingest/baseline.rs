//! What Waybill is compared with: the fastest way into the same table, and what is commonly built instead.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt};
use serde::Deserialize;
use sqlx::{Connection, PgConnection};

use crate::bed::{Run, limits};
use crate::scenarios::rate;
use crate::workload::{GATEWAY, Ids, Workload};

/// Rows of one COPY, and of one transaction.
const COPY_ROWS: usize = 20_000;
/// Size of one chunk sent to the server.
const CHUNK_BYTES: usize = 1 << 16;
/// Signature, flags and extension length of the binary COPY format, and its end.
const HEADER_BYTES: usize = 19;

/// Copies the journal of one run into that of another, 20,000 rows in a transaction, without any look-up, sum or ack.
pub async fn raw_copy(from: &Run, to: &Run) -> (usize, Duration) {
    let mut source = from.pool.acquire().await.unwrap();
    let mut target = to.pool.acquire().await.unwrap();
    sqlx::raw_sql("SELECT open_booking_date(booked_on) FROM (SELECT current_date AS booked_on) AS today")
        .execute(&mut *target)
        .await
        .unwrap();
    let body: Vec<u8> = source
        .copy_out_raw(
            "COPY (SELECT * FROM usage_events ORDER BY batch_id, event_key) TO STDOUT (FORMAT binary)",
        )
        .await
        .unwrap()
        .try_fold(Vec::new(), |mut body, chunk| async move {
            body.extend_from_slice(&chunk);
            Ok(body)
        })
        .await
        .unwrap();
    let (batches, rows) = batches(&body);
    let started = Instant::now();
    for batch in &batches {
        let mut tx = target.begin().await.unwrap();
        let mut copy = tx.copy_in_raw("COPY usage_events FROM STDIN (FORMAT binary)").await.unwrap();
        for chunk in batch.chunks(CHUNK_BYTES) {
            copy.send(chunk).await.unwrap();
        }
        copy.finish().await.unwrap();
        tx.commit().await.unwrap();
    }
    (rows, started.elapsed())
}

/// Cuts a binary COPY into several, each whole in itself.
fn batches(body: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let word = |at: usize| i16::from_be_bytes([body[at], body[at + 1]]);
    let length = |at: usize| i32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
    let (mut batches, mut rows, mut at, mut start) = (Vec::new(), 0, HEADER_BYTES, HEADER_BYTES);
    let mut end_batch = |start: usize, at: usize| {
        batches.push([&body[..HEADER_BYTES], &body[start..at], &(-1_i16).to_be_bytes()].concat());
    };
    while let Ok(fields) = u16::try_from(word(at)) {
        at += 2;
        for _ in 0..fields {
            at += 4 + usize::try_from(length(at)).unwrap_or_default();
        }
        rows += 1;
        if rows % COPY_ROWS == 0 {
            end_batch(start, at);
            start = at;
        }
    }
    end_batch(start, at);
    (batches, rows)
}

#[derive(Deserialize)]
struct Event<'a> {
    id: &'a str,
    subject: &'a str,
    time: DateTime<Utc>,
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    provider: &'a str,
    model: &'a str,
    #[serde(borrow)]
    task: Task<'a>,
    provider_usage: Payload,
    #[serde(borrow)]
    attributes: &'a serde_json::value::RawValue,
}

#[derive(Deserialize)]
struct Task<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
}

#[derive(Deserialize)]
struct Payload {
    body: Body,
}

#[derive(Deserialize)]
struct Body {
    prompt_tokens: i64,
    completion_tokens: i64,
}

/// What is commonly built: per message one transaction with an insert and two upserts, then its ack; at one fixed price,
/// without catalog, evidence or exactness. The tables have the same columns as far as they are filled.
pub async fn transaction_per_event(run: &Run, seed: u64, events: usize) -> f64 {
    let mut workload = Workload::new(seed, Ids::Ordered);
    for _ in 0..events {
        let body = workload.message(1, |_| waybill::clock::Clock::System.now());
        run.publisher.publish(GATEWAY, body).await.unwrap();
    }
    let mut connection = PgConnection::connect(&run.database_url).await.unwrap();
    sqlx::raw_sql(
        "CREATE TABLE plain_events (id uuid PRIMARY KEY, customer text, occurred_at timestamptz, provider text, model text,
             task text, task_type text, input bigint, output bigint, cost numeric(38, 15), attributes jsonb);
         CREATE TABLE plain_hours (customer text, hour timestamptz, model text, events bigint, input bigint, output bigint,
             cost numeric(38, 15), PRIMARY KEY (customer, hour, model));
         CREATE TABLE plain_tasks (customer text, task text, calls bigint, cost numeric(38, 15), last_at timestamptz,
             PRIMARY KEY (customer, task));",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let consumer = run.stream.consumer(limits()).await.unwrap();
    let mut messages = consumer.messages().await.unwrap().take(events);
    let started = Instant::now();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        record(&mut connection, &message.payload).await;
        message.ack().await.unwrap();
    }
    rate(events, started.elapsed())
}

async fn record(connection: &mut PgConnection, body: &[u8]) {
    let event: Event<'_> = serde_json::from_slice(body).unwrap();
    let Event { id, subject, time, data } = event;
    let Body { prompt_tokens: input, completion_tokens: output } = data.provider_usage.body;
    let mut tx = connection.begin().await.unwrap();
    let inserted = sqlx::query(
        "INSERT INTO plain_events VALUES ($1::text::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $8 * 0.00000125 + $9 * 0.00001, $10::text::jsonb)
         ON CONFLICT DO NOTHING",
    )
    .bind(id)
    .bind(subject)
    .bind(time)
    .bind(data.provider)
    .bind(data.model)
    .bind(data.task.id)
    .bind(data.task.kind)
    .bind(input)
    .bind(output)
    .bind(data.attributes.get())
    .execute(&mut *tx)
    .await
    .unwrap();
    if inserted.rows_affected() == 1 {
        sqlx::query(
            "INSERT INTO plain_hours AS h VALUES ($1, date_trunc('hour', $2), $3, 1, $4, $5, $4 * 0.00000125 + $5 * 0.00001)
             ON CONFLICT (customer, hour, model) DO UPDATE SET events = h.events + 1, input = h.input + EXCLUDED.input,
                 output = h.output + EXCLUDED.output, cost = h.cost + EXCLUDED.cost",
        )
        .bind(subject)
        .bind(time)
        .bind(data.model)
        .bind(input)
        .bind(output)
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO plain_tasks AS t VALUES ($1, $2, 1, $4 * 0.00000125 + $5 * 0.00001, $3)
             ON CONFLICT (customer, task) DO UPDATE SET calls = t.calls + 1, cost = t.cost + EXCLUDED.cost,
                 last_at = GREATEST(t.last_at, EXCLUDED.last_at)",
        )
        .bind(subject)
        .bind(data.task.id)
        .bind(time)
        .bind(input)
        .bind(output)
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
}
