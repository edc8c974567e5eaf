"""Calls an endpoint with `azure-ai-ml`, in the environment of the SDKs. Prints one line of JSON.

    client_v2.py MANAGEMENT_URL ENDPOINT ACTION [DEPLOYMENT]

ACTION is the file with the body of the request, or `keys`, which prints the credentials as a user would.
"""

import json
import os
import sys
import time

from azure.ai.ml import MLClient
from azure.ai.ml.exceptions import MlException
from azure.core.credentials import AccessToken
from azure.core.exceptions import AzureError


class Credential:
    """A login at Azure: a token for Azure ML's endpoints (`AAD_TOKEN`), and one for the management plane."""

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        token = os.environ["AAD_TOKEN"] if scopes == ("https://ml.azure.com/.default",) else "management"
        return AccessToken(token, int(time.time()) + 3600)


def client(url: str) -> MLClient:
    """Return a client of a cloud of our own."""
    metadata = {
        "azure_portal": url,
        "resource_manager": url,
        "active_directory": url,
        "aml_resource_id": url,
        "storage_endpoint": "invalid",
        "registry_discovery_endpoint": url,
    }
    return MLClient(
        Credential(), "sub", "group", "workspace", enable_telemetry=False, cloud="Test", cloud_metadata=metadata
    )


def main() -> None:
    url, endpoint, action, *deployment = sys.argv[1:]
    endpoints = client(url).online_endpoints
    if action == "keys":
        print(vars(endpoints.get_keys(endpoint)))
        return
    try:
        result = endpoints.invoke(endpoint, request_file=action, deployment_name=deployment[0] if deployment else None)
    except (AzureError, MlException) as error:
        print(json.dumps({"error": str(error), "class": type(error).__name__}))
    else:
        print(json.dumps({"result": json.loads(result)}))


main()
