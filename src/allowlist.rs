//! Which hosts may be reached: the operator's patterns, the addresses that no name opens, package indexes.
//!
//! Pure vocabulary: `config` checks with it, `runtime::egress` decides with it. Invariants: what is not listed is not reached; an
//! address that belongs to a host or a private network is reached only where an entry is that very address, whatever name
//! leads to it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest name of the domain name system.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;
/// Longest address of a package index.
const URL_BYTES_MAX: usize = 2048;
/// Ports of an entry that names none.
const WEB_PORTS: [u16; 2] = [80, 443];

/// What a pattern may look like, for messages.
pub const PATTERN_TAKES: &str = "`host`, `host:port`, `*.domain`, `*` or an address (`192.0.2.7:8080`, `[2001:db8::7]:443`); without a port 80 and 443 \
     are meant";

/// A host as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// In lower case, without a dot at the end.
    Name(String),
    /// IPv4 within IPv6 is IPv4.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(address) = bare {
            return address.parse::<Ipv6Addr>().map(|v6| Self::Address(v6.to_canonical())).map_err(|_| "no IPv6 address");
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if is_name(&name) { Ok(Self::Name(name)) } else { Err("no host name") }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Letters, digits, `-` and `_` in labels. A last label that is a number would be read as an old way of writing an address.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_BYTES_MAX
            && label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|c| c.is_ascii_digit()) || last.starts_with("0x");
    name.len() <= NAME_BYTES_MAX && name.split('.').all(label) && !number
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl Destination {
    /// From `host:port`; where `port` is given it may be left out.
    pub fn parse(text: &str, port: Option<u16>) -> Result<Self, &'static str> {
        let (host, written) = split_port(text)?;
        let host = host.parse()?;
        let port = written.or(port).ok_or("no port")?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    // A colon within brackets is part of an address.
    let Some((host, port)) = text.rsplit_once(':').filter(|(_, port)| !port.contains(']')) else { return Ok((text, None)) };
    let digits = port.bytes().all(|c| c.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(port) if digits && port != 0 => Ok((host, Some(port))),
        Ok(_) | Err(_) => Err("no port"),
    }
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    hosts: Hosts,
    /// Absent: [`WEB_PORTS`].
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    /// Every name that ends in a dot and this.
    Below(String),
    One(Host),
}

impl FromStr for Pattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = split_port(text)?;
        let hosts = match (host, host.strip_prefix("*.")) {
            ("*", _) => Hosts::All,
            (_, Some(domain)) => match domain.parse()? {
                Host::Name(domain) => Hosts::Below(domain),
                Host::Address(_) => return Err("no domain"),
            },
            (host, None) => Hosts::One(host.parse()?),
        };
        Ok(Self { hosts, port })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::All => f.write_str("*")?,
            Hosts::Below(domain) => write!(f, "*.{domain}")?,
            Hosts::One(host) => write!(f, "{host}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Pattern {
    /// The entry that is exactly one destination.
    pub fn of(destination: &Destination) -> Self {
        Self { hosts: Hosts::One(destination.host.clone()), port: Some(destination.port) }
    }

    fn has_port(&self, port: u16) -> bool {
        self.port.map_or_else(|| WEB_PORTS.contains(&port), |own| own == port)
    }

    fn names(&self, destination: &Destination) -> bool {
        let host = match (&self.hosts, &destination.host) {
            (Hosts::All, _) => true,
            (Hosts::Below(domain), Host::Name(name)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Hosts::Below(_), Host::Address(_)) => false,
            (Hosts::One(one), host) => one == host,
        };
        host && self.has_port(destination.port)
    }

    fn is(&self, address: SocketAddr) -> bool {
        self.hosts == Hosts::One(Host::Address(address.ip().to_canonical())) && self.has_port(address.port())
    }
}

/// The operator's list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowlist(Vec<Pattern>);

