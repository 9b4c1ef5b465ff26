//! A `nats-server` of its own for each test, which can be killed and started again.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cli::Folder;

/// Where the program is; the script fetches it where it is missing. Without one these tests fail.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/nats-server.sh");
        let output = Command::new(script).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "no nats-server, and the shared queue cannot be tested without: {told}"
        );
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(super) struct Nats {
    folder: Folder,
    pub(super) port: u16,
    pub(super) monitor: u16,
    child: Child,
    _store: Folder,
}

impl Nats {
    /// A server that writes at once, as a shared queue needs it.
    pub(super) fn start(name: &str) -> Self {
        Self::with_sync(name, "always")
    }

    /// The same with its files in memory, to tell what the disk costs from what everything else does.
    pub(super) fn in_memory(name: &str) -> Self {
        let store = format!("/dev/shm/aquatint-{name}-{}", std::process::id());
        Self::with_store(name, "always", Folder(store.into()))
    }

    pub(super) fn with_sync(name: &str, sync: &str) -> Self {
        Self::with_store(name, sync, Folder::new(&format!("nats-store-{name}")))
    }

    fn with_store(name: &str, sync: &str, store: Folder) -> Self {
        let folder = Folder::new(&format!("nats-server-{name}"));
        let (port, monitor) = (free_port(), free_port());
        let config = format!(
            "listen: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor}\njetstream {{ store_dir: {:?}, sync_interval: {sync} }}\n",
            store.0
        );
        folder.write("nats.conf", config.as_bytes());
        let child = spawn(&folder);
        let nats = Self { folder, port, monitor, child, _store: store };
        nats.wait();
        nats
    }

    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn wait(&self) {
        let started = Instant::now();
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        while TcpStream::connect(address).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with what is on its disk.
    pub(super) fn restart(&mut self) {
        self.child = spawn(&self.folder);
        self.wait();
    }
}

fn spawn(folder: &Folder) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(folder.0.join("log")).unwrap();
    let mut command = Command::new(program());
    command.arg("--config").arg(folder.0.join("nats.conf")).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
