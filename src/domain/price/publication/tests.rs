//! Prices that meet others: what supersedes what, and what is refused.

use std::collections::{BTreeMap, HashSet};

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

/// The day of a publication that does not look at what is in force already.
const EARLY: u32 = 0;

/// A publication before everything that is on record.
fn plan(
    standing: Vec<Standing>,
    aliases: Vec<ModelAlias>,
    new: &[NewPrice],
) -> Result<Plan, Vec<PriceFault>> {
    super::plan(Known { standing, aliases, ..Known::default() }, new, at(EARLY))
}

/// A book with no names but those of its models, and its publications on different days.
#[derive(Clone, Default)]
struct Book {
    known: Known,
    copies: Vec<PriceId>,
    next_id: i64,
}

impl Book {
    fn of(prices: &[NewPrice]) -> Self {
        let mut book = Self::default();
        book.publish(0, prices).unwrap();
        book
    }

    fn publish(&mut self, day: u32, new: &[NewPrice]) -> Result<Plan, Vec<PriceFault>> {
        let plan = super::plan(self.known.clone(), new, at(day))?;
        let first = self.next_id;
        let id_of = |row: usize| PriceId(first + i64::try_from(row).unwrap());
        for (old, row) in &plan.superseded {
            let there = self.known.standing.iter().position(|there| there.id == *old).unwrap();
            let gone = self.known.standing.remove(there);
            if !self.copies.contains(&gone.id) {
                self.known.published.push(gone.draft);
            }
            self.copies.push(id_of(*row));
        }
        let by_themselves: HashSet<usize> = plan
            .published
            .iter()
            .filter_map(|published| match published {
                Published::Added { row, .. } => Some(*row),
                Published::Unchanged(_) => None,
            })
            .collect();
        for (row, draft) in plan.rows.iter().enumerate() {
            if !by_themselves.contains(&row) {
                self.copies.push(id_of(row));
            } else if draft
                .valid_to
                .is_some_and(|end| end <= at(day) && plan.rows.iter().all(|other| other.valid_from != end))
            {
                self.known.with_end.insert(id_of(row));
            }
        }
        for (row, draft) in plan.rows.iter().enumerate() {
            self.known.standing.push(Standing { id: id_of(row), draft: draft.clone() });
        }
        self.next_id += i64::try_from(plan.rows.len()).unwrap();
        Ok(plan)
    }

    /// Days of start and end, and the rate, of what stands.
    fn shown(&self) -> Vec<(i64, Option<i64>, String)> {
        let day = |time: DateTime<Utc>| (time - at(0)).num_days();
        let mut rows: Vec<_> = self
            .known
            .standing
            .iter()
            .map(|there| &there.draft)
            .map(|draft| {
                let rate = draft.rates.values().next().unwrap().quoted.to_string();
                (day(draft.valid_from), draft.valid_to.map(day), rate)
            })
            .collect();
        rows.sort();
        rows
    }

    fn refuses(&mut self, day: u32, new: &NewPrice) -> PriceFault {
        let before = self.shown();
        let mut faults = self.publish(day, std::slice::from_ref(new)).unwrap_err();
        assert_eq!(before, self.shown());
        faults.remove(0)
    }

    fn unchanged_by(&mut self, day: u32, new: &[NewPrice]) {
        assert_eq!(self.publish(day, new).map(|plan| plan.rows), Ok(vec![]), "{:?}", self.shown());
    }
}

fn row(from: i64, to: impl Into<Option<i64>>, rate: &str) -> (i64, Option<i64>, String) {
    (from, to.into(), rate.to_owned())
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
    let plan = plan(vec![standing(7, &price(0, None, "2"))], vec![], &[price(10, Some(20), "1")]).unwrap();
    let expected =
        [(at(0), Some(at(10)), "2".into()), (at(10), Some(at(20)), "1".into()), (at(20), None, "2".into())];
    assert_eq!(intervals(&plan), expected);
}

