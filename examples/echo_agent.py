"""A bring-your-own agent in a few lines: says back what it hears; the key 9 ends the call.

Run it, then dial sip:pcm:demo-key@127.0.0.1:4573. Needs `pip install websockets`.
"""

import asyncio
import json

from websockets.asyncio.server import serve


async def call(socket):
    async for frame in socket:
        if isinstance(frame, bytes):  # 20 ms of the caller: 16 kHz, 16 bit
            await socket.send(frame)
            continue
        event = json.loads(frame)
        print(event)
        if event["event"] == "dtmf" and event["digit"] == "9":
            await socket.send(json.dumps({"event": "hangup", "after": "drain"}))


async def main():
    async with serve(call, "127.0.0.1", 8766) as server:
        print("listening on ws://127.0.0.1:8766/")
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
