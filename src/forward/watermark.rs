//! Asking the API which events are settled.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use uuid::Uuid;

use super::settled::{EpochAnswer, Settled};
use crate::health::Health;
use crate::shutdown::Shutdown;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Longest pause between two questions while nobody answers.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The part of the program that this speaks for.
pub const WATERMARK: &str = "watermark";

/// Why the watermark is not known.
#[derive(Debug, thiserror::Error)]
pub enum WatermarkError {
    /// The address cannot be made one of the watermark.
    #[error("`{url}` is no address of a Waybill API: {detail}")]
    Address {
        /// The address.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The API does not answer, or not as it should.
    #[error("the API does not tell the watermark: {}", with_causes(.0))]
    Http(#[from] reqwest::Error),
    /// It refuses.
    #[error("the API answers {status}; {}", match status.as_u16() {
        401 | 403 => "give the key of this gateway as WAYBILL_FORWARD_KEY",
        404 => "the gateway is not registered, or the key is another gateway's",
        _ => "trying again",
    })]
    Status {
        /// The status.
        status: reqwest::StatusCode,
    },
    /// It answers something else.
    #[error("the API's answer is no watermark: {0}")]
    Answer(String),
}

/// What went wrong, down to the refused connection or the unknown name.
fn with_causes(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}

/// The one who asks.
#[derive(Debug, Clone)]
pub struct WatermarkClient {
    client: reqwest::Client,
    url: reqwest::Url,
    key: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    epochs: Vec<EpochAnswer>,
}

impl WatermarkClient {
    /// Asks the API at `base` for the watermark of a gateway's epoch, with the gateway's key.
    ///
    /// # Errors
    /// [`WatermarkError::Address`], [`WatermarkError::Http`].
    pub fn new(base: &str, gateway: &str, epoch: Uuid, key: &str) -> Result<Self, WatermarkError> {
        let address = |detail: String| WatermarkError::Address { url: base.to_owned(), detail };
        let text = format!("{}/v1/gateways/{gateway}/watermark?epoch={epoch}", base.trim_end_matches('/'));
        let url: reqwest::Url = text.parse().map_err(|error| address(format!("{error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(address("it must start with http:// or https://".to_owned()));
        }
        let client = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            // The key is for this address only.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { client, url, key: key.to_owned() })
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`WatermarkError`].
    pub async fn ask(&self) -> Result<Settled, WatermarkError> {
        let mut response = self.client.get(self.url.clone()).bearer_auth(&self.key).send().await?;
        let status = response.status();
        if !status.is_success() {
            return Err(WatermarkError::Status { status });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(WatermarkError::Answer("it is too long".to_owned()));
            }
        }
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|error| WatermarkError::Answer(error.to_string()))?;
        // The question was for one epoch; without an event of it in the ledger there is none in the answer.
        Ok(answer.epochs.into_iter().next().map(Settled::from).unwrap_or_default())
    }

    /// Asks again and again until a stop is asked for, and tells every answer.
    pub async fn run(
        self,
        every: Duration,
        told: watch::Sender<Option<Settled>>,
        health: Health,
        shutdown: Shutdown,
    ) {
        let mut pause = every;
        let mut failing = false;
        while !shutdown.stopping() {
            match self.ask().await {
                Ok(settled) => {
                    if failing {
                        tracing::info!("the API tells the watermark again");
                    }
                    (failing, pause) = (false, every);
                    health.up(WATERMARK);
                    told.send_replace(Some(settled));
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "nothing is removed from the journal until the watermark is known");
                    }
                    failing = true;
                    health.down(WATERMARK, error.to_string());
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
            tokio::select! {
                () = shutdown.stopped() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
