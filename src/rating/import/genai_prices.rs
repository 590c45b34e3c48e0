//! The data file of genai-prices: US dollars per million tokens or thousand units, with dates, tiers and variants.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::number::rate;
use super::{Defaults, Import, Listed, Tiers, UnitRates, Variant, overlaid_tiers};
use crate::domain::names::known_provider;
use crate::domain::price::PriceConditions;
use crate::domain::tokens::TokenClass;

/// Its price keys that we have a class for, and the units they are quoted for.
const CLASSES: [(&str, TokenClass, u32); 20] = [
    ("input_mtok", TokenClass::Input, 1_000_000),
    ("output_mtok", TokenClass::Output, 1_000_000),
    ("cache_read_mtok", TokenClass::CacheRead, 1_000_000),
    ("cache_write_mtok", TokenClass::CacheWrite5m, 1_000_000),
    ("cache_write_5m_mtok", TokenClass::CacheWrite5m, 1_000_000),
    ("cache_write_1h_mtok", TokenClass::CacheWrite1h, 1_000_000),
    ("output_reasoning_mtok", TokenClass::Reasoning, 1_000_000),
    ("input_audio_mtok", TokenClass::InputAudio, 1_000_000),
    ("output_audio_mtok", TokenClass::OutputAudio, 1_000_000),
    ("cache_audio_read_mtok", TokenClass::CacheReadAudio, 1_000_000),
    ("input_image_mtok", TokenClass::InputImage, 1_000_000),
    ("output_image_mtok", TokenClass::OutputImage, 1_000_000),
    ("cache_image_read_mtok", TokenClass::CacheReadImage, 1_000_000),
    ("input_video_mtok", TokenClass::InputVideo, 1_000_000),
    ("output_video_mtok", TokenClass::OutputVideo, 1_000_000),
    ("cache_video_read_mtok", TokenClass::CacheReadVideo, 1_000_000),
    ("requests_kcount", TokenClass::Request, 1_000),
    ("web_searches_kcount", TokenClass::WebSearch, 1_000),
    ("input_document_kpages", TokenClass::Page, 1_000),
    ("input_mchars", TokenClass::Character, 1_000_000),
];

#[derive(Deserialize)]
struct Provider {
    id: String,
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(rename = "match")]
    matches: Clause,
    prices: Prices,
    #[serde(default)]
    price_variants: Vec<PriceVariant>,
}

/// How a name is matched; only exact names become aliases.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Clause {
    equals: Option<String>,
    or: Vec<Self>,
}

type Keys = BTreeMap<String, Box<RawValue>>;

/// One set of prices for all times, or a history.
struct Prices(Vec<Conditional>);

#[derive(Deserialize)]
struct Conditional {
    constraint: Option<Constraint>,
    prices: Keys,
}

#[derive(Deserialize, Clone)]
struct Constraint {
    start_date: Option<NaiveDate>,
    start_time: Option<String>,
    end_time: Option<String>,
}

#[derive(Deserialize)]
struct PriceVariant {
    when: BTreeMap<String, String>,
    prices: Keys,
    constraint: Option<Constraint>,
}

#[derive(Deserialize)]
struct Tiered {
    base: Box<RawValue>,
    tiers: Vec<Tier>,
}

#[derive(Deserialize)]
struct Tier {
    start: i64,
    price: Box<RawValue>,
}

impl<'de> Deserialize<'de> for Prices {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An untagged enum would read numbers as floats; the text decides instead.
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = raw.get();
        let history = if text.starts_with('[') {
            serde_json::from_str(text)
        } else {
            serde_json::from_str(text).map(|prices| vec![Conditional { constraint: None, prices }])
        };
        history.map(Self).map_err(serde::de::Error::custom)
    }
}

