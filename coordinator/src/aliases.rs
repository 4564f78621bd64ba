//! Other names of collections, so that an index can be built anew beside the old one and put in its place by one call.
//!
//! All of them are in memory, because every request may name one. A change through this coordinator shows at once, one through
//! another within [`REFRESH_INTERVAL`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, CatalogError};

/// How long a change made through another coordinator may go unseen.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// The aliases as last read.
pub struct Aliases {
    catalog: Catalog,
    known: ArcSwap<BTreeMap<String, String>>,
}

impl Aliases {
    /// Reads them for the first time.
    pub async fn open(catalog: Catalog) -> Result<Self, CatalogError> {
        let aliases = Self { catalog, known: ArcSwap::default() };
        aliases.refresh().await?;
        Ok(aliases)
    }

    /// The collection that the alias names.
    pub fn resolve(&self, alias: &str) -> Option<String> {
        self.known.load().get(alias).cloned()
    }

    /// All of them, by alias.
    pub fn all(&self) -> Arc<BTreeMap<String, String>> {
        self.known.load_full()
    }

    /// Lets an alias name a collection.
    pub async fn put(&self, alias: &str, collection: &str) -> Result<(), CatalogError> {
        self.catalog.put_alias(alias, collection).await?;
        self.refresh().await
    }

    /// Removes an alias. Whether it was there.
    pub async fn delete(&self, alias: &str) -> Result<bool, CatalogError> {
        let existed = self.catalog.delete_alias(alias).await?;
        self.refresh().await?;
        Ok(existed)
    }

    /// Reads them again every second until cancelled.
    pub async fn run(&self, cancel: CancellationToken) {
        while tokio::time::timeout(REFRESH_INTERVAL, cancel.cancelled()).await.is_err() {
            if let Err(error) = self.refresh().await {
                tracing::debug!(%error, "aliases were not read; those known go on to hold");
            }
        }
    }

    async fn refresh(&self) -> Result<(), CatalogError> {
        let aliases = self.catalog.aliases().await?;
        self.known.store(Arc::new(aliases.into_iter().collect()));
        Ok(())
    }
}
