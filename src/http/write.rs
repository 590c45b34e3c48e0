//! Operations that change something: one transaction holds the effect, its audit row and the kept answer.

use std::marker::PhantomData;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::AppState;
use super::auth::{Access, Auth, Caller};
use super::problem::{IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_KEY_RUNNING, INVALID_REQUEST, Problem};
use super::request::read_json;
use crate::domain::ids::ApiKeyId;
use crate::store::idempotency::{self, Answer, Claim};
use crate::store::{self, StoreError, Tx, audit};

/// Names the client's own key of a request, so that it can be repeated safely.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Marks an answer that was given before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Longest key, in characters.
const KEY_CHARS_MAX: usize = 255;
/// How often a key that is held is looked at before the request is refused.
const RUNNING_LOOKS: u32 = 10;
/// Pause between two looks.
const RUNNING_LOOK_EVERY: Duration = Duration::from_millis(20);
/// When to try again while the first request with a key runs.
const RUNNING_RETRY_SECONDS: u32 = 1;

/// A change that a caller of role `R` asks for with a body of type `T` (`()` for none, `Option<T>` for an optional one).
///
/// As an extractor it answers by itself where the request was made before: the handler sees first requests only.
#[derive(Debug)]
pub struct Write<R, T> {
    /// What the change is made with.
    pub work: Work,
    /// The body.
    pub body: T,
    access: PhantomData<R>,
}

/// The transaction of a change; dropped without an answer it rolls back.
#[derive(Debug)]
pub struct Work {
    /// The caller.
    pub caller: Caller,
    /// When the request came in.
    pub now: DateTime<Utc>,
    tx: Tx,
    claim: Option<(String, Vec<u8>)>,
}

impl<R: Access, T: DeserializeOwned + Send> FromRequest<AppState> for Write<R, T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let caller =
            Auth::<R>::from_request_parts(&mut parts, state).await.map_err(Problem::into_response)?.caller;
        let key = idempotency_key(&parts.headers).map_err(Problem::into_response)?;
        let target = target(&parts);
        let request = Request::from_parts(parts, body);
        let (bytes, body) = read_json::<T>(request).await.map_err(Problem::into_response)?;
        let claim = key.map(|key| (key, request_hash(&target, &bytes)));
        let work = Work::begin(state, caller, claim).await?;
        Ok(Self { work, body, access: PhantomData })
    }
}

impl Work {
    async fn begin(
        state: &AppState,
        caller: Caller,
        claim: Option<(String, Vec<u8>)>,
    ) -> Result<Self, Response> {
        let now = state.clock.now();
        let mut tx = state.db.begin().await.map_err(|error| Problem::from(error).into_response())?;
        if let Some((key, hash)) = &claim {
            let claimed = claim_patiently(&mut tx, caller.key, key, hash, now)
                .await
                .map_err(|error| Problem::from(error).into_response())?;
            match claimed {
                Claim::First => {}
                Claim::Answered(answer) => return Err(replay(answer)),
                Claim::OtherRequest => return Err(reused().into_response()),
                Claim::Running => return Err(running().into_response()),
            }
        }
        Ok(Self { caller, now, tx, claim })
    }

