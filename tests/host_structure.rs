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

/// All files under a directory, as the lines of each without indentation.
fn collect(directory: &Path, texts: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), texts);
        } else if let Ok(text) = fs::read_to_string(entry.path()) {
            texts.push(unindented(&text));
        }
    }
}

fn unindented(text: &str) -> String {
    let lines = text.lines().map(|line| format!("{}\n", line.trim()));
    std::iter::once("\n".to_owned()).chain(lines).collect()
}

#[test]
fn the_code_in_the_recipe_is_that_of_the_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/custom-probe.md")).unwrap();
    let mut files = Vec::new();
    for example in ["custom_probe", "task_probe"] {
        collect(&root.join("examples").join(example), &mut files);
    }
    let blocks = page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let code: Vec<_> = blocks.filter(|(language, _)| ["c", "rust"].contains(language)).collect();
    assert!(code.len() > 10, "{} blocks of code", code.len());
    for (_, block) in code {
        let lines = unindented(block);
        assert!(files.iter().any(|file| file.contains(&lines)), "not in the crate:\n{block}");
    }
}
