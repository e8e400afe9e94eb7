//! Joins the two legs and transcodes between them, chosen once a session and again when the codec changes.
//!
//! ```text
//!   payload ─▶ Decoder ─▶ samples at the agent's rate ─▶ Ear ─▶ agent       (up: at once)
//!      gap ─▶ concealment ──▲                             └─ speech? keys?
//!   payload ◀─ Encoder ◀─ samples at the agent's rate ◀─ playout queue      (down: when a frame is due)
//! ```
//!
//! What is lost is concealed, and fades to silence when it lasts; comfort noise stands for a caller who pauses. When a
//! re-INVITE changes the codec, each direction goes on from where it was: up, the old decoder's guess of what comes next is
//! cross-faded with what the new one hears; down, the new encoder is given the last sound again and neither repeats nor
//! skips what the two codecs' delays differ by.

use std::ops::Range;

use smallvec::SmallVec;
use tandem_audio::dtmf::{ToneDetector, ToneEvent};
use tandem_audio::format::{Codec, MAX_PACKET_SAMPLES, Ptime, SampleRate};
use tandem_audio::noise::{NoiseGenerator, Sid};
use tandem_audio::opus::{MAX_DTX_OCTETS, OpusSettings};
use tandem_audio::transcode::{Decoder, Encoder};
use tandem_audio::vad::{Vad, VadEvent};
use tandem_rtp::units::PayloadType;

use crate::leg::event::Heard;

/// Samples of 20 ms at the highest rate: what is made up at once.
const UP_SAMPLES: usize = SampleRate::Hz48000.samples(Ptime::MS_20);

/// The same at the rate of most agents: what is decoded at once.
const NARROW_UP_SAMPLES: usize = SampleRate::Hz16000.samples(Ptime::MS_20);

/// A gap is filled up to here and no further: nobody wants seconds of silence at once.
const GAP_MS_MAX: u64 = 600;

/// Length of the cross-fade from one decoder to the next.
const SWAP_FADE: Ptime = Ptime::MS_10;

/// How much of what was sent is kept for the next encoder: more than any resampler looks back on, and than any two codecs'
/// delays differ by.
const KEPT: Ptime = Ptime::MS_20;

/// Keys that can end within one packet: a key and its pause take 50 ms at least.
const KEYS_AT_ONCE: usize = 4;

/// What else was negotiated of the sound, or is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SoundParameters {
    /// Comfort noise (RFC 3389), if it was negotiated.
    pub comfort_noise_payload_type: Option<PayloadType>,
    /// Keys are looked for in the sound itself.
    pub inband_dtmf: bool,
    /// When the codec is Opus.
    pub opus: OpusSettings,
}

/// A key that was found in the sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeardKey {
    /// Which.
    pub digit: char,
    /// How long it was down.
    pub duration_ms: u32,
}

/// What listens to the caller on the way to the agent.
#[derive(Debug)]
struct Ear {
    vad: Option<Box<Vad>>,
    keys: Option<Box<Keys>>,
    /// After a change of codec.
    tail: Option<Box<Tail>>,
    changed: Option<VadEvent>,
    /// What it hears is noise of our own making.
    is_noise: bool,
}

/// Keys in the sound itself.
#[derive(Debug)]
struct Keys {
    detector: ToneDetector,
    heard: SmallVec<[HeardKey; KEYS_AT_ONCE]>,
}

impl Keys {
    fn new(rate: SampleRate) -> Box<Self> {
        Box::new(Self { detector: ToneDetector::new(rate), heard: SmallVec::new() })
    }

    fn hear(&mut self, samples: &[i16]) {
        let heard = &mut self.heard;
        self.detector.process(samples, |event| match event {
            ToneEvent::Released { digit, duration_ms } if heard.len() < KEYS_AT_ONCE => {
                heard.push(HeardKey { digit: digit.as_char(), duration_ms });
            }
            ToneEvent::Released { .. } | ToneEvent::Pressed(_) => {}
        });
    }
}

