//! One robot's connection.
//!
//! Invariants:
//! - *in-order*: every observation is answered once, in the order in which observations came;
//! - *stays-open*: whatever an observation holds, a refusal is a text frame and the connection goes on. It ends when the
//!   protocol is broken, when the robot does not read or is silent for too long, and when the server stops.
//!
//! Frames are read and pings answered while observations are computed.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Error;
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite;

use super::Answer;
use super::observation::UNNAMED;
use crate::failure::Failure;
use crate::serving::{Caller, Format, Serving};
use crate::telemetry::metrics::Level;
use crate::telemetry::traces::TraceContext;
use crate::wire::write_msgpack;

/// Observations of one connection that may be unanswered; robots send one at a time.
const UNANSWERED: usize = 64;

/// Time to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Connections so far, to name robots that do not name themselves.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// An observation that is answered, or not.
struct Answered {
    arrived: Instant,
    /// Bytes of its message.
    bytes: usize,
    answer: Result<Answer, Failure>,
}

/// Why a connection ends.
enum End {
    /// The robot is gone.
    Gone,
    /// The robot says goodbye.
    Left,
    /// It is told why.
    Close(u16, String),
}

struct Session {
    serving: Arc<Serving>,
    socket: WebSocket,
    caller: Arc<Caller>,
    answers: FuturesOrdered<BoxFuture<'static, Answered>>,
    /// Bytes of the messages that are unanswered.
    unanswered_bytes: usize,
    /// When something was last heard of the robot.
    heard: Instant,
    /// How long the last answer took, sending included.
    previous: Option<Duration>,
}

/// Serves a robot until it leaves or the server stops.
pub(crate) async fn session(socket: WebSocket, serving: Arc<Serving>) {
    let name = format!("{UNNAMED}{}", CONNECTIONS.fetch_add(1, Ordering::Relaxed));
    tracing::info!(robot = name, "robot connected");
    let _counted = Counted::new(&serving.metrics.sessions);
    let caller =
        Caller { name: Some(name.as_str().into()), memory: Some(Mutex::default()), ..Caller::default() };
    let mut session = Session {
        socket,
        caller: Arc::new(caller),
        answers: FuturesOrdered::new(),
        unanswered_bytes: 0,
        heard: Instant::now(),
        previous: None,
        serving: Arc::clone(&serving),
    };
    let Err(end) = session.run().await;
    match end {
        End::Gone => tracing::info!(robot = name, "robot disconnected"),
        End::Left => {
            tracing::info!(robot = name, "robot left");
            // Reading once more sends the goodbye back.
            let _ = timeout(GOODBYE, session.socket.next()).await;
        }
        End::Close(code, reason) => {
            tracing::info!(robot = name, code, reason, "connection closed");
            // The robot may not be listening any more.
            let _ = timeout(GOODBYE, session.close(code, reason.into())).await;
        }
    }
}

