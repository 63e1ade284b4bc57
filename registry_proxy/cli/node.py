"""`registry-proxy reload` and `openapi`: the configuration of a node, and the description of its admin API."""

from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.output import JsonOption, print_json, print_result, spinner


def reload_configuration(_json: JsonOption = False) -> None:
    """Have the node read its configuration again; refused with every fault, and then nothing changes."""
    with admin_client() as admin, spinner("Starting workers with the new configuration"):
        result = admin.call("POST", "reload", patient=True).document
    print_result(result, f"Reloaded: generation {result['generation']} serves.")


def show_openapi() -> None:
    """Print the OpenAPI 3.1 document of the admin API, as the node has it."""
    with admin_client() as admin:
        print_json(admin.call("GET", "openapi.json").document)
