//! Two price books side by side: which prices only one of them has, and which rates differ.
//!
//! Compared is what would apply at one instant: names are resolved through aliases, an explicit price stands for a derived
//! one of the same conditions, and a class that merely takes its parent's rate is not told twice.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::PriceBook;
use crate::domain::money::{Rate, divide_half_away};
use crate::domain::price::Price;
use crate::domain::tokens::TokenClass;

/// Hundredths of a percent in a whole.
const WHOLE: i128 = 10_000;

/// How two books differ at an instant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Rates that are equal.
    pub equal: usize,
    /// Rates that are not, by provider, model, conditions and class.
    pub differences: Vec<Difference>,
}

/// A rate that the two books do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The provider.
    pub provider: String,
    /// The model, as the left book's price names it, or else the right one's.
    pub model: String,
    /// The right book's name for it, where that is another.
    pub right_model: Option<String>,
    /// The conditions, as one text.
    pub conditions: String,
    /// The class.
    pub class: TokenClass,
    /// What the two have.
    pub rates: Sides,
}

/// The rates of the two books; never equal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// Only the left book has one.
    Left(Rate),
    /// Only the right book has one.
    Right(Rate),
    /// Both have one.
    Both(Rate, Rate),
}

impl Sides {
    /// The left book's rate.
    pub const fn left(self) -> Option<Rate> {
        match self {
            Self::Left(rate) | Self::Both(rate, _) => Some(rate),
            Self::Right(_) => None,
        }
    }

    /// The right book's rate.
    pub const fn right(self) -> Option<Rate> {
        match self {
            Self::Right(rate) | Self::Both(_, rate) => Some(rate),
            Self::Left(_) => None,
        }
    }

    /// By how much the right rate is above the left one, in percent, as a decimal with two places, rounded half away from
    /// zero; for display only. `None` where one is missing, or the left one is zero.
    pub fn percent(self) -> Option<String> {
        let Self::Both(left, right) = self else { return None };
        if left.femtos() == 0 {
            return None;
        }
        // Both are below 10^21, so this is far from the end of the type.
        let hundredths = divide_half_away((right.femtos() - left.femtos()) * WHOLE, left.femtos());
        let sign = if hundredths < 0 { '-' } else { '+' };
        let size = hundredths.unsigned_abs();
        Some(format!("{sign}{}.{:02}", size / 100, size % 100))
    }
}

/// Compares what two books charge at an instant.
pub fn compare(left: &PriceBook, right: &PriceBook, at: DateTime<Utc>) -> Comparison {
    let mut comparison = Comparison::default();
    for (provider, models) in pairs(left, right, at) {
        let of = |book: &PriceBook, model: Option<&str>| -> BTreeMap<String, Price> {
            model.map(|model| by_conditions(book, provider, model, at)).unwrap_or_default()
        };
        let (lefts, rights) = (of(left, models.0), of(right, models.1));
        let conditions: BTreeSet<&String> = lefts.keys().chain(rights.keys()).collect();
        for key in conditions {
            let sides = (lefts.get(key), rights.get(key));
            for class in TokenClass::ALL {
                let stated = |price: Option<&Price>| price.is_some_and(|price| has_own(price, class));
                if !stated(sides.0) && !stated(sides.1) {
                    continue;
                }
                let rate = |price: Option<&Price>| price.and_then(|price| price.rate(class));
                let rates = match (rate(sides.0), rate(sides.1)) {
                    (Some(left), Some(right)) if left == right => {
                        comparison.equal += 1;
                        continue;
                    }
                    (Some(left), Some(right)) => Sides::Both(left, right),
                    (Some(left), None) => Sides::Left(left),
                    (None, Some(right)) => Sides::Right(right),
                    (None, None) => continue,
                };
                comparison.differences.push(Difference {
                    provider: provider.to_owned(),
                    model: models.0.or(models.1).unwrap_or_default().to_owned(),
                    right_model: models
                        .1
                        .filter(|model| models.0.is_some_and(|left| left != *model))
                        .map(str::to_owned),
                    conditions: key.clone(),
                    class,
                    rates,
                });
            }
        }
    }
    comparison
}

