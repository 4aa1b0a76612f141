"""MiniStack, with one gap closed: 1.5.33 knows `AWS::AccountId` and its like everywhere but in `Conditions`.

Our template needs the gap closed: it relaxes the rule for callback URLs by such a condition, so that no AWS account can ever
have it relaxed. Runs in MiniStack's own environment, which is why nothing of MiniStack is imported by name.
"""

from importlib import import_module
from typing import Any

CLOUDFORMATION = "ministack.services.cloudformation"


def main() -> None:
    """Serve until killed."""
    responses = import_module("ministack.core.responses")
    evaluate = import_module(f"{CLOUDFORMATION}.engine")._evaluate_conditions

    def evaluate_with_pseudo_parameters(template: dict[str, Any], parameters: dict[str, Any]) -> dict[str, bool]:
        pseudo = {
            "AWS::AccountId": {"Value": responses.get_account_id()},
            "AWS::Partition": {"Value": "aws"},
            "AWS::Region": {"Value": responses.get_region()},
        }
        conditions: dict[str, bool] = evaluate(template, pseudo | parameters)
        return conditions

    for name in ("engine", "handlers", "changesets", "stacks"):
        vars(import_module(f"{CLOUDFORMATION}.{name}"))["_evaluate_conditions"] = evaluate_with_pseudo_parameters
    import_module("ministack.app").main()


if __name__ == "__main__":
    main()
