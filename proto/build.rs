//! Generates the wire types and service stubs from `susui/v1/*.proto`.

fn main() -> std::io::Result<()> {
    let files: Vec<String> = ["common", "metadata", "raft", "replication", "search", "admin", "transfer"]
        .iter()
        .map(|name| format!("susui/v1/{name}.proto"))
        .collect();
    tonic_prost_build::configure()
        // Maps in key order: the same state gives the same bytes.
        .btree_map(".")
        .bytes(".susui.v1.LogEntry.payload")
        .bytes(".susui.v1.Chunk.vector")
        .bytes(".susui.v1.RaftMessage.body")
        .bytes(".susui.v1.SnapshotPiece.data")
        .bytes(".susui.v1.ReadPieceReply.data")
        .compile_protos(&files, &[".".to_owned()])
}
