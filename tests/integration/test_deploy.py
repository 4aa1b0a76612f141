"""`make deploy` and `make destroy` in the emulated account; SAM is a program that notes its calls."""

import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from layers import deploy, template
from layers.deploy import Present
from taskhook.admin import AdminError
from tests.local import stack

NO_CONFIGURATION = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
ACCOUNT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": stack.REGION}
FAKE_SAM = """
import json, os, sys
verb, options = sys.argv[1], sys.argv[2:]
given = dict(zip(options[::2], options[1::2]))
parameters = json.load(open(given["--parameter-overrides"].removeprefix("file://")))
with open(os.environ["SAM_CALLS"], "a") as calls:
    call = {"verb": verb, "parameters": parameters, "ARCHITECTURE": os.environ["ARCHITECTURE"]}
    print(json.dumps(call), file=calls)
if os.environ.get("SAM_FAILS") == verb:
    sys.exit(1)
if verb == "deploy" and os.environ.get("SAM_MAKES"):
    import boto3
    cloudformation = boto3.client("cloudformation")
    body = open(os.environ["SAM_TEMPLATE"]).read()
    known = [{"ParameterKey": "Architecture", "ParameterValue": parameters["Architecture"]}]
    cloudformation.create_stack(StackName=given["--stack-name"], TemplateBody=body, Parameters=known)
    created = cloudformation.get_waiter("stack_create_complete")
    created.wait(StackName=given["--stack-name"], WaiterConfig={"Delay": 1})
"""

type Ran = tuple[int, str, str]  # exit code, stdout, stderr


@dataclass
class Operator(deploy.Terminal):
    """A terminal with answers ready, or none."""

    there: bool = False
    answers: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        """Whether questions can be answered."""
        return self.there

    def ask(self, question: str) -> str:
        """Give the next answer."""
        self.asked.append(question)
        return self.answers.pop(0)

    ask_secretly = ask


@dataclass
class Bench:
    """What a test deploys with."""

    folder: Path
    run: Callable[..., Ran]

    @property
    def sam(self) -> list[dict[str, Any]]:
        """How SAM was called."""
        calls = self.folder / "calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    def key(self, text: str) -> str:
        """Write a file with a key."""
        (self.folder / "key.txt").write_text(text)
        return str(self.folder / "key.txt")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Deploy in an environment that holds no more of AWS than is given."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "sam.py").write_text(FAKE_SAM)
    resources = {name: template.load()["Resources"][name] for name in ("Callers", "Secret")}
    small = {
        "Parameters": {"Architecture": {"Type": "String"}},
        "Resources": resources,
        "Outputs": {
            "CallersTable": {"Value": {"Ref": "Callers"}},
            "Endpoint": {"Value": "https://api.example.com"},
        },
    }
    (tmp_path / "template.json").write_text(json.dumps(small))
    monkeypatch.setattr(deploy, "SAM", (sys.executable, tmp_path / "sam.py"))
    monkeypatch.setattr(deploy, "WORK", tmp_path / "work")

    def run(verb: str, *arguments: str, terminal: Operator | None = None, **environment: str) -> Ran:
        sam = {"SAM_CALLS": str(tmp_path / "calls"), "SAM_TEMPLATE": str(tmp_path / "template.json")}
        with monkeypatch.context() as context:
            for name, value in (NO_CONFIGURATION | sam | environment).items():
                context.setenv(name, value)
            context.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the environment of its first use
            code = deploy.main([verb, *arguments], environment, terminal=terminal or Operator())
        return (code, *capsys.readouterr())

    return Bench(tmp_path, run)


@pytest.fixture
def named(account_url: str) -> Iterator[dict[str, str]]:
    """Give the environment that names a stack of its own in the emulated account; delete it in the end."""
    name = f"deploy-{uuid.uuid4().hex[:8]}"
    yield {**ACCOUNT, "AWS_ENDPOINT_URL": account_url, "STACK": name, "SAM_MAKES": "yes"}
    aws(account_url, "cloudformation").delete_stack(StackName=name)


