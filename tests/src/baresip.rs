//! baresip, calling and called: a softphone of another family, without a screen or a sound card.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

/// Longest wait for the program itself.
const UP_WITHIN: Duration = Duration::from_secs(20);
/// Longest wait for what the other side does.
const EVENT_WITHIN: Duration = Duration::from_secs(20);

/// What was said and what was heard in one call, 8 kHz.
#[derive(Debug)]
pub struct Heard {
    /// As the encoder got it.
    pub said: Vec<i16>,
    /// As the decoder gave it.
    pub heard: Vec<i16>,
    /// What baresip printed.
    pub output: String,
}

/// A codec as baresip knows it.
#[derive(Debug, Clone, Copy)]
pub struct Codec {
    /// The module that has it.
    pub module: &'static str,
    /// Its name in an account: encoding, clock rate, channels.
    pub name: &'static str,
    /// Samples a second of its sound, and channels that it is recorded in.
    pub sound: (u32, u32),
}

/// G.722.
pub const G722: Codec = Codec { module: "g722.so", name: "G722/16000/1", sound: (16_000, 1) };
/// Opus.
pub const OPUS: Codec = Codec { module: "opus.so", name: "opus/48000/2", sound: (48_000, 2) };
const G711: Codec = Codec { module: "g711.so", name: "", sound: (8_000, 1) };

/// Calls this URI in G.711, says these 8 kHz samples, hangs up at their end.
pub fn call(uri: &str, say: &[i16]) -> anyhow::Result<Heard> {
    call_in(G711, uri, say)
}

/// The same in another codec, with samples of its rate. What was said and heard is given at 8 kHz.
pub fn call_in(codec: Codec, uri: &str, say: &[i16]) -> anyhow::Result<Heard> {
    let only = if codec.name.is_empty() { String::new() } else { format!(";audio_codecs={}", codec.name) };
    call_as(codec, &format!("<sip:caller@127.0.0.1>;regint=0{only}"), "", uri, say)
}

/// The same from an account in the words of its `accounts` file, with more lines for its `config`.
pub fn call_with(account: &str, settings: &str, uri: &str, say: &[i16]) -> anyhow::Result<Heard> {
    call_as(G711, account, settings, uri, say)
}

fn call_as(codec: Codec, account: &str, settings: &str, uri: &str, say: &[i16]) -> anyhow::Result<Heard> {
    let (rate_hz, channels) = codec.sound;
    let folder = tempfile::Builder::new().prefix("tandem-baresip-").tempdir()?;
    let path = folder.path();
    crate::sound::write_wav(&path.join("source.wav"), rate_hz, say)?;
    let own = config(path)
        .replace("module g711.so", &format!("module {}", codec.module))
        .replace("srate 8000", &format!("srate {rate_hz}"));
    std::fs::write(path.join("config"), own + settings)?;
    std::fs::write(path.join("accounts"), format!("{account}\n"))?;
    std::fs::write(path.join("contacts"), "")?;
    let talk = Duration::from_millis(say.len() as u64 * 1_000 / u64::from(rate_hz));
    // It reads the file into memory, then dials; the call ends with the file, the program a moment later.
    let quit_after = (talk + Duration::from_secs(5)).as_secs();
    let out = std::fs::File::create(path.join("out"))?;
    let mut baresip = Command::new("baresip")
        .arg("-f")
        .arg(path)
        .args(["-e", &format!("d {uri}"), "-t", &quit_after.to_string()])
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .context("baresip is missing: scripts/setup.sh test installs it")?;
    let limit = Duration::from_secs(quit_after + 10);
    let ended = crate::eventually("baresip ends", limit, || baresip.try_wait().ok().flatten());
    if ended.is_err() {
        baresip.kill()?;
        baresip.wait()?;
    }
    let output = String::from_utf8_lossy(&std::fs::read(path.join("out"))?).into_owned();
    ended.with_context(|| output.clone())?;
    let dump = |end: &str| -> anyhow::Result<Vec<i16>> {
        let names = std::fs::read_dir(path)?.filter_map(Result::ok).map(|entry| entry.path());
        let mut found = names.filter(|name| name.to_string_lossy().ends_with(end));
        let recording = found.next().with_context(|| format!("no recording {end}; it said:\n{output}"))?;
        let samples = crate::sound::read_wav(&recording)?;
        // The mean of what becomes one sample is filter enough for telling whether it is the same sound.
        let many = (rate_hz / 8_000 * channels) as usize;
        let mean =
            |part: &[i16]| (part.iter().map(|&sample| i64::from(sample)).sum::<i64>() / many as i64) as i16;
        Ok(samples.chunks_exact(many).map(mean).collect())
    };
    Ok(Heard { said: dump("-enc.wav")?, heard: dump("-dec.wav")?, output })
}

