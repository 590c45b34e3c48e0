//! Settlements against tables worked out by hand, and against counting every single token.

use std::collections::BTreeMap;
use std::slice::from_ref;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::event::Outcome;
use crate::domain::ids::{BookId, PeriodPriceId};
use crate::domain::invoice::{LineKind, PriceTerms};
use crate::domain::money::{Amount, Currency, Rate};
use crate::domain::period::Period;
use crate::domain::price::period_price::quotation::NewPeriodPrice;
use crate::domain::price::period_price::{PeriodPrice, Scheme, TierRate};
use crate::domain::price::{BookInfo, BookKind};
use crate::domain::settlement::{FinishedTask, HourOfUsage, PayingBooks, SettledLine, TaskEntry};
use crate::domain::tokens::{CLASS_COUNT, Quantities, TokenClass};

const BOOK: BookId = BookId(1);

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn november() -> Period {
    Period { start: utc("2026-11-01T00:00:00Z"), end: utc("2026-12-01T00:00:00Z") }
}

/// List prices 1 (gpt-5: input 2.5, output 10 per million), 2 (gpt-5-mini: input 0.25), 3 (gpt-5 in another book), and
/// 4 (gpt-5 re-rated: input 2.2).
fn terms() -> BTreeMap<PriceId, PriceTerms> {
    use TokenClass::{Input, Output};
    let terms = |book, model: &str, rates: &[(TokenClass, i128)]| {
        let mut resolved = [None; CLASS_COUNT];
        for (class, femtos) in rates {
            resolved[class.index()] = Some(Rate::from_femtos(*femtos).unwrap());
        }
        let (provider, model) = ("openai".to_owned(), model.to_owned());
        PriceTerms { book: BookId(book), provider, model, currency: Currency::USD, rates: resolved }
    };
    BTreeMap::from([
        (PriceId(1), terms(1, "gpt-5", &[(Input, 2_500_000_000), (Output, 10_000_000_000)])),
        (PriceId(2), terms(1, "gpt-5-mini", &[(Input, 250_000_000), (Output, 2_000_000_000)])),
        (PriceId(3), terms(2, "gpt-5", &[(Input, 2_500_000_000)])),
        (PriceId(4), terms(1, "gpt-5", &[(Input, 2_200_000_000), (Output, 10_000_000_000)])),
    ])
}

fn used(hour: i64, price: i64, class: TokenClass, quantity: i64) -> HourOfUsage {
    let mut raw = [0; CLASS_COUNT];
    raw[class.index()] = quantity;
    HourOfUsage {
        service: november(),
        hour: november().start + TimeDelta::hours(hour),
        price: PriceId(price),
        task_type: String::new(),
        quantities: Quantities::from_raw(raw),
    }
}

fn price(id: i64, value: Value) -> PeriodPrice {
    let new: NewPeriodPrice = serde_json::from_value(value).unwrap();
    let book =
        BookInfo { id: BOOK, name: "standard".to_owned(), kind: BookKind::Sell, currency: Currency::USD };
    PeriodPrice { id: PeriodPriceId(id), book, draft: new.check(0).unwrap() }
}

fn tiers(kind: &str, model: &str, tiers: &Value) -> Value {
    let absolute = tiers[0].get("rate").is_some();
    json!({"name": "n", "kind": kind, "model": model, "classes": ["input"], "tiers": tiers,
           "per": absolute.then_some(1_000_000), "valid_from": "2026-01-01T00:00:00Z"})
}

fn settle(hours: &[HourOfUsage], prices: &[PeriodPrice]) -> Vec<SettledLine> {
    settle_usage(november(), hours, &terms(), prices, &[]).unwrap()
}

fn exact(lines: &[SettledLine]) -> Amount {
    Amount::checked_sum(lines.iter().map(|line| line.rate.times(line.quantity).unwrap())).unwrap()
}

/// What the usage comes to in all: at the list, and what the settlement makes of it.
fn charged(hours: &[HourOfUsage], prices: &[PeriodPrice]) -> Amount {
    list(hours).checked_add(exact(&settle(hours, prices))).unwrap()
}

