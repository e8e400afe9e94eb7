//! Replays the committed corpora, and damaged copies of them, on a stable compiler.

use std::fs;
use std::path::Path;

use tandem_fuzz::{TARGETS, Target};

/// Damaged copies of each input; enough to walk into every branch near it, few enough for every test run.
const COPIES: u64 = 300;

/// Steele and Vigna's splitmix64: the same damage in every run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A copy with an octet changed, a piece lost, or a piece doubled, one to four times.
fn damaged(input: &[u8], seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut copy = input.to_vec();
    for _ in 0..=random(&mut state) % 4 {
        if copy.is_empty() {
            break;
        }
        let at = random(&mut state) as usize % copy.len();
        let end = copy.len().min(at + 1 + random(&mut state) as usize % 40);
        match random(&mut state) % 4 {
            0 => copy[at] = random(&mut state) as u8,
            1 => copy[at] ^= 1 << (random(&mut state) % 8),
            2 => drop(copy.drain(at..end)),
            _ => {
                let piece = copy[at..end].to_vec();
                copy.splice(at..at, piece);
            }
        }
    }
    copy
}

fn replay(name: &str, target: Target) -> usize {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut inputs: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    inputs.sort();
    for path in &inputs {
        let input = fs::read(path).expect("the corpus can be read");
        target(&input);
        for seed in 0..COPIES {
            target(&damaged(&input, seed));
        }
    }
    inputs.len()
}

#[test]
fn committed_inputs_and_damaged_copies_break_nothing() {
    for (name, target) in TARGETS {
        assert!(replay(name, target) > 0, "the corpus of {name} is empty");
    }
}

#[test]
fn short_inputs_break_nothing() {
    for (_, target) in TARGETS {
        target(&[]);
        for octet in 0..=255 {
            target(&[octet]);
            target(&[octet; 64]);
        }
    }
}

#[test]
fn every_target_has_its_fuzzer_and_every_corpus_its_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in TARGETS {
        let fuzzer = root.join("libfuzzer/fuzz_targets").join(format!("{name}.rs"));
        assert!(fuzzer.exists(), "{} is missing", fuzzer.display());
    }
    for corpus in fs::read_dir(root.join("corpus")).expect("there are corpora") {
        let name = corpus.expect("the corpora can be listed").file_name();
        assert!(TARGETS.iter().any(|(target, _)| name == *target), "corpus {name:?} has no target");
    }
}
