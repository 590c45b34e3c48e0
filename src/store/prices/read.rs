//! Reading prices: what stands, what stood, and when it was believed.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;

use super::StoreError;
use super::books::parsed;
use crate::domain::ids::{BookId, PriceId};
use crate::domain::money::{Amount, Rate, SCALE};
use crate::domain::price::quotation::{PriceDraft, QuotedRate};
use crate::domain::price::{BookInfo, Price, PriceConditions, intervals_meet, resolve_parents};
use crate::domain::tokens::TokenClass;

/// A price as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPrice {
    /// Its key.
    pub id: PriceId,
    /// Its book.
    pub book: BookInfo,
    /// What it says; with the aliases that its model has in this book (and its base) at some time of its validity.
    pub draft: PriceDraft,
    /// When it was published.
    pub recorded_at: DateTime<Utc>,
    /// When another took its place, or it was withdrawn.
    pub superseded_at: Option<DateTime<Utc>>,
    /// Which took its place.
    pub superseded_by: Option<PriceId>,
    /// The cost price that a markup made it from.
    pub derived_from: Option<PriceId>,
}

/// Which prices to list; everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriceFilter {
    /// The book's name.
    pub book: Option<String>,
    /// The provider's name.
    pub provider: Option<String>,
    /// The model's name, canonical or an alias.
    pub model: Option<String>,
    /// Valid at this instant.
    pub at: Option<DateTime<Utc>>,
    /// As it was recorded at this instant; without it, what stands now.
    pub as_of: Option<DateTime<Utc>>,
    /// Superseded prices as well.
    pub superseded: bool,
}

/// The place of a price in a list: book, provider, model, start, id.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PriceCursor {
    /// The book's name.
    pub book: String,
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// The first instant of validity.
    pub valid_from: DateTime<Utc>,
    /// The id.
    pub id: i64,
}

impl StoredPrice {
    /// Its place in a list.
    pub fn cursor(&self) -> PriceCursor {
        PriceCursor {
            book: self.book.name.clone(),
            provider: self.draft.provider.clone(),
            model: self.draft.model.clone(),
            valid_from: self.draft.valid_from,
            id: self.id.0,
        }
    }
}

impl From<StoredPrice> for Price {
    fn from(stored: StoredPrice) -> Self {
        Self {
            id: stored.id,
            book: stored.book.id,
            rates: resolve_parents(&stored.draft.own_rates()),
            provider: stored.draft.provider,
            model: stored.draft.model,
            conditions: stored.draft.conditions,
            valid_from: stored.draft.valid_from,
            valid_to: stored.draft.valid_to,
            recorded_at: stored.recorded_at,
            derived: stored.derived_from.is_some(),
        }
    }
}

/// The prices that pass the filter, in the order of their cursors, from behind `after`.
///
/// # Errors
/// [`StoreError`].
pub async fn list(
    connection: &mut PgConnection,
    filter: &PriceFilter,
    after: Option<&PriceCursor>,
    limit: i64,
) -> Result<Vec<StoredPrice>, StoreError> {
    let selection = Selection {
        filter: filter.clone(),
        after: after.cloned(),
        limit: Some(limit),
        ..Selection::default()
    };
    let mut prices = select(connection, &selection).await?;
    add_aliases(connection, &mut prices, filter.as_of).await?;
    Ok(prices)
}

/// One price, standing or superseded.
///
/// # Errors
/// [`StoreError`].
pub async fn get(connection: &mut PgConnection, id: PriceId) -> Result<Option<StoredPrice>, StoreError> {
    let filter = PriceFilter { superseded: true, ..PriceFilter::default() };
    let selection = Selection { ids: Some(vec![id.0]), filter, ..Selection::default() };
    let mut prices = select(connection, &selection).await?;
    add_aliases(connection, &mut prices, None).await?;
    Ok(prices.pop())
}

/// The standing prices that end after one instant and not after another, and that no price of the same book, model and
/// conditions follows.
///
/// # Errors
/// [`StoreError`].
pub async fn ending(
    connection: &mut PgConnection,
    after: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<PriceId>, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"SELECT p.id AS "id: PriceId" FROM prices p
           WHERE p.superseded_at IS NULL AND $1 < p.valid_to AND p.valid_to <= $2
             AND NOT EXISTS (
                 SELECT FROM prices n
                 WHERE n.book_id = p.book_id AND n.provider = p.provider AND n.model = p.model
                   AND n.conditions_key = p.conditions_key AND n.superseded_at IS NULL
                   AND n.valid_from <= p.valid_to AND (n.valid_to IS NULL OR p.valid_to < n.valid_to))"#,
        after,
        until,
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

/// Whether a book has a standing price of the model and conditions of this one at an instant.
pub(super) async fn is_priced(
    connection: &mut PgConnection,
    book: BookId,
    like: &PriceDraft,
    at: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let priced = sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM prices
               WHERE book_id = $1 AND provider = $2 AND model = $3 AND conditions_key = $4 AND superseded_at IS NULL
                 AND valid_from <= $5 AND (valid_to IS NULL OR $5 < valid_to)) AS "priced!""#,
        book.0,
        like.provider,
        like.model,
        like.conditions_key,
        at,
    )
    .fetch_one(connection)
    .await?;
    Ok(priced)
}

