//! Factors that change with time: which derived prices a cost price has, and what a change does to those that stand.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use chrono::{DateTime, SubsecRound, Utc};
use rust_decimal::Decimal;

use super::markup::Markup;
use super::publication::Standing;
use super::quotation::{PriceDraft, VALIDITY_SECONDS};
use super::{covers, intervals_meet};
use crate::domain::ids::PriceId;
use crate::domain::money::{MoneyError, Rate};
use crate::domain::tokens::TokenClass;

/// The factors of a markup book over time. A change takes the place of all factors before it, until the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Markups {
    /// What the book was made with: before every change.
    pub first: Markup,
    /// By the instant from which they apply.
    pub changes: BTreeMap<DateTime<Utc>, Markup>,
}

impl From<Markup> for Markups {
    fn from(first: Markup) -> Self {
        Self { first, changes: BTreeMap::new() }
    }
}

impl Markups {
    /// The factors at an instant.
    pub fn at(&self, at: DateTime<Utc>) -> &Markup {
        self.changes.range(..=at).next_back().map_or(&self.first, |(_, markup)| markup)
    }

    /// The first change after an instant.
    pub fn next_change(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.changes.range((Excluded(after), Unbounded)).next().map(|(at, _)| *at)
    }

    /// The sell prices of a cost price: one for each stretch of its validity in which its model's factor is the same.
    ///
    /// # Errors
    /// [`MoneyError::OutOfRange`].
    pub fn derive(&self, cost: &PriceDraft) -> Result<Vec<PriceDraft>, MoneyError> {
        let changes = self.changes.range((Excluded(cost.valid_from), Unbounded)).map(|(at, _)| *at);
        let starts = std::iter::once(cost.valid_from)
            .chain(changes.take_while(|at| cost.valid_to.is_none_or(|end| *at < end)));
        let mut stretches: Vec<(DateTime<Utc>, Decimal)> = Vec::new();
        for from in starts {
            let factor = self.at(from).factor(&cost.model);
            if stretches.last().is_none_or(|(_, before)| *before != factor) {
                stretches.push((from, factor));
            }
        }
        let ends = stretches.iter().skip(1).map(|(next, _)| Some(*next)).chain([cost.valid_to]);
        stretches
            .iter()
            .zip(ends)
            .map(|((valid_from, factor), valid_to)| {
                Ok(PriceDraft { valid_from: *valid_from, valid_to, ..Markup::apply(*factor, cost)? })
            })
            .collect()
    }
}

/// The start of a change as it is kept, in whole microseconds; `None` where a price could not start then.
pub fn change_start(valid_from: DateTime<Utc>) -> Option<DateTime<Utc>> {
    VALIDITY_SECONDS.contains(&valid_from.timestamp()).then(|| valid_from.trunc_subsecs(6))
}

/// What a change of factors does to the derived prices of one cost price.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rederived {
    /// Prices to add.
    pub rows: Vec<PriceDraft>,
    /// Standing prices to supersede, each with the position of the row that goes on from its start.
    pub superseded: Vec<(PriceId, Option<usize>)>,
    /// Where the rates differ.
    pub effects: Vec<Effect>,
}

/// A stretch of time in which a derived price has other rates than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// The price that stood.
    pub before: PriceId,
    /// Its own rates.
    pub old: BTreeMap<TokenClass, Rate>,
    /// The position of the row in its place.
    pub row: usize,
    /// First instant with the new rates.
    pub from: DateTime<Utc>,
    /// First instant after; `None` is open.
    pub to: Option<DateTime<Utc>>,
}

/// Brings the standing derived prices of a cost price to those that are wanted: what is wanted and stands is left alone.
pub fn rederive(standing: &[Standing], wanted: Vec<PriceDraft>) -> Rederived {
    let interval = |draft: &PriceDraft| (draft.valid_from, draft.valid_to);
    let same = |standing: &Standing, draft: &PriceDraft| {
        interval(&standing.draft) == interval(draft) && standing.draft.same_terms(draft)
    };
    let (kept, rows): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|draft| standing.iter().any(|standing| same(standing, draft)));
    let mut rederived = Rederived { rows, ..Rederived::default() };
    let gone = standing.iter().filter(|standing| !kept.iter().any(|draft| same(standing, draft)));
    for Standing { id, draft: old } in gone {
        let successor = successor(&rederived.rows, old.valid_from);
        rederived.superseded.push((*id, successor));
        for (row, new) in rederived.rows.iter().enumerate() {
            if !intervals_meet(interval(old), interval(new)) || old.same_terms(new) {
                continue;
            }
            let to = [old.valid_to, new.valid_to].into_iter().flatten().min();
            let from = old.valid_from.max(new.valid_from);
            rederived.effects.push(Effect { before: *id, old: old.own_rates(), row, from, to });
        }
    }
    rederived
}

