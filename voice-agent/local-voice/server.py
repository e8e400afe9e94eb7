"""local-voice: three offline models behind a WebSocket on loopback. PROTOCOL.md is the contract.

One asyncio loop for the connections, one thread a model (worker.py).
"""

import os

# One thread a model is the design; numpy's pool would take all cores for little.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import asyncio
import collections
import http
import json
import signal
import struct
import sys
import threading
import time

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from intents import IntentModel, check_examples
from stt import SpeechModel, Utterance
from tts import RATES, TEXT_MAX, VoiceModel
from worker import IDLE, Busy, Worker

CONNECTIONS_MAX = 256  # three a conversation; above it the upgrade is refused with 503
FRAME_MAX = 1 << 20  # octets of one incoming frame
CHUNK_MS = 100  # of synthesised audio in one frame
SPEAK_QUEUE_MAX = 32  # sentences one agent may have waiting; one more is `busy`


class Refused(Exception):
    """A request that cannot be done, with its code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Server:
    def __init__(self):
        self.stt, self.stt_worker = SpeechModel(), Worker("stt")
        self.tts, self.tts_worker = VoiceModel(), Worker("tts")
        self.intents, self.intent_worker = IntentModel(), Worker("intents")
        self.paths = {"/v1/stt": self.listen, "/v1/tts": self.speak, "/v1/intents": self.classify}
        self.open = 0

    def check(self, connection, request):
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "ok\n")
        if request.path not in self.paths:
            return connection.respond(http.HTTPStatus.NOT_FOUND, "no such path\n")
        if self.open >= CONNECTIONS_MAX:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    async def handle(self, connection):
        self.open += 1
        try:
            await self.paths[connection.request.path](connection)
        except ConnectionClosed:
            pass
        finally:
            self.open -= 1

    # --- speech-to-text ---

    async def listen(self, connection):
        utterance, partial = None, None
        async for frame in connection:
            if isinstance(frame, bytes):
                if utterance is None:
                    continue
                if utterance.add(frame):
                    await send_error(connection, "too_long", "utterance is full", utterance=utterance.number)
                free = partial is None or partial.done()
                if free and utterance.partial_due() and self.stt_worker.idle():
                    utterance.partial_taken()
                    partial = asyncio.ensure_future(self.partial(connection, utterance))
                continue
            try:
                request = parse(frame)
                if request["event"] == "begin":
                    utterance = Utterance(number(request, "utterance"))
                elif request["event"] == "flush":
                    if utterance is None or number(request, "utterance") != utterance.number:
                        raise Refused("bad_request", "flush of an utterance that is not current")
                    await self.flush(connection, utterance, number(request, "id"))
                else:
                    raise Refused("bad_request", "unknown event")
            except Refused as error:
                await send_error(connection, error.code, str(error))

    async def flush(self, connection, utterance, flush_id):
        """Queues the transcription; the answer is sent from its own task, so that audio goes on."""
        audio_ms = utterance.audio_ms()
        try:
            job = self.stt_worker.submit(self.stt.transcribe, bytes(utterance.pcm))
        except Busy as error:
            raise Refused("busy", str(error)) from error

        async def answer():
            where = {"utterance": utterance.number, "id": flush_id}
            try:
                text, compute_ms = await job
            except Exception as error:
                await send_error(connection, "failed", str(error), **where)
                return
            await send(connection, "final", **where, text=text, audioMs=audio_ms, computeMs=compute_ms)

        keep(asyncio.ensure_future(quietly(answer())))

    async def partial(self, connection, utterance):
        audio_ms = utterance.audio_ms()
        try:
            text, _ = await self.stt_worker.submit(
                self.stt.transcribe, bytes(utterance.pcm), priority=IDLE
            )
            await send(connection, "partial", utterance=utterance.number, text=text, audioMs=audio_ms)
        except (Busy, ConnectionClosed):
            pass
        except Exception as error:
            await quietly(send_error(connection, "failed", str(error), utterance=utterance.number))

    # --- text-to-speech ---

    async def speak(self, connection):
        sentences = Sentences()
        speaker = asyncio.ensure_future(quietly(self.speak_all(connection, sentences)))
        try:
            async for frame in connection:
                request = None
                try:
                    request = parse(frame)
                    if request["event"] == "speak":
                        sentences.put(*speak_request(request))
                    elif request["event"] == "cancel":
                        sentences.cancel(number(request, "id") if "id" in request else None)
                    else:
                        raise Refused("bad_request", "unknown event")
                except Refused as error:
                    where = {"id": request["id"]} if request and "id" in request else {}
                    await send_error(connection, error.code, str(error), **where)
        finally:
            speaker.cancel()

    async def speak_all(self, connection, sentences):
        while True:
            sentence = await sentences.get()
            try:
                await self.speak_one(connection, sentence)
            except ConnectionClosed:
                return
            except Busy as error:
                await send_error(connection, "busy", str(error), id=sentence.id)
            except Exception as error:
                await send_error(connection, "failed", str(error), id=sentence.id)

    async def speak_one(self, connection, sentence):
        started, sent, compute_s = time.perf_counter(), 0, 0.0
        octets_ms = 2 * sentence.rate / 1000
        chunk = int(octets_ms * CHUNK_MS)
        phonemes = [] if sentence.cancelled else await self.tts_worker.submit(self.tts.sentences, sentence.text)
        for part in phonemes:
            if sentence.cancelled:
                break
            pcm = await self.tts_worker.submit(self.tts.synthesise, part, sentence.rate)
            compute_s = time.perf_counter() - started
            for offset in range(0, len(pcm), chunk):
                if sentence.cancelled:
                    break
                await connection.send(struct.pack("<I", sentence.id) + pcm[offset : offset + chunk])
                sent += len(pcm[offset : offset + chunk])
        more = {"cancelled": True} if sentence.cancelled else {}
        times = {"audioMs": round(sent / octets_ms), "computeMs": round(compute_s * 1000)}
        await send(connection, "done", id=sentence.id, **times, **more)

    # --- intents ---

    async def classify(self, connection):
        prepared = None
        async for frame in connection:
            where = {}
            try:
                request = parse(frame)
                if request["event"] == "examples":
                    try:
                        check_examples(request.get("intents"))
                    except ValueError as error:
                        raise Refused("bad_request", str(error)) from error
                    prepared = await self.intent_worker.submit(self.intents.prepare, request["intents"])
                    await send(connection, "ready")
                elif request["event"] == "classify":
                    where = {"id": number(request, "id")}
                    if prepared is None:
                        raise Refused("bad_request", "no examples yet")
                    result = await self.intent_worker.submit(
                        self.intents.classify, string(request, "text"), prepared
                    )
                    await send(connection, "intent", **where, **result)
                else:
                    raise Refused("bad_request", "unknown event")
            except Refused as error:
                await send_error(connection, error.code, str(error), **where)
            except Busy as error:
                await send_error(connection, "busy", str(error), **where)
            except ConnectionClosed:
                raise
            except Exception as error:
                await send_error(connection, "failed", str(error), **where)


class Sentence:
    """One request to speak."""

    def __init__(self, speak_id, text, rate):
        self.id, self.text, self.rate = speak_id, text, rate
        self.cancelled = False


class Sentences:
    """What one agent has asked for, in order; the first may be in work."""

    def __init__(self):
        self._waiting = collections.deque()
        self._current = None
        self._filled = asyncio.Event()

    def put(self, speak_id, text, rate):
        if len(self._waiting) >= SPEAK_QUEUE_MAX:
            raise Refused("busy", "too many sentences wait")
        self._waiting.append(Sentence(speak_id, text, rate))
        self._filled.set()

    def cancel(self, speak_id):
        """One, or all for None. Cancelled ones stay in the queue: each still gets its `done`."""
        for sentence in [self._current, *self._waiting]:
            if sentence is not None and speak_id in (None, sentence.id):
                sentence.cancelled = True

    async def get(self):
        self._current = None
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        self._current = self._waiting.popleft()
        return self._current


def speak_request(request):
    speak_id, text, rate = number(request, "id"), string(request, "text"), request.get("sampleRate", 16000)
    if rate not in RATES:
        raise Refused("bad_request", f"sampleRate must be one of {RATES}")
    if len(text) > TEXT_MAX:
        raise Refused("too_long", f"text of {len(text)} characters; at most {TEXT_MAX} are possible")
    return speak_id, text, rate


def parse(frame):
    try:
        request = json.loads(frame)
    except ValueError as error:
        raise Refused("bad_request", "not JSON") from error
    if not isinstance(request, dict) or not isinstance(request.get("event"), str):
        raise Refused("bad_request", "not an object with an event")
    return request


def number(request, key):
    value = request.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise Refused("bad_request", f"{key} must be a number below 2^32")
    return value


def string(request, key):
    value = request.get(key)
    if not isinstance(value, str):
        raise Refused("bad_request", f"{key} must be a string")
    return value


async def send(connection, event, **fields):
    await connection.send(json.dumps({"event": event, **fields}))


async def send_error(connection, code, message, **where):
    await send(connection, "error", code=code, message=message, **where)


async def quietly(coroutine):
    """A peer that is gone is no error."""
    try:
        await coroutine
    except ConnectionClosed:
        pass


_kept = set()


def keep(task):
    """asyncio holds tasks weakly; each of ours ends with its job, so the set is bounded by the workers' queues."""
    _kept.add(task)
    task.add_done_callback(_kept.discard)


def watch_parent(loop, stop):
    """Our parent holds the other end of stdin: end of file means it is gone."""
    while sys.stdin.buffer.read(4096):
        pass
    loop.call_soon_threadsafe(stop.set)


async def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    port = arguments.parse_args().port
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number_ in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number_, stop.set)
    threading.Thread(target=watch_parent, args=(loop, stop), daemon=True).start()
    server = await loop.run_in_executor(None, Server)
    # `origins=[None]`: only clients without an Origin header, which no browser can be.
    async with serve(
        server.handle,
        "127.0.0.1",
        port,
        process_request=server.check,
        origins=[None],
        max_size=FRAME_MAX,
        compression=None,
    ) as listener:
        chosen = next(iter(listener.sockets)).getsockname()[1]
        print(json.dumps({"event": "ready", "port": chosen, "pid": os.getpid()}), flush=True)
        await stop.wait()
    # Worker threads may sit in native code; nothing of theirs needs saving.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