/// Which rows to read, by whatever key the caller has.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    pub ids: Option<Vec<i64>>,
    pub book: Option<BookId>,
    /// Providers and models, pairwise.
    pub models: Option<(Vec<String>, Vec<String>)>,
    pub explicit_only: bool,
    pub filter: PriceFilter,
    pub after: Option<PriceCursor>,
    pub limit: Option<i64>,
}

impl Selection {
    /// Everything that stands.
    pub(super) fn standing() -> Self {
        Self::default()
    }
}

struct Row {
    id: PriceId,
    book_id: BookId,
    book_name: String,
    kind: String,
    currency: String,
    provider: String,
    model: String,
    platform: Option<String>,
    region: Option<String>,
    service_tier: Option<String>,
    processing: Option<String>,
    speed: Option<String>,
    context_above: Option<i64>,
    context_inclusive: bool,
    hours_utc: Vec<String>,
    weekdays: Vec<i16>,
    per: i64,
    multiplier: Decimal,
    valid_from: DateTime<Utc>,
    valid_to: Option<DateTime<Utc>>,
    recorded_at: DateTime<Utc>,
    superseded_at: Option<DateTime<Utc>>,
    superseded_by: Option<PriceId>,
    derived_from: Option<PriceId>,
    source: Option<String>,
    checked_at: Option<chrono::NaiveDate>,
}

pub(super) async fn select(
    connection: &mut PgConnection,
    selection: &Selection,
) -> Result<Vec<StoredPrice>, StoreError> {
    let filter = &selection.filter;
    let after = selection.after.as_ref();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT p.id AS "id: PriceId", p.book_id AS "book_id: BookId", b.name AS book_name, b.kind, b.currency,
                  p.provider, p.model, p.platform, p.region, p.service_tier, p.processing, p.speed, p.context_above,
                  p.context_inclusive, p.hours_utc, p.weekdays, p.per, p.multiplier, p.valid_from, p.valid_to,
                  p.recorded_at, p.superseded_at, p.superseded_by AS "superseded_by: PriceId",
                  p.derived_from AS "derived_from: PriceId", p.source, p.checked_at
           FROM prices p JOIN price_books b ON b.id = p.book_id
           WHERE ($1::bigint[] IS NULL OR p.id = ANY($1))
             AND ($2::integer IS NULL OR p.book_id = $2)
             AND ($3::text[] IS NULL OR (p.provider, p.model) IN (SELECT * FROM unnest($3::text[], $4::text[])))
             AND (NOT $5::boolean OR p.derived_from IS NULL)
             AND ($6::text IS NULL OR b.name = $6)
             AND ($7::text IS NULL OR p.provider = $7)
             AND ($8::text IS NULL OR p.model = $8 OR EXISTS (
                     SELECT FROM model_aliases a
                     WHERE a.book_id IN (b.id, b.base_book_id) AND a.provider = p.provider AND a.model = p.model AND a.alias = $8
                       AND ($10::timestamptz IS NULL OR a.recorded_at <= $10)
                       AND ($11::boolean OR a.superseded_at IS NULL OR $10::timestamptz < a.superseded_at)))
             AND ($9::timestamptz IS NULL OR (p.valid_from <= $9 AND (p.valid_to IS NULL OR $9 < p.valid_to)))
             AND ($10::timestamptz IS NULL OR p.recorded_at <= $10)
             AND ($11::boolean OR p.superseded_at IS NULL OR $10::timestamptz < p.superseded_at)
             AND ($12::text IS NULL
                  OR (b.name, p.provider, p.model, p.valid_from, p.id) > ($12, $13::text, $14::text, $15::timestamptz, $16::bigint))
           ORDER BY b.name, p.provider, p.model, p.valid_from, p.id
           LIMIT $17"#,
        selection.ids.as_deref(),
        selection.book.map(|book| book.0),
        selection.models.as_ref().map(|(providers, _)| &providers[..]),
        selection.models.as_ref().map(|(_, models)| &models[..]),
        selection.explicit_only,
        filter.book.as_deref(),
        filter.provider.as_deref(),
        filter.model.as_deref(),
        filter.at,
        filter.as_of,
        filter.superseded,
        after.map(|cursor| cursor.book.as_str()),
        after.map(|cursor| cursor.provider.as_str()),
        after.map(|cursor| cursor.model.as_str()),
        after.map(|cursor| cursor.valid_from),
        after.map(|cursor| cursor.id),
        selection.limit,
    )
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<i64> = rows.iter().map(|row| row.id.0).collect();
    let mut rates = rates_of(connection, &ids).await?;
    rows.into_iter().map(|row| stored(row, &mut rates)).collect()
}

