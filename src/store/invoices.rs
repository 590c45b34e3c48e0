//! Invoices: what they are computed from, how they are written, how they are read.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::quantities::{Rare, quantities_of};
use super::rates::currency;
use super::{StoreError, ensure_affected};
use crate::domain::ids::{CustomerId, InvoiceId, PeriodPriceId, PriceId};
use crate::domain::invoice::{Invoice, InvoiceLine};
use crate::domain::money::{Amount, MinorAmount};
use crate::domain::period::Period;
use crate::domain::tokens::{Quantities, TokenClass};

/// The sums of one sell price in one service period: what invoice lines are computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Whether a re-rate booked it; else usage, corrected estimates included.
    pub adjustment: bool,
    /// The period in which the usage happened.
    pub service: Period,
    /// The sell price.
    pub price: PriceId,
    /// Usage events.
    pub events: i64,
    /// Units by class; may be negative.
    pub quantities: Quantities,
    /// The exact charge that posting summed up.
    pub charge: Amount,
}

/// An invoice as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredInvoice {
    /// The document.
    pub invoice: Invoice,
    /// How others know the customer.
    pub customer_external_id: String,
    /// `finalized` or `void`.
    pub status: String,
    /// The hash it was sealed with.
    pub content_hash: Vec<u8>,
}

/// Which invoices to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct InvoiceFilter {
    /// Of this customer only.
    pub customer: Option<CustomerId>,
    /// Of periods that start at or after.
    pub from: Option<DateTime<Utc>>,
    /// Of periods that start before.
    pub to: Option<DateTime<Utc>>,
    /// Of periods that start in the month that begins with this day, in the zone that each invoice names.
    pub month: Option<NaiveDate>,
    /// Numbered below: the last of the page before.
    pub below: Option<i64>,
    /// How many at most.
    pub limit: i64,
}

/// The sums booked to a period, ordered.
///
/// # Errors
/// [`StoreError`].
pub async fn tallies(
    connection: &mut PgConnection,
    customer: CustomerId,
    booked_period: DateTime<Utc>,
) -> Result<Vec<Tally>, StoreError> {
    let rows = sqlx::query!(
        r#"WITH booked AS MATERIALIZED (
               SELECT * FROM usage_rollups WHERE customer_id = $1 AND booked_period = $2
           ), sums AS (
               SELECT kind, service_period, sell_price_id, sum(events)::bigint AS events, sum(input)::bigint AS input,
                      sum(cache_read)::bigint AS cache_read, sum(cache_write_5m)::bigint AS cache_write_5m,
                      sum(cache_write_1h)::bigint AS cache_write_1h, sum(output)::bigint AS output,
                      sum(reasoning)::bigint AS reasoning, sum(charge) AS charge
               FROM booked GROUP BY 1, 2, 3
           ), rare_sums AS (
               SELECT kind, service_period, sell_price_id, jsonb_object_agg(class, quantity) AS rare
               FROM (SELECT kind, service_period, sell_price_id, key AS class, sum(value::numeric)::bigint AS quantity
                     FROM booked, jsonb_each_text(booked.rare) WHERE booked.rare IS NOT NULL
                     GROUP BY 1, 2, 3, 4) AS per_class
               GROUP BY 1, 2, 3
           )
           SELECT kind AS "kind!", service_period AS "service_period!", p.end_at AS "service_end!",
                  sell_price_id AS "price!: PriceId", events AS "events!", input AS "input!",
                  cache_read AS "cache_read!", cache_write_5m AS "cache_write_5m!",
                  cache_write_1h AS "cache_write_1h!", output AS "output!", reasoning AS "reasoning!",
                  rare AS "rare: Rare", charge AS "charge!: Amount"
           FROM sums
           LEFT JOIN rare_sums USING (kind, service_period, sell_price_id)
           LEFT JOIN billing_periods p ON p.customer_id = $1 AND p.start_at = service_period
           ORDER BY kind, service_period, sell_price_id"#,
        customer.0,
        booked_period
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Tally {
            adjustment: row.kind == "adjustment",
            service: Period { start: row.service_period, end: row.service_end },
            price: row.price,
            events: row.events,
            quantities: quantities_of!(row),
            charge: row.charge,
        })
        .collect())
}

/// Takes the next number of a series, with the hash to chain to. Others wait for it until the transaction ends, so it
/// is taken last.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn take_number(
    connection: &mut PgConnection,
    series: &str,
) -> Result<(i64, Option<Vec<u8>>), StoreError> {
    let row = sqlx::query!(
        "INSERT INTO invoice_series AS s (series, last_number) VALUES ($1, 1)
         ON CONFLICT (series) DO UPDATE SET last_number = s.last_number + 1
         RETURNING last_number, last_hash",
        series
    )
    .fetch_one(connection)
    .await?;
    Ok((row.last_number, row.last_hash))
}

