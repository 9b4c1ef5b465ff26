//! What was measured on a GPU, kept on disk: which algorithm is the fastest for a shape.
//!
//! The file is text: a first line with the format's version, four lines that say what it was measured with, a line for
//! each entry, and a checksum. What was measured with another GPU, driver, library or program says nothing here, and a
//! file that is not whole is not trusted: both are left alone, and written anew once something was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const FIRST_LINE: &str = "aquatint tuning 1";
/// Far more than all shapes of all models need.
const MAX_BYTES: u64 = 8 << 20;

/// What measurements hold for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeasuredWith {
    /// The GPU's name.
    pub gpu: String,
    /// The driver's version.
    pub driver: String,
    /// The version of the library whose algorithms these are.
    pub library: String,
    /// This program's version.
    pub program: String,
}

impl MeasuredWith {
    fn lines(&self) -> [(&'static str, &str); 4] {
        [("gpu", &self.gpu), ("driver", &self.driver), ("library", &self.library), ("program", &self.program)]
    }
}

/// Measurements by what was measured, both one line of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    entries: BTreeMap<String, String>,
    changed: bool,
}

impl Tuning {
    /// What was found for `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(String::as_str)
    }

    /// Remembers what was found. Neither may hold a line break or ` = `.
    pub fn insert(&mut self, key: String, value: String) {
        let is_one_line = |text: &str| !text.contains(['\n', '\r']) && !text.contains(" = ");
        if is_one_line(&key) && is_one_line(&value) && self.entries.get(&key) != Some(&value) {
            self.entries.insert(key, value);
            self.changed = true;
        }
    }

    /// Whether something was found that is not on disk.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Why it is of no use, for the log; a file that is not there is empty.
    pub fn open(path: &Path, with: &MeasuredWith) -> Result<Self, String> {
        let mut bytes = Vec::new();
        match std::fs::File::open(path) {
            Ok(file) => file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.to_string()),
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("it has more than {MAX_BYTES} bytes"));
        }
        Self::read(&bytes, with)
    }

    /// Reads what [`Self::text`] wrote.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read(bytes: &[u8], with: &MeasuredWith) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
        let Some((first, _)) = text.split_once('\n') else { return Err("it is no tuning file".into()) };
        if first != FIRST_LINE {
            return Err(format!("it begins with {:?}, {FIRST_LINE:?} is read", shortened(first)));
        }
        let Some((body, sum)) = text.strip_suffix('\n').and_then(|text| text.rsplit_once("\nchecksum "))
        else {
            return Err("it is not whole".into());
        };
        if sum != format!("{:016x}", checksum(body)) {
            return Err("its checksum is wrong".into());
        }
        let mut lines = body.lines().skip(1);
        for (name, present) in with.lines() {
            let line = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
            if line != Some(present) {
                let other = shortened(line.unwrap_or_default());
                return Err(format!("it was measured with {name} {other:?}, this is {present:?}"));
            }
        }
        let entry = |line: &str| {
            let (key, value) =
                line.split_once(" = ").ok_or_else(|| format!("{:?} is no entry", shortened(line)))?;
            Ok((key.to_owned(), value.to_owned()))
        };
        Ok(Self { entries: lines.map(entry).collect::<Result<_, String>>()?, changed: false })
    }

    /// The whole file.
    pub fn text(&self, with: &MeasuredWith) -> String {
        let mut body = FIRST_LINE.to_owned();
        for (name, value) in with.lines() {
            let _strings_take_everything = write!(body, "\n{name} {}", value.replace(['\n', '\r'], " "));
        }
        for (key, value) in &self.entries {
            let _strings_take_everything = write!(body, "\n{key} = {value}");
        }
        let sum = checksum(&body);
        format!("{body}\nchecksum {sum:016x}\n")
    }

    /// Writes the file: it is there whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&mut self, path: &Path, with: &MeasuredWith) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let unfinished = path.with_extension(format!("{}.incomplete", std::process::id()));
        let written = std::fs::File::create(&unfinished)
            .and_then(|mut file| file.write_all(self.text(with).as_bytes()))
            .and_then(|()| std::fs::rename(&unfinished, path));
        if written.is_err() {
            let _may_not_be_there = std::fs::remove_file(&unfinished);
        }
        written?;
        self.changed = false;
        Ok(())
    }
}

