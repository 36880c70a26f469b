//! Runs against a server that does what a script says.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::{WebSocketStream, accept_async, accept_hdr_async};

use super::*;
use crate::wire::{Array, Map, Value, read_msgpack, write_msgpack};

const HOUR: Duration = Duration::from_secs(3600);

/// What the server does with an observation.
#[derive(Clone, Copy, PartialEq)]
enum Act {
    Answer,
    Refuse,
    Misshape,
    /// Ends the connection instead of answering.
    Drop,
    /// Answers and ends the connection.
    Leave,
    /// Never answers, and says so.
    Hold,
    /// Answers, sends a ping, and says when it is answered.
    Ping,
}

/// A server that treats observations by their numbers, and connections all the same.
struct Fake {
    script: Box<dyn Fn(usize) -> Act + Send + Sync>,
    metadata: Value<'static>,
    observations: AtomicUsize,
    connections: AtomicUsize,
    /// Some moment of which the script tells.
    moment: Notify,
}

impl Fake {
    fn new(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        Self {
            script: Box::new(script),
            metadata: Value::map([]),
            observations: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            moment: Notify::new(),
        }
    }

    /// Serves, and says where.
    async fn start(self) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let fake = Arc::new(self);
        let server = Arc::clone(&fake);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&server);
                tokio::spawn(async move { server.serve(accept_async(stream).await.unwrap()).await });
            }
        });
        (fake, url)
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut socket: WebSocketStream<S>) {
        if self.connections.fetch_add(1, SeqCst) == 1 {
            self.moment.notify_one();
        }
        socket.send(Message::binary(write_msgpack(&self.metadata))).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Pong(_) => {
                    self.moment.notify_one();
                    continue;
                }
                _ => continue,
            };
            assert!(matches!(read_msgpack(&bytes), Ok(Value::Map(_))), "observations are maps");
            let number = self.observations.fetch_add(1, SeqCst);
            let reply = match (self.script)(number) {
                Act::Answer | Act::Leave | Act::Ping => Message::binary(answer(&[2, 3])),
                Act::Misshape => Message::binary(answer(&[3, 2])),
                Act::Refuse => Message::text(format!("{number} observations are too many")),
                Act::Drop => return,
                Act::Hold => {
                    self.moment.notify_one();
                    continue;
                }
            };
            socket.send(reply).await.unwrap();
            match (self.script)(number) {
                Act::Leave => return,
                Act::Ping => socket.send(Message::Ping(vec![1].into())).await.unwrap(),
                _ => {}
            }
        }
    }
}

