//! What the environment says about the hub, in the variables that all its programs share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where RunPod mounts the models that it has cached on a host.
const RUNPOD_CACHE: &str = "/runpod-volume/huggingface-cache/hub";
/// Where Inference Endpoints mount the endpoint's repository.
const ENDPOINT_REPOSITORY: &str = "/repository";
/// The hub.
const ENDPOINT: &str = "https://huggingface.co";
/// Seconds without a byte after which a connection counts as dead, as in huggingface_hub.
const TIMEOUT_S: u64 = 10;

/// How to reach the hub, and where its files lie.
#[derive(Clone)]
pub struct Environment {
    /// `HF_ENDPOINT`: the hub or a mirror, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or what the file of `HF_TOKEN_PATH` holds, or the file that a login leaves.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`: where downloads go.
    pub cache: PathBuf,
    /// Caches that are mounted and only read.
    pub mounted_caches: Vec<PathBuf>,
    /// Where a platform puts the one repository that it serves.
    pub repository: PathBuf,
    /// `HF_HUB_OFFLINE`: the network is not to be used.
    pub offline: bool,
    /// `HF_XET_HIGH_PERFORMANCE`: files that the hub stores in chunks are fetched as such.
    pub xet: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: the longest time without a byte.
    pub timeout: Duration,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// That of given variables.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let is_on = |name: &str| {
            get(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        let user_cache = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(user_cache()?.join("huggingface")));
        let home = home.unwrap_or_else(|| std::env::temp_dir().join("huggingface"));
        let written = |path: PathBuf| {
            let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        };
        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN"]
            .iter()
            .find_map(|name| get(name));
        let token = token
            .or_else(|| written(path("HF_TOKEN_PATH")?))
            .or_else(|| (!is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")).then(|| written(home.join("token")))?);
        let seconds = get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok()).filter(|s| *s > 0);
        Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()),
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            mounted_caches: vec![RUNPOD_CACHE.into()],
            repository: ENDPOINT_REPOSITORY.into(),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            xet: is_on("HF_XET_HIGH_PERFORMANCE") && !is_on("HF_HUB_DISABLE_XET"),
            timeout: Duration::from_secs(seconds.unwrap_or(TIMEOUT_S)),
        }
    }

    /// The model that a platform has mounted, if it has.
    pub fn mounted_model(&self) -> Option<PathBuf> {
        self.repository.join("model_index.json").is_file().then(|| self.repository.clone())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "(secret)");
        let Self { endpoint, cache, offline, .. } = self;
        write!(f, "Environment {{ {endpoint}, {}, token: {token:?}, offline: {offline} }}", cache.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_other_programs_look_too() {
        let home = ("HOME", "/home/me");
        for (variables, cache) in [
            (vec![home], "/home/me/.cache/huggingface/hub"),
            (vec![home, ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (vec![home, ("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/h/hub"),
            (vec![home, ("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (vec![("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/c"),
            (vec![("HF_HUB_CACHE", ""), ("HF_HOME", "/h")], "/h/hub"),
        ] {
            assert_eq!(read(&variables).cache, PathBuf::from(cache), "{variables:?}");
        }
    }

    #[test]
    fn the_token_is_read_and_never_shown() {
        let folder = std::env::temp_dir().join(format!("aquatint-token-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("token"), " hf_login\n").unwrap();
        std::fs::write(folder.join("other"), "hf_file\n").unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let (home, file) = (at(""), at("other"));
        let token = |variables: &[(&str, &str)]| read(variables).token;
        assert_eq!(token(&[("HF_HOME", &home)]).as_deref(), Some("hf_login"));
        assert_eq!(token(&[("HF_HOME", &home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_HOME", &home), ("HF_TOKEN_PATH", &file)]).as_deref(), Some("hf_file"));
        let said = [("HF_HOME", home.as_str()), ("HF_TOKEN_PATH", &file), ("HF_TOKEN", "hf_said ")];
        assert_eq!(token(&said).as_deref(), Some("hf_said"));
        assert!(!format!("{:?}", read(&said)).contains("hf_said"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn switches_are_read_as_words() {
        for (value, expected) in [("1", true), ("TRUE", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(read(&[("HF_HUB_OFFLINE", value)]).offline, expected, "{value}");
        }
        assert_eq!(read(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
        assert_eq!(read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "3")]).timeout, Duration::from_secs(3));
        assert_eq!(read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "x")]).timeout, Duration::from_secs(10));
    }
}
