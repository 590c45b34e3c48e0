//! The journal against its batches and against its prices.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use sqlx::types::Json;

use super::Difference;
use crate::domain::ids::PriceId;
use crate::domain::invoice::PriceTerms;
use crate::domain::money::{Amount, Rate};
use crate::domain::tokens::{MAIN_CLASS_COUNT, TokenClass};
use crate::store::StoreError;

/// Batches whose counts do not add up, or are not what the journal holds of them; journal rows of no batch.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn batch_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH journal AS (
               SELECT batch_id, count(*) FILTER (WHERE kind <> 'reversal') AS rows,
                      count(DISTINCT event_key) FILTER (WHERE restates IS NULL) AS identities,
                      count(restates) AS restating
               FROM usage_events GROUP BY batch_id
           )
           SELECT format('batch %s', COALESCE(b.id, j.batch_id)) AS "subject!",
                  CASE WHEN b.id IS NULL THEN 'no such batch'
                       ELSE format('%s events = %s recorded + %s duplicates + %s rejected; %s rows', b.events,
                                   b.recorded, b.duplicates, b.rejected, b.rows) END AS "expected!",
                  format('%s identities in %s rows, %s of them of a re-rate', COALESCE(j.identities, 0), COALESCE(j.rows, 0),
                         COALESCE(j.restating, 0)) AS "actual!"
           FROM ingest_batches b
           FULL JOIN journal j ON j.batch_id = b.id
           WHERE b.id IS NULL OR b.events <> b.recorded + b.duplicates + b.rejected
              OR ((b.booked_on < archived_through()) IS NOT TRUE
                  AND (b.rows <> COALESCE(j.rows, 0) OR b.recorded <> COALESCE(j.identities, 0)
                       OR COALESCE(j.restating, 0) <> CASE WHEN b.origin = 'rerate' THEN b.rows ELSE 0 END))
           ORDER BY COALESCE(b.id, j.batch_id) LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Archived months that are not what their batches counted, and journal rows in them.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn archive_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH counted AS (
               SELECT date_trunc('month', booked_on::timestamp)::date AS month, count(*) AS batches, sum(rows) AS rows
               FROM ingest_batches WHERE booked_on < archived_through() GROUP BY 1
           )
           SELECT format('archived month %s', month) AS "subject!",
                  format('%s batches, %s rows', COALESCE(c.batches, 0), COALESCE(c.rows, 0)) AS "expected!",
                  format('%s batches, %s rows', COALESCE(a.batches, 0), COALESCE(a.rows, 0)) AS "actual!"
           FROM counted c FULL JOIN archived_months a USING (month)
           WHERE (COALESCE(c.batches, 0), COALESCE(c.rows, 0)) <> (COALESCE(a.batches, 0), COALESCE(a.rows, 0))
           UNION ALL
           SELECT format('batch %s', batch_id), 'archived', format('%s rows in the journal', count(*))
           FROM usage_events WHERE booked_on < archived_through() GROUP BY batch_id
           ORDER BY 1 LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Batches that rejected events of which no rejection is kept, or have more rejections than they counted.
