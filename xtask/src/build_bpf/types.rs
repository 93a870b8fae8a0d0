//! The types of an object that Rust needs, read from its BTF.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use btf_rs::{Btf, Member, Struct, Type};
use object::{Object as _, ObjectSection as _};

/// Types by their names in C, as `struct process_key`.
pub(super) type Types = BTreeMap<String, Definition>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Definition {
    Struct(Vec<Field>),
    Enum {
        signed: bool,
        /// Names and values, in the order of the source.
        values: Vec<(String, u32)>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) of: FieldType,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FieldType {
    /// The name in Rust.
    Scalar(&'static str),
    Array(Box<FieldType>, usize),
    /// The name in C, without `struct`.
    Struct(String),
}

/// Reads the structs named `*_record` or `*_key` with all structs in them, and the enums
/// that `is_wanted` accepts by name.
pub(super) fn read(object: &[u8], is_wanted: impl Fn(&str) -> bool) -> Result<Types> {
    let file = object::File::parse(object)?;
    let section = file.section_by_name(".BTF").context("no BTF")?;
    let btf = Btf::from_bytes(section.data()?)?;
    let mut types = Types::new();
    for id in 1.. {
        let Ok(this) = btf.resolve_type_by_id(id) else { break };
        match this {
            Type::Struct(this) => {
                let name = btf.resolve_name(&this).unwrap_or_default();
                if is_record(&name) {
                    add_struct(&btf, &name, &this, &mut types)?;
                }
            }
            Type::Enum(this) => {
                let name = btf.resolve_name(&this).unwrap_or_default();
                if !is_wanted(&name) {
                    continue;
                }
                let values = this.members.iter();
                let values = values.map(|value| Ok((btf.resolve_name(value)?, value.val())));
                let values = values.collect::<Result<_>>()?;
                let definition = Definition::Enum { signed: this.is_signed(), values };
                add(&mut types, format!("enum {name}"), definition)?;
            }
            Type::Enum64(this) => {
                let name = btf.resolve_name(&this).unwrap_or_default();
                ensure!(!is_wanted(&name), "enum {name} has values of more than 32 bits");
            }
            _ => {}
        }
    }
    Ok(types)
}

pub(super) fn is_record(name: &str) -> bool {
    !name.contains("___") && (name.ends_with("_record") || name.ends_with("_key"))
}

/// Adds a type; fails if there is another by its name.
pub(super) fn add(types: &mut Types, name: String, definition: Definition) -> Result<()> {
    if let Some(known) = types.get(&name) {
        ensure!(*known == definition, "{name} has two definitions:\n{known:?}\n{definition:?}");
    }
    types.insert(name, definition);
    Ok(())
}

fn add_struct(btf: &Btf, name: &str, this: &Struct, types: &mut Types) -> Result<()> {
    let mut fields = Vec::new();
    let mut end = 0;
    for member in &this.members {
        let field = btf.resolve_name(member)?;
        let context = || format!("struct {name}, field `{field}`");
        ensure!(
            member.bitfield_size().unwrap_or(0) == 0 && member.bit_offset() % 8 == 0,
            "{}: bit fields are not supported",
            context()
        );
        let offset = member.bit_offset() as usize / 8;
        ensure!(offset == end, hole(name, end, offset));
        let (of, size) = field_type(btf, member, types).with_context(context)?;
        fields.push(Field { name: field, of });
        end = offset + size;
    }
    ensure!(end == this.size(), hole(name, end, this.size()));
    add(types, format!("struct {name}"), Definition::Struct(fields))
}

fn hole(name: &str, from: usize, to: usize) -> String {
    format!(
        "struct {name} has a hole of {} bytes at offset {from}: fill it with a field in C",
        to.saturating_sub(from)
    )
}

/// The type of a field and its size.
fn field_type(btf: &Btf, member: &Member, types: &mut Types) -> Result<(FieldType, usize)> {
    resolve(btf, btf.resolve_chained_type(member)?, types)
}

fn resolve(btf: &Btf, mut this: Type, types: &mut Types) -> Result<(FieldType, usize)> {
    loop {
        this = match &this {
            Type::Typedef(alias) => btf.resolve_chained_type(alias)?,
            Type::Const(qualified) | Type::Volatile(qualified) | Type::Restrict(qualified) => {
                btf.resolve_chained_type(qualified)?
            }
            Type::TypeTag(tag) => btf.resolve_chained_type(tag)?,
            _ => break,
        }
    }
    Ok(match this {
        Type::Int(int) => {
            // `char` is text, whether C takes it as signed or not.
            let is_text = int.is_bool() || btf.resolve_name(&int)? == "char";
            (FieldType::Scalar(integer(int.size(), int.is_signed() && !is_text)?), int.size())
        }
        Type::Enum(this) => {
            (FieldType::Scalar(integer(this.size(), this.is_signed())?), this.size())
        }
        Type::Ptr(_) => (FieldType::Scalar("u64"), 8),
        Type::Array(array) => {
            let (of, size) = resolve(btf, btf.resolve_chained_type(&array)?, types)?;
            (FieldType::Array(Box::new(of), array.len()), size * array.len())
        }
        Type::Struct(inner) => {
            let name = btf.resolve_name(&inner).unwrap_or_default();
            ensure!(!name.is_empty(), "a struct without a name");
            add_struct(btf, &name, &inner, types)?;
            (FieldType::Struct(name), inner.size())
        }
        other => bail!("a {} has no counterpart in Rust", other.name()),
    })
}

fn integer(size: usize, signed: bool) -> Result<&'static str> {
    Ok(match (size, signed) {
        (1, false) => "u8",
        (2, false) => "u16",
        (4, false) => "u32",
        (8, false) => "u64",
        (1, true) => "i8",
        (2, true) => "i16",
        (4, true) => "i32",
        (8, true) => "i64",
        _ => bail!("an integer of {size} bytes"),
    })
}
