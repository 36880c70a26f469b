//! Programs as the exported file writes them: see `docs/ttnn.md`.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::{Call, Op, Origin, Program, Segment, TensorSpec, Value, ValueId};

#[derive(Serialize)]
struct ValueEntry<'a> {
    id: ValueId,
    name: &'a str,
    origin: &'static str,
    #[serde(flatten)]
    spec: TensorSpec,
}

#[derive(Serialize)]
struct CallEntry<'a> {
    #[serde(flatten)]
    op: &'a Op,
    out: &'a [ValueId],
    frees: &'a [ValueId],
}

#[derive(Serialize)]
struct SegmentEntry<'a> {
    name: &'a str,
    calls: Vec<CallEntry<'a>>,
}

impl Serialize for Program {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values: Vec<ValueEntry<'_>> = self.ids().map(value_entry).collect();
        let segments: Vec<SegmentEntry<'_>> = self.segments.iter().map(segment_entry).collect();
        let mut entry = serializer.serialize_struct("Program", 3)?;
        entry.serialize_field("name", &self.name)?;
        entry.serialize_field("values", &values)?;
        entry.serialize_field("segments", &segments)?;
        entry.end()
    }
}

fn value_entry((id, value): (ValueId, &Value)) -> ValueEntry<'_> {
    let origin = match value.origin {
        Origin::Weight(_) => "weight",
        Origin::Input => "input",
        Origin::Buffer => "buffer",
        Origin::Call => "call",
    };
    ValueEntry { id, name: &value.name, origin, spec: value.spec }
}

fn segment_entry(segment: &Segment) -> SegmentEntry<'_> {
    SegmentEntry { name: &segment.name, calls: segment.calls.iter().map(call_entry).collect() }
}

fn call_entry(Call { op, out, frees }: &Call) -> CallEntry<'_> {
    CallEntry { op, out, frees }
}
