"""What the template promises: exact rights, kept data, and no relaxation outside the emulator."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from taskhook.adapters.aws.secrets import DEPLOYMENT_KEY
from taskhook.settings import Settings
from taskhook.submit.submit import ANSWER_TIME
from taskhook.vendors import VENDORS
from tests import watched
from tests.local import stack
from tests.rows import each_row

TEMPLATE = stack.template()
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]
FUNCTIONS = ("SubmitFunction", "PollFunction", "ArchiveFunction")
ROLES = ("SubmitRole", "PollRole", "ArchiveRole", "TickRole")
ARCHIVE = {  # what there is only with ArchiveResults=on
    *("ArchiveFunction", "ArchiveRole", "ArchiveLogs", "Results", "ResultsOverTlsOnly"),
    *("ArchiveMayWake", "PollMayArchive", "SubmitMayLink"),
}
TABLES = ("Tasks", "Callers")
ALARMS = (
    "Undelivered",
    "PollerSilent",
    "VendorRefuses",
    "AmbiguousSubmit",
    "NearDeadline",
    "WritesThrottled",
    "ReadsThrottled",
    "SubmitErrors",
    "PollErrors",
    "SubmitThrottled",
    "PollThrottled",
)
NAMES = {
    "TableName",
    "FunctionName",
    "RoleName",
    "LogGroupName",
    "LayerName",
    "AlarmName",
    "DashboardName",
    "TopicName",
}

type Grant = tuple[str, str]

KEPT = ("RetainExceptOnCreate", "Retain")  # what is made by a first deployment that fails is not

FILES = "${Results.Arn}/*"
TRACES = {("xray:PutTraceSegments", "*"), ("xray:PutTelemetryRecords", "*")}  # no resources are known to it
TASKS, CALLERS, WORK, BY_CALLER = (
    "Tasks.Arn",
    "Callers.Arn",
    "${Tasks.Arn}/index/work",
    "${Tasks.Arn}/index/by_caller",
)
GRANTS: dict[str, set[Grant]] = {
    "SubmitRole": {
        ("dynamodb:GetItem", TASKS),
        ("dynamodb:BatchGetItem", TASKS),
        ("dynamodb:PutItem", TASKS),
        ("dynamodb:UpdateItem", TASKS),
        ("dynamodb:Query", WORK),
        ("dynamodb:Query", BY_CALLER),
        ("dynamodb:GetItem", CALLERS),
        ("secretsmanager:GetSecretValue", "Secret.Id"),
        ("lambda:InvokeFunction", "PollFunction.Arn"),
        ("logs:CreateLogStream", "SubmitLogs.Arn"),
        ("logs:PutLogEvents", "SubmitLogs.Arn"),
        ("s3:GetObject", FILES),
        *TRACES,
    },
    "PollRole": {
        ("dynamodb:GetItem", TASKS),
        ("dynamodb:BatchGetItem", TASKS),
        ("dynamodb:UpdateItem", TASKS),
        ("dynamodb:Query", WORK),
        ("dynamodb:GetItem", CALLERS),
        ("secretsmanager:GetSecretValue", "Secret.Id"),
        ("logs:CreateLogStream", "PollLogs.Arn"),
        ("logs:PutLogEvents", "PollLogs.Arn"),
        ("lambda:InvokeFunction", "ArchiveFunction.Arn"),
        *TRACES,
    },
    "ArchiveRole": {
        ("dynamodb:GetItem", TASKS),
        ("dynamodb:UpdateItem", TASKS),
        ("s3:PutObject", FILES),
        ("s3:ListMultipartUploadParts", FILES),
        ("s3:AbortMultipartUpload", FILES),
        ("s3:GetObject", FILES),
        ("lambda:InvokeFunction", "PollFunction.Arn"),
        ("logs:CreateLogStream", "ArchiveLogs.Arn"),
        ("logs:PutLogEvents", "ArchiveLogs.Arn"),
        *TRACES,
    },
    "TickRole": {("lambda:InvokeFunction", "PollFunction.Arn")},
}


def properties(name: str) -> dict[str, Any]:
    """Return a resource's own properties."""
    found: dict[str, Any] = RESOURCES[name]["Properties"]
    return found


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    """Return the resources of one type by their logical names."""
    return {name: resource for name, resource in RESOURCES.items() if resource["Type"] == kind}


