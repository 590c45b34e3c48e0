//! LiteLLM's price map: US dollars per unit by key; tiers and service tiers are suffixes of the keys.
//!
//! The map has no dates and no currency of its own. Its rules, as taken here: thresholds are strictly greater, but for
//! xAI; a service tier without a rate of its own for a class has the standard one; off-peak rates replace the others.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::number::{decimal, rate};
use super::{Defaults, Import, Listed, Tiers, UnitRates, Variant, overlaid_tiers};
use crate::domain::price::PriceConditions;
use crate::domain::tokens::TokenClass;

/// Keys that are money per unit of a class of ours.
const RATES: [(&str, TokenClass); 18] = [
    ("input_cost_per_token", TokenClass::Input),
    ("output_cost_per_token", TokenClass::Output),
    ("cache_read_input_token_cost", TokenClass::CacheRead),
    ("cache_creation_input_token_cost", TokenClass::CacheWrite5m),
    ("cache_creation_input_token_cost_above_1hr", TokenClass::CacheWrite1h),
    ("output_cost_per_reasoning_token", TokenClass::Reasoning),
    ("input_cost_per_audio_token", TokenClass::InputAudio),
    ("output_cost_per_audio_token", TokenClass::OutputAudio),
    ("input_cost_per_image_token", TokenClass::InputImage),
    ("output_cost_per_image_token", TokenClass::OutputImage),
    ("input_cost_per_video_token", TokenClass::InputVideo),
    ("output_cost_per_video_token", TokenClass::OutputVideo),
    ("cache_read_input_audio_token_cost", TokenClass::CacheReadAudio),
    ("cache_read_input_image_token_cost", TokenClass::CacheReadImage),
    ("input_cost_per_request", TokenClass::Request),
    ("code_interpreter_cost_per_session", TokenClass::CodeSession),
    ("ocr_cost_per_page", TokenClass::Page),
    ("input_cost_per_token_cache_hit", TokenClass::CacheRead),
];
/// Keys of one fee that come for the input and the output; taken where they do not contradict each other.
const EITHER: [(&str, TokenClass); 7] = [
    ("input_cost_per_image", TokenClass::Image),
    ("output_cost_per_image", TokenClass::Image),
    ("input_cost_per_second", TokenClass::Second),
    ("output_cost_per_second", TokenClass::Second),
    ("cost_per_second", TokenClass::Second),
    ("input_cost_per_character", TokenClass::Character),
    ("output_cost_per_character", TokenClass::Character),
];
/// Suffixes that name a service tier or a batch.
const TIERS: [&str; 6] = ["priority", "flex", "batches", "balanced", "ultrafast", "decisions"];
/// Beginnings of keys about money that we cannot hold, and why.
const UNSUPPORTED: [(&str, &str); 26] = [
    ("explicit_cache_read_input_token_cost", "a second rate for cache reads has no class"),
    ("citation_cost_per_token", "citation tokens have no class"),
    ("input_dbu_cost_per_token", "it is in units of account; the dollars are beside it"),
    ("output_dbu_cost_per_token", "it is in units of account; the dollars are beside it"),
    ("cache_creation_input_audio_token_cost", "cache writes of audio have no class"),
    ("web_search_billing_unit", "fees are per search"),
    ("search_free_requests", "free allowances are not modelled"),
    ("google_maps_grounding_cost_per_query", "the fee has no class"),
    ("input_cost_per_query", "a search unit has no class"),
    ("guardrail_cost_per_unit", "the fee has no class"),
    ("input_cost_per_text_message", "the fee has no class"),
    ("annotation_cost_per_page", "annotated pages have no class of their own"),
    ("ocr_cost_per_credit", "credits have no class"),
    ("file_search_cost_per_1k_calls", "the fee has no class"),
    ("file_search_cost_per_gb_per_day", "storage is not usage of a call"),
    ("vector_store_cost_per_gb_per_day", "storage is not usage of a call"),
    ("computer_use_input_cost_per_1k_tokens", "the fee has no class"),
    ("computer_use_output_cost_per_1k_tokens", "the fee has no class"),
    ("output_cost_per_image_", "images have one class, not one per size"),
    ("input_cost_per_pixel", "pixels have no class"),
    ("output_cost_per_pixel", "pixels have no class"),
    ("output_cost_per_second_", "seconds have one class, not one per resolution"),
    ("input_cost_per_video_per_second", "seconds have one class, not one per modality"),
    ("output_cost_per_video_per_second", "seconds have one class, not one per modality"),
    ("input_cost_per_audio_per_second", "seconds have one class, not one per modality"),
    ("regional_endpoint_uplift_multiplier", "prices name a region; they cannot ask for any but one"),
];
/// Names of providers that usage events have other names for.
const PROVIDERS: [(&str, &str); 3] =
    [("gemini", "google"), ("cohere_chat", "cohere"), ("moonshot", "moonshotai")];
