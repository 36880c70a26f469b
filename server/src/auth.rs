//! API keys.

use std::path::{Path, PathBuf};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

/// Ways to send a key: openpi's client's, and everybody else's.
const SCHEMES: [&str; 2] = ["Api-Key", "Bearer"];

/// The keys that open the server; without any it is open.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

/// API keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeysError {
    /// The file cannot be read.
    #[error("cannot read the API keys {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There are none, which would open the server.
    #[error("{0} holds no API key: expected at least one, or leave it out to let everybody in")]
    Empty(String),
}

impl ApiKeys {
    /// Keys in a file, one a line; empty lines and lines that start with `#` do not count.
    ///
    /// # Errors
    /// When the file cannot be read or holds no key.
    pub fn open(path: &Path) -> Result<Self, ApiKeysError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ApiKeysError::Read { path: path.to_owned(), source })?;
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        Self::new(lines, &path.display().to_string())
    }

    /// Keys in any order; blank ones do not count. `origin` is named in errors.
    ///
    /// # Errors
    /// When there is no key.
    pub fn new<'k>(keys: impl IntoIterator<Item = &'k str>, origin: &str) -> Result<Self, ApiKeysError> {
        let keys = keys.into_iter().map(str::trim).filter(|key| !key.is_empty());
        let keys: Vec<[u8; 32]> = keys.map(digest).collect();
        if keys.is_empty() { Err(ApiKeysError::Empty(origin.into())) } else { Ok(Self(keys)) }
    }

    /// Whether everybody may come in.
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request brings a key. Takes as long for every key of a length.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        self.is_open() || headers.get(AUTHORIZATION).is_some_and(|value| self.knows(value.as_bytes()))
    }

    fn knows(&self, authorization: &[u8]) -> bool {
        let Some(space) = authorization.iter().position(|byte| *byte == b' ') else { return false };
        let (scheme, key) = authorization.split_at(space);
        let known = SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()));
        // Digests are of one length, so that the comparison tells nothing about that of the keys.
        let key: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        let same = self.0.iter().fold(0, |same, one| same | one.ct_eq(&key).unwrap_u8());
        known && same == 1
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({} keys)", self.0.len())
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(authorization: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, authorization.parse().unwrap())])
    }

    #[test]
    fn only_a_key_that_is_known_opens() {
        let keys = ApiKeys::new(["one", " two ", ""], "test").unwrap();
        for good in ["Api-Key one", "api-key two", "Bearer one", "bearer  two"] {
            assert!(keys.admits(&with(good)), "{good}");
        }
        for bad in
            ["one", "Api-Key", "Api-Key ", "Api-Key on", "Api-Key onee", "Basic one", "Api-Key one two"]
        {
            assert!(!keys.admits(&with(bad)), "{bad}");
        }
        assert!(!keys.admits(&HeaderMap::new()));
        assert!(ApiKeys::default().admits(&HeaderMap::new()));
    }

    #[test]
    fn a_file_without_keys_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# none\n\n").unwrap();
        assert!(matches!(ApiKeys::open(&path), Err(ApiKeysError::Empty(_))));
        std::fs::write(&path, "# one\nsecret\n").unwrap();
        assert!(ApiKeys::open(&path).unwrap().admits(&with("Api-Key secret")));
        assert!(!ApiKeys::open(&path).unwrap().admits(&with("Api-Key # one")));
        assert!(matches!(ApiKeys::open(&folder.path().join("none")), Err(ApiKeysError::Read { .. })));
    }
}