#[test]
fn a_nearer_price_is_valid_up_to_the_announced_one() {
    let stands = || vec![standing(7, &price(0, Some(20), "2")), standing(8, &price(20, None, "3"))];
    for nearer in [price(10, None, "1"), price(10, Some(20), "1")] {
        let first = plan(stands(), vec![], std::slice::from_ref(&nearer)).unwrap();
        let expected = [(at(0), Some(at(10)), "2".to_owned()), (at(10), Some(at(20)), "1".to_owned())];
        assert_eq!((intervals(&first), &first.superseded), (expected.to_vec(), &vec![(PriceId(7), 0)]));
        assert!(matches!(first.published[0], Published::Added { row: 1, before: Some(_) }), "{first:?}");
        let rows = first.rows.into_iter().zip([PriceId(9), PriceId(10)]);
        let mut now: Vec<Standing> = rows.map(|(draft, id)| Standing { id, draft }).collect();
        now.push(standing(8, &price(20, None, "3")));
        let again = plan(now, vec![], &[nearer]).unwrap();
        assert_eq!(again.published, [Published::Unchanged(Slot::Standing(PriceId(10)))]);
    }
    let promotion = plan(stands(), vec![], &[price(10, Some(15), "1")]).unwrap();
    let expected = [
        (at(0), Some(at(10)), "2".into()),
        (at(10), Some(at(15)), "1".into()),
        (at(15), Some(at(20)), "2".into()),
    ];
    assert_eq!(intervals(&promotion), expected);
}

/// What stands after a publication; the ids of what it adds go on from `next`.
fn after(mut stands: Vec<Standing>, new: &[NewPrice], next: i64) -> Vec<Standing> {
    let plan = plan(stands.clone(), vec![], new).unwrap();
    stands.retain(|there| plan.superseded.iter().all(|(old, _)| *old != there.id));
    stands.extend((next..).zip(plan.rows).map(|(id, draft)| Standing { id: PriceId(id), draft }));
    stands
}

#[test]
fn a_lasting_price_does_not_end_with_a_promotion() {
    let stands = after(vec![], &[price(0, None, "2")], 1);
    let stands = after(stands, &[price(10, Some(20), "1")], 2);
    let refused = plan(stands.clone(), vec![], &[price(15, None, "3")]).unwrap_err();
    assert_eq!((refused[0].path.as_str(), refused[0].conflicts_with), ("valid_from", Some(PriceId(4))));
    assert!(refused[0].detail.contains(&format!("a valid_to of {}", at(20))), "{}", refused[0]);
    // As it says: up to there, and lasting once what goes on then is withdrawn.
    let mut stands = after(stands, &[price(15, Some(20), "3")], 5);
    let later = plan(stands.clone(), vec![], &[price(17, None, "4")]).unwrap_err();
    assert!(later[0].detail.contains(&format!("a valid_to of {}", at(20))), "{}", later[0]);
    stands.retain(|there| there.draft.valid_to.is_some());
    let lasting = plan(stands, vec![], &[price(20, None, "3")]).unwrap();
    assert_eq!(intervals(&lasting), [(at(20), None, "3".to_owned())]);
}

#[test]
fn a_lasting_price_is_not_lost_behind_a_promotion_that_is_announced() {
    let mut promotion_first = Book::of(&[price(0, None, "2")]);
    promotion_first.publish(1, &[price(10, Some(20), "1")]).unwrap();
    let refused = promotion_first.refuses(2, &price(5, None, "3"));
    assert_eq!(refused.path, "valid_from");
    assert!(refused.detail.contains(&format!("a valid_to of {}", at(10))), "{refused}");
    let mut lasting_first = Book::of(&[price(0, None, "2")]);
    lasting_first.publish(1, &[price(5, None, "3")]).unwrap();
    lasting_first.publish(2, &[price(10, Some(20), "1")]).unwrap();
    let lasts = [row(0, 5, "2"), row(5, 10, "3"), row(10, 20, "1"), row(20, None, "3")];
    assert_eq!(lasting_first.shown(), lasts);
    // The price of the day is on every list, and goes on after the promotion anyway.
    promotion_first.unchanged_by(2, &[price(5, None, "2")]);
    // The promotion does not last by being said again without its end.
    promotion_first.refuses(12, &price(15, None, "1"));
    promotion_first.refuses(12, &price(10, None, "1"));
    promotion_first.unchanged_by(12, &[price(10, Some(20), "1")]);
}

