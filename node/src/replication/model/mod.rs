//! The protocol searched for mistakes: a small world in which the real core, the real opening and the real register rules run, looked
//! at from outside after every step.
//!
//! `world` is the state and what can happen, `oracle` what must hold, `sights` what a search must have met to count; `search` goes
//! through it breadth first with `stateright`, `walk` in seeded random walks, and `mutants` shows that broken rules are found.

mod disk;
mod fingerprint;
mod mutants;
mod oracle;
mod search;
mod sights;
mod walk;
mod world;
