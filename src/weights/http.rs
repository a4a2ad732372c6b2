//! The HTTP client: a request whose answer comes piece by piece, with a bound on how long it may be silent.

use std::io::{ErrorKind, Read};
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use ureq::http::{header, HeaderMap};
use ureq::tls::{parse_pem, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Error, Proxy, ProxyProtocol};

/// A base address that takes the place of the host of every address.
pub const MIRROR: &str = "VIGDET_WEIGHTS_MIRROR";
/// A file of certificates to trust in place of Mozilla's, as OpenSSL and curl read it.
const CERTIFICATES: &str = "SSL_CERT_FILE";
/// GitHub's releases need one.
const REDIRECTS: u32 = 5;
/// How long one address may take to connect.
const CONNECT: Duration = Duration::from_secs(20);
/// Bytes of a piece, at most.
const PIECE: usize = 1 << 16;

/// A piece of an answer. It ends with `End` or `Failed`.
pub enum Piece {
    /// Status and headers.
    Head(Head),
    /// A part of the body.
    Bytes(Vec<u8>),
    /// The body is whole, as far as its framing tells.
    End,
    /// It broke.
    Failed(Broken),
}

/// Why a request brought nothing, or no more.
pub struct Broken {
    /// In words.
    pub reason: String,
    /// Whether it may work the next time.
    pub passing: bool,
}

/// Status and headers of an answer.
#[derive(Debug, Default)]
pub struct Head {
    /// 200, 206, 404, …
    pub status: u16,
    /// Bytes of the body, where the headers say so.
    pub length: Option<u64>,
    /// Whether the end of the body is marked in some way.
    pub framed: bool,
    /// What tells this state of the file from others: a strong ETag, else the time of its last change.
    pub validator: Option<String>,
    /// From `Content-Range`: the first byte (`None`: of none), and the bytes of the whole file if it says so.
    pub range: Option<(Option<u64>, Option<u64>)>,
}

/// Where a file is to be had: its address, or the same on the mirror that `VIGDET_WEIGHTS_MIRROR` names.
///
/// # Errors
/// If the mirror is no address.
pub fn address(url: &str) -> Result<String> {
    let mirror = std::env::var(MIRROR).unwrap_or_default();
    if mirror.is_empty() {
        return Ok(url.to_string());
    }
    on_mirror(url, &mirror)
}

fn on_mirror(url: &str, mirror: &str) -> Result<String> {
    let is_address = mirror.starts_with("https://") || mirror.starts_with("http://");
    ensure!(is_address, "{MIRROR} is `{mirror}`: it must begin with https:// or http://");
    let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    Ok(format!("{}/{path}", mirror.trim_end_matches('/')))
}

/// A client for one address. Proxies are taken from the environment (`HTTPS_PROXY`, `NO_PROXY`, …), and so is
/// `SSL_CERT_FILE`. Redirects are followed, from https to https only.
///
/// # Errors
/// If the environment names certificates that cannot be read, or a proxy of another kind than HTTP.
pub fn client(url: &str) -> Result<Agent> {
    let secure = url.starts_with("https://");
    let proxy = Proxy::try_from_env();
    // ureq would pass others over, and go where the user's network does not lead.
    let is_known = |proxy: &&Proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
    if let Some(proxy) = proxy.as_ref().filter(|proxy| !is_known(proxy)) {
        bail!("the environment names the proxy {}: only HTTP proxies are known; set HTTPS_PROXY", proxy.host());
    }
    let mut config = Agent::config_builder()
        .https_only(secure)
        .max_redirects(REDIRECTS)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT))
        .user_agent(concat!("vigdet/", env!("CARGO_PKG_VERSION")))
        .proxy(proxy);
    if let Some(path) = std::env::var_os(CERTIFICATES).filter(|path| secure && !path.is_empty()) {
        let read = || -> Result<RootCerts> {
            let text = std::fs::read(&path)?;
            let certificates = parse_pem(&text).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            Ok(RootCerts::Specific(Arc::new(certificates.collect())))
        };
        let roots = read().with_context(|| format!("cannot read {CERTIFICATES}={}", path.to_string_lossy()))?;
        config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    Ok(config.build().new_agent())
}

