//! A stand-in for the hub on this machine: its HTTP interface as published clients use it, on two ports, as the real one
//! keeps large files on another host. It can be told to fail.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit of every repository.
pub(crate) const COMMIT: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c";
/// What else names it.
const REVISIONS: [&str; 3] = ["main", "v1.0", COMMIT];
/// The token that may read what is gated.
pub(crate) const TOKEN: &str = "hf_standin";
/// Entries on one page of a listing.
const PAGE: usize = 7;

/// What goes wrong with a file.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A status instead of the file, so many times.
    Status(u16, usize),
    /// The connection ends after so many bytes of each answer, so many times.
    Short(usize, usize),
    /// Nothing more comes after so many bytes, so many times.
    Stall(usize, usize),
    /// Other bytes of the same length.
    WrongBytes,
    /// A part is asked for and all of it comes.
    NoRange,
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<u64>,
    pub(crate) token: Option<String>,
    /// It came to the port of the large files.
    pub(crate) at_store: bool,
}

#[derive(Default)]
struct State {
    /// `org/name` to its files.
    repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    gated: Vec<String>,
    faults: HashMap<String, Fault>,
    asked: Vec<Asked>,
    /// Bytes of bodies that may still go out, and that have.
    allowed: Option<usize>,
    sent: usize,
    in_chunks: bool,
}

pub(crate) struct StandIn {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Says that no more bytes may go out.
    spent: Condvar,
    hub: SocketAddr,
    store: SocketAddr,
}