fn answer(shape: &[usize]) -> Vec<u8> {
    let times = |entries: &[(&'static str, f64)]| {
        Value::map(entries.iter().map(|(key, time)| (*key, Value::Float(*time))))
    };
    write_msgpack(&Value::map([
        ("actions", Value::Array(Array::of_f32(shape, &[0.5; 6]).unwrap())),
        ("server_timing", times(&[("infer_ms", 9.0)])),
        ("timing", times(&[("vision_ms", 1.0), ("prefix_ms", 2.0), ("denoise_ms", 4.0), ("total_ms", 8.0)])),
    ]))
}

/// `requests` observations of one robot, each as soon as the one before is answered.
fn plan(url: &str, requests: u64) -> Plan {
    let content = Content {
        profile: None,
        image_side: 4,
        prompt: "fold the towel".into(),
        steps: None,
        deadline: None,
        seed: 0,
    };
    Plan {
        requests: Some(requests),
        duration: HOUR,
        grace: HOUR,
        pause: Duration::ZERO,
        ..Plan::new(access(url, None, None), content)
    }
}

fn access(url: &str, key: Option<&str>, authorities: Option<&Path>) -> Access {
    Access::new(url.parse().unwrap(), key, authorities, HOUR).unwrap()
}

async fn report(plan: Plan) -> Result<LoadReport, LoadError> {
    run(plan, Arc::default(), std::future::pending()).await
}

fn reason(outcome: Result<LoadReport, LoadError>) -> String {
    match outcome {
        Err(LoadError::Unreachable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn everything_that_is_sent_is_counted_once() {
    let script = |number| match number {
        10 => Act::Drop,
        11 => Act::Misshape,
        number if number % 3 == 2 => Act::Refuse,
        _ => Act::Answer,
    };
    let (_, url) = Fake::new(script).start().await;
    let report = report(plan(&url, 30)).await.unwrap();
    let expected = Counts { sent: 30, answered: 19, refused: 9, bad: 1, unanswered: 1, late: 0, skipped: 0 };
    assert_eq!(report.counts, expected);
    let Connections { opened, lost, failed, .. } = report.connections;
    assert_eq!((opened, lost, failed), (2, 1, 0));
    assert_eq!(report.end_to_end_ms.len(), 19);
    assert_eq!(report.refusals, [Group { message: "# observations are too many".into(), count: 9 }]);
    assert!(report.bad_answers[0].message.contains("shape"), "{:?}", report.bad_answers);
    let server = report.latency_ms;
    let highest = [server.model, server.pipeline, server.engine].map(|times| times.unwrap().max);
    assert_eq!(highest, [7.0, 8.0, 9.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn robots_share_the_number_of_observations() {
    let script = |number| if number % 3 == 2 { Act::Refuse } else { Act::Answer };
    let (fake, url) = Fake::new(script).start().await;
    let robots = NonZeroUsize::new(5).unwrap();
    let report = report(Plan { robots, ..plan(&url, 60) }).await.unwrap();
    let Counts { sent, answered, refused, .. } = report.counts;
    assert_eq!((sent, answered, refused), (60, 40, 20));
    assert_eq!((report.connections.opened, report.connections.lost), (5, 0));
    assert_eq!(fake.observations.load(SeqCst), 60);
}

#[tokio::test]
async fn answers_after_the_deadline_are_late() {
    let (_, url) = Fake::new(|_| Act::Answer).start().await;
    for (deadline, late) in [(Duration::from_nanos(1), 4), (HOUR, 0)] {
        let mut plan = plan(&url, 4);
        plan.content.deadline = Some(deadline);
        let counts = report(plan).await.unwrap().counts;
        assert_eq!((counts.answered, counts.late), (4, late), "{deadline:?}");
    }
}

#[tokio::test]
async fn turns_that_come_before_the_answer_are_skipped() {
    let (_, url) = Fake::new(|_| Act::Answer).start().await;
    let rate = Some(Rate::new(1e6).unwrap());
    let counts = report(Plan { rate, ..plan(&url, 5) }).await.unwrap().counts;
    assert_eq!((counts.sent, counts.answered), (5, 5));
    assert!(counts.skipped > 0, "no answer comes within a microsecond");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_turn_is_taken_or_skipped() {
    let (_, url) = Fake::new(|number| if number == 4 { Act::Drop } else { Act::Answer }).start().await;
    let plan = Plan {
        rate: Some(Rate::new(1000.0).unwrap()),
        robots: NonZeroUsize::new(2).unwrap(),
        duration: Duration::from_millis(50),
        requests: None,
        ..plan(&url, 0)
    };
    let counts = report(plan).await.unwrap().counts;
    assert_eq!(counts.sent + counts.skipped, 100, "{counts:?}");
    assert_eq!(counts.sent, counts.answered + counts.unanswered);
}

#[tokio::test]
async fn a_run_that_is_stopped_reports_what_was_under_way() {
    let (fake, url) = Fake::new(|number| if number < 2 { Act::Answer } else { Act::Hold }).start().await;
    let report = run(plan(&url, 100), Arc::default(), fake.moment.notified()).await.unwrap();
    let Counts { sent, answered, unanswered, .. } = report.counts;
    assert_eq!((sent, answered, unanswered), (3, 2, 1));
}

#[tokio::test]
async fn answers_are_not_waited_for_longer_than_the_grace() {
    let (_, url) = Fake::new(|_| Act::Hold).start().await;
    let counts = report(Plan { grace: Duration::from_millis(1), ..plan(&url, 1) }).await.unwrap().counts;
    assert_eq!((counts.sent, counts.answered, counts.unanswered), (1, 0, 1));
}

/// A robot that has sent one observation and will not send another for days.
fn idle(url: &str) -> Plan {
    Plan { rate: Some(Rate::new(1e-6).unwrap()), ..plan(url, 2) }
}

#[tokio::test]
async fn an_idle_robot_notices_that_its_connection_is_gone() {
    let (fake, url) = Fake::new(|_| Act::Leave).start().await;
    // The second connection is the moment.
    let report = run(idle(&url), Arc::default(), fake.moment.notified()).await.unwrap();
    assert_eq!((report.counts.answered, report.connections.lost), (1, 1));
}

#[tokio::test]
async fn an_idle_robot_answers_pings() {
    let (fake, url) = Fake::new(|_| Act::Ping).start().await;
    let report = run(idle(&url), Arc::default(), fake.moment.notified()).await.unwrap();
    assert_eq!((report.counts.answered, report.connections.lost), (1, 0));
}

#[tokio::test]
async fn the_robots_are_those_that_the_server_serves() {
    let ours = Value::map([("profile", Value::text("droid")), ("horizon", Value::Integer(2))]);
    let metadata = Value::map([("tensact", ours)]);
    let (_, url) = Fake { metadata, ..Fake::new(|_| Act::Answer) }.start().await;
    let report = report(plan(&url, 1)).await.unwrap();
    assert_eq!((report.load.profile.as_str(), report.server.horizon), ("droid", Some(2)));
}

#[tokio::test]
async fn nobody_who_can_connect_is_an_error_with_its_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    let reason = reason(report(plan(&url, 1)).await);
    assert!(reason.contains("cannot reach it"), "{reason}");
}

#[tokio::test]
async fn a_server_that_begins_with_a_refusal_is_quoted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut socket = accept_async(listener.accept().await.unwrap().0).await.unwrap();
        socket.send(Message::text("too many robots")).await.unwrap();
    });
    let reason = reason(report(plan(&url, 1)).await);
    assert!(reason.contains("too many robots"), "{reason}");
}

/// Serves one robot that has the key `secret`.
async fn guarded(stream: TcpStream, fake: &Fake) {
    #[allow(clippy::result_large_err)] // the callback's type is tungstenite's
    let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        let key = request.headers().get("authorization").and_then(|key| key.to_str().ok());
        if key == Some("Api-Key secret") {
            return Ok(response);
        }
        let mut refusal = ErrorResponse::new(Some("who are you?".into()));
        *refusal.status_mut() = StatusCode::UNAUTHORIZED;
        Err(refusal)
    };
    if let Ok(socket) = accept_hdr_async(stream, check).await {
        fake.serve(socket).await;
    }
}

#[tokio::test]
async fn the_key_opens_and_nothing_else_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let fake = Fake::new(|_| Act::Answer);
        while let Ok((stream, _)) = listener.accept().await {
            guarded(stream, &fake).await;
        }
    });
    let with = |key| Plan { access: access(&url, key, None), ..plan(&url, 1) };
    let refused = reason(report(with(None)).await);
    assert!(refused.contains("401 Unauthorized: who are you?"), "{refused}");
    assert_eq!(report(with(Some("secret"))).await.unwrap().counts.answered, 1);
}

/// The map that an observation is.
fn observation(message: &[u8]) -> Map<'_> {
    match read_msgpack(message).unwrap() {
        Value::Map(map) => map,
        other => panic!("{}", other.kind()),
    }
}

#[tokio::test]
async fn certificates_are_checked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://{}", listener.local_addr().unwrap());
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), own.cert.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let mut socket = accept_async(stream).await.unwrap();
            socket.send(Message::binary(write_msgpack(&Value::map([])))).await.unwrap();
            let Some(Ok(Message::Binary(message))) = socket.next().await else { continue };
            assert_eq!(observation(&message)["prompt"], Value::text("fold the towel"));
            socket.send(Message::binary(answer(&[2, 3]))).await.unwrap();
        }
    });
    let unknown = reason(report(plan(&url, 1)).await);
    assert!(unknown.contains("no encrypted connection"), "{unknown}");
    let trusted = Plan { access: access(&url, None, Some(file.path())), ..plan(&url, 1) };
    assert_eq!(report(trusted).await.unwrap().counts.answered, 1);
}
