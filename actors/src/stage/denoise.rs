//! Denoising: the action expert over any number of requests, each at its own step.
//!
//! Requests whose cache is complete join the running batch at the next step and leave when they are done. When nothing
//! else can run, the first step of a request follows its cache layer by layer. An expert that is cut into slices forms
//! a ring: requests circulate in it, a step a round, and the last slice integrates.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tensact_runtime::Tensor;
use tensact_runtime::device::{ExpertStage, FirstStep, Followed, SliceError};
use tensact_runtime::model::{KeyValue, KvCache};

use super::Work;
use super::step::{At, CacheLayer, Member, StepWork, begin, run};
use crate::chip::{Rank, Turn};
use crate::edge::{Inbox, Port};
use crate::parcel::{Parcel, Way};
use crate::seat::{Batch, Seat, Share, StageFault};
use crate::ticket::{AttemptId, Ticket};

/// What an expert slice is made of.
#[derive(Clone)]
pub(crate) struct DenoiseArgs {
    pub(crate) seat: Seat,
    pub(crate) device: Arc<dyn ExpertStage>,
    /// From the prefix slices that hold the same layers.
    pub(crate) caches: Vec<Port<Parcel<CacheLayer>>>,
    /// From the slice before this one in the ring.
    pub(crate) steps: Option<Port<Parcel<StepWork>>>,
    /// To the slice behind it.
    pub(crate) next: Option<Way<Parcel<StepWork>>>,
    /// Whether it holds the expert's last layer.
    pub(crate) last: bool,
    /// Whether a state token goes through the expert before the actions do.
    pub(crate) has_state: bool,
    /// Requests in one step.
    pub(crate) max_requests: usize,
    /// Whether the first step follows the cache.
    pub(crate) follows: bool,
}

/// An expert slice at work.
pub(crate) struct Denoise {
    args: DenoiseArgs,
    caches: Inbox<Parcel<CacheLayer>>,
    steps: Inbox<Parcel<StepWork>>,
    arrived_caches: VecDeque<Parcel<CacheLayer>>,
    arrived_steps: VecDeque<Parcel<StepWork>>,
    held: BTreeMap<AttemptId, Held>,
    /// Counts what came to wait for a step, to serve it in order.
    turns: u64,
    at_work: Vec<Arc<Ticket>>,
}

/// A request that this slice has a part of.
struct Held {
    ticket: Arc<Ticket>,
    cache: Cache,
    /// The step that waits to be run, and since when.
    due: Option<(u64, At)>,
}

enum Cache {
    /// Some layers are still to come.
    Arriving(BTreeMap<usize, KeyValue>),
    /// The first step runs behind them.
    Followed { first: Box<dyn FirstStep>, at: At, next_layer: usize, arrived: BTreeMap<usize, KeyValue> },
    /// All there.
    Complete(KvCache),
}

/// What can be run now.
enum Choice {
    Follow(AttemptId),
    Step(Vec<AttemptId>),
}

impl Denoise {
    pub(crate) fn new(args: DenoiseArgs) -> Self {
        Self {
            caches: Inbox::new(args.caches.clone()),
            steps: Inbox::new(args.steps.clone()),
            args,
            arrived_caches: VecDeque::new(),
            arrived_steps: VecDeque::new(),
            held: BTreeMap::new(),
            turns: 0,
            at_work: Vec::new(),
        }
    }

    fn first_slice(&self) -> bool {
        self.args.seat.layers.start() == 0
    }

    /// A full batch goes first on a chip that is shared, one whose caches are still arriving included.
    fn rank(&self) -> Rank {
        let new = |parcel: &&Parcel<CacheLayer>| !self.held.contains_key(&parcel.content.ticket.id);
        let here = self.held.len() + self.arrived_caches.iter().filter(new).count();
        if here >= self.args.max_requests { Rank::First } else { Rank::Last }
    }

    /// What this slice has of a request; the first slice begins it.
    fn held(&mut self, ticket: &Arc<Ticket>) -> &mut Held {
        let (first, turns, has_state) = (self.first_slice(), &mut self.turns, self.args.has_state);
        self.held.entry(ticket.id).or_insert_with(|| {
            *turns += 1;
            let due = first.then(|| (*turns, begin(ticket, has_state)));
            Held { ticket: Arc::clone(ticket), cache: Cache::Arriving(BTreeMap::new()), due }
        })
    }

    fn keep_layer(&mut self, CacheLayer { ticket, layer, entry }: CacheLayer) -> Result<(), StageFault> {
        if ticket.fate.ended() {
            return Ok(());
        }
        let layers = self.args.seat.layers;
        let held = self.held(&ticket);
        let arriving = match &mut held.cache {
            Cache::Followed { arrived, .. } => {
                arrived.insert(layer, entry);
                return Ok(());
            }
            Cache::Complete(_) => return Ok(()),
            Cache::Arriving(arriving) => arriving,
        };
        arriving.insert(layer, entry);
        if arriving.len() == layers.len() {
            match KvCache::new(layers, std::mem::take(arriving).into_values().collect()) {
                Ok(cache) => held.cache = Cache::Complete(cache),
                Err(error) => return Err(self.args.seat.fault(error.to_string())),
            }
        }
        Ok(())
    }