fn list(hours: &[HourOfUsage]) -> Amount {
    let terms = terms();
    let amounts = hours.iter().flat_map(|hour| {
        let rates = terms[&hour.price].rates;
        let amount = move |(class, quantity): (TokenClass, i64)| {
            rates[class.index()].unwrap().times(quantity).unwrap()
        };
        hour.quantities.non_zero().map(amount).collect::<Vec<_>>()
    });
    Amount::checked_sum(amounts).unwrap()
}

/// Rather no invoice than one with amounts of one currency under the code of another.
#[test]
fn usage_in_another_currency_is_not_settled() {
    let mut terms = terms();
    let euro: Currency = "EUR".parse().unwrap();
    terms.get_mut(&PriceId(1)).unwrap().currency = euro;
    let steps = json!([{"up_to": "1000000", "rate": "2.5"}, {"rate": "1"}]);
    let included = json!({"name": "n", "kind": "task", "task_type": "refund", "amount": "1", "usage": "included",
        "valid_from": "2026-01-01T00:00:00Z"});
    let input = used(1, 1, TokenClass::Input, 5);
    let of_task = HourOfUsage { task_type: "refund".to_owned(), ..input.clone() };
    for (period_price, hour) in [(tiers("graduated", "gpt-5", &steps), input), (included, of_task)] {
        let refused = settle_usage(november(), &[hour], &terms, &[price(7, period_price)], &[]);
        let expected = SettlementError::Currency {
            price: PriceId(1),
            usage: euro,
            period_price: PeriodPriceId(7),
            changed: Currency::USD,
        };
        assert_eq!(refused, Err(expected));
    }
}

const STEPS: [(i64, &str, &str, &str); 9] = [
    // Units, graduated, volume, packages: 2.5 up to 1,000,000, 2 up to 3,000,000, then 1; packages of a million at 5.
    (0, "0", "0", "0"),
    (1, "0.0000025", "0.0000025", "5"),
    (999_999, "2.4999975", "2.4999975", "5"),
    (1_000_000, "2.5", "2.5", "5"),
    // The first unit above: two millionths for itself, or for all.
    (1_000_001, "2.500002", "2.000002", "10"),
    (2_999_999, "6.499998", "5.999998", "15"),
    (3_000_000, "6.5", "6", "15"),
    (3_000_001, "6.500001", "3.000001", "20"),
    (5_000_000, "8.5", "5", "25"),
];

#[test]
fn tiers_and_packages_at_their_boundaries() {
    let steps =
        json!([{"up_to": "1000000", "rate": "2.5"}, {"up_to": "3000000", "rate": "2"}, {"rate": "1"}]);
    let package = json!({"name": "n", "kind": "package", "model": "gpt-5", "classes": ["input"], "size": "1000000",
                         "amount": "5", "valid_from": "2026-01-01T00:00:00Z"});
    for (units, graduated, volume, packages) in STEPS {
        let hours = [used(3, 1, TokenClass::Input, units)];
        let charged = |value: Value| charged(&hours, &[price(1, value)]).to_string();
        assert_eq!(charged(tiers("graduated", "gpt-5", &steps)), graduated, "{units} graduated");
        assert_eq!(charged(tiers("volume", "gpt-5", &steps)), volume, "{units} volume");
        assert_eq!(charged(package.clone()), packages, "{units} in packages");
    }
}

