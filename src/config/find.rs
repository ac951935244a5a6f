//! Which file is read, and where things are when nobody says.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::literal::{Literal, printable};
use super::{CONFIG_VARIABLE, Environment, Origin, Overrides, credential};

/// The largest configuration file, in bytes.
const LARGEST: u64 = 256 * 1_024;
/// The name of the credential that systemd may hold the API key in.
const CREDENTIAL: &str = "api-key";
/// The credential that holds the token of the HTTP server.
const TOKEN_CREDENTIAL: &str = "http-token";
/// The variable in which the vendor's own examples keep the key.
const KEY_VARIABLE: &str = "AFFOGATO_API_KEY";

/// A configuration file that was read.
pub(super) struct File {
    pub path: PathBuf,
    pub text: String,
    /// Others than the owner and the group may write to it.
    pub writable_by_others: bool,
}

/// The first of the files that exists; the last place is `system`. A file that was asked for has to exist.
///
/// The working directory is no place: it may be somebody else's, and a configuration names commands to run.
pub(super) fn find(
    overrides: &Overrides,
    environment: &Environment,
    system: &Path,
    warnings: &mut Vec<String>,
) -> Result<Option<File>, String> {
    let flag = overrides.config.clone().map(|path| ("--config".to_owned(), path));
    let variable = || environment.get(CONFIG_VARIABLE).map(|path| (format!("${CONFIG_VARIABLE}"), path.into()));
    if let Some((origin, path)) = flag.or_else(variable) {
        let file = read(&path).map_err(|problem| format!("{origin} = {}: {problem}", path.literal()))?;
        return Ok(Some(file));
    }
    let user = home(environment, "XDG_CONFIG_HOME", ".config").map(|(_, path)| path.join("assetwatch/config.toml"));
    for path in user.into_iter().chain([system.to_owned()]) {
        let shown = printable(&path.to_string_lossy());
        match fs::metadata(&path) {
            Ok(_) => return read(&path).map(Some).map_err(|problem| format!("{shown}: {problem}")),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            // A service may not look into its user's home (ProtectHome), and still has its file in /etc.
            Err(error) => warnings.push(format!("{shown}: not looked at: {error}")),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<File, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let file = fs::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST {
        return Err("is longer than 256 KiB: not a configuration".into());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        format!("is not UTF-8 (line {})", valid.iter().filter(|byte| **byte == b'\n').count() + 1)
    })?;
    let writable_by_others = metadata.is_file() && metadata.permissions().mode() & 0o002 != 0;
    Ok(File { path: path.into(), text, writable_by_others })
}

/// The database when nobody says, and the variable that its place comes from.
pub(super) fn database(environment: &Environment) -> Option<(Origin, PathBuf)> {
    let service = || {
        let directories = environment.get("STATE_DIRECTORY")?;
        let first = std::env::split_paths(&directories).find(|path| path.is_absolute())?;
        Some((Origin::Env("STATE_DIRECTORY".into()), first))
    };
    let user = || {
        let (variable, state) = home(environment, "XDG_STATE_HOME", ".local/state")?;
        Some((Origin::Env(variable.into()), state.join("assetwatch")))
    };
    let (origin, directory) = service().or_else(user)?;
    Some((origin, directory.join("assetwatch.db")))
}

/// A base directory of the XDG specification, by which a relative one counts as unset, and the variable that gave it.
fn home(environment: &Environment, variable: &'static str, below_home: &str) -> Option<(&'static str, PathBuf)> {
    let absolute = |name| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = absolute(variable).map(|path| (variable, path));
    own.or_else(|| absolute("HOME").map(|home| ("HOME", home.join(below_home))))
}

/// Where the API key is when nobody says.
pub(super) enum FoundKey {
    /// systemd has passed it on, as the credential of this name.
    Credential(&'static str),
    /// The name of the variable that is usual for it, and whether it is set.
    Variable { name: &'static str, is_set: bool },
}

/// The name of the credential that systemd has passed on for the HTTP server's token, if it has.
pub(super) fn token(environment: &Environment) -> Option<&'static str> {
    is_passed(environment, TOKEN_CREDENTIAL).then_some(TOKEN_CREDENTIAL)
}

fn is_passed(environment: &Environment, name: &str) -> bool {
    credential(name, |name| environment.get(name)).is_ok_and(|path| path.exists())
}

/// Looks for the API key where systemd and people put it.
pub(super) fn key(environment: &Environment) -> FoundKey {
    if is_passed(environment, CREDENTIAL) {
        return FoundKey::Credential(CREDENTIAL);
    }
    FoundKey::Variable { name: KEY_VARIABLE, is_set: environment.get(KEY_VARIABLE).is_some() }
}
