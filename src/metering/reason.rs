//! Why an event or a message is not recorded.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::event::text_enum;

/// The longest detail kept, in characters.
const DETAIL_MAX_CHARS: usize = 300;

text_enum! {
    /// Stable code of a rejection (`reliability` c.1); stored, counted and shown.
    Reason, UnknownReason, "rejection reason" {
        /// Nothing in the message.
        Empty = "empty",
        /// Not JSON, truncated, nested too deep, or with something behind it.
        Json = "json",
        /// Bytes that are not UTF-8.
        Utf8 = "utf8",
        /// A compression that is not announced or not accepted.
        Encoding = "encoding",
        /// More bytes than allowed, compressed or not.
        TooLarge = "too_large",
        /// More events in one message than allowed.
        TooMany = "too_many",
        /// A key given twice in one object.
        DuplicateKey = "duplicate_key",
        /// A `specversion` or `type` that this release does not know.
        Version = "version",
        /// The wrong JSON type, number form or enumerated value.
        Type = "type",
        /// A count below zero.
        Negative = "negative",
        /// A number no counter can hold.
        Range = "range",
        /// A count, or a number of things, above the limit of one event.
        Limit = "limit",
        /// A required field is not there.
        MissingField = "missing_field",
        /// Counts that contradict each other.
        Inconsistent = "inconsistent",
        /// Two statements of the same thing, or a payload that reads two ways.
        Ambiguous = "ambiguous",
        /// No usable event id.
        NoId = "no_id",
        /// An event id that names the event itself where another is meant.
        BadId = "bad_id",
        /// Not an RFC 3339 time with an offset.
        Time = "time",
        /// Too far ahead of the clock.
        Future = "future",
        /// Older than the acceptance window.
        TooOld = "too_old",
        /// A gateway speaking for another.
        NotAllowed = "not_allowed",
        /// A NUL character in a text.
        Nul = "nul",
        /// An empty or too long text.
        Length = "length",
        /// Characters that the field does not allow.
        Charset = "charset",
        /// A call without usage.
        Unmetered = "unmetered",
        /// A provider payload format that this release does not know.
        UnknownFormat = "unknown_format",
        /// A token class that this release does not know.
        UnknownClass = "unknown_class",
        /// A subject that is not `usage.v1.<gateway>`.
        Subject = "subject",
        /// A gateway that is not registered.
        UnknownGateway = "unknown_gateway",
        /// A customer that is not registered.
        UnknownCustomer = "unknown_customer",
        /// A customer that is suspended.
        SuspendedCustomer = "suspended_customer",
        /// No price for the model, the time or a class.
        Unpriced = "unpriced",
        /// No price either, but a call that used nothing, as of a model that is not there: nothing would be billed.
        NothingUsed = "nothing_used",
        /// A correction of an event that is not recorded.
        UnknownEstimate = "unknown_estimate",
        /// A correction of an estimate that a later one has corrected already.
        Superseded = "superseded",
        /// Another event with this identity is recorded.
        Conflict = "conflict",
        /// The database refuses the event's data.
        Unstorable = "unstorable",
        /// The event made the program fail.
        Panic = "panic",
    }
}

impl Reason {
    /// Whether the same bytes may be recorded later: once a price, a customer, a window or a release is in place.
    pub const fn replayable(self) -> bool {
        matches!(
            self,
            Self::Version
                | Self::Future
                | Self::TooOld
                | Self::UnknownFormat
                | Self::UnknownClass
                | Self::UnknownGateway
                | Self::UnknownCustomer
                | Self::SuspendedCustomer
                | Self::Unpriced
                | Self::NothingUsed
                | Self::UnknownEstimate
                | Self::Panic
        )
    }
}

/// An event or a message that is not recorded, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejected {
    /// The code.
    pub reason: Reason,
    /// One sentence that says what to do; never a payload at length.
    pub detail: String,
}

impl Rejected {
    /// A rejection; the detail is cut to a length fit for a list and freed of control characters.
    pub fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        let clean = |character: char| if character.is_control() { ' ' } else { character };
        Self { reason, detail: detail.to_string().chars().take(DETAIL_MAX_CHARS).map(clean).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_is_what_json_shows() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }

    #[test]
    fn a_detail_is_short_and_prints_on_one_line() {
        let rejected = Rejected::new(Reason::Json, "a\r\n\u{1b}[2J".repeat(200));
        assert_eq!(rejected.detail.chars().count(), DETAIL_MAX_CHARS);
        assert!(!rejected.detail.contains(char::is_control));
    }
}
