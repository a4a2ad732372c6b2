//! Fetches a file over HTTPS: whole and checked, or not at all.
//!
//! What has come lies beside the file, in `FILE.part`, under a lock: of two processes one fetches and the other waits.
//! `FILE.part.json` says which state of which address it is the beginning of. A cut download goes on there, now or the
//! next day. What is whole and has the right checksum is renamed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::Agent;

use super::file::WeightFile;
use super::http::{client, get, Broken, Head, Piece};
use crate::console::warn;

/// What is to be fetched, and to where.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The address.
    pub url: &'a str,
    /// Its SHA-256 in hexadecimal, or how that begins; `None`: not known.
    pub sha256: Option<&'a str>,
    /// The file.
    pub to: &'a Path,
}

/// How long to wait for a server.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest silence.
    pub silence: Duration,
    /// Before the second try; each further pause is twice as long.
    pub pause: Duration,
    /// Tries in a row that bring nothing.
    pub tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), pause: Duration::from_secs(1), tries: 4 }
    }
}

/// What went wrong with one try.
enum Failure {
    /// The next try may be better.
    Passing(anyhow::Error),
    /// None will be.
    Final(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Final(error)
    }
}

fn passing(reason: impl Into<String>) -> Failure {
    Failure::Passing(anyhow!(reason.into()))
}

/// Fetches a file, unless it is there by then; `show` is told how many bytes have come, and of how many.
///
/// # Errors
/// If the server does not give it, gives another one (by length or checksum), or falls silent again and again. What
/// has come by then stays, for the next call to go on with, unless it is of no use.
pub fn fetch(wanted: &Wanted, patience: &Patience, show: &dyn Fn(u64, Option<u64>)) -> Result<()> {
    let folder = wanted.to.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut part = Part::lock(wanted.to)?;
    if wanted.to.is_file() {
        // Whoever had the lock was faster.
        return part.remove();
    }
    let name = wanted.to.file_name().unwrap_or_default().to_string_lossy();
    let agent = client(wanted.url)?;
    let (mut in_vain, mut furthest) = (0, 0);
    let mut from_start = false;
    loop {
        match attempt(&agent, wanted, patience.silence, &mut part, show) {
            Ok(resumed) => match part.check(wanted.sha256) {
                Ok(()) => return part.finish(wanted.to),
                // Two states of a file may have been put together; once more, in one piece.
                Err(error) if resumed && !from_start => {
                    warn(&format!("{name}: {error:#}; from the start once more"));
                    part.empty()?;
                    from_start = true;
                }
                Err(error) => {
                    part.remove()?;
                    return Err(error);
                }
            },
            Err(Failure::Final(error)) => {
                if part.length == 0 {
                    part.remove()?;
                }
                return Err(error);
            }
            Err(Failure::Passing(error)) => {
                // Only what goes further than ever is progress: a file that keeps changing must come to an end.
                in_vain = if part.length > furthest { 1 } else { in_vain + 1 };
                furthest = furthest.max(part.length);
                if in_vain >= patience.tries {
                    if part.length == 0 {
                        part.remove()?;
                        return Err(error);
                    }
                    bail!("{error:#} (what has come is kept: the next try goes on with it)");
                }
                warn(&format!("{name}: {error:#}; trying again"));
                std::thread::sleep(patience.pause * 2u32.saturating_pow(in_vain - 1));
            }
        }
    }
}

/// Whether a file has this SHA-256, or one that begins so.
///
/// # Errors
/// If it has not, or cannot be read.
pub fn check_sha256(file: &mut impl Read, wanted: &str) -> Result<()> {
    let mut sum = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => break,
            read => sum.update(&bytes[..read]),
        }
    }
    let found: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let begins = &found[..wanted.len().min(found.len())];
    ensure!(begins == wanted, "its SHA-256 begins with {begins}, not with {wanted}: it is another file, or damaged");
    Ok(())
}

/// One request. Gives whether it went on with what was there.
fn attempt(
    agent: &Agent,
    wanted: &Wanted,
    silence: Duration,
    part: &mut Part,
    show: &dyn Fn(u64, Option<u64>),
) -> Result<bool, Failure> {
    // Without one of the two, nobody would see that two states of the file were put together.
    let told = |begun: &Begun| begun.validator.is_some() || wanted.sha256.is_some();
    let begun = part.begun.clone().filter(|begun| part.length > 0 && begun.url == wanted.url && told(begun));
    if begun.is_none() {
        part.empty()?;
    }
    let pieces = get(agent, wanted.url, part.length, begun.as_ref().and_then(|begun| begun.validator.as_deref()));
    let head = match next(&pieces, silence)? {
        Piece::Head(head) => head,
        _ => return Err(passing("the answer has no status")),
    };
    let resumed = match (head.status, begun) {
        (200, _) => {
            ensure_told(&head, wanted)?;
            part.begin(Begun { url: wanted.url.into(), validator: head.validator.clone(), length: head.length })?;
            false
        }
        (206, Some(begun)) => match goes_on(&head, &begun, part.length) {
            Ok(whole) => {
                part.begun = Some(Begun { length: whole, ..begun });
                true
            }
            Err(reason) => {
                part.empty()?;
                return Err(passing(reason));
            }
        },
        // Nothing is left to send: all of it was there.
        (416, Some(_)) if head.range == Some((None, Some(part.length))) => return Ok(true),
        (416, Some(_)) => {
            part.empty()?;
            return Err(passing("the file there has changed since the download began"));
        }
        (status @ (408 | 429 | 500..=599), _) => {
            return Err(passing(format!("the server answers with status {status}")));
        }
        (404 | 410, _) => return Err(Failure::Final(anyhow!("the server has no such file (status {})", head.status))),
        (status, _) => return Err(Failure::Final(anyhow!("the server answers with status {status}"))),
    };
    let whole = part.begun.as_ref().and_then(|begun| begun.length);
    show(part.length, whole);
    loop {
        match next(&pieces, silence)? {
            Piece::Bytes(bytes) => part.add(&bytes)?,
            Piece::End => break,
            Piece::Head(_) | Piece::Failed(_) => return Err(passing("the answer has two heads")),
        }
        show(part.length, whole);
    }
    match whole {
        Some(whole) if part.length < whole => Err(passing(format!("cut off after {} of {whole} bytes", part.length))),
        Some(whole) if part.length > whole => {
            let came = part.length;
            part.empty()?;
            Err(Failure::Final(anyhow!("{came} bytes came of a file that has {whole}")))
        }
        _ => Ok(resumed),
    }
}

