"""Speech-to-text: Moonshine tiny-en over one utterance at a time.

The caller of this service does voice activity detection, so Moonshine's own is switched off (threshold 0): each
transcription is over the whole utterance so far. The model is small enough that doing it again for each partial
is cheaper than keeping state.
"""

import time

import numpy
from moonshine_voice.moonshine_api import ModelArch
from moonshine_voice.transcriber import Transcriber
from moonshine_voice.utils import get_model_path

RATE = 16000
UTTERANCE_MAX_S = 60  # more is not a turn of a conversation
PARTIAL_EVERY_MS = 1000  # a partial in work delays a final: not too often
PADDING = numpy.zeros(RATE * 3 // 10, numpy.float32)  # a sentence that ends in silence gets its full stop
NO_SPEECH = {"you"}  # what the model says to noise; nobody says that alone
SHORTEST_MS = 100  # the encoder wants some frames; less than that holds no word


class SpeechModel:
    def __init__(self):
        self._transcriber = Transcriber(
            str(get_model_path("tiny-en")), ModelArch.TINY, options={"vad_threshold": "0.0"}
        )

    def transcribe(self, pcm):
        """L16 at 16 kHz → (text, compute ms)."""
        started = time.perf_counter()
        if len(pcm) < 2 * RATE * SHORTEST_MS // 1000:
            return "", 0
        samples = numpy.frombuffer(pcm, "<i2").astype(numpy.float32) / 32768.0
        samples = numpy.concatenate((samples, PADDING))
        transcript = self._transcriber.transcribe_without_streaming(samples.tolist(), RATE)
        text = " ".join(line.text.strip() for line in transcript.lines if line.text).strip()
        if text.lower().rstrip(".!?, ") in NO_SPEECH:
            text = ""
        return text, round((time.perf_counter() - started) * 1000)


class Utterance:
    """What one caller has said since speech began."""

    def __init__(self, number):
        self.number = number
        self.pcm = bytearray()
        self.partial_at = 2 * RATE * PARTIAL_EVERY_MS // 1000
        self.full = False

    def add(self, audio):
        """Appends; True when this was the piece that filled it."""
        room = 2 * RATE * UTTERANCE_MAX_S - len(self.pcm)
        self.pcm += audio[: max(room, 0)]
        if len(audio) > room and not self.full:
            self.full = True
            return True
        return False

    def partial_due(self):
        return len(self.pcm) >= self.partial_at

    def partial_taken(self):
        self.partial_at = len(self.pcm) + 2 * RATE * PARTIAL_EVERY_MS // 1000

    def audio_ms(self):
        return len(self.pcm) * 1000 // (2 * RATE)