///
/// A redelivered message is rejected again but kept once, under the first batch; so a batch's rejections are looked for
/// by its sequences.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn rejection_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH own AS (
               SELECT batch_id, count(*) AS kept FROM rejections GROUP BY batch_id
           ), by_sequence AS (
               SELECT b.id, count(r.id) AS kept
               FROM (SELECT id, incarnation, unnest(sequences) AS range FROM ingest_batches
                     WHERE rejected > 0 AND origin <> 'replay') AS b
               JOIN rejections r ON r.incarnation = b.incarnation
                                AND r.stream_seq >= lower(b.range) AND r.stream_seq < upper(b.range)
               GROUP BY b.id
           )
           SELECT format('batch %s', b.id) AS "subject!", format('%s rejected', b.rejected) AS "expected!",
                  format('%s rejections kept under it, %s in its sequences', COALESCE(o.kept, 0),
                         COALESCE(s.kept, 0)) AS "actual!"
           FROM ingest_batches b
           LEFT JOIN own o ON o.batch_id = b.id
           LEFT JOIN by_sequence s ON s.id = b.id
           WHERE COALESCE(o.kept, 0) > b.rejected OR (b.origin <> 'replay' AND COALESCE(s.kept, 0) < b.rejected)
           ORDER BY b.id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Journal rows whose booking date or stream sequence is not their batch's.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn booking_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH messages AS (
               SELECT batch_id, booked_on, stream_seq, count(*) AS rows FROM usage_events GROUP BY 1, 2, 3
           )
           SELECT format('%s rows of batch %s', m.rows, b.id) AS "subject!",
                  format('booked on %s, sequences %s', b.booked_on, b.sequences) AS "expected!",
                  format('booked on %s, sequence %s', m.booked_on, m.stream_seq) AS "actual!"
           FROM messages m
           JOIN ingest_batches b ON b.id = m.batch_id
           WHERE m.booked_on <> b.booked_on OR (b.origin NOT IN ('replay', 'rerate') AND NOT m.stream_seq <@ b.sequences)
           ORDER BY b.id, m.stream_seq LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Identities recorded more than once, in whatever partition.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn duplicate_identities(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH again AS MATERIALIZED (
               SELECT event_key, min(batch_id) AS first_batch, max(batch_id) AS last_batch
               -- A re-rate adds rows to an event that is recorded already.
               FROM usage_events WHERE restates IS NULL GROUP BY event_key HAVING min(batch_id) <> max(batch_id)
           )
           SELECT format('event %s', event_key) AS "subject!", 'recorded once' AS "expected!",
                  format('recorded in batches %s to %s', first_batch, last_batch) AS "actual!"
           FROM again ORDER BY event_key LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Every price stamped on a row of the journal or on a rollup.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn prices_used(connection: &mut PgConnection) -> Result<Vec<PriceId>, StoreError> {
    let prices = sqlx::query_scalar!(
        r#"SELECT price AS "price!: PriceId" FROM (
               SELECT cost_price_id AS price FROM usage_events UNION SELECT sell_price_id FROM usage_events
               UNION SELECT cost_price_id FROM usage_rollups UNION SELECT sell_price_id FROM usage_rollups
           ) AS used WHERE price IS NOT NULL ORDER BY price"#
    )
    .fetch_all(connection)
    .await?;
    Ok(prices)
}

