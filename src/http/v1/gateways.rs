//! Gateways: who publishes usage, and what of it never arrived.

use axum::Json;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::AppState;
use crate::http::auth::{Admin, Finance, Read};
use crate::http::listing::{Listing, NoFilter, Page, PageParams};
use crate::http::problem::{ALREADY_EXISTS, Problem};
use crate::http::request::Path;
use crate::http::table::{Cells, CsvRow};
use crate::http::write::Write;
use crate::store::gateways::{self, GatewayRow, HoleRow};
use crate::store::{catalog, partitions};

/// Most holes that are shown of a gateway in the list.
const HOLES_IN_LIST: i64 = 20;
/// Most holes that are shown of one gateway.
const HOLES_OF_ONE: i64 = 1000;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_gateways, create_gateway))
        .routes(routes!(get_gateway, update_gateway))
}

/// A gateway.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Gateway)]
struct GatewayView {
    /// Its name: the last token of its subject and the start of its events' `source`.
    #[schema(example = "gw-eu-1")]
    name: String,
    /// Events since then are taken, however old they are; null for the usual 35 days.
    backfill_from: Option<DateTime<Utc>>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// Events that its own count (`sequence`) says it made and that never arrived.
    missing: i64,
    /// Events that carried the number of another event in the same epoch: recorded, but the count is not to be trusted.
    repeated: i64,
    /// Events that are recorded, but whose numbers are not followed, because the gateway opened more than 500 epochs in
    /// an hour or left more than 2000 holes in one.
    unfollowed: i64,
    /// Which ones: the first 20 holes in the list, the first 1000 of one gateway.
    holes: Vec<HoleView>,
}

/// Consecutive numbers of a gateway's count that never arrived.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hole)]
struct HoleView {
    /// The count's epoch.
    epoch: String,
    /// First missing number.
    first: i64,
    /// Last missing number.
    last: i64,
}

impl GatewayView {
    /// With the holes of this gateway among all that were read.
    fn new(row: GatewayRow, holes: &[HoleRow]) -> Self {
        let GatewayRow { id, name, backfill_from, created_at, missing, repeated, unfollowed } = row;
        let own = holes.iter().filter(|hole| hole.gateway == id);
        let holes = own
            .map(|hole| HoleView { epoch: hole.epoch.clone(), first: hole.first, last: hole.last })
            .collect();
        Self { name, backfill_from, created_at, missing, repeated, unfollowed, holes }
    }
}

impl CsvRow for GatewayView {
    const HEADER: &'static [&'static str] =
        &["name", "backfill_from", "created_at", "missing", "repeated", "unfollowed"];

    fn cells(&self, cells: &mut Cells) {
        cells
            .text(&self.name)
            .maybe_time(self.backfill_from)
            .time(self.created_at)
            .value(self.missing)
            .value(self.repeated)
            .value(self.unfollowed);
    }
}

/// List gateways
///
/// In order of their names, with what never arrived where they keep a count.
#[utoipa::path(get, path = "/v1/gateways", operation_id = "list_gateways", tag = "gateways",
    params(PageParams),
    responses((status = 200, description = "A page of gateways", content(
        (Page<GatewayView> = "application/json"), (String = "text/csv")))))]
async fn list_gateways(
    Listing { mut tx, page, .. }: Listing<Finance, NoFilter>,
) -> Result<Response, Problem> {
    let after: Option<String> = page.after()?;
    let rows = gateways::list(&mut tx, None, after.as_deref(), page.fetch()).await?;
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let holes = gateways::holes(&mut tx, &ids, HOLES_IN_LIST).await?;
    page.respond(rows, |row| row.name.clone(), |row| GatewayView::new(row, &holes))
}

/// Get a gateway
///
/// With what never arrived where it keeps a count.
#[utoipa::path(get, path = "/v1/gateways/{name}", operation_id = "get_gateway", tag = "gateways",
    params(("name" = String, Path, description = "Its name", example = "gw-eu-1")),
    responses((status = 200, description = "The gateway", body = GatewayView)))]
