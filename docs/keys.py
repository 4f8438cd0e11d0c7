"""``python docs/keys.py`` writes keys.md beside it: every key of a config, off the dataclasses."""

from pathlib import Path

from lt_train.config.keys import Key, list_keys

PAGE = Path(__file__).with_name("keys.md")
HEAD = """\
# Every key

Written by `python docs/keys.py`; the same in a terminal is `python -m lt_train --list-keys
'optim.*'`. What a config sets of them: `python -m lt_train CONFIG --print-config`. How they are
given is in [configuration.md](configuration.md).
"""
TABLE = "| key | takes | default | what |\n|---|---|---|---|\n"


def page() -> str:
    """The page, in Markdown."""
    parts, sections = [HEAD], {}
    for key in list_keys():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section, keys in sections.items():
        rows = "\n".join(map(_row, keys))
        parts.append(f"## {section or 'The run itself'}\n\n{TABLE}{rows}\n")
    return "\n".join(parts)


def _row(key: Key) -> str:
    default = f"`{key.default}`" if key.default else ""
    cells = [f"`{key.name}`", key.kind, default, key.meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