/// What this process knows, and where it is kept.
#[derive(Debug)]
struct Kept {
    path: Option<PathBuf>,
    with: Option<MeasuredWith>,
    tuning: Tuning,
}

impl Kept {
    const NOTHING: Self =
        Self { path: None, with: None, tuning: Tuning { entries: BTreeMap::new(), changed: false } };

    /// Reads what was measured with the same before, once it is known where and with what.
    fn read(&mut self) {
        if let (Some(path), Some(with)) = (&self.path, &self.with) {
            match Tuning::open(path, with) {
                Ok(tuning) => self.tuning = tuning,
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "the tuning file is not used: all is measured anew");
                }
            }
        }
    }

    fn save(&mut self) -> io::Result<()> {
        match (&self.path, &self.with) {
            (Some(path), Some(with)) if self.tuning.is_changed() => self.tuning.save(path, with),
            _ => Ok(()),
        }
    }
}

static KEPT: Mutex<Kept> = Mutex::new(Kept::NOTHING);
static MEASURING: AtomicUsize = AtomicUsize::new(0);

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps measurements in this file, from which those of earlier are read when the device is known.
pub fn use_file(path: PathBuf) {
    let mut kept = kept();
    kept.path = Some(path);
    kept.read();
}

/// Writes what was measured since it was last written; nothing without [`use_file`].
///
/// # Errors
/// The file system's.
pub fn save() -> io::Result<()> {
    kept().save()
}

/// While one of these is, what has not been measured is, at the cost of waiting for the device: for warming up.
#[derive(Debug)]
pub struct Measuring(());

impl Measuring {
    /// Begins.
    pub fn start() -> Self {
        MEASURING.fetch_add(1, Ordering::AcqRel);
        Self(())
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        MEASURING.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(feature = "cuda")]
pub(crate) use of_device::*;

/// What the device's own parts do with it.
#[cfg(feature = "cuda")]
mod of_device {
    use super::*;

    /// Says what is measured with.
    pub(crate) fn measured_with(with: MeasuredWith) {
        let mut kept = kept();
        kept.with = Some(with);
        kept.read();
    }

    pub(crate) fn get(key: &str) -> Option<String> {
        kept().tuning.get(key).map(str::to_owned)
    }

    pub(crate) fn insert(key: String, value: String) {
        kept().tuning.insert(key, value);
    }

    pub(crate) fn is_measuring() -> bool {
        MEASURING.load(Ordering::Acquire) > 0
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// FNV-1a: against files that broke off or were edited, not against an enemy.
fn checksum(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with() -> MeasuredWith {
        let [gpu, driver, library, program] = ["NVIDIA H200", "13000", "130100", "0.1.0"].map(str::to_owned);
        MeasuredWith { gpu, driver, library, program }
    }

    fn some() -> Tuning {
        let mut tuning = Tuning::default();
        tuning.insert("linear f16 1280 4096 640".into(), "00ff 12".into());
        tuning.insert("linear bf16 1 2 3".into(), "aa".into());
        tuning
    }

    #[test]
    fn what_is_written_is_read() -> Result<(), String> {
        for tuning in [Tuning::default(), some()] {
            let read = Tuning::read(tuning.text(&with()).as_bytes(), &with())?;
            assert_eq!(read.entries, tuning.entries);
            assert!(!read.is_changed());
        }
        assert_eq!(some().get("linear bf16 1 2 3"), Some("aa"));
        assert_eq!(some().get("linear bf16 3 2 1"), None);
        Ok(())
    }

    #[test]
    fn what_was_measured_with_something_else_is_not_used() {
        let text = some().text(&with());
        for (change, name) in [
            (MeasuredWith { gpu: "Tesla T4".into(), ..with() }, "gpu"),
            (MeasuredWith { driver: "12080".into(), ..with() }, "driver"),
            (MeasuredWith { library: "130101".into(), ..with() }, "library"),
            (MeasuredWith { program: "0.2.0".into(), ..with() }, "program"),
        ] {
            let why = Tuning::read(text.as_bytes(), &change).unwrap_err();
            assert!(why.contains(&format!("measured with {name}")), "{why}");
        }
    }

    #[test]
    fn other_versions_are_not_used() {
        let text = some().text(&with()).replace("tuning 1\n", "tuning 2\n");
        let why = Tuning::read(text.as_bytes(), &with()).unwrap_err();
        assert!(why.contains("\"aquatint tuning 2\""), "{why}");
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        let text = some().text(&with()).into_bytes();
        for length in 0..text.len() {
            assert!(Tuning::read(&text[..length], &with()).is_err(), "the first {length} bytes");
        }
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.clone();
                damaged[at] ^= 1 << bit;
                assert!(Tuning::read(&damaged, &with()).is_err(), "byte {at}, bit {bit}");
            }
        }
        for foreign in [&b""[..], b"\n", b"\xff\xfe", b"aquatint tuning 1\nchecksum 0\n", b"{}"] {
            assert!(Tuning::read(foreign, &with()).is_err());
        }
    }

