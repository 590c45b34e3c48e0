//! What publishing prices does to those that stand: pure, so that a dry run and the real one cannot differ.
//!
//! A new price supersedes the one of the same key in whose validity it lies: that one is copied, ending where the new one
//! starts, and goes on after the new one where that ends earlier. Where another is announced to follow, a new price without
//! an end is up to there; where one that is in force follows, or an earlier price comes back later, as after a promotion, it
//! is refused. Every other overlap is refused, and so is a price that would leave it open which of two applies. A price that
//! gives a name to another model supersedes the open meaning of the alias.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};

use super::quotation::{NewPrice, PriceDraft, PriceFault};
use super::succession::{Fit, advice, checked, end_of, fit, said_by};
use super::{Interval, ModelAlias, covers, intervals_meet};
use crate::domain::ids::PriceId;
use crate::domain::money::Rate;
use crate::domain::tokens::TokenClass;

/// A price that stands: explicit, not superseded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its key.
    pub id: PriceId,
    /// What it says.
    pub draft: PriceDraft,
}

/// What a book has of the models that are to be published.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// All explicit prices that stand.
    pub standing: Vec<Standing>,
    /// Those that do not stand any more, as they were once published.
    pub published: Vec<PriceDraft>,
    /// Those that stand of which it is certain that they were published with their end.
    pub with_end: HashSet<PriceId>,
    /// All of the book's own aliases that stand.
    pub aliases: Vec<ModelAlias>,
}

/// Where a price is kept, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// It stands already.
    Standing(PriceId),
    /// It is the row of the plan at this position.
    Planned(usize),
}

/// What became of one price that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// A new row.
    Added {
        /// Its position in the plan.
        row: usize,
        /// The rates of the price of the same key that ends where this one starts.
        before: Option<BTreeMap<TokenClass, Rate>>,
    },
    /// The same terms stand already.
    Unchanged(Slot),
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Rows to add.
    pub rows: Vec<PriceDraft>,
    /// Standing prices to supersede, each with the position of the row that takes its place.
    pub superseded: Vec<(PriceId, usize)>,
    /// Aliases to add, and copies of those that are superseded.
    pub aliases: Vec<ModelAlias>,
    /// Standing aliases to supersede, as they stand.
    pub superseded_aliases: Vec<ModelAlias>,
    /// What became of each published price, in the order given.
    pub published: Vec<Published>,
}

/// Plans the publication of prices in one book at a time. The order of the new prices does not matter.
///
/// # Errors
/// Every [`PriceFault`]; then nothing is to be written.
pub fn plan(known: Known, new: &[NewPrice], now: DateTime<Utc>) -> Result<Plan, Vec<PriceFault>> {
    let drafts = checked(new, NewPrice::check, |draft| draft.valid_from)?;

    let mut faults = Vec::new();
    let mut planner = Planner::new(known, &drafts, now);
    for (index, draft) in &drafts {
        if let Err(fault) = planner.add(*index, draft.clone()) {
            faults.push(fault);
        }
    }
    if faults.is_empty() { Ok(planner.plan) } else { Err(faults) }
}

struct Entry {
    slot: Slot,
    draft: PriceDraft,
}

impl Entry {
    const fn interval(&self) -> Interval {
        (self.draft.valid_from, self.draft.valid_to)
    }
}

