//! What a NATS server tells about itself over HTTP: the only place that shows how it writes to disk.

use std::time::Duration;

use serde_json::Value;

use super::IngestError;

/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The server's settings and state, as its monitoring address gives them.
///
/// # Errors
/// [`IngestError::Stream`] where it does not answer, or with something else.
pub(super) async fn varz(url: &str) -> Result<Value, IngestError> {
    let failed = |error: reqwest::Error| {
        IngestError::stream("the monitoring of NATS does not answer")(error.without_url().into())
    };
    let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().map_err(failed)?;
    let address = format!("{}/varz", url.trim_end_matches('/'));
    let answer = client.get(address).send().await.map_err(failed)?.error_for_status().map_err(failed)?;
    let body = answer.bytes().await.map_err(failed)?;
    serde_json::from_slice(&body).map_err(|error| {
        IngestError::stream("the monitoring of NATS answers with something else")(error.into())
    })
}

/// An address as it may be shown to anybody: without a user's name and password.
pub(super) fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn nobody_sees_a_password_in_an_address() {
        for (url, expected) in [
            ("http://127.0.0.1:8222", "http://127.0.0.1:8222"),
            ("http://ops:s3cret@n1:8222/", "http://n1:8222"),
            ("https://ops:s3@cret@n1/path@x?token=y", "https://n1"),
        ] {
            assert_eq!(shown(url), expected);
        }
    }
}
