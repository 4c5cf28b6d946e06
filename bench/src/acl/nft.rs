//! The same policy in nftables, in several forms: the best of them is what we compare with.
//!
//! All of them look the pair of source address and destination port up in one hash table, so no rule is walked, whatever
//! the size. They differ in where they hook in, in what kind of table it is, and in whether they also let answers in to
//! what this node opened, as our program does: that takes connection tracking.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::wire::DEVICE;

/// A form.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// For a table.
    pub name: &'static str,
    /// What it does.
    pub scope: Scope,
    /// The table of pairs, without its elements.
    pairs: &'static str,
    /// What comes after each element.
    value: &'static str,
    chains: &'static [Chain],
}

/// How much of the policy a form enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Nothing: it only hooks in.
    Nothing,
    /// What peers may open to this node.
    Inbound,
    /// That, and the answers to what this node opened.
    Stateful,
}

#[derive(Clone, Copy, Debug)]
struct Chain {
    hook: Hook,
    /// What becomes of packets that no rule is about.
    policy: &'static str,
    rules: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
enum Hook {
    /// Where tcx programs are, too.
    Ingress,
    /// Before routing, before connection tracking.
    Prerouting,
    /// What is for this node.
    Input,
    /// What comes from this node, before connection tracking.
    Output,
}

impl Hook {
    fn family(self) -> &'static str {
        if matches!(self, Self::Ingress) { "netdev" } else { "ip" }
    }

    fn specification(self) -> String {
        match self {
            Self::Ingress => format!("ingress device \"{DEVICE}\" priority 0"),
            Self::Prerouting => "prerouting priority -300".to_owned(),
            Self::Input => "input priority 0".to_owned(),
            Self::Output => "output priority -300".to_owned(),
        }
    }
}

const SET: &str = "set pairs { type ipv4_addr . inet_service; }";
const SIZED_SET: &str = "set pairs { type ipv4_addr . inet_service; size 131072; }";
const MAP: &str = "map pairs { type ipv4_addr . inet_service : verdict; size 131072; }";
const ACCEPT: &str = "ip saddr . udp dport @pairs accept";

/// All forms.
pub const FORMS: [Form; 10] = [
    form(
        "nftables, ip prerouting, no rule",
        Scope::Nothing,
        SET,
        &[Chain { hook: Hook::Prerouting, policy: "accept", rules: &[] }],
    ),
    form("nftables, netdev ingress, set", Scope::Inbound, SET, &[only(Hook::Ingress, &[ACCEPT])]),
    form("nftables, netdev ingress, sized set", Scope::Inbound, SIZED_SET, &[only(Hook::Ingress, &[ACCEPT])]),
    Form {
        value: " : accept",
        ..form(
            "nftables, netdev ingress, verdict map",
            Scope::Inbound,
            MAP,
            &[only(Hook::Ingress, &["ip saddr . udp dport vmap @pairs"])],
        )
    },
    form("nftables, ip prerouting, set", Scope::Inbound, SET, &[only(Hook::Prerouting, &[ACCEPT])]),
    form(
        "nftables, ip prerouting, sized set",
        Scope::Inbound,
        SIZED_SET,
        &[only(Hook::Prerouting, &[ACCEPT])],
    ),
    form(
        "nftables, ip prerouting, sized set, counting",
        Scope::Inbound,
        SIZED_SET,
        &[only(Hook::Prerouting, &["ip saddr . udp dport @pairs counter accept"])],
    ),
    form("nftables, ip input, sized set", Scope::Inbound, SIZED_SET, &[only(Hook::Input, &[ACCEPT])]),
    form(
        "nftables, ip input, established, else set",
        Scope::Stateful,
        SIZED_SET,
        &[only(Hook::Input, &["ct state established accept", ACCEPT])],
    ),
    form(
        "nftables, set without tracking, else established",
        Scope::Stateful,
        SIZED_SET,
        &[
            Chain {
                hook: Hook::Prerouting,
                policy: "accept",
                rules: &["ip saddr . udp dport @pairs notrack"],
            },
            Chain { hook: Hook::Output, policy: "accept", rules: &["ip daddr . udp sport @pairs notrack"] },
            only(Hook::Input, &["ct state established,untracked accept"]),
        ],
    ),
];

const fn form(name: &'static str, scope: Scope, pairs: &'static str, chains: &'static [Chain]) -> Form {
    Form { name, scope, pairs, value: "", chains }
}

/// A chain that lets pass what a rule accepts, and nothing else.
const fn only(hook: Hook, rules: &'static [&'static str]) -> Chain {
    Chain { hook, policy: "drop", rules }
}

impl Form {
    fn family(&self) -> &'static str {
        self.chains.first().map_or("ip", |chain| chain.hook.family())
    }

    /// Makes the table in this thread's namespace, not yet in force.
    pub fn load(&self, pairs: &[(IpAddr, u16)]) -> Result<()> {
        let family = self.family();
        let mut script = format!("table {family} bench {{\n {}\n}}\n", self.pairs);
        for some in pairs.chunks(5_000) {
            let elements: Vec<String> =
                some.iter().map(|(addr, port)| format!("{addr} . {port}{}", self.value)).collect();
            writeln!(script, "add element {family} bench pairs {{ {} }}", elements.join(", "))?;
        }
        self.nft(&script)
    }

    /// Puts it in force; the device is there.
    pub fn hook(&self) -> Result<()> {
        let family = self.family();
        let mut script = String::new();
        for (number, Chain { hook, policy, rules }) in self.chains.iter().enumerate() {
            let hook = hook.specification();
            writeln!(
                script,
                "add chain {family} bench judge{number} {{ type filter hook {hook}; policy {policy}; }}"
            )?;
            for rule in *rules {
                writeln!(script, "add rule {family} bench judge{number} {rule}")?;
            }
        }
        self.nft(&script)
    }

    /// Ends that.
    pub fn unhook(&self) -> Result<()> {
        let family = self.family();
        let mut script = String::new();
        for number in 0..self.chains.len() {
            writeln!(
                script,
                "flush chain {family} bench judge{number}\ndelete chain {family} bench judge{number}"
            )?;
        }
        self.nft(&script)
    }

    fn nft(&self, script: &str) -> Result<()> {
        let mut child =
            Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("running nft")?;
        child.stdin.take().context("nft's input")?.write_all(script.as_bytes())?;
        let status = child.wait()?;
        ensure!(status.success(), "nft refused the benchmark's rules ({}): {status}", self.name);
        Ok(())
    }
}
