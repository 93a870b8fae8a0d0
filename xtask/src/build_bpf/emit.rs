//! Types as Rust code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Context, Result, ensure};

use super::{
    sources::Declaration,
    types::{Definition, Field, FieldType, Types},
};

/// What is written into one file, in order.
pub(super) type Contents<'a> = Vec<(&'a str, Option<&'a Declaration>)>;

/// The items of a file: `use` declarations by module, then types.
pub(super) fn code(
    types: &Types,
    contents: &Contents,
    module_of: impl Fn(&str) -> Option<String>,
) -> Result<String> {
    let keys = in_keys(types);
    let (mut items, mut used) = (String::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for (name, declaration) in contents {
        let definition = types.get(*name).context("a type of a file is known")?;
        let docs = Docs { name, declaration: *declaration };
        let bare = bare(name);
        match definition {
            Definition::Struct(fields) => {
                for inner in fields.iter().filter_map(|field| inner(&field.of)) {
                    if let Some(module) = module_of(&format!("struct {inner}")) {
                        used.entry(module).or_default().insert(camel_case(inner));
                    }
                }
                structure(&mut items, bare, fields, keys.contains(bare), &docs)?;
            }
            Definition::Enum { values, .. } if bare.ends_with("_loss") => {
                losses(&mut items, bare, values, &docs)?;
            }
            Definition::Enum { signed, values } => {
                constants(&mut items, bare, *signed, values, &docs)?;
            }
        }
    }
    let mut code = String::new();
    if items.contains("fmt::Display") {
        code.push_str("use std::fmt;\n\n");
    }
    for (module, names) in used {
        let names: Vec<_> = names.into_iter().collect();
        writeln!(code, "use {module}::{{{}}};\n", names.join(", "))?;
    }
    Ok(code + &items)
}

/// Structs that are map keys or part of one: they can be compared in Rust too.
fn in_keys(types: &Types) -> BTreeSet<&str> {
    let mut open: Vec<&str> = types
        .keys()
        .filter_map(|n| n.strip_prefix("struct "))
        .filter(|n| n.ends_with("_key"))
        .collect();
    let mut found = BTreeSet::new();
    while let Some(name) = open.pop() {
        if let (true, Some(Definition::Struct(fields))) =
            (found.insert(name), types.get(&format!("struct {name}")))
        {
            open.extend(fields.iter().filter_map(|field| inner(&field.of)));
        }
    }
    found
}

fn inner(of: &FieldType) -> Option<&str> {
    match of {
        FieldType::Scalar(_) => None,
        FieldType::Array(of, _) => inner(of),
        FieldType::Struct(name) => Some(name),
    }
}

fn structure(
    code: &mut String,
    name: &str,
    fields: &[Field],
    is_key: bool,
    docs: &Docs,
) -> Result<()> {
    docs.of_type(code)?;
    let traits = if is_key { ", PartialEq, Eq, PartialOrd, Ord, Hash" } else { "" };
    writeln!(code, "#[repr(C)]")?;
    writeln!(code, "#[derive(Clone, Copy, Debug{traits}, bytemuck::Pod, bytemuck::Zeroable)]")?;
    writeln!(code, "pub struct {} {{", camel_case(name))?;
    for field in fields {
        docs.of_member(code, &field.name)?;
        writeln!(code, "pub {}: {},", identifier(&field.name), rust_type(&field.of))?;
    }
    writeln!(code, "}}\n")?;
    Ok(())
}

fn rust_type(of: &FieldType) -> String {
    match of {
        FieldType::Scalar(name) => (*name).to_owned(),
        FieldType::Array(of, len) => format!("[{}; {len}]", rust_type(of)),
        FieldType::Struct(name) => camel_case(name),
    }
}

/// The causes of loss: `CPU_LOSS_TABLE_FULL` is `CpuLoss::TableFull`, "table_full".
fn losses(code: &mut String, name: &str, values: &[(String, u32)], docs: &Docs) -> Result<()> {
    let prefix = format!("{}_", name.to_uppercase());
    let mut causes = Vec::new();
    for (index, (value, number)) in values.iter().enumerate() {
        ensure!(
            *number as usize == index,
            "enum {name}: {value} does not follow the one before it"
        );
        match value.strip_prefix(&prefix) {
            Some(cause) => causes.push((value, cause)),
            None => ensure!(
                is_count(value, name) && index + 1 == values.len(),
                "enum {name}: {value} does not begin with {prefix}"
            ),
        }
    }
    ensure!(causes.len() < values.len(), "enum {name} does not end in {}ES", name.to_uppercase());
    let rust = camel_case(name);
    docs.of_type(code)?;
    writeln!(code, "#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]\n#[non_exhaustive]")?;
    writeln!(code, "pub enum {rust} {{")?;
    for (value, cause) in &causes {
        docs.of_member(code, value)?;
        writeln!(code, "{},", camel_case(cause))?;
    }
    writeln!(code, "}}\n\nimpl {rust} {{")?;
    writeln!(code, "/// Every cause, in the order of their counters in the kernel.")?;
    writeln!(code, "pub const ALL: &[Self] = &[")?;
    for (_, cause) in &causes {
        writeln!(code, "Self::{},", camel_case(cause))?;
    }
    writeln!(code, "];\n\n/// The name of the cause, which is stable.")?;
    writeln!(code, "pub const fn as_str(self) -> &'static str {{ match self {{")?;
    for (_, cause) in &causes {
        writeln!(code, "Self::{} => \"{}\",", camel_case(cause), cause.to_lowercase())?;
    }
    writeln!(code, "}} }} }}\n")?;
    writeln!(
        code,
        "impl AsRef<str> for {rust} {{ fn as_ref(&self) -> &str {{ self.as_str() }} }}\n"
    )?;
    writeln!(
        code,
        "impl fmt::Display for {rust} {{\n\
         fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {{ f.pad(self.as_str()) }} }}\n"
    )?;
    Ok(())
}

/// Other enums are modules of constants.
fn constants(
    code: &mut String,
    name: &str,
    signed: bool,
    values: &[(String, u32)],
    docs: &Docs,
) -> Result<()> {
    let of = if signed { "i32" } else { "u32" };
    docs.of_type(code)?;
    writeln!(code, "pub mod {name} {{")?;
    for (value, number) in values {
        docs.of_member(code, value)?;
        let number = if signed { number.cast_signed().to_string() } else { number.to_string() };
        writeln!(code, "pub const {}: {of} = {number};", constant(value, name, values))?;
    }
    writeln!(code, "}}\n")?;
    Ok(())
}

/// The name of a constant: that of the enumerator without the leading words that all
/// enumerators share with the enum. A new enumerator so rarely changes the other names.
fn constant<'a>(value: &'a str, name: &str, values: &[(String, u32)]) -> &'a str {
    if is_count(value, name) {
        return "COUNT";
    }
    let mut prefix = String::new();
    for word in name.split('_') {
        let longer = format!("{prefix}{}_", word.to_uppercase());
        let is_part = |(value, _): &&(String, u32)| {
            let rest = value.strip_prefix(&longer);
            rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_alphabetic()))
        };
        if !values.iter().filter(|(value, _)| !is_count(value, name)).all(|value| is_part(&value)) {
            break;
        }
        prefix = longer;
    }
    value.strip_prefix(&prefix).unwrap_or(value)
}

