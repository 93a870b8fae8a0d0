//! Arithmetic on structs of counters.

use bytemuck::Pod;

/// Counters of a process since its start: any `repr(C)` struct of `u64` fields.
///
/// It is implemented for every such type; new counters are zero. Counters only grow; the library adds them up,
/// subtracts baselines and keeps them monotonic field by field.
pub trait Counters: Pod + Send {}

impl<T: Pod + Send> Counters for T {}

fn zip<C: Counters>(one: &C, other: &C, combine: impl Fn(u64, u64) -> u64) -> C {
    const {
        let is_u64s = size_of::<C>().is_multiple_of(8) && align_of::<C>() == 8;
        assert!(is_u64s || size_of::<C>() == 0, "counters are u64 fields");
    }
    let mut result = *one;
    if size_of::<C>() == 0 {
        return result; // `()` is not aligned for u64
    }
    let words = bytemuck::cast_slice_mut::<u8, u64>(bytemuck::bytes_of_mut(&mut result));
    let others = bytemuck::cast_slice::<u8, u64>(bytemuck::bytes_of(other));
    for (word, other) in words.iter_mut().zip(others) {
        *word = combine(*word, *other);
    }
    result
}

/// Adds two sets of counters field by field.
pub fn add<C: Counters>(one: &C, other: &C) -> C {
    zip(one, other, u64::saturating_add)
}

/// Subtracts field by field, never below zero.
pub fn subtract<C: Counters>(one: &C, other: &C) -> C {
    zip(one, other, u64::saturating_sub)
}

/// The larger of each field.
pub fn max<C: Counters>(one: &C, other: &C) -> C {
    zip(one, other, u64::max)
}

/// Adds modulo 2^64.
pub(crate) fn wrapping_add<C: Counters>(one: &C, other: &C) -> C {
    zip(one, other, u64::wrapping_add)
}

/// Subtracts a signed sum. Nothing is below zero.
pub(crate) fn subtract_signed<C: Counters>(one: &C, other: &C) -> C {
    zip(one, other, |one, other| positive(one.wrapping_sub(other)))
}

/// A signed sum, where nothing is below zero.
pub(crate) fn unsigned<C: Counters>(sum: &C) -> C {
    zip(sum, sum, |sum, _| positive(sum))
}

fn positive(signed: u64) -> u64 {
    if signed > i64::MAX as u64 { 0 } else { signed }
}

/// The smaller of each field.
pub(crate) fn min<C: Counters>(one: &C, other: &C) -> C {
    zip(one, other, u64::min)
}

/// Whether every counter is zero.
pub(crate) fn is_zero<C: Counters>(counters: &C) -> bool {
    bytemuck::bytes_of(counters).iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_own_sum() {
        assert_eq!(add(&[1_u64, 20], &[3, 40]), [4, 60]);
        assert_eq!(subtract(&[5_u64, 1], &[3, 40]), [2, 0]);
        assert_eq!(max(&[5_u64, 1], &[3, 40]), [5, 40]);
        assert_eq!(add(&[u64::MAX], &[1]), [u64::MAX]);
        assert_eq!((add(&(), &()), subtract(&(), &()), max(&(), &())), ((), (), ()));
        let entered = wrapping_add(&[0_u64, 3], &[5_u64.wrapping_neg(), 1]);
        assert_eq!(unsigned(&entered), [0, 4]);
        assert_eq!(
            (subtract_signed(&[9, 1], &entered), min(&[5_u64, 1], &[3, 4])),
            ([14, 0], [3, 1])
        );
        assert!(is_zero(&[0_u64; 3]) && !is_zero(&[0_u64, 1]) && is_zero(&()));
    }
}
