//! The checked-in seeds, from real messages. `cargo run --package ghostwire-fuzz-targets --bin make-seeds` writes
//! them anew when a format changes.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use etherparse::PacketBuilder;
use ghostwire_client::store::sealed::{Kind, seal};
use ghostwire_client::store::{Identity, Membership, Secret, Settings};
use ghostwire_dataplane::wireguard::uapi;
use ghostwire_dataplane::wireguard::{DeviceStatus, PeerStatus, PeerUpdate, PublicKey, Update};
use ghostwire_policy::filter::{
    AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
};
use ghostwire_proto::address::NodeEndpoint;
use ghostwire_proto::auth_key::AuthKey;
use ghostwire_proto::join_key::{self, JoinKey};
use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::v1::{self, coordinator_message, node_message};
use ghostwire_proto::{filter, local, proof};
use ipnet::IpNet;
use prost::Message as _;

/// Why there is no seed: the maker of one says what it could not make.
pub type Trouble = Box<dyn std::error::Error>;

/// One file of a target's seeds.
#[derive(Debug)]
pub struct Seed {
    /// Which target.
    pub target: &'static str,
    /// Which file.
    pub name: &'static str,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// All of them.
pub fn all() -> Result<Vec<Seed>, Trouble> {
    let mut seeds = Vec::new();
    let mut add = |target, name, bytes| seeds.push(Seed { target, name, bytes });
    for (name, bytes) in packets()? {
        add("packet", name, bytes);
    }
    add("echo", "v4", [&[0x45; 20][..], &[0, 0, 0, 0, 0x12, 0x34, 0, 7]].concat());
    add("echo", "v6", vec![129, 0, 0, 0, 0x12, 0x34, 0, 7]);
    add("certificate", "chain", certificates()?);
    add("filter_message", "rules", wire_filter(3).encode_to_vec());
    add("filter_message", "empty", v1::Filter { generation: 1, ..Default::default() }.encode_to_vec());
    add("session", "snapshot", lines(&[snapshot_message(1)]));
    add("session", "deltas", lines(&conversation()));
    add("node_messages", "enrolment", enrolment().encode_length_delimited_to_vec());
    add("node_messages", "conversation", node_conversation());
    for (name, text) in POLICIES {
        add("policy", name, text.as_bytes().to_vec());
        add("network", name, [crate::policy::NETWORK.as_bytes(), &[0], text.as_bytes()].concat());
    }
    add(
        "hujson",
        "comments",
        b"// a\n{\"a\": [1, -2.5e3, /* b */ true, null,], \"\\u00e4\\ud83e\\udd80\": \"\\n\",}".to_vec(),
    );
    add("hujson", "plain", br#"{"a": {"b": [[], {}, "", 0]}, "c": false}"#.to_vec());
    let join_key = join_key::encode(&JoinKey {
        ca: Fingerprint::new([9; 32]),
        auth_key: AuthKey::parse(crate::node_messages::AUTH_KEY)?,
        addresses: vec!["mesh.example.com:8080".parse()?, "[2001:db8::1]:8080".parse()?],
    });
    add("join_key", "token", join_key.into_bytes());
    add("join_key", "payload", join_key_payload());
    add("join_key", "address", b"mesh.example.com:8080".to_vec());
    for (name, bytes) in state_files()? {
        add("state_file", name, bytes);
    }
    for (name, bytes) in uapi_messages()? {
        add("uapi", name, bytes);
    }
    add("gwctl_words", "up", b"up\ngwjoin-1-AAAA\n--hostname\nweb\n--advertise-routes\n10.0.0.0/8".to_vec());
    add("gwctl_words", "explain", b"policy\nexplain\nalice@x.org\ndb-1:5432/tcp".to_vec());
    add("gwctl_words", "target", b"[fd00::1]:443/udp".to_vec());
    add("gwctl_status", "running", status().encode_to_vec());
    add("image", "zeros", vec![0; 64]);
    add("image", "mixture", (0..=255).cycle().take(700).map(|byte: u8| byte.wrapping_mul(167)).collect());
    Ok(seeds)
}

const POLICIES: [(&str, &str); 3] = [
    (
        "acls",
        r#"{
  // groups
  "groups": {"group:admin": ["alice@x.org", "*.dev@x.org"]},
  "hosts": {"office": "10.1.0.0/16", "db": "100.64.0.5"},
  "tagOwners": {"tag:a": ["group:admin"], "tag:b": ["tag:a"]},
  "acls": [
    {"action": "accept", "src": ["group:admin"], "dst": ["*:*"]},
    {"action": "accept", "proto": "udp", "src": ["*"], "dst": ["tag:a:53,1000-2000", "office:22", "[fd7a::1]/128:80"]},
  ],
  "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:b"]}, "exitNode": ["group:admin"]},
  "tests": [{"src": "alice@x.org", "accept": ["db:22"], "deny": ["office:80"]}],
}"#,
    ),
    (
        "grants",
        r#"{"tagOwners": {"tag:a": [], "tag:b": []},
  "grants": [
    {"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]},
    {"src": ["user:*@x.org", "autogroup:tagged"], "dst": ["autogroup:internet"], "ip": ["tcp:443", "icmp:*"]},
    {"src": ["tag:a"], "dst": ["10.0.0.0/8"], "ip": ["sctp:1-3"], "via": ["tag:b"]},
    {"src": ["*"], "dst": ["tag:b"], "app": {"example.com/cap/x": [{"a": 1}]}}
  ]}"#,
    ),
    (
        "wrong",
        r#"{"acls": [{"action": "deny", "src": ["tag:x"], "dst": ["*:ssh"], "proto": "tpc"}], "nonsense": 1}"#,
    ),
];

