//! The four contenders: what each needs, how it is started, how it gets its assets, and where its results are.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::api::LIMIT;
use crate::rig;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    Assetwatch,
    Shell,
    Python,
    Apalis,
}

pub const ALL: [Contender; 4] = [Contender::Assetwatch, Contender::Shell, Contender::Python, Contender::Apalis];

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Assetwatch => "assetwatch",
            Self::Shell => "shell: curl, jq",
            Self::Python => "Python: aiohttp, tenacity",
            Self::Apalis => "apalis, SQLite",
        }
    }

    /// Gets what is missing below `target/`, or says why this contender cannot be compared here.
    pub fn prepare(self) -> Result<(), String> {
        match self {
            Self::Assetwatch => Ok(()),
            Self::Shell => ["bash", "curl", "jq", "xargs"].iter().try_for_each(|program| {
                quiet(Command::new(program).arg("--version")).map_err(|_| format!("{program} is not installed"))
            }),
            Self::Python => {
                let mut python = Command::new("python3");
                python.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
                python.arg(packages()).arg("--requirement").arg(source("requirements.txt"));
                if packages().join("tenacity").exists() { Ok(()) } else { quiet(&mut python) }
            }
            Self::Apalis => {
                let mut cargo = Command::new(env!("CARGO"));
                cargo.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]);
                cargo.arg(source("apalis/Cargo.toml")).arg("--target-dir").arg(target("peer-apalis"));
                quiet(&mut cargo)
            }
        }
    }

    /// In a group of its own, which is what is measured and killed.
    pub fn start(self, place: &Path, url: &str) -> Child {
        let mut command = match self {
            Self::Assetwatch => {
                let hook = format!("[[hooks]]\nname = \"cms\"\nurl = \"{url}/hook\"\n");
                let api = format!("[api]\nurl = \"{url}\"\nkey_env = \"KEY\"\nrate = {LIMIT}\n");
                fs::write(place.join("config.toml"), api + &hook).unwrap();
                let mut command = Command::new(env!("CARGO_BIN_EXE_assetwatch"));
                command.arg("--config").arg(place.join("config.toml"));
                command.arg("--database").arg(self.results(place)).args(["run", "-q"]).env("KEY", "key");
                command
            }
            Self::Shell => self.script(Command::new(source("shell.sh")), place, url),
            Self::Python => {
                let mut python = Command::new("python3");
                python.arg(source("script.py")).env("PYTHONPATH", packages());
                self.script(python, place, url)
            }
            Self::Apalis => self.script(Command::new(target("peer-apalis/release/peer-apalis")), place, url),
        };
        command.process_group(0).stdin(Stdio::null()).spawn().unwrap()
    }

    fn script(self, mut command: Command, place: &Path, url: &str) -> Command {
        command.arg(url).arg(format!("{url}/hook")).arg(ids(place)).arg(self.results(place));
        command
    }

    pub fn results(self, place: &Path) -> PathBuf {
        match self {
            Self::Assetwatch => place.join("results.db"),
            Self::Shell => place.join("results.tsv"),
            Self::Python | Self::Apalis => place.join("results.sqlite"),
        }
    }

    pub fn lay_out(self, place: &Path) {
        match self {
            Self::Assetwatch => drop(rig::database(place, "results")),
            _ => fs::write(ids(place), "").unwrap(),
        }
    }

    /// A new asset, as any other program would hand it over: into the database, or to the end of a file.
    pub fn add(self, place: &Path, id: &str) {
        match self {
            Self::Assetwatch => {
                let connection = Connection::open(self.results(place)).unwrap();
                connection.busy_timeout(Duration::from_secs(5)).unwrap();
                connection.execute("INSERT INTO watches (asset_id) VALUES (?1)", [id]).unwrap();
            }
            _ => writeln!(fs::OpenOptions::new().append(true).open(ids(place)).unwrap(), "{id}").unwrap(),
        }
    }

    /// The assets with a final status, as another process sees them now.
    pub fn recorded(self, results: &Path) -> Vec<String> {
        let query = match self {
            Self::Assetwatch => "SELECT asset_id FROM watches WHERE state = 'settled'",
            Self::Python => "SELECT id FROM assets WHERE status IS NOT NULL",
            Self::Apalis => "SELECT asset_id FROM results",
            Self::Shell => {
                let text = fs::read_to_string(results).unwrap_or_default();
                return text.lines().filter_map(|line| Some(line.split_once('\t')?.0.to_owned())).collect();
            }
        };
        rows(results, query).unwrap_or_default()
    }
}

/// Fails as long as the contender has not made its database.
fn rows(database: &Path, query: &str) -> rusqlite::Result<Vec<String>> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(Duration::from_secs(1))?;
    let mut statement = connection.prepare(query)?;
    statement.query_map([], |row| row.get(0))?.collect()
}

fn quiet(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", complaint.trim())) }
}

fn ids(place: &Path) -> PathBuf {
    place.join("ids")
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name)
}

fn target(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(name)
}

fn packages() -> PathBuf {
    target("python-peers")
}
