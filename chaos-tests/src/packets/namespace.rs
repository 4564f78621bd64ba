//! A network of one process's own: a namespace of the kernel's, without a name. It lives as long as its holder, a process that does nothing
//! and dies with the test, so nothing is left behind however that ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Until the kernel must have made it.
const MADE_WITHIN: Duration = Duration::from_secs(10);

/// A namespace. Dropping it ends it once no other process is in it.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
    path: PathBuf,
}

impl Namespace {
    /// Makes one, with nothing in it but loopback. Errors: why this process may not.
    pub async fn make() -> anyhow::Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--", "sleep", "infinity"]);
        let holder = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
        let mut made = Self { holder, path };
        let ours = std::fs::read_link("/proc/self/ns/net")?;
        let end = Instant::now() + MADE_WITHIN;
        loop {
            // An end says why; until then it is another namespace than ours, or about to be.
            if let Some(status) = made.holder.try_wait()? {
                let mut told = String::new();
                if let Some(mut text) = made.holder.stderr.take() {
                    std::io::Read::read_to_string(&mut text, &mut told)?;
                }
                bail!("unshare ended with {status}: {}", told.trim());
            }
            if std::fs::read_link(&made.path).is_ok_and(|theirs| theirs != ours) {
                break;
            }
            ensure!(Instant::now() < end, "no namespace within {MADE_WITHIN:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        made.ip(&["link", "set", "dev", "lo", "up"])?;
        Ok(made)
    }

    /// As `nsenter` takes it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a device in, and gives it an address with its prefix.
    pub fn take(&self, device: &str, address: &str) -> anyhow::Result<()> {
        ip(Command::new("ip").args(["link", "set", "dev", device, "netns", &self.holder.id().to_string()]))?;
        self.ip(&["address", "add", address, "dev", device])?;
        self.ip(&["link", "set", "dev", device, "up"])
    }

    /// `ip` in it.
    fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(&self.path);
        ip(Command::new("nsenter").arg(net).args(["--", "ip"]).args(arguments))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Ended already, or ended here: both are fine.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs `ip`. Errors: what it says.
pub(super) fn ip(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().context("ip is missing: `ops/test` installs iproute2")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
