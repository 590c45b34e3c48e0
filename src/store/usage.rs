//! Summed usage by any of its dimensions.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;

use super::StoreError;
use super::quantities::{Rare, quantities_of};
use super::rates::currency;
use crate::domain::ids::{CustomerId, PriceId};
use crate::domain::money::{Amount, Currency};
use crate::domain::tokens::Quantities;

/// By which dimensions sums are kept apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a dimension of its own, any combination is meant")]
pub struct Grouping {
    /// By customer.
    pub customer: bool,
    /// By day in the customer's zone.
    pub day: bool,
    /// By provider.
    pub provider: bool,
    /// By the model's canonical name.
    pub model: bool,
    /// By project.
    pub project: bool,
    /// By task type.
    pub task_type: bool,
    /// By the prices it was rated with: what amounts per class are computed from.
    pub prices: bool,
}

/// Which usage to sum.
#[derive(Debug, Clone, Default)]
pub struct UsageFilter {
    /// Of this customer only.
    pub customer: Option<CustomerId>,
    /// Hours that start at or after; hours are aligned to the customer's zone and count as a whole.
    pub from: DateTime<Utc>,
    /// Hours that start before.
    pub to: DateTime<Utc>,
    /// Of this provider only.
    pub provider: Option<String>,
    /// Of this model only.
    pub model: Option<String>,
    /// Of this project only; empty for usage of none.
    pub project: Option<String>,
    /// Of this task type only; empty for usage of none.
    pub task_type: Option<String>,
}

/// The sums of one group; a dimension that was not asked for is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSums {
    /// The customer's external id.
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
    /// The cost price.
    pub cost_price: Option<PriceId>,
    /// The sell price.
    pub sell_price: Option<PriceId>,
    /// Currency of the cost; `None` where the scope hides cost prices.
    pub cost_currency: Option<Currency>,
    /// Currency of the charge.
    pub currency: Currency,
    /// Calls.
    pub events: i64,
    /// Units by class.
    pub quantities: Quantities,
    /// What providers charge us.
    pub cost: Amount,
    /// What customers pay.
    pub charge: Amount,
}

/// A group as summed; a dimension that was not asked for is one constant.
struct RawSums {
    customer: String,
    day: NaiveDate,
    provider: String,
    model: String,
    project: String,
    task_type: String,
    cost_price: PriceId,
    sell_price: PriceId,
    cost_currency: String,
    currency: String,
    events: i64,
    input: i64,
    cache_read: i64,
    cache_write_5m: i64,
    cache_write_1h: i64,
    output: i64,
    reasoning: i64,
    rare: Option<Rare>,
    cost: Amount,
    charge: Amount,
}

impl RawSums {
    /// With the dimensions that were asked for.
    fn by(self, by: Grouping) -> Result<UsageSums, StoreError> {
        let cost_currency = (!self.cost_currency.is_empty()).then_some(self.cost_currency.as_str());
        Ok(UsageSums {
            customer: by.customer.then_some(self.customer),
            day: by.day.then_some(self.day),
            provider: by.provider.then_some(self.provider),
            model: by.model.then_some(self.model),
            project: by.project.then_some(self.project),
            task_type: by.task_type.then_some(self.task_type),
            cost_price: by.prices.then_some(self.cost_price),
            sell_price: by.prices.then_some(self.sell_price),
            cost_currency: cost_currency.map(currency).transpose()?,
            currency: currency(&self.currency)?,
            events: self.events,
            quantities: quantities_of!(self),
            cost: self.cost,
            charge: self.charge,
        })
    }
}