#[test]
fn a_back_dated_price_does_not_end_where_one_in_force_starts() {
    let mut book = Book::of(&[price(0, Some(20), "2"), price(20, None, "1")]);
    let open = price(10, None, "3");
    let announced = book.clone().publish(19, std::slice::from_ref(&open)).unwrap();
    assert_eq!(announced.rows.last().unwrap().valid_to, Some(at(20)));
    let refused = book.refuses(20, &open);
    let advice = "from 2026-01-21 00:00:00.000001 UTC on too";
    assert!(refused.detail.ends_with(advice), "{refused}");
    book.publish(20, &[price(10, Some(20), "3")]).unwrap();
    assert_eq!(book.shown(), [row(0, 10, "2"), row(10, 20, "3"), row(20, None, "1")]);
}

#[test]
fn a_corrected_list_is_not_unchanged_where_another_price_is_valid() {
    let mut book = Book::of(&[price(0, Some(10), "2"), price(10, Some(20), "1"), price(20, None, "3")]);
    let corrected = [price(0, Some(20), "2"), price(20, None, "3")];
    let faults = book.publish(30, &corrected).unwrap_err();
    let [fault] = &faults[..] else { panic!("one fault: {faults:?}") };
    assert_eq!((fault.index, fault.path.as_str(), fault.conflicts_with), (0, "valid_from", Some(PriceId(0))));
    // A part of a price is not what was published either.
    let mut book = Book::of(&[price(0, None, "2")]);
    book.publish(0, &[price(20, None, "3")]).unwrap();
    book.publish(0, &[price(10, Some(20), "1")]).unwrap();
    assert_eq!(book.shown(), [row(0, 10, "2"), row(10, 20, "1"), row(20, None, "3")]);
    book.refuses(30, &price(0, Some(20), "2"));
    book.unchanged_by(30, &[price(0, None, "2")]);
}

#[test]
fn a_list_with_promotions_can_be_published_again() {
    let list = [
        price(0, Some(30), "2"),
        price(5, Some(20), "1"),
        price(10, Some(15), "3"),
        price(30, None, "1"),
        price(40, None, "2"),
        price(50, None, "1"),
    ];
    let mut book = Book::of(&list);
    for day in [0, 12, 60] {
        book.unchanged_by(day, &list);
    }
}

#[test]
fn a_list_that_makes_a_promotion_last_is_not_unchanged() {
    let mut book = Book::of(&[price(0, None, "2")]);
    book.publish(0, &[price(10, Some(20), "1")]).unwrap();
    let lasting = [price(0, None, "2"), price(10, None, "1")];
    let extended = [price(0, Some(30), "2"), price(10, Some(30), "1"), price(30, None, "3")];
    for (list, day) in [(&lasting[..], 0), (&lasting[..], 25)] {
        let faults = book.publish(day, list).unwrap_err();
        assert_eq!((faults[0].index, faults[0].path.as_str()), (1, "valid_from"), "{faults:?}");
    }
    book.publish(0, &[price(30, None, "3")]).unwrap();
    assert_eq!(book.shown(), [row(0, 10, "2"), row(10, 20, "1"), row(20, 30, "2"), row(30, None, "3")]);
    let faults = book.publish(0, &extended).unwrap_err();
    assert!(faults.iter().any(|fault| fault.index == 1), "{faults:?}");
}

