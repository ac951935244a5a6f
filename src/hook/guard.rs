//! Which addresses a hook may reach.
//!
//! A hook in the configuration is the operator's own word, so only the metadata services of clouds are kept from it:
//! they hand out credentials to whoever asks, and a name may come to mean them without the operator's doing. A URL that
//! names such an address literally is never looked up, hence not stopped here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Looks names up and hands on only the addresses that a hook may reach. hyper dials exactly what is returned, so a
/// name that changes its meaning in between gains nothing.
pub struct Guard(Arc<dyn Resolve>);

/// A name that has no address which a hook may reach.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the hook's host resolves to {address}, where clouds serve credentials: correct `url`, or write the address \
     itself into it if it is meant"
)]
pub struct Blocked {
    /// The first of its addresses.
    pub address: IpAddr,
}

impl Guard {
    /// Guards what the system's resolver says.
    pub fn system() -> Self {
        Self::over(System)
    }

    /// Guards what `resolver` says.
    pub fn over(resolver: impl Resolve + 'static) -> Self {
        Self(Arc::new(resolver))
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let looking_up = self.0.resolve(name);
        Box::pin(async move {
            let (denied, allowed): (Vec<_>, Vec<_>) = looking_up.await?.partition(|address| is_metadata(address.ip()));
            match denied.first() {
                Some(denied) if allowed.is_empty() => Err(Blocked { address: denied.ip() }.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// The system's own resolver.
struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address").into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Whether clouds serve their metadata at `address` (AWS, Azure, GCP, Alibaba, Oracle), however it is written.
fn is_metadata(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_metadata_v4(address),
        IpAddr::V6(address) => match address.segments() {
            // NAT64 (RFC 6052) reaches the IPv4 address that is inside.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                is_metadata_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
            }
            _ => address.is_unicast_link_local() || METADATA_V6.contains(&address),
        },
    }
}

fn is_metadata_v4(address: Ipv4Addr) -> bool {
    address.is_link_local() || METADATA_V4.contains(&address)
}

const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];

const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A resolver that knows one answer.
    pub struct Fixed(pub Vec<SocketAddr>);

    impl Resolve for Fixed {
        fn resolve(&self, _name: Name) -> Resolving {
            let addresses = self.0.clone();
            Box::pin(async move { Ok(Box::new(addresses.into_iter()) as Addrs) })
        }
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

    #[tokio::test]
    async fn denied_addresses_are_dropped_and_a_name_with_no_other_is_blocked() {
        for (addresses, kept) in [
            (vec!["127.0.0.1:0"], Ok(vec!["127.0.0.1:0"])),
            (vec!["169.254.169.254:0", "10.0.0.1:0", "[fe80::1]:0"], Ok(vec!["10.0.0.1:0"])),
            (vec!["[fd00:ec2::254]:0", "169.254.169.254:0"], Err("fd00:ec2::254")),
        ] {
            let fixed = Fixed(addresses.iter().map(|address| address.parse().unwrap()).collect());
            let answer = Guard::over(fixed).resolve("name".parse().unwrap()).await;
            match (answer, kept) {
                (Ok(answer), Ok(kept)) => assert_eq!(answer.map(|a| a.to_string()).collect::<Vec<_>>(), kept),
                (Err(error), Err(address)) => {
                    let blocked = Blocked { address: address.parse().unwrap() };
                    assert_eq!(error.downcast_ref::<Blocked>(), Some(&blocked));
                }
                (answer, kept) => panic!("{addresses:?}: {:?} instead of {kept:?}", answer.map(Vec::from_iter)),
            }
        }
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let addresses = Guard::system().resolve("localhost".parse().unwrap()).await.unwrap();
        assert!(addresses.map(|address| address.ip()).all(|ip| ip.is_loopback()));
    }
}
