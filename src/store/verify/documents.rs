//! The invoices against the rollups of closed periods, and the periods themselves.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::Difference;
use crate::domain::ids::PriceId;
use crate::domain::invoice::PriceTerms;
use crate::domain::money::Rate;
use crate::domain::tokens::TokenClass;
use crate::store::StoreError;

/// Invoice lines that are not the rollups booked to their closed period, and rollups of closed periods on no invoice.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn line_differences(
    connection: &mut PgConnection,
    terms: &BTreeMap<PriceId, PriceTerms>,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let mut prices: Vec<i64> = Vec::new();
    let mut classes: Vec<&str> = Vec::new();
    let mut rates: Vec<Rate> = Vec::new();
    for (price, terms) in terms {
        for class in TokenClass::ALL {
            if let Some(rate) = terms.rates[class.index()] {
                prices.push(price.0);
                classes.push(class.name());
                rates.push(rate);
            }
        }
    }
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH rates AS (
               SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::numeric[]) AS r (price_id, class, rate)
           ), closed AS (
               SELECT r.* FROM usage_rollups r
               JOIN billing_periods p ON p.customer_id = r.customer_id AND p.start_at = r.booked_period
               WHERE p.state = 'closed'
           ), units AS (
               SELECT customer_id, booked_period, service_period, kind, sell_price_id, class, quantity
               FROM closed CROSS JOIN LATERAL (VALUES ('input', input), ('cache_read', cache_read),
                   ('cache_write_5m', cache_write_5m), ('cache_write_1h', cache_write_1h), ('output', output),
                   ('reasoning', reasoning)) AS main (class, quantity)
               UNION ALL
               SELECT customer_id, booked_period, service_period, kind, sell_price_id, key, value::bigint
               FROM closed, jsonb_each_text(closed.rare)
           ), expected AS (
               SELECT u.customer_id, u.booked_period AS period_start, b.currency,
                      CASE WHEN u.kind = 'adjustment' THEN 'adjustment'
                           WHEN u.service_period = u.booked_period THEN 'usage' ELSE 'late_usage' END AS kind,
                      u.service_period AS service_start, p.provider, p.model, u.class,
                      -- Below every rate: a class without one is on no invoice line.
                      COALESCE(r.rate, -1) AS rate, sum(u.quantity) AS quantity
               FROM units u
               JOIN prices p ON p.id = u.sell_price_id
               JOIN price_books b ON b.id = p.book_id
               LEFT JOIN rates r ON r.price_id = u.sell_price_id AND r.class = u.class
               GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
               HAVING sum(u.quantity) <> 0
           ), lines AS (
               SELECT i.customer_id, i.period_start, i.currency, l.kind, l.service_start, l.provider, l.model, l.class,
                      l.rate, l.quantity
               FROM invoice_line_items l JOIN invoices i ON i.id = l.invoice_id
               WHERE l.kind IN ('usage', 'late_usage', 'adjustment')
           )
           SELECT format('customer %s, period from %s, %s: %s of %s, %s %s %s at %s', customer_id, period_start,
                         currency, kind, service_start, provider, model, class, trim_scale(rate)) AS "subject!",
                  format('rollups %s', COALESCE(e.quantity::text, 'nothing')) AS "expected!",
                  format('invoice line %s', COALESCE(l.quantity::text, 'none')) AS "actual!"
           FROM expected e
           FULL JOIN lines l USING (customer_id, period_start, currency, kind, service_start, provider, model, class,
                                    rate)
           WHERE e.quantity IS DISTINCT FROM l.quantity
           ORDER BY customer_id, period_start, currency, kind, service_start, provider, model, class LIMIT $4"#,
        &prices,
        &classes as _,
        &rates as _,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Periods and rollups that contradict each other: a closed time that is not the end of the last closed period, a hole
/// between closed periods, an hour outside its service period, usage booked to a period before its own.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn period_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH closed AS (
               SELECT customer_id, start_at, end_at,
                      lag(end_at) OVER (PARTITION BY customer_id ORDER BY start_at) AS previous_end
               FROM billing_periods WHERE state = 'closed'
           )
           SELECT format('customer %s', c.id) AS "subject!",
                  format('last closed period ends %s', max(closed.end_at)) AS "expected!",
                  format('closed through %s', c.closed_through) AS "actual!"
           FROM customers c LEFT JOIN closed ON closed.customer_id = c.id
           GROUP BY c.id HAVING c.closed_through IS DISTINCT FROM max(closed.end_at)
           UNION ALL
           SELECT format('customer %s, closed period from %s', customer_id, start_at),
                  format('starts where the one before ends, %s', previous_end), format('starts %s', start_at)
           FROM closed WHERE previous_end <> start_at
           UNION ALL
           SELECT format('customer %s, hour %s booked to %s', r.customer_id, r.hour, r.booked_period),
                  format('service period [%s, %s), a booked period not before it', s.start_at, s.end_at),
                  format('service period %s', r.service_period)
           FROM usage_rollups r
           LEFT JOIN billing_periods s ON s.customer_id = r.customer_id AND s.start_at = r.service_period
           LEFT JOIN billing_periods b ON b.customer_id = r.customer_id AND b.start_at = r.booked_period
           WHERE s.start_at IS NULL OR b.start_at IS NULL OR r.hour < s.start_at OR r.hour >= s.end_at
              OR b.start_at < s.start_at
           LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
