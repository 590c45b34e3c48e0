//! Which sequences an invoice's manifest names: all that posted batches hold, without reading the batches of the past.

use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;
use waybill::invoicing::{DEFAULT_GRACE, Request, close_within};
use waybill::store::completeness::{SequenceRange, covered_before, sequences_posted, summarize};
use waybill::store::{Scope, commit, invoices};

use crate::ledger::{INCARNATION, Ledger, call, utc};

/// Batches of long ago; with less the planner may think that reading all of them is cheapest.
const OLD_BATCHES: i64 = 20_000;

/// Adds batches of a life of the stream, a sequence each and every fifth one missing, recorded so long ago.
async fn record(ledger: &Ledger, life: u128, sequences: (i64, i64), age: &str, posted: bool) {
    ledger.run(&batches(life, sequences, age, posted)).await;
}

fn batches(life: u128, (from, to): (i64, i64), age: &str, posted: bool) -> String {
    let life = Uuid::from_u128(life);
    let posted_at = if posted { "now(), 0" } else { "NULL, NULL" };
    format!(
        "INSERT INTO ingest_batches (origin, incarnation, sequences, messages, events, recorded, duplicates, rejected, rows,
             booked_on, recorded_at, posted_at, posted_closing)
         SELECT 'stream', '{life}', int8multirange(int8range(n, n + 1)), 1, 0, 0, 0, 0, 0, '2026-11-23',
                now() - interval '{age}', {posted_at}
         FROM generate_series({from}, {to}) n WHERE n % 5 <> 0"
    )
}

/// By all batches.
async fn posted(ledger: &Ledger) -> Vec<SequenceRange> {
    let rows: Vec<(Uuid, i64, i64)> = sqlx::query_as(
        "SELECT incarnation, lower(range), upper(range)
         FROM (SELECT incarnation, unnest(range_agg(sequences)) AS range FROM ingest_batches
               WHERE incarnation IS NOT NULL AND posted_at IS NOT NULL GROUP BY incarnation) AS covered ORDER BY 1, 2",
    )
    .fetch_all(&ledger.pool)
    .await
    .unwrap();
    rows.into_iter().map(|(incarnation, from, to)| SequenceRange { incarnation, from, to }).collect()
}

async fn summarized(ledger: &Ledger, most: i64) -> i64 {
    let mut tx = ledger.database.begin_ingest().await.unwrap();
    let added = summarize(&mut tx, most).await.unwrap();
    commit(tx).await.unwrap();
    added
}

#[tokio::test]
async fn what_is_posted_is_covered_however_much_of_it_is_summarized() {
    for (most, age) in [(0, "20 minutes"), (7, "20 minutes"), (1_000, "20 minutes"), (1_000, "2 minutes")] {
        let ledger = Ledger::new().await;
        record(&ledger, 1, (1, 20), "2 hours", true).await;
        record(&ledger, 2, (1, 20), "1 hour", true).await;
        record(&ledger, 1, (22, 30), "50 minutes", true).await;
        // Delivered again; and rejections tried again, which are of no sequence.
        record(&ledger, 2, (11, 14), "40 minutes", true).await;
        ledger
            .run(
                "INSERT INTO ingest_batches (origin, messages, events, recorded, duplicates, rejected, rows, booked_on,
                     recorded_at, posted_at, posted_closing)
                 VALUES ('replay', 0, 0, 0, 0, 0, 0, '2026-11-23', now() - interval '30 minutes', now(), 0)",
            )
            .await;
        summarized(&ledger, most).await;
        // Waits to be posted on either side of the summary, and is posted between the two looks.
        record(&ledger, 2, (22, 34), age, false).await;
        summarized(&ledger, most).await;
        record(&ledger, 3, (1, 3), "1 minute", true).await;
        let mut tx = ledger.database.begin().await.unwrap();
        let before = covered_before(&mut tx).await.unwrap();
        record(&ledger, 3, (6, 8), "1 minute", false).await;
        ledger
            .run("UPDATE ingest_batches SET posted_at = now(), posted_closing = 0 WHERE posted_at IS NULL")
            .await;
        record(&ledger, 3, (11, 13), "0 minutes", true).await;
        // Later than what a closing waits for.
        record(&ledger, 3, (16, 18), "0 minutes", false).await;
        let shown = sequences_posted(&mut tx, &before).await.unwrap();
        assert_eq!(shown, posted(&ledger).await, "{age}, {most} at a time");
        assert_eq!(shown.len(), 16, "{shown:?}");
    }
}

#[tokio::test]
async fn a_batch_that_is_being_recorded_is_covered_once_it_is_posted() {
    let ledger = Ledger::new().await;
    record(&ledger, 1, (1, 4), "1 hour", true).await;
    let mut recording = ledger.pool.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(batches(1, (6, 6), "0 minutes", false)))
        .execute(&mut *recording)
        .await
        .unwrap();
    record(&ledger, 1, (7, 7), "0 minutes", false).await;
    let mut tx = ledger.database.begin().await.unwrap();
    let before = covered_before(&mut tx).await.unwrap();
    recording.commit().await.unwrap();
    ledger
        .run("UPDATE ingest_batches SET posted_at = now(), posted_closing = 0 WHERE posted_at IS NULL")
        .await;
    assert_eq!(sequences_posted(&mut tx, &before).await.unwrap(), posted(&ledger).await);
}

/// Rows of batches that the transaction has read.
async fn batches_read(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "SELECT seq_tup_read + COALESCE(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = 'ingest_batches'",
    )
    .fetch_one(connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_closing_reads_the_latest_batches_only() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    record(&ledger, 7, (1, OLD_BATCHES), "1 hour", true).await;
    assert!(summarized(&ledger, 2 * OLD_BATCHES).await > OLD_BATCHES / 2);
    record(&ledger, 7, (OLD_BATCHES + 1, OLD_BATCHES + 50), "1 minute", true).await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    ledger.post().await;
    ledger.run("VACUUM ANALYZE ingest_batches").await;

    let mut tx = ledger.database.begin().await.unwrap();
    let request = Request {
        customer: acme,
        at: utc("2026-10-15T00:00:00Z"),
        grace: DEFAULT_GRACE,
        actor: "test".to_owned(),
    };
    let closed = close_within(&mut tx, utc("2026-11-02T00:00:00Z"), &request).await.unwrap();
    let read = batches_read(&mut tx).await;
    assert!((40..1_000).contains(&read), "{read} rows of batches were read");
    commit(tx).await.unwrap();

    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    let stored = invoices::get(&mut tx, closed.invoices[0]).await.unwrap().unwrap();
    let streams = &stored.invoice.manifest["streams"];
    let covered = |life: usize| streams[life]["covered"].as_array().unwrap();
    assert_eq!(
        (covered(0).len(), covered(1)),
        (usize::try_from(OLD_BATCHES / 5 + 10).unwrap(), &vec![json!([1, 2])])
    );
    assert_eq!((&covered(0)[0], &streams[0]["gaps"][0]), (&json!([1, 5]), &json!([5, 6])));
    assert_eq!(streams[1]["incarnation"], json!(INCARNATION));
}
