//! Deliveries to the callback URLs of watches: webhooks whose target is somebody else's word.

use std::ffi::OsString;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::Client;
use reqwest::header::HeaderMap;
use url::Url;

use super::guard::{Admission, Blocked, Guard, NotAdmitted};
use super::signature::Signer;
use super::webhook::{self, Webhook};
use crate::clock::Timestamp;
use crate::config;
use crate::delivery::{Attempt, Outcome, Parcel};

/// For a whole request: that of webhooks, unless they say otherwise.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Ready to call back.
pub struct Callbacks {
    admission: Arc<Admission>,
    signer: Signer,
    /// Not that of the hooks: a connection to where only they may go would be used again. Made when it is needed.
    client: OnceLock<Result<Client, String>>,
    /// Who looks names up; the system unless a test says otherwise.
    guard: Box<dyn Fn(Arc<Admission>) -> Guard + Send + Sync>,
}

impl Callbacks {
    /// Reads the secrets; without a table, callbacks are unsigned and reach public addresses only.
    pub fn new(callbacks: Option<&config::Callbacks>, env: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        Self::guarded(callbacks, env, Guard::of_callbacks)
    }

    /// [`Self::new`], with another guard.
    pub fn guarded(
        callbacks: Option<&config::Callbacks>,
        env: impl Fn(&str) -> Option<OsString>,
        guard: impl Fn(Arc<Admission>) -> Guard + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let secrets = callbacks.and_then(|callbacks| callbacks.secrets.as_ref());
        let admission = callbacks.map_or_else(Admission::default, |callbacks| Admission {
            allow_nets: callbacks.allow_nets.clone(),
            allow_http: callbacks.allow_http,
        });
        let signer = Signer::read(secrets, env)?;
        Ok(Self { admission: Arc::new(admission), signer, client: OnceLock::new(), guard: Box::new(guard) })
    }

    /// One request; see [`super::Hooks::perform`]. The URL is judged before each of them: what is allowed may change.
    pub async fn perform(&self, parcel: &Parcel, now: Timestamp, hurry: impl Future<Output = ()>) -> Attempt {
        match self.webhook(parcel) {
            Ok(webhook) => webhook.perform(parcel, now, hurry).await,
            Err(outcome) => Attempt::bare(outcome),
        }
    }

    fn webhook(&self, parcel: &Parcel) -> Result<Webhook, Outcome> {
        let blocked = |error: String| Outcome::Blocked { error };
        let url = parcel.callback_url.as_deref().and_then(|url| Url::parse(url).ok());
        let url = url.ok_or_else(|| blocked(Blocked::Url("is no URL").to_string()))?;
        self.admission.admit(&url).map_err(|refusal| match refusal {
            NotAdmitted::Blocked(rule) => blocked(rule.to_string()),
            NotAdmitted::Unknown(_) => Outcome::Failed { error: refusal.to_string(), not_before: None },
        })?;
        let made = self.client.get_or_init(|| webhook::client((self.guard)(Arc::clone(&self.admission)), None));
        Ok(Webhook {
            client: made.clone().map_err(blocked)?,
            url,
            timeout: TIMEOUT,
            signer: self.signer.clone(),
            headers: HeaderMap::new(),
            proxy: None,
            moved: "the watch has to be added with the final address",
        })
    }
}

#[cfg(test)]
mod tests;