/// Providers whose thresholds count the threshold itself.
const INCLUSIVE: [&str; 1] = ["xai"];
/// Entries that are no models.
const NO_MODELS: [&str; 2] = ["sample_spec", "fallback_generalizations"];

type Keys = BTreeMap<String, Box<RawValue>>;

/// What a key of the map is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// Money per unit of a class, maybe above a length, maybe in a tier.
    Rate { class: TokenClass, above: i64, tier: Option<&'a str> },
    /// A structure that is read by itself.
    Structure,
    /// Money that cannot be held.
    Unsupported(&'static str),
    /// Not about money.
    Other,
}

/// Reads a key by its name.
pub(super) fn key(name: &str) -> Key<'_> {
    const STRUCTURES: [&str; 6] = [
        "search_context_cost_per_query",
        "off_peak_pricing",
        "tiered_pricing",
        "provider_specific_entry",
        "regional_processing_uplift_multiplier_eu",
        "regional_processing_uplift_multiplier_us",
    ];
    if STRUCTURES.contains(&name) {
        return Key::Structure;
    }
    let (rest, tier) = match name.rsplit_once('_') {
        Some((rest, suffix)) if TIERS.contains(&suffix) => (rest, Some(suffix)),
        _ => (name, None),
    };
    let (base, above) = threshold(rest).unwrap_or((rest, 0));
    if let Some((_, class)) = RATES.iter().chain(&EITHER).find(|(known, _)| *known == base) {
        return Key::Rate { class: *class, above, tier };
    }
    if let Some((_, reason)) = UNSUPPORTED.iter().find(|(known, _)| name.starts_with(known)) {
        return Key::Unsupported(reason);
    }
    if name.contains("cost") || name.contains("pric") || name.contains("uplift") {
        return Key::Unsupported("the key is not known here");
    }
    Key::Other
}

/// `<base>_above_200k_tokens` as its base and 200000.
fn threshold(name: &str) -> Option<(&str, i64)> {
    let (base, length) = name.strip_suffix("_tokens")?.rsplit_once("_above_")?;
    let thousands: i64 = length.strip_suffix('k')?.parse().ok()?;
    Some((base, thousands.checked_mul(1000)?))
}

pub(super) fn read(file: &[u8], defaults: &Defaults, import: &mut Import) -> Result<(), serde_json::Error> {
    let map: BTreeMap<String, Keys> = serde_json::from_slice(file)?;
    let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
    for (name, keys) in map.iter().filter(|(name, _)| !NO_MODELS.contains(&name.as_str())) {
        let Some(listed_as) = keys.get("litellm_provider").and_then(|raw| text(raw)) else {
            import.ignore(name.as_str(), "it names no provider");
            continue;
        };
        let provider = PROVIDERS
            .iter()
            .find(|(theirs, _)| *theirs == listed_as)
            .map_or(listed_as.as_str(), |(_, ours)| *ours);
        let model = name.strip_prefix(&format!("{listed_as}/")).unwrap_or(name);
        if !seen.insert((provider.to_owned(), model.to_owned())) {
            import.ignore(name.as_str(), format!("{provider} {model} is listed twice"));
            continue;
        }
        let listed = Listed { provider, model, aliases: Vec::new(), defaults };
        entry(&listed, keys, import)?;
    }
    Ok(())
}

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// Everything that an entry says about money.
fn entry(listed: &Listed<'_>, keys: &Keys, import: &mut Import) -> Result<(), serde_json::Error> {
    let mut by_tier: BTreeMap<Option<&str>, Tiers> = BTreeMap::new();
    for (name, raw) in keys {
        match key(name) {
            Key::Rate { class, above, tier } => {
                if let Some(rate) = rate(import, || listed.what(name), raw, 1) {
                    let rates = by_tier.entry(tier).or_default().entry(above).or_default();
                    settle(listed, name, class, rate, rates, import);
                }
            }
            Key::Unsupported(reason) => import.ignore(listed.what(name), reason),
            Key::Structure | Key::Other => {}
        }
    }
    let mut base = by_tier.remove(&None).unwrap_or_default();
    if let Some(raw) = keys.get("tiered_pricing") {
        table_tiers(listed, raw, &mut base, import)?;
    }
    if let Some(raw) = keys.get("search_context_cost_per_query") {
        search_fee(listed, raw, &mut base, import)?;
    }
    let base = overlaid_tiers(&Tiers::from([(0, UnitRates::new())]), &base);
    if base.values().flat_map(UnitRates::values).all(Decimal::is_zero) {
        import.ignore(
            listed.what("as a whole"),
            "it has no rate above 0, which the map also writes for unknown prices",
        );
        return Ok(());
    }
    let mut sets = vec![(PriceConditions::default(), base.clone())];
    for (tier, own) in &by_tier {
        let Some(tier) = tier else { continue };
        let tiers = overlaid_tiers(&base, own);
        if listed.provider == "openai" && *tier == "priority" {
            sets.push((tier_conditions("fast"), tiers.clone()));
        }
        sets.push((tier_conditions(tier), tiers));
    }
    for conditions in off_peak(listed, keys, &base, import)? {
        sets.push(conditions);
    }
    push(listed, keys, &sets, import)
}

