//! How many steps fit into a time (`train.max_minutes`).

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

    /// Takes note of a step's seconds, and of those of the whole run so far. Once enough steps have been seen: how
    /// many more fit.
    pub fn step(&mut self, seconds: f64, so_far: f64) -> Option<u64> {
        self.steps.push(seconds);
        if self.steps.len() < WATCHED {
            return None;
        }
        let usual = &self.steps[WARM_UP..];
        let each = usual.iter().sum::<f64>() / usual.len() as f64;
        Some(((self.seconds - so_far) / each.max(1e-9)).max(0.0) as u64)
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
        let mut limit = TimeLimit::new(2.0);
        let mut so_far = 0.0;
        for step in 1..=50 {
            let seconds = if step <= 10 { 5.0 } else { 0.5 };
            so_far += seconds;
            // 120 seconds less 10 of 5 and 40 of 0.5.
            assert_eq!(limit.step(seconds, so_far), (step == 50).then_some(100), "step {step}");
        }
        let mut short = TimeLimit::new(0.1);
        let fits: Vec<u64> = (1..=50).filter_map(|i| short.step(1.0, f64::from(i))).collect();
        assert_eq!(fits, [0]);
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
