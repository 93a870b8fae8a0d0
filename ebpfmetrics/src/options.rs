//! Ranges of builder options.

use std::ops::RangeInclusive;

use crate::error::{Error, ErrorKind, Result};

/// Checks that an option of a builder is in its range.
///
/// # Errors
/// [`ErrorKind::InvalidOption`], with the range and the value.
pub fn check_option(
    probe: &str,
    option: &str,
    value: u32,
    range: RangeInclusive<u32>,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = (range.start(), range.end());
    let text = format!("{probe}: option {option} must be between {least} and {most}, got {value}");
    Err(Error::new(ErrorKind::InvalidOption, text))
}

/// Size of a ring buffer unless another is set.
pub(crate) const RING_BYTES: u32 = 1 << 20;

/// The size of a ring buffer: a power of two of at least a page.
///
/// # Errors
/// Those of [`check_option`].
pub(crate) fn ring_bytes(probe: &str, option: &str, bytes: u32) -> Result<u32> {
    check_option(probe, option, bytes, 1..=1 << 30)?;
    Ok(bytes.next_power_of_two().max(rustix::param::page_size() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_the_range() {
        assert!(check_option("cpu", "max_exited", 1 << 24, 0..=1 << 24).is_ok());
        let error = check_option("mem", "max_tracked", 0, 1..=5).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        let text = "mem: option max_tracked must be between 1 and 5, got 0";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_ring_has_whole_pages() {
        let page = rustix::param::page_size() as u32;
        let ring = |bytes| ring_bytes("events", "buffer_bytes", bytes);
        assert_eq!((ring(1).unwrap(), ring(3 << 20).unwrap()), (page, 4 << 20));
        assert_eq!(ring(0).unwrap_err().kind(), ErrorKind::InvalidOption);
        assert_eq!(ring(u32::MAX).unwrap_err().kind(), ErrorKind::InvalidOption);
    }
}
