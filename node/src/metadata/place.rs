//! Where the copies of a new collection go.