def aws(url: str, service: Any) -> Any:
    """Make a client of the emulated account."""
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=stack.REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (["PublicURL=https://x.example.com"], {}, "did you mean PublicUrl?"),
        (["ArchiveDay=3"], {}, "did you mean ArchiveDays?"),
        (["Zzz=3"], {}, "no parameter 'Zzz'. The parameters are VendorUrl, DashScopeUrl"),
        (["--guided"], {}, "is not Name=Value"),
        (["VendorWebhooks=on", "VendorWebhooks=off"], {}, "VendorWebhooks is given twice"),
        (["VendorWebhooks=maybe"], {}, "it must be one of on, off"),
        (["Architecture=x86"], {}, "it must be one of arm64, x86_64"),
        (["PublicUrl=https://x.example.com/"], {}, "it must be an origin such as"),
        ([f"Models={'m' * 1025}"], {}, "it must have at most 1024 characters"),
        (["RetentionDays=6"], {}, "it must be a number from 7 to 3650"),
        (["RetentionDays=a week"], {}, "it must be a number from 7 to 3650"),
        (["LogRetentionDays=2"], {}, "it must be one of 1, 3, 5"),
        (["Architecture=x86_64"], {"ARCHITECTURE": "arm64"}, "contradict each other"),
        ([], {"ARCHITECTURE": "mips"}, "it must be one of arm64, x86_64"),
        ([], {"PARAMETERS": "RetentionDays=7;id Alarms=on"}, "RetentionDays=7;id: it must be a number"),
        (["Alarms=on"], {"PARAMETERS": "Alarms=off"}, "Alarms is given twice"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_else(
    bench: Bench, arguments: list[str], environment: dict[str, str], complaint: str
) -> None:
    """In a sentence, with exit code 2; neither AWS nor SAM was asked: there are no credentials."""
    code, shown, told = bench.run("deploy", *arguments, **environment)
    assert (code, shown, told.count("\n"), bench.sam) == (2, "", 1, [])
    assert complaint in told


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_names_every_variable_and_parameter(bench: Bench, asked: str) -> None:
    """Without credentials, and whatever else is given."""
    code, shown, told = bench.run("deploy", "Alarms=on", asked)
    assert (code, told, bench.sam) == (0, "", [])
    assert all(f"\n  {name} " in shown for name in template.load()["Parameters"])
    assert {"STACK", "VENDOR_KEY_FILE", "ARCHITECTURE", "ARGS", "PARAMETERS"} <= set(
        re.findall(r"[A-Z_]+", shown)
    )
    code, shown, told = bench.run("destroy", asked)
    assert (code, told) == (0, "")
    assert {"STACK", "CONFIRM", "CONFIRM_DATA"} <= set(re.findall(r"[A-Z_]+", shown))


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        (None, "No such file"),
        ("", "is empty"),
        ("a b", "one line"),
        ("one\ntwo", "one line"),
        ("ü", "one line"),
    ],
)
def test_a_key_file_that_holds_no_key_is_refused_first(bench: Bench, key: str | None, complaint: str) -> None:
    """Before the credentials, of which there are none, and before the build."""
    file = "/nowhere/key.txt" if key is None else bench.key(key)
    code, _, told = bench.run("deploy", VENDOR_KEY_FILE=file)
    assert (code, complaint in told, bench.sam) == (1, True, [])


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        ({"AWS_DEFAULT_REGION": "us-east-1"}, "set AWS_PROFILE, or AWS_ACCESS_KEY_ID"),
        (ACCOUNT | {"AWS_DEFAULT_REGION": ""}, "set AWS_DEFAULT_REGION"),
        ({k: v for k, v in ACCOUNT.items() if k != "AWS_DEFAULT_REGION"}, "set AWS_DEFAULT_REGION"),
        (ACCOUNT | {"AWS_PROFILE": "absent"}, "`aws configure list-profiles`"),
        (ACCOUNT | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "check the network"),
    ],
    ids=["credentials", "region", "no region", "profile", "network"],
)
def test_credentials_and_region_are_looked_at_before_the_build(
    bench: Bench, environment: dict[str, str], advice: str
) -> None:
    """A build takes minutes."""
    code, shown, told = bench.run("deploy", STACK="x", VENDOR_KEY_FILE=bench.key("key"), **environment)
    assert (code, shown, told.count("\n"), bench.sam) == (1, "", 1, [])
    assert advice in told


