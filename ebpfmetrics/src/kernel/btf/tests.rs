use super::{subset::without_flavour, types::*, *};
use std::collections::HashSet;

/// BTF of some strings and types, each with the words that follow it.
fn btf(strings: &[u8], types: &[&[u32]]) -> Vec<u8> {
    let types = types.concat();
    let types: &[u8] = bytemuck::cast_slice(&types);
    let mut btf = Vec::new();
    for word in [0x0001_eb9f, 24, 0, types.len(), types.len(), strings.len()] {
        btf.extend_from_slice(&(word as u32).to_ne_bytes());
    }
    btf.extend_from_slice(types);
    btf.extend_from_slice(strings);
    btf
}

fn kind(kind: u32, members: u32) -> u32 {
    kind << 24 | members
}

/// A variable `b` at 0x40 of the per-CPU section, a tracepoint `t` with two arguments, and
/// an iterator `i`.
fn hooks() -> Vec<u8> {
    btf(
        b"\0a\0b\0.data..percpu\0btf_trace_t\0bpf_iter_i\0",
        &[
            &[1, kind(KIND_INT, 0), 4, 32], // 1: int a
            &[3, kind(KIND_VAR, 0), 1, 0],  // 2: int b
            &[5, kind(KIND_DATASEC, 2), 128, 7, 0x20, 4, 2, 0x40, 4],
            &[0, kind(KIND_POINTER, 0), 5],
            &[0, kind(KIND_FUNCTION_PROTOTYPE, 3), 0, 0, 4, 0, 1, 0, 1],
            &[19, kind(KIND_TYPEDEF, 0), 4],
            &[31, kind(KIND_FUNCTION, 1), 5],
        ],
    )
}

/// `struct task` with a `struct inner` in an array, a pointer to `struct far` and
/// a `struct other`, that nobody needs, behind it.
fn structures() -> Vec<u8> {
    btf(
        b"\0task\0inner\0far\0value\0other\0",
        &[
            &[20, kind(KIND_STRUCT, 0), 4],                     // 1: other
            &[12, kind(KIND_STRUCT, 1), 4, 16, 1, 0],           // 2: far
            &[16, kind(KIND_INT, 0), 4, 32],                    // 3: value
            &[0, kind(KIND_POINTER, 0), 2],                     // 4: far *
            &[6, kind(KIND_STRUCT, 1), 4, 16, 3, 0],            // 5: inner
            &[0, kind(KIND_ARRAY, 0), 0, 5, 3, 2],              // 6: inner[2]
            &[0, kind(KIND_CONST, 0), 6],                       // 7: const inner[2]
            &[1, kind(KIND_STRUCT, 2), 16, 6, 7, 0, 12, 4, 64], // 8: task
        ],
    )
}

fn parse(bytes: &[u8]) -> Btf<&[u8]> {
    Btf::parse(bytes).unwrap()
}

/// Its types: name, kind, members and references.
fn described<B: Deref<Target = [u8]>>(btf: &Btf<B>) -> Vec<(String, u32, usize, Vec<u32>)> {
    let describe = |id| {
        let this = btf.get(id).unwrap();
        let references = this.references(Need::Whole).map(|(at, _)| this.u32(at)).collect();
        let name = String::from_utf8(btf.name(this.name()).to_vec()).unwrap();
        (name, this.kind, this.members, references)
    };
    (1..btf.places.len() as u32).map(describe).collect()
}

#[test]
fn variables_and_hooks_are_found() {
    let bytes = hooks();
    let btf = parse(&bytes);
    assert_eq!(btf.per_cpu_offsets(["b", "a", "none"]), [Some(0x40), None, None]);
    assert_eq!(btf.tracepoint("t"), Some(Hook { id: 6 }));
    assert_eq!(btf.tracepoint_arguments("t"), Some(2));
    assert_eq!(btf.iterator("i"), Some(Hook { id: 7 }));
    for absent in ["", "a", "btf_trace_t", "tt", "i"] {
        assert_eq!(btf.tracepoint(absent), None, "{absent}");
        assert_eq!(btf.tracepoint_arguments(absent), None, "{absent}");
    }
    assert_eq!(btf.iterator("t"), None);
}

