"""Tables that grow in temporary files, for manifests of any size in little memory."""

import mmap
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

TEXT = (pa.string(), pa.large_string())
LARGEST_OFFSET = 2**31 - 1  # into the text of a string column, in bytes
COPIED_AT_ONCE = 1 << 24  # bytes


class Spool:
    """Columns of a growing table in temporary files.

    ``schema``: that of the rows so far. A column of more than 2 GiB of text becomes large_string.
    """

    def __init__(self, folder: Path, schema: pa.Schema):
        self.schema, self.rows = schema, 0
        self._maps: list[mmap.mmap] = []
        # text is two files: the characters, and Arrow's offsets, 0 and where each value ends
        self.files: dict[tuple[str, str], BinaryIO] = {}
        self.characters: dict[str, int] = {}
        self.folder = folder
        for name, kind in zip(schema.names, schema.types):
            self.files[name, "values"] = self._file()
            if kind == pa.string():
                self.characters[name] = 0
                self.files[name, "offsets"] = self._file()
                self.files[name, "offsets"].write(np.int32(0).tobytes())

    def _file(self) -> BinaryIO:
        return tempfile.TemporaryFile(dir=self.folder)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_exception) -> None:
        for file in self.files.values():
            file.close()

    def append(self, table: pa.Table) -> None:
        self.rows += len(table)
        for name, kind in zip(self.schema.names, self.schema.types):
            if kind not in TEXT:
                self.files[name, "values"].write(table[name].to_numpy().tobytes())
                continue
            encoded = [value.encode() for value in table[name].to_pylist()]
            sizes = [len(value) for value in encoded]
            ends = self.characters[name] + np.cumsum(sizes, dtype=np.int64)
            if len(ends) and ends[-1] > LARGEST_OFFSET and kind == pa.string():
                self._widen(name)
            self.files[name, "offsets"].write(ends.astype(self._offset_type(name)).tobytes())
            self.files[name, "values"].write(b"".join(encoded))
            self.characters[name] = int(ends[-1]) if len(ends) else self.characters[name]

    def _offset_type(self, name: str) -> type:
        return np.int32 if self.schema.field(name).type == pa.string() else np.int64

    def _widen(self, name: str) -> None:
        """Make a column of text large_string, whose offsets have 64 bits."""
        narrow, wide = self.files[name, "offsets"], self._file()
        narrow.seek(0)
        while part := narrow.read(COPIED_AT_ONCE):
            wide.write(np.frombuffer(part, np.int32).astype(np.int64).tobytes())
        narrow.close()
        self.files[name, "offsets"] = wide
        place = self.schema.get_field_index(name)
        self.schema = self.schema.set(place, pa.field(name, pa.large_string()))

    def forget(self) -> None:
        """Take the pages that were read from memory; they are read again if they are asked for."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def batch(self) -> pa.RecordBatch:
        """All rows, mapped from the files."""
        arrays = []
        for name, kind in zip(self.schema.names, self.schema.types):
            values = self._mapped(name, "values")
            if kind in TEXT:
                buffers = [None, self._mapped(name, "offsets"), values]
                arrays.append(pa.Array.from_buffers(kind, self.rows, buffers))
            else:
                arrays.append(pa.Array.from_buffers(kind, self.rows, [None, values]))
        return pa.record_batch(arrays, schema=self.schema)

    def _mapped(self, name: str, part: str) -> pa.Buffer:
        file = self.files[name, part]
        file.flush()
        if not file.tell():
            return pa.py_buffer(b"")
        self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return pa.py_buffer(self._maps[-1])
