//! The two languages have the same probes. Needs no privilege.

use std::{collections::BTreeSet, fs, path::Path};

fn stems(directory: &str, suffix: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = fs::read_dir(path).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(suffix).map(str::to_owned)).collect()
}

#[test]
fn every_probe_exists_in_both_languages() {
    let sources = stems("ebpf-probes/bpf", ".bpf.c");
    let objects = stems("ebpf-probes/objects", ".bpf.o");
    let mut modules = stems("ebpfmetrics/src/probes", "");
    modules.retain(|name| name != "mod.rs");
    let modules = modules.into_iter().map(|name| name.trim_end_matches(".rs").to_owned()).collect();
    assert!(!sources.is_empty());
    assert_eq!(sources, objects, "a source without its object, or the other way round");
    assert_eq!(sources, modules, "a probe in one language only");
}

#[test]
fn only_the_loader_names_aya() {
    let mut names = Vec::new();
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("ebpfmetrics/src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else if fs::read_to_string(entry.path()).unwrap().contains("aya::") {
                names.push(entry.file_name().into_string().unwrap());
            }
        }
    }
    assert_eq!(names, ["loader.rs"]);
}
