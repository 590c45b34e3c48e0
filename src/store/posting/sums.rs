//! Adding sums to the rollups and the tasks.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;

use super::super::StoreError;
use super::super::numeric::Units;
use super::super::quantities::rare_json;
use crate::domain::event::Outcome;
use crate::domain::ids::{BatchId, CustomerId, PriceId};
use crate::domain::money::Amount;
use crate::domain::tokens::{MAIN_CLASS_COUNT, TokenClass};

/// Sums that one statement adds, about: it holds all of them twice.
const STATEMENT_SUMS: usize = 10_000;

/// What sums under one key come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// The six main classes in the order of [`TokenClass::ALL`].
    pub main: [i128; MAIN_CLASS_COUNT],
    /// The other classes, without those that come to zero.
    pub rare: BTreeMap<TokenClass, i128>,
    /// What the providers charge us, exact.
    pub cost: Amount,
    /// What the customer pays, exact.
    pub charge: Amount,
}

/// What a slice adds to the rollups under one key. The offset of every zone has been whole quarters of an hour since 1972,
/// so hours and billing periods begin between two of them: zone and period are looked up once per quarter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollupSum<'a> {
    /// Whose usage.
    pub customer: CustomerId,
    /// Start of the quarter of an hour that it happened in.
    pub quarter: DateTime<Utc>,
    /// The price of the cost.
    pub cost_price: PriceId,
    /// The price of the charge.
    pub sell_price: PriceId,
    /// Attribute `project`, or nothing.
    pub project: &'a str,
    /// The type of the task, or nothing.
    pub task_type: &'a str,
    /// Whether it is of a re-rate, which gets invoice lines of its own.
    pub restated: bool,
    /// Calls.
    pub events: i64,
    /// Quantities and amounts.
    pub totals: Totals,
}

/// What a slice adds to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSum<'a> {
    /// Whose task.
    pub customer: CustomerId,
    /// Its id.
    pub task: &'a str,
    /// The first of its types in the order of [`ranks`] ...
    pub task_type: Option<&'a str>,
    /// ... and of what it is a part of.
    pub parent: Option<&'a str>,
    /// Its first event.
    pub first_at: DateTime<Utc>,
    /// Its last event.
    pub last_at: DateTime<Utc>,
    /// Calls.
    pub calls: i64,
    /// Quantities and amounts.
    pub totals: Totals,
    /// Different models, in the order of [`ranks`].
    pub models: Vec<&'a str>,
    /// How it ended, and when.
    pub ended: Option<(DateTime<Utc>, Outcome)>,
    /// First and last batch that its rows lie in.
    pub batches: (BatchId, BatchId),
    /// First and last date that they are booked on.
    pub booked_on: (NaiveDate, NaiveDate),
}

/// The place of each text in the order that the database sorts texts in, which differs from one database to another.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn ranks(connection: &mut PgConnection, texts: &[&str]) -> Result<Vec<i64>, StoreError> {
    let ranks = sqlx::query_scalar!(
        r#"SELECT rank() OVER (ORDER BY text) AS "rank!" FROM unnest($1::text[]) WITH ORDINALITY AS given (text, place)
           ORDER BY place"#,
        texts as _
    )
    .fetch_all(connection)
    .await?;
    Ok(ranks)
}

/// The sums of each statement, in their order; `ends` says whether one ends before the next sum.
fn statements<S>(
    sums: impl Iterator<Item = S>,
    ends: impl Fn(&[S], &S) -> bool,
) -> impl Iterator<Item = Vec<S>> {
    let mut sums = sums.peekable();
    std::iter::from_fn(move || {
        let mut statement = vec![sums.next()?];
        while let Some(sum) = sums.next_if(|next| !ends(&statement, next)) {
            statement.push(sum);
        }
        Some(statement)
    })
}

/// One column of a statement's sums.
fn column<'s, S, T>(sums: &'s [S], value: impl Fn(&'s S) -> T) -> Vec<T> {
    sums.iter().map(value).collect()
}

/// The columns that rollups and tasks have in common.
struct TotalColumns {
    main: [Vec<Units>; MAIN_CLASS_COUNT],
    rare: Vec<Option<String>>,
    cost: Vec<Amount>,
    charge: Vec<Amount>,
}

