"""The policy for deployments against CloudFormation's own list of what it calls for each kind of resource."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER  # type: ignore[import-untyped]

from layers import template
from tests.rows import each_row

POLICY = Path(template.TEMPLATE.parent, "functions/deploy-policy.json").read_text()
STATEMENTS: list[dict[str, Any]] = json.loads(POLICY)["Statement"]
MOST = 6_144  # characters of a managed policy that are no white space, which IAM allows
REGION = "us-east-1"  # its schemas know every kind
UPLOAD = "arn:aws:s3:::aws-sam-cli-managed-default-samclisourcebucket-1/key"
ROLE = "arn:aws:iam::ACCOUNT:role/STACK-SubmitRole-1"
FUNCTION = "arn:aws:lambda:REGION:ACCOUNT:function:STACK-SubmitFunction-1"
API = "arn:aws:apigateway:REGION::/apis/1"
BUCKET = "arn:aws:s3:::STACK-results-1"
# By the Service Authorization Reference these know no resource: they are allowed on all, or not at all.
ON_ALL = {
    "lambda:GetAccountSettings",
    "logs:DescribeIndexPolicies",
    "logs:DescribeLogGroups",
    "logs:DescribeResourcePolicies",
    "secretsmanager:GetRandomPassword",
    "sns:Unsubscribe",
}
SERVERLESS = {  # what SAM makes of its own kinds
    "AWS::Serverless::Function": (
        "AWS::Lambda::Function",
        "AWS::Lambda::EventInvokeConfig",
        "AWS::Scheduler::Schedule",
    ),
    "AWS::Serverless::LayerVersion": ("AWS::Lambda::LayerVersion",),
}
# What CloudFormation calls a resource that is given no name.
NAMED = {
    "AWS::ApiGatewayV2::Api": API,
    "AWS::ApiGatewayV2::Integration": f"{API}/integrations/1",
    "AWS::ApiGatewayV2::Route": f"{API}/routes/1",
    "AWS::ApiGatewayV2::Stage": f"{API}/stages/$default",
    "AWS::CloudWatch::Alarm": "arn:aws:cloudwatch:REGION:ACCOUNT:alarm:STACK-Undelivered-1",
    "AWS::CloudWatch::Dashboard": "arn:aws:cloudwatch::ACCOUNT:dashboard/Board-1",
    "AWS::DynamoDB::Table": "arn:aws:dynamodb:REGION:ACCOUNT:table/STACK-Tasks-1",
    "AWS::IAM::Policy": ROLE,
    "AWS::IAM::Role": ROLE,
    "AWS::Lambda::EventInvokeConfig": FUNCTION,
    "AWS::Lambda::Function": FUNCTION,
    "AWS::Lambda::LayerVersion": "arn:aws:lambda:REGION:ACCOUNT:layer:STACK:1",
    "AWS::Lambda::Permission": FUNCTION,
    "AWS::Logs::LogGroup": "arn:aws:logs:REGION:ACCOUNT:log-group:STACK-SubmitLogs-1",
    "AWS::S3::Bucket": BUCKET,
    "AWS::S3::BucketPolicy": BUCKET,
    "AWS::SNS::Topic": "arn:aws:sns:REGION:ACCOUNT:STACK-AlarmTopic-1",
    "AWS::Scheduler::Schedule": "arn:aws:scheduler:REGION:ACCOUNT:schedule/default/STACK-PollFunctionTick-1",
    "AWS::SecretsManager::Secret": "arn:aws:secretsmanager:REGION:ACCOUNT:secret:Secret-1-abcdef",
}
STACK = "arn:aws:cloudformation:REGION:ACCOUNT:stack/STACK/1"
CALLERS = "arn:aws:dynamodb:REGION:ACCOUNT:table/STACK-Callers-1"
ELSEWHERE = {"iam:PassRole": ROLE, "s3:GetObject": UPLOAD}  # of another service than the resource's own
# What only properties need that the template does not set. Reading is allowed throughout.
UNSET = {
    "AWS::DynamoDB::Table": """
        AssociateTableReplica BatchWriteItem CreateTableReplica DeleteItem DeleteResourcePolicy
        DisableKinesisStreamingDestination EnableKinesisStreamingDestination GetItem ImportTable PutItem
        PutResourcePolicy Query UpdateContributorInsights UpdateItem
        UpdateKinesisStreamingDestination""",
    "AWS::IAM::Policy": "DeleteGroupPolicy DeleteUserPolicy PutGroupPolicy PutUserPolicy",
    "AWS::IAM::Role": """
        AttachRolePolicy DeleteRolePermissionsBoundary DetachRolePolicy PutRolePermissionsBoundary UpdateRole
        UpdateRoleDescription""",
    "AWS::Lambda::Function": """
        AssociateRuntimeAlias DeleteFunctionCodeSigningConfig DeleteFunctionConcurrency PassCapacityProvider
        PublishVersion PutFunctionCodeSigningConfig PutFunctionConcurrency PutFunctionRecursionConfig
        PutFunctionScalingConfig PutRuntimeManagementConfig""",
    "AWS::Logs::LogGroup": """
        AssociateKmsKey CreateLogDelivery DeleteDataProtectionPolicy DeleteIndexPolicy DeleteResourcePolicy
        DisassociateKmsKey PutBearerTokenAuthentication PutDataProtectionPolicy PutIndexPolicy
        PutLogGroupDeletionProtection PutResourcePolicy""",
    "AWS::S3::Bucket": """
        CreateBucketMetadataTableConfiguration DeleteBucketAnalyticsConfiguration DeleteBucketCors
        DeleteBucketEncryption DeleteBucketLifecycle DeleteBucketMetadataTableConfiguration
        DeleteBucketMetricsConfiguration DeleteBucketReplication DeleteBucketWebsite
        PutAccelerateConfiguration PutAnalyticsConfiguration PutBucketAbac PutBucketAcl PutBucketCORS
        PutBucketLogging PutBucketNotification PutBucketObjectLockConfiguration PutBucketReplication
        PutBucketVersioning PutBucketWebsite PutIntelligentTieringConfiguration PutInventoryConfiguration
        PutMetricsConfiguration PutObjectAcl PutObjectLockConfiguration PutReplicationConfiguration
        TagResource UntagResource UpdateBucketMetadataAnnotationTableConfiguration
        UpdateBucketMetadataInventoryTableConfiguration UpdateBucketMetadataJournalTableConfiguration""",
    "AWS::SNS::Topic": "PutDataProtectionPolicy",
    "AWS::SecretsManager::Secret": "RemoveRegionsFromReplication ReplicateSecretToRegions",
}


def as_list(value: Any) -> list[str]:
    """Return what may be written as one value or as several."""
    return value if isinstance(value, list) else [value]


def allows(action: str, resource: str) -> bool:
    """Tell whether a statement allows an action on a resource."""
    return any(
        any(fnmatchcase(action, one) for one in as_list(statement["Action"]))
        and any(fnmatchcase(resource, one) for one in as_list(statement["Resource"]))
        for statement in STATEMENTS
    )


def kinds() -> Iterator[str]:
    """Yield what CloudFormation makes of the template's resources."""
    for resource in template.load()["Resources"].values():
        yield from SERVERLESS.get(resource["Type"], (resource["Type"],))


