//! Records as the kernel side writes them.

/// A record that C and Rust both define; its layout is for [`check_layout`] to compare.
///
/// [`check_layout`]: crate::kit::conformance::check_layout
pub trait Record: bytemuck::Pod {
    /// The name of the struct in C.
    const C_NAME: &'static str;
    /// Name, offset and size of every field.
    const FIELDS: &'static [(&'static str, usize, usize)];
}

/// Defines the Rust side of a record that the kernel side writes.
///
/// Names and types of the fields are those of the struct in C, whose name is given. The
/// crate that uses it depends on `bytemuck` with the feature `derive`.
///
/// ```
/// ebpfmetrics::record! {
///     /// Calls of one process.
///     pub struct CallsRecord = "calls_record" {
///         head: ebpfmetrics::kit::RecordHead,
///         calls: u64,
///     }
/// }
/// ```
#[macro_export]
macro_rules! record {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident = $c_name:literal {
        $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $visibility struct $name {
            $(#[allow(missing_docs, reason = "named as in C")] $(#[$field_meta])* pub $field: $type,)*
        }

        impl $crate::kit::Record for $name {
            const C_NAME: &'static str = $c_name;
            const FIELDS: &'static [(&'static str, usize, usize)] = &[
                $((
                    stringify!($field),
                    core::mem::offset_of!($name, $field),
                    core::mem::size_of::<$type>(),
                ),)*
            ];
        }
    };
}

/// Compares the records of a module with the structs in the BTF of its object:
/// names, offsets and sizes of all fields, and no struct without a mirror.
#[cfg(test)]
macro_rules! layout_test {
    ($object:expr, [$($record:ty),* $(,)?]) => {
        #[test]
        fn records_match_the_object() {
            use $crate::record::Record;
            $crate::record::compare(
                $object,
                &[$((<$record>::C_NAME, size_of::<$record>(), <$record>::FIELDS),)*],
            );
        }
    };
}

/// Compares the names of losses with the enum in the BTF of the object.
#[cfg(test)]
macro_rules! losses_test {
    ($object:expr, $enumeration:literal, $names:expr) => {
        #[test]
        fn losses_match_the_object() {
            $crate::kit::conformance::check_losses($object, $enumeration, $names);
        }
    };
}

#[cfg(test)]
pub(crate) use {layout_test, losses_test};

#[cfg(test)]
pub(crate) use comparison::compare;

#[cfg(test)]
mod comparison {
    use btf_rs::{Btf, Type};
    use object::{Object as _, ObjectSection as _};

    type Fields = &'static [(&'static str, usize, usize)];

    fn btf(object: &[u8]) -> Btf {
        let file = object::File::parse(object).unwrap();
        Btf::from_bytes(file.section_by_name(".BTF").unwrap().data().unwrap()).unwrap()
    }

    pub(crate) fn compare(object: &[u8], records: &[(&str, usize, Fields)]) {
        let btf = btf(object);
        for (name, size, fields) in records {
            let found = btf.resolve_types_by_name(name).unwrap();
            let Some(Type::Struct(c)) = found.iter().find(|t| matches!(t, Type::Struct(_))) else {
                panic!("no struct {name} in the object");
            };
            assert_eq!(c.size(), *size, "size of {name}");
            let in_c: Vec<_> = (c.members.iter())
                .map(|member| {
                    let name = btf.resolve_name(member).unwrap();
                    let of = btf.resolve_chained_type(member).unwrap();
                    (name, member.bit_offset() as usize / 8, size_of_type(&btf, of))
                })
                .collect();
            let in_rust: Vec<_> = fields
                .iter()
                .map(|(name, offset, size)| ((*name).to_owned(), *offset, *size))
                .collect();
            assert_eq!(in_c, in_rust, "fields of {name}");
        }
        for id in 1.. {
            let Ok(t) = btf.resolve_type_by_id(id) else { break };
            if let Type::Struct(c) = t {
                let name = btf.resolve_name(&c).unwrap_or_default();
                let known = records.iter().any(|(known, ..)| *known == name);
                assert!(known || !name.ends_with("_record"), "struct {name} has no mirror in Rust");
            }
        }
    }

    fn size_of_type(btf: &Btf, t: Type) -> usize {
        match t {
            Type::Int(int) => int.size(),
            Type::Struct(s) => s.size(),
            Type::Array(array) => {
                array.len() * size_of_type(btf, btf.resolve_chained_type(&array).unwrap())
            }
            Type::Typedef(alias) => size_of_type(btf, btf.resolve_chained_type(&alias).unwrap()),
            other => panic!("unexpected in a record: {other:?}"),
        }
    }
}