impl Session {
    /// Everything until the end.
    async fn run(&mut self) -> Result<Infallible, End> {
        let serving = Arc::clone(&self.serving);
        let pause = serving.config.server.limits.idle() / 3;
        let mut pings = interval_at(Instant::now() + pause, pause);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut greeted, mut stopping) = (false, false);
        loop {
            if stopping && self.answers.is_empty() {
                return Err(shutting_down());
            }
            tokio::select! {
                biased;
                () = serving.abandon.cancelled() => return Err(shutting_down()),
                () = serving.stop.cancelled(), if !stopping => stopping = true,
                policy = serving.loaded(), if !greeted => {
                    greeted = true;
                    self.send(Message::Binary(policy.greeting.clone())).await?;
                }
                // The metadata is the first frame.
                Some(answered) = self.answers.next(), if (greeted || stopping) && !self.answers.is_empty() => {
                    self.answer(answered).await?;
                }
                frame = self.socket.next() => self.frame(frame)?,
                _ = pings.tick() => self.ping().await?,
            }
        }
    }

    /// Says why, and reads what was on its way: a connection that is dropped with something unread takes the reason back.
    async fn close(&mut self, code: u16, reason: Utf8Bytes) {
        if self.socket.send(Message::Close(Some(CloseFrame { code, reason }))).await.is_ok() {
            while let Some(Ok(_)) = self.socket.next().await {}
        }
    }

    /// Asks whether the robot is still there.
    async fn ping(&mut self) -> Result<(), End> {
        let idle = self.serving.config.server.limits.idle();
        if self.heard.elapsed() > idle {
            tracing::info!(
                robot = self.caller.name.as_deref(),
                "nothing was heard of the robot for {idle:?}"
            );
            return Err(End::Gone);
        }
        self.send(Message::Ping(Bytes::new())).await
    }

    fn frame(&mut self, frame: Option<Result<Message, Error>>) -> Result<(), End> {
        self.heard = Instant::now();
        match frame {
            None => Err(End::Gone),
            Some(Err(error)) => Err(broken(error)),
            Some(Ok(Message::Close(_))) => Err(End::Left),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(_)) if self.answers.len() == UNANSWERED => {
                let reason = format!("more than {UNANSWERED} observations without reading an answer");
                Err(End::Close(close_code::POLICY, reason))
            }
            Some(Ok(Message::Binary(message))) => self.observation(message),
            Some(Ok(Message::Text(_))) => {
                let answer = Err(Failure::TextFrame);
                self.serving.metrics.record(&answer, Duration::ZERO);
                let answered = Answered { arrived: Instant::now(), bytes: 0, answer };
                self.answers.push_back(Box::pin(std::future::ready(answered)));
                Ok(())
            }
        }
    }

    /// Begins to answer an observation.
    fn observation(&mut self, message: Bytes) -> Result<(), End> {
        let bytes = message.len();
        self.unanswered_bytes += bytes;
        let most = 2 * self.serving.config.server.limits.message_bytes;
        if self.unanswered_bytes > most {
            let reason = format!("more than {most} bytes of observations without reading an answer");
            return Err(End::Close(close_code::POLICY, reason));
        }
        let (serving, caller, arrived) =
            (Arc::clone(&self.serving), Arc::clone(&self.caller), Instant::now());
        self.answers.push_back(Box::pin(async move {
            tokio::select! {
                _ = serving.loaded() => {}
                () = serving.stop.cancelled() => {}
            }
            let mut context = TraceContext::new(None, None);
            let answer = serving.answer(message, Format::Msgpack, &caller, "observation", &mut context).await;
            Answered { arrived, bytes, answer }
        }));
        Ok(())
    }

    async fn answer(&mut self, answered: Answered) -> Result<(), End> {
        let Answered { arrived, bytes, answer } = answered;
        self.unanswered_bytes -= bytes;
        let message = match &answer {
            Ok(answer) => Message::Binary(write_msgpack(&answer.value(self.previous)).into()),
            Err(failure) => Message::Text(failure.to_string().into()),
        };
        self.send(message).await?;
        self.previous = Some(arrived.elapsed());
        Ok(())
    }

    /// Sends a frame to a robot that reads.
    async fn send(&mut self, message: Message) -> Result<(), End> {
        let abandon = self.serving.abandon.clone();
        // The stream itself ends when nothing is read for too long.
        tokio::select! {
            sent = self.socket.send(message) => sent.map_err(|_| End::Gone),
            () = abandon.cancelled() => Err(shutting_down()),
        }
    }
}

fn shutting_down() -> End {
    End::Close(close_code::AWAY, "the server is shutting down".into())
}

/// A session that is counted as long as it lasts.
struct Counted(Level);

impl Counted {
    fn new(level: &Level) -> Self {
        level.inc();
        Self(level.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a robot is told that breaks the protocol.
fn broken(error: Error) -> End {
    let error = error.into_inner();
    match error.downcast_ref::<tungstenite::Error>() {
        Some(tungstenite::Error::Capacity(reason)) => End::Close(close_code::SIZE, reason.to_string()),
        Some(tungstenite::Error::Utf8(reason)) => End::Close(close_code::INVALID, reason.clone()),
        Some(tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        )) => End::Gone,
        Some(tungstenite::Error::Protocol(reason)) => End::Close(close_code::PROTOCOL, reason.to_string()),
        _ => End::Gone,
    }
}
