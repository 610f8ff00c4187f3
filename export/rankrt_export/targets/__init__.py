"""How rows and attention are expressed for an engine, one file each."""

from collections.abc import Callable, Mapping

from rankrt.artifact import Target
from rankrt_export.graph import Graph, Rows
from rankrt_export.targets.cpu import PackedRows

TARGETS: Mapping[Target, Callable[[Graph], Rows]] = {"cpu": PackedRows}
