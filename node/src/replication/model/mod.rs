//! The protocol searched for mistakes: a small world in which the real core, the real opening and the real register rules run, looked
//! at from outside after every step.
//!
//! `world` is the state and what can happen, `oracle` what must hold, `sights` what a search must have met to count; `search` goes
//! through it breadth first with `stateright`, `walk` in seeded random walks from the situations in `starts`, and `mutants` shows that broken rules are found.

mod disk;
mod fingerprint;
mod mutants;
mod oracle;
mod search;
mod sights;
mod starts;
mod walk;
mod world;

/// A number that the environment may set.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}
