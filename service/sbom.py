"""Write a software bill of materials of this interpreter's environment: CycloneDX 1.5, JSON, from what pip has installed.

    /opt/twinfer/bin/python service/sbom.py > sbom.cdx.json

Python packages, their licences and what each needs of the others; not the operating system's packages below them, nor the libraries
inside wheels.
"""

import json
import platform
import re
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from typing import Any

ROOT = "twinfer"


def make_bill() -> dict[str, Any]:
    """Return the bill; twinfer itself is what it is about, and the rest its components."""
    found = sorted({_normal(each.name): each for each in distributions()}.items())
    components = {name: _describe(name, each) for name, each in found}
    purls = {name: component["purl"] for name, component in components.items()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": components[ROOT] | {"type": "application"},
            "properties": [
                {"name": "python", "value": platform.python_version()},
                {"name": "platform", "value": platform.platform()},
            ],
        },
        "components": [component for name, component in components.items() if name != ROOT],
        "dependencies": [{"ref": purls[name], "dependsOn": sorted(_needs(each, purls))} for name, each in found],
    }


def _describe(name: str, distribution: Distribution) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{distribution.version}"
    described = {"type": "library", "name": name, "version": distribution.version, "purl": purl, "bom-ref": purl}
    metadata = distribution.metadata
    licence = metadata["License-Expression"] or (metadata["License"] or "").strip().partition("\n")[0]
    if not licence:
        classified = [each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or () if each.startswith("License ::")]
        licence = ", ".join(classified)
    return described | ({"licenses": [{"license": {"name": licence}}]} if licence else {})


def _needs(distribution: Distribution, purls: dict[str, str]) -> set[str]:
    """Return what a package asks for, as far as it is there; of extras only twinfer's own."""
    is_root = _normal(distribution.name) == ROOT
    wanted = [each for each in distribution.requires or () if is_root or "extra ==" not in each]
    names = (_normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in wanted)
    return {purls[name] for name in names if name in purls} - {purls[ROOT]}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    json.dump(make_bill(), sys.stdout, indent=1)
