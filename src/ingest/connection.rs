//! Connecting to NATS with the user and password of the address: the client itself overlooks them there.

use std::time::Duration;

use async_nats::jetstream::{Context, ContextBuilder};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;

use super::IngestError;

/// Time for one request to the server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that may wait inside a client that publishes.
pub(super) const CLIENT_CAPACITY: usize = 64;

/// What is said of a list of which only some addresses ask for TLS.
const MIXED: &str = "some of the addresses start with tls:// and some do not; with tls:// before each of them all connections are encrypted";

/// Who connects.
#[derive(Debug, PartialEq, Eq)]
enum Login {
    User { name: String, password: String },
    Token(String),
}

impl Login {
    /// What stands before the `@` of an address, if anything does: a user and a password, or a token alone. The address has them
    /// percent-encoded, or what of them cannot stand in one.
    fn of(server: &ServerAddr) -> Option<Self> {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let name = decoded(server.username()?);
        Some(match server.password() {
            Some(password) => Self::User { name, password: decoded(password) },
            None => Self::Token(name),
        })
    }
}

/// Connects to `url`, one address or several with commas between them, such as `nats://user:password@127.0.0.1:4222`, or with
/// a token in their place. They are those of the first address that has them; other options are as given. With `tls://` no
/// connection is made without, to the servers that these tell of as well: else a password could be had by who stands between.
///
/// # Errors
/// [`ConnectError`] where an address is malformed, only some ask for TLS, or no server answers and accepts us.
pub async fn connect(url: &str, mut options: ConnectOptions) -> Result<Client, ConnectError> {
    let mut servers = Vec::new();
    for address in url.split(',') {
        let server: ServerAddr = address
            .trim()
            .parse()
            .map_err(|error| ConnectError::with_source(ConnectErrorKind::ServerParse, error))?;
        servers.push(server);
    }
    let encrypted = servers.iter().filter(|server| server.tls_required()).count();
    if encrypted > 0 && encrypted < servers.len() {
        return Err(ConnectError::with_source(ConnectErrorKind::ServerParse, MIXED));
    }
    options = options.require_tls(encrypted > 0);
    options = match servers.iter().find_map(Login::of) {
        Some(Login::User { name, password }) => options.user_and_password(name, password),
        Some(Login::Token(token)) => options.token(token),
        None => options,
    };
    options.connect(servers).await
}

/// Connects to NATS with the settings that notice a dead server in seconds, not minutes. What the server reports is logged.
///
/// # Errors
/// [`IngestError::Stream`] where the URL is malformed, no server answers, or it refuses.
pub async fn jetstream(url: &str, name: &str) -> Result<Context, IngestError> {
    connect(url, options(name)).await.map(context).map_err(not_connected)
}

/// The same, but where no server answers it is connected to as soon as one does: what else the program does goes on meanwhile.
///
/// # Errors
/// [`IngestError::Stream`] where the URL is malformed or the server refuses: with the configuration as it is, waiting would
/// not help.
pub async fn jetstream_in_time(url: &str, name: &str) -> Result<Context, IngestError> {
    in_time(url, name, || options(name)).await
}

/// The same for a connection that publishes: hardly anything waits inside its client, which would be sent later although
/// whoever published it was told that it is not stored.
///
/// # Errors
/// As [`jetstream_in_time`].
pub async fn publishing_in_time(url: &str, name: &str) -> Result<Context, IngestError> {
    in_time(url, name, || options(name).client_capacity(CLIENT_CAPACITY)).await
}

async fn in_time(
    url: &str,
    name: &str,
    options: impl Fn() -> ConnectOptions,
) -> Result<Context, IngestError> {
    match connect(url, options()).await {
        Ok(client) => Ok(context(client)),
        Err(error)
            if matches!(
                error.kind(),
                ConnectErrorKind::Dns | ConnectErrorKind::Io | ConnectErrorKind::TimedOut
            ) =>
        {
            tracing::error!(client = name, %error, "NATS does not answer; connecting as soon as it does");
            let later = options().retry_on_initial_connect();
            connect(url, later).await.map(context).map_err(not_connected)
        }
        Err(error) => Err(not_connected(error)),
    }
}

fn not_connected(error: ConnectError) -> IngestError {
    IngestError::stream("cannot connect to NATS")(error.into())
}

fn context(client: Client) -> Context {
    ContextBuilder::new().timeout(REQUEST_TIMEOUT).build(client)
}

fn options(name: &str) -> ConnectOptions {
    ConnectOptions::new()
        .name(name)
        .ping_interval(Duration::from_secs(5))
        .connection_timeout(Duration::from_secs(5))
        .request_timeout(Some(REQUEST_TIMEOUT))
        .event_callback({
            let client = name.to_owned();
            move |event| {
                reported(&client, &event);
                std::future::ready(())
            }
        })
}

/// Logs what a server reports beside its answers: where a permission is missing, which one is told here only.
fn reported(client: &str, event: &Event) {
    match event {
        Event::ServerError(error) => tracing::error!(
            client,
            %error,
            "NATS reports an error; where a permission is violated, give it to the user of WAYBILL_NATS_URL"
        ),
        Event::LameDuckMode => {
            tracing::info!(
                client,
                "the NATS server is about to stop; going to another one, or waiting for it"
            );
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_what_was_meant() {
        let user = |name: &str, password: &str| {
            Some(Login::User { name: name.to_owned(), password: password.to_owned() })
        };
        for (address, login) in [
            ("nats://127.0.0.1:4222", None),
            ("nats://gw-eu-1:s3cret@127.0.0.1:4222", user("gw-eu-1", "s3cret")),
            // As it is, what can stand in an address; encoded, everything.
            ("nats://gw:kX+9=;:~|^@127.0.0.1", user("gw", "kX+9=;:~|^")),
            ("nats://g%40w:a%2Fb%2B%3D%25%20@127.0.0.1", user("g@w", "a/b+=% ")),
            ("nats://gw:100%@127.0.0.1", user("gw", "100%")),
            ("nats://to%2Fken@127.0.0.1", Some(Login::Token("to/ken".to_owned()))),
        ] {
            assert_eq!(Login::of(&address.parse().unwrap()), login, "{address}");
        }
    }

    #[tokio::test]
    async fn addresses_with_and_without_tls_are_refused_together() {
        for url in ["tls://127.0.0.1:1,nats://127.0.0.1:1", "127.0.0.1:1,tls://127.0.0.1:1"] {
            let error = connect(url, ConnectOptions::new()).await.unwrap_err();
            assert_eq!(error.kind(), ConnectErrorKind::ServerParse, "{error}");
            assert!(error.to_string().contains(MIXED), "{error}");
        }
        // No server listens there.
        for url in ["tls://127.0.0.1:1, tls://127.0.0.1:1", "nats://127.0.0.1:1,127.0.0.1:1"] {
            let error = connect(url, ConnectOptions::new()).await.unwrap_err();
            assert_eq!(error.kind(), ConnectErrorKind::Io, "{error}");
        }
    }
}
