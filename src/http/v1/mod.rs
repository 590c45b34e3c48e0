//! The resources of version 1, one file each; each has `routes()`, merged here.

mod api_keys;
mod customers;
mod events;
mod gateways;
mod rejections;

use utoipa_axum::router::OpenApiRouter;

use super::AppState;

/// All resources.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(events::routes())
        .merge(customers::routes())
        .merge(gateways::routes())
        .merge(api_keys::routes())
        .merge(rejections::routes())
}
