"""The ``gguf`` package's reader, made to take a vocabulary whole, and its tables of names, made once.

The package makes some arrays of every entry of a list in a file's metadata, views of a mapped file each: 20 seconds for
a vocabulary of 150,000 and its merges, and transformers reads both twice. Here an entry is a view of its bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import gguf
import numpy as np
from gguf import GGUFEndian, GGUFReader, GGUFValueType

_LENGTH_BYTES = 8  # of a string or a list


class QuickReader(GGUFReader):
    """What the package's reader gives, lists of metadata read in one go."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if GGUFValueType(raw_type) is not GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        begin = orig_offs + 4 + _LENGTH_BYTES
        if kind is GGUFValueType.STRING:
            parts, end = self._strings(begin, count)
        elif number := self.gguf_scalar_to_np.get(kind):
            numbers = np.array(self._get(begin, number, count))
            if len(numbers) < count:
                raise ValueError("the file ends within a list")
            parts, end = list(numbers.reshape(-1, 1)), begin + numbers.nbytes
        else:
            raise ValueError(f"lists of {kind.name} are not read")
        return end - orig_offs, parts, list(range(count)), [GGUFValueType.ARRAY, *([kind] if count else [])]

    def _strings(self, begin: int, count: int) -> tuple[list[memoryview], int]:
        """So many strings from byte ``begin`` on, and where they end."""
        data: Any = self.data
        whole, size = data._mmap, len(data)
        length = struct.Struct("<Q" if self.endianess is GGUFEndian.LITTLE else ">Q").unpack_from
        strings: list[memoryview] = []
        for _ in range(count):
            if begin + _LENGTH_BYTES > size:
                break
            first = begin + _LENGTH_BYTES
            begin = first + length(whole, begin)[0]
            strings.append(memoryview(whole[first:begin]))
        if len(strings) < count or begin > size:
            raise ValueError("the file ends within a string")
        return strings, begin

    def let_go(self) -> None:
        """What has been read of the file need not stay in memory, where the system can be told so."""
        advice = getattr(mmap, "MADV_DONTNEED", None)  # not on Windows
        if advice is not None:
            self.data._mmap.madvise(advice)  # type: ignore[attr-defined]


@contextmanager
def quick_reading() -> Iterator[None]:
    """Within the context transformers reads GGUF files so too, and makes one table of names, not one a module."""
    package: Any = gguf
    plain = package.GGUFReader, package.get_tensor_name_map
    package.GGUFReader, package.get_tensor_name_map = QuickReader, cache(package.get_tensor_name_map)
    try:
        yield
    finally:
        package.GGUFReader, package.get_tensor_name_map = plain
