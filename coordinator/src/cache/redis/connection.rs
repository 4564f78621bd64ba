//! One connection to a Redis or to a Redis Cluster, whichever answers at the configured address.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisError, RedisResult};

/// Opening a connection to one server.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A command inside the client, its retries included; requests wait far less.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);
/// Redirections and reconnections that the cluster's client follows for one command.
const RETRIES: u32 = 3;
/// Between those, milliseconds: its own default begins above a second.
const RETRY_WAIT_MIN_MS: u64 = 5;
const RETRY_WAIT_MAX_MS: u64 = 50;

/// Cheap to clone: clones share the sockets.
#[derive(Clone)]
pub(super) enum Connection {
    /// A single server.
    Single(MultiplexedConnection),
    /// A cluster; commands go to the node that has the key's slot.
    Cluster(ClusterConnection),
}

impl Connection {
    /// Connects to the first of `urls` that answers, and to the whole cluster if it is part of one.
    pub(super) async fn open(urls: &[String]) -> RedisResult<Self> {
        let mut last_error = None;
        for url in urls {
            match Self::open_single(url).await {
                Ok((_, true)) => return Self::open_cluster(urls).await,
                Ok((single, false)) => return Ok(Self::Single(single)),
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.unwrap_or_else(|| RedisError::from((redis::ErrorKind::InvalidClientConfig, "no address"))))
    }

    /// A server, and whether it belongs to a cluster.
    async fn open_single(url: &str) -> RedisResult<(MultiplexedConnection, bool)> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(COMMAND_TIMEOUT));
        let mut connection = Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
        let info: String = redis::cmd("INFO").arg("cluster").query_async(&mut connection).await?;
        Ok((connection, info.contains("cluster_enabled:1")))
    }

    async fn open_cluster(urls: &[String]) -> RedisResult<Self> {
        let client = ClusterClient::builder(urls.iter().map(String::as_str))
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(COMMAND_TIMEOUT)
            .retries(RETRIES)
            .min_retry_wait(RETRY_WAIT_MIN_MS)
            .max_retry_wait(RETRY_WAIT_MAX_MS)
            .build()?;
        Ok(Self::Cluster(client.get_async_connection().await?))
    }

    /// Runs one command. Cancel: dropping it leaves the connection usable; the command may still be done.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::Single(connection) => command.query_async(&mut connection.clone()).await,
            Self::Cluster(connection) => command.query_async(&mut connection.clone()).await,
        }
    }
}
