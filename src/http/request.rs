//! What handlers take from a request: path, query, body; every fault of it is a problem with the field's path.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};
use serde::de::DeserializeOwned;

use super::problem::{
    BODY_TIMEOUT, BODY_TOO_LARGE, INVALID_BODY, INVALID_REQUEST, NOT_FOUND, Problem, UNSUPPORTED_MEDIA_TYPE,
};

/// Largest body of a request; events have a smaller limit of their own.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT_AFTER: Duration = Duration::from_secs(10);
/// Longest query string.
const QUERY_BYTES_MAX: usize = 8 * 1024;

/// Path parameters; what is not of their type cannot exist, so it is not found.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let unknown = || Problem::new(&NOT_FOUND, "There is no object with such an id.");
        if has_control_characters(parts.uri.path()) {
            return Err(unknown());
        }
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await.map_err(|_| unknown())?;
        Ok(Self(path.0))
    }
}

/// Query parameters; unknown ones are refused where `T` refuses them (`deny_unknown_fields`), as every `T` here should.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// Reads query parameters.
///
/// # Errors
/// A problem that names the parameter.
pub fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    let invalid = |detail: String| Problem::new(&INVALID_REQUEST, detail);
    if query.len() > QUERY_BYTES_MAX {
        return Err(invalid(format!("The query is longer than {QUERY_BYTES_MAX} bytes.")));
    }
    if has_control_characters(query) {
        return Err(invalid("The query holds a control character.".to_owned()));
    }
    let uri = Uri::builder()
        .path_and_query(format!("/?{query}"))
        .build()
        .map_err(|_| invalid("The query cannot be read.".to_owned()))?;
    match axum::extract::Query::<T>::try_from_uri(&uri) {
        Ok(query) => Ok(query.0),
        Err(rejection) => {
            let text = rejection.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            let (field, detail) = text.split_once(": ").unwrap_or(("", text));
            Err(invalid("A query parameter is not valid; see `errors`.".to_owned()).with_error(field, detail))
        }
    }
}

/// Whether a percent-encoded control character is in it.
fn has_control_characters(encoded: &str) -> bool {
    encoded.as_bytes().windows(3).any(|window| match window {
        [b'%', b'0' | b'1', _] => true,
        [b'%', b'7', low] => low.eq_ignore_ascii_case(&b'f'),
        _ => false,
    })
}

/// The whole body, within a limit of size and time.
///
/// # Errors
/// Too large, too slow, or broken off.
pub async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT_AFTER, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_limit(&error) => {
            Err(Problem::new(&BODY_TOO_LARGE, format!("The body is larger than {} KiB.", bytes_max / 1024)))
        }
        Ok(Err(_)) => Err(Problem::new(&INVALID_BODY, "The body broke off.")),
        Err(_) => Err(Problem::new(&BODY_TIMEOUT, "The body took longer than 10 s to arrive.")),
    }
}

fn is_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.to_string().contains("length limit"))
}

/// A JSON body of type `T`; an empty one stands for `null`, for operations whose body is optional.
///
/// # Errors
/// A problem that names the field.
pub async fn read_json<T: DeserializeOwned>(request: Request) -> Result<(Bytes, T), Problem> {
    let (parts, body) = request.into_parts();
    refuse_encoding(&parts.headers)?;
    let bytes = read_body(body, BODY_BYTES_MAX).await?;
    if !bytes.is_empty() && !is_json(&parts.headers) {
        return Err(Problem::new(
            &UNSUPPORTED_MEDIA_TYPE,
            "Send the body as `Content-Type: application/json`.",
        ));
    }
    let value = parse_json(&bytes)?;
    Ok((bytes, value))
}

/// Compressed bodies are not taken: a few bytes could become gigabytes.
fn refuse_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, "Send the body without a Content-Encoding."))
        }
        _ => Ok(()),
    }
}

/// The media type of a Content-Type header, without its parameters, in lower case.
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_ascii_lowercase())
}

fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media| media == "application/json")
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let empty = bytes.is_empty();
    let text: &[u8] = if empty { b"null" } else { bytes };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        if empty {
            return Problem::new(&INVALID_BODY, "The request needs a JSON body.");
        }
        let field = error.path().to_string();
        Problem::new(&INVALID_BODY, "The body is not what the operation takes; see `errors`.")
            .with_error(if field == "." { String::new() } else { field }, error.inner().to_string())
    })?;
    reader.end().map_err(|_| Problem::new(&INVALID_BODY, "Something follows the JSON value in the body."))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        count: u32,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Filter {
        count: Option<u32>,
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        let problem = parse_json::<Body>(br#"{"inner":[{"count":1},{"count":"2"}]}"#).unwrap_err();
        assert_eq!(problem.errors()[0].field, "inner[1].count");
        assert_eq!(parse_json::<Body>(br#"{"inner":[{"count":1}]}"#).unwrap().inner[0].count, 1);
    }

    #[test]
    fn unknown_and_repeated_fields_are_refused() {
        for text in [r#"{"inner":[],"total":1}"#, r#"{"inner":[],"inner":[]}"#, r#"{"inner":[]} x"#, "[", ""]
        {
            assert_eq!(parse_json::<Body>(text.as_bytes()).unwrap_err().code(), "invalid_body", "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(100_000);
        assert_eq!(parse_json::<serde_json::Value>(deep.as_bytes()).unwrap_err().code(), "invalid_body");
    }

    #[test]
    fn an_optional_body_may_be_missing() {
        assert!(parse_json::<Option<Body>>(b"").unwrap().is_none());
    }

    #[test]
    fn a_wrong_query_parameter_is_named() {
        assert_eq!(parse_query::<Filter>("count=5").unwrap().count, Some(5));
        let problem = parse_query::<Filter>("count=five").unwrap_err();
        assert_eq!(problem.errors()[0].field, "count");
        for query in ["customer_id=7", "count=1&count=2", "count=%00"] {
            assert_eq!(parse_query::<Filter>(query).unwrap_err().code(), "invalid_request", "{query}");
        }
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_refused() {
        let problem = read_body(axum::body::Body::from(vec![b' '; 2049]), 2048).await.unwrap_err();
        assert_eq!(problem.code(), "body_too_large");
        assert_eq!(problem.detail(), "The body is larger than 2 KiB.");
        assert_eq!(read_body(axum::body::Body::from(vec![b' '; 2048]), 2048).await.unwrap().len(), 2048);
    }
}
