//! The REST API: router, auth, problems, paging, and one file per resource in [`v1`].
//!
//! Owns: the HTTP face (status codes, JSON and CSV forms, who may call what) and the OpenAPI document, which is made from
//! the router itself, so a route without documentation cannot exist.
//! Does not own: any rule of billing or SQL statement; a handler reads the request, calls `store`, `invoicing` or `reports`, and
//! shows the result in a type of its own.
//! Invariants: a handler's signature says which roles may call it; what a customer's key reads, it reads under row-level security;
//! somebody else's object is not found; a change, its audit row and its kept answer are one transaction; a request
//! that began is run to its end. How to add a resource: `docs/api-design.md`.

pub mod auth;
pub mod edge;
pub mod intake;
pub mod listing;
pub mod openapi;
pub mod probes;
pub mod problem;
pub mod request;
pub mod server;
pub mod table;
pub mod v1;
pub mod write;

use axum::Router;
use axum::http::{HeaderName, Method, Uri, header};
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::clock::Clock;
use crate::health::Health;
use crate::ingest::Publisher;
use crate::store::Database;
use problem::{METHOD_NOT_ALLOWED, NO_ROUTE, Problem};

/// Where the document is served.
const DOCUMENT_PATH: &str = "/openapi.json";

/// What handlers work with; cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState {
    /// The database.
    pub db: Database,
    /// The time.
    pub clock: Clock,
    /// The way to the stream.
    pub publisher: Publisher,
    /// What the parts of the program say about themselves.
    pub health: Health,
}

impl AppState {
    /// Puts the state together.
    pub const fn new(db: Database, clock: Clock, publisher: Publisher, health: Health) -> Self {
        Self { db, clock, publisher, health }
    }
}

/// The whole API with its document, which is also served: `/openapi.json`, and to read at `/docs`.
pub fn router(state: AppState) -> (Router, OpenApi) {
    let (router, document) = openapi::documented().split_for_parts();
    let document = openapi::complete(document);
    let router = router
        .route(DOCUMENT_PATH, get(served(&document)))
        .merge(SwaggerUi::new("/docs").config(Config::from(DOCUMENT_PATH)))
        .fallback(no_route)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(state);
    (edge::surround(router), document)
}

/// The document, written once: answers that wait to be read share its bytes.
fn served(document: &OpenApi) -> ([(HeaderName, &'static str); 1], Bytes) {
    // Plain data, which is always written.
    let json = Bytes::from(document.to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], json)
}

async fn no_route() -> Problem {
    Problem::new(&NO_ROUTE, "There is no such path; /docs lists what there is.")
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(&METHOD_NOT_ALLOWED, format!("{} does not take {method}; see the Allow header.", uri.path()))
}
