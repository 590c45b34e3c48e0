//! What surrounds every request: an id, a time limit, safe headers, one line of trace; and that it runs to its end.
//!
//! Each request is handled in a task of its own. A client that goes away, or the time limit, stops the waiting but never
//! the work: a dropped future in the middle of a transaction could leave a connection in an unknown state.

use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use super::problem::Problem;

/// How long a client waits at most; above the database's own limit of a statement, so that one speaks first.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// What a client that waited in vain is told; the work goes on.
const TOOK_TOO_LONG: &str = "The request took longer than 30 s, and what it changes may still be changed; try again later, with the \
     same Idempotency-Key where it has one, or ask for less at a time.";
/// Carries the id of a request in the answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static CURRENT_REQUEST: String;
}

/// The id of the request that the current task handles; empty outside of one.
pub fn request_id() -> String {
    CURRENT_REQUEST.try_with(Clone::clone).unwrap_or_default()
}

/// Surrounds all routes of a router, its fallbacks included.
pub fn surround(router: Router) -> Router {
    surround_within(REQUEST_TIMEOUT, router)
}

fn surround_within(limit: Duration, router: Router) -> Router {
    router.layer(from_fn(move |request, next| handle(limit, request, next)))
}

async fn handle(limit: Duration, request: Request, next: Next) -> Response {
    let id = Uuid::new_v4().simple().to_string();
    let method = request.method().clone();
    // The pattern, not the path: ids of customers and tasks stay out of the log and of the metrics' labels.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", request.id = %id, http.method = %method, http.route = %route);
    let started = Instant::now();
    let work = tokio::spawn(CURRENT_REQUEST.scope(id.clone(), next.run(request)).instrument(span.clone()));
    let mut response = match tokio::time::timeout(limit, work).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => CURRENT_REQUEST.sync_scope(id.clone(), || Problem::internal(error).into_response()),
        Err(_) => CURRENT_REQUEST.sync_scope(id.clone(), || Problem::timeout(TOOK_TOO_LONG).into_response()),
    };
    protect(&mut response, &id);
    let status = response.status().as_u16();
    let took = started.elapsed();
    span.in_scope(|| tracing::debug!(http.status = status, took_us = took.as_micros(), "answered"));
    let labels = [("method", label(&method).to_owned()), ("route", route), ("status", status.to_string())];
    metrics::counter!("waybill_http_requests_total", &labels).increment(1);
    metrics::histogram!("waybill_http_request_seconds", &labels).record(took);
    response
}

/// A method as a label. Any token is a method, also of a client without a key, and each value of a label stays for ever.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "other",
    }
}

/// Answers are private and never stored, sniffed or framed; a handler may say otherwise first.
fn protect(response: &mut Response, id: &str) {
    let headers = response.headers_mut();
    let defaults = [
        (header::CACHE_CONTROL, "private, no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in defaults {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use tokio::sync::Notify;
    use tower::ServiceExt;

    use super::*;

    fn request(path: &str) -> Request {
        Request::get(path).body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn an_answer_has_an_id_and_is_not_stored() {
        let router = surround(Router::new().route("/", get(|| async { "fine" })));
        let response = router.oneshot(request("/")).await.unwrap();
        assert_eq!(response.headers()[REQUEST_ID].len(), 32);
        assert_eq!(response.headers()[header::CACHE_CONTROL], "private, no-store");
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_with_the_request_id() {
        async fn broken() -> &'static str {
            panic!("secret detail")
        }
        let router = surround(Router::new().route("/", get(broken)));
        let response = router.oneshot(request("/")).await.unwrap();
        assert_eq!(response.status(), 500);
        let id = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let body = String::from_utf8(to_bytes(response.into_body(), 10_000).await.unwrap().to_vec()).unwrap();
        assert!(body.contains(&id) && !body.contains("secret detail"), "{body}");
    }

    #[tokio::test]
    async fn a_made_up_method_makes_no_series_of_its_own() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let counted = metrics::set_default_local_recorder(&recorder);
        let router = surround(Router::new().route("/", get(|| async { "fine" })));
        for method in ["GET", "BREW", "BREW-2", "get"] {
            let request = Request::builder().method(method).uri("/").body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap();
        }
        drop(counted);
        let text = recorder.handle().render();
        let series: Vec<&str> =
            text.lines().filter(|line| line.starts_with("waybill_http_requests_total{")).collect();
        assert_eq!(series.len(), 2, "{series:?}");
        assert!(
            series.iter().any(|line| line.contains("method=\"other\"") && line.ends_with(" 3")),
            "{series:?}"
        );
    }

    #[tokio::test]
    async fn who_waited_in_vain_is_told_when_to_try_again() {
        let slow = Router::new().route("/", get(std::future::pending::<&'static str>));
        let response = surround_within(Duration::from_millis(1), slow).oneshot(request("/")).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "30");
    }

    #[tokio::test]
    async fn work_goes_on_when_the_client_has_gone() {
        let (started, go, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let signals = (started.clone(), go.clone(), done.clone());
        let handler = move || {
            let (started, go, done) = signals.clone();
            async move {
                started.notify_one();
                go.notified().await;
                done.notify_one();
            }
        };
        let router = surround(Router::new().route("/", get(handler)));
        let client = tokio::spawn(router.oneshot(request("/")));
        started.notified().await;
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        go.notify_one();
        done.notified().await;
    }
}
