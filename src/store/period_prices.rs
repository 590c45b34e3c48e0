//! Prices over a billing period: publishing them, ending them, reading what stands and what stood.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgConnection;

use super::{StoreError, audit, ensure_affected};
use crate::domain::event::Outcome;
use crate::domain::ids::{BookId, PeriodPriceId};
use crate::domain::money::Rate;
use crate::domain::price::period_price::publication::{Known, Plan, Slot, plan};
use crate::domain::price::period_price::quotation::{NewPeriodPrice, PeriodFault};
use crate::domain::price::period_price::{
    PeriodDraft, PeriodPrice, PeriodPriceKind, Scheme, TaskUsage, Tier, TierRate, Tiers, UsageScope,
};
use crate::domain::price::succession::{Record, Told, told};
use crate::domain::price::{BookInfo, BookKind};

/// Why a period price was not changed; nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum PeriodPricesError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Prices that are wrong in themselves or collide with others.
    #[error("{} of the period prices cannot be published", .0.len())]
    Refused(Vec<PeriodFault>),
    /// No book of this name.
    #[error("there is no price book `{0}`")]
    UnknownBook(String),
    /// Only customers' invoices are settled.
    #[error("`{0}` is a cost book; prices over a billing period are for sell books")]
    CostBook(String),
    /// No period price of this id.
    #[error("there is no period price {0}")]
    Unknown(PeriodPriceId),
    /// It cannot be ended like that.
    #[error("period price {id} {detail}")]
    NotClosable {
        /// The price.
        id: PeriodPriceId,
        /// Why not.
        detail: String,
    },
}

impl From<sqlx::Error> for PeriodPricesError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// A period price as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPeriodPrice {
    /// What it says.
    pub price: PeriodPrice,
    /// When it was published.
    pub recorded_at: DateTime<Utc>,
    /// When another took its place, or it was withdrawn.
    pub superseded_at: Option<DateTime<Utc>>,
    /// Which took its place.
    pub superseded_by: Option<PeriodPriceId>,
}

/// What became of a publication; for a dry run the caller rolls back, and ids of new ones are of no use then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The book.
    pub book: BookInfo,
    /// One per price, in the order given: what stands for it, and whether that is new.
    pub prices: Vec<(PeriodPrice, bool)>,
    /// Standing ones that were continued by a copy with an earlier end, and the copy.
    pub continued: Vec<(PeriodPriceId, PeriodPriceId)>,
}

/// The book of a name, as far as the scope sees it.
///
/// # Errors
/// [`StoreError`].
pub async fn book(connection: &mut PgConnection, name: &str) -> Result<Option<BookInfo>, StoreError> {
    let row = sqlx::query!("SELECT id, name, kind, currency FROM price_books WHERE name = $1", name)
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        Ok(BookInfo {
            id: BookId(row.id),
            name: row.name,
            kind: parsed("kind", &row.kind)?,
            currency: parsed("currency", &row.currency)?,
        })
    })
    .transpose()
}

