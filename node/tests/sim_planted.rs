//! The simulation finds bugs that are planted in the core: each within as many seeds as `sim_group` runs without one.
//!
//! A binary of its own with one test, because a rule is broken for the whole process.

mod sim_support;

use std::panic::{catch_unwind, set_hook, take_hook};

use node::replication::break_rule;
use sim_support::group::Group;

const SEEDS: u64 = 200;

#[test]
fn planted_bugs_are_found() {
    let tell = take_hook();
    set_hook(Box::new(|_| ()));
    let found = ["AckBeforeFsync", "AnswerBeforeDurable", "ResumeAfterRestart", "ApplyUncommitted"].map(|rule| {
        break_rule(rule).expect("a rule");
        let broken = (0..SEEDS).find_map(|seed| Some((seed, catch_unwind(|| Group::run(seed)).err()?)));
        (rule, broken)
    });
    set_hook(tell);
    for (rule, broken) in found {
        let (seed, panic) = broken.unwrap_or_else(|| panic!("{rule} was not found in {SEEDS} seeds"));
        let what = panic.downcast_ref::<String>().map_or("an assertion", String::as_str);
        println!("{rule}: seed {seed}: {}", what.lines().next().unwrap_or_default());
    }
}
