//! Prices over a whole billing period: tiers, packages, and a fixed price per task.
//!
//! Owns: what such a price is and which usage it counts; reading one as it is published ([`quotation`]); what publishing
//! does to those that stand ([`publication`]).
//! Does not own: what a period comes to by them (`rating::settlement`), keeping them (`store::period_prices`).
//! Invariants: of those that stand in a book, at most one of a name is valid at any instant, and at most one counts a
//! given unit of usage or a given task; tiers begin at zero, meet, and the last has no end.

pub mod publication;
pub mod quotation;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::domain::event::{Outcome, text_enum};
use crate::domain::ids::{BookId, PeriodPriceId};
use crate::domain::money::Rate;
use crate::domain::price::{BookInfo, covers};
use crate::domain::tokens::TokenClass;

/// Ends a model pattern that stands for every name that begins like it.
const WILDCARD: char = '*';

text_enum! {
    /// How a price over a period charges.
    PeriodPriceKind, UnknownPeriodPriceKind, "period price kind" {
        /// Each tier's units at the tier's rate.
        Graduated = "graduated",
        /// All units at the rate of the tier that the last one lies in.
        Volume = "volume",
        /// Whole packages of units.
        Package = "package",
        /// Finished tasks.
        Task = "task",
    }
}

text_enum! {
    /// What becomes of the usage of tasks that have a price.
    TaskUsage, UnknownTaskUsage, "use of a task price" {
        /// The price of the task stands for it.
        Included = "included",
        /// It is billed beside the task.
        Billed = "billed",
    }
}

/// What a tier does to the list rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TierRate {
    /// Takes its place.
    Absolute(Rate),
    /// Multiplies it; the result is rounded half away from zero to 15 places per unit.
    Factor(Decimal),
}

/// A tier: begins after the last unit of the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// The last unit in it; `None` has no end.
    pub up_to: Option<i64>,
    /// What its units cost.
    pub rate: TierRate,
}

/// Which usage a price counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageScope {
    /// Of this provider only.
    pub provider: Option<String>,
    /// Of the model of this name; with `*` at its end, of every model whose name begins so.
    pub model: String,
    /// Of these classes.
    pub classes: BTreeSet<TokenClass>,
}

/// What a period price charges, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// Each tier's units at the tier's rate.
    Graduated(Tiers),
    /// All units at the rate of one tier.
    Volume(Tiers),
    /// Whole packages.
    Package {
        /// What it counts.
        scope: UsageScope,
        /// Units in a package.
        size: i64,
        /// Money for one.
        amount: Rate,
    },
    /// Finished tasks.
    Task {
        /// Of this type.
        task_type: String,
        /// Only those that ended like this; any where there is none.
        outcome: Option<Outcome>,
        /// Money for one.
        amount: Rate,
        /// What becomes of their usage.
        usage: TaskUsage,
    },
}

/// Tiers over usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiers {
    /// What they count.
    pub scope: UsageScope,
    /// Units that absolute rates are quoted for; `None` where there is no absolute rate.
    pub per: Option<i64>,
    /// In order; the last has no end.
    pub tiers: Vec<Tier>,
}

/// A period price that is valid in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeriodDraft {
    /// What it is known by in its book.
    pub name: String,
    /// What it charges.
    pub scheme: Scheme,
    /// First instant of validity.
    pub valid_from: DateTime<Utc>,
    /// First instant after validity; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
    /// Where it was agreed.
    pub source: Option<String>,
}

/// An immutable, dated row of a sell book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeriodPrice {
    /// Its key.
    pub id: PeriodPriceId,
    /// Its book.
    pub book: BookInfo,
    /// What it says.
    pub draft: PeriodDraft,
}

impl Scheme {
    /// Its kind.
    pub const fn kind(&self) -> PeriodPriceKind {
        match self {
            Self::Graduated(_) => PeriodPriceKind::Graduated,
            Self::Volume(_) => PeriodPriceKind::Volume,
            Self::Package { .. } => PeriodPriceKind::Package,
            Self::Task { .. } => PeriodPriceKind::Task,
        }
    }

    /// The usage it counts; `None` for tasks.
    pub const fn scope(&self) -> Option<&UsageScope> {
        match self {
            Self::Graduated(Tiers { scope, .. })
            | Self::Volume(Tiers { scope, .. })
            | Self::Package { scope, .. } => Some(scope),
            Self::Task { .. } => None,
        }
    }

