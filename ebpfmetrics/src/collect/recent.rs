//! What is kept of processes that have left the table: a probe may charge them later, for example
//! when their pages reach a disk.

use std::collections::{HashMap, VecDeque};

use crate::process::ProcessId;

/// A value for each of the last 8,192 processes that left the table.
#[derive(Debug)]
pub(super) struct Recent<T> {
    values: HashMap<ProcessId, T>,
    order: VecDeque<ProcessId>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { values: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Recent<T> {
    const MAX: usize = 8192;

    pub(super) fn keep(&mut self, id: ProcessId, value: T) {
        if self.values.insert(id, value).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > Self::MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
    }

    pub(super) fn get(&self, id: ProcessId) -> Option<&T> {
        self.values.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let id = |pid| ProcessId { pid, start_time_ns: 1 };
        let mut recent = Recent::default();
        for pid in 0..=Recent::<u32>::MAX as u32 {
            recent.keep(id(pid), pid);
        }
        recent.keep(id(2), 77);
        let values = [0, 1, 2].map(|pid| recent.get(id(pid)).copied());
        assert_eq!(values, [None, Some(1), Some(77)]);
    }
}
