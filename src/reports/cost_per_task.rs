//! Cost per task: what a finished piece of work costs, with its distribution.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::figures::{Figures, Ratio};
use super::{ROWS_FETCHED, ReportError, bounded};
use crate::domain::event::Outcome;
use crate::domain::money::{Amount, Currency};
use crate::store::reports::{Spread, TaskScope, TaskTotals, task_totals};
use crate::store::usage::{Grouping, UsageFilter, UsageSums, sums};
use crate::store::{Scope, periods};

/// How totals of single tasks are distributed. Percentiles are exact totals of actual tasks: nearest rank, see [`Spread`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distribution {
    /// Sum of all.
    pub total: Amount,
    /// Sum divided by the number of tasks, rounded to 15 places.
    pub mean: Amount,
    /// The median.
    pub p50: Amount,
    /// The 90th percentile.
    pub p90: Amount,
    /// The 99th percentile.
    pub p99: Amount,
    /// The dearest task.
    pub max: Amount,
}

/// Tasks of one type that ended in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskGroup {
    /// The type; `None` for tasks that name none.
    pub task_type: Option<String>,
    /// How they ended; `None` for open ones.
    pub outcome: Option<String>,
    /// Tasks.
    pub tasks: i64,
    /// Their model calls.
    pub calls: i64,
    /// The currency of the charge.
    pub currency: Currency,
    /// What customers pay.
    pub charge: Distribution,
    /// What providers charge us, with its currency; `None` in a customer's scope.
    pub cost: Option<(Distribution, Currency)>,
}

/// All tasks of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeSummary {
    /// The type; `None` for tasks that name none.
    pub task_type: Option<String>,
    /// Tasks.
    pub tasks: i64,
    /// Tasks without an outcome yet.
    pub open: i64,
    /// Tasks that ended with success.
    pub successes: i64,
    /// Successes among the ended tasks; `None` where none has ended.
    pub success_rate: Option<Ratio>,
    /// Sums over all tasks, open ones included.
    pub figures: Figures,
    /// Sums over ended tasks without success: paid, and nothing to show for it.
    pub wasted: Figures,
    /// Charge of all ended tasks per success; `None` without a success.
    pub charge_per_success: Option<Amount>,
    /// Cost of all ended tasks per success; `None` without a success or in a customer's scope.
    pub cost_per_success: Option<Amount>,
}

/// Usage in the interval's hours whose calls name no task type: calls of no task, and those of tasks that do not say of which
/// type. What is of a task of the report is in its totals as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unattributed {
    /// Calls.
    pub events: i64,
    /// The money.
    pub figures: Figures,
}

/// The report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CostPerTask {
    /// By type and outcome.
    pub groups: Vec<TaskGroup>,
    /// By type.
    pub types: Vec<TypeSummary>,
    /// Per currency; none of a report on one type.
    pub unattributed: Vec<Unattributed>,
    /// Everything recorded up to then is in it.
    pub as_of: DateTime<Utc>,
}

/// Reports on the tasks whose last event lies in the interval, from the caller's snapshot, which was
/// begun in `scope`.
///
/// # Errors
/// [`ReportError`].
pub async fn cost_per_task(
    connection: &mut PgConnection,
    scope: Scope,
    tasks: &TaskScope,
    now: DateTime<Utc>,
) -> Result<CostPerTask, ReportError> {
    let tasks = TaskScope { customer: scope.customer().or(tasks.customer), ..tasks.clone() };
    let as_of = periods::posted_through(connection, now).await?;
    let totals = bounded(task_totals(connection, &tasks, ROWS_FETCHED).await?)?;
    let shows_cost = scope.customer().is_none();
    let unattributed = if tasks.task_type.is_some() {
        Vec::new()
    } else {
        let untyped = UsageFilter {
            customer: tasks.customer,
            from: tasks.from,
            to: tasks.to,
            task_type: Some(String::new()),
            ..UsageFilter::default()
        };
        let untyped = sums(connection, &untyped, Grouping::default(), ROWS_FETCHED).await?;
        untyped.iter().map(|sums| Unattributed::new(sums, shows_cost)).collect()
    };
    Ok(CostPerTask {
        unattributed,
        types: summaries(&totals, shows_cost)?,
        groups: totals.iter().map(|totals| group(totals, shows_cost)).collect::<Result<_, _>>()?,
        as_of,
    })
}

impl Unattributed {
    fn new(sums: &UsageSums, shows_cost: bool) -> Self {
        let cost = sums.cost_currency.filter(|_| shows_cost).map(|currency| (sums.cost, currency));
        Self { events: sums.events, figures: Figures { charge: sums.charge, currency: sums.currency, cost } }
    }
}

