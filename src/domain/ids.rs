//! Typed identifiers, so that one kind of id can never be passed for another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    )+};
}

id_types! {
    /// A customer's key inside the database; outside it is known by its `external_id`.
    CustomerId(i64);
    /// A gateway's key inside the database; outside it is known by its name.
    GatewayId(i32);
    /// A price book's key inside the database; outside it is known by its name.
    BookId(i32);
    /// One immutable row of a price book.
    PriceId(i64);
    /// One immutable row of prices over a billing period.
    PeriodPriceId(i64);
    /// One recording transaction.
    BatchId(i64);
    /// One rejection.
    RejectionId(i64);
    /// One API key.
    ApiKeyId(i64);
    /// One invoice.
    InvoiceId(uuid::Uuid);
}
