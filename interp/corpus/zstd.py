"""Reading Zstandard files whole: over all their frames, and with an error when the last frame is cut short.

The stream reader that fsspec offers ends quietly where a truncated file ends, which would drop text unseen.
"""

from __future__ import annotations

import io
from typing import IO, Any

import zstandard

_CHUNK = 1 << 17


class ZstdReader(io.RawIOBase):
    """A readable stream over the frames of `source`."""

    def __init__(self, source: IO[bytes]):
        self._source = source
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._in_frame = False
        self._plain = memoryview(b"")

    @classmethod
    def buffered(cls, source: IO[bytes]) -> IO[bytes]:
        return io.BufferedReader(cls(source), buffer_size=_CHUNK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            chunk = self._source.read(_CHUNK)
            if not chunk:
                if self._in_frame:
                    raise EOFError("the compressed file ended before its end-of-frame marker")
                return 0
            self._plain = memoryview(self._decompressed(chunk))
        n = min(len(buffer), len(self._plain))
        buffer[:n] = self._plain[:n]
        self._plain = self._plain[n:]
        return n

    def _decompressed(self, chunk: bytes) -> bytes:
        pieces = []
        while chunk:
            self._in_frame = True
            pieces.append(self._frame.decompress(chunk))
            chunk = b""
            if self._frame.eof:
                chunk = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._in_frame = False
        return b"".join(pieces)
