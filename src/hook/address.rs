//! Which addresses a callback may reach: pure, so that every border can be tested.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The IPv4 nets that are nobody's on the public internet (IANA's special-purpose registry, and Azure's own address).
pub const DENIED_V4: [([u8; 4], u8, &str); 16] = [
    ([0, 0, 0, 0], 8, "this network"),
    ([10, 0, 0, 0], 8, "private"),
    ([100, 64, 0, 0], 10, "shared by carriers"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([169, 254, 0, 0], 16, "link-local, where clouds serve credentials"),
    ([172, 16, 0, 0], 12, "private"),
    ([192, 0, 0, 0], 24, "protocol assignments"),
    ([192, 0, 2, 0], 24, "documentation"),
    ([192, 88, 99, 0], 24, "6to4 relays"),
    ([192, 168, 0, 0], 16, "private"),
    ([198, 18, 0, 0], 15, "benchmarks"),
    ([198, 51, 100, 0], 24, "documentation"),
    ([203, 0, 113, 0], 24, "documentation"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved"),
    ([168, 63, 129, 16], 32, "where Azure serves its machines"),
];

/// What is denied of 2000::/3, which is all that is public in IPv6.
pub const DENIED_V6: [([u16; 3], u8, &str); 5] = [
    ([0x2001, 0, 0], 23, "protocol assignments"),
    ([0x2001, 0xdb8, 0], 32, "documentation"),
    ([0x2002, 0, 0], 16, "6to4"),
    ([0x3ffe, 0, 0], 16, "a network of old tests"),
    ([0x3fff, 0, 0], 20, "documentation"),
];

const PUBLIC_V6: ([u16; 3], u8) = ([0x2000, 0, 0], 3);

const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];

const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Why an address is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It is in a net that is not public.
    Net { net: IpNet, means: &'static str },
    /// It is outside of 2000::/3.
    NotPublic,
    /// This machine has it itself.
    Own,
    /// Clouds serve credentials there.
    Metadata,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net { net, means } => write!(f, "in {net} ({means})"),
            Self::NotPublic => f.write_str("outside of 2000::/3, which is all that is public"),
            Self::Own => f.write_str("an address of this machine"),
            Self::Metadata => f.write_str("where clouds serve credentials"),
        }
    }
}

/// Why `address` must not be reached; none when it may be. `own` are the addresses of this machine, `open` the nets
/// that are allowed nevertheless; a metadata address only by a net that holds nothing else.
pub fn denied(address: IpAddr, own: &[IpAddr], open: &[IpNet]) -> Option<Rule> {
    let inner = reaches(address).map(IpAddr::V4);
    let among = |net: &&IpNet| net.contains(&address) || inner.is_some_and(|inner| net.contains(&inner));
    if is_metadata(address) {
        let named = open.iter().filter(among).any(|net| net.prefix_len() == net.max_prefix_len());
        return if named { None } else { Some(Rule::Metadata) };
    }
    if open.iter().any(|net| among(&net)) {
        return None;
    }
    let is_own = |address: IpAddr| own.iter().any(|own| own.to_canonical() == address.to_canonical());
    if is_own(address) || inner.is_some_and(is_own) {
        return Some(Rule::Own);
    }
    not_public(address)
}

/// The rule of the lists alone.
fn not_public(address: IpAddr) -> Option<Rule> {
    let address = match address {
        IpAddr::V4(address) => return not_public_v4(address),
        IpAddr::V6(address) => address,
    };
    if let Some(inner) = nat64(address) {
        return not_public_v4(inner);
    }
    let net = |(head, length)| v6_net(head, length);
    if !net(PUBLIC_V6).is_some_and(|net| net.contains(&address)) {
        return Some(Rule::NotPublic);
    }
    let denied = DENIED_V6.iter().filter_map(|(head, length, means)| Some((v6_net(*head, *length)?, *means)));
    let found = denied.into_iter().find(|(net, _)| net.contains(&address));
    match found {
        Some((net, means)) => Some(Rule::Net { net: net.into(), means }),
        None => isatap(address).and_then(not_public_v4),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<Rule> {
    DENIED_V4.iter().find_map(|(octets, length, means)| {
        let net = Ipv4Net::new(Ipv4Addr::from(*octets), *length).ok()?;
        net.contains(&address).then_some(Rule::Net { net: net.into(), means })
    })
}

fn v6_net([a, b, c]: [u16; 3], length: u8) -> Option<Ipv6Net> {
    Ipv6Net::new(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length).ok()
}

/// The IPv4 address that is reached through this IPv6 address.
fn reaches(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => address.to_ipv4_mapped().or_else(|| nat64(address)).or_else(|| isatap(address)),
    }
}

/// RFC 6052.
fn nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(joined(high, low)),
        _ => None,
    }
}

/// RFC 5214.
fn isatap(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [.., 0 | 0x200, 0x5efe, high, low] => Some(joined(high, low)),
        _ => None,
    }
}

