//! The words that `gwctl` understands.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;

const AFTER_HELP: &str = "\
First steps:
  On one machine     ghostwire-server run
                     gwctl key create --user alice@example.com
  On each node       gwctl up JOIN_KEY
                     gwctl status

Exit codes:
  0  it worked
  1  it failed
  2  the command line is wrong
  3  the daemon or the server cannot be reached
  4  not permitted
  5  not found, or the policy says no (policy explain, check and test)";

/// The command line of GhostWire: this node, the network's policy, the coordination server.
#[derive(Debug, Parser)]
#[command(name = "gwctl", version, about, after_help = AFTER_HELP, subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What applies to all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What applies to all commands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Socket of the node daemon (ghostwire-client)
    #[arg(
        long,
        global = true,
        env = "GHOSTWIRE_SOCKET",
        default_value = "/run/ghostwire/client.sock",
        value_name = "PATH",
        help_heading = "Global options"
    )]
    pub socket: PathBuf,
    /// Socket of the coordination server (ghostwire-server)
    #[arg(
        long,
        global = true,
        env = "GHOSTWIRE_SERVER_SOCKET",
        default_value = "/run/ghostwire/server.sock",
        value_name = "PATH",
        help_heading = "Global options"
    )]
    pub server_socket: PathBuf,
    /// Print JSON for programs: one document, or one per line from commands that watch
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Connect this machine to the network
    #[command(after_help = UP_EXAMPLES)]
    Up(UpArgs),
    /// Disconnect this machine and remove every trace of the network from it
    ///
    /// Removes the interface, routes, eBPF programs and maps. The machine keeps its identity: `gwctl up` brings
    /// it back under the same name and address.
    Down(DaemonArgs),
    /// Show this node, its peers, and what is wrong
    #[command(
        after_help = "Examples:\n  gwctl status\n  gwctl status db-1      everything about one peer\n  gwctl status --json"
    )]
    Status {
        /// Only this peer, in detail (name or overlay address)
        peer: Option<String>,
    },
    /// Measure the way to a peer with ICMP echo through the tunnel
    #[command(
        after_help = "Examples:\n  gwctl ping db-1\n  gwctl ping 100.64.0.7 -c 10 -i 0.2\n  gwctl ping db-1 --until-direct"
    )]
    Ping(PingArgs),
    /// Show what the network around this machine allows: NAT, UDP, IPv6, port mapping, relays
    #[command(after_help = "Examples:\n  gwctl netcheck\n  gwctl netcheck --json")]
    Netcheck,
    /// Explain the path to a peer: why this one, what was tried, what would make it better
    #[command(after_help = "Examples:\n  gwctl why db-1\n  gwctl why db-1 --json")]
    Why {
        /// Name or overlay address
        peer: String,
    },
    /// Say which paths to a peer are to be used
    ///
    /// Until the daemon starts again, for tests and for finding out what is wrong.
    #[command(after_help = PATH_EXAMPLES)]
    Path(PathArgs),
    /// Show the versions of gwctl and of the daemons that answer
    Version,
    /// See what the policy does on this node
    #[command(subcommand)]
    Acl(AclCommand),
    /// The coordination server
    #[command(subcommand)]
    Server(ServerCommand),
    /// People who own nodes
    #[command(subcommand)]
    User(UserCommand),
    /// Keys with which machines join
    #[command(subcommand)]
    Key(KeyCommand),
    /// Machines in the network
    #[command(subcommand)]
    Node(NodeCommand),
    /// Relays for nodes that cannot reach each other
    #[command(subcommand)]
    Relay(RelayCommand),
    /// The policy: who may talk to whom
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print a script that completes gwctl's commands in a shell
    #[command(
        after_help = "Examples:\n  gwctl completions bash > /etc/bash_completion.d/gwctl\n  gwctl completions fish > ~/.config/fish/completions/gwctl.fish"
    )]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

const UP_EXAMPLES: &str = "\
Examples:
  gwctl up gwjoin-1-...                        join with the key that `gwctl key create` printed
  gwctl up                                     connect again
  gwctl up gwjoin-1-... --hostname db-1        join under this name
  gwctl up --advertise-routes 10.1.0.0/16      offer a subnet to the network";

