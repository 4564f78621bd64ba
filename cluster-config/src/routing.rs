//! (being written)
/// The hash scheme of new collections.
pub const HASH_SCHEME_CURRENT: u16 = 1;
