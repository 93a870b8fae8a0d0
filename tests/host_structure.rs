//! The structure of the sources: both languages have the same probes, and modules import from
//! modules below them only. Needs no privilege.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn names(directory: &str, suffix: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(directory)).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(suffix).map(str::to_owned)).collect()
}

/// All files under a directory with their contents.
fn files(directory: &Path) -> Vec<(PathBuf, String)> {
    let (mut files, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else if let Ok(text) = fs::read_to_string(entry.path()) {
                files.push((entry.path(), text));
            }
        }
    }
    files
}

#[test]
fn every_probe_exists_in_both_languages() {
    let mut sources = names("ebpf-probes/bpf", "");
    assert!(sources.remove("include"));
    let objects = names("ebpf-probes/objects", ".bpf.o");
    assert_eq!(sources, objects, "a source without its object, or an object without its source");
    for source in &sources {
        let path = root().join(format!("ebpf-probes/bpf/{source}/{source}.bpf.c"));
        assert!(path.exists(), "{} is missing", path.display());
    }
    // Not probes: the engine of a set, and events.
    assert!(sources.remove("process") && sources.remove("events"));
    let mut modules = names("ebpfmetrics/src/probes", "");
    assert!(modules.remove("mod.rs"));
    assert_eq!(sources, modules, "a probe in one language only");
}

#[test]
fn only_the_object_module_uses_aya_and_bpf() {
    for (path, text) in files(&root().join("ebpfmetrics/src")) {
        if path.components().any(|part| part.as_os_str() == "object") {
            continue;
        }
        for word in ["aya::", "aya_obj::", "SYS_bpf"] {
            assert!(!text.contains(word), "{} uses {word}", path.display());
        }
    }
}

/// The modules of the library from bottom to top. A module imports from those before it.
const LAYERS: [&str; 19] = [
    "error",
    "options",
    "record",
    "kernel",
    "object",
    "process",
    "snapshot",
    "histogram",
    "group",
    "intervals",
    "probe",
    "collect",
    "set",
    "probes",
    "events",
    "job",
    "preflight",
    "kit",
    "bench",
];

/// The module that a file belongs to: `src/MODULE.rs` or `src/MODULE/...`.
fn module_of(path: &Path) -> String {
    let below = path.strip_prefix(root().join("ebpfmetrics/src")).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Code without comments and without its unit tests, which may use everything. `$crate` is how
/// a macro names public paths, and it is no import.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n").replace("$crate::", "")
}

/// The modules that a file imports from: `crate::MODULE`, also in `use crate::{MODULE, ..}`.
fn imports(code: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let group = match rest.strip_prefix('{') {
            None => vec![rest.chars().take_while(|c| is_word(*c)).collect()],
            Some(group) => {
                let (mut depth, mut word, mut words) = (0, String::new(), Vec::new());
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 && is_word(c) {
                        word.push(c);
                    } else if !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                }
                words.push(word);
                words
            }
        };
        found.extend(group);
    }
    found.retain(|name| LAYERS.contains(&name.as_str()));
    found
}

