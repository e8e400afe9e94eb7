"""Text-to-speech: hibari's voice "heart", 24 kHz, a sentence at a time."""

import numpy
from hibari import Hibari

RATE = 24000
RATES = (16000, 24000)
TEXT_MAX = 2000  # characters of one request; the agent sends sentences
GAIN = 1.6  # the voice peaks at 0.3 to 0.45: lift it to what telephones are used to


class VoiceModel:
    def __init__(self):
        self._voice = Hibari(threads=1)
        self._voice("Ready.")  # loads the pronunciation tables now, not during a call

    def sentences(self, text):
        """Phonemes, a string a sentence."""
        return self._voice.phonemize(text)

    def synthesise(self, phonemes, rate):
        """L16 bytes at `rate`."""
        samples = self._voice.from_phonemes(phonemes)
        if rate != RATE:
            samples = two_thirds(samples)
        return (numpy.clip(samples * GAIN, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def _low_pass():
    """Windowed sinc at 48 kHz for 24 → 48 → 16 kHz: flat to 7 kHz, -6 dB at 7.6, below -85 dB from 8.5 on."""
    taps, cut = 145, 7600.0 / 48000.0
    n = numpy.arange(taps) - taps // 2
    return (2 * 2 * cut * numpy.sinc(2 * cut * n) * numpy.kaiser(taps, 7.0)).astype(numpy.float32)


_FILTER = _low_pass()


def two_thirds(samples):
    """24 kHz → 16 kHz of a whole sentence."""
    if len(samples) == 0:
        return samples
    doubled = numpy.zeros(2 * len(samples), numpy.float32)
    doubled[::2] = samples
    return numpy.convolve(doubled, _FILTER, mode="same")[::3]
