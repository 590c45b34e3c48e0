//! LiteLLM's price map: US dollars per unit by key; tiers and service tiers are suffixes of the keys.
//!
//! The map has no dates and no currency of its own. Its rules, as taken here: thresholds are strictly greater, but for
//! xAI; a service tier without a rate of its own for a class has the standard one; off-peak rates replace the others.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::number::{decimal, rate};
use super::{Defaults, Import, Listed, Tiers, UnitRates, Variant, overlaid_tiers, up_to};
use crate::domain::money::without_noise;
use crate::domain::names::known_provider;
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
const EITHER: [(&str, TokenClass); 8] = [
    // A search unit of a rerank call is counted as a request.
    ("input_cost_per_query", TokenClass::Request),
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
const UNSUPPORTED: [(&str, &str); 25] = [
    ("explicit_cache_read_input_token_cost", "a second rate for cache reads has no class"),
    ("citation_cost_per_token", "citation tokens have no class"),
    ("input_dbu_cost_per_token", "it is in units of account; the dollars are beside it"),
    ("output_dbu_cost_per_token", "it is in units of account; the dollars are beside it"),
    ("cache_creation_input_audio_token_cost", "cache writes of audio have no class"),
    ("web_search_billing_unit", "fees are per search"),
    ("search_free_requests", "free allowances are not modelled"),
    ("google_maps_grounding_cost_per_query", "the fee has no class"),
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
/// Keys that are not about money. `supports_…` are not either; every other key that is in none of these lists is reported.
const OTHER: [&str; 27] = [
    "audio_transcription_config",
    "bedrock_converse_supports_strict_tools",
    "bedrock_output_config_effort_ceiling",
    "comment",
    "default_reasoning_effort",
    "deprecation_date",
    "gemini_audio_only_live",
    "gemini_native_audio",
    "litellm_provider",
    "max_input_tokens",
    "max_output_tokens",
    "max_tokens",
    "metadata",
    "mode",
    "output_vector_size",
    "prompt_cache_min_tokens",
    "reasoning_effort_levels",
    "rpm",
    "source",
    "thinking_always_on",
    "token_count_framing",
    "token_count_model",
    "token_count_tokenizer",
    "tpm",
    "use_openai_responses_path",
    "uses_embed_content",
    "vertex_ai_audio_api",
];
/// Beginning of the names of abilities, and of lists of what is supported.
const ABILITIES: [&str; 2] = ["supports_", "supported_"];
/// Why a key that is in none of the lists is not taken.
pub(super) const UNKNOWN: &str = "the key is not known here";
/// Entries that LiteLLM itself reads as those of another provider, which is what its calls report.
const FAMILIES: [(&str, &str); 2] =
    [("bedrock_converse", "bedrock"), ("fireworks_ai-embedding-models", "fireworks_ai")];
/// Beginning of the names of Vertex AI's families of models, all of one provider.
const VERTEX: &str = "vertex_ai";
/// Fireworks bills cached tokens at half the input rate where it names no rate (docs.fireworks.ai); LiteLLM has it in its code,
/// not in its map.
const HALF_WHERE_CACHED: &str = "fireworks_ai";
/// Zones of weekdays that have no summer time, and how many hours they are ahead of UTC.
const ZONES_AHEAD_HOURS: [(&str, u32); 2] = [("UTC", 0), ("Asia/Shanghai", 8)];
/// Providers whose thresholds count the threshold itself.
const INCLUSIVE: [&str; 1] = ["xai"];
/// What `off_peak_pricing` says besides rates.
const OFF_PEAK_TIMES: [&str; 3] = ["hours_utc", "windows", "weekday_timezone"];
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
    if OTHER.contains(&name) || ABILITIES.iter().any(|beginning| name.starts_with(beginning)) {
        return Key::Other;
    }
    Key::Unsupported(UNKNOWN)
}

/// `<base>_above_200k_tokens` as its base and 200000.
fn threshold(name: &str) -> Option<(&str, i64)> {
    let (base, length) = name.strip_suffix("_tokens")?.rsplit_once("_above_")?;
    let thousands: i64 = length.strip_suffix('k')?.parse().ok()?;
    Some((base, thousands.checked_mul(1000)?))
}

pub(super) fn read(file: &[u8], defaults: &Defaults, import: &mut Import) -> Result<(), serde_json::Error> {
    let map: BTreeMap<String, Keys> = serde_json::from_slice(file)?;
    let mut named = Vec::new();
    for (name, keys) in map.iter().filter(|(name, _)| !NO_MODELS.contains(&name.as_str())) {
        match keys.get("litellm_provider").and_then(|raw| text(raw)) {
            Some(listed_as) => named.push((name, family(&listed_as).to_owned(), keys)),
            None => import.ignore(name.as_str(), "it names no provider"),
        }
    }
    // A model that is listed twice: LiteLLM asks for the name with the provider first.
    named.sort_by_key(|(name, provider, _)| without_prefix(name, provider).is_none());
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (name, family, keys) in &named {
        let provider = known_provider(family).unwrap_or(family);
        let model = without_prefix(name, family).unwrap_or(name);
        if !seen.insert((provider, model)) {
            import.ignore(name.as_str(), format!("{provider} {model} is listed twice"));
            continue;
        }
        let listed = Listed { provider, model, aliases: Vec::new(), defaults };
        entry(&listed, keys, import)?;
    }
    Ok(())
}

/// The provider that LiteLLM prices an entry as.
fn family(listed_as: &str) -> &str {
    if listed_as.strip_prefix(VERTEX).is_some_and(|rest| rest.starts_with('-')) {
        return VERTEX;
    }
    FAMILIES.iter().find(|(theirs, _)| *theirs == listed_as).map_or(listed_as, |(_, family)| *family)
}

/// `openai/gpt-5` as `gpt-5` of `openai`.
fn without_prefix<'a>(name: &'a str, provider: &str) -> Option<&'a str> {
    name.strip_prefix(provider)?.strip_prefix('/')
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
    if listed.provider == HALF_WHERE_CACHED {
        halve_cached(&mut base);
    }
    follow_output(&mut base);
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
        let mut tiers = overlaid_tiers(&base, own);
        if *tier == "batches" {
            batch_hourly_writes(&base, own, &mut tiers);
        }
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

