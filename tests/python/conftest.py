"""A broker and two lockboxes as real processes on loopback, and stubs made from proto/ for a client that shares no code
with them."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"

# After this long, whatever is waited for does not come any more.
DEADLINE_SECONDS = 60


def eventually(what, look):
    """Looks until there is something to see, and gives that."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        seen = look()
        if seen:
            return seen
        time.sleep(0.02)
    raise AssertionError(f"after {DEADLINE_SECONDS} s still not so: {what}")


def run(*args):
    """Runs a command to its end and gives what it printed."""
    done = subprocess.run([str(arg) for arg in args], capture_output=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, f"{args}: {done.stderr.decode()}"
    return done.stdout


class Cluster:
    def __init__(self, folder):
        self.folder = folder
        self.broker_dir = folder / "broker"
        self.processes = []

    def found(self):
        """Founds the cluster and starts its broker."""
        run(
            *(BINARIES / "lockbox-broker", "init", "--dir", self.broker_dir, "--cluster-name", "test"),
            *("--node-listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"),
        )
        ports_file = self.folder / "broker.ports"
        config = self.broker_dir / "broker.toml"
        self.start("broker", "lockbox-broker", "serve", "--config", config, "--ports-file", ports_file)
        # The file is written at once and whole, when both ports are bound.
        eventually("the broker is ready", ports_file.exists)
        ports = json.loads(ports_file.read_bytes())
        self.node, self.control = ports["node"], ports["control"]

    def start(self, name, binary, *args):
        """Starts a daemon that writes its log to a file."""
        with open(self.folder / f"{name}.log", "ab") as log:
            command = [str(BINARIES / binary), *map(str, args)]
            self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def broker(self, *args):
        client = self.broker_dir / "client.toml"
        return run(BINARIES / "lockbox-broker", *args, "--client", client, "--server", self.control)

    def lockbox(self, name, *args):
        return run(BINARIES / "lockbox", *args, "--socket", self.folder / f"{name}.s")

    def add_lockbox(self, name):
        key_file, config = self.folder / f"{name}.key", self.folder / f"{name}.toml"
        key_file.write_bytes(bytes(range(32)))
        key_file.chmod(0o600)
        self.lockbox(
            name,
            *("init", "--state-dir", self.folder / name, "--name", name, "--key-file", key_file),
            *("--config-out", config, "--peer-listen", "127.0.0.1:0"),
        )
        self.start(name, "lockbox", "serve", "--config", config, "--unseal-key-file", key_file)
        eventually(f"{name} answers", lambda: self.answers(name))
        token = self.folder / f"{name}.token"
        admin_key = self.broker_dir / "admin.key"
        token.write_bytes(self.broker("token", "create", "--admin-key", admin_key, "--broker-address", self.node))
        token.chmod(0o600)
        self.lockbox(name, "join", "--token", token)
        eventually(f"{name} is connected", lambda: self.status(name)["broker_connected"])

    def answers(self, name):
        command = [BINARIES / "lockbox", "status", "--socket", self.folder / f"{name}.s"]
        return subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS).returncode == 0

    def status(self, name):
        return json.loads(self.lockbox(name, "status", "--output", "json"))

    def create_key(self, name, *args):
        return json.loads(self.lockbox(name, "key", "create", "--output", "json", *args))["key_id"]

    def reveal(self, name, key):
        """The key's bytes, or nothing if this lockbox does not hold it."""
        command = [BINARIES / "lockbox", "key", "reveal", key, "--socket", self.folder / f"{name}.s"]
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS)
        return done.stdout if done.returncode == 0 else None

    def logs(self):
        return "\n".join(f"==== {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("*.log")))

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("lbx"))
    try:
        made.found()
        made.add_lockbox("a")
        made.add_lockbox("b")
        yield made
    finally:
        made.kill()
        # pytest shows it beside a test that failed.
        print(made.logs())


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    """The messages and stubs of the control plane's port, made from the .proto files."""
    from grpc_tools import protoc

    out = tmp_path_factory.mktemp("stubs")
    files = sorted((ROOT / "proto").glob("lockbox/*/v1/*.proto"))
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main([*arguments, *map(str, files)]) == 0
    sys.path.insert(0, str(out))
    return SimpleNamespace(
        authz=importlib.import_module("lockbox.authz.v1.authorization_pb2"),
        control=importlib.import_module("lockbox.control.v1.control_pb2"),
        stubs=importlib.import_module("lockbox.control.v1.control_pb2_grpc"),
    )
