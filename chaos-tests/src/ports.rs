//! Free loopback ports.

use std::net::TcpListener;

/// Returns `count` ports that were free a moment ago, all different. Held together while they are chosen, so that two of one
/// call never collide.
pub fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<std::io::Result<_>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Returns the first of `count` ports in a row that were free a moment ago.
pub fn free_port_range(count: u16) -> std::io::Result<u16> {
    const ATTEMPTS: usize = 100;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..ATTEMPTS {
        let first = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        if first.checked_add(count).is_some_and(|end| (first..end).all(is_free)) {
            return Ok(first);
        }
    }
    Err(std::io::Error::other(format!("no {count} free ports in a row")))
}
