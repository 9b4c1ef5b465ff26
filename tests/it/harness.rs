//! The server around the fake model: called directly, or over loopback.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aquatint::api::edge::Edge;
use aquatint::api::edge::caller::Peer;
use aquatint::api::{App, LoraRegistry, Operations, router, server};
use aquatint::engine::{Engine, EngineSettings, LoraChoice, ModelEntry};
use aquatint::queue::{JobQueue, LocalQueue};
use aquatint::settings::{Cli, Command};
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use clap::Parser;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::fake::Script;

pub(crate) struct Server {
    pub(crate) app: App,
    pub(crate) queue: LocalQueue,
    pub(crate) script: Script,
    pub(crate) edge: Edge,
}

/// How a server is started.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) script: Script,
    /// Flags of `aquatint serve`.
    pub(crate) flags: Vec<&'static str>,
    pub(crate) loras: LoraRegistry,
    /// LoRAs merged for every job.
    pub(crate) always: Vec<LoraChoice>,
}

impl Setup {
    pub(crate) fn start(self) -> Server {
        let flags = ["aquatint", "serve"].into_iter().chain(self.flags);
        let Command::Serve(args) = Cli::try_parse_from(flags.map(OsString::from)).unwrap().command else {
            panic!("serve was asked for");
        };
        let queue = LocalQueue::new(args.queue_size);
        let script = self.script.clone();
        let preset = self.always.iter().rev().find_map(|l| l.preset);
        let model = ModelEntry::new("fake", move || script.clone().load()).with_loras(self.always);
        let settings = EngineSettings::default();
        let (engine, _thread) = Engine::spawn(vec![model], Arc::new(queue.clone()), settings).unwrap();
        let app = App {
            queue: Arc::new(queue.clone()),
            engine,
            defaults: Arc::new(args.defaults),
            preset,
            loras: Arc::new(self.loras),
            operations: Operations { health_until_ready: args.health_until_ready, ..Operations::default() },
            jobs: aquatint::api::Jobs::default(),
            images: Arc::default(),
            webui: Arc::default(),
        };
        Server { app, queue, script: self.script, edge: Edge::new(&args.edge).unwrap() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.queue.close();
    }
}

struct Endless;

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

/// A server with nothing special.
pub(crate) fn server() -> Server {
    Setup::default().start()
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

impl Server {
    /// One request, without a socket. `host` is `testserver`, as in Starlette's test client.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.call_with(method, path, headers, Body::from(body.to_vec())).await
    }

    /// A request whose body never comes.
    pub(crate) async fn call_with_endless_body(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.call_with("POST", path, headers, Body::new(Endless)).await
    }

    async fn call_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
        // From the same caller as one behind a socket.
        let peer = Peer(SocketAddr::from(([127, 0, 0, 1], 1)));
        let mut request =
            Request::builder().method(method).uri(path).header("host", "testserver").extension(peer);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let response = router(self.app.clone(), &self.edge).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.call("POST", path, &json, body.to_string().as_bytes()).await
    }

    /// The same server behind a socket.
    pub(crate) async fn listen(self, drain: Duration) -> Listening {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move {
            let _ = stopped.await;
        };
        let (app, edge) = (self.app.clone(), self.edge.clone());
        let served =
            tokio::spawn(server::serve(listener, router(app.clone(), &edge), app, edge, stopped, drain));
        Listening { server: self, address, stop: Some(stop), served }
    }
}

pub(crate) struct Listening {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl Listening {
    /// Sends a request and leaves the connection open. The kernel takes it, whether or not the server is awake.
    pub(crate) fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    pub(crate) fn generate(&self, body: &Value) -> TcpStream {
        self.post("/generate", body)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}",
            body.len()
        );
        self.send(&format!("{head}\r\n\r\n{body}"))
    }

    pub(crate) fn tell_to_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(crate) async fn ended(self) {
        self.served.await.unwrap();
    }
}

/// The status of the next answer on a connection.
pub(crate) async fn status_of(mut stream: TcpStream) -> Option<u16> {
    let read = move || {
        let mut text = [0; 12];
        stream.read_exact(&mut text).ok()?;
        String::from_utf8_lossy(&text).split_whitespace().nth(1)?.parse().ok()
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// Waits until something holds, and fails when it does not within two seconds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
