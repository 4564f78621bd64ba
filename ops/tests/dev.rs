//! `susui dev` with real processes that stand in for nodes and coordinator: who is started, left alone, stopped, killed.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use chaos_tests::dev::PORTS;
use chaos_tests::ports::free_port_range;
use ops::dev::process::Identity;
use serde_json::Value;

const SUSUI: &str = env!("CARGO_BIN_EXE_susui");

/// A directory with a cluster in it that is stopped when the test ends, however it ends.
struct Dev {
    dir: tempfile::TempDir,
    base_port: u16,
}

impl Dev {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("creates");
        let fake = Path::new(SUSUI).parent().expect("has one").join("examples/fake_member");
        assert!(fake.exists(), "{} is built by cargo together with the tests", fake.display());
        for name in ["susui-node", "susui-coordinator"] {
            std::fs::copy(&fake, bin.join(name)).expect("copies");
        }
        std::fs::create_dir(dir.path().join("model")).expect("creates");
        std::fs::write(dir.path().join("model/model.safetensors"), "").expect("writes");
        Self { base_port: free_port_range(PORTS).expect("free ports"), dir }
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(SUSUI);
        command.args(["--json", "dev"]).args(arguments).arg("--data-dir").arg(self.data_dir());
        command.output().expect("susui runs")
    }

    fn up(&self) -> Output {
        let port = self.base_port.to_string();
        let place = |name: &str| self.dir.path().join(name).display().to_string();
        self.run(&[
            "up",
            "--base-port",
            &port,
            "--wait",
            "60s",
            "--bin-dir",
            &place("bin"),
            "--model-dir",
            &place("model"),
        ])
    }

    /// Pid by process, of those that run.
    fn pids(&self) -> BTreeMap<String, u64> {
        let status = json(&self.run(&["status"]).stdout);
        let processes = status["processes"].as_array().expect("a list");
        let running = processes
            .iter()
            .filter_map(|process| Some((process["name"].as_str()?.to_owned(), process["pid"].as_u64()?)));
        running.collect()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.run(&["down", "--grace", "1s"]);
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(bytes)))
}

fn exists(pid: u64) -> bool {
    Identity::of(u32::try_from(pid).expect("a pid")).is_some()
}

/// Field 6 of `/proc/PID/stat`.
fn session_of(pid: u64) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("lives");
    stat.rsplit_once(')')
        .expect("has a name")
        .1
        .split_whitespace()
        .nth(3)
        .expect("a session")
        .parse()
        .expect("a number")
}

fn assert_exit(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn up_starts_what_is_missing_and_down_stops_it() {
    let dev = Dev::new();
    let up = dev.up();
    assert_exit(&up, 0);
    assert_eq!(json(&up.stdout)["started"].as_array().expect("a list").len(), 4);
    let first = dev.pids();
    assert_eq!(first.keys().collect::<Vec<_>>(), ["coordinator", "node-1", "node-2", "node-3"]);
    for pid in first.values() {
        assert_eq!(session_of(*pid), *pid, "each process leads a session of its own");
    }

    // Again: nothing to do, nobody restarted.
    let again = dev.up();
    assert_exit(&again, 0);
    assert_eq!(json(&again.stdout)["started"], serde_json::json!([]));
    assert_eq!(dev.pids(), first);

    // One dies: only that one is started again.
    kill(first["node-2"]);
    assert_exit(&dev.run(&["status"]), 7);
    let third = dev.up();
    assert_eq!(json(&third.stdout)["started"], serde_json::json!(["node-2"]));
    let second = dev.pids();
    assert_ne!(second["node-2"], first["node-2"]);
    assert_eq!(second["node-1"], first["node-1"]);

    // One stands still: it goes on.
    signal(second["node-1"], "-STOP");
    let identity = Identity::of(u32::try_from(second["node-1"]).expect("a pid")).expect("runs");
    wait_until("the process stands still", || identity.is_stopped());
    assert_exit(&dev.up(), 0);
    assert_eq!(dev.pids(), second);

    let down = dev.run(&["down"]);
    assert_exit(&down, 0);
    assert_eq!(json(&down.stdout)["stopped"].as_array().expect("a list").len(), 4);
    assert!(second.values().all(|pid| !exists(*pid)));
    assert!(dev.data_dir().join("data/node-1").is_dir(), "the data stays");
    assert_exit(&dev.run(&["down"]), 0);
}

#[test]
fn who_ignores_sigterm_is_killed_after_the_grace_period() {
    let dev = Dev::new();
    let stubborn = dev.data_dir().join("data/node-1");
    std::fs::create_dir_all(&stubborn).expect("creates");
    std::fs::write(stubborn.join("stubborn"), "").expect("writes");
    assert_exit(&dev.up(), 0);
    let pids = dev.pids();
    let down = json(&dev.run(&["down", "--grace", "300ms"]).stdout);
    assert_eq!(down["killed"], serde_json::json!(["node-1"]));
    assert!(pids.values().all(|pid| !exists(*pid)));
}

#[test]
fn a_process_that_dies_at_start_is_reported_with_its_log() {
    let dev = Dev::new();
    let broken = dev.data_dir().join("data/node-3");
    std::fs::create_dir_all(&broken).expect("creates");
    std::fs::write(broken.join("broken"), "").expect("writes");
    let up = dev.up();
    assert_exit(&up, 1);
    let message = json(&up.stderr)["error"]["message"].as_str().expect("text").to_owned();
    assert!(message.contains("node-3 ended") && message.contains("this data directory is broken"), "{message}");
}

#[test]
fn a_foreign_listener_and_a_contradiction_are_named() {
    let dev = Dev::new();
    // The coordinator's, which is started last.
    let port = dev.base_port;
    let foreign = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("free");
    let up = dev.up();
    assert_exit(&up, 1);
    assert!(String::from_utf8_lossy(&up.stderr).contains(&format!("port {port}")));
    assert!(dev.pids().is_empty(), "nothing is started where something cannot be");
    drop(foreign);
    // The directory is made by now: another number of nodes contradicts it.
    assert_exit(&dev.run(&["up", "--nodes", "5"]), 2);
}

#[test]
fn mistakes_are_told_before_anything_is_started() {
    let dev = Dev::new();
    let model = dev.dir.path().join("model/model.safetensors");
    std::fs::remove_file(&model).expect("removes");
    let up = dev.up();
    assert_exit(&up, 1);
    assert!(String::from_utf8_lossy(&up.stderr).contains("ops/fetch-model"));
    std::fs::write(&model, "").expect("writes");
    let config = dev.data_dir().join("conf/node-2.toml");
    std::fs::write(&config, "node_id = 2\nnode_name = \"x\"\n").expect("writes");
    let up = dev.up();
    assert_exit(&up, 1);
    assert!(String::from_utf8_lossy(&up.stderr).contains("node-2.toml: "));
    assert!(dev.pids().is_empty());
}

fn signal(pid: u64, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs").success());
}

fn kill(pid: u64) {
    signal(pid, "-KILL");
    wait_until("the killed process is gone", || !exists(pid));
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::yield_now();
    }
}
