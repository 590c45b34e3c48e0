//! Whether the program lives, and whether it can do its work.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;

/// What can and cannot be done right now.
#[derive(Debug, Serialize, ToSchema)]
struct Readiness {
    /// Whether everything works.
    ready: bool,
    /// Every part: `ok`, or what is wrong with it.
    #[schema(example = json!({"database": "ok", "stream": "not connected"}))]
    parts: BTreeMap<&'static str, String>,
}

/// The probes; they need no key.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz))
}

/// The probes alone, for the listener of the metrics: a process without the API has them too.
pub fn router(state: AppState) -> Router {
    let (router, _) = routes().split_for_parts();
    router.with_state(state)
}

/// Whether the program lives
///
/// Answers as long as the program can answer at all; depends on nothing else.
#[utoipa::path(get, path = "/livez", operation_id = "get_liveness", tag = "operation", security(()),
    responses((status = 200, description = "It lives", body = String, example = json!("ok"))))]
async fn livez() -> &'static str {
    "ok"
}

/// Whether the program can do its work
#[utoipa::path(get, path = "/readyz", operation_id = "get_readiness", tag = "operation", security(()),
    responses((status = 200, description = "Everything works", body = Readiness),
        (status = 503, description = "Something does not; `parts` names it", body = Readiness)))]
async fn readyz(State(state): State<AppState>) -> (StatusCode, Json<Readiness>) {
    // Whether the database answers is among them; a probe, which needs no key, does not ask it anything itself.
    let parts = state.health.parts();
    let ready = parts.values().all(Option::is_none);
    let parts =
        parts.into_iter().map(|(part, wrong)| (part, wrong.unwrap_or_else(|| "ok".to_owned()))).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, parts }))
}
