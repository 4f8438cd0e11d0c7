"""Pipelines for tests of launch/, and what these look at."""

HEAD = """\
name: "{data}_{method}"
description: "{title}, {method}: a trial"
parameters:
  data:
    demo: {title: Drawn objects, options: "--out {sets}/{data}"}
    other: {title: Others, options: "--seed 1 --out o"}
  method: [ce, focal]
reference:
  demo: {ce: 12.5}
compare: {training: [train, before]}
"""
STAGES = """\
stages:
  labeled: {prepare: "demo {options}"}
  before:
    config: moco_demo
    after: [labeled]
    set: {data.root: "{labeled}"}
    dir: "runs/{data}/before"
  train: {config: "classifier_demo +{method}", after: [before], set: {model.init_from: "{before}"}}
  posthoc:
    {run: "posthoc {train} --out {here}/posthoc", after: [train], when: {method: [ce]},
     resources: {nodes: 1}, why: "a look at {data}"}
"""


def one_line(caught) -> None:
    """The error that pytest caught has one line."""
    assert "\n" not in str(caught.value)


def flags(text: str) -> dict[str, str]:
    lines = [
        line.removeprefix("#SBATCH --").partition("=")
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    ]
    return {name: value for name, _, value in lines}
