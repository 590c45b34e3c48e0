//! Rating: which price applies to a call, and what the call then costs, exactly.
//!
//! Owns: the price book as an index ([`PriceBook`]), choosing the one price that applies and saying why not the others, the sum of
//! quantity times rate, the named states of usage that has no price ([`Unpriced`]), a customer's own book before its sell book
//! ([`SellBooks`]), what recorded usage comes to at other prices ([`rerate`]), how two books differ ([`compare()`]), what prices
//! over a billing period change ([`settlement`]).
//! Does not own: reading or publishing prices (`store::prices`, `domain::price`), taking usage apart (`metering`).
//! Invariants: pure; no amount without a price for every non-zero quantity, so nothing unknown is ever zero; the result
//! does not depend on the order in which prices were loaded; rating a call allocates nothing unless it fails.

mod book;
mod compare;
mod explain;
pub mod import;
mod rerate;
mod sell;
pub mod settlement;
pub mod starter;

pub use book::{BookError, Condition, PriceBook, Rated, Unpriced};
pub use compare::{Comparison, Difference as PriceDifference, Sides, compare};
pub use explain::{Candidate, Difference, Verdict};
pub use rerate::{Restated, rerate};
pub use sell::SellBooks;