#[test]
fn lines_say_how_they_came_about() {
    let hours = [used(1, 1, TokenClass::Input, 12_000_000), used(2, 2, TokenClass::Input, 3_000_000)];
    let steps = json!([{"up_to": "10000000", "rate": "2.5"}, {"rate": "2"}]);
    let lines = settle(&hours, &[price(7, tiers("graduated", "gpt-5", &steps))]);
    let [line] = lines.as_slice() else { panic!("one line: {lines:?}") };
    assert_eq!(
        (line.kind, line.quantity, line.rate.to_string().as_str()),
        (LineKind::Tier, 2_000_000, "-0.0000005")
    );
    assert_eq!(line.note, "n: graduated: 2000000 above 10000000 at 2 instead of 2.5 per 1000000");
    assert_eq!(
        (line.model.as_deref(), line.class, line.price),
        (Some("gpt-5"), Some(TokenClass::Input), PeriodPriceId(7))
    );
    let steps = json!([{"up_to": "10000000", "factor": "1"}, {"factor": "0.9"}]);
    let lines = settle(&hours, &[price(7, tiers("volume", "gpt-*", &steps))]);
    let notes: Vec<&str> = lines.iter().map(|line| line.note.as_str()).collect();
    assert_eq!(
        notes,
        [
            "n: volume: 12000000 of 15000000 in all, above 10000000, at 2.25 instead of 2.5 per 1000000",
            "n: volume: 3000000 of 15000000 in all, above 10000000, at 0.225 instead of 0.25 per 1000000",
        ]
    );
    let package = json!({"name": "m", "kind": "package", "model": "gpt-*", "classes": ["input", "output"],
        "size": "10000000", "amount": "5", "valid_from": "2026-01-01T00:00:00Z"});
    let lines = settle(&hours, &[price(7, package)]);
    let shown: Vec<String> = lines
        .iter()
        .map(|line| format!("{} {:?} {} {} {}", line.kind, line.model, line.quantity, line.rate, line.note))
        .collect();
    assert_eq!(
        shown,
        [
            "package None 2 5 m: 2 packages of 10000000 at 5, used 15000000",
            "included_usage Some(\"gpt-5\") -12000000 0.0000025 m: in the packages",
            "included_usage Some(\"gpt-5-mini\") -3000000 0.00000025 m: in the packages",
        ]
    );
}

#[test]
fn only_usage_of_the_book_the_scope_and_the_time_is_counted() {
    let steps = || json!([{"rate": "0"}]);
    let free = price(1, tiers("graduated", "gpt-5", &steps()));
    assert_eq!(settle(&[used(1, 3, TokenClass::Input, 5)], from_ref(&free)), [], "another book");
    assert_eq!(settle(&[used(1, 1, TokenClass::Output, 5)], from_ref(&free)), [], "another class");
    assert_eq!(settle(&[used(1, 2, TokenClass::Input, 5)], &[free]), [], "another model");
    let mut short = tiers("graduated", "gpt-5", &steps());
    (short["valid_from"], short["valid_to"]) = (json!("2026-11-02T00:00:00Z"), json!("2026-11-03T00:00:00Z"));
    let counted =
        |hour| !settle(&[used(hour, 1, TokenClass::Input, 5)], &[price(1, short.clone())]).is_empty();
    assert_eq!([23, 24, 47, 48].map(counted), [false, true, true, false]);
}

