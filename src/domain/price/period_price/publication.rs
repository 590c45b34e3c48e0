//! What publishing period prices does to those that stand: pure, so that a dry run and the real one cannot differ.
//!
//! As with prices: a new one supersedes the one of its name in whose validity it lies, which is copied, ending where the new
//! one starts, and goes on after it where the new one ends earlier; where another is announced to follow, one without an end
//! is up to there, and where one in force follows, or an earlier one comes back later, as after a promotion, it is refused.
//! Every other overlap of a name is refused, and so is a price that would count usage or tasks that one of another name
//! counts at the same time.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use super::PeriodDraft;
use super::quotation::{NewPeriodPrice, PeriodFault};
use crate::domain::ids::PeriodPriceId;
use crate::domain::price::succession::{Fit, advice, checked, end_of, fit, said_by};
use crate::domain::price::{Interval, covers, intervals_meet};

/// What one means that starts just after another, as hours are counted by the price that is valid when they begin.
const JUST_AFTER: &str = " (usage of the hour in which it starts stays with that one)";

/// Where a period price is kept, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// It stands already.
    Standing(PeriodPriceId),
    /// It is the row of the plan at this position.
    Planned(usize),
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Rows to add.
    pub rows: Vec<PeriodDraft>,
    /// Standing ones to supersede, each with the position of the row that takes its place.
    pub superseded: Vec<(PeriodPriceId, usize)>,
    /// Where each published one is, in the order given; a standing one said the same already.
    pub published: Vec<Slot>,
}

/// What a book has had.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// All that stand.
    pub standing: Vec<(PeriodPriceId, PeriodDraft)>,
    /// Those that do not stand any more, as they were once published.
    pub published: Vec<PeriodDraft>,
    /// Those that stand of which it is certain that they were published with their end.
    pub with_end: HashSet<PeriodPriceId>,
}

/// Plans the publication into one book at a time. The order of the new ones does not matter.
///
/// # Errors
/// Every [`PeriodFault`]; then nothing is to be written.
pub fn plan(known: Known, new: &[NewPeriodPrice], now: DateTime<Utc>) -> Result<Plan, Vec<PeriodFault>> {
    let Known { standing, published, with_end } = known;
    let drafts = checked(new, NewPeriodPrice::check, |draft| draft.valid_from)?;
    let mut faults = Vec::new();
    let entries =
        standing.into_iter().map(|(id, draft)| Entry { slot: Slot::Standing(id), was: Some(id), draft });
    let entries = entries.collect();
    let mut planner = Planner { now, list: &drafts, published, with_end, entries, plan: Plan::default() };
    planner.plan.published = vec![Slot::Planned(0); new.len()];
    for (index, draft) in &drafts {
        match planner.place(*index, draft.clone()) {
            Ok(slot) => planner.plan.published[*index] = slot,
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(planner.plan) } else { Err(faults) }
}

struct Entry {
    slot: Slot,
    /// The standing price that it is, or continues.
    was: Option<PeriodPriceId>,
    draft: PeriodDraft,
}

struct Planner<'a> {
    now: DateTime<Utc>,
    /// All that is published now.
    list: &'a [(usize, PeriodDraft)],
    /// What does not stand any more, as it was published.
    published: Vec<PeriodDraft>,
    /// What was certainly published with its end.
    with_end: HashSet<PeriodPriceId>,
    entries: Vec<Entry>,
    plan: Plan,
}

