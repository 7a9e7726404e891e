"""What tests share: photographs, small datasets, real servers, entries run as a person runs them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from infra.dataset import Dataset, Snapshot, hash_config
from infra.jobs.local_ray import die_with_parent
from infra.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FAULTY = "bad_"  # files of examples/photos that are broken on purpose begin so


# photographs and datasets

def photographs(count: int | None = None) -> list[Path]:
    """Real photographs, sorted by name: examples/photos, or the folder in SUPIR_PHOTOS."""
    folder = Path(os.environ.get("SUPIR_PHOTOS", ROOT / "examples" / "photos"))
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(FAULTY))
    assert found, f"{folder} holds no photograph"
    return found[:count]


def shrunk(path: Path, side_px: int) -> bytes:
    """The photograph as a small PNG (longer side `side_px`), for tests in which pixels cost time."""
    import io

    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((side_px, side_px))
        sink = io.BytesIO()
        small.save(sink, "PNG")
    return sink.getvalue()


IMAGES = pa.schema([("image_id", pa.string()), ("source_id", pa.string()), ("bytes", pa.binary()), ("format", pa.string()),
                    ("width", pa.int32()), ("height", pa.int32()), ("orientation", pa.int8()), ("colour_profile", pa.string()),
                    ("source_url", pa.string()), ("licence", pa.string()), ("licence_url", pa.string()), ("attribution", pa.string()),
                    ("retrieved_at", pa.string())])


def image_row(data: bytes, name: str) -> dict[str, object]:
    """A row of the images table for encoded bytes."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        encoding, (width, height) = str(image.format), image.size
    return {"image_id": hashlib.sha256(data).hexdigest(), "source_id": hashlib.sha256(name.encode()).hexdigest()[:16], "bytes": data,
            "format": encoding, "width": width, "height": height, "orientation": 1, "colour_profile": "", "source_url": name,
            "licence": "CC0-1.0", "licence_url": "", "attribution": "", "retrieved_at": "2026-01-01T00:00:00Z"}


def images_dataset(url: str, photos: Sequence[Path] | None = None, per_shard: int = 3, side_px: int = 192) -> tuple[Dataset, Snapshot]:
    """A dataset with an images table, made through the data contract alone: real photographs, shrunk to `side_px`."""
    rows = [image_row(shrunk(path, side_px), path.name) for path in (photos or photographs(6))]
    tables = [pa.Table.from_pylist(rows[low:low + per_shard], schema=IMAGES) for low in range(0, len(rows), per_shard)]
    dataset = Dataset(url)
    return dataset, commit_table(dataset, "images", tables)


def commit_table(dataset: Dataset, table: str, shards: Sequence[pa.Table], config: dict[str, object] | None = None) -> Snapshot:
    """Commit and publish tables as the shards 00000, 00001, … of a table in which every row was accepted."""
    version = hash_config([table, config])
    refs = [dataset.commit(table=table, version=version, shard=f"{i:05d}", key=hash_config([table, config, i]), data=data, outcomes=[],
                           ledger=Ledger(data.num_rows, data.num_rows), inputs={}, stage_version=1)
            for i, data in enumerate(shards)]
    return dataset.publish(table, version, refs, dict(config or {}))


# entries

