//! The wire format and the provider payloads: from bytes to [`UsageEvent`](crate::domain::event::UsageEvent).
//!
//! Owns: taking a message apart, every rule of what an event may hold, the decomposition of provider payloads into
//! disjoint token classes, the content hash, the acceptance window, the reasons of rejections, and what of an event is
//! never stored.
//! Does not own: customers, gateways and identities already recorded (`store`, `ingest`); what anything costs
//! (`rating`).
//! Invariants: pure; never panics and never recurses on what it is given; a count is an integer read from the wire,
//! never through a float; what contradicts itself is refused with a reason, never brought into line.
//!
//! Choices where the specification leaves one:
//! - Explicit zeros are usage (recorded as zero); an empty `usage` and a payload without counts are `unmetered`.
//! - `null` is "not given" for every optional field; an empty text is a mistake (`length`).
//! - Ids are opaque and compared byte for byte: two spellings of a UUID are two ids.
//! - Times are cut to microseconds; leap seconds are refused.
//! - Costs, prices and currencies in the body never become money; a provider's stated cost is kept beside ours.
//! - The model that the provider reports goes before the model that the event names; the provider's name that the
//!   event gives goes before the payload's. What was served (tier, speed, geography) goes before what was asked for.

mod admission;
mod event;
mod fields;
mod formats;
mod hash;
mod hints;
mod json;
mod message;
mod reason;
mod redact;
#[cfg(test)]
mod tests;
mod values;

pub use admission::{FUTURE_WINDOW_MINUTES, PAST_WINDOW_DAYS, admit, admit_source, admit_unarchived};
pub use event::{
    Outline, PARTS_MAX, SPEC_VERSION, TASK_TYPE, USAGE_TYPE, parse_event, parse_outline, parse_usage,
    parse_with_payload,
};
pub use formats::Format;
pub use hash::{READING, bytes_hash, content_hash};
pub use hints::{Hints, hints};
pub use message::{MESSAGE_MAX_BYTES, MESSAGE_MAX_EVENTS, Message, split, split_shared};
pub use reason::{Reason, Rejected, UnknownReason};
pub use redact::{redact, redact_message, redact_rejected};
pub use values::ATTRIBUTES_MAX;
