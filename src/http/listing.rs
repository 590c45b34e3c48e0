//! Lists: paged by keyset, filtered, as JSON or CSV.
//!
//! A cursor is the position after the last row and a tag. The tag binds it to the list, its filters and the caller's
//! key, so one that was edited, or that was made for somebody or something else, is refused.

use std::marker::PhantomData;

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::AppState;
use super::auth::{Access, Caller, Read};
use super::problem::{INVALID_CURSOR, INVALID_REQUEST, Problem};
use super::request::parse_query;
use super::table::{CsvRow, Format, csv_response};
use crate::store::Tx;

/// Rows of a page where the client does not say.
const LIMIT_DEFAULT: u32 = 50;
/// Most rows of a page.
const LIMIT_MAX: u32 = 200;
/// Longest cursor.
const CURSOR_CHARS_MAX: usize = 2048;
/// Bytes of the tag in front of a cursor.
const TAG_BYTES: usize = 16;
/// Tells these hashes from any others.
const TAG_DOMAIN: &[u8] = b"waybill cursor 1";

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub data: Vec<T>,
    /// Whether more follow.
    pub has_more: bool,
    /// Pass it as `cursor` for the next page; null on the last.
    pub next_cursor: Option<String>,
}

/// Parameters of every list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct PageParams {
    /// Rows of a page, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before; goes with the same filters and the same key only.
    cursor: Option<String>,
}

/// Filters of a list without filters: any parameter beside `limit` and `cursor` is refused.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoFilter {}

/// A list asked for by a caller of role `R`, narrowed by `F`, with a snapshot to read it from.
#[derive(Debug)]
pub struct Listing<R, F> {
    /// The caller.
    pub caller: Caller,
    /// A read-only transaction in the caller's scope.
    pub tx: Tx,
    /// The filters.
    pub filter: F,
    /// The page.
    pub page: PageRequest,
    access: PhantomData<R>,
}

/// Which page is asked for, in which form.
#[derive(Debug)]
pub struct PageRequest {
    limit: u32,
    position: Option<Vec<u8>>,
    format: Format,
    path: String,
    filters: String,
    binding: [u8; 32],
}

impl<R: Access, F: DeserializeOwned + Send> FromRequestParts<AppState> for Listing<R, F> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let Read { caller, tx, .. } = Read::<R>::from_request_parts(parts, state).await?;
        let (page, filter) = PageRequest::read(parts, &caller.secret_hash)?;
        Ok(Self { caller, tx, filter, page, access: PhantomData })
    }
}

impl PageRequest {
    fn read<F: DeserializeOwned>(parts: &Parts, binding: &[u8; 32]) -> Result<(Self, F), Problem> {
        let format = Format::negotiate(&parts.headers)?;
        let query = parts.uri.query().unwrap_or_default();
        let is_paging = |pair: &&str| pair.starts_with("limit=") || pair.starts_with("cursor=");
        let (paging, filters): (Vec<&str>, Vec<&str>) =
            query.split('&').filter(|pair| !pair.is_empty()).partition(is_paging);
        let params: PageParams = parse_query(&paging.join("&"))?;
        let filters = filters.join("&");
        let filter = parse_query(&filters)?;
        let limit = params.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Problem::new(&INVALID_REQUEST, "A query parameter is not valid; see `errors`.")
                .with_error("limit", format!("must be 1 to {LIMIT_MAX}")));
        }
        let mut page = Self {
            limit,
            position: None,
            format,
            path: parts.uri.path().to_owned(),
            filters,
            binding: *binding,
        };
        if let Some(cursor) = params.cursor {
            page.position = Some(page.open(&cursor)?);
        }
        Ok((page, filter))
    }

    /// How many rows to read: one more than the page, which tells whether more follow.
    pub fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The position to read after; `None` is the start.
    ///
    /// # Errors
    /// Where the cursor holds a position of another form.
    pub fn after<K: DeserializeOwned>(&self) -> Result<Option<K>, Problem> {
        self.position
            .as_deref()
            .map(|position| serde_json::from_slice(position).map_err(|_| invalid_cursor()))
            .transpose()
    }

    /// Answers with at most a page of the rows that were read: `position` is where a row stands in the list's order,
    /// `view` what the client sees of it.
    ///
    /// # Errors
    /// Where the page cannot be written, which is our fault.
    pub fn respond<Row, K: Serialize, V: Serialize + CsvRow>(
        self,
        mut rows: Vec<Row>,
        position: impl Fn(&Row) -> K,
        view: impl Fn(Row) -> V,
    ) -> Result<Response, Problem> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = match rows.last() {
            Some(last) if has_more => {
                Some(self.seal(&serde_json::to_vec(&position(last)).map_err(Problem::internal)?))
            }
            _ => None,
        };
        let data: Vec<V> = rows.into_iter().map(view).collect();
        let link = next_cursor.as_ref().map(|cursor| self.link(cursor));
        let mut response = match self.format {
            Format::Json => Json(Page { data, has_more, next_cursor }).into_response(),
            Format::Csv => csv_response(self.path.rsplit('/').next().unwrap_or("list"), &data)?,
        };
        if let Some(Ok(link)) = link.map(HeaderValue::try_from) {
            response.headers_mut().insert(header::LINK, link);
        }
        Ok(response)
    }

    /// Where the next page is (RFC 8288): a CSV file has no place for a cursor.
    fn link(&self, cursor: &str) -> String {
        let filters = if self.filters.is_empty() { String::new() } else { format!("{}&", self.filters) };
        format!("<{}?{filters}limit={}&cursor={cursor}>; rel=\"next\"", self.path, self.limit)
    }

    fn seal(&self, position: &[u8]) -> String {
        let mut bytes = self.tag(position).to_vec();
        bytes.extend_from_slice(position);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn open(&self, cursor: &str) -> Result<Vec<u8>, Problem> {
        if cursor.len() > CURSOR_CHARS_MAX {
            return Err(invalid_cursor());
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| invalid_cursor())?;
        let (tag, position) = bytes.split_at_checked(TAG_BYTES).ok_or_else(invalid_cursor)?;
        if tag == self.tag(position) { Ok(position.to_vec()) } else { Err(invalid_cursor()) }
    }

    fn tag(&self, position: &[u8]) -> [u8; TAG_BYTES] {
        let mut hasher = Sha256::new();
        for field in [TAG_DOMAIN, &self.binding, self.path.as_bytes(), self.filters.as_bytes(), position] {
            hasher.update((field.len() as u64).to_be_bytes());
            hasher.update(field);
        }
        let digest = hasher.finalize();
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&digest[..TAG_BYTES]);
        tag
    }
}

