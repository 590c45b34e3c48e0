//! What events are resolved and rated with: gateways, customers and their assigned books.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::StoreError;
use crate::domain::ids::{BookId, CustomerId, GatewayId};
use crate::domain::price::covers;

/// A gateway as recording needs it.
#[derive(Debug, Clone)]
pub struct GatewayEntry {
    /// Its key.
    pub id: GatewayId,
    /// Its name.
    pub name: String,
    /// A wider acceptance window.
    pub backfill_from: Option<DateTime<Utc>>,
}

/// A customer as recording needs it.
#[derive(Debug, Clone)]
pub struct CustomerEntry {
    /// Its key.
    pub id: CustomerId,
    /// How gateways know it.
    pub external_id: String,
    /// Whether its events are recorded; otherwise it is suspended.
    pub active: bool,
    /// Its books, by interval.
    pub assignments: Vec<Assignment>,
}

impl CustomerEntry {
    /// The books that rate its calls at an instant.
    pub fn assignment(&self, at: DateTime<Utc>) -> Option<&Assignment> {
        self.assignments.iter().find(|assignment| covers(assignment.valid_from, assignment.valid_to, at))
    }
}

/// The books that rate a customer in `[valid_from, valid_to)`.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// What the customer pays by.
    pub sell_book: BookId,
    /// The customer's own prices, which go before those of the sell book.
    pub override_book: Option<BookId>,
    /// What its usage costs us by.
    pub cost_book: BookId,
    /// First instant.
    pub valid_from: DateTime<Utc>,
    /// First instant after; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
}

/// All gateways.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn gateways(connection: &mut PgConnection) -> Result<Vec<GatewayEntry>, StoreError> {
    let rows =
        sqlx::query_as!(GatewayEntry, r#"SELECT id AS "id: GatewayId", name, backfill_from FROM gateways"#)
            .fetch_all(connection)
            .await?;
    Ok(rows)
}

/// All customers with their assignments.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn customers(connection: &mut PgConnection) -> Result<Vec<CustomerEntry>, StoreError> {
    let mut assignments: HashMap<CustomerId, Vec<Assignment>> = HashMap::new();
    let rows = sqlx::query!(
        r#"SELECT customer_id AS "customer_id: CustomerId", sell_book_id AS "sell_book: BookId",
                  override_book_id AS "override_book: BookId", cost_book_id AS "cost_book: BookId", valid_from, valid_to
           FROM book_assignments ORDER BY customer_id, valid_from"#
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        assignments.entry(row.customer_id).or_default().push(Assignment {
            sell_book: row.sell_book,
            override_book: row.override_book,
            cost_book: row.cost_book,
            valid_from: row.valid_from,
            valid_to: row.valid_to,
        });
    }
    let rows = sqlx::query!(
        r#"SELECT id AS "id: CustomerId", external_id, status = 'active' AS "active!" FROM customers"#
    )
    .fetch_all(connection)
    .await?;
    let customers = rows
        .into_iter()
        .map(|row| CustomerEntry {
            assignments: assignments.remove(&row.id).unwrap_or_default(),
            id: row.id,
            external_id: row.external_id,
            active: row.active,
        })
        .collect();
    Ok(customers)
}
