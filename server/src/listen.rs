//! Connections: how many, from where, and under TLS or not.
//!
//! Invariant *nothing-behind*: a connection is counted as long as its stream exists, as a websocket too; when its client is
//! gone, so are stream, count and task.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::config::Limits;
use crate::serving::{Serving, locked};

/// Connections above the limit that are told so at a time; more are dropped.
const TOLD: usize = 64;

/// Longest head of a request, in bytes.
const HEAD_BYTES: usize = 64 << 10;

/// Pause after the operating system could not give a connection, as when it is out of file descriptors.
const BREATHER: Duration = Duration::from_millis(100);

/// Whether a connection is served.
#[derive(Debug, Clone)]
pub(crate) enum Admission {
    Admitted,
    /// It is told why not.
    Refused(Arc<str>),
}

/// The connections that are open.
#[derive(Default)]
pub(crate) struct Connections(Mutex<Open>);

#[derive(Default)]
struct Open {
    /// Those that are served, by address.
    served: HashMap<IpAddr, usize>,
    /// Those that are told that they are not.
    told: usize,
}

/// One open connection.
pub(crate) struct Seat {
    address: IpAddr,
    served: bool,
    serving: Arc<Serving>,
    connections: Arc<Connections>,
}

impl Connections {
    /// Whether none is open.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let open = locked(&self.0);
        open.served.is_empty() && open.told == 0
    }

    /// Counts a connection, and says whether it is served; `None` for one that is not even told.
    pub(crate) fn enter(
        self: &Arc<Self>,
        serving: &Arc<Serving>,
        address: IpAddr,
    ) -> Option<(Seat, Admission)> {
        let mut open = locked(&self.0);
        let all = open.served.values().sum();
        let here = open.served.get(&address).copied().unwrap_or(0);
        let admission = admission(&serving.config.server.limits, all, here);
        let served = matches!(admission, Admission::Admitted);
        if served {
            *open.served.entry(address).or_default() += 1;
        } else if open.told < TOLD {
            open.told += 1;
        } else {
            return None;
        }
        serving.metrics.connections.inc();
        let seat = Seat { address, served, serving: Arc::clone(serving), connections: Arc::clone(self) };
        Some((seat, admission))
    }
}

fn admission(limits: &Limits, all: usize, here: usize) -> Admission {
    let refused = |open: usize, most: usize, whose: &str| {
        Admission::Refused(format!("{open} connections {whose} are open, and at most {most} may be").into())
    };
    if all >= limits.connections {
        refused(all, limits.connections, "in all")
    } else if here >= limits.connections_per_address {
        refused(here, limits.connections_per_address, "from this address")
    } else {
        Admission::Admitted
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.serving.metrics.connections.dec();
        let mut open = locked(&self.connections.0);
        if !self.served {
            open.told -= 1;
        } else if let Entry::Occupied(mut here) = open.served.entry(self.address) {
            *here.get_mut() -= 1;
            if *here.get() == 0 {
                here.remove();
            }
        }
    }
}

/// Accepts connections until the server stops.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    serving: Arc<Serving>,
    router: Router,
) {
    let connections = Arc::new(Connections::default());
    loop {
        let accepted = tokio::select! {
            biased;
            () = serving.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some((seat, admission)) = connections.enter(&serving, peer.ip()) else {
                    serving.metrics.connection_refused();
                    continue;
                };
                if let Admission::Refused(reason) = &admission {
                    serving.metrics.connection_refused();
                    tracing::warn!(address = %peer.ip(), "connection refused: {reason}");
                }
                let router = router.clone().layer(Extension(admission));
                let secured = secured(stream, tls.clone(), seat, Arc::clone(&serving), router);
                serving.tasks.spawn(secured);
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}

async fn secured(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    seat: Seat,
    serving: Arc<Serving>,
    router: Router,
) {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return connection(stream, seat, serving, router).await };
    let handshake = timeout(serving.config.server.limits.header(), tls.accept(stream));
    let handshake = tokio::select! {
        handshake = handshake => handshake,
        () = serving.stop.cancelled() => return,
    };
    match handshake {
        Ok(Ok(stream)) => connection(stream, seat, serving, router).await,
        Ok(Err(error)) => tracing::info!(address = %seat.address, "no TLS: {error}"),
        Err(_) => tracing::info!(address = %seat.address, "the TLS handshake took too long"),
    }
}

/// Serves a connection until it ends; as a websocket it goes on elsewhere, with its seat.
pub(crate) async fn connection<S>(stream: S, seat: Seat, serving: Arc<Serving>, router: Router)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    // A client that does not read is not waited for.
    stream.set_write_timeout(Some(serving.config.server.limits.idle()));
    let stream = TokioIo::new(Seated { stream: Box::pin(stream), _seat: seat });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(serving.config.server.limits.header())
        .max_buf_size(HEAD_BYTES)
        .serve_connection(stream, TowerToHyperService::new(router))
        .with_upgrades();
    tokio::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            () = serving.abandon.cancelled() => return,
            () = serving.stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!("connection ended: {error}");
                }
                return;
            }
        }
    }
}

/// A stream that keeps its connection counted.
struct Seated<S> {
    stream: S,
    _seat: Seat,
}

impl<S: AsyncRead + Unpin> AsyncRead for Seated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Seated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("{}: {source}; expected PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The two do not belong together, or are of an unknown kind.
    #[error("certificate {} and key {} cannot be used: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// TLS with a certificate chain and its key, both PEM files.
pub(crate) fn tls(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let pem = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(cert).map_err(pem(cert))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(pem(cert))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(pem(key))?;
    let pair = |source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
