//! API keys: who may call.

use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::access::Role;
use crate::domain::ids::ApiKeyId;
use crate::http::AppState;
use crate::http::auth::Admin;
use crate::http::listing::{Listing, Page, PageParams};
use crate::http::problem::{OnConstraint, Problem};
use crate::http::request::Path;
use crate::http::table::{Cells, CsvRow};
use crate::http::write::Write;
use crate::store::api_keys::{self, AskedKey, HolderError, KeyRow};

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_api_keys, create_api_key)).routes(routes!(revoke_api_key))
}

/// An API key, without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ApiKey)]
struct KeyView {
    /// The half of the key that may be shown and logged.
    #[schema(example = "Zk3v9QwLm2Xa")]
    public_id: String,
    /// What it is for.
    #[schema(example = "gateway eu 1")]
    name: String,
    /// What it may do.
    role: Role,
    /// The gateway it speaks for.
    gateway: Option<String>,
    /// The customer it speaks for, by `external_id`.
    customer: Option<String>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it stops working.
    expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    revoked_at: Option<DateTime<Utc>>,
}

/// A key that was just made.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ApiKeyWithToken)]
struct NewKeyView {
    #[serde(flatten)]
    key: KeyView,
    /// The whole key. It is shown this once and kept nowhere: null where the request is repeated with its
    /// `Idempotency-Key`.
    #[schema(example = "wb_Zk3v9QwLm2Xa_…")]
    token: Option<String>,
}

impl From<KeyRow> for KeyView {
    fn from(row: KeyRow) -> Self {
        let KeyRow { id: _, public_id, name, role, gateway, customer, created_at, expires_at, revoked_at } =
            row;
        Self { public_id, name, role, gateway, customer, created_at, expires_at, revoked_at }
    }
}

impl From<HolderError> for Problem {
    fn from(error: HolderError) -> Self {
        match error {
            HolderError::Named { field, detail } => Self::invalid(field, detail),
            HolderError::Store(error) => error.into(),
        }
    }
}

impl CsvRow for KeyView {
    const HEADER: &'static [&'static str] =
        &["public_id", "name", "role", "gateway", "customer", "created_at", "expires_at", "revoked_at"];

    fn cells(&self, cells: &mut Cells) {
        cells
            .text(&self.public_id)
            .text(&self.name)
            .value(self.role)
            .maybe_text(self.gateway.as_deref())
            .maybe_text(self.customer.as_deref())
            .time(self.created_at)
            .maybe_time(self.expires_at)
            .maybe_time(self.revoked_at);
    }
}

/// Narrows the list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct KeyFilter {
    /// Only keys of this role.
    role: Option<Role>,
}

/// List API keys
///
/// In the order they were made, revoked ones too; never their secrets.
#[utoipa::path(get, path = "/v1/api-keys", operation_id = "list_api_keys", tag = "api-keys",
    params(KeyFilter, PageParams),
    responses((status = 200, description = "A page of keys", content(
        (Page<KeyView> = "application/json"), (String = "text/csv")))))]
async fn list_api_keys(
    Listing { mut tx, filter, page, .. }: Listing<Admin, KeyFilter>,
) -> Result<Response, Problem> {
    let after = page.after::<i64>()?.map(ApiKeyId);
    let rows = api_keys::list(&mut tx, filter.role, after, page.fetch()).await?;
    page.respond(rows, |row| row.id.0, KeyView::from)
}

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewApiKey)]
#[serde(deny_unknown_fields)]
struct NewKey {
    /// What it may do.
    role: Role,
    /// What it is for, 1 to 100 characters.
    #[schema(example = "gateway eu 1", min_length = 1, max_length = 100)]
    name: String,
    /// The gateway it speaks for: with role `gateway`, and only then.
    gateway: Option<String>,
    /// The customer it speaks for, by `external_id`: with role `customer`, and only then.
    customer: Option<String>,
    /// When it stops working; null for never.
    expires_at: Option<DateTime<Utc>>,
}

/// Create an API key
///
/// The answer holds the whole key, this once.
#[utoipa::path(post, path = "/v1/api-keys", operation_id = "create_api_key", tag = "api-keys",
    request_body = NewKey,
    responses((status = 201, description = "Created", body = NewKeyView)))]
async fn create_api_key(Write { mut work, body, .. }: Write<Admin, NewKey>) -> Result<Response, Problem> {
    if body.expires_at.is_some_and(|at| at <= work.now) {
        return Err(Problem::invalid("expires_at", "must be in the future"));
    }
    let NewKey { role, name, gateway, customer, expires_at } = body;
    let asked = AskedKey {
        role,
        name: &name,
        gateway: gateway.as_deref(),
        customer: customer.as_deref(),
        expires_at,
    };
    let holder = asked.holder(work.db()).await?;
    let made = api_keys::create(work.db(), holder, &name, expires_at)
        .await
        .on_constraint("api_keys_name_check", || Problem::invalid("name", "must have 1 to 100 characters"))?;
    work.audit("api_key.create", &made.public_id, Some(json!(asked))).await?;
    let location = format!("/v1/api-keys/{}", made.public_id);
    let public_id = made.public_id;
    let created_at = made.created_at;
    let key = KeyView { public_id, name, role, gateway, customer, created_at, expires_at, revoked_at: None };
    let kept = NewKeyView { key: key.clone(), token: None };
    work.created_secretly(location, &NewKeyView { key, token: Some(made.token) }, &kept).await
}

/// Revoke an API key
///
/// It stops working at once and stays in the list. A key cannot revoke itself, so there is always one left.
#[utoipa::path(delete, path = "/v1/api-keys/{public_id}", operation_id = "revoke_api_key", tag = "api-keys",
    params(("public_id" = String, Path, description = "The half of the key that may be shown", example = "Zk3v9QwLm2Xa")),
    responses((status = 204, description = "Revoked, now or before")))]
async fn revoke_api_key(
    Path(public_id): Path<String>,
    Write { mut work, .. }: Write<Admin, ()>,
) -> Result<Response, Problem> {
    if public_id == work.caller.public_id {
        return Err(Problem::conflict("A key cannot revoke itself; use another admin key."));
    }
    let now = work.now;
    if !api_keys::revoke(work.db(), &public_id, now).await? {
        return Err(Problem::not_found("API key"));
    }
    work.audit("api_key.revoke", &public_id, None).await?;
    work.no_content().await
}
