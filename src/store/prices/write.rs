//! Writing rows of prices, rates and aliases, many in one statement.

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;

use super::{PricesError, StoreError};
use crate::domain::ids::{BookId, PriceId};
use crate::domain::money::{Amount, Rate};
use crate::domain::price::ModelAlias;
use crate::domain::price::quotation::PriceDraft;
use crate::store::ensure_affected;

/// A row to be written.
#[derive(Debug, Clone)]
pub(super) struct Insertion {
    pub id: PriceId,
    pub book: BookId,
    pub draft: PriceDraft,
    pub derived_from: Option<PriceId>,
}

pub(super) async fn reserve_ids(
    connection: &mut PgConnection,
    count: usize,
) -> Result<Vec<PriceId>, StoreError> {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let ids = sqlx::query_scalar!(
        r#"SELECT nextval(pg_get_serial_sequence('prices', 'id')) AS "id!: PriceId" FROM generate_series(1, $1)"#,
        count,
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

pub(super) async fn supersede(
    connection: &mut PgConnection,
    superseded: &[(PriceId, Option<PriceId>)],
) -> Result<(), StoreError> {
    if superseded.is_empty() {
        return Ok(());
    }
    let olds: Vec<i64> = superseded.iter().map(|(old, _)| old.0).collect();
    let copies: Vec<Option<i64>> = superseded.iter().map(|(_, copy)| copy.map(|copy| copy.0)).collect();
    let result = sqlx::query!(
        "UPDATE prices SET superseded_at = now(), superseded_by = s.copy
         FROM unnest($1::bigint[], $2::bigint[]) AS s (old, copy)
         WHERE prices.id = s.old AND prices.superseded_at IS NULL",
        &olds,
        &copies as &[Option<i64>],
    )
    .execute(connection)
    .await?;
    ensure_affected("superseding prices", &result, olds.len() as u64)
}

/// Columns of many rows, for one statement.
#[derive(Default)]
struct Columns {
    ids: Vec<i64>,
    books: Vec<i32>,
    providers: Vec<String>,
    models: Vec<String>,
    platforms: Vec<Option<String>>,
    regions: Vec<Option<String>>,
    service_tiers: Vec<Option<String>>,
    processings: Vec<Option<String>>,
    speeds: Vec<Option<String>>,
    contexts_above: Vec<Option<i64>>,
    contexts_inclusive: Vec<bool>,
    hours: Vec<String>,
    weekdays: Vec<String>,
    conditions_keys: Vec<String>,
    pers: Vec<i64>,
    multipliers: Vec<Decimal>,
    valid_froms: Vec<DateTime<Utc>>,
    valid_tos: Vec<Option<DateTime<Utc>>>,
    derived_froms: Vec<Option<i64>>,
    sources: Vec<Option<String>>,
    checked_ats: Vec<Option<NaiveDate>>,
    rate_prices: Vec<i64>,
    rate_classes: Vec<String>,
    rates: Vec<Rate>,
    quoted: Vec<Amount>,
}

impl Columns {
    fn push(&mut self, row: &Insertion) {
        let draft = &row.draft;
        let asked = &draft.conditions;
        self.ids.push(row.id.0);
        self.books.push(row.book.0);
        self.providers.push(draft.provider.clone());
        self.models.push(draft.model.clone());
        self.platforms.push(asked.platform.clone());
        self.regions.push(asked.region.clone());
        self.service_tiers.push(asked.service_tier.clone());
        self.processings.push(asked.processing.clone());
        self.speeds.push(asked.speed.clone());
        self.contexts_above.push(asked.context_above);
        self.contexts_inclusive.push(asked.context_inclusive);
        self.hours.push(asked.hours_utc.join(","));
        self.weekdays.push(asked.weekdays.iter().map(u8::to_string).collect::<Vec<_>>().join(","));
        self.conditions_keys.push(draft.conditions_key.clone());
        self.pers.push(draft.per);
        self.multipliers.push(draft.multiplier);
        self.valid_froms.push(draft.valid_from);
        self.valid_tos.push(draft.valid_to);
        self.derived_froms.push(row.derived_from.map(|cost| cost.0));
        self.sources.push(draft.source.clone());
        self.checked_ats.push(draft.checked_at);
        for (class, quote) in &draft.rates {
            self.rate_prices.push(row.id.0);
            self.rate_classes.push(class.name().to_owned());
            self.rates.push(quote.rate);
            self.quoted.push(quote.quoted);
        }
    }
}

pub(super) async fn insert(connection: &mut PgConnection, rows: &[Insertion]) -> Result<(), PricesError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut columns = Columns::default();
    for row in rows {
        columns.push(row);
    }
    sqlx::query!(
        r#"INSERT INTO prices (id, book_id, provider, model, platform, region, service_tier, processing, speed, context_above,
               context_inclusive, hours_utc, weekdays, conditions_key, per, multiplier, valid_from, valid_to, derived_from,
               source, checked_at)
           SELECT id, book_id, provider, model, platform, region, service_tier, processing, speed, context_above,
               context_inclusive, string_to_array(hours, ','), string_to_array(weekdays, ',')::smallint[], conditions_key,
               per, multiplier, valid_from, valid_to, derived_from, source, checked_at
           FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
               $9::text[], $10::bigint[], $11::boolean[], $12::text[], $13::text[], $14::text[], $15::bigint[],
               $16::numeric[], $17::timestamptz[], $18::timestamptz[], $19::bigint[], $20::text[], $21::date[])
             AS r (id, book_id, provider, model, platform, region, service_tier, processing, speed, context_above,
               context_inclusive, hours, weekdays, conditions_key, per, multiplier, valid_from, valid_to, derived_from,
               source, checked_at)"#,
        &columns.ids,
        &columns.books,
        &columns.providers,
        &columns.models,
        &columns.platforms as &[Option<String>],
        &columns.regions as &[Option<String>],
        &columns.service_tiers as &[Option<String>],
        &columns.processings as &[Option<String>],
        &columns.speeds as &[Option<String>],
        &columns.contexts_above as &[Option<i64>],
        &columns.contexts_inclusive,
        &columns.hours,
        &columns.weekdays,
        &columns.conditions_keys,
        &columns.pers,
        &columns.multipliers,
        &columns.valid_froms,
        &columns.valid_tos as &[Option<DateTime<Utc>>],
        &columns.derived_froms as &[Option<i64>],
        &columns.sources as &[Option<String>],
        &columns.checked_ats as &[Option<NaiveDate>],
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO price_rates (price_id, class, rate, quoted)
         SELECT * FROM unnest($1::bigint[], $2::text[], $3::numeric[], $4::numeric[])",
        &columns.rate_prices,
        &columns.rate_classes,
        &columns.rates as &[Rate],
        &columns.quoted as &[Amount],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Supersedes standing aliases of a book by the given ones.
pub(super) async fn supersede_aliases(
    connection: &mut PgConnection,
    book: BookId,
    superseded: &[ModelAlias],
    by: &[ModelAlias],
) -> Result<(), StoreError> {
    let providers: Vec<&str> = superseded.iter().map(|alias| alias.provider.as_str()).collect();
    let aliases: Vec<&str> = superseded.iter().map(|alias| alias.alias.as_str()).collect();
    let starts: Vec<DateTime<Utc>> = superseded.iter().map(|alias| alias.valid_from).collect();
    let result = sqlx::query!(
        "UPDATE model_aliases a SET superseded_at = now()
         FROM unnest($2::text[], $3::text[], $4::timestamptz[]) AS s (provider, alias, valid_from)
         WHERE a.book_id = $1 AND a.provider = s.provider AND a.alias = s.alias AND a.valid_from = s.valid_from
           AND a.superseded_at IS NULL",
        book.0,
        &providers as _,
        &aliases as _,
        &starts,
    )
    .execute(&mut *connection)
    .await?;
    ensure_affected("superseding aliases", &result, superseded.len() as u64)?;
    insert_aliases(connection, book, by).await
}

async fn insert_aliases(
    connection: &mut PgConnection,
    book: BookId,
    aliases: &[ModelAlias],
) -> Result<(), StoreError> {
    for alias in aliases {
        sqlx::query!(
            "INSERT INTO model_aliases (book_id, provider, alias, model, valid_from, valid_to)
             VALUES ($1, $2, $3, $4, $5, $6)",
            book.0,
            alias.provider,
            alias.alias,
            alias.model,
            alias.valid_from,
            alias.valid_to,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
