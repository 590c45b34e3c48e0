//! Wires `waybill forward`: the journal, the local listener, delivery and the watermark.

use std::fs::{File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use axum::Router;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::watch;

use super::watch::{PARTS_EVERY, show};
use super::{bind, finish, metrics_router, serve, time_to_stop};
use crate::clock::Clock;
use crate::config::{ForwardArgs, Listen};
use crate::forward::{Delivery, Journal, Local, WATERMARK, WatermarkClient, probes, router};
use crate::health::Health;
use crate::http::server::{CLIENTS, MONITORS};
use crate::ingest::Publisher;
use crate::shutdown::Shutdown;
use crate::telemetry;

/// Connections that may wait to be let in at the Unix socket.
const SOCKET_BACKLOG: u32 = 1024;
/// How long a process that was killed a moment ago may still hold it.
const SOCKET_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two tries.
const SOCKET_LOCK_POLL: Duration = Duration::from_millis(20);
/// The lock of a socket is nobody else's business.
const SOCKET_LOCK_MODE: u32 = 0o600;

/// Runs a forwarder until Ctrl-C or SIGTERM.
///
/// # Errors
/// A sentence for each thing that keeps it from starting, or made it stop.
pub async fn run(args: &ForwardArgs) -> anyhow::Result<()> {
    args.check()?;
    let ForwardArgs { gateway, journal, journal_max_bytes, metrics_addr, nats_url, subject_prefix, .. } =
        args;
    let metrics = telemetry::init_metrics().context("metrics cannot be collected")?;
    // Shown before there is one, so that the first increase is seen.
    metrics::counter!("waybill_forward_refused_events_total").increment(0);
    let (journal, writer) = Journal::open(journal, gateway, *journal_max_bytes)?;
    let publisher = Publisher::of_gateway(nats_url, subject_prefix, gateway)
        .await
        .context("cannot connect to NATS; check WAYBILL_FORWARD_NATS_URL")?;
    let client = WatermarkClient::new(&args.api_url, gateway, journal.epoch(), &args.key)?;
    let (opened_at, journal_ended) = (journal.durable(), writer.ended());
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
    // From the first event on, whatever is waited for meanwhile.
    let asked = time_to_stop(&shutdown);
    let listener = bind(*metrics_addr, "WAYBILL_FORWARD_METRICS_ADDR").await?;
    let metrics_addr = listener.local_addr()?;
    let watched = metrics_router(metrics).merge(probes(local.clone()));
    serve(&shutdown, "metrics", listener, MONITORS, watched);
    shutdown.spawn_part("parts", parts(local.clone(), shutdown.clone()));
    let _socket = listen(args, router(local), &shutdown).await?;
    tracing::info!(
        listen = ?args.listen, %metrics_addr, %gateway, epoch = %journal.epoch(),
        oldest = journal.oldest(), newest = journal.durable(), "forwarding"
    );
    // Before anything is published: what is settled already need not be.
    let (told, settled) = watch::channel(client.ask().await.ok());
    let delivery = Delivery {
        journal,
        publisher,
        gateway,
        opened_at,
        resend_after: Duration::from_secs(args.resend_seconds),
        keep: Duration::from_secs(60 * 60 * args.journal_keep_hours),
        settled,
        clock: Clock::System,
        health: health.clone(),
        shutdown: shutdown.clone(),
    };
    shutdown.spawn_part("delivery", delivery.run());
    let asking = client.run(Duration::from_millis(args.poll_ms), told, health, shutdown.clone());
    shutdown.spawn_part("watermark", asking);
    let stop = shutdown.clone();
    shutdown.spawn_part("journal", async move {
        tokio::select! {
            () = journal_ended => {}
            () = stop.stopped() => {}
        }
    });
    asked.await?;
    tracing::info!("stopping; what is not published yet is at the next start");
    finish(&shutdown).await
}

/// Shows which parts work until a stop is asked for. Apart from delivery, which waits where the disk does.
async fn parts(local: Local, shutdown: Shutdown) {
    loop {
        show(local.parts());
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(PARTS_EVERY) => {}
        }
    }
}

/// Takes events where they are to be taken; what is returned is held as long as that is.
async fn listen(args: &ForwardArgs, router: Router, shutdown: &Shutdown) -> anyhow::Result<Option<File>> {
    match &args.listen {
        Listen::Tcp(address) => {
            let listener = bind(*address, "WAYBILL_FORWARD_LISTEN").await?;
            serve(shutdown, "listener", listener, CLIENTS, router);
            Ok(None)
        }
        Listen::Unix(path) => {
            let lock = socket_lock(path).await?;
            serve(shutdown, "listener", socket(path, args.socket_mode).await?, CLIENTS, router);
            Ok(Some(lock))
        }
    }
}

/// What to do about a socket that another process has.
fn taken(path: &Path) -> anyhow::Error {
    anyhow!(
        "another process listens on {}; end it, or set WAYBILL_FORWARD_LISTEN to a path of this forwarder's own",
        path.display()
    )
}

/// The right to a Unix socket: of two that start at once, one would take the other's away.
async fn socket_lock(path: &Path) -> anyhow::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let mut options = File::options();
    let opened = options.write(true).create(true).truncate(false).mode(SOCKET_LOCK_MODE).open(&name);
    let file = opened.with_context(|| {
        format!(
            "cannot write {}; set WAYBILL_FORWARD_LISTEN to a path in a folder of this forwarder's own",
            name.display()
        )
    })?;
    let deadline = Instant::now() + SOCKET_LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(SOCKET_LOCK_POLL).await;
            }
            Err(TryLockError::WouldBlock) => return Err(taken(path)),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", name.display()));
            }
        }
    }
}

/// A Unix socket; one on which nobody listens any more was left behind by an earlier run, and is replaced.
async fn socket(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
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
            _ => return Err(taken(path)),
        }
    }
    let listening = || {
        let socket = UnixSocket::new_stream()?;
        socket.bind(path)?;
        // Before it listens: whatever the process's umask is, nobody else gets in meanwhile.
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        socket.listen(SOCKET_BACKLOG)
    };
    listening().with_context(|| {
        format!("cannot listen on {}; set WAYBILL_FORWARD_LISTEN to a free path", path.display())
    })
}
