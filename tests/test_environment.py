"""A server that finds no home, no name for its user, no folder for temporary files, or a low priority, as containers have it."""

import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from tests.processes import COMMAND, environment
from tests.servers import DIGITS
from twinfer import Client

NAMELESS = ["nice", "-n", "15", "unshare", "--user", "--map-user=12345", "--map-group=12345"]
READ_ONLY = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'for folder in /tmp /var/tmp; do mount -t tmpfs -o ro none $folder; done && cd /proc && exec "$0" "$@"'


def check_serving(prefix: Sequence[str], absent: set[str], env: dict[str, str]) -> str:
    """Start a server behind `prefix`, ask it a question, stop it; gives its log."""
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("users cannot be given namespaces of their own here")
    given = {name: value for name, value in environment().items() if name not in absent} | env
    command = [*prefix, *COMMAND, "serve", str(DIGITS), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given) as process:
        try:
            assert process.stdout is not None
            said = [line for _, line in zip(range(2), process.stdout, strict=False)]
            if said[1:] == ["ready\n"]:
                with Client(said[0].split()[-1]) as client:
                    client.infer({"text": "five"})
            process.terminate()
            log = process.communicate()[1]
        finally:
            process.kill()
    assert (process.returncode, said[1:]) == (0, ["ready\n"]), log
    return log


@pytest.mark.parametrize("home", [None, "/proc"])
def test_a_user_without_a_name_and_a_home_is_told_that_nothing_is_kept_there(home: str | None) -> None:
    log = check_serving(NAMELESS, {"HOME", "USER", "LOGNAME"}, {} if home is None else {"HOME": home})
    lines = [line for line in log.splitlines() if "libraries keep nothing in HOME" in line]
    assert len(lines) == 1, log
    assert f"found {home or 'none'}, which" in lines[0]
    assert not os.path.exists("~")


def test_without_a_folder_for_temporary_files_it_serves_and_says_what_it_does_without() -> None:
    log = check_serving([*READ_ONLY, MOUNT], {"TMPDIR", "TORCHINDUCTOR_CACHE_DIR"}, {})  # torch has set the latter in this process
    lines = [line for line in log.splitlines() if "no folder for temporary files" in line]
    assert len(lines) == 1, log
    assert "TMPDIR" in lines[0]
