//! What keeps hooks and callbacks from where they must not go.
//!
//! A hook in the configuration is the operator's own word, so only the metadata services of clouds are kept from it:
//! they hand out credentials to whoever asks, and a name may come to mean them without the operator's doing. A URL that
//! names such an address literally is never looked up, hence not stopped here.
//!
//! A callback URL is the word of whoever may add a watch. It passes two gates: [`Admission::admit`] looks at the URL,
//! since what is written as an address is never looked up, and the resolver at what its name means.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::address::{Rule, denied, is_metadata};
use crate::config::read_at_most;

/// Where this machine's own names stand.
const HOSTS: &str = "/etc/hosts";

/// Looks names up and hands on only the addresses that may be reached. hyper dials exactly what is returned, so a
/// name that changes its meaning in between gains nothing.
pub struct Guard {
    resolver: Arc<dyn Resolve>,
    /// What holds for callbacks; none for the operator's own hooks.
    admission: Option<Arc<Admission>>,
}

/// What callbacks may reach.
#[derive(Debug, Default)]
pub struct Admission {
    /// Nets that are open besides the public ones.
    pub allow_nets: Vec<IpNet>,
    /// Whether plain http will do.
    pub allow_http: bool,
}

/// Where a request must not go, and what to change.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// The name of an operator's hook has no address but a cloud's metadata service.
    #[error(
        "the hook's host resolves to {address}, where clouds serve credentials: correct `url`, or write the address \
         itself into it if it is meant"
    )]
    Metadata { address: IpAddr },
    /// A callback would reach an address that it must not.
    #[error(
        "the callback's host is {address}, which is {rule}: callbacks do not go there unless \
         `allow_nets = [\"{}\"]` stands under [callbacks]",
        IpNet::from(*.address)
    )]
    Address { address: IpAddr, rule: Rule },
    /// A callback would be sent in the clear.
    #[error("the callback is plain http: it has to be https unless `allow_http = true` stands under [callbacks]")]
    Http,
    /// A callback that cannot be sent at all.
    #[error("the callback {0}: cancel the watch, and add the asset with another one")]
    Url(&'static str),
}

/// Why a callback is not asked.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// It must not be, until something is changed.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// A passing trouble, such as too many open files: another time it can be told.
    #[error("this machine's own addresses cannot be listed: {0}")]
    Unknown(#[from] io::Error),
}

impl Guard {
    /// Guards an operator's hooks.
    pub fn system() -> Self {
        Self::over(System)
    }

    /// Guards what `resolver` says to an operator's hooks.
    pub fn over(resolver: impl Resolve + 'static) -> Self {
        Self { resolver: Arc::new(resolver), admission: None }
    }

    /// Guards callbacks.
    pub fn of_callbacks(admission: Arc<Admission>) -> Self {
        Self::of_callbacks_over(admission, Absolute)
    }

    /// Guards what `resolver` says to callbacks.
    pub fn of_callbacks_over(admission: Arc<Admission>, resolver: impl Resolve + 'static) -> Self {
        Self { resolver: Arc::new(resolver), admission: Some(admission) }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (looking_up, admission) = (self.resolver.resolve(name), self.admission.clone());
        Box::pin(async move {
            let addresses = looking_up.await?;
            let own = if admission.is_some() { own_addresses()? } else { Vec::new() };
            let (mut allowed, mut first) = (Vec::new(), None);
            for address in addresses {
                let ip = address.ip();
                let blocked = match &admission {
                    None => is_metadata(ip).then_some(Blocked::Metadata { address: ip }),
                    Some(admission) => admission.judge(ip, &own).err(),
                };
                match blocked {
                    None => allowed.push(address),
                    Some(blocked) => first = first.or(Some(blocked)),
                }
            }
            match first {
                Some(blocked) if allowed.is_empty() => Err(blocked.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

impl Admission {
    /// The first gate, before every attempt: the URL as it is written.
    ///
    /// # Errors
    /// When it must not be asked, or when that cannot be told just now.
    pub fn admit(&self, url: &Url) -> Result<(), NotAdmitted> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err(Blocked::Http.into()),
            _ => return Err(Blocked::Url("is no http or https URL").into()),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Blocked::Url("has a user or a password in it").into());
        }
        let address: IpAddr = match url.host() {
            None => return Err(Blocked::Url("has no host").into()),
            Some(Host::Domain(_)) => return Ok(()),
            Some(Host::Ipv4(address)) => address.into(),
            Some(Host::Ipv6(address)) => address.into(),
        };
        Ok(self.judge(address, &own_addresses()?)?)
    }

    fn judge(&self, address: IpAddr, own: &[IpAddr]) -> Result<(), Blocked> {
        denied(address, own, &self.allow_nets).map_or(Ok(()), |rule| Err(Blocked::Address { address, rule }))
    }
}

/// Asked anew each time: a machine's addresses change while it runs.
fn own_addresses() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(if_addrs::Interface::ip).collect())
}

/// The system's own resolver.
struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move { look_up(name.as_str()).await })
    }
}

/// The system's own resolver, asked for names as they stand: no search domain is tried. The hosts file knows no name
/// with the dot at the end that says so, so it is read apart, and first, as the system does.
struct Absolute;

