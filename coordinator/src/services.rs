//! What the walks work with: made once by `startup`, shared by all requests.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use cluster_config::collection::Collection;
use cluster_config::error::ErrorKind;
use cluster_config::ids::check_collection_name;
use tokio::sync::Semaphore;

use crate::aliases::Aliases;
use crate::api::json::BodyBudget;
use crate::cache::answers::AnswerCache;
use crate::catalog::Catalog;
use crate::cluster::client::NodeClient;
use crate::cluster::stats::NodeStats;
use crate::cluster::view::ClusterView;
use crate::embed::Embedder;
use crate::error::{Error, Result};
use crate::generate::pool::Pool;
use crate::ingest::Ingest;
use crate::retrieve::Retriever;
use crate::telemetry::Metrics;
use crate::tenants::Tenants;

/// The parts of a running coordinator.
pub struct Services {
    /// What calls have taught about the nodes.
    pub stats: Arc<NodeStats>,
    /// The cluster as last seen.
    pub view: Arc<ClusterView>,
    /// Calls to nodes.
    pub client: Arc<dyn NodeClient>,
    /// Reads.
    pub retriever: Arc<Retriever>,
    /// Documents and jobs.
    pub catalog: Catalog,
    /// The way in of documents.
    pub ingest: Arc<Ingest>,
    /// Text to vector.
    pub embedder: Arc<dyn Embedder>,
    /// Language models; while there are none, answers are extractive.
    pub llm: Pool,
    /// Other names of collections.
    pub aliases: Arc<Aliases>,
    /// Who may do how much.
    pub tenants: Arc<Tenants>,
    /// Texts that language models wrote; `None` where caching is switched off.
    pub answers: Option<Arc<AnswerCache>>,
    /// Series.
    pub metrics: Arc<Metrics>,
    /// Bound on requests answered at one time.
    pub admission: Arc<Semaphore>,
    /// Bound on the doors' texts that are being counted in tokens.
    pub token_counts: Arc<Semaphore>,
    /// Bound on bodies held.
    pub body_budget: BodyBudget,
    /// Deadline of requests that name none.
    pub default_timeout: Duration,
    /// Bound on the age of eventual reads.
    pub max_staleness: Duration,
    /// Set when the process is about to stop: not ready any more.
    pub draining: AtomicBool,
}

impl Services {
    /// The collection of that name or alias; a collection's own name goes before an alias. Errors: `InvalidArgument` (no such name can exist), `NotFound`, `Unavailable` (no state yet).
    pub fn collection(&self, name: &str) -> Result<Collection> {
        check_collection_name(name)
            .map_err(|error| Error::field("collection", error.to_string(), "correct the collection's name"))?;
        let state = self.view.state();
        if state.version == 0 {
            let text = "the cluster state is not known yet";
            return Err(Error::refused(ErrorKind::Unavailable, text, "retry; /readyz says what is missing"));
        }
        if let Some(collection) = state.collection_named(name) {
            return Ok(collection.clone());
        }
        let Some(aliased) = self.aliases.resolve(name) else {
            let hint = format!(
                "create it with PUT /api/v1/collections/{name}, or list what exists with GET /api/v1/collections"
            );
            return Err(Error::refused(ErrorKind::NotFound, format!("collection {name:?} does not exist"), hint));
        };
        state.collection_named(&aliased).cloned().ok_or_else(|| {
            let text = format!("{name:?} is an alias of collection {aliased:?}, which does not exist any more");
            let hint = format!("let it name another one with PUT /api/v1/aliases/{name}, or DELETE it there");
            Error::refused(ErrorKind::NotFound, text, hint)
        })
    }
}
