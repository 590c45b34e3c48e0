//! Price books, and everything in them as rating loads it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;

use super::publish::derived;
use super::read::{Selection, select};
use super::write::{Insertion, insert, reserve_ids};
use super::{PricesError, StoreError};
use crate::domain::ids::{BookId, PriceId};
use crate::domain::money::Currency;
use crate::domain::price::quotation::Quote;
use crate::domain::price::{BookInfo, BookKind, ModelAlias, Price, resolve_parents};
use crate::store::{audit, catalog};

/// A price book to be made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBook {
    /// Its name: 1 to 63 of a-z 0-9 and `-`.
    pub name: String,
    /// Cost or sell.
    pub kind: BookKind,
    /// ISO 4217 code of all its prices.
    #[schema(value_type = String)]
    pub currency: Currency,
    /// The cost book whose prices it marks up.
    #[serde(default)]
    pub base: Option<String>,
    /// The factor on every rate of the base: `"1.2"` is cost plus 20 %, rounded half away from zero to 15 places.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub markup: Option<Quote>,
}

/// A price book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// Name, kind and currency.
    pub info: BookInfo,
    /// The name of the cost book whose prices it marks up.
    pub base: Option<String>,
    /// The factor on every rate of the base.
    pub markup: Option<Decimal>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// All price books, by name.
///
/// # Errors
/// [`StoreError`].
pub async fn books(connection: &mut PgConnection) -> Result<Vec<Book>, StoreError> {
    list_books(connection, None, i64::MAX).await
}

/// The price books whose name comes after `after`, in order of name.
///
/// # Errors
/// [`StoreError`].
pub async fn list_books(
    connection: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Book>, StoreError> {
    find(connection, None, after, limit).await
}

/// The price book of a name.
///
/// # Errors
/// [`StoreError`].
pub async fn find_book(connection: &mut PgConnection, name: &str) -> Result<Option<Book>, StoreError> {
    Ok(find(connection, Some(name), None, 1).await?.pop())
}

async fn find(
    connection: &mut PgConnection,
    name: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Book>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT b.id, b.name, b.kind, b.currency, base.name AS "base?", b.markup, b.created_at
           FROM price_books b LEFT JOIN price_books base ON base.id = b.base_book_id
           WHERE ($1::text IS NULL OR b.name = $1) AND ($2::text IS NULL OR b.name > $2)
           ORDER BY b.name
           LIMIT $3"#,
        name,
        after,
        limit,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let info = BookInfo {
                id: BookId(row.id),
                name: row.name,
                kind: parsed("price_books", "kind", &row.kind)?,
                currency: parsed("price_books", "currency", &row.currency)?,
            };
            let markup = row.markup.map(|markup| markup.normalize());
            Ok(Book { info, base: row.base, markup, created_at: row.created_at })
        })
        .collect()
}

/// Reads a stored word as a domain value.
pub(super) fn parsed<T>(table: &'static str, column: &'static str, text: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| StoreError::Inconsistent {
        table,
        column,
        detail: error.to_string(),
    })
}