/// Two keys of one class must not contradict each other; a 0 beside a price is the side that costs nothing.
fn settle(
    listed: &Listed<'_>,
    name: &str,
    class: TokenClass,
    rate: Decimal,
    rates: &mut UnitRates,
    import: &mut Import,
) {
    match rates.get(&class) {
        Some(other) if *other == rate || rate.is_zero() => {}
        Some(other) if !other.is_zero() => {
            import.ignore(listed.what(name), format!("it contradicts another rate of {class}, {other}"));
        }
        _ => {
            rates.insert(class, rate);
        }
    }
}

fn tier_conditions(tier: &str) -> PriceConditions {
    let name = || Some(tier.to_owned());
    match tier {
        "batches" => PriceConditions { processing: Some("batch".to_owned()), ..PriceConditions::default() },
        _ => PriceConditions { service_tier: name(), ..PriceConditions::default() },
    }
}

/// `tiered_pricing`: ranges of lengths, open below and closed above.
fn table_tiers(
    listed: &Listed<'_>,
    raw: &RawValue,
    base: &mut Tiers,
    import: &mut Import,
) -> Result<(), serde_json::Error> {
    let rows: Vec<Keys> = serde_json::from_str(raw.get())?;
    for row in &rows {
        let range: Option<Vec<Box<RawValue>>> =
            row.get("range").map(|raw| serde_json::from_str(raw.get())).transpose()?;
        let above = range
            .and_then(|range| decimal(range.first()?))
            .and_then(|above| above.normalize().to_string().parse::<i64>().ok());
        let Some(above) = above else {
            import.ignore(listed.what("tiered_pricing"), "a row has no range of whole tokens");
            continue;
        };
        for (name, raw) in row {
            match key(name) {
                Key::Rate { class, above: 0, tier: None } => {
                    if let Some(rate) = rate(import, || listed.what(name), raw, 1) {
                        base.entry(above).or_default().insert(class, rate);
                    }
                }
                Key::Other => {}
                _ => import.ignore(listed.what(name), "it is not taken inside tiered_pricing"),
            }
        }
    }
    Ok(())
}

/// One fee per search; where it depends on the size of the search context there is no one fee.
fn search_fee(
    listed: &Listed<'_>,
    raw: &RawValue,
    base: &mut Tiers,
    import: &mut Import,
) -> Result<(), serde_json::Error> {
    let what = "search_context_cost_per_query";
    let sizes: Keys = serde_json::from_str(raw.get())?;
    let fees: BTreeSet<Decimal> =
        sizes.values().filter_map(|raw| rate(import, || listed.what(what), raw, 1)).collect();
    match fees.first() {
        Some(fee) if fees.len() == 1 => {
            base.entry(0).or_default().insert(TokenClass::WebSearch, *fee);
        }
        _ => import.ignore(listed.what(what), "the fee depends on the size of the search context"),
    }
    Ok(())
}