def test_without_a_terminal_it_says_which_variable_to_give(bench: Bench, named: dict[str, str]) -> None:
    """The stack's name, and the vendor's key where none is in place."""
    code, _, told = bench.run("deploy", **(named | {"STACK": ""}))
    assert (code, "STACK=taskhook" in told) == (2, True)
    code, _, told = bench.run("deploy", **named)
    assert (code, "VENDOR_KEY_FILE=" in told) == (2, True)
    code, _, told = bench.run("deploy", **(named | {"STACK": "my_stack"}))
    assert (code, "'my_stack' is not a stack's name" in told) == (2, True)
    assert bench.sam == []


def test_one_architecture_is_built_and_deployed_and_stays(
    bench: Bench, named: dict[str, str], account_url: str
) -> None:
    """Given as functions/OPERATE.md says, or by what the stack has: layer and functions never differ."""
    code, shown, told = bench.run(
        "deploy",
        "Architecture=x86_64",
        "VendorWebhooks=off",
        VENDOR_KEY_FILE=bench.key("mdlx_key\n"),
        **named,
    )
    assert code == 0, told
    given = {"Architecture": "x86_64", "VendorWebhooks": "off"}
    assert bench.sam == [
        {"verb": verb, "parameters": given, "ARCHITECTURE": "x86_64"} for verb in ("build", "deploy")
    ]
    for line in (
        "console   https://api.example.com/",
        "docs      https://api.example.com/docs",
        f"make caller NAME=me STACK={named['STACK']}",
    ):
        assert line in shown
    assert "curl -sS https://api.example.com/api/v1/alibaba/" in shown
    assert "mdlx_key" not in shown + told + json.dumps(bench.sam)
    secrets = aws(account_url, "secretsmanager")
    assert stored_key(named, account_url, secrets) == "mdlx_key"

    (bench.folder / "calls").unlink()
    again = {name: value for name, value in named.items() if name != "SAM_MAKES"}
    assert bench.run("deploy", "VendorWebhooks=on", **again)[0] == 0, "no key is needed where one is in place"
    assert [(call["parameters"], call["ARCHITECTURE"]) for call in bench.sam] == [
        ({"VendorWebhooks": "on", "Architecture": "x86_64"}, "x86_64")
    ] * 2
    assert stored_key(named, account_url, secrets) == "mdlx_key"
    assert bench.run("deploy", ARCHITECTURE="arm64", **again)[0] == 0
    assert bench.sam[-1]["parameters"]["Architecture"] == "arm64"


@pytest.mark.parametrize(
    ("runs", "said"),
    [(10, "runs 10 invocations of Lambda at once"), (1000, ""), (None, "could not be read: ")],
)
def test_an_account_with_few_places_is_told_what_to_ask_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: int | None, said: str
) -> None:
    """By Lambda's own word; credentials that may not ask deploy all the same."""

    def settings() -> dict[str, Any]:
        if runs is None:
            raise ClientError(
                {"Error": {"Code": "AccessDeniedException", "Message": ""}}, "GetAccountSettings"
            )
        return {"AccountLimit": {"ConcurrentExecutions": runs}}

    monkeypatch.setattr(deploy, "client", lambda _: SimpleNamespace(get_account_settings=settings))
    deploy._say_quota()
    told = capsys.readouterr().err
    assert said in told
    assert bool(told) is bool(said)
    assert ("--quota-code L-B99A9384 --desired-value 1000" in told) is (runs == 10)


def stored_key(named: dict[str, str], url: str, secrets: Any) -> str:
    """Read the vendor's key out of the stack's secret."""
    found = aws(url, "cloudformation").describe_stack_resource(
        StackName=named["STACK"], LogicalResourceId="Secret"
    )
    keys = json.loads(
        secrets.get_secret_value(SecretId=found["StackResourceDetail"]["PhysicalResourceId"])["SecretString"]
    )
    return str(keys["modellix"])