impl Planner<'_> {
    fn place(&mut self, index: usize, draft: PeriodDraft) -> Result<Slot, PeriodFault> {
        let of_name = || self.entries.iter().enumerate().filter(|(_, entry)| entry.draft.name == draft.name);
        let intervals = || of_name().map(|(at, entry)| (at, interval(&entry.draft)));
        let scheme = |at: usize| &self.entries[at].draft.scheme;
        let both = |left: usize, right: usize| scheme(left) == scheme(right);
        let same = |there: usize| *scheme(there) == draft.scheme;
        let known = |others: &[usize]| {
            self.was_published(&draft)
                || others.iter().all(|there| self.is_in_list(&self.entries[*there].draft))
        };
        let with_end = |there: usize| matches!(self.entries[there].slot, Slot::Standing(id) if self.with_end.contains(&id));
        let said = said_by(&intervals(), interval(&draft), self.now, both, same, with_end, known);
        if let Some((there, _)) = said {
            return Ok(self.entries[there].slot);
        }
        let valid_to = end_of(&intervals(), interval(&draft), self.now, both);
        let fit = fit(intervals(), (draft.valid_from, valid_to));
        let draft = PeriodDraft { valid_to, ..draft };
        self.refuse_double_counting(index, &draft)?;
        match fit {
            Fit::Free => {}
            Fit::Within(at) => {
                let (old, was) = (self.entries[at].draft.clone(), self.entries[at].was);
                self.cut(at, draft.valid_from);
                if let Some(end) = draft.valid_to.filter(|end| old.valid_to != Some(*end)) {
                    self.add(PeriodDraft { valid_from: end, ..old }, was);
                }
            }
            Fit::Collides(at) => {
                let entry = &self.entries[at];
                let of_name = self.entries.iter().filter(|entry| entry.draft.name == draft.name);
                let standing = of_name.map(|entry| ((), interval(&entry.draft)));
                let advice = advice(standing, interval(&entry.draft), interval(&draft), self.now, JUST_AFTER);
                let detail = format!("{} of the same name {advice}", name(entry));
                return Err(fault(index, "valid_from", detail, entry));
            }
        }
        Ok(self.add(draft, None))
    }

    /// Whether this very price was published once.
    fn was_published(&self, draft: &PeriodDraft) -> bool {
        self.published.iter().any(|was| {
            interval(was) == interval(draft) && was.name == draft.name && was.scheme == draft.scheme
        })
    }

    /// Whether one that stands is what those that are published now say for its start: the one of them that takes the
    /// others' place there.
    fn is_in_list(&self, there: &PeriodDraft) -> bool {
        let drafts = self.list.iter().map(|(_, new)| new);
        let at_start = drafts
            .filter(|new| covers(new.valid_from, new.valid_to, there.valid_from) && new.name == there.name);
        at_start.max_by_key(|new| new.valid_from).is_some_and(|new| new.scheme == there.scheme)
    }

    /// No two prices of different names may count the same usage or the same task at the same time.
    fn refuse_double_counting(&self, index: usize, draft: &PeriodDraft) -> Result<(), PeriodFault> {
        let both = self.entries.iter().find(|entry| {
            entry.draft.name != draft.name
                && intervals_meet(interval(&entry.draft), interval(draft))
                && entry.draft.scheme.meets(&draft.scheme)
        });
        let Some(entry) = both else { return Ok(()) };
        let field = if draft.scheme.scope().is_some() { "model" } else { "task_type" };
        let detail = format!(
            "both this and {} would count the same at the same time; end that one first, or narrow one of them",
            name(entry)
        );
        Err(fault(index, field, detail, entry))
    }

    /// Ends a price where a new one starts.
    fn cut(&mut self, at: usize, end: DateTime<Utc>) {
        let entry = &mut self.entries[at];
        entry.draft.valid_to = Some(end);
        match entry.slot {
            Slot::Planned(row) => self.plan.rows[row].valid_to = Some(end),
            Slot::Standing(id) => {
                let row = self.plan.rows.len();
                self.plan.rows.push(entry.draft.clone());
                self.plan.superseded.push((id, row));
                entry.slot = Slot::Planned(row);
            }
        }
    }

    fn add(&mut self, draft: PeriodDraft, was: Option<PeriodPriceId>) -> Slot {
        let slot = Slot::Planned(self.plan.rows.len());
        self.plan.rows.push(draft.clone());
        self.entries.push(Entry { slot, was, draft });
        slot
    }
}

const fn interval(draft: &PeriodDraft) -> Interval {
    (draft.valid_from, draft.valid_to)
}

