//! A period price as it is published: read from JSON, checked as a whole.

use std::collections::BTreeSet;

use chrono::{DateTime, SubsecRound, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::{PeriodDraft, PeriodPriceKind, Scheme, TaskUsage, Tier, TierRate, Tiers, UsageScope};
use crate::domain::event::Outcome;
use crate::domain::ids::PeriodPriceId;
use crate::domain::money::Rate;
use crate::domain::names::{NAME_BYTES_MAX, is_machine_id, is_model, is_provider};
use crate::domain::price::quotation::{PER_MAX, Quote, SOURCE_CHARS_MAX, VALIDITY_SECONDS};
use crate::domain::tokens::TokenClass;

/// Most tiers of one price.
const TIERS_MAX: usize = 100;
/// Largest end of a tier and largest package, in units.
const UNITS_MAX: i64 = 1_000_000_000_000_000;
/// Upper bound of a factor, and its decimal places, as the database keeps it.
const FACTOR_BOUND: i64 = 1000;
const FACTOR_PLACES: u32 = 6;
/// Longest name of a period price, in characters.
const NAME_CHARS_MAX: usize = 128;

/// A period price to be published. Which fields it has, its kind decides.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPeriodPrice {
    /// What it is known by in its book; a later price of the same name takes its place.
    #[schema(example = "gpt-5 input volume")]
    pub name: String,
    /// `graduated`: each tier's units at the tier's rate; `volume`: all units at the rate of the tier that the last one lies
    /// in; `package`: whole packages; `task`: finished tasks.
    pub kind: PeriodPriceKind,
    /// Tiers, packages: usage of this provider only.
    #[serde(default)]
    pub provider: Option<String>,
    /// Tiers, packages: usage of this model; `gpt-5*` stands for every model whose name begins so, `*` for all.
    #[serde(default)]
    #[schema(example = "gpt-5")]
    pub model: Option<String>,
    /// Tiers, packages: the token classes and fees that are counted, together.
    #[serde(default)]
    #[schema(example = json!(["input"]))]
    pub classes: Vec<String>,
    /// Tiers: in ascending order, the last without an end.
    #[serde(default)]
    pub tiers: Vec<NewTier>,
    /// Tiers: how many units their rates are money for, usually 1000000.
    #[serde(default)]
    pub per: Option<u64>,
    /// Packages: units in one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub size: Option<Quote>,
    /// Packages, tasks: money for one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub amount: Option<Quote>,
    /// Tasks: of this type.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Tasks: only those that ended like this; any end where there is none.
    #[serde(default)]
    pub outcome: Option<Outcome>,
    /// Tasks: whether the price stands for the usage of tasks of the type (`included`), or comes on top of it (`billed`).
    #[serde(default)]
    pub usage: Option<TaskUsage>,
    /// First instant of validity.
    pub valid_from: DateTime<Utc>,
    /// First instant after validity; none is open.
    #[serde(default)]
    pub valid_to: Option<DateTime<Utc>>,
    /// Where it was agreed.
    #[serde(default)]
    pub source: Option<String>,
}

/// A tier: begins after the last unit of the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTier {
    /// The last unit in it; none in the last tier, which has no end.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "10000000")]
    pub up_to: Option<Quote>,
    /// Money per `per` units, in place of the list rate; one model and one class only.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "2.5")]
    pub rate: Option<Quote>,
    /// Or what the list rate is multiplied with, rounded half away from zero to 15 places per unit.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub factor: Option<Quote>,
}

/// Why a period price is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("[{index}].{path}: {detail}")]
pub struct PeriodFault {
    /// Its position among those published together.
    pub index: usize,
    /// The field, as in `tiers[1].rate`.
    pub path: String,
    /// What is wrong and what to do.
    pub detail: String,
    /// The standing price it collides with.
    pub conflicts_with: Option<PeriodPriceId>,
}

/// Gathers what is wrong with one price.
struct Faults {
    index: usize,
    found: Vec<PeriodFault>,
}

impl Faults {
    fn add(&mut self, path: impl Into<String>, detail: impl Into<String>) {
        let (path, detail) = (path.into(), detail.into());
        self.found.push(PeriodFault { index: self.index, path, detail, conflicts_with: None });
    }