    #[test]
    fn lines_stay_lines() -> Result<(), String> {
        let mut tuning = some();
        for (key, value) in [("a\nb", "c"), ("a = b", "c"), ("a", "c\r"), ("a", "b = c")] {
            tuning.insert(key.into(), value.into());
        }
        assert_eq!(tuning, some());
        let odd = MeasuredWith { gpu: "a\nchecksum 0".into(), ..with() };
        assert!(Tuning::read(tuning.text(&odd).as_bytes(), &odd).is_err(), "it is measured anew each time");
        Ok(())
    }

    #[test]
    fn what_one_process_measured_the_next_one_knows() -> Result<(), Box<dyn std::error::Error>> {
        let folder = std::env::temp_dir().join(format!("aquatint-kept-{}", std::process::id()));
        let path = folder.join("tuning.txt");
        let begun = || {
            let mut kept = Kept { path: Some(path.clone()), with: Some(with()), ..Kept::NOTHING };
            kept.read();
            kept
        };
        let mut first = begun();
        first.save()?;
        assert!(!path.exists(), "there is nothing to be kept");
        first.tuning.insert("a".into(), "b".into());
        first.save()?;
        assert_eq!(begun().tuning.get("a"), Some("b"));
        std::fs::write(&path, "damaged")?;
        let mut again = begun();
        assert_eq!(again.tuning.get("a"), None);
        again.tuning.insert("a".into(), "c".into());
        again.save()?;
        assert_eq!(begun().tuning.get("a"), Some("c"), "it is written anew");
        std::fs::remove_dir_all(folder)?;
        let mut nowhere = Kept { with: Some(with()), tuning: some(), ..Kept::NOTHING };
        Ok(nowhere.save()?)
    }

    #[test]
    fn files_come_and_go_whole() -> Result<(), Box<dyn std::error::Error>> {
        let folder = std::env::temp_dir().join(format!("aquatint-tuning-{}", std::process::id()));
        let path = folder.join("deep/tuning.txt");
        assert_eq!(Tuning::open(&path, &with())?, Tuning::default());
        let mut tuning = some();
        assert!(tuning.is_changed());
        tuning.save(&path, &with())?;
        assert!(!tuning.is_changed());
        assert_eq!(Tuning::open(&path, &with())?, tuning);
        assert_eq!(std::fs::read_dir(folder.join("deep"))?.count(), 1, "nothing else is left");
        std::fs::write(&path, vec![b'a'; MAX_BYTES as usize + 1])?;
        assert!(Tuning::open(&path, &with()).is_err());
        assert!(Tuning::open(&folder, &with()).is_err(), "a folder");
        std::fs::remove_dir_all(folder)?;
        Ok(())
    }
}
