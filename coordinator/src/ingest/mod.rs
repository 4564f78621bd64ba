//! (being written)

pub mod chunk;
pub mod parse;