fn name(entry: &Entry) -> String {
    match entry.was {
        Some(id) => format!("period price {id} (`{}`)", entry.draft.name),
        None => format!("`{}`, published with it,", entry.draft.name),
    }
}

fn fault(index: usize, path: &str, detail: String, entry: &Entry) -> PeriodFault {
    PeriodFault { index, path: path.to_owned(), detail, conflicts_with: entry.was }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn new(name: &str, model: &str, from: u32, to: Option<u32>, factor: &str) -> NewPeriodPrice {
        let at = |day: u32| format!("2026-01-{day:02}T00:00:00Z");
        serde_json::from_value(json!({"name": name, "kind": "volume", "model": model, "classes": ["input"],
            "tiers": [{"factor": factor}], "valid_from": at(from), "valid_to": to.map(at)}))
        .unwrap()
    }

    fn on_day(day: u32) -> DateTime<Utc> {
        format!("2026-01-{day:02}T00:00:00Z").parse().unwrap()
    }

    /// A publication before everything that is on record.
    fn plan(
        standing: Vec<(PeriodPriceId, PeriodDraft)>,
        new: &[NewPeriodPrice],
    ) -> Result<Plan, Vec<PeriodFault>> {
        super::plan(Known { standing, ..Known::default() }, new, on_day(1))
    }

    fn standing(id: i64, price: &NewPeriodPrice) -> (PeriodPriceId, PeriodDraft) {
        (PeriodPriceId(id), price.check(0).unwrap())
    }

    fn days(plan: &Plan) -> Vec<String> {
        let day = |at: DateTime<Utc>| at.format("%d").to_string();
        let mut rows: Vec<String> = plan
            .rows
            .iter()
            .map(|row| format!("{}-{}", day(row.valid_from), row.valid_to.map(day).unwrap_or_default()))
            .collect();
        rows.sort();
        rows
    }

    #[test]
    fn a_successor_continues_its_open_predecessor_up_to_its_start() {
        let stood = new("a", "gpt-5", 1, None, "0.9");
        let open = plan(vec![standing(7, &stood)], &[new("a", "gpt-5", 10, None, "0.8")]).unwrap();
        assert_eq!(days(&open), ["01-10", "10-"]);
        assert_eq!(
            (open.superseded.as_slice(), open.published.as_slice()),
            ([(PeriodPriceId(7), 0)].as_slice(), [Slot::Planned(1)].as_slice())
        );
        let promotion = plan(vec![standing(7, &stood)], &[new("a", "gpt-5", 10, Some(20), "0.8")]).unwrap();
        assert_eq!(days(&promotion), ["01-10", "10-20", "20-"]);
        let same = plan(vec![standing(7, &stood)], std::slice::from_ref(&stood)).unwrap();
        assert_eq!((same.rows.len(), same.published[0]), (0, Slot::Standing(PeriodPriceId(7))));
    }

    #[test]
    fn a_nearer_price_is_valid_up_to_the_announced_one() {
        let stands = || {
            vec![
                standing(7, &new("a", "gpt-5", 1, Some(20), "0.9")),
                standing(8, &new("a", "gpt-5", 20, None, "0.8")),
            ]
        };
        for nearer in [new("a", "gpt-5", 10, None, "0.7"), new("a", "gpt-5", 10, Some(20), "0.7")] {
            let nearer = plan(stands(), &[nearer]).unwrap();
            assert_eq!(days(&nearer), ["01-10", "10-20"]);
            assert_eq!(nearer.superseded, [(PeriodPriceId(7), 0)]);
        }
        let promotion = plan(stands(), &[new("a", "gpt-5", 10, Some(15), "0.7")]).unwrap();
        assert_eq!(days(&promotion), ["01-10", "10-15", "15-20"]);
    }

    /// What stands after a publication; the ids of what it adds go on from `next`.
    fn after(
        mut stands: Vec<(PeriodPriceId, PeriodDraft)>,
        new: &[NewPeriodPrice],
        next: i64,
    ) -> Vec<(PeriodPriceId, PeriodDraft)> {
        let plan = plan(stands.clone(), new).unwrap();
        stands.retain(|(id, _)| plan.superseded.iter().all(|(old, _)| old != id));
        stands.extend((next..).map(PeriodPriceId).zip(plan.rows));
        stands
    }

    #[test]
    fn a_lasting_price_does_not_end_with_a_promotion() {
        let stands = after(vec![], &[new("a", "gpt-5", 1, None, "0.9")], 1);
        let stands = after(stands, &[new("a", "gpt-5", 10, Some(20), "0.7")], 2);
        let refused = plan(stands.clone(), &[new("a", "gpt-5", 15, None, "0.8")]).unwrap_err();
        assert!(refused[0].detail.contains("a valid_to of 2026-01-20 00:00:00 UTC"), "{}", refused[0].detail);
        // As it says: up to there, and lasting once what goes on then is withdrawn.
        let mut stands = after(stands, &[new("a", "gpt-5", 15, Some(20), "0.8")], 5);
        let refused = plan(stands.clone(), &[new("a", "gpt-5", 17, None, "0.6")]).unwrap_err();
        assert!(refused[0].detail.contains("a valid_to of 2026-01-20 00:00:00 UTC"), "{}", refused[0].detail);
        stands.retain(|(_, draft)| draft.valid_to.is_some());
        assert_eq!(days(&plan(stands, &[new("a", "gpt-5", 20, None, "0.8")]).unwrap()), ["20-"]);
    }

    #[test]
    fn the_same_again_changes_nothing_after_others_either() {
        let first = [new("a", "gpt-5", 1, Some(20), "0.9"), new("a", "gpt-5", 20, None, "0.8")];
        let stands = after(vec![], &first, 1);
        // A list without dates starts now, up to what is announced.
        let listed = plan(stands.clone(), &[new("a", "gpt-5", 5, None, "0.9")]).unwrap();
        assert_eq!((listed.rows.len(), listed.published[0]), (0, Slot::Standing(PeriodPriceId(1))));
        let between = [new("a", "gpt-5", 10, None, "0.7")];
        let stands = after(stands, &between, 3);
        let published = first.clone().map(|price| price.check(0).unwrap());
        for again in [first.as_slice(), between.as_slice()] {
            let (standing, published) = (stands.clone(), published.to_vec());
            let known = Known { standing, published, ..Known::default() };
            let again = super::plan(known, again, on_day(25));
            assert_eq!(again.unwrap().rows, []);
        }
        // A list that never was published is no such thing, whatever it has in common.
        let corrected = plan(stands, &first).unwrap_err();
        assert_eq!((corrected.len(), corrected[0].path.as_str()), (1, "valid_from"));
    }

    #[test]
    fn a_list_with_promotions_can_be_published_again() {
        let list = [
            new("a", "gpt-5", 1, Some(20), "0.9"),
            new("a", "gpt-5", 5, Some(10), "0.8"),
            new("a", "gpt-5", 20, None, "0.7"),
        ];
        let stands = after(vec![], &list, 1);
        assert_eq!(plan(stands, &list).unwrap().rows, []);
    }

    #[test]
    fn a_list_that_makes_a_promotion_last_is_not_unchanged() {
        let stands = after(vec![], &[new("a", "gpt-5", 1, None, "0.9")], 1);
        let stands = after(stands, &[new("a", "gpt-5", 5, Some(10), "0.8")], 2);
        let lasting = [new("a", "gpt-5", 1, None, "0.9"), new("a", "gpt-5", 5, None, "0.8")];
        let refused = plan(stands.clone(), &lasting).unwrap_err();
        assert!(refused.iter().any(|fault| fault.index == 1), "{refused:?}");
        let stands = after(stands, &[new("a", "gpt-5", 15, None, "0.7")], 6);
        let extended = [
            new("a", "gpt-5", 1, Some(15), "0.9"),
            new("a", "gpt-5", 5, Some(15), "0.8"),
            new("a", "gpt-5", 15, None, "0.7"),
        ];
        let refused = plan(stands, &extended).unwrap_err();
        assert!(refused.iter().any(|fault| fault.index == 1), "{refused:?}");
    }

    #[test]
    fn a_price_with_an_end_is_not_unchanged_by_one_that_lasts() {
        let open = [new("a", "gpt-5", 5, None, "0.7")];
        let ended = standing(1, &new("a", "gpt-5", 5, Some(10), "0.7"));
        let follower = standing(2, &new("a", "gpt-5", 10, None, "0.8"));
        let known = Known {
            standing: vec![ended, follower],
            with_end: HashSet::from([PeriodPriceId(1)]),
            ..Known::default()
        };
        let refused = super::plan(known.clone(), &open, on_day(20)).unwrap_err();
        assert_eq!(
            (refused[0].path.as_str(), refused[0].conflicts_with),
            ("valid_from", Some(PeriodPriceId(1)))
        );
        let both = [new("a", "gpt-5", 5, None, "0.7"), new("a", "gpt-5", 10, None, "0.8")];
        assert_eq!(super::plan(known, &both, on_day(20)).unwrap().rows, []);
    }

    #[test]
    fn a_lasting_price_is_not_lost_where_another_is_in_force_or_an_earlier_one_comes_back() {
        let open = [new("a", "gpt-5", 5, None, "0.7")];
        let stands = after(vec![], &[new("a", "gpt-5", 1, None, "0.9")], 1);
        let promotion = after(stands, &[new("a", "gpt-5", 10, Some(20), "0.8")], 2);
        let refused = plan(promotion, &open).unwrap_err();
        assert!(refused[0].detail.contains("a valid_to of 2026-01-10 00:00:00 UTC"), "{}", refused[0].detail);
        let later = [new("a", "gpt-5", 1, Some(10), "0.9"), new("a", "gpt-5", 10, None, "0.8")];
        let stands = after(vec![], &later, 1);
        let known = || Known { standing: stands.clone(), ..Known::default() };
        let publish = |day| super::plan(known(), &open, on_day(day));
        assert_eq!(days(&publish(9).unwrap()), ["01-05", "05-10"]);
        let refused = publish(10).unwrap_err();
        assert!(
            refused[0].detail.ends_with(
                "00:00:00.000001 UTC on too (usage of the hour in which it starts stays with that one)"
            ),
            "{}",
            refused[0].detail
        );
    }

    #[test]
    fn other_overlaps_are_refused_and_name_what_they_meet() {
        let stood = || vec![standing(7, &new("a", "gpt-5*", 10, None, "0.9"))];
        for (price, path) in [
            (new("a", "gpt-5*", 10, None, "0.8"), "valid_from"),
            (new("a", "gpt-5*", 5, None, "0.8"), "valid_from"),
            (new("b", "gpt-5-mini", 12, None, "0.8"), "model"),
            (new("b", "*", 1, Some(11), "0.8"), "model"),
        ] {
            let faults = plan(stood(), &[price]).unwrap_err();
            assert_eq!((faults[0].path.as_str(), faults[0].conflicts_with), (path, Some(PeriodPriceId(7))));
            assert!(faults[0].detail.contains("period price 7 (`a`)"), "{}", faults[0].detail);
        }
        plan(stood(), &[new("b", "gpt-*", 1, Some(10), "0.8"), new("c", "claude-*", 1, None, "1")]).unwrap();
        let both =
            plan(vec![], &[new("b", "*", 1, None, "0.8"), new("c", "claude-*", 1, None, "1")]).unwrap_err();
        assert_eq!((both[0].index, both[0].conflicts_with), (1, None));
        // The one whose place is taken is still there before.
        let faults =
            plan(stood(), &[new("a", "gpt-5*", 20, None, "0.8"), new("b", "gpt-5", 12, Some(15), "1")])
                .unwrap_err();
        assert_eq!(faults[0].conflicts_with, Some(PeriodPriceId(7)));
    }
}
