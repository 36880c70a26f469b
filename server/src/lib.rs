//! The policy server: robots send observations over the wire that openpi speaks, and get action chunks.

mod auth;
mod chunking;
pub mod config;
mod http;
mod listen;
pub mod load;
mod metrics;
pub mod openpi;
mod server;
mod serving;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod wire;

pub use auth::{ApiKeys, ApiKeysError};
pub use listen::TlsError;
pub use server::{Handle, Server, ServerError};