async fn get_gateway(
    Path(name): Path<String>,
    Read { mut tx, .. }: Read<Finance>,
) -> Result<Json<GatewayView>, Problem> {
    Ok(Json(view(&mut tx, &name).await?))
}

/// A gateway to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewGateway {
    /// Its name: 1 to 64 of `A-Z a-z 0-9 _ -`. It never changes.
    #[schema(example = "gw-eu-1", pattern = "^[A-Za-z0-9_-]{1,64}$")]
    name: String,
    /// Take events since then, however old they are: for a migration or a replayed trace.
    backfill_from: Option<DateTime<Utc>>,
}

/// Create a gateway
///
/// Events that it published before are tried again. It needs a key of role `gateway` to publish over HTTP.
#[utoipa::path(post, path = "/v1/gateways", operation_id = "create_gateway", tag = "gateways",
    request_body = NewGateway,
    responses((status = 201, description = "Created", body = GatewayView)))]
async fn create_gateway(Write { mut work, body, .. }: Write<Admin, NewGateway>) -> Result<Response, Problem> {
    let NewGateway { name, backfill_from } = body;
    let now = work.now;
    check_backfill(work.db(), backfill_from, now).await?;
    let row = gateways::create(work.db(), &name, backfill_from).await.map_err(|error| {
        match error.constraint() {
            Some("gateways_name_key") => {
                Problem::new(&ALREADY_EXISTS, format!("There is a gateway `{name}` already."))
            }
            Some("gateways_name_check") => Problem::invalid("name", "must be 1 to 64 of A-Z a-z 0-9 _ -"),
            _ => error.into(),
        }
    })?;
    catalog::bump(work.db()).await?;
    work.audit("gateway.create", &name, Some(json!({"backfill_from": backfill_from}))).await?;
    work.created(format!("/v1/gateways/{name}"), &GatewayView::new(row, &[])).await
}

/// A change of a gateway.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GatewayChange {
    /// Take events since then, however old they are; null for the usual 35 days.
    // Named, so that a field left out is a mistake and not a null.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required = true)]
    backfill_from: Option<DateTime<Utc>>,
}

/// Update a gateway
///
/// Its acceptance window. Duplicates are found over the whole window, however wide; so it begins in a month whose raw events
/// are not archived.
#[utoipa::path(patch, path = "/v1/gateways/{name}", operation_id = "update_gateway", tag = "gateways",
    params(("name" = String, Path, description = "Its name", example = "gw-eu-1")),
    request_body = GatewayChange,
    responses((status = 200, description = "Changed", body = GatewayView)))]
async fn update_gateway(
    Path(name): Path<String>,
    Write { mut work, body, .. }: Write<Admin, GatewayChange>,
) -> Result<Response, Problem> {
    let GatewayChange { backfill_from } = body;
    let now = work.now;
    check_backfill(work.db(), backfill_from, now).await?;
    if !gateways::set_backfill(work.db(), &name, backfill_from).await? {
        return Err(unknown());
    }
    catalog::bump(work.db()).await?;
    work.audit("gateway.update", &name, Some(json!({"backfill_from": backfill_from}))).await?;
    let view = view(work.db(), &name).await?;
    work.done(&view).await
}

async fn view(db: &mut sqlx::PgConnection, name: &str) -> Result<GatewayView, Problem> {
    let row = gateways::list(db, Some(name), None, 1).await?.pop().ok_or_else(unknown)?;
    let holes = gateways::holes(db, &[row.id], HOLES_OF_ONE).await?;
    Ok(GatewayView::new(row, &holes))
}

async fn check_backfill(
    db: &mut sqlx::PgConnection,
    from: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(), Problem> {
    let Some(from) = from else { return Ok(()) };
    if from > now {
        return Err(Problem::invalid("backfill_from", "must be in the past"));
    }
    match partitions::archived_through(db).await? {
        Some(kept_from) if from.date_naive() < kept_from => Err(Problem::invalid(
            "backfill_from",
            format!(
                "must be {kept_from} or later: raw events of the time before are archived, so copies could not be told"
            ),
        )),
        _ => Ok(()),
    }
}

fn unknown() -> Problem {
    Problem::not_found("gateway")
}
