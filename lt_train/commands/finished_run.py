"""What a finished run was finished with: its weights, how they see images, and the network that
evaluation scores with; all of it from the run's folder alone.
"""

import json
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from lt_train.config.load import load_config
from lt_train.config.schema import METHODS, Config, code_of
from lt_train.errors import UserError
from lt_train.methods.base import Counts, Method
from lt_train.models.tensor_files import AbsentFile, Tensors, read_safetensors, read_tensors
from lt_train.models.trainable import restrict
from lt_train.models.weights import (
    BACKBONE_FILE,
    CLASSIFIER_FILE,
    FINISH_AGAIN,
    load_weights,
    why_absent,
)
from lt_train.run_files import read_result


class FinishedRun:
    """A run's folder; a :class:`UserError` if none has been finished there.

    ``classes``: the names of its classes. ``backbone``: its tensors, adapters' too; ``classifier``:
    its tensors, None of a method without.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.result, path = read_result(folder), folder / "result.json"
        if "classes" not in self.result:
            raise UserError(
                f"{folder} is not a finished run: there is no {path} with its classes: "
                f"{why_absent(path)}, or name another folder"
            )
        self.classes: list[str] = self.result["classes"]

    @cached_property
    def config(self) -> Config:
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise UserError(f"{self.folder} is not a finished run: there is no {path}")
        return load_config(str(path))

    @cached_property
    def _backbone_file(self) -> tuple[Tensors, dict[str, str]]:
        try:
            return read_safetensors(self.folder / BACKBONE_FILE, FINISH_AGAIN)
        except AbsentFile as error:
            raise UserError(
                f"{self.folder} is not a finished run: {error}; {FINISH_AGAIN}"
            ) from error

    @property
    def backbone(self) -> Tensors:
        return self._backbone_file[0]

    @cached_property
    def classifier(self) -> Tensors | None:
        path = self.folder / CLASSIFIER_FILE
        return read_tensors(path, FINISH_AGAIN) if path.exists() else None

    def about(self) -> dict[str, str]:
        """What every exported file says of itself, as texts; lists and numbers as JSON.

        ``backbone``, ``method``, ``steps``; ``preprocessing``: from an image to what the network
        takes; and, of a network that scores the set's classes, their names as ``classes`` and
        numbers of training images as ``class_counts``.
        """
        model, view = self.config.model, self.config.eval_view
        sees = {
            "resize": view.resize,  # of the shorter side, pixels
            "interpolation": view.interpolation,
            "crop": view.crop,
            "input_size": view.size,  # of the square that is cut out, pixels
            "mean": model.mean,  # of pixels from 0 to 1
            "std": model.std,
        }
        about = {**self._backbone_file[1], "backbone": model.backbone}
        about.pop("format", None)  # safetensors' own
        about["preprocessing"] = json.dumps(sees)
        if METHODS[self.config.method].has_classifier:
            about["classes"] = json.dumps(self.classes)
            if "class_counts" in self.result:
                about["class_counts"] = json.dumps(self.result["class_counts"])
        return about

    def network(self) -> nn.Module:
        """What evaluation scores with: normalised images (B, 3, H, W) -> float32 logits (B, C), or
        features (B, D) where the run has no classifier. In evaluation mode, on the CPU.
        """
        config = self.config
        counts = self.result.get("class_counts", [1] * len(self.classes))
        method = code_of(METHODS, config.method)(config, Counts.of(torch.tensor(counts)))
        if config.model.trainable == "adapter":
            restrict(method.encoders(), config)  # updates of LoRA are merged, adapters stand beside
        load_weights(method.backbone, self.folder)
        if self.classifier is not None:
            load_weights(method.classifier, self.folder, CLASSIFIER_FILE)
        return _Scores(method, self.classifier is not None).requires_grad_(False).eval()


class _Scores(nn.Module):
    """A method's predictions, without what else it has been trained with."""

    def __init__(self, method: Method, has_classifier: bool):
        super().__init__()
        self.backbone, self._predict = method.backbone, None
        if has_classifier:
            # a bound function: the method itself is no part of this module
            self.classifier, self._predict = method.classifier, method.predict

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        predict = self._predict or self.backbone
        return predict(images).float()