/// What the decoder before this one would have said next, and how much of it is used up.
#[derive(Debug)]
struct Tail {
    samples: Vec<i16>,
    used: usize,
}

impl Ear {
    fn hear(&mut self, samples: &mut [i16], agent: &mut impl FnMut(&[i16])) {
        if let Some(tail) = &mut self.tail {
            tail.fade_into(samples);
        }
        if let Some(vad) = &mut self.vad {
            let change = if self.is_noise { vad.pause(samples.len()) } else { vad.process(samples) };
            self.changed = change.or(self.changed);
        }
        if let Some(keys) = &mut self.keys {
            keys.hear(samples);
        }
        agent(samples);
    }
}

impl Tail {
    fn fade_into(&mut self, samples: &mut [i16]) {
        let len = self.samples.len() as i32;
        for (sample, &old) in samples.iter_mut().zip(&self.samples[self.used..]) {
            let new = self.used as i32 + 1;
            *sample = ((i32::from(*sample) * new + i32::from(old) * (len - new)) / len) as i16;
            self.used += 1;
        }
    }
}

/// How the first frame of a new encoder differs from what the agent gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seam {
    None,
    /// The new path is slower by so many samples: it takes them at once, so that nothing is said twice.
    Ahead(usize),
    /// It is faster: so many that were given already are said by it, so that nothing is skipped.
    Behind(usize),
}

/// See the module.
#[derive(Debug)]
pub struct Bridge {
    codec: Codec,
    ptime: Ptime,
    sound: SoundParameters,
    /// How long the caller's last packet was; his ptime need not be ours.
    heard_ms: u64,
    decoder: Decoder,
    /// Packets of Opus that are missing: the next one may bring the last of them.
    missing: u64,
    /// The caller said that he pauses, by comfort noise or by an empty packet of Opus.
    is_paused: bool,
    noise: Option<Box<NoiseGenerator>>,
    ear: Ear,
    encoder: Encoder,
    /// Where frames are made: room for one of ours and [`KEPT`]. Kept, so that nothing is copied for the sake of a change of
    /// codec that hardly ever comes.
    frame: Vec<i16>,
    /// Of it, the last sound that was encoded; empty after silence.
    sent: Range<usize>,
    seam: Seam,
}

impl Bridge {
    /// A bridge between a carrier leg and an agent; `listens` for the begin and end of speech.
    pub fn new(codec: Codec, ptime: Ptime, rate: SampleRate, listens: bool, sound: SoundParameters) -> Self {
        let ear = Ear {
            vad: listens.then(|| Box::new(Vad::new(rate))),
            keys: sound.inband_dtmf.then(|| Keys::new(rate)),
            tail: None,
            changed: None,
            is_noise: false,
        };
        Self {
            codec,
            ptime,
            sound,
            heard_ms: u64::from(ptime.as_ms()),
            decoder: Decoder::concealing(codec, rate),
            missing: 0,
            is_paused: false,
            noise: sound
                .comfort_noise_payload_type
                .map(|number| Box::new(NoiseGenerator::new(u32::from(number.get())))),
            ear,
            encoder: Encoder::with_opus(rate, codec, sound.opus),
            frame: vec![0; rate.samples(ptime) + rate.samples(KEPT)],
            sent: 0..0,
            seam: Seam::None,
        }
    }

    /// The codec of the carrier leg.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Whether the caller speaks, if anybody listens for it.
    pub fn is_speech(&self) -> Option<bool> {
        self.ear.vad.as_ref().map(|vad| vad.is_speech())
    }

    /// Nobody asks for the begin and end of speech any more.
    pub fn cease_listening(&mut self) {
        self.ear.vad = None;
    }

    /// The caller pauses: [`Bridge::up_pause`] has something.
    pub const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The agent's rate.
    pub fn rate(&self) -> SampleRate {
        self.decoder.rate()
    }