/// Asks for a file, from byte `from` on: of the state that has this validator, else all of it, if the server knows how.
///
/// A thread of its own waits for the server, so that the caller need not: whoever drops the receiver leaves it to end
/// with the connection. (ureq bounds a whole body, not the silence in it, and a large file may take its time.)
pub fn get(agent: &Agent, url: &str, from: u64, validator: Option<&str>) -> Receiver<Piece> {
    let mut request = agent.get(url).header(header::ACCEPT_ENCODING, "identity");
    if from > 0 {
        request = request.header(header::RANGE, format!("bytes={from}-"));
        if let Some(validator) = validator {
            request = request.header(header::IF_RANGE, validator);
        }
    }
    let (send, pieces) = sync_channel(8);
    std::thread::spawn(move || {
        let response = match request.call() {
            Ok(response) => response,
            Err(error) => return drop(send.send(Piece::Failed(broken(error)))),
        };
        let (parts, body) = response.into_parts();
        let head = head(parts.status.as_u16(), &parts.headers, body.content_length());
        if send.send(Piece::Head(head)).is_err() {
            return;
        }
        let mut body = body.into_reader();
        loop {
            let mut bytes = vec![0; PIECE];
            let piece = match body.read(&mut bytes) {
                Ok(0) => Piece::End,
                Ok(read) => {
                    bytes.truncate(read);
                    Piece::Bytes(bytes)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Piece::Failed(broken(error.into())),
            };
            let last = !matches!(piece, Piece::Bytes(_));
            if send.send(piece).is_err() || last {
                return;
            }
        }
    });
    pieces
}

fn head(status: u16, headers: &HeaderMap, length: Option<u64>) -> Head {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let chunked = text(header::TRANSFER_ENCODING).is_some_and(|coding| coding.to_lowercase().contains("chunked"));
    let tag = text(header::ETAG).filter(|tag| !tag.starts_with("W/"));
    Head {
        status,
        length,
        framed: length.is_some() || chunked,
        validator: tag.or(text(header::LAST_MODIFIED)).map(String::from),
        range: text(header::CONTENT_RANGE).and_then(range),
    }
}

/// `bytes FIRST-LAST/WHOLE`, where `*` stands for what is not known.
fn range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (part, whole) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let first = part.split_once('-').and_then(|(first, _)| first.trim().parse().ok());
    Some((first, whole.trim().parse().ok()))
}

fn broken(error: Error) -> Broken {
    let (reason, passing) = match error {
        // What TLS does not like about a server comes as invalid data, and stays.
        Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => ("the connection was cut".into(), true),
        Error::Io(error) => (error.to_string(), error.kind() != ErrorKind::InvalidData),
        Error::HostNotFound => ("there is no such host, or no network".into(), true),
        Error::TooManyRedirects => (format!("it was redirected more than {REDIRECTS} times"), false),
        Error::RequireHttpsOnly(url) => (format!("it was redirected to {url}, which is not https"), false),
        Error::Timeout(_) | Error::ConnectionFailed | Error::Protocol(_) => (error.to_string(), true),
        other => (other.to_string(), false),
    };
    Broken { reason, passing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_takes_the_place_of_the_host() {
        let url = "https://download.pytorch.org/models/a-1234.pth";
        assert_eq!(on_mirror(url, "https://m.org/files/").unwrap(), "https://m.org/files/models/a-1234.pth");
        assert_eq!(on_mirror(url, "http://127.0.0.1:80").unwrap(), "http://127.0.0.1:80/models/a-1234.pth");
        assert!(on_mirror(url, "m.org").unwrap_err().to_string().contains("https://"));
    }

    #[test]
    fn a_content_range_says_where_it_begins_and_how_long_the_file_is() {
        assert_eq!(range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(range("bytes */10"), Some((None, Some(10))));
        for bad in ["", "bytes", "bytes 5-9", "lines 1-2/3"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