type Rates = HashMap<PriceId, Vec<(TokenClass, Rate, Amount)>>;

async fn rates_of(connection: &mut PgConnection, ids: &[i64]) -> Result<Rates, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT price_id AS "price_id: PriceId", class, rate AS "rate: Rate", quoted AS "quoted: Amount"
           FROM price_rates WHERE price_id = ANY($1)"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    let mut rates = Rates::new();
    for row in rows {
        let class = parsed("price_rates", "class", &row.class)?;
        rates.entry(row.price_id).or_default().push((class, row.rate, row.quoted));
    }
    Ok(rates)
}

fn stored(row: Row, rates: &mut Rates) -> Result<StoredPrice, StoreError> {
    let unreadable = |column, detail: String| StoreError::Inconsistent { table: "prices", column, detail };
    let weekdays = row.weekdays.iter().map(|day| u8::try_from(*day)).collect::<Result<_, _>>();
    let conditions = PriceConditions {
        platform: row.platform,
        region: row.region,
        service_tier: row.service_tier,
        processing: row.processing,
        speed: row.speed,
        context_above: row.context_above,
        context_inclusive: row.context_inclusive,
        hours_utc: row.hours_utc,
        weekdays: weekdays.map_err(|error| unreadable("weekdays", error.to_string()))?,
    };
    let conditions_key = conditions.key().map_err(|fault| unreadable("conditions_key", fault.to_string()))?;
    let multiplier = row.multiplier.normalize();
    let own: BTreeMap<TokenClass, QuotedRate> = rates
        .remove(&row.id)
        .unwrap_or_default()
        .into_iter()
        .map(|(class, rate, quoted)| {
            let rounded = !class.is_fee() && was_rounded(quoted, row.per, multiplier);
            (class, QuotedRate { quoted, rate, rounded })
        })
        .collect();
    Ok(StoredPrice {
        id: row.id,
        book: BookInfo {
            id: row.book_id,
            name: row.book_name,
            kind: parsed("price_books", "kind", &row.kind)?,
            currency: parsed("price_books", "currency", &row.currency)?,
        },
        draft: PriceDraft {
            provider: row.provider,
            model: row.model,
            aliases: Vec::new(),
            conditions,
            conditions_key,
            per: row.per,
            multiplier,
            rates: own,
            valid_from: row.valid_from,
            valid_to: row.valid_to,
            source: row.source,
            checked_at: row.checked_at,
        },
        recorded_at: row.recorded_at,
        superseded_at: row.superseded_at,
        superseded_by: row.superseded_by,
        derived_from: row.derived_from,
    })
}

fn was_rounded(quoted: Amount, per: i64, multiplier: Decimal) -> bool {
    let quote = Decimal::try_from_i128_with_scale(quoted.femtos(), SCALE).ok().zip(u64::try_from(per).ok());
    quote
        .and_then(|(quoted, per)| Rate::from_quote(quoted, per, multiplier).ok())
        .is_some_and(|(_, rounded)| rounded)
}

/// Names the models' aliases, as they stand or as they stood at an instant.
async fn add_aliases(
    connection: &mut PgConnection,
    prices: &mut [StoredPrice],
    as_of: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    let books: Vec<i32> = prices.iter().map(|price| price.book.id.0).collect();
    let rows = sqlx::query!(
        r#"SELECT b.id AS "book: BookId", a.provider, a.model, a.alias, a.valid_from, a.valid_to
           FROM price_books b JOIN model_aliases a ON a.book_id IN (b.id, b.base_book_id)
           WHERE b.id = ANY($1)
             AND ($2::timestamptz IS NULL OR a.recorded_at <= $2)
             AND (a.superseded_at IS NULL OR $2 < a.superseded_at)
           ORDER BY a.alias, a.valid_from"#,
        &books,
        as_of,
    )
    .fetch_all(connection)
    .await?;
    let mut aliases: HashMap<(BookId, String, String), Vec<_>> = HashMap::new();
    for row in rows {
        let dated = (row.alias, (row.valid_from, row.valid_to));
        aliases.entry((row.book, row.provider, row.model)).or_default().push(dated);
    }
    for price in prices {
        let draft = &mut price.draft;
        let key = (price.book.id, draft.provider.clone(), draft.model.clone());
        let validity = (draft.valid_from, draft.valid_to);
        let known = aliases.get(&key).into_iter().flatten();
        let meant = known.filter(|(_, interval)| intervals_meet(*interval, validity));
        draft.aliases = meant.map(|(alias, _)| alias.clone()).collect();
        draft.aliases.dedup();
    }
    Ok(())
}
