//! The state folder as `tandem up` uses it.
//!
//! ```text
//!   .tandem/                 0700
//!   ├── master-key           0600, made once; encrypts the vault
//!   ├── service-token        0600, made once; our own processes prove themselves with it
//!   ├── run/up.lock          held by the supervisor that is in charge
//!   ├── run/NAME.json        who each child is: pid, start time, boot, fingerprint
//!   └── log/NAME.log         what each child wrote; NAME.log.1 is what came before
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::process::Identity;

/// A log that has grown past this is moved aside, so that a forgotten machine's disk does not fill: two files a child.
const LOG_BYTES_MAX: u64 = 32 << 20;
/// How far back from its end a log is read for its last lines.
const TAIL_BYTES: u64 = 16 << 10;

/// The state folder.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

/// Held while a supervisor is in charge; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "holds the lock while it is open")] File);

/// What is remembered of a child that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// What it was started as.
    pub fingerprint: String,
}

impl Folder {
    /// Opens the folder, and makes it when it is missing.
    pub fn open(root: &Path) -> io::Result<Self> {
        let make = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(root)?;
        // Children may be started in any working folder: from here on the path is absolute.
        let folder = Self { root: root.canonicalize()? };
        make(&folder.root.join("run"))?;
        make(&folder.root.join("log"))?;
        Ok(folder)
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Becomes the one supervisor of this folder; `None` when there is another.
    pub fn lock(&self) -> io::Result<Option<Lock>> {
        let path = self.root.join("run/up.lock");
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                Ok(Some(Lock(file)))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// A secret of 32 random bytes in hexadecimal, made on first use and readable by the owner only.
    pub fn secret(&self, name: &str) -> io::Result<String> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Ok(_) => fs::remove_file(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let secret = hex::encode(rand::random::<[u8; 32]>());
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        writeln!(file, "{secret}")?;
        file.sync_all()?;
        Ok(secret)
    }

    /// What is remembered of a child; `None` when there is nothing, or nothing that can be read.
    pub fn record(&self, name: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_path(name)).ok()?).ok()
    }

    /// Remembers a child.
    pub fn remember(&self, name: &str, record: &Record) -> io::Result<()> {
        let path = self.record_path(name);
        let draft = path.with_extension("json.new");
        // Whole or not at all: a supervisor killed in mid-write must not leave half a record.
        fs::write(&draft, serde_json::to_vec(record)?)?;
        fs::rename(draft, path)
    }

    /// Forgets a child that has been ended.
    pub fn forget(&self, name: &str) {
        let _ = fs::remove_file(self.record_path(name));
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.root.join("run").join(format!("{name}.json"))
    }

    /// Where a child's output goes.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.root.join("log").join(format!("{name}.log"))
    }

    /// Opens a child's log for appending.
    pub fn log(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(self.log_path(name))
    }

    /// Moves a log that has grown too long aside. The child keeps its descriptor, so the file is copied and emptied;
    /// what is written between the two is lost, which for a log of 32 MiB is the smaller evil.
    pub fn rotate_log(&self, name: &str) -> io::Result<()> {
        let path = self.log_path(name);
        if fs::metadata(&path).map_or(0, |file| file.len()) < LOG_BYTES_MAX {
            return Ok(());
        }
        fs::copy(&path, path.with_extension("log.1"))?;
        OpenOptions::new().write(true).truncate(true).open(&path).map(drop)
    }

    /// The last lines of a child's log, each below the one before, for the end of a message.
    pub fn log_end(&self, name: &str) -> String {
        self.log_tail(name, 5).iter().map(|line| format!("\n  {name} | {line}")).collect()
    }

    /// The last lines of a child's log.
    pub fn log_tail(&self, name: &str, lines: usize) -> Vec<String> {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.log_path(name))?;
            let from = file.metadata()?.len().saturating_sub(TAIL_BYTES);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        all.iter().skip(all.len().saturating_sub(lines)).map(|line| (*line).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(&temp.path().join("state")).unwrap();
        (temp, folder)
    }

    #[test]
    fn secrets_are_made_once_and_are_the_owners_only() {
        let (_temp, folder) = folder();
        let first = folder.secret("service-token").unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(folder.secret("service-token").unwrap(), first);
        assert_ne!(folder.secret("master-key").unwrap(), first);
        let mode = fs::metadata(folder.path().join("service-token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mode = fs::metadata(folder.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn only_one_supervisor_is_in_charge_of_a_folder() {
        let (_temp, folder) = folder();
        let lock = folder.lock().unwrap();
        assert!(lock.is_some());
        assert!(folder.lock().unwrap().is_none());
        drop(lock);
        assert!(folder.lock().unwrap().is_some());
    }

    #[test]
    fn records_come_back_as_they_were_and_rubbish_is_nothing() {
        let (_temp, folder) = folder();
        let identity = Identity { pid: 7, started_ticks: 9, boot_id: "b".into() };
        let record = Record { identity, fingerprint: "f".into() };
        assert_eq!(folder.record("engine"), None);
        folder.remember("engine", &record).unwrap();
        assert_eq!(folder.record("engine"), Some(record));
        fs::write(folder.record_path("engine"), "{half").unwrap();
        assert_eq!(folder.record("engine"), None);
    }

    #[test]
    fn tail_gives_the_last_lines_of_a_long_log() {
        let (_temp, folder) = folder();
        let mut log = folder.log("engine").unwrap();
        for line in 0..5_000 {
            writeln!(log, "line {line}").unwrap();
        }
        assert_eq!(folder.log_tail("engine", 2), ["line 4998", "line 4999"]);
        assert!(folder.log_tail("nobody", 2).is_empty());
    }

    #[test]
    fn overlong_log_is_moved_aside_and_its_writer_goes_on() {
        let (_temp, folder) = folder();
        let mut log = folder.log("engine").unwrap();
        log.set_len(LOG_BYTES_MAX).unwrap();
        folder.rotate_log("engine").unwrap();
        writeln!(log, "after").unwrap();
        assert_eq!(fs::read_to_string(folder.log_path("engine")).unwrap(), "after\n");
        assert_eq!(fs::metadata(folder.root.join("log/engine.log.1")).unwrap().len(), LOG_BYTES_MAX);
    }
}
