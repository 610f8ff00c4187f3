"""How a linear layer and a table of vectors are stored and computed, one file each."""

from collections.abc import Mapping

from rankrt.artifact import Precision as PrecisionName
from rankrt_export.graph import Precision
from rankrt_export.precision.float16 import Float16
from rankrt_export.precision.float32 import Float32

PRECISIONS: Mapping[PrecisionName, Precision] = {"fp32": Float32(), "fp16": Float16()}
