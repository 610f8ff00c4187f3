"""Models that are written node by node, one file each. Their names are those of transformers' classes."""

from collections.abc import Mapping

from rankrt_export.architectures import bert, deberta, decoder, gte, modernbert
from rankrt_export.checkpoint.families import DECODERS
from rankrt_export.graph.blueprint import Architecture

ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(bert.FAMILIES, bert.build),
    **dict.fromkeys(deberta.CLASSES, deberta.build),
    **dict.fromkeys(modernbert.CLASSES, modernbert.build),
    **dict.fromkeys(gte.CLASSES, gte.build),
    **dict.fromkeys(DECODERS, decoder.build),
}
