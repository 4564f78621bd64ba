//! Keeping the copies of a shard equal: primary-backup with a term, an in-order log and an in-sync set held in Raft.

pub mod storage;
