//! Other factors for a markup book from a time on: what it derived is derived again, by adding and superseding.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;

use super::books::find_book;
use super::publish::changes;
use super::read::{Selection, select};
use super::write::{Insertion, insert, reserve_ids, supersede};
use super::{Book, PricesError, RateChange, StoreError, StoredPrice};
use crate::domain::ids::{BookId, PriceId};
use crate::domain::price::BookInfo;
use crate::domain::price::dated_markup::{Effect, Markups, change_start, rederive};
use crate::domain::price::markup::{Markup, MarkupError};
use crate::domain::price::publication::Standing;
use crate::domain::price::quotation::{PriceDraft, Quote, distinct_quotes};
use crate::store::{audit, catalog};

/// Other factors for a markup book, from a time on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMarkup {
    /// The factor on every rate of the base: `"1.25"` is cost plus 25 %, rounded half away from zero to 15 places.
    #[schema(value_type = String, example = "1.25")]
    pub markup: Quote,
    /// Other factors for some models, by name or by the beginning of a name and `*`; the longest that matches decides.
    /// Those that applied before are not kept unless they are given again.
    #[serde(default, deserialize_with = "distinct_quotes")]
    #[schema(value_type = BTreeMap<String, String>, example = json!({"claude-*": "1.3"}))]
    pub markups_by_model: BTreeMap<String, Quote>,
    /// First instant; they apply until those of the next change.
    pub valid_from: DateTime<Utc>,
}

/// What a change of factors did; for a dry run the caller rolls back, and new ids are of no use then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkupChange {
    /// The book.
    pub book: BookInfo,
    /// The factors.
    pub markup: Markup,
    /// First instant.
    pub valid_from: DateTime<Utc>,
    /// The start of the next change; `None` where there is none.
    pub valid_to: Option<DateTime<Utc>>,
    /// Derived prices with other rates than before, by provider, model and start.
    pub effects: Vec<MarkupEffect>,
}

/// A stretch of time in which a derived price has other rates than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkupEffect {
    /// The price that stood.
    pub before: PriceId,
    /// The price in its place.
    pub id: PriceId,
    /// What that says.
    pub draft: PriceDraft,
    /// First instant with the new rates.
    pub from: DateTime<Utc>,
    /// First instant after; `None` is open.
    pub to: Option<DateTime<Utc>>,
    /// Old and new rates.
    pub changes: Vec<RateChange>,
}

/// Factors that apply, or applied, in an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkupRow {
    /// The factors.
    pub markup: Markup,
    /// First instant; `None` for those that the book was made with.
    pub valid_from: Option<DateTime<Utc>>,
    /// First instant after; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
    /// When they were set.
    pub recorded_at: DateTime<Utc>,
}

/// The factors of a markup book, the first ones first.
///
/// # Errors
/// [`PricesError::UnknownBook`], [`PricesError::NoMarkupBook`], or the database.
pub async fn markup_history(
    connection: &mut PgConnection,
    book: &str,
) -> Result<Vec<MarkupRow>, PricesError> {
    let (book, markups) = markup_book(connection, book).await?;
    let recorded: HashMap<DateTime<Utc>, DateTime<Utc>> =
        sqlx::query!("SELECT valid_from, recorded_at FROM markup_changes WHERE book_id = $1", book.info.id.0)
            .fetch_all(connection)
            .await?
            .into_iter()
            .map(|row| (row.valid_from, row.recorded_at))
            .collect();
    let valid_to = markups.changes.keys().next().copied();
    let mut rows = vec![MarkupRow {
        markup: markups.first.clone(),
        valid_from: None,
        valid_to,
        recorded_at: book.created_at,
    }];
    rows.extend(markups.changes.iter().map(|(at, markup)| MarkupRow {
        markup: markup.clone(),
        valid_from: Some(*at),
        valid_to: markups.next_change(*at),
        recorded_at: recorded.get(at).copied().unwrap_or(book.created_at),
    }));
    Ok(rows)
}

async fn markup_book(connection: &mut PgConnection, name: &str) -> Result<(Book, Markups), PricesError> {
    let book = find_book(connection, name).await?.ok_or_else(|| PricesError::UnknownBook(name.to_owned()))?;
    let markups = book.markups.clone().ok_or_else(|| PricesError::NoMarkupBook(name.to_owned()))?;
    Ok((book, markups))
}

/// Sets other factors for a markup book from a time on. Derived prices that are valid then end there, and new ones go on;
/// what is recorded keeps the price it was rated with.
///
/// # Errors
/// [`PricesError`]; the caller rolls back.
pub async fn change_markup(
    connection: &mut PgConnection,
    book: &str,
    new: &NewMarkup,
    actor: &str,
) -> Result<MarkupChange, PricesError> {
    let (markup, at) = checked(new)?;
    markup_book(connection, book).await?;
    let base = lock(connection, book).await?;
    let (book, mut markups) = markup_book(connection, book).await?;
    let info = book.info;
    if markups.changes.contains_key(&at) {
        return Err(PricesError::MarkupExists { book: info.name, at });
    }
    insert_change(connection, info.id, &markup, at).await?;
    markups.changes.insert(at, markup.clone());
    let effects = derive_again(connection, base, &info, &markups).await?;
    let valid_to = markups.next_change(at);
    catalog::bump(connection).await?;
    let detail = json!({"markup": new.markup, "markups_by_model": new.markups_by_model, "valid_from": at,
                        "valid_to": valid_to, "prices": effects.len()});
    audit::record(connection, actor, "price_book.markup", &info.name, Some(detail)).await?;
    Ok(MarkupChange { book: info, markup, valid_from: at, valid_to, effects })
}

