//! File trees that become an initramfs.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use walkdir::WalkDir;

use super::tools;

const INIT: &str = include_str!("init.sh");

const DIRECTORIES: [&str; 16] = [
    "bin", "sbin", "usr/bin", "usr/sbin", "etc", "root", "tmp", "run", "dev", "proc", "sys", "mnt",
    "var", "lib", "lib64", "usr/lib",
];

/// A file tree that becomes an initramfs.
pub(super) struct Tree {
    root: TempDir,
}

impl Tree {
    pub(super) fn empty(scratch: &Path) -> Result<Tree> {
        Ok(Tree { root: tempfile::tempdir_in(scratch)? })
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    /// A system with nothing in it but busybox and the init script.
    pub(super) fn with_init(scratch: &Path, busybox: &Path) -> Result<Tree> {
        let tree = Tree::empty(scratch)?;
        for directory in DIRECTORIES {
            fs::create_dir_all(tree.root.path().join(directory))?;
        }
        tree.copy_to(busybox, "/bin/busybox")?;
        symlink("busybox", tree.root.path().join("bin/sh"))?;
        tree.script("/init", INIT)?;
        tree.file(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:\n",
        )?;
        tree.file("/etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
        Ok(tree)
    }

    /// A program at the path that it has here, with its libraries.
    pub(super) fn program(&self, program: &Path) -> Result<()> {
        self.copy(program)?;
        tools::shared_libraries(program)?.iter().try_for_each(|library| self.copy(library))
    }

    /// A program in the guest's `PATH`, with its libraries.
    pub(super) fn program_in_path(&self, program: &Path) -> Result<()> {
        let program = program.canonicalize().with_context(|| program.display().to_string())?;
        let name = program.file_name().context("not a program")?;
        self.copy_to(&program, Path::new("/bin").join(name))?;
        tools::shared_libraries(&program)?.iter().try_for_each(|library| self.copy(library))
    }

    /// A file or a directory at the path that it has here, if it exists here.
    pub(super) fn data(&self, path: &Path) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        for entry in WalkDir::new(path) {
            let entry = entry?;
            if entry.file_type().is_file() {
                self.copy(entry.path())?;
            }
        }
        Ok(())
    }

    pub(super) fn directory(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(fs::create_dir_all(self.inside(path.as_ref()))?)
    }

    pub(super) fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        Ok(fs::write(self.inside(path.as_ref()), content)?)
    }

    pub(super) fn script(&self, path: impl AsRef<Path>, text: &str) -> Result<()> {
        let path = self.inside(path.as_ref());
        fs::write(&path, text)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
    }

    fn copy(&self, path: &Path) -> Result<()> {
        self.copy_to(path, path)
    }

    fn copy_to(&self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let to = self.inside(to.as_ref());
        fs::create_dir_all(to.parent().context("a path without parent")?)?;
        fs::copy(from, to).with_context(|| from.display().to_string())?;
        Ok(())
    }

    fn inside(&self, path: &Path) -> PathBuf {
        let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
        self.root.path().join(parts.collect::<PathBuf>())
    }

    /// Writes the tree as an archive. Names go in sorted, parents first.
    pub(super) fn archive(&self, to: &Path) -> Result<()> {
        let mut busybox = tools::command("busybox")
            .args(["cpio", "-o", "-H", "newc", "-R", "0:0"])
            .current_dir(self.root.path())
            .stdin(Stdio::piped())
            .stdout(File::create(to)?)
            .stderr(Stdio::null())
            .spawn()?;
        let mut names = busybox.stdin.take().context("cpio's input")?;
        for entry in WalkDir::new(self.root.path()).min_depth(1).sort_by_file_name() {
            let entry = entry?;
            let name = entry.path().strip_prefix(self.root.path())?;
            writeln!(names, "{}", name.display())?;
        }
        drop(names);
        ensure!(busybox.wait()?.success(), "cpio failed");
        Ok(())
    }
}

/// Appends one archive to another, which is how the kernel takes several.
pub(super) fn join(archives: &[&Path], to: &Path) -> Result<()> {
    let mut joined = File::create(to)?;
    for archive in archives {
        let bytes = io::copy(&mut File::open(archive)?, &mut joined)?;
        let padding = bytes.next_multiple_of(4) - bytes;
        joined.write_all(&[0; 4][..padding as usize])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_archives_stay_aligned() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b, both) =
            (scratch.path().join("a"), scratch.path().join("b"), scratch.path().join("both"));
        fs::write(&a, b"12345").unwrap();
        fs::write(&b, b"6").unwrap();
        join(&[&a, &b], &both).unwrap();
        assert_eq!(fs::read(both).unwrap(), b"12345\0\0\x006\0\0\0");
    }
}
