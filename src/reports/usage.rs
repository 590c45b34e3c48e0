//! Usage and margin by any of their dimensions.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::figures::Figures;
use super::{ROWS_FETCHED, ROWS_MAX, ReportError, bounded};
use crate::domain::event::text_enum;
use crate::domain::ids::PriceId;
use crate::domain::invoice::PriceTerms;
use crate::domain::money::Amount;
use crate::domain::tokens::{Quantities, TokenClass};
use crate::store::usage::{Grouping, UsageFilter, UsageSums, sums};
use crate::store::{Scope, periods, rates};

text_enum! {
    /// What usage can be grouped by.
    Dimension, UnknownDimension, "dimension" {
        /// The customer.
        Customer = "customer",
        /// The day in the customer's zone.
        Day = "day",
        /// The provider.
        Provider = "provider",
        /// The model's canonical name.
        Model = "model",
        /// The project.
        Project = "project",
        /// The task type.
        TaskType = "task_type",
        /// The token class.
        Class = "class",
    }
}

/// A question about usage.
#[derive(Debug, Clone, Default)]
pub struct UsageQuery {
    /// Which usage; its customer is overridden by a customer's scope.
    pub filter: UsageFilter,
    /// By what; nothing gives one row per currency.
    pub group_by: Vec<Dimension>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// The customer's external id, if grouped by it; so with the other dimensions.
    pub customer: Option<String>,
    /// The day in the customer's zone.
    pub day: Option<NaiveDate>,
    /// The provider.
    pub provider: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// The project; empty for usage of none.
    pub project: Option<String>,
    /// The task type; empty for usage of none.
    pub task_type: Option<String>,
    /// The class.
    pub class: Option<TokenClass>,
    /// Calls; `None` where grouped by class, because one call uses several.
    pub events: Option<i64>,
    /// Units by class.
    pub quantities: Quantities,
    /// The money.
    pub figures: Figures,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageReport {
    /// The groups, ordered by their dimensions; a row per currency where there are several.
    pub rows: Vec<UsageRow>,
    /// Everything recorded up to then is in it.
    pub as_of: DateTime<Utc>,
}

/// Sums usage from the caller's snapshot, which was begun in `scope`.
///
/// # Errors
/// [`ReportError`].
pub async fn usage(
    connection: &mut PgConnection,
    scope: Scope,
    query: &UsageQuery,
    now: DateTime<Utc>,
) -> Result<UsageReport, ReportError> {
    let grouped = |dimension| query.group_by.contains(&dimension);
    let by_class = grouped(Dimension::Class);
    let grouping = Grouping {
        customer: grouped(Dimension::Customer),
        day: grouped(Dimension::Day),
        provider: grouped(Dimension::Provider),
        model: grouped(Dimension::Model),
        project: grouped(Dimension::Project),
        task_type: grouped(Dimension::TaskType),
        prices: by_class,
    };
    let mut filter = query.filter.clone();
    filter.customer = scope.customer().or(filter.customer);
    let as_of = periods::posted_through(connection, now).await?;
    let groups = bounded(sums(connection, &filter, grouping, ROWS_FETCHED).await?)?;
    let shows_cost = scope.customer().is_none();
    let rows = if by_class {
        let terms = rates::by_price(connection, &prices(&groups)).await?;
        rows_by_class(&groups, &terms, shows_cost)?
    } else {
        groups.iter().map(|group| row(group, shows_cost)).collect()
    };
    Ok(UsageReport { rows, as_of })
}

/// Every price that the groups were rated with, each once.
fn prices(groups: &[UsageSums]) -> Vec<PriceId> {
    let mut prices: Vec<PriceId> =
        groups.iter().flat_map(|group| group.cost_price.into_iter().chain(group.sell_price)).collect();
    prices.sort_unstable();
    prices.dedup();
    prices
}

fn row(group: &UsageSums, shows_cost: bool) -> UsageRow {
    let cost = group.cost_currency.filter(|_| shows_cost).map(|currency| (group.cost, currency));
    UsageRow {
        customer: group.customer.clone(),
        day: group.day,
        provider: group.provider.clone(),
        model: group.model.clone(),
        project: group.project.clone(),
        task_type: group.task_type.clone(),
        class: None,
        events: Some(group.events),
        quantities: group.quantities,
        figures: Figures { charge: group.charge, currency: group.currency, cost },
    }
}

/// Splits groups per price into rows per class: quantity times rate, which is exact and adds up to the group's amount.
fn rows_by_class(
    groups: &[UsageSums],
    terms: &BTreeMap<PriceId, PriceTerms>,
    shows_cost: bool,
) -> Result<Vec<UsageRow>, ReportError> {
    let mut rows: BTreeMap<_, UsageRow> = BTreeMap::new();
    for group in groups {
        let whole = row(group, shows_cost);
        for (class, quantity) in group.quantities.non_zero() {
            let amount = |price: Option<PriceId>| -> Result<Amount, ReportError> {
                let price = price.unwrap_or(PriceId(0));
                let rate = terms.get(&price).and_then(|terms| terms.rates[class.index()]);
                let rate = rate.ok_or(ReportError::NoRate { price, class })?;
                rate.times(quantity).ok_or(ReportError::Overflow)
            };
            let cost = match whole.figures.cost {
                Some((_, currency)) => Some((amount(group.cost_price)?, currency)),
                None => None,
            };
            let figures = Figures { charge: amount(group.sell_price)?, currency: group.currency, cost };
            let key = (
                (&group.customer, group.day, &group.provider, &group.model, &group.project, &group.task_type),
                class,
                (group.currency, group.cost_currency),
            );
            let mut raw = *Quantities::NONE.raw();
            raw[class.index()] = quantity;
            if let Some(row) = rows.get_mut(&key) {
                raw[class.index()] =
                    quantity.checked_add(row.quantities.get(class)).ok_or(ReportError::Overflow)?;
                row.quantities = Quantities::from_raw(raw);
                row.figures.add(&figures)?;
            } else {
                if rows.len() == ROWS_MAX {
                    return Err(ReportError::TooManyRows);
                }
                let quantities = Quantities::from_raw(raw);
                rows.insert(
                    key,
                    UsageRow { class: Some(class), events: None, quantities, figures, ..whole.clone() },
                );
            }
        }
    }
    Ok(rows.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::BookId;
    use crate::domain::money::{Currency, Rate};
    use crate::domain::tokens::CLASS_COUNT;

    fn terms(input: i128, output: i128) -> PriceTerms {
        let mut rates = [None; CLASS_COUNT];
        rates[TokenClass::Input.index()] = Some(Rate::from_femtos(input).unwrap());
        rates[TokenClass::Output.index()] = Some(Rate::from_femtos(output).unwrap());
        PriceTerms {
            book: BookId(1),
            provider: "p".to_owned(),
            model: "m".to_owned(),
            currency: Currency::USD,
            rates,
        }
    }

    fn group(sell_price: i64, input: i64, output: i64) -> UsageSums {
        let mut quantities = Quantities::NONE;
        quantities.set(TokenClass::Input, input).unwrap();
        quantities.set(TokenClass::Output, output).unwrap();
        UsageSums {
            customer: None,
            day: None,
            provider: None,
            model: Some("m".to_owned()),
            project: None,
            task_type: None,
            cost_price: Some(PriceId(1)),
            sell_price: Some(PriceId(sell_price)),
            cost_currency: Some(Currency::USD),
            currency: Currency::USD,
            events: 1,
            quantities,
            cost: Amount::ZERO,
            charge: Amount::ZERO,
        }
    }

    #[test]
    fn classes_are_priced_by_the_price_of_each_group() {
        let terms = BTreeMap::from([
            (PriceId(1), terms(1, 10)),
            (PriceId(2), terms(2, 20)),
            (PriceId(3), terms(3, 30)),
        ]);
        let groups = [group(2, 100, 7), group(3, 1, 0)];
        let rows = rows_by_class(&groups, &terms, true).unwrap();
        let shown: Vec<_> = rows
            .iter()
            .map(|row| {
                let class = row.class.unwrap();
                let cost = row.figures.cost.unwrap().0.femtos();
                (class.name(), row.quantities.get(class), row.figures.charge.femtos(), cost, row.events)
            })
            .collect();
        assert_eq!(shown, [("input", 101, 203, 101, None), ("output", 7, 140, 70, None)]);
        let hidden = rows_by_class(&groups, &terms, false).unwrap();
        assert!(hidden.iter().all(|row| row.figures.cost.is_none()));
        assert!(matches!(
            rows_by_class(&[group(9, 1, 0)], &terms, false),
            Err(ReportError::NoRate { price: PriceId(9), class: TokenClass::Input })
        ));
    }
}