    /// A value that is needed; its absence is a fault.
    fn need<T>(&mut self, path: &str, value: Option<T>, kind: PeriodPriceKind) -> Option<T> {
        if value.is_none() {
            self.add(path, format!("is missing; a {kind} price needs it"));
        }
        value
    }
}

impl NewPeriodPrice {
    /// Checks everything that can be checked without the other prices.
    ///
    /// # Errors
    /// Every [`PeriodFault`] found, with `index` in each.
    pub fn check(&self, index: usize) -> Result<PeriodDraft, Vec<PeriodFault>> {
        let mut faults = Faults { index, found: Vec::new() };
        check_text("name", Some(&self.name), NAME_CHARS_MAX, &mut faults);
        check_text("source", self.source.as_ref(), SOURCE_CHARS_MAX, &mut faults);
        self.check_validity(&mut faults);
        self.check_foreign(&mut faults);
        let scheme = match self.kind {
            PeriodPriceKind::Graduated => self.tiers(&mut faults).map(Scheme::Graduated),
            PeriodPriceKind::Volume => self.tiers(&mut faults).map(Scheme::Volume),
            PeriodPriceKind::Package => self.package(&mut faults),
            PeriodPriceKind::Task => self.task(&mut faults),
        };
        match scheme {
            Some(scheme) if faults.found.is_empty() => Ok(PeriodDraft {
                name: self.name.clone(),
                scheme,
                valid_from: self.valid_from.trunc_subsecs(6),
                valid_to: self.valid_to.map(|end| end.trunc_subsecs(6)),
                source: self.source.clone(),
            }),
            _ => Err(faults.found),
        }
    }

    /// Refuses fields that mean something for other kinds only.
    fn check_foreign(&self, faults: &mut Faults) {
        use PeriodPriceKind::{Graduated, Package, Task, Volume};
        let usage: &[PeriodPriceKind] = &[Graduated, Volume, Package];
        let tiers: &[PeriodPriceKind] = &[Graduated, Volume];
        for (field, given, kinds) in [
            ("provider", self.provider.is_some(), usage),
            ("model", self.model.is_some(), usage),
            ("classes", !self.classes.is_empty(), usage),
            ("tiers", !self.tiers.is_empty(), tiers),
            ("per", self.per.is_some(), tiers),
            ("size", self.size.is_some(), &[Package]),
            ("amount", self.amount.is_some(), &[Package, Task]),
            ("task_type", self.task_type.is_some(), &[Task]),
            ("outcome", self.outcome.is_some(), &[Task]),
            ("usage", self.usage.is_some(), &[Task]),
        ] {
            if given && !kinds.contains(&self.kind) {
                faults.add(field, format!("means nothing in a {} price; leave it out", self.kind));
            }
        }
    }

    fn check_validity(&self, faults: &mut Faults) {
        if !VALIDITY_SECONDS.contains(&self.valid_from.timestamp()) {
            faults.add("valid_from", "is not between 2000-01-01 and 2200-01-01");
        }
        if let Some(end) = self.valid_to {
            if !VALIDITY_SECONDS.contains(&end.timestamp()) {
                faults.add("valid_to", "is not between 2000-01-01 and 2200-01-01");
            } else if end.trunc_subsecs(6) <= self.valid_from.trunc_subsecs(6) {
                faults.add(
                    "valid_to",
                    "is not after valid_from; validity is half-open, [valid_from, valid_to)",
                );
            }
        }
    }

    fn scope(&self, faults: &mut Faults) -> Option<UsageScope> {
        let provider = self.provider.as_ref().map(|provider| provider.to_ascii_lowercase());
        if provider.as_deref().is_some_and(|provider| !is_provider(provider)) {
            faults.add("provider", format!("is not 1 to {NAME_BYTES_MAX} of a-z 0-9 . _ : -"));
        }
        let model = faults.need("model", self.model.clone(), self.kind)?;
        let beginning = model.strip_suffix(super::WILDCARD).unwrap_or(&model);
        if !is_model(&model) || beginning.contains(super::WILDCARD) {
            faults
                .add("model", "is not a model's name, or the beginning of one followed by `*`, or `*` alone");
        }
        let mut classes = BTreeSet::new();
        for (position, name) in self.classes.iter().enumerate() {
            let path = format!("classes[{position}]");
            match name.parse::<TokenClass>() {
                Ok(class) if classes.insert(class) => {}
                Ok(class) => faults.add(path, format!("`{class}` is given twice")),
                Err(error) => faults.add(path, error.to_string()),
            }
        }
        if self.classes.is_empty() {
            faults.add("classes", "is empty; name the classes that are counted, as in [\"input\"]");
        }
        Some(UsageScope { provider, model, classes })
    }

