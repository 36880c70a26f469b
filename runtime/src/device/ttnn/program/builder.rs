//! Writes programs down: every call is checked when it is added.

use std::collections::{BTreeMap, BTreeSet};

use tensact_topology::{Fidelity, WeightDtype};

use super::op::{Activation, Compute, Op, SocketId, ValueId};
use super::recipe::Recipe;
use super::results::results;
use super::spec::{Dtype, TensorSpec};
use super::{Call, Origin, Program, ProgramError, Refusal, Segment, Value};

/// In which types a program computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Numerics {
    /// Factors of products that come from the checkpoint.
    pub weights: Dtype,
    /// How exactly these products are computed.
    pub products: Compute,
}

impl Numerics {
    /// As a deployment names weights; the passes are those that the cost model reckons with.
    pub fn of(weights: WeightDtype) -> Self {
        Self { weights: weights.into(), products: Compute::product(Fidelity::of(weights)) }
    }
}

/// Which inputs come from other chips, and which outputs leave for them, by name; all others are the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wiring {
    /// Inputs.
    pub receive: BTreeMap<String, SocketId>,
    /// Outputs.
    pub send: BTreeMap<String, SocketId>,
}

/// A program in the making.
#[derive(Debug)]
pub struct Builder {
    program: Program,
    numerics: Numerics,
    wiring: Wiring,
}

type Made = Result<ValueId, ProgramError>;

impl Builder {
    /// An empty program.
    pub fn new(name: String, numerics: Numerics, wiring: Wiring) -> Self {
        Self { program: Program { name, values: Vec::new(), segments: Vec::new() }, numerics, wiring }
    }

    /// The types it computes in.
    pub fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// What comes next belongs to a new segment.
    pub fn segment(&mut self, name: impl Into<String>) {
        self.program.segments.push(Segment { name: name.into(), calls: Vec::new(), outputs: Vec::new() });
    }

    fn value(&mut self, name: impl Into<String>, spec: TensorSpec, origin: Origin) -> ValueId {
        let id = ValueId(self.program.values.len() as u32);
        self.program.values.push(Value { name: name.into(), spec, origin });
        id
    }

    /// A tensor made from the checkpoint. The same name is the same tensor.
    pub fn weight(&mut self, name: impl Into<String>, spec: TensorSpec, recipe: Recipe) -> ValueId {
        let name = name.into();
        let known = self.program.ids().find(|(_, v)| v.name == name && matches!(v.origin, Origin::Weight(_)));
        match known.map(|(id, _)| id) {
            Some(id) => id,
            None => self.value(name, spec, Origin::Weight(recipe)),
        }
    }

    /// A tensor that the host writes, or that another chip sends when this is called.
    pub fn input(&mut self, name: impl Into<String>, spec: TensorSpec) -> Made {
        let name = name.into();
        let Some(&socket) = self.wiring.receive.get(&name) else {
            return Ok(self.value(name, spec, Origin::Input));
        };
        let into = self.value(name, spec, Origin::Buffer);
        self.call(Op::Receive { into, socket }, Dtype::Bf16)?;
        Ok(into)
    }

    /// A tensor that the host may read after this segment, or that leaves for another chip.
    pub fn output(&mut self, name: impl Into<String>, value: ValueId) -> Result<(), ProgramError> {
        let name = name.into();
        if let Some(&socket) = self.wiring.send.get(&name) {
            self.call(Op::Send { value, socket }, Dtype::Bf16)?;
        }
        self.current().outputs.push((name, value));
        Ok(())
    }

    fn current(&mut self) -> &mut Segment {
        if self.program.segments.is_empty() {
            self.segment("all");
        }
        self.program.segments.last_mut().expect("there is a segment")
    }

    fn spec(&self, id: ValueId) -> TensorSpec {
        self.program.value(id).spec
    }

    /// The shape of a tensor.
    pub fn shape(&self, id: ValueId) -> [usize; 4] {
        self.spec(id).shape
    }

    fn refused(&mut self, op: &Op, refusal: Refusal) -> ProgramError {
        let program = self.program.name.clone();
        let segment = self.current();
        ProgramError {
            program,
            segment: segment.name.clone(),
            call: segment.calls.len(),
            op: op.name(),
            refusal: Box::new(refusal),
        }
    }

    fn push(&mut self, op: Op, specs: Vec<TensorSpec>) -> Vec<ValueId> {
        let out: Vec<ValueId> =
            specs.into_iter().map(|spec| self.value(op.name(), spec, Origin::Call)).collect();
        self.current().calls.push(Call { op, out: out.clone(), frees: Vec::new() });
        out
    }

    /// Adds a call with results of this dtype.
    pub fn call(&mut self, op: Op, dtype: Dtype) -> Result<Vec<ValueId>, ProgramError> {
        match results(&op, &|id| self.spec(id), dtype) {
            Ok(specs) => Ok(self.push(op, specs)),
            Err(refusal) => Err(self.refused(&op, refusal)),
        }
    }

    /// Adds a call with one bf16 result.
    pub fn one(&mut self, op: Op) -> Made {
        Ok(self.call(op, Dtype::Bf16)?[0])
    }

    /// `activation(x · weight + bias)` in bf16.
    pub fn linear(
        &mut self,
        x: ValueId,
        (weight, bias): (ValueId, Option<ValueId>),
        activation: Option<Activation>,
    ) -> Made {
        let compute = self.numerics.products;
        self.one(Op::Linear { x, weight, bias, activation, compute })
    }

    /// The sum of two tensors.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Made {
        self.one(Op::Add { a, b })
    }

    /// Tensors one behind the other; one alone is itself.
    pub fn concat(&mut self, parts: Vec<ValueId>, dim: usize) -> Made {
        match parts[..] {
            [only] => Ok(only),
            _ => self.one(Op::Concat { parts, dim }),
        }
    }

    /// Part of a tensor along one dimension; the whole is itself.
    pub fn cut(&mut self, x: ValueId, dim: usize, range: std::ops::Range<usize>) -> Made {
        let shape = self.shape(x);
        if range == (0..shape[dim]) {
            return Ok(x);
        }
        let (mut begin, mut end) = ([0; 4], shape);
        (begin[dim], end[dim]) = (range.start, range.end);
        self.one(Op::Slice { x, begin, end })
    }

    /// The program, with what each call frees.
    pub fn finish(mut self) -> Program {
        let kept = kept(&self.program);
        for segment in &mut self.program.segments {
            let mut seen = kept.clone();
            for call in segment.calls.iter_mut().rev() {
                let touched = call.op.reads().into_iter().chain(call.out.iter().copied());
                call.frees = touched.filter(|id| seen.insert(*id)).collect();
            }
        }
        self.program
    }
}

/// Tensors that are not a call's to free: weights, what the host writes or reads, and what another segment uses.
fn kept(program: &Program) -> BTreeSet<ValueId> {
    let mut kept: BTreeSet<ValueId> =
        program.ids().filter(|(_, value)| value.origin != Origin::Call).map(|(id, _)| id).collect();
    let mut home: BTreeMap<ValueId, usize> = BTreeMap::new();
    for (index, segment) in program.segments.iter().enumerate() {
        kept.extend(segment.outputs.iter().map(|(_, id)| *id));
        for call in &segment.calls {
            home.extend(call.out.iter().map(|id| (*id, index)));
            kept.extend(call.op.reads().into_iter().filter(|id| home.get(id).is_some_and(|at| *at != index)));
        }
    }
    kept
}