    fn keep_step(&mut self, StepWork { ticket, at }: StepWork) {
        if !ticket.fate.ended() {
            self.turns += 1;
            let turn = self.turns;
            self.held(&ticket).due = Some((turn, at));
        }
    }

    /// Takes all that has arrived.
    async fn receive(&mut self, turn: &Turn) -> Result<(), StageFault> {
        while let Some(parcel) = self.arrived_caches.pop_front().or_else(|| self.caches.try_recv()) {
            self.at_work = vec![Arc::clone(&parcel.content.ticket)];
            let layer = self.args.seat.receive(turn, parcel).await;
            self.keep_layer(layer)?;
        }
        while let Some(parcel) = self.arrived_steps.pop_front().or_else(|| self.steps.try_recv()) {
            self.at_work = vec![Arc::clone(&parcel.content.ticket)];
            let step = self.args.seat.receive(turn, parcel).await;
            self.keep_step(step);
        }
        self.at_work.clear();
        Ok(())
    }

    /// What to run: first steps that have begun to follow their cache, so that they do not hold anybody up for long;
    /// then a batch of those that wait longest; then, when there is neither, a first step that can begin to follow.
    fn choose(&self) -> Option<Choice> {
        let follows = |held: &Held| matches!(&held.cache, Cache::Followed { next_layer, arrived, .. } if arrived.contains_key(next_layer));
        if let Some((id, _)) = self.held.iter().find(|(_, held)| follows(held)) {
            return Some(Choice::Follow(*id));
        }
        if let Some(batch) = self.batch() {
            return Some(Choice::Step(batch));
        }
        let first_layer = self.args.seat.layers.start();
        let begins = |held: &Held| match &held.cache {
            Cache::Arriving(arrived) => held.due.is_some() && arrived.contains_key(&first_layer),
            _ => false,
        };
        let begun = self.held.iter().find(|(_, held)| begins(held)).filter(|_| self.args.follows);
        begun.map(|(id, _)| Choice::Follow(*id))
    }

    /// The next batch: those on their way first, in turn, so that who has begun is not held up by who joins.
    fn batch(&self) -> Option<Vec<AttemptId>> {
        let mut due: Vec<(bool, u64, AttemptId, bool)> = self
            .held
            .iter()
            .filter(|(_, held)| matches!(held.cache, Cache::Complete(_)))
            .filter_map(|(id, held)| {
                let (since, at) = held.due.as_ref()?;
                Some((at.step.index() == 0, *since, *id, held.ticket.alone))
            })
            .collect();
        due.sort_unstable();
        let (.., first, alone) = due.first()?;
        if *alone {
            return Some(vec![*first]);
        }
        // Who has to run alone waits for those on their way, and lets nobody in who came later.
        let waits = due.iter().find(|(joins, .., alone)| *joins && *alone).map(|(_, since, ..)| *since);
        let others = due.iter().filter(|(joins, since, _, alone)| {
            !(*alone || *joins && waits.is_some_and(|waits| waits < *since))
        });
        Some(others.take(self.args.max_requests).map(|(_, _, id, _)| *id).collect())
    }

    /// Runs the next layer of a first step.
    async fn follow(&mut self, turn: &mut Option<Turn>, mut held: Held) -> Result<(), StageFault> {
        let fault = |seat: &Seat, error: SliceError| seat.fault(error.to_string());
        let layers = self.args.seat.layers;
        if let Cache::Arriving(arrived) = &mut held.cache
            && let Some((_, mut at)) = held.due.take()
        {
            let input = at.hidden.take().unwrap_or_else(|| at.x.clone());
            let first = Arc::clone(&self.args.device).follow(input, at.state.take(), at.step);
            let first = first.map_err(|error| fault(&self.args.seat, error))?;
            let arrived = std::mem::take(arrived);
            held.cache = Cache::Followed { first, at, next_layer: layers.start(), arrived };
        }
        if let Cache::Followed { first, at, next_layer, arrived } = &mut held.cache
            && let Some(entry) = arrived.remove(next_layer)
            && let Some(held_turn) = turn.as_ref()
        {
            let (tickets, steps) = ([Arc::clone(&held.ticket)], [at.step.index()]);
            let batch = Batch { tickets: &tickets, cameras: held.ticket.cameras(), steps: &steps };
            let share = Share::Layer { layer: *next_layer, last: *next_layer + 1 == layers.end() };
            self.args.seat.run(held_turn, share, batch, || first.layer(entry)).await?;
            *next_layer += 1;
        }
        match held.cache {
            Cache::Followed { first, at, next_layer, .. } if next_layer == layers.end() => {
                let Followed { output, state, cache } =
                    first.finish().map_err(|error| fault(&self.args.seat, error))?;
                held.cache = Cache::Complete(cache);
                self.stepped(turn, held, At { state, ..at }, output).await
            }
            _ => {
                self.held.insert(held.ticket.id, held);
                Ok(())
            }
        }
    }

