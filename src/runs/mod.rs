//! The folder of a run: the names of its files, who may write to it, and the lines of its log. Training writes it;
//! pictures and resumed runs read it.

mod folder;
mod lines;
mod space;

pub use folder::{unix_time, write_text, RunDir};
pub use lines::{Evaluation, Line, Skipped, Step};
pub use space::check_space;
