//! The keys of `waybill dev`, kept in `dev.env` so that a second start hands out the same ones.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::traffic::{CUSTOMERS, GATEWAY};
use super::{DevError, write_for_owner};
use crate::domain::access::Token;
use crate::store::api_keys::{self, NewHolder};
use crate::store::{Database, Tx, commit, customers, gateways};

/// The file in the home.
const FILE: &str = "dev.env";
/// Variables of the keys.
const ADMIN: &str = "WAYBILL_ADMIN_KEY";
const FINANCE: &str = "WAYBILL_FINANCE_KEY";
const GATEWAY_KEY: &str = "WAYBILL_GATEWAY_KEY";
const CUSTOMER_KEY: &str = "WAYBILL_CUSTOMER_KEY";

/// What scripts need to talk to the program.
#[derive(Debug, Clone)]
pub struct DevEnv {
    /// Where it is kept.
    pub path: PathBuf,
    variables: BTreeMap<String, String>,
}

impl DevEnv {
    /// Reads what an earlier start kept; empty where there was none.
    pub fn load(home: &Path) -> Self {
        let path = home.join(FILE);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let variables = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), unquoted(value)))
            .collect();
        Self { path, variables }
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.variables.insert(name.to_owned(), value.into());
    }

    /// Takes a variable away.
    pub fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    /// A variable, empty where it is not set.
    pub fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Makes every key that is missing or no longer works; gateway and customer keys only where the demo's exist.
    ///
    /// # Errors
    /// [`DevError::Store`].
    pub async fn ensure_keys(&mut self, database: &Database, now: DateTime<Utc>) -> Result<(), DevError> {
        let mut tx = database.begin().await?;
        self.ensure_key(&mut tx, ADMIN, NewHolder::Admin, now).await?;
        self.ensure_key(&mut tx, FINANCE, NewHolder::Finance, now).await?;
        if let Some(gateway) = gateways::id_of(&mut tx, GATEWAY).await? {
            self.ensure_key(&mut tx, GATEWAY_KEY, NewHolder::Gateway(gateway), now).await?;
        }
        if let Some(customer) = customers::by_external_id(&mut tx, CUSTOMERS[0]).await? {
            self.ensure_key(&mut tx, CUSTOMER_KEY, NewHolder::Customer(customer.id), now).await?;
        }
        commit(tx).await?;
        Ok(())
    }

    async fn ensure_key(
        &mut self,
        tx: &mut Tx,
        variable: &str,
        holder: NewHolder,
        now: DateTime<Utc>,
    ) -> Result<(), DevError> {
        if let Some(token) = Token::parse(self.get(variable)) {
            let known = api_keys::find(tx, token.public_id).await?;
            let works = known.is_some_and(|key| {
                key.secret_hash == token.secret_hash()
                    && key.revoked_at.is_none()
                    && key.expires_at.is_none_or(|expires_at| now < expires_at)
            });
            if works {
                return Ok(());
            }
        }
        let key = api_keys::create(tx, holder, "waybill dev", None).await?;
        self.set(variable, key.token);
        Ok(())
    }

    /// Writes the file, whole or not at all and readable by its owner only: a line `NAME=value` each, which a shell can read as
    /// well.
    ///
    /// # Errors
    /// [`DevError::Io`].
    pub fn save(&self) -> Result<(), DevError> {
        let lines = self.variables.iter().map(|(name, value)| format!("{name}={}\n", quoted(value)));
        let text: String = lines.collect();
        write_for_owner(&self.path, |mut file| file.write_all(text.as_bytes()))
    }
}

/// A value as a shell reads it back: as it is, or between single quotes where a character could mean something to the shell.
fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/@%+=,".contains(&byte);
    if value.bytes().all(plain) { value.to_owned() } else { format!("'{}'", value.replace('\'', r"'\''")) }
}

/// What was [`quoted`].
fn unquoted(text: &str) -> String {
    let between = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\''));
    between.map_or_else(|| text.to_owned(), |value| value.replace(r"'\''", "'"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn values_are_read_back_by_us_and_by_a_shell() {
        let home = std::env::temp_dir().join(format!("waybill-keys-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&home).unwrap();
        let values = [
            "wb_abc_DEF-1.2",
            "postgres://u:p%2F@host:5432/db?sslmode=verify-full&sslrootcert=/etc/my ca.pem",
            "it's $HOME `id` \"x\" \\ # ; | ~ *",
            "'",
            "",
        ];
        let mut env = DevEnv::load(&home);
        for (number, value) in values.iter().enumerate() {
            env.set(&format!("V{number}"), *value);
        }
        env.save().unwrap();
        env.save().unwrap();
        let again = DevEnv::load(&home);
        for (number, value) in values.iter().enumerate() {
            assert_eq!(again.get(&format!("V{number}")), *value);
            let script = format!(". '{}'; printf %s \"$V{number}\"", env.path.display());
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), *value);
        }
        let files = std::fs::read_dir(&home).unwrap().count();
        std::fs::remove_dir_all(&home).unwrap();
        assert_eq!(files, 1, "nothing is left beside it");
    }
}
