use std::{fs, io::Read as _, path::Path, process::Command, sync::OnceLock, thread};

use super::*;
use crate::{
    error::{ErrorKind, Result},
    kernel::Kernel,
};

fn load_process(kernel: &Kernel) -> Object {
    ObjectLoader::new("process", ebpf_probes::PROCESS).load(kernel).unwrap()
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("it fails").kind()
}

/// The object of `tests/bpf/object_tests.bpf.c`; `None` on machines without clang.
fn test_object() -> Option<&'static [u8]> {
    static OBJECT: OnceLock<Option<Vec<u64>>> = OnceLock::new();
    let words = OBJECT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
        let object = std::env::temp_dir().join(format!("object_tests.{}.o", std::process::id()));
        let status = Command::new("clang-19")
            .args(["-target", "bpfel", "-mcpu=v2", "-O2", "-g", "-std=gnu11", "-c", "-I"])
            .arg(ebpf_probes::INCLUDE)
            .arg(root.join("tests/bpf/object_tests.bpf.c"))
            .arg("-o")
            .arg(&object)
            .status();
        let Ok(status) = status else {
            eprintln!("skipped: there is no clang-19");
            return None;
        };
        assert!(status.success());
        let bytes = fs::read(&object).unwrap();
        fs::remove_file(&object).unwrap();
        let mut words = vec![0_u64; bytes.len().div_ceil(8)]; // aligned to 8 bytes
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
        Some(words)
    });
    words.as_ref().map(|words| bytemuck::cast_slice(words))
}

#[test]
fn array_elements_keep_the_value_that_was_set() {
    let object = load_process(&Kernel::read().unwrap());
    assert_eq!(object.array_element::<[u64; 3]>("clocks", 0).unwrap(), [0; 3]);
    object.set_array_element("clocks", 0, [1_u64, 2, 3]).unwrap();
    assert_eq!(object.array_element::<[u64; 3]>("clocks", 0).unwrap(), [1, 2, 3]);
    assert_eq!(object.array_elements::<[u64; 3]>("clocks", 0, 9).unwrap(), [[1, 2, 3]]);
    assert!(object.set_array_element("clocks", 1, [0_u64; 3]).is_err());
    assert_eq!(kind(object.array_element::<[u64; 3]>("clocks", 1)), ErrorKind::InvalidObject);
    assert_eq!(kind(object.set_array_element("none", 0, [0_u64; 2])), ErrorKind::InvalidObject);
}

#[test]
fn maps_are_accessed_only_with_their_own_type_and_sizes() {
    type Key = [u64; 2];
    type Value = [u64; 9];
    let object = load_process(&Kernel::read().unwrap());
    let invalid = ErrorKind::InvalidObject;
    assert_eq!(kind(object.lookup_batch::<Key, u64>("ended")), invalid, "too small a value");
    assert_eq!(kind(object.lookup_and_delete_batch::<u64, Value>("ended")), invalid);
    assert_eq!(kind(object.lookup_batch::<u32, Value>("overflow")), invalid, "not a hash");
    assert_eq!(kind(object.lookup::<u64, u64>("ended", &1)), invalid);
    assert_eq!(kind(object.delete_batch::<u64>("ended", &[1])), invalid);
    assert_eq!(kind(object.push("ended", 1_u32)), invalid);
    assert_eq!(kind(object.per_cpu_element::<u8>("process_losses", 0)), invalid);
    assert_eq!(kind(object.set_tail_call("ended", 0, &object, "process_walk")), invalid);
    object.delete_batch::<Key>("ended", &[[1, 2]]).unwrap();
}

#[test]
fn entries_of_a_hash_are_read_written_and_deleted() {
    let Some(bytes) = test_object() else { return };
    let object = ObjectLoader::new("test", bytes).load(&Kernel::read().unwrap()).unwrap();
    let entries: Vec<(u32, u64)> = (0..600).map(|key| (key, u64::from(key) * 3)).collect();
    object.update_batch("numbers", &entries).unwrap();
    object.update("numbers", &600_u32, 1800_u64).unwrap();
    assert_eq!(object.lookup::<u32, u64>("numbers", &600).unwrap(), Some(1800));
    assert!(object.delete("numbers", &600_u32).unwrap());
    assert!(!object.delete("numbers", &600_u32).unwrap());
    assert_eq!(object.lookup::<u32, u64>("numbers", &600).unwrap(), None);
    let mut read = object.lookup_batch::<u32, u64>("numbers").unwrap();
    read.sort();
    assert_eq!(read, entries);
    object.delete_batch::<u32>("numbers", &[1, 1000, 2]).unwrap();
    assert_eq!(object.lookup_and_delete_batch::<u32, u64>("numbers").unwrap().len(), 598);
    assert_eq!(object.lookup_batch::<u32, u64>("numbers").unwrap(), []);

    let many: Vec<(u32, u64)> = (0..2000).map(|key| (key, 0)).collect();
    let error = object.update_batch("numbers", &many).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceLimit);
    assert!(error.to_string().contains("numbers") && error.to_string().contains("full"), "{error}");
    assert!(object.push("free_slots", 1_u32).and(object.push("free_slots", 2_u32)).is_ok());
    assert_eq!(kind(object.push("free_slots", 3_u32)), ErrorKind::ResourceLimit);
}

