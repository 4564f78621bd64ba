//! Real inputs that lie beside the project, where they do.

use std::path::PathBuf;

/// The file `name` of the shared data, or `None` with a message: the project builds and tests without it.
pub fn shared_file(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SUSUI_SHARED_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: {} is not here (set SUSUI_SHARED_DATA to the directory that has it)", path.display());
    None
}
