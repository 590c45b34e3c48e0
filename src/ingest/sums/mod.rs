//! Sums of a slice: what its rows add to each rollup and each task.
//!
//! Owns: which rows are summed under one key, and what of a task is not a sum.
//! Does not own: zones and billing periods, which the database knows when the sums are added.
//! Invariants: a pure function of the rows, whatever order they come in; exact, whatever their size.

mod running;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use foldhash::fast::RandomState;
use indexmap::{IndexMap, IndexSet};

use super::IngestError;
use super::facts::{Fact, Facts, NO_TEXT, Share, TextId, id_of};
use crate::domain::event::Outcome;
use crate::domain::ids::{BatchId, CustomerId, PriceId};
use crate::store::posting::{RollupSum, TaskSum, Totals};
use running::{Few, Running};

/// What hours of every zone are made of.
const QUARTER_MICROS: i64 = 15 * 60 * 1_000_000;

/// Sums in the making.
#[derive(Debug, Default)]
pub struct Sums {
    texts: IndexSet<Box<str>, RandomState>,
    rollups: IndexMap<RollupKey, RollupTotals, RandomState>,
    tasks: IndexMap<TaskKey, TaskTotals, RandomState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct RollupKey {
    customer: CustomerId,
    /// Start of the quarter of an hour, in microseconds since 1970.
    quarter: i64,
    cost_price: PriceId,
    sell_price: PriceId,
    project: TextId,
    task_type: TextId,
    restated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct TaskKey {
    customer: CustomerId,
    task: TextId,
}

#[derive(Debug, Default)]
struct RollupTotals {
    events: i64,
    totals: Running,
}

#[derive(Debug)]
struct TaskTotals {
    types: Few,
    parents: Few,
    /// Instants are in microseconds since 1970.
    first_at: i64,
    last_at: i64,
    calls: i64,
    totals: Running,
    models: Few,
    ended: Option<(i64, Outcome)>,
    batches: (BatchId, BatchId),
    booked_on: (NaiveDate, NaiveDate),
}

impl Sums {
    /// Adds the rows of a batch that are of a customer in the share.
    ///
    /// # Errors
    /// [`IngestError::Facts`]; what was added until then is of no use.
    pub fn add(&mut self, facts: &Facts, share: Share) -> Result<(), IngestError> {
        // The ids that texts of the batch have here, once they were needed.
        let mut texts: Vec<TextId> = vec![NO_TEXT; facts.text_ids()];
        for fact in facts.of_share(share) {
            let mut fact = fact?;
            let Fact { project, task, task_type, parent, model, .. } = &mut fact;
            for text in [project, task, task_type, parent, model] {
                let known = &mut texts[*text as usize];
                if *text != NO_TEXT && *known == NO_TEXT {
                    *known = id_of(&mut self.texts, facts.text(*text));
                }
                *text = *known;
            }
            if let Some(prices) = fact.prices {
                self.add_to_rollup(&fact, prices);
            }
            if fact.task != NO_TEXT {
                self.add_to_task(&fact, facts.batch, facts.booked_on);
            }
        }
        Ok(())
    }

    fn add_to_rollup(&mut self, fact: &Fact, (cost_price, sell_price): (PriceId, PriceId)) {
        let key = RollupKey {
            customer: fact.customer,
            quarter: quarter(fact.occurred_at),
            cost_price,
            sell_price,
            project: fact.project,
            task_type: fact.task_type,
            restated: fact.restated,
        };
        let rollup = self.rollups.entry(key).or_default();
        rollup.events += i64::from(fact.calls);
        rollup.totals.add(fact);
    }

    fn add_to_task(&mut self, fact: &Fact, batch: BatchId, booked_on: NaiveDate) {
        let key = TaskKey { customer: fact.customer, task: fact.task };
        let task = self.tasks.entry(key).or_insert_with(|| TaskTotals {
            types: Few::default(),
            parents: Few::default(),
            first_at: fact.occurred_at,
            last_at: fact.occurred_at,
            calls: 0,
            totals: Running::default(),
            models: Few::default(),
            ended: None,
            batches: (batch, batch),
            booked_on: (booked_on, booked_on),
        });
        task.first_at = task.first_at.min(fact.occurred_at);
        task.last_at = task.last_at.max(fact.occurred_at);
        task.batches = (task.batches.0.min(batch), task.batches.1.max(batch));
        task.booked_on = (task.booked_on.0.min(booked_on), task.booked_on.1.max(booked_on));
        task.calls += i64::from(fact.calls);
        task.models.add(fact.model);
        task.types.add(fact.task_type);
        task.parents.add(fact.parent);
        if let Some(outcome) = fact.outcome {
            task.end(fact.occurred_at, outcome);
        }
        task.totals.add(fact);
    }

    /// Texts whose order counts: those of which a task has several.
    pub fn ordered(&self) -> Vec<TextId> {
        let tasks = self.tasks.values().flat_map(|task| [&task.models, &task.types, &task.parents]);
        let several = tasks.filter(|texts| texts.several()).flat_map(Few::iter);
        several.collect::<HashSet<TextId, RandomState>>().into_iter().collect()
    }

    /// A text by its id.
    pub fn resolve(&self, text: TextId) -> &str {
        let place = (text as usize).checked_sub(1);
        place.and_then(|place| self.texts.get_index(place)).map_or("", |text| text)
    }

    /// What is added to the rollups, in the order of the customers; of one key there may be several.
    pub fn rollups(&self) -> impl Iterator<Item = RollupSum<'_>> {
        let mut sums: Vec<(&RollupKey, &RollupTotals)> = self.rollups.iter().collect();
        sums.sort_unstable_by_key(|(key, _)| (key.customer, key.quarter));
        sums.into_iter().flat_map(|(key, rollup)| {
            let (totals, more) = rollup.totals.totals();
            let sum = RollupSum {
                customer: key.customer,
                quarter: instant(key.quarter),
                cost_price: key.cost_price,
                sell_price: key.sell_price,
                project: self.resolve(key.project),
                task_type: self.resolve(key.task_type),
                restated: key.restated,
                events: rollup.events,
                totals,
            };
            let more: Vec<RollupSum<'_>> =
                more.into_iter().map(|totals| RollupSum { events: 0, totals, ..sum.clone() }).collect();
            std::iter::once(sum).chain(more)
        })
    }

    /// What is added to the tasks, in the order of customers and ids; `rank` gives the place of a text of [`Self::ordered`].
    /// Of one task there may be several, one after the other.
    pub fn tasks(&self, rank: impl Fn(TextId) -> i64) -> impl Iterator<Item = TaskSum<'_>> {
        let mut sums: Vec<(&str, &TaskKey, &TaskTotals)> =
            self.tasks.iter().map(|(key, task)| (self.resolve(key.task), key, task)).collect();
        sums.sort_unstable_by_key(|(id, key, _)| (key.customer, *id));
        sums.into_iter().flat_map(move |(_, key, task)| {
            let (totals, more) = task.totals.totals();
            let sum = self.task(*key, task, totals, &rank);
            let more: Vec<TaskSum<'_>> =
                more.into_iter().map(|totals| TaskSum { calls: 0, totals, ..sum.clone() }).collect();
            std::iter::once(sum).chain(more)
        })
    }

