//! Catalogs over a scratch database, and what goes into them.

use std::time::Duration;

use coordinator::catalog::documents::{DocumentRef, Indexed, Upload};
use coordinator::catalog::jobs::Finish;
use coordinator::catalog::{Catalog, CatalogOptions, LEASE};
use sqlx::{AnyConnection, Connection, Executor};

use crate::database::Database;

impl Database {
    pub(crate) fn options(&self) -> CatalogOptions {
        CatalogOptions {
            url: self.url.clone(),
            pool_size: 8,
            max_overflow: 8,
            pool_timeout: Duration::from_secs(30),
            lease: LEASE,
        }
    }

    pub(crate) async fn open(&self) -> Catalog {
        Catalog::open(&self.options()).await.expect("opens")
    }

    /// Runs statements beside all catalogs, as a shell would.
    pub(crate) async fn execute(&self, sql: &'static str) {
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&self.url).await.expect("connects");
        connection.execute(sql).await.expect("runs");
        connection.close().await.expect("closes");
    }

    /// A second coordinator's catalog: another pool on Postgres, the same one on SQLite, which has one owner.
    pub(crate) async fn open_beside(&self, first: &Catalog) -> Catalog {
        if self.is_postgres() { self.open().await } else { first.clone() }
    }
}

pub(crate) fn document(tenant: &str, id: &str) -> DocumentRef {
    DocumentRef { collection_id: 1, tenant: tenant.into(), document_id: id.into() }
}

pub(crate) fn upload(tenant: &str, id: &str, content: &str) -> Upload {
    Upload {
        document: document(tenant, id),
        title: format!("title of {id}"),
        metadata_json: "{}".into(),
        media_type: "text/plain".into(),
        file_name: String::new(),
        content_hash: [7; 32],
        content: content.as_bytes().to_vec(),
        priority: 0,
        idempotency: None,
    }
}

/// Bytes that the tenant is charged for.
pub(crate) async fn stored_bytes(catalog: &Catalog, tenant: &str) -> u64 {
    catalog.tenant(tenant).await.expect("reads").expect("is there").stored_bytes
}

pub(crate) fn finish<'a>(title: &'a str, extracted: &'a str, chunk_count: u32, session: &'a str) -> Finish<'a> {
    let indexed = Indexed { from: vec![1; 32], chunks: vec![2; 32] };
    Finish { title, extracted: Some(extracted), chunk_count, session, indexed }
}
