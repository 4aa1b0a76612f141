"""Reads `template.yaml`: for `make deploy`, for the embedded stack and for tests.

No part of it is deployed. `python -m layers.template kept` prints what outlives a stack as a template of
its own, with which CloudFormation imports it into a new stack (functions/OPERATE.md).
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parents[1] / "template.yaml"


def load(path: Path = TEMPLATE) -> dict[str, Any]:
    """Load a template; `!Sub x` becomes `{"Fn::Sub": "x"}`, as in the long form."""
    # Derived from the safe one.
    loaded: dict[str, Any] = yaml.load(path.read_text(), Loader=_Loader)  # noqa: S506
    return loaded


def kept(*, archive: bool = False) -> dict[str, Any]:
    """Give the resources that outlive their stack as an import takes them: no outputs, no parameters."""
    resources = {
        name: one | {"DeletionPolicy": "Retain"}
        for name, one in load()["Resources"].items()
        if str(one.get("DeletionPolicy", "")).startswith("Retain")
        and (archive or one.get("Condition") != "Archives")
    }
    for one in resources.values():
        one.pop("Condition", None)
    if "Results" in resources:  # its rules name a parameter, which the next deployment brings
        resources["Results"]["Properties"].pop("LifecycleConfiguration")
    return {"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}


def url_parameter(vendor: str) -> str:
    """Name the parameter that says where a vendor's API is."""
    variables = load()["Globals"]["Function"]["Environment"]["Variables"]
    name: str = variables[f"{vendor.upper()}_VENDOR_URL"]["Ref"]
    return name


class _Loader(yaml.SafeLoader):
    pass


def _intrinsic(loader: _Loader, name: str, node: Any) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {name if name in {"Ref", "Condition"} else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _intrinsic)


if __name__ == "__main__":
    if sys.argv[1:] not in (["kept"], ["kept", "--archive"]):
        print("usage: python -m layers.template kept [--archive]", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(kept(archive="--archive" in sys.argv), indent=2))
