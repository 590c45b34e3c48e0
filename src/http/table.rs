//! Lists and reports as CSV (RFC 4180) or JSON, by the Accept header.

use std::fmt::Display;

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::problem::{NOT_ACCEPTABLE, Problem};

/// A first character that makes a spreadsheet take a text for a formula (OWASP: CSV injection).
const FORMULA_STARTS: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// Says how old the figures of a report are.
pub const AS_OF: HeaderName = HeaderName::from_static("x-as-of");

/// A row of a CSV file.
pub trait CsvRow {
    /// The names of the columns: the JSON names, so that both forms can be joined.
    const HEADER: &'static [&'static str];

    /// Adds one cell per column, in the header's order.
    fn cells(&self, cells: &mut Cells);
}

/// The cells of one row.
#[derive(Debug, Default)]
pub struct Cells(Vec<String>);

impl Cells {
    /// A text that came from outside: one that a spreadsheet would calculate gets a leading `'`.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let guard = if text.starts_with(FORMULA_STARTS) { "'" } else { "" };
        self.0.push(format!("{guard}{text}"));
        self
    }

    /// A text that may be missing.
    pub fn maybe_text(&mut self, text: Option<&str>) -> &mut Self {
        self.text(text.unwrap_or_default())
    }

    /// A value that we made ourselves (amount, count, code): written as it is, negative amounts stay numbers.
    pub fn value(&mut self, value: impl Display) -> &mut Self {
        self.0.push(value.to_string());
        self
    }

    /// A value of ours that may be missing.
    pub fn maybe_value(&mut self, value: Option<impl Display>) -> &mut Self {
        self.0.push(value.map(|value| value.to_string()).unwrap_or_default());
        self
    }

    /// A time, RFC 3339 in UTC.
    pub fn time(&mut self, at: DateTime<Utc>) -> &mut Self {
        self.0.push(rfc3339(at));
        self
    }

    /// A time that may be missing.
    pub fn maybe_time(&mut self, at: Option<DateTime<Utc>>) -> &mut Self {
        match at {
            Some(at) => self.time(at),
            None => self.text(""),
        }
    }
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The form the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`, also when the client does not say.
    Json,
    /// `text/csv`.
    Csv,
}

impl<S: Send + Sync> FromRequestParts<S> for Format {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::negotiate(&parts.headers)
    }
}

impl Format {
    /// The better liked of the two; of equally liked ones the more specific, then the first.
    pub(super) fn negotiate(headers: &HeaderMap) -> Result<Self, Problem> {
        let accepted: Vec<&str> =
            headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        if accepted.is_empty() {
            return Ok(Self::Json);
        }
        let mut best: Option<((u16, u8), Self)> = None;
        for range in accepted.iter().flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let (format, precision) = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/json" => (Self::Json, 2),
                "text/csv" => (Self::Csv, 2),
                "application/*" => (Self::Json, 1),
                "text/*" => (Self::Csv, 1),
                "*/*" => (Self::Json, 0),
                _ => continue,
            };
            let rank = (parts.find_map(quality).unwrap_or(1000), precision);
            if rank.0 > 0 && best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, format));
            }
        }
        best.map(|(_, format)| format)
            .ok_or_else(|| Problem::new(&NOT_ACCEPTABLE, "Accept `application/json` or `text/csv`."))
    }

    /// A report whose figures are as of a time, which a file has no place for: it is in the header `X-As-Of`.
    ///
    /// # Errors
    /// As [`Self::respond`].
    pub fn respond_as_of<V: CsvRow>(
        self,
        as_of: DateTime<Utc>,
        name: &str,
        body: &impl Serialize,
        rows: &[V],
    ) -> Result<Response, Problem> {
        let mut response = self.respond(name, body, rows)?;
        let as_of = HeaderValue::try_from(rfc3339(as_of)).map_err(Problem::internal)?;
        response.headers_mut().insert(AS_OF, as_of);
        Ok(response)
    }

    /// A report in the asked form: `body` as JSON or `rows` as `<name>.csv`.
    ///
    /// # Errors
    /// Where it cannot be written, which is our fault.
    pub fn respond<V: CsvRow>(
        self,
        name: &str,
        body: &impl Serialize,
        rows: &[V],
    ) -> Result<Response, Problem> {
        match self {
            Self::Json => Ok(Json(body).into_response()),
            Self::Csv => csv_response(name, rows),
        }
    }
}

/// The `q` of a media range in thousandths; a malformed one counts as zero.
fn quality(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let (whole, fraction) = value.trim().split_once('.').unwrap_or((value.trim(), ""));
    let thousandths =
        format!("{fraction:0<3}").get(..3).and_then(|digits| digits.parse::<u16>().ok()).unwrap_or(0);
    Some(match whole {
        "0" => thousandths,
        "1" => 1000,
        _ => 0,
    })
}

/// Rows as a file that a browser saves.
pub(super) fn csv_response<V: CsvRow>(name: &str, rows: &[V]) -> Result<Response, Problem> {
    let disposition =
        HeaderValue::try_from(format!("attachment; filename=\"{name}.csv\"")).map_err(Problem::internal)?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8; header=present")),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, csv(rows)?).into_response())
}

/// Rows as CSV, with a header.
pub(super) fn csv<V: CsvRow>(rows: &[V]) -> Result<Vec<u8>, Problem> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(V::HEADER).map_err(Problem::internal)?;
    for row in rows {
        let mut cells = Cells::default();
        row.cells(&mut cells);
        // The writer refuses a row of another length than the header's.
        writer.write_record(&cells.0).map_err(Problem::internal)?;
    }
    writer.into_inner().map_err(Problem::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Row(&'static str, i64);

    impl CsvRow for Row {
        const HEADER: &'static [&'static str] = &["name", "amount"];

        fn cells(&self, cells: &mut Cells) {
            cells.text(self.0).value(self.1);
        }
    }

    fn text(rows: &[Row]) -> String {
        String::from_utf8(csv(rows).unwrap()).unwrap()
    }

    #[test]
    fn formulas_are_made_harmless_and_numbers_left_alone() {
        assert_eq!(text(&[Row("plain", -5)]), "name,amount\r\nplain,-5\r\n");
        for (raw, cell) in [
            ("=HYPERLINK(\"x\")", "\"'=HYPERLINK(\"\"x\"\")\""),
            ("+1", "'+1"),
            ("-1+2", "'-1+2"),
            ("@SUM", "'@SUM"),
            ("\tx", "'\tx"),
            ("\rx", "\"'\rx\""),
            ("a,b", "\"a,b\""),
            ("a\nb", "\"a\nb\""),
        ] {
            assert_eq!(text(&[Row(raw, 1)]), format!("name,amount\r\n{cell},1\r\n"));
        }
    }

    #[test]
    fn no_rows_still_have_a_header() {
        assert_eq!(text(&[]), "name,amount\r\n");
    }

    fn negotiated(accept: Option<&'static str>) -> Option<Format> {
        let headers =
            accept.map(|value| (header::ACCEPT, HeaderValue::from_static(value))).into_iter().collect();
        Format::negotiate(&headers).ok()
    }

    #[test]
    fn the_accept_header_chooses_the_form() {
        assert_eq!(negotiated(None), Some(Format::Json));
        assert_eq!(negotiated(Some("*/*")), Some(Format::Json));
        assert_eq!(negotiated(Some("text/csv")), Some(Format::Csv));
        assert_eq!(negotiated(Some("*/*, text/csv")), Some(Format::Csv));
        assert_eq!(negotiated(Some("text/csv;q=0.5, application/json;q=0.9")), Some(Format::Json));
        assert_eq!(negotiated(Some("text/csv; q=0.9, */*;q=0.1")), Some(Format::Csv));
        assert_eq!(negotiated(Some("text/html, text/csv;q=0")), None);
        assert_eq!(negotiated(Some("image/png")), None);
    }
}
