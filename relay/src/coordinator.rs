//! The connection of a relay that runs by itself to its coordinator: registers it, tells its load, learns whose
//! tokens are good and who may use the stream relay. Without the coordinator the relay goes on with what it knows.

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use ed25519_dalek::VerifyingKey;
use ghostwire_proto::channel;
use ghostwire_proto::join_key::JoinKey;
use ghostwire_proto::v1::relay_message::Message as ToCoordinator;
use ghostwire_proto::v1::relay_order::Message as FromCoordinator;
use ghostwire_proto::v1::relay_service_client::RelayServiceClient;
use ghostwire_proto::v1::{
    Relay, RelayClients, RelayHello, RelayLoad, RelayMessage, RelayOrder, RelayUnknownSource, RelayWelcome,
};
use ghostwire_relay_protocol::derp::PublicKey;
use ghostwire_relay_protocol::token::KeyNumber;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use crate::derp::Admission;
use crate::server::Watch;
use crate::sessions::Owner;
use crate::state_dir::write_secret;
use crate::udp::Observer;

/// How often the load is told.
const REPORT: Duration = Duration::from_secs(5);

/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that wait for the connection.
const OUTBOUND: usize = 16;

/// Most clients that a coordinator can name.
const MAX_CLIENTS: usize = 1 << 20;

/// Who may use the stream relay, as the coordinator says.
#[derive(Debug, Default)]
pub struct Told(RwLock<HashSet<PublicKey>>);

impl Admission for Told {
    fn admit(&self, key: PublicKey, _: SocketAddr) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&key);
        Box::pin(std::future::ready(known))
    }
}

impl Told {
    fn change(&self, change: &RelayClients) {
        let key = |bytes: &Vec<u8>| <[u8; 32]>::try_from(bytes.as_slice()).ok().map(PublicKey);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if change.all {
            known.clear();
        }
        for key in change.removed.iter().filter_map(key) {
            known.remove(&key);
        }
        let room = MAX_CLIENTS.saturating_sub(known.len());
        known.extend(change.added.iter().filter_map(key).take(room));
    }
}

/// Passes notices of unknown sources on.
#[derive(Debug)]
pub struct Notices(mpsc::Sender<u64>);

impl Notices {
    /// What hears of them, and where they come out.
    pub fn new() -> (Self, mpsc::Receiver<u64>) {
        let (sender, receiver) = mpsc::channel(OUTBOUND);
        (Self(sender), receiver)
    }
}

impl Observer for Notices {
    fn unknown_source(&self, owner: Owner, _: SocketAddr) {
        // Nobody listens, or too many wait: it will be noticed again.
        let _ = self.0.try_send(owner.node.0);
    }
}

/// What it takes to register.
#[derive(Debug)]
pub struct Registration {
    /// Where the coordinator is, by which certificate authority it is known, and the key that admits this relay.
    pub join_key: JoinKey,
    /// The relay as nodes are to see it.
    pub relay: Relay,
    /// Where the coordinator's public keys are kept for the time when it is away.
    pub signers: PathBuf,
}

/// The keys that were known when the relay last ran.
pub fn known_signers(file: &std::path::Path) -> Vec<(KeyNumber, VerifyingKey)> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(signer_of_line).collect()
}

fn signer_of_line(line: &str) -> Option<(KeyNumber, VerifyingKey)> {
    let (number, digits) = line.split_once(':')?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some((KeyNumber(number.parse().ok()?), VerifyingKey::from_bytes(&bytes).ok()?))
}

