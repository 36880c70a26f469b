//! The vision tower: images of a request, or some of them, to image tokens.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tensact_runtime::Tensor;
use tensact_runtime::device::VisionStage;

use super::{Prefixed, PrefixedContent, Work, next_batch};
use crate::chip::Rank;
use crate::clock::Moment;
use crate::edge::{Inbox, Port};
use crate::parcel::{Content, Parcel, Way};
use crate::seat::{Batch, Seat, Share, StageFault};
use crate::telemetry::Doing;
use crate::ticket::{AttemptId, Ticket};

/// Some images of a request.
pub(crate) struct Images {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) images: Vec<Image>,
    /// When they are on the board.
    pub(crate) not_before: Moment,
}

/// An image on its way through the tower.
pub(crate) struct Image {
    /// Its place among the cameras that are there.
    pub(crate) camera: usize,
    /// Hidden states `[patches, width]`; the request's own image before the first slice.
    pub(crate) hidden: Option<Tensor>,
}

impl Content for Images {
    fn ticket(&self) -> &Arc<Ticket> {
        &self.ticket
    }

    fn bytes(&self) -> u64 {
        self.images.iter().filter_map(|image| image.hidden.as_ref()).map(Tensor::bytes).sum()
    }
}

/// Where image tokens or hidden states go.
#[derive(Clone)]
pub(crate) enum VisionNext {
    /// The next slice of the tower, dealt out to so many chips.
    Vision(Way<Parcel<Images>>, usize),
    /// The prefix.
    Prefix(Way<Parcel<Prefixed>>),
}

/// What a vision slice is made of.
#[derive(Clone)]
pub(crate) struct VisionArgs {
    pub(crate) seat: Seat,
    pub(crate) device: Arc<dyn VisionStage>,
    pub(crate) port: Port<Parcel<Images>>,
    pub(crate) next: VisionNext,
    /// Requests in one pass.
    pub(crate) max_requests: usize,
    /// Whether other chips take images from the same edge: then each takes a message at a time.
    pub(crate) shares: bool,
}

/// A vision slice at work.
pub(crate) struct Vision {
    args: VisionArgs,
    inbox: Inbox<Parcel<Images>>,
    arrived: VecDeque<Parcel<Images>>,
    gathering: BTreeMap<AttemptId, Images>,
    due: VecDeque<Images>,
    at_work: Vec<Arc<Ticket>>,
}

const RANK: Rank = Rank::Next;

