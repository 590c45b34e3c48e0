//! The settled watermark: which of a gateway's own events are in the database, so that it may forget them.

use axum::Json;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::AppState;
use crate::http::auth::{GatewayOrFinance, Read};
use crate::http::problem::Problem;
use crate::http::request::{Path, Query};
use crate::store::api_keys::Holder;
use crate::store::gateways;
use crate::store::watermark::{self, EpochHole, EpochRow};

/// Most epochs in one answer, those heard of last.
const EPOCHS_MAX: i64 = 20;
/// Most holes of one epoch in one answer, the lowest ones.
const HOLES_MAX: i64 = 1000;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_watermark))
}

/// How far a gateway's events are settled.
#[derive(Debug, Serialize, ToSchema)]
struct Watermark {
    /// The gateway.
    #[schema(example = "gw-eu-1")]
    gateway: String,
    /// One per epoch of its count, the one heard of last first, at most 20; empty where none of its events was counted.
    epochs: Vec<EpochView>,
}

/// One epoch of a gateway's count.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WatermarkEpoch)]
struct EpochView {
    /// Its name, `default` where the events name none.
    #[schema(example = "0198c3a2-7b1e-7cc0-9d6e-0b4d1f2a3c4d")]
    epoch: String,
    /// Every event numbered 1 to this is in the database for good, however it ended: recorded, as a copy of a recorded one, or kept as a
    /// rejection. The gateway need not keep them any longer. 0 where number 1 is missing.
    #[schema(example = 18_204)]
    settled: i64,
    /// The highest number in the database.
    #[schema(example = 18_310)]
    highest: i64,
    /// How many numbers below `highest` are not in the database (yet).
    #[schema(example = 6)]
    missing: i64,
    /// Which ones, the lowest 1000 holes. Numbers below `highest` outside of all holes are settled as well.
    holes: Vec<HoleRange>,
    /// Whether there are more holes than listed: then nothing is known of the numbers above the last one listed.
    #[schema(example = false)]
    holes_truncated: bool,
    /// When the epoch's first event came.
    first_seen_at: DateTime<Utc>,
    /// When an event of it came last.
    seen_at: DateTime<Utc>,
}

/// Consecutive numbers that are missing.
#[derive(Debug, Serialize, ToSchema)]
struct HoleRange {
    /// First missing number.
    #[schema(example = 18_205)]
    first: i64,
    /// Last missing number.
    #[schema(example = 18_210)]
    last: i64,
}

/// Narrows the watermark.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// The only epoch to look at.
    epoch: Option<String>,
}

impl EpochView {
    fn new(row: EpochRow, holes: &[EpochHole]) -> Self {
        let EpochRow { epoch, settled, highest, missing, first_seen_at, seen_at } = row;
        let own = holes.iter().filter(|hole| hole.epoch == epoch);
        let holes: Vec<_> = own.map(|hole| HoleRange { first: hole.first, last: hole.last }).collect();
        let listed: i64 = holes.iter().map(|hole| hole.last - hole.first + 1).sum();
        let holes_truncated = listed < missing;
        Self { epoch, settled, highest, missing, holes, holes_truncated, first_seen_at, seen_at }
    }
}

/// Get the settled watermark of a gateway
///
/// For gateways that count their events (`sequence`, `epoch`). A number is settled once the transaction that recorded its event, found it to be a copy,
/// or kept it as a rejection is committed; that never is taken back, but by a restore of the database to an older state. Copies may come in
/// any order and any number of times. Events of a message that could not be read at all settle nothing, nor do those of a
/// gateway that is not registered. A gateway's key gets its own watermark only.
#[utoipa::path(get, path = "/v1/gateways/{name}/watermark", operation_id = "get_watermark", tag = "gateways",
    params(("name" = String, Path, description = "The gateway's name", example = "gw-eu-1"), Filter),
    responses((status = 200, description = "The watermark", body = Watermark)))]
async fn get_watermark(
    Path(name): Path<String>,
    Query(Filter { epoch }): Query<Filter>,
    Read { caller, mut tx, .. }: Read<GatewayOrFinance>,
) -> Result<Json<Watermark>, Problem> {
    let unknown = || Problem::not_found("gateway");
    let id = match &caller.holder {
        Holder::Gateway { id, name: own, .. } => (*own == name).then_some(*id),
        Holder::Finance | Holder::Admin => gateways::id_of(&mut tx, &name).await?,
        Holder::Customer { .. } => None,
    };
    let id = id.ok_or_else(unknown)?;
    let rows = watermark::epochs(&mut tx, id, epoch.as_deref(), EPOCHS_MAX).await?;
    let names: Vec<String> = rows.iter().map(|row| row.epoch.clone()).collect();
    let holes = watermark::holes(&mut tx, id, &names, HOLES_MAX).await?;
    let epochs = rows.into_iter().map(|row| EpochView::new(row, &holes)).collect();
    Ok(Json(Watermark { gateway: name, epochs }))
}