/// Arguments of `up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Key that admits this machine; not needed once it has joined
    pub join_key: Option<String>,
    /// Name to ask for [default: the machine's hostname]
    #[arg(long)]
    pub hostname: Option<String>,
    /// Subnets behind this machine that it offers to route, separated by commas; `none` withdraws them
    #[arg(long, value_delimiter = ',', value_name = "PREFIX", value_parser = prefix_or_none)]
    pub advertise_routes: Vec<String>,
    /// Public addresses that this machine cannot see itself, such as a port forwarding, separated by commas; `none`
    /// withdraws them
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS:PORT", value_parser = endpoint_or_none)]
    pub endpoint: Vec<String>,
    /// Options for the daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

fn prefix_or_none(text: &str) -> Result<String, String> {
    match text.parse::<IpNet>() {
        _ if text == "none" => Ok(text.to_owned()),
        Ok(net) => Ok(net.trunc().to_string()),
        Err(_) => Err("give a prefix such as 10.1.0.0/16, or `none`".to_owned()),
    }
}

fn endpoint_or_none(text: &str) -> Result<String, String> {
    if text == "none" || text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("give an address with a port such as 203.0.113.5:51820 or [2001:db8::5]:51820, or `none`".to_owned())
}

/// Passed to `ghostwire-client` when `up` has to start it, or `down` has to clean up after one that was killed.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "If the daemon does not run (else it knows)")]
pub struct DaemonArgs {
    /// Where the daemon keeps keys, the network map and its log
    #[arg(long, default_value = "/var/lib/ghostwire/client", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Name of the network interface
    #[arg(long, default_value = "gw0", value_name = "NAME")]
    pub interface: String,
    /// WireGuard of the kernel, or in userspace where the kernel has none
    #[arg(long, default_value = "auto", value_parser = ["auto", "kernel", "userspace"])]
    pub wireguard: String,
    /// UDP port of WireGuard
    #[arg(long, default_value_t = 51820, value_name = "PORT")]
    pub listen_port: u16,
    /// Where eBPF programs and maps are pinned
    #[arg(long, default_value = "/sys/fs/bpf/ghostwire", value_name = "DIR")]
    pub bpf_dir: PathBuf,
}

const PATH_EXAMPLES: &str = "\
Examples:
  gwctl path db-1 --prefer relay-udp            through a relay as long as that works
  gwctl path db-1 --pin direct --via 192.0.2.7  only straight to this address
  gwctl path db-1 --pin any --relay frankfurt   only through this relay
  gwctl path db-1 --auto                        the best path again";

/// Kinds of path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PathKind {
    /// From node to node
    Direct,
    /// From node to node, inside of QUIC
    Quic,
    /// Through a relay's UDP port
    RelayUdp,
    /// Through a relay's TLS stream
    RelayTls,
    /// Any kind, for use with --via or --relay
    Any,
}

/// Arguments of `path`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("wish").required(true).args(["prefer", "pin", "auto"]))]
pub struct PathArgs {
    /// Name or overlay address
    pub peer: String,
    /// These paths before all others, as long as they work
    #[arg(long, value_name = "KIND")]
    pub prefer: Option<PathKind>,
    /// Only these paths; if none works, nothing does
    #[arg(long, value_name = "KIND")]
    pub pin: Option<PathKind>,
    /// The best path
    #[arg(long)]
    pub auto: bool,
    /// Only those to this address of the peer
    #[arg(long, value_name = "ADDRESS[:PORT]", conflicts_with = "auto")]
    pub via: Option<String>,
    /// Only those through this relay (name, number or address)
    #[arg(long, value_name = "RELAY", conflicts_with = "auto")]
    pub relay: Option<String>,
}

/// Arguments of `ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    /// Name or overlay address
    pub peer: String,
    /// Stop after this many [default: 4, or 30 with --until-direct]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub count: Option<u32>,
    /// Stop at the first reply by a direct path; fail if there is none
    #[arg(long)]
    pub until_direct: bool,
    /// Seconds between two
    #[arg(short, long, default_value_t = 1.0, value_parser = interval)]
    pub interval: f64,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds between 0.01 and 3600".to_owned()),
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Denied packets pass and are reported
    On,
    /// Denied packets are dropped
    Off,
}