/// The customer's own prices, from the second of November on.
#[test]
fn an_override_book_goes_before_the_sell_book() {
    let own = |price: PeriodPrice| PeriodPrice { book: BookInfo { id: BookId(2), ..price.book }, ..price };
    let paying = |from: &str, to: Option<&str>, override_book| PayingBooks {
        valid_from: utc(from),
        valid_to: to.map(utc),
        override_book,
        sell_book: BOOK,
    };
    let second = "2026-11-02T00:00:00Z";
    let books = [paying("2026-01-01T00:00:00Z", Some(second), None), paying(second, None, Some(BookId(2)))];
    let shown = |hours: &[HourOfUsage], prices: &[PeriodPrice]| -> Vec<String> {
        let lines = settle_usage(november(), hours, &terms(), prices, &books).unwrap();
        lines.iter().map(|line| format!("{} {} by {}", line.kind, line.quantity, line.price)).collect()
    };
    let free = || tiers("graduated", "gpt-5", &json!([{"rate": "0"}]));
    let both = [price(1, free()), own(price(2, free()))];
    // Rated by the sell book, and by the override: before the override and since.
    let hours = [
        used(1, 1, TokenClass::Input, 3),
        used(30, 1, TokenClass::Input, 5),
        used(30, 3, TokenClass::Input, 7),
    ];
    assert_eq!(shown(&hours, &both), ["tier 3 by 1", "tier 12 by 2"]);
    assert_eq!(
        shown(&hours, &both[..1]),
        ["tier 8 by 1"],
        "what the override rated is none of the sell book's"
    );
    let of_refund = hours.map(|hours| HourOfUsage { task_type: "refund".to_owned(), ..hours });
    let task = || task_price(1, "refunds", None, "0.5", "included");
    let included = ["included_usage -12 by 1"];
    assert_eq!(shown(&of_refund, &[task()]), included, "whichever book rated it, since the price is valid");
    assert_eq!(shown(&of_refund, &[own(price_as(2, task()))]), ["included_usage -12 by 2"]);
    assert_eq!(shown(&of_refund, &[task(), own(price_as(2, task()))]), ["included_usage -12 by 2"]);

    let ended = FinishedTask {
        books: vec![BookId(2), BOOK],
        ..finished(Outcome::Success, "2026-11-10T00:00:00Z", None)
    };
    let charged = |prices: &[PeriodPrice]| charge_tasks(from_ref(&ended), prices)[0].entry.price;
    assert_eq!(charged(&[task(), own(price_as(2, task()))]), PeriodPriceId(2));
    assert_eq!(charged(&[task()]), PeriodPriceId(1));
}

fn price_as(id: i64, price: PeriodPrice) -> PeriodPrice {
    PeriodPrice { id: PeriodPriceId(id), ..price }
}

#[test]
fn the_count_goes_on_where_a_price_takes_anothers_place() {
    let part = |id, from: &str, to: Option<&str>, steps: Value| {
        let mut value = tiers("graduated", "gpt-5", &steps);
        (value["valid_from"], value["valid_to"]) = (json!(from), json!(to));
        price(id, value)
    };
    let middle = "2026-11-15T00:00:00Z";
    let before =
        part(1, "2026-01-01T00:00:00Z", Some(middle), json!([{"up_to": "10", "rate": "3"}, {"rate": "2"}]));
    let after = part(2, middle, None, json!([{"up_to": "10", "rate": "3"}, {"rate": "1"}]));
    // Ten at 3 and two at 2 before the change; all five after it are above the first tier already: at 1.
    let hours = [used(0, 1, TokenClass::Input, 12), used(14 * 24, 1, TokenClass::Input, 5)];
    assert_eq!(charged(&hours, &[after, before]).to_string(), "0.000039");

    let package = |id, from: &str, to: Option<&str>, amount: &str| {
        price(
            id,
            json!({"name": "n", "kind": "package", "model": "gpt-5", "classes": ["input"], "size": "10",
            "amount": amount, "valid_from": from, "valid_to": to}),
        )
    };
    let packages = [package(1, "2026-01-01T00:00:00Z", Some(middle), "5"), package(2, middle, None, "7")];
    // Two at 5 hold 20 units; of those after the change three are in the second, and the rest begin one at 7.
    assert_eq!(charged(&hours, &packages).to_string(), "10");
    let more = [hours[0].clone(), used(14 * 24, 1, TokenClass::Input, 9)];
    assert_eq!(charged(&more, &packages).to_string(), "17");
}

#[test]
fn corrections_count_back() {
    let steps = json!([{"up_to": "10", "rate": "3"}, {"rate": "1"}]);
    let prices = [price(1, tiers("graduated", "gpt-5", &steps))];
    // An estimate of 15, taken back, and 8 in its place: 8 at 3.
    let hours = [
        used(1, 1, TokenClass::Input, 15),
        used(2, 1, TokenClass::Input, -15),
        used(3, 1, TokenClass::Input, 8),
    ];
    assert_eq!(charged(&hours, &prices).to_string(), "0.000024");
    // More is taken back than there is: in the first tier.
    assert_eq!(charged(&[used(1, 1, TokenClass::Input, -4)], &prices).to_string(), "-0.000012");
    // Re-rated from 2.5 to 2.2: with rates of their own, tiers do not change by it.
    let plain = [used(1, 1, TokenClass::Input, 12)];
    let rerated = [plain[0].clone(), used(1, 1, TokenClass::Input, -12), used(1, 4, TokenClass::Input, 12)];
    assert_eq!(charged(&rerated, &prices), charged(&plain, &prices));
}

