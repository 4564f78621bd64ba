//! Free loopback ports.

use std::collections::BTreeSet;
use std::net::TcpListener;

use rand::Rng;

/// Where ports are looked for: below the range from which the kernel gives ports to outgoing connections, so that the port of a
/// process that is down is not taken by somebody's connection before it is started again.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// Ports tried before giving up.
const ATTEMPTS_MAX: usize = 10_000;

/// Returns `count` ports that were free a moment ago, all different. Chosen by chance, so that two runs on one machine hardly ever
/// meet, and held together while they are chosen.
pub fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let mut random = rand::rng();
    let mut held: Vec<TcpListener> = Vec::with_capacity(count);
    let mut tried = BTreeSet::new();
    while held.len() < count {
        if tried.len() >= ATTEMPTS_MAX {
            return Err(std::io::Error::other(format!("no {count} free ports in {PORTS:?}")));
        }
        let port = random.random_range(PORTS);
        if tried.insert(port)
            && let Ok(listener) = TcpListener::bind(("127.0.0.1", port))
        {
            held.push(listener);
        }
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Returns the first of `count` ports in a row that were free a moment ago.
pub fn free_port_range(count: u16) -> std::io::Result<u16> {
    let mut random = rand::rng();
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..ATTEMPTS_MAX {
        let first = random.random_range(PORTS.start..PORTS.end - count);
        if (first..first + count).all(is_free) {
            return Ok(first);
        }
    }
    Err(std::io::Error::other(format!("no {count} free ports in a row in {PORTS:?}")))
}