@pytest.mark.parametrize(
    ("verb", "complaint"), [("build", "nothing was deployed"), ("deploy", "the deployment failed")]
)
def test_a_failed_step_is_the_last(bench: Bench, named: dict[str, str], verb: str, complaint: str) -> None:
    """What was not built is not deployed, whatever make runs the recipe."""
    code, shown, told = bench.run("deploy", VENDOR_KEY_FILE=bench.key("key"), SAM_FAILS=verb, **named)
    assert (code, shown, bench.sam[-1]["verb"]) == (1, "", verb)
    assert complaint in told
    assert list((bench.folder / "work").iterdir()) == []


def test_at_a_terminal_name_and_key_are_asked_for(
    bench: Bench, named: dict[str, str], account_url: str
) -> None:
    """Enter means the usual name and the key in place; without any, the command says how to give it later."""
    operator = Operator(there=True, answers=[named["STACK"], ""])
    code, shown, told = bench.run("deploy", terminal=operator, **(named | {"STACK": ""}))
    assert code == 0, told
    assert "[taskhook]" in operator.asked[0]
    assert "later" in operator.asked[1]
    assert f"taskhook vendors set modellix --stack {named['STACK']}" in shown
    again = {name: value for name, value in named.items() if name != "SAM_MAKES"}
    assert bench.run("deploy", terminal=Operator(there=True, answers=["typed"]), **again)[0] == 0
    keeping = Operator(there=True, answers=[""])
    assert bench.run("deploy", terminal=keeping, **again)[0] == 0
    assert "stays" in keeping.asked[0]
    assert stored_key(named, account_url, aws(account_url, "secretsmanager")) == "typed"


def test_the_templates_rules_are_looked_at_before_the_build(bench: Bench, named: dict[str, str]) -> None:
    """With what is given, what the stack has, and the account."""
    code, _, told = bench.run(
        "deploy", "AlarmEmail=me@example.com", VENDOR_KEY_FILE=bench.key("key"), **named
    )
    assert (code, "AlarmEmail needs Alarms=on" in told, bench.sam) == (1, True, [])
    mail = {"AlarmEmail": "me@example.com"}
    here = Present(status="UPDATE_COMPLETE", parameters={"Alarms": "on"}, outputs={"CallersTable": "x"})
    assert deploy._settled(mail, here, "123456789012") == {**mail, "Architecture": "arm64"}
    with pytest.raises(AdminError, match="emulated account"):
        deploy._settled({"CallbackTargets": "any"}, None, "123456789012")


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        ("ROLLBACK_COMPLETE", "make destroy"),
        ("UPDATE_IN_PROGRESS", "wait until"),
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback"),
    ],
)
def test_a_stack_that_cannot_be_changed_is_told_before_the_build(status: str, advice: str) -> None:
    """With the way out."""
    with pytest.raises(AdminError, match=advice):
        deploy._settled({}, Present(status=status, parameters={}, outputs={}), "123456789012")


def test_a_stack_of_imported_tables_is_brought_up_to_date() -> None:
    """What a deleted stack has left, taken into a new one by an import: it has no outputs yet."""
    imported = Present(status="IMPORT_COMPLETE", parameters={}, outputs={})
    assert deploy._settled({}, imported, "123456789012") == {"Architecture": "arm64"}
    assert imported.is_taskhook, "so that the key in the imported secret is asked for nowhere"


@pytest.mark.parametrize("archive", [False, True])
def test_what_is_kept_is_a_template_for_an_import(archive: bool) -> None:  # noqa: FBT001  # a parameter
    """Each resource is retained and refers to nothing that the import does not bring."""
    kept = template.kept(archive=archive)
    assert set(kept) == {"AWSTemplateFormatVersion", "Resources"}
    assert set(kept["Resources"]) == {"Tasks", "Callers", "Secret"} | ({"Results"} if archive else set())
    whole = template.load()["Resources"]
    for name, one in kept["Resources"].items():
        assert one["DeletionPolicy"] == "Retain"
        assert "Condition" not in one
        assert one["Properties"].items() <= whole[name]["Properties"].items()
        assert '"Ref"' not in json.dumps(one)
        assert "Fn::If" not in json.dumps(one)


