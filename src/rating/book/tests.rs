use std::collections::BTreeMap;

use compact_str::CompactString;
use proptest::prelude::*;

use super::*;
use crate::domain::ids::BookId;
use crate::domain::money::{Currency, Rate};
use crate::domain::price::{BookKind, PriceConditions, resolve_parents};
use crate::domain::tokens::Quantities;

fn info() -> BookInfo {
    BookInfo { id: BookId(1), name: "cost".to_owned(), kind: BookKind::Cost, currency: Currency::USD }
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn rates(per_million: &[(&str, &str)], multiplier: &str) -> BTreeMap<TokenClass, Rate> {
    let per_unit = |class: TokenClass| if class.is_fee() { 1 } else { 1_000_000 };
    per_million
        .iter()
        .map(|(name, quoted)| {
            let class: TokenClass = name.parse().unwrap();
            let rate =
                Rate::from_quote(quoted.parse().unwrap(), per_unit(class), multiplier.parse().unwrap());
            (class, rate.unwrap().0)
        })
        .collect()
}

fn price(id: i64, own: &[(&str, &str)]) -> Price {
    Price {
        id: PriceId(id),
        book: BookId(1),
        provider: "openai".into(),
        model: "gpt-5".into(),
        conditions: PriceConditions::default(),
        rates: resolve_parents(&rates(own, "1")),
        valid_from: at("2025-01-01T00:00:00Z"),
        valid_to: None,
        recorded_at: at("2025-01-01T00:00:00Z"),
        derived: false,
    }
}

fn above(price: Price, tokens: i64, inclusive: bool) -> Price {
    let conditions = PriceConditions {
        context_above: Some(tokens),
        context_inclusive: inclusive,
        ..price.conditions.clone()
    };
    Price { conditions, ..price }
}

fn part(quantities: &[(&str, i64)]) -> UsagePart {
    let mut disjoint = Quantities::NONE;
    for (name, quantity) in quantities {
        disjoint.set(name.parse().unwrap(), *quantity).unwrap();
    }
    UsagePart {
        provider: "openai".into(),
        model: "gpt-5".into(),
        conditions: CallConditions::default(),
        quantities: disjoint,
        tier_input: disjoint.prompt_total(),
        stated_cost: None,
    }
}

fn book(prices: Vec<Price>) -> PriceBook {
    PriceBook::new(info(), prices, Vec::new()).unwrap()
}

fn amount(book: &PriceBook, part: &UsagePart) -> String {
    book.rate(part, at("2026-11-23T10:00:00Z")).unwrap().amount.to_string()
}

#[test]
fn known_calls_cost_what_their_providers_charge() {
    // Rates, multiplier, quantities, expected amount.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a [(&'a str, i64)], &'a str);
    let cases: [Case; 9] = [
        // gpt-4o with a cached subset.
        (
            &[("input", "2.5"), ("cache_read", "1.25"), ("output", "10")],
            "1",
            &[("input", 86), ("cache_read", 1920), ("output", 300)],
            "0.005615",
        ),
        // gpt-5: reasoning takes the output rate.
        (
            &[("input", "1.25"), ("cache_read", "0.125"), ("output", "10")],
            "1",
            &[("input", 75), ("output", 162), ("reasoning", 1024)],
            "0.01195375",
        ),
        // gpt-realtime by modality.
        (
            &[
                ("input", "4"),
                ("input_audio", "32"),
                ("cache_read", "0.4"),
                ("output", "16"),
                ("output_audio", "64"),
            ],
            "1",
            &[
                ("input", 116),
                ("input_audio", 444),
                ("cache_read", 384),
                ("cache_read_audio", 256),
                ("output", 100),
                ("output_audio", 600),
            ],
            "0.054928",
        ),
        // claude-sonnet-4-5 with a five-minute cache write.
        (
            &[("input", "3"), ("cache_write_5m", "3.75"), ("output", "15")],
            "1",
            &[("input", 3), ("cache_write_5m", 12_304), ("output", 550)],
            "0.054399",
        ),
        // claude-opus-4-6 in the US: 1.1 on every token class.
        (
            &[("input", "5"), ("cache_read", "0.5"), ("cache_write_5m", "6.25"), ("output", "25")],
            "1.1",
            &[("input", 1000), ("cache_read", 3000), ("cache_write_5m", 2000), ("output", 400)],
            "0.0319",
        ),
        // claude-sonnet-4-5 in a batch, with a one-hour cache write: half of everything.
        (
            &[
                ("input", "3"),
                ("cache_read", "0.3"),
                ("cache_write_5m", "3.75"),
                ("cache_write_1h", "6"),
                ("output", "15"),
            ],
            "0.5",
            &[("input", 1000), ("cache_read", 20_000), ("cache_write_1h", 10_000), ("output", 800)],
            "0.0405",
        ),
        // qwen-plus: reasoning has a rate of its own.
        (
            &[("input", "0.4"), ("output", "1.2"), ("reasoning", "4")],
            "1",
            &[("input", 256_000), ("output", 500), ("reasoning", 2500)],
            "0.113",
        ),
        // The float trap: 7 000 000 x 0.15 / 1 000 000.
        (&[("input", "0.15")], "1", &[("input", 7_000_000)], "1.05"),
        // A fee beside tokens.
        (&[("input", "1"), ("web_search", "0.01")], "1", &[("input", 10), ("web_search", 3)], "0.03001"),
    ];
    for (quoted, multiplier, used, expected) in cases {
        let price = Price { rates: resolve_parents(&rates(quoted, multiplier)), ..price(1, &[]) };
        assert_eq!(amount(&book(vec![price]), &part(used)), expected, "{used:?}");
    }
}

#[test]
fn a_tenth_and_two_tenths_are_three_tenths() {
    // Sums that binary floats get wrong: 0.1 + 0.2, 0.7 + 0.1, 1.1 + 2.2, 0.57 x 100, ten times 0.1.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, i64)], &'a str);
    let cases: [Case; 5] = [
        (&[("request", "0.1"), ("web_search", "0.2")], &[("request", 1), ("web_search", 1)], "0.3"),
        (&[("request", "0.7"), ("web_search", "0.1")], &[("request", 1), ("web_search", 1)], "0.8"),
        (&[("request", "1.1"), ("web_search", "2.2")], &[("request", 1), ("web_search", 1)], "3.3"),
        (&[("request", "0.57")], &[("request", 100)], "57"),
        (&[("input", "100000")], &[("input", 10)], "1"),
    ];
    for (quoted, used, expected) in cases {
        assert_eq!(amount(&book(vec![price(1, quoted)]), &part(used)), expected, "{used:?}");
    }
    let book = book(vec![price(1, &[("request", "0.1")])]);
    let tenth = book.rate(&part(&[("request", 1)]), at("2026-11-23T10:00:00Z")).unwrap().amount;
    assert_eq!(Amount::checked_sum([tenth; 10]).unwrap().to_string(), "1");
}

/// gpt-5.6-sol: the whole request jumps one token past the threshold.
fn tiered(inclusive: bool) -> PriceBook {
    let base = price(1, &[("input", "4"), ("cache_read", "0.4"), ("output", "20")]);
    let long = price(2, &[("input", "8"), ("cache_read", "0.8"), ("output", "30")]);
    book(vec![base, above(long, 272_000, inclusive)])
}

#[test]
fn past_the_threshold_the_whole_request_is_dearer() {
    let call = |input| part(&[("input", input), ("cache_read", 200_000), ("output", 1000)]);
    assert_eq!(amount(&tiered(false), &call(72_000)), "0.388");
    assert_eq!(amount(&tiered(false), &call(72_001)), "0.766008");
    assert_eq!(
        amount(&tiered(true), &call(72_000)),
        "0.766",
        "inclusive thresholds count the threshold itself"
    );
    assert_eq!(amount(&tiered(true), &call(71_999)), "0.387996");
}

#[test]
fn the_tier_is_chosen_by_the_prompt_that_the_event_states() {
    let whole_prompt = UsagePart { tier_input: 272_001, ..part(&[("input", 1000)]) };
    assert_eq!(amount(&tiered(false), &whole_prompt), "0.008");
}

#[test]
fn a_price_applies_from_its_first_instant_up_to_the_next() {
    let old = Price { valid_to: Some(at("2026-08-21T00:00:00Z")), ..price(1, &[("input", "5")]) };
    let new = Price { valid_from: at("2026-08-21T00:00:00Z"), ..price(2, &[("input", "4")]) };
    let book = book(vec![new, old]);
    let price_at = |time| book.rate(&part(&[("input", 1)]), at(time)).unwrap().price;
    assert_eq!(price_at("2026-08-20T23:59:59.999999Z"), PriceId(1));
    assert_eq!(price_at("2026-08-21T00:00:00Z"), PriceId(2));
    let before = book.rate(&part(&[("input", 1)]), at("2024-12-31T23:59:59Z")).unwrap_err();
    assert!(matches!(before, Unpriced::NoPriceAt { .. }), "{before}");
}

#[test]
fn peak_hours_have_their_own_price() {
    let hours_utc = vec!["01:00-04:00".to_owned(), "06:00-10:00".to_owned()];
    let peak = Price {
        conditions: PriceConditions { hours_utc, ..PriceConditions::default() },
        ..price(2, &[("input", "0.3"), ("cache_read", "0.006"), ("output", "1.2")])
    };
    let book = book(vec![price(1, &[("input", "0.15"), ("cache_read", "0.003"), ("output", "0.6")]), peak]);
    let call = part(&[("input", 40_000), ("cache_read", 60_000), ("output", 5000)]);
    let cost = |time| book.rate(&call, at(time)).unwrap().amount.to_string();
    assert_eq!(cost("2026-11-23T03:59:59Z"), "0.01836");
    assert_eq!(cost("2026-11-23T04:00:00Z"), "0.00918");
}

#[test]
fn a_call_of_another_tier_processing_or_speed_is_never_charged_the_standard_price() {
    type Set = fn(&mut CallConditions, Option<CompactString>);
    let book = book(vec![price(1, &[("input", "1")])]);
    let strict: [Set; 3] = [|c, v| c.service_tier = v, |c, v| c.processing = v, |c, v| c.speed = v];
    for set in strict {
        let mut call = part(&[("input", 10)]);
        for standard in [None, Some("default"), Some("Standard"), Some("")] {
            set(&mut call.conditions, standard.map(Into::into));
            assert_eq!(amount(&book, &call), "0.00001");
        }
        set(&mut call.conditions, Some("priority".into()));
        let unpriced = book.rate(&call, at("2026-11-23T10:00:00Z")).unwrap_err();
        assert!(matches!(unpriced, Unpriced::NoPriceFor { .. }), "{unpriced}");
        assert!(unpriced.to_string().contains("`priority`"), "{unpriced}");
    }
}

#[test]
fn a_region_or_platform_that_no_price_names_is_charged_as_any_other() {
    let us = Price {
        conditions: PriceConditions { region: Some("us".to_owned()), ..PriceConditions::default() },
        ..price(2, &[("input", "1.1")])
    };
    let book = book(vec![price(1, &[("input", "1")]), us]);
    let call = |region: Option<&str>, platform: Option<&str>| {
        let mut call = part(&[("input", 1_000_000)]);
        call.conditions.region = region.map(Into::into);
        call.conditions.platform = platform.map(Into::into);
        call
    };
    assert_eq!(amount(&book, &call(None, None)), "1");
    assert_eq!(amount(&book, &call(Some("eu"), Some("azure"))), "1");
    assert_eq!(amount(&book, &call(Some("US"), Some("azure"))), "1.1");
}

#[test]
fn platform_goes_before_region_before_hours_before_context() {
    let named = |id, conditions| Price { conditions, ..price(id, &[("input", "1")]) };
    let azure = PriceConditions { platform: Some("azure".into()), ..PriceConditions::default() };
    let eu = PriceConditions { region: Some("eu".into()), ..PriceConditions::default() };
    let morning = PriceConditions { hours_utc: vec!["06:00-12:00".into()], ..PriceConditions::default() };
    let long = PriceConditions { context_above: Some(5), ..PriceConditions::default() };
    let longer = PriceConditions { context_above: Some(9), ..PriceConditions::default() };
    let mut prices = vec![named(1, azure), named(2, eu), named(3, morning), named(4, longer), named(5, long)];
    prices.push(named(6, PriceConditions::default()));
    let mut call = part(&[("input", 10)]);
    call.conditions.platform = Some("azure".into());
    call.conditions.region = Some("eu".into());
    while !prices.is_empty() {
        let chosen = book(prices.clone()).choose(&call, at("2026-11-23T10:00:00Z")).unwrap().id;
        assert_eq!(chosen, prices[0].id);
        prices.remove(0);
    }
}

#[test]
fn an_explicit_price_goes_before_a_derived_one_of_the_same_conditions_only() {
    let derived = |id, own: &[(&str, &str)]| Price { derived: true, ..price(id, own) };
    let book = book(vec![
        derived(1, &[("input", "1.2")]),
        above(derived(2, &[("input", "2.4")]), 100, false),
        price(3, &[("input", "1")]),
    ]);
    assert_eq!(amount(&book, &part(&[("input", 100)])), "0.0001");
    assert_eq!(
        amount(&book, &part(&[("input", 1000)])),
        "0.0024",
        "the narrower price applies, whoever set it"
    );
}

#[test]
fn a_model_is_found_by_its_name_and_then_by_an_alias_of_that_time() {
    let alias = |name: &str, from: &str, inherited| ModelAlias {
        provider: "openai".into(),
        alias: name.to_owned(),
        model: if inherited { "gpt-4" } else { "gpt-5" }.to_owned(),
        valid_from: at(from),
        valid_to: None,
        inherited,
    };
    let old = Price { model: "gpt-4".into(), ..price(2, &[("input", "30")]) };
    let aliases = vec![
        alias("chat-latest", "2025-06-01T00:00:00Z", true),
        alias("chat-latest", "2026-01-01T00:00:00Z", false),
        alias("gpt-4", "2025-01-01T00:00:00Z", false),
    ];
    let book = PriceBook::new(info(), vec![price(1, &[("input", "1")]), old], aliases).unwrap();
    let named = |model: &str, time| {
        let call = UsagePart { model: model.into(), ..part(&[("input", 1)]) };
        book.rate(&call, at(time)).map(|rated| rated.price)
    };
    assert_eq!(
        named("chat-latest", "2026-02-01T00:00:00Z").unwrap(),
        PriceId(1),
        "its own meaning goes first"
    );
    assert_eq!(named("chat-latest", "2025-07-01T00:00:00Z").unwrap(), PriceId(2));
    assert!(matches!(named("chat-latest", "2025-05-01T00:00:00Z"), Err(Unpriced::NoPriceAt { .. })));
    assert_eq!(named("gpt-4", "2026-02-01T00:00:00Z").unwrap(), PriceId(2), "a name goes before an alias");
    assert!(matches!(named("gpt-6", "2026-02-01T00:00:00Z"), Err(Unpriced::UnknownModel { .. })));
}

#[test]
fn what_the_price_has_no_rate_for_is_unpriced_and_named() {
    let book = book(vec![price(1, &[("input", "0"), ("output", "1")])]);
    assert_eq!(amount(&book, &part(&[("input", 10)])), "0", "a rate of zero is a price");
    let unpriced =
        book.rate(&part(&[("input", 10), ("web_search", 2)]), at("2026-11-23T10:00:00Z")).unwrap_err();
    let expected = Unpriced::NoRate {
        price: PriceId(1),
        model: "gpt-5".into(),
        class: TokenClass::WebSearch,
        quantity: 2,
    };
    assert_eq!(unpriced, expected);
}

#[test]
fn a_call_is_one_request_for_a_price_with_a_fee_for_that() {
    let with_fee = book(vec![price(1, &[("input", "1"), ("web_search", "0.5"), ("request", "0.012")])]);
    let without = book(vec![price(2, &[("input", "1")])]);
    let rated = |book: &PriceBook, used: &[(&str, i64)]| book.rate(&part(used), at("2026-11-23T10:00:00Z"));
    let charged = |book: &PriceBook, used: &[(&str, i64)]| {
        let rated = rated(book, used).unwrap();
        (rated.amount.to_string(), rated.counted(part(used).quantities).get(TokenClass::Request))
    };
    assert_eq!(charged(&with_fee, &[("input", 1_000_000)]), ("1.012".to_owned(), 1));
    assert_eq!(charged(&with_fee, &[("web_search", 1)]), ("0.512".to_owned(), 1));
    assert_eq!(charged(&with_fee, &[("input", 1_000_000), ("request", 3)]), ("1.036".to_owned(), 3));
    assert_eq!(charged(&with_fee, &[("request", 2)]), ("0.024".to_owned(), 2));
    assert_eq!(charged(&with_fee, &[]), ("0".to_owned(), 0), "nothing used is nothing asked for");
    // Recorded for the other side of the margin, or stated: the call is one request, fee or not.
    assert_eq!(charged(&without, &[("input", 1_000_000), ("request", 1)]), ("1".to_owned(), 1));
    for used in [&[("request", 1)][..], &[("input", 1), ("request", 2)]] {
        let unpriced = rated(&without, used).unwrap_err();
        assert!(matches!(unpriced, Unpriced::NoRate { class: TokenClass::Request, .. }), "{unpriced}");
    }
}

#[test]
fn two_prices_that_could_both_apply_make_no_book() {
    let prices = vec![above(price(1, &[]), 200_000, true), above(price(2, &[]), 200_000, false)];
    let refused = PriceBook::new(info(), prices, Vec::new()).unwrap_err();
    assert!(matches!(refused, BookError::Ambiguous(..)), "{refused}");
}

/// A consecutive history of prices with a few contexts, so that at any time exactly one matches.
fn histories() -> impl Strategy<Value = Vec<Price>> {
    let contexts = prop::collection::btree_set(1_i64..100, 0..3);
    (prop::collection::btree_set(0_i64..1000, 1..6), contexts, any::<bool>()).prop_map(
        |(starts, contexts, inclusive)| {
            let start = at("2026-01-01T00:00:00Z");
            let starts: Vec<_> =
                starts.into_iter().map(|hours| start + chrono::TimeDelta::hours(hours)).collect();
            let mut prices = Vec::new();
            for (index, valid_from) in starts.iter().enumerate() {
                let of_interval = |id: usize| Price {
                    id: PriceId(i64::try_from(id).unwrap()),
                    valid_from: *valid_from,
                    valid_to: starts.get(index + 1).copied(),
                    ..price(1, &[("input", &(id + 1).to_string())])
                };
                prices.push(of_interval(prices.len()));
                for context in &contexts {
                    prices.push(above(of_interval(prices.len()), *context, inclusive));
                }
            }
            prices
        },
    )
}

proptest! {
    #[test]
    fn exactly_one_price_applies_at_any_instant_whatever_the_order(
        prices in histories(),
        hour in 0_i64..1100,
        tokens in 1_i64..120,
        turn in any::<prop::sample::Index>(),
    ) {
        let time = at("2026-01-01T00:00:00Z") + chrono::TimeDelta::hours(hour);
        let call = part(&[("input", tokens)]);
        // Found by going through all of them, without the index.
        let reached = |price: &Price| price.conditions.context_above.is_none_or(|above| {
            tokens > above || (price.conditions.context_inclusive && tokens == above)
        });
        let expected = prices
            .iter()
            .filter(|price| covers(price.valid_from, price.valid_to, time) && reached(price))
            .max_by_key(|price| price.conditions.context_above);
        let mut shuffled = prices.clone();
        shuffled.rotate_left(turn.index(prices.len()));
        let rated = book(shuffled).rate(&call, time);
        prop_assert_eq!(&rated, &book(prices.clone()).rate(&call, time));
        match expected {
            Some(price) => {
                let rated = rated.unwrap();
                prop_assert_eq!(rated.price, price.id);
                prop_assert_eq!(rated.amount, price.rate(TokenClass::Input).unwrap().times(tokens).unwrap());
            }
            None => prop_assert!(matches!(rated, Err(Unpriced::NoPriceAt { .. })), "{:?}", rated),
        }
    }

    #[test]
    fn at_the_threshold_the_whole_request_jumps(
        threshold in 1_000_i64..1_000_000,
        inclusive in any::<bool>(),
        low in 1_i64..1000,
        more in 1_i64..1000,
        [read, written, output] in prop::array::uniform3(0_i64..900),
    ) {
        let of_rate = |id: i64, rate: i64| {
            let (input, output) = (rate.to_string(), (2 * rate).to_string());
            price(id, &[("input", input.as_str()), ("output", output.as_str())])
        };
        let (base, long) = (of_rate(1, low), of_rate(2, low + more));
        let book = book(vec![above(long, threshold, inclusive), base]);
        // Caches count towards the threshold, and output is at the tier of the prompt.
        let cost = |prompt: i64| {
            let input = prompt - read - written;
            let call = part(&[("input", input), ("cache_read", read / 2), ("cache_write_5m", written), ("output", output)]);
            let call = UsagePart { tier_input: prompt, ..call };
            let units = i128::from(input + read / 2 + written + 2 * output);
            let rated = book.rate(&call, at("2026-11-23T10:00:00Z")).unwrap();
            (rated.price.0, rated.amount.femtos(), units)
        };
        let femtos = |per_million: i64, units: i128| i128::from(per_million) * units * 1_000_000_000;
        let last_low = if inclusive { threshold - 1 } else { threshold };
        let (chosen, below, units) = cost(last_low.max(read + written));
        if last_low >= read + written {
            prop_assert_eq!((chosen, below), (1, femtos(low, units)));
        }
        let (chosen, over, units) = cost((last_low + 1).max(read + written));
        prop_assert_eq!((chosen, over), (2, femtos(low + more, units)));
    }

    #[test]
    fn nothing_unknown_is_ever_zero(
        model in prop_oneof!["gpt-5", "[a-z0-9-]{1,12}"],
        class in 0_usize..crate::domain::tokens::CLASS_COUNT,
        quantity in 1_i64..1_000_000,
    ) {
        let class = TokenClass::ALL[class];
        let book = book(vec![price(1, &[("input", "1"), ("output", "2")])]);
        let call = UsagePart { model: model.as_str().into(), ..part(&[(class.name(), quantity)]) };
        match book.rate(&call, at("2026-11-23T10:00:00Z")) {
            Ok(rated) => prop_assert!(model == "gpt-5" && rated.amount > Amount::ZERO),
            Err(Unpriced::NoRate { class: named, .. }) => prop_assert_eq!(named, class),
            Err(Unpriced::UnknownModel { .. }) => prop_assert_ne!(model, "gpt-5"),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn a_reversal_takes_back_exactly_what_was_charged(input in 1_i64..1_000_000, output in 0_i64..1_000_000) {
        let book = book(vec![price(1, &[("input", "1.23456789"), ("output", "0.003625")])]);
        let call = part(&[("input", input), ("output", output)]);
        let reversal = UsagePart { quantities: call.quantities.negated(), ..call.clone() };
        let charged = book.rate(&call, at("2026-11-23T10:00:00Z")).unwrap().amount;
        let taken_back = book.rate(&reversal, at("2026-11-23T10:00:00Z")).unwrap().amount;
        prop_assert_eq!(charged.checked_add(taken_back), Some(Amount::ZERO));
    }
}
