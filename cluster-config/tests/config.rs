//! Both configurations: the examples load, defaults are as documented, and every mistake is answered with its key.

use std::time::Duration;

use cluster_config::coordinator_config::{CoordinatorConfig, WrittenCoordinatorConfig};
use cluster_config::ids::NodeId;
use cluster_config::node_config::{NodeConfig, TimingConfig, WrittenNodeConfig};
use cluster_config::units::ByteSize;

const NODE: &str = include_str!("../examples/node.toml");
const COORDINATOR: &str = include_str!("../examples/coordinator.toml");
const THREE_NODES: [&str; 3] = [
    include_str!("../examples/three-nodes-1.toml"),
    include_str!("../examples/three-nodes-2.toml"),
    include_str!("../examples/three-nodes-3.toml"),
];

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The example with its commented-out keys (`# key = value`) taken in, each of which shows a default or a sample.
fn uncommented(example: &str) -> String {
    let is_key = |line: &str| {
        let key = line.split_once(" = ").map_or("", |(key, _)| key);
        !key.is_empty() && key.trim_matches('"').chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let uncomment = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if is_key(rest) || rest.starts_with("[[") => rest.to_owned(),
        _ => line.to_owned(),
    };
    example.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

#[test]
fn example_node_loads_with_the_documented_defaults() {
    let config = NodeConfig::from_toml(NODE, []).expect("loads");
    assert_eq!(config.node_id, NodeId(1));
    assert!(config.is_voter() && config.is_data());
    assert_eq!(config.rpc_advertise, "127.0.0.1:7001");
    assert_eq!((config.zone.as_str(), config.weight), ("default", 100));
    assert_eq!(config.timing, TimingConfig::default());
    assert_eq!(config.timing.node_timeout, Duration::from_secs(3));
    assert_eq!(config.storage.block_cache, ByteSize::mib(256));
}

#[test]
fn commented_keys_of_the_examples_are_the_defaults() {
    let node = NodeConfig::from_toml(NODE, []).expect("loads");
    let mut all = NodeConfig::from_toml(&uncommented(NODE), []).expect("loads");
    assert_eq!((all.search.threads, all.dial_overrides.len()), (Some(2), 1), "the samples were taken in");
    assert_eq!(all.storage.memory_budget, Some(ByteSize::mib(16 * 1024)));
    all.search.threads = None;
    all.storage.memory_budget = None;
    all.dial_overrides.clear();
    all.rpc_advertise = node.rpc_advertise.clone();
    assert_eq!(all, node);

    let coordinator = CoordinatorConfig::from_toml(COORDINATOR, []).expect("loads");
    let mut all = CoordinatorConfig::from_toml(&uncommented(COORDINATOR), []).expect("loads");
    assert_eq!((all.llm.backends.len(), all.embedder.threads), (1, Some(2)), "the samples were taken in");
    assert_eq!(all.zone.take().as_deref(), Some("rack-1"));
    assert_eq!(all.ingest.tenant_priority.remove("acme"), Some(10));
    assert!(all.cache.redis.take().is_some(), "the sample was taken in");
    assert_eq!(
        (all.llm.gpu_layers.take(), all.llm.routing.fast_model.take().as_deref()),
        (Some(-1), Some("llama3.2:1b"))
    );
    all.llm.routing.fallback_models.clear();
    all.llm.backends.clear();
    all.embedder.threads = None;
    all.dial_overrides.clear();
    assert_eq!(all, coordinator);
}

#[test]
fn example_nodes_form_one_group() {
    let configs = THREE_NODES.map(|text| NodeConfig::from_toml(text, []).expect("loads"));
    for (config, id) in configs.iter().zip(1u64..) {
        assert_eq!(config.node_id, NodeId(id));
        assert_eq!(config.voters, configs[0].voters);
        assert_eq!(config.voters[&config.node_id], config.rpc_advertise);
    }
}

#[test]
fn example_coordinator_loads_with_the_documented_defaults() {
    let config = CoordinatorConfig::from_toml(COORDINATOR, []).expect("loads");
    assert_eq!(config.catalog.url, "sqlite:///var/lib/susui/coordinator/catalog.db");
    assert_eq!((config.catalog.pool_size, config.catalog.max_overflow), (20, 40));
    assert_eq!(config.catalog.connections_max(), 60);
    assert_eq!(config.embedder.model_dir.to_str(), Some("/var/lib/susui/coordinator/models/all-MiniLM-L6-v2"));
    assert_eq!((config.llm.max_tokens, config.llm.temperature, config.llm.top_k), (256, 0.1, 20));
}

#[test]
fn the_environment_overrides_the_file() {
    let variables = environment(&[
        ("ENABLE_CACHING", "false"),
        ("CACHE_TTL_SECONDS", "60"),
        ("DATABASE_URL", "postgresql://susui@db/susui"),
        ("DATABASE_POOL_SIZE", "5"),
        ("DATABASE_MAX_OVERFLOW", "0"),
        ("DATABASE_POOL_TIMEOUT", "3s"),
        ("OLLAMA_MAX_TOKENS", "32"),
        ("OLLAMA_TEMPERATURE", "0.7"),
        ("OLLAMA_TOP_K", "40"),
        ("OLLAMA_GPU", "false"),
        ("REDIS_URL", "redis://cache-1:6379,cache-2:6379"),
        ("PATH", "/bin"),
    ]);
    let config = CoordinatorConfig::from_toml(COORDINATOR, variables).expect("loads");
    assert!(!config.cache.enabled);
    assert_eq!(config.cache.ttl, Duration::from_secs(60));
    assert_eq!(config.catalog.url, "postgresql://susui@db/susui");
    assert_eq!((config.catalog.pool_size, config.catalog.max_overflow), (5, 0));
    assert_eq!(config.catalog.pool_timeout, Duration::from_secs(3));
    assert_eq!((config.llm.max_tokens, config.llm.temperature, config.llm.top_k), (32, 0.7, 40));
    assert_eq!(config.llm.gpu_layers, Some(0));
    let redis = config.cache.redis.expect("named");
    assert_eq!(redis.urls, ["redis://cache-1:6379", "redis://cache-2:6379"]);

    let unset = CoordinatorConfig::from_toml(COORDINATOR, environment(&[("CACHE_TTL_SECONDS", "")])).expect("loads");
    assert_eq!(unset.cache.ttl, Duration::from_secs(3600));
    for (name, value) in [
        ("ENABLE_CACHING", "maybe"),
        ("DATABASE_POOL_SIZE", "-1"),
        ("OLLAMA_TEMPERATURE", "hot"),
        ("OLLAMA_GPU", "some"),
    ] {
        let error = CoordinatorConfig::from_toml(COORDINATOR, environment(&[(name, value)])).expect_err(name);
        assert_eq!(error.key, name);
    }
}

#[test]
fn test_hooks_are_refused_unless_allowed() {
    for (name, value) in [("SUSUI_CHECK", "1"), ("SUSUI_FAILPOINTS", "append=panic")] {
        let variables = environment(&[(name, value)]);
        let error = NodeConfig::from_toml(NODE, variables.clone()).expect_err(name);
        assert_eq!(error.key, "test_hooks");
        assert!(error.to_string().contains(name), "{error}");
        let allowed = NodeConfig::from_toml(&format!("test_hooks = true\n{NODE}"), variables).expect("allowed");
        assert!(allowed.test_hooks.check_invariants || allowed.test_hooks.failpoints.as_deref() == Some(value));
    }
    let refused = CoordinatorConfig::from_toml(COORDINATOR, environment(&[("SUSUI_FAILPOINTS", "x=return")]));
    assert_eq!(refused.expect_err("not allowed").key, "test_hooks");
    let off = NodeConfig::from_toml(NODE, environment(&[("SUSUI_CHECK", "0"), ("SUSUI_FAILPOINTS", "")])).expect("off");
    assert!(!off.test_hooks.check_invariants && off.test_hooks.failpoints.is_none());

    let skewed = |text: &str, skew: &str| {
        let read = CoordinatorConfig::from_toml(text, environment(&[("SUSUI_CLOCK_SKEW_MS", skew)]));
        read.map(|config| config.test_hooks.clock_skew_ms).map_err(|error| error.key)
    };
    let allowing = format!("test_hooks = true\n{COORDINATOR}");
    assert_eq!(skewed(COORDINATOR, "-60000"), Err("test_hooks".to_owned()));
    assert_eq!(skewed(&allowing, "-60000"), Ok(-60_000));
    assert_eq!(skewed(&allowing, "soon"), Err("SUSUI_CLOCK_SKEW_MS".to_owned()));
}

/// Keys are put in front of the example's text, tables behind it.
fn broken_node(addition: &str) -> String {
    let base = "cluster_id = \"dev\"\nnode_id = 1\ndata_dir = \"/d\"\n";
    let voters = "[metadata]\nvoters = [{ node_id = 1, address = \"127.0.0.1:7001\" }]\n";
    if addition.starts_with("[metadata]") {
        format!("{base}{addition}\n")
    } else if addition.starts_with('[') {
        format!("{base}{voters}{addition}\n")
    } else {
        let key = addition.split(" = ").next().unwrap_or_default();
        let kept: Vec<&str> = base.lines().filter(|line| !line.starts_with(&format!("{key} ="))).collect();
        format!("{}\n{addition}\n{voters}", kept.join("\n"))
    }
}

#[test]
fn each_mistake_in_a_node_file_is_named() {
    NodeConfig::from_toml(&broken_node("weight = 100"), []).expect("the base is sound");
    let cases = [
        ("cluster_id", "cluster_id = \"\""),
        ("cluster_id", "cluster_id = \"a b\""),
        ("node_id", "node_id = 0"),
        ("node_id", "node_id = -1"),
        ("data_dir", "data_dir = \"\""),
        ("roles", "roles = []"),
        ("roles", "roles = [\"data\"]"),
        ("roles[0]", "roles = [\"vote\"]"),
        ("rpc_listen", "rpc_listen = \"localhost\""),
        ("rpc_advertise", "rpc_listen = \"0.0.0.0:7001\""),
        ("rpc_advertise", "rpc_advertise = \"0.0.0.0:7001\""),
        ("http_listen", "http_listen = \"127.0.0.1:7001\""),
        ("zone", "zone = \"a/b\""),
        ("weight", "weight = 0"),
        ("weigth", "weigth = 1"),
        ("metadata.voters", "[metadata]\nvoters = []"),
        ("metadata.voters", "[metadata]\nvoters = [{ node_id = 2, address = \"127.0.0.1:7002\" }]"),
        ("metadata.voters[0].address", "[metadata]\nvoters = [{ node_id = 1, address = \"7001\" }]"),
        ("metadata.voters[0].addr", "[metadata]\nvoters = [{ node_id = 1, addr = \"a:7001\" }]"),
        (
            "metadata.voters",
            "[metadata]\nvoters = [{ node_id = 1, address = \"a:1\" }, { node_id = 2, address = \"a:2\" }]",
        ),
        (
            "metadata.voters[1].node_id",
            "[metadata]\nvoters = [{ node_id = 1, address = \"a:1\" }, { node_id = 1, address = \"a:2\" }]",
        ),
        (
            "metadata.voters[1].address",
            "[metadata]\nvoters = [{ node_id = 1, address = \"a:1\" }, { node_id = 2, address = \"a:1\" }]",
        ),
        ("storage.block_cache", "[storage]\nblock_cache = 0"),
        ("storage.block_cache", "[storage]\nblock_cache = \"lots\""),
        ("storage.write_buffer", "[storage]\nwrite_buffer = \"1KiB\""),
        ("storage.storage_threads", "[storage]\nstorage_threads = 0"),
        ("storage.full_percent", "[storage]\nfull_percent = 101"),
        ("storage.memory_budget", "[storage]\nmemory_budget = \"1KiB\""),
        ("search.training_threads", "[search]\ntraining_threads = 0"),
        ("search.training_memory", "[search]\ntraining_memory = \"1GiB\""),
        ("storage.scrub_interval", "[storage]\nscrub_interval = \"10ms\""),
        ("storage.log_kept_max", "[storage]\nlog_kept_max = \"1MiB\""),
        ("storage.log_kept_for", "[storage]\nlog_kept_for = \"10ms\""),
        ("search.threads", "[search]\nthreads = 0"),
        ("search.queue_max", "[search]\nqueue_max = 1000000"),
        ("timing.heartbeat", "[timing]\nheartbeat = 300"),
        ("timing.heartbeat", "[timing]\nheartbeat = \"0s\""),
        ("timing.node_timeout", "[timing]\nnode_timeout = \"500ms\""),
        ("timing.election_min", "[timing]\nelection_min = \"150ms\""),
        ("timing.election_max", "[timing]\nelection_max = \"500ms\""),
        ("dial_overrides.two", "[dial_overrides]\ntwo = \"127.0.0.1:9999\""),
        ("dial_overrides.2", "[dial_overrides]\n2 = \"127.0.0.1\""),
        ("line 4", "zone = "),
    ];
    for (key, addition) in cases {
        let error = NodeConfig::from_toml(&broken_node(addition), []).expect_err(addition);
        assert_eq!(error.key, key, "{addition}: {error}");
        assert!(!error.hint.is_empty() && !error.problem.is_empty(), "{error}");
    }
}

#[test]
fn each_mistake_in_a_coordinator_file_is_named() {
    let base = |keys: &str| format!("cluster_id = \"dev\"\ndata_dir = \"/d\"\nnodes = [\"a:7001\"]\n{keys}\n");
    CoordinatorConfig::from_toml(&base(""), []).expect("the base is sound");
    let backend = |change: &str| {
        let mut keys = vec![("name", "\"l\""), ("kind", "\"ollama\""), ("url", "\"http://h:1\""), ("model", "\"m\"")];
        let (name, value) = change.split_once(" = ").expect("a pair");
        keys.retain(|(key, _)| *key != name);
        keys.push((name, value));
        let lines: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        format!("[[llm.backends]]\n{}", lines.join("\n"))
    };
    CoordinatorConfig::from_toml(&base(&backend("weight = 2")), []).expect("the backend is sound");
    let twice = format!("{}\n{}", backend("weight = 1"), backend("weight = 2"));
    let cases = [
        ("http_listen", "http_listen = \":8000\"".to_owned()),
        ("zone", "zone = \"a/b\"".into()),
        ("catalog.url", "[catalog]\nurl = \"mysql://x\"".into()),
        ("catalog.pool_size", "[catalog]\npool_size = 0".into()),
        ("catalog.max_overflow", "[catalog]\nmax_overflow = 990".into()),
        ("catalog.pool_timeout", "[catalog]\npool_timeout = \"0s\"".into()),
        ("embedder.threads", "[embedder]\nthreads = 0".into()),
        ("embedder.batch_max", "[embedder]\nbatch_max = 0".into()),
        ("cache.memory", "[cache]\nmemory = 0".into()),
        ("cache.ttl", "[cache]\nttl = \"0s\"".into()),
        ("llm.temperature", "[llm]\ntemperature = 3.0".into()),
        ("llm.temperature", "[llm]\ntemperature = nan".into()),
        ("llm.max_tokens", "[llm]\nmax_tokens = 0".into()),
        ("llm.backends[0].url", backend("url = \"h:1\"")),
        ("llm.backends[0].kind", backend("kind = \"grpc\"")),
        ("llm.backends[0].model", backend("model = \"\"")),
        ("llm.backends[0].api_key_env", backend("api_key_env = \"sk-123\"")),
        ("llm.backends[0].concurrency_max", backend("concurrency_max = 0")),
        ("llm.backends[1].name", twice),
        ("search.default_timeout", "[search]\ndefault_timeout = \"1h\"".into()),
        ("search.max_staleness", "[search]\nmax_staleness = \"0s\"".into()),
        ("ingest.workers", "[ingest]\nworkers = 0".into()),
        ("ingest.parse_memory", "[ingest]\nparse_memory = \"1MiB\"".into()),
        ("ingest.parse_time", "[ingest]\nparse_time = \"10ms\"".into()),
        ("ingest.worker", "[ingest]\nworker = 1".into()),
    ];
    for (key, addition) in cases {
        let error = CoordinatorConfig::from_toml(&base(&addition), []).expect_err(&addition);
        assert_eq!(error.key, key, "{addition}: {error}");
    }
    for (key, text) in [
        ("nodes", "cluster_id = \"dev\"\ndata_dir = \"/d\""),
        ("nodes[1]", "cluster_id = \"dev\"\ndata_dir = \"/d\"\nnodes = [\"a:1\", \"a:1\"]"),
        ("data_dir", "cluster_id = \"dev\"\nnodes = [\"a:1\"]"),
        ("cluster_id", "data_dir = \"/d\"\nnodes = [\"a:1\"]"),
    ] {
        assert_eq!(CoordinatorConfig::from_toml(text, []).expect_err(key).key, key);
    }
}

#[test]
fn written_files_read_back_as_they_were() {
    for text in [NODE, THREE_NODES[1], &uncommented(NODE)] {
        let written: WrittenNodeConfig = toml::from_str(text).expect("reads");
        let again: WrittenNodeConfig = toml::from_str(&written.to_toml().expect("writes")).expect("reads again");
        assert_eq!(again, written);
    }
    for text in [COORDINATOR, &uncommented(COORDINATOR)] {
        let written: WrittenCoordinatorConfig = toml::from_str(text).expect("reads");
        let again: WrittenCoordinatorConfig = toml::from_str(&written.to_toml().expect("writes")).expect("reads again");
        assert_eq!(again, written);
    }
}

#[test]
fn http_is_advertised_at_a_host_that_can_be_dialled() {
    let mut config = NodeConfig::from_toml(NODE, []).expect("loads");
    assert_eq!(config.http_advertise(7101), "127.0.0.1:7101");
    config.http_listen = "0.0.0.0:0".parse().expect("address");
    config.rpc_advertise = "node1.example:7001".into();
    assert_eq!(config.http_advertise(4242), "node1.example:4242");
}