fn packets() -> Result<Vec<(&'static str, Vec<u8>)>, Trouble> {
    let v4 = || PacketBuilder::ipv4([100, 64, 0, 2], [100, 64, 0, 3], 64);
    let v6 = || PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64);
    let mut packets = Vec::new();
    let mut tcp = Vec::new();
    v4().tcp(40_000, 443, 1, 1024).syn().write(&mut tcp, b"payload")?;
    packets.push(("v4_tcp", tcp));
    let mut udp = Vec::new();
    v6().udp(40_000, 53).write(&mut udp, b"payload")?;
    // The ICMP error quotes it; with a fragment header and hop-by-hop options in front it is another seed.
    let mut extended = udp.clone();
    extended[6] = 0;
    extended[5] += 16;
    extended.splice(40..40, [44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 1, 2, 3, 4]);
    packets.push(("v6_extensions", extended));
    let mut error = Vec::new();
    let unreachable =
        etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    v4().icmpv4(unreachable).write(&mut error, &packets[0].1[..28])?;
    packets.push(("v4_icmp_error", error));
    let mut echo = Vec::new();
    v6().icmpv6_echo_request(7, 9).write(&mut echo, b"ping")?;
    packets.push(("v6_echo", echo));
    Ok(packets)
}

fn certificates() -> Result<Vec<u8>, Trouble> {
    let (authority, leaf) = (rcgen::KeyPair::generate()?, rcgen::KeyPair::generate()?);
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let root = params.self_signed(&authority)?;
    let issuer = rcgen::Issuer::new(params, authority);
    let leaf = rcgen::CertificateParams::new(vec!["192.0.2.1".to_owned()])?.signed_by(&leaf, &issuer)?;
    let mut bytes = Vec::new();
    for certificate in [leaf.der(), root.der()] {
        bytes.extend(u16::try_from(certificate.len())?.to_be_bytes());
        bytes.extend_from_slice(certificate);
    }
    Ok(bytes)
}

fn wire_filter(generation: u32) -> v1::Filter {
    let set = |v4: &[(u32, u32)], v6: &[(u128, u128)]| Arc::new(AddrSet { v4: v4.to_vec(), v6: v6.to_vec() });
    let own = set(&[(0x6440_0002, 0x6440_0002)], &[(0xfd << 120 | 2, 0xfd << 120 | 2)]);
    let peers =
        set(&[(0x6440_0003, 0x6440_0009), (0x6440_00ff, 0x6440_ffff)], &[(0xfd << 120 | 3, u128::MAX)]);
    let rule = |src: &Arc<AddrSet>, dst: &Arc<AddrSet>, ports: &[(u16, u16)], index| FilterRule {
        src: src.clone(),
        dst: dst.clone(),
        protocols: ProtocolSet::DEFAULT,
        ports: ports.iter().map(|&(first, last)| PortRange { first, last }).collect(),
        origin: RuleOrigin { section: Section::Acls, index, line: index + 3 },
    };
    let rules = NodeFilter {
        inbound: vec![rule(&peers, &own, &[(22, 22), (80, 443)], 0), rule(&peers, &own, &[(0, u16::MAX)], 1)],
        outbound: vec![rule(&own, &peers, &[(0, u16::MAX)], 0)],
    };
    filter::to_wire(&rules, NonZeroU32::new(generation).unwrap_or(NonZeroU32::MIN))
}

