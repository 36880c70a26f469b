//! A robot as openpi's client is one.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::Line;
use crate::wire::{Array, Value, read_msgpack, write_msgpack};

/// Side of the images, in pixels.
const SIDE: usize = 8;

pub(super) struct Robot {
    pub(super) socket: WebSocketStream<Line>,
    /// The first frame.
    pub(super) metadata: Vec<u8>,
}

/// What a robot was told instead of actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Refusal(String),
    Close(u16, String),
    Gone,
}

impl Robot {
    pub(super) async fn connect(stream: Line) -> Self {
        let (mut socket, _) = client_async("ws://test/", stream).await.unwrap();
        let Some(Ok(Message::Binary(metadata))) = socket.next().await else { panic!("no metadata") };
        Self { socket, metadata: metadata.to_vec() }
    }

    pub(super) async fn send(&mut self, message: Vec<u8>) {
        self.socket.send(Message::Binary(message.into())).await.unwrap();
    }

    /// Whatever comes next that is no ping, whole.
    pub(super) async fn receive(&mut self) -> Result<Vec<u8>, Told> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(answer))) => return Ok(answer.to_vec()),
                Some(Ok(Message::Text(text))) => return Err(Told::Refusal(text.to_string())),
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(Told::Close(frame.code.into(), frame.reason.to_string()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(Told::Gone),
            }
        }
    }

    pub(super) async fn ask(&mut self, observation: &Value<'_>) -> Result<Vec<f32>, Told> {
        self.send(write_msgpack(observation)).await;
        self.receive().await.map(|answer| actions(&answer))
    }
}

/// What a robot was refused with.
pub(super) fn refusal(told: Result<Vec<f32>, Told>) -> String {
    match told {
        Err(Told::Refusal(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// The actions of an answer.
pub(super) fn actions(answer: &[u8]) -> Vec<f32> {
    let Value::Map(mut answer) = read_msgpack(answer).unwrap() else { panic!("no map") };
    answer.remove("actions").unwrap().numbers().unwrap().1
}

/// A picture of one shade.
pub(crate) fn image(number: u32) -> Value<'static> {
    Value::Array(Array::of_u8(&[SIDE, SIDE, 3], vec![number as u8; SIDE * SIDE * 3]).unwrap())
}

/// An observation of the generic robot that differs from those of other numbers.
pub(crate) fn observation(number: u32) -> Value<'static> {
    Value::map([
        ("images/base", image(number)),
        ("state", Value::Array(Array::of_f32(&[8], &[number as f32; 8]).unwrap())),
        ("prompt", Value::text("pick up the red block")),
    ])
}

/// The observation with one more entry.
pub(crate) fn with(number: u32, key: &'static str, value: Value<'static>) -> Value<'static> {
    let Value::Map(mut map) = observation(number) else { unreachable!("observations are maps") };
    map.insert(key.into(), value);
    Value::Map(map)
}