#[test]
fn modules_import_from_modules_below_them() {
    let layer = |module: &str| LAYERS.iter().position(|it| *it == module);
    let mut upward = Vec::new();
    for (path, text) in files(&root().join("ebpfmetrics/src")) {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let own = layer(&module).unwrap_or_else(|| panic!("module {module} has no layer"));
        for import in imports(&code(&text)) {
            if layer(&import).is_some_and(|other| other > own) {
                upward.push(format!("{} imports from {import}", path.display()));
            }
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn no_import_goes_through_the_crate_root() {
    let macros = ["usage_operators", "probe_builder"];
    for (path, text) in files(&root().join("ebpfmetrics/src")) {
        let code = code(&text);
        for rest in code.split("crate::").skip(1) {
            let word: String =
                rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let is_type = word.chars().next().is_some_and(char::is_uppercase);
            let is_macro_body = code.contains("macro_rules!");
            assert!(
                !is_type || is_macro_body || macros.contains(&word.as_str()),
                "{}: crate::{word}",
                path.display()
            );
        }
    }
}

#[test]
fn no_source_file_is_long() {
    const MAX_LINES: usize = 500;
    for directory in ["ebpfmetrics/src", "ebpf-probes/bpf", "xtask/src"] {
        for (path, text) in files(&root().join(directory)) {
            let lines = text.lines().count();
            let may_be_long = LONG.iter().any(|long| path.ends_with(long));
            assert!(lines <= MAX_LINES || may_be_long, "{} has {lines} lines", path.display());
        }
    }
}

/// Files with more lines, each for a reason.
const LONG: [&str; 0] = [];

fn unindented(text: &str) -> String {
    let lines = text.lines().map(|line| format!("{}\n", line.trim()));
    std::iter::once("\n".to_owned()).chain(lines).collect()
}

#[test]
fn the_code_in_the_recipe_is_that_of_the_crate() {
    let page = fs::read_to_string(root().join("docs/custom-probe.md")).unwrap();
    let files =
        ["custom_probe", "task_probe"].map(|name| files(&root().join("examples").join(name)));
    let files: Vec<_> = files.iter().flatten().map(|(_, text)| unindented(text)).collect();
    let blocks = page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let code: Vec<_> = blocks.filter(|(language, _)| ["c", "rust"].contains(language)).collect();
    assert!(code.len() > 10, "{} blocks of code", code.len());
    for (_, block) in code {
        let lines = unindented(block);
        assert!(files.iter().any(|file| file.contains(&lines)), "not in the crate:\n{block}");
    }
}

/// Fields of usages that are no figures: names, numbers and lists.
const NO_FIGURES: [&str; 21] = [
    "CpuSystem::accounting",
    "CpuSystem::cpus",
    "CpuSystem::threads",
    "CpuThread::cgroup_id",
    "CpuThread::comm",
    "CpuThread::id",
    "CpuThread::process",
    "CpuTime::cpu",
    "DiskDevice::id",
    "DiskDevice::name",
    "DiskDevice::partition_of",
    "DiskDeviceId::major",
    "DiskDeviceId::minor",
    "DiskDeviceUsage::device",
    "DiskLatency::operation",
    "DiskSystem::devices",
    "MemUsage::peaks_mixed",
    "SlowIo::device",
    "SlowIo::operation",
    "SlowIo::process",
    "SlowIo::submitted_ns",
];

/// What `docs/figures.md` says of each kind of figure.
const SITUATIONS: [&str; 9] = [
    "Bound",
    "Full table",
    "Exit to release",
    "Sum over processes",
    "Cgroup move",
    "Exec",
    "Shared memory",
    "Namespaces",
    "Coming and going",
];

#[test]
fn every_figure_is_documented() {
    let text = fs::read_to_string(root().join("docs/figures.md")).unwrap();
    let documented: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(field, _)| field)
        .collect();
    let api = fs::read_to_string(root().join("ebpfmetrics/public-api.txt")).unwrap();
    let of_probes =
        ["cpu", "disk", "mem", "slab"].map(|probe| format!("pub ebpfmetrics::{probe}::"));
    let fields = api.lines().filter_map(|line| {
        let path = of_probes.iter().find_map(|prefix| line.strip_prefix(prefix.as_str()))?;
        let (field, _type) = path.split_once(": ")?;
        (!field.contains('(')).then_some(field)
    });
    let figures: BTreeSet<_> = fields.filter(|field| !NO_FIGURES.contains(field)).collect();
    assert!(figures.len() > 80, "{figures:?}");
    assert_eq!(documented, figures, "docs/figures.md on the left, the public API on the right");
    for section in text.split("\n## ").skip(1) {
        let name = section.lines().next().unwrap();
        for situation in SITUATIONS {
            let item = format!("\n- **{situation}**: ");
            assert!(section.contains(&item), "docs/figures.md, {name}: nothing about {situation}");
        }
    }
}
