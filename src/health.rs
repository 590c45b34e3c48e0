//! What the program's parts say about themselves; `/readyz` answers from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The state of every part that must be up before traffic makes sense; a clone shares it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

impl Health {
    /// With these parts expected, each `starting` until it says otherwise.
    pub fn expecting(parts: &[&'static str]) -> Self {
        let parts = parts.iter().map(|part| (*part, Some("starting".to_owned()))).collect();
        Self { parts: Arc::new(Mutex::new(parts)) }
    }

    /// The part works.
    pub fn up(&self, part: &'static str) {
        self.set(part, None);
    }

    /// The part does not work, with a reason that may be shown to anybody.
    pub fn down(&self, part: &'static str, reason: impl Into<String>) {
        self.set(part, Some(reason.into()));
    }

    /// Every part by name, with the reason where it is down.
    pub fn parts(&self) -> BTreeMap<&'static str, Option<String>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, part: &'static str, reason: Option<String>) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(part, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::Health;

    #[test]
    fn a_part_is_down_until_it_says_that_it_is_up() {
        let health = Health::expecting(&["stream"]);
        assert_eq!(health.parts()["stream"].as_deref(), Some("starting"));
        health.clone().up("stream");
        assert_eq!(health.parts()["stream"], None);
        health.down("stream", "not connected");
        assert_eq!(health.parts()["stream"].as_deref(), Some("not connected"));
    }
}