/// Which of some rows is valid at an instant: that one goes on where a superseded price started.
pub fn successor<'a>(
    rows: impl IntoIterator<Item = &'a PriceDraft>,
    valid_from: DateTime<Utc>,
) -> Option<usize> {
    rows.into_iter().position(|row| covers(row.valid_from, row.valid_to, valid_from))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::price::quotation::{NewPrice, Quote};

    fn at(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + hour * 3600, 0).unwrap()
    }

    fn markup(general: &str, by_model: &[(&str, &str)]) -> Markup {
        let by_model =
            by_model.iter().map(|(pattern, factor)| ((*pattern).to_owned(), Quote((*factor).to_owned())));
        Markup::read(&Quote(general.to_owned()), &by_model.collect()).unwrap()
    }

    fn cost(from: i64, to: Option<i64>) -> PriceDraft {
        let price: NewPrice = serde_json::from_str(
            r#"{"provider":"p","model":"m","per":1000000,"rates":{"input":"10"},"fees":{"request":"1"},
                "valid_from":"2026-01-01T00:00:00Z"}"#,
        )
        .unwrap();
        PriceDraft { valid_from: at(from), valid_to: to.map(at), ..price.check(0).unwrap() }
    }

    fn markups(changes: &[(i64, Markup)]) -> Markups {
        let changes = changes.iter().map(|(hour, markup)| (at(*hour), markup.clone())).collect();
        Markups { first: markup("1.2", &[]), changes }
    }

    /// Start, end and input rate per million of each derived price, in hours.
    fn derived(markups: &Markups, cost: &PriceDraft) -> Vec<(i64, Option<i64>, String)> {
        shown(&markups.derive(cost).unwrap())
    }

    fn shown(prices: &[PriceDraft]) -> Vec<(i64, Option<i64>, String)> {
        let hour = |instant: DateTime<Utc>| (instant - at(0)).num_hours();
        let row = |price: &PriceDraft| {
            let input = price.rates[&TokenClass::Input].quoted.to_string();
            (hour(price.valid_from), price.valid_to.map(hour), input)
        };
        prices.iter().map(row).collect()
    }

    #[test]
    fn each_stretch_has_the_factor_of_its_time() {
        let markups = markups(&[(10, markup("1.3", &[])), (20, markup("1.5", &[("m", "1.3")]))]);
        let expected = [(0, Some(10), "12".to_owned()), (10, None, "13".to_owned())];
        assert_eq!(derived(&markups, &cost(0, None)), expected, "equal factors are one price");
        assert_eq!(derived(&markups, &cost(0, Some(10))), [(0, Some(10), "12".to_owned())], "half-open");
        assert_eq!(derived(&markups, &cost(10, Some(30))), [(10, Some(30), "13".to_owned())]);
        assert_eq!(markups.next_change(at(10)), Some(at(20)));
        assert_eq!(markups.at(at(20)).factor("n").to_string(), "1.5");
    }

    fn standing(id: i64, draft: PriceDraft) -> Standing {
        Standing { id: PriceId(id), draft }
    }

    #[test]
    fn a_price_that_straddles_a_change_ends_there_and_a_new_one_starts() {
        let cost = cost(0, None);
        let before = markups(&[]).derive(&cost).unwrap().remove(0);
        let wanted = markups(&[(10, markup("1.25", &[]))]).derive(&cost).unwrap();
        let rederived = rederive(&[standing(7, before.clone())], wanted);
        assert_eq!(shown(&rederived.rows), [(0, Some(10), "12".into()), (10, None, "12.5".into())]);
        assert_eq!(rederived.superseded, [(PriceId(7), Some(0))]);
        let effect = Effect { before: PriceId(7), old: before.own_rates(), row: 1, from: at(10), to: None };
        assert_eq!(rederived.effects, [effect]);
        assert_eq!(rederived.rows[1].rates[&TokenClass::Request].quoted.to_string(), "1.25");
    }

    #[test]
    fn what_a_change_does_not_touch_stays_as_it_is() {
        let cost = cost(0, None);
        let before = markups(&[]).derive(&cost).unwrap().remove(0);
        let wanted = markups(&[(10, markup("9", &[("m*", "1.2")]))]).derive(&cost).unwrap();
        assert_eq!(rederive(&[standing(7, before)], wanted), Rederived::default());
    }

    #[test]
    fn a_change_before_another_ends_where_that_starts() {
        let cost = cost(0, None);
        let later = markups(&[(20, markup("2", &[]))]);
        let stands: Vec<Standing> =
            (7..).zip(later.derive(&cost).unwrap()).map(|(id, draft)| standing(id, draft)).collect();
        let both = markups(&[(10, markup("3", &[])), (20, markup("2", &[]))]);
        let rederived = rederive(&stands, both.derive(&cost).unwrap());
        assert_eq!(shown(&rederived.rows), [(0, Some(10), "12".into()), (10, Some(20), "30".into())]);
        assert_eq!(rederived.superseded, [(PriceId(7), Some(0))], "the later one stands");
        assert_eq!((rederived.effects[0].from, rederived.effects[0].to), (at(10), Some(at(20))));
    }

    proptest! {
        #[test]
        fn derived_prices_tile_the_cost_price_with_the_factor_of_each_instant(
            changes in prop::collection::btree_map(0_i64..40, 1_u32..4, 0..6),
            from in 0_i64..20,
            length in prop::option::of(1_i64..20),
            hour in 0_i64..60,
        ) {
            let changes: Vec<(i64, Markup)> =
                changes.into_iter().map(|(hour, factor)| (hour, markup(&factor.to_string(), &[]))).collect();
            let (markups, cost) = (markups(&changes), cost(from, length.map(|length| from + length)));
            let derived = markups.derive(&cost).unwrap();
            let valid: Vec<&PriceDraft> =
                derived.iter().filter(|price| covers(price.valid_from, price.valid_to, at(hour))).collect();
            prop_assert_eq!(valid.len(), usize::from(covers(cost.valid_from, cost.valid_to, at(hour))));
            for price in valid {
                let expected = Markup::apply(markups.at(at(hour)).factor("m"), &cost).unwrap();
                prop_assert_eq!(price.own_rates(), expected.own_rates());
            }
            for pair in derived.windows(2) {
                prop_assert_eq!(pair[0].valid_to, Some(pair[1].valid_from));
                prop_assert_ne!(pair[0].own_rates(), pair[1].own_rates());
            }
        }
    }
}
