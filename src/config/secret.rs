//! Secrets: where they are read from, and text that is never shown.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::literal::{MASK, printable};

/// The longest secret, and the longest file of secrets, in bytes. More would not fit into an HTTP header.
const LONGEST: usize = 4 * 1_024;

/// The variable in which systemd says where the credentials of a service are.
pub(super) const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Text that is never shown: `Debug` and `Display` print a mask.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it or signs with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Where a secret is read from. It is read when it is needed, so that a key that was changed is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file; white space around the key is ignored.
    File(PathBuf),
    /// A variable of the environment.
    Env(String),
    /// A credential of this name, which systemd passes to a service (`LoadCredential=`); read like a file.
    Credential(String),
    /// Nothing is configured and nothing was found.
    Absent,
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.write_str(&printable(&path.to_string_lossy())),
            Self::Env(name) => write!(f, "${name}"),
            Self::Credential(name) => write!(f, "the credential {name}"),
            Self::Absent => f.write_str("nowhere"),
        }
    }
}

/// Why a secret could not be read. It names the file or the variable, never what is in it.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no place to read it from.
    #[error("no key is configured: set `key_file` under [api], or the variable $AFFOGATO_API_KEY")]
    Absent,
    /// The file is not there, or not for us.
    #[error("{}: cannot be read: {error}", printable(&path.to_string_lossy()))]
    Unreadable { path: PathBuf, error: io::Error },
    /// The variable is not there.
    #[error("${name}: is not set, but the configuration says that it holds a secret")]
    Unset { name: String },
    /// No credentials were passed to us.
    #[error(
        "the credential {name}: there are none, systemd passes them to the service alone; beside the running service, root \
         may say CREDENTIALS_DIRECTORY=/run/credentials/assetwatch.service"
    )]
    NoCredentials { name: String },
    /// There are credentials, but this one cannot be read.
    #[error("the credential {name}: cannot be read: {error}; the unit has to name it in LoadCredential=")]
    UnreadableCredential { name: String, error: io::Error },
    /// What is there cannot be a secret.
    #[error("{place}: {problem}")]
    Malformed { place: String, problem: &'static str },
}

impl KeySource {
    /// Reads one secret: printable ASCII of at most 4 KiB, so that it fits into an HTTP header.
    ///
    /// `env` looks a variable up: `|name| environment.get(name)` with the [`Environment`](super::Environment) that the
    /// settings were loaded with.
    pub fn read(&self, env: impl Fn(&str) -> Option<OsString>) -> Result<Secret, KeyError> {
        let text = self.text(env)?;
        self.secret(&text)
    }

    /// Reads several secrets, one a line; empty lines are left out. For signatures while a secret is being replaced.
    pub fn read_lines(&self, env: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Secret>, KeyError> {
        let text = self.text(env)?;
        if text.trim().is_empty() {
            return Err(self.malformed(EMPTY));
        }
        text.lines().filter(|line| !line.trim().is_empty()).map(|line| self.secret(line)).collect()
    }

    fn text(&self, env: impl Fn(&str) -> Option<OsString>) -> Result<String, KeyError> {
        let bytes = match self {
            Self::File(path) => read_file(path).map_err(|error| KeyError::Unreadable { path: path.clone(), error })?,
            Self::Env(name) => env(name).ok_or_else(|| KeyError::Unset { name: name.clone() })?.into_encoded_bytes(),
            Self::Credential(name) => read_file(&credential(name, env)?)
                .map_err(|error| KeyError::UnreadableCredential { name: name.clone(), error })?,
            Self::Absent => return Err(KeyError::Absent),
        };
        if bytes.len() > LONGEST {
            return Err(self.malformed("is longer than 4 KiB; is it the right one?"));
        }
        String::from_utf8(bytes).map_err(|_| self.malformed(NOT_ASCII))
    }

    fn secret(&self, text: &str) -> Result<Secret, KeyError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(self.malformed(EMPTY));
        }
        if text.contains(['\n', '\r']) {
            return Err(self.malformed("holds several lines; put the secret on one line, and nothing else"));
        }
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(self.malformed(NOT_ASCII));
        }
        Ok(Secret::new(text))
    }

    fn malformed(&self, problem: &'static str) -> KeyError {
        KeyError::Malformed { place: self.to_string(), problem }
    }
}

