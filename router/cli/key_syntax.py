"""The syntax of the commands about keys, tokens and names of services. `key_commands` has their handlers."""

import argparse
from typing import Any

from router.cli.flags import add_cluster_flags, add_output, add_router, add_service


def add_keys(commands: Any) -> None:
    """Add `keys` with its actions."""
    keys = commands.add_parser(
        "keys",
        help="show, import and replace keys",
        description="Show, import or replace the keys of a service of `azureml-fe local` or of a cluster.",
    )
    keys.set_defaults(topic=["keys"], parser=keys)
    actions = keys.add_subparsers(title="actions", metavar="ACTION")
    show = actions.add_parser("show", help="show a service's keys", description="Print the keys of SERVICE.")
    show.add_argument("--key", choices=("primary", "secondary"), help="print only this key")
    add_service(show)
    add_output(show, more=("sdk",), text="sdk: JSON as from az ml online-endpoint get-credentials")
    show.set_defaults(command="keys show", parser=show)
    _add_keys_import(actions)
    regenerate = actions.add_parser(
        "regenerate",
        help="replace one of a service's keys",
        description="Replace one key of SERVICE and print the new one. The other key stays valid, so that clients can "
        "switch to it before.",
    )
    regenerate.add_argument("--key", choices=("primary", "secondary"), required=True, help="the key to replace")
    add_service(regenerate)
    add_output(regenerate)
    regenerate.set_defaults(command="keys regenerate", parser=regenerate)
    prune = actions.add_parser(
        "prune",
        help="list or delete generated keys of deleted models in a cluster",
        description="List the Secrets with generated keys of services that have no Deployment. A model that is "
        "deployed again would get the same keys.",
    )
    prune.add_argument("--delete", action="store_true", help="delete these Secrets")
    add_cluster_flags(prune)
    add_output(prune)
    prune.set_defaults(command="keys prune", parser=prune)


def _add_keys_import(actions: Any) -> None:
    importing = actions.add_parser(
        "import",
        help="import the keys of a service of Azure ML",
        description="Store the keys that the clients of SERVICE have, so that they need no others. FILE has both keys "
        "in the form in which Azure ML's tools print them: service.get_keys() of the first SDK, az ml online-endpoint "
        "get-credentials, or azureml-fe keys show. In a cluster, the keys are in a Secret. Keys are never printed.",
    )
    add_service(importing)
    importing.add_argument("file", nargs="?", default="-", metavar="FILE", help="default: -, standard input")
    importing.add_argument(
        "--replace", action="store_true", help="replace other keys of SERVICE, which then are invalid at once"
    )
    add_output(importing)
    importing.set_defaults(command="keys import", parser=importing)


def add_names(commands: Any) -> None:
    """Add `names` with its actions."""
    names = commands.add_parser(
        "names",
        help="show and release names of services in a cluster",
        description="Show which namespace each name of a service belongs to, or release a name.",
    )
    actions = names.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="list the names",
        description="List the names, with their namespaces, since when they have them, and whether they use them.",
    )
    add_cluster_flags(listing)
    add_router(listing)
    add_output(listing)
    listing.set_defaults(command="names list", parser=listing)
    release = actions.add_parser(
        "release",
        help="release a name",
        description="Release NAME, so that another namespace can use it. The router gives it to the oldest Deployment "
        "with this name. Clients that still use NAME send their requests to the new namespace then.",
    )
    release.add_argument("name", metavar="NAME")
    release.add_argument("--force", action="store_true", help="release it even if a Deployment uses it")
    add_cluster_flags(release)
    add_router(release)
    add_output(release)
    release.set_defaults(command="names release", parser=release)


def add_token(commands: Any) -> None:
    """Add `token`."""
    token = commands.add_parser(
        "token",
        help="create a token",
        description="Print a token for SERVICE, signed with the key of `azureml-fe local` or of the router in a "
        "cluster, as JSON that Azure ML's SDKs read: accessToken, tokenType, and the times in seconds since 1970 as "
        "refreshAfter and expiryOn, and as refreshAfterTimeUtc and expiryTimeUtc.",
    )
    token.add_argument("--ttl", metavar="SECONDS", help="lifetime; default: token_lifetime_seconds")
    token.add_argument(
        "--bare",
        dest="output",
        action="store_const",
        const="text",
        default=argparse.SUPPRESS,  # that of --output
        help="print only the token itself, as --output text",
    )
    add_service(token)
    add_output(token, default="json")
    token.set_defaults(command="token", parser=token)
