//! What telemetry costs: robots in a closed loop over loopback against an emulated Galaxy, with nothing that looks on, with the
//! spans of some or all requests sent to a collector that throws them away, and with a dashboard open. They take turns; shown are the medians,
//! and their ratio to that of nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::routing::any;
use cpu_time::ProcessTime;
use futures_util::{SinkExt as _, StreamExt as _};
use tensact::runtime::config::OPENPI_CAMERAS;
use tensact::topology::{Deployment, ModelSizes, Variant};
use tensact::{Options, Pipeline};
use tensact_server::config::Config;
use tensact_server::wire::{Array, Value, write_msgpack};
use tensact_server::{ApiKeys, Otlp, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

/// The Galaxy as `tensact plan` lays it out.
const DEPLOYMENT: &str = include_str!("../configs/galaxy-bh.toml");

/// Robots, each with one observation under way.
const ROBOTS: usize = 96;

/// How long each of them is measured at a time, and how often.
const MEASURED: Duration = Duration::from_secs(6);
const WARM_UP: Duration = Duration::from_secs(1);
const ROUNDS: usize = 5;

/// Pixels of a side: little, so that what looks on shows.
const SIDE: usize = 8;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Who looks on.
#[derive(Clone, Copy)]
enum Looks {
    Nobody,
    /// A collector that gets the spans of this share of all requests.
    Collector(&'static str),
    Dashboard,
}

const ALL: [(Looks, &str); 4] = [
    (Looks::Nobody, "nobody"),
    (Looks::Collector("0.1"), "OTLP, one in ten"),
    (Looks::Collector("1"), "OTLP, all requests"),
    (Looks::Dashboard, "a dashboard"),
];

/// What a measurement showed.
#[derive(Clone, Copy)]
struct Seen {
    per_second: f64,
    cpu_us: f64,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let collector = collector().await?;
    let mut seen = [const { Vec::new() }; ALL.len()];
    for _ in 0..ROUNDS {
        for ((looks, _), seen) in ALL.iter().zip(&mut seen) {
            seen.push(measure(*looks, &collector.address).await?);
        }
    }
    println!(
        "{ROBOTS} robots in a closed loop, three {SIDE}x{SIDE} images, emulated galaxy-bh; medians of {ROUNDS}"
    );
    println!(
        "{:>20} {:>10} {:>8} {:>16} {:>8}",
        "who looks on", "answers/s", "ratio", "CPU µs/answer", "ratio"
    );
    let median = |seen: &[Seen], of: fn(&Seen) -> f64| {
        let mut values: Vec<f64> = seen.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let rate = |seen: &[Seen]| median(seen, |seen| seen.per_second);
    let cpu = |seen: &[Seen]| median(seen, |seen| seen.cpu_us);
    for ((_, name), now) in ALL.iter().zip(&seen) {
        println!(
            "{name:>20} {:>10.1} {:>8.3} {:>16.0} {:>8.3}",
            rate(now),
            rate(now) / rate(&seen[0]),
            cpu(now),
            cpu(now) / cpu(&seen[0])
        );
    }
    println!("the collector took {} bytes", collector.bytes.load(Ordering::Relaxed));
    Ok(())
}

async fn measure(looks: Looks, collector: &str) -> Result<Seen, Error> {
    let deployment = Deployment::parse("galaxy-bh.toml", DEPLOYMENT)?;
    let pipeline =
        Pipeline::emulated(&deployment, &ModelSizes::base(Variant::Pi05), &Options::default()).await?;
    let mut config = Config::default();
    config.server.port = 0;
    let otlp = match looks {
        Looks::Collector(share) => Otlp::from_variables(&|name| match name {
            "OTEL_TRACES_SAMPLER" => Some("traceidratio".into()),
            "OTEL_TRACES_SAMPLER_ARG" => Some(share.to_owned()),
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(collector.to_owned()),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => Some("http/protobuf".into()),
            _ => None,
        })?,
        Looks::Nobody | Looks::Dashboard => Otlp::default(),
    };
    let server = Server::bind(config, ApiKeys::default(), otlp).await?;
    let (address, handle) = (server.address(), server.handle());
    handle.load(pipeline);
    let serving = tokio::spawn(server.serve());
    if matches!(looks, Looks::Dashboard) {
        let mut page = TcpStream::connect(address).await?;
        page.write_all(b"GET /dashboard/events HTTP/1.1\r\nhost: bench\r\n\r\n").await?;
        tokio::spawn(async move {
            let mut part = vec![0; 1 << 16];
            while page.read(&mut part).await.is_ok_and(|read| read > 0) {}
        });
    }
    let (answers, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut robots = JoinSet::new();
    for robot in 0..ROBOTS {
        let stream = TcpStream::connect(address).await?;
        robots.spawn(drive(stream, robot, Arc::clone(&answers), Arc::clone(&stop)));
    }
    tokio::time::sleep(WARM_UP).await;
    let (before, cpu, began) = (answers.load(Ordering::Relaxed), ProcessTime::now(), Instant::now());
    tokio::time::sleep(MEASURED).await;
    let (took, cpu) = (began.elapsed(), cpu.elapsed());
    let answered = (answers.load(Ordering::Relaxed) - before) as f64;
    stop.store(true, Ordering::Relaxed);
    while let Some(robot) = robots.join_next().await {
        robot??;
    }
    handle.stop();
    serving.await?;
    Ok(Seen { per_second: answered / took.as_secs_f64(), cpu_us: cpu.as_secs_f64() * 1e6 / answered })
}

/// A robot that asks again as soon as it is answered.
async fn drive(
    stream: TcpStream,
    robot: usize,
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<(), Error> {
    let (mut socket, _) = client_async("ws://server/", stream).await?;
    // The metadata.
    socket.next().await;
    let pixels = [robot as u8; SIDE * SIDE * 3];
    let image = || Array::of_u8(&[SIDE, SIDE, 3], &pixels[..]).map_or(Value::Nil, Value::Array);
    let state = Array::of_f32(&[8], &[0.0; 8]).map_or(Value::Nil, Value::Array);
    let mut entries = vec![("state", state), ("prompt", Value::text("go"))];
    entries.extend(OPENPI_CAMERAS.map(|camera| (camera, image())));
    let message = write_msgpack(&Value::map(entries));
    while !stop.load(Ordering::Relaxed) {
        socket.send(Message::Binary(message.clone().into())).await?;
        loop {
            match socket.next().await.transpose()? {
                Some(Message::Binary(_)) => break,
                Some(Message::Ping(_)) => {}
                other => return Err(format!("expected an answer, not {other:?}").into()),
            }
        }
        answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Takes everything and keeps nothing.
struct Collector {
    address: String,
    bytes: Arc<AtomicU64>,
}

async fn collector() -> Result<Collector, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (address, bytes) = (format!("http://{}", listener.local_addr()?), Arc::new(AtomicU64::new(0)));
    let taken = Arc::clone(&bytes);
    let take = any(async move |body: Bytes| {
        taken.fetch_add(body.len() as u64, Ordering::Relaxed);
    });
    let router = Router::new().fallback_service(take.layer(DefaultBodyLimit::disable()));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(Collector { address, bytes })
}
