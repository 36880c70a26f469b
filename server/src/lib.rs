//! The policy server: robots send observations over the wire that openpi speaks, and get action chunks.

pub mod load;
pub mod wire;
