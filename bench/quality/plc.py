#!/usr/bin/env python3
"""Speech quality (PESQ, ITU-T P.862) of what is left after packets were lost, by ours and others' concealment.

    python3 -m venv .venv-quality && .venv-quality/bin/pip install -r bench/quality/requirements.txt
    cargo build --release -p tandem-audio --example lossy
    .venv-quality/bin/python bench/quality/plc.py

Needs espeak-ng (the speech) and libspandsp2 (the peer's concealment) from Debian. The same packets are lost for everybody:
the masks are seeded. Speech is coded and decoded by the codec in each row, then concealed; "silence" is what no concealment
is worth.
"""

import ctypes
import ctypes.util
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from pesq import pesq

ROOT = Path(__file__).resolve().parents[2]
LOSSY = ROOT / "target/release/examples/lossy"
SENTENCES = [
    ("en-gb", "The train to the coast leaves at seven minutes past nine from platform four."),
    ("en-us", "I would like to change the appointment that I made for Thursday afternoon."),
    ("en-gb+f3", "Please tell me the last four digits of the number on the back of your card."),
    ("en-us+f4", "Nobody had noticed that the window was open until it began to rain."),
    ("de", "Könnten Sie mir bitte sagen, wann die nächste Lieferung ankommt?"),
    ("en-us+m3", "Our office is closed today, but you can leave a message after the tone."),
]
LOSSES = [0, 2, 5, 10]
SEEDS = range(4)


def speech(voice: str, text: str, rate: int) -> np.ndarray:
    """One sentence at this rate, as loud as people speak on the telephone (-26 dBov)."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["espeak-ng", "-v", voice, "-w", file.name, text], check=True)
        raw = subprocess.run(
            ["ffmpeg", "-loglevel", "error", "-i", file.name, "-ar", str(rate), "-ac", "1", "-f", "s16le", "-"],
            check=True, stdout=subprocess.PIPE,
        ).stdout
    samples = np.frombuffer(raw, dtype=np.int16).astype(float)
    samples *= 32768 * 10 ** (-26 / 20) / np.sqrt(np.mean(samples**2))
    quiet = np.zeros(rate // 4)
    samples = np.concatenate([quiet, samples, quiet]).clip(-32768, 32767).astype(np.int16)
    return samples[: len(samples) // (rate // 50) * (rate // 50)]


def mask(packets: int, percent: int, seed: int) -> str:
    """Losses that come in bursts a little: a packet after a lost one is lost twice as often."""
    chance, lost, out = random.Random(seed * 1000 + percent), False, []
    for _ in range(packets):
        lost = chance.random() < percent / 100 * (2 if lost else 1)
        out.append("x" if lost else ".")
    return "".join(out)


def ours(codec: str, rate: int, samples: np.ndarray, losses: str, how: str) -> np.ndarray:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(losses)
        file.flush()
        run = subprocess.run([LOSSY, codec, str(rate), file.name, how], input=samples.tobytes(), check=True,
                             stdout=subprocess.PIPE)
    return np.frombuffer(run.stdout, dtype=np.int16)


def spandsp(samples: np.ndarray, losses: str) -> np.ndarray:
    """spandsp's concealment (8 kHz only) over sound that went through the codec without loss."""
    library = ctypes.CDLL("libspandsp.so.2")
    library.plc_init.restype = ctypes.c_void_p
    state = ctypes.c_void_p(library.plc_init(None))
    out = []
    for n, frame in enumerate(samples.reshape(-1, 160)):
        frame = frame.copy()
        pointer = frame.ctypes.data_as(ctypes.c_void_p)
        (library.plc_fillin if losses[n] == "x" else library.plc_rx)(state, pointer, 160)
        out.append(frame)
    return np.concatenate(out)


def main() -> None:
    if not LOSSY.exists():
        sys.exit("build it first: cargo build --release -p tandem-audio --example lossy")
    print("| codec | lost | silence | ours | spandsp |\n|---|---|---|---|---|")
    for codec, rate, mode in [("PCMU", 8000, "nb"), ("G722", 16000, "wb"), ("opus", 16000, "wb")]:
        sentences = [speech(voice, text, rate) for voice, text in SENTENCES]
        for percent in LOSSES:
            scores: dict[str, list[float]] = {"silence": [], "ours": [], "spandsp": []}
            for number, samples in enumerate(sentences):
                packets = len(samples) // (rate // 50)
                whole = ours(codec, rate, samples, "." * packets, "silence")
                for seed in SEEDS if percent else [0]:
                    losses = mask(packets, percent, seed + 10 * number)
                    heard = {"ours": ours(codec, rate, samples, losses, "conceal")}
                    if codec != "opus":
                        heard["silence"] = ours(codec, rate, samples, losses, "silence")
                    if codec == "PCMU":
                        heard["spandsp"] = spandsp(whole, losses)
                    for name, sound in heard.items():
                        length = min(len(sound), len(samples))
                        scores[name].append(pesq(rate, samples[:length], sound[:length], mode))
            cells = [f"{np.mean(scores[name]):.2f}" if scores[name] else "–" for name in ("silence", "ours", "spandsp")]
            print(f"| {codec} | {percent} % | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
