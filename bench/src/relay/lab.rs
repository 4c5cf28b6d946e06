//! Two namespaces and a pair of veth devices between them.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::acl::wire::Namespace;

/// Where the clients are.
pub const CLIENT: &str = "gwclient";
/// Where the relay is.
pub const RELAY: &str = "gwrelay";
/// The relay's address.
pub const RELAY_IP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The address of one client, the sender.
pub const SENDER_IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The address of another one, the receiver.
pub const RECEIVER_IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// Ethernet addresses of the two devices.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// See [`CLIENT_MAC`].
pub const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The namespaces; they end with it.
pub struct Lab {
    /// Of the clients. The thread is here after [`Lab::new`].
    pub client: Namespace,
    /// Of the relay.
    pub relay: Namespace,
}

impl Lab {
    /// Makes them.
    pub fn new() -> Result<Self> {
        let relay = Namespace::new()?;
        let client = Namespace::new()?;
        ip("link set lo up")?;
        ip(&format!(
            "link add {CLIENT} address {} type veth peer name {RELAY} address {}",
            text(CLIENT_MAC),
            text(RELAY_MAC)
        ))?;
        relay.adopt(RELAY)?;
        // What is generated is never answered by the kernel, and nobody asks for addresses while frames are counted.
        for command in [
            format!("address add {SENDER_IP}/24 dev {CLIENT}"),
            format!("address add {RECEIVER_IP}/24 dev {CLIENT}"),
            format!("link set {CLIENT} mtu 1500 up"),
            format!("route add {RELAY_IP}/32 dev {CLIENT}"),
            format!("neigh replace {RELAY_IP} lladdr {} dev {CLIENT} nud permanent", text(RELAY_MAC)),
        ] {
            ip(&command)?;
        }
        relay.enter()?;
        for command in [
            "link set lo up".to_owned(),
            format!("address add {RELAY_IP}/32 dev {RELAY}"),
            format!("link set {RELAY} mtu 1500 up"),
            format!("route add 198.18.0.0/24 dev {RELAY}"),
            format!("neigh replace {SENDER_IP} lladdr {} dev {RELAY} nud permanent", text(CLIENT_MAC)),
            format!("neigh replace {RECEIVER_IP} lladdr {} dev {RELAY} nud permanent", text(CLIENT_MAC)),
        ] {
            ip(&command)?;
        }
        client.enter()?;
        Ok(Self { client, relay })
    }

    /// The clients' interface, for the thread that is in their namespace.
    pub fn client_interface() -> Result<u32> {
        Ok(nix::net::if_::if_nametoindex(CLIENT)?)
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(command: &str) -> Result<()> {
    let status = Command::new("ip").args(command.split(' ')).status().context("running ip")?;
    ensure!(status.success(), "ip {command}: {status}");
    Ok(())
}

/// A frame for the relay, IPv4 and UDP with right checksums.
pub fn frame(source: Ipv4Addr, source_port: u16, port: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let udp_len = u16::try_from(8 + payload.len())?;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(source.octets());
    ip.extend(RELAY_IP.octets());
    let checksum = !fold(sum(&ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut udp = source_port.to_be_bytes().to_vec();
    udp.extend(port.to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let pseudo = sum(&source.octets()) + sum(&RELAY_IP.octets()) + 17 + u32::from(udp_len);
    let checksum = match !fold(pseudo + sum(&udp)) {
        0 => 0xFFFF,
        checksum => checksum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = [RELAY_MAC, CLIENT_MAC].concat();
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(udp);
    Ok(frame)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(sum: u32) -> u16 {
    let folded = (sum & 0xFFFF) + (sum >> 16);
    u16::try_from((folded & 0xFFFF) + (folded >> 16)).unwrap_or_default()
}
