//! Customers, and the price books that rate them.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::StoreError;
use super::rates::currency;
use crate::domain::event::text_enum;
use crate::domain::ids::{BookId, CustomerId};
use crate::domain::money::Currency;
use crate::domain::price::{BookInfo, BookKind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

text_enum! {
    /// Whether a customer's events are recorded.
    CustomerStatus, UnknownCustomerStatus, "customer status" {
        /// They are.
        Active = "active",
        /// They are kept as rejections until it is active again.
        Suspended = "suspended",
    }
}

/// A customer.
#[derive(Debug, Clone)]
pub struct CustomerRow {
    /// Its key.
    pub id: CustomerId,
    /// How gateways and finance know it.
    pub external_id: String,
    /// Its name.
    pub name: String,
    /// IANA zone of its billing calendar.
    pub time_zone: String,
    /// The day its periods start on, 1 to 28.
    pub anchor_day: i16,
    /// End of the last closed period.
    pub closed_through: Option<DateTime<Utc>>,
    /// Whether its events are recorded.
    pub status: CustomerStatus,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A customer to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewCustomer<'a> {
    /// How gateways and finance will know it.
    pub external_id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// IANA zone of its billing calendar, checked, also with [`zone_offsets`].
    pub time_zone: &'a str,
    /// The day its periods start on, 1 to 28.
    pub anchor_day: i16,
}

/// The books that rate a customer in `[valid_from, valid_to)`.
#[derive(Debug, Clone)]
pub struct AssignmentRow {
    /// Name of the sell book.
    pub sell_book: String,
    /// Name of the book whose prices go before those of the sell book.
    pub override_book: Option<String>,
    /// Name of the cost book; a customer's own scope does not see it.
    pub cost_book: Option<String>,
    /// The currency of all.
    pub currency: Currency,
    /// First instant.
    pub valid_from: DateTime<Utc>,
    /// First instant after; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
}

/// Books to be assigned.
#[derive(Debug, Clone, Copy)]
pub struct NewAssignment {
    /// What the customer pays by.
    pub sell_book: BookId,
    /// A sell book of the same currency, whose prices go before those of the sell book.
    pub override_book: Option<BookId>,
    /// What its usage costs us by.
    pub cost_book: BookId,
    /// First instant.
    pub valid_from: DateTime<Utc>,
    /// First instant after; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
}

struct RawCustomer {
    id: CustomerId,
    external_id: String,
    name: String,
    time_zone: String,
    anchor_day: i16,
    closed_through: Option<DateTime<Utc>>,
    status: String,
    created_at: DateTime<Utc>,
}

impl TryFrom<RawCustomer> for CustomerRow {
    type Error = StoreError;

    fn try_from(raw: RawCustomer) -> Result<Self, StoreError> {
        let RawCustomer { id, external_id, name, time_zone, anchor_day, closed_through, status, created_at } =
            raw;
        let status = status.parse().map_err(|error: UnknownCustomerStatus| StoreError::Inconsistent {
            table: "customers",
            column: "status",
            detail: error.to_string(),
        })?;
        Ok(Self { id, external_id, name, time_zone, anchor_day, closed_through, status, created_at })
    }
}

/// How far the clocks of a zone were from those of UTC at an instant.
#[derive(Debug, Clone, Copy)]
pub struct ZoneOffset {
    /// The instant.
    pub at: DateTime<Utc>,
    /// Seconds to the east.
    pub seconds: i32,
}

/// What the database's own data say of a zone for the weeks of the last year; empty where they do not have it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn zone_offsets(connection: &mut PgConnection, zone: &str) -> Result<Vec<ZoneOffset>, StoreError> {
    let offsets = sqlx::query_as!(
        ZoneOffset,
        r#"SELECT week.at AS "at!",
                  extract(epoch FROM (week.at AT TIME ZONE $1::text) - (week.at AT TIME ZONE 'UTC'))::integer AS "seconds!"
           FROM generate_series(now() - interval '1 year', now(), interval '7 days') AS week (at)
           WHERE knows_time_zone($1)"#,
        zone
    )
    .fetch_all(connection)
    .await?;
    Ok(offsets)
}