/// The next piece of an answer, if it is a good one.
fn next(pieces: &Receiver<Piece>, silence: Duration) -> Result<Piece, Failure> {
    match pieces.recv_timeout(silence) {
        Ok(Piece::Failed(Broken { reason, passing: true })) => Err(passing(reason)),
        Ok(Piece::Failed(Broken { reason, .. })) => Err(Failure::Final(anyhow!(reason))),
        Ok(piece) => Ok(piece),
        Err(RecvTimeoutError::Timeout) => Err(passing(format!("the server was silent for {silence:?}"))),
        Err(RecvTimeoutError::Disconnected) => Err(passing("the connection broke")),
    }
}

/// Refuses a body whose end nobody could tell from a cut.
fn ensure_told(head: &Head, wanted: &Wanted) -> Result<(), Failure> {
    let told = head.framed || wanted.sha256.is_some();
    told.then_some(()).ok_or_else(|| Failure::Final(anyhow!("the server does not say how long the file is")))
}

/// Whether an answer is the rest of what has begun; gives how long the whole is, if that is known. Some servers send
/// parts without a look at the validator.
fn goes_on(head: &Head, begun: &Begun, from: u64) -> Result<Option<u64>, String> {
    let Some((first, whole)) = head.range else { return Err("the server sends a part without saying which".into()) };
    if first != Some(from) {
        return Err(format!("the server sends another part than was asked for, which began at byte {from}"));
    }
    let both = |a: Option<u64>, b: Option<u64>| a.zip(b).is_some_and(|(a, b)| a != b);
    let changed = head.validator.is_some() && begun.validator.is_some() && head.validator != begun.validator;
    if changed || both(whole, begun.length) {
        return Err("the file there has changed since the download began".into());
    }
    Ok(whole.or(begun.length))
}

/// What the bytes of a part are the beginning of.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Begun {
    url: String,
    validator: Option<String>,
    length: Option<u64>,
}

/// What has come of a file. Whoever has it is the only one that writes to it.
struct Part {
    path: PathBuf,
    file: File,
    /// Bytes that have come.
    length: u64,
    /// `None`: of what is not known, and so they are of no use.
    begun: Option<Begun>,
}

impl Part {
    /// Opens the part of a file, once no other process has it.
    fn lock(to: &Path) -> Result<Self> {
        let path = with_ending(to, ".part");
        loop {
            let open = || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
            let file = open().with_context(|| format!("cannot write {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    warn(&format!("another process is fetching {}: waiting for it", to.display()));
                    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
                }
                Err(TryLockError::Error(error)) => bail!(
                    "cannot lock {} ({error}): VIGDET_CACHE names a folder on a disk that has locks",
                    path.display()
                ),
            }
            // Whoever had it before may have renamed or removed it.
            if !is_at(&file, &path) {
                continue;
            }
            let length = file.metadata()?.len();
            let begun = std::fs::read(with_ending(&path, ".json")).unwrap_or_default();
            return Ok(Self { path, file, length, begun: serde_json::from_slice(&begun).ok() });
        }
    }

    fn note(&self) -> PathBuf {
        with_ending(&self.path, ".json")
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.path.display())
    }

    /// Drops what has come.
    fn empty(&mut self) -> Result<()> {
        self.begun = None;
        self.length = 0;
        self.file.set_len(0).with_context(|| self.cannot_write())
    }

    /// Begins anew with something.
    fn begin(&mut self, begun: Begun) -> Result<()> {
        self.empty()?;
        let text = serde_json::to_vec(&begun)?;
        std::fs::write(self.note(), text).with_context(|| self.cannot_write())?;
        self.begun = Some(begun);
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        let at = self.length;
        let mut write = || {
            self.file.seek(SeekFrom::Start(at))?;
            self.file.write_all(bytes)
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Whether what has come has this checksum; where none is known, whether it is a file of weights at all: a
    /// network's login page is none.
    fn check(&mut self, sha256: Option<&str>) -> Result<()> {
        let Some(sha256) = sha256 else { return WeightFile::open(&self.path).map(drop) };
        self.file.seek(SeekFrom::Start(0))?;
        check_sha256(&mut self.file, sha256)
    }

    /// Makes it the file.
    fn finish(self, to: &Path) -> Result<()> {
        let rename = || {
            self.file.sync_all()?;
            std::fs::rename(&self.path, to)
        };
        rename().with_context(|| format!("cannot write {}", to.display()))?;
        remove(&self.note())
    }

    fn remove(self) -> Result<()> {
        remove(&self.note())?;
        remove(&self.path)
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether an open file is the one that has this path.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |data: std::fs::Metadata| (data.dev(), data.ino());
    file.metadata().is_ok_and(|open| path.metadata().is_ok_and(|there| id(open) == id(there)))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
