//! Everything that happens on one device, or before and after it: checkpoints, tensors, kernels, the three
//! stages of a π0 policy, and the way from camera images and text to model input and back to robot actions.

pub mod checkpoint;
pub mod config;
pub mod device;
pub mod model;
pub mod observation;
pub mod policy;
pub mod preprocess;
pub mod reference;
mod tensor;
pub mod tensor_file;
pub mod verify;

pub use tensor::{ShapeMismatch, Tensor};
