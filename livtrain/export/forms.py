"""Writers of single-file forms; each hands back how to compute with what it wrote."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from livtrain.export.model import STRIDE, Compute, TrainedModel
from livtrain.networks import build_network

INPUT, OUTPUT = "windows", "logits"
METADATA_FILE = "livtrain.json"
"""Name of the extra file inside a TorchScript archive."""
_LARGEST = 128
"""Of an axis, in strides, that the ONNX graph promises to take."""


def write_safetensors(model: TrainedModel, path: Path) -> Compute:
    """Weights by name, and the metadata as one JSON text; the network is rebuilt from the settings in it."""
    from safetensors.torch import load_file, save_file

    state = {name: value.detach().contiguous() for name, value in model.network.state_dict().items()}
    # One entry: the library writes several in an order that changes from run to run.
    save_file(state, path, metadata={"livtrain": json.dumps(model.metadata, sort_keys=True)})
    settings = model.settings
    again = build_network(settings.network, len(settings.bank), model.stage.out_channels, settings.width)
    again.load_state_dict(load_file(path))
    return _computed_by(again.eval())


def write_torchscript(model: TrainedModel, path: Path) -> Compute:
    """The traced graph; batch and sizes stay free. The metadata lie in it as `livtrain.json`."""
    trace: Any = torch.jit.trace  # torch leaves these without types
    load: Any = torch.jit.load
    with _quiet(), torch.no_grad():
        traced = trace(model.network, model.example, check_trace=False)
        text = json.dumps(model.metadata, sort_keys=True)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={METADATA_FILE: text.encode()})
        path.write_bytes(buffer.getvalue())
        return _computed_by(load(path, map_location="cpu"))


def write_onnx(model: TrainedModel, path: Path) -> Compute:
    """The graph with free batch and sizes (multiples of 8), computed by onnxruntime."""
    import onnx
    import onnxruntime

    dim = torch.export.Dim
    sizes = {k + 2: STRIDE * dim(name, min=1, max=_LARGEST) for k, name in enumerate("zyx")}
    with _quiet():
        program = torch.onnx.export(
            model.network,
            (model.example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: dim("batch", min=1, max=_LARGEST), **sizes},),
        )
    assert program is not None
    proto = program.model_proto
    _forget_origin(proto)
    onnx.helper.set_model_props(proto, model.metadata)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def compute(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = session.run([OUTPUT], {INPUT: x})[0]
        return found

    return compute


def _forget_origin(proto: Any) -> None:
    """Remove what the exporter notes of the machine: lines of source files, with their paths."""
    graph = proto.graph
    for entry in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for function in proto.functions:
        for entry in (function, *function.node, *function.value_info):
            del entry.metadata_props[:]
            entry.doc_string = ""


def _computed_by(network: torch.nn.Module) -> Compute:
    def compute(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            found: npt.NDArray[np.float32] = network(torch.from_numpy(x)).numpy()
        return found

    return compute


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporters say of their own future, and of checks on shapes that a trace leaves out."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
