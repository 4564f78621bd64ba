//! Free loopback ports.

use std::net::TcpListener;

/// Returns `count` ports that were free a moment ago, all different. Held together while they are chosen, so that two of one
/// call never collide.
pub fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<std::io::Result<_>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
