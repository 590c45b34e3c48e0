//! OpenRouter's model list: US dollars per token or unit, as strings.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::number::{decimal, rate};
use super::{Defaults, Import, Listed, Tiers, UnitRates, Variant, overlaid};
use crate::domain::price::PriceConditions;
use crate::domain::tokens::TokenClass;

const PROVIDER: &str = "openrouter";
/// Its keys that we have a class for.
const CLASSES: [(&str, TokenClass); 13] = [
    ("prompt", TokenClass::Input),
    ("completion", TokenClass::Output),
    ("input_cache_read", TokenClass::CacheRead),
    ("input_cache_write", TokenClass::CacheWrite5m),
    ("input_cache_write_1h", TokenClass::CacheWrite1h),
    ("internal_reasoning", TokenClass::Reasoning),
    ("audio", TokenClass::InputAudio),
    ("audio_output", TokenClass::OutputAudio),
    ("input_audio_cache", TokenClass::CacheReadAudio),
    ("image_token", TokenClass::InputImage),
    ("request", TokenClass::Request),
    ("image", TokenClass::Image),
    ("web_search", TokenClass::WebSearch),
];
/// Fields of a price that are no rate.
const CONDITIONS: [&str; 5] = ["overrides", "discount", "min_prompt_tokens", "utc_start", "utc_end"];

#[derive(Deserialize)]
struct List {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    pricing: BTreeMap<String, Box<RawValue>>,
}

pub(super) fn read(file: &[u8], defaults: &Defaults, import: &mut Import) -> Result<(), serde_json::Error> {
    let list: List = serde_json::from_slice(file)?;
    for Model { id, pricing } in list.data {
        let listed = Listed { provider: PROVIDER, model: &id, aliases: Vec::new(), defaults };
        model(&listed, &pricing, import)?;
    }
    Ok(())
}

fn model(
    listed: &Listed<'_>,
    pricing: &BTreeMap<String, Box<RawValue>>,
    import: &mut Import,
) -> Result<(), serde_json::Error> {
    if pricing.get("discount").and_then(|raw| decimal(raw)).is_some_and(|discount| !discount.is_zero()) {
        import.ignore(listed.what("discount"), "a discount without an end is no price that can be dated");
        return Ok(());
    }
    let before = import.ignored.len();
    let base = rates(listed, pricing, import);
    if import.ignored.len() > before {
        import.ignore(listed.what("as a whole"), "one of its rates cannot be taken, so none is");
        return Ok(());
    }
    // Its "0" for a fee means that there is none; a model without any price is free or priced by what it routes to.
    let base: UnitRates =
        base.into_iter().filter(|(class, rate)| !class.is_fee() || !rate.is_zero()).collect();
    if base.values().all(rust_decimal::Decimal::is_zero) {
        import.ignore(
            listed.what("as a whole"),
            "every rate is 0: publish a price of 0 yourself if it is free",
        );
        return Ok(());
    }
    let mut tiers = Tiers::from([(0, base.clone())]);
    if let Some(raw) = pricing.get("overrides") {
        for over in serde_json::from_str::<Vec<BTreeMap<String, Box<RawValue>>>>(raw.get())? {
            override_rates(listed, &over, &base, &mut tiers, import);
        }
    }
    for (above, rates) in &tiers {
        let conditions = PriceConditions {
            context_above: (*above > 0).then_some(*above),
            // "min" counts the threshold itself.
            context_inclusive: *above > 0,
            ..PriceConditions::default()
        };
        import.prices.push(listed.price(rates, Variant { conditions, ..Variant::default() }));
    }
    Ok(())
}

fn rates(listed: &Listed<'_>, pricing: &BTreeMap<String, Box<RawValue>>, import: &mut Import) -> UnitRates {
    let mut rates = UnitRates::new();
    for (key, raw) in pricing.iter().filter(|(key, _)| !CONDITIONS.contains(&key.as_str())) {
        let Some((_, class)) = CLASSES.iter().find(|(name, _)| name == key) else {
            // What is free needs no class.
            if decimal(raw).is_none_or(|rate| !rate.is_zero()) {
                import.ignore(listed.what(key), "there is no class for it");
            }
            continue;
        };
        if let Some(rate) = rate(import, || listed.what(key), raw, 1) {
            rates.insert(*class, rate);
        }
    }
    rates
}

/// An override by length becomes a tier, one by time of day a price of its own.
fn override_rates(
    listed: &Listed<'_>,
    over: &BTreeMap<String, Box<RawValue>>,
    base: &UnitRates,
    tiers: &mut Tiers,
    import: &mut Import,
) {
    let minimum = over.get("min_prompt_tokens").and_then(|raw| raw.get().parse::<i64>().ok());
    let hours = hours(over);
    let own = rates(listed, over, import);
    match (minimum, hours) {
        (Some(minimum), None) if minimum > 0 => {
            let below =
                tiers.range(..=minimum).next_back().map_or_else(|| base.clone(), |(_, rates)| rates.clone());
            tiers.insert(minimum, overlaid(&below, &own));
        }
        (None, Some(hours)) => {
            let conditions = PriceConditions { hours_utc: vec![hours], ..PriceConditions::default() };
            let price = listed.price(&overlaid(base, &own), Variant { conditions, ..Variant::default() });
            import.prices.push(price);
        }
        _ => import.ignore(listed.what("override"), "it has neither a length nor hours alone"),
    }
}

/// `HH:MM-HH:MM` of `utc_start` and `utc_end`, which may have seconds.
fn hours(over: &BTreeMap<String, Box<RawValue>>) -> Option<String> {
    let time = |key: &str| {
        let text: String = serde_json::from_str(over.get(key)?.get()).ok()?;
        text.get(..5).map(str::to_owned)
    };
    Some(format!("{}-{}", time("utc_start")?, time("utc_end")?))
}
