//! Ends in networks of their own, and between them a router in this process: every packet of every connection passes through it, and may be
//! lost, late, or overtaken. No proxy: what the ends see is what the kernel's TCP makes of that, also when a connection is opened to somebody
//! who cannot hear.
//!
//! Each end has a TUN device in its namespace, whose other side is read and written here. This needs the right to make namespaces and
//! devices, as root has it.

mod namespace;
mod road;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_tun::Tun;

pub use namespace::Namespace;
pub use road::Road;
use road::{Fate, Roads};

/// The last number of an end's address.
pub type Host = u8;

/// This process.
pub const OUTSIDE: Host = 254;
/// Addresses for tests of networks (RFC 2544), which no real network has: the third number is drawn.
const NETWORK: &str = "198.18";
/// What a device takes at once.
const PACKET_BYTES_MAX: usize = 1500;
/// Packets of one end that are late; beyond, they are lost.
const LATE_MAX: usize = 4096;

/// Ends and the router between them. Dropping it takes all devices and namespaces away.
pub struct Packets {
    subnet: u8,
    namespaces: BTreeMap<Host, Namespace>,
    roads: Arc<Mutex<Roads>>,
    // Aborted when dropped; the devices go with it.
    _carriers: JoinSet<()>,
}

impl Packets {
    /// Whether this process may make one; if not, why. Errors: what it takes is not installed.
    pub async fn allowed() -> anyhow::Result<Result<(), String>> {
        namespace::ip(Command::new("ip").arg("-V"))?;
        Ok(Self::start(&[1]).await.map(drop).map_err(|reason| format!("{reason:#}")))
    }

    /// A network of these ends and this process. Errors: why this process may not make one.
    pub async fn start(hosts: &[Host]) -> anyhow::Result<Self> {
        let subnet = rand::random();
        let mut devices = BTreeMap::new();
        let mut namespaces = BTreeMap::new();
        for host in hosts {
            let device = device(*host)?;
            let namespace = Namespace::make().await?;
            namespace.take(device.name(), &address_with_prefix(subnet, *host))?;
            namespaces.insert(*host, namespace);
            devices.insert(*host, device);
        }
        let ours = device(OUTSIDE)?;
        let address = address_with_prefix(subnet, OUTSIDE);
        namespace::ip(Command::new("ip").args(["address", "add", &address, "dev", ours.name()]))?;
        namespace::ip(Command::new("ip").args(["link", "set", "dev", ours.name(), "up"]))?;
        devices.insert(OUTSIDE, ours);

        let (devices, roads) = (Arc::new(devices), Arc::new(Mutex::new(Roads::default())));
        let mut carriers = JoinSet::new();
        for from in devices.keys() {
            carriers.spawn(carry(*from, Arc::clone(&devices), Arc::clone(&roads)));
        }
        Ok(Self { subnet, namespaces, roads, _carriers: carriers })
    }

    /// The address of an end.
    pub fn address(&self, host: Host) -> String {
        address(self.subnet, host)
    }

    /// The namespace of an end other than this process.
    pub fn namespace(&self, host: Host) -> Option<&Namespace> {
        self.namespaces.get(&host)
    }

    /// How whatever travels from one end to the other does so from now on.
    pub fn set(&self, from: Host, to: Host, road: Road) {
        self.roads.lock().expect("no panic while held").set(from, to, road);
    }

    /// Every road is free again.
    pub fn free_all(&self) {
        self.roads.lock().expect("no panic while held").free_all();
    }
}

fn address(subnet: u8, host: Host) -> String {
    format!("{NETWORK}.{subnet}.{host}")
}

fn address_with_prefix(subnet: u8, host: Host) -> String {
    format!("{}/24", address(subnet, host))
}

/// A device of a name that no other process uses.
fn device(host: Host) -> anyhow::Result<Tun> {
    let name = format!("su{}h{host}", std::process::id());
    let made = Tun::builder().name(&name).mtu(PACKET_BYTES_MAX as i32).build();
    made.context("cannot make a TUN device")?.pop().context("no device")
}

/// Carries what comes from one end to where it goes.
async fn carry(from: Host, devices: Arc<BTreeMap<Host, Tun>>, roads: Arc<Mutex<Roads>>) {
    let mut random = StdRng::from_os_rng();
    let mut buffer = [0; PACKET_BYTES_MAX];
    // In the order of arrival; the number tells apart what arrives together.
    let mut late: BTreeMap<(Instant, u64), (Host, Vec<u8>)> = BTreeMap::new();
    let mut count = 0;
    loop {
        let due = late.first_key_value().map(|((at, _), _)| (*at).into());
        tokio::select! {
            read = devices[&from].recv(&mut buffer) => {
                let Ok(length) = read else { return };
                let packet = &buffer[..length];
                let Some(to) = destination(packet).filter(|to| devices.contains_key(to)) else { continue };
                let (now, draws) = (Instant::now(), [random.random(), random.random()]);
                let fate = roads.lock().expect("no panic while held").decide(from, to, length, now, draws);
                match fate {
                    Fate::Now => deliver(&devices[&to], packet).await,
                    Fate::At(at) if late.len() < LATE_MAX => {
                        count += 1;
                        late.insert((at, count), (to, packet.to_vec()));
                    }
                    Fate::At(_) | Fate::Lost => {}
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                if let Some((_, (to, packet))) = late.pop_first() {
                    deliver(&devices[&to], &packet).await;
                }
            }
        }
    }
}

async fn deliver(device: &Tun, packet: &[u8]) {
    // A device that is not up yet, or not any more, loses it as a cable does.
    let _ = device.send(packet).await;
}

/// Where a packet of IP version 4 goes.
fn destination(packet: &[u8]) -> Option<Host> {
    (packet.first()? >> 4 == 4).then(|| packet.get(19).copied()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packets_of_version_4_have_a_destination() {
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&[198, 18, 7, 3]);
        assert_eq!(destination(&packet), Some(3));
        assert_eq!(destination(&packet[..19]), None);
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None);
    }
}
