//! What Google looked up for an answer. The usage does not count it: the candidates list the queries.
//!
//! A model up to 2.x is billed once for a prompt that it searched for, later ones by the query: each once, however many
//! candidates made it, an empty one never. Looking up maps has a fee of its own, for which there is no class. What a
//! search or the maps brought is read for nothing.

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::chat::is_billed_by_prompt;
use crate::metering::json::{Object, objects};
use crate::metering::reason::Rejected;

#[derive(Deserialize)]
struct Candidate<'a> {
    #[serde(borrow, rename = "groundingMetadata", alias = "grounding_metadata")]
    grounding: Option<Object<Metadata<'a>>>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(rename = "webSearchQueries", alias = "web_search_queries")]
    queries: Option<Vec<String>>,
    #[serde(borrow, rename = "groundingChunks", alias = "grounding_chunks")]
    chunks: Option<&'a RawValue>,
    #[serde(rename = "googleMapsWidgetContextToken", alias = "google_maps_widget_context_token")]
    maps_widget: Option<IgnoredAny>,
}

/// Where a piece of an answer is from.
#[derive(Deserialize)]
struct Chunk {
    web: Option<IgnoredAny>,
    maps: Option<IgnoredAny>,
}

/// What was looked up for one call.
pub(super) struct Grounding {
    /// Billed searches of the web.
    pub searches: i64,
    /// Whether what the tools made the model read was free.
    pub is_read_for_free: bool,
}

impl Grounding {
    /// What the candidates of an answer of this model were grounded in.
    pub(super) fn of(candidates: Option<&RawValue>, model: Option<&str>) -> Result<Self, Rejected> {
        let candidates: Vec<Candidate<'_>> = objects(candidates)?;
        let (mut queries, mut is_mapped) = (HashSet::new(), false);
        for Object(found) in candidates.into_iter().filter_map(|candidate| candidate.grounding) {
            let chunks: Vec<Chunk> = objects(found.chunks)?;
            let is_of_maps = found.maps_widget.is_some() || chunks.iter().any(|chunk| chunk.maps.is_some());
            is_mapped |= is_of_maps;
            // Queries without a page of the web, beside places of the maps, were put to the maps.
            if !is_of_maps || chunks.iter().any(|chunk| chunk.web.is_some()) {
                queries.extend(found.queries.into_iter().flatten().filter(|query| !query.is_empty()));
            }
        }
        let asked = if model.is_some_and(is_billed_by_prompt) { queries.len().min(1) } else { queries.len() };
        Ok(Self {
            searches: i64::try_from(asked).unwrap_or(i64::MAX),
            is_read_for_free: is_mapped || !queries.is_empty(),
        })
    }
}
