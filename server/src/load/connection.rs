//! One robot's connection, as `openpi-client` keeps it.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::answer::Metadata;
use super::endpoint::Access;

/// Longest message that is read.
const MESSAGE_MAX: usize = 64 << 20;

/// Time between pings, and until a connection on which none is answered counts as lost.
const PING: Duration = Duration::from_secs(20);

/// Time to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a robot sends and hears through.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why a robot could not connect.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens, or the network does not lead there.
    #[error("cannot reach it: {0}")]
    Unreachable(std::io::Error),
    /// The encryption was not agreed on, often for a certificate that nobody vouches for.
    #[error("no encrypted connection: {0}")]
    Tls(std::io::Error),
    /// The server answers, but not with a websocket.
    #[error("it refuses the websocket: {0}")]
    Handshake(String),
    /// The server said something else than its metadata.
    #[error("it does not begin as a policy server does: {0}")]
    Metadata(String),
    /// It took too long.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("closed by the server{0}")]
    Closed(String),
    #[error("broken: {0}")]
    Broken(#[from] Error),
    #[error("no answer to a ping within {} s", PING.as_secs())]
    Silent,
    #[error("the server sent a message that nothing was asked for")]
    Unasked,
}

/// What comes back for an observation.
#[derive(Debug)]
pub(super) enum Reply {
    Answer(Bytes),
    Refusal(String),
}

/// An open connection, on which the server has introduced itself.
pub(super) struct Connection {
    pub(super) metadata: Metadata,
    socket: WebSocketStream<Box<dyn Stream>>,
    pings: Interval,
    ping_unanswered: bool,
}

impl Connection {
    pub(super) async fn open(access: &Access) -> Result<Self, ConnectError> {
        let late = |_| ConnectError::TimedOut(access.timeout);
        let opening = async { Self::introduced(handshake(access).await?).await };
        timeout(access.timeout, opening).await.map_err(late)?
    }

    /// Waits until the server has introduced itself.
    async fn introduced(socket: WebSocketStream<Box<dyn Stream>>) -> Result<Self, ConnectError> {
        let mut pings = interval_at(Instant::now() + PING, PING);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = Self { metadata: Metadata::default(), socket, pings, ping_unanswered: false };
        connection.metadata = match connection.reply().await {
            Ok(Reply::Answer(message)) => Metadata::read(&message).map_err(ConnectError::Metadata)?,
            Ok(Reply::Refusal(text)) => return Err(ConnectError::Metadata(text)),
            Err(lost) => return Err(ConnectError::Metadata(lost.to_string())),
        };
        Ok(connection)
    }

    /// Sends an observation and waits for what comes back.
    pub(super) async fn ask(&mut self, observation: Vec<u8>) -> Result<Reply, Lost> {
        self.socket.send(Message::binary(observation)).await?;
        self.reply().await
    }

    /// Answers pings until the connection ends; nothing else should come.
    pub(super) async fn idle(&mut self) -> Lost {
        self.reply().await.map_or_else(|lost| lost, |_| Lost::Unasked)
    }

    /// The next message. Nothing is lost when the caller gives up waiting.
    async fn reply(&mut self) -> Result<Reply, Lost> {
        loop {
            tokio::select! {
                message = self.socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => return Ok(Reply::Answer(bytes)),
                    Some(Ok(Message::Text(text))) => return Ok(Reply::Refusal(text.as_str().into())),
                    Some(Ok(Message::Pong(_))) => self.ping_unanswered = false,
                    Some(Ok(Message::Close(Some(frame)))) => {
                        return Err(Lost::Closed(format!(" with code {}: {}", frame.code, frame.reason)));
                    }
                    Some(Ok(Message::Close(None))) | None => return Err(Lost::Closed(String::new())),
                    Some(Ok(Message::Ping(_) | Message::Frame(_))) => {}
                    Some(Err(error)) => return Err(error.into()),
                },
                _ = self.pings.tick() => {
                    if self.ping_unanswered {
                        return Err(Lost::Silent);
                    }
                    self.socket.send(Message::Ping(Bytes::new())).await?;
                    self.ping_unanswered = true;
                }
            }
        }
    }

    /// Says goodbye, if the server listens.
    pub(super) async fn close(mut self) {
        // Whether it was heard makes no difference.
        let _ = timeout(GOODBYE, self.socket.close(None)).await;
    }
}

async fn handshake(access: &Access) -> Result<WebSocketStream<Box<dyn Stream>>, ConnectError> {
    let stream = TcpStream::connect(access.endpoint.address()).await.map_err(ConnectError::Unreachable)?;
    stream.set_nodelay(true).map_err(ConnectError::Unreachable)?;
    let stream: Box<dyn Stream> = match &access.tls {
        Some((tls, name)) => Box::new(tls.connect(name.clone(), stream).await.map_err(ConnectError::Tls)?),
        None => Box::new(stream),
    };
    let mut request = access.endpoint.to_string().into_client_request().map_err(refused)?;
    if let Some(authorization) = &access.authorization {
        request.headers_mut().insert(AUTHORIZATION, authorization.clone());
    }
    let limits =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    let (socket, _) = client_async_with_config(request, stream, Some(limits)).await.map_err(refused)?;
    Ok(socket)
}

fn refused(error: Error) -> ConnectError {
    ConnectError::Handshake(match error {
        Error::Http(response) => status(&response),
        error => error.to_string(),
    })
}

/// The status, and what the server says about it.
fn status(response: &Response) -> String {
    let body = response.body().as_deref().unwrap_or_default();
    match String::from_utf8_lossy(body).trim() {
        "" => response.status().to_string(),
        text => format!("{}: {text}", response.status()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;
    use crate::wire::{Value, write_msgpack};

    /// Whether a connection whose server does, or does not, read what it is sent is still there after so many seconds.
    async fn lasts(seconds: u64, server_reads: bool) -> bool {
        let (ours, theirs) = duplex(1 << 16);
        let stream: Box<dyn Stream> = Box::new(ours);
        let client = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        let mut server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        server.send(Message::binary(write_msgpack(&Value::map([])))).await.unwrap();
        let mut connection = Connection::introduced(client).await.unwrap();
        let served = async {
            while server_reads && server.next().await.is_some() {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            lost = connection.idle() => {
                assert!(matches!(lost, Lost::Silent), "{lost}");
                false
            }
            () = served => false,
            () = tokio::time::sleep(Duration::from_secs(seconds)) => true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_no_pings_is_lost() {
        assert!(lasts(39, false).await);
        assert!(!lasts(41, false).await);
        assert!(lasts(3600, true).await);
    }
}
