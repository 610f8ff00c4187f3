"""Models that are written node by node, one file each, by the name of the class that transformers would load."""

from collections.abc import Mapping

from rankrt_export.architectures import decoder, xlm_roberta
from rankrt_export.checkpoint.families import DECODERS
from rankrt_export.graph.blueprint import Architecture

ARCHITECTURES: Mapping[str, Architecture] = {
    "XLMRobertaForSequenceClassification": xlm_roberta.build,
    "RobertaForSequenceClassification": xlm_roberta.build,
    "CamembertForSequenceClassification": xlm_roberta.build,
    **dict.fromkeys(DECODERS, decoder.build),
}
