use std::{borrow::Cow, convert::Infallible, fmt, fmt::Write as _, str::FromStr};

/// Name of a process or thread as the kernel stores it: at most 15 bytes in any encoding.
///
/// The kernel keeps it in `task_struct::comm`. exec and `PR_SET_NAME` change it.
///
/// A process chooses its name freely. [`Display`](fmt::Display) therefore escapes
/// characters that could disturb a terminal or a log: control characters, line ends and
/// marks that change the direction of text. [`as_str`](Comm::as_str) and
/// [`as_bytes`](Comm::as_bytes) return the name as it is.
///
/// ```
/// use ebpfmetrics::process::Comm;
///
/// let comm = Comm::from_bytes(*b"kworker/0:1\0\0\0\0\0");
/// assert_eq!(comm, "kworker/0:1");
/// assert_eq!(comm.to_string(), "kworker/0:1");
/// assert_eq!(Comm::from("two\nlines").to_string(), r"two\nlines");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comm([u8; 16]);

impl Comm {
    /// Longest name in bytes.
    pub const MAX_LEN: usize = 15;

    /// Takes the kernel's field. The name ends at the first NUL, and after 15 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self::truncated(&bytes)
    }

    fn truncated(bytes: &[u8]) -> Self {
        let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = &name[..name.len().min(Self::MAX_LEN)];
        // all bytes after the name are zero, so that equal names are equal arrays
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name);
        Self(comm)
    }

    /// Name without the final NUL.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// Name as text. Bytes that are not UTF-8 become U+FFFD.
    pub fn as_str(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.as_bytes())
    }
}

/// Truncates the name to 15 bytes, at the end of a character.
impl From<&str> for Comm {
    fn from(name: &str) -> Self {
        let end = (0..=name.len().min(Self::MAX_LEN)).rev().find(|at| name.is_char_boundary(*at));
        Self::truncated(&name.as_bytes()[..end.unwrap_or(0)])
    }
}

/// Truncates the name to 15 bytes, at the end of a character.
impl FromStr for Comm {
    type Err = Infallible;

    fn from_str(name: &str) -> Result<Self, Infallible> {
        Ok(name.into())
    }
}

macro_rules! compare_with {
    ($($text:ty),*) => {$(
        impl PartialEq<$text> for Comm {
            fn eq(&self, other: &$text) -> bool {
                self.as_bytes() == other.as_bytes()
            }
        }

        impl PartialEq<Comm> for $text {
            fn eq(&self, other: &Comm) -> bool {
                other == self
            }
        }
    )*};
}

compare_with!(str, &str, String);

/// Whether a terminal or a log could be disturbed by the character.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.as_str();
        if !name.contains(is_unsafe) {
            return f.pad(&name);
        }
        let mut escaped = String::new();
        for c in name.chars() {
            if is_unsafe(c) {
                write!(escaped, "{}", c.escape_default())?;
            } else {
                escaped.push(c);
            }
        }
        f.pad(&escaped)
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.as_str(), f)
    }
}

/// As a string. A byte that is not UTF-8 becomes `\xNN`, and a backslash becomes `\\`, so
/// that every name can be read back.
#[cfg(feature = "serde")]
impl serde::Serialize for Comm {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        for chunk in self.as_bytes().utf8_chunks() {
            text.push_str(&chunk.valid().replace('\\', r"\\"));
            for byte in chunk.invalid() {
                let _ = write!(text, r"\x{byte:02x}");
            }
        }
        serializer.serialize_str(&text)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Comm {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<str> as serde::Deserialize>::deserialize(deserializer)?;
        if !text.contains('\\') {
            return Ok(text.as_ref().into());
        }
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            let hex = after.strip_prefix(b"x").and_then(|hex| hex.get(..2));
            let byte = hex
                .and_then(|hex| std::str::from_utf8(hex).ok())
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            (rest, _) = match (first, byte) {
                (b'\\', Some(byte)) => (&after[3..], bytes.push(byte)),
                (b'\\', None) if after.first() == Some(&b'\\') => (&after[1..], bytes.push(b'\\')),
                // also a single backslash, as a person would write it
                _ => (after, bytes.push(first)),
            };
        }
        Ok(Self::truncated(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_end_at_a_character() {
        assert_eq!(Comm::from("0123456789abcdefgh"), "0123456789abcde");
        // the 15th byte is the first of two
        assert_eq!(Comm::from("0123456789abcdé"), "0123456789abcd");
        assert_eq!("init".parse(), Ok(Comm::from("init")));
        assert_eq!(Comm::from_bytes([b'x'; 16]).as_bytes().len(), Comm::MAX_LEN);
    }

    #[test]
    fn bytes_after_the_name_do_not_matter() {
        let comm = Comm::from_bytes(*b"sh\0garbage\0\0\0\0\0\0");
        assert_eq!(comm, Comm::from("sh"));
        assert_eq!(comm, "sh".to_owned());
        assert_eq!(comm, *"sh");
        assert!("sh" == comm && comm != "sh\0");
        assert_eq!(Comm::default(), "");
    }

    #[test]
    fn display_escapes_what_disturbs_a_terminal() {
        for (name, shown) in [
            ("kworker/0:1", "kworker/0:1"),
            ("a\nb\t\r", r"a\nb\t\r"),
            ("\u{1b}[2J", r"\u{1b}[2J"),
            ("\u{7f}\u{9b}x", r"\u{7f}\u{9b}x"),
            ("a\u{202e}b\u{2066}", r"a\u{202e}b\u{2066}"),
            ("größe", "größe"),
        ] {
            assert_eq!(Comm::from(name).to_string(), shown);
            assert_eq!(Comm::from(name).as_str(), name);
        }
        assert_eq!(format!("[{:>6}]", Comm::from("a\n")), r"[   a\n]");
        assert_eq!(format!("[{:<6}]", Comm::from("sh")), "[sh    ]");
        assert_eq!(Comm::truncated(b"a\xffb").to_string(), "a\u{fffd}b");
        assert_eq!(format!("{:?}", Comm::from("a\u{202e}\n")), r#""a\u{202e}\n""#);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn names_are_strings_in_json() {
        for (name, json) in [
            (&b"kworker/0:1"[..], r#""kworker/0:1""#),
            (b"a\nb", r#""a\nb""#),
            (b"a\xff\\x41", r#""a\\xff\\\\x41""#),
            ("größe".as_bytes(), r#""größe""#),
        ] {
            assert_eq!(serde_json::to_string(&Comm::truncated(name)).unwrap(), json);
        }
        let read = |json| serde_json::from_str::<Comm>(json).unwrap();
        assert_eq!(read(r#""a\\b""#), r"a\b");
        assert_eq!(read(r#""a\\xg""#), r"a\xg");
        assert_eq!(read(r#""0123456789abcdefgh""#), "0123456789abcde");
    }

    #[cfg(feature = "serde")]
    proptest::proptest! {
        #[test]
        fn every_name_round_trips_through_json(
            bytes in proptest::collection::vec(proptest::prop_oneof![
                proptest::num::u8::ANY,
                proptest::sample::select(b"\\x4f".to_vec()),
            ], 0..=16),
        ) {
            let comm = Comm::truncated(&bytes);
            let json = serde_json::to_string(&comm).unwrap();
            proptest::prop_assert_eq!(serde_json::from_str::<Comm>(&json).unwrap(), comm);
        }
    }
}
