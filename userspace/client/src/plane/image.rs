//! The image in the kernel: made from the filter, then left alone, changed in place, or swapped.

use std::net::IpAddr;

use ghostwire_dataplane::acl::{Acl, AclError, Image};
use ghostwire_policy::image::{ClassImage, NodeContext, compile};
use ipnet::Ipv6Net;

use super::{PlaneError, WantedImage};

/// How the image in force becomes the wanted one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// It is the wanted one.
    Nothing,
    /// Words of its tables, which only add: a few writes, and the generation.
    InPlace(Vec<(u32, u64)>),
    /// A new image. Whatever takes a permission away, and whatever is in doubt.
    Swap,
}

/// Puts an image in force. The one that is there is read from the kernel and not remembered: an earlier process may
/// have left it, or have ended between two writes.
pub(super) fn put_in_force(acl: &mut Acl, wanted: &WantedImage) -> Result<(), PlaneError> {
    let compiled = compiled(wanted)?;
    put(acl, wanted, compiled).map_err(|error| PlaneError::of(&error))
}

fn put(acl: &mut Acl, wanted: &WantedImage, compiled: ClassImage) -> Result<(), AclError> {
    let generation = wanted.generation;
    // By itself, so that it is no other image: the connections of the old one go on.
    if acl.generation()?.is_some() && acl.shadow()? != wanted.shadow {
        acl.set_shadow(wanted.shadow)?;
    }
    let in_force = acl.in_force().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the policy in force; replacing it");
        None
    });
    match change(in_force, &compiled) {
        Change::Nothing => tracing::debug!(generation, "policy was in force"),
        Change::InPlace(cells) => {
            acl.add_in_place(&cells, generation)?;
            tracing::info!(generation, words = cells.len(), "policy is in force, changed in place");
        }
        Change::Swap => {
            let ClassImage { words, remote_nets, local_nets } = compiled;
            let image = Image { words, remote_nets, local_nets };
            let took = acl.install(&image)?;
            tracing::info!(generation, words = image.words.len(), took = ?took.total(), "policy is in force");
        }
    }
    Ok(())
}

fn change(in_force: Option<Image>, wanted: &ClassImage) -> Change {
    let Some(Image { words, mut remote_nets, mut local_nets }) = in_force else { return Change::Swap };
    // The compiler's order says nothing.
    let mut sorted = wanted.clone();
    for nets in [&mut remote_nets, &mut local_nets, &mut sorted.remote_nets, &mut sorted.local_nets] {
        nets.sort_unstable();
    }
    let old = ClassImage { words, remote_nets, local_nets };
    if old == sorted {
        return Change::Nothing;
    }
    sorted.additions_to(&old).map_or(Change::Swap, Change::InPlace)
}

