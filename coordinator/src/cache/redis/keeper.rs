//! Keeps the connection: connects, waits until the breaker opens, probes until Redis answers again or has to be connected anew.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tokio::time::{sleep, timeout};

use super::Link;
use super::connection::Connection;

/// The client's own timeouts are not always kept; this one is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after the first failed attempt to connect; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Between two probes.
const PROBE_PERIOD: Duration = Duration::from_millis(200);
/// One probe. Longer than a request waits: whether it is fast enough the next requests find out.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// Failed probes after which the connection is made anew.
const PROBES_MAX: u32 = 5;

/// Runs for ever.
pub(super) async fn keep(link: &Link, urls: &[String]) {
    let mut pause = PAUSE_MIN;
    loop {
        match connect(urls).await {
            Ok(connection) => {
                pause = PAUSE_MIN;
                use_until_dead(link, connection).await;
            }
            Err(reason) => {
                tracing::warn!(%reason, "cannot connect to Redis; trying again in {pause:?}");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

async fn connect(urls: &[String]) -> Result<Connection, String> {
    match timeout(CONNECT_TIMEOUT, Connection::open(urls)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no connection after {CONNECT_TIMEOUT:?}")),
    }
}

/// Lets requests use the connection while it serves; returns when it has to be replaced.
async fn use_until_dead(link: &Link, connection: Connection) {
    let kind = match &connection {
        Connection::Single(_) => "single server",
        Connection::Cluster(_) => "cluster",
    };
    let connection = Arc::new(connection);
    link.connection.store(Some(Arc::clone(&connection)));
    loop {
        let mut failed = 0;
        while let Err(error) = probe(link, &connection).await {
            failed += 1;
            if failed == PROBES_MAX {
                tracing::warn!(%error, "Redis does not answer; connecting anew");
                link.connection.store(None);
                return;
            }
            sleep(PROBE_PERIOD).await;
        }
        link.breaker.lock().close();
        link.metrics.redis_is_up(true);
        tracing::info!(kind, "Redis is in use");
        link.opened.notified().await;
        sleep(PROBE_PERIOD).await;
    }
}

/// Reads a name that a request's read failed for: in a cluster with one master gone, any other name would succeed.
async fn probe(link: &Link, connection: &Connection) -> Result<(), String> {
    let name = link.suspect.lock().clone();
    let mut command = redis::cmd("EXISTS");
    command.arg(name);
    let answer: Result<RedisResult<i64>, _> = timeout(PROBE_TIMEOUT, connection.run(&command)).await;
    match answer {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer after {PROBE_TIMEOUT:?}")),
    }
}