pub(super) fn read(file: &[u8], defaults: &Defaults, import: &mut Import) -> Result<(), serde_json::Error> {
    let providers: Vec<Provider> = serde_json::from_slice(file)?;
    for provider in &providers {
        let mut taken: Vec<&str> = provider.models.iter().map(|model| model.id.as_str()).collect();
        for model in &provider.models {
            let names = exact_names(&model.matches);
            let aliases: Vec<&str> = names.into_iter().filter(|name| !taken.contains(name)).collect();
            taken.extend(&aliases);
            let listed = Listed {
                provider: known_provider(&provider.id).unwrap_or(&provider.id),
                model: &model.id,
                aliases: aliases.into_iter().map(str::to_owned).collect(),
                defaults,
            };
            history(&listed, model, import)?;
        }
    }
    Ok(())
}

fn exact_names(clause: &Clause) -> Vec<&str> {
    let own = clause.equals.as_deref();
    own.into_iter().chain(clause.or.iter().filter_map(|clause| clause.equals.as_deref())).collect()
}

/// The stretches between the dates of a model's history, each with its variants and times of day.
fn history(listed: &Listed<'_>, model: &Model, import: &mut Import) -> Result<(), serde_json::Error> {
    let dated: Vec<(DateTime<Utc>, &Keys)> = model
        .prices
        .0
        .iter()
        .filter(|conditional| hours(conditional.constraint.as_ref()).is_none())
        .map(|conditional| (start(conditional.constraint.as_ref(), listed.defaults), &conditional.prices))
        .collect();
    let last = dated.len().saturating_sub(1);
    for (index, (from, keys)) in dated.iter().enumerate() {
        let to = dated.get(index + 1).map(|(from, _)| *from);
        if to.is_some_and(|to| to <= *from) {
            import.ignore(listed.what("history"), "it was replaced before the first date asked for");
            continue;
        }
        let base = tiers(listed, keys, import)?;
        push(listed, &base, &PriceConditions::default(), (*from, to), import);
        variants(listed, model, &base, (*from, to), import)?;
        if index == last {
            let own: Vec<&Conditional> = model.prices.0.iter().collect();
            times_of_day(listed, &own, *from, import)?;
        }
    }
    Ok(())
}

/// The variants of a stretch: each kind from its own date, or the stretch's start, to the next of its kind.
fn variants(
    listed: &Listed<'_>,
    model: &Model,
    base: &Tiers,
    (from, to): (DateTime<Utc>, Option<DateTime<Utc>>),
    import: &mut Import,
) -> Result<(), serde_json::Error> {
    let mut kinds: BTreeMap<&BTreeMap<String, String>, BTreeMap<DateTime<Utc>, &PriceVariant>> =
        BTreeMap::new();
    let ordinary =
        |variant: &&PriceVariant| variant.when.get("service_tier").is_none_or(|tier| tier != "default");
    let mut by_start: Vec<&PriceVariant> = model.price_variants.iter().filter(ordinary).collect();
    by_start.sort_by_key(|variant| variant.constraint.as_ref().and_then(|limits| limits.start_date));
    for variant in by_start {
        let date = variant.constraint.as_ref().and_then(|limits| limits.start_date);
        let starts = date.map_or(from, |date| date.and_time(NaiveTime::MIN).and_utc()).max(from);
        if to.is_none_or(|to| starts < to) {
            kinds.entry(&variant.when).or_default().insert(starts, variant);
        }
    }
    for (when, dated) in kinds {
        let Some(conditions) = conditions(when) else {
            let keys: Vec<&str> = when.keys().map(String::as_str).collect();
            import.ignore(listed.what(&keys.join(", ")), "prices cannot ask for it");
            continue;
        };
        let ends: Vec<_> = dated.keys().skip(1).map(|start| Some(*start)).chain([to]).collect();
        for ((starts, variant), ends) in dated.into_iter().zip(ends) {
            let own = tiers(listed, &variant.prices, import)?;
            push(listed, &overlaid_tiers(base, &own), &conditions, (starts, ends), import);
        }
    }
    Ok(())
}

