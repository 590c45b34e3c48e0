//! Publishing, closing and deriving prices.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::books::{dependents, derived_prices, find_book};
use super::read::{Selection, get, select};
use super::{PricesError, StoreError};
use crate::domain::ids::{BookId, PriceId};
use crate::domain::money::{Amount, MoneyError, Rate};
use crate::domain::price::publication::{Plan, Published, Slot, Standing, plan};
use crate::domain::price::quotation::{NewPrice, PriceDraft, PriceFault, QuotedRate};
use crate::domain::price::{BookInfo, ModelAlias};
use crate::domain::tokens::TokenClass;
use crate::store::{audit, catalog, ensure_affected};

/// What became of a publication; for a dry run the caller rolls back, and ids are of no use then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The book.
    pub book: BookInfo,
    /// One per price, in the order given.
    pub prices: Vec<PublishedPrice>,
    /// Standing prices that were continued by a copy with an earlier end, and the copy.
    pub continued: Vec<(PriceId, PriceId)>,
    /// How many aliases are new.
    pub aliases: usize,
    /// How many prices of markup books were derived.
    pub derived: usize,
}

impl Publication {
    /// Whether anything was written.
    pub fn changed(&self) -> bool {
        self.aliases > 0 || self.prices.iter().any(|price| price.status != Status::Unchanged)
    }
}

/// Whether a published price is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No price of its key ends where it starts.
    Added,
    /// It follows a price of its key.
    Changed,
    /// The same terms stood already.
    Unchanged,
}

/// What became of one price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPrice {
    /// The price that stands for it now.
    pub id: PriceId,
    /// Added, changed or unchanged.
    pub status: Status,
    /// What was written (or would have been, had it not stood already).
    pub draft: PriceDraft,
    /// Old and new rates where it follows another price.
    pub changes: Vec<RateChange>,
}

/// The rate of a class before and from the new price's start on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateChange {
    /// The class.
    pub class: TokenClass,
    /// Per unit, before; `None` where there was no rate of its own.
    pub old: Option<Rate>,
    /// Per unit, from now on; `None` where there is none any more.
    pub new: Option<Rate>,
}