type Pair<'a> = (Option<&'a str>, Option<&'a str>);

/// The models to compare, by provider: what a name means in the one book with what it means in the other. A model that
/// has a counterpart under any of its names is not missing.
fn pairs<'a>(left: &'a PriceBook, right: &'a PriceBook, at: DateTime<Utc>) -> Vec<(&'a str, Pair<'a>)> {
    let (lefts, rights) = (left.names(at), right.names(at));
    let names: BTreeSet<(&str, &str)> = lefts.keys().chain(rights.keys()).copied().collect();
    let pairs: BTreeSet<(&str, Pair<'_>)> = names
        .into_iter()
        .map(|name| (name.0, (lefts.get(&name).copied(), rights.get(&name).copied())))
        .collect();
    let matched = |provider: &str, model: Option<&str>, side: fn(&Pair<'a>) -> Option<&'a str>| {
        pairs.iter().any(|(other, pair)| {
            *other == provider && side(pair) == model && pair.0.is_some() && pair.1.is_some()
        })
    };
    let alone = |(provider, pair): &(&'a str, Pair<'a>)| match pair {
        (Some(_), None) => !matched(provider, pair.0, |pair| pair.0),
        (None, Some(_)) => !matched(provider, pair.1, |pair| pair.1),
        _ => true,
    };
    let mut found: Vec<_> = pairs.iter().filter(|pair| alone(pair)).copied().collect();
    found.sort_by_key(|(provider, (left, right))| (*provider, left.or(*right), *right));
    found
}

/// The prices of a model that are valid at an instant; the explicit one where a derived one has the same conditions.
fn by_conditions(
    book: &PriceBook,
    provider: &str,
    model: &str,
    at: DateTime<Utc>,
) -> BTreeMap<String, Price> {
    let mut prices = BTreeMap::new();
    for price in book.valid(provider, model, at) {
        // Conditions that cannot be read make no book.
        let key = price.conditions.key().unwrap_or_default();
        prices.entry(key).or_insert_with(|| price.clone());
    }
    prices
}

/// Whether a price says something about a class that its parent's rate does not say.
fn has_own(price: &Price, class: TokenClass) -> bool {
    let rate = price.rate(class);
    rate.is_some() && class.parent().is_none_or(|parent| price.rate(parent) != rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::price::quotation::NewPrice;
    use crate::rating::starter::tests::book_of;

    fn book(prices: &str) -> PriceBook {
        book_of(&serde_json::from_str::<Vec<NewPrice>>(prices).unwrap())
    }

    fn price(model: &str, rest: &str) -> String {
        format!(
            r#"{{"provider":"p","model":"{model}","per":1000000,"valid_from":"2026-01-01T00:00:00Z",{rest}}}"#
        )
    }

    fn compared(left: &[String], right: &[String], at: &str) -> (usize, Vec<String>) {
        let of = |prices: &[String]| book(&format!("[{}]", prices.join(",")));
        let Comparison { equal, differences } = compare(&of(left), &of(right), at.parse().unwrap());
        let rate = |rate: Option<Rate>| {
            rate.map_or("-".to_owned(), |rate| rate.times(1_000_000).unwrap().to_string())
        };
        let line = |found: &Difference| {
            let Difference { model, right_model, conditions, class, rates, .. } = found;
            let renamed = right_model.as_ref().map(|name| format!(" = {name}")).unwrap_or_default();
            let percent = rates.percent().unwrap_or_default();
            format!(
                "{model}{renamed} ({conditions}) {class}: {} {} {percent}",
                rate(rates.left()),
                rate(rates.right())
            )
        };
        (equal, differences.iter().map(line).collect())
    }

    const NOW: &str = "2026-06-01T00:00:00Z";

    #[test]
    fn a_book_equals_itself() {
        let prices =
            [price("a", r#""rates":{"input":"1","output":"2"}"#), price("b", r#""rates":{"input":"0"}"#)];
        assert_eq!(compared(&prices, &prices, NOW), (3, Vec::new()));
        let starter = crate::rating::starter::tests::book();
        assert_eq!(compare(&starter, &starter, NOW.parse().unwrap()).differences, Vec::new());
    }

    #[test]
    fn rates_differ_by_so_much_and_missing_ones_have_no_percent() {
        let left =
            [price("a", r#""rates":{"input":"3","output":"10"}"#), price("b", r#""rates":{"input":"0"}"#)];
        let right = [
            price("a", r#""rates":{"input":"4","output":"9.9995"},"fees":{"web_search":"0.01"}"#),
            price("b", r#""rates":{"input":"1"}"#),
            price("c", r#""rates":{"input":"7"}"#),
        ];
        let (equal, found) = compared(&left, &right, NOW);
        assert_eq!(equal, 0);
        assert_eq!(
            found,
            [
                "a (standard) input: 3 4 +33.33",
                // -0.005 % is rounded away from zero.
                "a (standard) output: 10 9.9995 -0.01",
                "a (standard) web_search: - 10000 ",
                "b (standard) input: 0 1 ",
                "c (standard) input: - 7 ",
            ]
        );
    }

    #[test]
    fn a_class_that_takes_its_parents_rate_is_the_same_as_one_that_states_it() {
        let left = [price("a", r#""rates":{"input":"1","output":"2"}"#)];
        let right = [price("a", r#""rates":{"input":"1","output":"2","reasoning":"2","cache_read":"1"}"#)];
        assert_eq!(compared(&left, &right, NOW), (2, Vec::new()));
        let dearer = [price("a", r#""rates":{"input":"1","output":"2","reasoning":"3"}"#)];
        assert_eq!(compared(&left, &dearer, NOW), (2, vec!["a (standard) reasoning: 2 3 +50.00".to_owned()]));
    }

    #[test]
    fn conditions_are_compared_each_with_its_own() {
        let tier = r#""rates":{"input":"2"},"conditions":{"service_tier":"priority"}"#;
        let left = [price("a", r#""rates":{"input":"1"}"#), price("a", tier)];
        let right = [price("a", r#""rates":{"input":"1"}"#)];
        let only_left = "a (service_tier=priority) input: 2 - ".to_owned();
        assert_eq!(compared(&left, &right, NOW), (1, vec![only_left]));
    }

    #[test]
    fn a_name_is_looked_up_on_both_sides() {
        let left = [price("a", r#""rates":{"input":"1"},"aliases":["a-2026","a-latest"]"#)];
        let dated = [price("a-2026", r#""rates":{"input":"1"}"#)];
        assert_eq!(compared(&left, &dated, NOW), (1, Vec::new()));
        assert_eq!(compared(&dated, &left, NOW), (1, Vec::new()));
        let other = [
            price("a-2026", r#""rates":{"input":"2"}"#),
            price("z", r#""rates":{"input":"1"},"aliases":["a-latest"]"#),
        ];
        let (equal, found) = compared(&left, &other, NOW);
        assert_eq!((equal, found), (1, vec!["a = a-2026 (standard) input: 1 2 +100.00".to_owned()]));
    }

    #[test]
    fn only_what_is_valid_then_counts() {
        let ended = price("a", r#""rates":{"input":"1"},"valid_to":"2026-06-01T00:00:00Z""#);
        let left = [price("b", r#""rates":{"input":"1"}"#), ended];
        let right = [price("b", r#""rates":{"input":"1"}"#)];
        assert_eq!(compared(&left, &right, NOW), (1, Vec::new()));
        assert_eq!(compared(&left, &right, "2026-05-31T23:59:59Z").1, ["a (standard) input: 1 - "]);
    }
}
