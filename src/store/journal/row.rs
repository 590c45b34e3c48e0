//! What one event adds to the journal.

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use uuid::Uuid;

use crate::domain::event::{CallConditions, Outcome, StatedCost, StatedVerdict, TaskRef};
use crate::domain::identity::{EventIdentity, EventKey};
use crate::domain::ids::{CustomerId, GatewayId, PriceId};
use crate::domain::money::Amount;
use crate::domain::tokens::Quantities;

/// An event ready to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEvent {
    /// Its identity ...
    pub identity: EventIdentity,
    /// ... and the key made of it.
    pub key: EventKey,
    /// Hash of its billable content.
    pub content_hash: Uuid,
    /// Sequence of its message in the stream.
    pub stream_seq: i64,
    /// Its position in the message.
    pub event_index: i32,
    /// Whom it bills.
    pub customer: CustomerId,
    /// Who reported it.
    pub gateway: GatewayId,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// The estimate that it replaces.
    pub corrects: Option<EventKey>,
    /// Its task.
    pub task: Option<TaskRef>,
    /// How the task ended, where it reports that; then it has no parts.
    pub outcome: Option<Outcome>,
    /// Attribute `project`.
    pub project: Option<CompactString>,
    /// All attributes as a JSON object.
    pub attributes: Option<String>,
    /// The call's own status.
    pub status: Option<CompactString>,
    /// Whether the gateway estimated the usage.
    pub estimated: bool,
    /// How long the call took.
    pub latency_ms: Option<i64>,
    /// Rated usage.
    pub parts: Vec<JournalPart>,
}

/// One rated usage part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPart {
    /// The provider's name.
    pub provider: CompactString,
    /// The model as reported.
    pub model: CompactString,
    /// Conditions of the call.
    pub conditions: CallConditions,
    /// What context tiers were compared with.
    pub tier_input: i64,
    /// Disjoint quantities.
    pub quantities: Quantities,
    /// The price that gave the cost.
    pub cost_price: PriceId,
    /// The price that gave the charge.
    pub sell_price: PriceId,
    /// What the provider charges us, exact.
    pub cost: Amount,
    /// What the customer pays, exact.
    pub charge: Amount,
    /// What the provider says it charged.
    pub stated_cost: Option<StatedCost>,
    /// How that compares with the cost, where both are in one currency; counted, not stored.
    pub stated_verdict: Option<StatedVerdict>,
}

impl JournalEvent {
    /// How many rows it adds, reversals of an estimate aside.
    pub fn row_count(&self) -> usize {
        self.parts.len().max(1)
    }
}
