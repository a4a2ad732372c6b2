//! How many steps fit into a time (`train.max_minutes`).

use anyhow::Result;

use crate::ranks::Ranks;

/// Steps that are watched before the length of the run is decided.
const WATCHED: usize = 50;
/// The first of them, which warm caches, allocators and the loader up, say nothing of the others.
const WARM_UP: usize = 10;

/// Watches the first steps of a run.
#[derive(Debug)]
pub struct TimeLimit {
    seconds: f64,
    steps: Vec<f64>,
}

impl TimeLimit {
    /// A run of so many minutes of training.
    pub fn new(minutes: f64) -> Self {
        Self { seconds: 60.0 * minutes, steps: Vec::with_capacity(WATCHED) }
    }

    /// Seconds that are left after those of the whole run so far.
    pub fn left(&self, so_far: f64) -> f64 {
        (self.seconds - so_far).max(0.0)
    }

    /// Takes note of a step's seconds, and of those of the whole run so far. Once enough steps have been seen: how
    /// many more fit, by the clock of the first of all ranks.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn step(&mut self, ranks: &Ranks, seconds: f64, so_far: f64) -> Result<Option<u64>> {
        self.steps.push(seconds);
        if self.steps.len() < WATCHED {
            return Ok(None);
        }
        let usual = &self.steps[WARM_UP..];
        let each = usual.iter().sum::<f64>() / usual.len() as f64;
        let more = (self.left(so_far) / each.max(1e-9)) as u64;
        ranks.of_first(|| Ok(Some(more)))
    }
}

/// Whether strong augmentation is on in an epoch that begins after `begin` of `total` steps: if it begins before the
/// fraction `until` of the run, or among the steps in which a run that is limited in time does not know its total yet.
/// So a run of as many steps without the limit does the same.
pub fn is_strong(begin: u64, total: u64, until: f64) -> bool {
    until >= 1.0 || begin < WATCHED as u64 || (begin as f64) < until * total as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_steps_fit_as_the_time_left_has_after_a_slow_start() {
        let alone = Ranks::default();
        let mut limit = TimeLimit::new(2.0);
        let mut so_far = 0.0;
        for step in 1..=50 {
            let seconds = if step <= 10 { 5.0 } else { 0.5 };
            so_far += seconds;
            // 120 seconds less 10 of 5 and 40 of 0.5.
            assert_eq!(limit.step(&alone, seconds, so_far).unwrap(), (step == 50).then_some(100), "step {step}");
        }
        let mut short = TimeLimit::new(0.1);
        let fits: Vec<u64> = (1..=50).filter_map(|i| short.step(&alone, 1.0, f64::from(i)).unwrap()).collect();
        assert_eq!(fits, [0]);
    }

    #[cfg(vigdet_ranks)]
    #[test]
    fn all_ranks_have_as_many_steps_by_the_clock_of_the_first() {
        let fits = crate::ranks::in_threads::each(2, |ranks| {
            let mut limit = TimeLimit::new(2.0);
            let seconds = 0.5 + ranks.rank() as f64;
            (1..=50).filter_map(|i| limit.step(ranks, seconds, seconds * f64::from(i)).unwrap()).collect::<Vec<_>>()
        });
        // 120 seconds less 50 of 0.5.
        assert_eq!(fits, [[190], [190]]);
    }

    #[test]
    fn strong_augmentation_ends_with_its_fraction_but_not_before_the_length_is_known() {
        let epochs = |total, until| (0..10).map(|epoch| is_strong(20 * epoch, total, until)).collect::<Vec<_>>();
        let first = |count: usize| (0..10).map(|i| i < count).collect::<Vec<_>>();
        // 160 of 200 steps: the epochs that begin at 0, 20, …, 140.
        assert_eq!(epochs(200, 0.8), first(8));
        assert_eq!(epochs(200, 1.0), first(10));
        // 0, 20 and 40 begin before step 50, whatever the total.
        assert_eq!(epochs(60, 0.1), first(3));
        assert_eq!(epochs(200, 0.0), first(3));
    }
}
