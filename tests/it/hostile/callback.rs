//! Callback URLs: what is taken and let through never leads to where callbacks must not go. The rule is written anew here,
//! from RFC 6890 and the ways of writing an IPv4 address into an IPv6 one, so that it can disagree with the guard's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use assetwatch::control::check_callback_url;
use assetwatch::hook::{Admission, Guard};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// What holds for any URL whose host means `addresses`.
pub fn check(text: &str, addresses: &[IpAddr]) {
    let taken = check_callback_url(text);
    if let Err(why) = &taken {
        let secret = text.split_once('?').map_or("", |(_, query)| query);
        assert!(secret.len() < 8 || !why.contains(secret), "{why:?} repeats {secret:?}");
    }
    // Another program may have put into the database what would not have been taken.
    let Ok(url) = Url::parse(text) else { return assert!(taken.is_err(), "no URL, and taken: {text:?}") };
    let (strict, open) = (Admission::default(), Admission { allow_http: true, ..Admission::default() });
    let admitted = open.admit(&url).is_ok();
    if strict.admit(&url).is_ok() {
        assert!(admitted && url.scheme() == "https", "in the clear: {url}");
    }
    if !admitted {
        return;
    }
    assert!(matches!(url.scheme(), "http" | "https"), "{url}");
    assert!(url.username().is_empty() && url.password().is_none(), "{url}");
    match url.host() {
        Some(Host::Ipv4(address)) => assert!(is_public(address.into()), "{url} leads to {address}"),
        Some(Host::Ipv6(address)) => assert!(is_public(address.into()), "{url} leads to {address}"),
        Some(Host::Domain(name)) => looked_up(name, addresses),
        None => panic!("no host, and let through: {url}"),
    }
}

fn looked_up(name: &str, addresses: &[IpAddr]) {
    let Ok(name) = name.parse::<Name>() else { return };
    let guard = Guard::of_callbacks_over(Arc::default(), Fixed(addresses.to_vec()));
    let mut looking_up = pin!(guard.resolve(name));
    // Nothing in it waits for anything.
    let Poll::Ready(found) = looking_up.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { panic!() };
    let public: Vec<IpAddr> = addresses.iter().copied().filter(|address| is_public(*address)).collect();
    for address in found.into_iter().flatten() {
        assert!(public.contains(&address.ip()), "{} is dialled", address.ip());
    }
}

/// A resolver that says so.
struct Fixed(Vec<IpAddr>);

impl Resolve for Fixed {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Vec<_> = self.0.iter().map(|address| SocketAddr::new(*address, 0)).collect();
        Box::pin(async move { Ok(Box::new(addresses.into_iter()) as Addrs) })
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let octets = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || matches!(octets, [0, ..] | [100, 64..128, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] | [240..=255, ..])
        || octets == [168, 63, 129, 16];
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let inner = |high: u16, low: u16| is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        [0x2001, 0x0000..=0x01ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [0x2000..=0x3fff, .., 0 | 0x200, 0x5efe, high, low] => inner(high, low),
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

/// Takes bytes apart: the first line is the URL, the rest addresses of 4 or 16 bytes, each after a byte that says which.
pub fn check_bytes(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (url, mut rest) = (String::from_utf8_lossy(&data[..end]), data.get(end + 1..).unwrap_or_default());
    let mut addresses = Vec::new();
    while let Some((kind, bytes)) = rest.split_first() {
        if let (0, Some((bytes, after))) = (kind % 2, bytes.split_first_chunk::<16>()) {
            addresses.push(Ipv6Addr::from(*bytes).into());
            rest = after;
        } else if let Some((bytes, after)) = bytes.split_first_chunk::<4>() {
            addresses.push(Ipv4Addr::from(*bytes).into());
            rest = after;
        } else {
            break;
        }
    }
    check(&url, &addresses);
}
