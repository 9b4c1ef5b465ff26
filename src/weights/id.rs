//! What names a repository of the hub, or a file in one: `org/name[/file][@revision][:variant]`.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// A repository, and what of it is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// The organisation or user.
    pub owner: String,
    /// The repository's own name.
    pub name: String,
    /// A file or folder in it; `None` is the whole repository.
    pub file: Option<String>,
    /// A branch, a tag or a commit; `None` is the hub's `main`.
    pub revision: Option<String>,
    /// Which of several sets of weights: `fp16`.
    pub variant: Option<String>,
}

/// The form, for errors.
const FORM: &str = "org/name[/file][@revision][:variant] is needed";

/// What ends the names of weight files. A name of two parts that ends so is a path, whatever else it may look like.
const WEIGHTS: [&str; 8] = ["safetensors", "gguf", "ckpt", "pt", "pth", "bin", "sft", "onnx"];

impl HubId {
    /// `org/name`
    pub fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The revision that is asked for, `main` where none is.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Whether a text that names nothing on this disk may name something on the hub. Names are relative and have two
    /// parts at least; a file of weights has three.
    pub fn is_meant_by(text: &str) -> bool {
        let is_weights = |id: &Self| {
            id.file.is_none() && id.name.rsplit_once('.').is_some_and(|(_, end)| WEIGHTS.contains(&end))
        };
        text.parse().is_ok_and(|id| !is_weights(&id))
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        for (mark, part) in [('/', &self.file), ('@', &self.revision), (':', &self.variant)] {
            if let Some(part) = part {
                write!(f, "{mark}{part}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for HubId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = |reason: String| Error::Unknown(format!("{text:?} is no hub id: {reason}; {FORM}"));
        let (rest, variant) = split(text, ':');
        let (rest, revision) = split(rest, '@');
        let mut parts = rest.splitn(3, '/');
        let (owner, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let file = parts.next();
        for (what, part) in [("organisation", owner), ("name", name)] {
            if !is_name(part) {
                return Err(refused(format!("{part:?} is no {what}")));
            }
        }
        if let Some(file) = file.filter(|file| !is_inside(file)) {
            return Err(refused(format!("{file:?} is no file of a repository")));
        }
        let is_revision = |text: &str| is_inside(text) && text.chars().all(|c| is_plain(c) || c == '/');
        if let Some(revision) = revision.filter(|revision| !is_revision(revision)) {
            return Err(refused(format!("{revision:?} is no revision")));
        }
        if let Some(variant) = variant.filter(|variant| !is_name(variant)) {
            return Err(refused(format!("{variant:?} is no variant")));
        }
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            file: owned(file),
            revision: owned(revision),
            variant: owned(variant),
        })
    }
}

fn split(text: &str, mark: char) -> (&str, Option<&str>) {
    text.split_once(mark).map_or((text, None), |(before, after)| (before, Some(after)))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// The hub's own rule for names. Cache folders are joined with `--`, which therefore cannot be in one.
fn is_name(text: &str) -> bool {
    let edge = |c: char| "-.".contains(c);
    (1..=96).contains(&text.len())
        && text.chars().all(is_plain)
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether a path of the hub's stays in the folder that it is put into. What a listing says is checked with this too.
pub(super) fn is_inside(path: &str) -> bool {
    !path.contains(['\\', '\0', ':']) && path.split('/').all(|part| !["", ".", ".."].contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, Option<String>, String, Option<String>) {
        let id: HubId = text.parse().unwrap();
        assert_eq!(id.to_string(), text, "written as it was read");
        (id.repo(), id.file.clone(), id.revision().to_owned(), id.variant)
    }

    #[test]
    fn the_parts_are_told_apart() {
        let owned = |text: &str| Some(text.to_owned());
        for (text, expected) in [
            ("a/b", ("a/b".into(), None, "main".into(), None)),
            (
                "stabilityai/sdxl-turbo:fp16",
                ("stabilityai/sdxl-turbo".into(), None, "main".into(), owned("fp16")),
            ),
            ("a/b@refs/pr/3", ("a/b".into(), None, "refs/pr/3".into(), None)),
            ("a/b_1.5@v1.0:fp16", ("a/b_1.5".into(), None, "v1.0".into(), owned("fp16"))),
            ("a/b/c/d.safetensors@x", ("a/b".into(), owned("c/d.safetensors"), "x".into(), None)),
        ] {
            assert_eq!(parts(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_id_is_refused_by_its_part() {
        for (text, named) in [
            ("", "organisation"),
            ("gpt2", "name"),
            ("/a/b", "organisation"),
            ("../a", "organisation"),
            ("./a/b", "organisation"),
            ("a/b/", "file"),
            ("a/b/../../c", "file"),
            ("a/b//c", "file"),
            ("a/b@", "revision"),
            ("a/b@../x", "revision"),
            ("a/b@x y", "revision"),
            ("a/b:", "variant"),
            ("a/b:x/y", "variant"),
            ("a--b/c", "organisation"),
            ("a/b--c", "name"),
            ("https://huggingface.co/a/b", "name"),
        ] {
            let error = text.parse::<HubId>().unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("org/name"), "{text}: {error}");
        }
    }

    #[test]
    fn paths_of_weights_are_no_ids() {
        for text in ["stabilityai/sdxl-turbo", "a/b/c.safetensors", "a/b@main", "a/Yarn-1.5"] {
            assert!(HubId::is_meant_by(text), "{text}");
        }
        for text in ["loras/ink.safetensors", "models/x.gguf", "x", "./a/b", "/a/b", "a/b.ckpt", "builtin:x"]
        {
            assert!(!HubId::is_meant_by(text), "{text}");
        }
    }
}
