"""A pipecat bot as its makers tell to build one for Twilio: FastAPI, their Twilio serializer, a pipeline. It says back what it hears.

    bot.py HOST:PORT

The caller's keys steer it: 1 makes it say ten seconds of a tone until somebody talks over it (their interruption), # makes it end
the call (their end of a pipeline). Prints a line for each thing that happens; nothing of it knows Tandem.
"""

import array
import math
import sys

import uvicorn
from fastapi import FastAPI, WebSocket
from loguru import logger
from pipecat.audio.dtmf.types import KeypadEntry
from pipecat.frames.frames import (
    EndWorkerFrame,
    Frame,
    InputAudioRawFrame,
    InputDTMFFrame,
    OutputAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner

RATE_HZ = 8_000
TONE = array.array("h", (int(8_000 * math.sin(math.tau * 440 * n / RATE_HZ)) for n in range(10 * RATE_HZ)))
# Root mean square of 20 ms, of full scale 32 768: somebody talks.
LOUD = 1_000

app = FastAPI()


def says(line):
    print(line, flush=True)


class Echo(FrameProcessor):
    """What is heard is said, but for the time of the tone."""

    def __init__(self):
        super().__init__()
        self.tone = False

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            if not self.tone:
                await self.push_frame(OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels))
            elif loudness(frame.audio) > LOUD:
                await self.broadcast_interruption()
                self.tone = False
                says("interrupted")
        elif isinstance(frame, InputDTMFFrame):
            says(f"key {frame.button.value}")
            if frame.button == KeypadEntry.ONE:
                self.tone = True
                await self.push_frame(OutputAudioRawFrame(TONE.tobytes(), RATE_HZ, 1))
            elif frame.button == KeypadEntry.POUND:
                await self.push_frame(EndWorkerFrame())
        else:
            await self.push_frame(frame, direction)


def loudness(audio):
    samples = array.array("h", audio)
    return math.sqrt(sum(sample * sample for sample in samples) / len(samples))


@app.websocket("/")
async def call(websocket: WebSocket):
    await websocket.accept()
    kind, about = await parse_telephony_websocket(websocket)
    says(f"{kind} stream {about.stream_id} call {about.call_id}")
    transport = FastAPIWebsocketTransport(
        websocket,
        FastAPIWebsocketParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            serializer=TwilioFrameSerializer(
                about.stream_id,
                call_sid=about.call_id,
                params=TwilioFrameSerializer.InputParams(auto_hang_up=False),
            ),
        ),
    )
    worker = PipelineWorker(
        Pipeline([transport.input(), Echo(), transport.output()]),
        params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
    )

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(_transport, _websocket):
        says("disconnected")
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
    says("ended")


def main():
    host, _, port = sys.argv[1].rpartition(":")
    logger.remove()
    logger.add(sys.stdout, level="WARNING")
    # Twenty seconds each by default: a call of the tests would end before it could be closed for a missing pong.
    pings = {"ws_ping_interval": 0.5, "ws_ping_timeout": 3}
    server = uvicorn.Config(app, host=host, port=int(port), log_level="warning", **pings)
    uvicorn.Server(server).run()


main()
