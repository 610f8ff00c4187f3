"""Runs of a request's few rows with and without a CUDA graph. Inputs stay in place. Each shape has its own graph."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.gpu.lines import Line, median_s
from benchmarks.gpu.rows import encoded_of
from benchmarks.gpu.subject import CUDA, Subject, placed
from rankrt.backends.batch import GPU_BATCHES
from rankrt.backends.cuda import cuda_settings
from rankrt.backends.gpu import open_on
from rankrt.backends.session import import_onnxruntime

_REQUESTS = ((1, 60), (10, 60), (10, 200))
_WAYS: Mapping[str, dict[str, str]] = {"no graph": {}, "CUDA graph": {"enable_cuda_graph": "1"}}


def graphs(subject: Subject) -> Iterator[Line]:
    """Yield the time and the first logit of each shape, with and without a graph. A graph must not change the logit."""
    ort, placement = import_onnxruntime(), placed(subject.artifact, "fp16")
    graph, batch = placement.artifact.path(placement.variant.graph), GPU_BATCHES[placement.variant.layout]
    for way, settings in _WAYS.items():
        session = open_on(CUDA, graph, "ORT_ENABLE_EXTENDED", cuda_settings(CUDA) | settings)
        for number, (n_rows, length) in enumerate(_REQUESTS, 1):
            inputs = batch(encoded_of([length] * n_rows, subject.size.n_ids), np.arange(n_rows))
            binding, options = session.io_binding(), ort.RunOptions()
            held = {
                node.name: ort.OrtValue.ortvalue_from_numpy(inputs[node.name], "cuda", 0)
                for node in session.get_inputs()
            }
            for name, value in held.items():
                binding.bind_ortvalue_input(name, value)
            logits = ort.OrtValue.ortvalue_from_shape_and_type([n_rows], np.float32, "cuda", 0)
            binding.bind_ortvalue_output("logits", logits)
            if settings:
                options.add_run_config_entry("gpu_graph_id", str(number))

            def run(session: Any = session, binding: Any = binding, options: Any = options) -> None:
                session.run_with_iobinding(binding, options)

            took = median_s(run, subject.size.seconds / 3)
            figures = {"ms": 1e3 * took, "first_logit": float(logits.numpy()[0])}
            yield Line(name=f"{way}, {n_rows} rows of {length} tokens", figures=figures)
        del session, binding, run
