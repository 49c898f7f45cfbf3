"""Images for the real node: the ones that users run, built by `make images`, and a few for tests alone.

No registry of images is asked. The base that the Dockerfile names is made by debootstrap from Debian's
archive, under the name that FROM uses. Podman keeps the base and the layers that come from lock files in a
storage of its own in the cache, so that a change of our code builds little anew. The images go into one
archive, which is cached by the content of all that they are made of.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import fairserve
from tests.parts import cache, prometheus

#: Debian's packages, by a program or file of each that the node or the images need.
_PACKAGES = {
    "podman": "podman",
    "runc": "runc",
    "containerd": "containerd",
    "dnsmasq": "dnsmasq-base",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
_RELEASE = "bookworm"
_BASE = "docker.io/library/python:3.11-slim-bookworm"
_BUILD_BASE = "docker.io/library/python:3.11-bookworm"
_BASE_PACKAGES = "ca-certificates,python3,python3-venv,python-is-python3"
_BUILD_BASE_FILE = f"""\
FROM {_BASE}
RUN apt-get update && \\
    apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev && rm -rf /var/lib/apt/lists/*
"""
#: The same images under a second version, which an upgrade goes to.
VERSION, NEXT_VERSION = fairserve.__version__, f"{fairserve.__version__}-next"
_TEST_IMAGES = cache.REPOSITORY / "tests" / "node" / "images"
#: What the images are made of; the .dockerignore keeps everything else away from them.
_SOURCES = (
    *("Dockerfile", ".dockerignore", "pyproject.toml", "compile_hot_path.py", "README.md", "LICENSE"),
    *(f"requirements/{name}.lock" for name in ("build", "operator", "sidecar")),
    *("operator", "serving", "tests/node/images"),
)
_PODMAN_SETTINGS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


def name(image: str, version: str = VERSION) -> str:
    """Return the name by which a node knows one of the images: `fairserve-sidecar`, `vllm`, …"""
    return f"docker.io/library/{image}:{version}"


def ensure_packages() -> None:
    """Install the Debian packages that are missing; raises BuildError where that can't be done."""
    missing = sorted({package for file, package in _PACKAGES.items() if shutil.which(file) is None})
    if not missing:
        return
    if os.geteuid() != 0:
        raise cache.BuildError(f"a node needs {', '.join(missing)}; only root can install them")
    apt = cache.tool("apt-get", f"install {', '.join(missing)}")
    cache.root().mkdir(parents=True, exist_ok=True)
    log, env = cache.root() / "node-packages.log", {"DEBIAN_FRONTEND": "noninteractive"}
    cache.say(f"installing {', '.join(missing)}")
    cache.run([apt, "update"], log, env=env)
    cache.run([apt, "install", "--yes", "--no-install-recommends", *missing], log, env=env)


def ensure_archive() -> Path:
    """Return the cached archive with all images, as `ctr images import` reads it."""
    ensure_packages()
    sources = [
        file
        for path in _SOURCES
        for file in sorted(
            (cache.REPOSITORY / path).rglob("*")
            if (cache.REPOSITORY / path).is_dir()
            else [cache.REPOSITORY / path]
        )
        if file.is_file() and "__pycache__" not in file.parts
    ]
    recipe = [_RELEASE, _BASE_PACKAGES, _BUILD_BASE_FILE, VERSION, str(prometheus.ensure_programs().name)]
    announcement = "building the images (about 4 minutes the first time, half of it after a change)"
    folder = cache.ensure("images", sources, recipe, _build, announcement)
    _forget_old(folder)
    return folder / "images.tar"


def _forget_old(newest: Path) -> None:
    """Keep two archives: this one, and the last of another state of the repository."""
    others = [each for each in cache.root().glob("images-*") if each.is_dir() and each != newest]
    for folder in sorted(others, key=lambda each: each.stat().st_mtime)[:-1]:
        if "." not in folder.name:  # One that is being filled.
            shutil.rmtree(folder, ignore_errors=True)
            for beside in (folder.with_suffix(".log"), folder.with_suffix(".lock")):
                beside.unlink(missing_ok=True)


def _build(folder: Path, log: Path) -> None:
    podman = _Podman(log)
    _ensure_base(podman)
    # Machines that reach their package registries through a proxy trust its certificate here.
    flags = "--network=host --pull=never --volume=/etc/ssl/certs:/etc/ssl/certs:ro"
    make = cache.tool("make", "build the images")
    podman.run(
        [make, "images", f"ENGINE={' '.join(podman.command)}", f"IMAGE_FLAGS={flags}", f"TAG={VERSION}"],
        cwd=cache.REPOSITORY,
    )
    ours = ("fairserve-operator", "fairserve-sidecar")
    for image in ours:
        podman("tag", f"localhost/{image}:{VERSION}", name(image))
        # Another image for the container runtime, with the same program in it.
        derived = f"FROM {name(image)}\nLABEL org.opencontainers.image.version={NEXT_VERSION}\n"
        podman.build(derived, folder, "--tag", name(image, NEXT_VERSION))
    with tempfile.TemporaryDirectory() as context:
        shutil.copytree(_TEST_IMAGES, context, dirs_exist_ok=True)
        shutil.copy(prometheus.ensure_programs() / "prometheus", context)
        file = (_TEST_IMAGES / "Dockerfile").read_text()
        for image in ("vllm", "prometheus", "pause"):
            sidecar = f"SIDECAR={name('fairserve-sidecar')}"
            podman.build(file, Path(context), "--target", image, "--build-arg", sidecar, "--tag", name(image))
    tests = ("vllm", "prometheus", "pause")
    names = [
        *(name(image, version) for image in ours for version in (VERSION, NEXT_VERSION)),
        *map(name, tests),
    ]
    podman("save", "--quiet", "--multi-image-archive", "--output", str(folder / "images.tar"), *names)
    podman("image", "prune", "--force", "--filter", "until=168h")


def _ensure_base(podman: _Podman) -> None:
    """Make the two bases unless this Debian's are there."""
    key = cache.key([], [_RELEASE, _BASE_PACKAGES, _BUILD_BASE_FILE])
    marks = {base: f"localhost/base:{key}-{number}" for number, base in enumerate((_BASE, _BUILD_BASE))}
    if all(podman.has(mark) for mark in marks.values()):
        for base, mark in marks.items():
            podman("tag", mark, base)
        return
    debootstrap = cache.tool("debootstrap", "make the images' base")
    with tempfile.TemporaryDirectory(dir=cache.root()) as scratch:
        system = Path(scratch) / "system"
        cache.run(
            [debootstrap, "--variant=minbase", f"--include={_BASE_PACKAGES}", _RELEASE, system], podman.log
        )
        archive = Path(scratch) / "base.tar"
        # As the official image: without documentation, lists of packages, and the packages themselves.
        leave_out = (
            "var/cache",
            "var/lib/apt/lists",
            "var/log",
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
        )
        excluded = [f"--exclude=./{each}/*" for each in leave_out]
        cache.run(["tar", "--numeric-owner", *excluded, "-C", system, "-cf", archive, "."], podman.log)
        podman("import", "--quiet", str(archive), _BASE)
        podman.build(_BUILD_BASE_FILE, system / "mnt", "--network=host", "--tag", _BUILD_BASE)
    for base, mark in marks.items():
        podman("tag", base, mark)


class _Podman:
    """Podman with a storage of its own, so that nothing depends on what else the machine's does."""

    def __init__(self, log: Path) -> None:
        self.log = log
        storage = cache.root() / "podman"
        storage.mkdir(parents=True, exist_ok=True)
        settings = storage / "containers.conf"
        settings.write_text(_PODMAN_SETTINGS)
        self._env = {"CONTAINERS_CONF": str(settings)}
        self.command: Sequence[str] = (
            *(cache.tool("podman", "build images"), f"--root={storage / 'store'}"),
            f"--runroot=/run/fairserve-podman-{os.getuid()}",
        )

    def __call__(self, *arguments: str) -> None:
        self.run([*self.command, *arguments])

    def run(self, command: Sequence[str], cwd: Path | None = None) -> None:
        cache.run(command, self.log, cwd=cwd, env=self._env)

    def build(self, file: str, context: Path, *arguments: str) -> None:
        """Build from the text of a Dockerfile."""
        with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as written:
            written.write(file)
            written.flush()
            self("build", "--quiet", "--pull=never", "--file", written.name, *arguments, str(context))

    def has(self, image: str) -> bool:
        env: Mapping[str, str] = {**os.environ, **self._env}
        found = subprocess.run([*self.command, "image", "exists", image], env=env, check=False)
        return found.returncode == 0
