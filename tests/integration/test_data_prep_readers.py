"""Other tools read what was written: webdataset, DALI, Arrow, pandas."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.dataset
import pytest
import webdataset
from nvidia.dali import fn, pipeline_def
from PIL import Image

from lt_train.data.manifest import Manifest
from lt_train.data.tables import MANIFEST_SCHEMA
from tests.helpers.data_prep_runs import Made, Original, noise_png, succeed, tree
from tests.helpers.sources import fill


@pytest.fixture(scope="module")
def thumbnails(tmp_path_factory) -> Made:
    """PNGs of 32 x 32 pixels in class folders, as CIFAR-10 is often kept, from a list."""
    root = tmp_path_factory.mktemp("thumbnails")
    originals = {}
    for label, size in enumerate((9, 5, 1)):
        for number in range(size):
            content = noise_png(label * 10 + number, 32)
            originals[f"{label}/{number}"] = Original(content, label)
    images = {f"{key}.png": original.content for key, original in originals.items()}
    fill(root / "images", images)
    (root / "train.txt").write_text("".join(f"{name} {name[0]}\n" for name in images))
    lists = ["--list", str(root / "train.txt"), "--source", str(root / "images")]
    arguments = ["folder", *lists, "--samples-per-shard", "6"]
    succeed(*arguments, "--out", root / "set", "--dali-index")
    return Made(root / "set", arguments, "png", {"train": originals})


@pytest.fixture(scope="module", params=["strange", "pool", "thumbnails"])
def made(request) -> Made:
    return request.getfixturevalue(request.param)


def test_webdataset_reads_every_sample(made):
    for split, originals in made.originals.items():
        tars = made.tars(split)
        assert len(tars) > 1
        read = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
        found = {sample["__key__"]: sample for sample in read}
        assert found.keys() == originals.keys()
        for key, original in originals.items():
            image = Image.open(io.BytesIO(original.content))
            np.testing.assert_array_equal(found[key][made.extension], image)
            assert found[key].get("cls", -1) == original.label


def read_by_dali(made: Made, split: str, indexed: bool) -> list[tuple[bytes, int]]:
    """Every sample's bytes and label (-1: none), in order."""
    is_labeled = made.extension != "ppm"
    options = {
        "paths": made.tars(split),
        "ext": ["jpg;png;ppm", "cls"] if is_labeled else ["jpg;png;ppm"],
        "missing_component_behavior": "error",
    }
    if indexed:
        options["index_paths"] = [tar.replace(".tar", ".idx") for tar in options["paths"]]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        outputs = fn.readers.webdataset(name="reader", **options)
        return tuple(outputs) if is_labeled else outputs

    pipe = pipeline()
    pipe.build()
    found = []
    for _ in range(pipe.reader_meta("reader")["epoch_size"]):
        content, *label = (bytes(np.array(output[0])) for output in pipe.run())
        found.append((content, int(label[0]) if label else -1))
    return found


def test_dali_reads_every_sample_with_and_without_an_index(made, tmp_path):
    """The index may be asked for when the set is complete already: it is the same."""
    copy = replace(made, root=Path(shutil.copytree(made.root, tmp_path / made.root.name)))
    for path in copy.root.glob("*.idx"):
        path.unlink()
    done = succeed(*made.command, "--out", copy.root, "--dali-index")
    number = sum(map(len, map(copy.tars, made.originals)))
    assert "already complete" in done.stderr
    assert f"{number} index files for DALI written" in done.stderr
    before, after = tree(made.root), tree(copy.root)
    assert before.items() <= after.items() and len(after) - len(before) in (0, number)
    for split, originals in made.originals.items():
        manifest = Manifest(made.root, split)
        order = [originals[key] for key in map(manifest.key, range(len(manifest)))]
        expected = [(original.content, original.label) for original in order]
        assert len(expected) == len(originals)
        assert read_by_dali(copy, split, indexed=False) == expected
        assert read_by_dali(copy, split, indexed=True) == expected


def by_arrow(path: Path) -> pa.Table:
    """Mapped, so that nothing is copied into memory."""
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert pa.total_allocated_bytes() == before
    (batch,) = table.to_batches()
    for name in set(table.column_names) - {"key"}:
        batch[name].to_numpy(zero_copy_only=True)
    return table


def by_hugging_face(path: Path) -> pa.Table:
    """As the datasets library opens Arrow files: as a stream, or else as a file."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()


def by_pandas(path: Path) -> pa.Table:
    frame = pandas.read_feather(path)
    return pa.Table.from_pandas(frame, schema=MANIFEST_SCHEMA, preserve_index=False)


READERS = {
    "pyarrow": by_arrow,
    "pyarrow.dataset": lambda path: pyarrow.dataset.dataset(path, format="ipc").to_table(),
    "Hugging Face": by_hugging_face,
    "pandas": by_pandas,
}


@pytest.mark.parametrize("reader", READERS)
def test_other_tools_read_the_manifest_which_points_at_the_images_bytes(made, reader):
    for split, originals in made.originals.items():
        table = READERS[reader](made.root / f"{split}.arrow")
        assert table.schema.equals(MANIFEST_SCHEMA)
        tars = [Path(tar).read_bytes() for tar in made.tars(split)]
        rows = table.to_pylist()
        assert {row["key"] for row in rows} == originals.keys() and len(rows) == len(originals)
        for row in rows:
            original = originals[row["key"]]
            start, end = row["offset"], row["offset"] + row["size"]
            assert tars[row["shard"]][start:end] == original.content
            assert (row["width"], row["height"]) == Image.open(io.BytesIO(original.content)).size
            assert row["label"] == original.label
