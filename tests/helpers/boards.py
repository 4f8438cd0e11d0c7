"""What a run's TensorBoard files show, as TensorBoard reads them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import backend_context, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest

ALL = {event_accumulator.IMAGES: 0, event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}


class Shown:
    """The files of one run."""

    def __init__(self, folder: Path):
        path = str(folder / "tensorboard")
        self.events = event_accumulator.EventAccumulator(path, ALL).Reload()
        # TensorBoard's own, which forgets tensors too; it has curves and images as such
        self.tensors = plugin_event_accumulator.EventAccumulator(path, ALL).Reload()

    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every curve."""
        tags = self.events.Tags()["scalars"]
        return {tag: [(each.step, each.value) for each in self.events.Scalars(tag)] for tag in tags}

    def images(self) -> dict[str, dict[int, np.ndarray]]:
        """Pixels (H, W, 3) by tag and step."""
        found = {}
        for tag in self.events.Tags()["images"]:
            for each in self.events.Images(tag):
                pixels = np.asarray(Image.open(io.BytesIO(each.encoded_image_string)))
                assert each.step not in found.setdefault(tag, {}), "once a step"
                found[tag][each.step] = pixels
        return found

    def texts(self) -> dict[str, list[tuple[int, str]]]:
        """(step, text) by tag."""
        found = {}
        for tag in self.tensors.PluginTagToContent("text"):
            texts = [
                (each.step, each.tensor_proto.string_val) for each in self.tensors.Tensors(tag)
            ]
            name = tag.removesuffix("/text_summary")
            found[name] = [(step, text.decode()) for step, (text,) in texts]
        return found


def compared(folder: Path) -> dict[str, tuple[dict, dict]]:
    """Settings and metrics of each run in ``folder``, as the tab HPARAMS shows them."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    context = TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder)))
    context, request = backend_context.Context(context), RequestContext()
    runs = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, runs, context.hparams_from_data_provider(request, "", 0)
    )
    asked = ListSessionGroupsRequest(start_index=0, slice_size=99, include_metrics=True)
    asked.allowed_statuses.extend(range(4))
    for each in experiment.metric_infos:
        asked.col_params.add().metric.CopyFrom(each.name)
    groups = list_session_groups.Handler(request, context, "", asked).run().session_groups
    found = {}
    for group in groups:
        settings = {
            name: value.string_value or value.number_value for name, value in group.hparams.items()
        }
        metrics = {each.name.tag: each.value for each in group.metric_values}
        found[Path(group.sessions[0].name).parent.name] = settings, metrics
    return found