    fn tiers(&self, faults: &mut Faults) -> Option<Tiers> {
        let scope = self.scope(faults);
        let per = self.checked_per(faults);
        if self.tiers.is_empty() || self.tiers.len() > TIERS_MAX {
            faults.add("tiers", format!("is not 1 to {TIERS_MAX} tiers"));
        }
        let mut tiers = Vec::with_capacity(self.tiers.len());
        let mut below = 0;
        for (position, tier) in self.tiers.iter().enumerate() {
            let path = format!("tiers[{position}]");
            let last = position + 1 == self.tiers.len();
            let up_to = tier_end(tier, last, &mut below, &path, faults);
            let rate = tier_rate(tier, scope.as_ref(), per, &path, faults);
            tiers.extend(rate.map(|rate| Tier { up_to, rate }));
        }
        Some(Tiers { scope: scope?, per, tiers })
    }

    /// What the tiers' rates are quoted for, checked.
    fn checked_per(&self, faults: &mut Faults) -> Option<i64> {
        let quoted = self.tiers.iter().any(|tier| tier.rate.is_some());
        match self.per {
            None if quoted => {
                faults.add("per", "is missing; say how many units the rates are money for, usually 1000000");
                None
            }
            Some(_) if !quoted && !self.tiers.is_empty() => {
                faults.add("per", "means nothing where no tier has a rate; leave it out");
                None
            }
            Some(per) if per == 0 || per > PER_MAX => {
                faults.add("per", format!("is not 1 to {PER_MAX}"));
                None
            }
            per => per.and_then(|per| i64::try_from(per).ok()),
        }
    }

    fn package(&self, faults: &mut Faults) -> Option<Scheme> {
        let scope = self.scope(faults);
        let size = faults.need("size", self.size.as_ref(), self.kind);
        let size = size.and_then(|size| units("size", size, faults));
        let amount = self.amount(faults);
        Some(Scheme::Package { scope: scope?, size: size?, amount: amount? })
    }

    fn task(&self, faults: &mut Faults) -> Option<Scheme> {
        let task_type = faults.need("task_type", self.task_type.clone(), self.kind);
        if task_type.as_deref().is_some_and(|name| !is_machine_id(name)) {
            faults.add("task_type", format!("is not 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ : -"));
        }
        let usage = faults.need("usage", self.usage, self.kind);
        let amount = self.amount(faults);
        Some(Scheme::Task { task_type: task_type?, outcome: self.outcome, amount: amount?, usage: usage? })
    }

    fn amount(&self, faults: &mut Faults) -> Option<Rate> {
        let amount = faults.need("amount", self.amount.as_ref(), self.kind)?;
        money("amount", amount, 1, faults)
    }
}

fn check_text(path: &str, text: Option<&String>, chars_max: usize, faults: &mut Faults) {
    if text.is_some_and(|text| {
        text.is_empty() || text.chars().count() > chars_max || text.contains(char::is_control)
    }) {
        faults.add(path, format!("is not 1 to {chars_max} printable characters"));
    }
}

/// The end of a tier, which must lie behind that of the one before it; the last has none.
fn tier_end(tier: &NewTier, last: bool, below: &mut i64, path: &str, faults: &mut Faults) -> Option<i64> {
    let path = format!("{path}.up_to");
    match &tier.up_to {
        None if last => None,
        None => {
            faults.add(path, "is missing; only the last tier has no end");
            None
        }
        Some(_) if last => {
            faults.add(path, "bounds the last tier; leave it out, so that every quantity lies in a tier");
            None
        }
        Some(quote) => {
            let up_to = units(&path, quote, faults)?;
            if up_to <= *below {
                faults.add(path, format!("is not above {below}, where the tier begins; tiers ascend"));
            }
            *below = up_to;
            Some(up_to)
        }
    }
}

