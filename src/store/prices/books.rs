//! Price books, and everything in them as rating loads it.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;

use super::read::{PriceFilter, Selection, select};
use super::write::{Insertion, insert, reserve_ids};
use super::{PricesError, StoreError};
use crate::domain::ids::{BookId, PriceId};
use crate::domain::money::Currency;
use crate::domain::price::dated_markup::Markups;
use crate::domain::price::markup::{Markup, MarkupError};
use crate::domain::price::quotation::{Quote, distinct_quotes};
use crate::domain::price::{BookInfo, BookKind, ModelAlias, Price};
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
    /// Other factors for some models, by name or by the beginning of a name and `*`; the longest that matches decides.
    #[serde(default, deserialize_with = "distinct_quotes")]
    #[schema(value_type = BTreeMap<String, String>, example = json!({"claude-*": "1.3"}))]
    pub markups: BTreeMap<String, Quote>,
}

/// A price book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// Name, kind and currency.
    pub info: BookInfo,
    /// The name of the cost book whose prices it marks up.
    pub base: Option<String>,
    /// The factors on the rates of the base.
    pub markups: Option<Markups>,
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
    let mut books = find(connection, None, after, limit).await?;
    add_markups(connection, &mut books).await?;
    Ok(books)
}

/// The price book of a name.
///
/// # Errors
/// [`StoreError`].
pub async fn find_book(connection: &mut PgConnection, name: &str) -> Result<Option<Book>, StoreError> {
    let mut books = find(connection, Some(name), None, 1).await?;
    add_markups(connection, &mut books).await?;
    Ok(books.pop())
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
            let markups = row.markup.map(|general| {
                Markups::from(Markup { general: general.normalize(), by_model: BTreeMap::new() })
            });
            Ok(Book { info, base: row.base, markups, created_at: row.created_at })
        })
        .collect()
}

