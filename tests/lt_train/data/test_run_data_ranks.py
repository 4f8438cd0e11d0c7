"""Opening a set on many ranks: what is read how often, and what all of them hear of damage."""

import shutil
from pathlib import Path

import numpy as np

from lt_train.config.schema import Config, DataConfig
from lt_train.data import manifest, run_data, tables
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.training import same_run
from tests.helpers.ranks import run_on_ranks

RANKS = 3


def read_by(world: World, root: str, cache: str | None = None) -> tuple[list[str], dict | str]:
    """The tables of which this rank has compared checksums, and the data's digests or the error."""
    hashed, compare, digest = [], manifest.digest_problems, same_run._digest

    def told(path: Path, split: tables.Split):
        hashed.extend(split.tables)
        return compare(path, split)

    def digested(parts):
        hashed.append("digest")
        return digest(parts)

    manifest.digest_problems, same_run._digest = told, digested
    config = Config(data=DataConfig(root=root, cache_dir=cache, val_split="test"))
    try:
        return hashed, same_run.data_digests(RunData(config, world))
    except UserError as error:
        return hashed, f"{type(error).__name__}: {error}"


def test_one_rank_of_a_node_compares_checksums_and_rank_0_digests_for_all(small):
    (first, digests), *others = run_on_ranks(RANKS, read_by, str(small.root))
    one = ["train.arrow", "train.class_index.arrow", "test.arrow", "test.class_index.arrow"]
    assert first == [*one, "digest"]
    assert others == [([], digests)] * (RANKS - 1) and len(digests["data.root"]) == 64


def test_damage_that_one_rank_finds_is_the_same_line_on_all(small, tmp_path):
    root = Path(shutil.copytree(small.root, tmp_path / "set"))
    content = bytearray((root / "train.arrow").read_bytes())
    crc32 = manifest.Manifest(root, "train").column("crc32").tobytes()
    content[content.index(crc32)] ^= 1  # in range: only the checksum tells
    (root / "train.arrow").unlink()
    (root / "train.arrow").write_bytes(content)
    said = [line for _, line in run_on_ranks(RANKS, read_by, str(root))]
    assert said == [said[0]] * RANKS
    assert said[0].startswith(f"UserError: {root}/train.arrow is not as it was written")


def test_a_node_cache_that_cannot_be_written_is_the_same_line_on_all(small, tmp_path):
    (tmp_path / "file").touch()
    found = run_on_ranks(RANKS, read_by, str(small.root), str(tmp_path / "file"))
    said = {line for _, line in found}
    assert len(said) == 1 and "UserError: cannot copy" in said.pop()


def test_ranks_of_other_nodes_compare_for_themselves(small, monkeypatch):
    """Each sees the file system through a machine of its own."""
    checks = []
    monkeypatch.setattr(
        run_data, "Manifest", lambda root, split, check: checks.append(check) or np.zeros(1)
    )
    for local_rank in (0, 1):
        run_data.open_together(small.root, "train", World(2 + local_rank, 4, local_rank, 2))
    assert checks == ["all", "bounds"]