def run_entry(script: str, *args: str, how: str = "script", cwd: Path = ROOT, env: dict[str, str] | None = None,
              timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run an entry (`pipelines/caption.py`) to its end as a `script`, as a `module` or as the `file` itself."""
    module = script.removesuffix(".py").replace("/", ".")
    command = {"script": [sys.executable, str(ROOT / script)], "module": [sys.executable, "-m", module], "file": [str(ROOT / script)]}[how]
    return subprocess.run([*command, *args], cwd=cwd, env=entry_env(**(env or {})), capture_output=True, text=True,
                          timeout=timeout_s, check=False)


def entry_env(**extra: str) -> dict[str, str]:
    """The environment of a person's shell: no import path of the tests, this Python first."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    path = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    return env | {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "2"} | extra


# servers

STARTER = ThreadPoolExecutor(max_workers=1)  # Linux ends such a child with the thread that started it: this one lives as long as we do


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on, nor on the one 10000 above it.

    Below the range from which the system takes ports for outgoing connections: a server that is killed finds it free again.
    """
    while True:
        port = random.randrange(11000, 22000)
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10000))
            return port


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = 150, process: subprocess.Popen[bytes] | None = None) -> None:
    """Poll until `ready`; AssertionError when time is up or the process ended."""
    end = time.monotonic() + timeout_s
    while not ready():
        assert process is None or process.poll() is None, f"{what}: the process ended with {process and process.returncode}"
        assert time.monotonic() < end, f"{what}: not ready after {timeout_s} s"
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether an HTTP server answers at all, be it with an error."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


class Server:
    """A server process in a folder of its own that can be killed and started again with its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        raise AssertionError("a server says how it is started")

    def ready(self) -> bool:
        raise AssertionError("a server says when it is ready")

    def start(self) -> None:
        """Start it, and wait until it serves."""
        with Path(self.folder, "server.log").open("ab") as log:
            self.process = STARTER.submit(subprocess.Popen, self.command(), cwd=self.folder, stdout=log, stderr=log,
                                          start_new_session=True, preexec_fn=die_with_parent(),
                                          env=entry_env(MLFLOW_DISABLE_TELEMETRY="true")).result()
        wait_until(self.ready, type(self).__name__, process=self.process)

    def kill(self) -> None:
        """SIGKILL to the process and its children, as a power cut would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class S3Server(Server):
    """SeaweedFS with one user, on the loopback address."""

    KEY, SECRET = "tester", "a-secret-that-nobody-prints"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ports = [free_port() for _ in range(4)]
        self.endpoint = f"http://127.0.0.1:{self.ports[3]}"
        identity = (f'{{"identities": [{{"name": "tester", "credentials": [{{"accessKey": "{self.KEY}", "secretKey": "{self.SECRET}"}}], '
                    '"actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}')
        Path(folder, "identities.json").write_text(identity)
        Path(folder, "data").mkdir(exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        """The variables by which every S3 client finds this server."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": self.KEY, "AWS_SECRET_ACCESS_KEY": self.SECRET,
                "AWS_DEFAULT_REGION": "us-east-1"}

    def command(self) -> list[str]:
        weed = Path(sys.executable).parent / "weed"
        names = ("master", "volume", "filer", "s3")
        ports = [flag for name, port in zip(names, self.ports) for flag in (f"-{name}.port={port}", f"-{name}.port.grpc={port + 10000}")]
        # few and small volumes: a bucket takes several, and the default size asks for more disk than a test machine has
        return [str(weed), "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.config=identities.json",
                "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
                "-master.volumeSizeLimitMB=64", "-volume.max=200", *ports]

    def ready(self) -> bool:
        """Whether a bucket can be made: the gateway answers some seconds before the volumes do."""
        if not answers(self.endpoint):
            return False
        from botocore.exceptions import BotoCoreError, ClientError

        client = self._client()
        try:
            if "ready" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                self.make_bucket("ready")
            client.put_object(Bucket="ready", Key="probe", Body=b"x" * 8192)
            return True
        except (BotoCoreError, ClientError):
            return False

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its address."""
        self._client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def _client(self):  # type: ignore[no-untyped-def]
        import boto3
        from botocore.config import Config

        return boto3.client("s3", endpoint_url=self.endpoint, aws_access_key_id=self.KEY, aws_secret_access_key=self.SECRET,
                            region_name="us-east-1", config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5))


class MlflowServer(Server):
    """A tracking server on sqlite, over HTTP."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", str(self.folder / "artifacts")]

    def ready(self) -> bool:
        return answers(f"{self.uri}/health")


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Start a server, and kill it in the end."""
    server.start()
    try:
        yield server
    finally:
        server.kill()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process that was started in a session of its own, and to its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