#[test]
fn a_price_with_an_end_is_not_unchanged_by_one_that_lasts() {
    // The old price comes back one step later.
    let mut book = Book::of(&[
        price(0, Some(10), "2"),
        price(10, Some(15), "1"),
        price(15, Some(20), "3"),
        price(20, None, "2"),
    ]);
    for day in [0, 12, 30] {
        assert_eq!(book.refuses(day, &price(10, None, "1")).path, "valid_from");
        book.unchanged_by(day, &[price(10, Some(15), "1")]);
    }
    // The one that follows was in force then, so nothing was announced.
    let mut book = Book::of(&[price(20, None, "3")]);
    book.publish(30, &[price(10, Some(20), "1")]).unwrap();
    assert_eq!(book.refuses(30, &price(10, None, "1")).path, "valid_from");
    book.unchanged_by(30, &[price(10, Some(20), "1")]);
    book.unchanged_by(30, &[price(10, None, "1"), price(20, None, "3")]);
}

#[test]
fn what_goes_on_after_a_promotion_was_not_published() {
    let mut book = Book::of(&[price(0, Some(50), "2")]);
    book.publish(0, &[price(10, Some(20), "1")]).unwrap();
    book.publish(0, &[price(30, Some(40), "3")]).unwrap();
    let stands = [row(0, 10, "2"), row(10, 20, "1"), row(20, 30, "2"), row(30, 40, "3"), row(40, 50, "2")];
    assert_eq!(book.shown(), stands);
    assert_eq!(book.refuses(0, &price(20, Some(50), "2")).path, "valid_from");
    book.unchanged_by(0, &[price(0, Some(50), "2")]);
}

#[test]
fn a_lasting_price_does_not_end_where_a_cancelled_rise_was_to_start() {
    let stands = vec![standing(1, &price(0, Some(20), "2")), standing(2, &price(20, None, "2"))];
    let refused = plan(stands.clone(), vec![], &[price(10, None, "1")]).unwrap_err();
    assert_eq!((refused[0].path.as_str(), refused[0].conflicts_with), ("valid_from", Some(PriceId(1))));
    let named = NewPrice { aliases: vec!["latest".to_owned()], ..price(10, None, "2") };
    let same = plan(stands, vec![], &[named]).unwrap();
    assert_eq!((same.rows, same.published), (vec![], vec![Published::Unchanged(Slot::Standing(PriceId(1)))]));
    assert_eq!((same.aliases[0].valid_from, same.aliases[0].valid_to), (at(10), None));
}

#[test]
fn the_same_again_changes_nothing_after_others_either() {
    let first = [price(0, Some(20), "2"), price(20, None, "3")];
    let mut book = Book::of(&first);
    // A list without dates starts now, up to what is announced.
    let listed = book.publish(5, &[price(5, None, "2")]).unwrap();
    assert_eq!(
        (listed.rows, listed.published),
        (vec![], vec![Published::Unchanged(Slot::Standing(PriceId(0)))])
    );
    let between = [price(10, None, "1")];
    book.publish(5, &between).unwrap();
    for day in [5, 15, 25] {
        book.unchanged_by(day, &first);
        book.unchanged_by(day, &between);
    }
}