fn addresses(last: u8) -> Vec<v1::Prefix> {
    let v6 = std::net::Ipv6Addr::from(0xfd77_u128 << 112 | u128::from(last));
    [IpAddr::from([100, 64, 0, last]), IpAddr::from(v6)].map(v1::Prefix::from).to_vec()
}

fn own_node() -> v1::SelfNode {
    let net = |text: &str| text.parse::<IpNet>().ok().map(v1::Prefix::from);
    let (v4, v4_nodes, v6) = (net("100.64.0.0/10"), net("100.64.0.0/16"), net("fd77::/48"));
    v1::SelfNode {
        id: 2,
        name: "own".to_owned(),
        addresses: addresses(2),
        overlay: Some(v1::Overlay { v4, v4_nodes, v6 }),
        approved_routes: net("10.0.0.0/8").into_iter().collect(),
        ..Default::default()
    }
}

fn peer(last: u8) -> v1::Peer {
    let endpoint = NodeEndpoint { address: SocketAddr::from(([192, 0, 2, last], 51820)), fixed: false };
    let mut allowed_prefixes = addresses(last);
    allowed_prefixes.push(v1::Prefix { address: vec![10, last, 0, 0], length: 16 });
    v1::Peer {
        id: last.into(),
        name: format!("peer{last}"),
        node_key: vec![last; 32],
        addresses: addresses(last),
        allowed_prefixes,
        endpoints: vec![endpoint.into()],
        online: true,
        user: "alice@x.org".to_owned(),
        last_seen_unix_ms: 1_795_367_560_000,
        ..Default::default()
    }
}

fn snapshot(revision: u64) -> v1::Snapshot {
    v1::Snapshot {
        epoch: "e".to_owned(),
        revision,
        node: Some(own_node()),
        peers: vec![peer(3), peer(4)],
        filter: Some(wire_filter(1)),
    }
}

fn snapshot_message(revision: u64) -> coordinator_message::Message {
    coordinator_message::Message::Snapshot(snapshot(revision))
}

fn conversation() -> Vec<coordinator_message::Message> {
    let delta = |revision: u64| v1::Delta {
        epoch: "e".to_owned(),
        base_revision: revision - 1,
        revision,
        ..Default::default()
    };
    let patch = v1::PeerPatch {
        id: 3,
        online: Some(false),
        endpoints: Some(v1::EndpointList { endpoints: peer(9).endpoints }),
        last_seen_unix_ms: 5,
    };
    vec![
        snapshot_message(1),
        coordinator_message::Message::Delta(v1::Delta { changed: vec![peer(5)], ..delta(2) }),
        coordinator_message::Message::Delta(v1::Delta { patched: vec![patch], ..delta(3) }),
        coordinator_message::Message::KeepAlive(v1::KeepAlive { sent_unix_ms: 7 }),
        coordinator_message::Message::Delta(v1::Delta {
            removed: vec![4],
            filter: Some(wire_filter(2)),
            node: Some(own_node()),
            ..delta(4)
        }),
        coordinator_message::Message::Goodbye(v1::Goodbye { reason: 4, detail: "later".to_owned() }),
    ]
}

fn lines(messages: &[coordinator_message::Message]) -> Vec<u8> {
    let message = |message: &coordinator_message::Message| {
        v1::CoordinatorMessage { message: Some(message.clone()) }.encode_length_delimited_to_vec()
    };
    messages.iter().flat_map(message).collect()
}

fn enrolment() -> v1::EnrollRequest {
    let mut request = v1::EnrollRequest {
        node_key: vec![7; 32],
        auth_key: crate::node_messages::AUTH_KEY.to_owned(),
        hostname: "Web.example.com".to_owned(),
        requested_tags: vec!["tag:b".to_owned()],
        os: "linux".to_owned(),
        version: "0.1.0".to_owned(),
        ..Default::default()
    };
    let key = SigningKey::from_bytes(&[8; 32]);
    request.proof = Some(proof::sign(&key, &[4; 32], &Fingerprint::new([3; 32]), &request));
    request
}