/// What a tier's units cost, one way or the other.
fn tier_rate(
    tier: &NewTier,
    scope: Option<&UsageScope>,
    per: Option<i64>,
    path: &str,
    faults: &mut Faults,
) -> Option<TierRate> {
    match (&tier.rate, &tier.factor) {
        (Some(rate), None) => {
            if scope.is_some_and(|scope| scope.only_model().is_none() || scope.only_class().is_none()) {
                let detail = "is one rate for several models or classes; give a `factor` of their list rates, \
                              or name one model and one class";
                faults.add(format!("{path}.rate"), detail);
                return None;
            }
            let per = per.and_then(|per| u64::try_from(per).ok()).unwrap_or(1);
            money(&format!("{path}.rate"), rate, per, faults).map(TierRate::Absolute)
        }
        (None, Some(factor)) => match factor.exact() {
            Ok(value)
                if !value.is_sign_negative()
                    && value < Decimal::from(FACTOR_BOUND)
                    && value.scale() <= FACTOR_PLACES =>
            {
                Some(TierRate::Factor(value))
            }
            _ => {
                let detail = format!(
                    "is not a decimal from 0 to below {FACTOR_BOUND} with at most {FACTOR_PLACES} places; \
                     10 % off is 0.9"
                );
                faults.add(format!("{path}.factor"), detail);
                None
            }
        },
        (Some(_), Some(_)) => {
            faults.add(path, "has both a rate and a factor; give one of them");
            None
        }
        (None, None) => {
            faults.add(path, "has neither a rate nor a factor; a free tier has the rate \"0\"");
            None
        }
    }
}

/// A count of units.
fn units(path: &str, quote: &Quote, faults: &mut Faults) -> Option<i64> {
    let count = quote.0.parse::<i64>().ok();
    let plain = quote.0.bytes().all(|byte| byte.is_ascii_digit());
    let count = count.filter(|count| plain && (1..=UNITS_MAX).contains(count));
    if count.is_none() {
        faults.add(path, format!("is not a whole number from 1 to {UNITS_MAX}"));
    }
    count
}

