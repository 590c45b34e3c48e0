//! The resources of version 1, one file each; each has `routes()`, merged here.

mod api_keys;
mod customers;
mod events;
mod explanations;
mod figures;
mod gateways;
mod invoices;
mod markups;
mod period_prices;
mod price_books;
mod prices;
mod rejections;
mod reports;
mod rerates;
mod task_charges;
mod tasks;
mod usage;
mod watermark;

use utoipa_axum::router::OpenApiRouter;

use super::AppState;

pub use prices::price_list;

/// All resources.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(events::routes())
        .merge(explanations::routes())
        .merge(customers::routes())
        .merge(gateways::routes())
        .merge(watermark::routes())
        .merge(price_books::routes())
        .merge(markups::routes())
        .merge(prices::routes())
        .merge(period_prices::routes())
        .merge(rerates::routes())
        .merge(api_keys::routes())
        .merge(rejections::routes())
        .merge(usage::routes())
        .merge(tasks::routes())
        .merge(reports::routes())
        .merge(invoices::routes())
        .merge(task_charges::routes())
}
