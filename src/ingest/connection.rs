//! Connecting to NATS with the user and password of the address: the client itself overlooks them there.

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

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
/// a token in their place. They are those of the first address that has them; other options are as given.
///
/// # Errors
/// [`ConnectError`] where an address is malformed or no server answers and accepts us.
pub async fn connect(url: &str, mut options: ConnectOptions) -> Result<Client, ConnectError> {
    let mut servers = Vec::new();
    for address in url.split(',') {
        let server: ServerAddr = address
            .trim()
            .parse()
            .map_err(|error| ConnectError::with_source(ConnectErrorKind::ServerParse, error))?;
        servers.push(server);
    }
    options = match servers.iter().find_map(Login::of) {
        Some(Login::User { name, password }) => options.user_and_password(name, password),
        Some(Login::Token(token)) => options.token(token),
        None => options,
    };
    options.connect(servers).await
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
}