/// Money for so many units, per unit.
fn money(path: &str, quote: &Quote, per: u64, faults: &mut Faults) -> Option<Rate> {
    match quote.exact().and_then(|quoted| Rate::from_quote(quoted, per, Decimal::ONE)) {
        Ok((rate, _)) => Some(rate),
        Err(error) => {
            faults.add(path, error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn graduated() -> Value {
        json!({"name": "gpt-5 input", "kind": "graduated", "provider": "OpenAI", "model": "gpt-5", "classes": ["input"],
               "per": 1_000_000, "tiers": [{"up_to": "10000000", "rate": "2.5"}, {"rate": "2"}],
               "valid_from": "2026-01-01T00:00:00Z"})
    }

    fn package() -> Value {
        json!({"name": "p", "kind": "package", "model": "gpt-*", "classes": ["input", "output"], "size": "1000000",
               "amount": "5", "valid_from": "2026-01-01T00:00:00Z"})
    }

    fn task() -> Value {
        json!({"name": "t", "kind": "task", "task_type": "refund", "outcome": "success", "amount": "0.50",
               "usage": "included", "valid_from": "2026-01-01T00:00:00Z"})
    }

    fn checked(value: Value) -> Result<PeriodDraft, Vec<PeriodFault>> {
        serde_json::from_value::<NewPeriodPrice>(value).unwrap().check(0)
    }

    #[test]
    fn every_kind_is_read() {
        let draft = checked(graduated()).unwrap();
        let Scheme::Graduated(Tiers { scope, per, tiers }) = draft.scheme else { panic!("graduated") };
        assert_eq!((scope.provider.as_deref(), scope.only_model()), (Some("openai"), Some("gpt-5")));
        assert_eq!((per, tiers[0].up_to, tiers[1].up_to), (Some(1_000_000), Some(10_000_000), None));
        assert_eq!(tiers[1].rate, TierRate::Absolute(Rate::from_femtos(2_000_000_000).unwrap()));
        let Scheme::Package { size, amount, .. } = checked(package()).unwrap().scheme else {
            panic!("package")
        };
        assert_eq!((size, amount.per_unit().to_string().as_str()), (1_000_000, "5"));
        let Scheme::Task { outcome, usage, .. } = checked(task()).unwrap().scheme else { panic!("task") };
        assert_eq!((outcome, usage), (Some(Outcome::Success), TaskUsage::Included));
    }

    #[test]
    fn nonsense_is_refused_with_its_field() {
        let changed = |mut value: Value, field: &str, to: Value| {
            value[field] = to;
            value
        };
        let tiers = |tiers: Value| changed(graduated(), "tiers", tiers);
        let rate = |rate: &str| tiers(json!([{"rate": rate}]));
        for (price, path) in [
            (tiers(json!([])), "tiers"),
            (tiers(json!([{"up_to": "5", "rate": "1"}])), "tiers[0].up_to"),
            (tiers(json!([{"rate": "1"}, {"rate": "1"}])), "tiers[0].up_to"),
            (
                tiers(json!([{"up_to": "5", "rate": "1"}, {"up_to": "5", "rate": "1"}, {"rate": "1"}])),
                "tiers[1].up_to",
            ),
            (
                tiers(json!([{"up_to": "5", "rate": "1"}, {"up_to": "4", "rate": "1"}, {"rate": "1"}])),
                "tiers[1].up_to",
            ),
            (tiers(json!([{"up_to": "0", "rate": "1"}, {"rate": "1"}])), "tiers[0].up_to"),
            (tiers(json!([{"up_to": "1.5", "rate": "1"}, {"rate": "1"}])), "tiers[0].up_to"),
            (tiers(json!([{"up_to": "+5", "rate": "1"}, {"rate": "1"}])), "tiers[0].up_to"),
            (tiers(json!([{"rate": "1", "factor": "0.9"}])), "tiers[0]"),
            (tiers(json!([{}])), "per"),
            (rate("-1"), "tiers[0].rate"),
            (rate("NaN"), "tiers[0].rate"),
            (rate("1e3"), "tiers[0].rate"),
            (rate("1.0000000000000000000000000001"), "tiers[0].rate"),
            (rate("0.0000000001"), "tiers[0].rate"),
            (changed(graduated(), "per", Value::Null), "per"),
            (changed(graduated(), "per", json!(0)), "per"),
            (changed(graduated(), "model", json!("gpt-*")), "tiers[0].rate"),
            (changed(graduated(), "classes", json!(["input", "output"])), "tiers[0].rate"),
            (changed(graduated(), "classes", json!(["inptu"])), "classes[0]"),
            (changed(graduated(), "classes", json!(["input", "input"])), "classes[1]"),
            (changed(graduated(), "classes", json!([])), "classes"),
            (changed(graduated(), "model", Value::Null), "model"),
            (changed(graduated(), "model", json!("a*b")), "model"),
            (changed(graduated(), "provider", json!("a b")), "provider"),
            (changed(graduated(), "name", json!("")), "name"),
            (changed(graduated(), "amount", json!("1")), "amount"),
            (changed(graduated(), "valid_to", json!("2026-01-01T00:00:00Z")), "valid_to"),
            (changed(graduated(), "valid_from", json!("1026-01-01T00:00:00Z")), "valid_from"),
            (changed(package(), "size", json!("0")), "size"),
            (changed(package(), "size", Value::Null), "size"),
            (changed(package(), "amount", json!("0.0000000000000001")), "amount"),
            (changed(package(), "amount", json!("-5")), "amount"),
            (changed(package(), "tiers", json!([{"rate": "1"}])), "tiers"),
            (changed(task(), "amount", json!("1000001")), "amount"),
            (changed(task(), "usage", Value::Null), "usage"),
            (changed(task(), "task_type", json!("a b")), "task_type"),
            (changed(task(), "model", json!("gpt-5")), "model"),
        ] {
            let faults = checked(price.clone()).expect_err(&price.to_string());
            assert_eq!(faults[0].path, path, "{price}: {faults:?}");
        }
        let factors = json!([{"up_to": "5", "factor": "1"}, {"factor": "0.9"}]);
        let mut spanning = tiers(factors);
        (spanning["model"], spanning["per"]) = (json!("*"), Value::Null);
        spanning["classes"] = json!(["input", "output"]);
        checked(spanning.clone()).unwrap();
        for factor in ["-0.1", "1000", "0.1234567", "x"] {
            spanning["tiers"] = json!([{"factor": factor}]);
            assert_eq!(checked(spanning.clone()).unwrap_err()[0].path, "tiers[0].factor", "{factor}");
        }
    }
}