impl TotalColumns {
    fn of<S>(sums: &[S], totals: impl Fn(&S) -> &Totals) -> Self {
        Self {
            main: std::array::from_fn(|class| column(sums, |sum| Units(totals(sum).main[class]))),
            rare: column(sums, |sum| {
                rare_json(totals(sum).rare.iter().map(|(class, units)| (*class, units)))
            }),
            cost: column(sums, |sum| totals(sum).cost),
            charge: column(sums, |sum| totals(sum).charge),
        }
    }
}

/// Texts as the literal of an array of them.
fn array_literal(texts: &[&str]) -> String {
    let mut literal = String::from("{");
    for (index, text) in texts.iter().enumerate() {
        literal.push_str(if index == 0 { "\"" } else { ",\"" });
        for character in text.chars() {
            if matches!(character, '"' | '\\') {
                literal.push('\\');
            }
            literal.push(character);
        }
        literal.push('"');
    }
    literal.push('}');
    literal
}

/// Adds to the rollups. The sums come in the order of their customers, and a statement has all of a customer's: keys are
/// taken in one order, so that posters never wait for each other in a circle. Usage that lies in no billing period has no
/// `service_period`, which the table refuses.
///
/// # Errors
/// [`StoreError::Database`]; one that [`super::lacks_period`] tells where [`super::missing_periods`] have to be made first.
pub async fn add_to_rollups<'a>(
    connection: &mut PgConnection,
    sums: impl Iterator<Item = RollupSum<'a>>,
) -> Result<(), StoreError> {
    let ends = |statement: &[RollupSum<'a>], next: &RollupSum<'a>| {
        statement.len() >= STATEMENT_SUMS
            && statement.last().is_some_and(|last| last.customer != next.customer)
    };
    for sums in statements(sums, ends) {
        add_rollups(connection, &sums).await?;
    }
    Ok(())
}

async fn add_rollups(connection: &mut PgConnection, sums: &[RollupSum<'_>]) -> Result<(), StoreError> {
    let totals = TotalColumns::of(sums, |sum| &sum.totals);
    let [input, cached, written, written_1h, output, reasoning] = totals.main;
    sqlx::query!(
        "INSERT INTO usage_rollups AS r
             (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
              events, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge)
         SELECT q.customer_id,
                -- Usage of a period that is closed already is late: it is billed in the first open one.
                GREATEST(p.start_at, COALESCE(c.closed_through, p.start_at)),
                p.start_at,
                -- Aligned to the customer's zone, so that a period starts between two hours in every zone.
                date_trunc('hour', q.quarter, c.time_zone),
                q.cost_price_id, q.sell_price_id, q.project, q.task_type,
                CASE WHEN q.restated THEN 'adjustment' ELSE 'usage' END,
                SUM(q.events), SUM(q.input), SUM(q.cache_read), SUM(q.cache_write_5m), SUM(q.cache_write_1h),
                SUM(q.output), SUM(q.reasoning), rare_sum(q.rare::jsonb) FILTER (WHERE q.rare IS NOT NULL), SUM(q.cost),
                SUM(q.charge)
         -- In the target list the arrays are read in step, without a copy of each as a table.
         FROM (SELECT unnest($1::bigint[]) AS customer_id, unnest($2::timestamptz[]) AS quarter,
                      unnest($3::bigint[]) AS cost_price_id, unnest($4::bigint[]) AS sell_price_id,
                      unnest($5::text[]) AS project, unnest($6::text[]) AS task_type, unnest($7::boolean[]) AS restated,
                      unnest($8::bigint[]) AS events, unnest($9::numeric[]) AS input,
                      unnest($10::numeric[]) AS cache_read, unnest($11::numeric[]) AS cache_write_5m,
                      unnest($12::numeric[]) AS cache_write_1h, unnest($13::numeric[]) AS output,
                      unnest($14::numeric[]) AS reasoning, unnest($15::text[]) AS rare, unnest($16::numeric[]) AS cost,
                      unnest($17::numeric[]) AS charge) AS q
         JOIN customers c ON c.id = q.customer_id
         LEFT JOIN billing_periods p ON p.customer_id = q.customer_id
                                    AND p.start_at <= q.quarter AND q.quarter < p.end_at
         GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
         ORDER BY 1, 2, 4, 5, 6, 7, 8, 9, 3
         ON CONFLICT (customer_id, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
                      whole_day, service_period)
         DO UPDATE SET events = r.events + EXCLUDED.events, input = r.input + EXCLUDED.input,
             cache_read = r.cache_read + EXCLUDED.cache_read,
             cache_write_5m = r.cache_write_5m + EXCLUDED.cache_write_5m,
             cache_write_1h = r.cache_write_1h + EXCLUDED.cache_write_1h,
             output = r.output + EXCLUDED.output, reasoning = r.reasoning + EXCLUDED.reasoning,
             rare = CASE WHEN EXCLUDED.rare IS NULL THEN r.rare ELSE rare_add(r.rare, EXCLUDED.rare) END,
             cost = r.cost + EXCLUDED.cost, charge = r.charge + EXCLUDED.charge",
        &column(sums, |sum| sum.customer.0),
        &column(sums, |sum| sum.quarter),
        &column(sums, |sum| sum.cost_price.0),
        &column(sums, |sum| sum.sell_price.0),
        &column(sums, |sum| sum.project) as _,
        &column(sums, |sum| sum.task_type) as _,
        &column(sums, |sum| sum.restated),
        &column(sums, |sum| sum.events),
        &input as _,
        &cached as _,
        &written as _,
        &written_1h as _,
        &output as _,
        &reasoning as _,
        &totals.rare as _,
        &totals.cost as _,
        &totals.charge as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds to the tasks, outcomes included, in the order that the sums come in: it is the one in which all posters take them.
/// A statement adds to a task once: several sums of one task, which come one after the other, are added by several. An outcome
/// that lies in no billing period has no `outcome_period`, which the table refuses.
///
/// # Errors
/// As [`add_to_rollups`].
pub async fn add_to_tasks<'a>(
    connection: &mut PgConnection,
    sums: impl Iterator<Item = TaskSum<'a>>,
) -> Result<(), StoreError> {
    let ends = |statement: &[TaskSum<'a>], next: &TaskSum<'a>| {
        statement.len() >= STATEMENT_SUMS
            || statement.last().is_some_and(|last| (last.customer, last.task) == (next.customer, next.task))
    };
    for sums in statements(sums, ends) {
        add_tasks(connection, &sums).await?;
    }
    Ok(())
}

async fn add_tasks(connection: &mut PgConnection, sums: &[TaskSum<'_>]) -> Result<(), StoreError> {
    let totals = TotalColumns::of(sums, |sum| &sum.totals);
    let [input, cached, written, written_1h, output, reasoning] = totals.main;
    sqlx::query!(
        "INSERT INTO tasks AS t
             (customer_id, task_id, task_type, parent, first_event_at, last_event_at, calls, input, cache_read,
              cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge, models, outcome, ended_at,
              outcome_period, first_batch, last_batch, first_booked_on, last_booked_on)
         SELECT g.customer_id, g.task_id, g.task_type, g.parent, g.first_event_at, g.last_event_at, g.calls, g.input,
                g.cache_read, g.cache_write_5m, g.cache_write_1h, g.output, g.reasoning, g.rare::jsonb, g.cost, g.charge,
                g.models::text[], g.outcome, g.ended_at,
                -- The period it is booked to, by the same rule as usage; looked up for outcomes only.
                CASE WHEN g.outcome IS NOT NULL THEN
                    (SELECT GREATEST(p.start_at, COALESCE(c.closed_through, p.start_at))
                     FROM billing_periods p JOIN customers c ON c.id = p.customer_id
                     WHERE p.customer_id = g.customer_id AND p.start_at <= g.ended_at AND g.ended_at < p.end_at) END,
                g.first_batch, g.last_batch, g.first_booked_on, g.last_booked_on
         FROM (SELECT generate_series(1, cardinality($1::bigint[])) AS place, unnest($1::bigint[]) AS customer_id,
                      unnest($2::text[]) AS task_id, unnest($3::text[]) AS task_type, unnest($4::text[]) AS parent,
                      unnest($5::timestamptz[]) AS first_event_at, unnest($6::timestamptz[]) AS last_event_at,
                      unnest($7::bigint[]) AS calls, unnest($8::numeric[]) AS input, unnest($9::numeric[]) AS cache_read,
                      unnest($10::numeric[]) AS cache_write_5m, unnest($11::numeric[]) AS cache_write_1h,
                      unnest($12::numeric[]) AS output, unnest($13::numeric[]) AS reasoning, unnest($14::text[]) AS rare,
                      unnest($15::numeric[]) AS cost, unnest($16::numeric[]) AS charge, unnest($17::text[]) AS models,
                      unnest($18::text[]) AS outcome, unnest($19::timestamptz[]) AS ended_at,
                      unnest($20::bigint[]) AS first_batch, unnest($21::bigint[]) AS last_batch,
                      unnest($22::date[]) AS first_booked_on, unnest($23::date[]) AS last_booked_on) AS g
         ORDER BY g.place
         ON CONFLICT (customer_id, task_id)
         DO UPDATE SET task_type = LEAST(t.task_type, EXCLUDED.task_type), parent = LEAST(t.parent, EXCLUDED.parent),
             first_event_at = LEAST(t.first_event_at, EXCLUDED.first_event_at),
             last_event_at = GREATEST(t.last_event_at, EXCLUDED.last_event_at),
             calls = t.calls + EXCLUDED.calls, input = t.input + EXCLUDED.input,
             cache_read = t.cache_read + EXCLUDED.cache_read,
             cache_write_5m = t.cache_write_5m + EXCLUDED.cache_write_5m,
             cache_write_1h = t.cache_write_1h + EXCLUDED.cache_write_1h,
             output = t.output + EXCLUDED.output, reasoning = t.reasoning + EXCLUDED.reasoning,
             rare = CASE WHEN EXCLUDED.rare IS NULL THEN t.rare ELSE rare_add(t.rare, EXCLUDED.rare) END,
             cost = t.cost + EXCLUDED.cost, charge = t.charge + EXCLUDED.charge,
             models = CASE WHEN t.models @> EXCLUDED.models THEN t.models
                           ELSE ARRAY(SELECT DISTINCT unnest(t.models || EXCLUDED.models) ORDER BY 1) END,
             -- The latest outcome stands; of two at one instant the first in the alphabet, whatever came first.
             outcome = CASE WHEN EXCLUDED.ended_at > t.ended_at OR t.ended_at IS NULL
                            THEN COALESCE(EXCLUDED.outcome, t.outcome)
                            WHEN EXCLUDED.ended_at = t.ended_at THEN LEAST(t.outcome, EXCLUDED.outcome)
                            ELSE t.outcome END,
             outcome_period = CASE WHEN EXCLUDED.ended_at > t.ended_at OR t.ended_at IS NULL
                                     OR (EXCLUDED.ended_at = t.ended_at AND EXCLUDED.outcome < t.outcome)
                                   THEN EXCLUDED.outcome_period
                                   ELSE t.outcome_period END,
             ended_at = GREATEST(t.ended_at, EXCLUDED.ended_at),
             first_batch = LEAST(t.first_batch, EXCLUDED.first_batch),
             last_batch = GREATEST(t.last_batch, EXCLUDED.last_batch),
             first_booked_on = LEAST(t.first_booked_on, EXCLUDED.first_booked_on),
             last_booked_on = GREATEST(t.last_booked_on, EXCLUDED.last_booked_on)",
        &column(sums, |sum| sum.customer.0),
        &column(sums, |sum| sum.task) as _,
        &column(sums, |sum| sum.task_type) as _,
        &column(sums, |sum| sum.parent) as _,
        &column(sums, |sum| sum.first_at),
        &column(sums, |sum| sum.last_at),
        &column(sums, |sum| sum.calls),
        &input as _,
        &cached as _,
        &written as _,
        &written_1h as _,
        &output as _,
        &reasoning as _,
        &totals.rare as _,
        &totals.cost as _,
        &totals.charge as _,
        &column(sums, |sum| array_literal(&sum.models)),
        &column(sums, |sum| sum.ended.map(|(_, outcome)| outcome.as_str())) as _,
        &column(sums, |sum| sum.ended.map(|(at, _)| at)) as _,
        &column(sums, |sum| sum.batches.0.0),
        &column(sums, |sum| sum.batches.1.0),
        &column(sums, |sum| sum.booked_on.0),
        &column(sums, |sum| sum.booked_on.1)
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_in_the_literal_of_an_array() {
        assert_eq!(array_literal(&[]), "{}");
        assert_eq!(array_literal(&["a b", "", r#"c"\,{}"#, "NULL"]), r#"{"a b","","c\"\\,{}","NULL"}"#);
    }

    #[test]
    fn a_statement_ends_where_it_is_told_to() {
        let statements: Vec<Vec<i32>> =
            statements([1, 1, 2, 3, 3].into_iter(), |statement, next| statement.last() == Some(next))
                .collect();
        assert_eq!(statements, [vec![1], vec![1, 2, 3], vec![3]]);
    }
}
