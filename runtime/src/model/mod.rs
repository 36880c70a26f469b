//! What is computed: inputs, the three stages, and the integration from noise to actions.

pub mod input;
