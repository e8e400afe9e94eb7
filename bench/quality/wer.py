#!/usr/bin/env python3
"""Words that the offline recogniser gets wrong when packets were lost, with and without concealment.

    cargo build --release -p tandem-audio --example lossy
    .venv/bin/python bench/quality/wer.py            # the environment of `make run`, which has the recogniser

Needs ffmpeg from Debian. The voice is the built-in agent's own; losses are seeded, the same for both. PCMU to 16 kHz, as
the built-in agent hears a trunk. Word error rate: substitutions, deletions and insertions over the words that were said.
"""

import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "voice-agent/local-voice"))
from stt import SpeechModel  # noqa: E402
from tts import VoiceModel  # noqa: E402

LOSSY = ROOT / "target/release/examples/lossy"
SENTENCES = [
    "The train to the coast leaves at seven minutes past nine from platform four.",
    "I would like to change the appointment that I made for Thursday afternoon.",
    "Please tell me the last four digits of the number on the back of your card.",
    "Nobody had noticed that the window was open until it began to rain.",
    "Our office is closed today, but you can leave a message after the tone.",
    "Could you book a table for six people on the second of June?",
    "My name is Martin Keller and I am calling about the broken heating in my flat.",
    "The parcel should have arrived on Monday, but nobody has seen it yet.",
    "I have been waiting for an answer from your insurance since the middle of March.",
    "Turn left behind the station and follow the river until you reach the old bridge.",
    "We need three more chairs, two tables and a long cable for the meeting room.",
    "She said that the doctor would call back before lunch to talk about the results.",
]
LOSSES = [0, 2, 5, 10, 20]
SEEDS = 2


def speech(voice: VoiceModel, text: str) -> np.ndarray:
    """A sentence as a telephone gives it: 8 kHz, whole packets, a quarter of a second of quiet before and after."""
    wide = b"".join(voice.synthesise(part, 16000) for part in voice.sentences(text))
    rates = ["-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-", "-ar", "8000", "-f", "s16le", "-"]
    raw = subprocess.run(["ffmpeg", "-loglevel", "error", *rates], input=wide, check=True, stdout=subprocess.PIPE).stdout
    quiet = np.zeros(2000, np.int16)
    samples = np.concatenate([quiet, np.frombuffer(raw, np.int16), quiet])
    return samples[: len(samples) // 160 * 160]


def mask(packets: int, percent: int, seed: int) -> str:
    """Losses that come in bursts a little: a packet after a lost one is lost twice as often."""
    chance, lost, out = random.Random(seed * 1000 + percent), False, []
    for _ in range(packets):
        lost = chance.random() < percent / 100 * (2 if lost else 1)
        out.append("x" if lost else ".")
    return "".join(out)


def heard(samples: np.ndarray, losses: str, how: str) -> bytes:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(losses)
        file.flush()
        run = subprocess.run([LOSSY, "PCMU", "8000", file.name, how], input=samples.tobytes(), check=True,
                             stdout=subprocess.PIPE)
    narrow = ["-f", "s16le", "-ar", "8000", "-ac", "1", "-i", "-"]
    return subprocess.run(["ffmpeg", "-loglevel", "error", *narrow, "-ar", "16000", "-f", "s16le", "-"],
                          input=run.stdout, check=True, stdout=subprocess.PIPE).stdout


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("9", "nine").replace("-", " ")).split()


def errors(said: list[str], understood: list[str]) -> int:
    """Least edits from the one to the other."""
    row = list(range(len(understood) + 1))
    for n, word in enumerate(said, 1):
        before, row[0] = row[0], n
        for m, other in enumerate(understood, 1):
            before, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, before + (word != other))
    return row[-1]


def main() -> None:
    if not LOSSY.exists():
        sys.exit("build it first: cargo build --release -p tandem-audio --example lossy")
    model, voice = SpeechModel(), VoiceModel()
    said = SEEDS * sum(len(words(text)) for text in SENTENCES)
    print(f"{said} words\n\n| lost | silence | concealed |\n|---|---|---|")
    sounds = SEEDS * [(text, speech(voice, text)) for text in SENTENCES]
    for percent in LOSSES:
        wrong = {"silence": 0, "conceal": 0}
        for seed, (text, samples) in enumerate(sounds):
            losses = mask(len(samples) // 160, percent, seed)
            for how in wrong:
                understood, _ = model.transcribe(heard(samples, losses, how))
                wrong[how] += errors(words(text), words(understood))
        print(f"| {percent} % | {100 * wrong['silence'] / said:.1f} % | {100 * wrong['conceal'] / said:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