#[test]
fn aliases_are_dated_as_the_price_finally_is() {
    let named = |to| NewPrice { aliases: vec!["latest".to_owned()], ..price(10, to, "1") };
    let stands = vec![standing(1, &price(0, Some(20), "2")), standing(2, &price(20, None, "3"))];
    let open = plan(stands.clone(), vec![], &[named(None)]).unwrap();
    assert_eq!(open, plan(stands.clone(), vec![], &[named(Some(20))]).unwrap());
    let [alias] = &open.aliases[..] else { panic!("one alias: {open:?}") };
    assert_eq!((alias.valid_from, alias.valid_to), (at(10), Some(at(20))));
    let stands = after(stands, &[named(None)], 3);
    for again in [named(None), named(Some(20))] {
        let again = plan(stands.clone(), open.aliases.clone(), &[again]).unwrap();
        assert_eq!((again.rows, again.aliases), (vec![], vec![]));
    }
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
    let history = [price(0, None, "3"), price(10, None, "2"), price(20, None, "1"), price(30, Some(40), "9")];
    let rows = plan(vec![], vec![], &history).unwrap().rows;
    let stands = rows.into_iter().zip(1..).map(|(draft, id)| Standing { id: PriceId(id), draft }).collect();
    let again = plan(stands, vec![], &history).unwrap();
    assert_eq!(again.rows, []);
    let closed = vec![standing(7, &price(0, Some(5), "2"))];
    assert!(plan(closed, vec![], &[price(0, None, "2")]).is_err(), "what was closed does not open by itself");
}

#[test]
fn any_other_overlap_names_the_price_it_collides_with() {
    let refused =
        |stands: NewPrice, new: NewPrice| plan(vec![standing(7, &stands)], vec![], &[new]).unwrap_err();
    for (stands, new) in [
        (price(0, None, "2"), price(0, None, "1")),
        (price(5, None, "2"), price(0, None, "1")),
        (price(0, Some(10), "2"), price(5, None, "1")),
        (price(0, Some(10), "2"), price(5, Some(11), "1")),
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
    let expected =
        [(at(0), Some(at(10)), "3".into()), (at(10), Some(at(20)), "2".into()), (at(20), None, "1".into())];
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
    let meanings: Vec<_> =
        plan.aliases.iter().map(|alias| (alias.model.as_str(), alias.valid_from, alias.valid_to)).collect();
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
    /// Whatever is published one after the other, refused or not: at most one price of a key covers any instant, and all
    /// that was added can be published again and changes nothing. A price without an end is refused then where it lasts no
    /// longer than a promotion would. Once it is valid for good it stays so, until another is published without an end.
    #[test]
    fn no_two_prices_of_a_key_ever_overlap(
        published in prop::collection::vec((0_u32..40, prop::option::of(1_u32..20), 1_u32..5), 1..12),
        days in prop::collection::vec(0_u32..40, 12),
    ) {
        let mut book = Book::default();
        let mut added: Vec<NewPrice> = Vec::new();
        for ((from, length, rate), today) in published.into_iter().zip(days) {
            let new = price(from, length.map(|days| from + days), &rate.to_string());
            let valid_on = |book: &Book, day: u32| {
                let standing = book.known.standing.iter().map(|there| &there.draft);
                standing.filter(|draft| covers(draft.valid_from, draft.valid_to, at(day))).count()
            };
            let last = |book: &Book| book.shown().pop().filter(|(_, to, _)| to.is_none());
            let before: Vec<usize> = (0..80).map(|day| valid_on(&book, day)).collect();
            let lasted = last(&book);
            if let Ok(plan) = book.publish(today, std::slice::from_ref(&new)) {
                // What stood already is not on record by its own start, which may be given to another price later.
                let is_new = matches!(plan.published[0], Published::Added { .. });
                if let Some((_, _, rate)) = lasted.filter(|_| new.valid_to.is_some()) {
                    prop_assert_eq!(last(&book).map(|(_, _, rate)| rate), Some(rate));
                }
                added.extend(is_new.then_some(new));
            }
            for day in 0..80 {
                let now = valid_on(&book, day);
                prop_assert!(now <= 1);
                prop_assert!(now >= before[usize::try_from(day).unwrap()], "publishing never unprices");
            }
            for again in &added {
                match book.clone().publish(today, std::slice::from_ref(again)) {
                    Ok(plan) => prop_assert_eq!(plan.rows, vec![]),
                    Err(faults) => prop_assert!(again.valid_to.is_none(), "{:?}", faults),
                }
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