impl Vision {
    pub(crate) fn new(args: VisionArgs) -> Self {
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

    /// Puts images to those of the same request; a slice that does not share its work waits for all of them.
    fn gather(&mut self, images: Images) {
        if images.ticket.fate.ended() {
            return;
        }
        if self.args.shares {
            return self.due.push_back(images);
        }
        let all = images.ticket.cameras();
        let id = images.ticket.id;
        let mut images = match self.gathering.remove(&id) {
            Some(mut earlier) => {
                earlier.images.extend(images.images);
                earlier
            }
            None => images,
        };
        if images.images.len() < all {
            self.gathering.insert(id, images);
        } else {
            images.images.sort_by_key(|image| image.camera);
            self.due.push_back(images);
        }
    }

    fn run(
        device: &dyn VisionStage,
        batch: &mut [Images],
    ) -> Result<(), tensact_runtime::device::SliceError> {
        let inputs: Vec<&Tensor> = batch
            .iter()
            .flat_map(|images| {
                let own: Vec<&Tensor> = images.ticket.sample.input.images.iter().flatten().collect();
                images.images.iter().map(move |image| image.hidden.as_ref().unwrap_or(own[image.camera]))
            })
            .collect();
        if inputs.is_empty() {
            return Ok(());
        }
        let outputs = device.run(&inputs)?;
        let images = batch.iter_mut().flat_map(|images| &mut images.images);
        images.zip(outputs).for_each(|(image, output)| image.hidden = Some(output));
        Ok(())
    }
}

impl Work for Vision {
    const NAME: &'static str = "vision tower";

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
        if let Some(first) = self.arrived.front() {
            self.at_work = vec![Arc::clone(&first.content.ticket)];
            self.args.seat.clock.wait_until(first.content.not_before).await;
        }
        let mut turn = Some(self.args.seat.take(RANK).await);
        let most = if self.args.shares { 1 } else { self.args.max_requests };
        while self.due.len() < most
            && let Some(parcel) = self.arrived.pop_front().or_else(|| self.inbox.try_recv())
        {
            let Some(held) = &turn else { break };
            if parcel.content.not_before > self.args.seat.clock.now() {
                self.arrived.push_front(parcel);
                break;
            }
            self.at_work.push(Arc::clone(&parcel.content.ticket));
            let images = self.args.seat.receive(held, parcel).await;
            let Images { ticket, not_before, images: of } = &images;
            // All images of a request are sent to the board at once.
            if of.first().is_none_or(|image| image.camera == 0) {
                self.args.seat.held_up(ticket, Doing::Upload, ticket.dispatched, *not_before);
            }
            self.gather(images);
        }
        let mut batch = next_batch(&mut self.due, most, |images| &images.ticket);
        batch.retain(|images| self.args.seat.admits(&images.ticket));
        let tickets: Vec<_> = batch.iter().map(|images| Arc::clone(&images.ticket)).collect();
        self.at_work.clone_from(&tickets);
        let cameras = batch.iter().map(|images| images.images.len()).max().unwrap_or(0);
        if let (1.., Some(held)) = (cameras, &turn) {
            let device = &*self.args.device;
            let members = Batch { tickets: &tickets, cameras, steps: &[] };
            let compute = || Self::run(device, &mut batch);
            self.args.seat.run(held, Share::Pass, members, compute).await?;
        }
        drop(tickets);
        for Images { ticket, images, .. } in batch {
            let (count, seat, id) = (images.len(), &mut self.args.seat, ticket.id);
            match &mut self.args.next {
                VisionNext::Prefix(way) => {
                    let images = images.into_iter().map(|image| (image.camera, image.hidden)).collect();
                    let content = Prefixed { ticket, content: PrefixedContent::Images(images) };
                    seat.send(&mut turn, RANK, way, count, content).await?;
                }
                VisionNext::Vision(way, chips) => {
                    for images in grouped(images, ticket.cameras().div_ceil(*chips)) {
                        let (count, not_before) = (images.len(), Moment::ZERO);
                        let content = Images { ticket: Arc::clone(&ticket), images, not_before };
                        seat.send(&mut turn, RANK, way, count, content).await?;
                    }
                }
            }
            self.at_work.retain(|ticket| ticket.id != id);
        }
        self.at_work.clear();
        Ok(())
    }

    fn sweep(&mut self) {
        self.arrived.retain(|parcel| !parcel.content.ticket.fate.ended());
        self.gathering.retain(|_, images| !images.ticket.fate.ended());
        self.due.retain(|images| !images.ticket.fate.ended());
    }

    fn at_work(&mut self) -> Vec<Arc<Ticket>> {
        std::mem::take(&mut self.at_work)
    }

    fn surrender(&mut self) -> Vec<Arc<Ticket>> {
        let arrived = self.arrived.drain(..).map(|parcel| parcel.content.ticket);
        let gathering = std::mem::take(&mut self.gathering).into_values().map(|images| images.ticket);
        let due = self.due.drain(..).map(|images| images.ticket);
        arrived.chain(gathering).chain(due).collect()
    }
}

/// Deals images out in groups; one empty group when there are none, so that the request goes on.
pub(crate) fn grouped(images: Vec<Image>, size: usize) -> Vec<Vec<Image>> {
    let mut groups = vec![Vec::new()];
    for image in images {
        match groups.last_mut() {
            Some(group) if group.len() < size.max(1) => group.push(image),
            _ => groups.push(vec![image]),
        }
    }
    groups
}
