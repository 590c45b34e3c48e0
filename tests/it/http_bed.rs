//! The API over a database and a stream of its own, with a key of every role.

use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use chrono::{DateTime, TimeZone, Utc};
use serde_json::Value;
use tower::ServiceExt;
use waybill::clock::Clock;
use waybill::health::Health;
use waybill::http::AppState;
use waybill::ingest::{self, Publisher, StreamLimits, StreamNames, UsageStream};
use waybill::store::api_keys::{self, NewHolder};
use waybill::store::customers::{self, NewCustomer};
use waybill::store::{self, catalog, gateways};

use crate::harness::TestBed;

/// Largest answer of a test.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The API, its servers and its keys.
pub struct Api {
    pub bed: TestBed,
    pub router: Router,
    pub clock: Clock,
    pub stream: UsageStream,
    pub keys: Keys,
}

/// One key of every role; customers `acme` and `globex`, gateway `gw-1`.
pub struct Keys {
    pub admin: String,
    pub finance: String,
    pub gateway: String,
    pub acme: String,
    pub globex: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text))
    }

    /// The problem's stable code.
    pub fn code(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{}", self.text);
        self.json()["code"].as_str().unwrap().to_owned()
    }

    /// The status and the problem's code.
    pub fn problem(&self) -> (u16, String) {
        (self.status.as_u16(), self.code())
    }

    /// The body without what differs from request to request.
    pub fn comparable(&self) -> Value {
        let mut body = self.json();
        body.as_object_mut().unwrap().remove("request_id");
        body
    }
}

/// When every test of the API takes place.
pub fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap()
}

/// A router's answer, whose status must be one that the API's description gives the operation.
async fn answer(router: &Router, request: Request<Body>) -> Answer {
    let documented = documented(request.method(), request.uri().path());
    let asked = format!("{} {}", request.method(), request.uri());
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, ANSWER_BYTES_MAX).await.unwrap();
    if let Some(responses) = documented {
        let status = parts.status.as_str();
        assert!(responses.get(status).is_some(), "{asked}: {status} is not in the description");
    }
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

/// The answers of the operation that a path leads to, where it leads to one.
fn documented(method: &Method, path: &str) -> Option<&'static Value> {
    static DOCUMENT: LazyLock<Value> =
        LazyLock::new(|| serde_json::from_str(&waybill::http::openapi::openapi_json().unwrap()).unwrap());
    let segments: Vec<&str> = path.split('/').collect();
    let literal = |part: &&str| !part.starts_with('{');
    let leads_here = |template: &str| {
        let parts: Vec<&str> = template.split('/').collect();
        parts.len() == segments.len()
            && parts.iter().zip(&segments).all(|(part, segment)| !literal(part) || part == segment)
    };
    let paths = DOCUMENT["paths"].as_object().unwrap().iter();
    // `/v1/invoices/preview` before `/v1/invoices/{id}`.
    let (_, item) = paths
        .filter(|(template, _)| template.starts_with("/v1/") && leads_here(template))
        .max_by_key(|(template, _)| template.split('/').filter(literal).count())?;
    item.get(method.as_str().to_lowercase()).map(|operation| &operation["responses"])
}

/// GET from a router that stands over another test's servers.
pub async fn get(router: &Router, key: &str, path: &str) -> Answer {
    let request = Request::builder().uri(path).header(header::AUTHORIZATION, format!("Bearer {key}"));
    answer(router, request.body(Body::empty()).unwrap()).await
}

/// POST of JSON to such a router.
pub async fn post(router: &Router, key: &str, path: &str, body: &Value) -> Answer {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::CONTENT_TYPE, "application/json");
    answer(router, request.body(Body::from(body.to_string())).unwrap()).await
}

impl Api {
    /// A fresh one.
    pub async fn start() -> Self {
        let bed = TestBed::new().await;
        let context = ingest::jetstream(&bed.nats_url, "test").await.unwrap();
        let names = StreamNames { stream: bed.stream.clone(), prefix: bed.subject_prefix.clone() };
        let limits = StreamLimits {
            replicas: 1,
            bytes_max: 16 * 1024 * 1024,
            ack_wait: std::time::Duration::from_mins(1),
        };
        let stream = ingest::stream::open(&context, &names, limits).await.unwrap();
        let clock = Clock::fixed(noon());
        let publisher = Publisher::new(context, &names.prefix);
        let health = Health::expecting(&["stream"]);
        health.up("stream");
        let state = AppState::new(bed.database.clone(), clock.clone(), publisher, health);
        let keys = Keys::make(&bed).await;
        Self { router: waybill::http::router(state).0, bed, clock, stream, keys }
    }

    /// Sends a request; `key` goes into the Authorization header unless it is empty.
    pub async fn send(
        &self,
        method: Method,
        key: &str,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !key.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.raw(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    /// Sends any request.
    pub async fn raw(&self, request: Request<Body>) -> Answer {
        answer(&self.router, request).await
    }

    /// GET.
    pub async fn get(&self, key: &str, path: &str) -> Answer {
        self.send(Method::GET, key, path, "", &[]).await
    }

    /// POST of JSON.
    pub async fn post(&self, key: &str, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, key, path, &body.to_string(), &[]).await
    }

    /// POST of JSON with an Idempotency-Key.
    pub async fn post_once(&self, key: &str, path: &str, body: &Value, once: &str) -> Answer {
        self.send(Method::POST, key, path, &body.to_string(), &[("idempotency-key", once)]).await
    }

    /// PATCH of JSON.
    pub async fn patch(&self, key: &str, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, key, path, &body.to_string(), &[]).await
    }

    /// DELETE.
    pub async fn delete(&self, key: &str, path: &str) -> Answer {
        self.send(Method::DELETE, key, path, "", &[]).await
    }

    /// Runs SQL on the test's own database, as its owner.
    pub async fn sql(&self, statements: &str) {
        self.bed.run(statements).await;
    }

    /// One number from the test's own database.
    pub async fn number(&self, query: &str) -> i64 {
        let mut tx = self.bed.database.begin().await.unwrap();
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut *tx).await.unwrap()
    }

    /// The version of the catalog.
    pub async fn catalog_version(&self) -> i64 {
        let mut tx = self.bed.database.begin().await.unwrap();
        catalog::version(&mut tx).await.unwrap()
    }
}

impl Keys {
    async fn make(bed: &TestBed) -> Self {
        let mut tx = bed.database.begin().await.unwrap();
        let gateway = gateways::create(&mut tx, "gw-1", None).await.unwrap().id;
        let mut customer = async |external_id, name| {
            let new = NewCustomer { external_id, name, time_zone: "UTC", anchor_day: 1 };
            customers::create(&mut tx, new).await.unwrap().id
        };
        let acme = customer("acme", "Acme GmbH").await;
        let globex = customer("globex", "Globex AG").await;
        let mut key = async |holder| api_keys::create(&mut tx, holder, "test", None).await.unwrap().token;
        let keys = Self {
            admin: key(NewHolder::Admin).await,
            finance: key(NewHolder::Finance).await,
            gateway: key(NewHolder::Gateway(gateway)).await,
            acme: key(NewHolder::Customer(acme)).await,
            globex: key(NewHolder::Customer(globex)).await,
        };
        store::commit(tx).await.unwrap();
        keys
    }
}
