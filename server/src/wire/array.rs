//! Numpy arrays as they travel.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use half::f16;

use super::{Map, Value};

/// Most dimensions of an array.
const DIMS_MAX: usize = 8;

/// Numbers that an array may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtype {
    kind: Kind,
    /// Bytes of one value.
    size: usize,
    big_endian: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Signed,
    Unsigned,
    Float,
}

/// A numpy array in C order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

/// A map that says it is an array, and is none that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// The numbers are of a kind that is not read.
    #[error(
        "dtype `{0}` is not read: expected bool, integers of 1 to 8 bytes or floats of 2 to 8 bytes, such as <f4 or |u1"
    )]
    Dtype(String),
    /// A part of an array is missing or of the wrong type.
    #[error("an array without a usable `{0}`")]
    Part(&'static str),
    /// Too many dimensions.
    #[error("an array of {0} dimensions: at most {DIMS_MAX} are read")]
    Dims(usize),
    /// Shape, dtype and data do not belong together.
    #[error("an array of shape {shape:?} and dtype {dtype} does not have {bytes} bytes of data")]
    Size {
        /// The shape.
        shape: Vec<u64>,
        /// The dtype.
        dtype: Dtype,
        /// The bytes.
        bytes: usize,
    },
    /// A scalar whose item is no number.
    #[error("a numpy scalar of dtype {dtype} that holds {item}")]
    Item {
        /// The dtype.
        dtype: Dtype,
        /// What it holds.
        item: String,
    },
}

impl Dtype {
    /// Bytes, 0 to 255: `|u1`.
    pub const U8: Self = Self { kind: Kind::Unsigned, size: 1, big_endian: false };
    /// Single precision: `<f4`.
    pub const F32: Self = Self { kind: Kind::Float, size: 4, big_endian: false };

    /// Whether values are floats.
    pub fn is_float(self) -> bool {
        self.kind == Kind::Float
    }

    /// The bits of one value of exactly its size.
    fn bits(self, bytes: &[u8]) -> u64 {
        let mut little = [0; 8];
        little[..self.size].copy_from_slice(bytes);
        if self.big_endian {
            little[..self.size].reverse();
        }
        u64::from_le_bytes(little)
    }

    /// One value of exactly its size.
    fn value(self, bytes: &[u8]) -> f64 {
        let bits = self.bits(bytes);
        match (self.kind, self.size) {
            (Kind::Float, 2) => f16::from_bits(bits as u16).to_f64(),
            (Kind::Float, 4) => f64::from(f32::from_bits(bits as u32)),
            (Kind::Float, _) => f64::from_bits(bits),
            (Kind::Signed, size) => {
                let unused = 64 - 8 * size as u32;
                ((bits << unused) as i64 >> unused) as f64
            }
            (Kind::Unsigned, _) => bits as f64,
            (Kind::Bool, _) => f64::from(u8::from(bits != 0)),
        }
    }
}

impl FromStr for Dtype {
    type Err = ArrayError;

    /// Numpy's `dtype.str`: byte order, kind, bytes.
    fn from_str(text: &str) -> Result<Self, ArrayError> {
        let unknown = || ArrayError::Dtype(text.chars().take(32).collect());
        let bare = text.trim_start_matches(['<', '>', '=', '|']);
        let kind = match bare.chars().next() {
            Some('b') => Kind::Bool,
            Some('i') => Kind::Signed,
            Some('u') => Kind::Unsigned,
            Some('f') => Kind::Float,
            _ => return Err(unknown()),
        };
        let size = match (kind, &bare[1..]) {
            (_, "1") if kind != Kind::Float => 1,
            (Kind::Signed | Kind::Unsigned | Kind::Float, "2") => 2,
            (Kind::Signed | Kind::Unsigned | Kind::Float, "4") => 4,
            (Kind::Signed | Kind::Unsigned | Kind::Float, "8") => 8,
            _ => return Err(unknown()),
        };
        Ok(Self { kind, size, big_endian: text.starts_with('>') && size > 1 })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match (self.size, self.big_endian) {
            (1, _) => '|',
            (_, true) => '>',
            (_, false) => '<',
        };
        let kind = match self.kind {
            Kind::Bool => 'b',
            Kind::Signed => 'i',
            Kind::Unsigned => 'u',
            Kind::Float => 'f',
        };
        write!(f, "{order}{kind}{}", self.size)
    }
}

impl<'a> Array<'a> {
    fn new(dtype: Dtype, shape: &[u64], data: Cow<'a, [u8]>) -> Result<Self, ArrayError> {
        if shape.len() > DIMS_MAX {
            return Err(ArrayError::Dims(shape.len()));
        }
        let values = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let fits = values.and_then(|values| values.checked_mul(dtype.size as u64)) == Some(data.len() as u64);
        let sides: Option<Vec<usize>> = shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        match sides {
            Some(shape) if fits => Ok(Self { dtype, shape, data }),
            _ => Err(ArrayError::Size { shape: shape.to_vec(), dtype, bytes: data.len() }),
        }
    }

    /// An array of bytes; `None` unless the shape has as many values.
    pub fn of_u8(shape: &[usize], data: impl Into<Cow<'a, [u8]>>) -> Option<Self> {
        let shape: Vec<u64> = shape.iter().map(|&dim| dim as u64).collect();
        Self::new(Dtype::U8, &shape, data.into()).ok()
    }