/// Journal rows whose cost or charge is not the sum of quantity times rate of the prices they are stamped with; a
/// quantity without a rate differs from everything.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn amount_differences(
    connection: &mut PgConnection,
    terms: &BTreeMap<PriceId, PriceTerms>,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let prices: Vec<i64> = terms.keys().map(|price| price.0).collect();
    let main = |class: TokenClass| -> Vec<Option<Rate>> {
        terms.values().map(|terms| terms.rates[class.index()]).collect()
    };
    let rare: Vec<Json<BTreeMap<TokenClass, Amount>>> = terms.values().map(rare_rates).collect();
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH main AS (
               SELECT * FROM UNNEST($1::bigint[], $2::numeric[], $3::numeric[], $4::numeric[], $5::numeric[],
                                    $6::numeric[], $7::numeric[], $8::jsonb[])
                    AS p (id, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare)
           ), computed AS (
               SELECT e.event_key, e.part, e.cost, e.charge, e.cost_price_id, e.sell_price_id,
                      -- Without the CASE an absent rate would make a class that was not used unknown.
                      CASE WHEN e.input = 0 THEN 0 ELSE e.input * c.input END
                      + CASE WHEN e.cache_read = 0 THEN 0 ELSE e.cache_read * c.cache_read END
                      + CASE WHEN e.cache_write_5m = 0 THEN 0 ELSE e.cache_write_5m * c.cache_write_5m END
                      + CASE WHEN e.cache_write_1h = 0 THEN 0 ELSE e.cache_write_1h * c.cache_write_1h END
                      + CASE WHEN e.output = 0 THEN 0 ELSE e.output * c.output END
                      + CASE WHEN e.reasoning = 0 THEN 0 ELSE e.reasoning * c.reasoning END
                      + CASE WHEN e.rare IS NULL THEN 0 ELSE (
                            SELECT CASE WHEN count(*) = count(c.rare -> q.key)
                                        THEN COALESCE(sum(q.value::numeric * (c.rare ->> q.key)::numeric), 0) END
                            FROM jsonb_each_text(e.rare) q) END AS cost_computed,
                      CASE WHEN e.input = 0 THEN 0 ELSE e.input * s.input END
                      + CASE WHEN e.cache_read = 0 THEN 0 ELSE e.cache_read * s.cache_read END
                      + CASE WHEN e.cache_write_5m = 0 THEN 0 ELSE e.cache_write_5m * s.cache_write_5m END
                      + CASE WHEN e.cache_write_1h = 0 THEN 0 ELSE e.cache_write_1h * s.cache_write_1h END
                      + CASE WHEN e.output = 0 THEN 0 ELSE e.output * s.output END
                      + CASE WHEN e.reasoning = 0 THEN 0 ELSE e.reasoning * s.reasoning END
                      + CASE WHEN e.rare IS NULL THEN 0 ELSE (
                            SELECT CASE WHEN count(*) = count(s.rare -> q.key)
                                        THEN COALESCE(sum(q.value::numeric * (s.rare ->> q.key)::numeric), 0) END
                            FROM jsonb_each_text(e.rare) q) END AS charge_computed
               FROM usage_events e
               LEFT JOIN main c ON c.id = e.cost_price_id
               LEFT JOIN main s ON s.id = e.sell_price_id
               WHERE e.kind <> 'outcome'
           ), differing AS MATERIALIZED (
               -- Materialized, else the LIMIT makes the planner walk the whole journal in the order of its index.
               SELECT * FROM computed
               WHERE cost IS DISTINCT FROM cost_computed OR charge IS DISTINCT FROM charge_computed
           )
           SELECT format('event %s part %s, cost price %s, sell price %s', event_key, part, cost_price_id,
                         sell_price_id) AS "subject!",
                  format('cost %s, charge %s', COALESCE(trim_scale(cost_computed)::text, 'no rate'),
                         COALESCE(trim_scale(charge_computed)::text, 'no rate')) AS "expected!",
                  format('cost %s, charge %s', trim_scale(cost), trim_scale(charge)) AS "actual!"
           FROM differing ORDER BY event_key, part LIMIT $9"#,
        &prices,
        &main(TokenClass::Input) as _,
        &main(TokenClass::CacheRead) as _,
        &main(TokenClass::CacheWrite5m) as _,
        &main(TokenClass::CacheWrite1h) as _,
        &main(TokenClass::Output) as _,
        &main(TokenClass::Reasoning) as _,
        &rare as _,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Re-rated parts whose rows are no chain: a retraction is minus what stood before it, a restatement minus the quantities
