"""Calls a service with `azureml-core`, in the environment of the SDKs. Prints one line of JSON.

    client_v1.py MANAGEMENT_URL SERVICE ACTION

ACTION is `run` with the body on standard input, `keys`, which prints service.get_keys() as a user would, or `token`.
With `program` it runs the program on standard input, whose workspace it is.
"""

import json
import sys

from azureml._restclient.service_context import ServiceContext
from azureml.core import Workspace
from azureml.core.authentication import TokenAuthentication
from azureml.core.webservice import Webservice
from azureml.exceptions import WebserviceException


def workspace(url: str) -> Workspace:
    """Return a workspace at a management plane, without a discovery of its services."""
    authentication = TokenAuthentication(lambda audience: "management", cloud="AzureCloud")
    context = ServiceContext("sub", "group", "workspace", "id", url, authentication)
    return Workspace._from_service_context(context, "local")


def main() -> None:
    url, name, action = sys.argv[1:]
    if action == "program":
        Workspace.from_config = lambda: workspace(url)
        exec(sys.stdin.read())
        return
    service = Webservice(workspace(url), name)
    if action == "keys":
        print(service.get_keys())
    elif action == "token":
        token = service.get_access_token()
        print(
            json.dumps({"seconds": (token.expiry_on - token.refresh_after).total_seconds(), "type": token.token_type})
        )
    else:
        try:
            print(json.dumps({"class": type(service).__name__, "result": service.run(sys.stdin.read())}))
        except WebserviceException as error:
            print(json.dumps({"error": error.message}))


main()