/// Half the input rate for cached tokens without a rate of their own.
fn halve_cached(base: &mut Tiers) {
    let Some(rates) = base.get_mut(&0) else { return };
    let half = rates.get(&TokenClass::Input).and_then(|input| input.checked_div(Decimal::TWO));
    if let Some((rate, _)) = half.and_then(without_noise) {
        rates.entry(TokenClass::CacheRead).or_insert(rate);
    }
}

/// A reasoning rate that only repeats the output rate goes along with that of long prompts and of tiers.
fn follow_output(base: &mut Tiers) {
    for rates in base.values_mut() {
        if rates.get(&TokenClass::Reasoning) == rates.get(&TokenClass::Output) {
            rates.remove(&TokenClass::Reasoning);
        }
    }
}

/// The map has no rate for one-hour writes of a batch. Where it lowers the other writes, these are lowered as the input
/// is: they are a multiple of it, and a batch lowers everything.
fn batch_hourly_writes(base: &Tiers, own: &Tiers, tiers: &mut Tiers) {
    for (above, rates) in tiers {
        let (standard, batch) = (up_to(base, *above), up_to(own, *above));
        let hourly = standard.get(&TokenClass::CacheWrite1h);
        let inputs = batch.get(&TokenClass::Input).zip(standard.get(&TokenClass::Input));
        let open =
            batch.contains_key(&TokenClass::CacheWrite5m) && !batch.contains_key(&TokenClass::CacheWrite1h);
        let lowered = hourly
            .zip(inputs)
            .filter(|_| open)
            .and_then(|(hourly, (batch, standard))| hourly.checked_mul(*batch)?.checked_div(*standard));
        if let Some((rate, _)) = lowered.and_then(without_noise) {
            rates.insert(TokenClass::CacheWrite1h, rate);
        }
    }
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
                Key::Unsupported(UNKNOWN) if name == "range" => {}
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

/// A window from midnight to midnight.
const WHOLE_DAY: &str = "00:00-00:00";

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
    let zone = fields.get("weekday_timezone").and_then(|raw| text(raw)).unwrap_or_else(|| "UTC".to_owned());
    let Some((_, ahead)) = ZONES_AHEAD_HOURS.iter().find(|(known, _)| *known == zone) else {
        import.ignore(
            listed.what("off_peak_pricing"),
            format!("its weekdays are those of {zone}, which may have summer time; ours are of UTC"),
        );
        return Ok(Vec::new());
    };
    let mut rates = base.get(&0).cloned().unwrap_or_default();
    for (name, raw) in fields.iter().filter(|(name, _)| !OFF_PEAK_TIMES.contains(&name.as_str())) {
        match key(name) {
            Key::Rate { class, above: 0, tier: None } => {
                if let Some(rate) = rate(import, || listed.what(name), raw, 1) {
                    rates.insert(class, rate);
                }
            }
            _ => import.ignore(listed.what(name), "it is not taken inside off_peak_pricing"),
        }
    }
    let mut windows: Vec<Window> = match fields.get("windows") {
        Some(raw) => serde_json::from_str(raw.get())?,
        None => Vec::new(),
    };
    if let Some(raw) = fields.get("hours_utc") {
        windows.push(Window { hours_utc: Some(serde_json::from_str(raw.get())?), weekdays: Vec::new() });
    }
    let conditions = windows.into_iter().flat_map(|window| window.in_utc(*ahead));
    Ok(conditions.map(|conditions| (conditions, Tiers::from([(0, rates.clone())]))).collect())
}

