//! Puts together what goes into the machine for this run.

use std::{env, fmt::Write as _, path::Path};

use anyhow::Result;

use super::{disk, initramfs::Tree, options::Options, suite::Suite};

/// Sources that tests read, relative to the package.
const DATA: [&str; 5] =
    ["Cargo.toml", "ebpf-probes", "ebpfmetrics/Cargo.toml", "ebpfmetrics/src", "tests"];

/// Settings of the caller that the tests should see.
const PASSED_ON: [&str; 3] = ["RUST_BACKTRACE", "RUST_LOG", "PROPTEST_CASES"];

/// Writes the part of the initramfs that all kernels share.
pub(super) fn pack(
    options: &Options,
    suite: &Suite,
    busybox: &Path,
    scratch: &Path,
    to: &Path,
) -> Result<()> {
    let tree = Tree::with_init(scratch, busybox)?;
    for harness in &suite.harnesses {
        tree.program(&harness.program)?;
    }
    for program in &suite.programs {
        tree.program(program)?;
    }
    for program in &options.add {
        tree.program_in_path(program)?;
    }
    tree.directory(&suite.directory)?;
    for path in DATA {
        tree.data(&suite.directory.join(path))?;
    }
    disk::mounts().try_for_each(|mount| tree.directory(mount))?;
    tree.file("/etc/disks", disk::table())?;
    tree.file("/etc/environment", environment(options, &suite.directory))?;
    tree.script("/bin/suite", &suite_script(options, suite))?;
    let main = match &options.run {
        Some(command) => format!("#!/bin/sh\n{command}\n"),
        None => "#!/bin/sh\nexec suite\n".into(),
    };
    tree.script("/bin/main", &main)?;
    tree.archive(to)
}

fn environment(options: &Options, directory: &Path) -> String {
    let [_, port] = options.arch.ports();
    let mut text = format!("export VM_PORT={port}\n");
    if options.shell {
        text.push_str("export VM_SHELL=1\n");
    }
    let mut export = |name: &str, value: &str| {
        let _ = writeln!(text, "export {name}={}", quote(value));
    };
    // Informs the tests that this kernel hides no event.
    export("EBPFMETRICS_VM", "1");
    export("CARGO_MANIFEST_DIR", &directory.to_string_lossy());
    for name in PASSED_ON {
        if let Ok(value) = env::var(name) {
            export(name, &value);
        }
    }
    text
}

/// Runs every test program and frames what each wrote with its name and times.
fn suite_script(options: &Options, suite: &Suite) -> String {
    // One thread: under emulation parallel tests gain nothing, and a log in
    // order names the test that hung.
    let threads = env::var("RUST_TEST_THREADS").unwrap_or_else(|_| "1".into());
    let mut arguments = vec![
        format!("--test-threads={threads}"),
        "--show-output".to_owned(),
        "--color=never".to_owned(),
    ];
    arguments.extend(options.filter.iter().cloned());
    arguments.extend(options.test_arguments.iter().cloned());
    let arguments: Vec<_> = arguments.iter().map(|argument| quote(argument)).collect();

    let mut script = format!(
        r#"#!/bin/sh
cd {}
printf '\nVM-KERNEL %s\n' "$(uname -r)"
result=0
run() {{
    name=$1
    shift
    read -r now _ </proc/uptime
    printf '\nVM-BEGIN %s %s\n' "$name" "$now"
    "$@" {}
    status=$?
    read -r now _ </proc/uptime
    printf '\nVM-END %s %s %s\n' "$name" "$status" "$now"
    [ "$status" = 0 ] || result=1
}}
"#,
        quote(&suite.directory.to_string_lossy()),
        arguments.join(" "),
    );
    for harness in &suite.harnesses {
        let program = harness.program.to_string_lossy();
        let _ = writeln!(script, "run {} {}", quote(&harness.name), quote(&program));
    }
    script.push_str("exit $result\n");
    script
}

/// For a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn quoted_text_is_one_word() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
