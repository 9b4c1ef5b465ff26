//! `aquatint health`: asks a running server, for container platforms whose probe is a command. An image then needs no
//! HTTP client of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::{Failure, print};
use crate::settings::HealthArgs;

/// Bytes of the answer's first line that are read at most.
const STATUS_LINE_BYTES: u64 = 256;

pub(super) fn run(args: &HealthArgs) -> Result<(), Failure> {
    let path = if args.ready { "/ready" } else { "/health" };
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), args.port);
    let status = status(address, path, args.timeout_seconds)
        .map_err(|error| Failure::Other(format!("http://{address}{path}: {error}")))?;
    match status {
        200 => print("healthy"),
        status => Err(Failure::Other(format!("http://{address}{path}: {status}"))),
    }
}

/// The status of the answer to `GET path`.
fn status(address: SocketAddr, path: &str, timeout: Duration) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(std::io::Read::take(stream, STATUS_LINE_BYTES)).read_line(&mut line)?;
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.ok_or_else(|| std::io::Error::other("the answer is not HTTP/1.1"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What `status` makes of a server that answers with these bytes.
    fn of_answer(answer: &'static str) -> std::io::Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                let mut line = String::new();
                BufReader::with_capacity(1, &stream).read_line(&mut line).unwrap();
                head.push_str(&line);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            head
        });
        let status = status(address, "/ready", Duration::from_secs(5));
        assert!(server.join().unwrap().starts_with("GET /ready HTTP/1.1\r\n"));
        status
    }

    #[test]
    fn reads_the_status_and_nothing_else() {
        assert_eq!(of_answer("HTTP/1.1 200 OK\r\n\r\n{}").unwrap(), 200);
        assert_eq!(of_answer("HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\n\r\n").unwrap(), 503);
        for other in ["", "HTTP/1.1 2", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 two hundred\r\n"] {
            assert!(of_answer(other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn nobody_there_is_an_error() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(status(address, "/health", Duration::from_secs(1)).is_err());
    }
}