    /// A re-INVITE changed something. Both ways go on without a gap or a click.
    pub fn update(&mut self, codec: Codec, ptime: Ptime, sound: SoundParameters) {
        let rate = self.rate();
        self.ptime = ptime;
        let room = rate.samples(ptime) + rate.samples(KEPT);
        self.frame.resize(room.max(self.frame.len()), 0);
        if sound.inband_dtmf != self.ear.keys.is_some() {
            self.ear.keys = sound.inband_dtmf.then(|| Keys::new(rate));
        }
        if sound.comfort_noise_payload_type.is_none() {
            self.noise = None;
        } else if let (None, Some(number)) = (&self.noise, sound.comfort_noise_payload_type) {
            self.noise = Some(Box::new(NoiseGenerator::new(u32::from(number.get()))));
        }
        if codec != self.codec {
            let mut tail = vec![0; rate.samples(SWAP_FADE)];
            let len = self.decoder.conceal(&mut tail);
            tail.truncate(len);
            self.ear.tail = Some(Box::new(Tail { samples: tail, used: 0 }));
            self.decoder = Decoder::concealing(codec, rate);
            (self.missing, self.is_paused) = (0, false);
        }
        if codec != self.codec || (codec == Codec::Opus && sound.opus != self.sound.opus) {
            let mut encoder = Encoder::with_opus(rate, codec, sound.opus);
            let samples = |delay: std::time::Duration| {
                (delay.as_micros() as usize * rate.samples_per_ms() + 500) / 1_000
            };
            let (before, after) = (samples(self.encoder.delay()), samples(encoder.delay()));
            let behind = before.saturating_sub(after).min(self.sent.len());
            encoder.prime(&self.frame[self.sent.start..self.sent.end - behind]);
            self.seam = match after.saturating_sub(before) {
                _ if self.sent.is_empty() => Seam::None,
                0 => Seam::Behind(behind),
                ahead => Seam::Ahead(ahead.min(rate.samples(KEPT))),
            };
            self.encoder = encoder;
        }
        (self.codec, self.sound) = (codec, sound);
    }

    /// What the caller said, as samples for the agent, and whether speech began or ended with it. What did not come is
    /// concealed, so that the agent's sense of time stays right.
    pub fn up(&mut self, heard: Heard<'_>, mut agent: impl FnMut(&[i16])) -> Option<VadEvent> {
        match heard {
            Heard::Sound(payload) if self.codec == Codec::Opus => self.up_opus(payload, &mut agent),
            Heard::Sound(payload) => {
                self.is_paused = false;
                self.heard_ms = self.codec.ms_in(payload) as u64;
                if self.rate() <= SampleRate::Hz16000 {
                    self.decode::<NARROW_UP_SAMPLES>(payload, &mut agent);
                } else {
                    self.decode::<UP_SAMPLES>(payload, &mut agent);
                }
            }
            // Opus waits for the next packet, which may bring the lost one again; it is here already, or there were no gap.
            Heard::Gap { packets } if self.codec == Codec::Opus => {
                self.missing = self.missing.saturating_add(packets)
            }
            Heard::Gap { packets } => self.conceal(packets.saturating_mul(self.heard_ms), &mut agent),
            Heard::Noise(payload) => {
                if let (Some(noise), Some(sid)) = (&mut self.noise, Sid::parse(payload)) {
                    noise.set(&sid);
                    self.is_paused = true;
                }
            }
        }
        self.ear.changed.take()
    }

    /// A packet time has passed: while the caller pauses, the agent hears that much of comfort noise.
    pub fn up_pause(&mut self, mut agent: impl FnMut(&[i16])) -> Option<VadEvent> {
        if !self.is_paused {
            return None;
        }
        let ms = u64::from(self.ptime.as_ms());
        if self.codec == Codec::Opus {
            self.conceal(ms, &mut agent);
        } else {
            self.make_noise(ms, &mut agent);
        }
        self.ear.changed.take()
    }

