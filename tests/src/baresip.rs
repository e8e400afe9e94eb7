//! baresip as the caller: a softphone of another family, without a screen or a sound card.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

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

/// Calls this URI, says these 8 kHz samples, hangs up at their end.
pub fn call(uri: &str, say: &[i16]) -> anyhow::Result<Heard> {
    let folder = tempfile::Builder::new().prefix("tandem-baresip-").tempdir()?;
    let path = folder.path();
    crate::sound::write_wav(&path.join("source.wav"), 8_000, say)?;
    std::fs::write(path.join("config"), config(path))?;
    std::fs::write(path.join("accounts"), "<sip:caller@127.0.0.1>;regint=0\n")?;
    std::fs::write(path.join("contacts"), "")?;
    let talk = Duration::from_millis(say.len() as u64 / 8);
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
        crate::sound::read_wav(
            &found.next().with_context(|| format!("no recording {end}; it said:\n{output}"))?,
        )
    };
    Ok(Heard { said: dump("-enc.wav")?, heard: dump("-dec.wav")?, output })
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
