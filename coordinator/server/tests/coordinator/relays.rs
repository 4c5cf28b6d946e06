//! Relays: registration, what nodes are told, tokens, and who is let in.

use ed25519_dalek::VerifyingKey;
use ghostwire_proto::channel;
use ghostwire_proto::join_key::JoinKey;
use ghostwire_proto::v1::coordinator_message::Message;
use ghostwire_proto::v1::relay_message::Message as FromRelay;
use ghostwire_proto::v1::relay_order::Message as ToRelay;
use ghostwire_proto::v1::relay_service_client::RelayServiceClient;
use ghostwire_proto::v1::{self, node_message};
use ghostwire_relay_protocol::token::{Grant, NodeId, RelayId, Token};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::{Admin, Machine, PATIENCE, Server, Stream};

struct Relay {
    out: mpsc::UnboundedSender<v1::RelayMessage>,
    inbound: Streaming<v1::RelayOrder>,
}

fn described(id: u8) -> v1::Relay {
    v1::Relay {
        id: vec![id; 16],
        region: "here".to_owned(),
        addresses: vec![vec![203, 0, 113, 1]],
        udp_port: 3478,
        key: vec![1; 32],
        derp_key: vec![2; 32],
        derp_port: 443,
        ..Default::default()
    }
}

async fn relay_key(admin: &mut Admin) -> JoinKey {
    admin.key(v1::CreateAuthKeyRequest { relay: true, lifetime_seconds: -1, ..Default::default() }).await.0
}

impl Relay {
    async fn register(join_key: &JoinKey, relay: v1::Relay) -> Result<Self, Status> {
        let channel = channel::coordinator(&join_key.addresses[0], join_key.ca).await.unwrap();
        let (out, messages) = mpsc::unbounded_channel();
        let hello = v1::RelayHello {
            auth_key: join_key.auth_key.expose(),
            relay: Some(relay),
            version: "0.1.0".to_owned(),
        };
        out.send(v1::RelayMessage { message: Some(FromRelay::Hello(hello)) }).unwrap();
        let mut client = RelayServiceClient::new(channel);
        let inbound = client.serve(UnboundedReceiverStream::new(messages)).await?.into_inner();
        Ok(Self { out, inbound })
    }

    fn send(&self, message: FromRelay) {
        self.out.send(v1::RelayMessage { message: Some(message) }).unwrap();
    }

    async fn next(&mut self) -> ToRelay {
        let order = timeout(PATIENCE, self.inbound.message()).await.expect("an order in time").unwrap();
        order.expect("the stream goes on").message.unwrap()
    }

    async fn signer(&mut self) -> VerifyingKey {
        match self.next().await {
            ToRelay::Welcome(v1::RelayWelcome { signers }) => {
                VerifyingKey::from_bytes(signers[0].key.as_slice().try_into().unwrap()).unwrap()
            }
            other @ ToRelay::Clients(_) => panic!("{other:?}"),
        }
    }

    async fn clients(&mut self) -> v1::RelayClients {
        match self.next().await {
            ToRelay::Clients(clients) => clients,
            other @ ToRelay::Welcome(_) => panic!("{other:?}"),
        }
    }
}

async fn list(stream: &mut Stream) -> v1::RelayList {
    loop {
        if let Some(Message::Relays(list)) = stream.next().await.unwrap() {
            return list;
        }
    }
}

#[tokio::test]
async fn nodes_hear_of_relays_and_get_tokens_that_the_relay_believes() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let (one, two) = (Machine::new("one"), Machine::new("two"));
    let mut first = one.join(&join_key).await;
    let second = two.join(&join_key).await;

    let for_relays = relay_key(&mut admin).await;
    let mut relay = Relay::register(&for_relays, described(7)).await.unwrap();
    let signer = relay.signer().await;
    let known = relay.clients().await;
    assert!(known.all);
    for machine in [&one, &two] {
        assert!(known.added.iter().any(|key| *key == machine.node_key), "{}", machine.hostname);
    }
    let told = list(&mut first).await;
    let number = told.relays[0].number;
    assert_eq!(told.relays, [v1::Relay { number, ..described(7) }]);

    let peer = first.peer("two").unwrap().id;
    let request = v1::RelayTokensRequest {
        session_key: vec![9; 32],
        wanted: vec![v1::RelayTokensWanted { relay: number, peers: vec![peer, 4711] }],
    };
    first.send(node_message::Message::RelayTokens(request));
    let tokens = loop {
        if let Some(Message::RelayTokens(tokens)) = first.next().await.unwrap() {
            break tokens.tokens;
        }
    };
    let grants: Vec<Grant> = tokens
        .iter()
        .map(|token| {
            let now = u64::try_from(token.expires_unix_ms / 1000).unwrap() - 10;
            let bytes = token.token.as_slice().try_into().unwrap();
            Token::verify(bytes, RelayId([7; 16]), now, |_| Some(signer)).unwrap().grant
        })
        .collect();
    assert_eq!(grants, [Grant::Allocate, Grant::Bind { peer: NodeId(peer) }], "none for a stranger");

    // Load and drain are told; so is an unknown source, to the node and those who see it.
    relay.send(FromRelay::Load(v1::RelayLoad { load_permille: 730, draining: true, ..Default::default() }));
    let told = list(&mut first).await;
    assert_eq!((told.relays[0].load_permille, told.relays[0].draining), (700, true));
    relay.send(FromRelay::UnknownSource(v1::RelayUnknownSource { node: peer }));
    loop {
        if let Some(Message::RelayRebind(rebind)) = first.next().await.unwrap() {
            assert_eq!(rebind.relay, number);
            break;
        }
    }

    // A node that is deleted may not use the relay any more.
    drop(second);
    admin.delete("two").await;
    let change = relay.clients().await;
    assert_eq!((change.all, change.removed), (false, vec![two.node_key.to_vec()]));
    // A node that comes later is told of the relay at once.
    let mut third = Machine::new("three").join(&join_key).await;
    assert_eq!(list(&mut third).await.relays.len(), 1);
}

#[tokio::test]
async fn keys_for_relays_and_keys_for_machines_are_not_the_same() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let machines = admin.reusable("alice@example.com").await;
    let relays = relay_key(&mut admin).await;
    let refused = Relay::register(&machines, described(1)).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let refused = Machine::new("one").enroll(&relays).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let wrong =
        v1::CreateAuthKeyRequest { relay: true, user: "alice@example.com".to_owned(), ..Default::default() };
    assert_eq!(admin.0.create_auth_key(wrong).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_revoked_key_ends_its_relay() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let request = v1::CreateAuthKeyRequest { relay: true, ..Default::default() };
    let (for_relays, key) = admin.key(request).await;
    let mut relay = Relay::register(&for_relays, described(1)).await.unwrap();
    relay.signer().await;
    relay.clients().await;
    admin.0.revoke_auth_key(v1::RevokeAuthKeyRequest { id: key.id }).await.unwrap();
    let ended = timeout(PATIENCE, relay.inbound.message()).await.expect("an end in time");
    assert!(matches!(ended, Ok(None) | Err(_)), "{ended:?}");
    let refused = Relay::register(&for_relays, described(1)).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn what_is_no_relay_is_refused() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let for_relays = relay_key(&mut admin).await;
    let odd = v1::Relay { key: vec![1; 31], ..described(1) };
    let refused = Relay::register(&for_relays, odd).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    // Another key's relay is not taken over.
    let relay = Relay::register(&for_relays, described(1)).await.unwrap();
    let other = relay_key(&mut admin).await;
    let refused = Relay::register(&other, described(1)).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    drop(relay);
}