def as_list(value: Any) -> list[Any]:
    """Return what may be written as one value or as several."""
    return value if isinstance(value, list) else [value]


def policies(role: str) -> list[dict[str, Any]]:
    """List a role's own policies, and those that are there only with the archive."""
    attached = [policy["Properties"] for policy in of_type("AWS::IAM::Policy").values()]
    assert all(len(policy["Roles"]) == 1 for policy in attached)
    return [
        *properties(role)["Policies"],
        *(policy for policy in attached if policy["Roles"] == [{"Ref": role}]),
    ]


def grants(role: str) -> Iterator[Grant]:
    """Yield every action with the resource on which it is allowed, as the template writes it."""
    for policy in policies(role):
        for statement in policy["PolicyDocument"]["Statement"]:
            assert statement["Effect"] == "Allow"
            for action in as_list(statement["Action"]):
                for resource in as_list(statement["Resource"]):
                    yield action, resource if isinstance(resource, str) else written(resource)


def written(resource: dict[str, Any]) -> str:
    """Return what an intrinsic function names."""
    [(function, value)] = resource.items()
    return ".".join(value) if function == "Fn::GetAtt" else str(value)


def variables(function: str) -> dict[str, Any]:
    """Return the environment of a function: what all have, and its own."""
    common: dict[str, Any] = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    own: dict[str, Any] = properties(function).get("Environment", {}).get("Variables", {})
    return common | own


def strings(value: Any) -> Iterator[str]:
    """Yield every string inside a value."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def test_an_answer_that_waits_leaves_time_to_answer() -> None:
    """Within the function's time and the HTTP API's, whichever is shorter, with two seconds to spare."""
    timeout = TEMPLATE["Resources"]["SubmitFunction"]["Properties"]["Timeout"]
    assert ANSWER_TIME.total_seconds() < min(timeout, 30) - 2


def test_every_role_is_listed_here() -> None:
    """A new role cannot come in beside the table of grants."""
    assert set(of_type("AWS::IAM::Role")) == set(ROLES) == set(GRANTS)


@each_row("role", ROLES)
def test_a_role_may_do_exactly_this(role: str) -> None:
    """Exact actions on exact resources, and no managed policy, which would allow `*`."""
    assert set(grants(role)) == GRANTS[role]
    assert "ManagedPolicyArns" not in properties(role)


@each_row("role", ROLES)
def test_no_role_has_a_wildcard(role: str) -> None:
    """No action or resource of a policy holds a `*`, but for the files of the one bucket, and traces."""
    assert {text for text in strings(policies(role)) if "*" in text} <= {FILES, "*"}
    assert {action for action, resource in grants(role) if resource == "*"} <= {
        action for action, _ in TRACES
    }


@each_row("role", ROLES)
def test_no_function_deletes_tasks_or_writes_callers(role: str) -> None:
    """Tasks leave by TTL alone, callers are the admin command's, and poll creates nothing."""
    assert not any("Delete" in action for action, _ in grants(role))
    assert {action for action, resource in grants(role) if resource == CALLERS} <= {"dynamodb:GetItem"}
    assert role == "SubmitRole" or "dynamodb:PutItem" not in {action for action, _ in grants(role)}


@pytest.mark.parametrize(
    ("function", "role"),
    [("SubmitFunction", "SubmitRole"), ("PollFunction", "PollRole"), ("ArchiveFunction", "ArchiveRole")],
)
def test_a_function_has_its_own_role(function: str, role: str) -> None:
    """SAM adds managed policies with `Resource: *` to roles that it makes itself."""
    assert properties(function)["Role"] == {"Fn::GetAtt": [role, "Arn"]}
    assert "Policies" not in properties(function)


def test_every_function_is_listed_here() -> None:
    """A new function cannot come in beside these tests."""
    assert set(of_type("AWS::Serverless::Function")) == set(FUNCTIONS)


def test_the_environment_is_the_settings() -> None:
    """Variables and fields are the same; only submit knows poll's name, and only poll the archive's."""
    # which Lambda sets
    fields = {name.upper() for name in Settings.model_fields} - {"AWS_LAMBDA_FUNCTION_NAME", "VENDOR_ORIGINS"}
    fields |= {f"{name.upper()}_VENDOR_URL" for name in VENDORS}
    assert set(variables("SubmitFunction")) == fields - {"ARCHIVE_FUNCTION"}
    assert set(variables("PollFunction")) == fields - {"POLL_FUNCTION"}
    assert set(variables("ArchiveFunction")) == fields - {"POLL_FUNCTION", "ARCHIVE_FUNCTION"}


