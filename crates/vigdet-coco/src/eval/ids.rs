//! Maps ids of any kind to indices in a list.

use std::collections::HashMap;

/// Sorted, distinct ids, each with its index.
pub(crate) struct Ids {
    sorted: Vec<i64>,
    indices: Indices,
}

enum Indices {
    /// Index + 1 for each id from `first` on, 0 for none: ids that lie close enough together.
    Table {
        first: i64,
        indices: Vec<u32>,
    },
    Map(HashMap<i64, u32>),
}

/// A table with up to this many entries for each id is still faster than a hash map, and no larger.
const TABLE_PER_ID: u64 = 256;

impl Ids {
    pub(crate) fn new(ids: impl Iterator<Item = i64>) -> Ids {
        let mut sorted: Vec<i64> = ids.collect();
        sorted.sort_unstable();
        sorted.dedup();
        let numbered = || sorted.iter().zip(0u32..);
        let span = match (sorted.first(), sorted.last()) {
            (Some(&first), Some(&last)) => last.abs_diff(first).saturating_add(1),
            _ => 0,
        };
        let indices = if span <= TABLE_PER_ID * sorted.len() as u64 {
            let first = sorted.first().copied().unwrap_or(0);
            let mut indices = vec![0; span as usize];
            for (&id, index) in numbered() {
                indices[id.abs_diff(first) as usize] = index + 1;
            }
            Indices::Table { first, indices }
        } else {
            Indices::Map(numbered().map(|(&id, index)| (id, index)).collect())
        };
        Ids { sorted, indices }
    }

    #[inline]
    pub(crate) fn index_of(&self, id: i64) -> Option<usize> {
        match &self.indices {
            Indices::Table { first, indices } => {
                let offset = usize::try_from(id.checked_sub(*first)?).ok()?;
                indices.get(offset).and_then(|index| index.checked_sub(1)).map(|index| index as usize)
            }
            Indices::Map(map) => map.get(&id).map(|&index| index as usize),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    pub(crate) fn sorted(&self) -> &[i64] {
        &self.sorted
    }
}

#[cfg(test)]
mod tests {
    use super::Ids;

    #[test]
    fn ids_near_and_far_apart_keep_their_order() {
        for ids in [vec![5, 3, 9, 3], vec![i64::MAX, i64::MIN, 0, 0], vec![-4], vec![]] {
            let table = Ids::new(ids.iter().copied());
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(table.len(), sorted.len());
            for (index, &id) in sorted.iter().enumerate() {
                assert_eq!(table.index_of(id), Some(index));
            }
            for id in [4, -5, 1_000_000, i64::MAX - 1] {
                assert_eq!(table.index_of(id), None);
            }
        }
    }
}