fn node_conversation() -> Vec<u8> {
    let update = v1::NodeUpdate {
        endpoints: peer(3).endpoints,
        advertised_routes: vec![
            v1::Prefix { address: vec![10, 1, 0, 0], length: 16 },
            v1::Prefix { address: vec![0; 16], length: 0 },
        ],
        hostname: "other".to_owned(),
    };
    let hello = v1::Hello { node_key: vec![7; 32], update: Some(update.clone()), ..Default::default() };
    let status = v1::ReportedStatus { enforced_generation: 1, problems: vec!["no \u{1b}[2Jroom".to_owned()] };
    let messages = [
        node_message::Message::Hello(hello),
        node_message::Message::Ack(v1::Ack { revision: 1 }),
        node_message::Message::Update(v1::NodeUpdate { hostname: "web".to_owned(), ..update }),
        node_message::Message::Status(status),
        node_message::Message::KeepAlive(v1::KeepAlive::default()),
    ];
    let mut bytes = enrolment().encode_length_delimited_to_vec();
    for message in messages {
        bytes.extend(v1::NodeMessage { message: Some(message) }.encode_length_delimited_to_vec());
    }
    bytes
}

fn join_key_payload() -> Vec<u8> {
    let mut payload = vec![9; 32];
    payload.extend(b"\x02k1");
    payload.extend([42; 32]);
    payload.extend(b"\x01\x15mesh.example.com:8080");
    payload
}

fn state_files() -> Result<Vec<(&'static str, Vec<u8>)>, Trouble> {
    let identity = Identity {
        machine_key: Secret::new([1; 32]),
        node_key: Secret::new([2; 32]),
        membership: Some(Membership { coordinators: vec!["c:8080".to_owned()], ca_fingerprint: [9; 32] }),
    };
    let settings = Settings {
        up: true,
        advertise_routes: vec!["10.1.0.0/16".parse()?],
        static_endpoints: vec!["192.0.2.1:51820".parse()?],
        ..Settings::default()
    };
    Ok(vec![
        ("sealed_identity", seal(Kind::Identity, &serde_json::to_vec(&identity)?)),
        ("identity", serde_json::to_vec(&identity)?),
        ("settings", serde_json::to_vec(&settings)?),
        ("map", snapshot(5).encode_to_vec()),
    ])
}

fn uapi_messages() -> Result<Vec<(&'static str, Vec<u8>)>, Trouble> {
    let key: PublicKey = "0101010101010101010101010101010101010101010101010101010101010101".parse()?;
    let mut peer = PeerUpdate::new(key);
    peer.endpoint = Some("[2001:db8::1]:51820".parse()?);
    peer.allowed_ips = vec!["10.0.0.0/8".parse()?, "fd00::3/128".parse()?];
    peer.keepalive = Some(25);
    let update =
        Update { listen_port: Some(51820), replace_peers: true, peers: vec![peer], ..Update::default() };
    let mut peer = PeerStatus::new(key);
    peer.endpoint = Some("192.0.2.1:51820".parse()?);
    peer.last_handshake = Some(std::time::UNIX_EPOCH + std::time::Duration::new(1_795_367_560, 5));
    peer.allowed_ips = vec!["10.0.0.0/8".parse()?];
    let status = DeviceStatus { listen_port: 51820, peers: vec![peer], ..DeviceStatus::default() };
    Ok(vec![
        ("get", uapi::get_request().as_bytes().to_vec()),
        ("set", uapi::set_request(&update).as_bytes().to_vec()),
        ("answer", uapi::get_answer(&status).as_bytes().to_vec()),
    ])
}

fn status() -> local::StatusResponse {
    local::StatusResponse {
        state: "running".to_owned(),
        interface: "gw0".to_owned(),
        wireguard_backend: "kernel".to_owned(),
        node: Some(own_node()),
        coordinator: "c:8080".to_owned(),
        enforced_generation: 1,
        wanted_generation: 2,
        peers: vec![local::PeerStatus {
            peer: Some(peer(3)),
            path: "none".to_owned(),
            why: "trying 192.0.2.3:51820".to_owned(),
            latency_ms: -1.0,
            ..Default::default()
        }],
        problems: vec!["the kernel has no \u{1b}[2Jroom".to_owned()],
        ..Default::default()
    }
}
