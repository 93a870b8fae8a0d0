use std::io::{self, Write, stdout};

use ebpfmetrics::Snapshot;
use serde::Serialize as _;
use serde_json::{Value, ser::Formatter};

/// Prints `window`, `processes`, `cpus`, `devices`, `memory` and `losses` on one line.
pub(crate) fn print(snapshot: &Snapshot) -> anyhow::Result<()> {
    let mut json = serde_json::to_value(snapshot)?;
    let mut system = json["system"].take();
    json.as_object_mut().map(|json| json.remove("system"));
    for (probe, figures) in [("cpu", "cpus"), ("disk", "devices")] {
        let value = system.get_mut(probe).and_then(|probe| probe.get_mut(figures));
        json[figures] = value.map_or(Value::Array(Vec::new()), Value::take);
    }
    json["memory"] = system.get_mut("mem").map_or(Value::Null, Value::take);
    let mut out = stdout().lock();
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Ascii))?;
    Ok(writeln!(out)?)
}

/// Escapes all but printable ASCII: names of processes can contain anything.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        text.encode_utf16().try_for_each(|unit| match unit {
            0x20..=0x7e => out.write_all(&[unit as u8]),
            _ => write!(out, "\\u{unit:04x}"),
        })
    }
}
