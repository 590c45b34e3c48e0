//! The resources of version 1, one file each; each has `routes()`, merged here.

use utoipa_axum::router::OpenApiRouter;

use super::AppState;

/// All resources.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
}
