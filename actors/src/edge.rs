//! Edges of the placement graph: bounded channels for tensors, one per edge.
//!
//! Invariant *bounded*: an edge holds no more than its capacity; its sender waits.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use flume::r#async::RecvStream;
use futures_util::Stream;

/// The sending end of an edge.
pub(crate) struct Outbox<T>(flume::Sender<T>);

/// The receiving end of an edge; clones compete for what arrives.
pub(crate) struct Port<T>(flume::Receiver<T>);

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Clone for Port<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// An edge that holds `capacity` messages.
pub(crate) fn edge<T>(capacity: usize) -> (Outbox<T>, Port<T>) {
    let (sender, receiver) = flume::bounded(capacity);
    (Outbox(sender), Port(receiver))
}

impl<T> Outbox<T> {
    /// Sends without waiting; gives the message back when the edge is full.
    pub(crate) fn try_send(&self, message: T) -> Result<(), T> {
        self.0.try_send(message).map_err(flume::TrySendError::into_inner)
    }

    /// Sends, waiting while the edge is full.
    pub(crate) async fn send(&self, message: T) {
        let _ = self.0.send_async(message).await;
    }
}

/// All edges of one kind into a slice.
pub(crate) struct Inbox<T: 'static>(Vec<(flume::Receiver<T>, RecvStream<'static, T>)>);

impl<T> Inbox<T> {
    pub(crate) fn new(ports: impl IntoIterator<Item = Port<T>>) -> Self {
        Self(ports.into_iter().map(|Port(receiver)| (receiver.clone(), receiver.into_stream())).collect())
    }

    /// The next message that has arrived, edges in order.
    pub(crate) fn try_recv(&self) -> Option<T> {
        self.0.iter().find_map(|(receiver, _)| receiver.try_recv().ok())
    }

    /// The next message. Never ready when there are no edges. Dropping the future loses nothing.
    pub(crate) async fn recv(&mut self) -> T {
        poll_fn(|context| {
            for (_, stream) in &mut self.0 {
                // A closed edge has nothing more to say.
                if let Poll::Ready(Some(message)) = Pin::new(stream).poll_next(context) {
                    return Poll::Ready(message);
                }
            }
            // A stream that was woken for a message that `try_recv` took looks once before it waits again; what came
            // between the two is found here.
            self.0
                .iter()
                .find_map(|(receiver, _)| receiver.try_recv().ok())
                .map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_edge_is_bounded_and_keeps_order() {
        let (outbox, port) = edge(2);
        assert!(outbox.try_send(1).is_ok() && outbox.try_send(2).is_ok());
        assert_eq!(outbox.try_send(3), Err(3));
        let mut inbox = Inbox::new([port]);
        assert_eq!((inbox.recv().await, inbox.try_recv(), inbox.try_recv()), (1, Some(2), None));
    }

    #[tokio::test]
    async fn an_inbox_wakes_for_each_of_its_edges() {
        let (first, a) = edge(1);
        let (second, b) = edge(1);
        let mut inbox = Inbox::new([a, b]);
        for (outbox, value) in [(&second, 2), (&first, 1), (&second, 3)] {
            let (received, ()) = tokio::join!(inbox.recv(), outbox.send(value));
            assert_eq!(received, value);
        }
    }
}
