//! How long one request takes alone when the cache leaves layer by layer.
//!
//! What an emulation of the same pipeline has to keep to, to come out the same:
//! - A chip does one thing at a time: it computes a layer, sends, or receives. A slice on several chips, or a transfer
//!   from or to it, occupies all of them.
//! - A transfer of `T` ms that starts at `t` occupies its sender until `t + T`. Its receiver takes it at some `s >= t` when
//!   it is free, is occupied until `s + T` and then has the data. A chip at both ends is occupied once, and a chip takes
//!   what is for it in the order it was sent. [`Route::Local`] costs nothing.
//! - A slice starts when its input is there, and every layer takes an equal part of its pass. After each layer a prefix
//!   slice sends its keys and values to the expert slices that hold that layer, then goes on; after its last layer every
//!   slice hands over to the next. Of two prefix slices the next gets its hidden state before the expert gets the keys
//!   and values of that last layer, for it is the next that everybody waits for.
//! - In the first step a layer of the expert waits for the layer before it, for its keys and values, and for the slices
//!   of the other stages on its chip. A receive comes before computing when both are possible.
//! - The other steps follow one after another: every pass, and every hop of the ring.

use std::collections::BTreeMap;

use super::{EdgeCost, Route, SliceCost};
use crate::placement::{Payload, Pipeline};
use crate::{ChipId, StageKind};

/// Milliseconds from the start of the first slice to the end of the last step.
pub(super) fn critical_path_ms(pipeline: &Pipeline, slices: &[SliceCost], edges: &[EdgeCost]) -> f64 {
    let mut walk = Walk { pipeline, slices, edges, free_ms: BTreeMap::new(), sent: Vec::new() };
    let mut finished = 0.0;
    let mut last = 0.0_f64;
    for place in 0..slices.len() {
        let ready = walk.hand_over(place, finished);
        walk.send_last_cache(place);
        finished = walk.slice(place, ready);
        last = last.max(finished);
    }
    let passes: f64 = pipeline
        .of(StageKind::Expert)
        .map(|(place, _)| slices[place].pass.total_ms() * slices[place].passes.saturating_sub(1) as f64)
        .sum();
    // Before each of the other steps the ring is closed once.
    let hops: f64 = edges
        .iter()
        .filter(|edge| edge.payload == Payload::Step)
        .map(|edge| edge.transfer_ms * edge.times.saturating_sub(1) as f64)
        .sum();
    last + passes + hops
}

/// One request on its way through the slices in their order, up to the end of the first step.
struct Walk<'a> {
    pipeline: &'a Pipeline,
    slices: &'a [SliceCost],
    edges: &'a [EdgeCost],
    /// When each chip becomes free; from the start when it is not here.
    free_ms: BTreeMap<ChipId, f64>,
    /// Keys and values that were sent and not yet received, in the order sent.
    sent: Vec<Sent>,
}

/// Keys and values of one layer.
#[derive(Clone, Copy)]
struct Sent {
    to: usize,
    layer: usize,
    at_ms: f64,
    takes_ms: f64,
}

