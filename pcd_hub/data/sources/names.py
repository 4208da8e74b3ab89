"""Many names in little memory."""

from collections.abc import Iterable, Iterator

import numpy as np


class PackedNames:
    """An immutable sequence of texts in two buffers, which processes share after a fork.

    A million paths take the memory of their characters and 8 bytes each, however long the longest
    one is. Names that are not valid UTF-8 are kept (surrogate escapes).
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode(errors="surrogateescape") for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return self._text[start : int(self._ends[index])].decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield self._text[start:end].decode(errors="surrogateescape")
            start = end
