//! Where the embedding model lies.

use std::path::PathBuf;

/// The model's directory: `SUSUI_MODEL_DIR`, else where `ops/quickstart` puts it. `None`, with a message, where it is absent.
pub fn model_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("SUSUI_MODEL_DIR").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".local/share/susui/models/all-MiniLM-L6-v2"))
    })?;
    if dir.join("model.safetensors").exists() {
        return Some(dir);
    }
    println!("SKIPPED: no embedding model in {} (ops/test fetches it; or set SUSUI_MODEL_DIR)", dir.display());
    None
}
