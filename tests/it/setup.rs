//! What the set-up files promise.