/// Whether an enumerator is the number of the others: the plural of the enum's name.
fn is_count(value: &str, name: &str) -> bool {
    let plural = if name.ends_with(['s', 'x']) { "ES" } else { "S" };
    value.strip_suffix(plural).is_some_and(|value| value == name.to_uppercase())
}

/// `cpu_task_record` and `CPU_TASK_RECORD` are `CpuTaskRecord`.
pub(super) fn camel_case(name: &str) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + &rest.to_lowercase()
    };
    name.split('_').map(word).collect()
}

fn identifier(name: &str) -> String {
    const KEYWORDS: [&str; 32] = [
        "abstract", "as", "async", "await", "become", "box", "dyn", "final", "fn", "gen", "impl",
        "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub",
        "ref", "trait", "try", "type", "unsafe", "unsized", "use", "virtual", "where", "yield",
    ];
    if KEYWORDS.contains(&name) { format!("r#{name}") } else { name.to_owned() }
}

/// `process_key` of `struct process_key`.
fn bare(name: &str) -> &str {
    name.split_once(' ').map_or(name, |(_, name)| name)
}

/// The comments of a type as documentation.
struct Docs<'a> {
    name: &'a str,
    declaration: Option<&'a Declaration>,
}

impl Docs<'_> {
    fn of_type(&self, code: &mut String) -> Result<()> {
        match self.declaration.and_then(|declaration| declaration.comment.as_deref()) {
            Some(comment) => document(code, comment),
            None => document(code, &format!("`{}`", self.name)),
        }
    }

    fn of_member(&self, code: &mut String, member: &str) -> Result<()> {
        match self.declaration.and_then(|declaration| declaration.members.get(member)) {
            Some(comment) => document(code, comment),
            None => Ok(()),
        }
    }
}

