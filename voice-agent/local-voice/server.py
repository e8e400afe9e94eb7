"""local-voice: three offline models behind a WebSocket on loopback. PROTOCOL.md is the contract.

One asyncio loop for the connections, one thread a model (worker.py).
"""

import os

# One thread a model is the design; numpy's pool would take all cores for little.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import asyncio
import http
import json
import signal
import struct
import sys
import threading

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
        queue, cancelled = asyncio.Queue(SPEAK_QUEUE_MAX), Cancelled()
        speaker = asyncio.ensure_future(quietly(self.speak_queue(connection, queue, cancelled)))
        try:
            async for frame in connection:
                request = None
                try:
                    request = parse(frame)
                    if request["event"] == "speak":
                        queue.put_nowait(speak_request(request))
                    elif request["event"] == "cancel":
                        cancelled.add(number(request, "id") if "id" in request else None, queue)
                    else:
                        raise Refused("bad_request", "unknown event")
                except asyncio.QueueFull:
                    await send_error(connection, "busy", "too many sentences wait", id=request["id"])
                except Refused as error:
                    where = {"id": request["id"]} if request and "id" in request else {}
                    await send_error(connection, error.code, str(error), **where)
        finally:
            speaker.cancel()

    async def speak_queue(self, connection, queue, cancelled):
        while True:
            speak_id, text, rate = await queue.get()
            cancelled.current = speak_id
            try:
                await self.speak_one(connection, speak_id, text, rate, cancelled)
            except ConnectionClosed:
                return
            except Busy as error:
                await send_error(connection, "busy", str(error), id=speak_id)
            except Exception as error:
                await send_error(connection, "failed", str(error), id=speak_id)
            cancelled.ids.discard(speak_id)
            cancelled.current = None

    async def speak_one(self, connection, speak_id, text, rate, cancelled):
        loop = asyncio.get_running_loop()
        started, sent = loop.time(), 0
        chunk = 2 * rate * CHUNK_MS // 1000
        compute_s = 0.0
        for phonemes in await self.tts_worker.submit(self.tts.sentences, text):
            if speak_id in cancelled.ids:
                break
            pcm = await self.tts_worker.submit(self.tts.synthesise, phonemes, rate)
            compute_s = loop.time() - started
            for offset in range(0, len(pcm), chunk):
                if speak_id in cancelled.ids:
                    break
                await connection.send(struct.pack("<I", speak_id) + pcm[offset : offset + chunk])
                sent += len(pcm[offset : offset + chunk])
        more = {"cancelled": True} if speak_id in cancelled.ids else {}
        audio_ms = sent * 1000 // (2 * rate)
        await send(connection, "done", id=speak_id, audioMs=audio_ms, computeMs=round(compute_s * 1000), **more)

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


class Cancelled:
    """Ids whose audio is not wanted any more: only those that wait or are being spoken, so it stays small."""

    def __init__(self):
        self.ids = set()
        self.current = None

    def add(self, speak_id, queue):
        alive = {waiting[0] for waiting in queue._queue} | {self.current} - {None}
        self.ids |= alive if speak_id is None else alive & {speak_id}


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
