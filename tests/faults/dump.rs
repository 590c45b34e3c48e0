//! What the auditor reads: the ledger in one snapshot as CSV, and the messages of the stream.

use std::fmt::Write;
use std::path::Path;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::Stream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use waybill::ingest::stream::CONSUMER;

use crate::harness::wait_until;

/// The tables that the auditor knows; whatever columns they have.
const TABLES: [&str; 13] = [
    "customers",
    "gateways",
    "gateway_sequences",
    "prices",
    "price_rates",
    "book_assignments",
    "billing_periods",
    "ingest_batches",
    "half_postings",
    "usage_events",
    "rejections",
    "usage_hours",
    "tasks",
];
/// The sums of usage: the table, or what stands for it.
const ROLLUPS: &str = "usage_rollups";
/// Messages that are read at a time.
const AHEAD: usize = 64;

/// Writes the tables into a folder, all of one snapshot.
pub async fn ledger(database_url: &str, folder: &Path) -> Result<(), sqlx::Error> {
    let tables = TABLES.into_iter().chain([ROLLUPS]);
    let queries: Vec<_> = tables.map(|table| (table, format!("SELECT * FROM {table}"))).collect();
    copy_out(database_url, folder, &queries).await
}

/// Writes what queries give into a folder, by name, all of one snapshot.
async fn copy_out(database_url: &str, folder: &Path, queries: &[(&str, String)]) -> Result<(), sqlx::Error> {
    std::fs::create_dir_all(folder)?;
    let mut connection = PgConnection::connect(database_url).await?;
    let begin = "SET timezone = 'UTC'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    sqlx::raw_sql(begin).execute(&mut connection).await?;
    for (name, query) in queries {
        let copy = format!("COPY ({query}) TO STDOUT (FORMAT csv, HEADER)");
        let mut rows = connection.copy_out_raw(&copy).await?;
        let mut file = std::fs::File::create(folder.join(format!("{name}.csv")))?;
        while let Some(bytes) = rows.try_next().await? {
            std::io::Write::write_all(&mut file, &bytes)?;
        }
    }
    connection.close().await
}

/// Sums of the ledger, for more events than can be looked at one by one: names and queries.
const SUMS: [(&str, &str); 5] = [
    (
        "journal_sums",
        "SELECT c.external_id AS customer, e.model, e.cost_price_id, e.sell_price_id, count(*) AS calls,
                sum(e.input) AS input, sum(e.cache_read) AS cache_read, sum(e.output) AS output,
                sum(e.reasoning) AS reasoning, sum(e.cost) AS cost, sum(e.charge) AS charge
         FROM usage_events e JOIN customers c ON c.id = e.customer_id GROUP BY 1, 2, 3, 4",
    ),
    (
        "rollup_sums",
        "SELECT c.external_id AS customer, r.cost_price_id, r.sell_price_id, sum(r.events) AS calls,
                sum(r.input) AS input, sum(r.cache_read) AS cache_read, sum(r.output) AS output,
                sum(r.reasoning) AS reasoning, sum(r.cost) AS cost, sum(r.charge) AS charge
         FROM usage_rollups r JOIN customers c ON c.id = r.customer_id GROUP BY 1, 2, 3",
    ),
    (
        "task_sums",
        "SELECT c.external_id AS customer, sum(t.calls) AS calls, sum(t.input) AS input,
                sum(t.cache_read) AS cache_read, sum(t.output) AS output, sum(t.reasoning) AS reasoning,
                sum(t.cost) AS cost, sum(t.charge) AS charge
         FROM tasks t JOIN customers c ON c.id = t.customer_id GROUP BY 1",
    ),
    ("price_rates", "SELECT price_id, class, rate FROM price_rates"),
    (
        "batch_sums",
        "SELECT count(*) AS batches, range_agg(sequences) AS sequences, sum(events) AS events, sum(recorded) AS recorded,
                sum(duplicates) AS duplicates, sum(rejected) AS rejected
         FROM ingest_batches WHERE incarnation IS NOT NULL",
    ),
];

/// Writes sums of the ledger into a folder, all of one snapshot.
pub async fn sums(database_url: &str, folder: &Path) -> Result<(), sqlx::Error> {
    let queries = SUMS.map(|(name, query)| (name, query.to_owned()));
    copy_out(database_url, folder, &queries).await
}

/// The stream, as soon as its server answers.
async fn opened(context: &Context, name: &str) -> Stream {
    wait_until("the stream answers", async || context.get_stream(name).await.ok()).await
}

/// Writes how often the consumer has delivered something, and up to which message, in which life of the stream; null where there
/// is no consumer.
pub async fn deliveries(context: &Context, name: &str, path: &Path) {
    let stream = opened(context, name).await;
    let incarnation = &stream.cached_info().config.metadata["waybill_incarnation"];
    let told = wait_until("the consumer answers, or is not there", async || {
        match stream.consumer_info(CONSUMER).await {
            Ok(consumer) => {
                let delivered = consumer.delivered;
                Some(json!({"incarnation": incarnation, "deliveries": delivered.consumer_sequence,
                            "last_sequence": delivered.stream_sequence}))
            }
            Err(error) => (error.kind() == ConsumerInfoErrorKind::NotFound).then_some(Value::Null),
        }
    })
    .await;
    std::fs::write(path, told.to_string()).unwrap();
}

/// Writes every message of the stream as a line: its life of the stream, sequence, subject, and its body decompressed.
pub async fn stream(context: &Context, name: &str, path: &Path) {
    let stream = &opened(context, name).await;
    let info = stream.cached_info();
    let incarnation = info.config.metadata["waybill_incarnation"].clone();
    let sequences = info.state.first_sequence..=info.state.last_sequence;
    let lines = futures_util::stream::iter(sequences)
        .map(|sequence| async move {
            wait_until("every message is there", async || stream.get_raw_message(sequence).await.ok()).await
        })
        .buffered(AHEAD)
        .map(|message| {
            let zstd = message.headers.get("Content-Encoding").is_some();
            let body = if zstd { zstd::decode_all(&message.payload[..]).unwrap() } else { message.payload.to_vec() };
            json!({"incarnation": incarnation, "sequence": message.sequence, "subject": message.subject.as_str(),
                   "body": STANDARD.encode(body)})
        })
        .collect::<Vec<_>>()
        .await;
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{line}").unwrap();
    }
    std::fs::write(path, text).unwrap();
}
