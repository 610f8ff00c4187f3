"""Models that are written node by node, one file each, by the name of the class that transformers would load."""

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from rankrt_export.architectures import xlm_roberta
from rankrt_export.graph import Graph

Architecture = Callable[[Graph, Mapping[str, Any]], ir.Value]

ARCHITECTURES: Mapping[str, Architecture] = {
    "XLMRobertaForSequenceClassification": xlm_roberta.build,
    "RobertaForSequenceClassification": xlm_roberta.build,
    "CamembertForSequenceClassification": xlm_roberta.build,
}