fn task_price(id: i64, name: &str, outcome: Option<&str>, amount: &str, usage: &str) -> PeriodPrice {
    price(
        id,
        json!({"name": name, "kind": "task", "task_type": "refund", "outcome": outcome, "amount": amount,
               "usage": usage, "valid_from": "2026-11-02T00:00:00Z"}),
    )
}

#[test]
fn usage_that_a_task_includes_is_taken_back_and_in_no_tier() {
    let of_refund = |hours: HourOfUsage| HourOfUsage { task_type: "refund".to_owned(), ..hours };
    let hours = [
        of_refund(used(30, 1, TokenClass::Input, 7)),
        of_refund(used(30, 1, TokenClass::Output, 3)),
        used(30, 1, TokenClass::Input, 11),
        // Before the price is valid.
        of_refund(used(1, 1, TokenClass::Input, 4)),
    ];
    let ten = price(9, tiers("graduated", "gpt-5", &json!([{"up_to": "10", "rate": "2.5"}, {"rate": "1"}])));
    let lines = settle(&hours, &[task_price(1, "refunds", None, "0.5", "included"), ten.clone()]);
    let shown: Vec<String> =
        lines.iter().map(|line| format!("{} {} {}", line.kind, line.class.unwrap(), line.quantity)).collect();
    assert_eq!(shown, ["tier input 5", "included_usage input -7", "included_usage output -3"]);
    let lines = settle(&hours, &[task_price(1, "refunds", None, "0.5", "billed"), ten]);
    assert_eq!(lines.iter().map(|line| line.quantity).collect::<Vec<_>>(), [12]);
}

fn finished(outcome: Outcome, ended_at: &str, last: Option<TaskEntry>) -> FinishedTask {
    FinishedTask {
        task: "t".to_owned(),
        task_type: Some("refund".to_owned()),
        outcome,
        ended_at: utc(ended_at),
        service: november(),
        books: vec![BOOK],
        last,
    }
}

