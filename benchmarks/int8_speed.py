"""int8 on a CPU, measured: rankrt beside its own fp32, sentence-transformers and the int8 of other engines.

    python -m benchmarks.int8_speed --checkpoint ./checkpoint --artifact ./artifact --data ../shared/data/xquad

As `cpu_speed`: processes of their own, the same thread budget, call by call in turn. The artifact holds fp32 and int8
(`rankrt export ... --precision fp32 int8`). The last line on standard output is the record as JSON.
"""

import json
from contextlib import ExitStack

import numpy as np

from benchmarks.cpu_speed import in_turn, options_of, ratio, worker
from benchmarks.workloads import mixed
from rankrt.artifact import open_artifact
from rankrt.machine import this_machine

SYSTEMS = ("rankrt-int8", "rankrt", "sentence-transformers", "onnxruntime-dynamic", "pytorch-dynamic")


def main() -> None:
    options = options_of(__doc__)
    machine, workload = this_machine(), mixed(options.data, "en", 32)
    n_threads = options.threads or machine.cores.n
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name, options, n_threads)) for name in SYSTEMS}
        answers = in_turn(list(workers.values()), workload, options.rounds)
    seconds = {name: [answer.seconds for answer in answers[name]] for name in SYSTEMS}
    logits = {name: np.array(answers[name][0].scores) for name in SYSTEMS}
    quantization = open_artifact(options.artifact).choose("cpu", "int8").quantization
    assert quantization is not None
    record = {
        "benchmark": "int8_speed",
        "model": options.checkpoint.name,
        "machine": {"processor": machine.processor, "instructions": machine.instructions, "n_threads": n_threads},
        "versions": {name: worker.versions for name, worker in workers.items()},
        "workload": workload.name,
        "n_rounds": options.rounds,
        "int8_share": quantization.int8_share,
        "median_seconds": {name: round(float(np.median(seconds[name])), 3) for name in SYSTEMS},
        "times_rankrt_int8": {name: round(ratio(seconds[name], seconds["rankrt-int8"]), 3) for name in SYSTEMS},
        "max_difference_from_fp32": {name: float(np.abs(logits[name] - logits["rankrt"]).max()) for name in SYSTEMS},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
