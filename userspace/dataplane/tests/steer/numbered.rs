//! A stream of numbered datagrams in both directions, through whatever happens meanwhile.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::lab::Node;

/// How many are on their way at most, so that no queue can overflow: what is lost was lost by what is tested.
const WINDOW: u64 = 24;

/// What arrived, in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) there: Vec<u64>,
    pub(crate) back: Vec<u64>,
}

/// A stream under way.
pub(crate) struct Progress {
    back: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Waits until so many have come back. False: nothing comes any more.
    pub(crate) fn wait_for(&self, count: u64) -> bool {
        while self.back.load(Ordering::Relaxed) < count {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }
}

/// Sends `total` numbered datagrams from `a` to `b`, which sends each one back, while `meanwhile` runs. Ends early, with
/// less, when nothing arrives for ten seconds.
pub(crate) fn stream(a: &Node, b: &Node, total: u64, meanwhile: impl FnOnce(&Progress)) -> Arrived {
    let (here, there) = (a.overlay(), b.overlay());
    let near = a.netns.run(|| UdpSocket::bind((here.as_str(), 7001)).unwrap());
    let far = b.netns.run(|| UdpSocket::bind((there.as_str(), 7001)).unwrap());
    near.connect((there.as_str(), 7001)).unwrap();
    far.connect((here.as_str(), 7001)).unwrap();
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let progress = Progress { back: AtomicU64::new(0), stop: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let mut seen = Vec::new();
            while let Some(number) = receive(&far) {
                seen.push(number);
                far.send(&payload(number)).unwrap();
                if number + 1 == total {
                    break;
                }
            }
            seen
        });
        let source = scope.spawn(|| {
            let (mut sent, mut back) = (0, Vec::new());
            while (back.len() as u64) < total {
                while sent < total && sent < back.len() as u64 + WINDOW {
                    near.send(&payload(sent)).unwrap();
                    sent += 1;
                }
                let Some(number) = receive(&near) else { break };
                back.push(number);
                progress.back.store(back.len() as u64, Ordering::Relaxed);
            }
            progress.stop.store(true, Ordering::Relaxed);
            back
        });
        meanwhile(&progress);
        Arrived { there: echo.join().unwrap(), back: source.join().unwrap() }
    })
}

/// Fails unless all of a stream has arrived, once and in order.
#[track_caller]
pub(crate) fn assert_in_order(arrived: &Arrived, total: u64) {
    for (way, numbers) in [("there", &arrived.there), ("back", &arrived.back)] {
        let steps: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).take(8).collect();
        assert!(
            numbers.len() as u64 == total && numbers.first() == Some(&0) && steps.is_empty(),
            "{way}: {} of {total}, steps {steps:?}",
            numbers.len()
        );
    }
}

/// Fails unless all of a stream has arrived, once, in whatever order.
#[track_caller]
pub(crate) fn assert_complete(mut arrived: Arrived, total: u64) {
    arrived.there.sort_unstable();
    arrived.back.sort_unstable();
    assert_in_order(&arrived, total);
}

/// A number, and sizes up to a full packet.
fn payload(number: u64) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(8 + usize::try_from(number * 37 % 1360).unwrap(), 0xa5);
    bytes
}

fn receive(socket: &UdpSocket) -> Option<u64> {
    let mut buffer = [0; 2048];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
            assert_eq!(buffer[..length], payload(number));
            Some(number)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}