/// Publishes prices into a book: all of them or, where one is refused, none.
///
/// # Errors
/// [`PricesError::Refused`] with every fault found, [`PricesError::UnknownBook`], or the database; the caller rolls back.
pub async fn publish(
    connection: &mut PgConnection,
    book: &str,
    new: &[NewPrice],
    actor: &str,
) -> Result<Publication, PricesError> {
    // Publications into one book happen one after the other, so each plans with what the last one left.
    sqlx::query!("SELECT id FROM price_books WHERE name = $1 FOR UPDATE", book)
        .fetch_optional(&mut *connection)
        .await?;
    let book =
        find_book(connection, book).await?.ok_or_else(|| PricesError::UnknownBook(book.to_owned()))?.info;
    let (standing, aliases) = neighbours(connection, book.id, new).await?;
    let plan = plan(standing, aliases, new).map_err(PricesError::Refused)?;

    let ids = reserve_ids(connection, plan.rows.len()).await?;
    let superseded: Vec<(PriceId, Option<PriceId>)> =
        plan.superseded.iter().map(|(old, row)| (*old, ids.get(*row).copied())).collect();
    supersede(connection, &superseded).await?;
    let rows: Vec<Insertion> = plan
        .rows
        .iter()
        .zip(&ids)
        .map(|(draft, id)| Insertion { id: *id, book: book.id, draft: draft.clone(), derived_from: None })
        .collect();
    insert(connection, &rows).await?;
    insert_aliases(connection, book.id, &plan.aliases).await?;
    let derived = derive(connection, book.id, &rows, &superseded).await?;
    // The links to successors are checked at the end otherwise, where nobody could say what was wrong.
    sqlx::query!("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *connection).await?;

    let publication = Publication {
        prices: outcomes(&plan, &ids, new)?,
        continued: superseded.iter().filter_map(|(old, copy)| Some((*old, (*copy)?))).collect(),
        aliases: plan.aliases.len(),
        derived,
        book,
    };
    if publication.changed() {
        catalog::bump(connection).await?;
        let name = publication.book.name.clone();
        audit::record(connection, actor, "prices.publish", &name, Some(summary(&publication))).await?;
    }
    Ok(publication)
}

fn summary(publication: &Publication) -> Value {
    let added: Vec<i64> = publication
        .prices
        .iter()
        .filter(|price| price.status != Status::Unchanged)
        .map(|price| price.id.0)
        .collect();
    json!({"added": added, "continued": publication.continued, "derived": publication.derived,
           "aliases": publication.aliases})
}

/// The standing explicit prices of the same models, and the aliases of the same names.
async fn neighbours(
    connection: &mut PgConnection,
    book: BookId,
    new: &[NewPrice],
) -> Result<(Vec<Standing>, Vec<ModelAlias>), StoreError> {
    let models = new.iter().map(|price| (price.provider.to_ascii_lowercase(), price.model.clone())).unzip();
    let selection =
        Selection { book: Some(book), models: Some(models), explicit_only: true, ..Selection::standing() };
    let prices = select(connection, &selection).await?;
    let standing = prices.into_iter().map(|price| Standing { id: price.id, draft: price.draft }).collect();
    let names: Vec<String> = new.iter().flat_map(|price| price.aliases.iter().cloned()).collect();
    let aliases = sqlx::query!(
        "SELECT provider, alias, model, valid_from, valid_to FROM model_aliases WHERE book_id = $1 AND alias = ANY($2)",
        book.0,
        &names,
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| ModelAlias {
        provider: row.provider,
        alias: row.alias,
        model: row.model,
        valid_from: row.valid_from,
        valid_to: row.valid_to,
        inherited: false,
    })
    .collect();
    Ok((standing, aliases))
}

fn outcomes(plan: &Plan, ids: &[PriceId], new: &[NewPrice]) -> Result<Vec<PublishedPrice>, PricesError> {
    let mut prices = Vec::with_capacity(plan.published.len());
    for (index, published) in plan.published.iter().enumerate() {
        let (row, before) = match published {
            Published::Added { row, before } => (*row, before.as_ref()),
            Published::Unchanged(slot) => {
                let (id, draft) = match slot {
                    Slot::Planned(row) => (ids[*row], plan.rows[*row].clone()),
                    Slot::Standing(id) => {
                        let draft = match new[index].check(index) {
                            Ok(draft) => draft,
                            Err(faults) => return Err(PricesError::Refused(faults)),
                        };
                        (*id, draft)
                    }
                };
                prices.push(PublishedPrice { id, status: Status::Unchanged, draft, changes: Vec::new() });
                continue;
            }
        };
        let draft = plan.rows[row].clone();
        let status = if before.is_some() { Status::Changed } else { Status::Added };
        let changes = before.map(|before| changes(before, &draft.own_rates())).unwrap_or_default();
        prices.push(PublishedPrice { id: ids[row], status, draft, changes });
    }
    Ok(prices)
}

fn changes(old: &BTreeMap<TokenClass, Rate>, new: &BTreeMap<TokenClass, Rate>) -> Vec<RateChange> {
    TokenClass::ALL
        .into_iter()
        .map(|class| RateChange { class, old: old.get(&class).copied(), new: new.get(&class).copied() })
        .filter(|change| change.old != change.new)
        .collect()
}

/// Ends a price at an instant by superseding it with a copy that ends there; at or before its start this withdraws it,
/// which only an announced price can be.
///
/// Returns the copy's id, or `None` where it was withdrawn.
///
/// # Errors
/// [`PricesError`]; the caller rolls back.
pub async fn close(
    connection: &mut PgConnection,
    id: PriceId,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
    actor: &str,
) -> Result<Option<PriceId>, PricesError> {
    let unlocked = get(connection, id).await?.ok_or(PricesError::UnknownPrice(id))?;
    sqlx::query!("SELECT id FROM price_books WHERE id = $1 FOR UPDATE", unlocked.book.id.0)
        .fetch_one(&mut *connection)
        .await?;
    let price = get(connection, id).await?.ok_or(PricesError::UnknownPrice(id))?;
    let refuse = |detail: String| Err(PricesError::NotClosable { id, detail });
    if let Some(by) = price.superseded_by {
        return refuse(format!("was superseded by price {by}; close that one"));
    }
    if price.superseded_at.is_some() {
        return refuse("was withdrawn already".to_owned());
    }
    if let Some(cost) = price.derived_from {
        return refuse(format!("follows cost price {cost}; close that one, or publish an explicit price"));
    }
    if price.draft.valid_to.is_some_and(|end| end <= at) {
        return refuse("ends before that already".to_owned());
    }
    let withdrawn = at <= price.draft.valid_from;
    if withdrawn && price.draft.valid_from <= now {
        return refuse("is in force; close it at a date after its valid_from".to_owned());
    }
    let mut rows = Vec::new();
    if !withdrawn {
        let draft = PriceDraft { valid_to: Some(at), ..price.draft.clone() };
        let copy = reserve_ids(connection, 1).await?.remove(0);
        rows.push(Insertion { id: copy, book: price.book.id, draft, derived_from: None });
    }
    let copy = rows.first().map(|row| row.id);
    supersede(connection, &[(id, copy)]).await?;
    insert(connection, &rows).await?;
    derive(connection, price.book.id, &rows, &[(id, copy)]).await?;
    sqlx::query!("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *connection).await?;
    catalog::bump(connection).await?;
    let detail = json!({"price": id, "at": at, "continued_by": copy});
    let action = if withdrawn { "prices.withdraw" } else { "prices.close" };
    audit::record(connection, actor, action, &price.book.name, Some(detail)).await?;
    Ok(copy)
}

/// The price of a markup book over a cost price: every rate times the factor.
pub(super) fn derived(cost: &PriceDraft, factor: Decimal) -> Result<PriceDraft, MoneyError> {
    let mut rates = BTreeMap::new();
    for (class, quote) in &cost.rates {
        let (rate, rounded) = quote.rate.marked_up(factor)?;
        let per = if class.is_fee() { 1 } else { cost.per };
        let quoted = rate.times(per).ok_or_else(|| MoneyError::OutOfRange(rate.per_unit().to_string()))?;
        rates.insert(*class, QuotedRate { quoted, rate, rounded });
    }
    let draft =
        PriceDraft { rates, multiplier: Decimal::ONE, source: None, checked_at: None, ..cost.clone() };
    Ok(draft)
}

/// Brings the markup books of a cost book in line with what was added to it and superseded in it.
async fn derive(
    connection: &mut PgConnection,
    base: BookId,
    added: &[Insertion],
    superseded: &[(PriceId, Option<PriceId>)],
) -> Result<usize, PricesError> {
    let mut count = 0;
    for dependent in dependents(connection, base).await? {
        let mut rows = Vec::with_capacity(added.len());
        for (cost, id) in added.iter().zip(reserve_ids(connection, added.len()).await?) {
            let draft = derived(&cost.draft, dependent.factor).map_err(|error| {
                let detail = format!("a markup of {} takes it out of range: {error}", dependent.factor);
                let path = "rates".to_owned();
                PricesError::Refused(vec![PriceFault { index: 0, path, detail, conflicts_with: None }])
            })?;
            rows.push(Insertion { id, book: dependent.book, draft, derived_from: Some(cost.id) });
        }
        let by_cost: HashMap<PriceId, PriceId> =
            added.iter().zip(&rows).map(|(cost, row)| (cost.id, row.id)).collect();
        let olds: Vec<i64> = superseded.iter().map(|(old, _)| old.0).collect();
        let standing = derived_prices(connection, dependent.book, &olds).await?;
        let follow: Vec<(PriceId, Option<PriceId>)> = superseded
            .iter()
            .filter_map(|(old, copy)| {
                Some((*standing.get(old)?, copy.and_then(|copy| by_cost.get(&copy).copied())))
            })
            .collect();
        supersede(connection, &follow).await?;
        insert(connection, &rows).await?;
        count += rows.len();
    }
    Ok(count)
}

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

async fn supersede(
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
