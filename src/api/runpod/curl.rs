//! Requests to RunPod's API through the `curl` program: it brings TLS and the system's certificates, and this is the
//! only place that needs them.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What a request came to.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// The secret header, in a file that only this user may read: arguments of programs are for all to see.
pub(super) struct Curl {
    header: PathBuf,
}

/// The largest answer that is read.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

impl Curl {
    pub(super) fn new(key: &str) -> std::io::Result<Self> {
        let name = format!("aquatint-{}-{:x}", std::process::id(), crate::engine::recipe::random_seed());
        let header = std::env::temp_dir().join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&header)?;
        let curl = Self { header };
        let key: String = key.chars().filter(|c| !c.is_control()).collect();
        writeln!(file, "Authorization: {key}")?;
        Ok(curl)
    }

    /// A `GET`; giving up the future ends it.
    pub(super) async fn get(&self, url: &str, limit: Duration) -> Result<Answer, String> {
        self.run(url, limit, &[], Vec::new()).await
    }

    /// A `POST` of a form, as RunPod's own worker sends its JSON texts.
    pub(super) async fn post(
        &self,
        url: &str,
        limit: Duration,
        request_id: &str,
        body: Vec<u8>,
    ) -> Result<Answer, String> {
        let id = format!("X-Request-ID: {request_id}");
        let form = "Content-Type: application/x-www-form-urlencoded";
        let arguments = ["--request", "POST", "--header", form, "--header", &id, "--data-binary", "@-"];
        self.run(url, limit, &arguments, body).await
    }

    async fn run(&self, url: &str, limit: Duration, more: &[&str], body: Vec<u8>) -> Result<Answer, String> {
        let mut header = std::ffi::OsString::from("@");
        header.push(&self.header);
        let mut command = Command::new("curl");
        // Nothing from the user's own settings, no redirects, no other protocols.
        command.args(["--disable", "--silent", "--show-error", "--globoff", "--proto", "=http,https"]);
        command.args(["--max-time", &limit.as_secs().max(1).to_string(), "--write-out", "\n%{http_code}"]);
        command.arg("--header").arg(header).args(more).args(["--url", url]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| format!("curl could not be started: {error}"))?;
        let running = Running(Arc::new(Mutex::new(child)));
        let shared = running.0.clone();
        let done = tokio::task::spawn_blocking(move || finish(&shared, &body)).await;
        done.map_err(|error| error.to_string())?
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.header) {
            tracing::warn!(%error, path = %self.header.display(), "a file with a secret could not be removed");
        }
    }
}

/// A program that ends with the request it is for.
struct Running(Arc<Mutex<Child>>);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, which is fine.
        let _ended = lock(&self.0).kill();
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn finish(child: &Mutex<Child>, body: &[u8]) -> Result<Answer, String> {
    let (input, output, errors) = {
        let mut child = lock(child);
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    };
    let (Some(mut input), Some(output), Some(mut errors)) = (input, output, errors) else {
        return Err("curl has no pipes".into());
    };
    // A server that answers before it has read all closes the pipe; its answer counts.
    let _written = input.write_all(body);
    drop(input);
    let mut bytes = Vec::new();
    output.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let mut reason = String::new();
    let _told = errors.read_to_string(&mut reason);
    let status = lock(child).wait().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(reason.trim().to_owned());
    }
    let end = bytes.iter().rposition(|byte| *byte == b'\n').ok_or("curl gave no status")?;
    let code = std::str::from_utf8(&bytes[end + 1..]).ok().and_then(|text| text.parse().ok());
    bytes.truncate(end);
    Ok(Answer { status: code.ok_or("curl gave no status")?, body: bytes })
}
