//! Wires `waybill forward`: the journal, the local listener, delivery and the watermark.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::{bind, finish, metrics_router, serve, time_to_stop};
use crate::clock::Clock;
use crate::config::{ForwardArgs, Listen};
use crate::forward::{Delivery, Journal, Local, WATERMARK, WatermarkClient, probes, router};
use crate::health::Health;
use crate::http::server::{CLIENTS, MONITORS};
use crate::ingest::Publisher;
use crate::shutdown::Shutdown;
use crate::telemetry;

/// Runs a forwarder until Ctrl-C or SIGTERM.
///
/// # Errors
/// A sentence for each thing that keeps it from starting, or made it stop.
pub async fn run(args: &ForwardArgs) -> anyhow::Result<()> {
    args.check()?;
    let ForwardArgs { gateway, journal, journal_max_bytes, metrics_addr, nats_url, subject_prefix, .. } =
        args;
    let metrics = telemetry::init_metrics().context("metrics cannot be collected")?;
    let (journal, writer) = Journal::open(journal, gateway, *journal_max_bytes)?;
    let publisher = Publisher::of_gateway(nats_url, subject_prefix, gateway)
        .await
        .context("cannot connect to NATS; check WAYBILL_FORWARD_NATS_URL")?;
    let client = WatermarkClient::new(&args.api_url, gateway, journal.epoch(), &args.key)?;
    let opened_at = journal.durable();
    let (shutdown, health) = (Shutdown::new(), Health::expecting(&[WATERMARK]));
    let gateway: Arc<str> = gateway.as_str().into();
    let local = Local {
        gateway: Arc::clone(&gateway),
        journal: journal.clone(),
        writer: Arc::new(writer),
        publisher: publisher.clone(),
        health: health.clone(),
        clock: Clock::System,
    };
    let listener = bind(*metrics_addr, "WAYBILL_FORWARD_METRICS_ADDR").await?;
    let metrics_addr = listener.local_addr()?;
    let watched = metrics_router(metrics).merge(probes(local.clone()));
    serve(&shutdown, "metrics", listener, MONITORS, watched);
    listen(&args.listen, router(local), &shutdown).await?;
    tracing::info!(
        listen = ?args.listen, %metrics_addr, %gateway, epoch = %journal.epoch(),
        oldest = journal.oldest(), newest = journal.durable(), "forwarding"
    );
    // What is settled already need not be published again after a start; where nobody says so, it is.
    let settled = client.ask().await.unwrap_or_default();
    let (told, settled) = watch::channel(settled);
    let delivery = Delivery {
        journal,
        publisher,
        gateway,
        opened_at,
        resend_after: Duration::from_secs(args.resend_seconds),
        settled,
        clock: Clock::System,
        health: health.clone(),
        shutdown: shutdown.clone(),
    };
    shutdown.spawn_part("delivery", delivery.run());
    let asking = client.run(Duration::from_millis(args.poll_ms), told, health, shutdown.clone());
    shutdown.spawn_part("watermark", asking);
    time_to_stop(&shutdown).await?;
    tracing::info!("stopping; what is not published yet is at the next start");
    finish(&shutdown).await
}

async fn listen(at: &Listen, router: Router, shutdown: &Shutdown) -> anyhow::Result<()> {
    match at {
        Listen::Tcp(address) => {
            let listener = bind(*address, "WAYBILL_FORWARD_LISTEN").await?;
            serve(shutdown, "listener", listener, CLIENTS, router);
        }
        Listen::Unix(path) => serve(shutdown, "listener", socket(path).await?, CLIENTS, router),
    }
    Ok(())
}

/// A Unix socket; one on which nobody listens any more was left behind by an earlier run, and is replaced.
async fn socket(path: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    if path.symlink_metadata().is_ok_and(|data| data.file_type().is_socket()) {
        let shown = path.display();
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).with_context(|| format!("cannot replace {shown}"))?;
            }
            // It went in the meantime.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Where too many wait to be let in already, it would block.
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                return Err(error).with_context(|| format!("cannot tell whether anybody listens on {shown}"));
            }
            _ => bail!(
                "another process listens on {shown}; end it, or set WAYBILL_FORWARD_LISTEN to a path of this forwarder's own"
            ),
        }
    }
    UnixListener::bind(path).with_context(|| {
        format!("cannot listen on {}; set WAYBILL_FORWARD_LISTEN to a free path", path.display())
    })
}
