"""Brain floats on a CPU. OpenVINO rounds the fp32 weights when it loads them, so the files are those of fp32."""

from rankrt_export.precision.float32 import Float32
from rankrt_export.precision.methods import FixedMethod

METHODS = (FixedMethod(target="cpu", precision="bf16", arithmetic=Float32()),)