    /// An array of floats; `None` unless the shape has as many values.
    pub fn of_f32(shape: &[usize], values: &[f32]) -> Option<Array<'static>> {
        let shape: Vec<u64> = shape.iter().map(|&dim| dim as u64).collect();
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Array::new(Dtype::F32, &shape, data.into()).ok()
    }

    /// The type of its values.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its bytes.
    pub(super) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Its values in C order.
    pub fn to_f64(&self) -> Vec<f64> {
        self.data.chunks_exact(self.dtype.size).map(|value| self.dtype.value(value)).collect()
    }

    /// Its values in C order, rounded to single precision.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.chunks_exact(self.dtype.size).map(|value| self.dtype.value(value) as f32).collect()
    }

    /// Its only value, if it is a whole number from 0 on.
    pub fn whole(&self) -> Option<u64> {
        if self.data.len() != self.dtype.size {
            return None;
        }
        match self.dtype.kind {
            Kind::Bool | Kind::Unsigned => Some(self.dtype.bits(&self.data)),
            Kind::Signed if self.dtype.value(&self.data) < 0.0 => None,
            Kind::Signed => Some(self.dtype.bits(&self.data)),
            Kind::Float => None,
        }
    }

    /// Its values, if they are bytes.
    pub fn into_u8(self) -> Option<Vec<u8>> {
        (self.dtype == Dtype::U8).then(|| self.data.into_owned())
    }
}

impl fmt::Display for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of shape {:?} and dtype {}", self.shape, self.dtype)
    }
}

/// The array or scalar that a map stands for; the map itself if it is one. openpi's arrays and scalars have
/// `__ndarray__` or `__npgeneric__`, those of the package msgpack-numpy have `nd`.
pub(super) fn from_map(map: Map<'_>) -> Value<'_> {
    read_map(map).unwrap_or_else(Value::Unreadable)
}

fn read_map(mut map: Map<'_>) -> Result<Value<'_>, ArrayError> {
    if map.contains_key("__ndarray__") {
        if let Some(text) = text(&map) {
            return Ok(text);
        }
        let dtype = dtype(map.get("dtype"), "dtype")?;
        return array(&mut map, dtype);
    }
    if map.contains_key("__npgeneric__") {
        let dtype = dtype(map.get("dtype"), "dtype")?;
        return match map.remove("data") {
            Some(item @ (Value::Bool(_) | Value::Integer(_) | Value::Float(_))) => Ok(item),
            item => Err(ArrayError::Item { dtype, item: item.unwrap_or(Value::Nil).kind() }),
        };
    }
    match (map.get("nd"), map.get("type")) {
        (Some(Value::Bool(is_array)), Some(_)) => {
            let is_array = *is_array;
            // The kind is a letter for structured and pickled arrays.
            let plain = match map.get("kind") {
                None | Some(Value::Nil) => true,
                Some(Value::Text(kind)) => kind.is_empty(),
                Some(Value::Bytes(kind)) => kind.is_empty(),
                Some(_) => false,
            };
            if !plain {
                return Err(ArrayError::Part("kind"));
            }
            let dtype = dtype(map.get("type"), "type")?;
            if !is_array {
                map.insert("shape".into(), Value::List(Vec::new()));
            }
            array(&mut map, dtype)
        }
        _ => Ok(Value::Map(map)),
    }
}

/// An array that is one string: `<U12` in UTF-32 or `|S12` in bytes, filled up with zeros.
fn text(map: &Map<'_>) -> Option<Value<'static>> {
    let dtype = match map.get("dtype")? {
        Value::Text(dtype) => &**dtype,
        Value::Bytes(dtype) => std::str::from_utf8(dtype).ok()?,
        _ => return None,
    };
    let (Value::List(shape), Value::Bytes(data)) = (map.get("shape")?, map.get("data")?) else { return None };
    if !shape.is_empty() {
        return None;
    }
    let text = match dtype.trim_start_matches(['<', '|']).chars().next()? {
        'U' => {
            let letters = data.chunks_exact(4).map(|letter| {
                char::from_u32(u32::from_le_bytes([letter[0], letter[1], letter[2], letter[3]]))
            });
            letters.collect::<Option<String>>()?
        }
        'S' => String::from_utf8(data.to_vec()).ok()?,
        _ => return None,
    };
    Some(Value::Text(text.trim_end_matches('\0').to_owned().into()))
}

fn dtype(value: Option<&Value<'_>>, part: &'static str) -> Result<Dtype, ArrayError> {
    match value {
        Some(Value::Text(text)) => text.parse(),
        Some(Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).parse(),
        _ => Err(ArrayError::Part(part)),
    }
}

fn array<'a>(map: &mut Map<'a>, dtype: Dtype) -> Result<Value<'a>, ArrayError> {
    let Some(Value::List(shape)) = map.remove("shape") else { return Err(ArrayError::Part("shape")) };
    let shape: Option<Vec<u64>> = shape.iter().map(Value::whole).collect();
    let shape = shape.ok_or(ArrayError::Part("shape"))?;
    let Some(Value::Bytes(data)) = map.remove("data") else { return Err(ArrayError::Part("data")) };
    Ok(Value::Array(Array::new(dtype, &shape, data)?))
}