impl Allowlist {
    /// From the words of a configuration; the error is the first that is no pattern.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        words.iter().map(|word| word.parse().map_err(|_| word.clone())).collect::<Result<_, _>>().map(Self)
    }

    /// This list and more.
    #[must_use]
    pub fn and(&self, more: impl IntoIterator<Item = Pattern>) -> Self {
        Self(self.0.iter().cloned().chain(more).collect())
    }

    /// Its entries.
    pub fn patterns(&self) -> &[Pattern] {
        &self.0
    }

    /// True when an entry names this host and port.
    pub fn names(&self, destination: &Destination) -> bool {
        self.0.iter().any(|pattern| pattern.names(destination))
    }

    /// Whether that address, to which a name that is listed led, may be dialled; the error says what kind of address it is. `own`
    /// are the addresses of this host.
    pub fn admits(&self, address: SocketAddr, own: &[IpAddr]) -> Result<(), &'static str> {
        let ip = address.ip().to_canonical();
        let kind = kind(ip).or_else(|| own.contains(&ip).then_some("an address of this host"));
        match kind {
            Some(kind) if !self.0.iter().any(|pattern| pattern.is(address)) => Err(kind),
            Some(_) | None => Ok(()),
        }
    }
}

impl fmt::Display for Allowlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(", "))
    }
}

/// What an address is when it is not one of the public internet.
fn kind(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => kind_of_v4(address),
        IpAddr::V6(address) => kind_of_v6(address),
    }
}

/// The special-purpose registry of IPv4, and the one public address that is a cloud's own for its guests.
fn kind_of_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [127, ..] => Some("a loopback address"),
        [0, ..] => Some("an address of this host"),
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] | [100, 64..=127, ..] => Some("a private address"),
        [169, 254, ..] | [168, 63, 129, 16] => Some("a link-local or metadata address"),
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] | [224..=255, ..] => {
            Some("a reserved address")
        }
        _ => None,
    }
}

/// Public is what lies in 2000::/3, but for what leads back to IPv4 or nowhere.
fn kind_of_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    let leads_elsewhere = matches!(segments, [0x2001, 0..=0x01ff | 0x0db8, ..] | [0x2002, ..] | [0x3fff, 0..=0x0fff, ..]);
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local or metadata address"),
        [0xfc00..=0xfdff, ..] => Some("a private address"),
        [0x2000..=0x3fff, ..] if !leads_elsewhere => None,
        _ => Some("a reserved address"),
    }
}

/// The address of a package index: `https://host[:port]/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexUrl {
    text: String,
    destination: Destination,
}

impl FromStr for IndexUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > URL_BYTES_MAX || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err("too long, or holds what no address holds");
        }
        let (rest, port) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (rest, 443),
            (None, Some(rest)) => (rest, 80),
            (None, None) => return Err("neither https:// nor http://"),
        };
        if rest.contains(['?', '#', '@', '\\', '"', '\'', '<', '>', '{', '}']) {
            return Err("an address with more than host, port and path");
        }
        let authority = rest.split('/').next().unwrap_or_default();
        Ok(Self { text: text.to_owned(), destination: Destination::parse(authority, Some(port))? })
    }
}

impl IndexUrl {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where it is.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }
}

