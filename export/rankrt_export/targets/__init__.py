"""How rows and attention are expressed for an engine, one file each."""

from collections.abc import Callable, Mapping

from rankrt.artifact import Target
from rankrt_export.graph import CausalRows, Graph, Rows
from rankrt_export.targets.cpu import PackedRows
from rankrt_export.targets.cpu_causal import CausalPackedRows, SegmentShape

TARGETS: Mapping[Target, Callable[[Graph], Rows]] = {"cpu": PackedRows}
CAUSAL_TARGETS: Mapping[Target, Callable[[Graph, SegmentShape], CausalRows]] = {"cpu": CausalPackedRows}