fn joined(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

/// Whether clouds serve their metadata at `address` (AWS, Azure, GCP, Alibaba, Oracle), however it is written: every
/// known way of writing an IPv4 address into an IPv6 one is looked into, those that are denied by themselves as well,
/// since their nets may have been opened.
pub fn is_metadata(address: IpAddr) -> bool {
    let address = match address {
        IpAddr::V4(address) => return is_metadata_v4(address),
        IpAddr::V6(address) => address,
    };
    let inside = match address.segments() {
        // Mapped, compatible, translated, and the nets of NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0 | 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => Some(joined(high, low)),
        _ => isatap(address),
    };
    address.is_unicast_link_local() || METADATA_V6.contains(&address) || inside.is_some_and(is_metadata_v4)
}

fn is_metadata_v4(address: Ipv4Addr) -> bool {
    address.is_link_local() || METADATA_V4.contains(&address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_denied(address: &str) -> bool {
        denied(address.parse().unwrap(), &[], &[]).is_some()
    }

    #[test]
    fn both_sides_of_each_border_are_judged_as_the_table_says() {
        let table = include_str!("../../tests/data/addresses.csv");
        let mut rows = 0;
        for line in table.lines().skip(1) {
            let (address, verdict) = line.split_once(',').unwrap();
            assert_eq!(is_denied(address), verdict == "denied", "{address}");
            rows += 1;
        }
        assert!(rows > 70, "{rows} rows");
    }

    #[test]
    fn nets_are_opened_but_for_what_serves_credentials() {
        for (address, nets, open) in [
            ("10.1.2.3", &["10.1.2.0/24"][..], true),
            ("10.1.3.3", &["10.1.2.0/24"], false),
            ("::ffff:10.1.2.3", &["10.1.2.0/24"], true),
            ("64:ff9b::a01:203", &["10.1.2.0/24"], true),
            ("fd00::1", &["fd00::/8"], true),
            ("169.254.169.254", &["0.0.0.0/0"], false),
            ("169.254.169.254", &["169.254.169.254/32"], true),
            ("::ffff:169.254.169.254", &["::/0", "0.0.0.0/0"], false),
            ("64:ff9b::a9fe:a9fe", &["::/0"], false),
            ("64:ff9b:1::a9fe:a9fe", &["::/0"], false),
            ("2002:a9fe:a9fe::1", &["::/0"], false),
            ("::a9fe:a9fe", &["::/0"], false),
            ("2606:4700::5efe:a9fe:a9fe", &["::/0"], false),
            ("fd00:ec2::254", &["fd00::/8"], false),
            ("fd00:ec2::254", &["fd00:ec2::254/128"], true),
            ("fe80::1", &["fe80::/10"], false),
        ] {
            let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
            assert_eq!(denied(address.parse().unwrap(), &[], &nets).is_none(), open, "{address} with {nets:?}");
        }
    }

    #[test]
    fn this_machines_own_addresses_are_denied_unless_they_are_opened() {
        let (own, address) = (["8.8.4.4".parse().unwrap()], "8.8.4.4".parse().unwrap());
        assert_eq!(denied(address, &own, &[]), Some(Rule::Own));
        assert_eq!(denied("64:ff9b::808:404".parse().unwrap(), &own, &[]), Some(Rule::Own));
        assert_eq!(denied(address, &own, &["8.8.4.4/32".parse().unwrap()]), None);
    }

    #[test]
    fn metadata_is_known_on_both_sides_of_each_border() {
        for (address, metadata) in [
            ("169.253.255.255", false),
            ("169.254.0.0", true),
            ("169.254.169.254", true),
            ("169.254.255.255", true),
            ("169.255.0.0", false),
            ("168.63.129.15", false),
            ("168.63.129.16", true),
            ("100.100.100.200", true),
            ("100.100.100.201", false),
            ("192.0.0.192", true),
            ("192.0.0.1", false),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
            ("fe7f:ffff::1", false),
            ("fe80::1", true),
            ("febf:ffff::1", true),
            ("fec0::1", false),
            ("fd00:ec2::254", true),
            ("fd00:ec2::253", false),
            ("fd20:ce::254", true),
            ("::1", false),
            ("::ffff:169.254.169.254", true),
            ("::ffff:10.0.0.1", false),
            ("64:ff9b::a9fe:a9fe", true),
            ("64:ff9b::808:808", false),
        ] {
            assert_eq!(is_metadata(address.parse().unwrap()), metadata, "{address}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_in_a_denied_net_is_denied(host in any::<u128>()) {
            let all = u128::MAX;
            for (octets, length, _) in DENIED_V4 {
                let (base, mask) = (u32::from_be_bytes(octets), u32::MAX.checked_shr(length.into()).unwrap_or(0));
                for host in [0, all, host] {
                    let inside = Ipv4Addr::from_bits(base | (host as u32 & mask));
                    let ways = [inside.into(), inside.to_ipv6_mapped().into(), wrapped("64:ff9b::", inside), wrapped("2606::5efe:0:0", inside)];
                    for address in ways {
                        prop_assert!(denied(address, &[], &[]).is_some(), "{address}");
                    }
                }
            }
            for (head, length, _) in DENIED_V6 {
                let net = v6_net(head, length).unwrap();
                for host in [0, all, host] {
                    let inside = Ipv6Addr::from_bits(net.addr().to_bits() | (host & (all >> length)));
                    prop_assert!(denied(inside.into(), &[], &[]).is_some(), "{inside}");
                }
            }
            for outside in [host & (all >> 3), host | 1 << 127, (host & (all >> 2)) | 1 << 126] {
                let address = Ipv6Addr::from_bits(outside);
                prop_assert!(nat64(address).is_some() || denied(address.into(), &[], &[]).is_some(), "{address}");
            }
        }
    }

    fn wrapped(prefix: &str, inside: Ipv4Addr) -> IpAddr {
        let prefix: Ipv6Addr = prefix.parse().unwrap();
        Ipv6Addr::from_bits(prefix.to_bits() | u128::from(inside.to_bits())).into()
    }
}
