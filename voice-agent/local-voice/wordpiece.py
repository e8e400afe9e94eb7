"""BERT's uncased tokenizer: words and punctuation, then the longest pieces that the vocabulary knows."""

import unicodedata

WORD_MAX = 100  # characters; a longer "word" is unknown


class WordPiece:
    def __init__(self, vocabulary_path):
        with open(vocabulary_path, encoding="utf-8") as lines:
            self._ids = {line.rstrip("\n"): number for number, line in enumerate(lines)}
        self._unknown = self._ids["[UNK]"]
        self._begin = self._ids["[CLS]"]
        self._end = self._ids["[SEP]"]

    def encode(self, text, limit):
        """Token numbers with the begin and end marks, at most `limit`."""
        ids = [self._begin]
        for word in _words(text):
            ids.extend(self._pieces(word))
        return ids[: limit - 1] + [self._end]

    def _pieces(self, word):
        if len(word) > WORD_MAX:
            return [self._unknown]
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in self._ids:
                    pieces.append(self._ids[piece])
                    start = end
                    break
            else:
                return [self._unknown]
        return pieces


def _words(text):
    word = ""
    for character in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(character)
        if category == "Mn":  # an accent, split off by NFD
            continue
        if character.isspace() or category.startswith(("C", "Z")):
            if word:
                yield word
            word = ""
        elif category.startswith(("P", "S")):
            if word:
                yield word
            yield character
            word = ""
        else:
            word += character
    if word:
        yield word
