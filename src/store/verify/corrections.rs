//! Corrections: each takes back what stood for its estimate, which would be billed beside it otherwise.

use sqlx::PgConnection;

use super::Difference;
use crate::store::StoreError;

/// Corrections whose rows are not minus what stood before them: the usage of the estimate or of the correction before, each
/// part as it was last re-rated.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn reversal_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH journal AS MATERIALIZED (
               SELECT event_key, part, kind, restates, corrects_key, batch_id, booked_on, occurred_at, stream_seq, event_index,
                      ARRAY[input, cache_read, cache_write_5m, cache_write_1h, output, reasoning] AS units,
                      COALESCE(rare, '{}') AS rare, ARRAY[cost_price_id, sell_price_id] AS prices, ARRAY[cost, charge] AS amounts
               FROM usage_events
               WHERE corrects_key IS NOT NULL
                  OR event_key IN (SELECT original_key FROM corrections UNION SELECT correcting_key FROM corrections)
           ), events AS (
               SELECT e.event_key, e.batch_id, e.booked_on, e.corrects_key,
                      COALESCE(e.corrects_key, e.event_key) AS chain, c.number
               FROM journal e
               LEFT JOIN corrections c ON c.correcting_key = e.event_key AND c.original_key = e.corrects_key
               WHERE e.part = 0
           ), placed AS (
               -- An id may be used again long after: that estimate comes after the corrections that were recorded before it.
               SELECT *, COALESCE(number, max(number) OVER (PARTITION BY chain ORDER BY batch_id
                             RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS place
               FROM events
           ), corrected AS (
               SELECT event_key, booked_on, corrects_key, number,
                      lag(event_key) OVER chained AS standing, lag(booked_on) OVER chained AS standing_booked_on
               FROM placed
               WINDOW chained AS (PARTITION BY chain ORDER BY place, corrects_key NULLS LAST, booked_on)
           ), restated AS (
               SELECT DISTINCT ON (event_key, restates, occurred_at, stream_seq, event_index) event_key, restates, occurred_at,
                      stream_seq, event_index, rare, prices, amounts
               FROM journal WHERE kind = 'restatement'
               ORDER BY event_key, restates, occurred_at, stream_seq, event_index, part DESC
           ), expected AS (
               SELECT c.event_key, c.booked_on, o.part + 1000 AS part,
                      ARRAY(SELECT -unit FROM unnest(o.units) WITH ORDINALITY AS u (unit, place) ORDER BY place) AS units,
                      COALESCE((SELECT jsonb_object_agg(key, -value::numeric)
                                FROM jsonb_each_text(CASE WHEN r.event_key IS NULL THEN o.rare ELSE r.rare END)), '{}') AS rare,
                      COALESCE(r.prices, o.prices) AS prices,
                      ARRAY[-(COALESCE(r.amounts, o.amounts))[1], -(COALESCE(r.amounts, o.amounts))[2]] AS amounts
               FROM corrected c
               JOIN journal o ON o.event_key = c.standing AND o.booked_on = c.standing_booked_on AND o.kind = 'usage'
               LEFT JOIN restated r ON r.event_key = o.event_key AND r.restates = o.part AND r.occurred_at = o.occurred_at
                                   AND r.stream_seq IS NOT DISTINCT FROM o.stream_seq AND r.event_index = o.event_index
               WHERE c.corrects_key IS NOT NULL
           ), taken AS (
               SELECT event_key, booked_on, part::integer AS part, units, rare, prices, amounts
               FROM journal WHERE kind = 'reversal'
           )
           SELECT format('event %s part %s', event_key, part) AS "subject!",
                  CASE WHEN e.part IS NULL THEN 'nothing that it takes back'
                       ELSE format('minus what stood: units %s %s, prices %s, amounts %s', e.units, e.rare, e.prices, e.amounts)
                       END AS "expected!",
                  CASE WHEN t.part IS NULL THEN 'nothing is taken back'
                       ELSE format('units %s %s, prices %s, amounts %s', t.units, t.rare, t.prices, t.amounts) END AS "actual!"
           FROM expected e FULL JOIN taken t USING (event_key, booked_on, part)
           WHERE (e.units, e.rare, e.prices, e.amounts) IS DISTINCT FROM (t.units, t.rare, t.prices, t.amounts)
             -- What stood before may be archived.
             AND NOT (e.part IS NULL AND archived_through() IS NOT NULL
                      AND EXISTS (SELECT FROM corrected c WHERE c.event_key = t.event_key AND c.booked_on = t.booked_on
                                  AND c.standing IS NULL))
           UNION ALL
           SELECT format('event %s', event_key), format('a correction of event %s', corrects_key), 'none is written down'
           FROM corrected WHERE corrects_key IS NOT NULL AND number IS NULL
           UNION ALL
           SELECT format('correction %s of event %s', c.number, c.original_key), format('event %s', c.correcting_key), 'none'
           FROM corrections c
           WHERE archived_through() IS NULL AND NOT EXISTS (SELECT FROM events e WHERE e.event_key = c.correcting_key)
           ORDER BY 1 LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
