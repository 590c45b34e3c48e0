//! What publishing prices does to those that stand: pure, so that a dry run and the real one cannot differ.
//!
//! A new price supersedes an open-ended predecessor of the same key: the predecessor is copied, ending where the new one
//! starts, and goes on after the new one where that has an end. Every other overlap is refused, and so is a price that
//! would leave it open which of two applies. A price that gives a name to another model does the same to the alias.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use super::quotation::{NewPrice, PriceDraft, PriceFault};
use super::{ModelAlias, covers, intervals_meet};
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

/// Plans the publication of prices in one book, of which all standing prices and own aliases of the same models are given.
/// The order of the new prices does not matter.
///
/// # Errors
/// Every [`PriceFault`]; then nothing is to be written.
pub fn plan(
    standing: Vec<Standing>,
    aliases: Vec<ModelAlias>,
    new: &[NewPrice],
) -> Result<Plan, Vec<PriceFault>> {
    let mut faults = Vec::new();
    let mut drafts = Vec::with_capacity(new.len());
    for (index, price) in new.iter().enumerate() {
        match price.check(index) {
            Ok(draft) => drafts.push((index, draft)),
            Err(found) => faults.extend(found),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    drafts.sort_by_key(|(index, draft)| (draft.valid_from, *index));

    let mut planner = Planner::new(standing, aliases, new.len());
    for (index, draft) in drafts {
        if let Err(fault) = planner.add(index, draft) {
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
    const fn interval(&self) -> (DateTime<Utc>, Option<DateTime<Utc>>) {
        (self.draft.valid_from, self.draft.valid_to)
    }
}

struct Planner {
    /// By provider and model.
    entries: HashMap<(String, String), Vec<Entry>>,
    /// By provider and alias.
    aliases: HashMap<(String, String), Vec<Meaning>>,
    /// Which published price made a planned row, for messages.
    made_by: HashMap<usize, usize>,
    plan: Plan,
}

impl Planner {
    fn new(standing: Vec<Standing>, aliases: Vec<ModelAlias>, published: usize) -> Self {
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
        let plan =
            Plan { published: vec![Published::Unchanged(Slot::Planned(0)); published], ..Plan::default() };
        Self { entries, aliases: meanings, made_by: HashMap::new(), plan }
    }

    fn add(&mut self, index: usize, draft: PriceDraft) -> Result<(), PriceFault> {
        self.add_aliases(index, &draft)?;
        let key = (draft.provider.clone(), draft.model.clone());
        let mut entries = self.entries.remove(&key).unwrap_or_default();
        let outcome = self.place(index, draft, &mut entries);
        self.entries.insert(key, entries);
        self.plan.published[index] = outcome?;
        Ok(())
    }

    fn place(
        &mut self,
        index: usize,
        draft: PriceDraft,
        entries: &mut Vec<Entry>,
    ) -> Result<Published, PriceFault> {
        let interval = (draft.valid_from, draft.valid_to);
        let same_key = |entry: &Entry| entry.draft.conditions_key == draft.conditions_key;
        let overlapping: Vec<usize> = (0..entries.len())
            .filter(|at| same_key(&entries[*at]) && intervals_meet(entries[*at].interval(), interval))
            .collect();
        let stands = overlapping.iter().find(|at| stands_already(&entries[**at].draft, &draft, entries));
        if let Some(at) = stands {
            return Ok(Published::Unchanged(entries[*at].slot));
        }
        for entry in
            entries.iter().filter(|entry| !same_key(entry) && intervals_meet(entry.interval(), interval))
        {
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
        match overlapping[..] {
            [] => {}
            [at] if entries[at].draft.valid_to.is_none()
                && entries[at].draft.valid_from < draft.valid_from =>
            {
                self.cut(&mut entries[at], interval);
                if let Some(end) = draft.valid_to {
                    let resumed = PriceDraft { valid_from: end, valid_to: None, ..entries[at].draft.clone() };
                    let slot = self.row(index, resumed.clone());
                    entries.push(Entry { slot, draft: resumed });
                }
            }
            [at, ..] => return Err(self.overlap(index, &entries[at])),
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

    /// Ends an open price where a new one starts.
    fn cut(&mut self, entry: &mut Entry, (start, _): (DateTime<Utc>, Option<DateTime<Utc>>)) {
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

    fn overlap(&self, index: usize, entry: &Entry) -> PriceFault {
        let until = entry.draft.valid_to.map_or_else(|| "on".to_owned(), |end| format!("to {end}"));
        let detail = format!(
            "{} of the same model and conditions is valid from {} {until}; only an open-ended price that starts \
             earlier is continued, so give this one a valid_to or close the other first",
            self.name(entry),
            entry.draft.valid_from,
        );
        self.fault(index, "valid_from", detail, Some(entry.slot))
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

/// Whether a standing price says what a new one says: the same terms in the same interval; or both open and standing
/// since earlier; or open as published, but continued up to its successor.
fn stands_already(there: &PriceDraft, new: &PriceDraft, entries: &[Entry]) -> bool {
    let same_start = there.valid_from == new.valid_from;
    let nothing_new = match (there.valid_to, new.valid_to) {
        (None, None) => there.valid_from <= new.valid_from,
        (Some(end), None) => {
            let successor = |entry: &Entry| {
                entry.draft.conditions_key == there.conditions_key && entry.draft.valid_from == end
            };
            same_start && entries.iter().any(successor)
        }
        (ends, new_end) => same_start && ends == new_end,
    };
    nothing_new && there.same_terms(new)
}

/// What a name means for some time.
struct Meaning {
    alias: ModelAlias,
    /// Its row in the plan; without one it stands.
    planned: Option<usize>,
}

impl Meaning {
    const fn interval(&self) -> (DateTime<Utc>, Option<DateTime<Utc>>) {
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
fn alias_interval(known: &[Meaning], price: &PriceDraft) -> (DateTime<Utc>, Option<DateTime<Utc>>) {
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
fn uncovered(
    known: &[Meaning],
    (start, end): (DateTime<Utc>, Option<DateTime<Utc>>),
) -> Vec<(DateTime<Utc>, Option<DateTime<Utc>>)> {
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
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::price::PriceConditions;
    use crate::domain::price::quotation::Quote;

    fn at(day: u32) -> DateTime<Utc> {
        let start: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
        start + chrono::TimeDelta::days(i64::from(day))
    }

    fn price(from: u32, to: Option<u32>, input: &str) -> NewPrice {
        NewPrice {
            provider: "openai".to_owned(),
            model: "gpt-5".to_owned(),
            aliases: Vec::new(),
            conditions: PriceConditions::default(),
            per: Some(1_000_000),
            rates: BTreeMap::from([("input".to_owned(), Quote(input.to_owned()))]),
            fees: BTreeMap::new(),
            multiplier: None,
            valid_from: at(from),
            valid_to: to.map(at),
            source: None,
            checked_at: None,
        }
    }

    fn standing(id: i64, price: &NewPrice) -> Standing {
        Standing { id: PriceId(id), draft: price.check(0).unwrap() }
    }

    fn intervals(plan: &Plan) -> Vec<(DateTime<Utc>, Option<DateTime<Utc>>, String)> {
        let mut rows: Vec<_> = plan
            .rows
            .iter()
            .map(|row| (row.valid_from, row.valid_to, row.rates.values().next().unwrap().quoted.to_string()))
            .collect();
        rows.sort();
        rows
    }

    #[test]
    fn a_successor_continues_its_open_predecessor_up_to_its_start() {
        let plan = plan(vec![standing(7, &price(0, None, "2"))], vec![], &[price(10, None, "1")]).unwrap();
        assert_eq!(intervals(&plan), [(at(0), Some(at(10)), "2".to_owned()), (at(10), None, "1".to_owned())]);
        assert_eq!(plan.superseded, [(PriceId(7), 0)]);
        let before = Some(standing(7, &price(0, None, "2")).draft.own_rates());
        assert_eq!(plan.published, [Published::Added { row: 1, before }]);
    }

    #[test]
    fn after_a_price_with_an_end_the_open_one_goes_on() {
        let plan =
            plan(vec![standing(7, &price(0, None, "2"))], vec![], &[price(10, Some(20), "1")]).unwrap();
        let expected = [
            (at(0), Some(at(10)), "2".into()),
            (at(10), Some(at(20)), "1".into()),
            (at(20), None, "2".into()),
        ];
        assert_eq!(intervals(&plan), expected);
    }

    #[test]
    fn the_same_price_again_changes_nothing() {
        let stands = || vec![standing(7, &price(0, None, "2"))];
        for again in [price(0, None, "2.0"), price(5, None, "2")] {
            let plan = plan(stands(), vec![], &[again]).unwrap();
            assert_eq!(plan.rows, []);
            assert_eq!(plan.published, [Published::Unchanged(Slot::Standing(PriceId(7)))]);
        }
        assert!(plan(stands(), vec![], &[price(0, Some(5), "2")]).is_err(), "an earlier end is a change");
    }

    #[test]
    fn a_history_without_ends_can_be_published_again() {
        let history =
            [price(0, None, "3"), price(10, None, "2"), price(20, None, "1"), price(30, Some(40), "9")];
        let rows = plan(vec![], vec![], &history).unwrap().rows;
        let stands =
            rows.into_iter().zip(1..).map(|(draft, id)| Standing { id: PriceId(id), draft }).collect();
        let again = plan(stands, vec![], &history).unwrap();
        assert_eq!(again.rows, []);
        let closed = vec![standing(7, &price(0, Some(5), "2"))];
        assert!(
            plan(closed, vec![], &[price(0, None, "2")]).is_err(),
            "what was closed does not open by itself"
        );
    }

    #[test]
    fn any_other_overlap_names_the_price_it_collides_with() {
        let refused =
            |stands: NewPrice, new: NewPrice| plan(vec![standing(7, &stands)], vec![], &[new]).unwrap_err();
        for (stands, new) in [
            (price(0, None, "2"), price(0, None, "1")),
            (price(5, None, "2"), price(0, None, "1")),
            (price(0, Some(10), "2"), price(5, None, "1")),
            (price(0, Some(10), "2"), price(5, Some(6), "1")),
        ] {
            let faults = refused(stands, new);
            assert_eq!(faults[0].conflicts_with, Some(PriceId(7)));
            assert_eq!((faults[0].path.as_str(), faults[0].index), ("valid_from", 0));
        }
        assert!(plan(vec![standing(7, &price(0, Some(10), "2"))], vec![], &[price(10, None, "1")]).is_ok());
    }

    #[test]
    fn a_whole_history_may_come_in_any_order() {
        let history = [price(20, None, "1"), price(0, None, "3"), price(10, None, "2")];
        let plan = plan(vec![], vec![], &history).unwrap();
        let expected = [
            (at(0), Some(at(10)), "3".into()),
            (at(10), Some(at(20)), "2".into()),
            (at(20), None, "1".into()),
        ];
        assert_eq!(intervals(&plan), expected);
        assert_eq!(plan.superseded, []);
    }

    #[test]
    fn an_ambiguous_price_is_refused_and_names_the_other() {
        let with = |conditions: PriceConditions| NewPrice { conditions, ..price(0, None, "2") };
        let context = |inclusive| PriceConditions {
            context_above: Some(200_000),
            context_inclusive: inclusive,
            ..PriceConditions::default()
        };
        let stands = vec![standing(7, &with(context(true)))];
        let faults = plan(stands.clone(), vec![], &[with(context(false))]).unwrap_err();
        assert_eq!(faults[0].path, "conditions");
        assert_eq!(faults[0].conflicts_with, Some(PriceId(7)));
        let together = plan(vec![], vec![], &[with(context(true)), with(context(false))]).unwrap_err();
        assert!(together[0].detail.contains("prices[0] published with it"), "{}", together[0]);
        assert!(plan(stands, vec![], &[price(0, None, "1")]).is_ok());
    }

    #[test]
    fn an_alias_has_one_meaning_and_covers_what_its_prices_cover() {
        let alias = |model: &str, from, to: Option<u32>| ModelAlias {
            provider: "openai".to_owned(),
            alias: "latest".to_owned(),
            model: model.to_owned(),
            valid_from: at(from),
            valid_to: to.map(at),
            inherited: false,
        };
        let named = |from, to| NewPrice { aliases: vec!["latest".to_owned()], ..price(from, to, "2") };
        let plan_of = |known, new: &[NewPrice]| plan(vec![], known, new).map(|plan| plan.aliases);
        assert_eq!(plan_of(vec![], &[named(0, None)]).unwrap(), [alias("gpt-5", 0, None)]);
        assert_eq!(
            plan_of(vec![alias("gpt-5", 5, None)], &[named(0, None)]).unwrap(),
            [alias("gpt-5", 0, Some(5))]
        );
        assert_eq!(plan_of(vec![alias("gpt-5", 0, None)], &[named(3, None)]).unwrap(), []);
        assert_eq!(
            plan_of(vec![alias("gpt-4", 0, Some(3))], &[named(3, None)]).unwrap(),
            [alias("gpt-5", 3, None)]
        );
        // A later meaning ends an open one; where it has an end, the other goes on.
        assert_eq!(
            plan_of(vec![alias("gpt-4", 0, None)], &[named(3, None)]).unwrap(),
            [alias("gpt-4", 0, Some(3)), alias("gpt-5", 3, None)]
        );
        let moved = plan(vec![], vec![alias("gpt-4", 0, None)], &[named(3, Some(5))]).unwrap();
        assert_eq!(moved.superseded_aliases, [alias("gpt-4", 0, None)]);
        assert_eq!(moved.ended_aliases().collect::<Vec<_>>(), [&alias("gpt-4", 0, Some(3))]);
        assert_eq!(
            moved.aliases,
            [alias("gpt-4", 0, Some(3)), alias("gpt-5", 3, Some(5)), alias("gpt-4", 5, None)]
        );
        // The price comes again after its name has moved on.
        let gone = || vec![alias("gpt-5", 0, Some(3)), alias("gpt-6", 3, None)];
        for again in [named(0, None), named(2, None), named(0, Some(9))] {
            assert_eq!(plan_of(gone(), &[again]).unwrap(), []);
        }
        assert_eq!(
            plan_of(gone(), &[named(4, None)]).unwrap(),
            [alias("gpt-6", 3, Some(4)), alias("gpt-5", 4, None)]
        );
        // Anything else has no place.
        for known in [alias("gpt-4", 3, None), alias("gpt-4", 0, Some(9)), alias("gpt-4", 5, Some(9))] {
            let fault = plan_of(vec![known], &[named(3, None)]).unwrap_err().remove(0);
            assert_eq!(fault.path, "aliases[0]");
            assert!(fault.detail.contains("gpt-4"));
        }
    }

    #[test]
    fn a_name_moves_within_one_publication() {
        let of = |model: &str, from| NewPrice {
            model: model.to_owned(),
            aliases: vec!["latest".to_owned()],
            ..price(from, None, "2")
        };
        let plan = plan(vec![], vec![], &[of("gpt-5", 3), of("gpt-4", 0)]).unwrap();
        let meanings: Vec<_> = plan
            .aliases
            .iter()
            .map(|alias| (alias.model.as_str(), alias.valid_from, alias.valid_to))
            .collect();
        assert_eq!(meanings, [("gpt-4", at(0), Some(at(3))), ("gpt-5", at(3), None)]);
        assert_eq!(plan.superseded_aliases, []);
    }

    #[test]
    fn aliases_end_with_the_last_price() {
        let alias = |from, to: Option<u32>| ModelAlias {
            provider: "openai".to_owned(),
            alias: "latest".to_owned(),
            model: "gpt-5".to_owned(),
            valid_from: at(from),
            valid_to: to.map(at),
            inherited: false,
        };
        let known = || vec![alias(0, Some(5)), alias(5, Some(9)), alias(9, Some(12)), alias(20, None)];
        let (superseded, copies) = end_aliases(known(), Some(at(9)));
        assert_eq!((superseded, copies), (known()[2..].to_vec(), vec![]));
        let (superseded, copies) = end_aliases(known(), Some(at(7)));
        assert_eq!((superseded, copies), (known()[1..].to_vec(), vec![alias(5, Some(7))]));
        assert_eq!(end_aliases(known(), None), (known(), vec![]));
    }

    proptest! {
        /// Whatever is published one after the other, refused or not: at most one price of a key covers any instant, and
        /// what stood before the first new start is untouched.
        #[test]
        fn no_two_prices_of_a_key_ever_overlap(
            published in prop::collection::vec((0_u32..40, prop::option::of(1_u32..20), 1_u32..5), 1..12),
        ) {
            let mut stands: Vec<Standing> = Vec::new();
            let mut next_id = 1;
            for (from, length, rate) in published {
                let new = price(from, length.map(|days| from + days), &rate.to_string());
                let covered_before = |day: u32, stands: &[Standing]| {
                    stands.iter().filter(|s| covers(s.draft.valid_from, s.draft.valid_to, at(day))).count()
                };
                let before: Vec<usize> = (0..80).map(|day| covered_before(day, &stands)).collect();
                if let Ok(plan) = plan(stands.clone(), vec![], &[new]) {
                    stands.retain(|s| !plan.superseded.iter().any(|(id, _)| *id == s.id));
                    for draft in plan.rows {
                        stands.push(Standing { id: PriceId(next_id), draft });
                        next_id += 1;
                    }
                }
                for day in 0..80 {
                    let now = covered_before(day, &stands);
                    prop_assert!(now <= 1);
                    prop_assert!(now >= before[usize::try_from(day).unwrap()], "publishing never unprices");
                }
            }
        }

        /// Prices published together do not depend on their order.
        #[test]
        fn the_order_within_a_publication_does_not_matter(
            starts in prop::collection::btree_set(0_u32..100, 1..8),
            seed in any::<u64>(),
        ) {
            let ordered: Vec<NewPrice> =
                starts.iter().map(|start| price(*start, None, &(start + 1).to_string())).collect();
            let mut shuffled = ordered.clone();
            let turn = usize::try_from(seed % ordered.len() as u64).unwrap();
            shuffled.rotate_left(turn);
            let rows = |prices: &[NewPrice]| intervals(&plan(vec![], vec![], prices).unwrap());
            prop_assert_eq!(rows(&ordered), rows(&shuffled));
        }
    }
}
