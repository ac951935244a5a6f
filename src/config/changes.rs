//! What a reload changes: two settings are compared, and nothing else is looked at.

use std::fmt;

use super::{Account, DEFAULT_ACCOUNT, Hook, Http, KeySource, Listen, Settings};
use crate::decide::Rules;

/// What a running daemon makes of new settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Reload {
    /// What it goes on with: the new settings, but for what it cannot change while it runs.
    pub settings: Settings,
    /// What takes effect now, in the order of the file.
    pub now: Vec<Change>,
    /// What takes effect at the next start, one sentence each.
    pub later: Vec<String>,
}

/// One key or table that takes effect at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    New(String),
    /// It says something else.
    Changed(String),
    /// An account that is not there any more.
    AccountGone(String),
    /// A hook that is not there any more.
    HookGone(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New(key) => write!(f, "{key} is new"),
            Self::Changed(key) => write!(f, "{key} is changed"),
            Self::AccountGone(key) => write!(f, "{key} is gone, and its watches wait until it is back"),
            Self::HookGone(key) => write!(f, "{key} is gone, and its deliveries are held until it is back"),
        }
    }
}

impl Settings {
    /// What going over to `new` means. Of secrets only the places are compared: what is in them is read again anyway.
    pub fn reload(&self, new: Self) -> Reload {
        let (mut settings, mut later) = (new, Vec::new());
        if settings.database != self.database {
            settings.database.clone_from(&self.database);
            let stays = self.database.display();
            later.push(format!("`database` takes effect at the next start; it stays {stays}"));
        }
        if settings.listen() != self.listen() {
            let stays = self.listen().map_or_else(|| "off".to_owned(), Listen::to_string);
            later.push(format!("`http.listen` takes effect at the next start; it stays {stays}"));
            settings.http = match (&self.http, settings.http.take()) {
                (Some(old), Some(new)) => Some(admitting(old, new, &mut later)),
                (old, _) => old.clone(),
            };
        }
        Reload { now: self.changes(&settings), settings, later }
    }

    fn changes(&self, new: &Self) -> Vec<Change> {
        let tables = [
            ("retention", self.retention == new.retention),
            ("grace", self.grace == new.grace),
            ("backoff", self.backoff() == new.backoff()),
            ("http", self.http == new.http),
            ("callbacks", self.callbacks == new.callbacks),
        ];
        let changed = tables.into_iter().filter(|(_, same)| !same).map(|(key, _)| Change::Changed(key.into()));
        let mut changes: Vec<Change> = changed.collect();
        changes.extend(compared(&self.named_accounts(), &new.named_accounts(), Change::AccountGone));
        changes.extend(compared(&self.named_hooks(), &new.named_hooks(), Change::HookGone));
        changes
    }

    /// What `[backoff]` says: it is every account's.
    fn backoff(&self) -> Option<Rules> {
        let rules = self.accounts.first().map(|account| account.rules.clone());
        rules.map(|rules| Rules { waiting_statuses: Vec::new(), ..rules })
    }

    /// The accounts by their tables, without what `[backoff]` says.
    fn named_accounts(&self) -> Vec<(String, Account)> {
        let named = |account: &Account| {
            let key = if account.name == DEFAULT_ACCOUNT { "api".into() } else { format!("accounts.{}", account.name) };
            let waiting_statuses = account.rules.waiting_statuses.clone();
            (key, Account { rules: Rules { waiting_statuses, ..Rules::default() }, ..account.clone() })
        };
        self.accounts.iter().map(named).collect()
    }

    fn named_hooks(&self) -> Vec<(String, Hook)> {
        self.hooks.iter().map(|hook| (format!("hooks.{}", hook.subscription.hook), hook.clone())).collect()
    }

    fn listen(&self) -> Option<&Listen> {
        self.http.as_ref().map(|http| &http.listen)
    }
}

/// A server that listens where it did, and admits whom the new settings admit; but where other machines reach it, nobody
/// without a token.
fn admitting(old: &Http, new: Http, later: &mut Vec<String>) -> Http {
    let mut http = Http { listen: old.listen.clone(), ..new };
    if http.token.is_none() && old.listen.is_exposed() {
        http.token.clone_from(&old.token);
        let key = if matches!(old.token, Some(KeySource::Credential(_))) { "token_credential" } else { "token_file" };
        let stays = &old.listen;
        later.push(format!(
            "`http.{key}` takes effect at the next start; it stays, since other machines can reach {stays}"
        ));
    }
    http
}