/// `gwctl acl`
#[derive(Debug, Subcommand)]
pub enum AclCommand {
    /// The rules that this node enforces
    Show,
    /// Packets and bytes by verdict and reason
    Counters,
    /// Try the policy on live traffic: report what it would drop, but let it pass
    Shadow {
        /// Shadow mode
        switch: Switch,
    },
    /// Watch packets being dropped, each with the reason
    #[command(
        after_help = "Examples:\n  gwctl acl watch\n  gwctl acl watch --accepted      packets that pass as well, with the rule that lets them"
    )]
    Watch {
        /// Also show a sample of the packets that pass
        #[arg(long)]
        accepted: bool,
        /// Stop after this many events
        #[arg(short, long)]
        count: Option<u64>,
    },
}

/// `gwctl server`
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Version, addresses, number of nodes, and what is wrong
    Status,
}

/// `gwctl user`
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// List the users
    #[command(visible_alias = "ls")]
    List,
    /// Add a user
    #[command(after_help = "Example:\n  gwctl user create alice@example.com --name 'Alice Doe'")]
    Create {
        /// Login, which policies name the user by
        email: String,
        /// Full name
        #[arg(long, default_value = "")]
        name: String,
        /// What the user may do
        #[arg(long, default_value = "user", value_parser = ["user", "admin"])]
        role: String,
    },
    /// Delete a user who owns no nodes
    #[command(visible_alias = "rm")]
    Delete {
        /// Login
        email: String,
    },
}

/// `gwctl key`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key with which a machine can join, and print it once
    #[command(after_help = KEY_EXAMPLES)]
    Create {
        /// Login of the user who will own the machine
        #[arg(long, short, required_unless_present_any = ["tags", "relay"], default_value = "", hide_default_value = true)]
        user: String,
        /// Tag of the machine, which then belongs to its tags instead of a person; several: repeat, or use commas
        #[arg(long = "tag", alias = "tags", id = "tags", value_delimiter = ',', value_name = "TAG")]
        tags: Vec<String>,
        /// For any number of machines instead of one
        #[arg(long)]
        reusable: bool,
        /// Machines that join with it are deleted some time after they go away
        #[arg(long)]
        ephemeral: bool,
        /// For relays (`ghostwire-relay run --join-key-file`), for as long as it is not revoked, and for no machines
        #[arg(long, id = "relay", conflicts_with_all = ["user", "tags", "ephemeral", "reusable"])]
        relay: bool,
        /// How long it can be used: 30m, 12h, 7d or `never`
        #[arg(long, default_value = "1h", value_parser = lifetime, value_name = "TIME")]
        expires: i64,
    },
    /// List the keys, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Make a key useless; machines that joined with it stay
    Revoke {
        /// Id, as listed
        id: String,
    },
}

const KEY_EXAMPLES: &str = "\
Examples:
  gwctl key create --user alice@example.com
  gwctl key create --tag tag:server --reusable --expires 7d
  gwctl key create --relay --expires never
  gwctl up \"$(gwctl key create --user alice@example.com --json | jq -r .join_key)\"";

/// Seconds; -1 for ever.
fn lifetime(text: &str) -> Result<i64, String> {
    if text == "never" {
        return Ok(-1);
    }
    let units = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400), ('w', 604_800)];
    let parsed = units.iter().find_map(|(unit, seconds)| {
        let number: i64 = text.strip_suffix(*unit)?.parse().ok()?;
        number.checked_mul(*seconds)
    });
    match parsed {
        Some(seconds) if (1..=10 * 365 * 86_400).contains(&seconds) => Ok(seconds),
        _ => Err("give a time such as 30m, 12h, 7d, or `never`".to_owned()),
    }
}

/// `gwctl relay`
#[derive(Debug, Subcommand)]
pub enum RelayCommand {
    /// List the relays that nodes are offered, and how much they have to do
    #[command(visible_alias = "ls")]
    List,
}