/// Publishes period prices into a sell book: all of them or, where one is refused, none. What starts after `now` is
/// announced.
///
/// # Errors
/// [`PeriodPricesError`]; the caller rolls back.
pub async fn publish(
    connection: &mut PgConnection,
    name: &str,
    new: &[NewPeriodPrice],
    now: DateTime<Utc>,
    actor: &str,
) -> Result<Publication, PeriodPricesError> {
    // Publications into one book happen one after the other, so each plans with what the last one left.
    sqlx::query!("SELECT id FROM price_books WHERE name = $1 FOR UPDATE", name)
        .fetch_optional(&mut *connection)
        .await?;
    let book =
        book(connection, name).await?.ok_or_else(|| PeriodPricesError::UnknownBook(name.to_owned()))?;
    if book.kind != BookKind::Sell {
        return Err(PeriodPricesError::CostBook(name.to_owned()));
    }
    let (standing, known) = known(connection, book.id).await?;
    let plan = plan(known, new, now).map_err(PeriodPricesError::Refused)?;
    let ids = reserve_ids(connection, plan.rows.len()).await?;
    let continued: Vec<(PeriodPriceId, PeriodPriceId)> =
        plan.superseded.iter().map(|(old, row)| (*old, ids[*row])).collect();
    for (old, copy) in &continued {
        supersede(connection, *old, Some(*copy)).await?;
    }
    for (draft, id) in plan.rows.iter().zip(&ids) {
        insert(connection, book.id, *id, draft).await?;
    }
    // The links to successors are checked at the end otherwise, where nobody could say what was wrong.
    sqlx::query!("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *connection).await?;
    let prices = outcomes(&plan, &ids, &standing, &book);
    if !plan.rows.is_empty() {
        let detail = json!({"added": ids, "continued": continued});
        audit::record(connection, actor, "period_prices.publish", &book.name, Some(detail)).await?;
    }
    Ok(Publication { book, prices, continued })
}

/// What stands in a book, and what is known of it and of what does not stand any more.
async fn known(connection: &mut PgConnection, book: BookId) -> Result<(Vec<PeriodPrice>, Known), StoreError> {
    let filter =
        PeriodPriceFilter { books: Some(vec![book]), superseded: true, ..PeriodPriceFilter::default() };
    let stored = list(connection, &filter, None, i64::MAX).await?;
    let records: Vec<_> = stored.iter().map(record).collect();
    let scheme = |at: usize| &stored[at].price.draft.scheme;
    let Told { copies, with_end } = told(&records, |left, right| scheme(left) == scheme(right));
    let published =
        stored.iter().filter(|stored| stored.superseded_at.is_some() && !copies.contains(&stored.price.id));
    let published = published.map(|own| own.price.draft.clone()).collect();
    let stands = stored.into_iter().filter(|stored| stored.superseded_at.is_none());
    let standing: Vec<PeriodPrice> = stands.map(|stored| stored.price).collect();
    let drafts = standing.iter().map(|price| (price.id, price.draft.clone())).collect();
    Ok((standing, Known { standing: drafts, published, with_end }))
}

/// A period price as its record; those of one name take each other's place.
fn record(stored: &StoredPeriodPrice) -> Record<PeriodPriceId, &str> {
    let StoredPeriodPrice { price: PeriodPrice { id, draft, .. }, recorded_at, superseded_at, superseded_by } =
        stored;
    Record {
        id: *id,
        key: &draft.name,
        validity: (draft.valid_from, draft.valid_to),
        recorded_at: *recorded_at,
        superseded_at: *superseded_at,
        superseded_by: *superseded_by,
    }
}

fn outcomes(
    plan: &Plan,
    ids: &[PeriodPriceId],
    standing: &[PeriodPrice],
    book: &BookInfo,
) -> Vec<(PeriodPrice, bool)> {
    let published = plan.published.iter().filter_map(|slot| match slot {
        Slot::Planned(row) => {
            Some((PeriodPrice { id: ids[*row], book: book.clone(), draft: plan.rows[*row].clone() }, true))
        }
        Slot::Standing(id) => Some((standing.iter().find(|price| price.id == *id)?.clone(), false)),
    });
    published.collect()
}

/// Ends a period price at an instant by superseding it with a copy that ends there; at or before its start this withdraws
/// it, which only an announced one can be.
///
/// Returns the copy's id, or `None` where it was withdrawn.
///
/// # Errors
/// [`PeriodPricesError`]; the caller rolls back.
pub async fn close(
    connection: &mut PgConnection,
    id: PeriodPriceId,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
    actor: &str,
) -> Result<Option<PeriodPriceId>, PeriodPricesError> {
    let unlocked = get(connection, id).await?.ok_or(PeriodPricesError::Unknown(id))?;
    sqlx::query!("SELECT id FROM price_books WHERE id = $1 FOR UPDATE", unlocked.price.book.id.0)
        .fetch_one(&mut *connection)
        .await?;
    let stored = get(connection, id).await?.ok_or(PeriodPricesError::Unknown(id))?;
    let refuse = |detail: String| Err(PeriodPricesError::NotClosable { id, detail });
    if let Some(by) = stored.superseded_by {
        return refuse(format!("was superseded by period price {by}; end that one"));
    }
    if stored.superseded_at.is_some() {
        return refuse("was withdrawn already".to_owned());
    }
    let draft = stored.price.draft;
    if draft.valid_to.is_some_and(|end| end <= at) {
        return refuse("ends before that already".to_owned());
    }
    let withdrawn = at <= draft.valid_from;
    if withdrawn && draft.valid_from <= now {
        return refuse("is in force; end it at a date after its valid_from".to_owned());
    }
    let copy = if withdrawn { None } else { reserve_ids(connection, 1).await?.pop() };
    supersede(connection, id, copy).await?;
    let book = stored.price.book;
    if let Some(copy) = copy {
        insert(connection, book.id, copy, &PeriodDraft { valid_to: Some(at), ..draft }).await?;
    }
    sqlx::query!("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *connection).await?;
    let detail = json!({"period_price": id, "at": at, "continued_by": copy});
    let action = if withdrawn { "period_prices.withdraw" } else { "period_prices.close" };
    audit::record(connection, actor, action, &book.name, Some(detail)).await?;
    Ok(copy)
}

async fn reserve_ids(connection: &mut PgConnection, count: usize) -> Result<Vec<PeriodPriceId>, StoreError> {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let ids = sqlx::query_scalar!(
        r#"SELECT nextval(pg_get_serial_sequence('period_prices', 'id')) AS "id!: PeriodPriceId"
           FROM generate_series(1, $1)"#,
        count
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

async fn supersede(
    connection: &mut PgConnection,
    old: PeriodPriceId,
    copy: Option<PeriodPriceId>,
) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "UPDATE period_prices SET superseded_at = now(), superseded_by = $2 WHERE id = $1 AND superseded_at IS NULL",
        old.0,
        copy.map(|copy| copy.0)
    )
    .execute(connection)
    .await?;
    ensure_affected("superseding a period price", &result, 1)
}

async fn insert(
    connection: &mut PgConnection,
    book: BookId,
    id: PeriodPriceId,
    draft: &PeriodDraft,
) -> Result<(), StoreError> {
    let scheme = &draft.scheme;
    let scope = scheme.scope();
    let classes: Vec<String> = scope
        .map(|scope| scope.classes.iter().map(|class| class.name().to_owned()).collect())
        .unwrap_or_default();
    let (tiers, size, amount) = match scheme {
        Scheme::Graduated(tiers) | Scheme::Volume(tiers) => (Some(tiers), None, None),
        Scheme::Package { size, amount, .. } => (None, Some(*size), Some(*amount)),
        Scheme::Task { amount, .. } => (None, None, Some(*amount)),
    };
    let task = match scheme {
        Scheme::Task { task_type, outcome, usage, .. } => Some((task_type, *outcome, *usage)),
        Scheme::Graduated(_) | Scheme::Volume(_) | Scheme::Package { .. } => None,
    };
    sqlx::query!(
        "INSERT INTO period_prices (id, book_id, name, kind, provider, model, classes, per, package_size, amount,
             task_type, outcome, includes_usage, valid_from, valid_to, source)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        id.0,
        book.0,
        draft.name,
        scheme.kind().as_str(),
        scope.and_then(|scope| scope.provider.as_deref()),
        scope.map(|scope| scope.model.as_str()),
        &classes,
        tiers.and_then(|tiers| tiers.per),
        size,
        amount as Option<Rate>,
        task.map(|(task_type, ..)| task_type.as_str()),
        task.and_then(|(_, outcome, _)| outcome).map(Outcome::as_str),
        task.map(|(.., usage)| usage == TaskUsage::Included),
        draft.valid_from,
        draft.valid_to,
        draft.source
    )
    .execute(&mut *connection)
    .await?;
    for (number, tier) in (1_i16..).zip(tiers.map(|tiers| tiers.tiers.as_slice()).unwrap_or_default()) {
        let (rate, factor) = match tier.rate {
            TierRate::Absolute(rate) => (Some(rate), None),
            TierRate::Factor(factor) => (None, Some(factor)),
        };
        sqlx::query!(
            "INSERT INTO period_price_tiers (period_price_id, tier, up_to, rate, factor) VALUES ($1, $2, $3, $4, $5)",
            id.0,
            number,
            tier.up_to,
            rate as Option<Rate>,
            factor
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Which period prices to read; everything that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct PeriodPriceFilter {
    /// Of these books.
    pub books: Option<Vec<BookId>>,
    /// These.
    pub ids: Option<Vec<PeriodPriceId>>,
    /// Valid at this instant.
    pub at: Option<DateTime<Utc>>,
    /// Superseded and withdrawn ones as well.
    pub superseded: bool,
}

/// Everything that stands in these books, in order of book, name and start.
///
/// # Errors
/// [`StoreError`].
pub async fn standing(
    connection: &mut PgConnection,
    books: &[BookId],
) -> Result<Vec<PeriodPrice>, StoreError> {
    let filter = PeriodPriceFilter { books: Some(books.to_vec()), ..PeriodPriceFilter::default() };
    let stored = list(connection, &filter, None, i64::MAX).await?;
    Ok(stored.into_iter().map(|stored| stored.price).collect())
}

/// One, standing or not, or `None` where the scope has none of that id.
///
/// # Errors
/// [`StoreError`].
pub async fn get(
    connection: &mut PgConnection,
    id: PeriodPriceId,
) -> Result<Option<StoredPeriodPrice>, StoreError> {
    Ok(by_id(connection, &[id]).await?.pop())
}

/// These, standing or not, in order of book, name and start.
///
/// # Errors
/// [`StoreError`].
pub async fn by_id(
    connection: &mut PgConnection,
    ids: &[PeriodPriceId],
) -> Result<Vec<StoredPeriodPrice>, StoreError> {
    let filter =
        PeriodPriceFilter { ids: Some(ids.to_vec()), superseded: true, ..PeriodPriceFilter::default() };
    list(connection, &filter, None, i64::MAX).await
}

/// The place of a period price in a list of one book: name, start, id.
pub type PeriodPriceCursor = (String, DateTime<Utc>, i64);

/// Those that pass the filter, in order of book, name, start and id, behind `after` in a list of one book.
///
/// # Errors
/// [`StoreError`].
pub async fn list(
    connection: &mut PgConnection,
    filter: &PeriodPriceFilter,
    after: Option<&PeriodPriceCursor>,
    limit: i64,
) -> Result<Vec<StoredPeriodPrice>, StoreError> {
    let books: Option<Vec<i32>> =
        filter.books.as_ref().map(|books| books.iter().map(|book| book.0).collect());
    let ids: Option<Vec<i64>> = filter.ids.as_ref().map(|ids| ids.iter().map(|id| id.0).collect());
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT p.id AS "id: PeriodPriceId", p.book_id AS "book_id: BookId", b.name AS book_name, b.kind AS book_kind,
                  b.currency, p.name, p.kind, p.provider, p.model, p.classes, p.per, p.package_size,
                  p.amount AS "amount: Rate", p.task_type, p.outcome, p.includes_usage, p.valid_from, p.valid_to,
                  p.recorded_at, p.superseded_at, p.superseded_by AS "superseded_by: PeriodPriceId", p.source
           FROM period_prices p JOIN price_books b ON b.id = p.book_id
           WHERE ($1::integer[] IS NULL OR p.book_id = ANY($1)) AND ($2::bigint[] IS NULL OR p.id = ANY($2))
             AND ($3::timestamptz IS NULL OR (p.valid_from <= $3 AND (p.valid_to IS NULL OR $3 < p.valid_to)))
             AND ($4 OR p.superseded_at IS NULL)
             AND ($5::text IS NULL OR (p.name, p.valid_from, p.id) > ($5, $6::timestamptz, $7::bigint))
           ORDER BY p.book_id, p.name, p.valid_from, p.id
           LIMIT $8"#,
        books.as_deref(),
        ids.as_deref(),
        filter.at,
        filter.superseded,
        after.map(|(name, ..)| name.as_str()),
        after.map(|(_, start, _)| *start),
        after.map(|(.., id)| *id),
        limit
    )
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<i64> = rows.iter().map(|row| row.id.0).collect();
    let mut tiers = tiers_of(connection, &ids).await?;
    rows.into_iter()
        .map(|row| {
            let tiers = tiers.remove(&row.id).unwrap_or_default();
            stored(row, tiers)
        })
        .collect()
}

async fn tiers_of(
    connection: &mut PgConnection,
    ids: &[i64],
) -> Result<HashMap<PeriodPriceId, Vec<Tier>>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT period_price_id AS "price: PeriodPriceId", up_to, rate AS "rate: Rate", factor FROM period_price_tiers
           WHERE period_price_id = ANY($1) ORDER BY period_price_id, tier"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    let mut tiers: HashMap<PeriodPriceId, Vec<Tier>> = HashMap::new();
    for row in rows {
        let rate = match (row.rate, row.factor) {
            (Some(rate), _) => TierRate::Absolute(rate),
            (None, Some(factor)) => TierRate::Factor(factor.normalize()),
            (None, None) => return Err(unreadable("rate", "a tier has neither rate nor factor")),
        };
        tiers.entry(row.price).or_default().push(Tier { up_to: row.up_to, rate });
    }
    Ok(tiers)
}

struct Row {
    id: PeriodPriceId,
    book_id: BookId,
    book_name: String,
    book_kind: String,
    currency: String,
    name: String,
    kind: String,
    provider: Option<String>,
    model: Option<String>,
    classes: Vec<String>,
    per: Option<i64>,
    package_size: Option<i64>,
    amount: Option<Rate>,
    task_type: Option<String>,
    outcome: Option<String>,
    includes_usage: Option<bool>,
    valid_from: DateTime<Utc>,
    valid_to: Option<DateTime<Utc>>,
    recorded_at: DateTime<Utc>,
    superseded_at: Option<DateTime<Utc>>,
    superseded_by: Option<PeriodPriceId>,
    source: Option<String>,
}

fn stored(row: Row, tiers: Vec<Tier>) -> Result<StoredPeriodPrice, StoreError> {
    let missing = |column| move || unreadable(column, "a price of this kind has one");
    let scope = || -> Result<UsageScope, StoreError> {
        let classes: Result<BTreeSet<_>, _> =
            row.classes.iter().map(|class| parsed("classes", class)).collect();
        let model = row.model.clone().ok_or_else(missing("model"))?;
        Ok(UsageScope { provider: row.provider.clone(), model, classes: classes? })
    };
    let kind: PeriodPriceKind = parsed("kind", &row.kind)?;
    let scheme = match kind {
        PeriodPriceKind::Graduated => Scheme::Graduated(Tiers { scope: scope()?, per: row.per, tiers }),
        PeriodPriceKind::Volume => Scheme::Volume(Tiers { scope: scope()?, per: row.per, tiers }),
        PeriodPriceKind::Package => Scheme::Package {
            scope: scope()?,
            size: row.package_size.ok_or_else(missing("package_size"))?,
            amount: row.amount.ok_or_else(missing("amount"))?,
        },
        PeriodPriceKind::Task => Scheme::Task {
            task_type: row.task_type.ok_or_else(missing("task_type"))?,
            outcome: row.outcome.map(|outcome| parsed("outcome", &outcome)).transpose()?,
            amount: row.amount.ok_or_else(missing("amount"))?,
            usage: if row.includes_usage.ok_or_else(missing("includes_usage"))? {
                TaskUsage::Included
            } else {
                TaskUsage::Billed
            },
        },
    };
    let book = BookInfo {
        id: row.book_id,
        name: row.book_name,
        kind: parsed("kind", &row.book_kind)?,
        currency: parsed("currency", &row.currency)?,
    };
    let draft = PeriodDraft {
        name: row.name,
        scheme,
        valid_from: row.valid_from,
        valid_to: row.valid_to,
        source: row.source,
    };
    Ok(StoredPeriodPrice {
        price: PeriodPrice { id: row.id, book, draft },
        recorded_at: row.recorded_at,
        superseded_at: row.superseded_at,
        superseded_by: row.superseded_by,
    })
}

fn parsed<T>(column: &'static str, text: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| unreadable(column, &error.to_string()))
}

fn unreadable(column: &'static str, detail: &str) -> StoreError {
    StoreError::Inconsistent { table: "period_prices", column, detail: detail.to_owned() }
}
