//! How soon words are noticed, and what else is: words of five voices in noises, through G.711.
//!
//! Times are those of the stream. `cargo test -p tandem-audio --test voice_activity -- --nocapture` prints the figures of `bench/RESULTS.md`.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use tandem_audio::format::SampleRate;
use tandem_audio::g711;
use tandem_audio::tone::{Digit, DtmfTone, Sine};
use tandem_audio::vad::{Vad, VadEvent};

const RATE: SampleRate = SampleRate::Hz8000;
/// Of the words, after scaling: −22 dBFS, an ordinary voice.
const SPEECH_RMS: f32 = 2_600.0;
/// Noise before the word.
const LEAD: usize = 16_000;

struct Chance(u32);

impl Chance {
    /// Even within ±1.
    fn even(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / 8_388_608.0 - 1.0
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.even().abs() * limit as f32) as usize).min(limit - 1)
    }

    /// Nearly normal, of power 1.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.even()).sum::<f32>() / 2_f32.sqrt()
    }
}

fn rms(signal: &[f32]) -> f32 {
    (signal.iter().map(|sample| sample * sample).sum::<f32>() / signal.len() as f32).sqrt()
}

fn words() -> Vec<Vec<f32>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/speech");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "wav"));
    files.sort();
    assert_eq!(files.len(), 16);
    let read = |file: &std::path::PathBuf| {
        let octets = std::fs::read(file).unwrap();
        // The header of these files is 44 octets long.
        let samples = octets[44..].chunks_exact(2).map(|two| f32::from(i16::from_le_bytes([two[0], two[1]])));
        let samples: Vec<f32> = samples.collect();
        let scale = SPEECH_RMS / rms(&samples);
        samples.iter().map(|sample| sample * scale).collect()
    };
    files.iter().map(read).collect()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Noise {
    White,
    Pink,
    /// Low, as in a car.
    Car,
    /// Of mains, with harmonics.
    Hum,
    /// Six other voices.
    Babble,
}

fn noise(kind: Noise, len: usize, chance: &mut Chance, words: &[Vec<f32>]) -> Vec<f32> {
    let mut poles = [0.0_f32; 3];
    match kind {
        Noise::White => (0..len).map(|_| chance.normal()).collect(),
        Noise::Pink => {
            let next = |_| {
                let white = chance.normal();
                for (pole, (stay, add)) in poles.iter_mut().zip([(0.997, 0.1), (0.96, 0.3), (0.57, 1.05)]) {
                    *pole = stay * *pole + add * white;
                }
                poles.iter().sum::<f32>() + 0.18 * white
            };
            (0..len).map(next).collect()
        }
        Noise::Car => {
            let next = |_| {
                poles[0] = 0.97 * poles[0] + chance.normal();
                poles[1] = 0.9 * poles[1] + poles[0];
                poles[1]
            };
            (0..len).map(next).collect()
        }
        Noise::Hum => {
            let next = |n| {
                let phase = n as f32 / 8_000.0 * std::f32::consts::TAU;
                let harmonics = [(50.0, 1.0), (150.0, 0.6), (250.0, 0.3)];
                let hum: f32 = harmonics.iter().map(|(hz, share)| share * (hz * phase).sin()).sum();
                hum + 0.1 * chance.normal()
            };
            (0..len).map(next).collect()
        }
        Noise::Babble => {
            let mut all = vec![0.0; len];
            for _ in 0..6 {
                let mut at = 0;
                while at < len {
                    let word = &words[chance.below(words.len())];
                    for (sample, voice) in all[at..].iter_mut().zip(&word[chance.below(word.len() / 2)..]) {
                        *sample += voice;
                    }
                    at += word.len() + chance.below(2_000);
                }
            }
            all
        }
    }
}

/// As it comes out of a telephone line.
fn line(signal: &[f32]) -> Vec<i16> {
    let samples: Vec<i16> = signal.iter().map(|sample| *sample as i16).collect();
    let mut codes = vec![0; samples.len()];
    g711::encode_ulaw(&samples, &mut codes);
    let mut heard = vec![0; samples.len()];
    g711::decode_ulaw(&codes, &mut heard);
    heard
}

fn starts(vad: &mut Vad, signal: &[i16]) -> usize {
    signal.chunks(160).filter(|frame| vad.process(frame) == Some(VadEvent::SpeechStarted)).count()
}

