"""The images of a source as they are stored: the one place where data preparation decodes."""

from collections.abc import Iterator, Sequence

from data_prep.reading.source import SourceSplit
from lt_train.data.image_files.check import Checked, Checker, Rejected
from lt_train.data.image_files.decoder_process import IMAGES_AT_ONCE
from lt_train.errors import MachineFault, is_fault

PIXELS_AT_ONCE = 2**23  # what is decoded at once takes three bytes a pixel
BYTES_AT_ONCE = 2**25


def checked(
    split: SourceSplit, indices: Sequence[int], checker: Checker
) -> Iterator[tuple[int, Checked | Rejected]]:
    """Each index with its image, in order; read and decoded a batch at a time.

    A :class:`MachineFault` if a disk or network fails, which says nothing of the image.
    """
    waiting: list[tuple[int, Checked | Rejected]] = []
    number_of_bytes = pixels = 0
    for index in map(int, indices):
        image = _looked(split, index, checker)
        waiting.append((index, image))
        if isinstance(image, Checked):
            number_of_bytes += len(image.content)
            pixels += image.width * image.height
        full = number_of_bytes > BYTES_AT_ONCE or pixels > PIXELS_AT_ONCE
        if full or len(waiting) == IMAGES_AT_ONCE:
            yield from _decided(waiting, checker)
            waiting, number_of_bytes, pixels = [], 0, 0
    yield from _decided(waiting, checker)


def _looked(split: SourceSplit, index: int, checker: Checker) -> Checked | Rejected:
    try:
        return checker.look(split.images.read(index))
    except (OSError, ValueError) as error:
        if is_fault(error):
            message = f"cannot read {split.keys[index]} of the source: {error.strerror}"
            raise MachineFault(f"{message}; the same command again goes on from there") from error
        return Rejected(str(error))


def _decided(
    waiting: list[tuple[int, Checked | Rejected]], checker: Checker
) -> Iterator[tuple[int, Checked | Rejected]]:
    decided = checker.decided([image for _, image in waiting])
    for (index, _), image in zip(waiting, decided, strict=True):
        yield index, image