impl Window {
    /// The window by weekdays of UTC. LiteLLM asks for the weekday of each instant, also after midnight. One that begins some
    /// hours ahead of UTC's ends as many hours before it: what is later in UTC's day belongs to the next weekday.
    fn in_utc(self, ahead_hours: u32) -> Vec<PriceConditions> {
        let hours = match self.hours_utc {
            None => vec![WHOLE_DAY.to_owned()],
            Some(OneOrMany::One(hours)) => vec![hours],
            Some(OneOrMany::Many(hours)) => hours,
        };
        if self.weekdays.is_empty() {
            return vec![at(hours, self.weekdays)];
        }
        let turn = format!("{:02}:00", 24 - ahead_hours);
        let turn = turn.as_str();
        let (mut same_day, mut next_day) = (Vec::new(), Vec::new());
        // Times of day of equal length compare as texts; the end of a day is later than all of it.
        let window =
            |start: &str, end: &str| format!("{start}-{}", if end == "24:00" { "00:00" } else { end });
        for (start, end) in hours.iter().filter_map(|hours| hours.split_once('-')).flat_map(within_days) {
            if start < turn {
                same_day.push(window(start, end.min(turn)));
            }
            if end > turn {
                next_day.push(window(start.max(turn), end));
            }
        }
        let day_before = |day: &u8| if *day == 1 { 7 } else { day - 1 };
        let before = self.weekdays.iter().map(day_before).collect();
        [(same_day, self.weekdays), (next_day, before)]
            .into_iter()
            .filter(|(hours, _)| !hours.is_empty())
            .map(|(hours, weekdays)| at(hours, weekdays))
            .collect()
    }
}

/// A window of a day, or the two that one over midnight is.
fn within_days<'a>((start, end): (&'a str, &'a str)) -> Vec<(&'a str, &'a str)> {
    match end {
        "00:00" => vec![(start, "24:00")],
        _ if start < end => vec![(start, end)],
        _ => vec![(start, "24:00"), ("00:00", end)],
    }
}

/// Conditions of hours and weekdays; the whole day needs no hours.
fn at(hours: Vec<String>, weekdays: Vec<u8>) -> PriceConditions {
    let hours_utc = hours.into_iter().filter(|hours| hours != WHOLE_DAY).collect();
    PriceConditions { hours_utc, weekdays, ..PriceConditions::default() }
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