fn compiled(image: &WantedImage) -> Result<ClassImage, PlaneError> {
    let v4 = image.own.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let v6 = image.own.iter().find_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let context = NodeContext {
        own4: v4,
        own6: v6,
        overlay4: Some(image.overlay.v4_nodes),
        // Node addresses differ in their last 16 bits only.
        overlay6: Ipv6Net::new(image.overlay.v6.network(), 112).ok(),
        generation: image.generation,
        shadow: image.shadow,
        net_slot: 0,
        peers: None,
    };
    compile(&image.rules, &context).map_err(|error| PlaneError::of(&error))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use ghostwire_dataplane::acl::Options;
    use ghostwire_policy::filter::{
        AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
    };
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::testing;

    /// Two kinds of peers: `narrow` may reach port 80, `wide` port 22 as well.
    fn wanted(generation: u32, wide: &[u8], narrow: &[u8]) -> WantedImage {
        let own: Vec<IpAddr> = vec!["100.64.0.2".parse().unwrap(), "fd77:1:2::2".parse().unwrap()];
        let set = |peers: &[u8]| {
            let addresses = peers.iter().flat_map(|peer| {
                [format!("100.64.0.{peer}").parse().unwrap(), format!("fd77:1:2::{peer:x}").parse().unwrap()]
            });
            Arc::new(AddrSet::from_addrs(addresses))
        };
        let rule = |peers: &[u8], port| FilterRule {
            src: set(peers),
            dst: Arc::new(AddrSet::from_addrs(own.iter().copied())),
            protocols: ProtocolSet::DEFAULT,
            ports: [PortRange { first: port, last: port }].into(),
            origin: RuleOrigin { section: Section::Acls, index: 0, line: 1 },
        };
        let inbound = vec![rule(wide, 22), rule(&[wide, narrow].concat(), 80)];
        WantedImage {
            generation,
            rules: Arc::new(NodeFilter { inbound, outbound: Vec::new() }),
            own,
            overlay: testing::overlay(),
            shadow: false,
        }
    }

    fn read_back(image: &WantedImage) -> Image {
        let ClassImage { words, remote_nets, local_nets } = compiled(image).unwrap();
        Image { words, remote_nets, local_nets }
    }

    #[test]
    fn only_what_adds_is_written_in_place() {
        let now = Some(read_back(&wanted(7, &[3], &[4, 5])));
        let to = |generation, wide: &[u8], narrow: &[u8]| {
            change(now.clone(), &compiled(&wanted(generation, wide, narrow)).unwrap())
        };
        assert_eq!(to(7, &[3], &[4, 5]), Change::Nothing);
        assert_eq!(to(8, &[3], &[4, 5]), Change::InPlace(Vec::new()), "another generation of the same");
        assert!(matches!(to(8, &[3], &[4, 5, 6]), Change::InPlace(cells) if cells.len() == 2), "one joins");
        assert!(matches!(to(8, &[3, 5], &[4]), Change::InPlace(cells) if cells.len() == 2), "one gets more");
        for (wide, narrow) in [(&[3][..], &[4][..]), (&[], &[3, 4, 5]), (&[5], &[3, 4]), (&[3, 6], &[4])] {
            assert_eq!(to(8, wide, narrow), Change::Swap, "{wide:?} {narrow:?}");
        }
        assert_eq!(change(None, &compiled(&wanted(8, &[3], &[4, 5])).unwrap()), Change::Swap);
    }

    #[test]
    fn half_written_additions_are_completed_or_taken_back() {
        let (before, after) = (wanted(7, &[3], &[4]), wanted(8, &[3], &[4, 5]));
        let mut torn = Some(read_back(&before));
        let Change::InPlace(cells) = change(torn.clone(), &compiled(&after).unwrap()) else {
            panic!("a peer that joins is no reason to swap")
        };
        let (word, value) = cells[0];
        torn.as_mut().unwrap().words[word as usize] = value;
        assert_eq!(change(torn.clone(), &compiled(&after).unwrap()), Change::InPlace(cells[1..].to_vec()));
        assert_eq!(change(torn, &compiled(&before).unwrap()), Change::Swap, "the stored map may be older");
    }

    /// A folder for pins, which outlive whoever made them.
    struct Pins(PathBuf);

    impl Drop for Pins {
        fn drop(&mut self) {
            // After a test that succeeded there is nothing left.
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }

    /// The real programs on the loopback of a namespace that ends with the thread. Needs root.
    #[test]
    fn a_peer_that_joins_changes_the_image_and_does_not_replace_it() {
        let pins = Pins(format!("/sys/fs/bpf/ghostwire-client-test-{}", std::process::id()).into());
        let in_namespace = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|error| panic!("cannot make a network namespace, not root? {error}"));
            let mut acl = Acl::open_or_create("lo", &pins.0, &Options::default()).unwrap();
            let mut put = |image: &WantedImage| {
                put_in_force(&mut acl, image).unwrap();
                let expected = Some(read_back(image).words);
                assert_eq!(acl.in_force().unwrap().map(|image| image.words), expected);
                assert_eq!(acl.generation().unwrap(), Some(image.generation));
                acl.image_id().unwrap().unwrap()
            };
            let first = put(&wanted(1, &[3], &[4]));
            assert_eq!(put(&wanted(2, &[3], &[4, 5])), first, "a peer joined");
            assert_eq!(put(&wanted(3, &[3, 5], &[4])), first, "a peer got more");
            let shadow = WantedImage { shadow: true, ..wanted(3, &[3, 5], &[4]) };
            assert_eq!(put(&shadow), first, "shadow mode is a flag");
            assert_eq!(put(&wanted(3, &[3, 5], &[4])), first);
            let second = put(&wanted(4, &[3], &[4, 5]));
            assert_ne!(second, first, "a permission was taken away");
            assert_eq!(put(&wanted(4, &[3], &[4, 5])), second, "nothing to do");
            drop(acl);
            let mut adopted = Acl::open_or_create("lo", &pins.0, &Options::default()).unwrap();
            put_in_force(&mut adopted, &wanted(5, &[3], &[4, 5, 6])).unwrap();
            assert_eq!(adopted.image_id().unwrap(), Some(second), "what was adopted is changed as well");
            adopted.detach()
        };
        std::thread::scope(|scope| scope.spawn(in_namespace).join().unwrap()).unwrap();
        assert!(!pins.0.exists());
    }
}
