//! Serving connections: how many at a time, how long one may stay silent or leave its answer unread, and how long it is waited
//! for at a stop.
//!
//! HTTP/1.1 only: an HTTP/2 client may hold back any number of answers by flow control and still not be silent.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

/// What a listener grants its clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait until one ends.
    connections: usize,
    /// How long the head of a request may take, and how long a connection may be idle before it.
    head: Duration,
    /// How long a client may send nothing at all, while it waits for its answer too.
    silence: Duration,
    /// How long a client may take nothing of its answer. The reader cannot tell: it does not look while a request that the
    /// client sent ahead waits.
    unread: Duration,
    /// How long a connection without a request in hand is waited for at a stop: for the rest of a head, and until an answer is
    /// read.
    leaving: Duration,
}

/// For whoever uses the program. With [`MONITORS`], connections stay below the usual limit of 1,024 open files, of which the program
/// needs some itself; silence is longer than any request may take (`edge`). Who leaves takes less than the grace of a stop, with the
/// 10 s that a body may take (`request`): whether a stop succeeds is not for clients to say.
pub const CLIENTS: Limits = Limits {
    connections: 800,
    head: Duration::from_secs(30),
    silence: Duration::from_secs(75),
    unread: Duration::from_secs(15),
    leaving: Duration::from_secs(8),
};
/// For whoever watches it: places of their own, which clients cannot take.
pub const MONITORS: Limits = Limits { connections: 50, ..CLIENTS };

/// Serves a router until `stopped` resolves, then finishes the requests that have begun, however long they take.
///
/// A client that connects and says nothing, sends half a request, or does not read its answer, holds its connection for a
/// bounded time only.
pub async fn serve<L: Listener>(
    limits: Limits,
    mut listener: L,
    router: Router,
    stopped: impl Future<Output = ()>,
) {
    let mut stopped = pin!(stopped);
    let (room, open) = (Arc::new(Semaphore::new(limits.connections)), GracefulShutdown::new());
    let stopping = CancellationToken::new();
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head);
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
        io.set_write_timeout(Some(limits.unread));
        let answers = TowerToHyperService::new(router.clone());
        let (busy, in_hand) = watch::channel(false);
        let service = service_fn(move |request: Request<Incoming>| {
            let (answer, busy) = (answers.call(request), busy.clone());
            busy.send_replace(true);
            async move {
                let answer = answer.await;
                busy.send_replace(false);
                answer
            }
        });
        let connection = open.watch(builder.serve_connection(TokioIo::new(Box::pin(io)), service));
        let overdue = overdue(limits.leaving, stopping.clone(), in_hand);
        tokio::spawn(async move {
            tokio::select! {
                // First, so that a request that begins right now counts.
                biased;
                // What a client does to its connection is its own business.
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(error = %error, "a connection ended");
                },
                () = overdue => tracing::debug!("a connection was left at the stop"),
            }
            drop(place);
        });
    }
    drop(listener);
    stopping.cancel();
    open.shutdown().await;
}

/// Resolves when a connection has been without a request in hand for so long after the stop.
async fn overdue(leaving: Duration, stopping: CancellationToken, mut in_hand: watch::Receiver<bool>) {
    stopping.cancelled().await;
    loop {
        in_hand.wait_for(|busy| !busy).await.ok();
        let begun = tokio::time::timeout(leaving, in_hand.wait_for(|busy| *busy)).await;
        if !matches!(begun, Ok(Ok(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_mins(1);
    const PATIENT: Limits = Limits { connections: 9, head: LONG, silence: LONG, unread: LONG, leaving: LONG };
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
    /// More than the buffers of both ends of a connection hold.
    const LARGE_BYTES: usize = 32 << 20;

    async fn start(limits: Limits) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(async || "here"))
            .route("/large", get(async || " ".repeat(LARGE_BYTES)));
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
        let silence = start(Limits { silence: SHORT, ..PATIENT }).await;
        let head = start(Limits { head: SHORT, ..PATIENT }).await;
        for (at, said) in [(silence, &REQUEST[..0]), (silence, &REQUEST[..20]), (head, &REQUEST[..20])] {
            let ended = tokio::time::timeout(LONG / 2, answer(said, at)).await;
            assert!(!ended.unwrap().contains("200 OK"));
            assert!(answer(REQUEST, at).await.ends_with("here"));
        }
    }

    #[tokio::test]
    async fn a_connection_whose_answer_is_not_read_is_ended() {
        let at = start(Limits { connections: 1, unread: SHORT, ..PATIENT }).await;
        let mut client = TcpStream::connect(at).await.unwrap();
        // Another request's first byte: the server stops listening until it has answered the one before.
        client.write_all(b"GET /large HTTP/1.1\r\nhost: here\r\n\r\nG").await.unwrap();
        let next = tokio::time::timeout(LONG / 2, answer(REQUEST, at)).await;
        assert!(next.expect("its place is free again").ends_with("here"));
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).await.ok();
        assert!(answered.len() < LARGE_BYTES, "{}", answered.len());
    }

    #[tokio::test]
    async fn a_stop_waits_for_requests_in_hand_but_not_for_who_says_half_of_one_or_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (begun, go, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()), CancellationToken::new());
        let signals = (begun.clone(), go.clone());
        let held = async move || {
            signals.0.notify_one();
            signals.1.notified().await;
            "here"
        };
        let router =
            Router::new().route("/", get(held)).route("/large", get(async || " ".repeat(LARGE_BYTES)));
        let limits = Limits { leaving: SHORT, ..PATIENT };
        let serving = tokio::spawn(serve(limits, listener, router, stop.clone().cancelled_owned()));
        let in_hand = tokio::spawn(answer(REQUEST, at));
        begun.notified().await;
        // It is read by the time that another client is answered.
        let mut half = TcpStream::connect(at).await.unwrap();
        half.write_all(&REQUEST[..20]).await.unwrap();
        let mut unread = TcpStream::connect(at).await.unwrap();
        unread.write_all(b"GET /large HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
        unread.read_u8().await.unwrap();

        stop.cancel();
        let mut said = Vec::new();
        tokio::time::timeout(LONG / 2, half.read_to_end(&mut said)).await.expect("it is ended").ok();
        assert!(said.is_empty());
        tokio::time::timeout(LONG / 2, unread.read_to_end(&mut said)).await.expect("it is ended").ok();
        assert!(said.len() < LARGE_BYTES, "{}", said.len());
        assert!(!serving.is_finished() && !in_hand.is_finished());
        go.notify_one();
        assert!(in_hand.await.unwrap().ends_with("here"));
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn http2_is_refused_at_once() {
        let at = start(PATIENT).await;
        // The preface, and settings that let no byte of an answer pass.
        let said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";
        tokio::time::timeout(LONG / 2, answer(said, at)).await.expect("the connection is ended");
        assert!(answer(REQUEST, at).await.ends_with("here"));
    }

    #[tokio::test]
    async fn more_connections_than_there_is_room_for_wait() {
        let at = start(Limits { connections: 1, ..PATIENT }).await;
        let first = TcpStream::connect(at).await.unwrap();
        assert!(tokio::time::timeout(SHORT, answer(REQUEST, at)).await.is_err(), "there is no room");
        drop(first);
        assert!(answer(REQUEST, at).await.ends_with("here"));
    }
}