    /// A key that was found in the sound.
    pub fn poll_key(&mut self) -> Option<HeardKey> {
        let heard = &mut self.ear.keys.as_mut()?.heard;
        if heard.is_empty() { None } else { Some(heard.remove(0)) }
    }

    /// Sound in pieces of 20 ms, which fill `SAMPLES` at most.
    fn decode<const SAMPLES: usize>(&mut self, payload: &[u8], agent: &mut impl FnMut(&[i16])) {
        let mut samples = [0; SAMPLES];
        for piece in payload.chunks(self.codec.octets(Ptime::MS_20)) {
            let len = self.decoder.decode(piece, &mut samples);
            self.ear.hear(&mut samples[..len], agent);
        }
    }

    #[inline(never)]
    fn up_opus(&mut self, payload: &[u8], agent: &mut impl FnMut(&[i16])) {
        let mut samples = [0; MAX_PACKET_SAMPLES];
        let missing = std::mem::take(&mut self.missing);
        if missing > 0 {
            self.conceal((missing - 1).saturating_mul(self.heard_ms), agent);
            let lost = (self.heard_ms as usize * self.rate().samples_per_ms()).min(MAX_PACKET_SAMPLES);
            let len = self.decoder.recover(payload, &mut samples[..lost]);
            self.ear.hear(&mut samples[..len], agent);
        }
        let len = self.decoder.decode(payload, &mut samples);
        self.is_paused = payload.len() <= MAX_DTX_OCTETS;
        if len > 0 {
            self.heard_ms = (len / self.rate().samples_per_ms()) as u64;
            self.ear.hear(&mut samples[..len], agent);
        }
    }

    fn conceal(&mut self, ms: u64, agent: &mut impl FnMut(&[i16])) {
        let mut samples = [0; UP_SAMPLES];
        let mut left = ms.min(GAP_MS_MAX) as usize * self.rate().samples_per_ms();
        while left > 0 {
            let part = &mut samples[..left.min(self.rate().samples(Ptime::MS_20))];
            left -= part.len();
            let len = self.decoder.conceal(part);
            self.ear.hear(&mut part[..len], agent);
        }
    }

    fn make_noise(&mut self, ms: u64, agent: &mut impl FnMut(&[i16])) {
        let Some(noise) = &mut self.noise else { return };
        let mut samples = [0; UP_SAMPLES];
        let mut left = ms as usize * self.decoder.rate().samples_per_ms();
        self.ear.is_noise = true;
        while left > 0 {
            let part = &mut samples[..left.min(self.decoder.rate().samples(Ptime::MS_20))];
            left -= part.len();
            let len = self.decoder.fill_noise(noise, part);
            self.ear.hear(&mut part[..len], agent);
        }
        self.ear.is_noise = false;
    }

