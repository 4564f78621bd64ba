//! Where a development cluster lies on disk, which ports it takes, and what its configuration files hold. Pure but for the
//! manifest, which remembers what a directory was made with.
//!
//! ```text
//! DIR/cluster.json   what the cluster was made with      DIR/conf/*.toml   written once, then the user's
//! DIR/data/NAME/     each process's data                 DIR/log/NAME.log  its output
//! DIR/run/NAME.pid   who runs (see `process`)            DIR/run/lock      held by `up` and `down`
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use cluster_config::coordinator_config::{WrittenCoordinatorConfig, WrittenEmbedder};
use cluster_config::node_config::{Role, WrittenMetadata, WrittenNodeConfig, WrittenVoter};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Most nodes of a development cluster: the ports of a node are one digit apart from the next.
pub const NODES_MAX: u16 = 9;
/// Nodes where none are asked for.
pub const NODES_DEFAULT: u16 = 3;
/// First port where none is asked for: the coordinator's public port.
pub const BASE_PORT_DEFAULT: u16 = 8000;
/// Most voters of the metadata group.
const VOTERS_MAX: u16 = 5;

/// What a directory's cluster was made with. Never changes afterwards: the nodes' addresses are part of the metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Unique, so that processes of two directories can never be taken for one cluster.
    pub cluster_id: String,
    /// Number of nodes.
    pub nodes: u16,
    /// The first so many of them vote in the metadata group and hold no shards, all others hold shards and do not vote; 0: nodes do
    /// both.
    #[serde(default)]
    pub metadata_only: u16,
    /// First port.
    pub base_port: u16,
    /// Directory of the embedding model.
    pub model_dir: PathBuf,
}

/// One process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `node-1` or `coordinator`: names files and log lines.
    pub name: String,
    /// Program to run.
    pub binary: &'static str,
    /// Port of health and metrics (nodes) or of the API (coordinator).
    pub http_port: u16,
    /// Port of gRPC, nodes only.
    pub rpc_port: Option<u16>,
}

impl Member {
    /// Every port it listens on.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.rpc_port.into_iter().chain([self.http_port])
    }

    /// Root of its HTTP.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }
}

impl Manifest {
    /// The nodes, then the coordinator: the order to start in; the reverse is the order to stop in.
    pub fn members(&self) -> Vec<Member> {
        let node = |id: u16| Member {
            name: format!("node-{id}"),
            binary: "susui-node",
            http_port: self.base_port + 20 + id,
            rpc_port: Some(self.rpc_port(id)),
        };
        let coordinator = Member {
            name: "coordinator".into(),
            binary: "susui-coordinator",
            http_port: self.base_port,
            rpc_port: None,
        };
        (1..=self.nodes).map(node).chain([coordinator]).collect()
    }

    /// Address of the coordinator's API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.base_port)
    }

    fn rpc_port(&self, node: u16) -> u16 {
        self.base_port + 10 + node
    }

    /// Nodes that vote, the first ones: those made for it, else as many as possible, an odd number, at most five.
    fn voter_count(&self) -> u16 {
        if self.metadata_only > 0 {
            return self.metadata_only;
        }
        let most = self.nodes.min(VOTERS_MAX);
        most - (1 - most % 2)
    }

    fn node_config(&self, id: u16, data_dir: PathBuf) -> WrittenNodeConfig {
        let voter = |id: u16| WrittenVoter { node_id: id.into(), address: format!("127.0.0.1:{}", self.rpc_port(id)) };
        let roles = match (id <= self.voter_count(), self.metadata_only > 0) {
            (true, true) => vec![Role::Metadata],
            (true, false) => vec![Role::Metadata, Role::Data],
            (false, _) => vec![Role::Data],
        };
        WrittenNodeConfig {
            cluster_id: Some(self.cluster_id.clone()),
            node_id: Some(id.into()),
            roles: Some(roles),
            data_dir: Some(data_dir),
            rpc_listen: Some(format!("127.0.0.1:{}", self.rpc_port(id))),
            http_listen: Some(format!("127.0.0.1:{}", self.base_port + 20 + id)),
            // Each node stands for a machine of its own, so that copies of a shard never share one.
            zone: Some(format!("zone-{id}")),
            metadata: WrittenMetadata { voters: (1..=self.voter_count()).map(voter).collect() },
            ..WrittenNodeConfig::default()
        }
    }

    fn coordinator_config(&self, data_dir: PathBuf) -> WrittenCoordinatorConfig {
        WrittenCoordinatorConfig {
            cluster_id: Some(self.cluster_id.clone()),
            http_listen: Some(format!("127.0.0.1:{}", self.base_port)),
            nodes: (1..=self.nodes).map(|id| format!("127.0.0.1:{}", self.rpc_port(id))).collect(),
            data_dir: Some(data_dir),
            embedder: WrittenEmbedder {
                model_dir: Some(self.model_dir.to_string_lossy().into_owned()),
                ..WrittenEmbedder::default()
            },
            ..WrittenCoordinatorConfig::default()
        }
    }
}