/// `gwctl node`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the machines in the network
    #[command(visible_alias = "ls")]
    List {
        /// Print the network in the form that `gwctl policy test --topology` reads
        #[arg(long)]
        topology: bool,
    },
    /// Everything about a machine
    Show {
        /// Name or id
        node: String,
    },
    /// Give a machine another name
    Rename {
        /// Name or id
        node: String,
        /// New name
        name: String,
    },
    /// Replace a machine's tags
    #[command(
        after_help = "Examples:\n  gwctl node tag db-1 tag:server tag:database\n  gwctl node tag db-1             no tags any more"
    )]
    Tag {
        /// Name or id
        node: String,
        /// All tags that it shall have
        tags: Vec<String>,
    },
    /// Decide which of the subnets that a machine offers others may use
    #[command(
        after_help = "Examples:\n  gwctl node approve-routes gw-1 10.1.0.0/16\n  gwctl node approve-routes gw-1             none any more"
    )]
    ApproveRoutes {
        /// Name or id
        node: String,
        /// All subnets that it may route
        prefixes: Vec<IpNet>,
    },
    /// Remove a machine from the network, at once and everywhere
    #[command(visible_alias = "rm")]
    Delete {
        /// Name or id
        node: String,
        /// Do not ask whether that is meant
        #[arg(long, short)]
        yes: bool,
    },
}

/// `gwctl policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the policy in force
    Get {
        /// An earlier version
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        version: u32,
    },
    /// Put a policy in force; it reaches the nodes at once
    #[command(
        after_help = "Examples:\n  gwctl policy set policy.hujson\n  gwctl policy get > p && $EDITOR p && gwctl policy set p"
    )]
    Set {
        /// File in HuJSON, `-` for standard input
        file: PathBuf,
        /// Refuse if another version than this is in force
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "VERSION")]
        expect: u32,
    },
    /// Find mistakes in a policy without putting it in force
    #[command(
        after_help = "Examples:\n  gwctl policy check policy.hujson                     against the server's users and nodes\n  gwctl policy check policy.hujson --topology net.json  without a server"
    )]
    Check {
        /// File in HuJSON, `-` for standard input
        file: PathBuf,
        /// Check without a server, against this network (see `gwctl policy test --help`)
        #[arg(long, value_name = "FILE")]
        topology: Option<PathBuf>,
        /// Check without a server and without a network: only what the text itself tells
        #[arg(long, conflicts_with = "topology")]
        offline: bool,
    },
    /// Run the `tests` section of a policy
    #[command(after_help = TOPOLOGY_HELP)]
    Test {
        /// File in HuJSON, `-` for standard input; without it, the policy in force
        #[arg(long, short, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Same as --file
        #[arg(value_name = "FILE", conflicts_with = "file")]
        path: Option<PathBuf>,
        /// Run against this network instead of the server's
        #[arg(long, value_name = "FILE")]
        topology: Option<PathBuf>,
    },
    /// Say whether a connection is allowed, by which rule, or why not
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain {
        /// Who connects: node, user, tag, group, host or address
        src: String,
        /// To what: TARGET:PORT, TARGET:PORT/udp, TARGET/icmp
        dst: String,
        /// Ask this policy instead of the one in force
        #[arg(long, short, value_name = "FILE")]
        file: Option<PathBuf>,
        /// In this network instead of the server's (see `gwctl policy test --help`)
        #[arg(long, value_name = "FILE")]
        topology: Option<PathBuf>,
    },
    /// List the versions of the policy
    History,
    /// Put an earlier version in force again
    Rollback {
        /// Version, as in `gwctl policy history`
        version: u32,
    },
}

const TOPOLOGY_HELP: &str = "\
A network for use without a server is a JSON file:
  {
    \"users\": [\"alice@example.com\", {\"login\": \"bob@example.com\", \"groups\": [\"ops\"]}],
    \"nodes\": {
      \"laptop\": {\"user\": \"alice@example.com\", \"ipv4\": \"100.64.0.2\", \"ipv6\": \"fd00::2\"},
      \"gw\": {\"tags\": [\"tag:server\"], \"ipv4\": \"100.64.0.3\",
             \"routable_ips\": [\"10.1.0.0/16\"], \"approved_routes\": [\"10.1.0.0/16\"]}
    }
  }
`gwctl node list --topology` prints the server's network in this form.

Examples:
  gwctl policy test
  gwctl policy test policy.hujson
  gwctl policy test policy.hujson --topology net.json";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  gwctl policy explain alice@example.com tag:server:443
  gwctl policy explain web-1 db-1:5432/tcp
  gwctl policy explain 100.64.0.2 [fd7a::3]:53/udp
  gwctl policy explain web-1 db-1/icmp --file new.hujson

Exit code 0: allowed, 5: denied.";
