//! Serving connections: how many at a time, and how long one may stay silent.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

/// What a listener grants its clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait until one ends.
    connections: usize,
    /// How long the head of a request may take, and how long a connection may be idle before it.
    head: Duration,
    /// How long a client may send nothing at all, while it waits for its answer too.
    silence: Duration,
}

/// For whoever uses the program. With [`MONITORS`], connections stay below the usual limit of 1,024 open files, of which the program
/// needs some itself; silence is longer than any request may take (`edge`).
pub const CLIENTS: Limits =
    Limits { connections: 800, head: Duration::from_secs(30), silence: Duration::from_secs(75) };
/// For whoever watches it: places of their own, which clients cannot take.
pub const MONITORS: Limits = Limits { connections: 50, ..CLIENTS };
/// Requests of one HTTP/2 connection at a time; more wait.
const STREAMS: u32 = 32;

/// Serves a router until `stopped` resolves, then finishes the requests that have begun.
///
/// A client that connects and says nothing, or sends half a request, holds its connection for a bounded time only.
pub async fn serve<L: Listener>(
    limits: Limits,
    mut listener: L,
    router: Router,
    stopped: impl Future<Output = ()>,
) {
    let mut stopped = pin!(stopped);
    let (room, open) = (Arc::new(Semaphore::new(limits.connections)), GracefulShutdown::new());
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(limits.head).max_concurrent_streams(STREAMS);
    loop {
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (listener.accept().await.0, place)
        };
        let (io, place) = tokio::select! {
            accepted = next => accepted,
            () = &mut stopped => break,
        };
        let mut io = TimeoutStream::new(io);
        io.set_read_timeout(Some(limits.silence));
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(Box::pin(io)), service).into_owned();
        let connection = open.watch(connection);
        tokio::spawn(async move {
            // What a client does to its connection is its own business.
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    open.shutdown().await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_mins(1);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";

    async fn start(limits: Limits) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "here"));
        tokio::spawn(serve(limits, listener, router, std::future::pending()));
        address
    }

    /// What comes back until the server ends the connection.
    async fn answer(to: &[u8], at: std::net::SocketAddr) -> String {
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(to).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.ok();
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_connection_that_stays_silent_or_half_said_is_ended() {
        let silence = start(Limits { connections: 9, head: LONG, silence: SHORT }).await;
        let head = start(Limits { connections: 9, head: SHORT, silence: LONG }).await;
        for (at, said) in [(silence, &REQUEST[..0]), (silence, &REQUEST[..20]), (head, &REQUEST[..20])] {
            let ended = tokio::time::timeout(LONG / 2, answer(said, at)).await;
            assert!(!ended.unwrap().contains("200 OK"));
            assert!(answer(REQUEST, at).await.ends_with("here"));
        }
    }

    #[tokio::test]
    async fn an_http2_connection_is_told_how_many_requests_it_may_have() {
        const HEAD_BYTES: usize = 9;
        const SETTINGS: u8 = 4;
        const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];
        let at = start(Limits { connections: 1, head: LONG, silence: LONG }).await;
        let mut client = TcpStream::connect(at).await.unwrap();
        // The preface, and settings that change nothing.
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut head = [0; HEAD_BYTES];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(head[3], SETTINGS);
        let mut settings = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        client.read_exact(&mut settings).await.unwrap();
        let told = settings.chunks(6).find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS).unwrap();
        assert_eq!(u32::from_be_bytes(told[2..].try_into().unwrap()), STREAMS);
    }

    #[tokio::test]
    async fn more_connections_than_there_is_room_for_wait() {
        let at = start(Limits { connections: 1, head: LONG, silence: LONG }).await;
        let first = TcpStream::connect(at).await.unwrap();
        assert!(tokio::time::timeout(SHORT, answer(REQUEST, at)).await.is_err(), "there is no room");
        drop(first);
        assert!(answer(REQUEST, at).await.ends_with("here"));
    }
}
