"""``python -m lt_train completion bash|zsh|fish``: a script by which a shell completes commands,
configs, variants, keys and their values at the tab key.

The script asks ``lt-train completion --words ...`` at every tab, so it also knows configs and
modules that came later. Nothing here imports torch.
"""

import sys
from collections.abc import Iterator

from lt_train.arguments import Parser
from lt_train.commands import COMMANDS
from lt_train.config.keys import list_keys
from lt_train.config.load import list_configs, list_variants

TAKE_KEYS = ("evaluate", "posthoc", "pseudo_label", "score")  # after what comes first
# each completes the last of the words that it hands over; what the shell would split at "=", the
# whole word is compared with, and what stands before it is cut off again
SCRIPTS = {
    "bash": """\
_lt_train() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##*[[:space:]]}" all
    read -ra all <<< "$line"
    [[ -z $word ]] && all+=("")
    mapfile -t COMPREPLY < <(lt-train completion --words "${all[@]:1}" 2> /dev/null)
    [[ ${#COMPREPLY[@]} == 0 ]] && compopt -o default
    [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
}
complete -F _lt_train lt-train
""",
    "zsh": """\
#compdef lt-train
_lt_train() {
    local -a found
    found=("${(@f)$(lt-train completion --words "${(@)words[2,CURRENT]}" 2> /dev/null)}")
    [[ -n $found[1] ]] || { _files; return; }
    compadd -S '' -- ${(M)found:#*=}
    compadd -- ${found:#*=}
}
compdef _lt_train lt-train
""",
    "fish": """\
function __lt_train
    set -l words (commandline -opc) (commandline -ct)
    lt-train completion --words $words[2..] 2> /dev/null
end
complete -c lt-train -a '(__lt_train)'
""",
}


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    if words[:1] == ["--words"]:
        sys.stdout.write("".join(f"{word}\n" for word in candidates(words[1:])))
        return 0
    parser = Parser(
        prog="python -m lt_train completion",
        description="Print what a shell needs to complete lt-train's words at the tab key: "
        'eval "$(lt-train completion bash)" in ~/.bashrc, the same with zsh in ~/.zshrc, or '
        "lt-train completion fish | source in fish's config.",
    )
    parser.add_argument("shell", choices=SCRIPTS)
    sys.stdout.write(SCRIPTS[parser.parse_args(words).shell])
    return 0


def candidates(words: list[str]) -> list[str]:
    """What the last of ``words``, which follow ``lt-train``, may become; empty: a file's name."""
    *before, last = words or [""]
    found = sorted(word for word in _offered(before) if word.startswith(last))
    # values only once there is a key, and then not the key alone
    return [word for word in found if ("=" in last) == (not word.endswith("=") and "=" in word)]


def _offered(before: list[str]) -> Iterator[str]:
    if not before:
        yield from COMMANDS
    if not before or before == ["score"]:
        yield from (name for name, _ in list_configs())
    elif before == ["completion"]:
        yield from SCRIPTS
    elif before[0] not in COMMANDS or (before[0] in TAKE_KEYS and before[1:]):
        yield from (f"+{name}" for name, _ in list_variants())
        for key in list_keys():
            yield f"{key.name}="
            yield from (f"{key.name}={choice}" for choice in key.choices)