#[test]
fn losses_are_the_sum_over_all_cpus() {
    let Some(bytes) = test_object() else { return };
    let kernel = Kernel::read().unwrap();
    let mut object = ObjectLoader::new("test", bytes).load(&kernel).unwrap();
    object.load_callable("lose").unwrap();
    assert_eq!(object.losses("test_losses", 2).unwrap(), [0, 0]);
    object.test_run("lose").unwrap();
    object.test_run("lose").unwrap();
    assert_eq!(object.losses("test_losses", 2).unwrap(), [0, 2]);
    assert_eq!(kind(object.losses("test_losses", 3)), ErrorKind::InvalidObject);
    assert_eq!(object.recursion_misses().unwrap(), 0);
    assert_eq!(object.program_count(), 1);
    assert_eq!(object.program_costs().unwrap()[0].0, "lose");
}

#[test]
fn an_iterator_reads_the_elements_of_a_map() {
    let Some(bytes) = test_object() else { return };
    let kernel = Kernel::read().unwrap();
    let mut object = ObjectLoader::new("test", bytes).load(&kernel).unwrap();
    object.load_iterator("dump", "bpf_map_elem", &kernel).unwrap();
    object.update_batch("numbers", &[(7_u32, 70_u64), (8, 80)]).unwrap();
    let mut output = Vec::new();
    object.iterate_map("dump", "numbers").unwrap().read_to_end(&mut output).unwrap();
    let mut elements: Vec<(u32, u64)> = output
        .chunks_exact(12)
        .map(|bytes| {
            (bytemuck::pod_read_unaligned(&bytes[..4]), bytemuck::pod_read_unaligned(&bytes[4..]))
        })
        .collect();
    elements.sort();
    assert_eq!(elements, [(7, 70), (8, 80)]);
    assert_eq!(kind(object.iterate_map("dump", "none")), ErrorKind::InvalidObject);
    // the kernel needs to know the map
    assert_eq!(kind(object.iterate("dump")), ErrorKind::System);
}

#[test]
fn a_handler_is_exchanged_while_its_caller_is_attached() {
    let Some(bytes) = test_object() else { return };
    let kernel = Kernel::read().unwrap();
    let mut caller =
        ObjectLoader::new("caller", bytes).override_global("step", 1_u8).load(&kernel).unwrap();
    // The handlers are those of another object, which counts in the map of the first.
    let load_handlers = || {
        let shared = caller.map_handle("counts").unwrap();
        ObjectLoader::new("handlers", bytes).reuse_map("counts", &shared).load(&kernel).unwrap()
    };
    let mut handlers = load_handlers();
    let error = caller.set_tail_call("handlers", 0, &handlers, "first").unwrap_err();
    assert!(error.to_string().contains("not loaded"), "{error}");
    for program in ["first", "second"] {
        handlers.load_for_tracepoint(program, "sched_process_fork", &kernel).unwrap();
    }
    caller.attach("dispatch", "sched_process_fork", &kernel).unwrap();
    // Which counters a fork increments: called, not called, first, second.
    let fork = |caller: &Object| {
        let before = caller.array_elements::<u64>("counts", 0, 4).unwrap();
        thread::spawn(|| {}).join().unwrap();
        let after = caller.array_elements::<u64>("counts", 0, 4).unwrap();
        before.iter().zip(after).map(|(before, after)| after > *before).collect::<Vec<_>>()
    };
    assert_eq!(fork(&caller), [true, true, false, false]);
    caller.set_tail_call("handlers", 0, &handlers, "first").unwrap();
    assert_eq!(fork(&caller), [true, false, true, false]);
    caller.set_tail_call("handlers", 0, &handlers, "second").unwrap();
    assert_eq!(fork(&caller), [true, false, false, true]);
    drop(handlers); // the array keeps the program
    assert_eq!(fork(&caller), [true, false, false, true]);
    caller.clear_tail_call("handlers", 0).unwrap();
    caller.clear_tail_call("handlers", 0).unwrap();
    assert_eq!(fork(&caller), [true, true, false, false]);
}