#[test]
fn a_task_is_charged_once_and_credited_where_its_end_changes() {
    use Outcome::{Failure, Success};
    let at = "2026-11-10T00:00:00Z";
    let success = task_price(1, "success", Some("success"), "0.5", "included");
    let failure = task_price(2, "failure", Some("failure"), "0.1", "included");
    let any = task_price(3, "any", None, "0.3", "included");
    let charges = |task: FinishedTask, prices: &[PeriodPrice]| -> Vec<TaskEntry> {
        charge_tasks(&[task], prices).into_iter().map(|charge| charge.entry).collect()
    };
    let shown = |entries: &[TaskEntry]| -> Vec<String> {
        entries
            .iter()
            .map(|entry| format!("{} {} {}", entry.number, entry.quantity(), entry.amount.per_unit()))
            .collect()
    };
    let first = charges(finished(Success, at, None), from_ref(&success));
    assert_eq!(shown(&first), ["1 1 0.5"]);
    let standing = || Some(first[0].clone());
    assert_eq!(charges(finished(Failure, at, None), from_ref(&success)), []);
    assert_eq!(
        charges(finished(Success, "2026-11-01T23:00:00Z", None), from_ref(&success)),
        [],
        "not valid yet"
    );
    let elsewhere = FinishedTask { books: vec![BookId(2)], ..finished(Success, at, None) };
    assert_eq!(charges(elsewhere, from_ref(&success)), [], "another book");
    let other = FinishedTask { task_type: None, ..finished(Success, at, None) };
    assert_eq!(charges(other, from_ref(&success)), [], "another type");
    // Reported again: nothing, also where the price is gone.
    assert_eq!(charges(finished(Success, at, standing()), from_ref(&success)), []);
    assert_eq!(charges(finished(Success, at, standing()), &[]), []);
    // It failed after all: the charge is taken back at its own amount, whatever the price is now.
    let dearer = task_price(4, "success", Some("success"), "0.9", "included");
    let credit = charges(finished(Failure, at, standing()), from_ref(&dearer));
    assert_eq!(shown(&credit), ["2 -1 0.5"]);
    assert_eq!(charges(finished(Failure, at, Some(credit[0].clone())), from_ref(&dearer)), []);
    let again = charges(finished(Success, at, Some(credit[0].clone())), &[dearer]);
    assert_eq!(shown(&again), ["3 1 0.9"]);
    // Another price applies to the new end; or the same one to any.
    assert_eq!(
        shown(&charges(finished(Failure, at, standing()), &[success, failure])),
        ["2 -1 0.5", "3 1 0.1"]
    );
    let last = charges(finished(Success, at, None), from_ref(&any)).pop();
    assert_eq!(charges(finished(Failure, at, last), &[any]), []);

    let mut lines = TaskLines::default();
    for tasks in [
        vec![
            finished(Success, at, None),
            FinishedTask { task: "v".to_owned(), ..finished(Failure, at, Some(first[0].clone())) },
        ],
        vec![FinishedTask { task: "u".to_owned(), ..finished(Success, at, None) }],
    ] {
        let price = task_price(1, "success", Some("success"), "0.5", "included");
        lines.add(&charge_tasks(&tasks, &[price])).unwrap();
    }
    let mut shown: Vec<String> =
        lines.into_lines().map(|line| format!("{} {} {}", line.quantity, line.rate, line.note)).collect();
    shown.sort_unstable();
    assert_eq!(
        shown,
        [
            "-1 0.5 success: credit, the outcome of tasks charged before has changed",
            "2 0.5 success: finished tasks"
        ]
    );
}

/// Usage of two models and classes at three list rates, by hour.
fn any_usage() -> impl Strategy<Value = Vec<HourOfUsage>> {
    let classes = prop::sample::select(vec![TokenClass::Input, TokenClass::Output]);
    let prices = prop::sample::select(vec![1_i64, 2, 4]);
    let hour = (0_i64..700, prices, classes, 1_i64..30);
    prop::collection::vec(hour.prop_map(|(hour, price, class, units)| used(hour, price, class, units)), 0..30)
}

/// Ends of tiers and factors; the last tier has no end.
fn any_steps() -> impl Strategy<Value = (Vec<i64>, Vec<u32>)> {
    let ends = prop::collection::btree_set(1_i64..200, 0..5);
    (ends, prop::collection::vec(0_u32..30, 5))
        .prop_map(|(ends, factors)| (ends.into_iter().collect(), factors))
}

fn stepped(
    kind: &str,
    name: &str,
    from: &str,
    to: Option<&str>,
    (ends, factors): &(Vec<i64>, Vec<u32>),
) -> Value {
    let last = (ends.len(), factors[ends.len() % 5]);
    let ends = ends.iter().enumerate().map(|(at, end)| (Some(end.to_string()), factors[at % 5]));
    let steps: Vec<Value> = ends
        .chain([(None, last.1)])
        .map(|(up_to, factor)| json!({"up_to": up_to, "factor": format!("{}.{}", factor / 10, factor % 10)}))
        .collect();
    json!({"name": name, "kind": kind, "model": "gpt-5*", "classes": ["input", "output"], "tiers": steps,
           "valid_from": from, "valid_to": to})
}

/// Every token for itself, in the order in which they are counted, with the hour it was used in.
fn tokens(hours: &[HourOfUsage]) -> Vec<(DateTime<Utc>, Rate)> {
    let terms = terms();
    let mut tokens: Vec<(DateTime<Utc>, String, TokenClass, Rate)> = Vec::new();
    for hour in hours {
        let terms = &terms[&hour.price];
        for (class, quantity) in hour.quantities.non_zero() {
            for _ in 0..quantity {
                tokens.push((hour.hour, terms.model.clone(), class, terms.rates[class.index()].unwrap()));
            }
        }
    }
    tokens.sort();
    tokens.into_iter().map(|(hour, _, _, rate)| (hour, rate)).collect()
}

