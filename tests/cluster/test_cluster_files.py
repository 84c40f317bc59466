"""The launch files follow the schemas of Ray and KubeRay, agree with each other, and open no port."""

import json
import re
import shlex
import shutil
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from packaging.requirements import Requirement

from cluster import spot_notice
from npdraw_dist.bench.__main__ import Bench
from npdraw_dist.config.cli import Command, parse_flags, validate
from npdraw_dist.config.load import resolve
from npdraw_dist.config.prepared import Prepared
from npdraw_dist.config.schema import Experiment
from npdraw_dist.evaluate.settings import Evaluate
from npdraw_dist.prepare import Prepare
from npdraw_dist.train import Train
from tune_spaces.sweep import Sweep

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
CLOUDS = {"aws": "aws", "gcp": "google"}
LAUNCHER = [*CLOUDS, "local"]
KUBERAY = {"rayjob": "ray.io_rayjobs.yaml", "raycluster": "ray.io_rayclusters.yaml"}
FILES = [path for pattern in ("*.yaml", "*.sh", "Dockerfile") for path in sorted(CLUSTER.glob(pattern))]
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
PAGE = (ROOT / "docs" / "cluster.md").read_text()
EXISTING = (ROOT / "docs" / "existing-cluster.md").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()
COMMANDS: dict[str, type[Command]] = {
    "npdraw_dist.bench": Bench,
    "npdraw_dist.evaluate": Evaluate,
    "npdraw_dist.prepare": Prepare,
    "tune_spaces.sweep": Sweep,
}
CAP = 100 << 20  # bytes; Ray's cap on a job's working directory


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / f"{name}.yaml").read_text()))


def ray_cluster(name: str) -> dict[str, Any]:
    """The RayCluster spec of a KubeRay manifest."""
    spec = read(name)["spec"]
    return dict(spec.get("rayClusterSpec", spec))