/// Writes a finalized invoice with its lines, and makes it the one that the next of its series chains to.
///
/// # Errors
/// [`StoreError`]; the constraint `invoices_once` where the period has an invoice in that currency.
pub async fn insert(connection: &mut PgConnection, invoice: &Invoice) -> Result<(), StoreError> {
    let hash = invoice.content_hash();
    sqlx::query!(
        "INSERT INTO invoices (id, customer_id, series, number, period_start, period_end, currency, total_minor,
             exact_total, status, finalized_at, customer_name, time_zone, manifest, content_hash, previous_hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'finalized', $10, $11, $12, $13, $14, $15)",
        invoice.id.0,
        invoice.customer.0,
        invoice.series,
        invoice.number,
        invoice.period.start,
        invoice.period.end,
        invoice.currency.as_str(),
        invoice.total.minor(),
        invoice.exact_total as _,
        invoice.finalized_at,
        invoice.customer_name,
        invoice.time_zone,
        invoice.manifest,
        &hash[..],
        invoice.previous_hash
    )
    .execute(&mut *connection)
    .await?;
    insert_lines(connection, invoice).await?;
    let chained = sqlx::query!(
        "UPDATE invoice_series SET last_hash = $2 WHERE series = $1 AND last_number = $3",
        invoice.series,
        &hash[..],
        invoice.number
    )
    .execute(connection)
    .await?;
    ensure_affected("chaining an invoice", &chained, 1)
}

async fn insert_lines(connection: &mut PgConnection, invoice: &Invoice) -> Result<(), StoreError> {
    let lines = &invoice.lines;
    let kinds: Vec<&str> = lines.iter().map(|line| line.kind.as_str()).collect();
    let starts: Vec<DateTime<Utc>> = lines.iter().map(|line| line.service.start).collect();
    let ends: Vec<DateTime<Utc>> = lines.iter().map(|line| line.service.end).collect();
    let providers: Vec<Option<&str>> = lines.iter().map(|line| line.provider.as_deref()).collect();
    let models: Vec<Option<&str>> = lines.iter().map(|line| line.model.as_deref()).collect();
    let classes: Vec<Option<&str>> = lines.iter().map(|line| line.class.map(TokenClass::name)).collect();
    let quantities: Vec<i64> = lines.iter().map(|line| line.quantity).collect();
    let rates: Vec<Amount> = lines.iter().map(|line| line.rate).collect();
    let exact: Vec<Amount> = lines.iter().map(|line| line.exact).collect();
    let minor: Vec<i64> = lines.iter().map(|line| line.amount.minor()).collect();
    let notes: Vec<Option<&str>> = lines.iter().map(|line| line.note.as_deref()).collect();
    let period_prices: Vec<Option<i64>> =
        lines.iter().map(|line| line.period_price.map(|price| price.0)).collect();
    let written = sqlx::query!(
        "INSERT INTO invoice_line_items (invoice_id, customer_id, line, kind, service_start, service_end, provider,
             model, class, quantity, rate, exact_amount, amount_minor, note, period_price_id)
         SELECT $1, $2, l.line, l.kind, l.service_start, l.service_end, l.provider, l.model, l.class, l.quantity,
                l.rate, l.exact_amount, l.amount_minor, l.note, l.period_price_id
         FROM UNNEST($3::text[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
                     $9::bigint[], $10::numeric[], $11::numeric[], $12::bigint[], $13::text[], $14::bigint[])
              WITH ORDINALITY AS l (kind, service_start, service_end, provider, model, class, quantity, rate,
                                    exact_amount, amount_minor, note, period_price_id, line)",
        invoice.id.0,
        invoice.customer.0,
        &kinds as _,
        &starts,
        &ends,
        &providers as _,
        &models as _,
        &classes as _,
        &quantities,
        &rates as _,
        &exact as _,
        &minor,
        &notes as _,
        &period_prices as _
    )
    .execute(connection)
    .await?;
    ensure_affected("writing invoice lines", &written, lines.len() as u64)
}

/// The keys of the invoices of a period, one per currency, void ones left out.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of_period(
    connection: &mut PgConnection,
    customer: CustomerId,
    period_start: DateTime<Utc>,
) -> Result<Vec<InvoiceId>, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"SELECT id AS "id: InvoiceId" FROM invoices
           WHERE customer_id = $1 AND period_start = $2 AND status <> 'void' ORDER BY series, number"#,
        customer.0,
        period_start
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

/// One invoice with its lines, or `None` where the scope has none of that key.
///
/// # Errors
/// [`StoreError`].
pub async fn get(connection: &mut PgConnection, id: InvoiceId) -> Result<Option<StoredInvoice>, StoreError> {
    Ok(load(connection, &[id.0]).await?.pop())
}

/// Whether the scope has an invoice of that key.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn exists(connection: &mut PgConnection, id: InvoiceId) -> Result<bool, StoreError> {
    let found =
        sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM invoices WHERE id = $1) AS "found!""#, id.0)
            .fetch_one(connection)
            .await?;
    Ok(found)
}

