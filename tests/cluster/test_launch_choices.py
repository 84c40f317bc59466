"""What the launch files choose: CUDA and its driver, memory of the object store, registry, spot nodes."""

import re
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.config.schema import ScaleConfig
from tests.cluster.test_cluster_files import CLUSTER, KUBERAY, ROOT, images, pods, ray_cluster, read

# CUDA -> the oldest driver that runs it, by https://docs.nvidia.com/deploy/cuda-compatibility/
DRIVER = {12: 525, 13: 580}
GIB = 1 << 30
MEMORY = dict.fromkeys(("m6i.2xlarge", "g5.2xlarge", "n2-standard-8", "g2-standard-8"), 32 * GIB)
SYSTEM = 3 * GIB // 2  # of a node, for all that is no container
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
CLOUDS = ["aws", "gcp"]


def cuda_choices() -> list[str]:
    """The names that the last FROM of the Dockerfile can choose from."""
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.M)
    assert stages[-1] == ("${CUDA}", "")
    return [name for _, name in stages[:-1] if name != "gpu"]


def test_the_image_is_built_for_a_cuda_of_choice() -> None:
    assert cuda_choices() == ["cpu", "cu126", "cu128", "cu130"]
    assert re.findall(r"^ARG CUDA=(\S+)$", DOCKERFILE, re.M) == ["cpu"]
    (install,) = re.findall(r"^RUN pip install .*torch>=.*$", DOCKERFILE, re.M)
    assert '--index-url "https://download.pytorch.org/whl/${CUDA}"' in install
    # The index names the builds; the base has no CUDA, whose checks would ask for a newer driver.
    assert re.findall(r"^FROM (rayproject\S+) AS cpu$", DOCKERFILE, re.M) == [
        "rayproject/ray:${RAY_VERSION}-${PYTHON}-cpu"
    ]


def test_only_images_for_gpus_ask_the_container_toolkit_for_them() -> None:
    base = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M)}
    assert {base[choice] for choice in cuda_choices() if choice != "cpu"} == {"gpu"}
    assert base["gpu"] == "cpu"
    after = DOCKERFILE.split("FROM cpu AS gpu\n")[1].split("FROM ")[0]
    assert "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility" in after
    assert DOCKERFILE.count("ENV NVIDIA") == 1


@pytest.mark.parametrize("file", ["cluster/Dockerfile", "docs/cluster.md"])
def test_the_driver_of_each_choice_is_stated(file: str) -> None:
    text = (ROOT / file).read_text()
    for choice in cuda_choices():
        row = rf"^[#|]\s+`?{choice}`?\s+\|?\s*(\S+?)[,\s]"
        (driver,) = re.findall(row, text, re.M)
        assert driver == (str(DRIVER[int(choice[2:4])]) if choice != "cpu" else "none")


def test_what_pip_alone_would_install_is_stated() -> None:
    """PyPI's torch is of CUDA 13."""
    install = (ROOT / "README.md").read_text().split("\n## Install\n")[1].split("\n## ")[0]
    assert f"driver {DRIVER[13]}" in install
    for choice in cuda_choices():
        assert choice in install, choice
    assert "https://download.pytorch.org/whl/" in install


def bytes_of(quantity: str) -> int:
    """`8Gi` -> bytes."""
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << {"Gi": 30, "Mi": 20}[unit]


def store_folder(memory: int, shm: int, monkeypatch: pytest.MonkeyPatch, asked: int | None = None) -> str:
    """Where Ray itself puts the object store of a node with so many bytes of memory and of /dev/shm."""
    import ray._common.utils
    from ray._private import services, utils

    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: shm)
    monkeypatch.setattr(ray._common.utils, "get_system_memory", lambda *_: memory)
    size = utils.resolve_object_store_memory(memory, asked)
    folder, _, _ = services.determine_plasma_store_config(size, "/tmp", None, None)
    return str(folder)