struct Planner<'a> {
    now: DateTime<Utc>,
    /// All that is published now.
    list: &'a [(usize, PriceDraft)],
    /// What does not stand any more, as it was published.
    published: Vec<PriceDraft>,
    /// What was certainly published with its end.
    with_end: HashSet<PriceId>,
    /// By provider and model.
    entries: HashMap<(String, String), Vec<Entry>>,
    /// By provider and alias.
    aliases: HashMap<(String, String), Vec<Meaning>>,
    /// Which published price made a planned row, for messages.
    made_by: HashMap<usize, usize>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(known: Known, list: &'a [(usize, PriceDraft)], now: DateTime<Utc>) -> Self {
        let Known { standing, published, with_end, aliases } = known;
        let mut entries: HashMap<_, Vec<Entry>> = HashMap::new();
        for Standing { id, draft } in standing {
            let key = (draft.provider.clone(), draft.model.clone());
            entries.entry(key).or_default().push(Entry { slot: Slot::Standing(id), draft });
        }
        let mut meanings: HashMap<_, Vec<Meaning>> = HashMap::new();
        for alias in aliases {
            let key = (alias.provider.clone(), alias.alias.clone());
            meanings.entry(key).or_default().push(Meaning { alias, planned: None });
        }
        let unsettled = vec![Published::Unchanged(Slot::Planned(0)); list.len()];
        let plan = Plan { published: unsettled, ..Plan::default() };
        let made_by = HashMap::new();
        Self { now, list, published, with_end, entries, aliases: meanings, made_by, plan }
    }

    fn add(&mut self, index: usize, draft: PriceDraft) -> Result<(), PriceFault> {
        let key = (draft.provider.clone(), draft.model.clone());
        let mut entries = self.entries.remove(&key).unwrap_or_default();
        let outcome = self.settle(index, draft, &mut entries);
        self.entries.insert(key, entries);
        self.plan.published[index] = outcome?;
        Ok(())
    }

    /// Finds out where the price ends, and dates its aliases like that.
    fn settle(
        &mut self,
        index: usize,
        draft: PriceDraft,
        entries: &mut Vec<Entry>,
    ) -> Result<Published, PriceFault> {
        let new = (draft.valid_from, draft.valid_to);
        let key = draft.conditions_key.as_str();
        let both = |left: usize, right: usize| entries[left].draft.same_terms(&entries[right].draft);
        let end = end_of(&of_key(entries, key), new, self.now, both);
        let same = |there: usize| entries[there].draft.same_terms(&draft);
        let known = |others: &[usize]| {
            self.was_published(&draft) || others.iter().all(|there| self.is_in_list(&entries[*there].draft))
        };
        let with_end =
            |there: usize| matches!(entries[there].slot, Slot::Standing(id) if self.with_end.contains(&id));
        let said = said_by(&of_key(entries, key), new, self.now, both, same, with_end, known);
        let said = said.map(|(there, until)| (entries[there].slot, until));
        let valid_to = said.map_or(end, |(_, until)| until);
        let draft = PriceDraft { valid_to, ..draft };
        self.add_aliases(index, &draft)?;
        match said {
            Some((slot, _)) => Ok(Published::Unchanged(slot)),
            None => self.place(index, draft, entries),
        }
    }

    /// Whether this very price was published once.
    fn was_published(&self, draft: &PriceDraft) -> bool {
        let interval = (draft.valid_from, draft.valid_to);
        self.published.iter().any(|was| {
            (was.valid_from, was.valid_to) == interval && of_model(was, draft) && was.same_terms(draft)
        })
    }

    /// Whether a price that stands is what the prices that are published now say for its start: the one of them that
    /// takes the others' place there.
    fn is_in_list(&self, there: &PriceDraft) -> bool {
        let drafts = self.list.iter().map(|(_, new)| new);
        let at_start = drafts.filter(|new| {
            covers(new.valid_from, new.valid_to, there.valid_from)
                && of_model(new, there)
                && new.conditions_key == there.conditions_key
        });
        at_start.max_by_key(|new| new.valid_from).is_some_and(|new| new.same_terms(there))
    }

    fn place(
        &mut self,
        index: usize,
        draft: PriceDraft,
        entries: &mut Vec<Entry>,
    ) -> Result<Published, PriceFault> {
        let fit = fit(of_key(entries, &draft.conditions_key), (draft.valid_from, draft.valid_to));
        self.refuse_ambiguous(index, &draft, entries)?;
        match fit {
            Fit::Free => {}
            Fit::Within(at) => {
                let was = entries[at].draft.clone();
                self.cut(&mut entries[at], draft.valid_from);
                if let Some(end) = draft.valid_to.filter(|end| was.valid_to != Some(*end)) {
                    let resumed = PriceDraft { valid_from: end, ..was };
                    let slot = self.row(index, resumed.clone());
                    entries.push(Entry { slot, draft: resumed });
                }
            }
            Fit::Collides(at) => {
                let (entry, new) = (&entries[at], (draft.valid_from, draft.valid_to));
                let standing = of_key(entries, &draft.conditions_key);
                let advice = advice(standing, entry.interval(), new, self.now, "");
                let detail = format!("{} of the same model and conditions {advice}", self.name(entry));
                return Err(self.fault(index, "valid_from", detail, Some(entry.slot)));
            }
        }
        let ends_here = |entry: &&Entry| {
            entry.draft.conditions_key == draft.conditions_key
                && entry.draft.valid_to == Some(draft.valid_from)
        };
        let before = entries.iter().find(ends_here).map(|entry| entry.draft.own_rates());
        let row = self.plan.rows.len();
        let slot = self.row(index, draft.clone());
        entries.push(Entry { slot, draft });
        Ok(Published::Added { row, before })
    }

    /// No price of other conditions may match the same call and be as specific.
    fn refuse_ambiguous(
        &self,
        index: usize,
        draft: &PriceDraft,
        entries: &[Entry],
    ) -> Result<(), PriceFault> {
        let interval = (draft.valid_from, draft.valid_to);
        let others = entries.iter().filter(|entry| entry.draft.conditions_key != draft.conditions_key);
        for entry in others.filter(|entry| intervals_meet(entry.interval(), interval)) {
            let ambiguous = entry.draft.conditions.ambiguous_with(&draft.conditions);
            if ambiguous.map_err(|fault| self.fault(index, fault.path, fault.detail, None))? {
                let detail = format!(
                    "one call could match both this and {}, and neither is more specific: {} against {}",
                    self.name(entry),
                    draft.conditions_key,
                    entry.draft.conditions_key,
                );
                return Err(self.fault(index, "conditions", detail, Some(entry.slot)));
            }
        }
        Ok(())
    }

    /// Ends a price where a new one starts.
    fn cut(&mut self, entry: &mut Entry, start: DateTime<Utc>) {
        entry.draft.valid_to = Some(start);
        match entry.slot {
            Slot::Planned(row) => self.plan.rows[row].valid_to = Some(start),
            Slot::Standing(id) => {
                let row = self.plan.rows.len();
                self.plan.rows.push(entry.draft.clone());
                self.plan.superseded.push((id, row));
                entry.slot = Slot::Planned(row);
            }
        }
    }

    fn row(&mut self, index: usize, draft: PriceDraft) -> Slot {
        let row = self.plan.rows.len();
        self.plan.rows.push(draft);
        self.made_by.insert(row, index);
        Slot::Planned(row)
    }

    /// Adds the aliases for as much of the price's validity as they are not known for.
    fn add_aliases(&mut self, index: usize, draft: &PriceDraft) -> Result<(), PriceFault> {
        for (position, name) in draft.aliases.iter().enumerate() {
            let key = (draft.provider.clone(), name.clone());
            let mut known = self.aliases.remove(&key).unwrap_or_default();
            let added = self.plan.add_alias(&mut known, name, draft);
            self.aliases.insert(key, known);
            added.map_err(|detail| self.fault(index, format!("aliases[{position}]"), detail, None))?;
        }
        Ok(())
    }

    fn name(&self, entry: &Entry) -> String {
        match entry.slot {
            Slot::Standing(id) => format!("price {id}"),
            Slot::Planned(row) => match self.made_by.get(&row) {
                Some(index) => format!("prices[{index}] published with it"),
                None => "the continued price".to_owned(),
            },
        }
    }

    fn fault(
        &self,
        index: usize,
        path: impl Into<String>,
        detail: impl Into<String>,
        slot: Option<Slot>,
    ) -> PriceFault {
        let standing = |row| self.plan.superseded.iter().find(|(_, by)| *by == row).map(|(id, _)| *id);
        let conflicts_with = slot.and_then(|slot| match slot {
            Slot::Standing(id) => Some(id),
            Slot::Planned(row) => standing(row),
        });
        PriceFault { index, path: path.into(), detail: detail.into(), conflicts_with }
    }
}