/// From the moment that a word is louder than the noise until it is noticed, in ms, sorted; and how many never were.
fn delays_ms(kind: Noise, snr_db: f32, words: &[Vec<f32>]) -> (Vec<f32>, usize) {
    let mut chance = Chance(1);
    let noise_rms = SPEECH_RMS / 10_f32.powf(snr_db / 20.0);
    let (mut delays, mut missed) = (Vec::new(), 0);
    for word in words.iter().cycle().take(4 * words.len()) {
        let lead = LEAD + chance.below(160);
        let mut signal = noise(kind, lead + word.len() + 4_000, &mut chance, words);
        let scale = noise_rms / rms(&signal);
        signal.iter_mut().for_each(|sample| *sample *= scale);
        signal[lead..].iter_mut().zip(word).for_each(|(sample, voice)| *sample += voice);
        let is_louder = |block: &[f32]| rms(block) > noise_rms * 2_f32.sqrt();
        let audible = lead + 40 * word.chunks(40).position(is_louder).unwrap();
        let mut vad = Vad::new(RATE);
        let blocks = line(&signal);
        let found = blocks.chunks(40).position(|block| vad.process(block) == Some(VadEvent::SpeechStarted));
        match found.map(|block| 40 * block + 40).filter(|at| *at >= lead) {
            Some(at) => delays.push((at as f32 - audible as f32) / 8.0),
            None => missed += 1,
        }
    }
    delays.sort_by(f32::total_cmp);
    (delays, missed)
}

/// In noise alone, a minute.
fn false_alarms(kind: Noise, snr_db: f32, words: &[Vec<f32>]) -> f32 {
    const MINUTES: usize = 3;
    let mut signal = noise(kind, MINUTES * 60 * 8_000, &mut Chance(2), words);
    let scale = SPEECH_RMS / 10_f32.powf(snr_db / 20.0) / rms(&signal);
    signal.iter_mut().for_each(|sample| *sample *= scale);
    starts(&mut Vad::new(RATE), &line(&signal)) as f32 / MINUTES as f32
}

#[test]
fn words_are_noticed_within_30_ms_and_steady_noise_never_is() {
    let words = words();
    println!("noise, SNR: onset p50, p90, within 30 ms, missed; false alarms a minute");
    for kind in [Noise::White, Noise::Pink, Noise::Car, Noise::Hum, Noise::Babble] {
        for snr_db in [30.0, 20.0, 10.0, 5.0] {
            let (delays, missed) = delays_ms(kind, snr_db, &words);
            let all = delays.len() + missed;
            let at = |share: f32| delays.get(((delays.len() - 1) as f32 * share) as usize).copied();
            let prompt = delays.iter().filter(|delay| **delay <= 30.0).count();
            let (p50, p90) = (at(0.5).unwrap_or(f32::NAN), at(0.9).unwrap_or(f32::NAN));
            let alarms = false_alarms(kind, snr_db, &words);
            println!(
                "{kind:?}, {snr_db} dB: {p50:.0}, {p90:.0} ms, {prompt} of {all}, {missed}; {alarms:.1}"
            );
            if kind == Noise::Babble {
                // Voices are voices. How often they are noticed is told, not asserted.
                continue;
            }
            assert_eq!(alarms, 0.0, "{kind:?} at {snr_db} dB");
            if snr_db >= 20.0 {
                assert_eq!(missed, 0, "{kind:?} at {snr_db} dB");
                assert!(
                    p50 <= 25.0 && prompt * 10 >= all * 7,
                    "{kind:?} at {snr_db} dB: {p50}, {prompt} of {all}"
                );
            }
        }
    }
}

#[test]
fn keys_are_no_speech() {
    let mut chance = Chance(3);
    let mut signal: Vec<i16> = (0..8_000).map(|_| (8.0 * chance.normal()) as i16).collect();
    for key in "0123456789*#ABCD".chars().cycle().take(160) {
        let digit = Digit::from_char(key).unwrap();
        let mut frame = vec![0; 8 * 100 + chance.below(900)];
        DtmfTone::new(digit, RATE, 80, 20).fill(&mut frame);
        signal.extend(frame.iter().map(|sample| sample + (8.0 * chance.normal()) as i16));
    }
    let heard = line(&signal.iter().map(|sample| f32::from(*sample)).collect::<Vec<_>>());
    assert_eq!(starts(&mut Vad::new(RATE), &heard), 0);
}

#[test]
fn ringing_busy_and_chords_are_no_speech() {
    let chords: [&[f64]; 5] =
        [&[440.0, 480.0], &[480.0, 620.0], &[425.0], &[2_100.0], &[262.0, 330.0, 392.0]];
    for chord in chords {
        let mut chance = Chance(4);
        let mut signal = Vec::new();
        for _ in 0..60 {
            signal.extend(vec![0; 4_000 + chance.below(160)]);
            let mut tone = vec![0; 4_000];
            chord.iter().for_each(|hz| Sine::new(*hz, 2_500, RATE).add(&mut tone));
            signal.extend(tone);
        }
        let noisy: Vec<f32> =
            signal.iter().map(|sample| f32::from(*sample) + 8.0 * chance.normal()).collect();
        assert_eq!(starts(&mut Vad::new(RATE), &line(&noisy)), 0, "{chord:?}");
    }
}