fn invalid_cursor() -> Problem {
    Problem::new(
        &INVALID_CURSOR,
        "Pass `next_cursor` unchanged, with the filters and the key of the page before.",
    )
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use serde_json::Value;

    use super::super::table::Cells;
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Filter {
        status: Option<String>,
    }

    #[derive(Serialize)]
    struct View(i64);

    impl CsvRow for View {
        const HEADER: &'static [&'static str] = &["n"];

        fn cells(&self, cells: &mut Cells) {
            cells.value(self.0);
        }
    }

    fn page(query: &str, key: u8) -> Result<(PageRequest, Filter), Problem> {
        let (parts, _) =
            Request::get(format!("/v1/things?{query}")).body(Body::empty()).unwrap().into_parts();
        PageRequest::read(&parts, &[key; 32])
    }

    async fn json(page: PageRequest, rows: Vec<i64>) -> Value {
        let response = page.respond(rows, |n| *n, View).unwrap();
        serde_json::from_slice(&to_bytes(response.into_body(), 10_000).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_cursor_goes_on_where_the_page_ended() {
        let (first, filter) = page("limit=2&status=open", 1).unwrap();
        assert_eq!(filter.status.as_deref(), Some("open"));
        assert_eq!((first.fetch(), first.after::<i64>().unwrap()), (3, None));
        let body = json(first, vec![1, 2, 3]).await;
        assert_eq!((&body["data"], &body["has_more"]), (&serde_json::json!([1, 2]), &Value::Bool(true)));

        let cursor = body["next_cursor"].as_str().unwrap();
        let (next, _) = page(&format!("status=open&cursor={cursor}"), 1).unwrap();
        assert_eq!(next.after::<i64>().unwrap(), Some(2));
        let body = json(next, vec![3]).await;
        assert_eq!((&body["has_more"], &body["next_cursor"]), (&Value::Bool(false), &Value::Null));
    }

    #[tokio::test]
    async fn a_cursor_of_another_query_or_key_is_refused() {
        let body = json(page("limit=1&status=open", 1).unwrap().0, vec![1, 2]).await;
        let cursor = body["next_cursor"].as_str().unwrap();
        let mut edited = URL_SAFE_NO_PAD.decode(cursor).unwrap();
        *edited.last_mut().unwrap() ^= 1;
        let edited = URL_SAFE_NO_PAD.encode(edited);
        for (query, key) in [
            (format!("status=open&cursor={cursor}"), 2),
            (format!("status=closed&cursor={cursor}"), 1),
            (format!("cursor={cursor}"), 1),
            (format!("status=open&cursor={edited}"), 1),
            ("cursor=".to_owned(), 1),
            ("cursor=%3D".to_owned(), 1),
        ] {
            assert_eq!(page(&query, key).unwrap_err().code(), "invalid_cursor", "{query}");
        }
    }

    #[test]
    fn limits_and_unknown_parameters_are_checked() {
        for query in [
            "limit=0",
            "limit=201",
            "limit=-1",
            "limit=abc",
            "limit=1000000000000",
            "customer_id=7",
            "limit=1&limit=2",
        ] {
            assert_eq!(page(query, 1).unwrap_err().code(), "invalid_request", "{query}");
        }
        assert_eq!(page("limit=200", 1).unwrap().0.fetch(), 201);
        assert_eq!(page("", 1).unwrap().0.fetch(), 51);
    }

    #[tokio::test]
    async fn csv_links_to_the_next_page() {
        let (mut request, _) = page("limit=1&status=open", 1).unwrap();
        request.format = Format::Csv;
        let response = request.respond(vec![-1, 2], |n| *n, View).unwrap();
        let link = response.headers()[header::LINK].to_str().unwrap().to_owned();
        assert!(
            link.starts_with("</v1/things?status=open&limit=1&cursor=") && link.ends_with(">; rel=\"next\"")
        );
        assert_eq!(response.headers()[header::CONTENT_DISPOSITION], "attachment; filename=\"things.csv\"");
        assert_eq!(&to_bytes(response.into_body(), 100).await.unwrap()[..], b"n\r\n-1\r\n");
    }
}
