//! The form of `batch_payloads.body`: for each message its sequence, its length, its (decompressed) bytes, and zstd over
//! all of them, in one frame or in several, one behind the other (RFC 8878, 3). Both numbers have eight bytes, the most
//! significant first.

use std::io::{self, Read};

/// zstd level: level 1 gives eight to one at about a microsecond an event.
const ZSTD_LEVEL: i32 = 1;

/// The messages of a batch, one after the other.
#[derive(Debug, Default)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// An empty one that takes so many bytes of messages without growing much.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Adds a message.
    pub fn add(&mut self, sequence: i64, body: &[u8]) {
        self.0.extend_from_slice(&sequence.to_be_bytes());
        self.0.extend_from_slice(&(body.len() as u64).to_be_bytes());
        self.0.extend_from_slice(body);
    }

    /// What is stored.
    ///
    /// # Errors
    /// Whatever the compressor says.
    pub fn compressed(&self) -> io::Result<Vec<u8>> {
        let mut stored = zstd::bulk::compress(&self.0, ZSTD_LEVEL)?;
        // Made as large as what cannot be compressed would be; it waits in memory until it is recorded.
        stored.shrink_to_fit();
        Ok(stored)
    }
}

/// One message of what was stored; `None` where it is not in it.
///
/// # Errors
/// Where the stored bytes are damaged.
pub fn message(stored: &[u8], sequence: i64) -> io::Result<Option<Vec<u8>>> {
    let mut reader = zstd::stream::read::Decoder::new(stored)?;
    loop {
        let mut number = [0; size_of::<i64>()];
        if reader.read(&mut number[..1])? == 0 {
            return Ok(None);
        }
        reader.read_exact(&mut number[1..])?;
        let found = i64::from_be_bytes(number);
        reader.read_exact(&mut number)?;
        let length = u64::from_be_bytes(number);
        let mut body = reader.by_ref().take(length);
        let mut bytes = Vec::new();
        let read = if found == sequence {
            io::copy(&mut body, &mut bytes)?
        } else {
            io::copy(&mut body, &mut io::sink())?
        };
        if read != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if found == sequence {
            return Ok(Some(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_in_any_frame() {
        let frame = |sequence, body: &[u8]| {
            let mut payload = Payload::default();
            payload.add(sequence, body);
            payload.compressed().unwrap()
        };
        let stored = [frame(1, b"first"), frame(2, b""), frame(3, b"third")].concat();
        for (sequence, body) in [(1, "first"), (2, ""), (3, "third")] {
            assert_eq!(message(&stored, sequence).unwrap().as_deref(), Some(body.as_bytes()));
        }
        assert_eq!(message(&stored, 4).unwrap(), None);
    }

    #[test]
    fn every_message_is_found_again() {
        let mut payload = Payload::default();
        let long = vec![0xff; 100_000];
        let bodies: [(i64, &[u8]); 3] = [(7, b"{}"), (8, b""), (i64::MAX, &long)];
        for (sequence, body) in bodies {
            payload.add(sequence, body);
        }
        let stored = payload.compressed().unwrap();
        for (sequence, body) in bodies {
            assert_eq!(message(&stored, sequence).unwrap().as_deref(), Some(body));
        }
        assert_eq!(message(&stored, 9).unwrap(), None);
        assert!(message(&stored[..stored.len() / 2], i64::MAX).is_err());
        assert!(message(b"no zstd", 1).is_err());
    }
}
