"""Join the Ray cluster at the address that is given, say what it has, and leave."""

from __future__ import annotations

import logging
import os
import sys

from flatmin_lab.doctor.probes.speaking import in_words, say, take_output


def main() -> None:
    """Say the cluster's nodes and resources, or the error."""
    take_output()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        whole = ray.cluster_resources()
        say(nodes=nodes, cpus=whole.get("CPU", 0), gpus=whole.get("GPU", 0), version=ray.__version__)
        ray.shutdown()
    except Exception as error:  # noqa: BLE001 (Ray raises errors of many packages)
        say(error=in_words(error))


if __name__ == "__main__":
    main()
