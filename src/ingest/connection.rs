//! Connecting to NATS with the user and password of the address: the client itself overlooks them there.

use async_nats::{Client, ConnectError, ConnectOptions, ServerAddr};

/// Connects to `url`, one address or several with commas between them, such as `nats://user:password@127.0.0.1:4222`.
/// User and password are those of the first address that has them; other options are as given.
///
/// # Errors
/// [`ConnectError`] where an address is malformed or no server answers and accepts us.
pub async fn connect(url: &str, mut options: ConnectOptions) -> Result<Client, ConnectError> {
    let mut servers = Vec::new();
    for address in url.split(',') {
        let server: ServerAddr = address
            .trim()
            .parse()
            .map_err(|error| ConnectError::with_source(async_nats::ConnectErrorKind::ServerParse, error))?;
        servers.push(server);
    }
    let credentials = servers.iter().find_map(|server| server.username().zip(server.password()));
    if let Some((user, password)) = credentials {
        options = options.user_and_password(user.to_owned(), password.to_owned());
    }
    options.connect(servers).await
}
