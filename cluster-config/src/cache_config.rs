//! `[cache]` of a coordinator: the tier in its memory, and the tier in Redis that coordinators share.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config_text as text;
use crate::error::ConfigError;
use crate::limits;
use crate::units::{ByteSize, WrittenDuration};

/// The caches of results, embeddings and answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Whether anything is cached.
    pub enabled: bool,
    /// Longest life of an entry, in any tier.
    pub ttl: Duration,
    /// Bytes held in this process.
    pub memory: ByteSize,
    /// The shared tier; `None`: this process' memory is all there is.
    pub redis: Option<RedisConfig>,
}

/// A Redis, or a Redis Cluster, that coordinators of one cluster share.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// One server, or some nodes of one Redis Cluster; the others are learned from them. They may hold a password.
    pub urls: Vec<String>,
    /// Longest wait for Redis in the way of a request, per lookup.
    pub timeout: Duration,
}

impl std::fmt::Debug for RedisConfig {
    /// Without the URLs: they may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisConfig {{ servers: {}, timeout: {:?} }}", self.urls.len(), self.timeout)
    }
}

/// `[cache]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as CacheConfig; redis_url is REDIS_URL, several servers joined by commas")]
pub struct WrittenCache {
    pub enabled: Option<bool>,
    pub ttl: Option<WrittenDuration>,
    pub memory: Option<ByteSize>,
    pub redis_url: Option<String>,
    pub redis_timeout: Option<WrittenDuration>,
}

impl WrittenCache {
    pub(crate) fn validate(self) -> Result<CacheConfig, ConfigError> {
        let ttl = self.ttl.unwrap_or(WrittenDuration(Duration::from_secs(3600)));
        let memory = self.memory.unwrap_or(ByteSize::mib(64));
        let timeout = self.redis_timeout.unwrap_or(WrittenDuration(Duration::from_millis(5)));
        let (min, max) = (limits::REDIS_TIMEOUT_MIN, limits::REDIS_TIMEOUT_MAX);
        let timeout = text::duration_in("cache.redis_timeout", timeout, min, max)?;
        let urls = self.redis_url.as_deref().map(read_urls).transpose()?;
        Ok(CacheConfig {
            enabled: self.enabled.unwrap_or(true),
            ttl: text::duration_in("cache.ttl", ttl, Duration::from_secs(1), limits::CACHE_TTL_MAX)?,
            memory: text::size_at_least("cache.memory", memory, ByteSize::mib(1))?,
            redis: urls.map(|urls| RedisConfig { urls, timeout }),
        })
    }
}

/// Splits `redis://HOST:PORT[/DB]` joined by commas. A part without a scheme takes the first one's scheme and credentials.
fn read_urls(written: &str) -> Result<Vec<String>, ConfigError> {
    const KEY: &str = "cache.redis_url";
    let hint = "use redis://[USER:PASSWORD@]HOST:PORT, several servers of one cluster joined by commas";
    let parts: Vec<&str> = written.split(',').map(str::trim).collect();
    if parts.len() > limits::REDIS_URLS_MAX {
        let hint = format!("name at most {}; the others are learned from them", limits::REDIS_URLS_MAX);
        return Err(ConfigError::new(KEY, format!("{} servers", parts.len()), hint));
    }
    let first = parts.first().copied().unwrap_or_default();
    if first.starts_with("rediss://") {
        return Err(ConfigError::new(KEY, "this build speaks no TLS to Redis", "use redis://, on a network you trust"));
    }
    let Some(rest) = first.strip_prefix("redis://") else {
        // The value is not shown: it may hold a password.
        return Err(ConfigError::new(KEY, "not a Redis address", hint));
    };
    let credentials = rest.rsplit_once('@').map_or(String::new(), |(credentials, _)| format!("{credentials}@"));
    let urls: Vec<String> = parts
        .iter()
        .map(|part| if part.contains("://") { (*part).to_owned() } else { format!("redis://{credentials}{part}") })
        .collect();
    for url in &urls {
        let address = url.strip_prefix("redis://").map(|rest| rest.rsplit_once('@').map_or(rest, |(_, host)| host));
        if address.is_none_or(|address| address.is_empty() || address.contains(char::is_whitespace)) {
            return Err(ConfigError::new(KEY, "not a Redis address", hint));
        }
    }
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(text: &str) -> Result<Vec<String>, ConfigError> {
        read_urls(text)
    }

    #[test]
    fn one_server_or_the_seeds_of_a_cluster() {
        assert_eq!(urls("redis://a:6379/0"), Ok(vec!["redis://a:6379/0".to_owned()]));
        assert_eq!(
            urls("redis://u:p@a:1, b:2,redis://c:3"),
            Ok(vec!["redis://u:p@a:1".to_owned(), "redis://u:p@b:2".to_owned(), "redis://c:3".to_owned()])
        );
        for bad in ["", "a:6379", "http://a", "redis://", "redis://a,,", "rediss://a", "redis://a b"] {
            assert!(urls(bad).is_err(), "{bad}");
        }
        let secret = urls("http://u:hunter2@a").expect_err("refused").to_string();
        assert!(!secret.contains("hunter2"), "{secret}");
        let many = vec!["redis://a:1"; limits::REDIS_URLS_MAX + 1].join(",");
        assert!(urls(&many).is_err());
    }

    #[test]
    fn a_password_is_not_printed() {
        let config = RedisConfig { urls: vec!["redis://u:hunter2@a".into()], timeout: Duration::from_millis(5) };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
