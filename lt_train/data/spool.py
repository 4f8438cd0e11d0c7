"""Tables that grow in temporary files, for manifests of any size in little memory."""

import mmap
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from lt_train.errors import UserError


class Spool:
    """Columns of a growing table in temporary files."""

    def __init__(self, folder: Path, schema: pa.Schema):
        self.schema, self.rows = schema, 0
        self._maps: list[mmap.mmap] = []
        # text is two files: the characters, and Arrow's offsets, 0 and where each value ends
        self.files: dict[tuple[str, str], BinaryIO] = {}
        self.characters: dict[str, int] = {}
        for name, kind in zip(schema.names, schema.types):
            self.files[name, "values"] = self._file(folder)
            if kind == pa.string():
                self.characters[name] = 0
                self.files[name, "offsets"] = self._file(folder)
                self.files[name, "offsets"].write(np.int32(0).tobytes())

    @staticmethod
    def _file(folder: Path) -> BinaryIO:
        return tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed in __exit__

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_exception) -> None:
        for file in self.files.values():
            file.close()

    def append(self, table: pa.Table) -> None:
        self.rows += len(table)
        for name, kind in zip(self.schema.names, self.schema.types):
            if kind != pa.string():
                self.files[name, "values"].write(table[name].to_numpy().tobytes())
                continue
            encoded = [value.encode() for value in table[name].to_pylist()]
            sizes = [len(value) for value in encoded]
            ends = self.characters[name] + np.cumsum(sizes, dtype=np.int64)
            if len(ends) and ends[-1] > np.iinfo(np.int32).max:
                raise UserError(
                    f"the column '{name}' of the manifest has more than 2 GiB of text; "
                    "split the data set"
                )
            self.files[name, "offsets"].write(ends.astype(np.int32).tobytes())
            self.files[name, "values"].write(b"".join(encoded))
            self.characters[name] = int(ends[-1]) if len(ends) else self.characters[name]

    def forget(self) -> None:
        """Take the pages that were read from memory; they are read again if they are asked for."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def batch(self) -> pa.RecordBatch:
        """All rows, mapped from the files."""
        arrays = []
        for name, kind in zip(self.schema.names, self.schema.types):
            values = self._mapped(name, "values")
            if kind == pa.string():
                offsets = self._mapped(name, "offsets")
                arrays.append(pa.StringArray.from_buffers(self.rows, offsets, values))
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