/// Paths below one directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of an absolute directory, existing or not.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Configuration file of a process.
    pub fn config_file(&self, name: &str) -> PathBuf {
        self.root.join("conf").join(format!("{name}.toml"))
    }

    /// Log of a process.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.root.join("log").join(format!("{name}.log"))
    }

    /// Pid file of a process.
    pub fn pid_file(&self, name: &str) -> PathBuf {
        self.root.join("run").join(format!("{name}.pid"))
    }

    /// What the directory was made with; `None` where no cluster was made here.
    pub fn manifest(&self) -> Result<Option<Manifest>, Error> {
        let path = self.manifest_file();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file(&path, &error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::local(format!("{}: {error}", path.display()), "choose another --data-dir"))
    }

    /// As [`Layout::manifest`], for verbs that need a cluster. Errors: none was made here.
    pub fn existing_manifest(&self) -> Result<Manifest, Error> {
        self.manifest()?.ok_or_else(|| {
            Error::local(
                format!("no cluster was made in {}", self.root.display()),
                "start one with `susui dev up`, or name its directory with --data-dir",
            )
        })
    }

    /// Makes the directories, writes the manifest and whatever configuration file is missing. Files that exist are left as
    /// they are: they are the user's to edit.
    pub fn write(&self, manifest: &Manifest) -> Result<(), Error> {
        for sub in ["conf", "data", "log", "run"] {
            create_dir(&self.root.join(sub))?;
        }
        for member in manifest.members() {
            let data_dir = self.root.join("data").join(&member.name);
            create_dir(&data_dir)?;
            let text = match member.name.strip_prefix("node-").and_then(|id| id.parse().ok()) {
                Some(id) => manifest.node_config(id, data_dir).to_toml(),
                None => manifest.coordinator_config(data_dir).to_toml(),
            };
            let text = text.map_err(|error| Error::local(error.to_string(), ""))?;
            let path = self.config_file(&member.name);
            if !path.exists() {
                write_whole(&path, format!("# Written by `susui dev up` and never overwritten.\n{text}").as_bytes())?;
            }
        }
        let json = serde_json::to_vec_pretty(manifest).expect("a manifest is plain data");
        write_whole(&self.manifest_file(), &json)
    }

    /// Takes the directory for this process until the file is dropped. Errors: another `up` or `down` is at work.
    pub fn lock(&self) -> Result<fs::File, Error> {
        let path = self.root.join("run").join("lock");
        create_dir(&self.root.join("run"))?;
        let file = fs::File::create(&path).map_err(|error| Error::file(&path, &error))?;
        file.try_lock().map_err(|_| {
            Error::local(
                format!("another `susui dev` is at work on {}", self.root.display()),
                "wait for it, or choose another --data-dir",
            )
        })?;
        Ok(file)
    }

    fn manifest_file(&self) -> PathBuf {
        self.root.join("cluster.json")
    }
}

fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|error| Error::file(path, &error))
}