/// Writes a comment of C as a sentence of Markdown.
fn document(code: &mut String, comment: &str) -> Result<()> {
    let mut text = String::new();
    let mut in_code = false;
    let first_word = comment.split_whitespace().next().unwrap_or_default();
    let is_name = !first_word.chars().all(|character| character.is_alphabetic());
    for (index, character) in comment.chars().enumerate() {
        in_code ^= character == '`';
        match character {
            '[' | ']' | '<' | '>' | '*' if !in_code => text.extend(['\\', character]),
            _ if index == 0 && !is_name => text.extend(character.to_uppercase()),
            _ => text.push(character),
        }
    }
    if !text.ends_with(['.', '!', '?', ':']) {
        text.push('.');
    }
    for line in text.lines() {
        writeln!(code, "/// {line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_lose_the_words_they_share_with_the_enum() {
        let names = |name: &str, values: &[&str]| {
            let values: Vec<_> = values.iter().map(|value| ((*value).to_owned(), 0)).collect();
            let names = values.iter().map(|(value, _)| constant(value, name, &values).to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names("cpu_task_flags", &["CPU_TASK_A", "CPU_TASK_B"]), ["A", "B"]);
        assert_eq!(names("disk_class", &["DISK_SWAP"]), ["SWAP"]);
        assert_eq!(names("event_kind", &["EVENT_KIND_A", "EVENT_KINDS"]), ["A", "COUNT"]);
        assert_eq!(names("cpu_flags", &["CPU_IDLE_A", "CPU_IDLE_B"]), ["IDLE_A", "IDLE_B"]);
        assert_eq!(names("process_flags", &["MEM_OOM"]), ["MEM_OOM"]);
        assert_eq!(names("a_size", &["A_SIZE_4K"]), ["SIZE_4K"]);
    }

    #[test]
    fn names_are_those_of_rust() {
        assert_eq!(camel_case("cpu_task_record"), "CpuTaskRecord");
        assert_eq!(camel_case("TABLE_FULL"), "TableFull");
        assert_eq!(identifier("type"), "r#type");
        assert!(is_count("CPU_LOSSES", "cpu_loss") && is_count("EVENT_KINDS", "event_kind"));
    }

    #[test]
    fn comments_are_plain_markdown() {
        let mut code = String::new();
        document(&mut code, "`in_code` full: dead_* of\narray[4]").unwrap();
        document(&mut code, "of a dev_t").unwrap();
        document(&mut code, "dev_t of it").unwrap();
        assert_eq!(
            code,
            "/// `in_code` full: dead_\\* of\n/// array\\[4\\].\n/// Of a dev_t.\n/// dev_t of it.\n"
        );
    }
}
