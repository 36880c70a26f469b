//! What the wire and the server cost on top of the pipeline: robots that send every other observation over loopback and
//! hand every other to the pipeline in this process, to an emulated Galaxy. Images need no resizing and the board is not
//! busy, so that the difference is what the server adds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use tensact::runtime::config::OPENPI_CAMERAS;
use tensact::runtime::observation::{Image, Layout, Observation};
use tensact::simulate::Latencies;
use tensact::topology::{Deployment, ModelSizes, Variant};
use tensact::{Options, Pipeline, Request};
use tensact_server::config::Config;
use tensact_server::wire::{Array, Value, read_msgpack, write_msgpack};
use tensact_server::{ApiKeys, Otlp, Server};
use tokio::net::TcpStream;
use tokio::time::interval_at;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

const DEPLOYMENT: &str = "board = 'galaxy-bh'\ncheckpoint = 'pi05_base'\n[[pipeline]]\ncopies = '0..32'";

/// Observations in a second, of all robots together.
const RATE: u32 = 20;

/// Observations for each number of robots.
const OBSERVATIONS: u32 = 384;

/// Observations of a robot before its time is taken: buffers and windows of its connection grow to their size.
const WARM_UP: u32 = 8;

/// Pixels of a side; what the vision tower takes.
const SIDE: usize = 224;

type Socket = WebSocketStream<TcpStream>;
type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let deployment = Deployment::parse("galaxy", DEPLOYMENT)?;
    let sizes = ModelSizes::base(Variant::Pi05);
    let options = Options::default();
    let pipeline = || Pipeline::emulated(&deployment, &sizes, &options);
    let beside = Arc::new(pipeline().await?);
    let mut config = Config::default();
    config.server.port = 0;
    let server = Server::bind(config, ApiKeys::default(), Otlp::default()).await?;
    let (address, handle) = (server.address(), server.handle());
    handle.load(pipeline().await?);
    let serving = tokio::spawn(server.serve());

    println!(
        "three {SIDE}x{SIDE} cameras, {RATE} observations/s, emulated galaxy-bh; medians (90th percentiles) in ms"
    );
    println!("{:>6} {:>18} {:>18} {:>14}", "robots", "in process", "over loopback", "wire + server");
    for robots in [1, 4, 16, 64] {
        let mut running = Vec::new();
        for robot in 0..robots {
            let (mut socket, _) = client_async("ws://server/", TcpStream::connect(address).await?).await?;
            // The metadata.
            socket.next().await;
            running.push(tokio::spawn(drive(socket, Arc::clone(&beside), robot, robots)));
        }
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        for robot in running {
            let times = robot.await??;
            inside.extend(times.0);
            outside.extend(times.1);
        }
        let [inside, outside] = [inside, outside].map(Latencies::of);
        let show = |times: Latencies| format!("{:.2} ({:.2})", times.p50, times.p90);
        println!("{robots:>6} {:>18} {:>18} {:>14.2}", show(inside), show(outside), outside.p50 - inside.p50);
    }
    handle.stop();
    Ok(serving.await?)
}

/// One robot's observations: latencies in process and over the wire, in milliseconds.
async fn drive(
    mut socket: Socket,
    beside: Arc<Pipeline>,
    robot: u32,
    robots: u32,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let pause = Duration::from_secs(1) * robots / RATE;
    let mut ticks = interval_at(tokio::time::Instant::now() + pause * robot / robots, pause);
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for observation in 0..WARM_UP + OBSERVATIONS.div_ceil(robots) {
        ticks.tick().await;
        if observation == WARM_UP {
            inside.clear();
            outside.clear();
        }
        let pixels = vec![(robot + observation) as u8; SIDE * SIDE * 3];
        let began = Instant::now();
        if observation % 2 == 0 {
            let image = || Image::from_u8(Layout::Hwc, SIDE, SIDE, pixels.clone());
            let mut seen =
                Observation { state: vec![0.0; 8], prompt: Some("go".into()), ..Observation::default() };
            for camera in OPENPI_CAMERAS {
                seen.images.insert(camera.into(), image()?);
            }
            beside.infer(seen, Request::default()).await?;
            inside.push(began.elapsed().as_secs_f64() * 1e3);
        } else {
            let image = || Array::of_u8(&[SIDE, SIDE, 3], &pixels[..]).map_or(Value::Nil, Value::Array);
            let state = Array::of_f32(&[8], &[0.0; 8]).map_or(Value::Nil, Value::Array);
            let mut entries = vec![("state", state), ("prompt", Value::text("go"))];
            entries.extend(OPENPI_CAMERAS.map(|camera| (camera, image())));
            socket.send(Message::Binary(write_msgpack(&Value::map(entries)).into())).await?;
            read_msgpack(&answer(&mut socket).await?)?;
            outside.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok((inside, outside))
}

/// The next frame that is no ping.
async fn answer(socket: &mut Socket) -> Result<Vec<u8>, Error> {
    loop {
        match socket.next().await.transpose()? {
            Some(Message::Binary(answer)) => return Ok(answer.to_vec()),
            Some(Message::Ping(_)) => {}
            other => return Err(format!("expected an answer, not {other:?}").into()),
        }
    }
}
