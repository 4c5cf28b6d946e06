//! Names → addresses.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::scope::INTERNET;
use super::{Scopes, Side, index, number};
use crate::alias::{Alias, AutoGroup, GroupMember};
use crate::filter::AddrSet;
use crate::policy::{Policy, in_domain};
use crate::topology::{Topology, User};

/// The users of a topology and their nodes.
#[derive(Clone, Debug)]
pub(crate) struct People {
    /// All users, also those that are known from a node only.
    pub(crate) users: Vec<User>,
    by_login: HashMap<String, u32>,
    /// Addresses of each user's untagged nodes.
    families: Vec<Arc<AddrSet>>,
}

impl People {
    pub(crate) fn new(topology: &Topology) -> Self {
        let mut users = topology.users.clone();
        let mut by_login: HashMap<String, u32> = HashMap::new();
        for (user, number) in users.iter().zip(0_u32..) {
            by_login.entry(user.login.clone()).or_insert(number);
        }
        let mut addrs: Vec<Vec<_>> = vec![Vec::new(); users.len()];
        for node in &topology.nodes {
            let Some(login) = node.owner() else { continue };
            let known = by_login.get(login).copied();
            let user = known.unwrap_or_else(|| {
                let user = number(users.len());
                users.push(User { login: login.to_owned(), groups: Vec::new() });
                by_login.insert(login.to_owned(), user);
                addrs.push(Vec::new());
                user
            });
            addrs[index(user)].extend_from_slice(&node.addresses);
        }
        let families = addrs.into_iter().map(|addrs| Arc::new(AddrSet::from_addrs(addrs))).collect();
        Self { users, by_login, families }
    }

    pub(crate) fn user(&self, login: &str) -> Option<&User> {
        self.by_login.get(login).map(|&user| &self.users[index(user)])
    }

    /// The user that the node counts as, and the addresses of all untagged nodes of that user.
    pub(crate) fn family(&self, topology: &Topology, node: usize) -> Option<(&User, &Arc<AddrSet>)> {
        let login = topology.nodes.get(node)?.owner()?;
        let user = index(*self.by_login.get(login)?);
        Some((&self.users[user], &self.families[user]))
    }

    /// Addresses of each user's untagged nodes.
    pub(crate) fn families(&self) -> impl Iterator<Item = &AddrSet> {
        self.families.iter().map(|family| &**family)
    }

    fn addresses(&self, login: &str) -> Option<&AddrSet> {
        self.by_login.get(login).map(|&user| &*self.families[index(user)])
    }

    fn addresses_where(&self, wanted: impl Fn(&User) -> bool) -> AddrSet {
        let chosen = self.users.iter().zip(&self.families).filter(|(user, _)| wanted(user));
        AddrSet::union_of(chosen.map(|(_, family)| &**family))
    }
}

/// What a name stands for as a source or a destination. `autogroup:self` depends on the node and is nothing here.
pub(crate) fn addresses(
    alias: &Alias,
    as_source: bool,
    policy: &Policy,
    topology: &Topology,
    people: &People,
    scopes: &Scopes,
) -> AddrSet {
    let nodes_where = |wanted: &dyn Fn(&crate::topology::Node) -> bool| {
        let nodes = topology.nodes.iter().filter(|node| wanted(node));
        AddrSet::from_addrs(nodes.flat_map(|node| node.addresses.iter().copied()))
    };
    match alias {
        Alias::Any if as_source => topology.overlay.addresses().union(&AddrSet::from_nets(scopes.subnets())),
        Alias::Any | Alias::Auto(AutoGroup::DangerAll) => AddrSet::everything(),
        Alias::User(login) => people.addresses(login).cloned().unwrap_or_default(),
        Alias::UserDomain(domain) => people.addresses_where(|user| in_domain(&user.login, domain)),
        Alias::Group(group) => group_addresses(group, policy, people),
        Alias::Tag(tag) => nodes_where(&|node| node.tags.contains(tag)),
        Alias::Host(host) => {
            policy.hosts.get(host).map_or_else(AddrSet::default, |&net| AddrSet::from_nets([net]))
        }
        Alias::Net(net) => AddrSet::from_nets([*net]),
        Alias::Auto(AutoGroup::Member) => nodes_where(&|node| node.owner().is_some()),
        Alias::Auto(AutoGroup::Tagged) => nodes_where(&|node| node.is_tagged()),
        Alias::Auto(AutoGroup::Internet) => INTERNET.clone(),
        Alias::Auto(AutoGroup::Own | AutoGroup::Admin) => AddrSet::EMPTY,
    }
}

