//! The real program behind a socket, and a client that sees every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cli::{Folder, aquatint, port_of};

pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    pub(crate) address: SocketAddr,
}

/// An answer as it came over the wire.
pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) fn body_text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Running {
    /// `aquatint serve` on a free port, as soon as it listens. Without the built-in model's LCM-LoRA: jobs of many steps
    /// are wanted here, and LCM takes 50 at most.
    pub(crate) fn start(folder: &Folder, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let log = folder.0.join("log");
        let arguments = [&["serve", "--port", "0"], arguments].concat();
        let variables = [&[("SD_LCM_LORA_ID", "none")], variables].concat();
        let mut command = aquatint(folder, &variables, &arguments);
        let child = command.stderr(Stdio::from(std::fs::File::create(&log).unwrap())).spawn().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port_of(&log)));
        Self { child, log, address }
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Raw {
        let answer = ask(self.address, method, path, headers, body).unwrap();
        answer.unwrap_or_else(|cut| {
            panic!("{method} {path}: cut off after {:?}", String::from_utf8_lossy(&cut))
        })
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Processor time that it has taken so far.
    pub(crate) fn processor_time(&self) -> Duration {
        // Linux counts it in hundredths of a second; the name before it may hold spaces, in brackets.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<i64> =
            stat.rsplit(") ").next().unwrap().split(' ').filter_map(|field| field.parse().ok()).collect();
        // Of those that are numbers, after the state: the 11th and 12th.
        Duration::from_millis(10 * (fields[10] + fields[11]) as u64)
    }

    /// Its exit code; `None` when a signal ended it.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8(std::fs::read(&self.log).unwrap()).unwrap()
    }

    /// Ends it well, and gives its log.
    pub(crate) fn stop(&mut self) -> String {
        self.signal("TERM");
        assert_eq!(self.wait(), Some(0), "{}", self.log());
        self.log()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// One request on a connection of its own. The inner error is an answer that broke off: what there was of it.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Result<Raw, Vec<u8>>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    // Whether it broke off is judged by what came.
    let _ended_or_reset = stream.read_to_end(&mut answer);
    Ok(whole(&answer).ok_or(answer))
}

/// The answer, if all of it is there.
fn whole(answer: &[u8]) -> Option<Raw> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8(answer[..end].to_vec()).ok()?;
    let body = answer[end + 4..].to_vec();
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    (length?.parse::<usize>().ok()? == body.len()).then_some(Raw { status, head, body })
}