fn of_model(left: &PriceDraft, right: &PriceDraft) -> bool {
    left.model == right.model && left.provider == right.provider
}

/// Where the prices of a key are, and when they are valid.
fn of_key(entries: &[Entry], key: &str) -> impl Iterator<Item = (usize, Interval)> + Clone {
    let same_key = move |(_, entry): &(usize, &Entry)| entry.draft.conditions_key == key;
    entries.iter().enumerate().filter(same_key).map(|(at, entry)| (at, entry.interval()))
}

/// What a name means for some time.
struct Meaning {
    alias: ModelAlias,
    /// Its row in the plan; without one it stands.
    planned: Option<usize>,
}

impl Meaning {
    const fn interval(&self) -> Interval {
        (self.alias.valid_from, self.alias.valid_to)
    }
}

impl Plan {
    /// Standing aliases as they go on: up to where the name gets another meaning.
    pub fn ended_aliases(&self) -> impl Iterator<Item = &ModelAlias> {
        let copied = |copy: &ModelAlias, of: &ModelAlias| {
            (&copy.provider, &copy.alias, copy.valid_from) == (&of.provider, &of.alias, of.valid_from)
        };
        self.aliases.iter().filter(move |alias| self.superseded_aliases.iter().any(|of| copied(alias, of)))
    }

