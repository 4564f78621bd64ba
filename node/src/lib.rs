//! A Susui node: metadata voter, data node, or both.
