//! How long tests run, and with which seeds.

use crate::harness::everything;

/// Whether everything is to be run, as `make test-faults` does, instead of the short selection of `make test`.
pub fn thorough() -> bool {
    everything()
}

/// How often a fault is repeated: `WAYBILL_FAULTS_ROUNDS`, or `many` in a thorough run, or once.
pub fn rounds(many: u32) -> u32 {
    let wished = number("WAYBILL_FAULTS_ROUNDS");
    wished.unwrap_or(if thorough() { many } else { 1 })
}

/// The seed of a test, printed, so that it can be run again: `WAYBILL_FAULTS_SEED`, or one of the moment.
pub fn seed(test: &str) -> u64 {
    let wished = number("WAYBILL_FAULTS_SEED");
    let seed = wished.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("{test}: WAYBILL_FAULTS_SEED={seed}");
    seed
}

/// A number from the environment.
pub fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let text = std::env::var_os(variable)?.into_string().ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}
