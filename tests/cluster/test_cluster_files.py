"""The launch files: valid by the schemas of Ray and KubeRay, consistent, closed to the network."""

import json
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from packaging.requirements import Requirement

from npdraw_dist.bench.__main__ import Bench
from npdraw_dist.config.cli import parse_flags
from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.train import Train
from tests.helpers.spaces import load_space
from tune_spaces import driver, sweep

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
LAUNCHER = ["aws", "gcp", "local"]
KUBERAY = {"rayjob": "ray.io_rayjobs.yaml", "raycluster": "ray.io_rayclusters.yaml"}
FILES = [path for pattern in ("*.yaml", "*.sh", "Dockerfile") for path in sorted(CLUSTER.glob(pattern))]
CAP = 100 << 20  # bytes; Ray's cap on a job's working directory
PROJECT = (ROOT / "pyproject.toml").read_text()


def read(name: str) -> dict[str, Any]:
    values = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    assert isinstance(values, dict)
    return values


def ray_cluster(name: str) -> dict[str, Any]:
    """The RayCluster spec of a KubeRay manifest."""
    spec: dict[str, Any] = read(name)["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return cluster


def pods(name: str) -> dict[str, dict[str, Any]]:
    """Group -> pod spec; the head's group is "head"."""
    cluster = ray_cluster(name)
    groups = {"head": cluster["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {group: values["template"]["spec"] for group, values in groups.items()}


def without_comments(path: Path) -> str:
    """The text of a YAML file, shell script or Dockerfile that takes effect."""
    return re.sub(r"(^|\s)#(?!!).*", r"\1", path.read_text())


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_follow_rays_schema(name: str) -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(read(name), schema)


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_pass_rays_own_preparation(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    assert config["docker"]["container_name"] == "npdraw"
    types = config["available_node_types"]
    if name == "local":  # the machines are there anyway
        assert sum(node.get("min_workers", 0) for node in types.values()) >= 2
    else:
        assert sum(types[kind]["max_workers"] for kind in types if kind != config["head_node_type"]) >= 2


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_nodes_ask_for_the_token_and_get_it(name: str) -> None:
    config = read(name)
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def closed(schema: Any) -> Any:
    """An OpenAPI v3 schema that refuses unknown keys, as Kubernetes does on strict validation."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    open_ = result.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(result.get("properties"), dict) and result.get("type") == "object" and not open_:
        result.setdefault("additionalProperties", False)
    if result.get("x-kubernetes-int-or-string"):
        result = {"type": ["integer", "string"]}
    return result


def crd_schema(file: str) -> dict[str, Any]:
    if not (CRDS / file).is_file():
        pytest.skip(f"KubeRay's CRD schema {file} is not beside the repository")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((CRDS / file).read_text(), Loader=loader)
    (version,) = [item for item in crd["spec"]["versions"] if item["name"] == "v1"]
    schema: dict[str, Any] = closed(version["schema"]["openAPIV3Schema"])
    return schema


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_follow_the_crd(name: str) -> None:
    schema, manifest = crd_schema(KUBERAY[name]), read(name)
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
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group == "gpu")
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert mounts["storage"] == "/mnt/npdraw"


def test_the_ray_job_fits_its_own_pods_and_resumes() -> None:
    job = read("rayjob")["spec"]
    assert job["backoffLimit"] >= 1
    assert job["shutdownAfterJobFinishes"] is True
    flags = parse_flags(Train, "npdraw_dist.train", shlex.split(job["entrypoint"])[3:])
    assert flags["name"]
    assert flags["storage"].startswith("/mnt/npdraw/")
    experiment = experiment_of(shlex.split(job["entrypoint"])[3:])
    (gpu,) = [group for group in ray_cluster("rayjob")["workerGroupSpecs"] if group["groupName"] == "gpu"]
    assert experiment.scale.least_workers <= gpu["minReplicas"]
    limits = pods("rayjob")["gpu"]["containers"][0]["resources"]["limits"]
    assert experiment.scale.cpus_per_worker is not None
    assert experiment.scale.cpus_per_worker < int(limits["cpu"])  # one at least is left for reading


def images(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            if key in ("image", "worker_image", "head_image"):
                yield value
            else:
                yield from images(value)
    elif isinstance(values, list):
        for value in values:
            yield from images(value)


def test_all_files_name_the_image_that_the_dockerfile_builds() -> None:
    built = set(re.findall(r"-t (\S+)", (CLUSTER / "Dockerfile").read_text()))
    (version,) = re.findall(r'^version = "(.+)"$', PROJECT, re.M)
    name = f"registry.example.com/npdraw_dist:{version}"
    assert built == {name, f"{name}-gpu"}
    for file in (*LAUNCHER, *KUBERAY):
        found = set(images(read(file)))
        assert found <= built, file
        assert found == built or file == "local"
    for file in KUBERAY:
        assert {g: pod["containers"][0]["image"] for g, pod in pods(file).items()} == {
            "head": name,
            "cpu": name,
            "gpu": f"{name}-gpu",
        }


def test_all_files_name_one_version_of_ray_which_the_project_accepts() -> None:
    (version,) = re.findall(r"ARG RAY_VERSION=(\S+)", (CLUSTER / "Dockerfile").read_text())
    rays = [Requirement(text) for text in re.findall(r'"(ray\[[^"]+)"', PROJECT)]
    assert len(rays) == 2  # the base, and the extra `serve`
    assert rays[0].specifier == rays[1].specifier
    assert rays[0].specifier.contains(version)
    assert {ray_cluster(name)["rayVersion"] for name in KUBERAY} == {version}


def test_the_image_runs_without_root_and_holds_no_token() -> None:
    text = without_comments(CLUSTER / "Dockerfile")
    assert re.findall(r"^USER (\S+)", text, re.M) == ["1000"]
    assert re.search(r"^ENV RAY_AUTH_MODE=token$", text, re.M)
    assert "auth_token" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_opens_a_port_or_holds_a_secret(path: Path) -> None:
    text = without_comments(path)
    for word in (
        *("0.0.0.0", "::/0", "LoadBalancer", "NodePort", "Ingress", "hostPort", "hostNetwork"),
        *("IpPermissions", "EXPOSE", "--publish", "RAY_AUTH_MODE=disabled", "privileged"),
    ):
        assert word not in text, word
    assert re.findall(r"(?:RAY_AUTH_TOKEN|AWS_[A-Z_]*KEY|HF_TOKEN|PASSWORD)\s*[=:]\s*[^\s:}-]", text) == []
    for start in re.findall(r"ray start --head[^\n]*(?:\n\s+--[^\n]*)*", text):
        assert "--dashboard-host=127.0.0.1" in start


def test_the_check_reads_all_kinds_of_files() -> None:
    assert {path.name for path in FILES} == {
        *(f"{name}.yaml" for name in (*LAUNCHER, *KUBERAY, "storage", "runtime_env")),
        *("submit.sh", "slurm.sh", "first_gpu.sh", "Dockerfile"),
    }


def package(folder: Path, excludes: list[str], out: Path) -> list[str]:
    """The names in the archive that Ray makes of a working directory, .gitignore left aside."""
    from ray._private.runtime_env.packaging import _zip_files

    _zip_files(str(folder), excludes, str(out), include_gitignore=False)
    with zipfile.ZipFile(out) as archive:
        return archive.namelist()


@pytest.fixture
def working_copy(tmp_path: Path) -> Path:
    """The repository's files, beside 160 MiB of runs, a .git, and files with secrets."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git repository")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    copy = tmp_path / "copy"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    for name in ("runs/mnist/model/model.safetensors", ".git/objects/pack/x.pack"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        with (copy / name).open("wb") as file:
            file.truncate(80 << 20)
    for name in (".env", "deploy/key.pem", "auth_token", ".venv/bin/python"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("secret")
    return copy


def test_a_job_takes_the_code_and_nothing_large_or_secret(working_copy: Path, tmp_path: Path) -> None:
    excludes = read("runtime_env")["excludes"]
    assert sum(path.stat().st_size for path in working_copy.rglob("*") if path.is_file()) > CAP
    names = set(package(working_copy, excludes, tmp_path / "job.zip"))
    assert (tmp_path / "job.zip").stat().st_size < CAP // 10
    tops = {name.split("/")[0] for name in names}
    assert tops & {"runs", ".git", "tests", ".env", "auth_token", ".venv", "deploy"} <= {"deploy"}
    assert not any(name.endswith(".pem") for name in names)
    code = [path for path in (ROOT / "npdraw_dist").rglob("*") if path.suffix in (".py", ".yaml")]
    assert {str(path.relative_to(ROOT)) for path in code} <= names


def test_rays_own_check_takes_the_runtime_env() -> None:
    from ray.runtime_env import RuntimeEnv

    RuntimeEnv(**read("runtime_env"), working_dir="s3://bucket/x.zip")


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
        module = "npdraw_dist.train"
        if program.startswith(("python", "npdraw")):
            module = f"npdraw_dist.{program.split()[-1].removeprefix('npdraw_dist.')}"
        named = not words[0].startswith(("-", "["))
        found.append(words if named else [module, *words])
    return found


def experiment_of(argv: list[str]) -> Experiment:
    flags = parse_flags(Train, "npdraw_dist.train", argv)
    for name in ("name", "storage", "stages", "dry-run"):
        flags.pop(name, None)
    return resolve(flags.pop("preset", "digits"), None, flags)


@pytest.mark.parametrize(
    ("file", "count"),
    [("README.md", 5), ("submit.sh", 2), ("slurm.sh", 1), ("rayjob.yaml", 1), ("../docs/cluster.md", 9)],
)
def test_every_command_has_flags_that_the_parser_knows(file: str, count: int) -> None:
    text = (CLUSTER / file).read_text()
    if file == "rayjob.yaml":
        text = read("rayjob")["spec"]["entrypoint"]
    found = calls(text)
    assert len(found) >= count
    for module, *argv in found:
        if module == "npdraw_dist.train":
            assert experiment_of(argv).scale.least_workers >= 1
        elif module == "npdraw_dist.bench":
            parse_flags(Bench, module, argv)
        elif module == "tune_spaces.sweep":
            options, flags = sweep.parse([*argv, "--storage", "s3://b/runs"])
            space = load_space(options.space)
            assert driver.base_config(options, space, flags).scale.least_workers >= 1
        else:
            parse_flags(import_module(module).Prepare, module, argv)


def test_the_readme_names_every_file() -> None:
    text = (CLUSTER / "README.md").read_text()
    missing = {path.name for path in FILES if path.name not in text}
    assert missing == set()
    assert "## Three nodes on one machine" in text