#[test]
fn a_subset_has_embedded_types_and_the_names_behind_pointers() {
    let bytes = structures();
    let few = parse(&bytes).only(&HashSet::from([&b"task"[..]]));
    let name = |name: &str| name.to_owned();
    assert_eq!(
        described(&parse(&few)),
        [
            (name("far"), KIND_STRUCT, 0, vec![]),
            (name("value"), KIND_INT, 0, vec![]),
            (name(""), KIND_POINTER, 0, vec![1]),
            (name("inner"), KIND_STRUCT, 1, vec![2]),
            (name(""), KIND_ARRAY, 0, vec![4, 2]),
            (name(""), KIND_CONST, 0, vec![5]),
            (name("task"), KIND_STRUCT, 2, vec![6, 3]),
        ]
    );
}

#[test]
fn a_named_type_is_complete_even_behind_a_pointer() {
    let bytes = structures();
    let few = parse(&bytes).only(&HashSet::from([&b"task"[..], b"far"]));
    let few = parse(&few);
    let types = described(&few);
    let far = types.iter().find(|(name, ..)| name == "far").unwrap();
    assert_eq!((far.2, far.3.as_slice()), (1, &[1][..]), "{types:?}");
    assert_eq!(types.len(), 8);
    // a subset with all names is the same
    assert_eq!(few.only(&few.names()), few.bytes);
}

#[test]
fn flavours_are_ignored_in_names() {
    assert_eq!(without_flavour(b"task_struct___new"), b"task_struct");
    assert_eq!(without_flavour(b"a__b"), b"a__b");
    assert_eq!(without_flavour(b""), b"");
    let bytes = btf(b"\0task___x\0", &[&[1, kind(KIND_STRUCT, 0), 0]]);
    let flavoured = parse(&bytes);
    assert_eq!(flavoured.names(), HashSet::from([&b"task"[..]]));
    let few = parse(&flavoured.only(&flavoured.names())).places.len();
    assert_eq!(few, 2);
}

#[test]
fn short_names_are_found() {
    let bytes = btf(
        b"\0a\0ab\0",
        &[
            &[1, kind(KIND_STRUCT, 0), 0],
            &[3, kind(KIND_UNION, 0), 0],
            &[1, kind(KIND_INT, 0), 4, 0],
        ],
    );
    let found = |name: &[u8]| {
        let few = parse(&bytes).only(&HashSet::from([name]));
        described(&parse(&few)).into_iter().map(|(_, kind, ..)| kind).collect::<Vec<_>>()
    };
    assert_eq!(found(b"a"), [KIND_STRUCT, KIND_INT]);
    assert_eq!(found(b"ab"), [KIND_UNION]);
    assert!(found(b"").is_empty());
}

#[test]
fn members_beyond_16_bits_are_counted() {
    let members = 70_000;
    let mut large = vec![1, kind(KIND_ENUM, members), 4];
    large.extend((0..members).flat_map(|value| [1, value]));
    let bytes = btf(b"\0e\0", &[&large, &[1, kind(KIND_INT, 0), 4, 0]]);
    assert_eq!(parse(&bytes).places.len(), 3);
}

/// Runs every query.
fn query_all(bytes: &[u8]) {
    if let Some(btf) = Btf::parse(bytes) {
        let few = btf.only(&btf.names());
        btf.only(&HashSet::from([&b"task"[..]]));
        btf.per_cpu_offsets(["b"]);
        btf.tracepoint_arguments("t");
        btf.iterator("i");
        assert!(Btf::parse(few).is_some(), "{bytes:x?}");
    }
}

#[test]
fn damaged_and_truncated_btf_does_not_panic() {
    query_all(&[0xff; 64]);
    query_all(&[]);
    for whole in [hooks(), structures()] {
        for length in 0..whole.len() {
            assert!(Btf::parse(&whole[..length]).is_none(), "{length}");
        }
        // damage each byte in turn
        for at in 0..whole.len() {
            for wrong in [0, 1, 4, 0x13, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = wrong;
                query_all(&broken);
            }
        }
    }
}

#[test]
fn types_of_an_unknown_kind_are_rejected() {
    let bytes = btf(b"\0", &[&[0, kind(42, 0), 0]]);
    assert!(Btf::parse(&bytes[..]).is_none());
}
