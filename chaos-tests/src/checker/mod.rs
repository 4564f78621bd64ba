//! One promise per file; each reads the cluster from outside and the lists the workload kept.

pub mod acknowledged;
pub mod copies_agree;
