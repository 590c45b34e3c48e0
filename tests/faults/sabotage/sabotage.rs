//! Faults on purpose: `WAYBILL_SABOTAGE` names them, with commas between. Only ever in a copy of the program.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// Whether a fault is wished.
pub fn on(fault: &str) -> bool {
    static WISHED: OnceLock<Vec<String>> = OnceLock::new();
    let wished = WISHED.get_or_init(|| {
        let names = std::env::var_os("WAYBILL_SABOTAGE").and_then(|names| names.into_string().ok());
        names.unwrap_or_default().split(',').map(str::to_owned).collect()
    });
    wished.iter().any(|wish| wish == fault)
}

/// Whether a sequence is below the highest one seen so far.
pub fn below_highest(sequence: i64) -> bool {
    static HIGHEST: AtomicI64 = AtomicI64::new(0);
    HIGHEST.fetch_max(sequence, Ordering::Relaxed) > sequence
}