impl StandIn {
    pub(crate) fn start() -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, store) = (listen(), listen());
        let shared = Shared {
            state: Mutex::default(),
            spent: Condvar::new(),
            hub: hub.local_addr().unwrap(),
            store: store.local_addr().unwrap(),
        };
        let this = Self { shared: Arc::new(shared) };
        for (listener, at_store) in [(hub, false), (store, true)] {
            let shared = this.shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = shared.clone();
                    // A client that leaves is no failure.
                    std::thread::spawn(move || shared.answer(stream, at_store).ok());
                }
            });
        }
        this
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.shared.hub)
    }

    pub(crate) fn add(&self, repo: &str, files: BTreeMap<String, Vec<u8>>) {
        self.state().repos.insert(repo.to_owned(), files);
    }

    pub(crate) fn gate(&self, repo: &str) {
        self.state().gated.push(repo.to_owned());
    }

    pub(crate) fn break_file(&self, file: &str, fault: Fault) {
        self.state().faults.insert(file.to_owned(), fault);
    }

    pub(crate) fn mend(&self) {
        self.state().faults.clear();
    }

    /// Says that it stores files in chunks, which it does not hand out.
    pub(crate) fn claim_chunks(&self) {
        self.state().in_chunks = true;
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    pub(crate) fn forget_asked(&self) {
        self.state().asked.clear();
    }

    /// Bytes of answers so far.
    pub(crate) fn sent(&self) -> usize {
        self.state().sent
    }

    /// Lets so many bytes of answers out, and then none; `None` lets all.
    pub(crate) fn allow(&self, bytes: Option<usize>) {
        let mut state = self.state();
        (state.allowed, state.sent) = (bytes, 0);
        self.shared.spent.notify_all();
    }

    /// Waits until what was allowed has gone out, or for so long.
    pub(crate) fn wait_until_spent(&self, limit: Duration) {
        let unspent = |state: &mut State| state.allowed.is_some_and(|allowed| state.sent < allowed);
        let _spent = self.shared.spent.wait_timeout_while(self.state(), limit, unspent).unwrap();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

/// An answer's status, headers and body.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut: Option<(usize, Cut)>,
}

#[derive(Clone, Copy)]
enum Cut {
    Close,
    Stall,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream, at_store: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let mut asked = Asked {
            method: words.next().unwrap_or_default().to_owned(),
            path: words.next().unwrap_or_default().to_owned(),
            at_store,
            ..Asked::default()
        };
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            let (name, value) = line.trim_end().split_once(": ").unwrap_or_default();
            match name.to_lowercase().as_str() {
                "range" => {
                    asked.range = value.trim_start_matches("bytes=").split('-').next().unwrap().parse().ok()
                }
                "authorization" => asked.token = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
        self.state.lock().unwrap().asked.push(asked.clone());
        let answer = if at_store { self.stored(&asked) } else { self.hub(&asked) };
        self.write(stream, &asked, answer)
    }

    fn write(&self, mut stream: TcpStream, asked: &Asked, answer: Answer) -> std::io::Result<()> {
        let mut head = format!(
            "HTTP/1.1 {} X\r\nconnection: close\r\ncontent-length: {}\r\n",
            answer.status,
            answer.body.len()
        );
        for (name, value) in &answer.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if asked.method == "HEAD" {
            return Ok(());
        }
        let end = answer.cut.map_or(answer.body.len(), |(bytes, _)| bytes.min(answer.body.len()));
        for piece in answer.body[..end].chunks(4096) {
            if !self.may_send(piece, &mut stream)? {
                // Open and silent, until the client has gone.
                std::io::copy(&mut stream, &mut std::io::sink())?;
                return Ok(());
            }
        }
        if let Some((_, Cut::Stall)) = answer.cut {
            std::io::copy(&mut stream, &mut std::io::sink())?;
        }
        Ok(())
    }

    /// Sends what of a piece is allowed; whether that is all of it.
    fn may_send(&self, piece: &[u8], stream: &mut TcpStream) -> std::io::Result<bool> {
        let mut state = self.state.lock().unwrap();
        let left = state.allowed.map_or(usize::MAX, |allowed| allowed - state.sent.min(allowed));
        let part = &piece[..piece.len().min(left)];
        stream.write_all(part)?;
        state.sent += part.len();
        self.spent.notify_all();
        Ok(part.len() == piece.len())
    }

    fn hub(&self, asked: &Asked) -> Answer {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
        match &parts[..] {
            ["api", "models", owner, name, "revision", revision] => {
                self.info(&format!("{owner}/{name}"), revision)
            }
            ["api", "models", owner, name, "tree", revision] if REVISIONS.contains(revision) => {
                self.tree(&format!("{owner}/{name}"), path, query)
            }
            [owner, "renamed", "resolve", rest @ ..] => {
                Answer::new(307, "").with("location", format!("/{owner}/tiny/resolve/{}", rest.join("/")))
            }
            [owner, name, "resolve", revision, file @ ..] if REVISIONS.contains(revision) => {
                self.resolve(&format!("{owner}/{name}"), &file.join("/"), asked)
            }
            _ => Answer::new(404, r#"{"error":"not found"}"#),
        }
    }

    fn info(&self, repo: &str, revision: &str) -> Answer {
        let mut state = self.state.lock().unwrap();
        if let Some(Fault::Status(status, _)) = state.due("api") {
            return Answer::new(status, "sorry");
        }
        if !state.repos.contains_key(repo) {
            return Answer::new(401, r#"{"error":"Invalid username or password."}"#)
                .with("x-error-code", "RepoNotFound");
        }
        if !REVISIONS.contains(&revision) {
            return Answer::new(404, r#"{"error":"Invalid rev id"}"#)
                .with("x-error-code", "RevisionNotFound");
        }
        let gated =
            if state.gated.iter().any(|gated| gated == repo) { json!("manual") } else { json!(false) };
        let info = json!({
            "_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "private": false, "gated": gated, "disabled": false,
            "downloads": 1, "likes": 0, "tags": ["diffusers"], "siblings": [], "lastModified": "2024-01-01T00:00:00.000Z",
        });
        Answer::new(200, info.to_string()).with("content-type", "application/json")
    }

    /// Folders and files, several pages of them.
    fn tree(&self, repo: &str, path: &str, query: &str) -> Answer {
        let state = self.state.lock().unwrap();
        let Some(files) = state.repos.get(repo) else { return Answer::new(404, "") };
        let mut entries =
            vec![json!({"type": "directory", "oid": "0".repeat(40), "size": 0, "path": "unet"})];
        entries.extend(files.iter().map(|(path, bytes)| {
            let entry = json!({"type": "file", "oid": git_sha1(bytes), "size": bytes.len(), "path": path});
            if !is_large(path) {
                return entry;
            }
            let mut entry = entry;
            entry["lfs"] = json!({"oid": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
            entry
        }));
        let from = query.split('&').find_map(|pair| pair.strip_prefix("cursor=")?.parse().ok()).unwrap_or(0);
        let page: Vec<_> = entries.iter().skip(from).take(PAGE).collect();
        let answer = Answer::new(200, json!(page).to_string()).with("content-type", "application/json");
        match from + PAGE < entries.len() {
            true => {
                let next = format!("http://{}{path}?recursive=true&cursor={}", self.hub, from + PAGE);
                answer.with("link", format!("<{next}>; rel=\"next\""))
            }
            false => answer,
        }
    }

    fn resolve(&self, repo: &str, file: &str, asked: &Asked) -> Answer {
        let mut state = self.state.lock().unwrap();
        if state.gated.iter().any(|gated| gated == repo) && asked.token.as_deref() != Some(TOKEN) {
            let status = if asked.token.is_some() { 403 } else { 401 };
            return Answer::new(status, r#"{"error":"Access to this model is restricted."}"#)
                .with("x-error-code", "GatedRepo");
        }
        let Some(bytes) = state.repos.get(repo).and_then(|files| files.get(file)).cloned() else {
            return Answer::new(404, "").with("x-error-code", "EntryNotFound");
        };
        if !is_large(file) {
            let etag = format!("\"{}\"", git_sha1(&bytes));
            let answer = state.body(file, &bytes, asked);
            return answer.with("etag", etag).with("x-repo-commit", COMMIT);
        }
        let answer = Answer::new(302, "Found. Redirecting")
            .with("location", format!("http://{}/{repo}/{file}?signature=abc", self.store))
            .with("etag", format!("\"{}\"", git_sha1(b"pointer")))
            .with("x-linked-etag", format!("\"{}\"", sha256(&bytes)))
            .with("x-linked-size", bytes.len().to_string())
            .with("x-repo-commit", COMMIT);
        if state.in_chunks { answer.with("x-xet-hash", sha256(&bytes)) } else { answer }
    }

    /// The other host: it knows nothing of tokens.
    fn stored(&self, asked: &Asked) -> Answer {
        let mut state = self.state.lock().unwrap();
        let path = asked.path.split('?').next().unwrap().trim_start_matches('/');
        let found = state.repos.iter().find_map(|(repo, files)| {
            let file = path.strip_prefix(repo.as_str())?.strip_prefix('/')?;
            Some((file, files.get(file)?.clone()))
        });
        match found {
            Some((file, bytes)) => state.body(file, &bytes, asked),
            None => Answer::new(404, ""),
        }
    }
}

impl State {
    /// What goes wrong with a file this time.
    fn due(&mut self, file: &str) -> Option<Fault> {
        let fault = self.faults.get_mut(file)?;
        if let Fault::Status(_, times) | Fault::Short(_, times) | Fault::Stall(_, times) = fault {
            *times = times.checked_sub(1)?;
        }
        Some(fault.clone())
    }

    /// A file or a part of it, as the faults have it.
    fn body(&mut self, file: &str, bytes: &[u8], asked: &Asked) -> Answer {
        let fault = if asked.method == "GET" { self.due(file) } else { None };
        let bytes = match fault {
            Some(Fault::Status(status, _)) => return Answer::new(status, "sorry"),
            Some(Fault::WrongBytes) => bytes.iter().map(|byte| byte ^ 1).collect(),
            _ => bytes.to_vec(),
        };
        let from = asked.range.filter(|_| !matches!(fault, Some(Fault::NoRange))).map(|from| from as usize);
        let mut answer = match from {
            Some(from) if from >= bytes.len() => return Answer::new(416, ""),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Answer::new(206, &bytes[from..]).with("content-range", range)
            }
            None => Answer::new(200, bytes),
        };
        answer.cut = match fault {
            Some(Fault::Short(after, _)) => Some((after, Cut::Close)),
            Some(Fault::Stall(after, _)) => Some((after, Cut::Stall)),
            _ => None,
        };
        answer.with("accept-ranges", "bytes")
    }
}

/// What git keeps elsewhere.
fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors")
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