    /// Gives a name to a price's model while the price is valid, whatever open-ended meaning it had until then.
    fn add_alias(&mut self, known: &mut Vec<Meaning>, name: &str, price: &PriceDraft) -> Result<(), String> {
        let (start, end) = alias_interval(known, price);
        let other = |meaning: &Meaning| {
            meaning.alias.model != price.model && intervals_meet(meaning.interval(), (start, end))
        };
        let others: Vec<usize> = (0..known.len()).filter(|at| other(&known[*at])).collect();
        let resumed = match others[..] {
            [] => None,
            [at] if known[at].alias.valid_to.is_none() && known[at].alias.valid_from < start => {
                self.cut_alias(&mut known[at], start);
                end.map(|end| ModelAlias { valid_from: end, valid_to: None, ..known[at].alias.clone() })
            }
            [at, ..] => return Err(collision(&known[at].alias)),
        };
        let added = uncovered(known, (start, end)).into_iter().map(|(valid_from, valid_to)| ModelAlias {
            provider: price.provider.clone(),
            alias: name.to_owned(),
            model: price.model.clone(),
            valid_from,
            valid_to,
            inherited: false,
        });
        for alias in added.chain(resumed).collect::<Vec<_>>() {
            known.push(Meaning { alias: alias.clone(), planned: Some(self.aliases.len()) });
            self.aliases.push(alias);
        }
        Ok(())
    }

    /// Ends an open alias where the name gets another meaning.
    fn cut_alias(&mut self, meaning: &mut Meaning, start: DateTime<Utc>) {
        if let Some(row) = meaning.planned {
            self.aliases[row].valid_to = Some(start);
        } else {
            self.superseded_aliases.push(meaning.alias.clone());
            meaning.planned = Some(self.aliases.len());
            self.aliases.push(ModelAlias { valid_to: Some(start), ..meaning.alias.clone() });
        }
        meaning.alias.valid_to = Some(start);
    }
}

/// For how long a price gives a name to its model. Where the model has the name already when the price starts, and another
/// takes it over later, it is up to there: the price comes again, or with another rate.
fn alias_interval(known: &[Meaning], price: &PriceDraft) -> Interval {
    let (start, end) = (price.valid_from, price.valid_to);
    let held = known.iter().find(|meaning| {
        meaning.alias.model == price.model && covers(meaning.alias.valid_from, meaning.alias.valid_to, start)
    });
    let moved = |held: &Meaning| {
        let later = known.iter().filter(|meaning| meaning.alias.model != price.model);
        let later =
            later.map(|meaning| meaning.alias.valid_from).filter(|from| *from > held.alias.valid_from);
        later.min()
    };
    let moved = held.and_then(moved);
    (start, end.into_iter().chain(moved).min())
}

fn collision(other: &ModelAlias) -> String {
    let until = other.valid_to.map_or_else(|| "on".to_owned(), |end| format!("to {end}"));
    format!(
        "`{}` means `{}` from {} {until}; only an open-ended meaning that starts earlier is ended by a new one, so let \
         the price start later, or end that alias first",
        other.alias, other.model, other.valid_from
    )
}

/// What ends with the prices of a model: of its aliases, those to supersede, and copies of them up to the end of the last
/// price (`None` where no price is left).
pub fn end_aliases(
    aliases: Vec<ModelAlias>,
    last_end: Option<DateTime<Utc>>,
) -> (Vec<ModelAlias>, Vec<ModelAlias>) {
    let outlives =
        |alias: &ModelAlias| last_end.is_none_or(|last| alias.valid_to.is_none_or(|end| last < end));
    let superseded: Vec<ModelAlias> = aliases.into_iter().filter(outlives).collect();
    let copies = superseded.iter().filter_map(|alias| {
        let end = last_end.filter(|last| alias.valid_from < *last)?;
        Some(ModelAlias { valid_to: Some(end), ..alias.clone() })
    });
    let copies = copies.collect();
    (superseded, copies)
}

/// The parts of an interval that no alias covers.
fn uncovered(known: &[Meaning], (start, end): Interval) -> Vec<Interval> {
    let mut spans: Vec<_> = known.iter().map(Meaning::interval).collect();
    spans.sort_unstable_by_key(|(from, _)| *from);
    let mut free = Vec::new();
    let mut cursor = start;
    for (from, to) in spans {
        if end.is_some_and(|end| from >= end) {
            break;
        }
        if to.is_some_and(|to| to <= cursor) {
            continue;
        }
        if cursor < from {
            free.push((cursor, Some(from)));
        }
        match to {
            Some(to) => cursor = to,
            None => return free,
        }
    }
    if end.is_none_or(|end| cursor < end) {
        free.push((cursor, end));
    }
    free
}

#[cfg(test)]
mod tests;
