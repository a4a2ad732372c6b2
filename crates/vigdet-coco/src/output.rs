//! Writes files: whole or not at all, and never over a file that somebody else wrote.
//!
//! [`write_atomically`] writes one file. [`Outputs`] also refuses to replace a file that the program reads, or one that
//! vigdet did not write.
//!
//! Each folder that [`Outputs`] writes to has a text file `.vigdet`. It has a line for each file written there: CRC-32C
//! in hexadecimal, length in bytes, name. A file whose content and name equal a line was written by vigdet. Lines are
//! only appended, before the file itself appears, so several programs may write into one folder at once.

use crate::error::{Error, Result};
use crc32c::Crc32cReader;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file in each folder that lists what vigdet wrote there.
pub const MANIFEST: &str = ".vigdet";
/// Its first line.
const HEADER: &str = "# Files that vigdet wrote here and may replace: CRC-32C, length in bytes, name";

/// Lets `fill` write a file beside `path`, syncs it, and renames it to `path`: whoever looks, at whatever moment, sees
/// the old file or the whole new one. A device or a pipe, such as `/dev/stdout`, is written to as it is.
///
/// # Errors
/// [`Error::Write`] if the folder is not there or cannot be written to, or if `fill` fails. The old file stays.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<()> {
    write_with(path, fill, |_| Ok(())).map_err(failed(path))
}

/// Calls `written` with the whole file, before it is renamed.
fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    written: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let filled = |file: &File| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out)?;
        out.flush()
    };
    if is_device(path) {
        return filled(&File::options().write(true).open(path)?);
    }
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    // Temporary files are readable by their owner only by default; this one is to become any other file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder)?;
    filled(file.as_file())?;
    file.as_file().sync_all()?;
    written(file.as_file())?;
    file.persist(path)?;
    // The rename itself lives in the folder.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// The files that a program reads and writes. It replaces only files that vigdet wrote and that the program does not
/// read.
///
/// ```
/// use std::io::Write;
/// use vigdet_coco::output::Outputs;
///
/// # let folder = tempfile::tempdir()?;
/// # let (input, output) = (folder.path().join("dt.json"), folder.path().join("scores.json"));
/// # std::fs::write(&input, "[]")?;
/// let mut outputs = Outputs::default();
/// outputs.reads(&input);
/// outputs.check(&output)?; // before the work
/// outputs.write(&output, |out| out.write_all(b"{}"))?;
/// assert!(outputs.write(&input, |out| out.write_all(b"{}")).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Outputs {
    read_paths: HashSet<PathBuf>,
    read_inodes: HashSet<(u64, u64)>,
    /// By folder.
    manifests: Mutex<HashMap<PathBuf, Manifest>>,
}

impl Outputs {
    /// Says that the program reads this file. A file that is not there is none that could be replaced.
    pub fn reads(&mut self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        self.read_paths.extend(path.canonicalize());
        self.read_inodes.extend(inode(path));
    }

