//! The Python clients of OpenAI and Ollama, as published, against the front doors.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use chaos_tests::llm::{Script, ScriptedLlm};
use cluster_config::llm_config::LlmKind;

use super::llm::{pool_of, with_text};

/// The interpreter of the environment that `ops/test` makes.
fn python() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    let venv =
        std::env::var_os("SUSUI_CLIENTS_VENV").map_or_else(|| home().join(".cache/susui/clients"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(python.exists(), "no Python clients in {}: run ops/test, which installs them there", venv.display());
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn unmodified_python_clients_chat_stream_embed_and_list() {
    let python = python();
    for kind in [LlmKind::Ollama, LlmKind::Openai] {
        let server = ScriptedLlm::start(Script::default()).await.expect("starts");
        let c = with_text(pool_of(&[(&server, kind)])).await;
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients/clients.py");
        let mut command = tokio::process::Command::new(&python);
        command.arg(script).args([c.base.as_str(), "t", "small", "fake-hash-16"]);
        // A proxy of the environment is for the outside world.
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await;
        let output = output.expect("the clients end").expect("Python starts");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{kind:?}: {out}{err}");
        c.stop().await;
    }
}