def test_another_stack_is_never_written_over(bench: Bench, named: dict[str, str], account_url: str) -> None:
    """Nor deleted."""
    bucket = {
        "Resources": {"Bucket": {"Type": "AWS::S3::Bucket"}},
        "Outputs": {"Bucket": {"Value": {"Ref": "Bucket"}}},
    }
    aws(account_url, "cloudformation").create_stack(StackName=named["STACK"], TemplateBody=json.dumps(bucket))
    code, _, told = bench.run("deploy", VENDOR_KEY_FILE=bench.key("key"), **named)
    assert (code, "no taskhook" in told, bench.sam) == (1, True, [])
    code, _, told = bench.run("destroy", CONFIRM=named["STACK"], **named)
    assert (code, "no taskhook" in told) == (1, True)


def made(url: str, name: str, resources: dict[str, Any]) -> None:
    """Make a stack that has no outputs, as one that has failed."""
    cloudformation = aws(url, "cloudformation")
    body = json.dumps({"Resources": resources})
    cloudformation.create_stack(StackName=name, TemplateBody=body, Capabilities=["CAPABILITY_IAM"])
    cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})


@pytest.mark.parametrize("alike", [False, True])
def test_another_stack_is_not_deleted_though_it_has_no_outputs(
    bench: Bench, named: dict[str, str], account_url: str, *, alike: bool
) -> None:
    """Not even where it has a table of callers too."""
    made(
        account_url,
        named["STACK"],
        {"Callers": template.load()["Resources"]["Callers"]} if alike else {"Queue": QUEUE},
    )
    code, _, told = bench.run("destroy", CONFIRM=named["STACK"], CONFIRM_DATA=named["STACK"], **named)
    assert (code, "no taskhook" in told, "deletes" in told) == (1, True, False)
    [there] = aws(account_url, "cloudformation").describe_stacks(StackName=named["STACK"])["Stacks"]
    assert there["StackStatus"] == "CREATE_COMPLETE"


QUEUE = {"Type": "AWS::SQS::Queue"}
ROLE = {
    "Type": "AWS::IAM::Role",
    "Properties": {"AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": []}},
}


def test_a_taskhook_that_has_failed_is_deleted_though_it_has_no_outputs(
    bench: Bench, named: dict[str, str], account_url: str
) -> None:
    """It is known by what the template declares."""
    made(
        account_url, named["STACK"], {"Callers": template.load()["Resources"]["Callers"], "SubmitRole": ROLE}
    )
    code, _, told = bench.run("destroy", CONFIRM=named["STACK"], CONFIRM_DATA=named["STACK"], **named)
    assert (code, "is deleted" in told) == (0, True), told


def test_a_taskhook_that_was_imported_and_never_deployed_is_deleted(
    bench: Bench, named: dict[str, str], account_url: str
) -> None:
    """It has tables and secret alone, and no outputs; they stay where the name is given only once."""
    declared = template.load()["Resources"]
    made(account_url, named["STACK"], {name: declared[name] for name in ("Callers", "Tasks", "Secret")})
    code, _, told = bench.run("destroy", CONFIRM=named["STACK"], **named)
    assert (code, "is deleted" in told, "DynamoDB table" in told) == (0, True, True), told


def test_what_outlives_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, secret and bucket; all else goes with the stack, the bucket's policy too."""
    found = [
        {"LogicalResourceId": name, "ResourceType": one["Type"], "PhysicalResourceId": f"its-{name}"}
        for name, one in template.load()["Resources"].items()
    ]
    cloudformation = SimpleNamespace(describe_stack_resources=lambda **_: {"StackResources": found})
    monkeypatch.setattr(deploy, "client", lambda _: cloudformation)
    assert {one.name for one in deploy._kept("x")} == {
        "its-Tasks",
        "its-Callers",
        "its-Secret",
        "its-Results",
    }