    /// Whether [`Outputs::write`] may write here: nothing is there, or a file that vigdet wrote, or a device.
    ///
    /// # Errors
    /// [`Error::IsRead`] if the program reads the file, by whatever path or link; [`Error::NotOurs`] if vigdet did not
    /// write what is there; [`Error::Write`] if the system does not say what is there.
    pub fn check(&self, path: &Path) -> Result<()> {
        if is_device(path) {
            return Ok(());
        }
        let is_manifest = path.file_name() == Some(OsStr::new(MANIFEST));
        if is_manifest || self.is_read(path) {
            return Err(Error::IsRead { path: path.to_path_buf() });
        }
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(reason) => Err(Error::Write { path: path.to_path_buf(), reason }),
            Ok(_) if self.is_ours(path).unwrap_or(false) => Ok(()),
            Ok(_) => Err(Error::NotOurs { path: path.to_path_buf() }),
        }
    }

    /// Writes a file as [`write_atomically`] does, if [`Outputs::check`] allows it, and records it. A link to a file
    /// stays: the file that it leads to is replaced.
    ///
    /// # Errors
    /// Those of [`Outputs::check`] and [`write_atomically`].
    pub fn write(&self, path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<()> {
        self.check(path)?;
        self.replace(path, fill)
    }

    /// As [`Outputs::write`], whatever is there: for files in a folder that is vigdet's own.
    ///
    /// # Errors
    /// Those of [`write_atomically`].
    pub fn replace(&self, path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<()> {
        let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        write_with(&target, fill, |file| self.record(&target, file)).map_err(failed(path))
    }

    /// Takes a file for one that vigdet wrote: for those of versions that kept no list.
    ///
    /// # Errors
    /// [`Error::Write`] if the list cannot be written.
    pub fn adopt(&self, path: &Path) -> Result<()> {
        File::open(path).and_then(|file| self.record(path, &file)).map_err(failed(path))
    }

    /// Whether a file is as it was written; `true` also where nothing is known of it.
    pub fn is_intact(&self, path: &Path) -> bool {
        let is_ours = self.is_ours(path).unwrap_or(true);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of_name = |line: &String| line.splitn(3, ' ').nth(2).is_some_and(|named| named == name);
        is_ours || !self.with_manifest(path, |m| Ok(m.lines.iter().any(of_name))).unwrap_or(false)
    }

    fn is_read(&self, path: &Path) -> bool {
        path.canonicalize().is_ok_and(|path| self.read_paths.contains(&path))
            || inode(path).is_some_and(|inode| self.read_inodes.contains(&inode))
    }

    fn is_ours(&self, path: &Path) -> io::Result<bool> {
        let path = path.canonicalize()?;
        let list = File::open(folder_of(&path).join(MANIFEST))?;
        // First the file, then the list: what another program writes meanwhile is listed before it appears.
        let line = line_of(&path, &File::open(&path)?)?;
        self.with_manifest(&path, |manifest| {
            // Where the file system has no locks, a line that is being appended is not whole, and is read next time.
            let _ = list.lock_shared();
            manifest.read_on(&list)?;
            Ok(manifest.lines.contains(&line))
        })
    }

    /// Appends the line of the file that is about to appear at `path`. If that fails after all, no file has this
    /// content.
    fn record(&self, path: &Path, file: &File) -> io::Result<()> {
        let line = line_of(path, file)?;
        let append = |manifest: &mut Manifest| {
            let list = folder_of(path).join(MANIFEST);
            let mut file = File::options().read(true).append(true).create(true).open(list)?;
            // Where the file system has no locks, appending in one call keeps the lines of two programs apart.
            let _ = file.lock();
            let torn = manifest.read_on(&file)?;
            if manifest.lines.contains(&line) {
                return Ok(());
            }
            let text = match (manifest.lines.contains(HEADER), torn) {
                (true, false) => format!("{line}\n"),
                // A program was stopped in the middle of a line.
                (true, true) => format!("\n{line}\n"),
                (false, false) if manifest.length == 0 => format!("{HEADER}\n{line}\n"),
                _ => return Err(io::Error::other("it is not vigdet's")),
            };
            file.write_all(text.as_bytes())
        };
        let context = |error: io::Error| io::Error::new(error.kind(), format!("{MANIFEST} beside it: {error}"));
        self.with_manifest(path, append).map_err(context)
    }

    /// Gives `of` what is known of the folder of `path`. No thread may wait for this while it holds the lock of the
    /// list.
    fn with_manifest<T>(&self, path: &Path, of: impl FnOnce(&mut Manifest) -> io::Result<T>) -> io::Result<T> {
        let folder = folder_of(path).canonicalize()?;
        of(self.manifests.lock().unwrap_or_else(PoisonError::into_inner).entry(folder).or_default())
    }
}

/// What is known of a folder's list.
#[derive(Debug, Default)]
struct Manifest {
    lines: HashSet<String>,
    /// Bytes of the list that `lines` holds.
    length: u64,
}

impl Manifest {
    /// Reads the lines that were appended since, and says whether the last one lacks its end.
    fn read_on(&mut self, mut file: &File) -> io::Result<bool> {
        if file.metadata()?.len() < self.length {
            // Somebody removed the list.
            *self = Manifest::default();
        }
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(self.length))?;
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.lines.extend(String::from_utf8_lossy(&text[..whole]).split('\n').map(str::to_owned));
        self.length += whole as u64;
        Ok(whole < text.len())
    }
}

