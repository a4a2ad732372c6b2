//! Random choice of anchors or proposals that enter the losses (Ren et al., 2015, section 3.1.3).

use rand::seq::index;
use rand::Rng;

use super::matcher::Match;

/// Takes at most `count` of an image, at most a fraction of them positive, background for the rest.
///
/// Where there are no more candidates than that, all are taken, and nothing is random.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// So many of each image.
    pub count: usize,
    /// Fraction of `count` that may be positive.
    pub positive: f64,
}

impl Sampler {
    /// Indices of the positives and of the background that were chosen, each rising.
    pub fn sample(&self, matches: &[Match], rng: &mut impl Rng) -> (Vec<usize>, Vec<usize>) {
        let of = |kept: fn(&Match) -> bool| -> Vec<usize> {
            matches.iter().enumerate().filter(|(_, m)| kept(m)).map(|(i, _)| i).collect()
        };
        let positives = of(|m| matches!(m, Match::Object(_)));
        let background = of(|m| *m == Match::Background);
        let positives = choose(positives, (self.count as f64 * self.positive) as usize, rng);
        let background = choose(background, self.count - positives.len(), rng);
        (positives, background)
    }
}

fn choose(all: Vec<usize>, most: usize, rng: &mut impl Rng) -> Vec<usize> {
    if all.len() <= most {
        return all;
    }
    let mut chosen: Vec<usize> = index::sample(rng, all.len(), most).iter().map(|i| all[i]).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    #[test]
    fn fractions_are_kept_and_background_fills_the_rest() {
        let matches: Vec<Match> =
            (0..300).map(|i| [Match::Object(i), Match::Background, Match::Ignored][i as usize % 3]).collect();
        let (positives, background) = Sampler { count: 64, positive: 0.25 }.sample(&matches, &mut rng(0));
        assert_eq!((positives.len(), background.len()), (16, 48));
        assert!(positives.iter().all(|i| i % 3 == 0) && background.iter().all(|i| i % 3 == 1));
        assert!(positives.windows(2).all(|w| w[0] < w[1]));
        let few = Sampler { count: 64, positive: 0.25 }.sample(&matches[..15], &mut rng(0));
        assert_eq!((few.0.len(), few.1.len()), (5, 5));
        assert_eq!(Sampler { count: 64, positive: 0.5 }.sample(&[], &mut rng(0)), (vec![], vec![]));
    }

    #[test]
    fn the_choice_depends_on_the_generator_alone() {
        let matches = vec![Match::Background; 500];
        let run = |seed| Sampler { count: 32, positive: 0.5 }.sample(&matches, &mut rng(seed)).1;
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
