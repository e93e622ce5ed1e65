"""The fleets that the tests of a coordinator run on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gradserve.server.fleet.ray_cluster import RayOptions, import_ray

# A machine that is gone is noticed within a second, not within a quarter of a minute.
_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of one machine with six slots, and four for workers with a GPU, this process connected to it."""
    pytest.importorskip("ray")
    ray = import_ray(RayOptions())
    from ray.cluster_utils import Cluster

    store = 200 << 20
    head = {"num_cpus": 6, "num_gpus": 4, "object_store_memory": store, "include_dashboard": False,
            "_system_config": _HEALTH}  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.xdist_group("ray"))])
def fleet(request: pytest.FixtureRequest) -> str:
    """Each kind of fleet, as RuntimeOptions names it."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param