/// Writes a file so that a reader sees all of it or none.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let part = path.with_extension("part");
    fs::write(&part, bytes).and_then(|()| fs::rename(&part, path)).map_err(|error| Error::file(path, &error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cluster_config::coordinator_config::CoordinatorConfig;
    use cluster_config::node_config::NodeConfig;

    use super::*;

    fn manifest(nodes: u16) -> Manifest {
        Manifest { cluster_id: "dev-1".into(), nodes, metadata_only: 0, base_port: 8000, model_dir: "/models/m".into() }
    }

    #[test]
    fn every_size_gives_files_that_its_processes_accept() {
        for nodes in 1..=NODES_MAX {
            let dir = tempfile::tempdir().expect("a directory");
            let layout = Layout::new(dir.path().to_owned());
            let made = manifest(nodes);
            layout.write(&made).expect("writes");
            assert_eq!(layout.existing_manifest().expect("reads"), made);

            let read = |name: &str| fs::read_to_string(layout.config_file(name)).expect("exists");
            let none = || Vec::<(String, String)>::new();
            let configs: Vec<NodeConfig> = (1..=nodes)
                .map(|id| NodeConfig::from_toml(&read(&format!("node-{id}")), none()).expect("valid"))
                .collect();
            let voters = configs.iter().filter(|config| config.is_voter()).count();
            assert!(voters % 2 == 1 && voters <= 5, "{nodes} nodes, {voters} voters");
            assert!(configs.iter().all(|config| config.voters == configs[0].voters && config.is_data()));
            let coordinator = CoordinatorConfig::from_toml(&read("coordinator"), none()).expect("valid");
            assert_eq!(coordinator.nodes.len(), usize::from(nodes));
            assert_eq!(coordinator.embedder.model_dir, Path::new("/models/m"));
        }
    }

    #[test]
    fn the_manual_s_sections_can_be_appended_to_the_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path().to_owned());
        layout.write(&manifest(3)).expect("writes");
        let read = |name: &str| fs::read_to_string(layout.config_file(name)).expect("exists");
        let none = || Vec::<(String, String)>::new();
        let backend =
            "[[llm.backends]]\nname = \"local\"\nkind = \"ollama\"\nurl = \"http://127.0.0.1:11434\"\nmodel = \"m\"\n";
        let sections = format!(
            "{backend}[auth]\nkeys_required = true\n[cache]\nenabled = false\n[search]\n[ingest]\nworkers = 1\n"
        );
        let config =
            CoordinatorConfig::from_toml(&format!("{}\n{sections}", read("coordinator")), none()).expect("valid");
        assert!(config.auth.keys_required && config.llm.backends.len() == 1);
        let sections = "[storage]\nfull_percent = 90\n[timing]\n[search]\n[dial_overrides]\n";
        let config = NodeConfig::from_toml(&format!("{}\n{sections}", read("node-1")), none()).expect("valid");
        assert_eq!(config.storage.full_percent, 90);
    }

    #[test]
    fn voters_and_data_nodes_can_be_processes_of_their_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path().to_owned());
        layout.write(&Manifest { metadata_only: 3, ..manifest(5) }).expect("writes");
        let roles = |id: u16| {
            let text = fs::read_to_string(layout.config_file(&format!("node-{id}"))).expect("exists");
            let config = NodeConfig::from_toml(&text, Vec::<(String, String)>::new()).expect("valid");
            assert_eq!(config.voters.len(), 3);
            (config.is_voter(), config.is_data())
        };
        assert_eq!(
            (1..=5).map(roles).collect::<Vec<_>>(),
            [[(true, false)].repeat(3), [(false, true)].repeat(2)].concat()
        );
    }

    #[test]
    fn a_manifest_of_before_reads_as_nodes_that_do_both() {
        let text = r#"{"cluster_id": "dev-1", "nodes": 3, "base_port": 8000, "model_dir": "/m"}"#;
        assert_eq!(serde_json::from_str::<Manifest>(text).expect("reads").metadata_only, 0);
    }

    #[test]
    fn no_port_is_taken_twice() {
        let members = manifest(NODES_MAX).members();
        let ports: Vec<u16> = members.iter().flat_map(Member::ports).collect();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
    }

    #[test]
    fn edited_files_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path().to_owned());
        layout.write(&manifest(1)).expect("writes");
        fs::write(layout.config_file("node-1"), "mine").expect("edits");
        layout.write(&manifest(1)).expect("writes again");
        assert_eq!(fs::read_to_string(layout.config_file("node-1")).expect("reads"), "mine");
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path().to_owned());
        let held = layout.lock().expect("free");
        assert!(layout.lock().is_err());
        drop(held);
        layout.lock().expect("free again");
    }
}