/// From `name=address`: what a name leads to instead of what the domain name system says.
pub fn parse_host_entry(text: &str) -> Result<(String, IpAddr), &'static str> {
    let (name, address) = text.split_once('=').ok_or("no `=`")?;
    let address = address.parse::<IpAddr>().map_err(|_| "no address")?;
    match name.parse()? {
        Host::Name(name) => Ok((name, address.to_canonical())),
        Host::Address(_) => Err("no name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Allowlist {
        Allowlist::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).expect("patterns")
    }

    fn names(list: &Allowlist, text: &str) -> bool {
        Destination::parse(text, None).is_ok_and(|destination| list.names(&destination))
    }

    #[test]
    fn an_entry_names_its_host_and_port_and_nothing_beside_it() {
        let list = list(&["a.example", "b.example:8080", "*.c.example", "192.0.2.7:81", "[2001:db8::7]:443"]);
        for inside in [
            "a.example:443",
            "A.Example.:80",
            "b.example:8080",
            "x.c.example:443",
            "x.y.c.example:80",
            "192.0.2.7:81",
            "[2001:DB8::7]:443",
            "[::ffff:192.0.2.7]:81",
        ] {
            assert!(names(&list, inside), "{inside}");
        }
        for outside in [
            "a.example:22",
            "b.example:443",
            "c.example:443",
            "xc.example:443",
            ".c.example:443",
            "a.example.evil.test:443",
            "evila.example:443",
            "192.0.2.7:80",
            "192.0.2.8:81",
            "[2001:db8::8]:443",
        ] {
            assert!(!names(&list, outside), "{outside}");
        }
        assert!(!names(&Allowlist::default(), "a.example:443"));
    }

    #[test]
    fn what_is_no_host_is_refused_and_old_ways_to_write_an_address_are_none() {
        for text in
            ["", "a b:80", "a..b:80", "user@a:80", "a/b:80", "a:0", "a:65536", "a:+80", "a:", "[::1:80", "[a]:80", "::1:80"]
        {
            assert!(Destination::parse(text, None).is_err(), "{text}");
        }
        for text in
            ["127.1:80", "2130706433:80", "0x7f.0.0.1:80", "0x7f000001:80", "0177.0.0.1:80", "127.0.0.1.:80", "1.2.3.4.5:80"]
        {
            assert!(Destination::parse(text, None).is_err(), "{text}");
        }
        assert!(Destination::parse("a_b-c.example", Some(443)).is_ok());
        assert!(Destination::parse("a.example", None).is_err(), "a port is needed where none is given");
    }

    #[test]
    fn an_address_that_is_not_public_is_reached_only_where_it_is_an_entry_itself() {
        let all = list(&["*"]);
        let own: IpAddr = "93.184.216.34".parse().expect("an address");
        for text in [
            "127.0.0.1:80",
            "127.9.9.9:443",
            "0.0.0.0:80",
            "10.0.0.1:80",
            "172.31.0.1:80",
            "192.168.1.1:80",
            "100.100.100.200:80",
            "169.254.169.254:80",
            "168.63.129.16:80",
            "192.0.0.192:80",
            "198.18.0.1:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::]:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "[64:ff9b::7f00:1]:80",
            "[2002:7f00:1::]:80",
            "[2001::1]:80",
            "[fe80::1]:80",
            "[fd00:ec2::254]:80",
            "[ff02::1]:80",
            "93.184.216.34:80",
        ] {
            let address: SocketAddr = text.parse().expect("an address");
            assert!(all.admits(address, &[own]).is_err(), "{text}");
            assert!(list(&[text]).admits(address, &[own]).is_ok(), "{text} is named");
            let mut other = address;
            other.set_port(81);
            assert!(list(&[text]).admits(other, &[own]).is_err(), "{text}, another port");
        }
        for text in ["93.184.216.35:443", "172.32.0.1:80", "[2606:2800::1]:443", "[2001:4860::8888]:443"] {
            assert_eq!(all.admits(text.parse().expect("an address"), &[own]), Ok(()), "{text}");
        }
    }

    #[test]
    fn patterns_read_back_as_they_were_written() {
        let words = ["*", "*:8443", "*.a.example", "b.example:8080", "192.0.2.7", "[2001:db8::7]:443"];
        assert_eq!(list(&words).to_string(), words.join(", "));
        for word in ["", "*.", "*.*", "a*.b", "**", "*.10.0.0.1", "a.example:http", "https://a.example", "a.example/", "a,b"] {
            assert!(word.parse::<Pattern>().is_err(), "{word}");
        }
    }

    #[test]
    fn an_index_has_scheme_host_and_path_and_no_credentials() {
        let index: IndexUrl = "https://Pypi.example:8443/simple/".parse().expect("an index");
        assert_eq!(
            (index.as_str(), index.destination().to_string().as_str()),
            ("https://Pypi.example:8443/simple/", "pypi.example:8443")
        );
        assert_eq!("http://a.example".parse::<IndexUrl>().expect("an index").destination().port, 80);
        for text in [
            "",
            "pypi.example/simple",
            "ftp://a.example",
            "https://u:p@a.example/",
            "https://a.example/?x",
            "https:///x",
            "https://a b/",
        ] {
            assert!(text.parse::<IndexUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_entry_is_a_name_and_an_address() {
        assert_eq!(parse_host_entry("A.example=10.0.0.7"), Ok(("a.example".into(), "10.0.0.7".parse().expect("an address"))));
        for text in ["a.example", "a.example=b.example", "10.0.0.1=10.0.0.2", "=10.0.0.1", "a.example="] {
            assert!(parse_host_entry(text).is_err(), "{text}");
        }
    }
}
