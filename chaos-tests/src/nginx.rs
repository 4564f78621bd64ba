//! Debian's nginx with the configuration that is shipped, in front of some coordinators.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::client::Client;
use crate::ports::free_ports;
use crate::process::Process;
use crate::wait;

/// The file as shipped, and what in it names the place of installation.
const SHIPPED: &str = include_str!("../../ops/deploy/nginx/susui.conf");
const LISTEN: &str = "listen 8080;";
const SERVERS: [&str; 2] = ["127.0.0.1:8000", "127.0.0.1:8010"];

/// A running nginx. Dropping it kills it.
pub struct Nginx {
    port: u16,
    process: Process,
    _dir: TempDir,
}

impl Nginx {
    /// Starts one in front of two coordinators; nothing of the shipped file is changed but the ports.
    pub async fn start(coordinators: [u16; 2]) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("susui-nginx-")?;
        let port = free_ports(1)?[0];
        std::fs::write(dir.path().join("susui.conf"), installed(SHIPPED, port, coordinators)?)?;
        let config = dir.path().join("nginx.conf");
        std::fs::write(&config, main_config(dir.path()))?;
        let arguments = ["-c", &config.to_string_lossy(), "-e", "stderr"];
        let process = Process::start_program("nginx", "/usr/sbin/nginx", &arguments, &dir.path().join("log"))?;
        let nginx = Self { port, process, _dir: dir };
        let client = nginx.client();
        let ready = wait::until("nginx to answer", Duration::from_secs(30), || client.ready());
        ready.await.with_context(|| nginx.process.log_tail())?;
        Ok(nginx)
    }

    /// A client of the coordinators behind it.
    pub fn client(&self) -> Client {
        Client::new(self.port)
    }

    /// The root of the API behind it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// The shipped file with these ports. Errors: it does not read as this expects.
fn installed(shipped: &str, port: u16, coordinators: [u16; 2]) -> anyhow::Result<String> {
    ensure!(shipped.matches(LISTEN).count() == 1, "{LISTEN:?} is not there once");
    let mut text = shipped.replace(LISTEN, &format!("listen 127.0.0.1:{port};"));
    for (server, coordinator) in SERVERS.iter().zip(coordinators) {
        ensure!(text.matches(server).count() == 2, "{server} is not in both upstreams");
        text = text.replace(server, &format!("127.0.0.1:{coordinator}"));
    }
    Ok(text)
}

/// What Debian's `nginx.conf` would be, with every path in the scratch directory.
fn main_config(dir: &Path) -> String {
    let dir = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {dir}/{kind};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log stderr warn;\nevents {{ worker_connections 1024; }}\n\
         http {{\n    access_log off;\n{temporary}    include {dir}/susui.conf;\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_offers_both_ways_of_choosing() {
        let text = installed(SHIPPED, 1, [2, 3]).expect("reads as expected");
        for word in ["least_conn;", "ip_hash;", "keepalive 32;", "proxy_buffering off;"] {
            assert!(text.contains(word), "{word}");
        }
        assert!(!text.contains("8000") && !text.contains("8010") && !text.contains("8080"));
    }
}
