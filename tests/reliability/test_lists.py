"""Lists and CSVs of lines that are right and lines that are wrong in every way, mixed at random: a
data set whose every part holds, or one line.

``LT_TRAIN_TRIALS`` asks for more trials, ``LT_TRAIN_SEED`` for others.
"""

import os
import random
from pathlib import Path

import pytest

from data_prep.reading.source import SPLITS, Source
from data_prep.writing.plan import make_plan
from lt_train.errors import UserError
from tests.helpers.sources import source_of, touch
from tests.helpers.trials import SEED, trials

TRIALS = trials(500)
IMAGES = ["a.jpg", "b/1.jpg", "b/2 x.jpg", "c/x.1.jpg", "c/x_1.jpg", "c/\N{SNOWMAN},.png"]
PATHS = [b"../a.jpg", b"b/../../a.jpg", b"..", b".", b"/etc/hostname", b"//a.jpg", b"./a.jpg"]
PATHS += [b"b", b"b/", b"gone.jpg", b"", b" ", b"\xff.jpg", b"a\x00.jpg", b"a\x1b.jpg", b"a\t.jpg"]
PATHS += [b'"a.jpg', b'"b/1.jpg"', b"b\\1.jpg", b"~/a.jpg", b"x" * 5000, b"\xef\xbb\xbfa.jpg"]
PATHS += [b"a.jpg\x0b", b"\xc2\xa0a.jpg", b"b//1.jpg", b"{root}/b/1.jpg", b"{root}/../a.jpg"]
LABELS = [b"2", b"3", b"007", b"-1", b"-0", b"0.0", b"1.0", b"2.5", b"1e3", b"1e999", b"-1e999"]
LABELS += [b"nan", b"NaN", b"inf", b"", b" ", b"9" * 20, b"9" * 5000, b"cat", b"\xe2\x82\x82"]
LABELS += [b"\xd9\xa1", b"0x1", b"True", b'"0', b'"a\nb"', b"\xff", b"0\x00", b"1 # one", b"+1"]
BETWEEN = [b"\t", b"  ", b" \t", b"", b",", b";", b"\xc2\xa0", b",,", b", "]
ENDS = [b"\r\n", b"\n\n", b"\r", b"", b"\x0c\n", b"\x00\n", b"\xe2\x80\xa8"]
HEADERS = [b"path,label", b"label,path", b"path,label,split", b"\xef\xbb\xbfImage, CLASS ,set"]
ODD_HEADERS = [b"", b"path", b"path,path,label", b"label,label", b"path\tlabel", b'"path,label']
SPLIT_CELLS = [b"", b"train", b"Val", b"testing", b"dev", b"-1"]


def drawn(draw: random.Random, usual: list[bytes], odd: list[bytes], wild: float) -> bytes:
    return draw.choice(odd if draw.random() < wild else usual)


def content_of(draw: random.Random, kind: str, root: Path) -> bytes:
    """A file of up to 12 lines; in a third of them, nothing is wrong."""
    wild = draw.choice([0, 0.03, 0.3])
    images = [name.encode() for name in IMAGES]
    draw.shuffle(images)
    between, end = (b",", b"\n") if kind == "csv" else (b" ", b"\n")
    lines = [b"\xef\xbb\xbf"] if draw.random() < 0.2 else [b""]
    cells = 2
    if kind == "csv":
        header = drawn(draw, HEADERS, ODD_HEADERS, wild)
        cells = header.count(b",") + 1
        lines += [header, end]
    for number in range(draw.randrange(1, 12)):
        usual = images[number % len(images)]
        path = drawn(draw, [usual], PATHS, wild).replace(b"{root}", os.fsencode(root))
        if kind == "csv" and b"," in path and draw.random() > wild:
            path = b'"' + path + b'"'
        row = [path, drawn(draw, [b"0", b"1"], LABELS, wild)]
        if kind == "csv" and lines[1].startswith(b"label"):
            row.reverse()
        row += [drawn(draw, [b"train", b""], SPLIT_CELLS, wild)] * (cells > 2)
        lines.append(drawn(draw, [between], BETWEEN, wild).join(row))
        lines.append(drawn(draw, [end], ENDS, wild))
        if number >= len(images) - 1 and draw.random() > wild:
            break  # the same images again would be refused
    return b"".join(lines)


def assert_holds(source: Source, root: Path) -> None:
    """Every image lies below the root, every key is one, and every label has a class."""
    assert source.splits and set(source.splits) <= set(SPLITS)
    for split in source.splits.values():
        assert len(set(split.keys)) == len(split.keys) == len(split.labels)
        assert not any("." in key for key in split.keys)
        assert 0 <= split.labels.min() <= split.labels.max() < len(source.classes)
        for path in split.images.paths:
            assert Path(path).resolve().is_relative_to(root.resolve()) and Path(path).is_file()
    assert len(set(source.classes)) == len(source.classes)
    assert make_plan(source, root / "out", 0, 4).shards


@pytest.mark.parametrize("kind", ["list", "csv"])
def test_any_file_is_a_data_set_or_one_line(tmp_path, kind):
    touch(tmp_path, *(f"root/{name}" for name in IMAGES))
    root, file = tmp_path / "root", tmp_path / "file"
    sources = 0
    for trial in range(TRIALS):
        draw = random.Random(f"{SEED} {kind} {trial}")
        content = content_of(draw, kind, root)
        file.write_bytes(content)
        options = ["--val-list", file] if kind == "list" and draw.random() < 0.2 else []
        options += ["--val-fraction", "0.3"] if draw.random() < 0.2 else []
        try:
            source = source_of("folder", "--source", root, f"--{kind}", file, *options)
        except UserError as error:
            assert str(error).strip() and len(str(error)) < 6000, (trial, content)
        except Exception as error:
            raise AssertionError(f"trial {trial}: {content!r}") from error
        else:
            sources += 1
            assert_holds(source, root)
    assert TRIALS // 10 < sources < TRIALS - TRIALS // 10, "some of either kind"