/// What one token costs that is the `number`-th.
fn token_rate(price: &PeriodPrice, number: usize, list: Rate) -> Amount {
    let (Scheme::Graduated(tiers) | Scheme::Volume(tiers)) = &price.draft.scheme else { panic!("tiers") };
    let number = i64::try_from(number).unwrap();
    let tier = tiers.tiers.iter().find(|tier| tier.up_to.is_none_or(|up_to| number <= up_to)).unwrap();
    match tier.rate {
        TierRate::Absolute(rate) => rate.per_unit(),
        TierRate::Factor(factor) => list.marked_up(factor).unwrap().0.per_unit(),
    }
}

const CHANGE: &str = "2026-11-15T00:00:00Z";

proptest! {
    /// Two graduated prices, one after the other, against every token for itself.
    #[test]
    fn graduated_tiers_are_token_by_token(hours in any_usage(), first in any_steps(), second in any_steps()) {
        let prices = [
            price(1, stepped("graduated", "n", "2026-01-01T00:00:00Z", Some(CHANGE), &first)),
            price(2, stepped("graduated", "n", CHANGE, None, &second)),
        ];
        let by_token = tokens(&hours).into_iter().enumerate().map(|(at, (hour, list))| {
            token_rate(&prices[usize::from(hour >= utc(CHANGE))], at + 1, list)
        });
        prop_assert_eq!(charged(&hours, &prices), Amount::checked_sum(by_token).unwrap());
    }

    /// All units at the rate of the last one's tier; one more unit can make all of them cheaper.
    #[test]
    fn volume_tiers_are_at_the_last_tokens_rate(hours in any_usage(), steps in any_steps()) {
        let prices = [price(1, stepped("volume", "n", "2026-01-01T00:00:00Z", None, &steps))];
        let tokens = tokens(&hours);
        let by_token = tokens.iter().map(|(_, list)| token_rate(&prices[0], tokens.len(), *list));
        prop_assert_eq!(charged(&hours, &prices), Amount::checked_sum(by_token).unwrap());
    }

    /// The least number of packages that holds everything, whatever the list rates are.
    #[test]
    fn packages_hold_everything(hours in any_usage(), size in 1_usize..100, cents in 0_i64..1000) {
        let amount = format!("{}.{:02}", cents / 100, cents % 100);
        let package = price(1, json!({"name": "n", "kind": "package", "model": "gpt-5*", "classes": ["input", "output"],
            "size": size.to_string(), "amount": amount, "valid_from": "2026-01-01T00:00:00Z"}));
        let packages = i64::try_from(tokens(&hours).chunks(size).count()).unwrap();
        let expected: Amount = amount.parse().unwrap();
        prop_assert_eq!(charged(&hours, &[package]), expected.times(packages).unwrap());
    }

    /// Neither the order of the sums nor how they are split changes a line.
    #[test]
    fn order_and_grouping_of_the_sums_change_nothing(
        hours in any_usage(),
        steps in any_steps(),
        kind in prop::sample::select(vec!["graduated", "volume"]),
        turn in 0_usize..30,
        cut in -50_i64..50,
    ) {
        let prices = [price(1, stepped(kind, "n", "2026-01-01T00:00:00Z", None, &steps))];
        let straight = settle(&hours, &prices);
        let mut shuffled = hours;
        if !shuffled.is_empty() {
            let by = turn % shuffled.len();
            shuffled.rotate_left(by);
            shuffled.reverse();
            let whole = shuffled.remove(0);
            let (class, units) = whole.quantities.non_zero().next().unwrap();
            let mut part = |units| {
                let mut raw = [0; CLASS_COUNT];
                raw[class.index()] = units;
                shuffled.push(HourOfUsage { quantities: Quantities::from_raw(raw), ..whole.clone() });
            };
            part(cut);
            part(units - cut);
        }
        prop_assert_eq!(settle(&shuffled, &prices), straight);
    }
}