def longest(value: Any) -> int:
    """Return the most characters that a variable's value may have."""
    if isinstance(value, str):
        return len(value)
    [(function, argument)] = value.items()
    if function == "Fn::If":
        return max(longest(one) for one in argument[1:])
    if function == "Fn::Sub":
        return longest({"Ref": "VendorUrl"}) + len("/media")
    if function == "Fn::GetAtt":  # the API's URL, the secret's ARN
        return 128
    if argument in TABLES:  # the stack's name, the table's, and twelve characters
        return 150
    if argument not in TEMPLATE["Parameters"]:  # a function, the bucket
        return 128 if argument == "AWS::StackName" else 64
    parameter = TEMPLATE["Parameters"][argument]
    choices = [str(one) for one in parameter.get("AllowedValues", [parameter.get("MaxValue", "")])]
    return int(parameter.get("MaxLength", max(map(len, choices))))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_variables_fit(function: str) -> None:
    """Lambda takes 4 KB of all variables of a function together; quotes, colon and comma counted too."""
    assert sum(len(name) + longest(value) + 6 for name, value in variables(function).items()) <= 4096


def test_without_the_archive_there_is_nothing_of_it() -> None:
    """No bucket, no permission, no function: nothing that costs, or could be used."""
    assert TEMPLATE["Parameters"]["ArchiveResults"]["Default"] == "off"
    assert TEMPLATE["Conditions"]["Archives"] == {"Fn::Equals": [{"Ref": "ArchiveResults"}, "on"]}
    everywhere = {"Fn::And": [{"Condition": "Archives"}, {"Fn::Not": [{"Condition": "IsEmulator"}]}]}
    assert TEMPLATE["Conditions"]["ArchivesOverTls"] == everywhere
    assert {name: RESOURCES[name]["Condition"] for name in ARCHIVE} == {
        name: "ArchivesOverTls" if name == "ResultsOverTlsOnly" else "Archives" for name in ARCHIVE
    }
    assert set(of_type("AWS::IAM::Policy")) < set(ARCHIVE)
    assert variables("SubmitFunction")["RESULTS_BUCKET"] == {"Fn::If": ["Archives", {"Ref": "Results"}, ""]}
    assert variables("PollFunction")["ARCHIVE_FUNCTION"] == {
        "Fn::If": ["Archives", {"Ref": "ArchiveFunction"}, ""]
    }


