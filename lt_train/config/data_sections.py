"""The sections of a config that say what is trained on, and how it is seen."""

from dataclasses import dataclass
from typing import Literal, Optional


@dataclass(frozen=True)
class DataConfig:
    root: str = ""  # a folder written by data_prep, or the URL of one (s3://bucket/set)
    train_split: str = "train"  # trained on
    # train on a draw of so many, by the seed, whatever their classes: these keep their shares, more
    # or less, and rare ones may lose all that they have; an epoch is a pass over the draw
    max_samples: Optional[int] = None
    val_split: str = "val"  # used for model selection; skipped when the data set has none
    test_split: str = "test"  # evaluated once, after training
    # dali: decodes images for every batch anew; resident: keeps them, small and of one size, on the
    # device
    loader: Literal["dali", "resident"] = "dali"
    # dali: where images are decoded; cpu: on a GPU's machine too, where its cores have nothing else
    # to do; auto: on the GPU where there is one
    decode: Literal["auto", "gpu", "cpu"] = "auto"
    decode_threads: int = 0  # DALI threads a rank; 0: the rank's share of the cores
    eval_batch_size: int = 256  # samples a rank
    max_bad_share: float = 0.001  # stop when more than this share of a split turns out unreadable
    # the node cache: copy the sets to this local folder first, verified
    cache_dir: Optional[str] = None
    # the most that it may hold, in GB (1e9 bytes): sets that no job uses are removed for new ones,
    # the least recently used first; null: nothing is ever removed
    cache_gb: Optional[float] = None
    # auto: train on features of a frozen backbone that are computed once, where nothing of the
    # training view is random
    features: Literal["auto", "off"] = "auto"


@dataclass(frozen=True)
class UnlabeledConfig:
    root: str = ""  # a second folder written by data_prep, whose own labels are not used
    split: str = "train"  # of that folder
    # of the global batch; null: both sets are one, sampled alike (needs label_column)
    share: Optional[float] = 0.5
    # take labels from this column of its manifest, such as pseudo_label or sourced_label
    label_column: Optional[str] = None
    confidence_column: str = "confidence"  # of its manifest, for min_confidence
    min_confidence: float = 0.0  # with label_column: leave out samples that are less sure
    # use a draw of so many, by the seed; what the resident loader can hold of a large pool
    max_samples: Optional[int] = None


@dataclass(frozen=True)
class SamplerConfig:
    name: str = "instance_balanced"  # one of SAMPLERS
    samples_per_class: int = 4  # class_balanced: how many positions in a row a class gets
    beta: float = 0.9999  # effective_number


@dataclass(frozen=True)
class ViewConfig:
    """One augmented view of an image. Probabilities of 0 switch a transform off."""

    size: int = 224  # pixels, the side of the square output
    # a random part, resized; a random part of the image and a border; the middle, after resizing
    crop: Literal["random_resized", "pad", "center"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)  # random_resized: share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random_resized: width / height
    padding: int = 4  # pad: zero pixels round the image before a random crop
    resize: int = 256  # center: the shorter side before the crop
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of resizing
    flip_probability: float = 0.5  # left to right
    # brightness, contrast, saturation, hue
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 1.0  # of any jitter at all
    grayscale_probability: float = 0.0  # of an image without colours
    blur_probability: float = 0.0  # Gaussian
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    randaugment_ops: int = 0  # RandAugment's N: random operations in a row on each image
    # RandAugment's M, of 30; null: drawn anew for each operation
    randaugment_magnitude: Optional[int] = 10
    # Cutout: a grey square with a side of up to this share of the view's, the last of all
    cutout: float = 0.0
