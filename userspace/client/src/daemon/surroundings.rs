//! This machine's own links and names, and what others are told of them.

use std::net::SocketAddr;
use std::time::Instant;

use ghostwire_dataplane::netlink::Rank;
use ghostwire_proto::address::NodeEndpoint;
use ipnet::IpNet;

use super::Daemon;
use crate::pb;
use crate::plane::PlaneError;
use crate::session::Input;

impl Daemon {
    /// What our own links are, and what we tell others about them.
    pub(super) fn look_around(&mut self) {
        match self.netlink.local_endpoints().and_then(|ends| Ok((ends, self.netlink.addresses()?))) {
            Ok((ends, addresses)) => {
                let ours = |index| ends.iter().any(|end| end.index == index && end.rank != Rank::Internal);
                let mut networks: Vec<IpNet> = addresses
                    .iter()
                    .filter(|address| ours(address.index))
                    .map(|address| address.net)
                    .collect();
                networks.sort();
                let changed = self.around.networks != networks;
                self.around.networks = networks;
                self.note("links", None);
                self.refresh_about();
                let now = Instant::now();
                // Also when no address has changed: next hops may have.
                self.steer_network(now);
                let plain = changed && self.session.is_up() && self.steering.is_none();
                if let Some(map) = self.session.map().cloned().filter(|_| plain) {
                    let first = self.update_paths(now, &map);
                    for (id, endpoint) in first {
                        if let Some((key, _)) = self.paths.get(&id) {
                            self.set_endpoint(*key, endpoint);
                        }
                    }
                }
            }
            Err(error) => self.note("links", Some(PlaneError::of(&error).0)),
        }
    }

    pub(super) fn about(&self) -> pb::NodeUpdate {
        let port = self.device.as_ref().map_or(self.config.kernel.listen_port, |device| device.listen_port);
        let found = self.netlink.local_endpoints().unwrap_or_default();
        let fixed = self
            .settings
            .static_endpoints
            .iter()
            .map(|address| NodeEndpoint { address: *address, fixed: true });
        let found = found
            .iter()
            .filter(|end| end.rank != Rank::Internal && port != 0)
            .map(|end| NodeEndpoint { address: SocketAddr::new(end.address, port), fixed: false });
        pb::NodeUpdate {
            endpoints: fixed.chain(found).map(pb::Endpoint::from).collect(),
            advertised_routes: self
                .settings
                .advertise_routes
                .iter()
                .map(|net| pb::Prefix::from(*net))
                .collect(),
            hostname: self.hostname(),
        }
    }

    pub(super) fn refresh_about(&mut self) {
        let about = self.about();
        self.input(Input::About(Box::new(about)));
    }

    pub(super) fn hostname(&self) -> String {
        if !self.settings.hostname.is_empty() {
            return self.settings.hostname.clone();
        }
        nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}