impl Walk<'_> {
    /// Hands over to a slice from the one before it, which finished at `sent_ms`; gives when the input is there. The first
    /// slice, and the first of the expert, has no input of that kind.
    fn hand_over(&mut self, place: usize, sent_ms: f64) -> f64 {
        let input =
            |edge: &&EdgeCost| edge.to == place && edge.from + 1 == place && edge.payload != Payload::Cache;
        let Some(edge) = self.edges.iter().find(input).copied() else { return 0.0 };
        if edge.route == Route::Local {
            return sent_ms;
        }
        while let Some(at) = self.next_for(place).filter(|at| self.sent[*at].at_ms <= sent_ms) {
            self.receive(at);
        }
        let (from, to) = (&self.pipeline.slices[edge.from].chips, &self.pipeline.slices[place].chips);
        let only_receive: Vec<ChipId> = to.iter().filter(|chip| !from.contains(chip)).copied().collect();
        let starts_ms = sent_ms.max(self.free_ms(&only_receive));
        self.occupy(from, sent_ms + edge.transfer_ms);
        self.occupy(&only_receive, starts_ms + edge.transfer_ms);
        starts_ms + edge.transfer_ms
    }

    /// Computes the layers of a slice whose input is there; gives when it has finished, and sent the keys and values that go first.
    fn slice(&mut self, place: usize, ready_ms: f64) -> f64 {
        let slice = &self.pipeline.slices[place];
        let layer_ms = self.slices[place].pass.total_ms() / slice.layers.len() as f64;
        let mut finished = ready_ms;
        for layer in slice.layers.iter() {
            finished = self.start_ms(place, layer, finished) + layer_ms;
            self.occupy(&slice.chips, finished);
            let hands_over_first = layer + 1 == slice.layers.end() && self.is_followed(place);
            if slice.stage == StageKind::Prefix && !hands_over_first {
                finished = self.send_cache(place, layer, finished);
            }
        }
        finished
    }

    /// Whether a prefix slice has another behind it.
    fn is_followed(&self, place: usize) -> bool {
        self.pipeline.slices.get(place + 1).is_some_and(|next| next.stage == StageKind::Prefix)
    }

    /// Sends what the prefix slice before this one has left for after it handed over.
    fn send_last_cache(&mut self, place: usize) {
        let Some(before) = place.checked_sub(1) else { return };
        let slice = &self.pipeline.slices[before];
        if slice.stage == StageKind::Prefix && self.is_followed(before) {
            let free_ms = self.free_ms(&slice.chips);
            self.send_cache(before, slice.layers.end() - 1, free_ms);
        }
    }

    /// When a layer starts that could at `ready_ms`: after what its chip receives until then, or has to receive for it.
    fn start_ms(&mut self, place: usize, layer: usize, ready_ms: f64) -> f64 {
        loop {
            let start_ms = ready_ms.max(self.free_ms(&self.pipeline.slices[place].chips));
            let lacks_cache = self.sent.iter().any(|sent| (sent.to, sent.layer) == (place, layer));
            match self.next_for(place) {
                Some(at) if lacks_cache || self.sent[at].at_ms <= start_ms => self.receive(at),
                _ => return start_ms,
            }
        }
    }

    /// Sends a layer's keys and values to the slices of the expert that hold it; gives when that is done.
    fn send_cache(&mut self, place: usize, layer: usize, finished_ms: f64) -> f64 {
        let mut at_ms = finished_ms;
        for edge in self.edges.iter().filter(|edge| edge.from == place && edge.payload == Payload::Cache) {
            let holds = self.pipeline.slices[edge.to].layers.contains(layer);
            if holds && edge.route != Route::Local {
                let takes_ms = edge.transfer_ms;
                self.sent.push(Sent { to: edge.to, layer, at_ms, takes_ms });
                at_ms += takes_ms;
            }
        }
        self.occupy(&self.pipeline.slices[place].chips, at_ms);
        at_ms
    }

    /// The first of the keys and values on their way to a chip of a slice.
    fn next_for(&self, place: usize) -> Option<usize> {
        let slices = &self.pipeline.slices;
        let here = |sent: &Sent| slices[sent.to].chips.iter().any(|chip| slices[place].chips.contains(chip));
        self.sent.iter().position(here)
    }

    /// Receives keys and values as soon as their chip is free.
    fn receive(&mut self, at: usize) {
        let sent = self.sent.remove(at);
        let chips = &self.pipeline.slices[sent.to].chips;
        let starts_ms = sent.at_ms.max(self.free_ms(chips));
        self.occupy(chips, starts_ms + sent.takes_ms);
    }

    fn free_ms(&self, chips: &[ChipId]) -> f64 {
        chips.iter().filter_map(|chip| self.free_ms.get(chip).copied()).fold(0.0, f64::max)
    }

    fn occupy(&mut self, chips: &[ChipId], until_ms: f64) {
        self.free_ms.extend(chips.iter().map(|chip| (*chip, until_ms)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::PassCost;
    use crate::workload::SliceMemory;
    use crate::{LayerRange, Slice, Split};
    use StageKind::{Expert, Prefix, Vision};

    /// Stage, layers, chip, milliseconds of a pass.
    type Part = (StageKind, usize, usize, u32, f64);

    /// By payload: hidden state and image tokens 1 ms, a layer's cache 0.5 ms, a hop 0.25 ms.
    fn alone_ms(slices: Vec<Slice>, pass_ms: &[f64], steps: usize) -> f64 {
        let pipeline = Pipeline { slices };
        let cost = |(slice, ms): (&Slice, &f64)| SliceCost {
            pass: PassCost { matmul_ms: *ms, ..PassCost::default() },
            passes: if slice.stage == Expert { steps } else { 1 },
            memory: SliceMemory::default(),
        };
        let slices: Vec<SliceCost> = pipeline.slices.iter().zip(pass_ms).map(cost).collect();
        let edges = pipeline.edges();
        let edges = edges.iter().map(|edge| {
            let chips = |place: usize| &pipeline.slices[place].chips;
            let local = chips(edge.from).iter().all(|chip| chips(edge.to).contains(chip));
            let (ms, times) = match edge.payload {
                Payload::Hidden | Payload::ImageTokens => (1.0, 1),
                Payload::Cache => (0.5, edge.layers),
                Payload::Step => (0.25, steps),
            };
            EdgeCost {
                from: edge.from,
                to: edge.to,
                payload: edge.payload,
                route: if local { Route::Local } else { Route::Socket { lanes: 1 } },
                bytes: 0,
                times,
                transfer_ms: if local { 0.0 } else { ms },
            }
        });
        critical_path_ms(&pipeline, &slices, &edges.collect::<Vec<_>>())
    }

    fn parts_ms(parts: &[Part], steps: usize) -> f64 {
        let slice = |&(stage, start, end, chip, _): &Part| {
            Slice::on(stage, LayerRange::new(start, end).unwrap(), ChipId(chip))
        };
        let pass_ms: Vec<f64> = parts.iter().map(|part| part.4).collect();
        alone_ms(parts.iter().map(slice).collect(), &pass_ms, steps)
    }

    #[track_caller]
    fn takes(found_ms: f64, by_hand_ms: f64) {
        assert!((found_ms - by_hand_ms).abs() < 1e-9, "{found_ms} ms instead of {by_hand_ms}");
    }

    #[test]
    fn the_first_step_follows_the_prefix() {
        // Prefix layers end at 7, 9.5 and 12, their cache is there at 7.5, 10 and 12.5; the last expert layer ends at 13.5.
        let chain =
            |expert_ms| [(Vision, 0, 2, 0, 4.0), (Prefix, 0, 3, 1, 6.0), (Expert, 0, 3, 2, expert_ms)];
        takes(parts_ms(&chain(3.0), 1), 13.5);
        takes(parts_ms(&chain(3.0), 2), 13.5 + 3.0);
        // With 3 ms a layer the expert computes 7.5..10.5, 11..14 and 14.5..17.5 and receives in between.
        takes(parts_ms(&chain(9.0), 2), 17.5 + 9.0);
    }

    #[test]
    fn a_ring_waits_for_its_chips_and_is_closed_between_steps() {
        let ring = |expert_ms| {
            [
                (Vision, 0, 2, 0, 2.0),
                (Prefix, 0, 2, 0, 4.0),
                (Prefix, 2, 4, 1, 4.0),
                (Expert, 0, 3, 2, expert_ms),
                (Expert, 3, 4, 3, 1.0),
            ]
        };
        // Cache is sent at 4, 7.5, 9.5 and 12, the hidden state at 6.5. Layers 0..3 end at 5.5, 9 and 11; layer 3 starts
        // when its cache is there, at 12.5.
        takes(parts_ms(&ring(3.0), 3), 13.5 + 2.0 * (3.0 + 1.0 + 0.25 + 0.25));
        // Layers 0..3 take 4.5..6.4, 8..9.9 and 10.4..12.3; chip 3 takes the hop after the cache, 12.5..12.75.
        takes(parts_ms(&ring(5.7), 3), 13.75 + 2.0 * (5.7 + 1.0 + 0.25 + 0.25));
    }

    #[test]
    fn slices_on_one_chip_take_turns() {
        let one = [(Vision, 0, 2, 0, 2.0), (Prefix, 0, 3, 0, 6.0), (Expert, 0, 3, 0, 3.0)];
        takes(parts_ms(&one, 2), 2.0 + 6.0 + 2.0 * 3.0);
        // Chip 1 has cache at 4.5 and 7 and the hidden state at 8, and computes the prefix until 12 before any step.
        let tail =
            [(Vision, 0, 2, 0, 2.0), (Prefix, 0, 2, 0, 4.0), (Prefix, 2, 4, 1, 4.0), (Expert, 0, 4, 1, 4.0)];
        takes(parts_ms(&tail, 1), 16.0);
        // Chip 0 hands over the hidden state 6..7, then computes 7..9 and hops; chip 1 has the prefix until 11.
        let alike = [
            (Vision, 0, 2, 0, 2.0),
            (Prefix, 0, 2, 0, 4.0),
            (Prefix, 2, 4, 1, 4.0),
            (Expert, 0, 2, 0, 2.0),
            (Expert, 2, 4, 1, 2.0),
        ];
        takes(parts_ms(&alike, 2), 13.25 + 4.0 + 0.5);
    }

    #[test]
    fn a_chip_at_both_ends_of_a_transfer_is_occupied_once() {
        let layers = LayerRange::new(0, 2).unwrap();
        let cameras =
            Slice::on(Vision, layers, ChipId(0)).shared([0, 1, 2].map(ChipId).to_vec(), Split::Cameras);
        let prefix = Slice::on(Prefix, layers, ChipId(1));
        let expert = Slice::on(Expert, layers, ChipId(2));
        // Image tokens 3..4, cache at 5.5 and 7, so layer 1 ends at 8.
        takes(alone_ms(vec![cameras, prefix, expert], &[3.0, 2.0, 2.0], 1), 8.0);
    }
}