    /// Fills a payload and says how long it is: `fill` writes samples at the agent's rate, over whatever is there, and says how many
    /// are sound; none: silence as such. A length of 0: nothing need be sent (Opus with DTX).
    pub fn down(&mut self, payload: &mut [u8], fill: impl FnOnce(&mut [i16]) -> usize) -> usize {
        let wanted = self.rate().samples(self.ptime);
        let (mut ahead, mut behind) = (0, 0);
        match std::mem::replace(&mut self.seam, Seam::None) {
            Seam::None => {}
            Seam::Ahead(extra) => ahead = extra,
            Seam::Behind(again) => behind = again.min(wanted).min(self.sent.len()),
        }
        let end = (wanted + ahead).min(self.frame.len());
        self.frame.copy_within(self.sent.end - behind..self.sent.end, 0);
        let fresh = &mut self.frame[behind..end];
        let filled = fill(fresh);
        if let Some(rest) = fresh.get_mut(filled..) {
            rest.fill(0);
        }
        let written = if filled == 0 && behind == 0 {
            self.sent = 0..0;
            self.encoder.encode_silence(wanted, payload)
        } else {
            let kept = (end - ahead).min(self.rate().samples(KEPT));
            self.sent = end - kept..end;
            self.encoder.prime(&self.frame[..ahead]);
            self.encoder.encode(&self.frame[ahead..end], payload)
        };
        match self.codec.silence_octet() {
            _ if self.codec == Codec::Opus && self.sound.opus.dtx && written <= MAX_DTX_OCTETS => 0,
            Some(octet) => {
                let whole = self.codec.octets(self.ptime).min(payload.len());
                if let Some(rest) = payload.get_mut(written..whole) {
                    rest.fill(octet);
                }
                whole
            }
            None => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_audio::pcm;
    use tandem_audio::tone::{Digit, DtmfTone, Sine};

    const RATE: SampleRate = SampleRate::Hz16000;

    fn bridge(codec: Codec) -> Bridge {
        Bridge::new(codec, Ptime::MS_20, RATE, false, SoundParameters::default())
    }

    /// A caller that speaks a codec: a tone of 300 Hz, in packets of 20 ms.
    struct Caller {
        tone: Sine,
        encoder: Encoder,
    }

    impl Caller {
        fn new(codec: Codec) -> Self {
            Self { tone: Sine::new(300.0, 10_000, RATE), encoder: Encoder::new(RATE, codec) }
        }

        fn packet(&mut self) -> Vec<u8> {
            let mut frame = [0; 320];
            self.tone.fill(&mut frame);
            let mut payload = [0; 1_500];
            let len = self.encoder.encode(&frame, &mut payload);
            payload[..len].to_vec()
        }
    }

    fn up(bridge: &mut Bridge, heard: Heard<'_>) -> Vec<i16> {
        let mut samples = Vec::new();
        bridge.up(heard, |part| samples.extend_from_slice(part));
        samples
    }

    fn gap_ms(codec: Codec, heard: &[usize], packets: u64) -> usize {
        let mut bridge = bridge(codec);
        for &octets in heard {
            up(&mut bridge, Heard::Sound(&vec![0; octets]));
        }
        up(&mut bridge, Heard::Gap { packets }).len() / RATE.samples_per_ms()
    }

    #[test]
    fn a_gap_is_as_long_as_the_packets_that_the_caller_sends() {
        assert_eq!(gap_ms(Codec::Pcmu, &[160], 3), 60);
        assert_eq!(gap_ms(Codec::Pcmu, &[480], 3), 180);
        assert_eq!(gap_ms(Codec::G722, &[160], 3), 60);
        assert_eq!(gap_ms(Codec::L16_16k, &[160 * 2], 3), 30);
        assert_eq!(gap_ms(Codec::Pcmu, &[160, 240], 1), 30, "the last packet counts");
        assert_eq!(gap_ms(Codec::Pcmu, &[], 2), 40, "before any packet: ours");
    }

    #[test]
    fn a_gap_of_seconds_is_not_filled() {
        assert_eq!(gap_ms(Codec::Pcmu, &[160], u64::MAX), GAP_MS_MAX as usize);
    }

    #[test]
    fn a_lost_packet_is_hardly_heard() {
        for codec in Codec::ALL {
            let (mut caller, mut bridge) = (Caller::new(codec), bridge(codec));
            for _ in 0..20 {
                up(&mut bridge, Heard::Sound(&caller.packet()));
            }
            caller.packet();
            let mut heard = up(&mut bridge, Heard::Gap { packets: 1 });
            heard.extend(up(&mut bridge, Heard::Sound(&caller.packet())));
            assert_eq!(heard.len(), 640, "{codec}");
            for part in heard.chunks(80) {
                assert!(pcm::rms(part) > 4_000.0, "{codec}: {}", pcm::rms(part));
            }
        }
    }

    #[test]
    fn a_long_gap_fades_to_silence() {
        for codec in [Codec::Pcmu, Codec::G722, Codec::L16_16k] {
            let (mut caller, mut bridge) = (Caller::new(codec), bridge(codec));
            for _ in 0..20 {
                up(&mut bridge, Heard::Sound(&caller.packet()));
            }
            let heard = up(&mut bridge, Heard::Gap { packets: 10 });
            assert_eq!(heard.len(), 3_200);
            assert_eq!(pcm::peak(&heard[70 * 16..]), 0, "{codec}");
        }
    }

    #[test]
    fn comfort_noise_is_heard_until_the_caller_speaks_again() {
        let sound = SoundParameters {
            comfort_noise_payload_type: PayloadType::new(13),
            ..SoundParameters::default()
        };
        let mut bridge = Bridge::new(Codec::Pcmu, Ptime::MS_20, RATE, false, sound);
        let pause = |bridge: &mut Bridge| {
            let mut samples = Vec::new();
            bridge.up_pause(|part| samples.extend_from_slice(part));
            samples
        };
        assert!(pause(&mut bridge).is_empty());
        assert!(up(&mut bridge, Heard::Noise(&[40])).is_empty());
        let noise: Vec<i16> = (0..50).flat_map(|_| pause(&mut bridge)).collect();
        assert_eq!(noise.len(), 50 * 320);
        // White up to 4 kHz, and nothing above.
        assert!((pcm::level_dbfs(&noise) + 40.0).abs() < 1.0, "{}", pcm::level_dbfs(&noise));
        up(&mut bridge, Heard::Sound(&[0xFF; 160]));
        assert!(pause(&mut bridge).is_empty());
    }

    #[test]
    fn a_key_in_the_sound_is_found_if_it_is_wanted() {
        let mut signal = vec![0; 8 * 200];
        let tone =
            DtmfTone::new(Digit::from_char('5').unwrap(), SampleRate::Hz8000, 80, 60).fill(&mut signal);
        assert_eq!(tone, 8 * 140);
        let mut payload = vec![0; signal.len()];
        tandem_audio::g711::encode_alaw(&signal, &mut payload);
        for inband_dtmf in [true, false] {
            let sound = SoundParameters { inband_dtmf, ..SoundParameters::default() };
            let mut bridge = Bridge::new(Codec::Pcma, Ptime::MS_20, RATE, false, sound);
            let mut keys = Vec::new();
            for packet in payload.chunks(160) {
                up(&mut bridge, Heard::Sound(packet));
                keys.extend(bridge.poll_key());
            }
            assert_eq!(keys.len(), usize::from(inband_dtmf));
            assert!(
                keys.iter().all(|key| key.digit == '5' && (60..=90).contains(&key.duration_ms)),
                "{keys:?}"
            );
        }
    }

    /// Largest step from one sample to the next.
    fn largest_step(signal: &[i16]) -> u16 {
        signal.windows(2).map(|pair| pair[0].abs_diff(pair[1])).max().unwrap_or(0)
    }

    /// The largest step of the tone itself: 2π·300/16 000 of its amplitude.
    const TONE_STEP: u16 = 1_178;

    #[test]
    fn the_agent_hears_no_gap_and_no_click_when_the_codec_changes() {
        for from in Codec::ALL {
            for to in Codec::ALL.into_iter().filter(|to| *to != from) {
                let (mut caller, mut bridge) = (Caller::new(from), bridge(from));
                for _ in 0..20 {
                    up(&mut bridge, Heard::Sound(&caller.packet()));
                }
                let mut heard = up(&mut bridge, Heard::Sound(&caller.packet()));
                bridge.update(to, Ptime::MS_20, SoundParameters::default());
                caller.encoder = Encoder::new(RATE, to);
                for _ in 0..3 {
                    heard.extend(up(&mut bridge, Heard::Sound(&caller.packet())));
                }
                assert_eq!(heard.len(), 4 * 320, "{from} to {to}");
                let step = largest_step(&heard);
                assert!(step < 2 * TONE_STEP, "{from} to {to}: a step of {step}");
                for (n, part) in heard.chunks(160).enumerate() {
                    assert!(
                        pcm::rms(part) > 2_500.0,
                        "{from} to {to}: {} after {} ms",
                        pcm::rms(part),
                        n * 10
                    );
                }
            }
        }
    }

    #[test]
    fn the_caller_hears_every_sample_once_when_the_codec_changes() {
        // Codecs without memory: what the caller decodes is one tone, whatever resampler it went through.
        for (from, to) in [
            (Codec::Pcmu, Codec::L16_16k),
            (Codec::L16_16k, Codec::Pcmu),
            (Codec::L16_8k, Codec::L16_16k),
            (Codec::L16_16k, Codec::L16_8k),
            (Codec::Pcmu, Codec::Pcma),
        ] {
            let mut bridge = bridge(from);
            let mut tone = Sine::new(300.0, 10_000, RATE);
            let mut heard = Vec::new();
            let mut decoder = Decoder::new(from, SampleRate::Hz8000);
            for n in 0..20 {
                if n == 10 {
                    bridge.update(to, Ptime::MS_20, SoundParameters::default());
                    // The listener's own resampling must not be what is tested.
                    decoder = Decoder::new(to, to.sample_rate());
                }
                let mut payload = [0; 1_500];
                let len = bridge.down(&mut payload, |frame| {
                    tone.fill(frame);
                    frame.len()
                });
                if n == 10 && from.sample_rate() != to.sample_rate() {
                    // As many of the wider signal as the narrower one has.
                    heard.clear();
                }
                let mut samples = [0; 960];
                let count = decoder.decode(&payload[..len], &mut samples);
                heard.extend_from_slice(&samples[..count]);
            }
            let per_period = heard.len() / (if from.sample_rate() == to.sample_rate() { 20 } else { 10 } * 6);
            assert!(per_period > 20);
            // From the first sample of the new codec on the tone is whole: no ramp, no step.
            let slope = 2.0 * std::f64::consts::PI * 300.0 / f64::from(to.sample_rate().hz()) * 10_000.0;
            assert!(
                f64::from(largest_step(&heard)) < slope * 1.15 + 60.0,
                "{from} to {to}: {}",
                largest_step(&heard)
            );
            assert!(pcm::rms(&heard[..40]) > 3_000.0, "{from} to {to}");
        }
    }

    #[test]
    fn what_the_new_codec_says_first_follows_what_the_old_one_said_last() {
        // The phase at the seam: the last sample of one and the first of the other are neighbours in the tone.
        for (from, to) in [(Codec::L16_8k, Codec::L16_16k), (Codec::L16_16k, Codec::L16_8k)] {
            let mut bridge = bridge(from);
            let mut tone = Sine::new(100.0, 10_000, RATE);
            let mut ends = Vec::new();
            for (codec, frames) in [(from, 10), (to, 1)] {
                bridge.update(codec, Ptime::MS_20, SoundParameters::default());
                for _ in 0..frames {
                    let mut payload = [0; 1_500];
                    let len = bridge.down(&mut payload, |frame| {
                        tone.fill(frame);
                        frame.len()
                    });
                    let mut samples = [0; 960];
                    let count =
                        Decoder::new(codec, codec.sample_rate()).decode(&payload[..len], &mut samples);
                    ends.push((samples[0], samples[count - 1]));
                }
            }
            let (last, first) = (ends[9].1, ends[10].0);
            // 100 Hz rises by at most 785 in a sample at 8 kHz.
            assert!(last.abs_diff(first) < 850, "{from} to {to}: {last}, then {first}");
        }
    }

    #[test]
    fn opus_with_dtx_sends_nothing_while_the_agent_is_silent() {
        let opus = OpusSettings { dtx: true, ..OpusSettings::default() };
        let sound = SoundParameters { opus, ..SoundParameters::default() };
        let mut bridge = Bridge::new(Codec::Opus, Ptime::MS_20, RATE, false, sound);
        let mut payload = [0; 1_460];
        let sent = (0..100).filter(|_| bridge.down(&mut payload, |_| 0) > 0).count();
        assert!((1..40).contains(&sent), "{sent} of 100");
    }
}