@pytest.mark.parametrize("name", KUBERAY)
@pytest.mark.parametrize("group", ["head", "gpu", "cpu"])
def test_the_object_store_of_a_pod_is_in_memory(
    name: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = pods(name)[group]
    memory = bytes_of(pod["containers"][0]["resources"]["limits"]["memory"])
    (shm,) = [bytes_of(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if v["name"] == "shm"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    assert [v["emptyDir"]["medium"] for v in pod["volumes"] if v["name"] == "shm"] == ["Memory"]
    assert store_folder(memory, shm, monkeypatch) == "/dev/shm"
    assert shm < memory / 2  # it is a part of the pod's memory


def test_rays_rule_sees_a_shared_memory_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_folder(32 * GIB, 8 * GIB, monkeypatch) == "/tmp"


class Host:
    """In place of SSH to a node whose system has taken some memory."""

    def __init__(self, memory: int) -> None:
        self.memory = memory

    def run(self, command: str, with_output: bool = True) -> bytes:
        assert "/proc/meminfo" in command
        return f"MemTotal: {self.memory >> 10} kB\nMemAvailable: {self.memory - SYSTEM >> 10} kB\n".encode()


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("group", ["head", "gpu", "cpu"])
def test_the_object_store_of_an_instance_is_in_memory(
    name: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.command_runner import DockerCommandRunner

    config = read(name)
    node = config["available_node_types"][group]["node_config"]
    memory = MEMORY[node.get("InstanceType") or node["machineType"]]
    runner = DockerCommandRunner.__new__(DockerCommandRunner)
    runner.docker_config = config["docker"]
    runner.ssh_command_runner = Host(memory)  # type: ignore[assignment]
    (option,) = set(runner._auto_configure_shm(config["docker"]["run_options"])) - set(
        config["docker"]["run_options"]
    )
    (shm,) = re.findall(r"--shm-size='([\d.]+)b'", option)
    assert store_folder(memory, int(float(shm)), monkeypatch) == "/dev/shm"


def registry(image: str) -> str:
    return image.partition("/")[0]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_node_logs_in_to_the_registry_before_it_pulls(name: str) -> None:
    config = read(name)
    (login,) = config["initialization_commands"]
    (used,) = {registry(image) for image in images(config)}
    assert re.search(rf"docker login --username \S+ --password-stdin {re.escape(used)}$", login)


@pytest.mark.parametrize("name", KUBERAY)
def test_every_pod_has_the_login_to_the_registry(name: str) -> None:
    specs = list(pods(name).values())
    if name == "rayjob":
        specs.append(read(name)["spec"]["submitterPodTemplate"]["spec"])
    (secret,) = {secret["name"] for spec in specs for secret in spec["imagePullSecrets"]}
    assert all("imagePullSecrets" in spec for spec in specs)
    assert re.search(rf"kubectl create secret \S+ {secret}\b", (ROOT / "docs" / "cluster.md").read_text())


def test_a_job_is_submitted_from_the_image_of_its_head() -> None:
    template = read("rayjob")["spec"]["submitterPodTemplate"]["spec"]
    (container,) = template["containers"]
    assert container["image"] == pods("rayjob")["head"]["containers"][0]["image"]
    assert template["restartPolicy"] == "Never"
    assert template["securityContext"]["runAsNonRoot"] is True


def is_spot(node: dict[str, Any]) -> bool:
    market = node.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or node.get("scheduling", {}).get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_nodes_that_cost_nothing_when_idle_and_the_head_is_not(name: str) -> None:
    config = read(name)
    types = config["available_node_types"]
    assert {kind: is_spot(values["node_config"]) for kind, values in types.items()} == {
        "head": False,
        "gpu": True,
        "cpu": True,
    }
    workers = {kind: values for kind, values in types.items() if kind != config["head_node_type"]}
    assert all(values["min_workers"] == 0 < values["max_workers"] for values in workers.values())
    assert sum(values["max_workers"] for values in workers.values()) <= config["max_workers"]
    assert config["idle_timeout_minutes"] <= 15


def test_a_spot_machine_of_google_has_what_its_api_asks_for() -> None:
    for kind in ("gpu", "cpu"):
        assert read("gcp")["available_node_types"][kind]["node_config"]["scheduling"] == {
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
        }


# Label of a Kubernetes node that may be taken away -> value.
SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}


@pytest.mark.parametrize("name", KUBERAY)
def test_the_head_pod_keeps_off_spot_nodes_and_workers_do_not(name: str) -> None:
    affinity = pods(name)["head"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {(rule["key"], rule["operator"], *rule["values"]) for rule in term["matchExpressions"]} == {
        (key, "NotIn", value) for key, value in SPOT_LABELS.items()
    }
    assert "tolerations" not in pods(name)["head"]
    for group in ("gpu", "cpu"):
        assert "affinity" not in pods(name)[group]
        tolerated = {rule["key"] for rule in pods(name)[group]["tolerations"]}
        assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= tolerated
        assert ("nvidia.com/gpu" in tolerated) == (group == "gpu")


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_get_what_they_ask_for_and_are_replaced_not_moved(name: str) -> None:
    cluster = ray_cluster(name)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert pod["restartPolicy"] == "Never"
        assert group["template"]["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }


def test_a_cluster_that_stays_up_has_no_idle_workers() -> None:
    assert [group["minReplicas"] for group in ray_cluster("raycluster")["workerGroupSpecs"]] == [0, 0]


@pytest.mark.parametrize("path", ["cluster/README.md", "docs/cluster.md", "cluster/rayjob.yaml"])
def test_commands_for_clusters_without_idle_workers_wait_for_nodes(path: str) -> None:
    """A node takes minutes to start; the default is for nodes that are up."""
    text = (ROOT / path).read_text()
    waits = [int(seconds) for seconds in re.findall(r"--scale\.wait_s (\d+)", text)]
    assert waits
    assert min(waits) >= 600 > ScaleConfig().wait_s
    submitted = re.findall(r"^cluster/submit\.sh (?:.*\\\n)*.*$", text, re.M)
    assert [command for command in submitted if "--scale.wait_s" not in command] == []


def test_the_dockerfile_copies_what_exists() -> None:
    for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", DOCKERFILE, re.M):
        assert all((Path(ROOT) / name).exists() for name in line.split())