/// Makes a price book; one with a base gets a derived price for every price that stands there.
///
/// # Errors
/// [`PricesError`]; the caller rolls back.
pub async fn create_book(
    connection: &mut PgConnection,
    new: &NewBook,
    actor: &str,
) -> Result<Book, PricesError> {
    let factor = checked(new)?;
    let base = match &new.base {
        Some(name) => Some(locked_base(connection, new, name).await?),
        None => None,
    };
    let base_id = base.as_ref().map(|base| base.info.id.0);
    let id = sqlx::query_scalar!(
        "INSERT INTO price_books (name, kind, currency, base_book_id, markup) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name) DO NOTHING RETURNING id",
        new.name,
        new.kind.as_str(),
        new.currency.as_str(),
        base_id,
        factor,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or_else(|| PricesError::BookExists(new.name.clone()))?;
    if let (Some(base), Some(factor)) = (&base, factor) {
        derive_all(connection, base.info.id, BookId(id), factor).await?;
    }
    catalog::bump(connection).await?;
    let detail = json!({"kind": new.kind, "currency": new.currency, "base": new.base, "markup": new.markup});
    audit::record(connection, actor, "price_book.create", &new.name, Some(detail)).await?;
    find_book(connection, &new.name).await?.ok_or_else(|| PricesError::UnknownBook(new.name.clone()))
}

/// Checks what can be checked without the database; returns the markup.
fn checked(new: &NewBook) -> Result<Option<Decimal>, PricesError> {
    let field = |field, detail: &str| PricesError::Field { field, detail: detail.to_owned() };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let name = new.name.as_bytes();
    if name.is_empty() || name.len() > 63 || name[0] == b'-' || !name.iter().all(|byte| allowed(*byte)) {
        return Err(field("name", "is not 1 to 63 of a-z 0-9 and -, not starting with -"));
    }
    match (&new.base, &new.markup) {
        (None, None) => Ok(None),
        (Some(_), None) => {
            Err(field("markup", "is missing: a book with a base needs the factor on its rates"))
        }
        (None, Some(_)) => {
            Err(field("base", "is missing: a markup needs the cost book that it is applied to"))
        }
        (Some(_), Some(_)) if new.kind == BookKind::Cost => {
            Err(field("base", "is for sell books: a cost book is what providers charge"))
        }
        (Some(_), Some(quote)) => {
            let detail = "is not a decimal from 0 to below 1000 with at most 6 places";
            let factor = quote.exact().map_err(|_| field("markup", detail))?;
            let fits = !factor.is_sign_negative() && factor < Decimal::from(1000) && factor.scale() <= 6;
            if fits { Ok(Some(factor)) } else { Err(field("markup", detail)) }
        }
    }
}

/// The base book, locked: what is published there meanwhile waits, and then finds the new book.
async fn locked_base(connection: &mut PgConnection, new: &NewBook, name: &str) -> Result<Book, PricesError> {
    sqlx::query!("SELECT id FROM price_books WHERE name = $1 FOR UPDATE", name)
        .fetch_optional(&mut *connection)
        .await?;
    let base = find_book(connection, name).await?.ok_or_else(|| PricesError::UnknownBook(name.to_owned()))?;
    let field = |field, detail: String| Err(PricesError::Field { field, detail });
    if base.info.kind != BookKind::Cost {
        return field("base", format!("`{name}` is a sell book; a markup is over a cost book"));
    }
    if base.info.currency != new.currency {
        return field(
            "currency",
            format!("`{name}` is in {}, and a markup changes no currency", base.info.currency),
        );
    }
    Ok(base)
}

async fn derive_all(
    connection: &mut PgConnection,
    base: BookId,
    book: BookId,
    factor: Decimal,
) -> Result<(), PricesError> {
    let selection = Selection { book: Some(base), explicit_only: true, ..Selection::standing() };
    let prices = select(connection, &selection).await?;
    let ids = reserve_ids(connection, prices.len()).await?;
    let mut rows = Vec::with_capacity(prices.len());
    for (price, id) in prices.iter().zip(ids) {
        let draft = derived(&price.draft, factor).map_err(|error| PricesError::Field {
            field: "markup",
            detail: format!("takes price {} out of range: {error}", price.id),
        })?;
        rows.push(Insertion { id, book, draft, derived_from: Some(price.id) });
    }
    insert(connection, &rows).await
}

/// A book with its standing prices and its aliases, ready for rating.
pub type LoadedBook = (BookInfo, Vec<Price>, Vec<ModelAlias>);

/// Every price book, ready for rating; a markup book with the aliases of its base after its own.
///
/// # Errors
/// [`StoreError`].
pub async fn load_books(connection: &mut PgConnection) -> Result<Vec<LoadedBook>, StoreError> {
    let books = books(connection).await?;
    load(connection, books, None).await
}

/// The price book of a name, ready for rating.
///
/// # Errors
/// [`StoreError`].
pub async fn load_book(connection: &mut PgConnection, name: &str) -> Result<Option<LoadedBook>, StoreError> {
    let Some(book) = find_book(connection, name).await? else { return Ok(None) };
    let id = book.info.id;
    Ok(load(connection, vec![book], Some(id)).await?.pop())
}

async fn load(
    connection: &mut PgConnection,
    books: Vec<Book>,
    only: Option<BookId>,
) -> Result<Vec<LoadedBook>, StoreError> {
    let mut prices: HashMap<BookId, Vec<Price>> = HashMap::new();
    for price in select(connection, &Selection { book: only, ..Selection::standing() }).await? {
        prices.entry(price.book.id).or_default().push(Price {
            id: price.id,
            book: price.book.id,
            rates: resolve_parents(&price.draft.own_rates()),
            provider: price.draft.provider,
            model: price.draft.model,
            conditions: price.draft.conditions,
            valid_from: price.draft.valid_from,
            valid_to: price.draft.valid_to,
            recorded_at: price.recorded_at,
            derived: price.derived_from.is_some(),
        });
    }
    let mut aliases: HashMap<BookId, Vec<ModelAlias>> = HashMap::new();
    let rows = sqlx::query!(
        r#"SELECT b.id AS "book!: BookId", a.provider, a.alias, a.model, a.valid_from, a.valid_to,
                  a.book_id <> b.id AS "inherited!"
           FROM price_books b JOIN model_aliases a ON a.book_id IN (b.id, b.base_book_id)
           WHERE $1::integer IS NULL OR b.id = $1
           ORDER BY b.id, a.id"#,
        only.map(|book| book.0),
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        aliases.entry(row.book).or_default().push(ModelAlias {
            provider: row.provider,
            alias: row.alias,
            model: row.model,
            valid_from: row.valid_from,
            valid_to: row.valid_to,
            inherited: row.inherited,
        });
    }
    Ok(books
        .into_iter()
        .map(|book| {
            let id = book.info.id;
            (book.info, prices.remove(&id).unwrap_or_default(), aliases.remove(&id).unwrap_or_default())
        })
        .collect())
}

/// A price as the derived one of a markup book points to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dependent {
    /// The markup book.
    pub book: BookId,
    /// Its factor.
    pub factor: Decimal,
}

/// The books that mark up a cost book, locked in the order of their ids.
pub(super) async fn dependents(
    connection: &mut PgConnection,
    base: BookId,
) -> Result<Vec<Dependent>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: BookId", markup AS "markup!" FROM price_books WHERE base_book_id = $1 ORDER BY id FOR UPDATE"#,
        base.0,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| Dependent { book: row.id, factor: row.markup }).collect())
}

/// The derived price in one book of each cost price, by cost price.
pub(super) async fn derived_prices(
    connection: &mut PgConnection,
    book: BookId,
    from: &[i64],
) -> Result<HashMap<PriceId, PriceId>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: PriceId", derived_from AS "derived_from!: PriceId" FROM prices
           WHERE book_id = $1 AND superseded_at IS NULL AND derived_from = ANY($2)"#,
        book.0,
        from,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.derived_from, row.id)).collect())
}
