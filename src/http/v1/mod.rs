//! The resources of version 1, one file each; each has `routes()`, merged here.

mod api_keys;
mod customers;
mod gateways;
mod price_books;
mod prices;
mod rejections;

use utoipa_axum::router::OpenApiRouter;

use super::AppState;

/// All resources.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(customers::routes())
        .merge(gateways::routes())
        .merge(price_books::routes())
        .merge(prices::routes())
        .merge(api_keys::routes())
        .merge(rejections::routes())
}
