"""What other projects call the parts of torchvision's ResNet."""

import re
from collections.abc import Callable, Iterable

Renaming = dict[str, str]  # a file's names of tensors -> torchvision's

# list(resnet.children()): the stem, an activation and a pooling without weights, four stages, and
# after another pooling the classifier
CHILDREN = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
    "9": "fc",
}
FIRST_BLOCK = "4.0.conv1.weight"
HUGGING_FACE = re.compile(
    r"(?P<before>^|.*\.)(?:embedder\.(?P<stem>embedder)"
    r"|encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)"
    r"\.(?:layer\.(?P<layer>\d+)|shortcut))"
    r"\.(?P<kind>convolution|normalization)\.(?P<after>\w+)"
)


def as_it_is(names: Iterable[str]) -> Renaming:
    return {name: name for name in names}


def yang_xu(names: Iterable[str]) -> Renaming:
    """The ResNets of Yang and Xu (models/resnet.py) say shortcut for downsample."""
    return {name: name.replace(".shortcut.", ".downsample.") for name in names}


def hugging_face(names: Iterable[str]) -> Renaming:
    """ResNetModel and ResNetForImageClassification of transformers (modeling_resnet.py)."""
    return {name: HUGGING_FACE.sub(_of_hugging_face, name) for name in names}


def _of_hugging_face(match: re.Match) -> str:
    convolves = match["kind"] == "convolution"
    if match["stem"]:
        module = "conv1" if convolves else "bn1"
    else:
        module = f"layer{int(match['stage']) + 1}.{match['block']}."
        if match["layer"] is None:
            module += "downsample.0" if convolves else "downsample.1"
        else:
            module += f"{'conv' if convolves else 'bn'}{int(match['layer']) + 1}"
    return f"{match['before']}{module}.{match['after']}"


def sequential(names: Iterable[str]) -> Renaming:
    """``nn.Sequential(*list(resnet.children())[:-1])``, under whatever prefixes there are."""
    names = list(names)
    roots = [
        name.removesuffix(FIRST_BLOCK) for name in names if f".{name}".endswith(f".{FIRST_BLOCK}")
    ]
    renamed = {name: name for name in names}
    for root in roots:
        for name in names:
            child, dot, rest = name.removeprefix(root).partition(".")
            if name.startswith(root) and child in CHILDREN:
                renamed[name] = f"{root}{CHILDREN[child]}{dot}{rest}"
    return renamed


NAMINGS: dict[str, Callable[[Iterable[str]], Renaming]] = {  # the first that fits best is taken
    "torchvision": as_it_is,
    "Yang and Xu": yang_xu,
    "Hugging Face": hugging_face,
    "nn.Sequential": sequential,
}