def test_the_bucket_is_closed_kept_and_tidy() -> None:
    """Encrypted, TLS alone, nothing public; what is abandoned or old goes, and no result with the stack.

    Its policy does: CloudFormation makes none for a bucket that has one, as one taken into a new stack would.
    """
    bucket, policy = RESOURCES["Results"], RESOURCES["ResultsOverTlsOnly"]
    assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == KEPT
    assert not {"DeletionPolicy", "UpdateReplacePolicy"} & set(policy)
    [encryption] = bucket["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    closed = bucket["Properties"]["PublicAccessBlockConfiguration"]
    assert set(closed) == {
        "BlockPublicAcls",
        "BlockPublicPolicy",
        "IgnorePublicAcls",
        "RestrictPublicBuckets",
    }
    assert set(closed.values()) == {True}
    abandoned, old = bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    assert abandoned["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert old["ExpirationInDays"] == {"Ref": "ArchiveDays"}
    assert {rule["Status"] for rule in (abandoned, old)} == {"Enabled"}
    [denied] = policy["Properties"]["PolicyDocument"]["Statement"]
    assert (denied["Effect"], denied["Principal"], denied["Action"]) == ("Deny", "*", "s3:*")
    assert denied["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert denied["Resource"] == [{"Fn::GetAtt": ["Results", "Arn"]}, {"Fn::Sub": FILES}]


def test_the_archiver_knows_no_secret() -> None:
    """What reads a stranger's bytes knows nothing worth telling."""
    assert not {action for action, _ in grants("ArchiveRole")} & {
        "secretsmanager:GetSecretValue",
        "dynamodb:PutItem",
    }
    assert CALLERS not in {resource for _, resource in grants("ArchiveRole")}


@each_row("name", TEMPLATE["Parameters"])
def test_a_parameter_is_described_and_constrained(name: str) -> None:
    """A wrong value is refused before anything is deployed."""
    parameter = TEMPLATE["Parameters"][name]
    assert parameter["Description"].endswith(".")
    assert {"AllowedValues", "AllowedPattern", "MinLength", "MinValue"} & set(parameter)
    assert (
        parameter["Type"] != "Number"
        or "AllowedValues" in parameter
        or {"MinValue", "MaxValue"} <= set(parameter)
    )


def test_every_parameter_has_a_default_and_none_is_secret() -> None:
    """Nothing is asked for at a deployment, and no update carries a key."""
    assert [
        name
        for name, parameter in TEMPLATE["Parameters"].items()
        if "Default" not in parameter or "NoEcho" in parameter
    ] == []


def test_tasks_are_kept_for_a_week_at_least() -> None:
    """The vendor keeps a result for seven days; our record of it outlives it."""
    assert TEMPLATE["Parameters"]["RetentionDays"]["MinValue"] == 7


@pytest.mark.parametrize("function", FUNCTIONS)
def test_only_the_emulated_account_relaxes_the_callback_rule(function: str) -> None:
    """Two locks: elsewhere the value has no power, and asking for it is refused."""
    emulated = {"Fn::Equals": [{"Ref": "AWS::AccountId"}, "000000000000"]}
    assert TEMPLATE["Parameters"]["CallbackTargets"]["Default"] == "public"
    assert TEMPLATE["Conditions"]["IsEmulator"] == emulated
    assert variables(function)["CALLBACK_TARGETS"] == {
        "Fn::If": ["IsEmulator", {"Ref": "CallbackTargets"}, "public"]
    }
    [rule] = [
        it
        for it in TEMPLATE["Rules"].values()
        if it["RuleCondition"] == {"Fn::Equals": [{"Ref": "CallbackTargets"}, "any"]}
    ]
    assert [it["Assert"] for it in rule["Assertions"]] == [emulated]


def test_every_table_is_kept() -> None:
    """Deleting the stack, or replacing a table, loses no task and no caller."""
    tables = of_type("AWS::DynamoDB::Table")
    assert set(tables) == set(TABLES)
    for table in tables.values():
        assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == KEPT
        assert table["Properties"]["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert table["Properties"]["BillingMode"] == "PAY_PER_REQUEST"


def test_the_secret_is_made_once_and_kept() -> None:
    """Its deployment key is random, in no template or parameter, and outlives the stack as the tables do."""
    [secret] = of_type("AWS::SecretsManager::Secret").values()
    assert (secret["DeletionPolicy"], secret["UpdateReplacePolicy"]) == KEPT
    assert set(secret["Properties"]) == {"Description", "GenerateSecretString"}
    generated = secret["Properties"]["GenerateSecretString"]
    assert {**json.loads(generated.pop("SecretStringTemplate")), generated.pop("GenerateStringKey"): ...} == {
        "modellix": "",  # others are added: a change of these lines would make a new deployment key
        DEPLOYMENT_KEY: ...,
    }
    assert generated == {"PasswordLength": 64, "ExcludePunctuation": True}
    assert variables("SubmitFunction")["KEYS_SECRET"] == {"Fn::GetAtt": ["Secret", "Id"]}


def test_the_keys_of_tasks() -> None:
    """Keys and both indexes are right from the first deployment: an update changes one index at a time."""
    table = properties("Tasks")
    keys = {None: table["KeySchema"]} | {
        index["IndexName"]: index["KeySchema"] for index in table["GlobalSecondaryIndexes"]
    }
    assert {
        name: [(part["AttributeName"], part["KeyType"]) for part in schema] for name, schema in keys.items()
    } == {
        None: [("task_id", "HASH")],
        "work": [("work", "HASH"), ("work_at", "RANGE")],
        "by_caller": [("caller", "HASH"), ("listed", "RANGE")],
    }
    assert {index["Projection"]["ProjectionType"] for index in table["GlobalSecondaryIndexes"]} == {
        "KEYS_ONLY"
    }
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}


def test_the_layer_is_built_for_the_processor_of_the_functions() -> None:
    """Without `BuildArchitecture` SAM builds for x86_64, whatever runs it."""
    [layer] = of_type("AWS::Serverless::LayerVersion").values()
    architecture = {"Ref": "Architecture"}
    assert layer["Metadata"] == {"BuildMethod": "makefile", "BuildArchitecture": architecture}
    assert layer["Properties"]["CompatibleArchitectures"] == [architecture]
    assert TEMPLATE["Globals"]["Function"]["Architectures"] == [architecture]


def test_nothing_has_a_fixed_name() -> None:
    """Two stacks live in one account, and a retained table is in no stack's way."""
    named = [name for name in RESOURCES if NAMES & set(properties(name))]
    assert named == ["Layer", "ApiMayInvokeSubmit"]  # the second refers to one
    # SAM would call every stack's layer by its logical id, and a version of one would be another's.
    assert properties("Layer")["LayerName"] == {"Ref": "AWS::StackName"}
    tick = properties("PollFunction")["Events"]["Tick"]["Properties"]
    assert ("Name" in tick, tick["OmitName"]) == (False, True)  # else SAM gives it the name of its logical id


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_functions_logs_end(function: str) -> None:
    """A log group that Lambda makes by itself keeps everything for ever."""
    group = properties(function)["LoggingConfig"]["LogGroup"]["Ref"]
    assert properties(group)["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def test_a_wake_is_never_repeated() -> None:
    """The tick is the safety net; a retry would only add load when something is wrong."""
    once = {"MaximumRetryAttempts": 0, "MaximumEventAgeInSeconds": 60}
    tick = properties("PollFunction")["Events"]["Tick"]
    assert properties("PollFunction")["EventInvokeConfig"] == once
    assert properties("ArchiveFunction")["EventInvokeConfig"] == once
    assert (tick["Type"], tick["Properties"]["ScheduleExpression"]) == ("ScheduleV2", "rate(1 minute)")
    assert tick["Properties"]["RetryPolicy"] == once


def test_the_stage_is_throttled_and_logs_no_path() -> None:
    """The path of a vendor's webhook carries a token."""
    [stage] = of_type("AWS::ApiGatewayV2::Stage").values()
    assert stage["Properties"]["DefaultRouteSettings"] == {
        "ThrottlingRateLimit": {"Ref": "RequestsPerSecond"},
        "ThrottlingBurstLimit": {"Ref": "Burst"},
    }
    assert "AccessLogSettings" not in stage["Properties"]


def test_every_path_reaches_submit() -> None:
    """A `$default` route beside the throttled one, payload 2.0; only this API may invoke it."""
    routes = of_type("AWS::ApiGatewayV2::Route").values()
    [stage] = of_type("AWS::ApiGatewayV2::Stage").values()
    [integration] = of_type("AWS::ApiGatewayV2::Integration").values()
    [permission] = of_type("AWS::Lambda::Permission").values()
    assert {route["Properties"]["RouteKey"] for route in routes} == {
        "$default",
        *stage["Properties"]["RouteSettings"],
    }
    assert {route["Properties"]["Target"]["Fn::Sub"] for route in routes} == {"integrations/${Integration}"}
    assert integration["Properties"]["IntegrationUri"] == {"Fn::GetAtt": ["SubmitFunction", "Arn"]}
    assert integration["Properties"]["PayloadFormatVersion"] == "2.0"
    assert permission["Properties"]["SourceArn"]["Fn::Sub"].endswith(":${HttpApi}/*")


# --- alarms and the dashboard ---------------------------------------------------------------------


def dimensions(alarm: str) -> dict[str, Any]:
    """Return the dimensions of an alarm's metric."""
    return {dimension["Name"]: dimension["Value"] for dimension in properties(alarm)["Dimensions"]}


def test_nothing_is_watched_unless_asked_for() -> None:
    """Alarms and a dashboard cost money every month, idle or not."""
    assert [TEMPLATE["Parameters"][name]["Default"] for name in ("Dashboard", "Alarms", "AlarmEmail")] == [
        "off",
        "off",
        "",
    ]
    conditions = {
        "AWS::CloudWatch::Alarm": "HasAlarms",
        "AWS::CloudWatch::Dashboard": "HasDashboard",
        "AWS::SNS::Topic": "HasAlarmEmail",
    }
    for kind, condition in conditions.items():
        assert {resource["Condition"] for resource in of_type(kind).values()} == {condition}
    conditional = {*ALARMS, *ARCHIVE, "AlarmTopic", "Board"}
    assert {name for name, value in RESOURCES.items() if "Condition" in value} == conditional


def test_an_address_without_alarms_is_refused() -> None:
    """An operator that gives one expects mail."""
    rule = TEMPLATE["Rules"]["AnAddressIsForAlarms"]
    assert rule["RuleCondition"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "AlarmEmail"}, ""]}]}
    assert [it["Assert"] for it in rule["Assertions"]] == [{"Fn::Equals": [{"Ref": "Alarms"}, "on"]}]


