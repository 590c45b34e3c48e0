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