def test_a_secret_that_cannot_be_read_is_no_key_in_place(
    bench: Bench, named: dict[str, str], account_url: str
) -> None:
    """The deployment goes on, and says what to do about the key; without a terminal it does not begin."""
    assert bench.run("deploy", VENDOR_KEY_FILE=bench.key("key"), **named)[0] == 0
    found = aws(account_url, "cloudformation").describe_stack_resource(
        StackName=named["STACK"], LogicalResourceId="Secret"
    )
    secret = found["StackResourceDetail"]["PhysicalResourceId"]
    aws(account_url, "secretsmanager").put_secret_value(SecretId=secret, SecretString="pasted over it all")
    again = {name: value for name, value in named.items() if name != "SAM_MAKES"}
    (bench.folder / "calls").unlink()
    code, _, told = bench.run("deploy", **again)
    assert (code, "the stack's secret cannot be used" in told, "pasted" in told, bench.sam) == (
        1,
        True,
        False,
        [],
    )
    operator = Operator(there=True, answers=[""])
    code, shown, told = bench.run("deploy", terminal=operator, **again)
    assert (code, [call["verb"] for call in bench.sam]) == (0, ["build", "deploy"]), told
    assert "later" in operator.asked[0]
    assert f"taskhook vendors set modellix --stack {named['STACK']}" in shown


def test_destroy_says_what_stays_and_deletes_that_only_when_the_name_is_given_again(
    bench: Bench, named: dict[str, str], account_url: str
) -> None:
    """Without a terminal by two variables; at a terminal typed twice."""
    bench.run("deploy", VENDOR_KEY_FILE=bench.key("key"), **named)
    tables = aws(account_url, "dynamodb")
    [mine] = [name for name in tables.list_tables()["TableNames"] if name.startswith(named["STACK"])]
    for refused in ({}, {"CONFIRM": "yes"}):
        code, _, told = bench.run("destroy", **named, **refused)
        assert (code, "nothing was deleted" in told, f"DynamoDB table {mine}" in told) == (1, True, True)
    code, _, told = bench.run("destroy", terminal=Operator(there=True, answers=[named["STACK"], ""]), **named)
    assert (code, "secret $0.40 a month" in told) == (0, True), told
    assert mine in tables.list_tables()["TableNames"]
    code, _, told = bench.run("destroy", CONFIRM=named["STACK"], **named)
    assert (code, "there is no stack" in told) == (1, True)

    bench.run("deploy", VENDOR_KEY_FILE=bench.key("key"), **(named | {"STACK": f"{named['STACK']}-2"}))
    second = {
        "STACK": f"{named['STACK']}-2",
        "CONFIRM": f"{named['STACK']}-2",
        "CONFIRM_DATA": f"{named['STACK']}-2",
    }
    code, _, told = bench.run("destroy", **(named | second))
    assert code == 0, told
    assert [
        name for name in tables.list_tables()["TableNames"] if name.startswith(f"{named['STACK']}-2")
    ] == []


def test_the_workflow_gives_no_shell_what_was_typed() -> None:
    """Its command is fixed: what was typed is in the environment; ARGS would go through a shell."""
    workflow = yaml.safe_load((stack.ROOT / ".github/workflows/deploy.yml").read_text())
    [*steps] = workflow["jobs"]["deploy"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make deploy"]
    assert steps[-1]["env"] == {"STACK": "${{ inputs.stack }}", "PARAMETERS": "${{ inputs.parameters }}"}


def test_the_makefile_means_the_same_to_make_3_81() -> None:
    """It knows no .SHELLFLAGS, no .ONESHELL: a failing line ends its recipe only if it is one command."""
    text = (stack.ROOT / "Makefile").read_text()
    for newer in (".SHELLFLAGS", ".ONESHELL", "!=", "::=", "$(file ", "undefine", "private ", "load "):
        assert newer not in re.sub(r"#.*", "", text).replace(" != ", " "), newer
    for line in re.findall(r"^\t(.*)$", text, re.MULTILINE):
        assert not line.endswith("\\"), line
        if ";" in line.replace("; do ", " ").replace("; done", ""):
            assert "|| exit 1" in line or "exit 1; }" in line or "exit 2; }" in line, line
    for target in ("deploy", "destroy"):
        [recipe] = re.findall(rf"^{target}: tools .*\n((?:\t.*\n)+)", text, re.MULTILINE)
        assert recipe == f"\t@exec python -m layers.deploy {target} $(ARGS)\n"