/// Makes a customer.
///
/// # Errors
/// [`StoreError::Database`] with the constraint `customers_external_id_key` where the external id is taken.
pub async fn create(connection: &mut PgConnection, new: NewCustomer<'_>) -> Result<CustomerRow, StoreError> {
    sqlx::query_as!(
        RawCustomer,
        r#"INSERT INTO customers (external_id, name, time_zone, anchor_day) VALUES ($1, $2, $3, $4)
           RETURNING id AS "id: CustomerId", external_id, name, time_zone, anchor_day, closed_through, status, created_at"#,
        new.external_id,
        new.name,
        new.time_zone,
        new.anchor_day
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

/// The customer with an external id, as far as the connection's scope sees it.
///
/// # Errors
/// [`StoreError::Database`]; [`StoreError::Inconsistent`].
pub async fn by_external_id(
    connection: &mut PgConnection,
    external_id: &str,
) -> Result<Option<CustomerRow>, StoreError> {
    sqlx::query_as!(
        RawCustomer,
        r#"SELECT id AS "id: CustomerId", external_id, name, time_zone, anchor_day, closed_through, status, created_at
           FROM customers WHERE external_id = $1"#,
        external_id
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Customers in order of their external ids, after one, at most `limit`; `status` narrows.
///
/// # Errors
/// [`StoreError::Database`]; [`StoreError::Inconsistent`].
pub async fn list(
    connection: &mut PgConnection,
    status: Option<CustomerStatus>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<CustomerRow>, StoreError> {
    sqlx::query_as!(
        RawCustomer,
        r#"SELECT id AS "id: CustomerId", external_id, name, time_zone, anchor_day, closed_through, status, created_at
           FROM customers
           WHERE ($1::text IS NULL OR status = $1) AND ($2::text IS NULL OR external_id > $2)
           ORDER BY external_id LIMIT $3"#,
        status.map(CustomerStatus::as_str),
        after,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Changes what is given; the customer as it is then.
///
/// # Errors
/// [`StoreError::Database`]; [`StoreError::RowsAffected`] where there is no such customer.
pub async fn update(
    connection: &mut PgConnection,
    id: CustomerId,
    name: Option<&str>,
    status: Option<CustomerStatus>,
) -> Result<CustomerRow, StoreError> {
    sqlx::query_as!(
        RawCustomer,
        r#"UPDATE customers SET name = COALESCE($2, name), status = COALESCE($3, status) WHERE id = $1
           RETURNING id AS "id: CustomerId", external_id, name, time_zone, anchor_day, closed_through, status, created_at"#,
        id.0,
        name,
        status.map(CustomerStatus::as_str)
    )
    .fetch_optional(connection)
    .await?
    .ok_or(StoreError::RowsAffected { what: "customer", expected: 1, actual: 0 })?
    .try_into()
}

/// A customer's assignments, in order of time.
///
/// # Errors
/// [`StoreError::Database`]; [`StoreError::Inconsistent`].
pub async fn assignments(
    connection: &mut PgConnection,
    customer: CustomerId,
) -> Result<Vec<AssignmentRow>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT s.name AS sell_book, o.name AS "override_book?", c.name AS "cost_book?", s.currency, a.valid_from,
                  a.valid_to
           FROM book_assignments a
           JOIN price_books s ON s.id = a.sell_book_id
           LEFT JOIN price_books o ON o.id = a.override_book_id
           LEFT JOIN price_books c ON c.id = a.cost_book_id
           WHERE a.customer_id = $1 ORDER BY a.valid_from"#,
        customer.0
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let currency = currency(&row.currency)?;
            Ok(AssignmentRow {
                sell_book: row.sell_book,
                override_book: row.override_book,
                cost_book: row.cost_book,
                currency,
                valid_from: row.valid_from,
                valid_to: row.valid_to,
            })
        })
        .collect()
}

/// The books that charge a customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChargingBooks {
    /// The sell book.
    pub sell: BookInfo,
    /// The book whose prices go before those of the sell book.
    pub override_book: Option<BookInfo>,
}

/// The books that charge a customer at an instant, as far as the connection's scope sees them.
///
/// # Errors
/// [`StoreError::Database`]; [`StoreError::Inconsistent`].
pub async fn charging_books(
    connection: &mut PgConnection,
    customer: CustomerId,
    at: DateTime<Utc>,
) -> Result<Option<ChargingBooks>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT s.id AS "sell: BookId", s.name AS sell_name, s.currency, o.id AS "own?: BookId", o.name AS "own_name?"
           FROM book_assignments a
           JOIN price_books s ON s.id = a.sell_book_id
           LEFT JOIN price_books o ON o.id = a.override_book_id
           WHERE a.customer_id = $1 AND a.valid_from <= $2 AND (a.valid_to IS NULL OR $2 < a.valid_to)"#,
        customer.0,
        at
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let currency = currency(&row.currency)?;
    let info = |id, name| BookInfo { id, name, kind: BookKind::Sell, currency };
    let override_book = row.own.zip(row.own_name).map(|(id, name)| info(id, name));
    Ok(Some(ChargingBooks { sell: info(row.sell, row.sell_name), override_book }))
}

/// An assigned sell book in another currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherCurrency {
    /// The sell book's name.
    pub sell_book: String,
    /// Its currency.
    pub currency: Currency,
}

/// A sell book in another currency than this that is or was assigned to the customer; other assignments to it are kept out
/// until the transaction ends. A customer stays with one currency: the totals of a task are one sum, whenever its calls
/// were.
///
/// # Errors
/// [`StoreError::Database`]; [`StoreError::Inconsistent`].
pub async fn other_currency(
    connection: &mut PgConnection,
    customer: CustomerId,
    asked: Currency,
) -> Result<Option<OtherCurrency>, StoreError> {
    lock(connection, customer).await?;
    let other = sqlx::query!(
        "SELECT s.name, s.currency FROM book_assignments a JOIN price_books s ON s.id = a.sell_book_id
         WHERE a.customer_id = $1 AND s.currency <> $2 ORDER BY a.valid_from DESC LIMIT 1",
        customer.0,
        asked.as_str()
    )
    .fetch_optional(connection)
    .await?;
    other.map(|row| Ok(OtherCurrency { sell_book: row.name, currency: currency(&row.currency)? })).transpose()
}

/// Assigns books; the open assignment before, if there is one, ends where this one starts, and its start is returned. The
/// caller asks [`other_currency`] before.
///
/// # Errors
/// [`StoreError::Database`] with the constraint `book_assignments_no_overlap` where another assignment overlaps.
pub async fn assign(
    connection: &mut PgConnection,
    customer: CustomerId,
    new: NewAssignment,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    lock(connection, customer).await?;
    let ended = sqlx::query_scalar!(
        "UPDATE book_assignments SET valid_to = $2
         WHERE customer_id = $1 AND valid_to IS NULL AND valid_from < $2 RETURNING valid_from",
        customer.0,
        new.valid_from
    )
    .fetch_optional(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO book_assignments (customer_id, sell_book_id, override_book_id, cost_book_id, valid_from, valid_to)
         VALUES ($1, $2, $3, $4, $5, $6)",
        customer.0,
        new.sell_book.0,
        new.override_book.map(|book| book.0),
        new.cost_book.0,
        new.valid_from,
        new.valid_to
    )
    .execute(connection)
    .await?;
    Ok(ended)
}

/// Keeps other assignments to the customer out: two at a time would end the same predecessor, or be in two currencies.
async fn lock(connection: &mut PgConnection, customer: CustomerId) -> Result<(), StoreError> {
    sqlx::query!("SELECT id FROM customers WHERE id = $1 FOR UPDATE", customer.0)
        .fetch_one(connection)
        .await?;
    Ok(())
}
