//! What can go wrong, each as one line for a person. The line has the whole story: no `source()` stands behind it that
//! could be printed a second time.

use std::path::PathBuf;

/// A problem with a file or with what is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The program reads the file that it is to write.
    #[error("{} is read by this command: choose another name for what is written", path.display())]
    IsRead {
        /// The file.
        path: PathBuf,
    },
    /// Where a file is to be written there is something that vigdet did not write, or that was edited since.
    #[error("{} is there and vigdet did not write it: choose another folder or name", path.display())]
    NotOurs {
        /// What is there.
        path: PathBuf,
    },
    /// The file is not JSON, or not the JSON that is expected here.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where in the file, and what is wrong there.
        message: String,
    },
    /// The data contradict themselves, wherever they came from.
    #[error("{0}")]
    Data(String),
}

impl Error {
    /// Names the file that the data came from.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Error {
        match self {
            Error::Data(message) => Error::File { path: path.to_path_buf(), message },
            other => other,
        }
    }
}

/// What serde says is wrong, as one line of bearable length: serde repeats a string that it did not expect, however
/// long.
pub(crate) fn shortened(message: &str) -> String {
    const LONGEST: usize = 300;
    // What was expected, and where, comes last.
    const END: usize = 160;
    let count = message.chars().count();
    if count <= LONGEST {
        return message.to_owned();
    }
    let start = message.chars().take(LONGEST - END);
    start.chain(" ... ".chars()).chain(message.chars().skip(count - END)).collect()
}

/// The usual shorthand.
pub type Result<T> = std::result::Result<T, Error>;
