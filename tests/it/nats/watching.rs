//! A job is watched through the process that takes requests, and that process dies.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::cluster::{Api, Cluster, job};
use super::runs;
use crate::board::row;

/// An event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) data: String,
}

/// Reads a job's stream, event by event, until it ends. HTTP/1.0, so that nothing is between the lines.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(api: &Api, id: &str, last: Option<u64>) -> Self {
        let mut socket = TcpStream::connect(api.server.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let last = last.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
        let head = format!("GET /jobs/{id}/events HTTP/1.0\r\nhost: x\r\n{last}\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        Self(BufReader::new(socket))
    }
}

impl Iterator for Stream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let (mut id, mut name, mut data) = (None, String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match (line.trim_end().split_once(": "), line.trim_end()) {
                (Some(("id", value)), _) => id = value.parse().ok(),
                (Some(("event", value)), _) => name = value.to_owned(),
                (Some(("data", value)), _) => data = value.to_owned(),
                (_, "") if id.is_some() => return Some(Event { id: id?, name, data }),
                _ => {}
            }
        }
    }
}

/// All events after one, to the end.
pub(super) fn events(api: &Api, id: &str, last: Option<u64>) -> Vec<Event> {
    Stream::open(api, id, last).collect()
}

/// Previews are of the moment: only the last is kept.
fn lasting(events: Vec<Event>) -> Vec<Event> {
    events.into_iter().filter(|event| event.name != "preview").collect()
}

#[test]
fn whoever_watches_a_job_goes_on_at_another_process_without_a_gap() {
    let (mut gaps, mut previews, mut all) = (0, 0, 0);
    for run in 0..runs() {
        let mut cluster = Cluster::start(&format!("watch-{run}"), 2, 1, &["--queue-size", "1000"]);
        let id = cluster.api0().submit(&job(31, 100));
        let mut first: Vec<_> = Stream::open(cluster.api0(), &id, None).take(8).collect();
        cluster.apis[0].server.signal("KILL");
        let last = first.last().unwrap().id;
        first.extend(events(&cluster.apis[1], &id, Some(last)));
        previews += first.iter().filter(|event| event.name == "preview").count();
        let seen = lasting(first);
        assert_eq!(seen.last().unwrap().name, "done");
        assert!(seen.windows(2).all(|pair| pair[0].id < pair[1].id));
        // A third process, which was not there, tells the same story under the same numbers.
        cluster.replace_api(0);
        cluster.until_ready();
        let whole = lasting(events(cluster.api0(), &id, None));
        gaps += whole.iter().filter(|event| !seen.contains(event)).count();
        gaps += seen.iter().filter(|event| !whole.contains(event)).count();
        all += whole.len();
        assert!(whole.len() >= 15, "its steps are told: {}", whole.len());
        assert_eq!(
            events(cluster.api0(), &id, Some(seen.last().unwrap().id)),
            [],
            "nothing comes after the end"
        );
    }
    row(
        "nats-watch",
        &format!("kill -9 of the process that streams a job's events, {} runs", runs()),
        "the client resumes without a gap",
        format!("{gaps} of {all} events missing or different; {previews} previews"),
        gaps == 0 && previews > 0,
    );
}
