//! The VLM prefix: image and instruction tokens to keys and values, layer by layer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tensact_runtime::Tensor;
use tensact_runtime::device::{PrefixInput, PrefixStage, SliceError};
use tensact_runtime::model::KeyValue;
use tensact_topology::LayerRange;

use super::{CacheLayer, Work, next_batch};
use crate::chip::{Rank, Turn};
use crate::edge::{Inbox, Port};
use crate::parcel::{Content, Parcel, Way};
use crate::seat::{Batch, Seat, Share, StageFault};
use crate::ticket::{AttemptId, Ticket};

/// What a prefix slice takes for a request.
pub(crate) struct Prefixed {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) content: PrefixedContent,
}

/// Image tokens before the first slice, hidden states before the others.
pub(crate) enum PrefixedContent {
    /// Tokens `[patches, width]` of some of the request's cameras.
    Images(Vec<(usize, Option<Tensor>)>),
    /// `[tokens, width]`.
    Hidden(Tensor),
}

impl Content for Prefixed {
    fn ticket(&self) -> &Arc<Ticket> {
        &self.ticket
    }

    fn bytes(&self) -> u64 {
        match &self.content {
            PrefixedContent::Images(images) => {
                images.iter().filter_map(|(_, tokens)| tokens.as_ref()).map(Tensor::bytes).sum()
            }
            PrefixedContent::Hidden(hidden) => hidden.bytes(),
        }
    }
}

/// What a prefix slice is made of.
#[derive(Clone)]
pub(crate) struct PrefixArgs {
    pub(crate) seat: Seat,
    pub(crate) device: Arc<dyn PrefixStage>,
    pub(crate) port: Port<Parcel<Prefixed>>,
    /// For the layers of each expert slice, where their keys and values go.
    pub(crate) caches: Vec<(LayerRange, Way<Parcel<CacheLayer>>)>,
    /// The next slice of the VLM, if there is one.
    pub(crate) next: Option<Way<Parcel<Prefixed>>>,
    /// Requests in one pass.
    pub(crate) max_requests: usize,
}

/// A prefix slice at work.
pub(crate) struct Prefix {
    args: PrefixArgs,
    inbox: Inbox<Parcel<Prefixed>>,
    arrived: VecDeque<Parcel<Prefixed>>,
    gathering: BTreeMap<AttemptId, (Arc<Ticket>, BTreeMap<usize, Tensor>)>,
    due: VecDeque<Due>,
    at_work: Vec<Arc<Ticket>>,
}

/// A request whose input is complete.
struct Due {
    ticket: Arc<Ticket>,
    input: Input,
}

enum Input {
    Images(Vec<Tensor>),
    Hidden(Tensor),
}

const RANK: Rank = Rank::Next;

impl Prefix {
    pub(crate) fn new(args: PrefixArgs) -> Self {
        let inbox = Inbox::new([args.port.clone()]);
        Self {
            args,
            inbox,
            arrived: VecDeque::new(),
            gathering: BTreeMap::new(),
            due: VecDeque::new(),
            at_work: Vec::new(),
        }
    }

    fn gather(&mut self, Prefixed { ticket, content }: Prefixed) {
        if ticket.fate.ended() {
            return;
        }
        let images = match content {
            PrefixedContent::Hidden(hidden) => {
                return self.due.push_back(Due { ticket, input: Input::Hidden(hidden) });
            }
            PrefixedContent::Images(images) => images,
        };
        let (_, tokens) =
            self.gathering.entry(ticket.id).or_insert_with(|| (Arc::clone(&ticket), BTreeMap::new()));
        tokens.extend(images.into_iter().filter_map(|(camera, tokens)| Some((camera, tokens?))));
        if tokens.len() == ticket.cameras()
            && let Some((ticket, tokens)) = self.gathering.remove(&ticket.id)
        {
            ticket.mark_seen(self.args.seat.clock.now());
            self.due.push_back(Due { ticket, input: Input::Images(tokens.into_values().collect()) });
        }
    }

    /// The hidden states of each member of a batch.
    fn sequences(device: &dyn PrefixStage, batch: Vec<Due>) -> Result<Vec<Tensor>, SliceError> {
        let mut sequences = Vec::with_capacity(batch.len());
        for Due { ticket, input } in batch {
            match input {
                Input::Hidden(hidden) => sequences.push(hidden),
                Input::Images(images) => {
                    let tokens = &ticket.sample.input.tokens;
                    sequences.extend(device.embed(&[PrefixInput { images: &images, tokens }])?);
                }
            }
        }
        Ok(sequences)
    }

    /// Sends the keys and values of a layer to the expert slice that holds the same layer.
    async fn hand_over(
        &mut self,
        turn: &mut Option<Turn>,
        layer: usize,
        batch: &[Arc<Ticket>],
        entries: Vec<KeyValue>,
    ) -> Result<(), StageFault> {
        let PrefixArgs { seat, caches, .. } = &mut self.args;
        let Some((_, way)) = caches.iter_mut().find(|(layers, _)| layers.contains(layer)) else {
            return Err(seat.fault(format!("no expert slice holds layer {layer}")));
        };
        for (ticket, entry) in batch.iter().zip(entries) {
            if ticket.fate.ended() {
                continue;
            }
            let (cameras, ticket) = (ticket.cameras(), Arc::clone(ticket));
            let id = ticket.id;
            seat.send(turn, RANK, way, cameras, CacheLayer { ticket, layer, entry }).await?;
            if layer + 1 == seat.layers.end() {
                self.at_work.retain(|ticket| ticket.id != id);
            }
        }
        Ok(())
    }
}

