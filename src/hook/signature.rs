//! Signatures of Standard Webhooks 1.0: HMAC-SHA256 over `id.timestamp.body`, one for each secret.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::{self, KeySource, read_at_most};

/// What every secret begins with.
const PREFIX: &str = "whsec_";
/// How many bytes a secret may have.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;
/// More than any number of secrets in rotation; a file that is longer is not one of secrets.
const LARGEST_FILE: u64 = 64 * 1_024;

/// Signs with all secrets of one webhook, or of the callbacks; has none when its hook is sent unsigned.
#[derive(Clone)]
pub struct Signer(Vec<Hmac<Sha256>>);

impl Signer {
    /// Reads the secrets, one a line. The error says what to do, and never shows what was read.
    pub fn read(source: Option<&KeySource>, env: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let (name, text) = match source {
            None | Some(KeySource::Absent) => return Ok(Self(Vec::new())),
            Some(KeySource::File(path)) => {
                let name = format!("the secret file {}", path.display());
                let text = read_file(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
                (name, text)
            }
            Some(KeySource::Credential(credential)) => {
                let path = config::credential(credential, env).map_err(|error| error.to_string())?;
                let name = format!("the credential {credential}");
                let text = read_file(&path).map_err(|error| {
                    format!("{name} cannot be read: {error}; the unit has to name it in LoadCredential=")
                })?;
                (name, text)
            }
            Some(KeySource::Env(variable)) => {
                let name = format!("the variable ${variable}");
                let text = env(variable).ok_or_else(|| format!("{name} is to hold its secret, but is not set"))?;
                (name, text.into_string().unwrap_or_else(|text| text.to_string_lossy().into_owned()))
            }
        };
        Self::parse(&name, &text)
    }

    /// How many secrets there are.
    pub fn secrets(&self) -> usize {
        self.0.len()
    }

    /// Whether one of `signatures` (the value of `webhook-signature`) was made with one of the secrets for this message.
    pub fn verifies(&self, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
        self.0.iter().any(|key| fits(key, id, timestamp, body, signatures))
    }

    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
        let keys = lines.map(|(at, line)| {
            key(line).ok_or_else(|| {
                let line = at + 1;
                format!(
                    "line {line} of {name} is not a secret: that is `whsec_` and the base64 of 24 to 64 bytes, \
                     as made by `echo whsec_$(openssl rand -base64 32)`"
                )
            })
        });
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err(format!("{name} holds no secret: put one in, or take it out of the hook to send unsigned"));
        }
        Ok(Self(keys))
    }

    /// The value of `webhook-signature`; none when there is no secret. `timestamp` is in Unix seconds.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
        let head = format!("{id}.{timestamp}.");
        let signatures = self.0.iter().map(|key| {
            let mac = key.clone().chain_update(&head).chain_update(body).finalize();
            format!("v1,{}", STANDARD.encode(mac.into_bytes()))
        });
        let signatures: Vec<_> = signatures.collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

/// Whether one of `signatures` (the value of `webhook-signature`) was made with `secret` for this message: what a receiver
/// does. The comparison takes the same time whatever is wrong.
pub fn verify(secret: &str, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
    key(secret).is_some_and(|key| fits(&key, id, timestamp, body, signatures))
}

fn fits(key: &Hmac<Sha256>, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
    let mac = key.clone().chain_update(format!("{id}.{timestamp}.")).chain_update(body);
    signatures
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .any(|signature| mac.clone().verify_slice(&signature).is_ok())
}

fn key(secret: &str) -> Option<Hmac<Sha256>> {
    let bytes = STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?;
    if !LENGTHS.contains(&bytes.len()) {
        return None;
    }
    Hmac::new_from_slice(&bytes).ok()
}

fn read_file(path: &Path) -> io::Result<String> {
    let bytes = read_at_most(path, LARGEST_FILE)?;
    // What is not UTF-8 is no secret either, and the line that it is on will be named.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const SECOND: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The vectors of `spec/hooks.md`, section 3.
    #[test]
    fn vectors() {
        for (secret, id, timestamp, body, signature) in [
            (
                FIRST,
                "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                1_649_367_553,
                r#"{"email":"test@example.com","username":"test_user"}"#,
                "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            ),
            (
                SECOND,
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                r#"{"test": 2432232314}"#,
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
        ] {
            let signer = Signer::parse("it", secret).unwrap();
            assert_eq!(signer.sign(id, timestamp, body.as_bytes()).unwrap(), signature);
            let both = Signer::parse("it", &format!("{secret}\r\n\n  {FIRST}\n")).unwrap();
            let both = both.sign(id, timestamp, body.as_bytes()).unwrap();
            assert!(both.starts_with(&format!("{signature} v1,")), "{both}");
            let verifier = Signer::parse("it", &format!("whsec_{}\n{secret}", STANDARD.encode([7; 24]))).unwrap();
            let timestamp = timestamp.to_string();
            assert!(verifier.verifies(id, &timestamp, body.as_bytes(), &both));
            assert!(!verifier.verifies(id, &timestamp, b"tampered", &both));
            assert!(!verifier.verifies("other", &timestamp, body.as_bytes(), &both));
        }
    }

    #[test]
    fn secrets_come_from_a_file_or_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, format!("{FIRST}\n{SECOND}\n")).unwrap();
        let env = |name: &str| match name {
            "SECRET" => Some(OsString::from(FIRST)),
            "CREDENTIALS_DIRECTORY" => Some(directory.path().into()),
            _ => None,
        };
        for (source, secrets) in [
            (None, 0),
            (Some(KeySource::Absent), 0),
            (Some(KeySource::File(path)), 2),
            (Some(KeySource::Env("SECRET".into())), 1),
            (Some(KeySource::Credential("secret".into())), 2),
        ] {
            let signer = Signer::read(source.as_ref(), env).unwrap_or_else(|error| panic!("{source:?}: {error}"));
            let signature = signer.sign("id", 0, b"").unwrap_or_default();
            assert_eq!(signature.split_whitespace().count(), secrets, "{source:?}");
        }
    }

    #[test]
    fn a_bad_secret_is_named_but_not_shown() {
        let of = |length: usize| format!("whsec_{}", STANDARD.encode(vec![7; length]));
        for (text, says) in [
            ("", "holds no secret"),
            (" \n\n", "holds no secret"),
            ("C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "line 1 of it is not a secret"),
            (&format!("{FIRST}\n\nwhsec_hunter2"), "line 3 of it is not a secret"),
            ("whsec_!2FVsBQIhrscChlQIMV+b5sSYspob7oD", "line 1"),
            ("whsec_\u{fffd}", "line 1"),
            (&of(23), "line 1"),
            (&of(65), "line 1"),
        ] {
            let error = Signer::parse("it", text).err().unwrap();
            assert!(error.contains(says), "{error}");
            let shown = text.lines().map(str::trim).any(|line| !line.is_empty() && error.contains(line));
            assert!(!shown, "{error}");
        }
        for length in [24, 64] {
            assert!(Signer::parse("it", &of(length)).is_ok(), "{length}");
        }
    }

    #[test]
    fn a_missing_secret_says_where_it_was_looked_for() {
        let missing = KeySource::File("/nonexistent/secret".into());
        let error = Signer::read(Some(&missing), |_| None).err().unwrap();
        assert_eq!(error, "the secret file /nonexistent/secret cannot be read: No such file or directory (os error 2)");
        let error = Signer::read(Some(&KeySource::Env("SECRET".into())), |_| None).err().unwrap();
        assert_eq!(error, "the variable $SECRET is to hold its secret, but is not set");
    }
}