fn checked(new: &NewMarkup) -> Result<(Markup, DateTime<Utc>), PricesError> {
    let markup = Markup::read(&new.markup, &new.markups_by_model).map_err(|error| {
        let general_fails = Markup::read(&new.markup, &BTreeMap::new()).is_err();
        let in_pattern = !general_fails || matches!(error, MarkupError::Pattern(_));
        let field = if in_pattern { "markups_by_model" } else { "markup" };
        PricesError::Field { field, detail: error.to_string() }
    })?;
    let at = change_start(new.valid_from).ok_or_else(|| PricesError::Field {
        field: "valid_from",
        detail: "is not between 2000-01-01 and 2200-01-01".to_owned(),
    })?;
    Ok((markup, at))
}

/// Locks the base and then the book, in the order in which publishing does: what is published meanwhile waits, and then
/// finds the new factors. Returns the base.
async fn lock(connection: &mut PgConnection, book: &str) -> Result<BookId, PricesError> {
    let base = sqlx::query_scalar!(
        r#"SELECT id AS "id: BookId" FROM price_books
           WHERE id = (SELECT base_book_id FROM price_books WHERE name = $1) FOR UPDATE"#,
        book,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or_else(|| PricesError::NoMarkupBook(book.to_owned()))?;
    sqlx::query!("SELECT id FROM price_books WHERE name = $1 FOR UPDATE", book)
        .fetch_optional(connection)
        .await?;
    Ok(base)
}

async fn insert_change(
    connection: &mut PgConnection,
    book: BookId,
    markup: &Markup,
    at: DateTime<Utc>,
) -> Result<(), StoreError> {
    let change = sqlx::query_scalar!(
        "INSERT INTO markup_changes (book_id, markup, valid_from) VALUES ($1, $2, $3) RETURNING id",
        book.0,
        markup.general,
        at,
    )
    .fetch_one(&mut *connection)
    .await?;
    for (pattern, factor) in &markup.by_model {
        sqlx::query!(
            "INSERT INTO markup_change_models (change_id, pattern, markup) VALUES ($1, $2, $3)",
            change,
            pattern,
            factor,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Brings the derived prices of a book in line with its factors.
async fn derive_again(
    connection: &mut PgConnection,
    base: BookId,
    book: &BookInfo,
    markups: &Markups,
) -> Result<Vec<MarkupEffect>, PricesError> {
    let selection = Selection { book: Some(base), explicit_only: true, ..Selection::standing() };
    let costs = select(connection, &selection).await?;
    let mut derived: HashMap<PriceId, Vec<Standing>> = HashMap::new();
    let selection = Selection { book: Some(book.id), ..Selection::standing() };
    for price in select(connection, &selection).await? {
        if let StoredPrice { id, draft, derived_from: Some(cost), .. } = price {
            derived.entry(cost).or_default().push(Standing { id, draft });
        }
    }
    let mut again = Vec::new();
    for cost in &costs {
        let wanted = markups.derive(&cost.draft).map_err(|error| PricesError::Field {
            field: "markup",
            detail: format!("takes price {} of `{}` out of range: {error}", cost.id, cost.draft.model),
        })?;
        let standing = derived.get(&cost.id).map(Vec::as_slice).unwrap_or_default();
        again.push((cost.id, rederive(standing, wanted)));
    }
    let count = again.iter().map(|(_, of_cost)| of_cost.rows.len()).sum();
    let mut ids = reserve_ids(connection, count).await?.into_iter();
    let (mut rows, mut superseded, mut effects) = (Vec::new(), Vec::new(), Vec::new());
    for (cost, of_cost) in again {
        let ids: Vec<PriceId> = ids.by_ref().take(of_cost.rows.len()).collect();
        superseded.extend(of_cost.superseded.iter().map(|(old, row)| (*old, row.map(|row| ids[row]))));
        effects.extend(of_cost.effects.into_iter().map(|effect| shown(effect, &of_cost.rows, &ids)));
        rows.extend(ids.into_iter().zip(of_cost.rows).map(|(id, draft)| Insertion {
            id,
            book: book.id,
            draft,
            derived_from: Some(cost),
        }));
    }
    supersede(connection, &superseded).await?;
    insert(connection, &rows).await?;
    // The links to successors are checked at the end otherwise, where nobody could say what was wrong.
    sqlx::query!("SET CONSTRAINTS ALL IMMEDIATE").execute(connection).await?;
    Ok(effects)
}

fn shown(effect: Effect, rows: &[PriceDraft], ids: &[PriceId]) -> MarkupEffect {
    let Effect { before, old, row, from, to } = effect;
    let draft = rows[row].clone();
    let changes = changes(&old, &draft.own_rates());
    MarkupEffect { before, id: ids[row], draft, from, to, changes }
}
