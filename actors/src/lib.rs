//! tensact