    /// Whether the two could both count one unit of usage or one task, or say different things of a task's usage.
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Task { task_type, outcome, usage, .. },
                Self::Task { task_type: other_type, outcome: other_outcome, usage: other_usage, .. },
            ) => {
                task_type == other_type
                    && (outcome.is_none()
                        || other_outcome.is_none()
                        || outcome == other_outcome
                        || usage != other_usage)
            }
            _ => match (self.scope(), other.scope()) {
                (Some(left), Some(right)) => left.meets(right),
                _ => false,
            },
        }
    }
}

impl UsageScope {
    /// Whether it counts usage of a provider, model and class.
    pub fn holds(&self, provider: &str, model: &str, class: TokenClass) -> bool {
        self.provider.as_deref().is_none_or(|own| own == provider)
            && self.classes.contains(&class)
            && match self.beginning() {
                Some(beginning) => model.starts_with(beginning),
                None => model == self.model,
            }
    }

    /// The one model it counts, where it is one.
    pub fn only_model(&self) -> Option<&str> {
        self.beginning().is_none().then_some(self.model.as_str())
    }

    /// The one class it counts, where it is one.
    pub fn only_class(&self) -> Option<TokenClass> {
        let mut classes = self.classes.iter();
        classes.next().copied().filter(|_| classes.next().is_none())
    }

    /// What the names of its models begin with, where it is for several.
    fn beginning(&self) -> Option<&str> {
        self.model.strip_suffix(WILDCARD)
    }

    fn meets(&self, other: &Self) -> bool {
        let providers = match (&self.provider, &other.provider) {
            (Some(left), Some(right)) => left == right,
            _ => true,
        };
        let models = match (self.beginning(), other.beginning()) {
            (None, None) => self.model == other.model,
            (Some(left), None) => other.model.starts_with(left),
            (None, Some(right)) => self.model.starts_with(right),
            (Some(left), Some(right)) => left.starts_with(right) || right.starts_with(left),
        };
        providers && models && !self.classes.is_disjoint(&other.classes)
    }
}

impl PeriodPrice {
    /// Whether it is valid at an instant.
    pub fn valid_at(&self, at: DateTime<Utc>) -> bool {
        covers(self.draft.valid_from, self.draft.valid_to, at)
    }

    /// What prices that take each other's place have in common.
    pub fn key(&self) -> (BookId, &str) {
        (self.book.id, self.draft.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(provider: Option<&str>, model: &str, classes: &[TokenClass]) -> UsageScope {
        UsageScope {
            provider: provider.map(str::to_owned),
            model: model.to_owned(),
            classes: classes.iter().copied().collect(),
        }
    }

    #[test]
    fn scopes_meet_where_they_count_the_same_usage() {
        use TokenClass::{Input, Output};
        let gpt5 = scope(Some("openai"), "gpt-5", &[Input]);
        for (other, meets) in [
            (scope(Some("openai"), "gpt-5", &[Input, Output]), true),
            (scope(None, "*", &[Input]), true),
            (scope(Some("openai"), "gpt-*", &[Input]), true),
            (scope(Some("openai"), "gpt-5", &[Output]), false),
            (scope(Some("azure"), "gpt-5", &[Input]), false),
            (scope(Some("openai"), "gpt-5-*", &[Input]), false),
            (scope(Some("openai"), "gpt-5.1", &[Input]), false),
        ] {
            assert_eq!((gpt5.meets(&other), other.meets(&gpt5)), (meets, meets), "{other:?}");
            assert_eq!(other.holds("openai", "gpt-5", Input), meets, "{other:?}");
        }
        assert!(scope(None, "gpt-5*", &[Input]).meets(&scope(None, "gpt-*", &[Input])));
        assert!(!scope(None, "gpt-*", &[Input]).meets(&scope(None, "claude-*", &[Input])));
        assert_eq!(gpt5.only_class(), Some(Input));
        assert_eq!(scope(None, "gpt-*", &[Input, Output]).only_class(), None);
    }

    #[test]
    fn task_prices_meet_where_a_task_has_both_or_its_usage_is_said_two_things_of() {
        use TaskUsage::{Billed, Included};
        let task = |task_type: &str, outcome, usage| Scheme::Task {
            task_type: task_type.to_owned(),
            outcome,
            amount: Rate::default(),
            usage,
        };
        let success = task("refund", Some(Outcome::Success), Included);
        assert!(success.meets(&task("refund", None, Included)));
        assert!(success.meets(&task("refund", Some(Outcome::Success), Included)));
        assert!(!success.meets(&task("refund", Some(Outcome::Failure), Included)));
        assert!(success.meets(&task("refund", Some(Outcome::Failure), Billed)));
        assert!(!success.meets(&task("lookup", Some(Outcome::Success), Included)));
    }
}