/// The factors for some models, and those of later dates; apart, because they are no customer's to read.
async fn add_markups(connection: &mut PgConnection, books: &mut [Book]) -> Result<(), StoreError> {
    let ids: Vec<i32> = books.iter().map(|book| book.info.id.0).collect();
    let changes = sqlx::query!(
        r#"SELECT book_id AS "book_id: BookId", valid_from, markup FROM markup_changes WHERE book_id = ANY($1)"#,
        &ids,
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in changes {
        if let Some(markups) = markups_of(books, row.book_id) {
            let markup = Markup { general: row.markup.normalize(), by_model: BTreeMap::new() };
            markups.changes.insert(row.valid_from, markup);
        }
    }
    let models = sqlx::query!(
        r#"SELECT book_id AS "book_id!: BookId", NULL AS "valid_from: DateTime<Utc>", pattern AS "pattern!",
                  markup AS "markup!"
           FROM price_book_markups WHERE book_id = ANY($1)
           UNION ALL
           SELECT c.book_id, c.valid_from, m.pattern, m.markup
           FROM markup_change_models m JOIN markup_changes c ON c.id = m.change_id WHERE c.book_id = ANY($1)"#,
        &ids,
    )
    .fetch_all(connection)
    .await?;
    for row in models {
        let Some(markups) = markups_of(books, row.book_id) else { continue };
        let markup = match row.valid_from {
            None => Some(&mut markups.first),
            Some(at) => markups.changes.get_mut(&at),
        };
        if let Some(markup) = markup {
            markup.by_model.insert(row.pattern, row.markup.normalize());
        }
    }
    Ok(())
}

fn markups_of(books: &mut [Book], id: BookId) -> Option<&mut Markups> {
    books.iter_mut().find(|book| book.info.id == id)?.markups.as_mut()
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

/// A book by name; where it is missing it is made, as a cost book of its own prices. Returns whether it was.
///
/// # Errors
/// As [`create_book`].
pub async fn open_cost_book(
    connection: &mut PgConnection,
    name: &str,
    currency: Currency,
    actor: &str,
) -> Result<(Book, bool), PricesError> {
    if let Some(book) = find_book(connection, name).await? {
        return Ok((book, false));
    }
    let new = NewBook {
        name: name.to_owned(),
        kind: BookKind::Cost,
        currency,
        base: None,
        markup: None,
        markups: BTreeMap::new(),
    };
    Ok((create_book(connection, &new, actor).await?, true))
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
    let markup = checked(new)?;
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
        markup.as_ref().map(|markup| markup.general),
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or_else(|| PricesError::BookExists(new.name.clone()))?;
    if let (Some(base), Some(markup)) = (&base, &markup) {
        insert_markups(connection, BookId(id), markup).await?;
        derive_all(connection, base.info.id, BookId(id), markup).await?;
    }
    catalog::bump(connection).await?;
    let detail = json!({"kind": new.kind, "currency": new.currency, "base": new.base, "markup": new.markup,
                        "markups": new.markups});
    audit::record(connection, actor, "price_book.create", &new.name, Some(detail)).await?;
    find_book(connection, &new.name).await?.ok_or_else(|| PricesError::UnknownBook(new.name.clone()))
}

/// Checks what can be checked without the database; returns the markup.
fn checked(new: &NewBook) -> Result<Option<Markup>, PricesError> {
    let field = |field, detail: &str| PricesError::Field { field, detail: detail.to_owned() };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let name = new.name.as_bytes();
    if name.is_empty() || name.len() > 63 || name[0] == b'-' || !name.iter().all(|byte| allowed(*byte)) {
        return Err(field("name", "is not 1 to 63 of a-z 0-9 and -, not starting with -"));
    }
    match (&new.base, &new.markup) {
        (None, None) if new.markups.is_empty() => Ok(None),
        (Some(_), None) => {
            Err(field("markup", "is missing: a book with a base needs the factor on its rates"))
        }
        (None, _) => Err(field("base", "is missing: a markup needs the cost book that it is applied to")),
        (Some(_), Some(_)) if new.kind == BookKind::Cost => {
            Err(field("base", "is for sell books: a cost book is what providers charge"))
        }
        (Some(_), Some(general)) => Markup::read(general, &new.markups).map(Some).map_err(|error| {
            let name = if matches!(error, MarkupError::Pattern(_)) { "markups" } else { "markup" };
            field(name, &error.to_string())
        }),
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

async fn insert_markups(
    connection: &mut PgConnection,
    book: BookId,
    markup: &Markup,
) -> Result<(), StoreError> {
    for (pattern, factor) in &markup.by_model {
        sqlx::query!(
            "INSERT INTO price_book_markups (book_id, pattern, markup) VALUES ($1, $2, $3)",
            book.0,
            pattern,
            factor,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn derive_all(
    connection: &mut PgConnection,
    base: BookId,
    book: BookId,
    markup: &Markup,
) -> Result<(), PricesError> {
    let selection = Selection { book: Some(base), explicit_only: true, ..Selection::standing() };
    let prices = select(connection, &selection).await?;
    let ids = reserve_ids(connection, prices.len()).await?;
    let mut rows = Vec::with_capacity(prices.len());
    for (price, id) in prices.iter().zip(ids) {
        let draft = Markup::apply(markup.factor(&price.draft.model), &price.draft).map_err(|error| {
            PricesError::Field {
                field: "markup",
                detail: format!("takes price {} out of range: {error}", price.id),
            }
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
    let Some(book) = find(connection, Some(name), None, 1).await?.pop() else { return Ok(None) };
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
        prices.entry(price.book.id).or_default().push(price.into());
    }
    let mut aliases = aliases(connection, only, None).await?;
    Ok(books
        .into_iter()
        .map(|book| {
            let id = book.info.id;
            (book.info, prices.remove(&id).unwrap_or_default(), aliases.remove(&id).unwrap_or_default())
        })
        .collect())
}

/// The aliases of every book, or of one, that stand or stood at an instant; of a markup book those of its base as well.
async fn aliases(
    connection: &mut PgConnection,
    only: Option<BookId>,
    as_of: Option<DateTime<Utc>>,
) -> Result<HashMap<BookId, Vec<ModelAlias>>, StoreError> {
    let mut aliases: HashMap<BookId, Vec<ModelAlias>> = HashMap::new();
    let rows = sqlx::query!(
        r#"SELECT b.id AS "book!: BookId", a.provider, a.alias, a.model, a.valid_from, a.valid_to,
                  a.book_id <> b.id AS "inherited!"
           FROM price_books b JOIN model_aliases a ON a.book_id IN (b.id, b.base_book_id)
           WHERE ($1::integer IS NULL OR b.id = $1)
             AND ($2::timestamptz IS NULL OR a.recorded_at <= $2)
             AND (a.superseded_at IS NULL OR $2 < a.superseded_at)
           ORDER BY b.id, a.id"#,
        only.map(|book| book.0),
        as_of,
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
    Ok(aliases)
}

/// The prices of a book that a model's name could have meant at some time, as they stood at an instant, ready for rating.
///
/// # Errors
/// [`StoreError`].
pub async fn load_candidates(
    connection: &mut PgConnection,
    book: &BookInfo,
    provider: &str,
    model: &str,
    as_of: DateTime<Utc>,
) -> Result<LoadedBook, StoreError> {
    let filter = PriceFilter {
        provider: Some(provider.to_owned()),
        model: Some(model.to_owned()),
        as_of: Some(as_of),
        ..PriceFilter::default()
    };
    let selection = Selection { book: Some(book.id), filter, ..Selection::default() };
    let prices = select(connection, &selection).await?.into_iter().map(Price::from).collect();
    let aliases = aliases(connection, Some(book.id), Some(as_of)).await?.remove(&book.id).unwrap_or_default();
    Ok((book.clone(), prices, aliases))
}

/// The books that mark up a cost book, locked in the order of their ids.
pub(super) async fn dependents(connection: &mut PgConnection, base: BookId) -> Result<Vec<Book>, StoreError> {
    sqlx::query!("SELECT id FROM price_books WHERE base_book_id = $1 ORDER BY id FOR UPDATE", base.0)
        .fetch_all(&mut *connection)
        .await?;
    let name = sqlx::query_scalar!("SELECT name FROM price_books WHERE id = $1", base.0)
        .fetch_one(&mut *connection)
        .await?;
    let books = books(connection).await?;
    Ok(books.into_iter().filter(|book| book.base.as_ref() == Some(&name)).collect())
}

/// The derived prices in one book of some cost prices: each with its cost price and its start.
pub(super) async fn derived_prices(
    connection: &mut PgConnection,
    book: BookId,
    from: &[i64],
) -> Result<Vec<(PriceId, PriceId, DateTime<Utc>)>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: PriceId", derived_from AS "derived_from!: PriceId", valid_from FROM prices
           WHERE book_id = $1 AND superseded_at IS NULL AND derived_from = ANY($2)"#,
        book.0,
        from,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.derived_from, row.valid_from)).collect())
}
