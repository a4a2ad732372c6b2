//! A bar for long work.

/// Counts steps; shows a bar on a terminal where the feature `cli` is on.
pub(crate) struct Progress {
    #[cfg(feature = "cli")]
    bar: Option<indicatif::ProgressBar>,
}

impl Progress {
    /// For so many images. Without `shown` nothing is ever printed.
    #[cfg_attr(not(feature = "cli"), allow(unused_variables))]
    pub fn of_images(images: usize, shown: bool) -> Progress {
        Progress {
            #[cfg(feature = "cli")]
            bar: shown.then(|| {
                let bar = indicatif::ProgressBar::new(images as u64);
                let style = indicatif::ProgressStyle::with_template("[{wide_bar}] {pos}/{len} images  {eta} left");
                bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()).progress_chars("=> "));
                bar
            }),
        }
    }

    /// One more is done. Threads may call it at the same time.
    pub fn step(&self) {
        #[cfg(feature = "cli")]
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// Everything is done.
    pub fn finish(self) {
        #[cfg(feature = "cli")]
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
