//! One real request for each account, and what its answer tells a person to change.

use super::{Finding, Line};
use crate::api::Api;
use crate::clock::Clock;
use crate::config::Account;
use crate::decide::{Contact, Observation, Polled};

/// No asset has this id; whoever answers that it is missing has looked, and so has accepted the key.
const NOBODY: &str = "assetwatch-check";

/// How the account's key and address stand.
pub(super) async fn line(account: &Account) -> Line {
    let what = format!("account {}", account.name);
    let key = match account.key.read(|name| std::env::var_os(name)) {
        Ok(key) => key,
        Err(error) => return super::line(&what, Finding::Bad, error.to_string()),
    };
    let (finding, says) = match Api::new(&account.url, key.expose(), account.timeout, Clock::system()) {
        Ok(api) => judge(account, api.poll(NOBODY).await),
        Err(error) => (Finding::Bad, error.to_string()),
    };
    super::line(&what, finding, says)
}

fn judge(account: &Account, polled: Polled) -> (Finding, String) {
    let (url, key) = (&account.url, &account.key);
    let Polled { observation, contact, .. } = polled;
    match (observation, contact) {
        (Observation::Unauthorized { error } | Observation::Forbidden { error }, _) => (
            Finding::Unauthorized,
            format!("{error}; the key is refused: put a valid one into {key}, or look whether {url} is the API"),
        ),
        (Observation::Unpaid { error }, _) => {
            (Finding::Unauthorized, format!("{error}; the key is accepted, but the account has to be paid"))
        }
        (Observation::Untrusted { error }, _) => (
            Finding::Bad,
            format!(
                "{url} has no valid certificate, so the key was not sent: {error}; look whether the host in `{0}` is the \
                 one that is meant, at this machine's clock, and at its CA certificates (Debian: ca-certificates)",
                setting(account, "url")
            ),
        ),
        (Observation::Unavailable { error }, Contact::Nobody) => (
            Finding::Bad,
            format!(
                "{url} cannot be reached: {error}; look at the host and port in `{}`, at DNS, and at the network",
                setting(account, "url")
            ),
        ),
        (Observation::Unavailable { error }, Contact::Unanswered) => (
            Finding::Bad,
            format!(
                "{url} can be connected to, but does not answer: {error}; look whether `{}` is the API's address, http or \
                 https and the port included, or wait if it is in trouble",
                setting(account, "url")
            ),
        ),
        (observation, Contact::Elsewhere) => (
            Finding::Bad,
            format!(
                "{}; redirects are not followed, since the key would go along: put the address that it names into `{}`",
                said(observation),
                setting(account, "url")
            ),
        ),
        (Observation::Throttled { error, .. }, _) => {
            (Finding::Note, format!("{url} answers, but asks to wait, so the key is not tried: {error}"))
        }
        (observation, Contact::Stranger) => (Finding::Bad, wrong_host(account, &said(observation))),
        (observation @ Observation::Unavailable { .. }, Contact::Api | Contact::Silent) => (
            Finding::Bad,
            format!(
                "{url} answers, but not as the API does: {}; look whether `{}` is its address, or wait if it is in trouble",
                said(observation),
                setting(account, "url")
            ),
        ),
        (observation, Contact::Silent) => (
            Finding::Note,
            format!("{url} answers ({}), but whether that is the API cannot be told from it", said(observation)),
        ),
        (Observation::Unusable { error }, _) => (Finding::Ok, format!("{url} answers, and accepts the key ({error})")),
        (_, Contact::Api | Contact::Nobody | Contact::Unanswered) => {
            (Finding::Ok, format!("{url} answers, and accepts the key"))
        }
    }
}

fn wrong_host(account: &Account, said: &str) -> String {
    format!(
        "{} answers, but it is not the API: {said}, and not in JSON; put the API's address into `{}`",
        account.url,
        setting(account, "url")
    )
}

fn said(mut observation: Observation) -> String {
    observation.text_mut().cloned().unwrap_or_default()
}

/// The name of an account's setting.
fn setting(account: &Account, key: &str) -> String {
    if account.name == "default" { format!("api.{key}") } else { format!("accounts.{}.{key}", account.name) }
}
