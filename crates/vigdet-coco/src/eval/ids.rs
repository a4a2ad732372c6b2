//! Ids of any kind to places in a list.

use std::collections::HashMap;

/// Sorted, distinct ids, each with its place.
pub(crate) struct Ids {
    sorted: Vec<i64>,
    places: Places,
}

enum Places {
    /// Place + 1 for each id from `first` on, 0 for none: ids that lie close enough together.
    Table {
        first: i64,
        places: Vec<u32>,
    },
    Map(HashMap<i64, u32>),
}

/// A table of up to this many entries an id is still faster, and not larger, than a hash map.
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
        let places = if span <= TABLE_PER_ID * sorted.len() as u64 {
            let first = sorted.first().copied().unwrap_or(0);
            let mut places = vec![0; span as usize];
            for (&id, place) in numbered() {
                places[id.abs_diff(first) as usize] = place + 1;
            }
            Places::Table { first, places }
        } else {
            Places::Map(numbered().map(|(&id, place)| (id, place)).collect())
        };
        Ids { sorted, places }
    }

    #[inline]
    pub(crate) fn place(&self, id: i64) -> Option<usize> {
        match &self.places {
            Places::Table { first, places } => {
                let offset = usize::try_from(id.checked_sub(*first)?).ok()?;
                places.get(offset).and_then(|place| place.checked_sub(1)).map(|place| place as usize)
            }
            Places::Map(map) => map.get(&id).map(|&place| place as usize),
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
            for (place, &id) in sorted.iter().enumerate() {
                assert_eq!(table.place(id), Some(place));
            }
            for id in [4, -5, 1_000_000, i64::MAX - 1] {
                assert_eq!(table.place(id), None);
            }
        }
    }
}
