//! Where types are declared in C, and their comments. BTF has neither.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use walkdir::WalkDir;

/// A declaration of a struct or an enum.
#[derive(Debug)]
pub(super) struct Declaration {
    /// Relative to the directory that was searched.
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) comment: Option<String>,
    /// Comments by field or enumerator.
    pub(super) members: HashMap<String, String>,
}

impl Declaration {
    /// The directory below `bpf/`, or the stem of a file at its top: `cpu` for
    /// `cpu/maps.h` and for `cpu.bpf.c`.
    pub(super) fn concern(&self) -> &str {
        let first = self.file.iter().next().and_then(OsStr::to_str).unwrap_or_default();
        first.split('.').next().unwrap_or_default()
    }
}

/// All declarations below a directory, by name: `enum cpu_loss`.
#[derive(Debug, Default)]
pub(super) struct Sources(HashMap<String, Vec<Declaration>>);

impl Sources {
    /// Leaves out headers that declare types of the kernel: `vmlinux*` and `compat*`.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let mut sources = Self::default();
        let is_ours = |name: &OsStr| {
            let name = name.to_string_lossy();
            !name.starts_with("vmlinux") && !name.starts_with("compat")
        };
        let entries = WalkDir::new(directory).sort_by_file_name().into_iter();
        for entry in entries.filter_entry(|entry| is_ours(entry.file_name())) {
            let path = entry?.into_path();
            if path.extension().is_some_and(|extension| extension == "h" || extension == "c") {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                sources.scan(path.strip_prefix(directory)?, &text);
            }
        }
        Ok(sources)
    }

    /// The declaration of a type as seen by the sources of an object: names may be used
    /// more than once. Those of the object come first, then headers for all.
    pub(super) fn find(&self, name: &str, object: &str) -> Option<&Declaration> {
        let rank = |declaration: &&Declaration| match declaration.concern() {
            concern if concern == object => 0,
            "include" => 1,
            _ => 2,
        };
        self.0.get(name)?.iter().min_by_key(rank)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn scan(&mut self, file: &Path, text: &str) {
        let mut lines = Lines { lines: text.lines().enumerate() };
        let mut comment = None;
        while let Some((number, code, trailing)) = lines.next() {
            let name = code.strip_suffix('{').map(str::trim).filter(|name| {
                let mut words = name.split(' ');
                matches!(words.next(), Some("struct" | "enum")) && words.count() == 1
            });
            let Some(name) = name else {
                // A comment belongs to what follows on the next line.
                comment = trailing.filter(|_| code.is_empty());
                continue;
            };
            let declaration = Declaration {
                file: file.to_owned(),
                line: number,
                comment: comment.take(),
                members: lines.members(name.starts_with("enum")),
            };
            self.0.entry(name.to_owned()).or_default().push(declaration);
        }
    }
}

struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
}

impl<'a> Iterator for Lines<'a> {
    /// The number of a line, its code and its comment, with the lines that this goes on for.
    type Item = (usize, &'a str, Option<String>);

    fn next(&mut self) -> Option<Self::Item> {
        let (number, line) = self.lines.next()?;
        if let Some((code, comment)) = line.split_once("//") {
            return Some((number, code.trim(), Some(comment.trim().to_owned())));
        }
        let Some((code, mut rest)) = line.split_once("/*") else {
            return Some((number, line.trim(), None));
        };
        let mut comment: Vec<&str> = Vec::new();
        loop {
            let (text, is_last) =
                rest.split_once("*/").map_or((rest, false), |(text, _)| (text, true));
            let text = text.trim();
            comment.push(text.strip_prefix('*').unwrap_or(text).trim());
            if is_last {
                break;
            }
            let Some((_, next)) = self.lines.next() else { break };
            rest = next;
        }
        Some((number, code.trim(), Some(comment.join("\n").trim().to_owned())))
    }
}

impl Lines<'_> {
    /// The comments up to the closing brace. One stands behind its member or above it.
    fn members(&mut self, is_enum: bool) -> HashMap<String, String> {
        let mut members = HashMap::new();
        let mut above = None;
        for (_, code, comment) in self.by_ref() {
            if code.starts_with('}') {
                break;
            }
            if code.is_empty() {
                above = comment;
                continue;
            }
            let name = match is_enum {
                true => code.split([' ', '=', ',']).next(),
                false => code
                    .split([';', '['])
                    .next()
                    .and_then(|code| code.split([' ', '*']).next_back()),
            };
            if let (Some(name), Some(comment)) = (name, comment.or_else(|| above.take())) {
                members.insert(name.to_owned(), comment);
            }
            above = None;
        }
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
/* Unrelated. */

/*
 * Two
 * lines.
 */
enum x_loss {
	X_LOSS_A, /* behind */
	/* above */
	X_LOSS_B = 1 << 2,
	X_LOSS_C,
	X_LOSSES,
};

struct x_record {
	u64 plain;
	char text[16]; /* goes
			* on */
	void *pointer; // line
};
";

    #[test]
    fn finds_declarations_with_their_comments() {
        let mut sources = Sources::default();
        sources.scan(Path::new("x/maps.h"), TEXT);
        let loss = sources.find("enum x_loss", "y").unwrap();
        assert_eq!(loss.concern(), "x");
        assert_eq!(loss.comment.as_deref(), Some("Two\nlines."));
        assert_eq!(loss.members["X_LOSS_A"], "behind");
        assert_eq!(loss.members["X_LOSS_B"], "above");
        assert_eq!(loss.members.len(), 2);
        let record = sources.find("struct x_record", "x").unwrap();
        assert_eq!(record.comment, None);
        assert_eq!(record.members["text"], "goes\non");
        assert_eq!(record.members["pointer"], "line");
        assert_eq!(record.members.len(), 2);
    }

    #[test]
    fn prefers_the_declaration_of_the_object() {
        let mut sources = Sources::default();
        for file in ["a.bpf.c", "include/all.h", "b/b.bpf.c"] {
            sources.scan(Path::new(file), "enum e {\n};\n");
        }
        for (object, concern) in [("a", "a"), ("b", "b"), ("c", "include")] {
            assert_eq!(sources.find("enum e", object).unwrap().concern(), concern);
        }
    }
}