@each_row("name", ALARMS)
def test_an_alarm_is_about_this_stack_and_tells_its_topic(name: str) -> None:
    """One metric of this stack's own, and silence means well, except where silence is what it listens for."""
    alarm, [*_, value] = properties(name), dimensions(name).values()
    own = {"taskhook": {"service": {"Ref": "AWS::StackName"}}}
    assert value in ("UpdateItem", "Query") or value["Ref"] in {"AWS::StackName", *FUNCTIONS}
    assert dimensions(name) == own.get(alarm["Namespace"], dimensions(name))
    assert alarm["TreatMissingData"] == ("missing" if name == "PollerSilent" else "notBreaching")
    assert alarm["AlarmActions"] == {
        "Fn::If": ["HasAlarmEmail", [{"Ref": "AlarmTopic"}], {"Ref": "AWS::NoValue"}]
    }


def test_every_alarm_is_listed_here() -> None:
    """Eleven, as the parameter's description says."""
    assert set(of_type("AWS::CloudWatch::Alarm")) == set(ALARMS)
    assert "Eleven alarms" in TEMPLATE["Parameters"]["Alarms"]["Description"]


def test_a_silent_poller_rings_after_five_minutes() -> None:
    """By Lambda's count of invocations, which is missing then: a poller that does not run cannot say so.

    An alarm begins with insufficient data, which is no change: so it does not ring right after its creation.
    """
    alarm = properties("PollerSilent")
    assert alarm["InsufficientDataActions"] == alarm["AlarmActions"]
    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == (
        "AWS/Lambda",
        "Invocations",
        "Sum",
    )
    assert dimensions("PollerSilent") == {"FunctionName": {"Ref": "PollFunction"}}
    assert (
        alarm["Period"] * alarm["EvaluationPeriods"],
        alarm["ComparisonOperator"],
        alarm["Threshold"],
    ) == (
        300,
        "LessThanThreshold",
        1,
    )


