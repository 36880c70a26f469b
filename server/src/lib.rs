//! The policy server: robots send observations over the wire that openpi speaks, and get action chunks.

mod asking;
mod auth;
mod chunking;
pub mod config;
mod dashboard;
mod failure;
mod http;
mod listen;
pub mod load;
pub mod openpi;
mod server;
mod serving;
mod telemetry;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod wire;

pub use auth::{ApiKeys, ApiKeysError};
pub use listen::TlsError;
pub use server::{Handle, Server, ServerError};
pub use telemetry::otlp::{Otlp, OtlpError};
