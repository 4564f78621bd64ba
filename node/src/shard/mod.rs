//! (being written)

pub mod operation;