    /// The connection of the transaction.
    pub fn db(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Writes down what is done: `action` is a resource and a verb (`customer.create`), `subject` what it is done to.
    ///
    /// # Errors
    /// Where the database refuses it.
    pub async fn audit(
        &mut self,
        action: &str,
        subject: &str,
        detail: Option<serde_json::Value>,
    ) -> Result<(), Problem> {
        Ok(audit::record(&mut self.tx, &self.caller.public_id, action, subject, detail).await?)
    }

    /// Commits and answers 201 with what was created and where it is.
    ///
    /// # Errors
    /// Where the database refuses it; then nothing was done.
    pub async fn created(self, location: String, body: &impl Serialize) -> Result<Response, Problem> {
        self.answer(StatusCode::CREATED, Some(location), body).await
    }

    /// Commits and answers 200.
    ///
    /// # Errors
    /// As [`Self::created`].
    pub async fn done(self, body: &impl Serialize) -> Result<Response, Problem> {
        self.answer(StatusCode::OK, None, body).await
    }

    /// Commits and answers with any status.
    ///
    /// # Errors
    /// As [`Self::created`].
    pub async fn answer(
        self,
        status: StatusCode,
        location: Option<String>,
        body: &impl Serialize,
    ) -> Result<Response, Problem> {
        let body = serde_json::to_vec(body).map_err(Problem::internal)?;
        self.finish(Answer { status: wire_status(status), location, body }).await
    }

    /// Commits and answers 204.
    ///
    /// # Errors
    /// As [`Self::created`].
    pub async fn no_content(self) -> Result<Response, Problem> {
        let status = wire_status(StatusCode::NO_CONTENT);
        self.finish(Answer { status, location: None, body: Vec::new() }).await
    }

    /// Commits and answers 201 with a body that is not kept: a repeated request gets `kept` instead. For secrets.
    ///
    /// # Errors
    /// As [`Self::created`].
    pub async fn created_secretly<T: Serialize>(
        mut self,
        location: String,
        body: &T,
        kept: &T,
    ) -> Result<Response, Problem> {
        let kept = serde_json::to_vec(kept).map_err(Problem::internal)?;
        let status = StatusCode::CREATED;
        self.keep(&Answer { status: wire_status(status), location: Some(location.clone()), body: kept })
            .await?;
        store::commit(self.tx).await?;
        Ok((status, [(header::LOCATION, location)], Json(body)).into_response())
    }

    async fn finish(mut self, answer: Answer) -> Result<Response, Problem> {
        self.keep(&answer).await?;
        store::commit(self.tx).await?;
        Ok(render(answer))
    }

    async fn keep(&mut self, answer: &Answer) -> Result<(), Problem> {
        if let Some((key, hash)) = &self.claim {
            idempotency::keep(&mut self.tx, self.caller.key, key, hash, answer, self.now).await?;
        }
        Ok(())
    }
}

/// Claims a key; one that is held is looked at again for a moment, because a request that was refused lets go of its key
/// only after its answer, when its transaction has ended.
async fn claim_patiently(
    tx: &mut PgConnection,
    api_key: ApiKeyId,
    key: &str,
    hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Claim, StoreError> {
    for _ in 1..RUNNING_LOOKS {
        match idempotency::claim(tx, api_key, key, hash, now).await? {
            Claim::Running => tokio::time::sleep(RUNNING_LOOK_EVERY).await,
            claimed => return Ok(claimed),
        }
    }
    idempotency::claim(tx, api_key, key, hash, now).await
}

fn wire_status(status: StatusCode) -> i16 {
    i16::try_from(status.as_u16()).unwrap_or(i16::MAX)
}

fn render(answer: Answer) -> Response {
    let status = u16::try_from(answer.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let mut response = status.unwrap_or(StatusCode::OK).into_response();
    if let Some(Ok(location)) = answer.location.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if !answer.body.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *response.body_mut() = Body::from(answer.body);
    }
    response
}

fn replay(answer: Answer) -> Response {
    let mut response = render(answer);
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

fn reused() -> Problem {
    Problem::new(
        &IDEMPOTENCY_KEY_REUSED,
        "This Idempotency-Key was used for another request; make a new key.",
    )
}

fn running() -> Problem {
    Problem::new(
        &IDEMPOTENCY_KEY_RUNNING,
        "The first request with this Idempotency-Key still runs; try again.",
    )
    .retry_after(RUNNING_RETRY_SECONDS)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    // Visible ASCII only, so bytes are characters.
    match value.to_str() {
        Ok(key) if (1..=KEY_CHARS_MAX).contains(&key.len()) && values.next().is_none() => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::new(&INVALID_REQUEST, "A header is not valid; see `errors`.")
            .with_error("Idempotency-Key", "one header of 1 to 255 visible ASCII characters")),
    }
}

/// Method, path and query. Not the host, which a URI may hold as well: it may be another one where a request is repeated.
fn target(parts: &Parts) -> String {
    format!("{} {}", parts.method, parts.uri.path_and_query().map_or("/", PathAndQuery::as_str))
}

/// What makes two requests the same: method, path, query and the bytes of the body.
fn request_hash(target: &str, body: &[u8]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    for field in [target.as_bytes(), body] {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    hasher.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_keys(keys: &[&str]) -> HeaderMap {
        keys.iter().map(|key| (IDEMPOTENCY_KEY, HeaderValue::from_str(key).unwrap())).collect()
    }

    #[test]
    fn a_key_has_one_to_255_characters() {
        assert_eq!(idempotency_key(&with_keys(&[])).unwrap(), None);
        assert_eq!(idempotency_key(&with_keys(&["a"])).unwrap().as_deref(), Some("a"));
        assert!(idempotency_key(&with_keys(&[&"a".repeat(255)])).unwrap().is_some());
        for keys in [vec![String::new()], vec!["a".repeat(256)], vec!["a".to_owned(), "a".to_owned()]] {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            assert_eq!(idempotency_key(&with_keys(&keys)).unwrap_err().code(), "invalid_request");
        }
    }

    #[test]
    fn a_request_is_its_method_path_and_body() {
        let base = request_hash("POST /v1/customers", b"{}");
        assert_eq!(base, request_hash("POST /v1/customers", b"{}"));
        assert_ne!(base, request_hash("POST /v1/gateways", b"{}"));
        assert_ne!(base, request_hash("POST /v1/customers", b"{ }"));
    }

    #[test]
    fn another_host_is_the_same_request() {
        let to = |uri: &str| target(&Request::post(uri).body(Body::empty()).unwrap().into_parts().0);
        for uri in ["/v1/rerates?dry_run=true", "http://a:8080/v1/rerates?dry_run=true"] {
            assert_eq!(to(uri), "POST /v1/rerates?dry_run=true");
        }
    }

    #[test]
    fn a_replayed_answer_says_so() {
        let answer = Answer { status: 201, location: Some("/v1/x".to_owned()), body: b"{}".to_vec() };
        let response = replay(answer);
        assert_eq!(response.status(), 201);
        assert_eq!(response.headers()[REPLAYED], "true");
        assert_eq!(response.headers()[header::LOCATION], "/v1/x");
    }
}
