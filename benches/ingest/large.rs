//! Recording into a journal that is large already: time-ordered ids stay in cache, random ones do not.

use std::time::Instant;

use sqlx::AssertSqlSafe;
use waybill::ingest::posting;
use waybill::store::Database;

use crate::bed::{Bed, Run};
use crate::report::Report;
use crate::scenarios;
use crate::workload::{Ids, PACKED};

/// Rows of one transaction of the filling; a drain before it has recorded at least as many.
const FILL_ROWS: usize = 100_000;
/// Drains before and after the filling, of which the median counts.
const DRAINS: u64 = 3;

/// Drains backlogs into an empty journal and into the large one, once for each kind of ids.
pub async fn measure(rows: usize, events: usize, report: &mut Report) {
    for (name, ids) in [("v7", Ids::Ordered), ("random", Ids::Random)] {
        let mut bed = Bed::start(true).await;
        let mut empty = Vec::new();
        for seed in 0..DRAINS {
            let run = bed.run().await;
            empty.push(scenarios::drain_into(&run, seed, events, PACKED, ids).await.per_second());
            bed.end(run).await;
        }
        let run = bed.run().await;
        scenarios::drain_into(&run, DRAINS, events.max(FILL_ROWS), PACKED, ids).await;
        fill(&run, rows, ids).await;
        let mut filled = Vec::new();
        for seed in DRAINS + 1..=2 * DRAINS {
            filled.push(scenarios::drain_into(&run, seed, events, PACKED, ids).await.per_second());
        }
        run.verify_ledger().await;
        bed.end(run).await;
        bed.stop().await;
        report.large(name, rows, &mut empty, &mut filled);
    }
}

/// Copies recorded usage under new identities until the journal has so many rows, and posts it.
async fn fill(run: &Run, rows: usize, ids: Ids) {
    // Time-ordered keys count up towards now, half a millisecond apart; random ones are what they are.
    let key = match ids {
        Ids::Ordered => {
            "lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - ($LEFT - number) / 2), 12, '0') || substr(md5(random()::text), 1, 20)"
        }
        Ids::Random => "md5(random()::text || number)",
    };
    let started = Instant::now();
    for filled in (0..rows).step_by(FILL_ROWS) {
        let count = FILL_ROWS.min(rows - filled);
        let key = key.replace("$LEFT", &(rows - filled).to_string());
        let statement = format!(
            "WITH batch AS (
                 INSERT INTO ingest_batches (origin, messages, events, recorded, duplicates, rejected, rows, booked_on)
                 SELECT 'replay', 0, {count}, {count}, 0, 0, {count}, booked_on FROM journal_clock RETURNING id, booked_on
             ), original AS (
                 SELECT row_number() OVER () AS number, e.* FROM (SELECT * FROM usage_events LIMIT {count}) AS e
             )
             INSERT INTO usage_events (booked_on, event_key, part, kind, batch_id, event_index, customer_id, gateway_id,
                 occurred_at, source, id, content_hash, provider, model, service_tier, task_id, task_type, project,
                 attributes, status, latency_ms, tier_input, input, cache_read, output, reasoning, cost_price_id,
                 sell_price_id, cost, charge)
             SELECT b.booked_on, ({key})::uuid, 0, 'usage', b.id, event_index, customer_id, gateway_id,
                 occurred_at, source, gen_random_uuid()::text, content_hash, provider, model, service_tier, task_id,
                 task_type, project, attributes, status, latency_ms, tier_input, input, cache_read, output, reasoning,
                 cost_price_id, sell_price_id, cost, charge
             FROM original, batch b ORDER BY number"
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&run.pool).await.unwrap();
    }
    let database = Database::connect(&run.database_url).await.unwrap();
    posting::post_all(&database).await.unwrap();
    database.close().await;
    sqlx::raw_sql("ANALYZE usage_events").execute(&run.pool).await.unwrap();
    eprintln!("filled with {rows} rows within {:.0?}", started.elapsed());
}