fn group_addresses(group: &str, policy: &Policy, people: &People) -> AddrSet {
    let Some(members) = policy.groups.get(group) else { return AddrSet::EMPTY };
    let logins = members.iter().filter_map(|member| match member {
        GroupMember::Login(login) => people.addresses(login),
        GroupMember::Pattern(_) => None,
    });
    let listed = AddrSet::union_of(logins);
    let asserted = people.users.iter().any(|user| !user.groups.is_empty());
    if !asserted && !members.iter().any(|member| matches!(member, GroupMember::Pattern(_))) {
        return listed;
    }
    listed.union(&people.addresses_where(|user| policy.group_has(group, user)))
}

/// Sides, each list of names worked out once.
pub(crate) struct Sides<'a> {
    policy: &'a Policy,
    topology: &'a Topology,
    people: &'a People,
    scopes: &'a Scopes,
    names: HashMap<(&'a Alias, bool), u32>,
    resolved: Vec<Arc<AddrSet>>,
    known: HashMap<(Vec<u32>, Vec<&'a str>), u32>,
    made: Vec<Side>,
    /// Tag → nodes.
    tags: BTreeMap<&'a str, Vec<u32>>,
}

impl<'a> Sides<'a> {
    pub(crate) fn new(
        policy: &'a Policy,
        topology: &'a Topology,
        people: &'a People,
        scopes: &'a Scopes,
    ) -> Self {
        let mut tags: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (node, number) in topology.nodes.iter().zip(0_u32..) {
            for tag in &node.tags {
                tags.entry(tag).or_default().push(number);
            }
        }
        Self {
            policy,
            topology,
            people,
            scopes,
            names: HashMap::new(),
            resolved: Vec::new(),
            known: HashMap::new(),
            made: Vec::new(),
            tags,
        }
    }

    fn name(&mut self, alias: &'a Alias, as_source: bool) -> u32 {
        // Only `*` differs between the sides.
        let key = (alias, as_source && *alias == Alias::Any);
        if let Some(&known) = self.names.get(&key) {
            return known;
        }
        let addrs = match alias {
            Alias::Tag(tag) => {
                let nodes = self.tags.get(tag.as_str()).map_or(&[][..], Vec::as_slice);
                let nodes = nodes.iter().map(|&node| &self.topology.nodes[index(node)]);
                AddrSet::from_addrs(nodes.flat_map(|node| node.addresses.iter().copied()))
            }
            alias => addresses(alias, as_source, self.policy, self.topology, self.people, self.scopes),
        };
        let name = number(self.resolved.len());
        self.resolved.push(Arc::new(addrs));
        self.names.insert(key, name);
        name
    }

    pub(crate) fn source(&mut self, aliases: impl IntoIterator<Item = &'a Alias>) -> u32 {
        self.side(aliases, &[], true)
    }

    /// `via`: only routers with one of these tags, and only what is behind them.
    pub(crate) fn destination(
        &mut self,
        aliases: impl IntoIterator<Item = &'a Alias>,
        via: &'a [String],
    ) -> u32 {
        self.side(aliases, via, false)
    }

    fn side(
        &mut self,
        aliases: impl IntoIterator<Item = &'a Alias>,
        via: &'a [String],
        as_source: bool,
    ) -> u32 {
        let mut names: Vec<u32> = aliases.into_iter().map(|alias| self.name(alias, as_source)).collect();
        names.sort_unstable();
        names.dedup();
        let mut tags: Vec<&str> = via.iter().map(String::as_str).collect();
        tags.sort_unstable();
        let key = (names, tags);
        if let Some(&side) = self.known.get(&key) {
            return side;
        }
        let addrs = match key.0.as_slice() {
            [one] => Arc::clone(&self.resolved[index(*one)]),
            many => Arc::new(AddrSet::union_of(many.iter().map(|&name| &*self.resolved[index(name)]))),
        };
        let side = number(self.made.len());
        self.made.push(self.make(addrs, &key.1));
        self.known.insert(key, side);
        side
    }

    fn make(&self, addrs: Arc<AddrSet>, via: &[&str]) -> Side {
        if via.is_empty() {
            let nodes = self.scopes.touched_by(&addrs);
            return Side { addrs, nodes, via: false };
        }
        let mut nodes = self.scopes.routers_to(&addrs);
        nodes.retain(|&node| {
            self.topology.nodes[index(node)].tags.iter().any(|tag| via.contains(&tag.as_str()))
        });
        nodes.sort_unstable();
        nodes.dedup();
        Side { addrs, nodes, via: true }
    }

    pub(crate) fn finish(self) -> Vec<Side> {
        self.made
    }
}