def test_the_dashboard_is_json_without_gaps() -> None:
    """Whatever is put in for the names of the stack, and each place holds one widget."""
    body = json.loads(re.sub(r"\$\{[\w:]+\}", "1", properties("Board")["DashboardBody"]["Fn::Sub"]))
    places = [(widget["x"], widget["y"]) for widget in body["widgets"]]
    assert places == [(column * 8, row * 6) for row in range(4) for column in range(3)]
    assert {namespace for namespace, _ in watched.of_dashboard(body)} == {
        "taskhook",
        "AWS/Lambda",
        "AWS/DynamoDB",
    }


def test_what_a_stack_tells() -> None:
    """The names that the admin command and the embedded stack look for."""
    tables = {"TasksTable", "CallersTable", "ResultsBucket"}
    assert set(TEMPLATE["Outputs"]) == {"Endpoint", "ApiUrl", "ApiId", *tables, *FUNCTIONS}


def test_nothing_is_traced_unless_asked_for() -> None:
    """Off by default; the right to record is always there: Lambda looks for it as it makes the function."""
    assert TEMPLATE["Parameters"]["Tracing"]["Default"] == "off"
    assert TEMPLATE["Conditions"]["Traces"] == {"Fn::Equals": [{"Ref": "Tracing"}, "on"]}
    assert TEMPLATE["Globals"]["Function"]["Tracing"] == {"Fn::If": ["Traces", "Active", "PassThrough"]}
    for role in ("SubmitRole", "PollRole", "ArchiveRole"):
        assert set(grants(role)) >= TRACES, role
