//! The words of the design as types: money, token classes, identities, periods, events, prices.
//!
//! Owns: the exact arithmetic and the only rounding ([`money`]), the disjoint token classes ([`tokens`]), billing
//! calendars ([`period`]), the names that calls and prices share ([`names`]), the shapes that the other modules hand each other.
//! Does not own: any I/O, clock, async or SQL statement; the wire format (`metering`); choosing a price (`rating`).
//! Invariants: a value that exists is valid; quantities are integers up to 10^12 and amounts whole multiples of
//! 10^-15; nothing here uses a float.

pub mod access;
pub mod event;
pub mod identity;
pub mod ids;
pub mod invoice;
pub mod money;
pub mod names;
pub mod period;
pub mod price;
pub mod settlement;
pub mod tokens;
