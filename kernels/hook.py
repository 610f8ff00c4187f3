"""Puts the library of kernels into wheels for Linux on x86-64, while hatchling builds them.

Other systems get a wheel without it, and the runtime then uses ONNX Runtime's own kernels. So does a build with
RANKRT_BUILD_KERNELS=0.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

LIBRARY = "runtime/rankrt/kernels/rankrt_kernels.linux-x86_64.so"
# Every system that has build.py's glibc or a newer one. musl's systems and those of other processors do not take it.
PLATFORM = "manylinux_2_17_x86_64"


class KernelsHook(BuildHookInterface[Any]):
    """The hook that pyproject.toml names for wheels, editable ones included."""

    def dependencies(self) -> list[str]:
        """Return the compiler, where it is needed. It is 100 MB, so other builds do not download it."""
        if not builds_kernels():
            return []
        project = tomllib.loads((Path(self.root) / "pyproject.toml").read_text(encoding="utf-8"))
        compiler: list[str] = project["dependency-groups"]["kernels"]
        return compiler

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library in the source tree, and let it into the wheel."""
        if not builds_kernels():
            return
        try:
            subprocess.run([sys.executable, Path(self.root) / "kernels" / "build.py"], check=True)
        except (OSError, subprocess.CalledProcessError):
            sys.exit(
                "rankrt's kernels cannot be compiled; the reason is above. To install without them, set "
                "RANKRT_BUILD_KERNELS=0. int8 then runs on ONNX Runtime's own kernels, which are slower."
            )
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{PLATFORM}"


def builds_kernels() -> bool:
    """Return whether this system can load the library, and the user has not asked to leave it out."""
    return os.environ.get("RANKRT_BUILD_KERNELS") != "0" and PLATFORM in platform_tags()
