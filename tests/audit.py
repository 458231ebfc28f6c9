"""Known vulnerabilities of what constraints.txt pins, as pip-audit finds them: `python -m tests.audit PIP_AUDIT`.

It exits with 1 where there are any. Where their data cannot be reached it says so and that nothing was looked at: pip-audit itself
counts a package that it cannot find as one without any.
"""

import json
import subprocess
import sys

TIMEOUT_SECONDS = 120
COMMAND = ["--requirement", "constraints.txt", "--no-deps", "--disable-pip", "--format", "json", "--timeout", "5"]


def audit(command: str) -> tuple[int, str]:
    """Run pip-audit and return an exit code, and what to say."""
    try:
        found = subprocess.run(
            [command, *COMMAND, "--progress-spinner", "off"], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        packages = json.loads(found.stdout)["dependencies"]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return 0, f"left out, it or its data cannot be reached ({type(error).__name__})"
    looked_at = [package for package in packages if "skip_reason" not in package]
    if not looked_at:
        return 0, f"left out, of {len(packages)} packages none's data can be reached"
    lines = [
        f"  {package['name']} {package['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no version yet'}"
        for package in looked_at
        for fault in package["vulns"]
    ]
    return bool(lines), "\n".join([f"{len(lines)} known vulnerabilities in {len(looked_at)} of {len(packages)} packages", *lines])


if __name__ == "__main__":
    code, text = audit(sys.argv[1])
    print(f"pip-audit: {text}")
    sys.exit(code)
