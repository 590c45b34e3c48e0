//! What a re-rate comes to, added up per customer, period and model. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use chrono::{DateTime, NaiveDate, Utc};

use super::RerateError;
use crate::domain::identity::{EventIdentity, EventKey};
use crate::domain::ids::BatchId;
use crate::domain::money::{Amount, Currency};
use crate::domain::period::Period;
use crate::domain::price::Stamps;
use crate::store::rerate::StandingPart;

/// Usage without a price that is listed one by one; more is only counted.
const UNPRICED_LISTED_MAX: usize = 100;

/// What figures of a re-rate are kept apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The customer's external id.
    pub customer: String,
    /// The billing period in which the usage happened.
    pub period: Period,
    /// The provider, as the price names it that the usage stood at.
    pub provider: String,
    /// The model, as that price names it.
    pub model: String,
    /// The currency of the cost.
    pub cost_currency: Currency,
    /// The currency of the charge.
    pub currency: Currency,
}

/// An amount before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// As it stood.
    pub before: Amount,
    /// As it is at the prices that stand now.
    pub after: Amount,
}

impl Change {
    const NONE: Self = Self { before: Amount::ZERO, after: Amount::ZERO };

    /// After minus before; `None` where that is too large to hold.
    pub fn difference(self) -> Option<Amount> {
        self.after.checked_sub(self.before)
    }
}

/// What changes in a group. Usage that does not change is in none of the amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Events of which an amount changes.
    pub events: i64,
    /// Events that have no price any more; they stand as they are.
    pub unpriced: i64,
    /// What the provider charges us.
    pub cost: Change,
    /// What the customer pays.
    pub charge: Change,
}

/// Recorded usage that has no price any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpricedPart {
    /// The customer's external id.
    pub customer: String,
    /// The event.
    pub event: EventIdentity,
    /// The position in the event.
    pub part: i16,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// Why it has none.
    pub reason: String,
}

/// What a re-rate changed, or would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rerated {
    /// Usage parts that were rated again.
    pub examined: i64,
    /// What changes, in order; groups without a change and without unpriced usage are left out.
    pub groups: Vec<(Group, Figures)>,
    /// Usage without a price, the first hundred.
    pub unpriced: Vec<UnpricedPart>,
    /// The batches of restatements; none in a preview.
    pub batches: Vec<BatchId>,
}

/// A group while it is added up. The parts of an event come one after another, so that the last event seen is enough to
/// count each once.
struct Entry {
    figures: Figures,
    last_changed: Option<(EventKey, NaiveDate)>,
    last_unpriced: Option<(EventKey, NaiveDate)>,
}

#[derive(Default)]
pub(super) struct Sums {
    pub(super) examined: i64,
    pub(super) batches: Vec<BatchId>,
    groups: BTreeMap<Group, Entry>,
    unpriced: Vec<UnpricedPart>,
}

impl Sums {
    /// Adds a part that comes to other amounts. Where a currency changes, what was taken back and what is charged instead
    /// are in two groups: they are never added.
    pub(super) fn changed(
        &mut self,
        customer: &str,
        period: Period,
        standing: &StandingPart,
        now: Stamps,
    ) -> Result<(), RerateError> {
        let before = self.entry(customer, period, standing, standing.stamps);
        before.count_changed(standing.event());
        add(&mut before.figures.cost.before, standing.stamps.cost.amount)?;
        add(&mut before.figures.charge.before, standing.stamps.charge.amount)?;
        let after = self.entry(customer, period, standing, now);
        after.count_changed(standing.event());
        add(&mut after.figures.cost.after, now.cost.amount)?;
        add(&mut after.figures.charge.after, now.charge.amount)
    }

    /// Adds a part that has no price any more.
    pub(super) fn unpriced(
        &mut self,
        customer: &str,
        period: Period,
        standing: &StandingPart,
        reason: String,
    ) {
        let entry = self.entry(customer, period, standing, standing.stamps);
        if entry.last_unpriced != Some(standing.event()) {
            entry.last_unpriced = Some(standing.event());
            entry.figures.unpriced += 1;
        }
        if self.unpriced.len() < UNPRICED_LISTED_MAX {
            self.unpriced.push(UnpricedPart {
                customer: customer.to_owned(),
                event: standing.identity.clone(),
                part: standing.part,
                occurred_at: standing.occurred_at,
                reason,
            });
        }
    }

    /// Adds those of other batches; the parts of an event are in one batch.
    pub(super) fn add(&mut self, other: Self) -> Result<(), RerateError> {
        let Self { examined, batches, groups, unpriced } = other;
        self.examined += examined;
        self.batches.extend(batches);
        for (group, entry) in groups {
            match self.groups.entry(group) {
                Slot::Vacant(new) => {
                    new.insert(entry);
                }
                Slot::Occupied(known) => known.into_mut().figures.add(entry.figures)?,
            }
        }
        self.unpriced.extend(unpriced);
        self.unpriced.truncate(UNPRICED_LISTED_MAX);
        Ok(())
    }

    pub(super) fn finish(self) -> Rerated {
        Rerated {
            examined: self.examined,
            groups: self.groups.into_iter().map(|(group, entry)| (group, entry.figures)).collect(),
            unpriced: self.unpriced,
            batches: self.batches,
        }
    }

    fn entry(
        &mut self,
        customer: &str,
        period: Period,
        standing: &StandingPart,
        stamps: Stamps,
    ) -> &mut Entry {
        let group = Group {
            customer: customer.to_owned(),
            period,
            provider: standing.provider.clone(),
            model: standing.model.clone(),
            cost_currency: stamps.cost.currency,
            currency: stamps.charge.currency,
        };
        let figures = Figures { events: 0, unpriced: 0, cost: Change::NONE, charge: Change::NONE };
        self.groups.entry(group).or_insert(Entry { figures, last_changed: None, last_unpriced: None })
    }
}

impl Entry {
    fn count_changed(&mut self, event: (EventKey, NaiveDate)) {
        if self.last_changed != Some(event) {
            self.last_changed = Some(event);
            self.figures.events += 1;
        }
    }
}

impl Figures {
    fn add(&mut self, other: Self) -> Result<(), RerateError> {
        let Self { events, unpriced, cost, charge } = other;
        self.events += events;
        self.unpriced += unpriced;
        for (sum, change) in [(&mut self.cost, cost), (&mut self.charge, charge)] {
            add(&mut sum.before, change.before)?;
            add(&mut sum.after, change.after)?;
        }
        Ok(())
    }
}

fn add(sum: &mut Amount, amount: Amount) -> Result<(), RerateError> {
    *sum = sum.checked_add(amount).ok_or(RerateError::Overflow)?;
    Ok(())
}
