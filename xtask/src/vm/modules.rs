//! The modules of one kernel, as an archive to append to the initramfs.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use walkdir::WalkDir;

use super::{initramfs::Tree, tools};

/// Writes the named modules, with what they depend on, as an archive. Modules
/// that this kernel lacks or has built in are passed over.
pub(super) fn pack(directory: &Path, names: &[String], scratch: &Path, to: &Path) -> Result<()> {
    let tree = Tree::empty(scratch)?;
    let Some(release) = fs::read_dir(directory).ok().and_then(|mut entries| entries.next()) else {
        return tree.archive(to);
    };
    let release = release?;
    let index = Index::new(&release.path())?;
    let target = Path::new("/lib/modules").join(release.file_name());
    tree.directory(&target)?;

    let mut wanted: Vec<String> = names.to_vec();
    let mut done: Vec<String> = Vec::new();
    while let Some(name) = wanted.pop() {
        let Some(path) = index.find(&name).filter(|_| !done.contains(&name)) else { continue };
        let module = read_module(path)?;
        wanted.extend(dependencies(&module));
        // Unpacked, so that the guest needs no decompressor.
        tree.file(target.join(format!("{name}.ko")), module)?;
        done.push(name);
    }
    tools::output(
        tools::command("busybox").arg("depmod").arg("-b").arg(tree.root()).arg(release.file_name()),
    )?;
    tree.archive(to)
}

/// The module files of one kernel.
struct Index(Vec<PathBuf>);

impl Index {
    fn new(directory: &Path) -> Result<Index> {
        let entries = WalkDir::new(directory).into_iter().map(|entry| Ok(entry?.into_path()));
        Ok(Index(entries.collect::<Result<_>>()?))
    }

    fn find(&self, name: &str) -> Option<&Path> {
        let is_it = |path: &Path| {
            path.file_name().and_then(OsStr::to_str).is_some_and(|file| {
                let stem = file.split_once(".ko").map(|(stem, _)| stem);
                stem.is_some_and(|stem| stem.replace('-', "_") == name.replace('-', "_"))
            })
        };
        self.0.iter().map(PathBuf::as_path).find(|path| is_it(path))
    }
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(path)?);
    }
    let output = tools::command("xz").arg("-dc").arg(path).output()?;
    ensure!(output.status.success(), "xz cannot unpack {}", path.display());
    Ok(output.stdout)
}

/// The module's own `depends=` line.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[start + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_tells_its_dependencies() {
        assert_eq!(
            dependencies(b"..\0license=GPL\0depends=zsmalloc,lz4\0x=y\0"),
            ["zsmalloc", "lz4"]
        );
        assert!(dependencies(b"..\0depends=\0x=y\0").is_empty());
        assert!(dependencies(b"no such line").is_empty());
    }

    #[test]
    fn modules_are_found_under_either_spelling() {
        let index = Index(vec!["/m/drivers/null_blk/null_blk.ko.xz".into(), "/m/dm-mod.ko".into()]);
        assert!(index.find("null-blk").is_some());
        assert!(index.find("dm_mod").is_some());
        assert!(index.find("null").is_none());
    }
}