fn compared<T: PartialEq>(old: &[(String, T)], new: &[(String, T)], gone: impl Fn(String) -> Change) -> Vec<Change> {
    let find = |tables: &[(String, T)], key: &str| tables.iter().position(|(name, _)| name == key);
    let kept = new.iter().filter_map(|(key, table)| match find(old, key) {
        None => Some(Change::New(key.clone())),
        Some(at) if old[at].1 != *table => Some(Change::Changed(key.clone())),
        Some(_) => None,
    });
    let lost = old.iter().filter(|(key, _)| find(new, key).is_none()).map(|(key, _)| gone(key.clone()));
    kept.chain(lost).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, document, reader, settle};

    const OLD: &str = "database = '/old.db'\n[http]\nlisten = '127.0.0.1:1'\n[accounts.studio]\nkey_env = 'STUDIO'\n\
                       [[hooks]]\nname = 'cms'\nurl = 'https://cms.example/rn_canary'\n\
                       [[hooks]]\nname = 'run'\ncommand = ['/bin/true']\n";

    fn settings(text: &str) -> Settings {
        let environment = Environment::from_iter([("HOME", "/home")]);
        let overrides = Overrides::default();
        let mut reader = reader::Reader::new(None, &overrides, &environment);
        let settings = settle::settle(&mut reader, document::parse(text).unwrap()).unwrap();
        assert!(reader.is_content(), "{:?}", reader.into_problems());
        settings
    }

    /// What a reload says, and the settings that it goes on with.
    fn reloaded(from: &str, to: &str) -> (Vec<String>, Settings) {
        let reload = settings(from).reload(settings(to));
        let now = reload.now.iter().map(Change::to_string);
        (now.chain(reload.later).collect(), reload.settings)
    }

    #[test]
    fn each_table_that_differs_is_named_and_no_other() {
        for (from, to, says) in [
            ("key_env = 'STUDIO'", "key_env = 'STUDIO'", &[][..]),
            ("[accounts.studio]", "[backoff]\nmax = '90s'\n[accounts.studio]", &["backoff is changed"]),
            ("[http]", "grace = '3s'\nretention = '2d'\n[http]", &["retention is changed", "grace is changed"]),
            ("[http]", "[api]\nwaiting_statuses = ['x']\n[http]", &["api is changed", "accounts.studio is changed"]),
            ("'STUDIO'", "'STUDIO'\nrate = 3", &["accounts.studio is changed"]),
            ("rn_canary", "another", &["hooks.cms is changed"]),
            ("'127.0.0.1:1'", "'127.0.0.1:1'\ntoken_file = '/token'", &["http is changed"]),
            ("[http]", "[callbacks]\nallow_http = true\n[http]", &["callbacks is changed"]),
            (
                "name = 'cms'",
                "name = 'web'",
                &["hooks.web is new", "hooks.cms is gone, and its deliveries are held until it is back"],
            ),
            (
                "[accounts.studio]",
                "[accounts.other]",
                &["accounts.other is new", "accounts.studio is gone, and its watches wait until it is back"],
            ),
        ] {
            assert_eq!(reloaded(OLD, &OLD.replace(from, to)).0, says, "{from} → {to}");
        }
    }

    #[test]
    fn what_only_a_start_can_change_stays_and_is_named() {
        let (says, kept) = reloaded(OLD, &OLD.replace("/old.db", "/new.db"));
        assert_eq!(says, ["`database` takes effect at the next start; it stays /old.db"]);
        assert_eq!(kept.database, std::path::Path::new("/old.db"));
        let listen = "listen = '127.0.0.1:1'";
        for (from, to, says) in [
            (listen, "listen = '127.0.0.1:2'", "`http.listen` takes effect at the next start; it stays 127.0.0.1:1"),
            ("", listen, "`http.listen` takes effect at the next start; it stays off"),
            (listen, "", "`http.listen` takes effect at the next start; it stays 127.0.0.1:1"),
        ] {
            let (from, to) = (OLD.replace(listen, from), OLD.replace(listen, to));
            let (said, kept) = reloaded(&from, &to);
            assert_eq!(said, [says]);
            assert_eq!(kept.http, settings(&from).http);
        }
    }

    #[test]
    fn whom_a_server_admits_is_changed_though_it_listens_where_it_did() {
        let listen = "listen = '127.0.0.1:1'";
        let stays = "`http.listen` takes effect at the next start; it stays 127.0.0.1:1";
        let to = "listen = '0.0.0.0:2'\ntoken_file = '/token'\nhosts = ['assets.example']";
        let (said, http) = reloaded(OLD, &OLD.replace(listen, to));
        assert_eq!(said, ["http is changed", stays]);
        let there = settings(&OLD.replace(listen, &to.replace("0.0.0.0:2", "127.0.0.1:1")));
        assert_eq!(http.http, there.http, "all but where it listens");

        // A listener that other machines reach does not lose its token, and has the new one.
        let exposed = OLD.replace(listen, "listen = '0.0.0.0:1'\ntoken_file = '/token'");
        let stays = "`http.listen` takes effect at the next start; it stays 0.0.0.0:1";
        let (said, kept) = reloaded(&exposed, &OLD.replace(listen, &format!("{listen}\nhosts = ['assets.example']")));
        let token =
            "`http.token_file` takes effect at the next start; it stays, since other machines can reach 0.0.0.0:1";
        assert_eq!(said, ["http is changed", stays, token]);
        let there = settings(&exposed.replace("'/token'", "'/token'\nhosts = ['assets.example']"));
        assert_eq!(kept.http, there.http);
        let (said, kept) = reloaded(&exposed, &OLD.replace(listen, &format!("{listen}\ntoken_file = '/other'")));
        assert_eq!(said, ["http is changed", stays]);
        assert_eq!(kept.http, settings(&exposed.replace("/token", "/other")).http);
    }
}