impl Distribution {
    fn new(spread: &Spread, tasks: i64) -> Result<Self, ReportError> {
        let Spread { total, p50, p90, p99, max } = *spread;
        let mean = total.mean_of(tasks).ok_or(ReportError::Overflow)?;
        Ok(Self { total, mean, p50, p90, p99, max })
    }
}

fn group(totals: &TaskTotals, shows_cost: bool) -> Result<TaskGroup, ReportError> {
    let cost = match totals.cost_currency.filter(|_| shows_cost) {
        Some(currency) => Some((Distribution::new(&totals.cost, totals.tasks)?, currency)),
        None => None,
    };
    Ok(TaskGroup {
        task_type: totals.task_type.clone(),
        outcome: totals.outcome.clone(),
        tasks: totals.tasks,
        calls: totals.calls,
        currency: totals.currency,
        charge: Distribution::new(&totals.charge, totals.tasks)?,
        cost,
    })
}

/// Folds the outcomes of each type (and currency) together.
fn summaries(totals: &[TaskTotals], shows_cost: bool) -> Result<Vec<TypeSummary>, ReportError> {
    let mut types: BTreeMap<_, (TypeSummary, Figures)> = BTreeMap::new();
    for group in totals {
        let cost_currency = group.cost_currency.filter(|_| shows_cost);
        let nothing = Figures {
            charge: Amount::ZERO,
            currency: group.currency,
            cost: cost_currency.map(|currency| (Amount::ZERO, currency)),
        };
        let figures = Figures {
            charge: group.charge.total,
            currency: group.currency,
            cost: cost_currency.map(|currency| (group.cost.total, currency)),
        };
        // Types in the alphabet, tasks without one last.
        let key = (group.task_type.is_none(), &group.task_type, group.currency, group.cost_currency);
        let (summary, ended) = types.entry(key).or_insert_with(|| {
            let summary = TypeSummary {
                task_type: group.task_type.clone(),
                tasks: 0,
                open: 0,
                successes: 0,
                success_rate: None,
                figures: nothing,
                wasted: nothing,
                charge_per_success: None,
                cost_per_success: None,
            };
            (summary, nothing)
        });
        let tasks = group.tasks;
        summary.tasks += tasks;
        summary.figures.add(&figures)?;
        match group.outcome.as_deref() {
            None => summary.open += tasks,
            Some(outcome) => {
                ended.add(&figures)?;
                if outcome == Outcome::Success.as_str() {
                    summary.successes += tasks;
                } else {
                    summary.wasted.add(&figures)?;
                }
            }
        }
    }
    Ok(types.into_values().map(|(summary, ended)| finished(summary, &ended)).collect())
}

/// Adds what is known only when all outcomes are in.
fn finished(summary: TypeSummary, ended: &Figures) -> TypeSummary {
    let successes = summary.successes;
    TypeSummary {
        success_rate: Ratio::of(i128::from(successes), i128::from(summary.tasks - summary.open)),
        charge_per_success: ended.charge.mean_of(successes),
        cost_per_success: ended.cost.and_then(|(cost, _)| cost.mean_of(successes)),
        ..summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(total: i128) -> Spread {
        let amount = Amount::from_femtos(total);
        Spread { total: amount, p50: amount, p90: amount, p99: amount, max: amount }
    }

    fn totals(outcome: Option<&str>, tasks: i64, femtos: i128) -> TaskTotals {
        TaskTotals {
            task_type: Some("refund".to_owned()),
            outcome: outcome.map(str::to_owned),
            cost_currency: Some(Currency::USD),
            currency: Currency::USD,
            tasks,
            calls: 1,
            cost: spread(femtos),
            charge: spread(femtos * 2),
        }
    }

    #[test]
    fn a_success_carries_the_cost_of_the_failures_but_not_of_open_tasks() {
        let all = [totals(Some("failure"), 1, 3), totals(Some("success"), 2, 3), totals(None, 1, 100)];
        let by_type = summaries(&all, true).unwrap();
        let [summary] = by_type.as_slice() else { panic!("one type") };
        assert_eq!((summary.tasks, summary.open, summary.successes), (4, 1, 2));
        assert_eq!(summary.success_rate.unwrap().to_string(), "0.6667");
        assert_eq!(summary.cost_per_success, Some(Amount::from_femtos(3)));
        assert_eq!(summary.charge_per_success, Some(Amount::from_femtos(6)));
        assert_eq!(summary.figures.charge, Amount::from_femtos(212));
        assert_eq!(summary.wasted.cost, Some((Amount::from_femtos(3), Currency::USD)));
        let never = summaries(&all[..1], false).unwrap();
        assert_eq!(
            (never[0].charge_per_success, never[0].cost_per_success, never[0].figures.cost),
            (None, None, None)
        );
        assert_eq!(never[0].success_rate.unwrap().to_string(), "0.0000");
    }
}
