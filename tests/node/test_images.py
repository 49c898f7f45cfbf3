"""What is in the images, read from the archive, and how soon their programs answer on a node."""

import base64
import json
import subprocess
import tarfile
import time

import pytest

from tests.parts import images
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port, poll

IMAGES = ("fairserve-operator", "fairserve-sidecar")
MIB = 1 << 20


@pytest.fixture(scope="module")
def archive():
    with tarfile.open(images.ensure_archive()) as tar:
        yield tar


def config(archive, image):
    """The image's configuration and the sizes of its layers, in bytes."""
    manifest = json.load(archive.extractfile("manifest.json"))
    (entry,) = [each for each in manifest if images.name(image) in each["RepoTags"]]
    sizes = [archive.getmember(_target(archive, layer)).size for layer in entry["Layers"]]
    return json.load(archive.extractfile(entry["Config"])), sizes


def _target(archive, name):
    member = archive.getmember(name)
    return member.linkname.removeprefix("../") if member.issym() else name


@pytest.mark.parametrize("image", IMAGES)
def test_image_says_what_it_is_and_runs_as_nobody_without_a_shell(archive, image):
    found, sizes = config(archive, image)
    print(f"{image}: {sum(sizes) / MIB:.0f} MiB unpacked, of which the base {sizes[0] / MIB:.0f} MiB")
    settings = found["config"]
    assert settings["User"] == "65532:65532"
    assert settings["Entrypoint"][0] in ("python", "fairserve")
    labels = {key.rpartition(".")[2]: value for key, value in settings["Labels"].items()}
    assert labels["title"] == image
    assert labels["version"] == images.VERSION
    assert labels["licenses"] == "Apache-2.0"
    assert labels["description"]
    assert labels["revision"]


@pytest.fixture
def start_container(node, tmp_path):
    """`start(image, *command, mounts=())` runs a container of an image, read-only but for /tmp, which the
    operator's Pod has as a volume, on the node's network."""
    started = []

    def start(image, *command, mounts=()):
        name = f"test-{len(started)}-{free_port()}"
        words = ["ctr", "--namespace=k8s.io", "run", "--rm", "--net-host", "--read-only"]
        words += ["--mount=type=tmpfs,src=tmpfs,dst=/tmp,options=mode=1777"]
        words += [f"--mount=type=bind,src={each},dst={each},options=rbind:ro" for each in mounts]
        process = Process(name, [*words, images.name(image), name, *command], tmp_path / f"{name}.log")
        started.append((name, process))
        return process.start()

    yield start
    for name, process in started:
        kill = ["ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", name]
        subprocess.run(kill, check=False, capture_output=True)
        process.stop()


def test_the_sidecar_is_ready_soon_after_its_start(node, cluster, start_container, tmp_path):
    """With a boot file, and an engine that answers; the time is printed, and is the container's too."""
    engine, listen, control = free_port(), free_port(), free_port()
    fake = start_container("fairserve-sidecar", "fairserve", "emulator", f"--listen=127.0.0.1:{engine}")
    fake.wait_until(lambda: Client(f"http://127.0.0.1:{engine}").answers("/health"), 60.0)
    boot = boot_files(cluster, tmp_path)
    times = []
    for _ in range(3):
        began = time.monotonic()
        sidecar = start_container(
            "fairserve-sidecar",
            *("fairserve", "sidecar", f"--listen=127.0.0.1:{listen}", f"--control=127.0.0.1:{control}"),
            *(f"--engine=http://127.0.0.1:{engine}", f"--config={boot}/config.json.gz"),
            f"--control-token-file={boot}/control-token",
            mounts=[boot],
        )
        sidecar.wait_until(lambda: Client(f"http://127.0.0.1:{control}").answers("/readyz"), 60.0, "/readyz")
        times.append(time.monotonic() - began)
        subprocess.run(
            ["ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGTERM", sidecar.name], check=True
        )
        poll(lambda ended=sidecar: not ended.alive, 60.0, "the sidecar's end")
    print(f"sidecar ready after {', '.join(f'{each:.2f}' for each in times)} s (goal: 1 s)")


def boot_files(cluster, folder):
    """The pool's boot Secret as a Pod mounts it, readable for the image's user."""
    data = cluster.get("secret", "fairserve-llm")["data"]
    for name in ("config.json.gz", "control-token"):
        (folder / name).write_bytes(base64.b64decode(data[name]))
    folder.chmod(0o755)
    return folder


def test_the_operator_is_ready_soon_after_its_start(cluster, start_container, tmp_path):
    port = free_port()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_bytes(cluster.control_plane.kubeconfig.read_bytes())
    kubeconfig.chmod(0o644)
    began = time.monotonic()
    operator = start_container(
        "fairserve-operator",
        *("python", "-m", "fairserve_operator", "--namespace=default", f"--listen=127.0.0.1:{port}"),
        f"--kubeconfig={kubeconfig}",
        mounts=[kubeconfig],
    )
    operator.wait_until(lambda: Client(f"http://127.0.0.1:{port}").answers("/readyz"), 60.0, "/readyz")
    print(f"operator ready after {time.monotonic() - began:.2f} s (goal: 2 s)")


def test_the_images_user_has_a_name(node, start_container):
    script = "import getpass, os; print(getpass.getuser(), os.getuid())"
    container = start_container("fairserve-operator", "python", "-c", script)
    poll(lambda: not container.alive, 60.0, "its end")
    assert container.log_tail().strip() == "fairserve 65532"
