"""What an operator's commands share.

Clients with their own credentials, a stack's resources, errors that say what to do.
"""

import re
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from taskhook.core.errors import CallerError, KeyUnavailableError, KeyUnusableError, StoreUnavailableError

_TIME_OUTS = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})

# What to do about an error of AWS's, by its code, or by the name of its class where it never came to an
# answer.
_LOG_IN = "log in with the AWS CLI, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_DENIED = (
    "these credentials need cloudformation:DescribeStackResource and DescribeStacks; GetItem, PutItem, "
    "DeleteItem and Scan on the stack's Callers table; Scan on its Tasks table; GetSecretValue and "
    "PutSecretValue on its secret"
)
_REACH = "check the network, the region's name and AWS_ENDPOINT_URL"
_REGION = "set AWS_DEFAULT_REGION to the stack's region, or give the profile one"
_GONE = "what the stack keeps it in is gone; deploy the stack again"
_ADVICE = {
    "NoCredentialsError": _LOG_IN,
    "PartialCredentialsError": _LOG_IN,
    "CredentialRetrievalError": _LOG_IN,
    "SSOTokenLoadError": _LOG_IN,
    "UnauthorizedSSOTokenError": _LOG_IN,
    "TokenRetrievalError": _LOG_IN,
    "ExpiredToken": _LOG_IN,
    "ExpiredTokenException": _LOG_IN,
    "InvalidClientTokenId": _LOG_IN,
    "UnrecognizedClientException": _LOG_IN,
    "SignatureDoesNotMatch": _LOG_IN,
    "ProfileNotFound": "`aws configure list-profiles` names those there are; AWS_PROFILE chooses one",
    "NoRegionError": _REGION,
    "InvalidRegionError": _REGION,
    "AccessDenied": _DENIED,
    "AccessDeniedException": _DENIED,
    "EndpointConnectionError": _REACH,
    "ConnectTimeoutError": _REACH,
    "ConnectionClosedError": _REACH,
    "ProxyConnectionError": _REACH,
    "ReadTimeoutError": _REACH,
    "ResourceNotFoundException": _GONE,
    "InvalidRequestException": _GONE,
}


class AdminError(Exception):
    """An operator's command cannot do this; the text says why and what to do."""


EXPECTED = (
    AdminError,
    CallerError,
    StoreUnavailableError,
    KeyUnusableError,
    KeyUnavailableError,
    BotoCoreError,
    ClientError,
    ValidationError,
)


def explain(error: Exception) -> str:
    """Put an expected error into one sentence that ends with what to do."""
    match error:
        case StoreUnavailableError():
            what, advice = (
                f"a table of the stack did not answer: {error}",
                _ADVICE.get(str(error), "try again"),
            )
        case KeyUnusableError() | KeyUnavailableError():
            what, advice = f"the stack's secret cannot be used: {error}", _ADVICE.get(str(error), "")
        case ClientError() | BotoCoreError():
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
            what = str(error)
            advice = _ADVICE.get(
                code, "try again; `aws sts get-caller-identity` tells whether AWS can be reached"
            )
        case ValidationError():
            what, advice = (
                f"a record in the table of callers cannot be read: {error}",
                "delete it there, and add the caller again",
            )
        case _:
            what, advice = str(error), ""
    return "; ".join(part for part in (what.rstrip("."), advice) if part)


def client(service: Any) -> Any:
    """Make a client of AWS with the operator's credentials, which gives up after some seconds.

    Raises AdminError, BotoCoreError.
    """
    try:
        return boto3.client(service, config=_TIME_OUTS)
    except ValueError as error:  # an address that is none
        what = str(error).rstrip(".")
        raise AdminError(f"{what}; {_REGION}; AWS_ENDPOINT_URL must be a URL, or not set") from error


def resource(stack: str, name: str) -> str:
    """Find a resource of a stack by its name in the template. Raises AdminError, botocore's errors."""
    cloudformation = client("cloudformation")
    try:
        described = cloudformation.describe_stack_resource(StackName=stack, LogicalResourceId=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":
            raise
        where = f"in region {cloudformation.meta.region_name} of this account"
        advice = "name it with --stack, its region with AWS_DEFAULT_REGION; `make deploy` makes one"
        raise AdminError(f"there is no taskhook stack {stack!r} {where}; {advice}") from error
    physical: str = described["StackResourceDetail"]["PhysicalResourceId"]
    return physical


def parameters(stack: str) -> dict[str, str]:
    """Read the parameters of a stack that there is. Raises botocore's errors."""
    [described] = client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    given = described.get("Parameters", [])
    return {one["ParameterKey"]: one["ParameterValue"] for one in given}


def checked_key(text: str) -> str:
    """Give an API key without the white space around it.

    Raises AdminError for what no HTTP header can carry.
    """
    key = text.strip()
    if not key:
        raise AdminError("the vendor's key is empty; give it on standard input, or in the file")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise AdminError("that is no API key: it must be one line of printable ASCII without spaces")
    return key