/// of its retraction, and maybe the call's own request.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn restatement_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH links AS (
               SELECT e.event_key, COALESCE(e.restates, e.part) AS usage_part, e.part, e.kind,
                      lag(e.kind) OVER chain AS before, lead(e.kind) OVER chain AS after,
                      ARRAY[e.input, e.cache_read, e.cache_write_5m, e.cache_write_1h, e.output, e.reasoning] AS units,
                      lag(ARRAY[-e.input, -e.cache_read, -e.cache_write_5m, -e.cache_write_1h, -e.output, -e.reasoning])
                          OVER chain AS units_before,
                      COALESCE(e.rare, '{}') AS rare,
                      lag((SELECT COALESCE(jsonb_object_agg(key, -value::numeric), '{}')
                           FROM jsonb_each_text(e.rare))) OVER chain AS rare_before,
                      ARRAY[e.cost_price_id, e.sell_price_id, e.cost, e.charge] AS stands,
                      lag(ARRAY[e.cost_price_id, e.sell_price_id, -e.cost, -e.charge]) OVER chain AS stood
               FROM usage_events e
               WHERE e.kind IN ('usage', 'retraction', 'restatement')
                 AND e.event_key IN (SELECT event_key FROM usage_events WHERE restates IS NOT NULL)
               -- An id may be used again long after: a chain is of one time and place.
               WINDOW chain AS (PARTITION BY e.event_key, COALESCE(e.restates, e.part), e.occurred_at, e.stream_seq,
                                    e.event_index ORDER BY e.part)
           )
           SELECT format('event %s part %s, %s of part %s', event_key, part, kind, usage_part) AS "subject!",
                  format('minus the row before it: units %s %s; prices and amounts %s', units_before, rare_before,
                         stood) AS "expected!",
                  format('units %s %s; prices and amounts %s, after %s, before %s', units, rare, stands,
                         COALESCE(before, 'nothing'), COALESCE(after, 'nothing')) AS "actual!"
           FROM links
           WHERE CASE kind
                 WHEN 'retraction' THEN before NOT IN ('usage', 'restatement') OR after IS DISTINCT FROM 'restatement'
                                        OR stands <> stood OR units <> units_before OR rare <> rare_before
                 -- A restatement may count the call as the one request that a price has a fee for by now.
                 WHEN 'restatement' THEN before <> 'retraction' OR units <> units_before
                                         OR rare NOT IN (rare_before, '{"request": 1}' || rare_before)
                 ELSE false END IS NOT FALSE
             -- What stood before may be archived.
             AND NOT (before IS NULL AND kind = 'retraction' AND after = 'restatement' AND archived_through() IS NOT NULL)
           ORDER BY event_key, part LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The rates of the classes without a column, as decimal texts.
fn rare_rates(terms: &PriceTerms) -> Json<BTreeMap<TokenClass, Amount>> {
    let classes = TokenClass::ALL[MAIN_CLASS_COUNT..].iter();
    Json(classes.filter_map(|class| Some((*class, terms.rates[class.index()]?.per_unit()))).collect())
}

/// Usage stamped with a price that was not valid when it happened, or is of the wrong side.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn validity_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH used AS (
               -- A reversal or retraction takes back what was charged, by the prices it was charged with.
               SELECT cost_price_id, sell_price_id, min(occurred_at) AS first_at, max(occurred_at) AS last_at
               FROM usage_events WHERE kind IN ('usage', 'restatement') GROUP BY 1, 2
           ), stamped AS (
               SELECT p.id, b.kind, p.valid_from, COALESCE(p.valid_to, 'infinity') AS valid_to
               FROM prices p JOIN price_books b ON b.id = p.book_id
           )
           SELECT format('usage from %s to %s', u.first_at, u.last_at) AS "subject!",
                  'a cost price and a sell price valid at that time' AS "expected!",
                  format('cost price %s (%s, [%s, %s)), sell price %s (%s, [%s, %s))', u.cost_price_id, c.kind,
                         c.valid_from, c.valid_to, u.sell_price_id, s.kind, s.valid_from, s.valid_to) AS "actual!"
           FROM used u
           LEFT JOIN stamped c ON c.id = u.cost_price_id
           LEFT JOIN stamped s ON s.id = u.sell_price_id
           WHERE (c.kind = 'cost' AND c.valid_from <= u.first_at AND u.last_at < c.valid_to
                  AND s.kind = 'sell' AND s.valid_from <= u.first_at AND u.last_at < s.valid_to) IS NOT TRUE
           ORDER BY u.cost_price_id, u.sell_price_id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
