"""The table of images/s over numbers of nodes."""

import json

from rich.console import Console

from launch.scaling import show_scaling


def test_the_scaling_table_counts_from_the_fewest_nodes_measured(tmp_path):
    files = {nodes: tmp_path / f"{nodes}.json" for nodes in (1, 2, 4, 8)}
    for nodes, rate in {2: 2000.0, 4: 3600.0}.items():  # 1 and 8 did not complete
        result = {
            "ranks": nodes * 8,
            "synthetic": {"images_per_s": rate + 1},
            "loader": {"images_per_s": rate + 2.25},
            "end_to_end": {"images_per_s": rate},
        }
        files[nodes].write_text(json.dumps(result))
    with open(tmp_path / "shown", "w") as shown:
        show_scaling(files, tmp_path / "scaling.md", Console(file=shown, width=200))
    assert (tmp_path / "scaling.md").read_text().splitlines() == [
        (
            "| nodes | ranks | synthetic, images/s | loader, images/s | end to end, images/s |"
            " efficiency |"
        ),
        "| --- | --- | --- | --- | --- | --- |",
        "| 2 | 16 | 2,001.0 | 2,002.2 | 2,000.0 | 1.00 |",
        "| 4 | 32 | 3,601.0 | 3,602.2 | 3,600.0 | 0.90 |",
    ]
    assert "0.90" in (tmp_path / "shown").read_text()


def test_nothing_measured_is_no_table(tmp_path):
    show_scaling({1: tmp_path / "1.json"}, tmp_path / "scaling.md", Console())
    assert not list(tmp_path.iterdir())