def pods(name: str) -> dict[str, dict[str, Any]]:
    """Group -> pod spec; the head's group is "head"."""
    cluster = ray_cluster(name)
    groups = {"head": cluster["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {group: values["template"]["spec"] for group, values in groups.items()}


def images(name: str) -> set[str]:
    """The container images that a file names."""
    return set(re.findall(r"registry\.example\.com/[\w./:-]+", without_comments(CLUSTER / f"{name}.yaml")))


def without_comments(path: Path) -> str:
    """The text of a YAML file, shell script or Dockerfile that takes effect."""
    return re.sub(r"(^|\s)#(?!!).*", r"\1", path.read_text())


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_pass_rays_own_checks_and_nodes_get_the_token(name: str) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(read(name), schema)
    config = prepare_config(read(name))
    validate_config(config)
    types = config["available_node_types"]
    if name == "local":  # the machines are there anyway
        assert sum(node.get("min_workers", 0) for node in types.values()) >= 2
    else:
        assert sum(types[kind]["max_workers"] for kind in types if kind != config["head_node_type"]) >= 2
    if name in CLOUDS:  # workers watch for the cloud's notice; nodes log in to the registry before they pull
        assert f"spot_notice.py --cloud {CLOUDS[name]} " in config["worker_start_ray_commands"][-1]
        assert "spot_notice" not in " ".join(config["head_start_ray_commands"])
        (login,) = config["initialization_commands"]
        (registry,) = {image.partition("/")[0] for image in images(name)}
        assert re.search(rf"docker login --username \S+ --password-stdin {re.escape(registry)}$", login)
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert read(name)["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def closed(schema: Any) -> Any:
    """An OpenAPI v3 schema that refuses unknown keys, as Kubernetes does on strict validation."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and result.get("type") == "object":
        result.setdefault("additionalProperties", bool(result.get("x-kubernetes-preserve-unknown-fields")))
    return result


def crd(name: str) -> dict[str, Any]:
    """KubeRay's schema of a kind of manifest. Skips the test if the schemas are not beside the repository."""
    file = CRDS / KUBERAY[name]
    if not file.is_file():
        pytest.skip(f"KubeRay's CRD schema {file.name} is not beside the repository")
    found = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [item for item in found["spec"]["versions"] if item["name"] == "v1"]
    return dict(closed(version["schema"]["openAPIV3Schema"]))


@pytest.mark.slow  # the schemas are large
def test_the_ray_job_for_a_cluster_that_is_there_follows_the_crd() -> None:
    (block,) = re.findall(r"^```yaml\n(apiVersion: .*?)^```", EXISTING, re.M | re.S)
    job = yaml.safe_load(block)
    jsonschema.Draft202012Validator(crd("rayjob")).validate(job)
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["pip"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_follow_the_crd(name: str) -> None:
    schema, manifest = crd(name), read(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.Draft202012Validator(schema).validate(manifest)
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    spec["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(manifest, schema)


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_clusters_scale_share_storage_and_ask_for_the_token(name: str) -> None:
    cluster = ray_cluster(name)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert all(group["minReplicas"] < group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    assert set(pods(name)) == {"head", "gpu", "cpu"}
    claim = read("storage")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group, pod in pods(name).items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["restartPolicy"] == "Never"  # KubeRay replaces it
        (secret,) = pod["imagePullSecrets"]
        assert re.search(rf"kubectl create secret \S+ {secret['name']}\b", PAGE)
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group == "gpu")
        assert ("affinity" in pod) == (group == "head")  # the head keeps off spot nodes, workers do not
        assert ("tolerations" in pod) == (group != "head")
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert mounts["storage"] == "/mnt/npdraw"
        assert mounts["shm"] == "/dev/shm"
        shared, limit = volumes["shm"]["emptyDir"], container["resources"]["limits"]["memory"]
        assert shared["medium"] == "Memory"
        # Ray's object store is 30% of the pod's memory: it is in /dev/shm if it fits.
        assert 0.3 < int(shared["sizeLimit"].removesuffix("Gi")) / int(limit.removesuffix("Gi")) < 0.5


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_drains_a_pod_before_it_ends(name: str) -> None:
    """The head is never drained. The wait ends before Kubernetes kills the pod."""
    (script,) = re.findall(r"^COPY --chown=\S+ cluster/spot_notice.py (\S+)$", DOCKERFILE, re.M)
    for group, pod in pods(name).items():
        (container,) = pod["containers"]
        if group == "head":
            assert "lifecycle" not in container
            continue
        python, path, *words = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (python, path) == ("python", f"{script}spot_notice.py")
        flags = validate(spot_notice.Flags, parse_flags(spot_notice.Flags, "cluster.spot_notice", words))
        assert flags.now is not None
        assert flags.now < pod["terminationGracePeriodSeconds"]


def most_gpus(name: str) -> int:
    """The GPUs of a launch file's workers if all are there."""
    if name in KUBERAY:
        groups = ray_cluster(name)["workerGroupSpecs"]
        limits = [pods(name)[group["groupName"]]["containers"][0]["resources"]["limits"] for group in groups]
        gpus = [int(limit.get("nvidia.com/gpu", 0)) for limit in limits]
        return sum(gpu * group["maxReplicas"] for gpu, group in zip(gpus, groups, strict=True))
    config = read(name)
    workers = {key: node for key, node in config["available_node_types"].items() if key != "head"}
    assert config["max_workers"] >= sum(node["max_workers"] for node in workers.values())
    return sum(node["resources"].get("GPU", 0) * node["max_workers"] for node in workers.values())


@pytest.mark.parametrize("name", [*CLOUDS, *KUBERAY])
@pytest.mark.parametrize("preset", ["mnist_cluster", "celeba_cluster"])
def test_the_nodes_have_the_gpus_that_a_preset_takes_at_most(preset: str, name: str) -> None:
    scale = resolve(preset, None, {}).scale
    assert scale.use_gpu
    assert most_gpus(name) >= scale.most_workers * scale.gpus_per_worker


def test_the_ray_job_fits_its_own_pods_and_resumes() -> None:
    job = read("rayjob")["spec"]
    assert job["backoffLimit"] >= 1
    assert job["shutdownAfterJobFinishes"] is True
    words = shlex.split(job["entrypoint"])[3:]
    flags = parse_flags(Train, "npdraw_dist.train", words)
    assert flags["name"]
    assert flags["storage"].startswith("/mnt/npdraw/")
    scale = experiment_of(words).scale
    (gpu,) = [group for group in ray_cluster("rayjob")["workerGroupSpecs"] if group["groupName"] == "gpu"]
    assert scale.least_workers <= gpu["minReplicas"]
    limits = pods("rayjob")["gpu"]["containers"][0]["resources"]["limits"]
    assert scale.cpus_per_worker is not None
    assert scale.cpus_per_worker < int(limits["cpu"])  # one at least is left for reading
    submitter = job["submitterPodTemplate"]["spec"]
    assert submitter["containers"][0]["image"] == pods("rayjob")["head"]["containers"][0]["image"]
    assert submitter["imagePullSecrets"] == pods("rayjob")["head"]["imagePullSecrets"]
    assert submitter["securityContext"]["runAsNonRoot"] is True


def test_all_files_name_the_image_and_the_ray_that_the_dockerfile_builds() -> None:
    built = set(re.findall(r"-t (\S+)", DOCKERFILE))
    (version,) = re.findall(r'^version = "(.+)"$', PROJECT, re.M)
    name = f"registry.example.com/npdraw_dist:{version}"
    assert built == {name, f"{name}-gpu"}
    assert set(re.findall(r"npdraw_dist-(\d[\d.]*)-", EXISTING)) == {version}  # the name of the wheel
    for file in (*LAUNCHER, *KUBERAY):
        assert images(file) == built or (file == "local" and images(file) < built)
    for file in KUBERAY:
        named = {group: pod["containers"][0]["image"] for group, pod in pods(file).items()}
        assert named == {"head": name, "cpu": name, "gpu": f"{name}-gpu"}
    (version,) = re.findall(r"ARG RAY_VERSION=(\S+)", DOCKERFILE)
    rays = [Requirement(text) for text in re.findall(r'"(ray\[[^"]+)"', PROJECT)]
    assert all(ray.specifier.contains(version) for ray in rays)
    assert {ray_cluster(name)["rayVersion"] for name in KUBERAY} == {version}


def test_one_dockerfile_builds_for_cpus_and_for_each_cuda_that_the_page_names() -> None:
    """All are Ray's CPU image in the end. PyTorch's index and the extras follow the argument."""
    text = without_comments(CLUSTER / "Dockerfile")
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.M))
    stages = {stage: base for base, stage in re.findall(r"^FROM (\S+) AS (\S+)$", text, re.M)}
    assert re.findall(r"^FROM (\S+)$", text, re.M) == ["${CUDA}"]  # the image is the stage that CUDA names
    named = set(re.findall(r"^\| `(cpu|cu\d+)` \|", PAGE, re.M))
    assert named == set(re.findall(r"^#   (cpu|cu\d+) ", DOCKERFILE, re.M)) == set(stages) - {"gpu"}
    assert arguments["CUDA"] == "cpu"
    for stage in named:
        while stage in stages:
            stage = stages[stage]
        assert stage == "rayproject/ray:${RAY_VERSION}-${PYTHON}-cpu"
    before, _, last = text.rpartition("FROM ")
    for argument in arguments:  # a stage sees an argument only if it repeats it
        assert f"${{{argument}}}" in before + last.splitlines()[0]
    assert all(f"ARG {name}\n" in last for name in re.findall(r"\$\{(\w+)\}", last)[1:] if name in arguments)
    floor = re.findall(r'^requires-python = ">=3\.(\d+)"$', PROJECT, re.M)
    assert arguments["PYTHON"] == f"py3{floor[0]}"


def test_the_packages_of_the_image_are_those_of_the_project() -> None:
    text = without_comments(CLUSTER / "Dockerfile")
    project = tomllib.loads(PROJECT)["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["data"]]
    needed = {Requirement(line).name: Requirement(line).specifier for line in lines}
    for package in ("torch", "torchvision"):  # from PyTorch's own index, so that pip does not replace them
        assert f'"{package}{needed[package]}"' in text
    assert '".[${extras}]"' in text
    (first, second) = re.findall(r"extras=(\w+)\$\(.* \|\| echo ,(\w+)\)", text)[0]
    assert {first, second} <= set(extras)
    assert {"cluster"} <= {name for line in extras[first] for name in Requirement(line).extras}


def test_the_image_holds_what_exists_runs_without_root_and_has_no_token() -> None:
    text = without_comments(CLUSTER / "Dockerfile")
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.M)
    assert copied
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    assert re.findall(r"^USER (\S+)", text, re.M) == ["1000"]
    assert re.search(r"^ENV RAY_AUTH_MODE=token$", text, re.M)
    assert "auth_token" not in text


def test_no_file_opens_a_port_or_holds_a_secret() -> None:
    for path in FILES:
        text = without_comments(path)
        for word in (
            *("0.0.0.0", "::/0", "LoadBalancer", "NodePort", "Ingress", "hostPort", "hostNetwork"),
            *("IpPermissions", "EXPOSE", "--publish", "RAY_AUTH_MODE=disabled", "privileged"),
        ):
            assert word not in text, (path.name, word)
        secret = r"(?:RAY_AUTH_TOKEN|AWS_[A-Z_]*KEY|HF_TOKEN|PASSWORD)\s*[=:]\s*[^\s:}-]"
        assert re.findall(secret, text) == [], path.name
        for start in re.findall(r"ray start --head[^\n]*(?:\n\s+--[^\n]*)*", text):
            assert "--dashboard-host=127.0.0.1" in start, path.name


def test_a_job_takes_the_code_and_nothing_large_or_secret(tmp_path: Path) -> None:
    """The working copy has 80 MiB of runs, 80 MiB of .git, data, and files with secrets."""
    from ray._private.runtime_env.packaging import _zip_files
    from ray.runtime_env import RuntimeEnv

    RuntimeEnv(**read("runtime_env"), working_dir="s3://bucket/x.zip")  # Ray's own check
    copy, packed = tmp_path / "copy", tmp_path / "job.zip"
    for folder in ("npdraw_dist", "tune_spaces", "tests/cluster"):
        shutil.copytree(ROOT / folder, copy / folder)
    secrets = (".env", "credentials.env", "password.txt", "deploy/key.pem", "auth_token")
    for name in (*secrets, ".venv/bin/python", "data/mnist/train-images"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("secret")
    for name in ("runs/mnist/model/model.safetensors", ".git/objects/pack/x.pack"):
        (copy / name).parent.mkdir(parents=True)
        with (copy / name).open("wb") as file:
            file.truncate(80 << 20)
    _zip_files(str(copy), read("runtime_env")["excludes"], str(packed), include_gitignore=False)
    with zipfile.ZipFile(packed) as archive:
        names = set(archive.namelist())
    assert packed.stat().st_size < CAP // 10
    assert {name.split("/")[0] for name in names} <= {"npdraw_dist", "tune_spaces", "deploy"}
    assert not names & set(secrets)
    code = [path for path in (ROOT / "npdraw_dist").rglob("*") if path.suffix in (".py", ".yaml")]
    assert {str(path.relative_to(ROOT)) for path in code} <= names


def calls(text: str) -> list[list[str]]:
    """[program, flag, ...] of every command of ours in a file, comments and line continuations joined."""
    text = re.sub(r"\\\n(?:#\s*)?\s*", "", text)
    commands = r"python -m npdraw_dist\.\w+|(?<![\w/-])npdraw \w+|sbatch cluster/slurm\.sh|cluster/submit\.sh"
    pattern = rf"({commands})(?= )(.*)"
    found = []
    for program, rest in re.findall(pattern, text):
        if not rest.lstrip().startswith(("-", "[")) or '"$@"' in rest:
            continue
        words = shlex.split(rest.split("#")[0].split("`")[0])
        if "submit" in program:
            words = words[words.index("--") + 1 :]
        ours = program.startswith(("python", "npdraw"))
        module = program.split()[-1].removeprefix("npdraw_dist.") if ours else "train"
        named = not words[0].startswith(("-", "["))
        found.append(words if named else [f"npdraw_dist.{module}", *words])
    return found


def experiment_of(argv: list[str]) -> Experiment:
    flags = parse_flags(Train, "npdraw_dist.train", argv)
    for name in ("name", "storage", "stages", "dry-run"):
        flags.pop(name, None)
    return resolve(flags.pop("preset", "digits"), None, flags)


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "submit.sh",
        "slurm.sh",
        "rayjob.yaml",
        "../docs/cluster.md",
        "../docs/existing-cluster.md",
    ],
)
def test_every_command_has_flags_that_the_parser_knows(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bucket is opened; a stub gives the sizes of the images in it."""
    mnist = Prepared("parquet", (1, 28, 28), {}, {}, {}, {})
    monkeypatch.setattr("npdraw_dist.config.prepared.read_prepared", lambda *_: mnist)
    monkeypatch.setattr("npdraw_dist.system.storage.open_filesystem", lambda uri: (None, uri))
    text = (CLUSTER / file).read_text()
    if file == "rayjob.yaml":
        text = read("rayjob")["spec"]["entrypoint"]
    found = calls(text)
    assert found
    for module, *argv in found:
        if module == "npdraw_dist.train":
            assert experiment_of(argv).scale.least_workers >= 1
        else:
            parse_flags(COMMANDS[module], module, argv)


@pytest.mark.parametrize(
    "file", ["README.md", "docs/cluster.md", "docs/existing-cluster.md", "cluster/submit.sh"]
)
def test_every_submitted_job_brings_its_code(file: str) -> None:
    text = re.sub(r"\\\n", "", without_comments(ROOT / file))
    for job in re.findall(r"ray job submit (.*) -- ", text):
        assert "--working-dir " in job
        assert "--runtime-env " in job