impl Registration {
    /// Stays registered for ever.
    pub async fn keep(self, watch: Watch, told: std::sync::Arc<Told>, mut notices: mpsc::Receiver<u64>) {
        let mut pause = FIRST_PAUSE;
        loop {
            for address in &self.join_key.addresses {
                let connected = timeout(PATIENCE, self.connect(address)).await;
                let error = match connected.unwrap_or_else(|_| bail_timeout()) {
                    Ok((out, inbound)) => {
                        info!(%address, "registered with the coordinator");
                        pause = FIRST_PAUSE;
                        self.converse(out, inbound, &watch, &told, &mut notices).await
                    }
                    Err(error) => error,
                };
                warn!(%address, error = format!("{error:#}"), "no connection to the coordinator; the relay goes on");
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn connect(
        &self,
        address: &ghostwire_proto::join_key::Address,
    ) -> anyhow::Result<(mpsc::Sender<RelayMessage>, Streaming<RelayOrder>)> {
        let channel = channel::coordinator(address, self.join_key.ca).await?;
        let mut client =
            RelayServiceClient::new(channel).max_decoding_message_size(ghostwire_proto::MAX_MESSAGE_BYTES);
        let (out, messages) = mpsc::channel(OUTBOUND);
        let hello = RelayHello {
            auth_key: self.join_key.auth_key.expose(),
            relay: Some(self.relay.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        out.send(RelayMessage { message: Some(ToCoordinator::Hello(hello)) }).await?;
        let answered = client.serve(ReceiverStream::new(messages)).await;
        let inbound = answered.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
        Ok((out, inbound))
    }

    /// Talks until the connection ends; gives why.
    async fn converse(
        &self,
        out: mpsc::Sender<RelayMessage>,
        mut inbound: Streaming<RelayOrder>,
        watch: &Watch,
        told: &Told,
        notices: &mut mpsc::Receiver<u64>,
    ) -> anyhow::Error {
        let mut reports = interval(REPORT);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                order = inbound.message() => {
                    match order {
                        Ok(Some(RelayOrder { message })) => self.obey(message, watch, told),
                        Ok(None) => return anyhow::anyhow!("the coordinator closed the stream"),
                        Err(status) => return anyhow::anyhow!("{}", status.message()),
                    }
                    continue;
                }
                _ = reports.tick() => ToCoordinator::Load(load(watch)),
                Some(node) = notices.recv() => ToCoordinator::UnknownSource(RelayUnknownSource { node }),
            };
            if out.send(RelayMessage { message: Some(message) }).await.is_err() {
                return anyhow::anyhow!("the connection is closed");
            }
        }
    }

    fn obey(&self, order: Option<FromCoordinator>, watch: &Watch, told: &Told) {
        match order {
            Some(FromCoordinator::Welcome(RelayWelcome { signers })) => {
                let signers: Vec<_> = signers
                    .iter()
                    .filter_map(|signer| {
                        let key = signer.key.as_slice().try_into().ok()?;
                        let number = u16::try_from(signer.number).ok()?;
                        Some((KeyNumber(number), VerifyingKey::from_bytes(key).ok()?))
                    })
                    .collect();
                let lines: Vec<String> = signers
                    .iter()
                    .map(|(number, key)| format!("{}:{}\n", number.0, hex::encode(key.as_bytes())))
                    .collect();
                let lines = lines.concat();
                if let Err(error) = write_secret(&self.signers, lines.as_bytes()) {
                    warn!(error = format!("{error:#}"), "after a restart, the coordinator has to be there");
                }
                watch.plane().set_coordinators(signers);
            }
            Some(FromCoordinator::Clients(clients)) => told.change(&clients),
            // A kind of message that a newer coordinator knows.
            None => {}
        }
    }
}

fn bail_timeout<T>() -> anyhow::Result<T> {
    bail!("no answer within {} seconds", PATIENCE.as_secs())
}

fn load(watch: &Watch) -> RelayLoad {
    let load = watch.load();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    RelayLoad {
        nodes: count(load.nodes),
        pairs: count(load.pairs),
        clients: count(load.clients),
        load_permille: load.permille,
        draining: load.draining,
    }
}

/// Reads a join key from a file.
pub fn join_key_from(file: &std::path::Path) -> anyhow::Result<JoinKey> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    ghostwire_proto::join_key::parse(text.trim())
        .with_context(|| format!("{} holds no join key", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_come_and_go_as_the_coordinator_says() {
        let told = Told::default();
        let source = "192.0.2.1:1".parse().unwrap();
        let key = |byte: u8| vec![byte; 32];
        told.change(&RelayClients { all: true, added: vec![key(1), key(2), vec![3; 31]], removed: vec![] });
        assert!(told.admit(PublicKey([1; 32]), source).await);
        told.change(&RelayClients { all: false, added: vec![key(4)], removed: vec![key(1)] });
        for (byte, admitted) in [(1, false), (2, true), (3, false), (4, true)] {
            assert_eq!(told.admit(PublicKey([byte; 32]), source).await, admitted, "{byte}");
        }
        told.change(&RelayClients { all: true, ..RelayClients::default() });
        assert!(!told.admit(PublicKey([2; 32]), source).await);
    }

    #[test]
    fn the_coordinators_keys_are_known_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signers");
        assert!(known_signers(&file).is_empty());
        let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key();
        std::fs::write(&file, format!("1:{}\nnonsense\n2:00\n", hex::encode(key.as_bytes()))).unwrap();
        assert_eq!(known_signers(&file), [(KeyNumber(1), key)]);
    }
}
