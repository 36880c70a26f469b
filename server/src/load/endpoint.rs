//! Where the server is, and how to reach it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri};

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    path: String,
    secure: bool,
}

/// An address that cannot be one of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is no address at all.
    #[error("expected an address such as ws://127.0.0.1:8000: {0}")]
    Form(String),
    /// Another protocol.
    #[error("the protocol `{0}` is not spoken: expected ws, wss, http or https")]
    Scheme(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// `http` is read as `ws`, `https` as `wss`, and no protocol as `ws`.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let text = if text.contains("://") { text.to_owned() } else { format!("ws://{text}") };
        let uri: Uri = text.parse().map_err(|error| EndpointError::Form(format!("{error}")))?;
        let secure = match uri.scheme_str() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            other => return Err(EndpointError::Scheme(other.unwrap_or_default().into())),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let address = authority.rsplit('@').next().unwrap_or_default();
        let host = uri.host().unwrap_or_default();
        let port = match address.strip_prefix(host).and_then(|port| port.strip_prefix(':')) {
            Some(port) => port.parse().map_err(|_| EndpointError::Form(format!("`{port}` is no port")))?,
            None if secure => 443,
            None => 80,
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(EndpointError::Form("it has no host".into()));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { host: host.into(), port, path: path.into(), secure })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, path, secure } = self;
        let scheme = if *secure { "wss" } else { "ws" };
        let path = if path == "/" { "" } else { path };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}{path}")
        } else {
            write!(f, "{scheme}://{host}:{port}{path}")
        }
    }
}

impl Endpoint {
    /// Host and port.
    pub(super) fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

/// How every robot connects.
#[derive(Clone)]
pub struct Access {
    pub(super) endpoint: Endpoint,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) timeout: Duration,
}

/// Key or certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The key cannot stand in a header.
    #[error("the API key holds letters that cannot be sent in a header")]
    Key,
    /// Certificates are of no use without encryption.
    #[error("the certificates of {} are for wss:// addresses, and {endpoint} is not encrypted", path.display())]
    NotSecure {
        /// The file.
        path: PathBuf,
        /// The address.
        endpoint: Endpoint,
    },
    /// The file has no certificates that can be used.
    #[error("cannot read certificates from {}: {reason}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No certificate is for such a host.
    #[error("`{0}` is no host that a certificate could name")]
    Host(String),
    /// The encryption cannot be set up.
    #[error("cannot set up encryption: {0}")]
    Tls(#[from] rustls::Error),
}

impl Access {
    /// Access to a server within `timeout`, by a key if it asks for one. Certificates of a `wss` server are checked against
    /// those of the PEM file `authorities`, or against the public ones.
    ///
    /// # Errors
    /// When key, host or certificates cannot be used.
    pub fn new(
        endpoint: Endpoint,
        key: Option<&str>,
        authorities: Option<&Path>,
        timeout: Duration,
    ) -> Result<Self, AccessError> {
        let authorization = key.map(authorization).transpose()?;
        let tls = match (endpoint.secure, authorities) {
            (false, Some(path)) => {
                return Err(AccessError::NotSecure { path: path.into(), endpoint });
            }
            (false, None) => None,
            (true, authorities) => {
                let name = ServerName::try_from(endpoint.host.clone())
                    .map_err(|_| AccessError::Host(endpoint.host.clone()))?;
                Some((connector(authorities)?, name))
            }
        };
        Ok(Self { endpoint, authorization, tls, timeout })
    }
}

fn authorization(key: &str) -> Result<HeaderValue, AccessError> {
    let mut header = HeaderValue::from_str(&format!("Api-Key {key}")).map_err(|_| AccessError::Key)?;
    header.set_sensitive(true);
    Ok(header)
}

fn connector(authorities: Option<&Path>) -> Result<TlsConnector, AccessError> {
    let roots = match authorities {
        Some(path) => {
            read_roots(path).map_err(|reason| AccessError::Certificates { path: path.into(), reason })?
        }
        None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    };
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("it holds no certificate in PEM form".into()) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> String {
        text.parse::<Endpoint>().unwrap().to_string()
    }

    #[test]
    fn addresses_are_read_leniently() {
        assert_eq!(endpoint("ws://127.0.0.1:8000"), "ws://127.0.0.1:8000");
        assert_eq!(endpoint("http://robots.example/pi05?fast=1"), "ws://robots.example:80/pi05?fast=1");
        assert_eq!(endpoint("https://robots.example"), "wss://robots.example:443");
        assert_eq!(endpoint("localhost:8000"), "ws://localhost:8000");
        assert_eq!(endpoint("wss://[::1]:9000/"), "wss://[::1]:9000");
        assert_eq!(endpoint("ws://user:secret@host:1"), "ws://host:1", "no password is shown");
        assert_eq!("ws://[::1]:9000".parse::<Endpoint>().unwrap().address(), ("::1", 9000));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let wrong = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert_eq!(wrong("ftp://host"), EndpointError::Scheme("ftp".into()));
        assert!(matches!(wrong("ws://"), EndpointError::Form(_)));
        assert!(matches!(wrong("ws://host:80000"), EndpointError::Form(_)));
    }

    #[test]
    fn keys_and_certificates_are_checked_before_anything_runs() {
        let access = |url: &str, key, file: Option<&Path>| {
            Access::new(url.parse().unwrap(), key, file, Duration::from_secs(1)).map(|_| ()).unwrap_err()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = Some(file.path());
        assert!(matches!(access("ws://host", Some("a\nb"), None), AccessError::Key));
        assert!(matches!(access("ws://host", None, path), AccessError::NotSecure { .. }));
        let empty = access("wss://host", None, path).to_string();
        assert!(empty.contains("no certificate in PEM form"), "{empty}");
        let absent = access("wss://host", None, Some(Path::new("absent.pem"))).to_string();
        assert!(absent.contains("absent.pem"), "{absent}");
    }
}