/// Sums usage by the dimensions asked for, and always by currency, ordered by them, at most `limit` rows.
///
/// # Errors
/// [`StoreError`].
pub async fn sums(
    connection: &mut PgConnection,
    filter: &UsageFilter,
    by: Grouping,
    limit: i64,
) -> Result<Vec<UsageSums>, StoreError> {
    // Dimensions that are not asked for are one constant, so that every group key is a plain equality.
    let rows = sqlx::query_as!(
        RawSums,
        r#"WITH picked AS (
               SELECT CASE WHEN $8 THEN c.external_id ELSE '' END AS customer,
                      CASE WHEN $9 THEN (r.hour AT TIME ZONE c.time_zone)::date ELSE DATE 'epoch' END AS day,
                      CASE WHEN $10 THEN s.provider ELSE '' END AS provider,
                      CASE WHEN $11 THEN s.model ELSE '' END AS model,
                      CASE WHEN $12 THEN r.project ELSE '' END AS project_group,
                      CASE WHEN $13 THEN r.task_type ELSE '' END AS task_type_group,
                      CASE WHEN $14 THEN r.cost_price_id ELSE 0 END AS cost_price,
                      CASE WHEN $14 THEN r.sell_price_id ELSE 0 END AS sell_price,
                      COALESCE(cb.currency, '') AS cost_currency, sb.currency,
                      r.events, r.input, r.cache_read, r.cache_write_5m, r.cache_write_1h, r.output, r.reasoning,
                      r.rare, r.cost, r.charge
               FROM usage_within($1, $2, $3) r
               JOIN customers c ON c.id = r.customer_id
               JOIN prices s ON s.id = r.sell_price_id
               JOIN price_books sb ON sb.id = s.book_id
               LEFT JOIN prices b ON b.id = r.cost_price_id
               LEFT JOIN price_books cb ON cb.id = b.book_id
               WHERE ($4::text IS NULL OR s.provider = $4) AND ($5::text IS NULL OR s.model = $5)
                 AND ($6::text IS NULL OR r.project = $6) AND ($7::text IS NULL OR r.task_type = $7)
           ), sums AS (
               SELECT customer, day, provider, model, project_group, task_type_group, cost_price, sell_price,
                      cost_currency, currency, sum(events)::bigint AS events, sum(input)::bigint AS input,
                      sum(cache_read)::bigint AS cache_read, sum(cache_write_5m)::bigint AS cache_write_5m,
                      sum(cache_write_1h)::bigint AS cache_write_1h, sum(output)::bigint AS output,
                      sum(reasoning)::bigint AS reasoning, sum(cost) AS cost, sum(charge) AS charge
               FROM picked GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
           ), rare_sums AS (
               SELECT customer, day, provider, model, project_group, task_type_group, cost_price, sell_price,
                      cost_currency, currency, jsonb_object_agg(class, quantity) AS rare
               FROM (SELECT customer, day, provider, model, project_group, task_type_group, cost_price, sell_price,
                            cost_currency, currency, key AS class, sum(value::numeric)::bigint AS quantity
                     FROM picked, jsonb_each_text(picked.rare) WHERE picked.rare IS NOT NULL
                     GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) AS per_class
               GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
           )
           SELECT customer AS "customer!", day AS "day!", provider AS "provider!", model AS "model!",
                  project_group AS "project!", task_type_group AS "task_type!", cost_price AS "cost_price!: PriceId",
                  sell_price AS "sell_price!: PriceId", cost_currency AS "cost_currency!", currency AS "currency!",
                  events AS "events!", input AS "input!", cache_read AS "cache_read!",
                  cache_write_5m AS "cache_write_5m!", cache_write_1h AS "cache_write_1h!", output AS "output!",
                  reasoning AS "reasoning!", rare AS "rare: Rare", cost AS "cost!: Amount",
                  charge AS "charge!: Amount"
           FROM sums
           LEFT JOIN rare_sums USING (customer, day, provider, model, project_group, task_type_group, cost_price,
                                      sell_price, cost_currency, currency)
           ORDER BY customer, day, provider, model, project_group, task_type_group, cost_price, sell_price,
                    cost_currency, currency
           LIMIT $15"#,
        filter.customer.map(|customer| customer.0),
        filter.from,
        filter.to,
        filter.provider,
        filter.model,
        filter.project,
        filter.task_type,
        by.customer,
        by.day,
        by.provider,
        by.model,
        by.project,
        by.task_type,
        by.prices,
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| row.by(by)).collect()
}
