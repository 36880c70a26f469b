//! tensact-server