def asked(kind: str) -> set[str]:
    """Return what making, reading, changing and deleting a resource asks for."""
    handlers = PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, kind).schema["handlers"]
    return {action for verb, one in handlers.items() if verb != "list" for action in one["permissions"]}


def test_every_kind_is_listed_here() -> None:
    """A new kind of resource cannot come in without its rights."""
    assert set(kinds()) == set(NAMED)


@pytest.mark.parametrize("kind", NAMED)
def test_a_deployment_may_do_all_that_cloudformation_does(kind: str) -> None:
    """On the resource by the name that CloudFormation gives it; and nothing is excused that is allowed."""
    name = NAMED[kind]
    service = name.split(":")[2]
    own = {action for action in asked(kind) if action.split(":")[0] == service}
    refused = {
        action.partition(":")[2] for action in own if not allows(action, "*" if action in ON_ALL else name)
    }
    assert refused == set(UNSET.get(kind, "").split())
    if kind.split("::")[1] in {"Lambda", "Scheduler"}:
        assert [one for one in asked(kind) & set(ELSEWHERE) if not allows(one, ELSEWHERE[one])] == []


@each_row(
    ("command", "needs"),
    [
        (
            "any",
            {
                "cloudformation:DescribeStackResource": STACK,
                "cloudformation:DescribeStacks": STACK,
                "secretsmanager:GetSecretValue": NAMED["AWS::SecretsManager::Secret"],
            },
        ),
        ("vendors", {"secretsmanager:PutSecretValue": NAMED["AWS::SecretsManager::Secret"]}),
        ("callers", {f"dynamodb:{verb}Item": CALLERS for verb in ("Get", "Put", "Delete")}),
        ("callers list", {"dynamodb:Scan": CALLERS}),
        ("audit", {"dynamodb:Scan": NAMED["AWS::DynamoDB::Table"]}),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_the_admin_command_works_with_the_same_policy(command: str, needs: dict[str, str]) -> None:
    """All that it asks AWS for."""
    assert [action for action, resource in needs.items() if not allows(action, resource)] == []


def test_only_what_knows_no_resource_is_allowed_on_all() -> None:
    """Such an action is allowed on nothing where a statement names resources; all others name them."""
    on_all = {
        action
        for statement in STATEMENTS
        for action in as_list(statement["Action"])
        if "*" in as_list(statement["Resource"])
    }
    named = {
        action
        for statement in STATEMENTS
        for action in as_list(statement["Action"])
        if "*" not in as_list(statement["Resource"])
    }
    assert on_all == ON_ALL
    assert not named & ON_ALL


def test_the_policy_fits() -> None:
    """With the longest name of a stack that its patterns match, in the region with the longest name."""
    filled = POLICY
    for place, value in {"STACK": "s" * 32, "REGION": "ap-southeast-1", "ACCOUNT": "1" * 12}.items():
        filled = filled.replace(place, value)
    assert len("".join(filled.split())) <= MOST
