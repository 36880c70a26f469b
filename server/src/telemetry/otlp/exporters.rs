//! Exporters as the settings say.

use std::error::Error;
use std::sync::Arc;
use std::thread;

use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::metrics::Temporality;
use reqwest::blocking::Client;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::{OtlpError, Protocol, Settings};

impl Settings {
    /// Sends spans.
    pub(super) fn spans(&self) -> Result<SpanExporter, OtlpError> {
        let builder = SpanExporter::builder();
        let exporter = match self.protocol {
            Protocol::Grpc => self.grpc(builder.with_tonic())?.build(),
            Protocol::Http => self.http(builder.with_http())?.build(),
        };
        exporter.map_err(|source| OtlpError::Exporter { signal: self.signal.name(), source })
    }

    /// Sends metrics.
    pub(super) fn metrics(&self, temporality: Temporality) -> Result<MetricExporter, OtlpError> {
        let builder = MetricExporter::builder().with_temporality(temporality);
        let exporter = match self.protocol {
            Protocol::Grpc => self.grpc(builder.with_tonic())?.build(),
            Protocol::Http => self.http(builder.with_http())?.build(),
        };
        exporter.map_err(|source| OtlpError::Exporter { signal: self.signal.name(), source })
    }

    fn grpc<B: WithExportConfig + WithTonicConfig>(&self, builder: B) -> Result<B, OtlpError> {
        let metadata = MetadataMap::from_headers(self.headers.iter().cloned().collect());
        let mut builder = builder
            .with_endpoint(self.endpoint.to_string())
            .with_timeout(self.timeout)
            .with_metadata(metadata);
        if self.endpoint.scheme_str() == Some("https") {
            let mut tls = ClientTlsConfig::new();
            tls = match self.pem()? {
                Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                None => tls.with_webpki_roots(),
            };
            builder = builder.with_tls_config(tls);
        }
        Ok(builder)
    }

    fn http<B: WithExportConfig + WithHttpConfig>(&self, builder: B) -> Result<B, OtlpError> {
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        Ok(builder
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(self.endpoint.to_string())
            .with_timeout(self.timeout)
            .with_headers(headers.collect())
            .with_http_client(self.client()?))
    }

    /// A client that blocks the thread of its exporter.
    fn client(&self) -> Result<Client, OtlpError> {
        let (tls, timeout) = (self.tls()?, self.timeout);
        let fails = |reason: String| OtlpError::Client { signal: self.signal.name(), reason };
        // It may not be made on an async thread.
        let made =
            thread::spawn(move || Client::builder().tls_backend_preconfigured(tls).timeout(timeout).build());
        let made = made.join().map_err(|_| fails("making it was interrupted".into()))?;
        made.map_err(|error| fails(error.to_string()))
    }

    fn tls(&self) -> Result<ClientConfig, OtlpError> {
        let mut roots = RootCertStore::empty();
        match self.pem()? {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|error| self.unfit(error))?;
                    roots.add(certificate).map_err(|error| self.unfit(error))?;
                }
            }
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| OtlpError::Client { signal: self.signal.name(), reason: error.to_string() })?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }

    /// The certificates of whoever vouches for the collector, at least one; none if the public authorities do.
    fn pem(&self) -> Result<Option<Vec<u8>>, OtlpError> {
        let Some((_, path)) = &self.certificates else { return Ok(None) };
        let pem = std::fs::read(path).map_err(|error| self.unfit(error))?;
        match CertificateDer::pem_slice_iter(&pem).next() {
            Some(Ok(_)) => Ok(Some(pem)),
            Some(Err(error)) => Err(self.unfit(error)),
            None => Err(self.unfit("it holds no certificate")),
        }
    }

    fn unfit(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> OtlpError {
        let (variable, path) = self.certificates.clone().unwrap_or_default();
        OtlpError::Certificates { variable, path, source: source.into() }
    }
}