/// The line of a file with this content at this path.
fn line_of(path: &Path, mut file: &File) -> io::Result<String> {
    file.rewind()?;
    let mut summed = Crc32cReader::new(file);
    let length = io::copy(&mut BufReader::with_capacity(1 << 16, &mut summed), &mut io::sink())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().replace('\n', "\\n");
    Ok(format!("{:08x} {length} {name}", summed.crc32c()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Neither a file nor a folder: nothing there can be replaced.
fn is_device(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| !data.is_file() && !data.is_dir())
}

/// Device and inode: the same for all names of a file.
#[cfg(unix)]
fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().ok().map(|data| (data.dev(), data.ino()))
}

#[cfg(not(unix))]
fn inode(_: &Path) -> Option<(u64, u64)> {
    None
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    |reason| Error::Write { path: path.to_path_buf(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    fn write(outputs: &Outputs, path: &Path, text: &str) -> Result<()> {
        outputs.write(path, |out| out.write_all(text.as_bytes()))
    }

    /// Neither checked nor written, and what is there stays.
    fn refused(outputs: &Outputs, path: &Path, message: &str) {
        let before = fs::read(path).ok();
        for error in [outputs.check(path).unwrap_err(), write(outputs, path, "lost").unwrap_err()] {
            assert!(error.to_string().contains(message), "{error}");
        }
        assert_eq!(fs::read(path).ok(), before);
    }

    const NOT_OURS: &str = "is there and vigdet did not write it: choose another folder or name";
    const IS_READ: &str = "is read by this command: choose another name for what is written";

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |out| {
            out.write_all(b"ne")?;
            Err(io::Error::other("full"))
        });
        assert!(failed.unwrap_err().to_string().contains("full"));
        assert_eq!(text(&path), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write_atomically(&folder.path().join("no/a"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.starts_with("cannot write ") && error.contains("no/a: "), "{error}");
    }

    #[test]
    fn its_own_file_is_replaced_by_whatever_program_wrote_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("größe 1.png");
        for content in ["", "a", "a", "bb"] {
            // Each is a program of its own.
            let outputs = Outputs::default();
            outputs.check(&path).unwrap();
            write(&outputs, &path, content).unwrap();
            write(&outputs, &path, content).unwrap();
            assert_eq!(text(&path), content);
        }
        let list = text(&folder.path().join(MANIFEST));
        let crc_of_a = crc32c::crc32c(b"a");
        assert_eq!(list.lines().count(), 4, "{list}");
        assert_eq!(list.lines().nth(2).unwrap(), format!("{crc_of_a:08x} 1 größe 1.png"));
    }

    #[test]
    fn a_file_of_the_users_and_an_edited_one_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (user, own) = (folder.path().join("user.json"), folder.path().join("own.json"));
        fs::write(&user, "mine").unwrap();
        refused(&Outputs::default(), &user, NOT_OURS);
        let outputs = Outputs::default();
        write(&outputs, &own, "own").unwrap();
        refused(&outputs, &user, NOT_OURS);
        // The same length; the content of another file of vigdet's; a folder.
        fs::write(&own, "owm").unwrap();
        refused(&outputs, &own, NOT_OURS);
        fs::write(&user, "own").unwrap();
        refused(&outputs, &user, NOT_OURS);
        refused(&outputs, folder.path(), NOT_OURS);
        // Without the list nothing is known.
        fs::write(&own, "own").unwrap();
        outputs.check(&own).unwrap();
        fs::remove_file(folder.path().join(MANIFEST)).unwrap();
        refused(&Outputs::default(), &own, NOT_OURS);
    }

    #[test]
    fn a_file_that_is_read_is_refused_even_if_it_is_vigdets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dt.json");
        write(&Outputs::default(), &path, "[]").unwrap();
        let mut outputs = Outputs::default();
        outputs.reads(&path);
        outputs.reads(folder.path().join("not there"));
        refused(&outputs, &path, IS_READ);
        fs::create_dir(folder.path().join("sub")).unwrap();
        refused(&outputs, &folder.path().join("sub/.././dt.json"), IS_READ);
        refused(&outputs, &folder.path().join(MANIFEST), IS_READ);
        write(&outputs, &folder.path().join("not there"), "new").unwrap();
        let relative = Path::new("Cargo.toml");
        let mut outputs = Outputs::default();
        outputs.reads(std::env::current_dir().unwrap().join(relative));
        assert!(outputs.check(relative).unwrap_err().to_string().contains(IS_READ));
        let mut outputs = Outputs::default();
        outputs.reads(relative);
        let absolute = relative.canonicalize().unwrap();
        assert!(outputs.check(&absolute).unwrap_err().to_string().contains(IS_READ));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("real")).unwrap();
        let mut outputs = Outputs::default();
        write(&outputs, &at("real/dt.json"), "[]").unwrap();
        write(&outputs, &at("real/own.json"), "{}").unwrap();
        outputs.reads(at("real/dt.json"));
        symlink(at("real"), at("folder")).unwrap();
        symlink(at("real/dt.json"), at("link.json")).unwrap();
        fs::hard_link(at("real/dt.json"), at("hard.json")).unwrap();
        for name in ["folder/dt.json", "link.json", "hard.json"] {
            refused(&outputs, &at(name), IS_READ);
        }
        // A file of vigdet's is replaced through a link, which stays one; what a link misses is nobody's.
        symlink(at("real/own.json"), at("own.json")).unwrap();
        write(&outputs, &at("own.json"), "{1}").unwrap();
        assert!(at("own.json").is_symlink() && text(&at("real/own.json")) == "{1}");
        symlink(at("nothing"), at("dangling")).unwrap();
        refused(&outputs, &at("dangling"), NOT_OURS);
        // A device is written to.
        write(&outputs, Path::new("/dev/null"), "gone").unwrap();
        assert!(is_device(Path::new("/dev/null")));
    }

    #[test]
    fn two_programs_write_into_one_folder_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let name = |i: usize| folder.path().join(format!("{i}.png"));
        std::thread::scope(|scope| {
            for program in 0..2 {
                scope.spawn(move || {
                    let outputs = Outputs::default();
                    for i in 0..50 {
                        // Half of the names are written by both, with different content.
                        let i = if i % 2 == 0 { i } else { 100 * (program + 1) + i };
                        write(&outputs, &name(i), &format!("{program} {i}")).unwrap();
                    }
                });
            }
        });
        let list = text(&folder.path().join(MANIFEST));
        assert_eq!(list.lines().count(), 101, "{list}");
        let outputs = &Outputs::default();
        std::thread::scope(|scope| {
            for first in [0, 101, 201] {
                scope.spawn(move || {
                    for i in (first..first + 49).step_by(2) {
                        assert!(name(i).is_file());
                        write(outputs, &name(i), &format!("replaced {i}")).unwrap();
                    }
                });
            }
        });
        assert_eq!(text(&name(249)), "replaced 249");
    }

    #[test]
    fn a_list_that_ends_within_a_line_and_one_that_is_not_vigdets() {
        let folder = tempfile::tempdir().unwrap();
        let (list, path) = (folder.path().join(MANIFEST), folder.path().join("a"));
        write(&Outputs::default(), &path, "a").unwrap();
        File::options().append(true).open(&list).unwrap().write_all(b"0123").unwrap();
        write(&Outputs::default(), &folder.path().join("b"), "b").unwrap();
        Outputs::default().check(&folder.path().join("b")).unwrap();
        Outputs::default().check(&path).unwrap();
        fs::write(&list, "my notes\n").unwrap();
        let error = write(&Outputs::default(), &folder.path().join("c"), "c").unwrap_err().to_string();
        assert!(error.ends_with("c: .vigdet beside it: it is not vigdet's"), "{error}");
        assert_eq!(text(&list), "my notes\n");
        assert!(!folder.path().join("c").exists());
    }
}