    /// Runs one step of a batch.
    async fn step(&mut self, turn: &mut Option<Turn>, batch: Vec<Held>) -> Result<(), StageFault> {
        let cameras = batch.iter().map(|held| held.ticket.cameras()).max().unwrap_or(0);
        let tickets = self.at_work.clone();
        let mut members: Vec<Member> = batch.into_iter().filter_map(Held::into_member).collect();
        let device = &*self.args.device;
        let steps: Vec<usize> = members.iter().map(|member| member.at.step.index()).collect();
        let all = Batch { tickets: &tickets, cameras, steps: &steps };
        let outputs = match turn.as_ref() {
            Some(held) => self.args.seat.run(held, Share::Pass, all, || run(device, &mut members)).await?,
            None => Vec::new(),
        };
        for (Member { ticket, cache, at }, output) in members.into_iter().zip(outputs) {
            let held = Held { ticket, cache: Cache::Complete(cache), due: None };
            self.stepped(turn, held, at, output).await?;
        }
        Ok(())
    }

    /// A step is done on this slice: on to the next slice, the next step, or the end.
    async fn stepped(
        &mut self,
        turn: &mut Option<Turn>,
        mut held: Held,
        at: At,
        output: Tensor,
    ) -> Result<(), StageFault> {
        let ticket = Arc::clone(&held.ticket);
        let at = if self.args.last {
            let At { step, mut x, .. } = at;
            let mut velocity = output;
            if let Some(guidance) = &ticket.sample.guidance {
                guidance.bend(step, &x, &mut velocity);
            }
            step.advance(&mut x, &velocity);
            let Some(step) = step.of().iter().nth(step.index() + 1) else {
                ticket.finish(x);
                self.at_work.retain(|other| other.id != ticket.id);
                return Ok(());
            };
            At { step, x, hidden: None, state: None }
        } else {
            At { hidden: Some(output), ..at }
        };
        let rank = self.rank();
        let DenoiseArgs { seat, next, .. } = &mut self.args;
        let Some(way) = next else {
            self.turns += 1;
            held.due = Some((self.turns, at));
            self.held.insert(ticket.id, held);
            return Ok(());
        };
        let id = ticket.id;
        self.held.insert(id, held);
        let cameras = ticket.cameras();
        seat.send(turn, rank, way, cameras, StepWork { ticket, at }).await?;
        self.at_work.retain(|ticket| ticket.id != id);
        Ok(())
    }
}

impl Held {
    /// As a member of a batch, when it waits for a step over a complete cache.
    fn into_member(self) -> Option<Member> {
        match self {
            Held { ticket, cache: Cache::Complete(cache), due: Some((_, at)) } => {
                Some(Member { ticket, cache, at })
            }
            _ => None,
        }
    }
}

impl Work for Denoise {
    const NAME: &'static str = "denoising";

    fn seat(&self) -> &Seat {
        &self.args.seat
    }

    async fn ready(&mut self) {
        let waiting = self.arrived_caches.is_empty() && self.arrived_steps.is_empty();
        if waiting && self.choose().is_none() {
            tokio::select! {
                biased;
                parcel = self.caches.recv() => self.arrived_caches.push_back(parcel),
                parcel = self.steps.recv() => self.arrived_steps.push_back(parcel),
            }
        }
    }

    async fn work(&mut self) -> Result<(), StageFault> {
        let mut turn = Some(self.args.seat.take(self.rank()).await);
        if let Some(held) = &turn {
            self.receive(held).await?;
        }
        self.held.retain(|_, held| self.args.seat.admits(&held.ticket));
        match self.choose() {
            None => {}
            Some(Choice::Follow(id)) => {
                if let Some(held) = self.held.remove(&id) {
                    self.at_work = vec![Arc::clone(&held.ticket)];
                    self.follow(&mut turn, held).await?;
                }
            }
            Some(Choice::Step(ids)) => {
                let batch: Vec<Held> = ids.iter().filter_map(|id| self.held.remove(id)).collect();
                self.at_work = batch.iter().map(|held| Arc::clone(&held.ticket)).collect();
                self.step(&mut turn, batch).await?;
            }
        }
        self.at_work.clear();
        Ok(())
    }

    fn sweep(&mut self) {
        self.arrived_caches.retain(|parcel| !parcel.content.ticket.fate.ended());
        self.arrived_steps.retain(|parcel| !parcel.content.ticket.fate.ended());
        self.held.retain(|_, held| !held.ticket.fate.ended());
    }

    fn at_work(&mut self) -> Vec<Arc<Ticket>> {
        std::mem::take(&mut self.at_work)
    }

    fn surrender(&mut self) -> Vec<Arc<Ticket>> {
        let caches = self.arrived_caches.drain(..).map(|parcel| parcel.content.ticket);
        let steps = self.arrived_steps.drain(..).map(|parcel| parcel.content.ticket);
        let held = std::mem::take(&mut self.held).into_values().map(|held| held.ticket);
        caches.chain(steps).chain(held).collect()
    }
}