/// A phone that is told what to do, step by step; ended when dropped.
pub struct Phone {
    child: Child,
    folder: tempfile::TempDir,
    control: TcpStream,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Phone {
    /// Starts it with one account, in the words of baresip's `accounts` file: `<sip:user@host>;auth_pass=…`, and more lines
    /// for its `config`. It says these 8 kHz samples in each call.
    pub fn start(account: &str, settings: &str, say: &[i16]) -> anyhow::Result<Self> {
        Self::start_at(0, account, settings, say)
    }

    /// The same, at this port of loopback.
    pub fn start_at(sip_port: u16, account: &str, settings: &str, say: &[i16]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tandem-baresip-").tempdir()?;
        let path = folder.path();
        let port = crate::stack::free_port()?;
        crate::sound::write_wav(&path.join("source.wav"), 8_000, say)?;
        let control = format!("ctrl_tcp_listen 127.0.0.1:{port}\nmodule_app ctrl_tcp.so\n");
        let config =
            config(path).replace("sip_listen 127.0.0.1:0", &format!("sip_listen 127.0.0.1:{sip_port}"));
        std::fs::write(path.join("config"), config + &control + settings)?;
        std::fs::write(path.join("accounts"), format!("{account}\n"))?;
        std::fs::write(path.join("contacts"), "")?;
        let out = std::fs::File::create(path.join("out"))?;
        let mut child = Command::new("baresip")
            .arg("-f")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("baresip is missing: scripts/setup.sh test installs it")?;
        let connected = crate::eventually("baresip takes commands", UP_WITHIN, || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let control = match connected {
            Ok(control) => control,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = std::fs::read_to_string(path.join("out")).unwrap_or_default();
                return Err(error.context(said));
            }
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let (reader, seen) = (control.try_clone()?, Arc::clone(&events));
        std::thread::spawn(move || read_events(reader, &seen));
        Ok(Self { child, folder, control, events })
    }

    /// A command of its menu: `dial sip:…`, `hold`, `resume`, `sndcode 5`, `transfer sip:…`, `hangup`, `accept`.
    pub fn command(&mut self, command: &str) -> anyhow::Result<()> {
        let (command, parameters) = command.split_once(' ').unwrap_or((command, ""));
        let before = self.answers();
        let text = json!({ "command": command, "params": parameters }).to_string();
        self.control.write_all(format!("{}:{text},", text.len()).as_bytes())?;
        let answer = crate::eventually(&format!("baresip answers to {command}"), UP_WITHIN, || {
            self.events().iter().filter(|event| event["response"] == true).nth(before).cloned()
        })?;
        anyhow::ensure!(answer["ok"] == true, "{command}: {answer}\n{}", self.said());
        Ok(())
    }

    /// Waits until a registrar has said 200. (Its event may come before we listen to events.)
    pub fn is_registered(&self) -> anyhow::Result<()> {
        crate::eventually("baresip is registered", EVENT_WITHIN, || {
            self.said().contains("} 200 OK (").then_some(())
        })
        .with_context(|| self.said())
    }

    /// Waits until it was called and has answered by itself, as `answermode=auto` wants it. (That is no event.)
    pub fn answers_by_itself(&self) -> anyhow::Result<()> {
        crate::eventually("baresip answers", EVENT_WITHIN, || {
            self.said().contains("answering call").then_some(())
        })
        .with_context(|| self.said())
    }

    /// Waits for the nth event (from 1) of this type: `CALL_INCOMING`, `CALL_ESTABLISHED`, `CALL_CLOSED`,
    /// `CALL_REMOTE_SDP`, `TRANSFER_FAILED`, …
    pub fn event(&self, kind: &str, nth: usize) -> anyhow::Result<Value> {
        crate::eventually(&format!("event {kind} number {nth} of baresip"), EVENT_WITHIN, || {
            self.events().iter().filter(|event| event["type"] == kind).nth(nth - 1).cloned()
        })
        .with_context(|| self.said())
    }

    /// What it has printed.
    pub fn said(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("out")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn answers(&self) -> usize {
        self.events().iter().filter(|event| event["response"] == true).count()
    }

    fn events(&self) -> MutexGuard<'_, Vec<Value>> {
        self.events.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Netstrings (`length:json,`) until the connection ends.
fn read_events(mut stream: TcpStream, seen: &Mutex<Vec<Value>>) {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4_096]);
    while let Ok(len @ 1..) = stream.read(&mut piece) {
        bytes.extend_from_slice(&piece[..len]);
        while let Some((event, used)) = first_event(&bytes) {
            bytes.drain(..used);
            seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(event);
        }
    }
}

/// The first whole netstring, and how many octets it takes.
fn first_event(bytes: &[u8]) -> Option<(Value, usize)> {
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let length: usize = std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()?;
    let end = colon + 1 + length;
    let text = bytes.get(colon + 1..end)?;
    (bytes.len() > end).then(|| (serde_json::from_slice(text).unwrap_or(Value::Null), end + 1))
}

fn config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "poll_method epoll\n\
         sip_listen 127.0.0.1:0\n\
         sip_trans_def udp\n\
         audio_path {folder}\n\
         audio_source aufile,{folder}/source.wav\n\
         audio_player aufile,{folder}/unused.wav\n\
         audio_alert aufile,/dev/null\n\
         ausrc_srate 8000\n\
         auplay_srate 8000\n\
         ausrc_channels 1\n\
         auplay_channels 1\n\
         snd_path {folder}\n\
         net_interface 127.0.0.1\n\
         jitter_buffer_type off\n\
         module_path /usr/lib/baresip/modules\n\
         module g711.so\n\
         module aufile.so\n\
         module sndfile.so\n\
         module_tmp account.so\n\
         module_app menu.so\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_one_by_one_and_a_part_of_one_waits() {
        let bytes = b"12:{\"type\":\"A\"},12:{\"type\":\"B\"}";
        let (event, used) = first_event(bytes).unwrap();
        assert_eq!((event["type"].as_str(), used), (Some("A"), 16));
        assert!(first_event(&bytes[used..]).is_none());
    }
}
