//! Who an event says it is, and the 16-byte key the database knows it by.

use compact_str::CompactString;
use sha2::{Digest, Sha256};
use uuid::{Uuid, Variant};

/// Identity of an event: two fields, never joined into one text (design section 3).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventIdentity {
    /// The gateway's name, alone or followed by `/` and a path of its own.
    pub source: CompactString,
    /// The event's id, unique per source.
    pub id: CompactString,
}

/// The key of an event in the journal: 16 bytes derived from both fields of its identity.
///
/// The fields are hashed length-prefixed, so `("a-b", "c")` and `("a", "b-c")` differ. Where the id is a UUIDv7 its
/// 48-bit time stays in front, which keeps the unique index local (`performance` section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, sqlx::Type)]
#[sqlx(transparent)]
pub struct EventKey(pub Uuid);

/// Bytes of a UUIDv7 that hold its time.
const TIME_PREFIX_BYTES: usize = 6;

impl EventIdentity {
    /// The key of this identity.
    pub fn key(&self) -> EventKey {
        let mut hasher = Sha256::new();
        for field in [self.source.as_bytes(), self.id.as_bytes()] {
            hasher.update((field.len() as u64).to_be_bytes());
            hasher.update(field);
        }
        let digest = hasher.finalize();
        let mut key = [0_u8; 16];
        key.copy_from_slice(&digest[..16]);
        if let Some(id) = uuid_v7(&self.id) {
            key[..TIME_PREFIX_BYTES].copy_from_slice(&id.as_bytes()[..TIME_PREFIX_BYTES]);
        }
        EventKey(Uuid::from_bytes(key))
    }
}

/// Bytes as hashes are written: two lower-case hexadecimal digits each.
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

/// The id as a UUIDv7 in its canonical form, if it is one.
fn uuid_v7(id: &str) -> Option<Uuid> {
    if id.len() != 36 {
        return None;
    }
    Uuid::try_parse(id)
        .ok()
        .filter(|uuid| uuid.get_version_num() == 7 && uuid.get_variant() == Variant::RFC4122)
}
