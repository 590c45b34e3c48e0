//! Why a price applies to a call, and why the others of its model do not.

use chrono::{DateTime, Datelike, Timelike, Utc};
use compact_str::CompactString;

use super::book::{Call, Condition, Entry, PriceBook};
use crate::domain::event::UsagePart;
use crate::domain::price::Price;

/// A price of the model that a call names, and what decided over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The price.
    pub price: &'a Price,
    /// What decided.
    pub verdict: Verdict,
}

/// What decided over a price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one.
    Applies,
    /// It matches as well, but another that matches asks for more.
    LessSpecific,
    /// It matches as well, but an explicit price goes before one that a markup derived.
    Derived,
    /// It matches, but is for what the model's name means as an alias, and the name has a price of its own.
    OtherModel,
    /// It starts after the call.
    NotYetValid,
    /// It ended before the call, or with it.
    NoLongerValid,
    /// It asks for something else; at least one difference.
    Differs(Vec<Difference>),
}

/// One condition that a call does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub condition: Condition,
    /// What the price asks for, in words.
    pub asked: String,
    /// What the call was like, in words.
    pub made: String,
}

impl PriceBook {
    /// Every price that could have been meant by the model's name at a time, in the order in which
    /// [`choose`](Self::choose) looks at them, with what decided; exactly one applies where that finds one.
    pub fn explain<'a>(&'a self, part: &UsagePart, at: DateTime<Utc>) -> Vec<Candidate<'a>> {
        let call = Call::of(part, at);
        let named = self.by_name(part).map(Vec::as_slice).unwrap_or_default();
        let meant = self.by_alias(part, at).map(Vec::as_slice).unwrap_or_default();
        let name_counts = meant.is_empty() || named.iter().any(|entry| entry.valid_at(at));
        let (first, second) = if name_counts { (named, meant) } else { (meant, named) };
        let applies = first.iter().find(|entry| entry.matches(&call));
        let judged = |entry: &'a Entry, among_first: bool| Candidate {
            price: &entry.price,
            verdict: match applies {
                _ if !entry.matches(&call) => mismatch(entry, part, at, &call),
                _ if !among_first => Verdict::OtherModel,
                Some(chosen) if chosen.price.id == entry.price.id => Verdict::Applies,
                Some(chosen) if chosen.specificity == entry.specificity => Verdict::Derived,
                _ => Verdict::LessSpecific,
            },
        };
        let first = first.iter().map(|entry| judged(entry, true));
        first.chain(second.iter().map(|entry| judged(entry, false))).collect()
    }
}

fn mismatch(entry: &Entry, part: &UsagePart, at: DateTime<Utc>, call: &Call<'_>) -> Verdict {
    if at < entry.price.valid_from {
        return Verdict::NotYetValid;
    }
    if !entry.valid_at(at) {
        return Verdict::NoLongerValid;
    }
    let unmet = Condition::ALL.into_iter().filter(|condition| !entry.meets(*condition, call));
    Verdict::Differs(unmet.map(|condition| difference(condition, &entry.price, part, at)).collect())
}

