//! The cost book that ships with the binary: facts with their source and the date they were checked.
//!
//! Starts of validity that no source dates are set early rather than late: a model has no calls before it exists.
//! Where a source gives a tier's or batch's price without saying since when, it stands for as long as the standard price
//! that it was listed beside. Where nobody dates a cut, the lower rate starts with the first list that shows it, and the
//! rate before lasts until then. A price for data that stays in a region is the standard one of every tier times 1.1, for
//! as long as that one: for the models of which a source says so, and no others.

use crate::domain::money::Currency;
use crate::domain::price::quotation::NewPrice;

/// The name of the starter cost book.
pub const BOOK: &str = "provider-cost";
/// The currency of its prices.
pub const CURRENCY: Currency = Currency::USD;

const PRICES: &str = include_str!("provider-cost.json");

/// The starter prices, to be published into [`BOOK`].
///
/// # Errors
/// Where the embedded file is not what a test saw.
pub fn prices() -> Result<Vec<NewPrice>, serde_json::Error> {
    serde_json::from_str(PRICES)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use chrono::{DateTime, Utc};

    use super::*;
    use crate::domain::event::{CallConditions, UsagePart};
    use crate::domain::ids::BookId;
    use crate::domain::price::publication::{Known, Published, plan};
    use crate::domain::price::quotation::Quote;
    use crate::domain::price::{BookInfo, BookKind};
    use crate::domain::tokens::Quantities;
    use crate::rating::{PriceBook, Unpriced};

    pub(crate) fn book() -> PriceBook {
        book_of(&prices().unwrap())
    }

    /// A book as publishing these prices into an empty one makes it.
    pub(crate) fn book_of(prices: &[NewPrice]) -> PriceBook {
        let plan = plan(Known::default(), prices, DateTime::UNIX_EPOCH).unwrap();
        assert!(
            plan.published.iter().all(|published| matches!(published, Published::Added { .. })),
            "no repeats"
        );
        let info =
            BookInfo { id: BookId(1), name: BOOK.to_owned(), kind: BookKind::Cost, currency: CURRENCY };
        PriceBook::planned(info, plan).unwrap()
    }

    fn call(provider: &str, model: &str, used: &[(&str, i64)]) -> UsagePart {
        let mut quantities = Quantities::NONE;
        for (class, quantity) in used {
            quantities.set(class.parse().unwrap(), *quantity).unwrap();
        }
        UsagePart {
            provider: provider.into(),
            model: model.into(),
            conditions: CallConditions::default(),
            tier_input: quantities.prompt_total(),
            quantities,
            stated_cost: None,
        }
    }

    fn cost(part: &UsagePart, at: &str) -> Result<String, Unpriced> {
        book().rate(part, at.parse().unwrap()).map(|rated| rated.amount.to_string())
    }

    #[test]
    fn it_covers_the_models_of_the_day_and_names_its_sources() {
        let now: DateTime<Utc> = "2026-11-23T12:00:00Z".parse().unwrap();
        let prices = prices().unwrap();
        assert!(prices.iter().all(|price| price.source.is_some() && price.checked_at.is_some()));
        let current = prices.iter().filter(|price| price.valid_to.is_none_or(|end| now < end));
        let mut models: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for price in current {
            models.entry(&price.provider).or_default().insert(&price.model);
        }
        assert!(models.len() >= 10, "{:?}", models.keys());
        assert!(models.values().map(BTreeSet::len).sum::<usize>() >= 60);
    }

    /// A call written as `provider model class quantity ...`.
    fn parsed(text: &str) -> UsagePart {
        let words: Vec<&str> = text.split_whitespace().collect();
        let used: Vec<(&str, i64)> =
            words[2..].chunks(2).map(|pair| (pair[0], pair[1].parse().unwrap())).collect();
        call(words[0], words[1], &used)
    }

    #[test]
    fn known_calls_cost_what_they_did_at_their_time() {
        let now = "2026-11-23T10:00:00Z";
        // Cached input of Gemini 2.5 gets cheaper.
        let (before, after) = ("2025-11-06T23:59:59Z", "2025-11-07T00:00:00Z");
        let cases = [
            // The dated history.
            ("openai gpt-4 input 1000 output 100", "2023-11-16T18:00:00Z", "0.036"),
            ("openai gpt-3.5-turbo input 1000 output 100", "2023-11-16T18:00:00Z", "0.0017"),
            ("openai gpt-5 input 75 output 162 reasoning 1024", "2025-08-07T00:00:00Z", "0.01195375"),
            ("openai gpt-5.6-sol input 100000 output 10000", "2026-08-20T23:59:59Z", "0.8"),
            ("openai gpt-5.6-sol input 100000 output 10000", "2026-08-21T00:00:00Z", "0.6"),
            ("anthropic claude-opus-4-6 input 200001", "2026-03-12T23:59:59Z", "2.00001"),
            ("anthropic claude-opus-4-6 input 200001", "2026-03-13T00:00:00Z", "1.000005"),
            // The price for long prompts stayed with these.
            ("anthropic claude-sonnet-4 input 200000", now, "0.6"),
            ("anthropic claude-sonnet-4 input 200001", now, "1.200006"),
            (
                "anthropic claude-sonnet-4-20250514 cache_read 100000 cache_write_1h 100001 output 1000",
                "2025-08-12T00:00:00Z",
                "1.282512",
            ),
            ("google gemini-4-argon input 1000000", "2026-12-01T00:00:00Z", "4"),
            ("openai o3 input 1000000 cache_read 1000000 output 1000000", "2025-06-09T23:59:59Z", "52.5"),
            ("openai o3 input 1000000 cache_read 1000000 output 1000000", "2025-06-10T00:00:00Z", "10.5"),
            ("google gemini-1.5-pro input 100000 output 10000", "2024-09-30T23:59:59Z", "0.455"),
            ("google gemini-1.5-pro input 100000 output 10000", "2024-10-01T00:00:00Z", "0.175"),
            ("google gemini-1.5-pro input 200000 output 10000", "2024-11-30T23:59:59Z", "1.61"),
            ("google gemini-1.5-pro input 200000 output 10000", "2024-12-01T00:00:00Z", "0.6"),
            ("google gemini-2.5-pro input 100000 cache_read 100000 output 10000", before, "0.25625"),
            ("google gemini-2.5-pro input 100000 cache_read 100000 output 10000", after, "0.2375"),
            ("google gemini-2.5-pro input 100001 cache_read 100000", before, "0.3125025"),
            ("google gemini-2.5-pro input 100001 cache_read 100000", after, "0.2750025"),
            ("google gemini-2.5-flash cache_read 1000000 cache_read_audio 1000000", before, "0.325"),
            ("google gemini-2.5-flash cache_read 1000000 cache_read_audio 1000000", after, "0.13"),
            ("google gemini-2.5-flash-lite input_audio 1000000 cache_read 1000000", before, "0.525"),
            ("google gemini-2.5-flash-lite input_audio 1000000 cache_read 1000000", after, "0.31"),
            // Cache writes, reasoning, context tiers.
            ("openai gpt-5.6-sol input 200 cache_read 2000 cache_write_5m 400 output 500", now, "0.0136"),
            ("openai gpt-5.6-sol input 72001 cache_read 200000 output 1000", now, "0.766008"),
            ("anthropic claude-sonnet-4-5-20250929 input 3 cache_write_5m 12304 output 550", now, "0.054399"),
            ("anthropic claude-haiku-4-5-20251001 input 9000 output 1500", now, "0.0165"),
            ("xai grok-4.3 input 400 cache_read 800 output 90 reasoning 450", now, "0.00201"),
            ("xai grok-4.3 input 200000", now, "0.5"),
            ("perplexity sonar input 1000 output 500 web_search 2", now, "0.0135"),
            ("google gemini-2.5-flash input 4000 output 200 reasoning 300", now, "0.00245"),
            ("mistral mistral-large-latest input 1000 output 1000", now, "0.002"),
            // What providers and routers stated themselves for such calls.
            ("xai grok-4.3 input 6140 cache_read 3072 output 3417 web_search 3", now, "0.0318319"),
            ("xai grok-4.3 input 10869 cache_read 10496 output 3646 web_search 8", now, "0.06480045"),
            ("google gemini-3.8-flash input 47 output 558 reasoning 744", now, "0.00491775"),
            ("google gemini-2.5-flash input 2 output 6 reasoning 356", "2026-02-25T00:00:00Z", "0.0009056"),
            (
                "anthropic claude-opus-5 input 8 output 224 cache_read 96086 cache_write_1h 11940",
                now,
                "0.173083",
            ),
            ("anthropic claude-fable-5-1 input 2 output 4 cache_write_1h 40913", now, "0.81848"),
            ("anthropic claude-opus-4-8 input 6540 output 10700", "2026-07-01T00:00:00Z", "0.3002"),
            ("openai gpt-5.6-luna input 425 output 55 reasoning 516", "2026-09-16T00:00:00Z", "0.0007702"),
            // Peak hours of working days.
            (
                "deepseek deepseek-flash input 40000 cache_read 60000 output 5000",
                "2026-11-23T03:59:59Z",
                "0.01836",
            ),
            (
                "deepseek deepseek-v4-flash input 40000 cache_read 60000 output 5000",
                "2026-11-23T04:00:00Z",
                "0.00918",
            ),
            (
                "deepseek deepseek-v4-flash input 40000 cache_read 60000 output 5000",
                "2026-11-22T03:00:00Z",
                "0.00918",
            ),
        ];
        for (used, at, expected) in cases {
            assert_eq!(cost(&parsed(used), at).as_deref(), Ok(expected), "{used} at {at}");
        }
    }

    #[test]
    fn tiers_batches_and_regions_have_their_own_prices() {
        let at = "2026-11-23T10:00:00Z";
        let mut priority =
            call("openai", "gpt-5", &[("input", 6000), ("cache_read", 4000), ("output", 1000)]);
        priority.conditions.service_tier = Some("priority".into());
        assert_eq!(cost(&priority, at).as_deref(), Ok("0.036"));
        let mut us = call(
            "anthropic",
            "claude-opus-4-6",
            &[("input", 1000), ("cache_read", 3000), ("cache_write_5m", 2000), ("output", 400)],
        );
        us.conditions.region = Some("us".into());
        assert_eq!(cost(&us, at).as_deref(), Ok("0.0319"));
        let used = [("input", 1000), ("cache_read", 20_000), ("cache_write_1h", 10_000), ("output", 800)];
        let mut batch = call("anthropic", "claude-sonnet-4-5", &used);
        batch.conditions.processing = Some("batch".into());
        assert_eq!(cost(&batch, at).as_deref(), Ok("0.0405"));
        batch.conditions.service_tier = Some("scale".into());
        assert!(matches!(cost(&batch, at), Err(Unpriced::NoPriceFor { .. })));
    }

    /// Models that cost more where their data stays in a region, and their regions.
    const REGIONAL: [(&str, &[&str], &[&str]); 2] = [
        (
            "openai",
            &["eu", "us"],
            &[
                "gpt-5.4",
                "gpt-5.4-mini",
                "gpt-5.4-nano",
                "gpt-5.4-pro",
                "gpt-5.5",
                "gpt-5.5-pro",
                "gpt-5.6-luna",
                "gpt-5.6-sol",
                "gpt-5.6-terra",
                "gpt-6-astra",
                "gpt-6-luna",
                "gpt-6-sol",
                "gpt-6.1-sol",
                "gpt-realtime-2.1-mini",
            ],
        ),
        (
            "anthropic",
            &["us"],
            &[
                "claude-fable-5",
                "claude-fable-5-1",
                "claude-fable-5-2",
                "claude-haiku-5-5",
                "claude-opus-4-6",
                "claude-opus-4-7",
                "claude-opus-4-8",
                "claude-opus-5",
                "claude-opus-5-5",
                "claude-sonnet-4-6",
                "claude-sonnet-5",
                "claude-sonnet-5-5",
            ],
        ),
    ];

    #[test]
    fn a_region_has_a_price_wherever_the_model_has_one() {
        let regional = |price: &NewPrice| {
            REGIONAL.iter().find(|(provider, _, models)| {
                *provider == price.provider && models.contains(&price.model.as_str())
            })
        };
        // What a standard price is in a region. Without it a call there would be rated as anywhere else.
        let twin = |price: &NewPrice, region: &str| {
            let mut twin = NewPrice { aliases: Vec::new(), source: None, checked_at: None, ..price.clone() };
            twin.conditions.region = Some(region.to_owned());
            twin.multiplier = Some(Quote("1.1".to_owned()));
            twin
        };
        let prices = prices().unwrap();
        let (there, anywhere): (Vec<_>, Vec<_>) =
            prices.into_iter().partition(|price| price.conditions.region.is_some());
        let mut there: Vec<NewPrice> =
            there.into_iter().map(|price| NewPrice { source: None, checked_at: None, ..price }).collect();
        for price in &anywhere {
            for region in regional(price).map(|(_, regions, _)| *regions).unwrap_or_default() {
                let twin = twin(price, region);
                let at = there.iter().position(|price| *price == twin);
                there.swap_remove(
                    at.unwrap_or_else(|| panic!("no price for {region} like {}", price.title())),
                );
            }
        }
        assert!(there.is_empty(), "no standard price like {}", there[0].title());
    }

    #[test]
    fn data_that_stays_in_a_region_costs_more_in_every_tier() {
        let now = "2026-11-23T10:00:00Z";
        let cases = [
            ("openai gpt-5.4 input 100000 output 10000", "eu", None, now, "0.44"),
            ("openai gpt-5.4 input 100000 output 10000", "us", None, now, "0.44"),
            ("openai gpt-5.4 input 100000 output 10000", "eu", Some("flex"), now, "0.22"),
            ("openai gpt-5.4 input 100000 output 10000", "jp", None, now, "0.4"),
            ("openai gpt-5.6 input 300000", "eu", Some("priority"), now, "5.28"),
            ("openai gpt-5.6 input 300000", "eu", None, "2026-08-20T00:00:00Z", "3.3"),
            ("openai gpt-5.4 web_search 1", "eu", None, now, "0.01"),
            // No source names a higher price for these.
            ("openai gpt-5 input 100000 output 10000", "eu", None, now, "0.225"),
            ("anthropic claude-opus-4-6 input 100000 output 10000", "eu", None, now, "0.75"),
            (
                "anthropic claude-opus-4-6 input 100000 output 10000",
                "us",
                None,
                "2026-02-01T00:00:00Z",
                "0.825",
            ),
            (
                "anthropic claude-opus-4-6 input 200001 output 10000",
                "us",
                None,
                "2026-02-01T00:00:00Z",
                "2.612511",
            ),
            ("anthropic claude-sonnet-4-6 input 200001", "us", None, "2026-02-01T00:00:00Z", "1.3200066"),
            ("anthropic claude-fable-5-2 cache_write_1h 100000", "us", None, now, "1.76"),
        ];
        for (used, region, tier, at, expected) in cases {
            let mut part = parsed(used);
            part.conditions.region = Some(region.into());
            part.conditions.service_tier = tier.map(Into::into);
            assert_eq!(cost(&part, at).as_deref(), Ok(expected), "{used} in {region} at {at}");
        }
    }
}
