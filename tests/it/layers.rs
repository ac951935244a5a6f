//! The order of `lib.rs` is the architecture: a module uses only modules that stand before it, and the edges do not know
//! each other.

use std::path::{Path, PathBuf};

/// What every edge may use: settled settings, and the one builder of HTTP clients.
const COMMON_EDGES: [&str; 2] = ["config", "client"];
const EDGES: [&str; 5] = ["config", "client", "api", "hook", "store"];

#[test]
fn modules_use_only_what_stands_before_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let order = modules(&std::fs::read_to_string(source.join("lib.rs")).unwrap());
    assert!(order.len() > 15, "lib.rs was not understood: {order:?}");
    let mut arrows = 0;
    for (at, module) in order.iter().enumerate() {
        for file in files(&source, module) {
            let text = std::fs::read_to_string(&file).unwrap();
            for used in uses(&text) {
                arrows += 1;
                let place = order.iter().position(|known| *known == used);
                let place = place.unwrap_or_else(|| panic!("{}: no module {used}", file.display()));
                assert!(place <= at, "{}: {module} uses {used}, which stands after it", file.display());
                let siblings = EDGES.contains(&module.as_str()) && EDGES.contains(&used.as_str());
                let allowed = used == *module || COMMON_EDGES.contains(&used.as_str());
                assert!(!siblings || allowed, "{}: the edge {module} knows the edge {used}", file.display());
            }
        }
    }
    assert!(arrows > 50, "only {arrows} uses were found");
}

fn modules(lib: &str) -> Vec<String> {
    let names = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

/// A module's file and, below its directory, those of its submodules.
fn files(source: &Path, module: &str) -> Vec<PathBuf> {
    let mut files = vec![source.join(format!("{module}.rs"))];
    let mut directories = vec![source.join(module)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    files
}

/// The modules that stand behind a `crate::`, in `use` lines and elsewhere; also in `use crate::{…}`.
fn uses(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => used.push(name(rest)),
            Some(list) => used.extend(top_level(list).iter().map(|item| name(item))),
        }
    }
    used.retain(|name| !name.is_empty());
    used
}

fn name(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The items of a `{…}` list, up to its closing brace.
fn top_level(list: &str) -> Vec<String> {
    let (mut depth, mut items) = (0, vec![String::new()]);
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            c => items.last_mut().unwrap().push(c),
        }
    }
    items
}

#[test]
fn uses_are_found_wherever_they_are_written() {
    let text = "use crate::store::{Lane, Store};\nuse crate::{api, hook::{self, Hooks}};\n// crate::no\nlet x = crate::pace::X;";
    assert_eq!(uses(text), ["store", "api", "hook", "pace"]);
}
