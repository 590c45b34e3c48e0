//! The sockets of connections to the database: what is written to them is sent at once.
//!
//! sqlx 0.9.0 leaves Nagle's algorithm on (its issue 4335, mended after that release): the small packet that ends a COPY waits
//! up to 40 ms for an acknowledgement that the server's kernel delays. It gives no access to its sockets, so those of this
//! process that lead to the port of the database are looked for. With the next release of sqlx this file goes.

use std::net::TcpStream;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// Where Linux lists by number what a process has open.
const OPEN: &str = "/proc/self/fd";

/// Has every TCP connection of this process to a port send at once what is written to it. Where that cannot be done
/// everything works, but slower.
pub(super) fn send_at_once(port: u16) {
    let Ok(open) = std::fs::read_dir(OPEN) else { return };
    for entry in open.flatten() {
        let socket =
            std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(duplicate) = number.filter(|_| socket).and_then(duplicate) else { continue };
        // Some are of another kind, and some are closed by now: they have no such peer, or refuse the option.
        let socket = TcpStream::from(duplicate);
        if socket.peer_addr().is_ok_and(|peer| peer.port() == port) {
            let _ = socket.set_nodelay(true);
        }
    }
}

/// Another descriptor of the same file.
#[expect(unsafe_code, reason = "the standard library has no safe way from a number to a descriptor")]
fn duplicate(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: borrowed for one system call, which fails where the number was closed since it was listed; where it then means
    // another file already, that one is duplicated and closed again, which changes nothing for its owner.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn connections_to_the_port_send_at_once_and_others_are_left_alone() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [database, other] = listeners.each_ref().map(|listener| {
            let address = listener.local_addr().unwrap();
            (TcpStream::connect(address).unwrap(), address.port())
        });
        assert!(!database.0.nodelay().unwrap(), "nobody has set it");
        send_at_once(database.1);
        assert!(database.0.nodelay().unwrap());
        assert!(!other.0.nodelay().unwrap());
    }
}