/// Invoices without their lines, newest number first.
///
/// # Errors
/// [`StoreError`].
pub async fn list(
    connection: &mut PgConnection,
    filter: &InvoiceFilter,
) -> Result<Vec<StoredInvoice>, StoreError> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM invoices
         WHERE ($1::bigint IS NULL OR customer_id = $1) AND ($2::timestamptz IS NULL OR period_start >= $2)
           AND ($3::timestamptz IS NULL OR period_start < $3) AND ($4::bigint IS NULL OR number < $4)
           AND ($6::date IS NULL OR date_trunc('month', period_start AT TIME ZONE time_zone)::date = $6)
         ORDER BY number DESC LIMIT $5",
        filter.customer.map(|customer| customer.0),
        filter.from,
        filter.to,
        filter.below,
        filter.limit,
        filter.month
    )
    .fetch_all(&mut *connection)
    .await?;
    headers(connection, &ids).await
}

/// Up to `limit` invoices of a series from a number upwards, in order.
///
/// # Errors
/// [`StoreError`].
pub async fn in_series(
    connection: &mut PgConnection,
    series: &str,
    above: i64,
    limit: i64,
) -> Result<Vec<StoredInvoice>, StoreError> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM invoices WHERE series = $1 AND number > $2 ORDER BY number LIMIT $3",
        series,
        above,
        limit
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut invoices = load(connection, &ids).await?;
    invoices.reverse();
    Ok(invoices)
}

/// A series as it stands.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name.
    pub series: String,
    /// The number taken last.
    pub last_number: i64,
    /// The hash of the invoice with that number.
    pub last_hash: Option<Vec<u8>>,
}

/// All series.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn all_series(connection: &mut PgConnection) -> Result<Vec<Series>, StoreError> {
    let series =
        sqlx::query_as!(Series, "SELECT series, last_number, last_hash FROM invoice_series ORDER BY series")
            .fetch_all(connection)
            .await?;
    Ok(series)
}

/// With their lines, newest number first.
async fn load(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<StoredInvoice>, StoreError> {
    let mut invoices = headers(connection, ids).await?;
    let mut lines = load_lines(connection, ids).await?;
    for stored in &mut invoices {
        stored.invoice.lines = lines.remove(&stored.invoice.id).unwrap_or_default();
    }
    Ok(invoices)
}

async fn headers(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<StoredInvoice>, StoreError> {
    let headers = sqlx::query!(
        r#"SELECT i.id AS "id: InvoiceId", i.customer_id AS "customer: CustomerId", c.external_id, series, number,
                  period_start, period_end, currency, total_minor, exact_total AS "exact_total: Amount", i.status,
                  finalized_at, customer_name, i.time_zone, manifest, content_hash, previous_hash
           FROM invoices i JOIN customers c ON c.id = i.customer_id
           WHERE i.id = ANY($1) ORDER BY number DESC"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    headers
        .into_iter()
        .map(|row| {
            let currency = currency(&row.currency)?;
            Ok(StoredInvoice {
                customer_external_id: row.external_id,
                status: row.status,
                content_hash: row.content_hash,
                invoice: Invoice {
                    id: row.id,
                    customer: row.customer,
                    series: row.series,
                    number: row.number,
                    period: Period { start: row.period_start, end: row.period_end },
                    currency,
                    total: MinorAmount::new(row.total_minor, currency),
                    exact_total: row.exact_total,
                    finalized_at: row.finalized_at,
                    customer_name: row.customer_name,
                    time_zone: row.time_zone,
                    manifest: row.manifest,
                    previous_hash: row.previous_hash,
                    lines: Vec::new(),
                },
            })
        })
        .collect()
}

async fn load_lines(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<BTreeMap<InvoiceId, Vec<InvoiceLine>>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT invoice_id AS "invoice: InvoiceId", l.kind, service_start, service_end, provider, model, class,
                  quantity::bigint AS "quantity!", rate AS "rate: Amount", exact_amount AS "exact: Amount", amount_minor,
                  note, period_price_id AS "period_price: PeriodPriceId", currency
           FROM invoice_line_items l JOIN invoices i ON i.id = l.invoice_id
           WHERE invoice_id = ANY($1) ORDER BY invoice_id, line"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    let mut lines: BTreeMap<InvoiceId, Vec<InvoiceLine>> = BTreeMap::new();
    for row in rows {
        let unknown =
            |column, detail: String| StoreError::Inconsistent { table: "invoice_line_items", column, detail };
        lines.entry(row.invoice).or_default().push(InvoiceLine {
            kind: row.kind.parse().map_err(|error| unknown("kind", format!("{error}")))?,
            service: Period { start: row.service_start, end: row.service_end },
            provider: row.provider,
            model: row.model,
            class: match row.class {
                Some(class) => Some(class.parse().map_err(|error| unknown("class", format!("{error}")))?),
                None => None,
            },
            quantity: row.quantity,
            rate: row.rate,
            exact: row.exact,
            amount: MinorAmount::new(row.amount_minor, currency(&row.currency)?),
            note: row.note,
            period_price: row.period_price,
        });
    }
    Ok(lines)
}