#[derive(Deserialize)]
struct Window {
    hours_utc: Option<OneOrMany>,
    #[serde(default)]
    weekdays: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// `off_peak_pricing`: its rates at certain hours, whatever the length of the prompt.
fn off_peak(
    listed: &Listed<'_>,
    keys: &Keys,
    base: &Tiers,
    import: &mut Import,
) -> Result<Vec<(PriceConditions, Tiers)>, serde_json::Error> {
    let Some(raw) = keys.get("off_peak_pricing") else { return Ok(Vec::new()) };
    let fields: Keys = serde_json::from_str(raw.get())?;
    if let Some(zone) = fields.get("weekday_timezone").and_then(|raw| text(raw)).filter(|zone| zone != "UTC")
    {
        import.ignore(
            listed.what("off_peak_pricing"),
            format!("its weekdays are those of {zone}; ours are of UTC"),
        );
        return Ok(Vec::new());
    }
    let mut rates = base.get(&0).cloned().unwrap_or_default();
    for (name, raw) in &fields {
        if let Key::Rate { class, above: 0, tier: None } = key(name)
            && let Some(rate) = rate(import, || listed.what(name), raw, 1)
        {
            rates.insert(class, rate);
        }
    }
    let mut windows: Vec<Window> = match fields.get("windows") {
        Some(raw) => serde_json::from_str(raw.get())?,
        None => Vec::new(),
    };
    if let Some(raw) = fields.get("hours_utc") {
        windows.push(Window { hours_utc: Some(serde_json::from_str(raw.get())?), weekdays: Vec::new() });
    }
    let conditions = windows.into_iter().map(|window| {
        let hours = match window.hours_utc {
            None => Vec::new(),
            Some(OneOrMany::One(hours)) => vec![hours],
            Some(OneOrMany::Many(hours)) => hours,
        };
        // The whole day needs no hours.
        let hours_utc = hours.into_iter().filter(|hours| hours != "00:00-00:00").collect();
        PriceConditions { hours_utc, weekdays: window.weekdays, ..PriceConditions::default() }
    });
    Ok(conditions.map(|conditions| (conditions, Tiers::from([(0, rates.clone())]))).collect())
}

/// The prices of an entry: every set at every length, and again for regions and speeds that multiply it.
fn push(
    listed: &Listed<'_>,
    keys: &Keys,
    sets: &[(PriceConditions, Tiers)],
    import: &mut Import,
) -> Result<(), serde_json::Error> {
    let inclusive = INCLUSIVE.contains(&listed.provider);
    let factors = factors(listed, keys, import)?;
    for (conditions, tiers) in sets {
        for (above, rates) in tiers {
            let limited = PriceConditions {
                context_above: (*above > 0).then_some(*above),
                context_inclusive: *above > 0 && inclusive,
                ..conditions.clone()
            };
            let variant = Variant { conditions: limited.clone(), ..Variant::default() };
            import.prices.push(listed.price(rates, variant));
            for (region, speed, factor) in &factors {
                if speed.is_some() && (limited.processing.is_some() || limited.service_tier.is_some()) {
                    continue;
                }
                let conditions =
                    PriceConditions { region: region.clone(), speed: speed.clone(), ..limited.clone() };
                let variant = Variant { conditions, multiplier: Some(*factor), ..Variant::default() };
                import.prices.push(listed.price(rates, variant));
            }
        }
    }
    Ok(())
}

type Factor = (Option<String>, Option<String>, Decimal);

/// Regions and speeds that multiply the token rates, and both at once.
fn factors(listed: &Listed<'_>, keys: &Keys, import: &mut Import) -> Result<Vec<Factor>, serde_json::Error> {
    let mut factors: Vec<Factor> = Vec::new();
    for region in ["eu", "us"] {
        let uplift = keys.get(&format!("regional_processing_uplift_multiplier_{region}"));
        if let Some(factor) = uplift.and_then(|raw| decimal(raw)) {
            factors.push((Some(region.to_owned()), None, factor));
        }
    }
    let Some(raw) = keys.get("provider_specific_entry") else { return Ok(factors) };
    let entry: Keys = serde_json::from_str(raw.get())?;
    let factor = |name: &str| entry.get(name).and_then(|raw| decimal(raw));
    let (us, fast) = (factor("us"), factor("fast"));
    for name in entry.keys().filter(|name| *name != "us" && *name != "fast") {
        import.ignore(listed.what(name), "a hint for LiteLLM's own calls, not a price");
    }
    let (region, speed) = (|| Some("us".to_owned()), || Some("fast".to_owned()));
    if let Some(us) = us {
        factors.push((region(), None, us));
    }
    if let Some(fast) = fast {
        factors.push((None, speed(), fast));
        if let Some(both) = us.and_then(|us| us.checked_mul(fast)) {
            factors.push((region(), speed(), both));
        }
    }
    Ok(factors)
}
