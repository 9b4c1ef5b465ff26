//! Requests to RunPod's API, over TLS with the system's certificates.

use std::error::Error;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use reqwest::{Client, RequestBuilder, redirect};

/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// For the connection itself, whatever the answer may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// What a request came to.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// A client whose requests all carry the secret. It follows no redirects: the secret is for RunPod alone.
pub(super) struct Http(Client);

impl Http {
    pub(super) fn new(key: &str) -> Result<Self, String> {
        let key: String = key.chars().filter(|c| !c.is_control()).collect();
        let mut key = HeaderValue::from_str(&key).map_err(|_| "RUNPOD_AI_API_KEY is no header's value")?;
        key.set_sensitive(true);
        let client = Client::builder()
            .default_headers(HeaderMap::from_iter([(header::AUTHORIZATION, key)]))
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT);
        Ok(Self(client.build().map_err(|error| reason(&error))?))
    }

    /// A `GET`; giving up the future ends it.
    pub(super) async fn get(&self, url: &str, limit: Duration) -> Result<Answer, String> {
        send(self.0.get(url).timeout(limit)).await
    }

    /// A `POST` of a form, as RunPod's own worker sends its JSON texts.
    pub(super) async fn post(
        &self,
        url: &str,
        limit: Duration,
        request_id: &str,
        body: Vec<u8>,
    ) -> Result<Answer, String> {
        let request = self.0.post(url).timeout(limit).header("x-request-id", request_id);
        send(request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)).await
    }
}

async fn send(request: RequestBuilder) -> Result<Answer, String> {
    let mut response = request.send().await.map_err(|error| reason(&error))?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| reason(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer is longer than {} MiB", MAX_ANSWER_BYTES >> 20));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status: response.status().as_u16(), body })
}

/// An error with what is behind it: the first words alone never say what went wrong.
fn reason(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