impl Resolve for Absolute {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let name = name.as_str().trim_end_matches('.');
            let hosts = read_at_most(Path::new(HOSTS), 1 << 20).unwrap_or_default();
            let known = in_hosts(&String::from_utf8_lossy(&hosts), name);
            if known.is_empty() {
                return look_up(&format!("{name}.")).await;
            }
            Ok(Box::new(known.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let known = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    known.collect()
}

async fn look_up(name: &str) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address").into());
    }
    Ok(Box::new(addresses.into_iter()))
}

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

    fn fixed(addresses: &[&str]) -> Fixed {
        Fixed(addresses.iter().map(|address| address.parse().unwrap()).collect())
    }

    fn address(address: &str, rule: Rule) -> Blocked {
        Blocked::Address { address: address.parse().unwrap(), rule }
    }

    async fn judged(guard: Guard) -> Result<Vec<String>, Blocked> {
        match guard.resolve("name".parse().unwrap()).await {
            Ok(addresses) => Ok(addresses.map(|address| address.to_string()).collect()),
            Err(error) => Err(*error.downcast::<Blocked>().unwrap()),
        }
    }

    #[tokio::test]
    async fn denied_addresses_are_dropped_and_a_name_with_no_other_is_blocked() {
        let metadata = |address: &str| Blocked::Metadata { address: address.parse().unwrap() };
        for (addresses, kept) in [
            (&["127.0.0.1:0"][..], Ok(vec!["127.0.0.1:0".to_owned()])),
            (&["169.254.169.254:0", "10.0.0.1:0", "[fe80::1]:0"], Ok(vec!["10.0.0.1:0".to_owned()])),
            (&["[fd00:ec2::254]:0", "169.254.169.254:0"], Err(metadata("fd00:ec2::254"))),
        ] {
            assert_eq!(judged(Guard::over(fixed(addresses))).await, kept, "{addresses:?}");
        }
        for (addresses, kept) in [
            (&["10.0.0.1:0", "1.1.1.1:0", "[::1]:0"][..], Ok(vec!["1.1.1.1:0".to_owned()])),
            (&["[::1]:0", "10.0.0.1:0"], Err(address("::1", Rule::Own))),
            (&["[::ffff:10.0.0.1]:0", "10.0.0.1:0"], Err(address("::ffff:10.0.0.1", Rule::NotPublic))),
        ] {
            let guard = Guard::of_callbacks_over(Arc::default(), fixed(addresses));
            assert_eq!(judged(guard).await, kept, "{addresses:?}");
        }
    }

    #[test]
    fn what_is_written_as_an_address_is_judged_in_every_spelling() {
        let admission = Admission { allow_http: true, ..Admission::default() };
        for (host, canonical) in [
            ("127.1", "127.0.0.1"),
            ("2130706433", "127.0.0.1"),
            ("0x7f.1", "127.0.0.1"),
            ("0177.0.0.01", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("１２７.0.0.1", "127.0.0.1"),
            ("%31%32%37.0.0.1", "127.0.0.1"),
            ("0xa9fea9fe", "169.254.169.254"),
            ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1"),
            ("[::1]", "::1"),
            ("0", "0.0.0.0"),
        ] {
            let url = Url::parse(&format!("http://{host}/")).unwrap();
            let blocked = admission.admit(&url).unwrap_err();
            assert!(
                matches!(&blocked, NotAdmitted::Blocked(Blocked::Address { address, .. }) if address.to_string() == canonical),
                "{blocked}"
            );
        }
        for host in ["1.1.1.1", "[2606:4700:4700::1111]", "cms.example", "localhost"] {
            assert!(admission.admit(&Url::parse(&format!("https://{host}/")).unwrap()).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_block_says_what_to_change() {
        let admission = Admission::default();
        for (url, says) in [
            (
                "http://cms.example/",
                "the callback is plain http: it has to be https unless `allow_http = true` stands under [callbacks]",
            ),
            (
                "https://10.1.2.3/",
                "the callback's host is 10.1.2.3, which is in 10.0.0.0/8 (private): callbacks do not go there unless \
                 `allow_nets = [\"10.1.2.3/32\"]` stands under [callbacks]",
            ),
            (
                "ftp://cms.example/",
                "the callback is no http or https URL: cancel the watch, and add the asset with another one",
            ),
            (
                "https://u:p@cms.example/",
                "the callback has a user or a password in it: cancel the watch, and add the asset with another one",
            ),
        ] {
            assert_eq!(admission.admit(&Url::parse(url).unwrap()).unwrap_err().to_string(), says);
        }
    }

    #[test]
    fn the_hosts_file_is_read() {
        let text = "# c\n127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # x other\n10.0.0.7 Receiver receiver.lan\n";
        let found = |name: &str| in_hosts(text, name).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(
            ["localhost", "receiver", "receiver.lan", "other", "x"].map(found),
            ["127.0.0.1 ::1", "10.0.0.7", "10.0.0.7", "", ""]
        );
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let addresses = Guard::system().resolve("localhost".parse().unwrap()).await.unwrap();
        assert!(addresses.map(|address| address.ip()).all(|ip| ip.is_loopback()));
        let guard = Guard::of_callbacks(Arc::default());
        let blocked = guard.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(matches!(blocked.downcast_ref(), Some(Blocked::Address { .. })), "{blocked}");
    }
}