fn conditions(when: &BTreeMap<String, String>) -> Option<PriceConditions> {
    let mut conditions = PriceConditions::default();
    for (key, value) in when {
        let field = match key.as_str() {
            "service_tier" => &mut conditions.service_tier,
            "processing" => &mut conditions.processing,
            "speed" => &mut conditions.speed,
            _ => return None,
        };
        *field = Some(value.clone());
    }
    Some(conditions)
}

/// Windows of the day with the same prices become one price.
fn times_of_day(
    listed: &Listed<'_>,
    conditionals: &[&Conditional],
    from: DateTime<Utc>,
    import: &mut Import,
) -> Result<(), serde_json::Error> {
    let mut windows: Vec<(Tiers, Vec<String>)> = Vec::new();
    for conditional in conditionals {
        let Some(window) = hours(conditional.constraint.as_ref()) else { continue };
        let own = tiers(listed, &conditional.prices, import)?;
        match windows.iter_mut().find(|(tiers, _)| *tiers == own) {
            Some((_, hours)) => hours.push(window),
            None => windows.push((own, vec![window])),
        }
    }
    for (tiers, hours_utc) in windows {
        let conditions = PriceConditions { hours_utc, ..PriceConditions::default() };
        push(listed, &tiers, &conditions, (from, None), import);
    }
    Ok(())
}

fn push(
    listed: &Listed<'_>,
    tiers: &Tiers,
    conditions: &PriceConditions,
    (from, to): (DateTime<Utc>, Option<DateTime<Utc>>),
    import: &mut Import,
) {
    if tiers.values().all(UnitRates::is_empty) {
        import.ignore(listed.what("prices"), "none of them has a class here");
        return;
    }
    for (above, rates) in tiers {
        let conditions =
            PriceConditions { context_above: (*above > 0).then_some(*above), ..conditions.clone() };
        let variant = Variant { conditions, multiplier: None, valid_from: Some(from), valid_to: to };
        import.prices.push(listed.price(rates, variant));
    }
}

/// The rates of a set of prices by threshold, each threshold complete.
fn tiers(listed: &Listed<'_>, keys: &Keys, import: &mut Import) -> Result<Tiers, serde_json::Error> {
    let mut tiers = Tiers::from([(0, UnitRates::new())]);
    for (key, raw) in keys {
        let Some((_, class, per)) = CLASSES.iter().find(|(name, ..)| name == key) else {
            import.ignore(listed.what(key), "there is no class for it");
            continue;
        };
        if raw.get().starts_with('{') {
            let tiered: Tiered = serde_json::from_str(raw.get())?;
            let thresholds = tiered.tiers.iter().map(|tier| (tier.start, &tier.price));
            for (above, price) in std::iter::once((0, &tiered.base)).chain(thresholds) {
                if let Some(rate) = rate(import, || listed.what(key), price, *per) {
                    tiers.entry(above).or_default().insert(*class, rate);
                }
            }
        } else if let Some(rate) = rate(import, || listed.what(key), raw, *per) {
            tiers.entry(0).or_default().insert(*class, rate);
        }
    }
    Ok(overlaid_tiers(&Tiers::new(), &tiers))
}

fn start(constraint: Option<&Constraint>, defaults: &Defaults) -> DateTime<Utc> {
    let date = constraint.and_then(|limits| limits.start_date);
    date.map_or(defaults.valid_from, |date| date.and_time(NaiveTime::MIN).and_utc())
}

/// `HH:MM-HH:MM` of a daily window; its times are in UTC (`01:00:00Z`).
fn hours(constraint: Option<&Constraint>) -> Option<String> {
    let constraint = constraint?;
    let (start, end) = (constraint.start_time.as_deref()?, constraint.end_time.as_deref()?);
    Some(format!("{}-{}", start.get(..5)?, end.get(..5)?))
}
