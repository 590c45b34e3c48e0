//! The usage event: one gateway report of one model call, and the outcome of a task.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use serde::{Deserialize, Serialize, Serializer};

use super::identity::EventIdentity;
use super::money::{Amount, Currency};
use super::tokens::Quantities;

/// One event as it came over the wire, parsed: everything in it is valid, nothing is priced yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageEvent {
    /// Who it says it is.
    pub identity: EventIdentity,
    /// The customer's external id (the CloudEvents `subject`).
    pub customer: CompactString,
    /// When the call happened: the value date, which chooses the price and the service period.
    pub occurred_at: DateTime<Utc>,
    /// The gateway's own gap-free count, where it keeps one.
    pub sequence: Option<SequenceMark>,
    /// The id of an earlier estimate from the same source that this event replaces.
    pub corrects: Option<CompactString>,
    /// What it reports.
    pub report: Report,
}

/// A gateway's gap-free position: its journal's epoch and a number counting 1, 2, 3 in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceMark {
    /// Names the journal; a new one starts a new count.
    pub epoch: CompactString,
    /// The count, from 1.
    pub number: i64,
}

/// What an event reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A model call (`llm.usage.v1`).
    Usage(Usage),
    /// The end of a task (`llm.task.v1`).
    Outcome(TaskOutcome),
}

/// Usage of one call, as one or more parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// At least one; more where one call used several models.
    pub parts: Vec<UsagePart>,
    /// The task it belongs to; without one it is unattributed.
    pub task: Option<TaskRef>,
    /// Free labels of the gateway: `project`, `agent`, `user`, …
    pub attributes: Attributes,
    /// `ok`, `error`, …: the call's own status, not billed by.
    pub status: Option<CompactString>,
    /// Whether the provider counted it or the gateway estimated it.
    pub usage_source: UsageSource,
    /// How long the call took.
    pub latency_ms: Option<i64>,
}

/// Labels by key, in the order of the keys: a few short texts, so a list of them is smaller and faster than a map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<(CompactString, CompactString)>);

impl Attributes {
    /// Adds a label; a key that has one keeps it.
    pub fn insert(&mut self, key: CompactString, value: CompactString) {
        if let Err(place) = self.place(&key) {
            self.0.insert(place, (key, value));
        }
    }

    /// The label under a key.
    pub fn get(&self, key: &str) -> Option<&CompactString> {
        self.place(key).ok().map(|place| &self.0[place].1)
    }

    /// All labels.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn place(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(key))
    }
}

impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// Tokens used on one model under one set of conditions: the unit that is priced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsagePart {
    /// The provider's name, lower case.
    pub provider: CompactString,
    /// The model as the provider reported it.
    pub model: CompactString,
    /// What the price may depend on besides model and time.
    pub conditions: CallConditions,
    /// Disjoint quantities.
    pub quantities: Quantities,
    /// The whole prompt, caches included: what context tiers are compared with.
    pub tier_input: i64,
    /// What the provider itself says it charged, kept beside our own amount.
    pub stated_cost: Option<StatedCost>,
}

/// A cost stated by the provider or the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatedCost {
    /// Exact as stated.
    pub amount: Amount,
    /// Its currency.
    pub currency: Currency,
}

/// By which part of our cost a stated one may differ and still agree: gateways compute with floats.
const TOLERATED_PART: i128 = 100;

/// How a stated cost compares with ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StatedVerdict {
    /// It differs by at most one part in a hundred.
    Agrees,
    /// It is more.
    Above,
    /// It is less.
    Below,
}

impl StatedVerdict {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Agrees, Self::Above, Self::Below];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Above => "above",
            Self::Below => "below",
        }
    }
}

impl StatedCost {
    /// How it compares with our cost; `None` where that is in another currency.
    pub fn against(self, cost: Amount, currency: Currency) -> Option<StatedVerdict> {
        let difference = self.amount.checked_sub(cost).filter(|_| self.currency == currency)?.femtos();
        Some(if difference.unsigned_abs() <= (cost.femtos() / TOLERATED_PART).unsigned_abs() {
            StatedVerdict::Agrees
        } else if difference > 0 {
            StatedVerdict::Above
        } else {
            StatedVerdict::Below
        })
    }
}

/// Conditions of a call that a price can ask for; `None` is the standard one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CallConditions {
    /// Where the model ran, when not at its maker: `azure`, `bedrock`, `vertex`, …
    pub platform: Option<CompactString>,
    /// Region or geography that prices differ by.
    pub region: Option<CompactString>,
    /// The service tier that was *served*: `priority`, `flex`, …
    pub service_tier: Option<CompactString>,
    /// `batch`, or `None` for interactive.
    pub processing: Option<CompactString>,
    /// `fast`, or `None`.
    pub speed: Option<CompactString>,
}

/// A task as an event names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskRef {
    /// The gateway's id of the task, unique per customer.
    pub id: CompactString,
    /// Its type, for reports.
    pub kind: Option<CompactString>,
    /// The task it is a part of.
    pub parent: Option<CompactString>,
}

/// The end of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskOutcome {
    /// Which task.
    pub task: TaskRef,
    /// How it ended.
    pub outcome: Outcome,
}

macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident, $error:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name on the wire and in the database.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        #[doc = concat!("A text that is no ", $what, ".")]
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error("`{0}` is not a known {what}; use one of: {known}", what = $what, known = [$($text,)+].join(", "))]
        pub struct $error(pub String);

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err($error(text.chars().take(40).collect())),
                }
            }
        }
    };
}
pub(crate) use text_enum;

text_enum! {
    /// How a task ended.
    Outcome, UnknownOutcome, "outcome" {
        /// It did what it was for.
        Success = "success",
        /// It did not.
        Failure = "failure",
        /// It was handed to a person or another system.
        Escalated = "escalated",
        /// It was given up.
        Abandoned = "abandoned",
    }
}

text_enum! {
    /// Who counted the usage.
    UsageSource, UnknownUsageSource, "usage source" {
        /// The provider.
        Provider = "provider",
        /// The gateway, because the provider's count is missing; a later event may correct it.
        Estimated = "estimated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stated_cost_agrees_within_a_hundredth() {
        let verdict = |stated: &str, cost: &str| {
            let stated = StatedCost { amount: stated.parse().unwrap(), currency: Currency::USD };
            stated.against(cost.parse().unwrap(), Currency::USD)
        };
        for (stated, cost, expected) in [
            ("0", "0", StatedVerdict::Agrees),
            ("0.000001", "0", StatedVerdict::Above),
            ("0", "0.000001", StatedVerdict::Below),
            ("1.01", "1", StatedVerdict::Agrees),
            ("1.010000000000001", "1", StatedVerdict::Above),
            ("0.99", "1", StatedVerdict::Agrees),
            ("0.989999999999999", "1", StatedVerdict::Below),
        ] {
            assert_eq!(verdict(stated, cost), Some(expected), "{stated} {cost}");
        }
        let one = StatedCost { amount: "1".parse().unwrap(), currency: Currency::USD };
        assert_eq!(one.against(one.amount, "EUR".parse().unwrap()), None);
    }
}
