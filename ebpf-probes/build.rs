//! Turns the list of files in `objects/` into the list of constants, so that a
//! new probe needs no edit here.

use std::{env, fs, path::Path};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let objects = Path::new(&root).join("objects");
    println!("cargo::rerun-if-changed={}", objects.display());

    let mut names: Vec<String> = fs::read_dir(&objects)
        .expect("objects/ is part of this crate")
        .map(|entry| entry.expect("objects/ is readable").file_name())
        .filter_map(|name| Some(name.to_str()?.strip_suffix(".bpf.o")?.to_owned()))
        .collect();
    names.sort();

    let mut code = String::new();
    for name in names {
        let constant = name.to_uppercase();
        let path = objects.join(format!("{name}.bpf.o"));
        code.push_str(&format!(
            "/// The object compiled from `{name}.bpf.c`.\n\
             pub static {constant}: &[u8] = &Aligned(*include_bytes!({path:?})).0;\n"
        ));
    }
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("objects.rs"), code).expect("OUT_DIR is writable");
}
