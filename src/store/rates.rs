//! Prices by id, as invoices and reports multiply with them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use sqlx::PgConnection;

use super::StoreError;
use crate::domain::ids::{BookId, PriceId};
use crate::domain::invoice::PriceTerms;
use crate::domain::money::{Currency, Rate};
use crate::domain::price::rates_of_recorded;
use crate::domain::tokens::{CLASS_COUNT, TokenClass};

/// The terms of these prices, superseded ones included; one that does not exist, or that the scope hides, is missing
/// from the answer.
///
/// # Errors
/// [`StoreError`].
pub async fn by_price(
    connection: &mut PgConnection,
    prices: &[PriceId],
) -> Result<BTreeMap<PriceId, PriceTerms>, StoreError> {
    let ids: Vec<i64> = prices.iter().map(|price| price.0).collect();
    let rows = sqlx::query!(
        r#"SELECT p.id AS "id!: PriceId", p.book_id AS "book!: BookId", p.provider AS "provider!", p.model AS "model!",
                  b.currency AS "currency!", r.class AS "class?", r.rate AS "rate?: Rate"
           FROM prices p
           JOIN price_books b ON b.id = p.book_id
           LEFT JOIN price_rates r ON r.price_id = p.id
           WHERE p.id = ANY($1)"#,
        &ids
    )
    .fetch_all(connection)
    .await?;
    let mut own: BTreeMap<PriceId, (PriceTerms, BTreeMap<TokenClass, Rate>)> = BTreeMap::new();
    for row in rows {
        let (_, rates) = match own.entry(row.id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let currency = currency(&row.currency)?;
                let (book, provider, model) = (row.book, row.provider, row.model);
                let terms = PriceTerms { book, provider, model, currency, rates: [None; CLASS_COUNT] };
                new.insert((terms, BTreeMap::new()))
            }
        };
        if let (Some(class), Some(rate)) = (row.class, row.rate) {
            let class = class.parse().map_err(|error| inconsistent("class", &error))?;
            rates.insert(class, rate);
        }
    }
    Ok(own
        .into_iter()
        .map(|(id, (terms, rates))| (id, PriceTerms { rates: rates_of_recorded(&rates), ..terms }))
        .collect())
}

/// A stored currency code.
///
/// # Errors
/// [`StoreError::Inconsistent`] where the code is not known here.
pub(super) fn currency(code: &str) -> Result<Currency, StoreError> {
    code.parse().map_err(|error| inconsistent("currency", &error))
}

fn inconsistent(column: &'static str, error: &dyn std::error::Error) -> StoreError {
    StoreError::Inconsistent { table: "price_rates", column, detail: error.to_string() }
}
