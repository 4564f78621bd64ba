//! The metadata leader's hand: it watches the nodes, decides, and submits commands.

pub mod decide;
pub mod observe;
pub(crate) mod outlook;
mod repair;
pub(crate) mod run;
