//! Packets that userspace carries.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ghostwire_dataplane::steer::{Carrier, Class, Family, Path, PeerId};

use crate::lab::{NEIGHBOURS4, NEIGHBOURS6, Pair, engines};
use crate::numbered::{assert_complete, assert_in_order, stream};

const DERP: Path = Path::Carrier { class: Class::Derp };

/// Carries datagrams between two devices until told to stop; what a QUIC connection or a relay would do.
struct Courier {
    stop: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Courier {
    fn between(a: (Arc<Carrier>, PeerId), b: (Arc<Carrier>, PeerId)) -> Self {
        let (stop, carried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = [(a.clone(), b.clone()), (b, a)].map(|((from, sender), (to, receiver))| {
            let (stop, carried) = (Arc::clone(&stop), Arc::clone(&carried));
            std::thread::spawn(move || {
                let mut payload = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    match from.try_recv(&mut payload) {
                        Ok((peer, length)) => {
                            assert_eq!(peer, receiver);
                            to.deliver(sender, Class::Derp, &payload[..length]).unwrap();
                            carried.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            std::thread::sleep(Duration::from_micros(100));
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        });
        Self { stop, carried, threads: threads.into() }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.carried.load(Ordering::Relaxed)
    }
}

#[test]
fn a_carrier_starts_a_session_and_hands_it_to_a_path_and_back() {
    for family in [Family::V4, Family::V6] {
        for choice in engines() {
            let pair = Pair::with(choice, family);
            let (mut at_a, mut at_b) = pair.steer();
            // As at the start of a daemon: nothing is proven, and the first packets come out here.
            pair.a.set_path(&mut at_a, pair.b.id(), &DERP, None);
            pair.b.set_path(&mut at_b, pair.a.id(), &DERP, None);
            let (wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
            let courier = Courier::between((at_a.carrier(), pair.a.id()), (at_b.carrier(), pair.b.id()));
            pair.meet();
            assert_in_order(&stream(&pair.a, &pair.b, 300, |_| ()), 300);
            let traffic = at_a.traffic(pair.b.id());
            let derp = Class::Derp as usize;
            assert!(traffic.sent[derp].packets > 300 && traffic.received[derp].packets > 300, "{traffic:?}");
            assert_eq!(traffic.sent[Class::Direct as usize].packets, 0);
            // To a path and back, under load. The carrier is slower, so that order is not promised: nothing is lost.
            let total = 2400;
            let arrived = stream(&pair.a, &pair.b, total, |progress| {
                for switch in 1..8 {
                    if !progress.wait_for(switch * 300) {
                        return;
                    }
                    match switch % 3 {
                        0 => {
                            pair.a.set_path(&mut at_a, pair.b.id(), &DERP, None);
                            pair.b.set_path(&mut at_b, pair.a.id(), &DERP, None);
                        }
                        1 => pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4),
                        _ => pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS6),
                    }
                }
            });
            assert_complete(arrived, total);
            assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(pair.b.id()))]);
            assert!(courier.end() > 600);
        }
    }
}

#[test]
fn only_wireguards_messages_are_delivered() {
    let pair = Pair::new(ghostwire_dataplane::wireguard::Choice::Userspace);
    let at_a = pair.a.steer();
    for payload in [&[][..], &[4], &[4, 0, 0, 0], &[0; 64], &[5; 200], &[4, 0, 0, 0, 1, 2, 3]] {
        let refused = at_a.carrier().deliver(pair.b.id(), Class::Quic, payload).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
    let message = [&[4, 0, 0, 0][..], &[7; 60]].concat();
    at_a.carrier().deliver(pair.b.id(), Class::Quic, &message).unwrap();
    assert!(at_a.carrier().deliver(PeerId(0), Class::Quic, &message).is_err());
}

#[test]
fn waiting_for_a_packet_ends_when_it_comes() {
    let pair = Pair::new(ghostwire_dataplane::wireguard::Choice::Userspace);
    let mut at_a = pair.a.steer();
    pair.a.set_path(&mut at_a, pair.b.id(), &DERP, None);
    let _wg_a = pair.a.wireguard(&[&pair.b]);
    let carrier = at_a.carrier();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (peer, length) = runtime.block_on(async {
        let mut payload = [0; 2048];
        let ping = async { pair.a.netns.output(&format!("ping -n -c 1 -W 1 {}", pair.b.overlay())) };
        let wait = async { carrier.recv(&mut payload).await.unwrap() };
        tokio::join!(wait, ping).0
    });
    // The initiation of a handshake.
    assert_eq!((peer, length), (pair.b.id(), 148));
}