/// Where systemd has put a credential; whether it has is not looked at.
///
/// # Errors
/// When it has passed us none at all.
pub(crate) fn credential(name: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, KeyError> {
    let directory = env(CREDENTIALS).filter(|directory| !directory.is_empty());
    let directory = directory.ok_or_else(|| KeyError::NoCredentials { name: name.into() })?;
    Ok(Path::new(&directory).join(name))
}

const EMPTY: &str = "is empty; put the secret into it";
const NOT_ASCII: &str =
    "holds something other than printable ASCII, which a secret never does; write it anew, as plain text";

/// One byte more than allowed is read, so that too long a file is noticed.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(path, LONGEST as u64 + 1)
}

/// The beginning of a file: an endless one is no trouble, and a pipe that nobody writes to is not waited for.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.file_type().is_fifo() {
        return Err(io::Error::other("it is a pipe, not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "rn_canary";

    fn in_variable(text: &[u8]) -> Result<Secret, KeyError> {
        use std::os::unix::ffi::OsStringExt;
        KeySource::Env("KEY".into()).read(|name| (name == "KEY").then(|| OsString::from_vec(text.into())))
    }

    #[test]
    fn white_space_around_a_key_is_ignored() {
        for text in ["rn_canary", "rn_canary\n", "  rn_canary\r\n\r\n", "\trn_canary "] {
            assert_eq!(in_variable(text.as_bytes()).unwrap().expose(), CANARY, "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_key_is_refused_and_not_shown() {
        for (text, error) in [
            (&b""[..], "$KEY: is empty; put the secret into it"),
            (b" \n\t ", "$KEY: is empty; put the secret into it"),
            (b"rn_canary\nsecond", "$KEY: holds several lines; put the secret on one line, and nothing else"),
            (
                b"rn_canary\0",
                "$KEY: holds something other than printable ASCII, which a secret never does; write it anew, as plain text",
            ),
            (
                "rn_canaryé".as_bytes(),
                "$KEY: holds something other than printable ASCII, which a secret never does; write it anew, as plain text",
            ),
            (
                b"rn_canary\xff",
                "$KEY: holds something other than printable ASCII, which a secret never does; write it anew, as plain text",
            ),
            (&[b'x'; 4_097], "$KEY: is longer than 4 KiB; is it the right one?"),
        ] {
            assert_eq!(in_variable(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn files_are_read_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let source = KeySource::File(path.clone());
        let error = source.read(|_| None).unwrap_err().to_string();
        assert_eq!(error, format!("{}: cannot be read: No such file or directory (os error 2)", path.display()));
        for key in ["first", "second"] {
            std::fs::write(&path, format!("{key}\n")).unwrap();
            assert_eq!(source.read(|_| None).unwrap().expose(), key);
        }
        assert!(KeySource::File("/dev/zero".into()).read(|_| None).is_err());
    }

    #[test]
    fn a_credential_is_read_from_where_systemd_has_put_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("key"), "rn_canary\n").unwrap();
        let env = |name: &str| (name == CREDENTIALS).then(|| directory.path().into());
        let read = |name: &str| KeySource::Credential(name.into()).read(env).map_err(|error| error.to_string());
        assert_eq!(read("key").unwrap().expose(), CANARY);
        let missing = "the credential other: cannot be read: No such file or directory (os error 2); the unit has to name it \
                       in LoadCredential=";
        assert_eq!(read("other").unwrap_err(), missing);
        let error = KeySource::Credential("key".into()).read(|_| None).unwrap_err().to_string();
        let by_hand = "the credential key: there are none, systemd passes them to the service alone; beside the running \
                       service, root may say CREDENTIALS_DIRECTORY=/run/credentials/assetwatch.service";
        assert_eq!(error, by_hand);
    }

    #[test]
    fn a_key_that_is_nowhere_is_asked_for() {
        let error = KeySource::Absent.read(|_| None).unwrap_err().to_string();
        assert_eq!(error, "no key is configured: set `key_file` under [api], or the variable $AFFOGATO_API_KEY");
        let error = KeySource::Env("KEY".into()).read(|_| None).unwrap_err().to_string();
        assert_eq!(error, "$KEY: is not set, but the configuration says that it holds a secret");
    }

    #[test]
    fn several_lines_are_several_secrets() {
        let source = KeySource::Env("KEYS".into());
        let secrets = source.read_lines(|_| Some("whsec_new\n\n  whsec_old \r\n".into())).unwrap();
        assert_eq!(secrets.iter().map(Secret::expose).collect::<Vec<_>>(), ["whsec_new", "whsec_old"]);
        assert_eq!(
            source.read_lines(|_| Some(" \n".into())).unwrap_err().to_string(),
            "$KEYS: is empty; put the secret into it"
        );
    }

    #[test]
    fn a_secret_is_masked() {
        let secret = Secret::new(CANARY);
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
    }
}
