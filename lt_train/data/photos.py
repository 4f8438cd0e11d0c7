"""Images that nobody has prepared, seen by a network as those of a prepared set are."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from lt_train.config.schema import Config
from lt_train.data.batch import Loader
from lt_train.data.batch_plan import EvalPlan
from lt_train.data.image_files.check import Checker, Rejected
from lt_train.data.image_files.places import Images
from lt_train.data.manifest import Manifest
from lt_train.data.pixels import scale_of
from lt_train.data.run_data import make_loader, padding_of
from lt_train.data.tables import UNLABELED
from lt_train.distributed import World
from lt_train.errors import MachineFault, is_fault

# as data_prep does, but that images are decoded once, by the loader, wherever decoders agree
CHECKER = Checker(trust_plain=True)
AT_ONCE = 1 << 28  # bytes of pixels that the resident loader is given


class Photos:
    """Some of ``images``, in the place of a :class:`Manifest` where there are no labels: a batch
    plan and a loader ask for the same things.

    ``rows`` (N,): which of them; ``root``: what messages call them. How large an image is, in
    ``widths`` and ``heights`` (N,) int32, is known once it was read; why it cannot be used, in
    ``bad`` by sample id, once it was read or decoded. Threads may read at once.
    """

    split = "*"

    def __init__(self, images: Images, rows: np.ndarray, root: str):
        self.images, self.rows, self.root = images, rows, root
        self.labels = np.broadcast_to(np.int32(UNLABELED), len(rows))
        self.widths, self.heights = (np.zeros(len(rows), np.int32) for _ in range(2))
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: np.ndarray) -> "Photos":
        """Some of them by sample id, with what is known of them; ids count from 0 then."""
        part = Photos(self.images, self.rows[rows], self.root)
        part.widths, part.heights = self.widths[rows], self.heights[rows]
        places = enumerate(rows.tolist())
        part.bad = {place: self.bad[row] for place, row in places if row in self.bad}
        return part

    def is_labeled(self, sample_ids: np.ndarray) -> np.ndarray:
        """Whether samples (B,) have a label: (B,) bool."""
        return np.zeros(len(sample_ids), bool)

    def read(self, sample_id: int, at_random: bool = False) -> np.ndarray | None:
        """The image as data_prep would store it, (size,) uint8; None if it cannot be used."""
        sample_id = int(sample_id)
        if sample_id in self.bad:
            return None
        row = int(self.rows[sample_id])
        try:
            (image,) = CHECKER([self.images.read(row)])
        except (OSError, ValueError) as error:
            if is_fault(error):
                message = f"cannot read an image of {self.root}: {error.strerror}"
                raise MachineFault(f"{message}; the same command again tries anew") from error
            return self.reject(sample_id, getattr(error, "strerror", None) or str(error))
        if isinstance(image, Rejected):
            return self.reject(sample_id, image.reason)
        self.widths[sample_id], self.heights[sample_id] = image.width, image.height
        return np.frombuffer(image.content, np.uint8)

    def look(self, threads: int) -> None:
        """Find out how large all of them are."""
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self.read, range(len(self))):
                pass  # only what reading has found counts

    def reject(self, sample_id: int, reason: str) -> None:
        """Not to be used, and not to be read again."""
        self.bad.setdefault(sample_id, reason)

    count_bad = reject  # of an image that is seen as a whole, no other part is worth a try


def loaders_of(
    samples: Photos | Manifest, config: Config, world: World, crops: int
) -> Iterator[tuple[np.ndarray, Photos | Manifest, Loader]]:
    """Loaders over all ``samples``, of any size whatever ``data.loader`` is. Each comes with the
    part that it is over and the sample ids (M,) of that, of which its batches have the places.

    What is left out of batches is ``bad`` of the part once the loader is through.
    """
    alone, batch_size = World(device=world.device), config.data.eval_batch_size

    def plan_of(part: Photos | Manifest) -> EvalPlan:
        return EvalPlan(part, config.eval_view, batch_size, alone, crops)

    by_dali = replace(config, data=replace(config.data, loader="dali"))
    if config.data.loader == "dali":
        yield np.arange(len(samples)), samples, make_loader(plan_of(samples), by_dali, world)
        return
    if isinstance(samples, Photos):
        samples.look(world.cpu_threads)
    for ids, is_resident in _alike(samples):
        part = samples.subset(ids)
        if is_resident:
            yield ids, part, _resident_loader(plan_of(part), config, world)
        else:
            yield ids, part, make_loader(plan_of(part), by_dali, world)


def _alike(samples: Photos | Manifest) -> Iterator[tuple[np.ndarray, bool]]:
    """Sample ids that one loader can take, and whether it is the resident one, which a run trained
    with it is used to: squares of one size. What is unreadable goes to either.
    """
    widths, heights = np.asarray(samples.widths), np.asarray(samples.heights)
    sides = np.where(widths == heights, widths, 0)
    for side in np.unique(sides).tolist():
        ids = np.flatnonzero(sides == side)
        number = max(1, AT_ONCE // (3 * side**2)) if side else len(ids)
        for start in range(0, len(ids), number):
            yield ids[start : start + number], side > 0


def _resident_loader(plan: EvalPlan, config: Config, world: World) -> Loader:
    from lt_train.data.resident_loader import ResidentLoader, load_resident

    padding = padding_of(config)
    images = load_resident(plan.manifest, world.device, world.cpu_threads, padding)
    return ResidentLoader(plan, images, padding, scale_of(config.model))
