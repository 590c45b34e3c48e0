//! API keys as their holders see them: roles, and the token `wb_<public id>_<secret>`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::event::text_enum;

/// What every token starts with, so that leaked ones can be searched for.
pub const TOKEN_PREFIX: &str = "wb_";
/// Characters of the public id, `[A-Za-z0-9]`.
pub const PUBLIC_ID_CHARS: usize = 12;
/// Characters of the secret, `[A-Za-z0-9]`: 43 of them hold 256 random bits.
pub const SECRET_CHARS: usize = 43;
/// Longest secret that is looked at.
const SECRET_CHARS_MAX: usize = 128;

text_enum! {
    /// What the holder of an API key may do.
    Role, UnknownRole, "role" {
        /// Publishes the events of one gateway.
        Gateway = "gateway",
        /// Reads the figures of one customer.
        Customer = "customer",
        /// Reads everything, publishes prices, runs and finalizes invoices.
        Finance = "finance",
        /// What finance may, and keys, customers and gateways.
        Admin = "admin",
    }
}

/// The two halves of a token; the secret is never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// The half that may be shown and logged.
    pub public_id: &'a str,
    secret: &'a str,
}

impl<'a> Token<'a> {
    /// Takes a token apart; `None` where it does not have the form of one.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (public_id, secret) = text.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let fits =
            public_id.len() == PUBLIC_ID_CHARS && (SECRET_CHARS..=SECRET_CHARS_MAX).contains(&secret.len());
        (fits && plain(public_id) && plain(secret)).then_some(Self { public_id, secret })
    }

    /// SHA-256 of the secret, which is what the database keeps: 256 random bits need no slow hash.
    pub fn secret_hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TOKEN_PREFIX}{}_…", self.public_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "abcDEF012345";

    #[test]
    fn a_token_has_a_prefix_a_public_id_and_a_long_secret() {
        let secret = "s".repeat(SECRET_CHARS);
        let text = format!("wb_{ID}_{secret}");
        let token = Token::parse(&text).unwrap();
        assert_eq!(token.public_id, ID);
        assert_eq!(token.secret_hash(), <[u8; 32]>::from(Sha256::digest(secret.as_bytes())));
        assert!(!format!("{token:?}").contains(&secret));
    }

    #[test]
    fn other_texts_are_not_tokens() {
        let secret = "s".repeat(SECRET_CHARS);
        for text in [
            String::new(),
            "wb_".to_owned(),
            format!("WB_{ID}_{secret}"),
            format!("wb_{ID}{secret}"),
            format!("wb_{ID}x_{secret}"),
            format!("wb_{ID}_{}", &secret[1..]),
            format!("wb_{ID}_{secret} "),
            format!("wb_{ID}_{}", "s".repeat(SECRET_CHARS_MAX + 1)),
            format!("wb_abcdef01234é_{secret}"),
        ] {
            assert_eq!(Token::parse(&text), None, "{text}");
        }
    }
}
