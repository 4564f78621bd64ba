//! A scratch catalog of either engine, and stories that are told on both.

use chaos_tests::postgres::PostgresServer;

/// A database that lives as long as this value.
pub(crate) struct Database {
    pub(crate) url: String,
    server: Option<PostgresServer>,
    _dir: Option<tempfile::TempDir>,
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let dir = tempfile::tempdir().expect("scratch directory");
        let url = format!("sqlite://{}", dir.path().join("catalog.db").display());
        Self { url, server: None, _dir: Some(dir) }
    }

    pub(crate) async fn postgres() -> Self {
        let server = PostgresServer::start().await.expect("postgres starts");
        Self { url: server.url(), server: Some(server), _dir: None }
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.server.is_some()
    }
}

/// Makes a test of each story for each engine.
macro_rules! on_both_engines {
    ($($story:path => $name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                $story(&crate::database::Database::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                $story(&crate::database::Database::postgres().await).await;
            })*
        }
    };
}