fn difference(condition: Condition, price: &Price, part: &UsagePart, at: DateTime<Utc>) -> Difference {
    let (asked, made) = (&price.conditions, &part.conditions);
    let names = |asked: &Option<String>, made: &Option<CompactString>, none: &str| {
        let word = |name: Option<&str>| name.unwrap_or(none).to_owned();
        (word(asked.as_deref()), word(made.as_deref()))
    };
    let (asked, made) = match condition {
        Condition::Platform => names(&asked.platform, &made.platform, "none"),
        Condition::Region => names(&asked.region, &made.region, "none"),
        Condition::ServiceTier => names(&asked.service_tier, &made.service_tier, "standard"),
        Condition::Processing => names(&asked.processing, &made.processing, "standard"),
        Condition::Speed => names(&asked.speed, &made.speed, "standard"),
        Condition::Context => {
            let above = asked.context_above.unwrap_or_default();
            let from = if asked.context_inclusive { "at least" } else { "more than" };
            (format!("{from} {above} prompt tokens"), part.tier_input.to_string())
        }
        Condition::Times => {
            let days: Vec<String> = asked.weekdays.iter().map(u8::to_string).collect();
            let days =
                if days.is_empty() { String::new() } else { format!(" on weekdays {}", days.join(", ")) };
            let hours = if asked.hours_utc.is_empty() {
                "all day".to_owned()
            } else {
                format!("{} UTC", asked.hours_utc.join(", "))
            };
            let weekday = at.weekday().number_from_monday();
            (
                format!("{hours}{days}"),
                format!("{:02}:{:02} UTC on weekday {weekday}", at.hour(), at.minute()),
            )
        }
    };
    Difference { condition, asked, made }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::event::CallConditions;
    use crate::domain::ids::{BookId, PriceId};
    use crate::domain::money::Currency;
    use crate::domain::price::{BookInfo, BookKind, ModelAlias, PriceConditions};
    use crate::domain::tokens::{CLASS_COUNT, Quantities};

    fn start() -> DateTime<Utc> {
        "2026-11-23T00:00:00Z".parse().unwrap()
    }

    fn name(text: &str) -> Option<String> {
        (!text.is_empty()).then(|| text.to_owned())
    }

    fn price(id: usize, model: &str, conditions: PriceConditions, hours: (i64, Option<i64>)) -> Price {
        let at = |hour| start() + TimeDelta::hours(hour);
        Price {
            id: PriceId(i64::try_from(id).unwrap()),
            book: BookId(1),
            provider: "p".into(),
            model: model.into(),
            conditions,
            rates: [None; CLASS_COUNT],
            valid_from: at(hours.0),
            valid_to: hours.1.map(at),
            recorded_at: start(),
            derived: false,
        }
    }

    fn part(model: &str, conditions: CallConditions, tier_input: i64) -> UsagePart {
        UsagePart {
            provider: "p".into(),
            model: model.into(),
            conditions,
            quantities: Quantities::NONE,
            tier_input,
            stated_cost: None,
        }
    }

    fn book(prices: Vec<Price>) -> Option<PriceBook> {
        let currency = Currency::USD;
        let info = BookInfo { id: BookId(1), name: "cost".to_owned(), kind: BookKind::Cost, currency };
        let alias = |name: &str, model: &str| ModelAlias {
            provider: "p".into(),
            alias: name.to_owned(),
            model: model.into(),
            valid_from: start() + TimeDelta::hours(6),
            valid_to: None,
            inherited: false,
        };
        PriceBook::new(info, prices, vec![alias("a", "b"), alias("c", "a")]).ok()
    }

    fn reasons(book: &PriceBook, part: &UsagePart, hour: i64) -> Vec<(i64, Verdict)> {
        let candidates = book.explain(part, start() + TimeDelta::hours(hour));
        candidates.into_iter().map(|candidate| (candidate.price.id.0, candidate.verdict)).collect()
    }

    #[test]
    fn every_other_price_has_its_reason() {
        let standard = PriceConditions::default;
        let long = PriceConditions { context_above: Some(200), ..standard() };
        let priority = PriceConditions { service_tier: name("priority"), ..long.clone() };
        let derived = Price { derived: true, ..price(6, "a", long.clone(), (0, Some(12))) };
        let prices = vec![
            price(1, "a", standard(), (0, Some(12))),
            price(2, "a", standard(), (12, None)),
            price(3, "a", long, (0, Some(12))),
            price(4, "a", priority, (0, None)),
            price(5, "b", standard(), (0, None)),
            derived,
        ];
        let book = book(prices).unwrap();
        let differs = |condition, asked: &str, made: &str| {
            let (asked, made) = (asked.to_owned(), made.to_owned());
            Verdict::Differs(vec![Difference { condition, asked, made }])
        };
        let call = part("a", CallConditions::default(), 201);
        let tier = differs(Condition::ServiceTier, "priority", "standard");
        let expected = [
            (3, Verdict::Applies),
            (4, tier),
            (6, Verdict::Derived),
            (1, Verdict::LessSpecific),
            (2, Verdict::NotYetValid),
            (5, Verdict::OtherModel),
        ];
        let mut found = reasons(&book, &call, 7);
        found.sort_by_key(|(id, _)| expected.iter().position(|(other, _)| other == id));
        assert_eq!(found, expected);
        let short = part("c", CallConditions::default(), 200);
        let at_noon = reasons(&book, &short, 12);
        assert!(at_noon.contains(&(2, Verdict::Applies)), "{at_noon:?}");
        assert!(at_noon.contains(&(1, Verdict::NoLongerValid)), "{at_noon:?}");
        let morning = reasons(&book, &short, 7);
        assert!(
            morning.contains(&(3, differs(Condition::Context, "more than 200 prompt tokens", "200"))),
            "{morning:?}"
        );
    }

    prop_compose! {
        fn conditions()(
            platform in prop_oneof!["", "azure"],
            region in prop_oneof!["", "us"],
            tier in prop_oneof!["", "priority"],
            above in prop::option::of(1_i64..4),
            inclusive in any::<bool>(),
            hours in prop::option::of(prop_oneof!["01:00-07:00", "05:00-22:00"]),
        ) -> PriceConditions {
            PriceConditions {
                platform: name(&platform),
                region: name(&region),
                service_tier: name(&tier),
                context_above: above,
                context_inclusive: inclusive && above.is_some(),
                hours_utc: hours.into_iter().collect(),
                ..PriceConditions::default()
            }
        }
    }

    proptest! {
        #[test]
        fn an_explanation_agrees_with_the_choice(
            drafts in prop::collection::vec(
                (conditions(), prop_oneof!["a", "b"], 0_i64..20, prop::option::of(1_i64..20), any::<bool>()), 1..12),
            asked in conditions(),
            model in prop_oneof!["a", "b", "c", "d"],
            tier_input in 0_i64..5,
            hour in 0_i64..30,
        ) {
            // Those that fit beside each other: publishing refuses the others.
            let mut prices = Vec::new();
            for (id, (conditions, model, from, length, derived)) in drafts.into_iter().enumerate() {
                let price = price(id, &model, conditions, (from, length.map(|length| from + length)));
                let with: Vec<Price> = prices.iter().cloned().chain([Price { derived, ..price }]).collect();
                if book(with.clone()).is_some() {
                    prices = with;
                }
            }
            let book = book(prices).unwrap();
            let PriceConditions { platform, region, service_tier, .. } = asked;
            let text = |text: Option<String>| text.map(Into::into);
            let made = CallConditions {
                platform: text(platform),
                region: text(region),
                service_tier: text(service_tier),
                ..CallConditions::default()
            };
            let (call, at) = (part(&model, made, tier_input), start() + TimeDelta::hours(hour));
            let candidates = book.explain(&call, at);
            let applying: Vec<PriceId> = candidates
                .iter()
                .filter(|candidate| candidate.verdict == Verdict::Applies)
                .map(|candidate| candidate.price.id)
                .collect();
            let chosen = book.choose(&call, at);
            prop_assert_eq!(&applying, &chosen.iter().map(|price| price.id).collect::<Vec<_>>());
            for Candidate { price, verdict } in &candidates {
                match verdict {
                    Verdict::NotYetValid => prop_assert!(at < price.valid_from),
                    Verdict::NoLongerValid => prop_assert!(price.valid_to.unwrap() <= at),
                    Verdict::Differs(differences) => prop_assert!(!differences.is_empty()),
                    Verdict::OtherModel => prop_assert_ne!(&price.model, &model),
                    Verdict::Applies | Verdict::LessSpecific | Verdict::Derived => prop_assert!(chosen.is_ok()),
                }
            }
        }
    }
}
