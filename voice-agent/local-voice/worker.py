"""One thread that owns one model: jobs by priority, a bounded queue, results as asyncio futures.

A model is not asked two things at once, so each model costs one core at most; the native code releases the GIL.
"""

import asyncio
import heapq
import itertools
import threading

# Jobs that may wait for one model: one each of about 64 callers. One more is refused with Busy.
QUEUE_MAX = 64

URGENT = 0  # somebody waits for it now
IDLE = 1  # only worth doing when nothing else is to do


class Busy(Exception):
    """The queue is full."""


class Worker:
    def __init__(self, name):
        self._jobs = []
        self._order = itertools.count()
        self._ready = threading.Condition()
        self._running = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def idle(self):
        """Nothing runs and nothing waits."""
        with self._ready:
            return not self._running and not self._jobs

    def submit(self, function, *arguments, priority=URGENT):
        """Runs `function` on the worker; awaitable from the running event loop."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._ready:
            if len(self._jobs) >= QUEUE_MAX:
                raise Busy(f"{QUEUE_MAX} jobs wait already")
            heapq.heappush(self._jobs, (priority, next(self._order), loop, future, function, arguments))
            self._ready.notify()
        return future

    def _run(self):
        while True:
            with self._ready:
                self._running = False
                while not self._jobs:
                    self._ready.wait()
                _, _, loop, future, function, arguments = heapq.heappop(self._jobs)
                self._running = True
            if future.cancelled():
                continue
            try:
                result, error = function(*arguments), None
            except Exception as caught:  # the caller gets it; the worker goes on
                result, error = None, caught
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: the process ends


def _settle(future, result, error):
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