    fn task(
        &self,
        key: TaskKey,
        task: &TaskTotals,
        totals: Totals,
        rank: impl Fn(TextId) -> i64,
    ) -> TaskSum<'_> {
        // Of a task whose events do not agree.
        let first = |texts: &Few| texts.iter().min_by_key(|text| rank(*text)).map(|text| self.resolve(text));
        let mut models: Vec<TextId> = task.models.iter().collect();
        models.sort_unstable_by_key(|model| rank(*model));
        TaskSum {
            customer: key.customer,
            task: self.resolve(key.task),
            task_type: first(&task.types),
            parent: first(&task.parents),
            first_at: instant(task.first_at),
            last_at: instant(task.last_at),
            calls: task.calls,
            totals,
            models: models.into_iter().map(|model| self.resolve(model)).collect(),
            ended: task.ended.map(|(at, outcome)| (instant(at), outcome)),
            batches: task.batches,
            booked_on: task.booked_on,
        }
    }
}

/// When each customer used something: one instant of each quarter of an hour.
///
/// # Errors
/// [`IngestError::Facts`].
pub fn used(facts: &[Arc<Facts>]) -> Result<Vec<(CustomerId, DateTime<Utc>)>, IngestError> {
    let mut used: HashMap<(CustomerId, i64), i64, RandomState> = HashMap::default();
    for facts in facts {
        for fact in Share::all().flat_map(|share| facts.of_share(share)) {
            let fact = fact?;
            used.entry((fact.customer, quarter(fact.occurred_at))).or_insert(fact.occurred_at);
        }
    }
    Ok(used.into_iter().map(|((customer, _), at)| (customer, instant(at))).collect())
}

impl TaskTotals {
    /// The latest outcome stands; of two at one instant the first in the alphabet, whatever came first.
    fn end(&mut self, at: i64, outcome: Outcome) {
        let later =
            |(before, kept): (i64, Outcome)| at > before || at == before && outcome.as_str() < kept.as_str();
        if self.ended.is_none_or(later) {
            self.ended = Some((at, outcome));
        }
    }
}

/// The start of the quarter of an hour that an instant is in.
const fn quarter(micros: i64) -> i64 {
    micros - micros.rem_euclid(QUARTER_MICROS)
}

fn instant(micros: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::microseconds(micros)
}