impl Work for Prefix {
    const NAME: &'static str = "prefix";

    fn seat(&self) -> &Seat {
        &self.args.seat
    }

    async fn ready(&mut self) {
        if self.arrived.is_empty() && self.due.is_empty() {
            let parcel = self.inbox.recv().await;
            self.arrived.push_back(parcel);
        }
    }

    async fn work(&mut self) -> Result<(), StageFault> {
        let held = self.args.seat.take(RANK).await;
        while self.due.len() < self.args.max_requests
            && let Some(parcel) = self.arrived.pop_front().or_else(|| self.inbox.try_recv())
        {
            self.at_work.push(Arc::clone(&parcel.content.ticket));
            let prefixed = self.args.seat.receive(&held, parcel).await;
            self.gather(prefixed);
        }
        let mut batch = next_batch(&mut self.due, self.args.max_requests, |due| &due.ticket);
        batch.retain(|due| self.args.seat.admits(&due.ticket));
        self.at_work = batch.iter().map(|due| Arc::clone(&due.ticket)).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let tickets = self.at_work.clone();
        let result = self.pass(held, batch, &tickets).await;
        if result.is_ok() {
            self.at_work.clear();
        }
        result
    }

    fn sweep(&mut self) {
        self.arrived.retain(|parcel| !parcel.content.ticket.fate.ended());
        self.gathering.retain(|_, (ticket, _)| !ticket.fate.ended());
        self.due.retain(|due| !due.ticket.fate.ended());
    }

    fn at_work(&mut self) -> Vec<Arc<Ticket>> {
        std::mem::take(&mut self.at_work)
    }

    fn surrender(&mut self) -> Vec<Arc<Ticket>> {
        let arrived = self.arrived.drain(..).map(|parcel| parcel.content.ticket);
        let gathering = std::mem::take(&mut self.gathering).into_values().map(|(ticket, _)| ticket);
        let due = self.due.drain(..).map(|due| due.ticket);
        arrived.chain(gathering).chain(due).collect()
    }
}

impl Prefix {
    /// Runs a batch through the slice, layer by layer; gives up when nobody waits for it any more.
    async fn pass(&mut self, held: Turn, batch: Vec<Due>, tickets: &[Arc<Ticket>]) -> Result<(), StageFault> {
        let cameras = tickets.iter().map(|ticket| ticket.cameras()).max().unwrap_or(0);
        let device = Arc::clone(&self.args.device);
        let fault = |error: SliceError| self.args.seat.fault(error.to_string());
        let sequences = Self::sequences(&*device, batch).map_err(fault)?;
        let mut pass = Some(device.begin(sequences).map_err(fault)?);
        let mut turn = Some(held);
        let layers = self.args.seat.layers;
        for layer in layers.iter() {
            let held = match turn.take() {
                Some(held) => held,
                None => self.args.seat.take(RANK).await,
            };
            let last = layer + 1 == layers.end();
            let compute = || {
                let entries = pass.as_mut().map_or(Ok(None), |pass| pass.layer())?;
                let after = pass.take_if(|_| last).map_or(Ok(None), |pass| pass.finish())?;
                Ok((entries.unwrap_or_default(), after))
            };
            let members = Batch { tickets, cameras, steps: &[] };
            let share = Share::Layer { layer, last };
            let (entries, after) = self.args.seat.run(&held, share, members, compute).await?;
            turn = Some(held);
            if last && self.args.next.is_none() {
                let now = self.args.seat.clock.now();
                tickets.iter().for_each(|ticket| ticket.mark_cached(now));
            }
            if last {
                // The next slice goes first: it is what everybody waits for.
                self.send_on(&mut turn, tickets, after).await?;
                return self.hand_over(&mut turn, layer, tickets, entries).await;
            }
            self.hand_over(&mut turn, layer, tickets, entries).await?;
            if tickets.iter().all(|ticket| !self.args.seat.admits(ticket)) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Hands hidden states over to the next slice of the VLM, if there is one.
    async fn send_on(
        &mut self,
        turn: &mut Option<Turn>,
        tickets: &[Arc<Ticket>],
        after: Option<Vec<Tensor>>,
    ) -> Result<(), StageFault> {
        let PrefixArgs { seat, next: Some(way), .. } = &mut self.args else { return Ok(()) };
        for (ticket, hidden) in tickets.iter().zip(after.into_iter().flatten()) {
            let content = Prefixed { ticket: Arc::clone(ticket), content: PrefixedContent::Hidden(hidden) };
            seat.send(turn, RANK, way, ticket.cameras(), content).await?;
        }
        Ok(())
    }
}
