//! What the auditor reads: the ledger in one snapshot as CSV, and the messages of the stream.

use std::fmt::Write;
use std::path::Path;

use async_nats::jetstream::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use sqlx::{Connection, PgConnection};

/// The tables that the auditor knows; whatever columns they have.
const TABLES: [&str; 10] = [
    "customers",
    "gateways",
    "gateway_sequences",
    "prices",
    "price_rates",
    "billing_periods",
    "ingest_batches",
    "usage_events",
    "rejections",
    "tasks",
];
/// The sums of usage: the table, or what stands for it.
const ROLLUPS: &str = "usage_rollups";
/// Messages that are read at a time.
const AHEAD: usize = 64;

/// Writes the tables into a folder, all of one snapshot.
pub async fn ledger(database_url: &str, folder: &Path) -> Result<(), sqlx::Error> {
    std::fs::create_dir_all(folder)?;
    let mut connection = PgConnection::connect(database_url).await?;
    let begin = "SET timezone = 'UTC'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    sqlx::raw_sql(begin).execute(&mut connection).await?;
    for table in TABLES.iter().chain([&ROLLUPS]) {
        let copy = format!("COPY (SELECT * FROM {table}) TO STDOUT (FORMAT csv, HEADER)");
        let mut rows = connection.copy_out_raw(&copy).await?;
        let mut file = std::fs::File::create(folder.join(format!("{table}.csv")))?;
        while let Some(bytes) = rows.try_next().await? {
            std::io::Write::write_all(&mut file, &bytes)?;
        }
    }
    connection.close().await
}

/// Writes every message of the stream as a line: its life of the stream, sequence, subject, and its body decompressed.
pub async fn stream(context: &Context, name: &str, path: &Path) {
    let stream = context.get_stream(name).await.unwrap();
    let info = stream.cached_info();
    let incarnation = info.config.metadata["waybill_incarnation"].clone();
    let sequences = info.state.first_sequence..=info.state.last_sequence;
    let lines = futures_util::stream::iter(sequences)
        .map(|sequence| stream.get_raw_message(sequence))
        .buffered(AHEAD)
        .map(|message| {
            let message = message.expect("every message is there");
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
