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
/// Pairs of drains, one into an empty journal and at once another into the large one: the median of their ratios counts.
const PAIRS: u64 = 5;
/// Share of the filling that follows a checkpoint, so that the pages of the keys were written since: with millions of
/// events between two checkpoints few of them find a page that was not.
const FILL_AFTER_CHECKPOINT: usize = 20;

/// Drains backlogs into an empty journal and into the large one, once for each kind of ids.
pub async fn measure(rows: usize, events: usize, ids: &[(&'static str, Ids)], report: &mut Report) {
    for (name, ids) in ids {
        let mut bed = Bed::start(true).await;
        let mut large = bed.run().await;
        scenarios::drain_into(&large, 0, events.max(FILL_ROWS), PACKED, *ids).await;
        fill(&bed, &large, rows, *ids).await;
        let mut small = Vec::new();
        for seed in 1..=PAIRS {
            let empty = bed.run().await;
            let into_empty = scenarios::drain_into(&empty, seed, events, PACKED, *ids).await;
            // Dropped later: that would force a checkpoint.
            small.push(empty);
            bed.renew_stream(&mut large).await;
            let into_large = scenarios::drain_into(&large, PAIRS + seed, events, PACKED, *ids).await;
            report.large(name, rows, &into_empty, &into_large);
        }
        for run in small {
            run.verify(events).await;
            bed.end(run).await;
        }
        large.verify_ledger().await;
        bed.end(large).await;
        bed.stop().await;
    }
}

/// Copies recorded usage under new identities until the journal has so many rows, and posts it.
async fn fill(bed: &Bed, run: &Run, rows: usize, ids: Ids) {
    // Time-ordered keys count up towards now, half a millisecond apart; random ones are what they are.
    let key = match ids {
        Ids::Ordered => {
            "lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - ($LEFT - number) / 2), 12, '0') || substr(md5(random()::text), 1, 20)"
        }
        Ids::Random => "md5(random()::text || number)",
    };
    let started = Instant::now();
    // Posts meanwhile.
    let service = run.serve();
    let checkpoint_at = rows - rows / FILL_AFTER_CHECKPOINT;
    let mut checkpointed = false;
    for filled in (0..rows).step_by(FILL_ROWS) {
        if filled >= checkpoint_at && !checkpointed {
            checkpointed = true;
            post(run).await;
            // What would otherwise be due in the middle of the drains.
            sqlx::raw_sql("VACUUM ANALYZE usage_events").execute(&run.pool).await.unwrap();
            bed.checkpoint().await;
            eprintln!("filled with {filled} rows within {:.0?}", started.elapsed());
        }
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
    post(run).await;
    drop(service);
    eprintln!("filled with {rows} rows within {:.0?}", started.elapsed());
}

async fn post(run: &Run) {
    let database = Database::connect(&run.database_url).await.unwrap();
    posting::post_all(&database).await.unwrap();
    database.close().await;
}