#[test]
fn reused_maps_have_the_declared_type_and_sizes() {
    let Some(bytes) = test_object() else { return };
    let kernel = Kernel::read().unwrap();
    let first = ObjectLoader::new("first", bytes).load(&kernel).unwrap();
    let names: Vec<String> = first.map_handles().iter().map(|map| map.name().to_owned()).collect();
    assert_eq!(names, ["counts", "free_slots", "handlers", "numbers", "test_losses"]);

    let loader = ObjectLoader::new("second", bytes);
    let second = loader.clone().reuse_maps(&first.map_handles()).load(&kernel).unwrap();
    first.update("numbers", &1_u32, 2_u64).unwrap();
    assert_eq!(second.lookup::<u32, u64>("numbers", &1).unwrap(), Some(2));
    assert!(second.map_bytes().unwrap() < first.map_bytes().unwrap());
    drop(first);
    assert_eq!(second.lookup::<u32, u64>("numbers", &1).unwrap(), Some(2));

    let numbers = second.map_handle("numbers").unwrap();
    let error = loader.clone().reuse_map("counts", &numbers).load(&kernel).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidObject);
    assert!(error.to_string().contains("cannot reuse map numbers for counts"), "{error}");
    assert_eq!(kind(loader.reuse_map("none", &numbers).load(&kernel)), ErrorKind::InvalidObject);
    // an object that declares none of them
    ObjectLoader::new("process", ebpf_probes::PROCESS)
        .reuse_maps(&[numbers])
        .load(&kernel)
        .unwrap();
}

#[test]
fn options_for_names_that_the_object_lacks_are_errors() {
    let kernel = Kernel::read().unwrap();
    let loader = ObjectLoader::new("process", ebpf_probes::PROCESS);
    let load = |loader: ObjectLoader| loader.load(&kernel);
    let error = load(loader.clone().map_max_entries("no_such_map", 1)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidObject);
    assert!(error.to_string().contains("no map no_such_map"), "{error}");
    assert!(load(loader.clone().set_autocreate("no_such_map", false)).is_err());
    let error = load(loader.clone().override_global("no_global", 1_u8)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidObject);
    assert!(error.to_string().contains("no_global"), "{error}");
    load(loader.override_global_if_present("no_global", 1_u8)).unwrap();
}

#[test]
fn a_map_that_is_not_created_does_not_exist() {
    let Some(bytes) = test_object() else { return };
    let kernel = Kernel::read().unwrap();
    let loader = ObjectLoader::new("test", bytes).set_autocreate("numbers", false);
    let object = loader.clone().load(&kernel).unwrap();
    assert_eq!(kind(object.lookup_batch::<u32, u64>("numbers")), ErrorKind::InvalidObject);
    let whole = ObjectLoader::new("test", bytes).load(&kernel).unwrap();
    let reusing = loader.reuse_maps(&whole.map_handles()).load(&kernel).unwrap();
    reusing.lookup_batch::<u32, u64>("numbers").unwrap();
}

#[test]
fn a_rejected_program_comes_with_the_log_of_the_verifier() {
    let kernel = Kernel::read().unwrap();
    // its first argument is not a task
    let error =
        load_process(&kernel).attach("process_release", "sched_switch", &kernel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VerifierRejected);
    let log = error.verifier_log().unwrap();
    assert!(log.lines().count() > 3, "{log}");
    let text = error.to_string();
    assert!(text.contains("object process") && text.contains("process_release"), "{text}");
    assert!(text.lines().count() < 10, "{text}");
}

#[test]
fn missing_programs_and_hooks_are_named() {
    let kernel = Kernel::read().unwrap();
    let mut object = load_process(&kernel);
    let error = object.attach("none", "sched_switch", &kernel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidObject);
    assert!(error.to_string().contains("no program none"), "{error}");
    let error = object.attach_tracepoint("process_release", "sched", "sched_switch").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidObject);
    let error = object.attach("process_release", "no_such_hook", &kernel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HookMissing);
    assert!(error.to_string().contains("no_such_hook"), "{error}");
    assert!(error.to_string().contains("process_release"), "{error}");
    let error = object.attach_raw_tracepoint("process_read_clocks", "no_such_hook").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HookMissing, "{error}");
    assert_eq!(kind(object.iterate("process_walk")), ErrorKind::System, "it is not loaded");
    assert_eq!(kind(object.iterate("none")), ErrorKind::InvalidObject);
}

#[test]
fn an_iterator_continues_with_that_of_another_object() {
    let kernel = Kernel::read().unwrap();
    let [mut first, mut second] = [1_u16, 2].map(|stream| {
        let loader = ObjectLoader::new("process", ebpf_probes::PROCESS);
        loader.override_global_if_present("own_section", stream).load(&kernel).unwrap()
    });
    for object in [&mut first, &mut second] {
        object.load_iterator("process_walk", "task", &kernel).unwrap();
    }
    let length = |object: &Object| {
        let mut output = Vec::new();
        object.iterate("process_walk").unwrap().read_to_end(&mut output).unwrap();
        output.len()
    };
    let alone = length(&first);
    first.set_tail_call("next_program", 0, &second, "process_walk").unwrap();
    assert!(length(&first) > alone + alone / 2);
    first.clear_tail_call("next_program", 0).unwrap();
    assert!(length(&first) < alone + alone / 2);
}
